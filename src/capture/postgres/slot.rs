//! Slot and publication: the slot is made and found again, both are checked before the stream.
//!
//! Keeps the server's WAL from going too early, and refuses to go on where it went. One slot
//! per agent and database, since slots are named across the whole server; the publication
//! lives inside the database. The publication must be there before the slot: the server looks
//! for it at every place of the log that it decodes.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::stream::Session;
use crate::capture::{CaptureSpec, WantedTable};
use crate::catalog::TableName;
use crate::connect::postgres::error;
use crate::error::{Error, Recovery, Result};
use crate::position::{Lsn, Position};

/// A slot can only be made when every transaction that writes has ended.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);

/// What our sessions call themselves; a slot held under this name is held by us.
pub fn application_name(agent: &str) -> String {
    format!("anechoic/{agent}")
}

pub fn publication_name(agent: &str) -> String {
    format!("anechoic_{agent}")
}

/// `anechoic_<agent>_<database>`; a database whose name has no place there goes by its hash.
pub fn slot_name(agent: &str, database: &str) -> String {
    let plain = database.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    let name = format!("anechoic_{agent}_{database}");
    if plain && name.len() <= 63 {
        return name;
    }
    format!("anechoic_{agent}_{:016x}", xxhash_rust::xxh3::xxh3_64(database.as_bytes()))
}

/// `"schema"."table"`
pub fn quoted(name: &TableName) -> String {
    format!("{}.{}", identifier(&name.schema), identifier(&name.name))
}

pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Creates the slot, or finds it again, and says where it begins and what server it is on.
/// The publication must exist.
pub async fn create_position(client: &Client, agent: &str, database: &str) -> Result<(Position, String)> {
    let publication = publication_name(agent);
    let published = client
        .query_opt("SELECT FROM pg_catalog.pg_publication WHERE pubname = $1::text", &[&publication])
        .await
        .map_err(|e| error(&e))?;
    if published.is_none() {
        return Err(Error::stop(format!("there is no publication {publication}"), "run `anechoic setup`"));
    }
    let slot = slot_name(agent, database);
    let lsn = match found(client, &slot).await? {
        Some(lsn) => lsn,
        None => create(client, &slot).await?,
    };
    Ok((Position::Postgres { lsn }, identity(client).await?))
}

/// Where a slot of ours stands that can still be read.
async fn found(client: &Client, slot: &str) -> Result<Option<Lsn>> {
    let row = client
        .query_opt(
            "SELECT s.confirmed_flush_lsn::text, s.wal_status, pg_catalog.to_jsonb(s) ->> 'invalidation_reason' \
             FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = $1::text",
            &[&slot],
        )
        .await
        .map_err(|e| error(&e).context(format!("cannot look for slot {slot}")))?;
    let Some(row) = row else { return Ok(None) };
    let invalidated: Option<&str> = row.get(2);
    if row.get::<_, Option<&str>>(1) == Some("lost") || invalidated.is_some() {
        return Err(lost(slot, invalidated));
    }
    Ok(row.get::<_, Option<&str>>(0).and_then(|lsn| lsn.parse().ok()))
}

async fn create(client: &Client, slot: &str) -> Result<Lsn> {
    let limit = format!("SET statement_timeout = {}", CREATE_TIMEOUT.as_millis());
    client.batch_execute(&limit).await.map_err(|e| error(&e))?;
    let created = client
        .query_one(
            "SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot($1::text, 'pgoutput')",
            &[&slot],
        )
        .await;
    client.batch_execute("SET statement_timeout = 0").await.map_err(|e| error(&e))?;
    let row = match created {
        Ok(row) => row,
        Err(e) if e.code() == Some(&SqlState::QUERY_CANCELED) => return Err(blocked(client, slot).await),
        Err(e) => {
            let error = error(&e).context(format!("cannot create slot {slot}"));
            let hint = match error.code.as_deref() {
                Some("42501") => "ALTER ROLE … REPLICATION",
                Some("55000") => "set wal_level = logical and restart the server",
                Some("53400") => "raise max_replication_slots and restart the server",
                _ => return Err(error),
            };
            return Err(Error { recovery: Recovery::Stop, ..error.hint(hint) });
        }
    };
    row.get::<_, &str>(0).parse().map_err(Error::retry)
}

