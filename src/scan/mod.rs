//! Reads whole rows of a bound table, in the order of its key, as canonical inserts: what loads
//! copy and verification compares. No lock, no long transaction: a page is one short read.
//!
//! What is read is exactly what the capture would have yielded for the same row, because both
//! end in the same canonical form. A page knows what it may have missed: the database may have
//! a commit in its log that readers do not see yet ([`Scanner::begin`]).

mod mysql;
mod postgres;
mod text;

use std::sync::Arc;

use bytes::Bytes;

use crate::catalog::{ColumnType, TableName};
use crate::change::{Change, ChangeWriter, Changes, Op};
use crate::config::{Config, Engine};
use crate::error::{Error, Recovery, Result};
use crate::normalize::binding::{Binding, Transform};
use crate::position::Position;
use crate::schema::{EntityId, Schema, SystemId};
use crate::value::{Datum, Row, write_datum};

/// About this much is read at once: rows of it may have to be looked up elsewhere, and are
/// written in one transaction over rows that others write.
const PAGE_BYTES: usize = 1 << 20;
/// More rows are not read at once, however small they are.
const ROWS_MAX: usize = 8192;
/// Nothing is known of the rows before the first page.
const ROWS_FIRST: usize = 64;
/// Rows that are suddenly so much wider end a page.
const PAGE_TIMES: usize = 2;

/// Rows of one page.
#[derive(Debug, Default)]
pub struct Page {
    /// Encoded inserts, in key order. Rows outside the binding's filter are left out.
    pub rows: Bytes,
    pub count: u64,
    /// Rows looked at.
    pub seen: u64,
    /// The canonical key of the last row looked at.
    pub last: Option<Vec<u8>>,
    /// The table ends here.
    pub end: bool,
    /// Rows that have no canonical form: as far as it goes, and why.
    pub refused: Vec<(Bytes, String)>,
    /// PostgreSQL: transactions that were running, or not yet visible, when the page was read.
    pub running: Vec<u32>,
}

impl Page {
    /// All rows that are there, also those of which a part has no canonical form.
    pub fn all(&self) -> impl Iterator<Item = Change<'_>> {
        let refused = self.refused.iter().flat_map(|(change, _)| Changes::new(change));
        Changes::new(&self.rows).chain(refused)
    }
}

/// How a binding's rows become canonical.
#[derive(Debug, Clone)]
pub struct Plan {
    pub binding: Arc<Binding>,
    pub schema: Arc<Schema>,
    pub entity: EntityId,
    /// Per field of the entity the column that holds it.
    by_field: Vec<Option<usize>>,
}

impl Plan {
    pub fn new(binding: Arc<Binding>, schema: Arc<Schema>) -> Self {
        let entity = binding.entity;
        let fields = 0..schema.entity(entity).fields.len();
        let by_field = fields.map(|field| binding.columns.iter().position(|bound| bound.field == field)).collect();
        Plan { binding, schema, entity, by_field }
    }

    /// Appends the canonical row. A value without canonical form is left out; the reason is returned.
    fn encode<'d>(&self, datum: impl Fn(usize) -> Result<Datum<'d>>, out: &mut Vec<u8>) -> Result<Option<String>> {
        let mut refused = None;
        for column in &self.by_field {
            let Some(column) = *column else {
                write_datum(out, Datum::NotSent);
                continue;
            };
            let written = datum(column).and_then(|datum| self.binding.columns[column].to_canonical(datum, out));
            if let Err(error) = written {
                if error.recovery != Recovery::Quarantine {
                    return Err(error);
                }
                write_datum(out, Datum::NotSent);
                refused.get_or_insert(error.message);
            }
        }
        Ok(refused)
    }

    /// Bit i: field i is bound, and its value in this row has no canonical form.
    pub fn unread(&self, row: Row<'_>) -> u128 {
        let fields = self.by_field.iter().zip(row.iter()).enumerate();
        let unread = fields.filter(|(_, (column, datum))| column.is_some() && !datum.is_sent());
        unread.fold(0, |set, (field, _)| set | 1 << field)
    }

    /// What an array in this field holds.
    pub fn element(&self, field: usize) -> Option<&ColumnType> {
        let bound = &self.binding.columns[(*self.by_field.get(field)?)?];
        match (&bound.transform, &bound.column.ty) {
            (Transform::Array(element), _) => Some(element),
            (_, ColumnType::Array { element }) => Some(element),
            _ => None,
        }
    }

    /// Whether the binding's filter takes the row; what cannot be told belongs.
    pub fn belongs(&self, row: Row<'_>) -> bool {
        let Some(filter) = &self.binding.filter else { return true };
        let datums: Vec<Datum<'_>> = row.iter().collect();
        filter.fields().iter().any(|&field| !datums[field].is_sent()) || filter.matches(&datums) == Some(true)
    }
}

