//! Marker and position of a MySQL or MariaDB system. Its log is kept for everybody; nothing
//! else is created there.

use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use super::{Ensured, Known, NewPosition, Removed, Step, at_work, foreign_marker, in_the_way};
use crate::apply::mysql::{lock_name, marker_ddl};
use crate::apply::sql::{backquoted, backquoted_table};
use crate::capture::mysql::create_position;
use crate::check::mysql::Facts;
use crate::check::needs::Needs;
use crate::check::{self, Survey};
use crate::config::Config;
use crate::connect::mysql::{connect, failed};
use crate::error::{Error, Result};
use crate::position::Seq;
use crate::schema::SystemId;

/// What is missing, in the order in which it must be created.
pub fn steps(facts: &Facts, needs: &Needs) -> Vec<Step> {
    let Some(marker) = needs.marker.as_ref().filter(|_| facts.marker.is_none()) else {
        return vec![];
    };
    let (database, table): (Vec<_>, Vec<_>) =
        marker_ddl(marker).into_iter().partition(|sql| sql.starts_with("CREATE DATABASE"));
    let may_create = facts.privileges.database(&marker.schema, "CREATE");
    let may_write = check::mysql::missing_on_marker(facts, marker).is_empty();
    let grant = format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {}.* TO {}", grantable(&marker.schema), facts.user);
    let mut steps = Vec::new();
    if !facts.marker_database {
        steps.push(Step {
            missing: format!("database {:?} does not exist", marker.schema),
            sql: database.clone(),
            admin: database,
            allowed: may_create,
        });
    }
    let mut admin = table.clone();
    admin.push(grant);
    let allowed = may_create && may_write;
    steps.push(Step { missing: format!("the marker table {marker} does not exist"), sql: table, admin, allowed });
    steps
}

