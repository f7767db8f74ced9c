//! The dump connection: asked for, kept alive, checked, and its failures told apart.
//!
//! The connection hands on packets, here they become events: checksums are verified, silence
//! beyond three heartbeats is a dead peer, an orderly end (the server shut down) is a reason to
//! connect again, and the server's refusals are told apart into those that time mends and those
//! that need a person. Compressed transactions come out as the events that they hold.
//!
//! An event lies where it arrived. One that is larger than the inbox is put together once, in
//! memory that goes with it.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::event::{Event, HEADER, kind};
use super::gtid;
use super::identity_query;
use super::payload::{Payload, Step};
use super::wire::{INBOX, PACKET_MAX, Wire, packet_header, server_error};
use crate::connect::mysql::{Flavour, failed};
use crate::error::{Error, Result};
use crate::position::{BinlogPosition, GtidSet, Position};

const HEARTBEAT: Duration = Duration::from_secs(5);
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// How often this process was pushed off a server id by another.
static CLASHES: AtomicU32 = AtomicU32::new(0);

pub struct Stream {
    wire: Wire,
    heard: Instant,
    /// Events bear a checksum; the format description says so.
    checksums: bool,
    /// No format description yet.
    fresh: bool,
    packet: Packet,
    /// The event that is being put together.
    large: Vec<u8>,
}

/// What of the present packet is still to come.
enum Packet {
    /// The next one has not begun.
    None,
    /// Of an event larger than the inbox.
    Large(Rest),
    Payload {
        header: [u8; HEADER],
        payload: Box<Payload>,
        rest: Rest,
        /// Arrived, and not yet fed.
        piece: Range<usize>,
        /// The event before the last: the payload itself was handed on.
        shown: bool,
        /// An inner event that waits until then.
        last: Option<Range<usize>>,
    },
}

/// A packet that is longer than what has arrived, or goes on in others.
#[derive(Clone, Copy)]
struct Rest {
    bytes: usize,
    /// It was of the greatest length: another one continues it.
    continued: bool,
}

/// Where an event lies.
enum Place {
    Inbox(Range<usize>),
    Large,
    Inner(Range<usize>),
    /// The payload event itself, behind what it held.
    Payload,
}

/// A number that no server has, the same at every start: from the agent and the server it
/// reads. Another one after each clash.
pub fn server_id(agent: &str, identity: &str) -> u32 {
    let attempt = CLASHES.load(Ordering::Relaxed);
    let hash = xxhash_rust::xxh3::xxh3_64(format!("{agent}\0{identity}\0{attempt}").as_bytes());
    0x8000_0000 | (hash as u32 >> 1).min(0x7fff_fffe)
}

