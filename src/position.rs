//! How far a system's log was read. Types that order and compare correctly, never strings.
//!
//! Only ends of committed transactions are positions; header LSNs and positions in the middle
//! of a binlog transaction are not.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Number of a journal entry; the first is 1, 0 is "before everything".
pub type Seq = u64;

/// A byte position in PostgreSQL's WAL; displayed as `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not an LSN such as 16/B374D848");
        let (high, low) = text.split_once('/').ok_or_else(wrong)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| wrong())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| wrong())?;
        Ok(Lsn(u64::from(high) << 32 | u64::from(low)))
    }
}

/// One source of GTIDs on MySQL: server uuid and, since 8.3, an optional tag.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GtidSource {
    pub uuid: [u8; 16],
    pub tag: String,
}

/// A MySQL GTID set: per source, disjoint half-open intervals `[start, end)` in order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GtidSet {
    pub intervals: BTreeMap<GtidSource, Vec<(u64, u64)>>,
}

/// A place in a binlog file. File names compare by their number, never as strings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BinlogPosition {
    pub file: String,
    pub offset: u64,
    /// When the server began the file, in seconds since 1970: tells it from another one of its name.
    /// 0 where that is not known.
    #[serde(default)]
    pub begun: u32,
}

/// The last transaction of one MariaDB replication domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MariadbGtid {
    pub server_id: u32,
    pub sequence: u64,
}

/// How far a system's log was read: everything up to and including this is in the journal,
/// filtered, or an echo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Position {
    /// End LSN of the last commit, or a keepalive's WAL end with nothing in flight.
    Postgres { lsn: Lsn },
    /// `gtids` is the authority where GTIDs are on; empty where they are off and the binlog
    /// position is all there is (then `server_uuid` pins the server).
    Mysql { gtids: GtidSet, binlog: BinlogPosition, server_uuid: String },
    /// Per domain the last GTID, exactly as `@slave_connect_state` wants it.
    Mariadb { domains: BTreeMap<u32, MariadbGtid>, binlog: BinlogPosition },
    /// Of the in-memory systems of the simulation.
    Memory { index: u64 },
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Position::Postgres { lsn } => write!(f, "{lsn}"),
            Position::Mysql { gtids, binlog, .. } if gtids.intervals.is_empty() => write!(f, "{binlog}"),
            Position::Mysql { gtids, .. } => write!(f, "{gtids}"),
            Position::Mariadb { domains, binlog } if domains.is_empty() => write!(f, "{binlog}"),
            Position::Mariadb { domains, .. } => {
                for (i, (domain, gtid)) in domains.iter().enumerate() {
                    let comma = if i > 0 { "," } else { "" };
                    write!(f, "{comma}{domain}-{}-{}", gtid.server_id, gtid.sequence)?;
                }
                Ok(())
            }
            Position::Memory { index } => write!(f, "{index}"),
        }
    }
}

impl fmt::Display for BinlogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

impl BinlogPosition {
    /// `binlog.000012` → 12; rotations never compare names as strings (…999999 → …1000000).
    pub fn file_number(&self) -> Option<u64> {
        self.file.rsplit_once('.').and_then(|(_, number)| number.parse().ok())
    }

    /// Not before `end` in the log of one server.
    pub fn reached(&self, end: &BinlogPosition) -> bool {
        (self.file_number(), self.offset) >= (end.file_number(), end.offset)
    }
}

impl GtidSet {
    pub fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    pub fn contains(&self, source: &GtidSource, number: u64) -> bool {
        let Some(intervals) = self.intervals.get(source) else { return false };
        let after = intervals.partition_point(|(start, _)| *start <= number);
        after > 0 && number < intervals[after - 1].1
    }

    /// Adds one transaction. Numbers of one source may come out of order (group commit).
    pub fn add(&mut self, source: &GtidSource, number: u64) {
        match self.intervals.get_mut(source) {
            Some(intervals) => add_interval(intervals, (number, number + 1)),
            None => {
                self.intervals.insert(source.clone(), vec![(number, number + 1)]);
            }
        }
    }

    /// Adds `[start, end)`.
    pub fn add_range(&mut self, source: &GtidSource, start: u64, end: u64) {
        if start < end {
            add_interval(self.intervals.entry(source.clone()).or_default(), (start, end));
        }
    }

    #[must_use]
    pub fn union(mut self, other: &GtidSet) -> GtidSet {
        for (source, intervals) in &other.intervals {
            for (start, end) in intervals {
                self.add_range(source, *start, *end);
            }
        }
        self
    }