/// Collects the rows of one page.
struct Collector<'p> {
    plan: &'p Plan,
    writer: ChangeWriter,
    page: Page,
    row: Vec<u8>,
    /// Bytes of rows that were refused.
    refused: usize,
}

impl<'p> Collector<'p> {
    fn new(plan: &'p Plan) -> Self {
        Collector { plan, writer: ChangeWriter::default(), page: Page::default(), row: Vec::new(), refused: 0 }
    }

    fn add<'d>(&mut self, datum: impl Fn(usize) -> Result<Datum<'d>>) -> Result<()> {
        self.row.clear();
        let refused = self.plan.encode(datum, &mut self.row)?;
        let key_len = self.plan.binding.key_len;
        self.page.seen += 1;
        let key = Row(&self.row).prefix(key_len);
        if Row(key).iter().any(|datum| !matches!(datum, Datum::Value(_))) {
            let table = &self.plan.binding.table.name;
            return Err(Error::stop(
                format!("a row of {table} has a key that cannot be carried: {}", refused.unwrap_or_default()),
                "mend that row's key; rows are read in the order of their keys",
            ));
        }
        self.page.last = Some(key.to_vec());
        if let Some(reason) = refused {
            let change = self.change();
            self.refused += change.len() + reason.len();
            self.page.refused.push((change, reason));
        } else if self.plan.belongs(Row(&self.row)) {
            self.page.count += 1;
            self.writer.begin(self.plan.entity, Op::Insert);
            self.writer.end_before();
            self.writer.bytes.extend_from_slice(&self.row);
            self.writer.finish(&self.plan.schema);
        }
        Ok(())
    }

    fn change(&self) -> Bytes {
        let mut writer = ChangeWriter::default();
        writer.begin(self.plan.entity, Op::Insert);
        writer.end_before();
        writer.bytes.extend_from_slice(&self.row);
        writer.finish(&self.plan.schema);
        writer.take().into()
    }

    /// The page has more than it should, whatever is still to come.
    fn is_full(&self, size: PageSize) -> bool {
        self.writer.bytes.len() + self.refused > PAGE_TIMES * size.bytes
    }

    fn done(mut self, asked: usize) -> Page {
        self.page.end = self.page.seen < asked as u64;
        self.page.rows = self.writer.take().into();
        self.page
    }
}

/// A connection that reads rows of one system.
pub enum Scanner {
    Postgres(Box<postgres::PgScanner>),
    Mysql(Box<mysql::MyScanner>),
}

impl Scanner {
    pub async fn connect(config: &Config, system: SystemId) -> Result<Self> {
        let (agent, system) = (&config.agent.id, config.system(system));
        match system.engine {
            Engine::Postgres => {
                postgres::PgScanner::connect(&system.connect, agent).await.map(Box::new).map(Scanner::Postgres)
            }
            Engine::Mysql => mysql::MyScanner::connect(&system.connect).await.map(Box::new).map(Scanner::Mysql),
        }
    }

    /// Begins a read that sees every transaction up to `captured`; `false`: one of them is not
    /// visible yet. PostgreSQL cannot tell; there [`Page::running`] says what was not visible.
    pub async fn begin(&mut self, captured: &Position) -> Result<bool> {
        match self {
            Scanner::Postgres(scanner) => scanner.begin().await.map(|()| true),
            Scanner::Mysql(scanner) => scanner.begin(captured).await,
        }
    }

