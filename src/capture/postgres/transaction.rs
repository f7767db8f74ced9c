//! From messages to what the sink is told: transactions with rows, echoes, passed positions.
//!
//! Pure: bytes in, calls out. A transaction begins at the sink with its first wanted row; one
//! without any is foreign traffic. One whose first row is our marker is an echo, and the rest
//! of it is passed over undecoded, unless the sink wants to see it. What ended at or before the start has been journaled
//! already and is dropped (exactly once).

use std::collections::HashMap;
use std::fmt::Write;

use super::decode::{self, Trouble};
use super::pgoutput::{self, Envelope, Field, Malformed, Message, Old, Relation, Tuple};
use super::relation::{self, Mapping, MarkerColumns, Wanted};
use crate::capture::{Begin, CaptureSpec, Commit, RowEvent, Sink, WantedTable};
use crate::catalog::TableName;
use crate::change::Op;
use crate::error::{Error, Result};
use crate::marker::Marker;
use crate::position::{Lsn, Position};
use crate::value::Datum;

/// How far into a transaction we are.
#[derive(Debug)]
enum Stage {
    /// No row yet.
    Fresh,
    /// Only rows that nobody wants.
    Foreign,
    /// The sink has begun it.
    Wanted,
    /// Ours.
    Echo(Box<Marker>, EchoRows),
    /// The journal has it already.
    Repeated,
}

/// What becomes of the rows of an echo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EchoRows {
    PassedOver,
    /// The sink wants them; none came yet.
    Wanted,
    /// The sink has begun it.
    Begun,
}

/// What a message did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The sink got a whole transaction.
    Delivered,
    /// Keepalive; the server waits for an answer where `reply`.
    Keepalive {
        wal_end: Lsn,
        reply: bool,
    },
    Other,
}

pub struct Transactions {
    agent: String,
    marker: TableName,
    wanted: Vec<WantedTable>,
    relations: HashMap<u32, Mapping>,
    described: Described,
    start: Lsn,
    current: Option<Stage>,
    /// Where the commit record of the transaction in flight lies.
    final_lsn: Lsn,
    txid: String,
    /// The log was read to here with nothing in flight.
    passed: Lsn,
    /// What of that the sink knows.
    told: Lsn,
    scratch: Scratch,
}

/// Which relations were described since the last row. Of a partition that is published under its
/// table's name the server describes the table, then the partition, and right behind them comes a
/// row under the table's name.
#[derive(Default)]
struct Described {
    first: Option<u32>,
    second: Option<Relation>,
}

/// Memory that every row uses anew.
#[derive(Default)]
struct Scratch {
    before: Vec<Datum<'static>>,
    after: Vec<Datum<'static>>,
    picked_before: Vec<Datum<'static>>,
    picked_after: Vec<Datum<'static>>,
    refused: String,
}

impl Transactions {
    pub fn new(spec: &CaptureSpec, start: Lsn) -> Transactions {
        Transactions {
            agent: spec.agent.clone(),
            marker: spec.marker.clone(),
            wanted: spec.tables.clone(),
            relations: HashMap::new(),
            described: Described::default(),
            start,
            current: None,
            final_lsn: start,
            txid: String::new(),
            passed: start,
            told: start,
            scratch: Scratch::default(),
        }
    }

    /// Where errors happened: the last position that is complete.
    pub fn position(&self) -> Lsn {
        self.passed
    }

    /// The body of one CopyData message.
    pub fn handle(&mut self, bytes: &mut [u8], sink: &mut dyn Sink) -> Result<Event> {
        match pgoutput::envelope(bytes).map_err(malformed)? {
            Envelope::Data(message) => self.message(message, sink),
            Envelope::Keepalive { wal_end, reply } => {
                if self.current.is_none() {
                    self.passed = self.passed.max(wal_end);
                }
                Ok(Event::Keepalive { wal_end, reply })
            }
        }
    }

