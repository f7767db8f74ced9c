//! Events in, transactions out: the state machine over the binlog. No I/O.
//!
//! ```text
//! GTID ──▶ [BEGIN] ──▶ table map, rows … ──▶ XID | COMMIT      a transaction
//! GTID ──▶ one statement                                       DDL and the like
//! GTID ──▶ [XA START] ──▶ rows … ──▶ XA PREPARE                 undecided, until
//! GTID ──▶ XA COMMIT | XA ROLLBACK
//! ```
//!
//! A position is taken only where a transaction ends: inside one, MariaDB 11 sends no offsets
//! at all. What is not understood stops the flow (stop rather than corrupt), unless the log
//! itself marks it as ignorable.
//!
//! Protocol: MySQL internals, "Binlog Event"; MariaDB, "Replication Protocol".

mod rows;
mod unnamed;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use self::unnamed::Altered;
use super::bytes::Bytes;
use super::decode::{Cell, Scratch};
use super::event::{ARTIFICIAL, Event, IGNORABLE, kind};
use super::gtid;
use super::statement::{self, Statement};
use super::table_map::{self, Layout};
use crate::capture::altered::Logged;
use crate::capture::{Begin, Commit, Sink, WantedTable};
use crate::catalog::TableName;
use crate::change::Micros;
use crate::connect::mysql::Flavour;
use crate::error::{Error, Result};
use crate::marker::Marker;
use crate::position::{BinlogPosition, GtidSet, GtidSource, MariadbGtid, Position};
use crate::value::Datum;

/// What a table id of the log stands for, until it is mapped anew.
enum Mapped {
    Unwanted,
    /// `map` is the event's data, to see that a repeated one is the same.
    Marker {
        map: Vec<u8>,
        layout: Layout,
    },
    Wanted {
        map: Vec<u8>,
        layout: Layout,
        table: usize,
    },
}

/// Identity of the transaction in flight.
enum Id {
    Mysql { source: GtidSource, number: u64 },
    Mariadb { domain: u32, gtid: MariadbGtid },
    Anonymous { binlog: BinlogPosition },
}

struct Transaction {
    id: Id,
    committed_at: Micros,
    /// The journal has it already: the log repeats what is before the start.
    repeated: bool,
    /// BEGIN was seen, or need not come (MariaDB).
    open: bool,
    /// Only one statement belongs to it (MariaDB says so).
    standalone: bool,
    /// The first row event, which may be our marker, has passed.
    rows_seen: bool,
    echo: Option<Marker>,
    /// The sink wants to see the rows of this echo.
    echo_wanted: bool,
    /// Rows were handed on.
    begun: bool,
    xa: bool,
    /// All that it wrote can be rolled back (MariaDB says so).
    transactional: bool,
}

impl Transaction {
    fn is_passed_over(&self) -> bool {
        self.repeated || self.echo.is_some() && !self.echo_wanted
    }
}

pub struct Reader {
    flavour: Flavour,
    agent: String,
    marker: WantedTable,
    tables: Vec<WantedTable>,
    mapped: HashMap<u64, Mapped>,
    /// MySQL: what was read. Kept only while `tracking`.
    gtids: GtidSet,
    tracking: bool,
    gtids_on: bool,
    domains: BTreeMap<u32, MariadbGtid>,
    /// Behind the last event of the file that was read.
    binlog: BinlogPosition,
    /// The file that was read before; `None` where GTIDs lead.
    ours: Option<BinlogPosition>,
    server_uuid: String,
    transaction: Option<Transaction>,
    /// Prepared and not decided, by xid.
    prepared: BTreeSet<Arc<str>>,
    altered: Altered,
    /// The position moved since the sink heard of it.
    moved: bool,
    scratch: Scratch,
    txid: String,
    inflated: Vec<u8>,
    /// Memory of the last row's datums.
    before: Vec<Datum<'static>>,
    after: Vec<Datum<'static>>,
    cells: Vec<Cell<'static>>,
}

