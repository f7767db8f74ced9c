//! All systems of a comparison read side by side, each once, where their keys have one order
//! everywhere: integers. Elsewhere (text is sorted by collations) rows are looked up by key.
//!
//! ```text
//! authority   1 2 3 4 5 │ 6 …        what everybody was read up to is compared: as one run of
//! shop        1 2   4 5 │ 6 7        bytes first, row by row where that differs
//! ```
//!
//! Rows are canonical by then, so equal runs of bytes are equal rows.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;

use super::compare::{Class, class_of, compare};
use super::verify::{Party, Verification, keeps};
use crate::catalog::ColumnType;
use crate::change::{Change, Changes};
use crate::error::Result;
use crate::normalize::binding::Transform;
use crate::scan::{Page, PageSize, Plan};
use crate::value::{Datum, Kind, Row, Value};

/// Rows are read and compared, and not looked up anywhere.
const PAGE_BYTES: usize = 2 << 20;

type Key = Vec<i128>;

/// What was read of one system and not compared yet.
struct Side {
    after: Option<Vec<u8>>,
    size: PageSize,
    end: bool,
    rows: VecDeque<Found>,
}

struct Found {
    key: Key,
    encoded: Bytes,
    /// A part of it has no canonical form.
    refused: bool,
}

impl Side {
    /// Rows up to that key, of all that were read where there is none.
    fn take(&mut self, upto: Option<&Key>) -> Page {
        let count = self.rows.partition_point(|found| upto.is_none_or(|upto| found.key <= *upto));
        let (mut page, mut rows) = (Page::default(), Vec::new());
        for Found { encoded, refused, .. } in self.rows.drain(..count) {
            match refused {
                true => page.refused.push((encoded, String::new())),
                false => {
                    page.count += 1;
                    rows.extend_from_slice(&encoded);
                }
            }
        }
        page.rows = rows.into();
        page
    }

    /// Until there is something to compare; how many rows were looked at.
    async fn fill(
        &mut self,
        party: &mut Party,
        asked: impl Fn(PageSize) -> PageSize,
        percent: Option<f64>,
    ) -> Result<(u64, u64)> {
        let (mut seen, mut refused) = (0, 0);
        if self.rows.is_empty() && !self.end {
            let page = party.scanner.page(&party.plan, self.after.as_deref(), asked(self.size)).await?;
            self.size.learn(&page);
            (seen, refused) = (page.seen, page.refused.len() as u64);
            self.end = page.end;
            self.after = page.last.clone().or(self.after.take());
            let key_len = party.plan.binding.key_len;
            let found = |encoded: Bytes, refused| {
                let change = Changes::new(&encoded).next().expect("one encoded change");
                let key = keeps(change.key_hash, percent).then(|| ordered(Row(change.key(key_len))))?;
                Some(Found { key, encoded, refused })
            };
            let mut changes = Changes::new(&page.rows);
            while let Some(encoded) = changes.next_encoded() {
                self.rows.extend(found(page.rows.slice_ref(encoded), false));
            }
            if !page.refused.is_empty() {
                self.rows.extend(page.refused.into_iter().filter_map(|(change, _)| found(change, true)));
                self.rows.make_contiguous().sort_by(|a, b| a.key.cmp(&b.key));
            }
        }
        Ok((seen, refused))
    }
}

fn ordered(key: Row<'_>) -> Key {
    let number = |datum: Datum<'_>| match datum {
        Datum::Value(Value::Int(number)) => i128::from(number),
        Datum::Value(Value::UInt(number)) => i128::from(number),
        datum => unreachable!("{datum:?}: only keys of integers are read side by side"),
    };
    key.iter().map(number).collect()
}

/// Every server sorts these by their number.
pub(super) fn is_ordered(plan: &Plan) -> bool {
    let key = &plan.binding.columns[..plan.binding.key_len];
    key.iter().all(|bound| {
        bound.kind == Kind::Int
            && bound.transform == Transform::None
            && matches!(bound.column.ty, ColumnType::Int { .. } | ColumnType::Decimal { .. })
    })
}