    /// Something passed that the sink does not know of.
    pub fn passed_pending(&self) -> bool {
        self.current.is_none() && self.passed > self.told
    }

    /// The server wants to know what is on disk, of all that it sent.
    pub fn tell_awaited(&mut self, sink: &mut dyn Sink) -> Result<()> {
        if self.current.is_none() {
            self.told = self.passed;
            sink.awaited(Position::Postgres { lsn: self.passed })?;
        }
        Ok(())
    }

    pub fn tell_passed(&mut self, sink: &mut dyn Sink) -> Result<()> {
        if self.passed_pending() {
            self.told = self.passed;
            sink.passed(Position::Postgres { lsn: self.passed })?;
        }
        Ok(())
    }

    fn message(&mut self, bytes: &mut [u8], sink: &mut dyn Sink) -> Result<Event> {
        let kind = bytes.first().copied().unwrap_or_default();
        if kind != b'R' && kind != b'Y' {
            self.partition_of(bytes)?;
        }
        if matches!(kind, b'I' | b'U' | b'D' | b'T') {
            match &mut self.current {
                Some(Stage::Echo(_, EchoRows::PassedOver) | Stage::Repeated) => return Ok(Event::Other),
                Some(_) => {}
                None => return Err(malformed(Malformed("a row outside of a transaction"))),
            }
        }
        if matches!(kind, b'I' | b'U' | b'D') {
            return self.row(bytes, sink).map(|()| Event::Other);
        }
        match pgoutput::message(bytes).map_err(malformed)? {
            Message::Begin { final_lsn, xid } => self.begin(final_lsn, xid).map(|()| Event::Other),
            Message::Commit { end_lsn, committed_at } => self.commit(end_lsn, committed_at, sink),
            Message::Relation(relation) => {
                let before = |end: &Position| matches!(end, Position::Postgres { lsn } if self.final_lsn < *lsn);
                let mut mapping = relation::map(&relation, &self.wanted, &self.marker, before)?;
                let known = self.relations.remove(&relation.id);
                if let (Mapping::Wanted(now), Some(Mapping::Wanted(before))) = (&mut mapping, known) {
                    now.after(before);
                }
                self.relations.insert(relation.id, mapping);
                match self.described.first {
                    Some(first) if first != relation.id => self.described.second = Some(relation),
                    _ => self.described = Described { first: Some(relation.id), second: None },
                }
                Ok(Event::Other)
            }
            Message::Truncate { relations } => self.truncate(&relations, sink).map(|()| Event::Other),
            Message::Insert { .. } | Message::Update { .. } | Message::Delete { .. } | Message::Ignored => {
                Ok(Event::Other)
            }
        }
    }

    /// Whether what was described last is a partition of the table that this row is of.
    fn partition_of(&mut self, bytes: &[u8]) -> Result<()> {
        if self.described.first.is_none() {
            return Ok(());
        }
        let Described { first, second } = std::mem::take(&mut self.described);
        let (Some(table), Some(partition), Some(b'I' | b'U' | b'D')) = (first, second, bytes.first()) else {
            return Ok(());
        };
        if pgoutput::row_relation(bytes).map_err(malformed)? == table
            && let Some(Mapping::Wanted(wanted)) = self.relations.get_mut(&table)
        {
            wanted.partition(&partition);
        }
        Ok(())
    }

    fn begin(&mut self, final_lsn: Lsn, xid: u32) -> Result<()> {
        if self.current.is_some() {
            return Err(malformed(Malformed("a transaction inside of another")));
        }
        // The start is the end of some record, so a commit record before it ended by then.
        self.final_lsn = final_lsn;
        self.current = Some(if final_lsn < self.start { Stage::Repeated } else { Stage::Fresh });
        self.txid.clear();
        let mut digits = itoa::Buffer::new();
        self.txid.push_str(digits.format(xid));
        Ok(())
    }

