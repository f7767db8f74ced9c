//! Reads a binlog event's bytes in order; `None` where they end too early.

use std::io::Read;

/// What is left of an event.
#[derive(Debug, Clone, Copy)]
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    pub fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Little endian, as most of the log is; `count` at most 8.
    pub fn uint(&mut self, count: usize) -> Option<u64> {
        let bytes = self.take(count)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// Big endian, as temporal values are; `count` at most 8.
    pub fn uint_be(&mut self, count: usize) -> Option<u64> {
        let bytes = self.take(count)?;
        Some(bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    /// MySQL's length-encoded integer.
    pub fn lenenc(&mut self) -> Option<u64> {
        match self.u8()? {
            small @ 0..=250 => Some(u64::from(small)),
            0xfc => self.uint(2),
            0xfd => self.uint(3),
            0xfe => self.uint(8),
            _ => None,
        }
    }

    /// Bytes behind a length-encoded length.
    pub fn sized(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.lenenc()?).ok()?;
        self.take(length)
    }

    /// Of the serialization library of MySQL 8.3+: the number of trailing one bits says how
    /// many bytes follow.
    pub fn varlen(&mut self) -> Option<u64> {
        let first = self.u8()?;
        let more = first.trailing_ones() as usize;
        let rest = self.uint(more)?;
        Some(match more {
            0..=6 => rest << (7 - more) | u64::from(first) >> (more + 1),
            _ => rest,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether column `index` is set in a bitmap; past its end nothing is.
pub fn bit(bitmap: &[u8], index: usize) -> bool {
    bitmap.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

/// MariaDB's compressed bodies: a byte with the length of the length, the length, zlib.
pub fn inflate(mut bytes: Bytes<'_>, out: &mut Vec<u8>) -> Option<()> {
    let header = bytes.u8()?;
    let width = usize::from(header & 7);
    if header & 0x80 == 0 || width > 4 {
        return None;
    }
    let length = bytes.uint_be(width)?;
    out.clear();
    let mut plain = flate2::read::ZlibDecoder::new(bytes.0).take(length + 1);
    plain.read_to_end(out).ok()?;
    (out.len() as u64 == length).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_of_every_length_are_read() {
        let mut bytes = Bytes(&[0x01, 0x02, 0x03, 0xfc, 0x34, 0x12, 0x05, 0xfb]);

        assert_eq!(bytes.uint(2), Some(0x0201));
        assert_eq!(bytes.uint_be(1), Some(3));
        assert_eq!(bytes.lenenc(), Some(0x1234));
        assert_eq!(bytes.lenenc(), Some(5));
        assert_eq!(bytes.lenenc(), None);
        assert_eq!(bytes.uint(1), None);
    }

    #[test]
    fn variable_length_integers_are_read() {
        assert_eq!(Bytes(&[0b1111_1110]).varlen(), Some(127));
        assert_eq!(Bytes(&[0b0000_0001, 0b0000_0010]).varlen(), Some(128));
        assert_eq!(Bytes(&[0xff, 1, 0, 0, 0, 0, 0, 0, 0x80]).varlen(), Some(0x8000_0000_0000_0001));
    }
}
