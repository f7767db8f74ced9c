//! The source side: each database's own replication protocol, read as a stream of
//! begin, rows, commit in commit order, so that no transaction has to fit in memory.
//!
//! What every capture promises:
//! - rows reach the sink only between `begin` and `commit`, in the order of the log;
//! - an echo (first row: a row of the marker table with our agent id) is announced by
//!   `wants_echo`; its rows are passed over unless they are wanted;
//! - rows of tables and columns that are not wanted are never decoded nor handed on;
//! - what is not understood is an error with `Recovery::Stop`, never skipped; the position
//!   stays before it;
//! - nothing is acknowledged to the database before it came in through `acknowledged`.

mod altered;
pub mod mysql;
pub mod postgres;

pub use altered::{ALTERED, Moved, is_altered, is_unseen};

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use tokio::sync::watch;

use crate::catalog::{Column, ColumnType, TableName};
use crate::change::{Micros, Op};
use crate::error::Result;
use crate::marker::Marker;
use crate::position::Position;
use crate::value::Datum;

/// A table that a binding names, and what of it is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedTable {
    /// The sink's number for it.
    pub id: usize,
    pub name: TableName,
    /// In the order in which row events carry them.
    pub columns: Vec<WantedColumn>,
    /// Names of the columns that identify a row for the entity; they must be in every image.
    pub key: Vec<String>,
    /// The table as the catalog showed it, and when: what rows of another shape are judged by.
    /// `None`: they stop the flow.
    pub now: Option<Arc<TableNow>>,
}

/// A table as the catalog shows it now, for a log that shows it then.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TableNow {
    /// Where the log ended before the catalog was read; `None`: the server was not asked.
    pub at: Option<Position>,
    /// Every column, wanted or not.
    pub columns: Vec<String>,
    /// The same, as the catalog describes them: what a log that names no columns is read by.
    pub shape: Vec<Column>,
    /// Former names of wanted columns, by place.
    pub formerly: Vec<(usize, Vec<String>)>,
    /// The binding takes columns by their names: one that the catalog does not show matters.
    pub by_name: bool,
    /// Of such a binding, columns that wait for their like in another system: a row that has
    /// them must not be passed over.
    pub awaited: Vec<String>,
    /// PostgreSQL: the table's identity where it is the one that was bound before, so that its
    /// rows are its own under any name.
    pub oid: Option<u32>,
    /// Names that the table had for a while, and where the log ended when it had its own again:
    /// rows under them that were logged before are its rows.
    pub also: Vec<(TableName, Position)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct WantedColumn {
    pub name: String,
    /// From the catalog; the log's own type is checked against it.
    pub ty: ColumnType,
}

/// What a capture is told when it is made; it reconnects by being made anew.
#[derive(Debug, Clone)]
pub struct CaptureSpec {
    /// Agent id: names slots, publications and server ids, and tells our marker from others'.
    pub agent: String,
    pub marker: TableName,
    pub tables: Vec<WantedTable>,
    /// The journal has everything up to here; what the log repeats is dropped.
    pub start: Position,
    /// `identity` of the record that `start` came from: what the server must still be.
    pub identity: Arc<str>,
    /// Transactions that were prepared before `start` and are not decided, by [`Sink::prepare`].
    pub prepared: BTreeSet<Arc<str>>,
    /// Transactions that carry a replication origin, as ours then do, need not be sent, where the
    /// server can leave them out.
    pub without_origins: bool,
    /// Moves when the journal has synced; the only thing that may be acknowledged.
    pub acknowledged: watch::Receiver<Position>,
}

#[derive(Debug, Clone, Copy)]
pub struct Begin<'a> {
    pub txid: &'a str,
}

/// One row of a wanted table, datums in the order of [`WantedTable::columns`]. Values come in
/// the kind of their column ([`ColumnType::kind`]); padding, charset and labels are resolved.
#[derive(Debug, Clone, Copy)]
pub struct RowEvent<'a> {
    pub table: usize,
    pub op: Op,
    /// Update and delete; columns that a weak image leaves out are `NotSent`. For an update
    /// without an old image (PostgreSQL DEFAULT identity, key unchanged) it is `None`.
    pub before: Option<&'a [Datum<'a>]>,
    /// Insert and update. Unchanged TOAST is filled from the before image where that has it,
    /// else `NotSent`.
    pub after: Option<&'a [Datum<'a>]>,
    /// Column and reason, where a value of this row cannot be represented (a zero date): its
    /// datum is `NotSent`, and the row goes to quarantine instead of on.
    pub refused: Option<&'a str>,
}

#[derive(Debug, Clone)]
pub struct Commit<'a> {
    pub position: Position,
    pub txid: &'a str,
    pub committed_at: Micros,
}

/// What a capture feeds. Calls are cheap and never wait: when `full`, the capture returns from
/// `read` so that its owner can pass on what was collected.
pub trait Sink: Send {
    /// Takes back what began before and was not committed.
    fn begin(&mut self, begin: Begin<'_>) -> Result<()>;
    fn row(&mut self, row: RowEvent<'_>) -> Result<()>;
    /// TRUNCATE of a wanted table.
    fn truncate(&mut self, table: usize) -> Result<()>;
    fn commit(&mut self, commit: Commit<'_>) -> Result<()>;
    /// What began is prepared (XA) under this name, and waits to be decided. Told of every
    /// prepared transaction, with or without rows of ours.
    fn prepare(&mut self, xid: &str, position: Position) -> Result<()>;
    /// A prepared transaction is committed, at this place of the order, or rolled back.
    fn decide(&mut self, xid: &str, committed: bool, commit: Commit<'_>) -> Result<()>;
    /// A transaction of ours begins. `true`: its rows are wanted, and from `begin` to `commit` it
    /// is told like any other; if it has no wanted ones, by `echo` alone.
    fn wants_echo(&mut self, marker: &Marker) -> Result<bool>;
    /// A transaction of ours, whole, whose rows were passed over.
    fn echo(&mut self, marker: &Marker, position: Position) -> Result<()>;
    /// The log was read to here with nothing in flight: idle, or only foreign traffic passed.
    fn passed(&mut self, position: Position) -> Result<()>;
    /// The same, and the server waits until it is acknowledged. For a sink that keeps nothing
    /// back this is no different.
    fn awaited(&mut self, position: Position) -> Result<()> {
        self.passed(position)
    }
    fn full(&self) -> bool;
}

pub trait Capture: Send {
    /// Waits for the log, hands what arrived to `sink`, and returns when the buffered input is
    /// used up, the sink is full, or nothing arrived for a second or so (then `sink` may have
    /// got nothing). Must not be cancelled halfway; it returns by itself.
    fn read(&mut self, sink: &mut dyn Sink) -> impl Future<Output = Result<()>> + Send;
}
