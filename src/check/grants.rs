//! The rights that the agent's role needs in a system: a plain role, no superuser, no SUPER.

use std::time::Duration;

use super::needs::Needs;
use crate::apply::postgres::origin;
use crate::apply::sql::{backquoted_table, quoted, quoted_table};
use crate::config::{Config, Engine};
use crate::connect::postgres::connect;
use crate::schema::SystemId;
use crate::setup::mysql::grantable;

const AT_ONCE: Duration = Duration::from_secs(2);

/// Whose the bound tables of a PostgreSQL system are; empty where it does not say at once, as before
/// the agent's role is there.
pub async fn owners(config: &Config, system: SystemId) -> Vec<String> {
    const OWNERS: &str = "
        SELECT DISTINCT pg_catalog.pg_get_userbyid(c.relowner)::text
        FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS w (schema, name)
        JOIN pg_catalog.pg_namespace n ON n.nspname::text = w.schema
        JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname::text = w.name
        WHERE pg_catalog.pg_get_userbyid(c.relowner) <> current_user ORDER BY 1";
    if config.system(system).engine != Engine::Postgres {
        return vec![];
    }
    let names = Needs::of(config, system).names();
    let (schemas, tables): (Vec<&str>, Vec<&str>) = names.iter().map(|n| (n.schema.as_str(), n.name.as_str())).unzip();
    let asked = async {
        let client = connect(&config.system(system).connect, "anechoic check").await.ok()?;
        let rows = client.query(OWNERS, &[&schemas, &tables]).await.ok()?;
        Some(rows.iter().map(|row| row.get(0)).collect())
    };
    tokio::time::timeout(AT_ONCE, asked).await.ok().flatten().unwrap_or_default()
}

/// As an administrator of that system runs them, once. `owners`: of its tables, where they are known.
pub fn grants(config: &Config, system: SystemId, owners: &[String]) -> String {
    let needs = Needs::of(config, system);
    match config.system(system).engine {
        Engine::Postgres => postgres(config, system, &needs, owners),
        Engine::Mysql => mysql(config, system, &needs),
    }
}

fn postgres(config: &Config, system: SystemId, needs: &Needs, owners: &[String]) -> String {
    let connect = &config.system(system).connect;
    let role = quoted(&connect.user);
    let mut lines = vec![
        format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD '…';"),
        "-- CREATE lets setup make the marker's schema and the publication".to_owned(),
        format!("GRANT CONNECT, CREATE ON DATABASE {} TO {role};", quoted(&connect.database)),
    ];
    let mut schemas: Vec<&str> = needs.tables.iter().map(|t| t.name.schema.as_str()).collect();
    schemas.sort_unstable();
    schemas.dedup();
    lines.extend(schemas.iter().map(|schema| format!("GRANT USAGE ON SCHEMA {} TO {role};", quoted(schema))));
    for table in &needs.tables {
        let privileges = if table.applied { "SELECT, INSERT, UPDATE, DELETE" } else { "SELECT" };
        lines.push(format!("GRANT {privileges} ON {} TO {role};", quoted_table(&table.name)));
    }
    if needs.is_only_written() {
        lines.push("-- since version 16: then the server does not send back what is written".to_owned());
        lines.push(origin::grants(&connect.user));
    }
    lines.push("-- only owners publish tables: until setup is done, or let the owner run what setup prints".to_owned());
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let pairs = needs.tables.iter().map(|t| format!("({}, {})", literal(&t.name.schema), literal(&t.name.name)));
    let find = "SELECT DISTINCT tableowner FROM pg_tables WHERE (schemaname, tablename) IN";
    match owners.is_empty() {
        true => lines
            .push(format!("-- GRANT owner TO {role}; the owner: {find} ({})", pairs.collect::<Vec<_>>().join(", "))),
        false => lines.extend(owners.iter().map(|owner| format!("GRANT {} TO {role};", quoted(owner)))),
    }
    lines.join("\n")
}

fn mysql(config: &Config, system: SystemId, needs: &Needs) -> String {
    let account = format!("'{}'@'%'", config.system(system).connect.user.replace('\'', "''"));
    let mut lines = vec![
        format!("CREATE USER {account} IDENTIFIED BY '…';"),
        // MariaDB knows REPLICATION CLIENT as another name of BINLOG MONITOR.
        format!("GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {account};"),
    ];
    for table in &needs.tables {
        let privileges = if table.applied { "SELECT, INSERT, UPDATE, DELETE, TRIGGER" } else { "SELECT" };
        lines.push(format!("GRANT {privileges} ON {} TO {account};", backquoted_table(&table.name)));
    }
    if let Some(marker) = &needs.marker {
        let privileges = "CREATE, DROP, SELECT, INSERT, UPDATE, DELETE";
        lines.push(format!("GRANT {privileges} ON {}.* TO {account};", grantable(&marker.schema)));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grants_of_a_plain_role() {
        let file = r#"
            [agent]
            id = "hq"
            data_dir = "/tmp/x"
            [[system]]
            name = "crm"
            url = "postgresql://hq_agent@localhost/crm"
            [[system]]
            name = "shop"
            url = "mysql://hq@localhost/my_shop"
            [[entity]]
            name = "contact"
            key = ["id"]
            [entity.in.crm]
            table = "contacts"
            role = "source"
            columns = { id = "id" }
            [entity.in.shop]
            table = "customers"
            columns = { id = "id" }
        "#;
        let config = Config::from_str(file, "test").unwrap();

        insta::assert_snapshot!(grants(&config, SystemId(0), &[]), @r#"
CREATE ROLE "hq_agent" LOGIN REPLICATION PASSWORD '…';
-- CREATE lets setup make the marker's schema and the publication
GRANT CONNECT, CREATE ON DATABASE "crm" TO "hq_agent";
GRANT USAGE ON SCHEMA "public" TO "hq_agent";
GRANT SELECT ON "public"."contacts" TO "hq_agent";
-- only owners publish tables: until setup is done, or let the owner run what setup prints
-- GRANT owner TO "hq_agent"; the owner: SELECT DISTINCT tableowner FROM pg_tables WHERE (schemaname, tablename) IN (('public', 'contacts'))
"#);
        let known = grants(&config, SystemId(0), &["crm owner".to_owned()]);
        assert!(known.ends_with("\nGRANT \"crm owner\" TO \"hq_agent\";"), "{known}");
        insta::assert_snapshot!(grants(&config, SystemId(1), &[]), @r#"
CREATE USER 'hq'@'%' IDENTIFIED BY '…';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'hq'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON `my_shop`.`customers` TO 'hq'@'%';
GRANT CREATE, DROP, SELECT, INSERT, UPDATE, DELETE ON `anechoic`.* TO 'hq'@'%';
"#);
    }
}
