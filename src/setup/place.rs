//! A new position for a system whose old one is lost, while nothing is applied there.
//!
//! ```text
//! slot dropped ─▶ what is missing ─▶ fence ─▶ marker: ours? within the journal? ─▶ new position
//!                                               └ no: set to the journal's head ─┘
//! ```
//!
//! May be repeated from the start at any time: until the journal has the position nothing is
//! read from it. The fence waits for whatever an applier of ours has left in flight, so the
//! marker that is read behind it is what the system has, and it is read before the log begins.

use mysql_async::prelude::Queryable;

use super::{Known, NewPosition, ensure, postgres};
use crate::apply::mysql::MyTarget;
use crate::apply::postgres::PgTarget;
use crate::apply::sql::{backquoted_table, quoted_table};
use crate::apply::{Target, TargetSpec, instance};
use crate::check::needs::Needs;
use crate::config::{Config, Engine, SystemConfig};
use crate::error::{Error, Result};
use crate::finding::Finding;
use crate::journal::{Journal, PositionRecord};
use crate::marker::Marker;
use crate::position::{Position, Seq};
use crate::schema::SystemId;

/// Where a system's log begins anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its base is the marker of that moment.
    pub position: NewPosition,
    /// The journal has all that the system has not seen: nothing but authority decides elsewhere.
    pub causal: bool,
    /// By marker, identity or log its tables are older than what the journal knows of them.
    pub restored: bool,
    pub done: Vec<String>,
}

/// `before`: what the journal knew of its log.
pub async fn place(
    config: &Config,
    system: SystemId,
    journal: &Journal,
    before: Option<&PositionRecord>,
) -> Result<Placed> {
    let needs = Needs::of(config, system);
    let mut done = Vec::new();
    if config.system(system).engine == Engine::Postgres {
        done.extend(postgres::drop_own_slot(config, system).await?);
    }
    let known = |positioned| Known { journal: journal.id(), head: journal.head(), positioned };
    let there = ensure(config, system, known(true), None).await?;
    done.extend(there.done);
    in_the_way(&there.findings)?;
    let (mut causal, mut older) = (before.is_some(), false);
    if needs.marker.is_some() {
        let (is_there, marker) = fenced(config, system, journal).await?;
        let fits = is_there && marker.journal == journal.id() && marker.seq <= journal.head();
        causal &= fits && journal.oldest() <= marker.seq + 1;
        older = before.is_some_and(|before| fits && marker.seq < before.base);
        if !causal {
            let head = journal.head();
            adopt(config, system, &marker, journal.id(), head).await?;
            done.push(format!("marker at the journal's head, {head}"));
        }
    }
    let made = ensure(config, system, known(false), None).await?;
    in_the_way(&made.findings)?;
    done.extend(made.done);
    let position = made.position.ok_or_else(|| {
        Error::stop(format!("{} has no bound tables", config.system(system).name), "remove it, or bind it")
    })?;
    let restored = older || before.is_some_and(|before| is_older(before, &position));
    Ok(Placed { position, causal, restored, done })
}

fn in_the_way(findings: &[Finding]) -> Result<()> {
    let list: Vec<String> = findings.iter().map(ToString::to_string).collect();
    match list.is_empty() {
        true => Ok(()),
        false => Err(Error::stop(list.join("\n"), "then the same command again")),
    }
}

/// Another server, or one whose log ends before what was read of it.
fn is_older(before: &PositionRecord, now: &NewPosition) -> bool {
    let other = !before.identity.is_empty() && *before.identity != *now.identity;
    let shorter = match (&before.position, &now.position) {
        (Position::Postgres { lsn: before }, Position::Postgres { lsn: now }) => now < before,
        _ => false,
    };
    other || shorter
}

/// Whether the marker row was there, and what it says when nothing is in flight any more.
async fn fenced(config: &Config, system: SystemId, journal: &Journal) -> Result<(bool, Marker)> {
    let there = config.system(system);
    let spec = TargetSpec {
        agent: config.agent.id.clone(),
        system: there.name.clone(),
        lane: 0,
        lanes: 1,
        marker: there.marker.clone(),
        journal: journal.id(),
        instance: instance(),
    };
    let is_there = has_marker(there, &config.agent.id).await?;
    let marker = match there.engine {
        Engine::Postgres => PgTarget::new(there.connect.clone(), spec).open().await?,
        Engine::Mysql => MyTarget::new(there.connect.clone(), spec).open().await?,
    };
    Ok((is_there, marker))
}