    fn commit(&mut self, end_lsn: Lsn, committed_at: i64, sink: &mut dyn Sink) -> Result<Event> {
        let position = Position::Postgres { lsn: end_lsn };
        let Some(stage) = self.current.take() else {
            return Err(malformed(Malformed("a commit outside of a transaction")));
        };
        if matches!(stage, Stage::Repeated) != (end_lsn <= self.start) {
            return Err(malformed(Malformed("a commit that lies on both sides of the start")));
        }
        self.passed = self.passed.max(end_lsn);
        match stage {
            Stage::Repeated | Stage::Fresh | Stage::Foreign => return Ok(Event::Other),
            Stage::Wanted | Stage::Echo(_, EchoRows::Begun) => {
                sink.commit(Commit { position, txid: &self.txid, committed_at })?;
            }
            Stage::Echo(marker, EchoRows::PassedOver | EchoRows::Wanted) => sink.echo(&marker, position)?,
        }
        self.told = self.passed;
        Ok(Event::Delivered)
    }

    /// Tells the sink of the transaction, once.
    fn begun(stage: &mut Stage, txid: &str, sink: &mut dyn Sink) -> Result<()> {
        match stage {
            Stage::Wanted | Stage::Echo(_, EchoRows::Begun) => return Ok(()),
            Stage::Echo(_, rows) => *rows = EchoRows::Begun,
            Stage::Fresh | Stage::Foreign | Stage::Repeated => *stage = Stage::Wanted,
        }
        sink.begin(Begin { txid })
    }

    fn foreign(stage: &mut Stage) {
        if matches!(stage, Stage::Fresh) {
            *stage = Stage::Foreign;
        }
    }

    fn truncate(&mut self, relations: &[u32], sink: &mut dyn Sink) -> Result<()> {
        let Some(stage) = &mut self.current else { return Ok(()) };
        for id in relations {
            match self.relations.get(id) {
                Some(Mapping::Wanted(wanted)) => {
                    Self::begun(stage, &self.txid, sink)?;
                    for target in &wanted.targets {
                        sink.truncate(target.table)?;
                    }
                }
                Some(_) => Self::foreign(stage),
                None => return Err(malformed(Malformed("a truncate of an unknown relation"))),
            }
        }
        Ok(())
    }

    fn row(&mut self, bytes: &mut [u8], sink: &mut dyn Sink) -> Result<()> {
        let Some(stage) = &mut self.current else { return Ok(()) };
        let relation = pgoutput::row_relation(bytes).map_err(malformed)?;
        match self.relations.get(&relation) {
            Some(Mapping::Unwanted) => Self::foreign(stage),
            Some(Mapping::Marker(columns)) => match marker_of(bytes, columns)? {
                Some(marker) if matches!(stage, Stage::Fresh) && marker.agent == self.agent => {
                    let rows = if sink.wants_echo(&marker)? { EchoRows::Wanted } else { EchoRows::PassedOver };
                    *stage = Stage::Echo(Box::new(marker), rows);
                }
                _ => Self::foreign(stage),
            },
            Some(Mapping::Wanted(wanted)) => {
                Self::begun(stage, &self.txid, sink)?;
                let message = pgoutput::message(bytes).map_err(malformed)?;
                self.scratch.row(message, wanted, sink)?;
            }
            None => return Err(malformed(Malformed("a row of an unknown relation"))),
        }
        Ok(())
    }
}