/// Slot creation waits for every transaction that has written; the oldest is named.
async fn blocked(client: &Client, slot: &str) -> Error {
    let oldest = client
        .query_opt(
            "SELECT pid, usename::text, pg_catalog.date_trunc('second', pg_catalog.now() - xact_start)::text, \
             pg_catalog.current_setting('max_prepared_transactions') <> '0' \
             FROM pg_catalog.pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start LIMIT 1",
            &[],
        )
        .await;
    let message =
        format!("slot {slot} was not created within {CREATE_TIMEOUT:?}: a transaction that has written is open");
    match oldest {
        Ok(Some(row)) => {
            let pid: i32 = row.get(0);
            let user: Option<&str> = row.get(1);
            let age: Option<&str> = row.get(2);
            Error::retry(format!("{message} (pid {pid} of {}, since {})", user.unwrap_or("?"), age.unwrap_or("?")))
                .hint(format!("let it end, or SELECT pg_terminate_backend({pid})"))
        }
        _ => Error::retry(message).hint("look into pg_prepared_xacts for a transaction that was prepared and left"),
    }
}

/// `<system identifier>/<timeline>`: what a position belongs to.
pub async fn identity(client: &Client) -> Result<String> {
    let row = client
        .query_one(
            "SELECT s.system_identifier::text, CASE WHEN pg_catalog.pg_is_in_recovery() \
                 THEN (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint())::text \
                 ELSE pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8) END, \
             pg_catalog.pg_is_in_recovery() FROM pg_catalog.pg_control_system() s",
            &[],
        )
        .await
        .map_err(|e| error(&e).context("cannot read the server's identity"))?;
    let (system, timeline, standby): (&str, &str, bool) = (row.get(0), row.get(1), row.get(2));
    let timeline = u32::from_str_radix(timeline, if standby { 10 } else { 16 })
        .map_err(|e| Error::retry(format!("the server's timeline {timeline:?} cannot be read")).because(e))?;
    Ok(format!("{system}/{timeline}"))
}

/// The end of what is committed: a capture that has come so far has seen every transaction
/// that was committed before the call, asynchronous ones too.
///
/// A logical message that nobody reads is what it takes: its commit is on disk, and whatever
/// was committed before lies before it. Where none can be written the log's end has to do.
pub async fn log_end(client: &Client) -> Result<Position> {
    const EMIT: &str = "SELECT pg_catalog.pg_logical_emit_message(true, 'anechoic', ''), \
                        pg_catalog.set_config('synchronous_commit', 'local', true)";
    if let Err(e) = client.batch_execute(EMIT).await
        && e.code() != Some(&SqlState::READ_ONLY_SQL_TRANSACTION)
        && e.code() != Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
    {
        return Err(error(&e).context("cannot mark the log's end"));
    }
    current_position(client).await
}

/// How far the log is on disk.
pub async fn current_position(client: &Client) -> Result<Position> {
    let row = client.query_one(&format!("SELECT ({LOG_END})::text"), &[]).await;
    let row = row.map_err(|e| error(&e).context("cannot read the log's end"))?;
    let lsn = row.get::<_, &str>(0).parse().map_err(Error::retry)?;
    Ok(Position::Postgres { lsn })
}

const LOG_END: &str = "CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                       ELSE pg_catalog.pg_current_wal_flush_lsn() END";

/// What the slot keeps on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retained {
    /// WAL that cannot go because of this slot.
    pub bytes: i64,
    /// What may still be written before the slot is lost; `None` where nothing limits it.
    pub safe_bytes: Option<i64>,
    /// reserved, extended, unreserved, lost
    pub wal_status: Option<String>,
    pub active: bool,
}

