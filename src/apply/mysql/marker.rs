//! The marker row in MySQL and MariaDB: its table, the write that fences, the lock of the
//! session.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};
use tokio::time::Instant;

use super::error::classify;
use super::literal::text;
use crate::apply::sql::{backquoted, backquoted_table};
use crate::apply::{LOCKED, TargetSpec};
use crate::catalog::TableName;
use crate::error::{Error, Result};
use crate::marker::{FORMAT, Marker};

/// What `setup` runs; each statement may be repeated.
pub fn marker_ddl(marker: &TableName) -> Vec<String> {
    vec![
        format!("CREATE DATABASE IF NOT EXISTS {}", backquoted(&marker.schema)),
        format!(
            "CREATE TABLE IF NOT EXISTS {} (agent varchar(32) NOT NULL, lane int NOT NULL, \
             journal varchar(32) NOT NULL, epoch bigint NOT NULL, seq bigint NOT NULL, part bigint NOT NULL, \
             origin varchar(255) NOT NULL, txid varchar(255) NOT NULL, applied_at datetime(6) NOT NULL, \
             format int NOT NULL, PRIMARY KEY (agent, lane)) ENGINE=InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            backquoted_table(marker)
        ),
    ]
}

/// Never stands still, so that the row always changes: a write of equal values leaves no row
/// in the log.
const NOW: &str = "applied_at=GREATEST(UTC_TIMESTAMP(6), applied_at + INTERVAL 1 MICROSECOND)";

/// The first statements of every transaction: move the marker from where it is expected to be,
/// or fail. Elsewhere `seq` becomes NULL, which it may not be; where there is no row, a
/// subquery yields two. `seq` is set first, because MySQL's later assignments see earlier ones.
pub fn advance(spec: &TargetSpec, from: &Marker, next: &Marker) -> [String; 2] {
    let Marker { epoch, seq, part, .. } = from;
    let update = format!(
        "UPDATE {} SET seq=IF(epoch={epoch} AND seq={seq} AND part={part}, {}, NULL), journal={}, part={}, \
         origin={}, txid={}, format={FORMAT}, {NOW} WHERE agent={} AND lane={}",
        backquoted_table(&spec.marker),
        next.seq,
        quoted(&format!("{:032x}", next.journal)),
        next.part,
        quoted(&next.origin),
        quoted(&next.txid),
        quoted(&spec.agent),
        spec.lane,
    );
    // Not DO, in which MariaDB takes an error for a warning.
    [update, "SET @anechoic_moved = IF(ROW_COUNT() = 1, 1, (SELECT 1 UNION ALL SELECT 2))".to_owned()]
}

/// Error numbers by which [`advance`] says that the marker is not where it should be.
pub fn is_fence(code: u16) -> bool {
    matches!(code, 1048 | 1242)
}

