//! The replication connection: simple queries, then a stream of messages.
//!
//! tokio-postgres has no replication mode, so what follows the login is spoken here:
//! `postgres-protocol` makes and reads the messages before the stream, and the stream's are
//! framed in place in one large buffer, because the server sends a small packet per row.
//!
//! Protocol: PostgreSQL manual, "Message Flow" and "Streaming Replication Protocol".

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::backend::{self, ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};

use super::gather::Gather;
use crate::config::ConnectConfig;
use crate::connect::postgres::{Login, Stream, TEXT_SETTINGS, log_in, server_error};
use crate::connect::{self, Receives};
use crate::error::{Error, Recovery, Result};

/// A large transaction stays in the server's memory up to this size instead of going through
/// files; and the server waits this long for a sign of life from us. Its warnings are heard.
const OPTIONS: &str = "-c logical_decoding_work_mem=256MB -c wal_sender_timeout=30s -c standard_conforming_strings=on -c statement_timeout=0 -c client_min_messages=warning";

const QUERY_TIMEOUT: Duration = Duration::from_secs(30);

/// Rows of a simple query, all values as text.
pub type Rows = Vec<Vec<Option<String>>>;

/// A replication connection that does not stream yet.
pub struct Session {
    stream: Stream,
    inbox: BytesMut,
}

impl Session {
    pub async fn connect(config: &ConnectConfig, application_name: &str) -> Result<Session> {
        let options = format!("{TEXT_SETTINGS} {OPTIONS}");
        let parameters =
            [("replication", "database"), ("application_name", application_name), ("options", options.as_str())];
        let Login { stream, inbox } = log_in(config, &parameters, Receives::Log).await?;
        let mut session = Session { stream, inbox };
        let begun = async {
            loop {
                match session.receive().await? {
                    Message::ReadyForQuery(_) => return Ok(()),
                    Message::ErrorResponse(body) => return Err(said(&body)),
                    _ => {}
                }
            }
        };
        let what = || format!("opening a replication connection to {}", connect::place(config));
        match tokio::time::timeout(config.connect_timeout, begun).await {
            Ok(begun) => begun.map(|()| session).map_err(|error: Error| error.context(what())),
            Err(_) => Err(connect::late(config).context(what())),
        }
    }

    /// A statement or replication command whose result is small.
    pub async fn query(&mut self, sql: &str) -> Result<Rows> {
        match tokio::time::timeout(QUERY_TIMEOUT, self.run(sql)).await {
            Ok(rows) => rows,
            Err(_) => Err(Error::retry(format!("no answer within {QUERY_TIMEOUT:?} to {sql:.60}"))),
        }
    }

    async fn run(&mut self, sql: &str) -> Result<Rows> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.send(&out).await?;
        let mut rows = Rows::new();
        let mut failed = None;
        loop {
            match self.receive().await? {
                Message::DataRow(row) => rows.push(texts(&row)?),
                Message::ErrorResponse(body) => failed = Some(said(&body)),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Turns the session into a stream; what arrived with the answer is in `Input` already.
    pub async fn stream(mut self, sql: &str) -> Result<(ReadHalf<Stream>, WriteHalf<Stream>, Input, Gather)> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.send(&out).await?;
        loop {
            // CopyBothResponse is the one message that the library does not know.
            while self.inbox.len() < 5 {
                self.fill().await?;
            }
            if self.inbox[0] == b'W' {
                let size =
                    1 + u32::from_be_bytes([self.inbox[1], self.inbox[2], self.inbox[3], self.inbox[4]]) as usize;
                while self.inbox.len() < size {
                    self.fill().await?;
                }
                let input = Input::new(&self.inbox[size..]);
                let gather = Gather::new(&self.stream);
                let (reader, writer) = tokio::io::split(self.stream);
                return Ok((reader, writer, input, gather));
            }
            match self.receive().await? {
                Message::ErrorResponse(body) => return Err(said(&body)),
                Message::ReadyForQuery(_) => return Err(Error::retry("the server did not start to stream")),
                _ => {}
            }
        }
    }

    async fn send(&mut self, out: &[u8]) -> Result<()> {
        self.stream.write_all(out).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Message> {
        loop {
            if let Some(message) = Message::parse(&mut self.inbox)? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.inbox).await? {
            0 => Err(Error::retry("the server closed the connection")),
            _ => Ok(()),
        }
    }
}

fn texts(row: &backend::DataRowBody) -> Result<Vec<Option<String>>> {
    use fallible_iterator::FallibleIterator;
    let ranges: Vec<_> = row.ranges().collect()?;
    let text = |range| String::from_utf8_lossy(&row.buffer()[range]).into_owned();
    Ok(ranges.into_iter().map(|range| range.map(text)).collect())
}

/// An ErrorResponse, in our terms.
fn said(body: &ErrorResponseBody) -> Error {
    use fallible_iterator::FallibleIterator;
    let (mut code, mut message, mut detail, mut hint) = (String::new(), String::new(), None, None);
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = text,
            b'M' => message = text,
            b'D' => detail = Some(text),
            b'H' => hint = Some(text),
            _ => {}
        }
    }
    let mut error = server_error(&code, &message, detail.as_deref(), hint.as_deref());
    if error.recovery == Recovery::Quarantine {
        // The server could not send a row: there is no change to set aside.
        error.recovery = Recovery::Stop;
    }
    error
}