impl Scratch {
    fn row<'a>(&mut self, message: Message<'a>, wanted: &Wanted, sink: &mut dyn Sink) -> Result<()> {
        let (op, old, new) = match message {
            Message::Insert { new } => (Op::Insert, None, Some(new)),
            Message::Update { old, new } => (Op::Update, old, Some(new)),
            Message::Delete { old } => (Op::Delete, Some(old), None),
            _ => return Ok(()),
        };
        if !wanted.partial.is_empty() && op != Op::Insert {
            by_partition(wanted, old.as_ref())?;
        }
        // The table's identity is told, its partition's is what the server goes by.
        if wanted.full && op == Op::Update && old.is_none() {
            return Err(weaker_partition(&wanted.name, None));
        }
        self.refused.clear();
        let mut before: Vec<Datum<'a>> = recycled(std::mem::take(&mut self.before));
        let mut after: Vec<Datum<'a>> = recycled(std::mem::take(&mut self.after));
        let has_before = match old {
            Some(Old::Full(tuple)) => {
                image(wanted, tuple, Datum::Null, &mut before, &mut self.refused)?;
                true
            }
            Some(Old::Key(tuple)) => {
                image(wanted, tuple, Datum::NotSent, &mut before, &mut self.refused)?;
                true
            }
            None => false,
        };
        let has_after = match new {
            Some(tuple) => {
                image(wanted, tuple, Datum::Null, &mut after, &mut self.refused)?;
                true
            }
            None => false,
        };
        if has_before && has_after && self.refused.is_empty() {
            for (after, before) in after.iter_mut().zip(&before) {
                if *after == Datum::NotSent {
                    // Not changed, and not NULL either.
                    if *before == Datum::Null {
                        return Err(weaker_partition(&wanted.name, None));
                    }
                    *after = *before;
                }
            }
        }
        let mut picked_before: Vec<Datum<'a>> = recycled(std::mem::take(&mut self.picked_before));
        let mut picked_after: Vec<Datum<'a>> = recycled(std::mem::take(&mut self.picked_after));
        for target in &wanted.targets {
            picked_before.clear();
            picked_after.clear();
            if has_before {
                picked_before
                    .extend(target.places.iter().map(|place| place.map_or(Datum::NotSent, |place| before[place])));
            }
            if has_after {
                picked_after
                    .extend(target.places.iter().map(|place| place.map_or(Datum::NotSent, |place| after[place])));
            }
            sink.row(RowEvent {
                table: target.table,
                op,
                before: has_before.then_some(&picked_before),
                after: has_after.then_some(&picked_after),
                refused: (!self.refused.is_empty()).then_some(&self.refused),
            })?;
        }
        self.before = recycled(before);
        self.after = recycled(after);
        self.picked_before = recycled(picked_before);
        self.picked_after = recycled(picked_after);
        Ok(())
    }
}

/// The same memory for datums of another buffer.
fn recycled<'b>(mut datums: Vec<Datum<'_>>) -> Vec<Datum<'b>> {
    datums.clear();
    datums.into_iter().map(|_| Datum::NotSent).collect()
}

/// Decodes the wanted columns of a tuple. `null` is what `n` means in it: NULL, or not sent.
fn image<'a>(
    wanted: &Wanted,
    tuple: Tuple<'a>,
    null: Datum<'a>,
    out: &mut Vec<Datum<'a>>,
    refused: &mut String,
) -> Result<()> {
    if tuple.len != wanted.formats.len() {
        return Err(malformed(Malformed("a row of another width than its relation")));
    }
    for (column, (field, format)) in tuple.fields().zip(&wanted.formats).enumerate() {
        out.push(match (format, field) {
            (None, _) | (_, Field::Unchanged) => Datum::NotSent,
            (Some(_), Field::Null) => null,
            (Some(format), Field::Text(bytes)) => match decode::value(*format, bytes) {
                Ok(value) => Datum::Value(value),
                Err(Trouble::Refused(reason)) => {
                    if refused.is_empty() {
                        let _ = write!(refused, "column {:?} holds {reason}", wanted.columns[column]);
                    }
                    Datum::NotSent
                }
                Err(Trouble::Malformed) => {
                    return Err(Error::stop(
                        format!("column {:?} of table {} holds what its type does not", wanted.columns[column], wanted.name),
                        "this is a bug, or the server changes the text form of values: report it with the column's type",
                    ));
                }
            },
        });
    }
    Ok(())
}