/// A database's name in GRANT is a pattern.
pub fn grantable(database: &str) -> String {
    backquoted(&database.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%"))
}

pub(super) async fn ensure(
    config: &Config,
    system: SystemId,
    needs: &Needs,
    known: Known,
    survey: &Survey,
) -> Result<Ensured> {
    let connect_config = &config.system(system).connect;
    let mut conn = connect(connect_config).await?;
    let facts = survey.mysql.as_ref().expect("a survey of MySQL has its facts");
    let mut ensured = Ensured { findings: in_the_way(survey), ..Ensured::default() };
    for step in steps(facts, needs) {
        if !step.allowed {
            ensured.findings.push(step.refused(&config.system(system).name));
            continue;
        }
        for sql in &step.sql {
            conn.query_drop(sql).await.map_err(|e| failed(e, sql))?;
            ensured.done.push(sql.clone());
        }
    }
    if ensured.findings.is_empty() && !known.positioned {
        let base = mark(&mut conn, config, system, needs, known).await?;
        undecided(&mut conn).await?;
        let (position, identity) = create_position(&mut conn).await?;
        ensured.done.push(format!("position {position}"));
        ensured.position = Some(NewPosition { position, identity, base });
    }
    Ok(ensured)
}

/// What is prepared and not decided lies before the position, and its commit behind it. Where
/// the role may not ask, the capture notices.
async fn undecided(conn: &mut Conn) -> Result<()> {
    let prepared: Vec<mysql_async::Row> = match conn.query("XA RECOVER").await {
        Err(mysql_async::Error::Server(_)) => return Ok(()),
        prepared => prepared.map_err(|e| failed(e, "asking for prepared transactions"))?,
    };
    match prepared.len() {
        0 => Ok(()),
        count => Err(Error::retry(format!(
            "{count} XA transactions are prepared and not decided: their rows would be missed"
        ))
        .hint("XA RECOVER lists them; the log is read from when all are committed or rolled back")),
    }
}

/// The base of a system that is new to the journal. It gets nothing of what came before it, so
/// its marker begins at the journal's head.
async fn mark(conn: &mut Conn, config: &Config, system: SystemId, needs: &Needs, known: Known) -> Result<Seq> {
    let Some(marker) = &needs.marker else {
        return Ok(0);
    };
    let (table, journal) = (backquoted_table(marker), format!("{:032x}", known.journal));
    let agent = config.agent.id.as_str();
    let insert = format!(
        "INSERT INTO {table} (agent, lane, journal, epoch, seq, part, origin, txid, applied_at, format) \
         SELECT ?, 0, ?, 1, ?, 0, '', '', NOW(6), ? FROM DUAL \
         WHERE NOT EXISTS (SELECT 1 FROM {table} AS m WHERE m.agent = ?)"
    );
    let doing = format!("writing the marker {marker}");
    let values = (agent, &journal, known.head, crate::marker::FORMAT, agent);
    conn.exec_drop(insert, values).await.map_err(|e| failed(e, &doing))?;
    let select = format!("SELECT journal, MAX(seq) FROM {table} WHERE agent = ? GROUP BY journal");
    let rows: Vec<(String, u64)> = conn.exec(select, (agent,)).await.map_err(|e| failed(e, &doing))?;
    if let Some((foreign, _)) = rows.iter().find(|(id, _)| *id != journal) {
        let lock = format!("SELECT IS_USED_LOCK('{}')", lock_name(agent, marker, 0));
        let holder: Option<Option<u64>> = conn.query_first(lock).await.map_err(|e| failed(e, &doing))?;
        return Err(match holder.flatten() {
            Some(id) => at_work(config, system, &format!("connection {id} holds its lock")),
            None => foreign_marker(config, system, foreign),
        });
    }
    Ok(rows.iter().map(|(_, seq)| *seq).max().unwrap_or(0))
}

/// Our rows; the table when no other agent has one; the database when nothing else is in it.
pub(super) async fn remove(config: &Config, system: SystemId) -> Result<Removed> {
    let mut conn = connect(&config.system(system).connect).await?;
    let (marker, agent) = (&config.system(system).marker, config.agent.id.as_str());
    let (table, doing) = (backquoted_table(marker), format!("removing the marker {marker}"));
    let mut done = Vec::new();
    let find = "SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ?";
    let found: Option<u64> =
        conn.exec_first(find, (&marker.schema, &marker.name)).await.map_err(|e| failed(e, &doing))?;
    if found != Some(0) {
        let delete = format!("DELETE FROM {table} WHERE agent = ?");
        conn.exec_drop(delete, (agent,)).await.map_err(|e| failed(e, &doing))?;
        let count = format!("SELECT COUNT(*) FROM {table}");
        let others: Option<u64> = conn.query_first(count).await.map_err(|e| failed(e, &doing))?;
        if others != Some(0) {
            done.push(format!("rows of agent {agent:?} in {marker}; other agents still use the table"));
            return Ok(Removed { done, left: vec![] });
        }
        conn.query_drop(format!("DROP TABLE {table}")).await.map_err(|e| failed(e, &doing))?;
        done.push(format!("table {marker}"));
    }
    done.extend(remove_database(&mut conn, &marker.schema, &config.system(system).connect.database).await?);
    Ok(Removed { done, left: vec![] })
}

/// Only an empty one, and never the one that the url names.
async fn remove_database(conn: &mut Conn, database: &str, own: &str) -> Result<Option<String>> {
    let empty = "SELECT COUNT(*) FROM information_schema.SCHEMATA s WHERE s.SCHEMA_NAME = ? \
                 AND NOT EXISTS (SELECT 1 FROM information_schema.TABLES t WHERE t.TABLE_SCHEMA = s.SCHEMA_NAME) \
                 AND NOT EXISTS (SELECT 1 FROM information_schema.ROUTINES r WHERE r.ROUTINE_SCHEMA = s.SCHEMA_NAME)";
    let doing = format!("removing database {database:?}");
    let found: Option<u64> = conn.exec_first(empty, (database,)).await.map_err(|e| failed(e, &doing))?;
    if found != Some(1) || database == own {
        return Ok(None);
    }
    match conn.query_drop(format!("DROP DATABASE {}", backquoted(database))).await {
        Ok(()) => Ok(Some(format!("database {database:?}"))),
        // An empty database that its administrator made is nobody's harm.
        Err(error) => {
            tracing::debug!(error = %failed(error, &doing).full(), "left an empty database");
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::mysql::tests::{GRANTS, facts, needs};
    use crate::connect::mysql::Flavour;

    #[test]
    fn a_role_with_the_grants_creates_database_and_table() {
        let steps = steps(&facts(Flavour::Mysql, &GRANTS), &needs());

        assert_eq!(steps.len(), 2);
        assert!(steps.iter().all(|step| step.allowed), "{steps:?}");
    }

    #[test]
    fn without_create_an_administrator_gets_the_statements() {
        let steps = steps(&facts(Flavour::Mysql, &GRANTS[..2]), &needs());

        assert!(steps.iter().all(|step| !step.allowed), "{steps:?}");
        assert_eq!(
            steps[1].admin.last().map(String::as_str),
            Some("GRANT SELECT, INSERT, UPDATE, DELETE ON `anechoic`.* TO 'hq'@'%'")
        );
    }

    #[test]
    fn a_database_in_a_grant_is_a_pattern() {
        assert_eq!(grantable("a_b%c"), "`a\\_b\\%c`");
    }
}
