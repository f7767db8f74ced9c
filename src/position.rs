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
        let file = |name: &str| BinlogPosition { file: name.into(), offset: 4 }.file_number();
        assert!(file("binlog.1000000") > file("binlog.999999"));
    }
}
