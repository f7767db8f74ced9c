//! The marker row in PostgreSQL: its table, the write that fences, the lock of the session.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, Row};

use super::error::classify;
use crate::apply::sql::{quoted, quoted_table};
use crate::apply::{LOCKED, TargetSpec};
use crate::catalog::TableName;
use crate::error::{Error, Result};
use crate::marker::{FORMAT, Marker};

/// What `setup` runs; each statement may be repeated. A free page and a small fillfactor keep
/// every update of the row on its page.
pub fn marker_ddl(marker: &TableName) -> Vec<String> {
    vec![
        format!("CREATE SCHEMA IF NOT EXISTS {}", quoted(&marker.schema)),
        format!(
            "CREATE TABLE IF NOT EXISTS {} (agent text NOT NULL, lane integer NOT NULL, journal text NOT NULL, \
             epoch bigint NOT NULL, seq bigint NOT NULL, part bigint NOT NULL, origin text NOT NULL, \
             txid text NOT NULL, applied_at timestamptz(6) NOT NULL, format integer NOT NULL, \
             PRIMARY KEY (agent, lane)) WITH (fillfactor = 20)",
            quoted_table(marker)
        ),
    ]
}

/// The first statement of every transaction: moves the marker from the expected seq, part and
/// epoch, or fails. Elsewhere, `seq` becomes NULL, which it may not be; without a row there is
/// a division by zero. Parameters: agent, lane, expected epoch, seq, part; journal, seq, part,
/// origin, txid. The time never stands still, so that the row always changes.
pub fn advance(marker: &TableName) -> String {
    format!(
        "WITH moved AS (UPDATE {} SET \
         seq = CASE WHEN epoch = $3::bigint AND seq = $4::bigint AND part = $5::bigint THEN $7::bigint END, \
         journal = $6::text, part = $8::bigint, origin = $9::text, txid = $10::text, format = {FORMAT}, \
         applied_at = greatest(clock_timestamp(), applied_at + interval '1 microsecond') \
         WHERE agent = $1::text AND lane = $2::integer RETURNING 1) SELECT 1 / count(*) FROM moved",
        quoted_table(marker)
    )
}

/// SQLSTATEs by which [`advance`] says that the marker is not where it should be.
pub fn is_fence(code: &str) -> bool {
    matches!(code, "23502" | "22012")
}

/// Raises the epoch on all rows of the agent, which waits for whatever is in flight there, and
/// only then reads them; creates those of its lanes that are not there.
pub async fn raise_epoch(client: &Client, spec: &TargetSpec, role: &str) -> Result<Vec<Marker>> {
    let table = quoted_table(&spec.marker);
    let run = async {
        client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await?;
        client
            .execute(
                &format!(
                    "UPDATE {table} SET epoch = epoch + 1, \
                     applied_at = greatest(clock_timestamp(), applied_at + interval '1 microsecond') WHERE agent = $1"
                ),
                &[&spec.agent],
            )
            .await?;
        create(client, spec, &table, spec.lanes).await?;
        let rows = client
            .query(
                &format!("SELECT journal, epoch, seq, part, origin, txid, lane FROM {table} WHERE agent = $1"),
                &[&spec.agent],
            )
            .await?;
        client.batch_execute("COMMIT").await?;
        Ok(rows)
    };
    let rows = run.await.map_err(|error| setup_hint(classify(error, &spec.marker, role)))?;
    rows.iter().map(|row| read(spec, row).map_err(|what| unreadable(spec, what))).collect()
}

/// Writes the marker without moving it, so that it can be awaited in the system's own log: the
/// proof that the log shows it at all.
pub async fn touch_marker(client: &Client, spec: &TargetSpec, role: &str) -> Result<()> {
    let table = quoted_table(&spec.marker);
    let run = async {
        client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await?;
        create(client, spec, &table, 1).await?;
        client
            .execute(
                &format!(
                    "UPDATE {table} SET applied_at = greatest(clock_timestamp(), applied_at + interval '1 microsecond') \
                     WHERE agent = $1 AND lane = $2"
                ),
                &[&spec.agent, &(spec.lane as i32)],
            )
            .await?;
        client.batch_execute("COMMIT").await
    };
    run.await.map_err(|error| setup_hint(classify(error, &spec.marker, role)))
}

/// So many lanes from the first one on.
async fn create(client: &Client, spec: &TargetSpec, table: &str, lanes: u32) -> Result<u64, tokio_postgres::Error> {
    let sql = format!(
        "INSERT INTO {table} (agent, lane, journal, epoch, seq, part, origin, txid, applied_at, format) \
         SELECT $1, lane, $3, 1, 0, 0, '', '', clock_timestamp(), {FORMAT} \
         FROM generate_series(0, $2::integer - 1) lane ON CONFLICT (agent, lane) DO NOTHING"
    );
    client.execute(&sql, &[&spec.agent, &(lanes as i32), &format!("{:032x}", spec.journal)]).await
}

