//! MySQL and MariaDB: the binlog, read as a replica reads it.
//!
//! ```text
//! wire: connection ──▶ stream, payload: events ──▶ binlog: transactions ──▶ table_map, decode: rows ──▶ sink
//! ```
//!
//! MySQL resumes by its GTID set (tags included), MariaDB by the last GTID of each domain,
//! both by file and offset where there are no GTIDs. The server keeps nothing for us: what it
//! has purged is gone, and the start says which range is missing.

pub mod binlog;
mod bytes;
mod decode;
pub mod event;
mod gtid;
mod jsonb;
mod jsondiff;
mod payload;
mod statement;
mod stream;
mod table_map;
mod wire;

use std::future::Future;
use std::time::Duration;

use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use self::stream::{From, Stream};
use self::wire::Wire;
use super::{Begin, Capture, CaptureSpec, Commit, RowEvent, Sink};
use crate::catalog::TableName;
use crate::config::ConnectConfig;
use crate::connect::mysql::{self as connection, Flavour, failed};
use crate::error::{Error, Result};
use crate::marker::Marker;
use crate::position::{BinlogPosition, GtidSet, MariadbGtid, Position};

/// A log that is being read.
pub struct MyCapture {
    stream: Stream,
    reader: binlog::Reader,
}

impl MyCapture {
    pub async fn connect(config: &ConnectConfig, spec: CaptureSpec) -> Result<Self> {
        let mut wire = Wire::connect(config).await?;
        let (flavour, version) = (wire.flavour, wire.version.clone());
        let (from, gtids_on) = stream::begin(&mut wire, &spec.start, &spec.identity)
            .await
            .map_err(|error| error.at(spec.start.clone()))?;
        let reader = binlog::Reader::new(flavour, &spec.agent, &spec.marker, &spec.tables, &spec.start, gtids_on)?
            .with_prepared(&spec.prepared);
        // Where GTIDs lead, the file may be of another server that was read meanwhile.
        let reader = if let From::File(at) = &from { reader.in_file(at) } else { reader };
        let reader = match names_columns(&mut wire).await? {
            true => reader,
            false => reader.reads_unnamed(altered(config, &spec, gtids_on).await?),
        };
        let id = stream::server_id(&reader_name(&spec.agent, config, "log"), &spec.identity);
        let stream = Stream::open(wire, id, from).await.map_err(|error| error.at(spec.start.clone()))?;
        tracing::info!(position = %spec.start, version, server_id = id, "reading the binlog");
        Ok(MyCapture { stream, reader })
    }
}

/// The log names the columns of its rows.
async fn names_columns(wire: &mut Wire) -> Result<bool> {
    let row = wire.row("SELECT @@GLOBAL.binlog_row_metadata", "reading binlog_row_metadata").await?;
    Ok(row.first().and_then(Option::as_deref) == Some("FULL"))
}

/// How often each table may have been altered between the start and when its catalog was read:
/// the log is gone through up to there, for statements alone.
async fn altered(config: &ConnectConfig, spec: &CaptureSpec, gtids_on: bool) -> Result<Vec<u32>> {
    let mut wire = Wire::connect(config).await?;
    let reader = binlog::Reader::new(wire.flavour, &spec.agent, &spec.marker, &spec.tables, &spec.start, gtids_on)?;
    let mut reader = reader.with_prepared(&spec.prepared).scanning();
    // All tables of a system are looked at together.
    let end = spec.tables.iter().find_map(|table| table.now.as_deref()?.at.as_ref());
    let Some(end) = end.filter(|end| !spec.start.reached(end)) else { return Ok(reader.counted()) };
    let id = stream::server_id(&reader_name(&spec.agent, config, "scan"), &spec.identity);
    let (from, _) = stream::begin(&mut wire, &spec.start, &spec.identity).await?;
    let mut stream = Stream::open(wire, id, from).await?;
    while !reader.position().reached(end) {
        let Some(event) = stream.next(PATIENCE).await? else { continue };
        // Where this one stops, the capture stops, too.
        if reader.event(event, &mut Proof { seen: false }).is_err() {
            break;
        }
    }
    Ok(reader.counted())
}

/// One server may hold several databases that are systems, each with readers of its own.
fn reader_name(agent: &str, config: &ConnectConfig, purpose: &str) -> String {
    format!("{agent}\0{}\0{purpose}", config.database)
}

