//! While a log streams, its messages are let gather before we are woken: the server sends each
//! in a packet of its own, and a wake-up for every one costs both sides more than what is in it.
//!
//! ```text
//! arrives slowly      read ─ wait, woken by the first byte ─ read
//! arrives fast        read ─ wait, woken by 32 KiB or after 1 ms ─ read
//!   from this machine read ─ nothing for 8 ms ─ read until nothing is left
//! ```
//!
//! The socket's low-water mark does it: below it, the kernel neither wakes us nor spends the
//! sender's time on that. Lowered again, it tells at once of what is there (Linux 4.18). What is
//! slow is never held back, so a lone transaction is as quick as without.
//!
//! From this machine the packets themselves cost more than what is in them, as each goes through
//! the whole network stack in the sender's time. There the connection has a small buffer
//! ([`connect::Receives`](crate::connect::Receives)) and nobody watches it: once it is full, what
//! the server sends is only appended to what it has not sent yet, and comes in a few large packets
//! when we read.

use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::connect::postgres::Stream;

/// Woken by this much, or after this time.
const ENOUGH: libc::c_int = 32 << 10;
const PATIENCE: Duration = Duration::from_millis(1);
/// What comes from this machine is left alone so long.
const PAUSE: Duration = Duration::from_millis(8);
/// Faster than this is fast, in bytes per millisecond; measured over a millisecond at least.
const FAST: u128 = 2 << 10;

#[derive(Debug)]
pub struct Gather {
    /// A socket with such a mark.
    marked: Option<OwnedFd>,
    /// One from this machine, that gives the stream itself.
    near: Option<Arc<TcpStream>>,
    since: Instant,
    bytes: u128,
    fast: bool,
    raised: bool,
    /// When there was nothing left to read.
    drained: Option<Instant>,
}

impl Gather {
    pub fn new(stream: &Stream) -> Gather {
        let near = match stream {
            Stream::Near(near) => Some(Arc::clone(near.socket())),
            _ => None,
        };
        Gather { near, ..Gather::over(stream.watched()) }
    }

    fn over(marked: Option<BorrowedFd<'_>>) -> Gather {
        let marked = marked.and_then(|socket| socket.try_clone_to_owned().ok());
        Gather { marked, near: None, since: Instant::now(), bytes: 0, fast: false, raised: false, drained: None }
    }

    pub fn received(&mut self, bytes: usize) {
        self.bytes += bytes as u128;
    }

    /// What is there, of a socket that nobody watches; `None` where another one is read.
    pub fn read(&self, into: &mut [u8]) -> Option<io::Result<usize>> {
        self.near.as_ref().map(|socket| (&**socket).read(into))
    }

    /// Before reading again what was read to its end: until when to leave it alone.
    pub fn pause(&mut self, now: Instant) -> Option<Instant> {
        let drained = self.drained.take()?;
        (self.near.is_some() && self.is_fast(now)).then(|| drained + PAUSE)
    }

    /// Nothing is left to read.
    pub fn drained(&mut self, now: Instant) {
        self.drained = Some(now);
    }

    /// Before waiting: until when to let messages gather, where they come fast.
    pub fn begin(&mut self, now: Instant) -> Option<Instant> {
        // A wait that was given up.
        self.end();
        if self.marked.is_some() && self.is_fast(now) {
            self.raised = true;
            self.set_mark(ENOUGH);
        }
        self.raised.then(|| now + PATIENCE)
    }

    /// From here on the first byte wakes us.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.raised) {
            self.set_mark(1);
        }
    }

    fn is_fast(&mut self, now: Instant) -> bool {
        let passed = now.duration_since(self.since);
        if passed >= PATIENCE {
            self.fast = self.bytes * 1000 >= FAST * passed.as_micros();
            (self.since, self.bytes) = (now, 0);
        }
        self.fast
    }

    fn set_mark(&self, bytes: libc::c_int) {
        let Some(socket) = &self.marked else { return };
        let (value, len) = ((&raw const bytes).cast(), size_of_val(&bytes) as libc::socklen_t);
        // SAFETY: a plain system call on a descriptor that is ours; it reads `len` bytes of `bytes`.
        // Where it is refused, we are woken more often.
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout_at;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connected = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (listener.accept().await.unwrap().0, connected)
    }

    fn after(millis: u64) -> Instant {
        Instant::now() + Duration::from_millis(millis)
    }

    #[tokio::test]
    async fn only_what_comes_fast_is_let_gather() {
        let (_sender, receiver) = pair().await;
        let mut gather = Gather::over(Some(receiver.as_fd()));
        let start = gather.since;

        gather.received(3000);
        assert_eq!(gather.begin(start + PATIENCE / 2), None, "too early to tell");
        assert_eq!(gather.begin(start + PATIENCE), Some(start + PATIENCE * 2));
        gather.received(3000);
        assert_eq!(gather.begin(start + PATIENCE * 3), None, "half as fast");
        assert_eq!(Gather::over(None).begin(after(10)), None);
    }

    /// Little wakes nobody while it gathers, and is told of as soon as that is over; much wakes
    /// at once.
    #[tokio::test]
    async fn what_has_gathered_is_told_of_at_the_end() {
        let (mut sender, mut receiver) = pair().await;
        let mut gather = Gather::over(Some(receiver.as_fd()));
        let mut buffer = vec![0; 1 << 20];
        gather.received(1 << 20);
        assert!(gather.begin(after(10)).is_some());

        sender.write_all(b"little").await.unwrap();
        assert!(timeout_at(after(50), receiver.read(&mut buffer)).await.is_err(), "it gathers");
        gather.end();
        assert_eq!(timeout_at(after(5000), receiver.read(&mut buffer)).await.unwrap().unwrap(), 6);

        gather.received(1 << 20);
        assert!(gather.begin(after(20)).is_some());
        sender.write_all(&vec![1; 2 * ENOUGH as usize]).await.unwrap();
        assert!(timeout_at(after(5000), receiver.read(&mut buffer)).await.unwrap().unwrap() > 0);
    }

    /// From this machine: left alone only after it was read to its end, and only while it is fast.
    #[tokio::test]
    async fn what_is_near_is_left_alone_for_a_while() {
        let (mut sender, receiver) = pair().await;
        sender.write_all(&[7; 5000]).await.unwrap();
        receiver.readable().await.unwrap();
        let near = Arc::new(receiver.into_std().unwrap());
        let mut gather = Gather { near: Some(near), ..Gather::over(None) };
        let start = gather.since;

        let mut room = [0; 9000];
        let read = gather.read(&mut room).unwrap().unwrap();
        gather.received(read);
        assert_eq!(read, 5000);
        assert_eq!(gather.pause(start + PATIENCE), None, "there may be more");
        assert_eq!(gather.read(&mut room).unwrap().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        gather.drained(start + PATIENCE);
        assert_eq!(gather.pause(start + PATIENCE * 2), Some(start + PATIENCE + PAUSE));
        assert_eq!(gather.pause(start + PATIENCE * 2), None, "once");
        assert_eq!(gather.begin(start + PATIENCE * 2), None, "nobody is woken, so nothing gathers for that");

        gather.drained(start + PATIENCE * 9);
        assert_eq!(gather.pause(start + PATIENCE * 9), None, "nothing came since");
    }
}