impl Reader {
    /// `gtids_on`: MySQL's `gtid_mode` is ON now; else the binlog position is the authority.
    pub fn new(
        flavour: Flavour,
        agent: &str,
        marker: &TableName,
        tables: &[WantedTable],
        start: &Position,
        gtids_on: bool,
    ) -> Result<Self> {
        let mut reader = Reader {
            flavour,
            agent: agent.to_owned(),
            marker: table_map::marker_table(marker),
            tables: tables.to_vec(),
            mapped: HashMap::new(),
            gtids: GtidSet::default(),
            tracking: false,
            gtids_on,
            domains: BTreeMap::new(),
            binlog: BinlogPosition::default(),
            ours: None,
            server_uuid: String::new(),
            transaction: None,
            prepared: BTreeSet::new(),
            altered: Altered::default(),
            moved: false,
            scratch: Scratch::default(),
            txid: String::new(),
            inflated: Vec::new(),
            before: Vec::new(),
            after: Vec::new(),
            cells: Vec::new(),
        };
        match (flavour, start) {
            (Flavour::Mysql, Position::Mysql { gtids, binlog, server_uuid }) => {
                reader.tracking = gtids_on && !gtids.is_empty();
                if reader.tracking {
                    reader.gtids = gtids.clone();
                }
                reader.binlog = binlog.clone();
                reader.server_uuid = server_uuid.clone();
            }
            (Flavour::Mariadb, Position::Mariadb { domains, binlog }) => {
                reader.domains = domains.clone();
                reader.binlog = binlog.clone();
            }
            (Flavour::Mysql | Flavour::Mariadb, _) => {
                return Err(Error::stop(
                    format!("the stored position {start} is not of a {} server", flavour.name()),
                    "the system's url leads to another kind of server than before; give the system another name",
                ));
            }
        }
        Ok(reader)
    }

    /// The log goes on in the file of the start, and nothing but its place there leads to it.
    #[must_use]
    pub fn in_file(self, start: &BinlogPosition) -> Self {
        Reader { ours: Some(start.clone()), ..self }
    }

    /// Knows what was prepared before the start.
    pub fn with_prepared(mut self, prepared: &BTreeSet<Arc<str>>) -> Self {
        self.prepared.clone_from(prepared);
        self
    }

    /// Where the last whole transaction ends.
    pub fn position(&self) -> Position {
        match self.flavour {
            Flavour::Mysql => Position::Mysql {
                gtids: self.gtids.clone(),
                binlog: self.binlog.clone(),
                server_uuid: self.server_uuid.clone(),
            },
            Flavour::Mariadb => Position::Mariadb { domains: self.domains.clone(), binlog: self.binlog.clone() },
        }
    }

    /// Tells the sink how far the log was read, where nothing else did.
    pub fn pass(&mut self, sink: &mut dyn Sink) -> Result<()> {
        if self.moved && self.transaction.is_none() {
            self.moved = false;
            sink.passed(self.position())?;
        }
        Ok(())
    }

    pub fn event(&mut self, event: Event<'_>, sink: &mut dyn Sink) -> Result<()> {
        self.follow(&event);
        self.dispatch(event, sink).map_err(
            |error| {
                if error.position.is_none() { error.at(self.position()) } else { error }
            },
        )
    }

    /// Keeps the place in the file: events lie behind each other, whatever 32 bits can say.
    fn follow(&mut self, event: &Event<'_>) {
        let own = event.flags & ARTIFICIAL == 0
            && !matches!(event.kind, kind::ROTATE | kind::HEARTBEAT | kind::HEARTBEAT_V2)
            && event.log_pos != 0;
        // Inside a transaction the place is kept but not shown: `position` is asked at ends only.
        if own {
            self.binlog.offset = widen(self.binlog.offset, event.log_pos);
        }
    }