/// How long `read` waits where nothing comes.
const PATIENCE: Duration = Duration::from_secs(1);

impl Capture for MyCapture {
    async fn read(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let mut next = self.stream.next(PATIENCE).await?;
        while let Some(event) = next {
            self.reader.event(event, sink)?;
            if sink.full() {
                break;
            }
            next = self.stream.arrived()?;
        }
        self.reader.pass(sink)
    }
}

/// What the server is, for positions that mean something on one server only. MySQL: its
/// `server_uuid`; MariaDB has none: its id and host.
pub async fn identity(conn: &mut Conn, flavour: Flavour) -> Result<String> {
    let identity: Option<String> = conn
        .query_first(identity_query(flavour))
        .await
        .map_err(|error| failed(error, "reading the server's identity"))?;
    Ok(identity.unwrap_or_default())
}

fn identity_query(flavour: Flavour) -> &'static str {
    match flavour {
        Flavour::Mysql => "SELECT @@server_uuid",
        Flavour::Mariadb => "SELECT CONCAT(@@server_id, '@', @@hostname, ':', @@port)",
    }
}

/// The log's present end, and the identity of the server it is of.
pub async fn create_position(conn: &mut Conn) -> Result<(Position, String)> {
    let (flavour, ..) = connection::server(conn).await?;
    let identity = identity(conn, flavour).await?;
    let position = match flavour {
        Flavour::Mysql => {
            let mode: Option<String> =
                conn.query_first("SELECT @@gtid_mode").await.map_err(|e| failed(e, "reading gtid_mode"))?;
            let (binlog, executed) = log_status(conn).await?;
            let gtids = if mode.as_deref() == Some("ON") { parse_gtids(&executed)? } else { GtidSet::default() };
            Position::Mysql { gtids, binlog, server_uuid: identity.clone() }
        }
        Flavour::Mariadb => {
            let (binlog, _) = log_status(conn).await?;
            // Exactly the GTIDs before that offset, of all domains; the variable may be ahead of it.
            let state: Option<Option<String>> = conn
                .exec_first("SELECT BINLOG_GTID_POS(?, ?)", (binlog.file.as_str(), binlog.offset))
                .await
                .map_err(|error| failed(error, "reading the log's GTID position"))?;
            Position::Mariadb { domains: parse_domains(&state.flatten().unwrap_or_default())?, binlog }
        }
    };
    Ok((position, identity))
}

/// Where the log ends now: what `wait` waits for.
pub async fn log_end(conn: &mut Conn) -> Result<Position> {
    create_position(conn).await.map(|(position, _)| position)
}

/// File, offset and, on MySQL, the executed set.
async fn log_status(conn: &mut Conn) -> Result<(BinlogPosition, String)> {
    let (flavour, _, version) = connection::server(conn).await?;
    let query =
        if flavour == Flavour::Mysql && version >= (8, 2, 0) { "SHOW BINARY LOG STATUS" } else { "SHOW MASTER STATUS" };
    let row: Option<mysql_async::Row> = conn.query_first(query).await.map_err(|error| {
        failed(error, "reading the log's end")
            .hint("GRANT REPLICATION CLIENT (MySQL) or BINLOG MONITOR (MariaDB) ON *.* to the agent's user")
    })?;
    let Some(mut row) = row else {
        return Err(Error::stop("the server writes no binary log", "set log_bin in its configuration and restart it"));
    };
    let file = row.take_opt::<String, _>(0).and_then(Result::ok).unwrap_or_default();
    let offset = row.take_opt::<u64, _>(1).and_then(Result::ok).unwrap_or_default();
    let executed = row.take_opt::<Option<String>, _>(4).and_then(Result::ok).flatten().unwrap_or_default();
    Ok((BinlogPosition { file, offset, begun: 0 }, executed))
}

/// The binlogs that the server has, each with its size.
pub async fn binlogs(conn: &mut Conn) -> Result<Vec<BinlogPosition>> {
    let rows: Vec<mysql_async::Row> =
        conn.query("SHOW BINARY LOGS").await.map_err(|error| failed(error, "listing the binary logs"))?;
    let log = |mut row: mysql_async::Row| {
        let file = row.take_opt::<String, _>(0)?.ok()?;
        Some(BinlogPosition { file, offset: row.take_opt::<u64, _>(1)?.ok()?, begun: 0 })
    };
    Ok(rows.into_iter().filter_map(log).collect())
}