/// `None` where there is no slot.
pub async fn retained(client: &Client, agent: &str, database: &str) -> Result<Option<Retained>> {
    let sql = format!(
        "SELECT COALESCE(pg_catalog.pg_wal_lsn_diff({LOG_END}, restart_lsn), 0)::bigint, safe_wal_size, wal_status, \
         active FROM pg_catalog.pg_replication_slots WHERE slot_name = $1::text"
    );
    let row = client.query_opt(&sql, &[&slot_name(agent, database)]).await.map_err(|e| error(&e))?;
    Ok(row.map(|row| Retained {
        bytes: row.get(0),
        safe_bytes: row.get(1),
        wal_status: row.get(2),
        active: row.get(3),
    }))
}

/// The marker's proof: rows of it come back in our stream.
pub async fn marker_published(client: &Client, agent: &str, marker: &TableName) -> Result<bool> {
    let row = client
        .query_opt(
            "SELECT FROM pg_catalog.pg_publication_tables WHERE pubname = $1::text AND schemaname = $2::text \
             AND tablename = $3::text AND to_jsonb(pg_publication_tables) ->> 'rowfilter' IS NULL",
            &[&publication_name(agent), &marker.schema, &marker.name],
        )
        .await
        .map_err(|e| error(&e).context("cannot look for the marker's publication"))?;
    Ok(row.is_some())
}

/// Everything that must be true before the stream starts, asked on its own connection.
pub(super) async fn verify(session: &mut Session, spec: &CaptureSpec, slot: &str, start: Lsn) -> Result<()> {
    verify_identity(session, spec).await?;
    verify_log(session, start).await?;
    verify_slot(session, spec, slot, start).await?;
    verify_publication(session, spec).await?;
    verify_partitions(session, spec).await
}

/// Leaves of the tables `w (schema, name)` whose old rows the log holds less of than the table's
/// own replica identity says: rows are announced by the table's, and logged by the leaf's.
pub(crate) fn weaker_partitions(tables: &str) -> String {
    const HELD: &str = "ARRAY(SELECT a.attname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a \
        ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey) WHERE i.indrelid = T.oid \
        AND CASE T.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident END)";
    let (of_leaf, of_table) = (HELD.replace("T.", "l."), HELD.replace("T.", "c."));
    format!(
        "SELECT w.schema, w.name, ln.nspname::text AS leaf_schema, l.relname::text AS leaf_name FROM {tables} \
         JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema \
         JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name AND c.relkind = 'p' \
         CROSS JOIN LATERAL pg_catalog.pg_partition_tree(c.oid) p \
         JOIN pg_catalog.pg_class l ON l.oid = p.relid JOIN pg_catalog.pg_namespace ln ON ln.oid = l.relnamespace \
         WHERE p.isleaf AND l.relkind = 'r' AND l.relreplident <> 'f' \
         AND (c.relreplident = 'f' OR NOT {of_leaf} @> {of_table} OR {of_leaf} = '{{}}') ORDER BY 1, 2, 3, 4"
    )
}

async fn verify_partitions(session: &mut Session, spec: &CaptureSpec) -> Result<()> {
    let captured = spec.tables.iter().filter(|table| !table.columns.is_empty());
    let names: Vec<String> =
        captured.map(|table| format!("({}, {})", literal(&table.name.schema), literal(&table.name.name))).collect();
    if names.is_empty() {
        return Ok(());
    }
    let tables = format!("(VALUES {}) w (schema, name)", names.join(", "));
    let rows = session.query(&weaker_partitions(&tables)).await?;
    let text = |cell: &Option<String>| cell.clone().unwrap_or_default();
    let mut statements = Vec::new();
    let mut of = Vec::new();
    for row in &rows {
        let [schema, name, leaf_schema, leaf_name] = row.as_slice() else { continue };
        let leaf = TableName { schema: text(leaf_schema), name: text(leaf_name) };
        statements.push(format!("ALTER TABLE {} REPLICA IDENTITY FULL", quoted(&leaf)));
        of.push(format!("{leaf} of {}.{}", text(schema), text(name)));
    }
    if of.is_empty() {
        return Ok(());
    }
    Err(Error::stop(
        format!(
            "the log does not hold whole old rows of partition {}: its replica identity is too weak",
            of.join(", ")
        ),
        statements.join("; "),
    ))
}