    fn dispatch(&mut self, event: Event<'_>, sink: &mut dyn Sink) -> Result<()> {
        match event.kind {
            kind::WRITE_ROWS
            | kind::UPDATE_ROWS
            | kind::DELETE_ROWS
            | kind::WRITE_ROWS_V1
            | kind::UPDATE_ROWS_V1
            | kind::DELETE_ROWS_V1
            | kind::PARTIAL_UPDATE_ROWS
            | kind::WRITE_ROWS_COMPRESSED_V1..=kind::DELETE_ROWS_COMPRESSED => self.rows(event, sink),
            kind::TABLE_MAP => self.table_map(event.data),
            kind::GTID | kind::ANONYMOUS_GTID | kind::GTID_TAGGED => self.mysql_gtid(event),
            kind::MARIADB_GTID => self.mariadb_gtid(event),
            kind::QUERY | kind::QUERY_COMPRESSED => self.query(event, sink),
            kind::XID => self.end(event.timestamp, sink),
            kind::XA_PREPARE => self.xa_prepare(event, sink),
            kind::ROTATE => self.rotate(event),
            kind::FORMAT_DESCRIPTION => {
                self.mapped.clear();
                self.file_begins(event.timestamp)
            }
            kind::HEARTBEAT | kind::HEARTBEAT_V2 => {
                // Never backwards: one that was sent before what we have read says nothing.
                let ahead = event.log_pos > self.binlog.offset as u32;
                if event.kind == kind::HEARTBEAT && ahead && self.transaction.is_none() {
                    self.binlog.offset = widen(self.binlog.offset, event.log_pos);
                    self.moved = true;
                }
                Ok(())
            }
            kind::PREVIOUS_GTIDS => self.previous_gtids(event.data),
            // Its events come one by one, before it and behind it.
            kind::TRANSACTION_PAYLOAD => Ok(()),
            kind::INCIDENT => Err(Error::stop(
                "the server lost events of its own log (an incident event)",
                "begin anew at the log's present end and compare the tables",
            )),
            kind::EXECUTE_LOAD_QUERY => self.refuse_statement("LOAD DATA INFILE"),
            kind::STOP
            | kind::INTVAR
            | kind::APPEND_BLOCK
            | kind::DELETE_FILE
            | kind::RAND
            | kind::USER_VAR
            | kind::BEGIN_LOAD_QUERY
            | kind::IGNORABLE_EVENT
            | kind::ROWS_QUERY
            | kind::TRANSACTION_CONTEXT
            | kind::VIEW_CHANGE
            | kind::ANNOTATE_ROWS
            | kind::BINLOG_CHECKPOINT
            | kind::GTID_LIST
            | kind::START_ENCRYPTION => Ok(()),
            _ if event.flags & IGNORABLE != 0 => Ok(()),
            other => Err(Error::stop(
                format!("the log holds an event of a kind ({other}) that is not known"),
                "this server is newer than the agent, or uses a feature that is not supported; update the agent",
            )),
        }
    }

    fn rotate(&mut self, event: Event<'_>) -> Result<()> {
        let mut bytes = Bytes(event.data);
        let offset = bytes.uint(8).ok_or_else(|| malformed("rotate"))?;
        let file = std::str::from_utf8(bytes.0).map_err(|_| malformed("rotate"))?;
        // At the start of a stream, and when a new file begins, the server tells where it is.
        let begun = if file == self.binlog.file { self.binlog.begun } else { 0 };
        self.binlog = BinlogPosition { file: file.to_owned(), offset, begun };
        if self.transaction.is_none() {
            self.moved = true;
        }
        Ok(())
    }

    /// The first event of a file tells when it was begun, from wherever in it the log is sent. Where
    /// the one that was read has the same name and was begun at another time, the log is another one:
    /// also where it has grown beyond our position by now.
    fn file_begins(&mut self, begun: u32) -> Result<()> {
        if begun == 0 {
            return Ok(());
        }
        let ours = self.ours.as_ref().filter(|ours| ours.file == self.binlog.file && ours.begun != 0);
        if let Some(ours) = ours.filter(|ours| ours.begun != begun) {
            return Err(Error::lost(
                format!("the server's {} is not the file that was read: it was begun anew", ours.file),
                "the log was reset, or the server was restored from a backup",
            ));
        }
        if std::mem::replace(&mut self.binlog.begun, begun) != begun && self.transaction.is_none() {
            self.moved = true;
        }
        Ok(())
    }

    /// A new file tells exactly what was executed before it: from here on the set is known.
    fn previous_gtids(&mut self, data: &[u8]) -> Result<()> {
        if self.gtids_on && !self.tracking && self.transaction.is_none() {
            self.gtids = gtid::parse_previous(data).ok_or_else(|| malformed("previous-gtids"))?;
            self.tracking = !self.gtids.is_empty();
        }
        Ok(())
    }