impl Verification<'_> {
    pub(super) async fn abreast(&mut self) -> Result<()> {
        let side = || Side { after: None, size: PageSize::of(PAGE_BYTES), end: false, rows: VecDeque::new() };
        let mut sides: Vec<Side> = self.parties.iter().map(|_| side()).collect();
        let name = self.authority();
        let rate = self.spec.max_rate.filter(|rate| *rate > 0);
        // Little at a time, rather than much and then nothing for long.
        let asked = |size: PageSize| rate.map_or(size, |rate| size.at_most(rate.div_ceil(2) as usize));
        loop {
            let began = Instant::now();
            let percent = self.spec.sample_percent;
            let reads = self.parties.iter_mut().zip(&mut sides).map(|(party, side)| side.fill(party, asked, percent));
            let mut rows = 0;
            for read in join_all(reads).await {
                let (seen, refused) = read?;
                self.counted.counts.read += seen;
                self.counted.counts.refused += refused;
                rows += seen;
            }
            let last = |side: &Side| side.after.as_deref().map(|key| ordered(Row(key))).unwrap_or_default();
            let upto = sides.iter().filter(|side| !side.end).map(last).min();
            let mut pages = sides.iter_mut().map(|side| side.take(upto.as_ref()));
            let authority = pages.next().expect("somebody holds the entity");
            let others: Vec<Page> = pages.collect();
            for (at, there) in others.iter().enumerate() {
                self.compare_run(at + 1, &authority, there)?;
            }
            self.counted.report(&name, "running", None);
            if let Some(rate) = rate {
                let due = Duration::from_secs_f64(rows as f64 / rate as f64);
                self.context.pause(due.saturating_sub(began.elapsed())).await?;
            }
            if upto.is_none() {
                return Ok(());
            }
        }
    }

    fn compare_run(&mut self, other: usize, authority: &Page, there: &Page) -> Result<()> {
        let counts = self.counted.counts.of(&self.parties[other].name);
        if authority.rows == there.rows && authority.refused.is_empty() && there.refused.is_empty() {
            counts.equal += authority.count;
            return Ok(());
        }
        let classes = compare(authority, there, &self.parties[other].plan);
        // Until it is known to differ.
        counts.equal += classes.iter().filter(|class| **class != Class::Elsewhere).count() as u64;
        let differs = |class: &Class| matches!(class, Class::Different(_) | Class::Missing);
        for (change, _) in Changes::new(&authority.rows).zip(classes).filter(|(_, class)| differs(class)) {
            self.note(&change);
        }
        let known: HashSet<u128> = authority.all().map(|change| change.key_hash).collect();
        let plan = self.parties[0].plan.clone();
        let extra = |change: &Change<'_>| {
            !known.contains(&change.key_hash) && class_of(change.after, None, &plan) == Class::Missing
        };
        for change in Changes::new(&there.rows).filter(extra) {
            self.note(&change);
        }
        self.not_too_many()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::{ChangeWriter, Op};
    use crate::schema::{EntityId, EntitySchema, Field, Schema};

    fn found(id: i64, refused: bool) -> Found {
        let schema =
            Schema::new(vec![EntitySchema::new("item", vec![Field { name: "id".into(), kind: Kind::Int }], 1)]);
        let mut writer = ChangeWriter::default();
        let row = [Datum::Value(Value::Int(id))].into_iter();
        writer.push(&schema, EntityId(0), Op::Insert, None::<std::iter::Empty<_>>, Some(row));
        Found { key: vec![id.into()], encoded: writer.take().into(), refused }
    }

    #[test]
    fn a_run_ends_where_somebody_was_not_read_further() {
        let rows = [found(-1, false), found(2, true), found(3, false), found(7, false)].into();
        let mut side = Side { after: None, size: PageSize::default(), end: false, rows };

        let run = side.take(Some(&vec![3]));
        assert_eq!((run.count, run.refused.len(), side.rows.len()), (2, 1, 1));
        assert_eq!(side.take(Some(&vec![6])).count, 0);
        assert_eq!(side.take(None).count, 1);
    }

    #[test]
    fn keys_are_sorted_as_numbers() {
        let mut key = Vec::new();
        crate::value::write_datum(&mut key, Datum::Value(Value::Int(-5)));
        crate::value::write_datum(&mut key, Datum::Value(Value::UInt(u64::MAX)));

        assert_eq!(ordered(Row(&key)), [-5, i128::from(u64::MAX)]);
    }
}