async fn verify_identity(session: &mut Session, spec: &CaptureSpec) -> Result<()> {
    let rows = session.query("IDENTIFY_SYSTEM").await?;
    let identity = match rows.first().map(Vec::as_slice) {
        Some([Some(system), Some(timeline), ..]) => format!("{system}/{timeline}"),
        _ => return Err(Error::retry("the server does not identify itself")),
    };
    if spec.identity.is_empty() || *spec.identity == *identity {
        return Ok(());
    }
    let other = |part: usize| spec.identity.split('/').nth(part) != identity.split('/').nth(part);
    let what = if other(0) { "another server (system identifier)" } else { "on another timeline" };
    Err(Error::lost(
        format!("the server is {what}: {identity}, the position is of {}", spec.identity),
        "it was restored, replaced or failed over; once it is the right one",
    ))
}

/// A restored server would silently wait until its log reaches our position again.
async fn verify_log(session: &mut Session, start: Lsn) -> Result<()> {
    let end = lsn_of(session.query(&format!("SELECT {LOG_END}")).await?)?;
    if end >= start {
        return Ok(());
    }
    Err(Error::lost(
        format!("the server's log ends at {end}, before our position {start}"),
        "it was restored from a backup",
    ))
}

fn lsn_of(rows: super::stream::Rows) -> Result<Lsn> {
    let text = rows.into_iter().flatten().next().flatten();
    let text = text.ok_or_else(|| Error::retry("the server does not tell its log's end"))?;
    text.parse().map_err(Error::retry)
}

async fn verify_slot(session: &mut Session, spec: &CaptureSpec, slot: &str, start: Lsn) -> Result<()> {
    let rows = session
        .query(&format!(
            "SELECT s.confirmed_flush_lsn, s.wal_status, pg_catalog.to_jsonb(s) ->> 'invalidation_reason', \
             s.active_pid, a.application_name, s.plugin, s.database = pg_catalog.current_database() \
             FROM pg_catalog.pg_replication_slots s LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid \
             WHERE s.slot_name = {}",
            literal(slot)
        ))
        .await?;
    let Some(row) = rows.into_iter().next() else { return Err(gone(slot)) };
    let [confirmed, wal_status, invalidated, pid, application, plugin, here] = row.as_slice() else {
        return Err(Error::retry("the server's answer about the slot cannot be read"));
    };
    if plugin.as_deref() != Some("pgoutput") || here.as_deref() != Some("t") {
        return Err(Error::stop(
            format!("slot {slot} is not ours: it is of another plugin or database"),
            format!("drop it where nobody needs it: SELECT pg_drop_replication_slot({})", literal(slot)),
        ));
    }
    if wal_status.as_deref() == Some("lost") || invalidated.is_some() {
        return Err(lost(slot, invalidated.as_deref()));
    }
    if let Some(pid) = pid {
        return Err(held(slot, pid, application.as_deref(), &spec.agent));
    }
    let confirmed: Lsn = confirmed.as_deref().unwrap_or("0/0").parse().map_err(Error::retry)?;
    if confirmed > start {
        return Err(Error::lost(
            format!(
                "slot {slot} was confirmed up to {confirmed}, beyond our position {start}: changes between are gone"
            ),
            "the journal is older than the slot (restored, or the slot was made anew or read by someone else)",
        ));
    }
    Ok(())
}

fn gone(slot: &str) -> Error {
    Error::lost(
        format!("slot {slot} does not exist: what was written since our position is lost to us"),
        "it was dropped, or the server was restored or failed over",
    )
}

