//! Events in, transactions out: the state machine over the binlog. No I/O.
//!
//! ```text
//! GTID ──▶ [BEGIN] ──▶ table map, rows … ──▶ XID | COMMIT      a transaction
//! GTID ──▶ one statement                                       DDL and the like
//! ```
//!
//! A position is taken only where a transaction ends: inside one, MariaDB 11 sends no offsets
//! at all. What is not understood stops the flow (stop rather than corrupt), unless the log
//! itself marks it as ignorable.
//!
//! Protocol: MySQL internals, "Binlog Event"; MariaDB, "Replication Protocol".

use std::collections::{BTreeMap, HashMap};
use std::io::Read;

use super::bytes::Bytes;
use super::decode::{self, Cell, Scratch};
use super::gtid;
use super::statement::{self, Statement};
use super::table_map::{self, Layout};
use crate::capture::{Begin, Commit, RowEvent, Sink, WantedTable};
use crate::catalog::TableName;
use crate::change::{Micros, Op};
use crate::connect::mysql::Flavour;
use crate::error::{Error, Result};
use crate::marker::Marker;
use crate::position::{BinlogPosition, GtidSet, GtidSource, MariadbGtid, Position};
use crate::value::{Datum, Value};

/// An event without its checksum.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    pub kind: u8,
    /// Seconds since 1970.
    pub timestamp: u32,
    pub server_id: u32,
    /// Where the next event begins, the low 32 bits; 0 where the server does not say.
    pub log_pos: u32,
    pub flags: u16,
    pub data: &'a [u8],
}

/// Made by the server for this stream, not part of the file.
pub const ARTIFICIAL: u16 = 0x20;
/// Who does not know this event may skip it.
const IGNORABLE: u16 = 0x80;