    fn mysql_gtid(&mut self, event: Event<'_>) -> Result<()> {
        let parsed = if event.kind == kind::GTID_TAGGED {
            gtid::parse_tagged(event.data)
        } else {
            gtid::parse_gtid(event.kind, event.data)
        };
        let parsed = parsed.ok_or_else(|| malformed("gtid"))?;
        let committed_at = parsed.committed_at.unwrap_or(Micros::from(event.timestamp) * 1_000_000);
        match parsed.id {
            Some((source, number)) => {
                let repeated = self.tracking && self.gtids.contains(&source, number);
                self.open(Id::Mysql { source, number }, committed_at, repeated)
            }
            None => self.open(Id::Anonymous { binlog: self.binlog.clone() }, committed_at, false),
        }
    }

    fn mariadb_gtid(&mut self, event: Event<'_>) -> Result<()> {
        let parsed = gtid::parse_mariadb(event.server_id, event.data).ok_or_else(|| malformed("gtid"))?;
        let committed_at = Micros::from(event.timestamp) * 1_000_000;
        self.open(Id::Mariadb { domain: parsed.domain, gtid: parsed.gtid }, committed_at, false)?;
        if let Some(transaction) = &mut self.transaction {
            transaction.standalone = parsed.standalone;
            transaction.open = !parsed.standalone;
            transaction.xa = parsed.xa_prepared;
            transaction.transactional = parsed.transactional;
        }
        Ok(())
    }

    fn open(&mut self, id: Id, committed_at: Micros, repeated: bool) -> Result<()> {
        if self.transaction.is_some() {
            return Err(Error::stop(
                "a transaction of the log has no end before the next one begins",
                "the server's log is damaged: begin anew at its present end and compare the tables",
            ));
        }
        self.transaction = Some(Transaction {
            id,
            committed_at,
            repeated,
            open: false,
            standalone: false,
            rows_seen: false,
            echo: None,
            echo_wanted: false,
            begun: false,
            xa: false,
            transactional: false,
        });
        Ok(())
    }

    fn query(&mut self, event: Event<'_>, sink: &mut dyn Sink) -> Result<()> {
        let query = statement::parse_query(event.data, event.kind == kind::QUERY_COMPRESSED)
            .ok_or_else(|| malformed("query"))?;
        let Some(transaction) = &mut self.transaction else {
            // Servers without GTID events are older than any we support; MariaDB writes
            // "# Dummy" queries outside of transactions.
            return match statement::classify(&query.text) {
                Statement::Write => self.refuse_statement(&query.text),
                _ => Ok(()),
            };
        };
        let statement = statement::classify(&query.text);
        if !transaction.repeated
            && statement == Statement::Other
            && let Some(table) = self.tables.iter().find(|table| statement::versions(&query.text, &table.name.name))
        {
            return Err(Error::stop(
                format!(
                    "{} became system-versioned: its log also has rows of the past, which nobody wrote",
                    table.name
                ),
                "ALTER TABLE … DROP SYSTEM VERSIONING, or take the table out of the configuration; then begin anew at the \
                 log's present end and compare the tables",
            ));
        }
        let repeated = transaction.repeated;
        if !repeated && matches!(statement, Statement::Other | Statement::Drop(_) | Statement::Rename(_)) {
            self.note_altered(&query.text, query.cut);
        }
        let Some(transaction) = &mut self.transaction else { return Err(malformed("query")) };
        if transaction.repeated {
            let ends = match statement {
                Statement::Begin | Statement::XaStart => {
                    transaction.open = true;
                    false
                }
                Statement::Commit | Statement::Rollback | Statement::XaDecided { .. } => true,
                _ => transaction.standalone || !transaction.open,
            };
            return if ends { self.end(event.timestamp, sink) } else { Ok(()) };
        }
        match statement {
            Statement::Begin => {
                transaction.open = true;
                Ok(())
            }
            Statement::XaStart => {
                transaction.open = true;
                transaction.xa = true;
                Ok(())
            }
            Statement::Commit => self.end(event.timestamp, sink),
            Statement::XaDecided { committed, xid } => {
                let xid = xid.ok_or_else(|| malformed("the xid of an XA transaction"))?;
                self.decide(&xid, committed, event.timestamp, sink)
            }
            // MariaDB logs one that used temporary tables, and that it came to nothing.
            Statement::Rollback if transaction.transactional => {
                (transaction.begun, transaction.echo) = (false, None);
                self.end(event.timestamp, sink)
            }
            Statement::Rollback if transaction.begun => Err(Error::stop(
                "a transaction with rows of bound tables ends in ROLLBACK: it mixes engines that can roll back with such that cannot",
                "ALTER TABLE … ENGINE=InnoDB for every table that takes part",
            )),
            Statement::Rollback => self.end(event.timestamp, sink),
            Statement::RollbackTo if transaction.begun => Err(Error::stop(
                "rows of bound tables were rolled back to a savepoint inside the log: the transaction mixes engines",
                "ALTER TABLE … ENGINE=InnoDB for every table that takes part",
            )),
            Statement::Write => self.refuse_statement(&query.text),
            Statement::Truncate(name) => {
                self.truncate(name, &query.schema, &query.text, sink)?;
                self.end_single(event.timestamp, sink)
            }
            Statement::Drop(names) => {
                for name in names {
                    let dropped = |error: Error| error.context(format!("DROP TABLE {}", name.1));
                    self.truncate(Some(name.clone()), &query.schema, &query.text, sink).map_err(dropped)?;
                }
                self.end_single(event.timestamp, sink)
            }
            Statement::Rename(names) => {
                self.renamed(&names, &query.schema)?;
                self.end_single(event.timestamp, sink)
            }
            Statement::RollbackTo | Statement::Savepoint | Statement::Other => self.end_single(event.timestamp, sink),
        }
    }