fn parse_gtids(text: &str) -> Result<GtidSet> {
    text.parse().map_err(|error: String| Error::stop(error, "report this as a bug, with the server's version"))
}

/// `0-1-100,5-2-7` → per domain its last transaction.
fn parse_domains(text: &str) -> Result<std::collections::BTreeMap<u32, MariadbGtid>> {
    let parse = |gtid: &str| {
        let mut parts = gtid.trim().split('-');
        let domain = parts.next()?.parse().ok()?;
        let server_id = parts.next()?.parse().ok()?;
        let sequence = parts.next()?.parse().ok()?;
        parts.next().is_none().then_some((domain, MariadbGtid { server_id, sequence }))
    };
    text.split(',')
        .filter(|gtid| !gtid.trim().is_empty())
        .map(|gtid| {
            parse(gtid).ok_or_else(|| Error::stop(format!("{gtid:?} is not a MariaDB GTID"), "report this as a bug"))
        })
        .collect()
}

/// How long the marker may take to come back.
const PROOF: Duration = Duration::from_secs(20);

/// Writes the marker with `write`, and waits to see it in the log: a filter that hid it would
/// let every change of ours come back as someone else's.
pub async fn prove_marker<W, F>(config: &ConnectConfig, agent: &str, marker: &TableName, write: W) -> Result<()>
where
    W: FnOnce() -> F,
    F: Future<Output = Result<()>>,
{
    let mut conn = connection::connect(config).await?;
    let (start, identity) = create_position(&mut conn).await?;
    let wire = Wire::connect(config).await?;
    let (Position::Mysql { binlog, .. } | Position::Mariadb { binlog, .. }) = &start else {
        return Err(Error::stop(format!("{start} is not a position in a binlog"), "report this as a bug"));
    };
    let mut reader = binlog::Reader::new(wire.flavour, agent, marker, &[], &start, false)?;
    // An id of its own: the capture's connection stays.
    let id = stream::server_id(&reader_name(agent, config, "proof"), &identity);
    let mut stream = Stream::open(wire, id, From::File(binlog)).await?;
    write().await?;
    let mut proof = Proof { seen: false };
    let deadline = tokio::time::Instant::now() + PROOF;
    while !proof.seen && tokio::time::Instant::now() < deadline {
        if let Some(event) = stream.next(Duration::from_millis(200)).await? {
            reader.event(event, &mut proof)?;
        }
    }
    if proof.seen {
        return Ok(());
    }
    Err(Error::stop(
        format!(
            "the marker was written to {marker}, but did not appear in the server's log within {} s",
            PROOF.as_secs()
        ),
        format!(
            "let the log have the database {:?}: check binlog-do-db and binlog-ignore-db (binlog_do_db, binlog_ignore_db) \
             in the server's configuration",
            marker.schema
        ),
    ))
}

/// Sees the marker, and nothing else.
struct Proof {
    seen: bool,
}

impl Sink for Proof {
    fn begin(&mut self, _: Begin<'_>) -> Result<()> {
        Ok(())
    }
    fn row(&mut self, _: RowEvent<'_>) -> Result<()> {
        Ok(())
    }
    fn truncate(&mut self, _: usize) -> Result<()> {
        Ok(())
    }
    fn commit(&mut self, _: Commit<'_>) -> Result<()> {
        Ok(())
    }
    fn prepare(&mut self, _: &str, _: Position) -> Result<()> {
        Ok(())
    }
    fn decide(&mut self, _: &str, _: bool, _: Commit<'_>) -> Result<()> {
        Ok(())
    }
    fn wants_echo(&mut self, _: &Marker) -> Result<bool> {
        Ok(false)
    }
    fn echo(&mut self, _: &Marker, _: Position) -> Result<()> {
        self.seen = true;
        Ok(())
    }
    fn passed(&mut self, _: Position) -> Result<()> {
        Ok(())
    }
    fn full(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mariadb_positions_are_read_per_domain() {
        let domains = parse_domains("0-1-100, 5-2-7").expect("valid");

        assert_eq!(domains[&5], MariadbGtid { server_id: 2, sequence: 7 });
        assert!(parse_domains("").expect("valid").is_empty());
        assert!(parse_domains("0-1").is_err());
    }
}