/// Where a stream begins.
pub enum From<'a> {
    File(&'a BinlogPosition),
    Gtids(&'a GtidSet),
    /// MariaDB: `@slave_connect_state`.
    Domains(String),
}

impl Stream {
    pub async fn open(mut wire: Wire, id: u32, from: From<'_>) -> Result<Stream> {
        prepare(&mut wire, &from).await?;
        register(&mut wire, id).await?;
        let (command, body) = match &from {
            From::File(at) => {
                let offset = u32::try_from(at.offset).map_err(|_| {
                    Error::lost(
                        format!("the log's position {at} lies beyond 4 GiB, where only GTIDs lead"),
                        "enable GTIDs (gtid_mode=ON), or begin anew at the log's present end",
                    )
                })?;
                (DUMP, [&offset.to_le_bytes()[..], &[0; 2], &id.to_le_bytes(), at.file.as_bytes()].concat())
            }
            From::Gtids(set) => {
                let set = gtid::encode(set);
                let length = (set.len() as u32).to_le_bytes();
                let head = [&[4, 0][..], &id.to_le_bytes(), &[0; 4], &4u64.to_le_bytes(), &length].concat();
                (DUMP_GTID, [head, set].concat())
            }
            // The session has said where; an empty name and offset.
            From::Domains(_) => (DUMP, [&4u32.to_le_bytes()[..], &[0; 2], &id.to_le_bytes()].concat()),
        };
        wire.command(command, &body).await?;
        Ok(Stream {
            wire,
            heard: Instant::now(),
            checksums: false,
            fresh: true,
            packet: Packet::None,
            large: Vec::new(),
        })
    }

    /// What has arrived already.
    pub fn arrived(&mut self) -> Result<Option<Event<'_>>> {
        loop {
            if let Some(place) = self.advance()? {
                return self.event(place).map(Some);
            }
            match self.wire.fill().now_or_never() {
                Some(filled) => filled?,
                None => return Ok(None),
            }
        }
    }

    /// Waits for the next event for a while.
    pub async fn next(&mut self, patience: Duration) -> Result<Option<Event<'_>>> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            if let Some(place) = self.advance()? {
                return self.event(place).map(Some);
            }
            match tokio::time::timeout_at(deadline, self.wire.fill()).await {
                Ok(filled) => {
                    filled?;
                    self.heard = Instant::now();
                }
                Err(_) => break,
            }
        }
        let silent = self.heard.elapsed();
        if silent > SILENCE_MAX {
            return Err(Error::retry(format!("the log's connection was silent for {} s", silent.as_secs())));
        }
        Ok(None)
    }

    /// The next event of what has arrived; `None`: more must come.
    fn advance(&mut self) -> Result<Option<Place>> {
        loop {
            match &mut self.packet {
                Packet::None => {
                    if self.large.capacity() > 4 * INBOX {
                        self.large = Vec::new();
                    }
                    let Some(place) = self.begin()? else { return Ok(None) };
                    match place {
                        Begun::Event(at) => return Ok(Some(Place::Inbox(at))),
                        Begun::Pieces => {}
                    }
                }
                Packet::Large(rest) => match rest.piece(&mut self.wire) {
                    Piece::Bytes(at) => self.large.extend_from_slice(self.wire.bytes(at)),
                    Piece::Wait => return Ok(None),
                    Piece::End => {
                        self.packet = Packet::None;
                        return Ok(Some(Place::Large));
                    }
                },
                Packet::Payload { payload, rest, piece, shown, last, .. } => {
                    if let Some(last) = last.take() {
                        return Ok(Some(Place::Inner(last)));
                    }
                    let mut bytes = self.wire.bytes(piece.clone());
                    let step = payload.step(&mut bytes)?;
                    piece.start = piece.end - bytes.len();
                    match step {
                        Step::Event(at) if payload.is_whole() && !*shown => {
                            (*shown, *last) = (true, Some(at));
                            return Ok(Some(Place::Payload));
                        }
                        Step::Event(at) => return Ok(Some(Place::Inner(at))),
                        Step::End => self.packet = Packet::None,
                        Step::Feed => match rest.piece(&mut self.wire) {
                            Piece::Bytes(at) => *piece = at,
                            Piece::Wait => return Ok(None),
                            Piece::End => return Err(malformed("a compressed transaction ends too early")),
                        },
                    }
                }
            }
        }
    }

    /// Begins a packet. Whole small ones are events at once.
    fn begin(&mut self) -> Result<Option<Begun>> {
        let unread = self.wire.unread();
        let Some((length, _)) = packet_header(unread) else { return Ok(None) };
        let small = length + 4 <= INBOX;
        // Of a large one, the head suffices.
        let needed = 4 + if small { length } else { 1 + HEADER };
        let Some(packet) = unread.get(4..needed) else { return Ok(None) };
        match packet.first() {
            Some(0) if packet.len() > HEADER => {}
            Some(0xfe) if length < 9 => return Err(Error::retry("the server ended the log's connection")),
            _ => {
                let said = server_error(packet);
                return Err(
                    said.map_or_else(|| malformed("a packet holds no event"), |e| refused(e, "reading the log"))
                );
            }
        }
        let header = header_of(&packet[1..]);
        if header[4] == kind::TRANSACTION_PAYLOAD {
            let size = u32::from_le_bytes([header[9], header[10], header[11], header[12]]) as usize;
            let body = size.checked_sub(HEADER).ok_or_else(|| malformed("an event has no length"))?;
            let payload = Box::new(Payload::new(&header, body, self.checksums)?);
            self.wire.consume(4 + 1 + HEADER);
            let rest = Rest { bytes: length - 1 - HEADER, continued: length == PACKET_MAX };
            self.packet = Packet::Payload { header, payload, rest, piece: 0..0, shown: false, last: None };
            return Ok(Some(Begun::Pieces));
        }
        if small {
            let at = self.wire.consume(4 + length);
            return Ok(Some(Begun::Event(at.start + 5..at.end)));
        }
        let size = u32::from_le_bytes([header[9], header[10], header[11], header[12]]);
        self.large.clear();
        // Once, as large as it will be; pages that are not written take no memory.
        self.large.reserve_exact((size as usize).min(1 << 30));
        self.wire.consume(5);
        self.packet = Packet::Large(Rest { bytes: length - 1, continued: length == PACKET_MAX });
        Ok(Some(Begun::Pieces))
    }

    fn event(&mut self, place: Place) -> Result<Event<'_>> {
        let inbox = match place {
            Place::Inbox(at) => Some(at),
            Place::Large => None,
            Place::Inner(at) => {
                let Packet::Payload { payload, .. } = &self.packet else { unreachable!("the place is in it") };
                let bytes = payload.bytes(at);
                return Ok(Event::new(&header_of(bytes), &bytes[HEADER..]));
            }
            Place::Payload => {
                let Packet::Payload { header, .. } = &self.packet else { unreachable!("the place is in it") };
                return Ok(Event::new(header, &[]));
            }
        };
        let bytes = inbox.map_or(&self.large[..], |at| self.wire.bytes(at));
        if bytes.len() < HEADER {
            return Err(malformed("an event is shorter than its header"));
        }
        let header = header_of(bytes);
        let kind = header[4];
        if kind == kind::FORMAT_DESCRIPTION {
            // The algorithm stands before the checksum, which this event always has.
            self.checksums = bytes.len() > HEADER + 5 && bytes[bytes.len() - 5] == 1;
            self.fresh = false;
        }
        let trailer = if self.fresh && kind == kind::ROTATE {
            // Sent before the format description: some servers give it a checksum, some do not.
            if checksum_is_right(bytes) { 4 } else { 0 }
        } else if !self.checksums {
            0
        } else if checksum_is_right(bytes) {
            4
        } else {
            let log_pos = Event::new(&header, &[]).log_pos;
            return Err(Error::retry(format!(
                "an event of the log (kind {kind}, ending at {log_pos}) came with a wrong checksum"
            )));
        };
        Ok(Event::new(&header, &bytes[HEADER..bytes.len() - trailer]))
    }
}

