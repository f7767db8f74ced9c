//! The target side: one applier per system follows the journal and writes, marker first.

pub mod mysql;
pub mod postgres;
pub mod sql;

pub mod applier;
pub mod batch;
mod filter;
mod guess;
mod keys;
pub mod lanes;
mod patience;
pub mod steps;

use std::cmp::Reverse;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::catalog::TableName;
use crate::error::{Error, Result};
use crate::marker::Marker;
use crate::normalize::binding::Binding;
use crate::value::Row;

/// What a target is told when it is made.
#[derive(Debug, Clone)]
pub struct TargetSpec {
    pub agent: String,
    /// Name of the system that is written to.
    pub system: Arc<str>,
    /// Which applying connection this is, of how many. Each has a row of its own.
    pub lane: u32,
    pub lanes: u32,
    pub marker: TableName,
    /// Identity of our journal: what a marker row that has to be created is given.
    pub journal: u128,
    /// Tells this process from another agent of the same id: [`instance`].
    pub instance: u64,
}

/// A random number of this process. A session lock that is held by a connection of the same
/// instance is our own, left behind by a cut, and is taken over; any other is another agent.
pub fn instance() -> u64 {
    static INSTANCE: OnceLock<u64> = OnceLock::new();
    *INSTANCE.get_or_init(rand::random)
}

/// Code of the error that says: the marker is not where we left it, another writer moved it or
/// a commit of unknown outcome had succeeded. `open` tells which; nothing was committed.
pub const FENCED: &str = "fenced";

pub fn is_fenced(error: &Error) -> bool {
    error.code.as_deref() == Some(FENCED)
}

/// Code of the error that says: another agent of the same id is at work there.
pub const LOCKED: &str = "locked";

pub fn is_locked(error: &Error) -> bool {
    error.code.as_deref() == Some(LOCKED)
}

fn fenced(marker: &TableName, expected: &Marker) -> Error {
    Error::retry(format!(
        "the marker in {marker} is no longer at seq {} of epoch {}: it was moved by another writer",
        expected.seq, expected.epoch
    ))
    .code(FENCED)
}

fn not_connected() -> Error {
    Error::retry("not connected")
}

/// The marker that says how far the agent is. Commits are in journal order whichever lane they come from.
fn highest(spec: &TargetSpec, rows: &[Marker]) -> Result<Marker> {
    rows.iter().max_by_key(|row| (row.seq, row.part, Reverse(row.lane))).cloned().ok_or_else(|| gone(spec))
}

/// The row of the own lane.
fn own(spec: &TargetSpec, rows: &[Marker]) -> Result<Marker> {
    rows.iter().find(|row| row.lane == spec.lane).cloned().ok_or_else(|| gone(spec))
}

fn gone(spec: &TargetSpec) -> Error {
    Error::retry(format!("the row of the agent in {} was removed while it was being read", spec.marker))
}

/// What becomes of the rows of one [`TableRows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Write {
    /// Exists: update the carried columns; does not: create. By the entity's key only.
    Upsert,
    /// Entities without a key.
    Insert,
    /// By key; a row that is not there is no error.
    Delete,
}

/// Rows of one table for one statement. Keys are distinct.
#[derive(Debug)]
pub struct TableRows<'a> {
    pub binding: &'a Binding,
    pub write: Write,
    /// Canonical rows (one datum per field of the entity); for `Delete` only the key is read.
    /// All carry the same fields: those for which `carried` has a bit.
    pub rows: &'a [Row<'a>],
    /// Bit i: `binding.columns[i]` is written. Key columns always are.
    pub carried: u128,
    /// Of these, the ones whose datums are differences ([`Datum::Added`](crate::value::Datum)), added
    /// to what the row has; a new row is given them as they are.
    pub added: u128,
    /// Most likely not there yet: inserted, or copied by a load. A guess that only decides what is
    /// tried first.
    pub fresh: bool,
}

/// A database that is written to. Statements may be held back and sent together with the
/// commit in one flight; whatever a call returns `Ok` for is only certain after `commit`.
pub trait Target: Send {
    /// Connects afresh, takes the agent's session lock (60 s, then refuses naming the holder),
    /// raises the epoch on all rows of the agent (which waits for what is in flight), and
    /// returns the marker as it stands then: the highest of these rows. Creates those of
    /// its lanes that are not there (seq 0).
    fn open(&mut self) -> impl Future<Output = Result<Marker>> + Send;

    /// The agent's rows as they stood when it was opened.
    fn rows(&self) -> Vec<Marker>;

    /// Connects afresh, beside a connection that was opened, has the lock, and left these rows.
    fn join(&mut self, rows: Vec<Marker>) -> impl Future<Output = Result<()>> + Send;

    /// Begins a transaction with the marker as first statement: a compare-and-set from the
    /// current seq and epoch to `next`, which fails where another agent has moved it.
    fn begin(&mut self, next: &Marker) -> impl Future<Output = Result<()>> + Send;

    /// One statement (or a few) for rows of one table. An error of any kind leaves the
    /// transaction unusable until `rollback`.
    fn write(&mut self, rows: &TableRows<'_>) -> impl Future<Output = Result<()>> + Send;

    /// The same behind a savepoint: an error with `Recovery::Quarantine` leaves the
    /// transaction usable, as if the rows had never been sent.
    fn write_alone(&mut self, rows: &TableRows<'_>) -> impl Future<Output = Result<()>> + Send;

    /// Reads rows by key, locked for update: canonical rows in the order of `keys`, `None`
    /// where there is none. For filtered bindings.
    fn read(
        &mut self,
        binding: &Binding,
        keys: &[Row<'_>],
    ) -> impl Future<Output = Result<Vec<Option<Vec<u8>>>>> + Send;

    /// The row whose columns `columns` (places in the binding) have these values, canonical; not locked.
    fn holder(
        &mut self,
        binding: &Binding,
        columns: &[usize],
        values: Row<'_>,
    ) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send;

    /// Sends what was held back, and waits until all of it is written. Errors as those of `write`.
    fn flush(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// Sends what was held back, and commits. `Quarantine`: a row of the batch was refused and
    /// nothing was committed (`rollback`, then replay). `Retry`: the outcome may be unknown;
    /// `open` tells.
    fn commit(&mut self) -> impl Future<Output = Result<()>> + Send;

    fn rollback(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// For how long the log's reader was not shown the marker as it is, where it is not sent what is
    /// written.
    fn hidden(&self) -> Option<Duration> {
        None
    }

    /// Between transactions: has the log's reader see the marker as it is.
    fn show(&mut self) -> impl Future<Output = Result<()>> + Send {
        async { Ok(()) }
    }
}
