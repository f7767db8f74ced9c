//! The dump connection: asked for, kept alive, checked, and its failures told apart.
//!
//! The crate connects, authenticates and cuts the stream into events. What it leaves open is
//! done here: checksums are verified, silence beyond three heartbeats is a dead peer, an
//! orderly end (the server shut down) is a reason to connect again, and the server's refusals
//! are told apart into those that time mends and those that need a person.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use mysql_async::binlog::events;
use mysql_async::prelude::Queryable;
use mysql_async::{BinlogStream, BinlogStreamRequest, Conn};

use super::event::{Event, kind};
use super::gtid;
use crate::capture::mysql::identity;
use crate::connect::mysql::{Flavour, failed};
use crate::error::{Error, Result};
use crate::position::{BinlogPosition, GtidSet, Position};

const HEARTBEAT: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// How often this process was pushed off a server id by another.
static CLASHES: AtomicU32 = AtomicU32::new(0);

pub struct Stream {
    events: BinlogStream,
    flavour: Flavour,
    silent: Duration,
    /// No format description yet: the crate does not know whether events bear checksums.
    fresh: bool,
    /// Inside a compressed transaction: its events have no checksum of their own.
    unpacked: bool,
}

/// An event that this module owns until it was handed on.
pub struct Received {
    event: events::Event,
    junk: usize,
}

impl Received {
    pub fn event(&self) -> Event<'_> {
        let header = self.event.header();
        let data = self.event.data();
        Event {
            kind: header.event_type_raw(),
            timestamp: header.timestamp(),
            server_id: header.server_id(),
            log_pos: header.log_pos(),
            flags: header.flags_raw(),
            data: &data[..data.len() - self.junk],
        }
    }
}

/// A number that no server has, the same at every start: from the agent and the server it
/// reads. Another one after each clash.
pub fn server_id(agent: &str, identity: &str) -> u32 {
    let attempt = CLASHES.load(Ordering::Relaxed);
    let hash = xxhash_rust::xxh3::xxh3_64(format!("{agent}\0{identity}\0{attempt}").as_bytes());
    0x8000_0000 | (hash as u32 >> 1).min(0x7fff_fffe)
}