enum Begun {
    /// Whole, without the packet's own bytes.
    Event(Range<usize>),
    Pieces,
}

enum Piece {
    Bytes(Range<usize>),
    Wait,
    End,
}

impl Rest {
    /// What has arrived of it, and was not taken.
    fn piece(&mut self, wire: &mut Wire) -> Piece {
        if self.bytes == 0 {
            if !self.continued {
                return Piece::End;
            }
            let Some((length, _)) = packet_header(wire.unread()) else { return Piece::Wait };
            wire.consume(4);
            *self = Rest { bytes: length, continued: length == PACKET_MAX };
            if length == 0 {
                return Piece::End;
            }
        }
        match wire.unread().len().min(self.bytes) {
            0 => Piece::Wait,
            taken => {
                self.bytes -= taken;
                Piece::Bytes(wire.consume(taken))
            }
        }
    }
}

fn header_of(bytes: &[u8]) -> [u8; HEADER] {
    *bytes.first_chunk().expect("its length was looked at")
}

/// The event ends in its own CRC32.
fn checksum_is_right(bytes: &[u8]) -> bool {
    let Some((body, checksum)) = bytes.split_last_chunk::<4>() else { return false };
    crc32fast::hash(body).to_le_bytes() == *checksum
}

fn malformed(what: &str) -> Error {
    Error::stop(
        format!("the log's connection is not understood: {what}"),
        "report this as a bug, with the server's version",
    )
}