    /// A statement that stands alone is its transaction.
    fn end_single(&mut self, timestamp: u32, sink: &mut dyn Sink) -> Result<()> {
        match &self.transaction {
            Some(transaction) if transaction.standalone || !transaction.open => self.end(timestamp, sink),
            _ => Ok(()),
        }
    }

    fn refuse_statement(&self, text: &str) -> Result<()> {
        if self.transaction.as_ref().is_some_and(|transaction| transaction.repeated) {
            return Ok(());
        }
        Err(Error::stop(
            format!("a write was logged as a statement, not as rows: {:?}", statement::first_words(text)),
            "SET GLOBAL binlog_format=ROW, and binlog_format=ROW in the server's configuration; sessions keep their own \
             until they reconnect",
        ))
    }

    fn truncate(
        &mut self,
        name: Option<(Option<String>, String)>,
        default: &str,
        text: &str,
        sink: &mut dyn Sink,
    ) -> Result<()> {
        let Some((schema, name)) = name else {
            return Err(Error::stop(
                format!("the table of {:?} could not be told", statement::first_words(text)),
                "report this as a bug",
            ));
        };
        let schema = schema.unwrap_or_else(|| default.to_owned());
        // The statement has the user's spelling; where the server folds names, it may differ.
        let same = |a: &str, b: &str| a.to_lowercase() == b.to_lowercase();
        let hit = self.tables.iter().find(|table| same(&table.name.schema, &schema) && same(&table.name.name, &name));
        let Some(table) = hit.map(|table| table.id) else { return Ok(()) };
        self.begin(sink)?;
        sink.truncate(table)
    }

    /// A wanted table goes away under another name. One that takes its place in the same
    /// statement is the table from there on.
    fn renamed(&self, names: &[(statement::Name, statement::Name)], default: &str) -> Result<()> {
        let whole = |(schema, name): &statement::Name| TableName {
            schema: schema.clone().unwrap_or_else(|| default.to_owned()),
            name: name.clone(),
        };
        let same = |a: &TableName, b: &TableName| a.to_string().to_lowercase() == b.to_string().to_lowercase();
        for table in &self.tables {
            let away = names.iter().find(|(from, _)| same(&whole(from), &table.name));
            let back = names.iter().any(|(_, to)| same(&whole(to), &table.name));
            if let (Some((_, to)), false) = (away, back) {
                let to = whole(to);
                if !self.is_also(table, &to) {
                    return Err(Logged { wanted: table, seen: false }.moved(to));
                }
            }
        }
        Ok(())
    }

    fn xa_prepare(&mut self, event: Event<'_>, sink: &mut dyn Sink) -> Result<()> {
        let (one_phase, xid) = parse_xa_prepare(event.data).ok_or_else(|| malformed("xa prepare"))?;
        if one_phase || self.transaction.as_ref().is_none_or(|transaction| transaction.repeated) {
            return self.end(event.timestamp, sink);
        }
        // Also where it wrote nothing of ours: so its commit is known to be nobody's.
        self.begin(sink)?;
        self.close();
        self.moved = false;
        self.prepared.insert(xid.as_str().into());
        sink.prepare(&xid, self.position())
    }

