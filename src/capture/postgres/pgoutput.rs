//! Logical replication messages, parsed where they lie in the receive buffer.
//!
//! Pure: bytes in, messages out, and malformed bytes are an error, never a panic. Tuples borrow
//! the buffer mutably, so that values (bytea) are decoded in place.
//!
//! Protocol: PostgreSQL manual, "Logical Replication Message Formats", version 1.

use crate::change::Micros;
use crate::position::Lsn;

/// Microseconds from 1970-01-01 to 2000-01-01, where PostgreSQL's clocks begin.
const EPOCH: i64 = 946_684_800_000_000;

/// What is wrong with a message, for the error that stops the flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

type Result<T> = std::result::Result<T, Malformed>;

/// What the server sends inside CopyData.
#[derive(Debug)]
pub enum Envelope<'a> {
    /// The header's LSNs are often 0 and never a position.
    Data(&'a mut [u8]),
    /// Everything before `wal_end` was decoded and, where published, sent.
    Keepalive { wal_end: Lsn, reply: bool },
}

pub fn envelope(bytes: &mut [u8]) -> Result<Envelope<'_>> {
    match bytes.first() {
        Some(b'w') => match bytes.split_at_mut_checked(25) {
            Some((_, data)) => Ok(Envelope::Data(data)),
            None => Err(Malformed("a data message without its header")),
        },
        Some(b'k') => {
            let mut cursor = Cursor(&bytes[1..]);
            let wal_end = Lsn(cursor.u64()?);
            cursor.u64()?;
            Ok(Envelope::Keepalive { wal_end, reply: cursor.u8()? != 0 })
        }
        Some(_) => Err(Malformed("an unknown kind of replication message")),
        None => Err(Malformed("an empty replication message")),
    }
}

#[derive(Debug)]
pub enum Message<'a> {
    Begin {
        /// Where the commit record begins.
        final_lsn: Lsn,
        xid: u32,
    },
    Commit {
        /// Where the commit record ends: the only position of a transaction.
        end_lsn: Lsn,
        committed_at: Micros,
    },
    Relation(Relation),
    Insert {
        new: Tuple<'a>,
    },
    Update {
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        old: Old<'a>,
    },
    Truncate {
        relations: Vec<u32>,
    },
    /// Names of types, origins, logical messages: nothing that we need.
    Ignored,
}

/// The image that an update or delete carries of the row before it.
#[derive(Debug)]
pub enum Old<'a> {
    /// Only the columns of the replica identity; the others are not sent, whatever they hold.
    Key(Tuple<'a>),
    Full(Tuple<'a>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub id: u32,
    pub schema: String,
    pub name: String,
    /// `d`efault, `n`othing, `f`ull or `i`ndex.
    pub identity: u8,
    pub columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Part of the replica identity; all are when that is full.
    pub identifies: bool,
    pub name: String,
    pub type_oid: u32,
    pub typmod: i32,
}

/// A row image whose structure has been checked.
#[derive(Debug)]
pub struct Tuple<'a> {
    pub len: usize,
    columns: &'a mut [u8],
}

#[derive(Debug, PartialEq, Eq)]
pub enum Field<'a> {
    Null,
    /// A TOASTed value that did not change.
    Unchanged,
    Text(&'a mut [u8]),
}

impl<'a> Tuple<'a> {
    /// Takes one tuple off the front of `bytes`.
    fn split(bytes: &'a mut [u8]) -> Result<(Tuple<'a>, &'a mut [u8])> {
        let mut cursor = Cursor(bytes);
        let len = usize::from(cursor.u16()?);
        for _ in 0..len {
            match cursor.u8()? {
                b'n' | b'u' => {}
                b't' => {
                    let size = cursor.u32()? as usize;
                    cursor.take(size)?;
                }
                b'b' => return Err(Malformed("a value in binary, though text was asked for")),
                _ => return Err(Malformed("an unknown kind of value in a row")),
            }
        }
        let size = bytes.len() - cursor.0.len();
        let (tuple, rest) = bytes.split_at_mut(size);
        Ok((Tuple { len, columns: &mut tuple[2..] }, rest))
    }

    fn whole(bytes: &'a mut [u8]) -> Result<Tuple<'a>> {
        match Tuple::split(bytes)? {
            (tuple, []) => Ok(tuple),
            _ => Err(Malformed("bytes behind a row")),
        }
    }

    /// Nothing but NULL, or nothing at all, outside of these columns.
    pub fn is_null_outside(&self, columns: &[bool]) -> bool {
        let mut rest = &self.columns[..];
        for within in columns {
            let Some((kind, after)) = rest.split_first() else { return true };
            rest = after;
            if *kind == b't' {
                let Some((size, after)) = rest.split_first_chunk::<4>() else { return true };
                rest = after.get(u32::from_be_bytes(*size) as usize..).unwrap_or_default();
            }
            if *kind != b'n' && !within {
                return false;
            }
        }
        true
    }

    pub fn fields(self) -> Fields<'a> {
        Fields { rest: self.columns }
    }
}

