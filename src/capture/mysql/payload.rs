//! A compressed transaction, unpacked as it arrives.
//!
//! MySQL packs all events of a transaction but its GTID into one, of up to 1 GiB, and of any
//! size when it is unpacked. Neither is ever in memory: pieces go in, events come out, and
//! between them are one window of the compression and one event. An event is handed on when
//! the next one has begun, the last one when the whole was right: its size, and the checksum
//! behind it. So no commit comes out of a payload that is damaged.
//!
//! ```text
//! packet, packet, … ──feed──▶ fields │ zstd ──▶ event │ event │ …      checksum
//! ```
//!
//! Protocol: MySQL `Transaction_payload_event`.

use std::ops::Range;

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::bytes::Bytes;
use super::event::{HEADER, kind};
use crate::error::{Error, Result};

/// Unpacked at once.
const STEP: usize = 64 << 10;
/// The fields before the payload, at most.
const FIELDS_MAX: usize = 1024;

pub struct Payload {
    /// Of what was fed, header and body.
    checksum: crc32fast::Hasher,
    /// Bytes of the body that have not been fed.
    body: usize,
    expected: Option<Vec<u8>>,
    fields: Vec<u8>,
    packing: Option<Packing>,
    /// Unpacked and not handed on.
    out: Vec<u8>,
    from: usize,
    unpacked: u64,
    /// The decoder may have more for the same input.
    more: bool,
    whole: bool,
}

struct Packing {
    /// `None`: not compressed.
    decoder: Option<Decoder<'static>>,
    unpacked: u64,
    /// The decoder is between two frames.
    ended: bool,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// An event, header included, lies at this place of [`Payload::bytes`].
    Event(Range<usize>),
    /// More of the payload has to be fed.
    Feed,
    /// That was all, and it was right.
    End,
}

