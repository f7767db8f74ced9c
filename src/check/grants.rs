//! The rights that the agent's role needs in a system: a plain role, no superuser, no SUPER.

use super::needs::Needs;
use crate::apply::postgres::origin;
use crate::apply::sql::{backquoted_table, quoted, quoted_table};
use crate::config::{Config, Engine};
use crate::schema::SystemId;
use crate::setup::mysql::grantable;

/// As an administrator of that system runs them, once.
pub fn grants(config: &Config, system: SystemId) -> String {
    let needs = Needs::of(config, system);
    match config.system(system).engine {
        Engine::Postgres => postgres(config, system, &needs),
        Engine::Mysql => mysql(config, system, &needs),
    }
}

fn postgres(config: &Config, system: SystemId, needs: &Needs) -> String {
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
    lines.push(format!(
        "-- a publication needs the tables' owner: GRANT owner TO {role}, or let the owner run what setup prints"
    ));
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

        insta::assert_snapshot!(grants(&config, SystemId(0)), @r#"
CREATE ROLE "hq_agent" LOGIN REPLICATION PASSWORD '…';
-- CREATE lets setup make the marker's schema and the publication
GRANT CONNECT, CREATE ON DATABASE "crm" TO "hq_agent";
GRANT USAGE ON SCHEMA "public" TO "hq_agent";
GRANT SELECT ON "public"."contacts" TO "hq_agent";
-- a publication needs the tables' owner: GRANT owner TO "hq_agent", or let the owner run what setup prints
"#);
        insta::assert_snapshot!(grants(&config, SystemId(1)), @r#"
CREATE USER 'hq'@'%' IDENTIFIED BY '…';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'hq'@'%';
GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON `my_shop`.`customers` TO 'hq'@'%';
GRANT CREATE, DROP, SELECT, INSERT, UPDATE, DELETE ON `anechoic`.* TO 'hq'@'%';
"#);
    }
}
