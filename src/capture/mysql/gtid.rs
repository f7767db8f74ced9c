//! The events that open a transaction and say which one it is.
//!
//! MySQL names transactions by server uuid, optional tag and number, and stamps them with the
//! microsecond of their commit; MariaDB by domain, server id and sequence, without a stamp.
//!
//! Protocol: MySQL `Gtid_event`, `Gtid_tagged_log_event` (a field list of the serialization
//! library), `Previous_gtids_event`; MariaDB `GTID_EVENT`.

use super::bytes::Bytes;
use crate::change::Micros;
use crate::position::{GtidSet, GtidSource, MariadbGtid};

/// What MySQL's GTID events say.
#[derive(Debug, Clone, PartialEq)]
pub struct MysqlGtid {
    /// `None`: an anonymous transaction, GTIDs are off.
    pub id: Option<(GtidSource, u64)>,
    /// On the server where it was first committed.
    pub committed_at: Option<Micros>,
}

/// Bit 55 of the commit stamp: another stamp, the original server's, follows.
const HAS_ORIGINAL: u64 = 1 << 55;

/// Events 33 and 34.
pub fn parse_gtid(kind: u8, data: &[u8]) -> Option<MysqlGtid> {
    let mut bytes = Bytes(data);
    bytes.skip(1)?;
    let uuid = bytes.array()?;
    let number = bytes.uint(8)?;
    // Logical clock: a type code and two numbers; servers before 5.7 end here.
    let committed_at = bytes.skip(1 + 16).and_then(|()| {
        let immediate = bytes.uint(7)?;
        if immediate & HAS_ORIGINAL == 0 { Some(immediate) } else { bytes.uint(7) }
    });
    let id = (kind == super::event::kind::GTID).then_some((GtidSource { uuid, tag: String::new() }, number));
    Some(MysqlGtid { id, committed_at: committed_at.map(|at| at as Micros) })
}

/// Event 42: fields in order, each behind its number; fields may be left out.
pub fn parse_tagged(data: &[u8]) -> Option<MysqlGtid> {
    let mut bytes = Bytes(data);
    let (_version, _size, _last_required) = (bytes.varlen()?, bytes.varlen()?, bytes.varlen()?);
    let mut uuid = [0; 16];
    let mut number = 0;
    let mut tag = String::new();
    let mut committed_at = None;
    while !bytes.is_empty() {
        match bytes.varlen()? {
            0 => bytes.skip(1)?,
            1 => {
                for byte in &mut uuid {
                    *byte = u8::try_from(bytes.varlen()?).ok()?;
                }
            }
            2 => number = signed(bytes.varlen()?)?,
            3 => {
                let length = usize::try_from(bytes.varlen()?).ok()?;
                tag = std::str::from_utf8(bytes.take(length)?).ok()?.to_owned();
            }
            4 | 5 => {
                bytes.varlen()?;
            }
            6 => committed_at = Some(bytes.varlen()?),
            7 => {
                committed_at = Some(bytes.varlen()?);
                break;
            }
            // What follows is about sizes and versions.
            _ => break,
        }
    }
    let id = (number > 0).then_some((GtidSource { uuid, tag }, number))?;
    Some(MysqlGtid { id: Some(id), committed_at: committed_at.map(|at| at as Micros) })
}

/// Zigzag; transaction numbers are positive.
fn signed(encoded: u64) -> Option<u64> {
    (encoded & 1 == 0).then_some(encoded >> 1)
}

/// Event 35: everything that was committed before this file.
pub fn parse_previous(data: &[u8]) -> Option<GtidSet> {
    let mut bytes = Bytes(data);
    let header = bytes.uint(8)?;
    let tagged = header >> 56 != 0;
    let count = if tagged { header >> 8 & 0xffff_ffff_ffff } else { header & 0x00ff_ffff_ffff_ffff };
    let mut set = GtidSet::default();
    for _ in 0..count {
        let uuid = bytes.array()?;
        let tag = if tagged {
            let length = usize::try_from(bytes.varlen()?).ok()?;
            std::str::from_utf8(bytes.take(length)?).ok()?.to_owned()
        } else {
            String::new()
        };
        let source = GtidSource { uuid, tag };
        for _ in 0..bytes.uint(8)? {
            set.add_range(&source, bytes.uint(8)?, bytes.uint(8)?);
        }
    }
    Some(set)
}