    /// What is in here and not in `other`.
    #[must_use]
    pub fn subtract(&self, other: &GtidSet) -> GtidSet {
        let mut rest = GtidSet::default();
        for (source, intervals) in &self.intervals {
            let holes = other.intervals.get(source).map_or(&[][..], Vec::as_slice);
            let mut kept = Vec::new();
            for (start, end) in intervals {
                let mut from = *start;
                for (hole, past) in holes.iter().filter(|(hole, past)| past > start && hole < end) {
                    if from < *hole {
                        kept.push((from, *hole));
                    }
                    from = from.max(*past);
                }
                if from < *end {
                    kept.push((from, *end));
                }
            }
            if !kept.is_empty() {
                rest.intervals.insert(source.clone(), kept);
            }
        }
        rest
    }

    pub fn is_subset(&self, other: &GtidSet) -> bool {
        self.subtract(other).is_empty()
    }
}

/// Keeps the intervals disjoint, in order and joined where they touch.
fn add_interval(intervals: &mut Vec<(u64, u64)>, (start, end): (u64, u64)) {
    // The common case: the next transaction of this source.
    if let Some(last) = intervals.last_mut().filter(|(first, past)| *past == start && *first <= start) {
        last.1 = end;
        return;
    }
    let from = intervals.partition_point(|(_, past)| *past < start);
    let to = intervals.partition_point(|(first, _)| *first <= end);
    let joined = intervals[from..to].iter().fold((start, end), |(s, e), (first, past)| (s.min(*first), e.max(*past)));
    intervals.splice(from..to, [joined]);
}

impl FromStr for GtidSet {
    type Err = String;

    /// As MySQL prints `@@gtid_executed`, line breaks and tags included.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut set = GtidSet::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || format!("{part:?} is not a GTID set such as 3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5");
            let mut pieces = part.split(':').map(str::trim);
            let uuid = pieces.next().and_then(parse_uuid).ok_or_else(wrong)?;
            let mut source = GtidSource { uuid, tag: String::new() };
            let mut intervals = 0;
            for piece in pieces {
                if piece.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                    source.tag = piece.to_ascii_lowercase();
                    continue;
                }
                let (start, last) = piece.split_once('-').unwrap_or((piece, piece));
                let start: u64 = start.trim().parse().map_err(|_| wrong())?;
                let last: u64 = last.trim().parse().map_err(|_| wrong())?;
                let end = last.checked_add(1).filter(|end| start > 0 && start < *end).ok_or_else(wrong)?;
                set.add_range(&source, start, end);
                intervals += 1;
            }
            if intervals == 0 {
                return Err(wrong());
            }
        }
        Ok(set)
    }
}

/// 32 hex digits with or without dashes.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let mut uuid = [0; 16];
    let mut digits = text.bytes().filter(|byte| *byte != b'-');
    for byte in &mut uuid {
        let mut half = || digits.next().and_then(|digit| char::from(digit).to_digit(16));
        *byte = (half()? << 4 | half()?) as u8;
    }
    digits.next().is_none().then_some(uuid)
}

impl Position {
    /// Everything up to `end`, a log's end taken earlier, was read when the log was read to
    /// here. False where the two are of different kinds.
    pub fn reached(&self, end: &Position) -> bool {
        match (self, end) {
            (Position::Postgres { lsn }, Position::Postgres { lsn: end }) => lsn >= end,
            (
                Position::Mysql { gtids, binlog, server_uuid },
                Position::Mysql { gtids: end, binlog: end_binlog, server_uuid: end_uuid },
            ) => {
                if gtids.is_empty() || end.is_empty() {
                    server_uuid == end_uuid && binlog.reached(end_binlog)
                } else {
                    end.is_subset(gtids)
                }
            }
            (Position::Mariadb { domains, binlog }, Position::Mariadb { domains: end, binlog: end_binlog }) => {
                if end.is_empty() {
                    !domains.is_empty() || binlog.reached(end_binlog)
                } else {
                    end.iter().all(|(domain, gtid)| domains.get(domain).is_some_and(|at| at.sequence >= gtid.sequence))
                }
            }
            (Position::Memory { index }, Position::Memory { index: end }) => index >= end,
            (
                Position::Postgres { .. } | Position::Mysql { .. } | Position::Mariadb { .. } | Position::Memory { .. },
                _,
            ) => false,
        }
    }
}

