//! Tables that are not there, and what may have been meant.

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use tokio_postgres::Client;

use super::mysql::Facts;
use super::needs::{Needs, TableNeed};
use crate::apply::sql::backquoted_table;
use crate::catalog::{Table, TableName};
use crate::config::{Config, nearest};
use crate::connect;
use crate::error::Result;
use crate::finding::Finding;
use crate::schema::SystemId;

pub(super) async fn in_postgres(
    client: &Client,
    config: &Config,
    system: SystemId,
    needs: &Needs,
    tables: &[Option<Table>],
) -> Result<Vec<Finding>> {
    if tables.iter().all(Option::is_some) {
        return Ok(vec![]);
    }
    let sql = "SELECT n.nspname::text, c.relname::text, c.relkind::text FROM pg_class c \
               JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') \
               AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'";
    let rows =
        client.query(sql, &[]).await.map_err(|e| connect::postgres::error(&e).context("cannot read the catalog"))?;
    let known: Vec<(TableName, bool)> = rows
        .iter()
        .map(|row| (TableName { schema: row.get(0), name: row.get(1) }, matches!(row.get(2), "r" | "p")))
        .collect();
    Ok(absent(needs, tables).map(|need| finding(config, system, need, &known, None)).collect())
}

pub(super) async fn in_mysql(
    conn: &mut Conn,
    config: &Config,
    system: SystemId,
    facts: &Facts,
    needs: &Needs,
    tables: &[Option<Table>],
) -> Result<Vec<Finding>> {
    if tables.iter().all(Option::is_some) {
        return Ok(vec![]);
    }
    let sql = "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES \
               WHERE TABLE_SCHEMA NOT IN ('mysql', 'information_schema', 'performance_schema', 'sys')";
    let rows: Vec<(String, String, String)> =
        conn.query(sql).await.map_err(|e| connect::mysql::failed(e, "reading the catalog"))?;
    let known: Vec<(TableName, bool)> =
        rows.into_iter().map(|(schema, name, kind)| (TableName { schema, name }, kind != "VIEW")).collect();
    let one = |need: &TableNeed| {
        // Without a right to it a table is hidden.
        let hidden = !facts.privileges.database(&need.name.schema, "SELECT");
        let privileges = if need.applied { "SELECT, INSERT, UPDATE, DELETE, TRIGGER" } else { "SELECT" };
        let grant =
            hidden.then(|| format!("GRANT {privileges} ON {} TO {};", backquoted_table(&need.name), facts.user));
        finding(config, system, need, &known, grant)
    };
    Ok(absent(needs, tables).map(one).collect())
}

fn absent<'n>(needs: &'n Needs, tables: &[Option<Table>]) -> impl Iterator<Item = &'n TableNeed> {
    needs.tables.iter().zip(tables).filter(|(_, table)| table.is_none()).map(|(need, _)| need)
}

/// `known`: names, and whether it is a table. `grant`: what shows it, if it is only hidden.
fn finding(
    config: &Config,
    system: SystemId,
    need: &TableNeed,
    known: &[(TableName, bool)],
    grant: Option<String>,
) -> Finding {
    let name = &config.system(system).name;
    let here = |finding: Finding| finding.entity(&need.entity).table(&need.name);
    if known.iter().any(|(table, is_table)| *table == need.name && !is_table) {
        let what = format!("{} is no table, and only tables have their changes in the log", need.name);
        let mend = format!("# name the table behind it\n[entity.in.{name}]\ntable = \"…\"");
        return here(Finding::error(name, what).mend(mend));
    }
    let near = nearest_table(&need.name, known);
    let seen = if grant.is_some() { " that the agent's role may see" } else { "" };
    let found = near.as_ref().map_or_else(String::new, |near| format!("; nearest: {near}"));
    let what = format!("there is no table {}{seen}{found}", need.name);
    let toml = near.map(|near| format!("[entity.in.{name}]\ntable = {:?}", spelled(&near)));
    here(match (toml, grant) {
        (Some(toml), Some(grant)) => {
            let grant = format!("# or, if it is hidden, as an administrator: {grant}");
            Finding::error(name, what).mend(format!("{toml}\n{grant}"))
        }
        (Some(toml), None) => Finding::error(name, what).mend(toml),
        (None, Some(grant)) => Finding::error(name, what).by_administrator(grant),
        (None, None) => Finding::error(name, what).mend(format!(
            "# names are taken exactly as the database spells them; parts with dots stand in quotes\n\
             [entity.in.{name}]\ntable = \"…\""
        )),
    })
}

/// The same name elsewhere or in other letters first.
fn nearest_table(name: &TableName, known: &[(TableName, bool)]) -> Option<TableName> {
    let tables = || known.iter().filter(|(_, is_table)| *is_table).map(|(table, _)| table);
    let same = |table: &&TableName| table.name.to_lowercase() == name.name.to_lowercase();
    let in_schema = || tables().filter(|table| table.schema == name.schema);
    let by_name = || {
        let near = nearest(&name.name, in_schema().map(|table| table.name.as_str()))?;
        in_schema().find(|table| table.name == near)
    };
    in_schema().find(same).or_else(|| tables().find(same)).or_else(by_name).cloned()
}

/// As the configuration takes it.
fn spelled(table: &TableName) -> String {
    let part = |part: &str| match part.contains(['.', '"', '`']) {
        true => format!("\"{}\"", part.replace('"', "\"\"")),
        false => part.to_owned(),
    };
    format!("{}.{}", part(&table.schema), part(&table.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_table_is_the_same_name_before_a_like_one() {
        let table = |schema: &str, name: &str| TableName { schema: schema.into(), name: name.into() };
        let known = [
            (table("public", "contact"), true),
            (table("sales", "Contacts"), true),
            (table("public", "contacts_v"), false),
        ];
        let near = |schema: &str, name: &str| nearest_table(&table(schema, name), &known).map(|t| t.to_string());

        assert_eq!(near("public", "Contact").as_deref(), Some("public.contact"));
        assert_eq!(near("public", "contacts").as_deref(), Some("sales.Contacts"));
        assert_eq!(near("public", "contcat").as_deref(), Some("public.contact"));
        assert_eq!(near("public", "orders"), None);
    }
}
