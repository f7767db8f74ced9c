//! What may go: whole segments, oldest first, and never what somebody still needs.

use std::time::Duration;

use crate::change::Micros;
use crate::position::Seq;

/// A segment as retention sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aged {
    pub last_seq: Seq,
    /// When its newest record was written, at the latest.
    pub newest: Micros,
    /// On disk, spool files that its entries refer to included.
    pub bytes: u64,
}

/// What [`super::Writer::retain`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retained {
    pub freed: u64,
    /// The journal is larger than it may be, and nothing more may go: capture has to pause.
    pub full: bool,
}

/// How many of the sealed segments go, oldest first. `total` is the size of everything. Entries from
/// `wanted_from` on outlive their time, but not where there is no room for them.
pub fn expired(
    sealed: &[Aged],
    total: u64,
    needed_from: Seq,
    wanted_from: Seq,
    now: Micros,
    retention: Duration,
    max_size: u64,
) -> usize {
    let mut left = total;
    let kept_since = now.saturating_sub_unsigned(u64::try_from(retention.as_micros()).unwrap_or(u64::MAX));
    let goes = |segment: &&Aged| {
        let old = segment.newest < kept_since && segment.last_seq < wanted_from;
        let goes = segment.last_seq < needed_from && (old || left > max_size);
        if goes {
            left = left.saturating_sub(segment.bytes);
        }
        goes
    };
    sealed.iter().take_while(goes).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments() -> Vec<Aged> {
        (1..=4).map(|n| Aged { last_seq: n * 10, newest: n as i64 * 1_000_000, bytes: 100 }).collect()
    }

    fn gone(total: u64, needed_from: Seq, now_s: i64, retention_s: u64, max_size: u64) -> usize {
        expired(
            &segments(),
            total,
            needed_from,
            Seq::MAX,
            now_s * 1_000_000,
            Duration::from_secs(retention_s),
            max_size,
        )
    }

    #[test]
    fn what_is_older_than_retention_goes_but_never_what_is_needed() {
        assert_eq!(gone(400, 100, 10, 7, 1000), 2);
        assert_eq!(gone(400, 20, 10, 7, 1000), 1);
        assert_eq!(gone(400, 1, 1000, 0, 10), 0);
        assert_eq!(gone(400, 100, 10, 3600, 1000), 0);
    }

    #[test]
    fn a_full_journal_drops_young_segments_too_until_it_fits() {
        assert_eq!(gone(400, 100, 5, 3600, 250), 2);
        assert_eq!(gone(400, 15, 5, 3600, 250), 1);
    }

    #[test]
    fn what_is_wanted_outlives_its_time_but_not_the_room_there_is() {
        let gone = |wanted_from, max_size| {
            expired(&segments(), 400, 100, wanted_from, 1_000_000_000, Duration::from_secs(1), max_size)
        };

        assert_eq!((gone(Seq::MAX, 1000), gone(20, 1000), gone(0, 1000)), (4, 1, 0));
        assert_eq!(gone(0, 250), 2);
    }

    #[test]
    fn an_endless_retention_keeps_everything() {
        let kept = expired(&segments(), 400, 100, Seq::MAX, 0, Duration::MAX, 1000);

        assert_eq!(kept, 0);
    }
}