impl fmt::Display for GtidSet {
    /// MySQL's own form: `uuid:1-5:8:tag:1-3,uuid:…`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut previous: Option<&GtidSource> = None;
        for (source, intervals) in &self.intervals {
            if previous.is_none_or(|p| p.uuid != source.uuid) {
                if previous.is_some() {
                    f.write_str(",")?;
                }
                for (i, byte) in source.uuid.iter().enumerate() {
                    if matches!(i, 4 | 6 | 8 | 10) {
                        f.write_str("-")?;
                    }
                    write!(f, "{byte:02x}")?;
                }
            }
            if !source.tag.is_empty() {
                write!(f, ":{}", source.tag)?;
            }
            for (start, end) in intervals {
                if end - start == 1 {
                    write!(f, ":{start}")?;
                } else {
                    write!(f, ":{start}-{}", end - 1)?;
                }
            }
            previous = Some(source);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_is_written_as_the_server_writes_it() {
        let lsn: Lsn = "16/B374D848".parse().expect("valid");
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert!(lsn > "15/FFFFFFFF".parse().expect("valid"));
        assert!("16B374D848".parse::<Lsn>().is_err());
    }

    #[test]
    fn binlog_files_order_by_number() {
        let file = |name: &str| BinlogPosition { file: name.into(), offset: 4, begun: 0 }.file_number();
        assert!(file("binlog.1000000") > file("binlog.999999"));
    }

    const UUID: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    #[test]
    fn gtid_sets_are_read_as_the_server_prints_them() {
        let other = "ffffffff-71ca-11e1-9e33-c80aa9429562";
        let printed = format!("{UUID}:1-5:8:tag_a:1-3:5,{other}:2");
        let set: GtidSet = format!("{UUID}:8:1-4:5:Tag_A:1-2:3:5,\n{other}:2").parse().expect("valid");

        assert_eq!(set.to_string(), printed);
        for wrong in ["x:1", UUID, &format!("{UUID}:0"), &format!("{UUID}:5-3"), &format!("{UUID}:tag")] {
            assert!(wrong.parse::<GtidSet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn positions_reach_ends_of_their_own_kind() {
        let mysql = |gtids: &str, offset| Position::Mysql {
            gtids: gtids.parse().expect("valid"),
            binlog: BinlogPosition { file: "binlog.000001".into(), offset, begun: 0 },
            server_uuid: UUID.into(),
        };
        let mariadb = |sequence| Position::Mariadb {
            domains: BTreeMap::from([(0, MariadbGtid { server_id: 1, sequence })]),
            binlog: BinlogPosition::default(),
        };

        assert!(mysql(&format!("{UUID}:1-9"), 4).reached(&mysql(&format!("{UUID}:2-9"), 900)));
        assert!(!mysql(&format!("{UUID}:1-8"), 900).reached(&mysql(&format!("{UUID}:1-9"), 4)));
        assert!(mysql("", 900).reached(&mysql("", 900)) && !mysql("", 800).reached(&mysql("", 900)));
        assert!(mariadb(7).reached(&mariadb(7)) && !mariadb(6).reached(&mariadb(7)));
        assert!(!mariadb(7).reached(&mysql("", 4)));
    }

    mod properties {
        use std::collections::BTreeSet;

        use proptest::prelude::*;

        use super::*;

        fn build(numbers: &BTreeSet<(u8, u64)>) -> GtidSet {
            let mut set = GtidSet::default();
            // Descending per source and interleaved: the awkward order.
            for (tag, number) in numbers.iter().rev() {
                set.add(&source(*tag), *number);
            }
            set
        }

        fn source(tag: u8) -> GtidSource {
            GtidSource { uuid: [1; 16], tag: if tag == 0 { String::new() } else { format!("t{tag}") } }
        }

        fn numbers() -> impl Strategy<Value = BTreeSet<(u8, u64)>> {
            proptest::collection::btree_set((0u8..3, 1u64..30), 0..40)
        }

        proptest! {
            #[test]
            fn gtid_sets_are_sets(a in numbers(), b in numbers()) {
                let (left, right) = (build(&a), build(&b));

                prop_assert_eq!(left.clone().union(&right), build(&a.union(&b).copied().collect()));
                prop_assert_eq!(left.subtract(&right), build(&a.difference(&b).copied().collect()));
                prop_assert_eq!(left.is_subset(&right), a.is_subset(&b));
                for tag in 0..3 {
                    for number in 1..31 {
                        prop_assert_eq!(left.contains(&source(tag), number), a.contains(&(tag, number)));
                    }
                }
                prop_assert_eq!(left.to_string().parse::<GtidSet>(), Ok(left));
            }
        }
    }
}