const REGISTER: u8 = 21;
const DUMP: u8 = 18;
const DUMP_GTID: u8 = 30;

/// Shows in the server's list of replicas.
async fn register(wire: &mut Wire, id: u32) -> Result<()> {
    let name = b"anechoic";
    let body = [&id.to_le_bytes()[..], &[name.len() as u8], name, &[0; 2], &[0; 2], &[0; 8]].concat();
    wire.command(REGISTER, &body).await?;
    wire.reply().await?.map(drop).map_err(|error| refused(error, "asking for the log"))
}

async fn prepare(wire: &mut Wire, from: &From<'_>) -> Result<()> {
    let period = HEARTBEAT.as_nanos();
    // net_write_timeout: while the agent waits for a target, the server waits for us.
    let mut settings = format!(
        "SET @master_heartbeat_period = {period}, @source_heartbeat_period = {period}, net_write_timeout = 3600, \
         @master_binlog_checksum = 'CRC32', @source_binlog_checksum = 'CRC32'"
    );
    if wire.flavour == Flavour::Mariadb {
        // Without it the server rewrites GTID events into something older.
        settings.push_str(", @mariadb_slave_capability = 4");
        if let From::Domains(state) = from {
            settings.push_str(&format!(", @slave_connect_state = '{state}', @slave_gtid_strict_mode = 0"));
        }
    }
    wire.execute(&settings, "preparing the log's connection").await
}

/// What the server says when it will not, or no longer, send its log.
fn refused(error: mysql_async::Error, doing: &str) -> Error {
    let mysql_async::Error::Server(server) = &error else { return failed(error, doing) };
    let said = server.message.to_lowercase();
    let clash = server.code == 4052 || said.contains("same server_uuid") || said.contains("same server_id");
    if clash {
        CLASHES.fetch_add(1, Ordering::Relaxed);
        return Error::retry("another reader with our server id took the log's connection")
            .hint("is a second agent with the same id running? otherwise another id is tried now")
            .code(server.code.to_string())
            .because(error);
    }
    match server.code {
        1236 => {
            let message = server.message.clone();
            Error::lost(
                format!("the server no longer sends its log from our position on: {message}"),
                "what was written since cannot be read from the log",
            )
            .because(error)
        }
        1045 | 1227 | 1142 | 1380 => {
            let code = server.code.to_string();
            Error::stop(
                format!("{doing}: the role may not read the log"),
                "GRANT REPLICATION SLAVE ON *.* to the agent's user",
            )
            .code(code)
            .because(error)
        }
        _ => failed(error, doing),
    }
}

/// Decides where to begin, after making sure that the server still has what follows `start`.
pub async fn begin<'a>(wire: &mut Wire, start: &'a Position, pinned: &str) -> Result<(From<'a>, bool)> {
    match start {
        Position::Mysql { gtids, binlog, .. } => {
            let mode = wire.row("SELECT @@gtid_mode", "reading gtid_mode").await?;
            let on = mode.first().and_then(Option::as_deref) == Some("ON");
            if on && !gtids.is_empty() {
                check_gtids(wire, gtids).await?;
                check_grown(wire, binlog, pinned).await?;
                return Ok((From::Gtids(gtids), on));
            }
            check_identity(wire, pinned).await?;
            Ok((From::File(binlog), on))
        }
        Position::Mariadb { domains, binlog } if domains.is_empty() => {
            check_identity(wire, pinned).await?;
            Ok((From::File(binlog), true))
        }
        Position::Mariadb { binlog, .. } => {
            check_grown(wire, binlog, pinned).await?;
            Ok((From::Domains(start.to_string()), true))
        }
        Position::Postgres { .. } | Position::Memory { .. } => {
            Err(Error::lost(format!("{start} is not a position in a binlog"), "the system was another one"))
        }
    }
}