/// What MariaDB's GTID event (162) says.
#[derive(Debug, Clone, PartialEq)]
pub struct DomainGtid {
    pub domain: u32,
    pub gtid: MariadbGtid,
    /// The single statement that follows is the whole transaction.
    pub standalone: bool,
    /// What it wrote can be rolled back, all of it.
    pub transactional: bool,
    pub xa_prepared: bool,
}

pub fn parse_mariadb(server_id: u32, data: &[u8]) -> Option<DomainGtid> {
    let mut bytes = Bytes(data);
    let sequence = bytes.uint(8)?;
    let domain = bytes.uint(4)? as u32;
    let flags = bytes.u8()?;
    Some(DomainGtid {
        domain,
        gtid: MariadbGtid { server_id, sequence },
        standalone: flags & 0x01 != 0,
        transactional: flags & 0x04 != 0,
        xa_prepared: flags & 0x40 != 0,
    })
}

/// The set in the form in which a dump is asked for; with tags it is another one.
pub fn encode(set: &GtidSet) -> Vec<u8> {
    let tagged = set.intervals.keys().any(|source| !source.tag.is_empty());
    let count = set.intervals.len() as u64;
    let mut out = if tagged { 1 << 56 | count << 8 | 1 } else { count }.to_le_bytes().to_vec();
    for (source, intervals) in &set.intervals {
        out.extend(source.uuid);
        if tagged {
            // The length as a number of variable length; a tag has 32 letters at most.
            out.push((source.tag.len() as u8) << 1);
            out.extend(source.tag.as_bytes());
        }
        out.extend((intervals.len() as u64).to_le_bytes());
        for (start, end) in intervals {
            out.extend(start.to_le_bytes());
            out.extend(end.to_le_bytes());
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gtid_event_says_who_and_when() {
        let mut data = vec![0];
        data.extend([7; 16]);
        data.extend(42u64.to_le_bytes());
        data.push(2);
        data.extend([0; 16]);
        data.extend(&1_700_000_000_123_456u64.to_le_bytes()[..7]);

        let gtid = parse_gtid(33, &data).expect("well formed");

        assert_eq!(gtid.id, Some((GtidSource { uuid: [7; 16], tag: String::new() }, 42)));
        assert_eq!(gtid.committed_at, Some(1_700_000_000_123_456));
        assert_eq!(parse_gtid(34, &data).expect("well formed").id, None);
        for cut in 0..25 {
            assert_eq!(parse_gtid(33, &data[..cut]), None);
        }
    }

    /// As a file says it of what came before it.
    #[test]
    fn a_set_is_asked_for_as_the_log_writes_it() {
        for text in [
            "01010101-0101-0101-0101-010101010101:1-4:7, 02020202-0202-0202-0202-020202020202:5",
            "01010101-0101-0101-0101-010101010101:1-4:tag_a:1-2:9, 02020202-0202-0202-0202-020202020202:z:5",
        ] {
            let set: GtidSet = text.parse().expect("valid");

            assert_eq!(parse_previous(&encode(&set)), Some(set));
        }
    }

    #[test]
    fn a_mariadb_gtid_event_says_domain_and_kind() {
        let mut data = 9u64.to_le_bytes().to_vec();
        data.extend(3u32.to_le_bytes());
        data.push(0x29);

        let gtid = parse_mariadb(5, &data).expect("well formed");

        assert_eq!((gtid.domain, gtid.gtid), (3, MariadbGtid { server_id: 5, sequence: 9 }));
        assert!(gtid.standalone && !gtid.xa_prepared);
    }

    proptest::proptest! {
        #[test]
        fn malformed_events_are_refused_without_panic(data in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = (parse_gtid(33, &data), parse_tagged(&data), parse_previous(&data), parse_mariadb(1, &data));
        }
    }
}