#[derive(Debug)]
pub struct Fields<'a> {
    rest: &'a mut [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let (kind, rest) = std::mem::take(&mut self.rest).split_first_mut()?;
        if *kind != b't' {
            self.rest = rest;
            return Some(if *kind == b'n' { Field::Null } else { Field::Unchanged });
        }
        let (size, rest) = rest.split_at_mut_checked(4)?;
        let size = u32::from_be_bytes([size[0], size[1], size[2], size[3]]) as usize;
        let (value, rest) = rest.split_at_mut_checked(size)?;
        self.rest = rest;
        Some(Field::Text(value))
    }
}

/// One message; anything that version 1 does not know is an error.
pub fn message(bytes: &mut [u8]) -> Result<Message<'_>> {
    let Some((kind, body)) = bytes.split_first_mut() else {
        return Err(Malformed("an empty message"));
    };
    match *kind {
        b'B' => {
            let mut cursor = Cursor(body);
            let final_lsn = Lsn(cursor.u64()?);
            cursor.u64()?;
            Ok(Message::Begin { final_lsn, xid: cursor.u32()? })
        }
        b'C' => {
            let mut cursor = Cursor(body);
            cursor.u8()?;
            cursor.u64()?;
            let end_lsn = Lsn(cursor.u64()?);
            let at = (cursor.u64()? as i64).checked_add(EPOCH);
            Ok(Message::Commit { end_lsn, committed_at: at.ok_or(Malformed("a commit time out of range"))? })
        }
        b'R' => relation(body).map(Message::Relation),
        b'I' => {
            let body = behind_relation(body)?;
            let (b'N', body) = tagged(body)? else { return Err(Malformed("an insert without a new row")) };
            Ok(Message::Insert { new: Tuple::whole(body)? })
        }
        b'U' => update(body),
        b'D' => {
            let body = behind_relation(body)?;
            let old = match tagged(body)? {
                (b'K', body) => Old::Key(Tuple::whole(body)?),
                (b'O', body) => Old::Full(Tuple::whole(body)?),
                _ => return Err(Malformed("a delete without an old row")),
            };
            Ok(Message::Delete { old })
        }
        b'T' => {
            let mut cursor = Cursor(body);
            let count = cursor.u32()? as usize;
            cursor.u8()?;
            if cursor.0.len() != count.saturating_mul(4) {
                return Err(Malformed("a truncate of another length than its count"));
            }
            let relations = (0..count).map(|_| cursor.u32()).collect::<Result<_>>()?;
            Ok(Message::Truncate { relations })
        }
        b'Y' | b'O' | b'M' => Ok(Message::Ignored),
        _ => Err(Malformed("a message that protocol version 1 does not have")),
    }
}

fn update(body: &mut [u8]) -> Result<Message<'_>> {
    let body = behind_relation(body)?;
    let (old, body) = match tagged(body)? {
        (b'N', body) => (None, body),
        (kind @ (b'K' | b'O'), body) => {
            let (tuple, rest) = Tuple::split(body)?;
            let (b'N', rest) = tagged(rest)? else { return Err(Malformed("an update without a new row")) };
            (Some(if kind == b'K' { Old::Key(tuple) } else { Old::Full(tuple) }), rest)
        }
        _ => return Err(Malformed("an update without a new row")),
    };
    Ok(Message::Update { old, new: Tuple::whole(body)? })
}

fn relation(body: &[u8]) -> Result<Relation> {
    let mut cursor = Cursor(body);
    let id = cursor.u32()?;
    let schema = cursor.string()?;
    let name = cursor.string()?;
    let identity = cursor.u8()?;
    let count = cursor.u16()?;
    let mut columns = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        columns.push(RelationColumn {
            identifies: cursor.u8()? & 1 != 0,
            name: cursor.string()?,
            type_oid: cursor.u32()?,
            typmod: cursor.u32()? as i32,
        });
    }
    // What is in pg_catalog has no schema here.
    let schema = if schema.is_empty() { "pg_catalog".to_owned() } else { schema };
    Ok(Relation { id, schema, name, identity, columns })
}

/// Of an insert, update or delete: whose row it is, before anything else is looked at.
pub fn row_relation(bytes: &[u8]) -> Result<u32> {
    match bytes {
        [_, a, b, c, d, ..] => Ok(u32::from_be_bytes([*a, *b, *c, *d])),
        _ => Err(Malformed("a row without its relation")),
    }
}

fn behind_relation(body: &mut [u8]) -> Result<&mut [u8]> {
    body.split_at_mut_checked(4).map(|(_, rest)| rest).ok_or(Malformed("a row without its relation"))
}