    /// The rows behind key `after` (a canonical key), at most as many as asked for, and fewer
    /// where they are wider than was thought.
    pub async fn page(&mut self, plan: &Plan, after: Option<&[u8]>, size: PageSize) -> Result<Page> {
        match self {
            Scanner::Postgres(scanner) => scanner.page(plan, after, size).await,
            Scanner::Mysql(scanner) => scanner.page(plan, after, size).await,
        }
    }

    /// The rows of these keys that are there.
    pub async fn by_keys(&mut self, plan: &Plan, keys: &[Row<'_>]) -> Result<Page> {
        match self {
            Scanner::Postgres(scanner) => scanner.by_keys(plan, keys).await,
            Scanner::Mysql(scanner) => scanner.by_keys(plan, keys).await,
        }
    }

    /// Ends the read. The log's end: everything that the read saw is before it.
    pub async fn finish(&mut self) -> Result<Position> {
        match self {
            Scanner::Postgres(scanner) => scanner.finish().await,
            Scanner::Mysql(scanner) => scanner.finish().await,
        }
    }

    /// Makes an idle log move, so that its end comes to be read.
    pub async fn nudge(&mut self) -> Result<()> {
        match self {
            Scanner::Postgres(scanner) => scanner.nudge().await,
            Scanner::Mysql(_) => Ok(()),
        }
    }

    /// Whether the table has no row at all.
    pub async fn is_empty(&mut self, name: &TableName) -> Result<bool> {
        let text = |quoted: String| format!("SELECT EXISTS (SELECT 1 FROM {quoted} LIMIT 1)");
        match self {
            Scanner::Postgres(scanner) => scanner.exists(&text(crate::apply::sql::quoted_table(name))).await,
            Scanner::Mysql(scanner) => scanner.exists(&text(crate::apply::sql::backquoted_table(name))).await,
        }
        .map(|exists| !exists)
    }

    /// What the server's statistics say; `None` where they say nothing.
    pub async fn estimate(&mut self, plan: &Plan) -> Result<Option<u64>> {
        match self {
            Scanner::Postgres(scanner) => scanner.estimate(plan).await,
            Scanner::Mysql(scanner) => scanner.estimate(plan).await,
        }
    }
}

/// How many rows the next page takes: about so many bytes, carefully where rows are wide.
#[derive(Debug, Clone, Copy)]
pub struct PageSize {
    rows: usize,
    bytes: usize,
}

impl Default for PageSize {
    fn default() -> Self {
        PageSize::of(PAGE_BYTES)
    }
}

impl PageSize {
    pub fn of(bytes: usize) -> Self {
        PageSize { rows: ROWS_FIRST, bytes }
    }

    pub fn rows(self) -> usize {
        self.rows
    }

    /// Learns from a page.
    pub fn learn(&mut self, page: &Page) {
        let Some(width) = page.rows.len().checked_div(page.count.max(1) as usize).filter(|w| *w > 0) else { return };
        let rows_max = ROWS_MAX * self.bytes.div_ceil(PAGE_BYTES);
        self.rows = (self.bytes / width).clamp(1, (self.rows * 4).min(rows_max));
    }

    /// No more than this.
    #[must_use]
    pub fn at_most(self, rows: usize) -> Self {
        PageSize { rows: self.rows.min(rows.max(1)), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_grow_towards_a_mebibyte_and_shrink_at_once() {
        let page = |count: u64, bytes: usize| Page { count, rows: vec![0; bytes].into(), ..Page::default() };
        let mut size = PageSize::default();

        size.learn(&page(64, 64 * 100));
        assert_eq!(size.rows(), 256);
        (0..5).for_each(|_| size.learn(&page(64, 64 * 100)));
        assert_eq!(size.rows(), ROWS_MAX);
        size.learn(&page(10, 10 << 20));
        assert_eq!(size.rows(), 1);
    }

    #[test]
    fn larger_pages_take_more_rows() {
        let page = Page { count: 64, rows: vec![0; 64 * 100].into(), ..Page::default() };
        let mut size = PageSize::of(4 << 20);

        (0..9).for_each(|_| size.learn(&page));
        assert_eq!(size.rows(), 4 * ROWS_MAX);
    }
}