async fn has_marker(system: &SystemConfig, agent: &str) -> Result<bool> {
    match system.engine {
        Engine::Postgres => {
            let client = crate::connect::postgres::connect(&system.connect, "anechoic resync").await?;
            let sql = format!("SELECT FROM {} WHERE agent = $1 AND lane = 0", quoted_table(&system.marker));
            let rows = client.query(&sql, &[&agent]).await;
            Ok(!rows.map_err(|e| crate::connect::postgres::error(&e))?.is_empty())
        }
        Engine::Mysql => {
            let mut conn = crate::connect::mysql::connect(&system.connect).await?;
            let sql = format!("SELECT 1 FROM {} WHERE agent = ? AND lane = 0", backquoted_table(&system.marker));
            let found: Option<u64> = conn
                .exec_first(sql, (agent,))
                .await
                .map_err(|e| crate::connect::mysql::failed(e, "reading the marker"))?;
            Ok(found.is_some())
        }
    }
}

/// Makes the agent's marker, all its rows, count this journal's entries, up to its head, or fails where
/// it was moved.
async fn adopt(config: &Config, system: SystemId, marker: &Marker, journal: u128, head: Seq) -> Result<()> {
    let (there, agent) = (config.system(system), config.agent.id.as_str());
    let set = format!("SET journal = '{journal:032x}', seq = {head}, part = 0, epoch = epoch + 1");
    let is = |own: &str| format!("{own} lane = {}", marker.lane);
    let only = format!("epoch = {} AND seq = {} AND {}", marker.epoch, marker.seq, is(""));
    let moved = match there.engine {
        Engine::Postgres => {
            let mut client = crate::connect::postgres::connect(&there.connect, "anechoic resync").await?;
            let table = quoted_table(&there.marker);
            let run = async {
                let run = client.transaction().await?;
                let moved =
                    run.execute(&format!("UPDATE {table} {set} WHERE {only} AND agent = $1"), &[&agent]).await?;
                if moved == 1 {
                    let others = format!("UPDATE {table} {set} WHERE {} AND agent = $1", is("NOT"));
                    run.execute(&others, &[&agent]).await?;
                }
                run.commit().await?;
                Ok(moved)
            };
            run.await.map_err(|e| crate::connect::postgres::error(&e))?
        }
        Engine::Mysql => {
            let mut conn = crate::connect::mysql::connect(&there.connect).await?;
            let table = backquoted_table(&there.marker);
            let run = async {
                conn.query_drop("START TRANSACTION").await?;
                conn.exec_drop(format!("UPDATE {table} {set} WHERE {only} AND agent = ?"), (agent,)).await?;
                let moved = conn.affected_rows();
                if moved == 1 {
                    let others = format!("UPDATE {table} {set} WHERE {} AND agent = ?", is("NOT"));
                    conn.exec_drop(others, (agent,)).await?;
                }
                conn.query_drop("COMMIT").await?;
                Ok(moved)
            };
            run.await.map_err(|e| crate::connect::mysql::failed(e, "writing the marker"))?
        }
    };
    match moved {
        1 => Ok(()),
        _ => Err(Error::retry(format!("the marker {} was moved meanwhile", there.marker))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::Lsn;

    #[test]
    fn another_server_and_a_shorter_log_are_older() {
        let at = |lsn| Position::Postgres { lsn: Lsn(lsn) };
        let before = PositionRecord { position: at(500), base: 7, identity: "a/1".into() };
        let now = |lsn, identity: &str| NewPosition { position: at(lsn), identity: identity.into(), base: 7 };

        assert!(!is_older(&before, &now(501, "a/1")));
        assert!(is_older(&before, &now(501, "a/2")));
        assert!(is_older(&before, &now(499, "a/1")));
        let unnamed = PositionRecord { identity: "".into(), ..before };
        assert!(!is_older(&unnamed, &now(501, "a/2")));
    }
}