impl Payload {
    /// Begins with the header of the event; `length` is that of what follows it.
    pub fn new(header: &[u8], length: usize, checksums: bool) -> Result<Self> {
        let trailer = if checksums { 4 } else { 0 };
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(header);
        Ok(Payload {
            checksum,
            body: length.checked_sub(trailer).ok_or_else(|| damaged("it ends too early"))?,
            expected: checksums.then(Vec::new),
            fields: Vec::new(),
            packing: None,
            out: Vec::new(),
            from: 0,
            unpacked: 0,
            more: false,
            whole: false,
        })
    }

    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.out[range]
    }

    /// All was unpacked, and was right: what comes out now is the last event.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The next event, or what is missing for it. `piece` is taken as far as it is needed.
    pub fn step(&mut self, piece: &mut &[u8]) -> Result<Step> {
        loop {
            if let Some(event) = self.event()? {
                return Ok(Step::Event(event));
            }
            if self.whole {
                return Ok(Step::End);
            }
            if !self.more && piece.is_empty() && self.body > 0 {
                return Ok(Step::Feed);
            }
            if self.more || self.body > 0 {
                self.unpack(piece)?;
            } else if !self.verify(piece)? {
                return Ok(Step::Feed);
            }
        }
    }

    /// An event that may be handed on.
    fn event(&mut self) -> Result<Option<Range<usize>>> {
        let rest = &self.out[self.from..];
        let Some(size) = rest.get(9..13) else {
            return if self.whole && !rest.is_empty() { Err(damaged("it ends within an event")) } else { Ok(None) };
        };
        let size = u32::from_le_bytes(size.try_into().expect("four bytes")) as usize;
        if size < HEADER {
            return Err(damaged("it holds an event without a length"));
        }
        if rest.len() < size {
            return if self.whole { Err(damaged("it ends within an event")) } else { Ok(None) };
        }
        if rest.len() == size && !self.whole {
            return Ok(None);
        }
        if rest.len() > size && rest[4] == kind::XID {
            return Err(damaged("events follow its commit"));
        }
        let event = self.from..self.from + size;
        self.from = event.end;
        Ok(Some(event))
    }

    /// One step: some of the piece goes in, a bounded number of bytes comes out.
    fn unpack(&mut self, piece: &mut &[u8]) -> Result<()> {
        let input = &piece[..piece.len().min(self.body)];
        if self.packing.is_none() {
            return self.begin(piece);
        }
        // What is left of an event moves to the front; a large one is there already.
        self.out.drain(..std::mem::take(&mut self.from));
        let at = self.out.len();
        let packing = self.packing.as_mut().expect("begun above");
        let (used, written) = match &mut packing.decoder {
            Some(decoder) => {
                self.out.resize(at + STEP, 0);
                let mut input = InBuffer::around(input);
                let mut output = OutBuffer::around(&mut self.out[at..]);
                let hint = decoder.run(&mut input, &mut output).map_err(|error| damaged("zstd").because(error))?;
                let (used, written) = (input.pos(), output.pos());
                // Asked in vain behind a frame, it speaks of the next one.
                if used + written > 0 {
                    packing.ended = hint == 0;
                }
                (used, written)
            }
            None => {
                self.out.extend_from_slice(input);
                (input.len(), input.len())
            }
        };
        self.out.truncate(at + written);
        self.more = packing.decoder.is_some() && written == STEP;
        self.unpacked += written as u64;
        if self.unpacked > packing.unpacked {
            return Err(damaged("it is larger than it says"));
        }
        self.fed(piece, used);
        Ok(())
    }

    /// Reads the fields before the payload.
    fn begin(&mut self, piece: &mut &[u8]) -> Result<()> {
        let before = self.fields.len();
        let taken = piece.len().min(self.body).min(FIELDS_MAX - before);
        self.fields.extend_from_slice(&piece[..taken]);
        match parse_fields(&self.fields) {
            Some((fields, length)) => {
                let used = length - before;
                self.fed(piece, used);
                if fields.size != self.body as u64 {
                    return Err(damaged("its size is not what it says"));
                }
                let decoder = match fields.compression {
                    ZSTD => Some(Decoder::new().map_err(|error| damaged("zstd").because(error))?),
                    NONE => None,
                    other => {
                        return Err(Error::stop(
                            format!("a transaction of the log is compressed in a way ({other}) that is not known"),
                            "SET GLOBAL binlog_transaction_compression=OFF, or update the agent",
                        ));
                    }
                };
                let unpacked = if decoder.is_some() { fields.unpacked } else { fields.size };
                self.packing = Some(Packing { decoder, unpacked, ended: true });
                Ok(())
            }
            None if taken == 0 || self.body == taken => Err(damaged("it has no beginning")),
            None => {
                self.fed(piece, taken);
                Ok(())
            }
        }
    }

    fn fed(&mut self, piece: &mut &[u8], bytes: usize) {
        let (taken, rest) = piece.split_at(bytes);
        self.checksum.update(taken);
        self.body -= bytes;
        *piece = rest;
    }

    /// All is unpacked: whether it was right. False where the checksum has not arrived.
    fn verify(&mut self, piece: &mut &[u8]) -> Result<bool> {
        if let Some(expected) = &mut self.expected {
            let (taken, rest) = piece.split_at(piece.len().min(4 - expected.len()));
            expected.extend_from_slice(taken);
            *piece = rest;
            if expected.len() < 4 {
                return Ok(false);
            }
            if self.checksum.clone().finalize().to_le_bytes() != expected[..] {
                return Err(Error::retry("a compressed transaction of the log came with a wrong checksum"));
            }
        }
        match &self.packing {
            Some(packing) if packing.ended && packing.unpacked == self.unpacked => self.whole = true,
            _ => return Err(damaged("it ends too early")),
        }
        Ok(true)
    }
}

const ZSTD: u64 = 0;
const NONE: u64 = 255;

struct Fields {
    size: u64,
    compression: u64,
    unpacked: u64,
}

/// Number, length, value; number 0 ends them. With the length of them all.
fn parse_fields(data: &[u8]) -> Option<(Fields, usize)> {
    let mut bytes = Bytes(data);
    let (mut size, mut compression, mut unpacked) = (None, None, 0);
    loop {
        let number = bytes.lenenc()?;
        if number == 0 {
            let fields = Fields { size: size?, compression: compression?, unpacked };
            return Some((fields, data.len() - bytes.0.len()));
        }
        let mut value = Bytes(bytes.sized()?);
        match number {
            1 => size = Some(value.lenenc()?),
            2 => compression = Some(value.lenenc()?),
            3 => unpacked = value.lenenc()?,
            _ => {}
        }
    }
}