fn tagged(body: &mut [u8]) -> Result<(u8, &mut [u8])> {
    body.split_first_mut().map(|(tag, rest)| (*tag, rest)).ok_or(Malformed("a message that ends too early"))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(size).ok_or(Malformed("a message that ends too early"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Malformed("a message that ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn string(&mut self) -> Result<String> {
        let end = self.0.iter().position(|&byte| byte == 0).ok_or(Malformed("a name without its end"))?;
        let name = self.take(end)?;
        self.take(1)?;
        String::from_utf8(name.to_vec()).map_err(|_| Malformed("a name that is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(fields: &[Option<&str>]) -> Vec<u8> {
        let mut bytes = (fields.len() as u16).to_be_bytes().to_vec();
        for field in fields {
            match field {
                None => bytes.push(b'n'),
                Some("<unchanged>") => bytes.push(b'u'),
                Some(text) => {
                    bytes.push(b't');
                    bytes.extend((text.len() as u32).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
            }
        }
        bytes
    }

    fn parts(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    fn texts(tuple: Tuple<'_>) -> Vec<String> {
        tuple
            .fields()
            .map(|field| match field {
                Field::Null => "NULL".to_owned(),
                Field::Unchanged => "unchanged".to_owned(),
                Field::Text(text) => String::from_utf8_lossy(text).into_owned(),
            })
            .collect()
    }

    #[test]
    fn an_update_carries_old_and_new_row_apart() {
        let old = tuple(&[Some("7"), None]);
        let new = tuple(&[Some("8"), Some("<unchanged>")]);
        let mut bytes = parts(&[b"U", &16_385u32.to_be_bytes(), b"K", &old, b"N", &new]);

        assert_eq!(row_relation(&bytes), Ok(16_385));
        let Ok(Message::Update { old: Some(Old::Key(old)), new }) = message(&mut bytes) else {
            panic!("not an update with an old key");
        };

        assert_eq!(texts(old), ["7", "NULL"]);
        assert_eq!(texts(new), ["8", "unchanged"]);
    }

    /// Recorded from PostgreSQL 17: CREATE TABLE t (id int PRIMARY KEY, a numeric(6,2)).
    #[test]
    fn a_recorded_relation_names_its_columns_types_and_identity() {
        let mut bytes = parts(&[
            b"R\x00\x00\x40\x01public\0t\0d\x00\x02",
            b"\x01id\0\x00\x00\x00\x17\xff\xff\xff\xff",
            b"\x00a\0\x00\x00\x06\xa4\x00\x06\x00\x06",
        ]);

        let Ok(Message::Relation(relation)) = message(&mut bytes) else { panic!("not a relation") };

        assert_eq!((relation.schema.as_str(), relation.name.as_str(), relation.identity), ("public", "t", b'd'));
        assert_eq!(
            relation.columns,
            [
                RelationColumn { identifies: true, name: "id".into(), type_oid: 23, typmod: -1 },
                RelationColumn { identifies: false, name: "a".into(), type_oid: 1700, typmod: 393_222 },
            ]
        );
    }

    #[test]
    fn a_commit_is_at_its_end_and_in_our_epoch() {
        let mut bytes = parts(&[b"C\0", &1u64.to_be_bytes(), &99u64.to_be_bytes(), &1_000_000u64.to_be_bytes()]);

        let Ok(Message::Commit { end_lsn, committed_at }) = message(&mut bytes) else { panic!("not a commit") };

        assert_eq!(end_lsn, Lsn(99));
        assert_eq!(committed_at, EPOCH + 1_000_000);
    }

    #[test]
    fn what_ends_too_early_or_goes_on_too_long_is_malformed() {
        let whole = parts(&[b"I", &1u32.to_be_bytes(), b"N", &tuple(&[Some("abc"), None])]);
        for end in 0..whole.len() {
            assert!(message(&mut whole[..end].to_vec()).is_err(), "cut at {end}");
        }
        assert!(message(&mut parts(&[&whole, b"x"])).is_err());
        assert!(message(&mut b"S\0\0\0\0\x01".to_vec()).is_err(), "streaming was not asked for");
        assert!(message(&mut b"T\xff\xff\xff\xff\0".to_vec()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(kind in prop::sample::select(b"BCRIUDTYOMSE".to_vec()), body: Vec<u8>) {
            let mut bytes = vec![kind];
            bytes.extend(&body);
            match message(&mut bytes) {
                Ok(Message::Insert { new }) => { texts(new); }
                Ok(Message::Update { old, new }) => {
                    if let Some(Old::Key(old) | Old::Full(old)) = old { texts(old); }
                    texts(new);
                }
                Ok(Message::Delete { old: Old::Key(old) | Old::Full(old) }) => { texts(old); }
                _ => {}
            }
            let _ = envelope(&mut body.clone());
        }

        /// Whatever a row holds comes back field by field.
        #[test]
        fn rows_come_back_as_they_were_sent(fields: Vec<Option<String>>) {
            let fields: Vec<Option<&str>> = fields.iter().map(Option::as_deref).collect();
            let mut bytes = parts(&[b"I", &1u32.to_be_bytes(), b"N", &tuple(&fields)]);
            let Ok(Message::Insert { new }) = message(&mut bytes) else { panic!("not an insert") };

            prop_assert_eq!(new.len, fields.len());
            let expected: Vec<String> = fields.iter().map(|f| f.unwrap_or("NULL").to_owned()).collect();
            prop_assert_eq!(texts(new), expected);
        }
    }
}