async fn check_gtids(wire: &mut Wire, ours: &GtidSet) -> Result<()> {
    let doing = "reading what the server has";
    let row = wire.row("SELECT @@GLOBAL.gtid_purged, @@GLOBAL.gtid_executed", doing).await?;
    let set = |at: usize| {
        let text = row.get(at).and_then(Option::as_deref).unwrap_or_default();
        text.parse::<GtidSet>().map_err(|error| Error::stop(error, "report this as a bug"))
    };
    let (purged, executed) = (set(0)?, set(1)?);
    let missing = purged.subtract(ours);
    if !missing.is_empty() {
        return Err(Error::lost(
            format!("the server has purged transactions that were not read yet: {missing}"),
            "they cannot be read from the log any more; raise binlog_expire_logs_seconds, then",
        ));
    }
    let ahead = ours.subtract(&executed);
    if !ahead.is_empty() {
        return Err(Error::lost(
            format!("the server lacks transactions that were read from it before: {ahead}"),
            "its GTIDs were reset, it was restored from a backup or replaced by a replica that lagged",
        ));
    }
    Ok(())
}

/// A log only grows. Where one was begun anew its GTIDs count from one again, and those that the
/// new log reuses would be taken for the ones that were read.
async fn check_grown(wire: &mut Wire, ours: &BinlogPosition, pinned: &str) -> Result<()> {
    if identity(wire).await? != pinned {
        return Ok(());
    }
    let query = match wire.flavour {
        Flavour::Mysql => "SHOW BINARY LOG STATUS",
        Flavour::Mariadb => "SHOW MASTER STATUS",
    };
    let row = wire.row(query, "reading the log's end").await?;
    let column = |at: usize| row.get(at).and_then(Option::as_deref).unwrap_or_default();
    let end = BinlogPosition { file: column(0).to_owned(), offset: column(1).parse().unwrap_or(u64::MAX), begun: 0 };
    match is_before(&end, ours) {
        false => Ok(()),
        true => Err(Error::lost(
            format!("the server's log ends at {end}, before our position {ours}"),
            "it was reset, or the server was restored from a backup",
        )),
    }
}

/// Of files of one name, numbered.
fn is_before(end: &BinlogPosition, ours: &BinlogPosition) -> bool {
    let split = |file: &str| {
        let (name, number) = file.rsplit_once('.')?;
        Some((name.to_owned(), number.parse::<u64>().ok()?))
    };
    match (split(&end.file), split(&ours.file)) {
        (Some((name, number)), Some((our_name, our_number))) => {
            name == our_name && (number, end.offset) < (our_number, ours.offset)
        }
        _ => false,
    }
}

/// File and offset mean something on one server only.
async fn check_identity(wire: &mut Wire, pinned: &str) -> Result<()> {
    let now = identity(wire).await?;
    if now == pinned || pinned.is_empty() {
        return Ok(());
    }
    Err(Error::lost(
        format!("the server is {now}, the stored position is of {pinned}"),
        "a file and offset lead nowhere on another server: connect to the former one, or",
    ))
}