fn quoted(value: &str) -> String {
    let mut out = Vec::new();
    let cut: String = value.chars().take(255).collect();
    text(&cut, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// Raises the epoch on all rows of the agent, which waits for whatever is in flight there, and
/// only then reads them; creates those of its lanes that are not there.
pub async fn raise_epoch(conn: &mut Conn, spec: &TargetSpec, role: &str) -> Result<Vec<Marker>> {
    let (table, agent) = (backquoted_table(&spec.marker), quoted(&spec.agent));
    let run = async {
        conn.query_drop("START TRANSACTION READ WRITE").await?;
        conn.query_drop(format!("UPDATE {table} SET epoch=epoch+1, {NOW} WHERE agent={agent}")).await?;
        for lane in 0..spec.lanes {
            conn.query_drop(create(spec, lane)).await?;
        }
        let rows: Vec<Row> = conn
            .query(format!("SELECT journal, epoch, seq, part, origin, txid, lane FROM {table} WHERE agent={agent}"))
            .await?;
        conn.query_drop("COMMIT").await?;
        Ok(rows)
    };
    let rows = run.await.map_err(|error| setup_hint(classify(error, &spec.marker, role)))?;
    let rows: Option<Vec<Marker>> = rows.into_iter().map(|row| read(spec, row)).collect();
    rows.ok_or_else(|| {
        Error::lost(
            format!("the marker of agent {:?} in {} cannot be read", spec.agent, spec.marker),
            "the row was written by something else than anechoic: restore it, or",
        )
        .of_system(&spec.system)
    })
}

/// Writes the marker without moving it, so that it can be awaited in the system's own log: the
/// proof that the log shows it at all.
pub async fn touch_marker(conn: &mut Conn, spec: &TargetSpec, role: &str) -> Result<()> {
    let table = backquoted_table(&spec.marker);
    let run = async {
        conn.query_drop("START TRANSACTION READ WRITE").await?;
        conn.query_drop(create(spec, spec.lane)).await?;
        conn.query_drop(format!("UPDATE {table} SET {NOW} WHERE agent={} AND lane={}", quoted(&spec.agent), spec.lane))
            .await?;
        conn.query_drop("COMMIT").await
    };
    run.await.map_err(|error| setup_hint(classify(error, &spec.marker, role)))
}

fn create(spec: &TargetSpec, lane: u32) -> String {
    let (table, agent) = (backquoted_table(&spec.marker), quoted(&spec.agent));
    format!(
        "INSERT INTO {table} (agent, lane, journal, epoch, seq, part, origin, txid, applied_at, format) \
         SELECT {agent}, {lane}, '{:032x}', 1, 0, 0, '', '', UTC_TIMESTAMP(6), {FORMAT} FROM DUAL \
         WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE agent={agent} AND lane={lane})",
        spec.journal,
    )
}

fn read(spec: &TargetSpec, mut row: Row) -> Option<Marker> {
    let journal: String = row.take(0)?;
    let mut number = |at| row.take::<i64, _>(at).and_then(|n| u64::try_from(n).ok());
    Some(Marker {
        agent: spec.agent.clone(),
        lane: u32::try_from(number(6)?).ok()?,
        journal: u128::from_str_radix(&journal, 16).ok()?,
        epoch: number(1)?,
        seq: number(2)?,
        part: number(3)?,
        origin: row.take(4)?,
        txid: row.take(5)?,
    })
}

fn setup_hint(error: Error) -> Error {
    match error.code.as_deref() {
        Some("1146" | "1049" | "1054") => error.hint("run `anechoic setup`, which creates the marker table"),
        _ => error,
    }
}

/// Of the whole server, so that the marker table's name belongs to it.
pub fn lock_name(agent: &str, marker: &TableName, lane: u32) -> String {
    name_of(&format!("{agent}\u{1}{marker}\u{1}{lane}"))
}

/// By which a connection of this very process is told.
fn instance_name(spec: &TargetSpec) -> String {
    name_of(&format!("{}\u{1}{}\u{1}{}", lock_name(&spec.agent, &spec.marker, spec.lane), spec.instance, spec.system))
}

fn name_of(what: &str) -> String {
    format!("anechoic:{:032x}", xxhash_rust::xxh3::xxh3_128(what.as_bytes()))
}

/// Takes the agent's lock for as long as the session lives. A holder that is a connection of
/// our own, cut off unnoticed by the server, is ended; another one is waited for, then named.
pub async fn lock(conn: &mut Conn, spec: &TargetSpec, patience: Duration) -> Result<()> {
    let failed = |error: mysql_async::Error| Error::retry("the session lock could not be asked for").because(error);
    let (name, instance) = (lock_name(&spec.agent, &spec.marker, spec.lane), instance_name(spec));
    let deadline = Instant::now() + patience;
    let mut ended = None;
    loop {
        let got: Option<Option<i64>> =
            conn.query_first(format!("SELECT GET_LOCK('{name}', 0)")).await.map_err(failed)?;
        if got.flatten() == Some(1) {
            conn.query_drop(format!("DO GET_LOCK('{instance}', 0)")).await.map_err(failed)?;
            return Ok(());
        }
        let holders: Option<(Option<u64>, Option<u64>)> = conn
            .query_first(format!("SELECT IS_USED_LOCK('{name}'), IS_USED_LOCK('{instance}')"))
            .await
            .map_err(failed)?;
        let (holder, ours) = holders.unwrap_or_default();
        if let Some(id) = holder
            && ours == holder
        {
            // Gone by itself in the meantime: as good.
            let _ = conn.query_drop(format!("KILL {id}")).await;
            ended = holder;
        } else if Instant::now() >= deadline {
            return Err(match ended.is_some() && ended == holder {
                true => Error::retry(format!("the server is still ending an own connection to {}", spec.system)),
                false => held(conn, spec, holder).await,
            });
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn held(conn: &mut Conn, spec: &TargetSpec, holder: Option<u64>) -> Error {
    let who = match holder {
        None => "a session that is gone by now".to_owned(),
        Some(id) => {
            let query = format!("SELECT USER, HOST FROM information_schema.PROCESSLIST WHERE ID = {id}");
            let found: Option<(String, String)> = conn.query_first(query).await.ok().flatten();
            let place = found.map_or(String::new(), |(user, host)| format!(" ({user} from {host})"));
            format!("connection {id}{place}")
        }
    };
    Error::stop(
        format!("another agent with id {:?} is at work in {}: {who}", spec.agent, spec.system),
        "stop the other agent, or give this one an id of its own",
    )
    .code(LOCKED)
}