fn damaged(what: &str) -> Error {
    Error::stop(
        format!("a compressed transaction of the log cannot be unpacked: {what}"),
        "the server's log is damaged: begin anew at its present end and compare the tables",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(size: usize, fill: u8) -> Vec<u8> {
        let mut event = vec![fill; size];
        event[9..13].copy_from_slice(&(size as u32).to_le_bytes());
        event
    }

    /// A payload event's header, and its body with a checksum.
    fn packed(events: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
        let plain = events.concat();
        let packed = zstd::encode_all(&plain[..], 3).expect("packs");
        let size = |n: usize| [&[0xfe][..], &(n as u64).to_le_bytes()].concat();
        let mut body = [&[2, 1, 0, 3, 9][..], &size(plain.len()), &[1, 9], &size(packed.len()), &[0], &packed].concat();
        let header = vec![7; HEADER];
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&header);
        checksum.update(&body);
        body.extend(checksum.finalize().to_le_bytes());
        (header, body)
    }

    /// Feeds `body` in pieces and collects the events' sizes and first bytes.
    fn unpack(header: &[u8], body: &[u8], piece: usize) -> Result<Vec<(usize, u8)>> {
        let mut payload = Payload::new(header, body.len(), true)?;
        let mut pieces = body.chunks(piece);
        let (mut rest, mut events, mut most) = (&[][..], Vec::new(), 0);
        loop {
            match payload.step(&mut rest)? {
                Step::Event(at) => events.push((at.len(), payload.bytes(at)[0])),
                Step::Feed => match pieces.next() {
                    Some(piece) => rest = piece,
                    None => return Err(damaged("nothing more to feed")),
                },
                Step::End => break,
            }
            most = most.max(payload.out.capacity());
        }
        assert!(most < 600_000, "{most} bytes held");
        Ok(events)
    }

    #[test]
    fn events_come_out_whole_whatever_the_pieces() {
        let events = [inner(19, 1), inner(200_000, 2), inner(30, 3), inner(100, 4)];
        let (header, body) = packed(&events);

        for piece in [1, 7, 1000, 1 << 20] {
            let found = unpack(&header, &body, piece).expect("right");
            assert_eq!(found, [(19, 1), (200_000, 2), (30, 3), (100, 4)], "pieces of {piece}");
        }
    }

    /// 256 MiB of events that pack into next to nothing: what is held does not grow.
    #[test]
    fn what_is_held_does_not_grow_with_what_is_packed() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
        let event = inner(8192, 9);
        let count = (256 << 20) / event.len();
        (0..count).for_each(|_| std::io::Write::write_all(&mut encoder, &event).expect("memory"));
        let packed = encoder.finish().expect("memory");
        let size = |n: usize| [&[0xfe][..], &(n as u64).to_le_bytes()].concat();
        let body =
            [&[2, 1, 0, 3, 9][..], &size(count * event.len()), &[1, 9], &size(packed.len()), &[0], &packed].concat();
        let mut payload = Payload::new(&[0; HEADER], body.len(), false).expect("long enough");
        let (mut rest, mut found) = (&body[..], 0);
        while let Step::Event(_) = payload.step(&mut rest).expect("right") {
            found += 1;
            assert!(payload.out.capacity() < 4 * STEP);
        }

        assert_eq!(found, count);
    }

    /// The last event, which commits, never comes out of a damaged payload.
    #[test]
    fn damage_keeps_the_last_event_back() {
        let events = [inner(100, 1), inner(100, 2)];
        let (header, body) = packed(&events);

        for at in 0..body.len() {
            let mut bad = body.clone();
            bad[at] ^= 0x40;
            let error = unpack(&header, &bad, 64).expect_err("damaged");
            assert!(!error.message.is_empty());
            assert!(unpack(&header, &body[..at], 64).is_err(), "cut at {at}");
        }
    }
}
