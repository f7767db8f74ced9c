//! Rows: of which table they are, whether they are wanted, ours, or nobody's.
//!
//! A table map gives a number a meaning until it gives it another; the rows events behind it
//! say the number alone. The first rows of a transaction may be the marker, and then the
//! whole is an echo.

use super::super::bytes::{Bytes, inflate};
use super::super::decode::{self, Cell, Parts, Scratch};
use super::super::event::{Event, kind};
use super::super::table_map::{self, Layout, Unnamed};
use super::{Id, Mapped, Reader, malformed};
use crate::capture::altered::seen;
use crate::capture::{RowEvent, Sink, WantedTable};
use crate::catalog::TableName;
use crate::change::Op;
use crate::error::{Error, Result};
use crate::marker::Marker;
use crate::position::Position;
use crate::value::{Datum, Value};

/// Memory of unpacked rows that is worth keeping; a larger one was for a large row.
const INFLATED_KEPT: usize = 1 << 20;

impl Reader {
    pub(super) fn table_map(&mut self, data: &[u8]) -> Result<()> {
        if self.altered.scanning || self.transaction.as_ref().is_some_and(super::Transaction::is_passed_over) {
            return Ok(());
        }
        let head = table_map::head(data, self.flavour).ok_or_else(|| malformed("table map"))?;
        match self.mapped.get(&head.id) {
            Some(Mapped::Marker { map, .. } | Mapped::Wanted { map, .. }) if map == data => return Ok(()),
            _ => {}
        }
        let named = |name: &TableName| name.schema == head.schema && name.name == head.table;
        let mapped = if named(&self.marker.name) {
            Mapped::Marker {
                map: data.to_vec(),
                layout: table_map::layout(head, &self.marker, false, Unnamed::Marker)?,
            }
        } else if let Some(table) = self.tables.iter().position(|table| named(&table.name)).or_else(|| self.other(head))
        {
            let wanted = &self.tables[table];
            let seen = self.is_seen(wanted);
            let layout = table_map::layout(head, wanted, seen, self.altered.unnamed(table, wanted, seen))?;
            Mapped::Wanted { map: data.to_vec(), layout, table }
        } else {
            Mapped::Unwanted
        };
        self.mapped.insert(head.id, mapped);
        Ok(())
    }

    /// The wanted table that has this name for a while.
    fn other(&self, head: table_map::Head<'_>) -> Option<usize> {
        if self.tables.iter().all(|table| table.now.as_ref().is_none_or(|now| now.also.is_empty())) {
            return None;
        }
        let name = TableName { schema: head.schema.to_owned(), name: head.table.to_owned() };
        self.tables.iter().position(|table| self.is_also(table, &name))
    }

    /// Rows under that name are the table's, in the transaction in flight.
    pub(super) fn is_also(&self, table: &WantedTable, name: &TableName) -> bool {
        let also = table.now.iter().flat_map(|now| &now.also);
        also.into_iter().any(|(also, until)| also == name && self.is_before(until))
    }

    /// The transaction in flight was logged before the table's catalog was read.
    pub(super) fn is_seen(&self, table: &WantedTable) -> bool {
        seen(table.now.as_deref(), |end| self.is_before(end))
    }

    pub(super) fn is_before(&self, end: &Position) -> bool {
        let Some(transaction) = &self.transaction else { return false };
        match (&transaction.id, end) {
            (Id::Mysql { source, number }, Position::Mysql { gtids, .. }) => gtids.contains(source, *number),
            (Id::Mariadb { domain, gtid }, Position::Mariadb { domains, .. }) => {
                domains.get(domain).is_some_and(|end| gtid.sequence <= end.sequence)
            }
            (Id::Anonymous { binlog }, Position::Mysql { binlog: end, .. }) => !binlog.reached(end),
            _ => false,
        }
    }

    pub(super) fn rows(&mut self, event: Event<'_>, sink: &mut dyn Sink) -> Result<()> {
        if self.altered.scanning {
            return Ok(());
        }
        let Some(transaction) = &mut self.transaction else { return Err(malformed("rows outside of a transaction")) };
        if transaction.is_passed_over() {
            return Ok(());
        }
        let first = !std::mem::replace(&mut transaction.rows_seen, true);
        let xa = transaction.xa;
        let id = Bytes(event.data).uint(6).ok_or_else(|| malformed("rows"))?;
        match self.mapped.get(&id) {
            Some(Mapped::Wanted { .. }) => self.wanted_rows(id, event, sink),
            // We commit in one phase: what is prepared is not ours.
            Some(Mapped::Marker { .. }) if first && !xa => {
                let marker = self.marker_row(id, event)?;
                if let (Some(marker), Some(transaction)) = (marker, &mut self.transaction) {
                    transaction.echo_wanted = sink.wants_echo(&marker)?;
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
        let mut rows = rows.ok_or_else(|| malformed("rows"))?;
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
        if inflated.capacity() <= INFLATED_KEPT {
            self.inflated = inflated;
        }
        Ok(())
    }

    /// The marker that the event's first row writes, where it is ours.
    fn marker_row(&mut self, id: u64, event: Event<'_>) -> Result<Option<Marker>> {
        let Some(Mapped::Marker { layout, .. }) = self.mapped.get(&id) else { return Ok(None) };
        let mut inflated = Vec::new();
        let mut rows = RowsEvent::parse(event, &mut inflated).ok_or_else(|| malformed("rows"))?;
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
    /// JSON documents of the after image may be told by what changed in them.
    parts: bool,
    body: Bytes<'a>,
}

impl<'a> RowsEvent<'a> {
    fn parse(event: Event<'a>, inflated: &'a mut Vec<u8>) -> Option<Self> {
        use kind::*;
        let op = match event.kind {
            WRITE_ROWS | WRITE_ROWS_V1 | WRITE_ROWS_COMPRESSED | WRITE_ROWS_COMPRESSED_V1 => Op::Insert,
            UPDATE_ROWS | UPDATE_ROWS_V1 | UPDATE_ROWS_COMPRESSED | UPDATE_ROWS_COMPRESSED_V1 => Op::Update,
            PARTIAL_UPDATE_ROWS => Op::Update,
            DELETE_ROWS | DELETE_ROWS_V1 | DELETE_ROWS_COMPRESSED | DELETE_ROWS_COMPRESSED_V1 => Op::Delete,
            _ => return None,
        };
        let parts = event.kind == PARTIAL_UPDATE_ROWS;
        let mut bytes = Bytes(event.data);
        bytes.skip(8)?;
        let extended = matches!(event.kind, WRITE_ROWS..=DELETE_ROWS | WRITE_ROWS_COMPRESSED..=DELETE_ROWS_COMPRESSED);
        if extended || parts {
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
        Some(RowsEvent { op, present, present_after, parts, body: bytes })
    }

    fn images(&self) -> impl Iterator<Item = &'a [u8]> {
        std::iter::once(self.present).chain(self.present_after)
    }

    /// One row: one image, or two of an update.
    fn decode(&mut self, layout: &Layout, scratch: &mut Scratch, cells: &mut Vec<Cell<'a>>) -> Option<()> {
        let before = self.body;
        decode::image(layout, self.present, &mut self.body, scratch, cells)?;
        if let Some(present) = self.present_after {
            let parts = match self.parts {
                true => Some(Parts::read(layout, &mut self.body, before, self.present)?),
                false => None,
            };
            decode::image_of(layout, present, parts, &mut self.body, scratch, cells)?;
        }
        // A row takes at least its null bitmap: no endless loop over a table without columns.
        (self.body.0.len() < before.0.len()).then_some(())
    }
}