/// Where a stream begins.
pub enum From<'a> {
    File(&'a BinlogPosition),
    Gtids(&'a GtidSet),
    /// MariaDB: `@slave_connect_state`.
    Domains(String),
}

impl Stream {
    pub async fn open(mut conn: Conn, flavour: Flavour, id: u32, from: From<'_>) -> Result<Stream> {
        prepare(&mut conn, flavour, &from).await?;
        let request = BinlogStreamRequest::new(id).with_hostname(b"anechoic");
        let request = match &from {
            From::File(at) => {
                if at.offset > u64::from(u32::MAX) {
                    return Err(Error::stop(
                        format!("the log's position {at} lies beyond 4 GiB, where only GTIDs lead"),
                        "enable GTIDs (gtid_mode=ON), or begin anew at the log's present end",
                    ));
                }
                request.with_filename(at.file.as_bytes()).with_pos(at.offset)
            }
            From::Gtids(set) => request.with_gtid().with_gtid_set(gtid::request(set)?),
            From::Domains(_) => request,
        };
        let events = conn.get_binlog_stream(request).await.map_err(|error| refused(error, "asking for the log"))?;
        Ok(Stream { events, flavour, silent: Duration::ZERO, fresh: true, unpacked: false })
    }

    /// What has arrived already.
    pub fn arrived(&mut self) -> Result<Option<Received>> {
        match self.events.next().now_or_never() {
            Some(next) => self.received(next).map(Some),
            None => Ok(None),
        }
    }

    /// Waits for the next event for a while.
    pub async fn next(&mut self, patience: Duration) -> Result<Option<Received>> {
        if let Ok(next) = tokio::time::timeout(patience, self.events.next()).await {
            return self.received(next).map(Some);
        }
        self.silent += patience;
        if self.silent > SILENCE_MAX {
            return Err(Error::retry(format!("the log's connection was silent for {} s", self.silent.as_secs())));
        }
        Ok(None)
    }

    fn received(&mut self, next: Option<mysql_async::Result<events::Event>>) -> Result<Received> {
        self.silent = Duration::ZERO;
        match next {
            None => Err(Error::retry("the server ended the log's connection")),
            Some(Err(error)) => Err(refused(error, "reading the log")),
            Some(Ok(event)) => self.verify(event),
        }
    }

    fn verify(&mut self, event: events::Event) -> Result<Received> {
        let mut junk = 0;
        let kind = event.header().event_type_raw();
        // Unpacked events bear no position; MariaDB 11 sends such, too, but with checksums.
        self.unpacked = kind == kind::TRANSACTION_PAYLOAD
            || self.unpacked && event.header().log_pos() == 0 && self.flavour == Flavour::Mysql;
        if self.fresh && kind == kind::ROTATE {
            // Sent before the format description: the crate leaves the checksum in the data.
            junk = trailing_checksum(&event);
        } else if !(self.unpacked && kind != kind::TRANSACTION_PAYLOAD)
            && let Ok(Some(algorithm)) = event.footer().get_checksum_alg()
            && algorithm as u8 == 1
            && let Some(expected) = event.checksum()
            && event.calc_checksum(algorithm).to_le_bytes() != expected
        {
            return Err(Error::retry(format!(
                "an event of the log (kind {kind}, ending at {}) came with a wrong checksum",
                event.header().log_pos()
            )));
        }
        self.fresh &= kind != kind::FORMAT_DESCRIPTION;
        Ok(Received { event, junk })
    }
}

/// 4 where the data ends with the event's own CRC32.
fn trailing_checksum(event: &events::Event) -> usize {
    let Some((body, checksum)) = event.data().split_last_chunk::<4>() else { return 0 };
    let header = event.header();
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header.timestamp().to_le_bytes());
    hasher.update(&[header.event_type_raw()]);
    hasher.update(&header.server_id().to_le_bytes());
    hasher.update(&header.event_size().to_le_bytes());
    hasher.update(&header.log_pos().to_le_bytes());
    hasher.update(&header.flags_raw().to_le_bytes());
    hasher.update(body);
    if hasher.finalize().to_le_bytes() == *checksum { 4 } else { 0 }
}

async fn prepare(conn: &mut Conn, flavour: Flavour, from: &From<'_>) -> Result<()> {
    let period = HEARTBEAT.as_nanos();
    // net_write_timeout: while the agent waits for a target, the server waits for us.
    let mut settings = format!(
        "SET @master_heartbeat_period = {period}, @source_heartbeat_period = {period}, net_write_timeout = 3600"
    );
    if flavour == Flavour::Mariadb {
        // Without it the server rewrites GTID events into something older.
        settings.push_str(", @mariadb_slave_capability = 4");
        if let From::Domains(state) = from {
            settings.push_str(&format!(", @slave_connect_state = '{state}', @slave_gtid_strict_mode = 0"));
        }
    }
    conn.query_drop(settings).await.map_err(|error| failed(error, "preparing the log's connection"))
}

/// What the server says when it will not, or no longer, send its log.
fn refused(error: mysql_async::Error, doing: &str) -> Error {
    let mysql_async::Error::Server(server) = &error else { return failed(error, doing) };
    let said = server.message.to_lowercase();
    let clash = server.code == 4052 || said.contains("same server_uuid") || said.contains("same server_id");
    if clash {
        CLASHES.fetch_add(1, Ordering::Relaxed);
        return Error::retry("another reader with our server id took the log's connection")
            .hint("is a second agent with the same id running? otherwise another id is tried now")
            .code(server.code.to_string())
            .because(error);
    }
    match server.code {
        1236 => {
            let (code, message) = (server.code.to_string(), server.message.clone());
            Error::stop(
                format!("the server no longer sends its log from our position on: {message}"),
                "what was written since cannot be read from the log: begin anew at its present end and compare the tables",
            )
            .code(code)
            .because(error)
        }
        1045 | 1227 | 1142 | 1380 => {
            let code = server.code.to_string();
            Error::stop(
                format!("{doing}: the role may not read the log"),
                "GRANT REPLICATION SLAVE ON *.* to the agent's user",
            )
            .code(code)
            .because(error)
        }
        _ => failed(error, doing),
    }
}