/// The marker in an insert or update of the marker table; `None` for a delete.
fn marker_of(bytes: &mut [u8], columns: &MarkerColumns) -> Result<Option<Marker>> {
    let new = match pgoutput::message(bytes).map_err(malformed)? {
        Message::Insert { new } | Message::Update { new, .. } => new,
        _ => return Ok(None),
    };
    let fields: Vec<Option<&str>> = new
        .fields()
        .map(|field| match field {
            Field::Text(text) => std::str::from_utf8(text).ok(),
            Field::Null | Field::Unchanged => None,
        })
        .collect();
    let text = |column: usize| fields.get(columns.0[column]).copied().flatten();
    let number = |column: usize| text(column).and_then(|text| text.parse::<u64>().ok());
    let marker = || {
        Some(Marker {
            agent: text(0)?.to_owned(),
            lane: number(1)?.try_into().ok()?,
            journal: u128::from_str_radix(text(2)?, 16).ok()?,
            epoch: number(3)?,
            seq: number(4)?,
            part: number(5)?,
            origin: text(6).unwrap_or_default().to_owned(),
            txid: text(7).unwrap_or_default().to_owned(),
        })
    };
    match marker() {
        Some(marker) => Ok(Some(marker)),
        None => Err(Error::stop(
            "a row of the marker table cannot be read",
            "only the agent may write the marker table: see who else does",
        )),
    }
}

/// An old row holds what the identity of its partition says, and NULL for the rest, though it may
/// be announced as a whole one. Which partition it is of the log does not say: it is refused where
/// it may be one of those.
fn by_partition(wanted: &Wanted, old: Option<&Old<'_>>) -> Result<()> {
    let weak = wanted.partial.iter().find(|partial| match old {
        Some(Old::Full(tuple)) => partial.held.contains(&false) && tuple.is_null_outside(&partial.held),
        Some(Old::Key(tuple)) => !partial.holds_key && tuple.is_null_outside(&partial.held),
        None => wanted.full || !partial.holds_key,
    });
    weak.map_or(Ok(()), |partial| Err(weaker_partition(&wanted.name, Some(&partial.name))))
}

fn weaker_partition(table: &TableName, partition: Option<&TableName>) -> Error {
    let (whose, statement) = match partition {
        Some(name) => (format!("of partition {name} of {table}"), super::slot::quoted(name)),
        None => (format!("of {table}, though its replica identity is FULL: a partition's is not"), "…".to_owned()),
    };
    Error::stop(
        format!("the log does not hold whole old rows {whose}"),
        format!(
            "ALTER TABLE {statement} REPLICA IDENTITY FULL for each partition of {table} (anechoic check names them), then begin \
             anew: anechoic teardown, anechoic setup, anechoic load"
        ),
    )
}

