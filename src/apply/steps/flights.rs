//! Full batches: written while the next one is prepared, several at once where the target has connections
//! for them.
//!
//! ```text
//! connection 0   [ batch 1: write ───── commit ]  [ batch 3: write ──── ∙ commit ]
//! connection 1        [ batch 2: write ────── ∙ commit ]  [ batch 4: write …
//!                                             └ waits for its turn: commits are in the journal's order
//! ```
//!
//! What is in the target is so at any time a beginning of the journal, as with one connection. Batches that are
//! under way at once write different keys. What else may lie between their rows (a foreign key, another
//! unique column) makes the server refuse the later one, or wait; it is repeated then when it is its
//! turn ([`crate::apply::lanes`]), and only what is refused then is. Then nothing that was submitted counts
//! any more: it is read again, and up to the refused batch each is written alone.
//!
//! Alone is also written what needs the rows that are there or must be synced first (filtered tables, retries, held
//! keys), what is larger than a batch, and with several connections tables with triggers, which may read anything.

use super::{Group, Micros, State, Steps, Work};

impl Steps {
    /// Some batch was submitted, and has not landed.
    pub(super) fn is_aloft(&self) -> bool {
        !self.flying.is_empty()
    }

    /// Batches that were submitted and have not landed.
    pub fn aloft(&self) -> usize {
        self.flying.len()
    }

    /// The statements of the batch that is submitted.
    pub fn take_groups(&mut self) -> Vec<Group> {
        std::mem::take(&mut self.work.groups).into()
    }

    /// Nothing more joins the batch in hand.
    pub(super) fn close(&mut self, now: Micros) {
        self.work.closed = true;
        // An entry that is larger than a batch may be is not in memory beside another one.
        let large = self.work.bytes > self.limits.bytes;
        self.work.alone = large || self.work.to() <= self.alone_until;
        if !self.work.alone {
            if let Err(error) = self.planned(now) {
                return self.stop(error);
            }
            let several = self.limits.connections > 1;
            let reads = |group: &Group| group.binding.filter.is_some() || several && group.binding.table.triggers;
            self.work.alone = !self.keys.is_quiet() || self.work.groups.iter().any(reads);
        }
        self.launch();
    }

    /// What is to be done with a closed batch: it waits for those that it cannot be beside.
    fn launch(&mut self) {
        let waits = match self.work.alone {
            true => self.is_aloft(),
            false => self.aloft() >= self.limits.connections || self.meets_another(),
        };
        self.state = match (waits, self.work.alone) {
            (true, _) => State::Landing,
            (false, true) => State::Beginning,
            (false, false) => State::Submitting,
        };
    }

    /// Whether the batch in hand writes a key that one under way writes, too.
    fn meets_another(&self) -> bool {
        self.flying.iter().any(|work| self.work.keys.keys().any(|key| work.keys.contains_key(key)))
    }

    pub(super) fn submitted(&mut self, now: Micros) {
        self.flying.push_back(std::mem::take(&mut self.work));
        self.state = State::Reading;
        self.take_stashed(now);
    }

    /// The oldest batch under way is in the target.
    pub(super) fn landed(&mut self) {
        let mut work = self.flying.pop_front().expect("lands only while one is under way");
        self.count(&mut work);
        self.ordinal += work.progress.addressed;
        self.attempt = 0;
        self.move_on(&work);
        if self.work.closed {
            return self.launch();
        }
        if !self.is_aloft() && self.work.entries.is_empty() {
            self.passed = self.read.max(self.passed);
        }
        self.state = State::Reading;
    }

    /// The oldest batch was refused, and none of those under way is in the target.
    pub(super) fn grounded(&mut self) {
        self.alone_until = self.flying.front().map_or(0, Work::to);
        self.flying.clear();
        self.keys.rolled_back();
        self.work = Work::default();
        self.stashed = None;
        self.read = self.passed;
        self.state = State::Seeking;
    }
}