/// Decides where to begin, after making sure that the server still has what follows `start`.
pub async fn begin<'a>(
    conn: &mut Conn,
    flavour: Flavour,
    start: &'a Position,
    pinned: &str,
) -> Result<(From<'a>, bool)> {
    match start {
        Position::Mysql { gtids, binlog, .. } => {
            let mode: Option<String> =
                conn.query_first("SELECT @@gtid_mode").await.map_err(|e| failed(e, "reading gtid_mode"))?;
            let on = mode.as_deref() == Some("ON");
            if on && !gtids.is_empty() {
                check_gtids(conn, gtids).await?;
                return Ok((From::Gtids(gtids), on));
            }
            check_identity(conn, flavour, pinned).await?;
            Ok((From::File(binlog), on))
        }
        Position::Mariadb { domains, binlog } if domains.is_empty() => {
            check_identity(conn, flavour, pinned).await?;
            Ok((From::File(binlog), true))
        }
        Position::Mariadb { .. } => Ok((From::Domains(start.to_string()), true)),
        Position::Postgres { .. } | Position::Memory { .. } => {
            Err(Error::stop(format!("{start} is not a position in a binlog"), "give the system another name"))
        }
    }
}

async fn check_gtids(conn: &mut Conn, ours: &GtidSet) -> Result<()> {
    let row: Option<(String, String)> = conn
        .query_first("SELECT @@GLOBAL.gtid_purged, @@GLOBAL.gtid_executed")
        .await
        .map_err(|e| failed(e, "reading what the server has"))?;
    let (purged, executed) = row.unwrap_or_default();
    let parse = |text: String| text.parse::<GtidSet>().map_err(|error| Error::stop(error, "report this as a bug"));
    let (purged, executed) = (parse(purged)?, parse(executed)?);
    let missing = purged.subtract(ours);
    if !missing.is_empty() {
        return Err(Error::stop(
            format!("the server has purged transactions that were not read yet: {missing}"),
            "they cannot be read from the log any more: begin anew at its present end, compare the tables, and raise \
             binlog_expire_logs_seconds",
        ));
    }
    let ahead = ours.subtract(&executed);
    if !ahead.is_empty() {
        return Err(Error::stop(
            format!("the server lacks transactions that were read from it before: {ahead}"),
            "it was restored from a backup or replaced by a replica that lagged: compare the tables and begin anew",
        ));
    }
    Ok(())
}

/// File and offset mean something on one server only.
async fn check_identity(conn: &mut Conn, flavour: Flavour, pinned: &str) -> Result<()> {
    let now = identity(conn, flavour).await?;
    if now == pinned || pinned.is_empty() {
        return Ok(());
    }
    Err(Error::stop(
        format!("the server is {now}, the stored position is of {pinned}"),
        "a file and offset lead nowhere on another server: connect to the former one, or begin anew",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Recovery;

    #[test]
    fn server_ids_are_stable_high_and_of_their_agent() {
        assert_eq!(server_id("hq", "a"), server_id("hq", "a"));
        assert_ne!(server_id("hq", "a"), server_id("branch", "a"));
        assert!(server_id("hq", "a") >= 0x8000_0000 && server_id("hq", "b") < u32::MAX);
    }

    fn server(code: u16, message: &str) -> Error {
        let error = mysql_async::ServerError { code, message: message.into(), state: "HY000".into() };
        refused(mysql_async::Error::Server(error), "reading the log")
    }

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(
            server(1236, "Could not find first log file name in binary log index file").recovery,
            Recovery::Stop
        );
        assert_eq!(server(1236, "A replica with the same server_uuid/server_id as …").recovery, Recovery::Retry);
        assert_eq!(server(4052, "A slave with the same server_id is already connected").recovery, Recovery::Retry);
        assert!(server(1227, "Access denied").full().contains("GRANT REPLICATION SLAVE"));
        assert_eq!(server(1053, "Server shutdown in progress").recovery, Recovery::Retry);
    }
}