fn lost(slot: &str, reason: Option<&str>) -> Error {
    let reason = reason.unwrap_or("wal_removed");
    Error::lost(
        format!("slot {slot} is lost: the server invalidated it ({reason})"),
        &format!("{}, then", keeps_slots(reason)),
    )
}

/// What keeps the server from invalidating a slot for this reason once more.
pub(crate) fn keeps_slots(reason: &str) -> &'static str {
    match reason {
        "idle_timeout" => {
            "nothing read it for longer than the server allows: ALTER SYSTEM SET idle_replication_slot_timeout = 0; \
             SELECT pg_reload_conf()"
        }
        "wal_level_insufficient" => "wal_level was too low for a while: keep it at logical",
        "rows_removed" => "the primary removed rows that it needs: set hot_standby_feedback = on",
        _ => "raise max_slot_wal_keep_size",
    }
}

/// Ours ends by itself: after a crash the old walsender lingers until it notices.
fn held(slot: &str, pid: &str, application: Option<&str>, agent: &str) -> Error {
    if application == Some(&application_name(agent)) {
        return Error::retry(format!("slot {slot} is still held by an earlier connection of ours (pid {pid})"))
            .hint("another agent with the same id, or a connection that the server has not given up yet");
    }
    let application = application.filter(|name| !name.is_empty()).unwrap_or("unknown");
    Error::stop(
        format!("slot {slot} is in use by a stranger: pid {pid}, application {application}"),
        "end that reader; a slot has one reader only",
    )
}

/// Since version 16: <https://www.postgresql.org/docs/16/protocol-logical-replication.html>.
pub async fn leaves_out_origins(session: &mut Session) -> Result<bool> {
    let version = session.query("SHOW server_version_num").await?.into_iter().flatten().flatten().next();
    Ok(version.and_then(|version| version.parse::<u32>().ok()).is_some_and(|version| version >= 160_000))
}