fn read(spec: &TargetSpec, row: &Row) -> Result<Marker, &'static str> {
    let number = |at: usize| u64::try_from(row.get::<_, i64>(at)).map_err(|_| "a negative number");
    Ok(Marker {
        agent: spec.agent.clone(),
        lane: u32::try_from(row.get::<_, i32>(6)).map_err(|_| "a negative lane")?,
        journal: u128::from_str_radix(row.get(0), 16).map_err(|_| "a journal id that is none")?,
        epoch: number(1)?,
        seq: number(2)?,
        part: number(3)?,
        origin: row.get(4),
        txid: row.get(5),
    })
}

fn unreadable(spec: &TargetSpec, what: &str) -> Error {
    Error::lost(
        format!("the marker of agent {:?} in {} holds {what}", spec.agent, spec.marker),
        "the row was written by something else than anechoic: restore it, or",
    )
    .of_system(&spec.system)
}

fn setup_hint(error: Error) -> Error {
    match error.code.as_deref() {
        Some("42P01" | "3F000" | "42703") => error.hint("run `anechoic setup`, which creates the marker table"),
        _ => error,
    }
}

/// Number of the session lock: of the database, so only agent and marker need to be in it.
pub fn lock_key(agent: &str, marker: &TableName, lane: u32) -> i64 {
    let name = format!("anechoic\u{1}{agent}\u{1}{marker}\u{1}{lane}");
    xxhash_rust::xxh3::xxh3_64(name.as_bytes()).cast_signed()
}

/// Number of the lock by which a connection of this very process is told.
fn instance_key(spec: &TargetSpec) -> i64 {
    let name = format!("{}\u{1}{}\u{1}{}", lock_key(&spec.agent, &spec.marker, spec.lane), spec.instance, spec.system);
    xxhash_rust::xxh3::xxh3_64(name.as_bytes()).cast_signed()
}

/// Takes the agent's lock for as long as the session lives. A holder that is a connection of
/// our own, cut off unnoticed by the server, is ended; another one is waited for, then named.
pub async fn lock(client: &Client, spec: &TargetSpec, patience: Duration) -> Result<()> {
    let failed = |error: tokio_postgres::Error| Error::retry("the session lock could not be asked for").because(error);
    let (key, instance) = (lock_key(&spec.agent, &spec.marker, spec.lane), instance_key(spec));
    let deadline = Instant::now() + patience;
    let mut ended: Option<i32> = None;
    loop {
        let try_lock = "SELECT pg_try_advisory_lock($1)";
        if client.query_one(try_lock, &[&key]).await.map_err(failed)?.get(0) {
            client.query_one(try_lock, &[&instance]).await.map_err(failed)?;
            return Ok(());
        }
        let holder = client.query_opt(HOLDER, &[&key, &instance]).await.map_err(failed)?;
        if let Some(holder) = &holder
            && holder.get::<_, bool>("ours")
        {
            let pid: i32 = holder.get("pid");
            client.query_one("SELECT pg_terminate_backend($1)", &[&pid]).await.map_err(failed)?;
            ended = Some(pid);
        } else if Instant::now() >= deadline {
            let pid = holder.as_ref().map(|holder| holder.get::<_, i32>("pid"));
            return Err(match ended.is_some() && ended == pid {
                true => Error::retry(format!("the server is still ending an own connection to {}", spec.system)),
                false => held(spec, holder.as_ref()),
            });
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

const HOLDER: &str = "WITH keys AS (SELECT pid, (classid::bigint << 32) | objid::bigint AS key FROM pg_locks \
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted \
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) \
    SELECT l.pid, coalesce(host(a.client_addr), 'the local socket') AS address, \
    coalesce(a.application_name, '') AS application, \
    EXISTS (SELECT FROM keys i WHERE i.pid = l.pid AND i.key = $2) AS ours \
    FROM keys l LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.key = $1";

fn held(spec: &TargetSpec, holder: Option<&Row>) -> Error {
    let who = holder.map_or("a session that is gone by now".to_owned(), |row| {
        format!(
            "pid {} from {} ({:?})",
            row.get::<_, i32>("pid"),
            row.get::<_, String>("address"),
            row.get::<_, String>("application")
        )
    });
    Error::stop(
        format!("another agent with id {:?} is at work in {}: {who}", spec.agent, spec.system),
        "stop the other agent, or give this one an id of its own",
    )
    .code(LOCKED)
}
