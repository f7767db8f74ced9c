//! Rows of a load that lost to something live.
//!
//! What beat a row mostly tells all of it: then nobody misses the row. Where changes carry fields or
//! differences it may have told a part, and the rest is in the tables alone. Such a row is read
//! again until nothing beats it: the log that did has been seen by then. Fewer and fewer are read at
//! once, in the end each by itself, so that one that is written all the time is met between two
//! writes. Their keys stand in the load's mark, for a restart must know of them still.
//!
//! One that is not there then is done with if its deletion stands. Where that lost, the row is on its way
//! back to the table with sums that nobody else has, and is read when it has come; the same goes for rows
//! that were not there in the first place, because they were on their way back already.

use std::time::Duration;

use bytes::Bytes;
use tracing::info;

use super::pass::Pass;
use crate::error::Result;

/// So many keys are read at once, the first time.
const TOGETHER: usize = 500;
/// With more keys the pass stops for a few rounds, since each mark carries them; with too many until
/// there are fewer.
const WAIT_ABOVE: usize = 1000;
const WAIT_ROUNDS: u32 = 3;
const MOST: usize = 20_000;
/// After so many rounds it is said what the load waits for, and then in so many again.
const TOLD_AFTER: u32 = 10;
const TOLD_EVERY: u32 = 60;

impl Pass<'_> {
    /// Notes the rows that are to be read again.
    pub(super) fn note_lost(&mut self, lost: Vec<(Bytes, bool)>, missed: Vec<Bytes>) {
        self.lost.extend(lost.into_iter().filter(|(_, told)| !told).map(|(key, _)| key).chain(missed));
    }

    /// Not too many of them.
    pub(super) async fn keep_few_lost(&mut self) -> Result<()> {
        let mut round = 0;
        while self.lost.len() > if round < WAIT_ROUNDS { WAIT_ABOVE } else { MOST } {
            self.read_lost(round).await?;
            round += 1;
        }
        Ok(())
    }

    /// Until none is left.
    pub(super) async fn read_all_lost(&mut self) -> Result<()> {
        let mut round = 0;
        while !self.lost.is_empty() {
            if round >= TOLD_AFTER {
                self.tell_lost(round);
            }
            self.read_lost(round).await?;
            round += 1;
        }
        Ok(())
    }

    async fn read_lost(&mut self, round: u32) -> Result<()> {
        self.context.pause(Duration::from_millis(50 * u64::from(round.min(20)))).await?;
        let keys: Vec<Vec<u8>> = std::mem::take(&mut self.lost).into_iter().map(Into::into).collect();
        let (mut left, mut attempt) = (keys.as_slice(), 0);
        while !left.is_empty() {
            let together = (TOGETHER >> round.min(16)).clamp(1, left.len());
            let (now, later) = left.split_at(together);
            match self.by_keys(now, true).await {
                Ok(()) => left = later,
                Err(error) => {
                    self.lost.extend(left.iter().cloned().map(Bytes::from));
                    self.retry(error, &mut attempt).await?;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn tell_lost(&mut self, round: u32) {
        let rows = self.lost.len();
        let what =
            format!("until {rows} rows that are written all the time, or come back, can be read between two writes");
        if (round - TOLD_AFTER).is_multiple_of(TOLD_EVERY) {
            info!(entity = %self.counted.entity, rows, "the load waits {what}");
        }
        self.counted.report(&self.name.clone(), "waiting", Some(what));
    }
}