async fn verify_publication(session: &mut Session, spec: &CaptureSpec) -> Result<()> {
    let name = publication_name(&spec.agent);
    let complete = session
        .query(&format!(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot FROM pg_catalog.pg_publication \
             WHERE pubname = {}",
            literal(&name)
        ))
        .await?;
    let complete = complete.into_iter().next().unwrap_or_default();
    let via_root = complete.get(1).is_none_or(|flag| flag.as_deref() == Some("t"));
    match complete.into_iter().next().flatten().as_deref() {
        Some("t") => {}
        Some(_) => {
            return Err(Error::stop(
                format!("publication {name} does not publish every kind of change"),
                format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate')", identifier(&name)),
            ));
        }
        None => {
            return Err(Error::stop(format!("publication {name} does not exist"), "run `anechoic setup`"));
        }
    }
    let members = session
        .query(&format!(
            "SELECT t.schemaname, t.tablename, pg_catalog.to_jsonb(t) ->> 'rowfilter' \
             FROM pg_catalog.pg_publication_tables t WHERE t.pubname = {}",
            literal(&name)
        ))
        .await?;
    let marker_exists = session
        .query(&format!(
            "SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = {} AND c.relname = {}",
            literal(&spec.marker.schema),
            literal(&spec.marker.name)
        ))
        .await?;
    // Without the marker in the stream our own writes would come back as somebody's.
    let marker = (!marker_exists.is_empty()).then_some(&spec.marker);
    for table in spec.tables.iter().map(|table: &WantedTable| &table.name).chain(marker) {
        let member = members.iter().find(|row| {
            row.first().and_then(Option::as_deref) == Some(&table.schema)
                && row.get(1).and_then(Option::as_deref) == Some(&table.name)
        });
        let (publication, table_sql) = (identifier(&name), quoted(table));
        match member {
            None => {
                let mut hint =
                    format!("run `anechoic setup`, or ALTER PUBLICATION {publication} ADD TABLE {table_sql}");
                if !via_root {
                    let set = format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = true)");
                    hint = format!("if it is partitioned: {set}; else {hint}");
                }
                return Err(Error::stop(format!("table {table} is not in publication {name}"), hint));
            }
            Some(row) if row.get(2).is_some_and(Option::is_some) => {
                return Err(Error::stop(
                    format!("publication {name} filters the rows of table {table}"),
                    format!(
                        "ALTER PUBLICATION {publication} DROP TABLE {table_sql}; ALTER PUBLICATION {publication} ADD \
                         TABLE {table_sql}; filter in the binding instead"
                    ),
                ));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// What the server says beside the stream. From version 18 on a publication that is missing at some place of
/// the log is a warning there, and its rows are left out.
pub(super) fn heard(notice: Error) -> Result<()> {
    if notice.code.as_deref() != Some("55000") {
        return Ok(());
    }
    Err(Error::lost(
        "rows are missing in the stream: the publication was dropped, or made after the slot",
        "anechoic setup, then",
    )
    .because(notice))
}

/// What an error of the server means that ended the stream, or kept it from starting.
pub(super) fn explained(error: Error, slot: &str) -> Error {
    let text = error.message.clone();
    match error.code.as_deref() {
        Some("42704") if text.contains("replication slot") => gone(slot).because(error),
        Some("42704") if text.contains("publication") => {
            let before = "it was dropped or made after the slot; if it is there, the log still holds changes from \
                          before it. anechoic setup, then";
            Error::lost(error.message.clone(), before).because(error)
        }
        Some("55000") if text.contains("replication slot") => {
            let known = ["idle_timeout", "wal_level_insufficient", "rows_removed"];
            let whole = error.full();
            lost(slot, known.into_iter().find(|reason| whole.contains(reason))).because(error)
        }
        // Of the system class, though nothing that time mends.
        Some("58P01") if text.contains("WAL") => lost(slot, Some("wal_removed")).because(error),
        Some("28000") if text.contains("pg_hba") => error.hint("let the agent's role connect in pg_hba.conf"),
        Some("42501") if error.hint.is_empty() => error.hint("ALTER ROLE … REPLICATION; GRANT SELECT on the tables"),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_are_what_the_server_takes() {
        assert_eq!(slot_name("hq", "crm"), "anechoic_hq_crm");
        for database in ["Kunden-DB", "größe", &"x".repeat(60)] {
            let name = slot_name("hq", database);

            assert!(name.len() <= 63, "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
        }
        assert_ne!(slot_name("hq", "A"), slot_name("hq", "B"));
    }

    #[test]
    fn errors_of_the_server_become_what_a_person_can_act_on() {
        let said = |code: &str, message: &str| {
            explained(crate::connect::postgres::server_error(code, message, None, None), "anechoic_hq_crm")
        };

        for (error, recovery, part) in [
            (said("42704", "replication slot \"s\" does not exist"), Recovery::Stop, "load --resync"),
            (
                said("55000", "cannot read from logical replication slot \"s\""),
                Recovery::Stop,
                "max_slot_wal_keep_size",
            ),
            (said("58P01", "requested WAL segment 000 has already been removed"), Recovery::Stop, "load --resync"),
            (said("42704", "publication \"anechoic_hq\" does not exist"), Recovery::Stop, "anechoic setup"),
            (said("57P01", "terminating connection due to administrator command"), Recovery::Retry, ""),
            (said("55006", "replication slot \"s\" is active for PID 1"), Recovery::Retry, ""),
        ] {
            assert_eq!(error.recovery, recovery, "{error:?}");
            assert!(error.hint.contains(part), "{error:?}");
        }
    }

    #[test]
    fn a_slot_that_we_hold_ourselves_comes_free_and_a_strangers_does_not() {
        assert_eq!(held("s", "7", Some("anechoic/hq"), "hq").recovery, Recovery::Retry);
        assert_eq!(held("s", "7", Some("anechoic/other"), "hq").recovery, Recovery::Stop);
        assert_eq!(held("s", "7", None, "hq").recovery, Recovery::Stop);
    }
}