pub mod kind {
    pub const QUERY: u8 = 2;
    pub const STOP: u8 = 3;
    pub const ROTATE: u8 = 4;
    pub const INTVAR: u8 = 5;
    pub const APPEND_BLOCK: u8 = 9;
    pub const DELETE_FILE: u8 = 11;
    pub const RAND: u8 = 13;
    pub const USER_VAR: u8 = 14;
    pub const FORMAT_DESCRIPTION: u8 = 15;
    pub const XID: u8 = 16;
    pub const BEGIN_LOAD_QUERY: u8 = 17;
    pub const EXECUTE_LOAD_QUERY: u8 = 18;
    pub const TABLE_MAP: u8 = 19;
    pub const WRITE_ROWS_V1: u8 = 23;
    pub const UPDATE_ROWS_V1: u8 = 24;
    pub const DELETE_ROWS_V1: u8 = 25;
    pub const INCIDENT: u8 = 26;
    pub const HEARTBEAT: u8 = 27;
    pub const IGNORABLE_EVENT: u8 = 28;
    pub const ROWS_QUERY: u8 = 29;
    pub const WRITE_ROWS: u8 = 30;
    pub const UPDATE_ROWS: u8 = 31;
    pub const DELETE_ROWS: u8 = 32;
    pub const GTID: u8 = 33;
    pub const ANONYMOUS_GTID: u8 = 34;
    pub const PREVIOUS_GTIDS: u8 = 35;
    pub const TRANSACTION_CONTEXT: u8 = 36;
    pub const VIEW_CHANGE: u8 = 37;
    pub const XA_PREPARE: u8 = 38;
    pub const PARTIAL_UPDATE_ROWS: u8 = 39;
    pub const TRANSACTION_PAYLOAD: u8 = 40;
    pub const HEARTBEAT_V2: u8 = 41;
    pub const GTID_TAGGED: u8 = 42;
    // MariaDB
    pub const ANNOTATE_ROWS: u8 = 160;
    pub const BINLOG_CHECKPOINT: u8 = 161;
    pub const MARIADB_GTID: u8 = 162;
    pub const GTID_LIST: u8 = 163;
    pub const START_ENCRYPTION: u8 = 164;
    pub const QUERY_COMPRESSED: u8 = 165;
    pub const WRITE_ROWS_COMPRESSED_V1: u8 = 166;
    pub const UPDATE_ROWS_COMPRESSED_V1: u8 = 167;
    pub const DELETE_ROWS_COMPRESSED_V1: u8 = 168;
    pub const WRITE_ROWS_COMPRESSED: u8 = 169;
    pub const UPDATE_ROWS_COMPRESSED: u8 = 170;
    pub const DELETE_ROWS_COMPRESSED: u8 = 171;
}

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
    /// Rows were handed on.
    begun: bool,
    xa: bool,
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
    server_uuid: String,
    transaction: Option<Transaction>,
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
            server_uuid: String::new(),
            transaction: None,
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
                Ok(())
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
            // Its events follow one by one; should they not, the transaction stays open and the
            // next one says so.
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
        self.binlog = BinlogPosition { file: file.to_owned(), offset };
        if self.transaction.is_none() {
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
        }
        Ok(())
    }

    fn open(&mut self, id: Id, committed_at: Micros, repeated: bool) -> Result<()> {
        if self.transaction.is_some() {
            return Err(Error::stop(
                "a transaction of the log has no end before the next one begins",
                "if binlog_transaction_compression is ON, SET GLOBAL binlog_transaction_compression=OFF; \
                 begin anew at the log's present end and compare the tables",
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
            begun: false,
            xa: false,
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
        if transaction.repeated {
            let ends = match statement {
                Statement::Begin | Statement::XaStart => {
                    transaction.open = true;
                    false
                }
                Statement::Commit | Statement::Rollback | Statement::XaDecided => true,
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
            Statement::Commit | Statement::XaDecided => self.end(event.timestamp, sink),
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

    fn xa_prepare(&mut self, event: Event<'_>, sink: &mut dyn Sink) -> Result<()> {
        let one_phase = event.data.first() == Some(&1);
        match &self.transaction {
            Some(transaction) if transaction.begun && !one_phase => Err(Error::stop(
                "an XA transaction wrote to bound tables: its rows are in the log before it is decided",
                "write bound tables without XA, or with XA COMMIT … ONE PHASE",
            )),
            _ => self.end(event.timestamp, sink),
        }
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
        let Some(transaction) = self.transaction.take() else { return Ok(()) };
        match transaction.id {
            Id::Mysql { source, number } => {
                if self.tracking {
                    self.gtids.add(&source, number);
                }
            }
            Id::Mariadb { domain, gtid } => {
                self.domains.insert(domain, gtid);
            }
            Id::Anonymous { .. } => {}
        }
        if self.mapped.len() > 10_000 {
            self.mapped.clear();
        }
        self.moved = true;
        if transaction.repeated {
            return Ok(());
        }
        if let Some(marker) = &transaction.echo {
            self.moved = false;
            return sink.echo(marker, self.position());
        }
        if transaction.begun {
            self.moved = false;
            let committed_at = match self.flavour {
                Flavour::Mysql => transaction.committed_at,
                // Whole seconds; the end knows the later one.
                Flavour::Mariadb => transaction.committed_at.max(Micros::from(timestamp) * 1_000_000),
            };
            sink.commit(Commit { position: self.position(), txid: &self.txid, committed_at })?;
        }
        Ok(())
    }

    fn table_map(&mut self, data: &[u8]) -> Result<()> {
        if self.transaction.as_ref().is_some_and(|transaction| transaction.repeated || transaction.echo.is_some()) {
            return Ok(());
        }
        let head = table_map::head(data).ok_or_else(|| malformed("table map"))?;
        match self.mapped.get(&head.id) {
            Some(Mapped::Marker { map, .. } | Mapped::Wanted { map, .. }) if map == data => return Ok(()),
            _ => {}
        }
        let named = |name: &TableName| name.schema == head.schema && name.name == head.table;
        let mapped = if named(&self.marker.name) {
            Mapped::Marker { map: data.to_vec(), layout: table_map::layout(head, &self.marker)? }
        } else if let Some(table) = self.tables.iter().position(|table| named(&table.name)) {
            let layout = table_map::layout(head, &self.tables[table])?;
            Mapped::Wanted { map: data.to_vec(), layout, table }
        } else {
            Mapped::Unwanted
        };
        self.mapped.insert(head.id, mapped);
        Ok(())
    }

    fn rows(&mut self, event: Event<'_>, sink: &mut dyn Sink) -> Result<()> {
        let Some(transaction) = &mut self.transaction else { return Err(malformed("rows outside of a transaction")) };
        if transaction.repeated || transaction.echo.is_some() {
            return Ok(());
        }
        let first = !std::mem::replace(&mut transaction.rows_seen, true);
        let id = Bytes(event.data).uint(6).ok_or_else(|| malformed("rows"))?;
        match self.mapped.get(&id) {
            Some(Mapped::Wanted { .. }) => self.wanted_rows(id, event, sink),
            Some(Mapped::Marker { .. }) if first => {
                let marker = self.marker_row(id, event)?;
                if let (Some(marker), Some(transaction)) = (marker, &mut self.transaction) {
                    transaction.echo = Some(marker);
                }
                Ok(())
            }
            Some(Mapped::Unwanted | Mapped::Marker { .. }) => Ok(()),
            // Ends a statement that wrote nothing to us.
            None if id == 0x00ff_ffff => Ok(()),
            None => Err(malformed("rows without a table map")),
        }
    }

    fn wanted_rows(&mut self, id: u64, event: Event<'_>, sink: &mut dyn Sink) -> Result<()> {
        self.begin(sink)?;
        let mut inflated = std::mem::take(&mut self.inflated);
        let rows = RowsEvent::parse(event, &mut inflated);
        let (mut before, mut after) = (std::mem::take(&mut self.before), std::mem::take(&mut self.after));
        let mut cells: Vec<Cell<'_>> = recycle(std::mem::take(&mut self.cells));
        let Some(Mapped::Wanted { layout, table, .. }) = self.mapped.get(&id) else {
            return Err(malformed("rows without a table map"));
        };
        let table = &self.tables[*table];
        let mut rows = rows.ok_or_else(|| malformed("rows"))??;
        check_image(&rows, layout, table)?;
        while !rows.body.is_empty() {
            cells.clear();
            self.scratch.clear();
            rows.decode(layout, &mut self.scratch, &mut cells).ok_or_else(|| malformed("rows").context(&table.name))?;
            let mut old: Vec<Datum<'_>> = recycle(std::mem::take(&mut before));
            let mut new: Vec<Datum<'_>> = recycle(std::mem::take(&mut after));
            let (first, second) = cells.split_at(layout.width);
            let reason = self.scratch.refused.map(|(place, reason)| {
                // Both images number their places from 0.
                format!("column {:?} {reason}", table.columns[place].name)
            });
            match rows.op {
                Op::Insert => self.scratch.datums(first, &mut new),
                Op::Delete => self.scratch.datums(first, &mut old),
                Op::Update => {
                    self.scratch.datums(first, &mut old);
                    self.scratch.datums(second, &mut new);
                }
            }
            sink.row(RowEvent {
                table: table.id,
                op: rows.op,
                before: (rows.op != Op::Insert).then_some(&old),
                after: (rows.op != Op::Delete).then_some(&new),
                refused: reason.as_deref(),
            })?;
            (before, after) = (recycle(old), recycle(new));
        }
        self.cells = recycle(cells);
        (self.before, self.after) = (before, after);
        self.inflated = inflated;
        Ok(())
    }

    /// The marker that the event's first row writes, where it is ours.
    fn marker_row(&mut self, id: u64, event: Event<'_>) -> Result<Option<Marker>> {
        let Some(Mapped::Marker { layout, .. }) = self.mapped.get(&id) else { return Ok(None) };
        let mut inflated = Vec::new();
        let mut rows = RowsEvent::parse(event, &mut inflated).ok_or_else(|| malformed("rows"))??;
        if rows.op == Op::Delete {
            return Ok(None);
        }
        check_image(&rows, layout, &self.marker)?;
        self.scratch.clear();
        let mut cells = Vec::new();
        rows.decode(layout, &mut self.scratch, &mut cells).ok_or_else(|| malformed("marker rows"))?;
        let after = &cells[cells.len() - layout.width..];
        let mut datums = Vec::new();
        self.scratch.datums(after, &mut datums);
        let text = |at: usize| match datums[at] {
            Datum::Value(Value::Text(text)) => text.to_owned(),
            _ => String::new(),
        };
        let number = |at: usize| match datums[at] {
            Datum::Value(Value::Int(number)) => u64::try_from(number).unwrap_or(0),
            Datum::Value(Value::UInt(number)) => number,
            _ => 0,
        };
        if text(0) != self.agent {
            return Ok(None);
        }
        Ok(Some(Marker {
            agent: text(0),
            lane: number(1) as u32,
            journal: u128::from_str_radix(&text(2), 16).unwrap_or(0),
            epoch: number(3),
            seq: number(4),
            part: number(5),
            origin: text(6),
            txid: text(7),
        }))
    }
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

/// The vector's memory for values of another lifetime.
fn recycle<A, B>(mut from: Vec<A>) -> Vec<B> {
    from.clear();
    // Collecting in place keeps the allocation.
    from.into_iter().map(|_| unreachable!("the vector was cleared")).collect()
}

/// A bound column outside of a row's image would be an unknown, not a NULL.
fn check_image(rows: &RowsEvent<'_>, layout: &Layout, table: &WantedTable) -> Result<()> {
    if rows.images().all(|present| table_map::covers(layout, present)) {
        return Ok(());
    }
    Err(Error::stop(
        format!("rows of {} came without all bound columns", table.name),
        "SET GLOBAL binlog_row_image=FULL, and binlog_row_image=FULL in the server's configuration; sessions keep their \
         own until they reconnect (MariaDB 11 never logs generated columns of updates: do not bind them)",
    ))
}

/// A rows event, taken apart as far as all kinds share it.
struct RowsEvent<'a> {
    op: Op,
    present: &'a [u8],
    /// Of the after image of updates.
    present_after: Option<&'a [u8]>,
    body: Bytes<'a>,
}

impl<'a> RowsEvent<'a> {
    /// Outer `None`: malformed.
    fn parse(event: Event<'a>, inflated: &'a mut Vec<u8>) -> Option<Result<Self>> {
        use kind::*;
        let op = match event.kind {
            WRITE_ROWS | WRITE_ROWS_V1 | WRITE_ROWS_COMPRESSED | WRITE_ROWS_COMPRESSED_V1 => Op::Insert,
            UPDATE_ROWS | UPDATE_ROWS_V1 | UPDATE_ROWS_COMPRESSED | UPDATE_ROWS_COMPRESSED_V1 => Op::Update,
            DELETE_ROWS | DELETE_ROWS_V1 | DELETE_ROWS_COMPRESSED | DELETE_ROWS_COMPRESSED_V1 => Op::Delete,
            _ => {
                return Some(Err(Error::stop(
                    "an update was logged as parts of JSON documents",
                    "SET GLOBAL binlog_row_value_options='', and the same in the server's configuration",
                )));
            }
        };
        let mut bytes = Bytes(event.data);
        bytes.skip(8)?;
        if matches!(event.kind, WRITE_ROWS..=DELETE_ROWS | WRITE_ROWS_COMPRESSED..=DELETE_ROWS_COMPRESSED) {
            let extra = (bytes.uint(2)? as usize).checked_sub(2)?;
            bytes.skip(extra)?;
        }
        let columns = usize::try_from(bytes.lenenc()?).ok()?;
        let present = bytes.take(columns.div_ceil(8))?;
        let present_after = if op == Op::Update { Some(bytes.take(columns.div_ceil(8))?) } else { None };
        if (WRITE_ROWS_COMPRESSED_V1..=DELETE_ROWS_COMPRESSED).contains(&event.kind) {
            inflate(bytes, inflated)?;
            bytes = Bytes(inflated);
        }
        Some(Ok(RowsEvent { op, present, present_after, body: bytes }))
    }

    fn images(&self) -> impl Iterator<Item = &'a [u8]> {
        std::iter::once(self.present).chain(self.present_after)
    }

    /// One row: one image, or two of an update.
    fn decode(&mut self, layout: &Layout, scratch: &mut Scratch, cells: &mut Vec<Cell<'a>>) -> Option<()> {
        let before = self.body.0.len();
        decode::image(layout, self.present, &mut self.body, scratch, cells)?;
        if let Some(present) = self.present_after {
            decode::image(layout, present, &mut self.body, scratch, cells)?;
        }
        // A row takes at least its null bitmap: no endless loop over a table without columns.
        (self.body.0.len() < before).then_some(())
    }
}

/// MariaDB's compressed bodies: a byte with the length of the length, the length, zlib.
pub fn inflate(mut bytes: Bytes<'_>, out: &mut Vec<u8>) -> Option<()> {
    let header = bytes.u8()?;
    let width = usize::from(header & 7);
    if header & 0x80 == 0 || width > 4 {
        return None;
    }
    let length = bytes.uint_be(width)?;
    out.clear();
    let mut plain = flate2::read::ZlibDecoder::new(bytes.0).take(length + 1);
    plain.read_to_end(out).ok()?;
    (out.len() as u64 == length).then_some(())
}

#[cfg(test)]
mod tests {
    use super::super::table_map::tests::{table_map, wanted};
    use super::*;
    use crate::catalog::ColumnType;
    use crate::error::Recovery;

    #[derive(Default)]
    struct Lines(Vec<String>);

    impl Sink for Lines {
        fn begin(&mut self, begin: Begin<'_>) -> Result<()> {
            self.0.push(format!("begin {}", begin.txid));
            Ok(())
        }
        fn row(&mut self, row: RowEvent<'_>) -> Result<()> {
            self.0.push(format!("{:?} {:?}", row.op, row.after.or(row.before).expect("an image")[0]));
            Ok(())
        }
        fn truncate(&mut self, table: usize) -> Result<()> {
            self.0.push(format!("truncate {table}"));
            Ok(())
        }
        fn commit(&mut self, commit: Commit<'_>) -> Result<()> {
            self.0.push(format!("commit {}", commit.position));
            Ok(())
        }
        fn echo(&mut self, marker: &Marker, position: Position) -> Result<()> {
            self.0.push(format!("echo {} {position}", marker.seq));
            Ok(())
        }
        fn passed(&mut self, position: Position) -> Result<()> {
            self.0.push(format!("passed {position}"));
            Ok(())
        }
        fn full(&self) -> bool {
            false
        }
    }

    fn reader(flavour: Flavour) -> Reader {
        let start = match flavour {
            Flavour::Mysql => Position::Mysql {
                gtids: "01010101-0101-0101-0101-010101010101:1-4".parse().expect("valid"),
                binlog: BinlogPosition { file: "b.000001".into(), offset: 4 },
                server_uuid: "u".into(),
            },
            Flavour::Mariadb => Position::Mariadb { domains: BTreeMap::new(), binlog: BinlogPosition::default() },
        };
        let marker = TableName { schema: "anechoic".into(), name: "marker".into() };
        let table = wanted(&[("id", ColumnType::Int { bytes: 4, signed: true })]);
        Reader::new(flavour, "hq", &marker, &[table], &start, true).expect("of its kind")
    }

    fn gtid(number: u64) -> (u8, Vec<u8>) {
        (kind::GTID, [&[0][..], &[1; 16], &number.to_le_bytes(), &[2], &[0; 16], &[9, 0, 0, 0, 0, 0, 0]].concat())
    }

    fn mariadb_gtid(sequence: u64, flags: u8) -> (u8, Vec<u8>) {
        (kind::MARIADB_GTID, [&sequence.to_le_bytes()[..], &[0; 4], &[flags], &[0; 6]].concat())
    }

    fn query(text: &str) -> (u8, Vec<u8>) {
        (kind::QUERY, [&[0; 8][..], &[1], &[0; 4], b"d", &[0], text.as_bytes()].concat())
    }

    fn map(id: u64, table: &str) -> (u8, Vec<u8>) {
        (kind::TABLE_MAP, table_map(id, "d", table, &[(3, &[], "id")], &[1, 1, 0]))
    }

    fn insert(id: u64, value: u32) -> (u8, Vec<u8>) {
        let body = [&id.to_le_bytes()[..6], &[1, 0], &[2, 0], &[1], &[0xff], &[0], &value.to_le_bytes()].concat();
        (kind::WRITE_ROWS, body)
    }

    fn marker(agent: &str) -> [(u8, Vec<u8>); 2] {
        let columns: &[(u8, &[u8], &str)] = &[
            (15, &[200, 0], "agent"),
            (3, &[], "lane"),
            (254, &[0xfe, 128], "journal"),
            (8, &[], "epoch"),
            (8, &[], "seq"),
            (8, &[], "part"),
            (15, &[200, 0], "origin"),
            (15, &[200, 0], "txid"),
        ];
        let sized = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        let row = [
            &[0][..],
            &sized(agent),
            &0u32.to_le_bytes(),
            &sized("0f"),
            &1u64.to_le_bytes(),
            &77u64.to_le_bytes(),
            &0u64.to_le_bytes(),
            &sized("crm"),
            &sized("tx"),
        ];
        let mut body = [&7u64.to_le_bytes()[..6], &[1, 0], &[2, 0], &[8], &[0xff]].concat();
        row.iter().for_each(|part| body.extend(*part));
        [(kind::TABLE_MAP, table_map(7, "anechoic", "marker", columns, &[2, 1, 45])), (kind::WRITE_ROWS, body)]
    }

    fn xid() -> (u8, Vec<u8>) {
        (kind::XID, vec![0; 8])
    }

    fn feed(reader: &mut Reader, events: impl IntoIterator<Item = (u8, Vec<u8>)>) -> (Vec<String>, Result<()>) {
        let mut lines = Lines::default();
        for (kind, data) in events {
            let event = Event { kind, timestamp: 1, server_id: 3, log_pos: 0, flags: 0, data: &data };
            if let Err(error) = reader.event(event, &mut lines) {
                return (lines.0, Err(error));
            }
        }
        reader.pass(&mut lines).expect("lines take everything");
        (lines.0, Ok(()))
    }

    const UUID: &str = "01010101-0101-0101-0101-010101010101";

    #[test]
    fn wanted_rows_make_a_transaction_and_others_only_move_the_position() {
        let mut reader = reader(Flavour::Mysql);

        let (lines, done) = feed(
            &mut reader,
            [
                gtid(5),
                query("BEGIN"),
                map(8, "x"),
                insert(8, 1),
                map(9, "t"),
                insert(9, 2),
                xid(),
                gtid(6),
                query("GRANT x"),
            ],
        );

        done.expect("understood");
        let expected = [
            format!("begin {UUID}:5"),
            "Insert Value(Int(2))".to_owned(),
            format!("commit {UUID}:1-5"),
            format!("passed {UUID}:1-6"),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_the_journal_has_already_is_dropped_whole() {
        let mut reader = reader(Flavour::Mysql);

        let (lines, done) = feed(
            &mut reader,
            [gtid(4), query("BEGIN"), map(9, "t"), insert(9, 2), xid(), gtid(3), query("TRUNCATE t")],
        );

        done.expect("understood");
        assert_eq!(lines, [format!("passed {UUID}:1-4")]);
    }

    /// Known by the first row; a marker later in a transaction is not what an applier writes.
    #[test]
    fn an_echo_is_one_word_and_its_rows_stay_undecoded() {
        let rows = || [map(9, "t"), (kind::WRITE_ROWS, [&9u64.to_le_bytes()[..6], &[0xff; 9]].concat())];
        let mut reader = reader(Flavour::Mysql);

        let ours = [gtid(5), query("BEGIN")].into_iter().chain(marker("hq")).chain(rows()).chain([xid()]);
        let (lines, done) = feed(&mut reader, ours);
        done.expect("malformed rows were not looked at");
        assert_eq!(lines, [format!("echo 77 {UUID}:1-5")]);

        let strangers = [gtid(6), query("BEGIN")].into_iter().chain(marker("other")).chain(rows());
        let (_, decoded) = feed(&mut reader, strangers);
        assert_eq!(decoded.expect_err("these are decoded").recovery, Recovery::Stop);
    }

    #[test]
    fn mariadb_transactions_have_no_begin() {
        let mut reader = reader(Flavour::Mariadb);

        let (lines, done) = feed(
            &mut reader,
            [
                mariadb_gtid(1, 0x29),
                query("CREATE TABLE t (id int)"),
                mariadb_gtid(2, 0x04),
                map(9, "t"),
                insert(9, 1),
                xid(),
                mariadb_gtid(3, 0x28),
                query("CREATE TABLE u SELECT 1"),
                map(8, "u"),
                insert(8, 1),
                query("COMMIT"),
                mariadb_gtid(4, 0x01),
                query("TRUNCATE `t`"),
            ],
        );

        done.expect("understood");
        let expected =
            ["begin 0-3-2", "Insert Value(Int(1))", "commit 0-3-2", "begin 0-3-4", "truncate 0", "commit 0-3-4"];
        assert_eq!(lines, expected);
    }

    #[test]
    fn what_is_not_understood_stops() {
        let image = (kind::WRITE_ROWS, [&9u64.to_le_bytes()[..6], &[1, 0], &[2, 0], &[1], &[0], &[0]].concat());
        for (events, says) in [
            (vec![gtid(5), query("BEGIN"), query("INSERT INTO t VALUES (1)")], "binlog_format=ROW"),
            (vec![gtid(5), query("BEGIN"), map(9, "t"), image], "binlog_row_image=FULL"),
            (
                vec![gtid(5), query("BEGIN"), map(9, "t"), (kind::PARTIAL_UPDATE_ROWS, insert(9, 1).1)],
                "binlog_row_value",
            ),
            (vec![gtid(5), query("BEGIN"), map(9, "t"), insert(9, 1), query("ROLLBACK")], "InnoDB"),
            (vec![gtid(5), query("XA START X'61'"), map(9, "t"), insert(9, 1), (kind::XA_PREPARE, vec![0])], "XA"),
            (vec![gtid(5), query("BEGIN"), gtid(6)], "no end"),
            (vec![(kind::INCIDENT, vec![1, 0])], "incident"),
            (vec![(99, vec![])], "not known"),
            (vec![gtid(5), query("BEGIN"), insert(9, 1)], "without a table map"),
            (vec![gtid(5), query("BEGIN"), (kind::EXECUTE_LOAD_QUERY, vec![])], "binlog_format=ROW"),
        ] {
            let (_, done) = feed(&mut reader(Flavour::Mysql), events);

            let error = done.expect_err(says);
            assert_eq!(error.recovery, Recovery::Stop);
            assert!(error.full().contains(says), "{}", error.full());
            let at = error.position.expect("where the last whole transaction ends");
            assert_eq!(at.to_string(), format!("{UUID}:1-4"));
        }
    }

    #[test]
    fn events_that_the_log_marks_as_ignorable_are_passed_over() {
        let mut lines = Lines::default();
        let event = Event { kind: 200, timestamp: 0, server_id: 1, log_pos: 0, flags: IGNORABLE, data: &[] };

        reader(Flavour::Mysql).event(event, &mut lines).expect("ignorable");
    }

    #[test]
    fn offsets_outgrow_the_32_bits_of_the_log() {
        let mut offset = 4;
        for low in [1000, u32::MAX, 500, 400] {
            offset = widen(offset, low);
        }
        assert_eq!(offset, (2 << 32) + 400);
    }

    proptest::proptest! {
        #[test]
        fn malformed_events_never_panic(
            kind in proptest::num::u8::ANY, at in 0usize..60, byte in proptest::num::u8::ANY, cut in 0usize..30,
        ) {
            let mut reader = reader(Flavour::Mysql);
            let good = [gtid(5), query("BEGIN"), map(9, "t"), insert(9, 1)];
            for (index, (own, data)) in good.iter().enumerate() {
                let mut events = good[..index].to_vec();
                let mut data = data.clone();
                let at = at % data.len();
                data[at] = byte;
                data.truncate(data.len().saturating_sub(cut));
                events.push((*own, data.clone()));
                let _ = feed(&mut reader, events);
                let _ = feed(&mut reader, [(kind, data)]);
            }
        }
    }
}
