//! The marker row: our echo when it is read, our checkpoint when it is written.
//!
//! One row per agent and applying connection (lane). It is the first statement of every
//! transaction that the agent commits, so ledger, echo filter and causal clock are one row.

use std::sync::{Arc, Mutex};

use crate::position::Seq;

/// Format version of the row, of the journal's frames and of the index checkpoint.
pub const FORMAT: u16 = 1;

/// Columns, in this order, in every engine: agent text, lane int, journal text (32 hex
/// digits), epoch bigint, seq bigint NOT NULL, part bigint, origin text, txid text,
/// applied_at timestamp with microseconds, format int. Primary key (agent, lane).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    pub agent: String,
    pub lane: u32,
    /// Identity of the journal whose entries `seq` counts.
    pub journal: u128,
    /// Raised at every start and reconnect: only the newest writer's compare-and-set succeeds.
    pub epoch: u64,
    /// The last entry that is applied or skipped in this system.
    pub seq: Seq,
    /// Changes of entry `seq + 1` already applied, where `max_transaction_rows` splits one.
    pub part: u64,
    /// System and transaction of the last entry applied, for people.
    pub origin: String,
    pub txid: String,
}

/// Of a system whose log is read without our own transactions: how far they have gone. A place in
/// that log goes with the marker that it showed last only while none of ours lies between.
#[derive(Debug, Clone, Default)]
pub struct Unshown(Arc<Mutex<Option<(Seq, u64)>>>);

impl Unshown {
    /// Seq and part that the marker has, or is about to be given by what the log will not show.
    pub fn reaches(&self, seq: Seq, part: u64) {
        *self.0.lock().expect("nobody panics while holding it") = Some((seq, part));
    }

    /// Whether the log, read up to now, had nothing of ours behind the marker with this seq. Unknown, and so
    /// not, until there was an applier.
    pub fn ends_at(&self, seq: Seq) -> bool {
        self.0.lock().expect("nobody panics while holding it").is_some_and(|reached| reached <= (seq, 0))
    }
}

/// The columns by name, in table order.
pub const COLUMNS: [&str; 10] =
    ["agent", "lane", "journal", "epoch", "seq", "part", "origin", "txid", "applied_at", "format"];