    fn decide(&mut self, xid: &str, committed: bool, timestamp: u32, sink: &mut dyn Sink) -> Result<()> {
        if !self.prepared.contains(xid) {
            // Whoever wants no rows is not concerned.
            if committed && !self.tables.is_empty() {
                return Err(Error::stop(
                    format!(
                        "XA transaction {xid} was prepared before the log was read, and is committed now: what it wrote is not known"
                    ),
                    "begin anew at the log's present end, when XA RECOVER lists nothing, and compare the tables",
                ));
            }
            return self.end(timestamp, sink);
        }
        self.prepared.remove(xid);
        let Some(transaction) = self.close() else { return Ok(()) };
        let committed_at = self.committed_at(&transaction, timestamp);
        write_txid(&transaction.id, &mut self.txid);
        self.moved = false;
        sink.decide(xid, committed, Commit { position: self.position(), txid: &self.txid, committed_at })
    }

    /// Hands the transaction on as begun, once.
    fn begin(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let transaction = self.transaction.as_mut().ok_or_else(|| malformed("rows outside of a transaction"))?;
        if !transaction.begun {
            transaction.begun = true;
            write_txid(&transaction.id, &mut self.txid);
            sink.begin(Begin { txid: &self.txid })?;
        }
        Ok(())
    }

    fn end(&mut self, timestamp: u32, sink: &mut dyn Sink) -> Result<()> {
        let Some(transaction) = self.close() else { return Ok(()) };
        if transaction.repeated {
            return Ok(());
        }
        if let Some(marker) = transaction.echo.as_ref().filter(|_| !transaction.begun) {
            self.moved = false;
            return sink.echo(marker, self.position());
        }
        if transaction.begun {
            self.moved = false;
            let committed_at = self.committed_at(&transaction, timestamp);
            sink.commit(Commit { position: self.position(), txid: &self.txid, committed_at })?;
        }
        Ok(())
    }

    /// Counts the transaction as read.
    fn close(&mut self) -> Option<Transaction> {
        let transaction = self.transaction.take()?;
        match &transaction.id {
            Id::Mysql { source, number } => {
                if self.tracking {
                    self.gtids.add(source, *number);
                }
            }
            Id::Mariadb { domain, gtid } => {
                self.domains.insert(*domain, *gtid);
            }
            Id::Anonymous { .. } => {}
        }
        if self.mapped.len() > 10_000 {
            self.mapped.clear();
        }
        self.moved = true;
        Some(transaction)
    }

    fn committed_at(&self, transaction: &Transaction, timestamp: u32) -> Micros {
        match self.flavour {
            Flavour::Mysql => transaction.committed_at,
            // Whole seconds; the end knows the later one.
            Flavour::Mariadb => transaction.committed_at.max(Micros::from(timestamp) * 1_000_000),
        }
    }
}

/// Whether it is a commit in one phase, and the xid.
fn parse_xa_prepare(data: &[u8]) -> Option<(bool, String)> {
    let mut bytes = Bytes(data);
    let one_phase = bytes.u8()? != 0;
    let format = i32::from_le_bytes(bytes.array()?);
    let (global, branch) = (bytes.uint(4)? as usize, bytes.uint(4)? as usize);
    let (global, branch) = (bytes.take(global)?, bytes.take(branch)?);
    Some((one_phase, statement::xid(format, global, branch)))
}

/// The 64-bit offset that these 32 bits stand for, at or behind `before`.
fn widen(before: u64, low: u32) -> u64 {
    let at = before & !0xffff_ffff | u64::from(low);
    if at < before { at + (1 << 32) } else { at }
}

fn malformed(what: &str) -> Error {
    Error::stop(format!("the log holds a malformed event ({what})"), "report this as a bug, with the server's version")
}

fn write_txid(id: &Id, out: &mut String) {
    use std::fmt::Write;
    out.clear();
    let _ = match id {
        Id::Mysql { source, number } => {
            let one = GtidSet { intervals: [(source.clone(), vec![(*number, number + 1)])].into() };
            write!(out, "{one}")
        }
        Id::Mariadb { domain, gtid } => write!(out, "{domain}-{}-{}", gtid.server_id, gtid.sequence),
        Id::Anonymous { binlog } => write!(out, "{binlog}"),
    };
}

#[cfg(test)]
mod tests;