async fn identity(wire: &mut Wire) -> Result<String> {
    let row = wire.row(identity_query(wire.flavour), "reading the server's identity").await?;
    Ok(row.into_iter().next().flatten().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::error::Recovery;

    /// A stream whose server is the other end, past the request.
    fn stream() -> (Stream, tokio::io::DuplexStream) {
        let (server, socket) = tokio::io::duplex(1 << 20);
        let wire = Wire::over(Box::new(socket), true);
        let (packet, large) = (Packet::None, Vec::new());
        (Stream { wire, heard: Instant::now(), checksums: true, fresh: false, packet, large }, server)
    }

    /// An event of so many bytes with its checksum.
    fn event(kind: u8, size: usize) -> Vec<u8> {
        let mut event = vec![size as u8; size];
        event[..HEADER].fill(0);
        event[4] = kind;
        event[9..13].copy_from_slice(&(size as u32).to_le_bytes());
        let end = size - 4;
        let checksum = crc32fast::hash(&event[..end]).to_le_bytes();
        event[end..].copy_from_slice(&checksum);
        event
    }

    /// As the server cuts it into packets.
    async fn send(server: &mut tokio::io::DuplexStream, event: &[u8]) {
        let body = [&[0], event].concat();
        let mut packets = body.chunks(PACKET_MAX).collect::<Vec<_>>();
        if body.len() % PACKET_MAX == 0 {
            packets.push(&[]);
        }
        for packet in packets {
            server.write_all(&(packet.len() as u32).to_le_bytes()).await.expect("the stream reads");
            server.write_all(packet).await.expect("the stream reads");
        }
    }

    #[tokio::test]
    async fn events_of_every_size_around_inbox_and_packet_are_put_together() {
        let around = |size: usize| [size - 6, size - 5, size - 2, size - 1, size, size + 1];
        let mut sizes = vec![100, HEADER + 4];
        sizes.extend(around(INBOX));
        sizes.extend(around(PACKET_MAX));
        sizes.extend([2 * PACKET_MAX - 1, 2 * PACKET_MAX, 50]);
        let (mut stream, mut server) = stream();
        let sent = sizes.clone();
        let sending = tokio::spawn(async move {
            for size in sent {
                send(&mut server, &event(kind::WRITE_ROWS, size)).await;
            }
            server
        });

        for size in sizes {
            let received = stream.next(Duration::from_secs(60)).await.expect("right").expect("in time");
            assert_eq!(received.data.len(), size - HEADER - 4);
            assert!(received.data.iter().all(|byte| *byte == size as u8), "{size}");
        }
        drop(sending.await.expect("sent"));
        assert_eq!(stream.next(Duration::from_secs(60)).await.expect_err("ended").recovery, Recovery::Retry);
    }

    #[tokio::test]
    async fn a_wrong_checksum_is_read_again_and_no_event_is_not_understood() {
        let (mut stream, mut server) = stream();
        let mut damaged = event(kind::WRITE_ROWS, 60);
        damaged[30] ^= 1;
        send(&mut server, &damaged).await;
        let error = stream.next(Duration::from_secs(60)).await.expect_err("damaged");
        assert_eq!(error.recovery, Recovery::Retry, "{}", error.full());

        server.write_all(&[3, 0, 0, 0, 7, 7, 7]).await.expect("the stream reads");
        let error = stream.next(Duration::from_secs(60)).await.expect_err("no event");
        assert_eq!(error.recovery, Recovery::Stop, "{}", error.full());
    }

    #[test]
    fn a_log_that_was_begun_anew_ends_before_our_position() {
        let at = |file: &str, offset| BinlogPosition { file: file.into(), offset, begun: 0 };
        let ours = at("binlog.000009", 500);

        assert!(is_before(&at("binlog.000002", 9000), &ours));
        assert!(is_before(&at("binlog.000009", 499), &ours));
        assert!(!is_before(&at("binlog.000009", 500), &ours));
        assert!(!is_before(&at("binlog.1000000", 4), &ours), "numbers, not texts");
        assert!(!is_before(&at("other.000001", 4), &ours), "it was given another name");
        assert!(!is_before(&at("", u64::MAX), &ours));
    }

    #[test]
    fn server_ids_are_stable_high_and_of_their_agent() {
        assert_eq!(server_id("hq", "a"), server_id("hq", "a"));
        assert_ne!(server_id("hq", "a"), server_id("branch", "a"));
        assert!(server_id("hq", "a") >= 0x8000_0000 && server_id("hq", "b") < u32::MAX);
    }

    fn server(code: u16, message: &str) -> Error {
        let error = mysql_async::ServerError { code, message: message.into(), state: "HY000".into() };
        refused(mysql_async::Error::Server(error), "reading the log")
    }

    #[test]
    fn refusals_are_told_apart() {
        assert_eq!(
            server(1236, "Could not find first log file name in binary log index file").recovery,
            Recovery::Stop
        );
        assert_eq!(server(1236, "A replica with the same server_uuid/server_id as …").recovery, Recovery::Retry);
        assert_eq!(server(4052, "A slave with the same server_id is already connected").recovery, Recovery::Retry);
        assert!(server(1227, "Access denied").full().contains("GRANT REPLICATION SLAVE"));
        assert_eq!(server(1053, "Server shutdown in progress").recovery, Recovery::Retry);
    }
}
