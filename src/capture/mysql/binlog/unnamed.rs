//! When a log that names no columns can be read by the catalog.
//!
//! Only if nothing was altered between the rows and when the catalog was read, and the log
//! itself says that: statements that alter tables are in it, as text. What lies before the
//! catalog is counted ahead, by a reader that goes through the log up to there and looks at
//! statements alone. What comes behind it makes the catalog old.
//!
//! ```text
//! start ── rows ── ALTER ── rows ── catalog read ── rows ── ALTER ── rows
//!          1 ahead          exact                   exact            read the catalog again
//! ```

use super::super::statement;
use super::super::table_map::Unnamed;
use super::Reader;
use crate::capture::WantedTable;
use crate::position::Position;

/// Statements that may have altered a wanted table, by its place.
#[derive(Debug, Default)]
pub struct Altered {
    /// Still to come before the table's catalog; `None`: not counted, nothing can be read.
    ahead: Option<Vec<u32>>,
    /// One came since the catalog was read.
    pub(super) behind: Vec<bool>,
    /// This reader counts, and looks at nothing else.
    pub scanning: bool,
}

impl Altered {
    pub fn unnamed<'t>(&self, table: usize, wanted: &'t WantedTable, seen: bool) -> Unnamed<'t> {
        let (Some(ahead), Some(now)) = (&self.ahead, wanted.now.as_deref().filter(|now| now.at.is_some())) else {
            return Unnamed::Refused;
        };
        let altered = if seen { ahead[table] > 0 } else { self.behind[table] };
        if altered { Unnamed::Altered } else { Unnamed::Catalog(now) }
    }
}

impl Reader {
    /// Counts what alters tables, for another reader of the same log.
    pub fn scanning(mut self) -> Self {
        self.altered.scanning = true;
        let tables = vec![0; self.tables.len()];
        self.reads_unnamed(tables)
    }

    /// What a scanning reader has counted, by table.
    pub fn counted(self) -> Vec<u32> {
        self.altered.ahead.unwrap_or_default()
    }

    /// Reads tables without names by their catalogs, but for what alters them in between.
    pub fn reads_unnamed(mut self, ahead: Vec<u32>) -> Self {
        // Between the catalog and a start behind it, who knows.
        let start = self.position();
        let past = |end: &Position| !end.reached(&start);
        let behind = |table: &WantedTable| table.now.iter().flat_map(|now| &now.at).any(past);
        self.altered.behind = self.tables.iter().map(behind).collect();
        self.altered.ahead = Some(ahead);
        self
    }

    /// A statement that is neither rows nor the frame of a transaction has passed.
    pub(super) fn note_altered(&mut self, text: &str, cut: bool) {
        let Some(mut ahead) = self.altered.ahead.take() else { return };
        for (index, ahead) in ahead.iter_mut().enumerate() {
            let table = &self.tables[index];
            // Of a text that is longer than what was kept, nobody knows.
            if !cut && !self.says(text, table) {
                continue;
            }
            match (self.is_seen(table), self.altered.scanning) {
                (true, true) => *ahead += 1,
                (true, false) => *ahead = ahead.saturating_sub(1),
                (false, _) => self.altered.behind[index] = true,
            }
        }
        self.altered.ahead = Some(ahead);
    }

    /// The text has a name of the table, also one that it has for a while.
    fn says(&self, text: &str, table: &WantedTable) -> bool {
        let also = table.now.iter().flat_map(|now| &now.also);
        let mut names = also.filter(|(_, until)| self.is_before(until)).map(|(name, _)| name).chain([&table.name]);
        names.any(|name| statement::names(text, &name.name))
    }
}