/// The error that an ErrorResponse inside the stream carries, or a NoticeResponse, which is built alike.
pub fn stream_error(body: &[u8]) -> Error {
    let mut whole = BytesMut::with_capacity(body.len() + 5);
    whole.extend_from_slice(b"E");
    whole.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    whole.extend_from_slice(body);
    match Message::parse(&mut whole) {
        Ok(Some(Message::ErrorResponse(body))) => said(&body),
        _ => Error::retry("the server reported an error that cannot be read"),
    }
}

const BUFFER: usize = 256 * 1024;

/// Received bytes, framed in place.
pub struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn new(received: &[u8]) -> Input {
        let mut buffer = vec![0; BUFFER.max(received.len())];
        buffer[..received.len()].copy_from_slice(received);
        Input { buffer, start: 0, end: received.len() }
    }

    /// Takes the next whole message: its type and body.
    pub fn take(&mut self) -> Result<Option<(u8, &mut [u8])>> {
        let received = &self.buffer[self.start..self.end];
        let Some(size) = self.size()? else { return Ok(None) };
        if received.len() < size {
            return Ok(None);
        }
        let message = &mut self.buffer[self.start..self.start + size];
        self.start += size;
        Ok(Some((message[0], &mut message[5..])))
    }

    /// Of the next message with its type, once its header is there.
    fn size(&self) -> Result<Option<usize>> {
        let [_, a, b, c, d, ..] = self.buffer[self.start..self.end] else { return Ok(None) };
        match u32::from_be_bytes([a, b, c, d]) {
            size @ 4..0x7fff_ffff => Ok(Some(size as usize + 1)),
            _ => Err(Error::retry("the stream is out of step: a message of impossible length")),
        }
    }

    /// Makes room behind what was received: for the rest of the next message at least.
    fn room(&mut self) -> Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > BUFFER {
                // One large value is no reason to keep its room.
                self.buffer = vec![0; BUFFER];
            }
        }
        let needed = self.size()?.unwrap_or(5).max(BUFFER / 4);
        if self.buffer.len() - self.start < needed {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.buffer.len() < needed {
                // Doubling: a length is only believed as far as bytes arrive.
                let len = needed.min((self.end * 2).max(BUFFER));
                self.buffer.resize(len, 0);
            }
        }
        if self.end == self.buffer.len() {
            let len = (self.end * 2).min(self.size()?.unwrap_or(BUFFER).max(self.end + 1));
            self.buffer.resize(len, 0);
        }
        Ok(())
    }

    /// Reads what there is without waiting: the number of bytes, or `None` where nothing is.
    pub async fn read_ready(&mut self, reader: &mut ReadHalf<Stream>, gather: &Gather) -> Result<Option<usize>> {
        self.room()?;
        let free = &mut self.buffer[self.end..];
        match gather.read(free) {
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Some(read) => return self.received(read).map(Some),
            None => {}
        }
        let read = poll_fn(|cx| {
            let mut free = ReadBuf::new(free);
            match Pin::new(&mut *reader).poll_read(cx, &mut free) {
                Poll::Ready(result) => Poll::Ready(Some(result.map(|()| free.filled().len()))),
                Poll::Pending => Poll::Ready(None),
            }
        });
        match read.await {
            None => Ok(None),
            Some(read) => self.received(read).map(Some),
        }
    }

    /// Waits until something arrives. Can be cancelled.
    pub async fn read(&mut self, reader: &mut ReadHalf<Stream>) -> Result<usize> {
        self.room()?;
        let read = reader.read(&mut self.buffer[self.end..]).await;
        self.received(read)
    }

    fn received(&mut self, read: io::Result<usize>) -> Result<usize> {
        match read {
            Ok(0) => Err(Error::retry("the server closed the replication connection")),
            Ok(size) => {
                self.end += size;
                Ok(size)
            }
            Err(error) => Err(Error::retry("the replication connection broke").because(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind], &(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
    }

    #[test]
    fn messages_are_taken_whole_however_the_bytes_arrive() {
        let large = vec![7; 3 * BUFFER];
        let bytes = [message(b'd', b"one"), message(b'd', &large), message(b'd', b""), message(b'd', b"two")].concat();
        for piece in [1009, 65_536, BUFFER, bytes.len()] {
            let mut input = Input::new(b"");
            let mut sizes = Vec::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                input.room().unwrap();
                let size = piece.min(rest.len()).min(input.buffer.len() - input.end);
                assert!(size > 0, "there is always room");
                input.buffer[input.end..input.end + size].copy_from_slice(&rest[..size]);
                input.end += size;
                rest = &rest[size..];
                while let Some((kind, body)) = input.take().unwrap() {
                    assert_eq!(kind, b'd');
                    sizes.push(body.len());
                }
            }
            assert_eq!(sizes, [3, 3 * BUFFER, 0, 3]);
            input.room().unwrap();
            assert_eq!(input.buffer.len(), BUFFER, "the large message's room is given back");
        }
    }

    #[test]
    fn an_impossible_length_is_a_broken_stream() {
        assert!(Input::new(b"d\0\0\0\x03").take().is_err());
        assert!(Input::new(b"d\xff\xff\xff\xff").take().is_err());
    }

    #[test]
    fn an_error_inside_the_stream_keeps_its_code() {
        let error = stream_error(b"SERROR\0C57P01\0Mterminating connection\0\0");

        assert_eq!((error.code.as_deref(), error.recovery), (Some("57P01"), Recovery::Retry));
        assert_eq!(stream_error(b"C22021\0Mbad bytes\0\0").recovery, Recovery::Stop);
    }
}
