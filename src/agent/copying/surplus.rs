//! What only receivers have: deleted there, through the journal, where somebody asked for that.
//!
//! ```text
//! receiver: page ─▶ nobody who counts has it, also when its log is applied
//!   ─▶ desk: authority's low watermark ─▶ read again here and there ─▶ receiver captured past that
//!   ─▶ desk: deletes
//! ```
//!
//! A row that somebody inserts meanwhile is not among them: its insert is captured before the
//! delete is handed in. Then the authority has it already, or the insert is newer than the
//! watermark, and the delete loses.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::pass::{Made, Parts, Pass, Read, Receiver, shown};
use crate::change::{Change, ChangeWriter, Changes, Op};
use crate::error::Result;
use crate::failpoint;
use crate::load::Counts;
use crate::position::Position;
use crate::scan::{Page, PageSize};
use crate::value::Row;

const KEYS: usize = 500;
const APPLIED_WITHIN: Duration = Duration::from_secs(120);

impl Pass<'_> {
    /// Whatever the receivers have, and neither this system nor `witnesses`, which receive nothing
    /// and so cannot be brought into step.
    pub async fn delete_extra(&mut self, witnesses: &mut [Receiver]) -> Result<()> {
        // It begins anew behind a restart, and finds those again that nothing came of.
        self.counted.counts.systems.values_mut().for_each(|classes| classes.held = 0);
        for at in (0..self.receivers.len()).filter(|at| !self.receivers[*at].empty).collect::<Vec<_>>() {
            let (mut after, mut size, mut attempt) = (None::<Vec<u8>>, PageSize::default(), 0);
            loop {
                match self.extra_page(at, after.as_deref(), &mut size, witnesses).await {
                    Ok((_, true)) => break,
                    Ok((last, false)) => {
                        after = last.or(after);
                        attempt = 0;
                        failpoint::pass("after-extra-page");
                    }
                    Err(error) => self.retry(error, &mut attempt).await?,
                }
                let name = self.receivers[at].name.clone();
                self.counted.report(&name, "running", None);
            }
        }
        self.until_applied().await
    }

    /// The last key, and whether the table ended.
    async fn extra_page(
        &mut self,
        at: usize,
        after: Option<&[u8]>,
        size: &mut PageSize,
        witnesses: &mut [Receiver],
    ) -> Result<(Option<Vec<u8>>, bool)> {
        let began = Instant::now();
        let page = self.receivers[at].page(self.context, after, *size).await?;
        size.learn(&page);
        let extra = self.extra_of(at, &page, witnesses).await?;
        let name = self.receivers[at].name.clone();
        // Somebody could not take it: it is theirs to have, still.
        let (held, extra): (Vec<_>, Vec<_>) =
            extra.into_iter().partition(|(hash, _)| !self.context.held(*hash).is_empty());
        let keys: Vec<Vec<u8>> = extra.into_iter().map(|(_, key)| key).collect();
        for keys in keys.chunks(KEYS) {
            let mut counts = Counts::default();
            let classes = counts.of(&name);
            classes.extra = keys.len() as u64;
            keys.iter().for_each(|key| classes.sample("extra", || shown(Row(key))));
            match self.dry_run {
                true => self.counted.counts.add(counts),
                false => self.delete(at, keys, counts, witnesses).await?,
            }
        }
        if !held.is_empty() {
            self.counted.counts.of(&name).held += held.len() as u64;
        }
        if let Some(rate) = self.max_rate.filter(|rate| *rate > 0) {
            let due = Duration::from_secs_f64(page.seen as f64 / rate as f64);
            self.context.pause(due.saturating_sub(began.elapsed())).await?;
        }
        Ok((page.last, page.end))
    }

    /// Rows of the page that nobody who counts has, lag taken out.
    async fn extra_of(&mut self, at: usize, page: &Page, witnesses: &mut [Receiver]) -> Result<Vec<(u128, Vec<u8>)>> {
        let key_len = self.plan.binding.key_len;
        // What does not belong in the authority is not its to decide.
        let ours = |change: &Change<'_>| change.after.is_some_and(|row| self.plan.belongs(row));
        let mut extra: Vec<(u128, Vec<u8>)> = Changes::new(&page.rows)
            .filter(ours)
            .map(|change| (change.key_hash, change.key(key_len).to_vec()))
            .collect();
        for settled in [false, true] {
            if extra.is_empty() {
                break;
            }
            if settled {
                self.settle(at).await?;
            }
            let keys: Vec<Vec<u8>> = extra.iter().map(|(_, key)| key.clone()).collect();
            let rows: Vec<Row<'_>> = keys.iter().map(|key| Row(key)).collect();
            let plan = self.plan.clone();
            let mut known: HashSet<u128> =
                self.scanner().await?.by_keys(&plan, &rows).await?.all().map(|change| change.key_hash).collect();
            for witness in witnesses.iter_mut() {
                known.extend(witness.look_up(self.context, &rows).await?.all().map(|change| change.key_hash));
            }
            extra.retain(|(hash, _)| !known.contains(hash));
            if settled {
                let there = self.receivers[at].look_up(self.context, &rows).await?;
                let still: HashSet<u128> = there.all().map(|change| change.key_hash).collect();
                extra.retain(|(hash, _)| still.contains(hash));
            }
        }
        Ok(extra)
    }

    /// What is committed here and in that receiver by now is captured, and applied in both.
    async fn settle(&mut self, at: usize) -> Result<()> {
        let end = self.scanner().await?.finish().await?;
        self.wait_until_captured(&end).await?;
        self.receivers[at].until_captured(self.context).await?;
        let head = self.context.status.journal_head.get();
        for system in [self.source, self.receivers[at].system] {
            self.context.applied(system, self.plan.entity, head, APPLIED_WITHIN).await?;
        }
        Ok(())
    }

    async fn delete(&mut self, at: usize, keys: &[Vec<u8>], counts: Counts, witnesses: &mut [Receiver]) -> Result<()> {
        loop {
            let chunk = self.open().await?;
            let (page, parts) = self.surplus(&chunk.low, keys, Some(at), witnesses).await?;
            let made = Made { parts, counts: counts.clone(), deletes: true, ..Made::default() };
            // No key of the pass is done with them.
            if self.lay_in(chunk, &page, made, Some(&[])).await? {
                return Ok(());
            }
        }
    }

    /// Deletes of rows that are there, and not here; of one receiver, or of all.
    pub(super) async fn surplus(
        &mut self,
        low: &Position,
        keys: &[Vec<u8>],
        only: Option<usize>,
        witnesses: &mut [Receiver],
    ) -> Result<(Page, Parts)> {
        let here = self.read(low, &Read::Keys(keys)).await?;
        let mut known: HashSet<u128> = here.all().map(|change| change.key_hash).collect();
        let keys: Vec<Row<'_>> = keys.iter().map(|key| Row(key)).collect();
        for witness in witnesses {
            known.extend(witness.look_up(self.context, &keys).await?.all().map(|change| change.key_hash));
        }
        let mut parts = Parts::new();
        for (_, receiver) in self.receivers.iter_mut().enumerate().filter(|(at, _)| only.is_none_or(|one| one == *at)) {
            let there = receiver.look_up(self.context, &keys).await?;
            // Whoever wrote what was seen is known to the desk when the deletes come.
            receiver.until_captured(self.context).await?;
            let mut writer = ChangeWriter::default();
            for change in Changes::new(&there.rows).filter(|change| !known.contains(&change.key_hash)) {
                if self.context.held(change.key_hash).is_empty() || only.is_none() {
                    writer.push_change(&Change { op: Op::Delete, before: change.after, after: None, ..change });
                }
            }
            if !writer.is_empty() {
                parts.push((Some(vec![receiver.name.clone()]), writer.take().into()));
            }
        }
        Ok((Page { running: here.running, ..Page::default() }, parts))
    }
}
