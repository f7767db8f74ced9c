//! What the server hears of us, from a task of its own.
//!
//! A sink that stands still must not time out the walsender, so status updates never wait for
//! it. They carry one LSN, three times: what the journal has on disk. What we acknowledge the
//! server may forget; nothing else is ever acknowledged (no loss).
//!
//! ```text
//! WAL ──received──▶ normalize ──▶ admit ──synced──▶ journal
//!  ▲──────────────────acknowledged────────────────────┘
//! ```
//!
//! Protocol: PostgreSQL manual, "Streaming Replication Protocol", standby status update.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::connect::postgres::Stream;
use crate::position::{Lsn, Position};

/// At least so often, whatever happens.
const INTERVAL: Duration = Duration::from_secs(10);
/// At most so often, however fast the journal syncs or the server asks.
const PACE: Duration = Duration::from_millis(100);
/// A server that takes no bytes for so long is gone.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// Dropped, it sends a last status update and ends the connection in good order.
pub struct Feedback {
    asked: Arc<Asked>,
    _alive: oneshot::Sender<()>,
}

#[derive(Default)]
struct Asked {
    wake: Notify,
    /// The next update asks the server for a sign of life.
    answer: AtomicBool,
}

impl Feedback {
    pub fn start(writer: WriteHalf<Stream>, start: Lsn, acknowledged: watch::Receiver<Position>) -> Feedback {
        let (alive, dropped) = oneshot::channel();
        let asked = Arc::new(Asked::default());
        let task = Task { writer, acknowledged, flushed: start, asked: Arc::clone(&asked), last: Instant::now() };
        tokio::spawn(task.run(dropped));
        Feedback { asked, _alive: alive }
    }

    /// The server wants an update now.
    pub fn reply(&self) {
        self.asked.wake.notify_one();
    }

    /// We want to hear from the server.
    pub fn ask(&self) {
        self.asked.answer.store(true, Ordering::Relaxed);
        self.asked.wake.notify_one();
    }
}

struct Task {
    writer: WriteHalf<Stream>,
    acknowledged: watch::Receiver<Position>,
    flushed: Lsn,
    asked: Arc<Asked>,
    last: Instant,
}

impl Task {
    async fn run(mut self, mut dropped: oneshot::Receiver<()>) {
        let mut journal_alive = true;
        loop {
            if !self.send().await {
                // Whoever reads sees the connection end.
                return;
            }
            tokio::select! {
                biased;
                _ = &mut dropped => break,
                () = self.asked.wake.notified() => {}
                changed = self.acknowledged.changed(), if journal_alive => journal_alive = changed.is_ok(),
                () = sleep_until(self.last + INTERVAL) => {}
            }
            tokio::select! {
                biased;
                _ = &mut dropped => break,
                () = sleep_until(self.last + PACE) => {}
            }
        }
        let goodbye = async {
            self.send().await;
            // CopyDone, Terminate
            let _ = self.writer.write_all(b"c\0\0\0\x04X\0\0\0\x04").await;
            let _ = self.writer.shutdown().await;
        };
        let _ = timeout(Duration::from_secs(2), goodbye).await;
    }

    async fn send(&mut self) -> bool {
        if let Position::Postgres { lsn } = *self.acknowledged.borrow_and_update() {
            self.flushed = self.flushed.max(lsn);
        }
        let update = status(self.flushed, self.asked.answer.swap(false, Ordering::Relaxed));
        self.last = Instant::now();
        let write = async {
            self.writer.write_all(&update).await?;
            self.writer.flush().await
        };
        matches!(timeout(WRITE_TIMEOUT, write).await, Ok(Ok(())))
    }
}

/// CopyData with a standby status update: written, flushed and applied up to `flushed`.
fn status(flushed: Lsn, answer: bool) -> [u8; 39] {
    const EPOCH: i64 = 946_684_800_000_000;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64) - EPOCH;
    let mut bytes = [0; 39];
    bytes[0] = b'd';
    bytes[1..5].copy_from_slice(&38u32.to_be_bytes());
    bytes[5] = b'r';
    for at in [6, 14, 22] {
        bytes[at..at + 8].copy_from_slice(&flushed.0.to_be_bytes());
    }
    bytes[30..38].copy_from_slice(&now.to_be_bytes());
    bytes[38] = u8::from(answer);
    bytes
}