fn malformed(Malformed(what): Malformed) -> Error {
    Error::stop(
        format!("the replication stream holds {what}"),
        "this is a bug in the agent, or something between it and the server changes the stream",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::watch;

    use super::*;
    use crate::capture::WantedColumn;
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
            self.0.push(format!("{} {:?}", row.op.name(), row.after));
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
        fn prepare(&mut self, _: &str, _: Position) -> Result<()> {
            Ok(())
        }
        fn decide(&mut self, _: &str, _: bool, _: Commit<'_>) -> Result<()> {
            Ok(())
        }
        fn wants_echo(&mut self, _: &Marker) -> Result<bool> {
            Ok(false)
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

    /// Starts at 0/64, wants public.t(id) as table 3.
    fn transactions() -> Transactions {
        let position = Position::Postgres { lsn: Lsn(100) };
        let spec = CaptureSpec {
            agent: "hq".into(),
            marker: TableName { schema: "anechoic".into(), name: "marker".into() },
            tables: vec![WantedTable {
                id: 3,
                name: TableName { schema: "public".into(), name: "t".into() },
                columns: vec![WantedColumn { name: "id".into(), ty: ColumnType::Int { bytes: 4, signed: true } }],
                key: vec!["id".into()],
                now: None,
            }],
            start: position.clone(),
            prepared: Default::default(),
            without_origins: false,
            identity: "1/1".into(),
            acknowledged: watch::channel(position).1,
        };
        Transactions::new(&spec, Lsn(100))
    }

    fn data(parts: &[&[u8]]) -> Vec<u8> {
        [&[b'w'][..], &[0; 24], &parts.concat()].concat()
    }

    fn begin(final_lsn: u64) -> Vec<u8> {
        data(&[b"B", &final_lsn.to_be_bytes(), &[0; 8], &7u32.to_be_bytes()])
    }

    fn commit(end_lsn: u64) -> Vec<u8> {
        data(&[b"C\0", &[0; 8], &end_lsn.to_be_bytes(), &[0; 8]])
    }

    fn relation() -> Vec<u8> {
        data(&[b"R\0\0\0\x01public\0t\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff"])
    }

    fn insert(id: u8) -> Vec<u8> {
        data(&[b"I\0\0\0\x01N\0\x01t\0\0\0\x01", &[id]])
    }

    fn keepalive(wal_end: u64) -> Vec<u8> {
        [&b"k"[..], &wal_end.to_be_bytes(), &[0; 9]].concat()
    }

    fn run(messages: &[Vec<u8>]) -> (Vec<String>, Result<()>) {
        let (mut transactions, mut lines) = (transactions(), Lines::default());
        for message in messages {
            if let Err(error) = transactions.handle(&mut message.clone(), &mut lines) {
                return (lines.0, Err(error));
            }
        }
        let told = transactions.tell_passed(&mut lines);
        (lines.0, told)
    }

    #[test]
    fn what_ended_by_the_start_is_dropped_and_what_came_after_it_is_not() {
        let repeated = [begin(90), relation(), insert(b'1'), commit(100)];
        let new = [begin(100), insert(b'2'), commit(120)];

        let (lines, result) = run(&[repeated, new_with_relation(new)].concat());

        assert!(result.is_ok());
        assert_eq!(lines, ["begin 7", "insert Some([Value(Int(2))])", "commit 0/78"]);
    }

    fn new_with_relation(new: [Vec<u8>; 3]) -> [Vec<u8>; 4] {
        let [begin, insert, commit] = new;
        [begin, relation(), insert, commit]
    }

    #[test]
    fn a_keepalive_passes_only_with_nothing_in_flight() {
        let (lines, _) = run(&[begin(100), relation(), insert(b'1'), keepalive(500)]);
        assert_eq!(lines, ["begin 7", "insert Some([Value(Int(1))])"]);

        let (lines, _) = run(&[begin(100), commit(120), keepalive(500)]);
        assert_eq!(lines, ["passed 0/1F4"], "an empty transaction is foreign traffic");
    }

    #[test]
    fn a_stream_that_makes_no_sense_stops_the_flow() {
        for messages in [
            vec![insert(b'1')],
            vec![commit(120)],
            vec![begin(100), begin(100)],
            vec![begin(100), insert(b'1')],
            vec![begin(90), commit(120)],
            vec![begin(100), commit(100)],
            vec![begin(100), relation(), insert(b'x')],
            vec![b"w".to_vec()],
            vec![Vec::new()],
        ] {
            let (_, result) = run(&messages);

            assert_eq!(result.expect_err("makes no sense").recovery, Recovery::Stop);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, kind in prop::sample::select(b"BCRIUDTYOM".to_vec())) {
            let message = data(&[&[kind], b"\0\0\0\x01", &bytes]);
            let (lines, _) = run(&[begin(100), relation(), message, data(&[&bytes]), bytes, commit(120)]);
            prop_assert!(lines.len() < 9);
        }
    }
}
