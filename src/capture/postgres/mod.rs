//! Capture from PostgreSQL: logical replication with pgoutput, spoken by us.
//!
//! ```text
//! walsender ─▶ stream (bytes) ─▶ pgoutput (messages) ─▶ transaction ─▶ sink
//!     ▲                                                 relation, decode
//!     └──── feedback: own task, acknowledges what the journal has ◀── watch
//! ```
//!
//! Positions are ends of commits, and with nothing in flight the server's own: what it has
//! decoded up to there was sent, so an idle database does not hold the WAL of busy ones.
//!
//! Protocol version 1: the server holds a transaction back until its commit and puts large
//! ones into files of its own. Versions 2 and up would put that memory here.

mod decode;
mod feedback;
mod gather;
mod pgoutput;
mod relation;
mod slot;
mod stream;
pub mod transaction;

use std::time::Duration;

use tokio::io::ReadHalf;
use tokio::time::{Instant, sleep_until, timeout_at};

pub use self::slot::{
    Retained, application_name, create_position, current_position, identity, log_end, marker_published,
    publication_name, quoted, retained, slot_name,
};
pub(crate) use self::slot::{keeps_slots, weaker_partitions};

use self::feedback::Feedback;
use self::gather::Gather;
use self::stream::{Input, Session};
use self::transaction::{Event, Transactions};
use crate::capture::{Capture, CaptureSpec, Sink};
use crate::config::ConnectConfig;
use crate::connect::postgres::Stream;
use crate::error::{Error, Result};
use crate::position::{Lsn, Position};

/// `read` returns after this time when nothing arrives.
const IDLE: Duration = Duration::from_secs(1);
/// `read` returns after this time when messages do not end.
const BUSY: Duration = Duration::from_millis(10);
/// Passed positions are told at most so often: each costs the journal a sync.
const PASSED_INTERVAL: Duration = Duration::from_millis(250);
/// After so much silence the server is asked for a sign of life …
const ASK_AFTER: Duration = Duration::from_secs(5);
/// … and after so much it is given up. Inside a long transaction of tables that are not ours the
/// server looks up only every half `wal_sender_timeout`; it must not be taken for dead by that.
const SILENCE_MAX: Duration = Duration::from_secs(25);
/// How long a server that shuts down may wait for our acknowledgement.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

pub struct PgCapture {
    reader: ReadHalf<Stream>,
    input: Input,
    gather: Gather,
    transactions: Transactions,
    feedback: Feedback,
    slot: String,
    passed_at: Instant,
    silence: Silence,
    burst: Burst,
}

impl PgCapture {
    /// Checks server, slot and publication, and starts the stream at the spec's position.
    pub async fn connect(config: &ConnectConfig, spec: CaptureSpec) -> Result<PgCapture> {
        let Position::Postgres { lsn: start } = spec.start else {
            return Err(Error::lost(
                format!("the position {} is not one of PostgreSQL", spec.start),
                "the system was another one",
            ));
        };
        let slot = slot_name(&spec.agent, &config.database);
        let mut session = Session::connect(config, &application_name(&spec.agent))
            .await
            .map_err(|error| slot::explained(error, &slot))?;
        slot::verify(&mut session, &spec, &slot, start).await?;
        let publication = slot::identifier(&publication_name(&spec.agent));
        let origins = match spec.without_origins && slot::leaves_out_origins(&mut session).await? {
            true => ", origin 'none'",
            false => "",
        };
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names {}{origins})",
            slot::identifier(&slot),
            slot::literal(&publication),
        );
        let (reader, writer, input, gather) =
            session.stream(&command).await.map_err(|error| slot::explained(error, &slot))?;
        let now = Instant::now();
        Ok(PgCapture {
            reader,
            input,
            gather,
            transactions: Transactions::new(&spec, start),
            feedback: Feedback::start(writer, start, spec.acknowledged),
            slot,
            passed_at: now,
            silence: Silence { heard: now, left: now, asked: None },
            burst: Burst::default(),
        })
    }

    /// Hands on what is in the buffer, until the sink is full. `true` when it got anything whole.
    fn use_input(&mut self, sink: &mut dyn Sink) -> Result<bool> {
        let mut delivered = false;
        while !sink.full() {
            let Some((kind, body)) = self.input.take()? else { break };
            match kind {
                b'd' => {}
                b'E' => return Err(slot::explained(stream::stream_error(body), &self.slot)),
                b'c' | b'C' => return Err(Error::retry("the server ended the replication stream")),
                b'N' => {
                    slot::heard(stream::stream_error(body))?;
                    continue;
                }
                // Parameters.
                b'S' => continue,
                _ => return Err(Error::retry("the replication stream is out of step: an unexpected message")),
            }
            match self.transactions.handle(body, sink)? {
                Event::Delivered => delivered = true,
                Event::Keepalive { reply: false, .. } => {}
                Event::Keepalive { wal_end, reply: true } => {
                    self.keepalive(wal_end)?;
                    self.transactions.tell_awaited(sink)?;
                    delivered = true;
                }
                Event::Other => {}
            }
        }
        Ok(delivered)
    }

    fn keepalive(&mut self, wal_end: Lsn) -> Result<()> {
        self.feedback.reply();
        if self.burst.hangs(wal_end, Instant::now()) {
            return Err(Error::retry(format!(
                "the server is shutting down and waits for {wal_end}, which the journal has not yet synced"
            )));
        }
        Ok(())
    }

    /// With nothing in flight; not more often than the journal should sync for it.
    fn tell_passed(&mut self, now: Instant, sink: &mut dyn Sink) -> Result<bool> {
        if !self.transactions.passed_pending() || now < self.passed_at + PASSED_INTERVAL || sink.full() {
            return Ok(false);
        }
        self.passed_at = now;
        self.transactions.tell_passed(sink)?;
        Ok(true)
    }

    /// Until something arrives: the number of bytes; `None` at the deadline.
    async fn wait(&mut self, until: Instant) -> Result<Option<usize>> {
        if let Some(enough) = self.gather.begin(Instant::now()) {
            let gathered = timeout_at(enough.min(until), self.input.read(&mut self.reader)).await;
            self.gather.end();
            if let Ok(received) = gathered {
                return received.map(Some);
            }
        }
        match timeout_at(until, self.input.read(&mut self.reader)).await {
            Ok(received) => received.map(Some),
            Err(_) => Ok(None),
        }
    }

    async fn read_until_idle(&mut self, sink: &mut dyn Sink) -> Result<()> {
        let entered = Instant::now();
        let mut delivered = self.use_input(sink)?;
        loop {
            let now = Instant::now();
            delivered |= self.tell_passed(now, sink)?;
            if sink.full() || delivered && now >= entered + BUSY {
                return Ok(());
            }
            if let Some(end) = self.gather.pause(now) {
                sleep_until(end).await;
            }
            let mut received = self.input.read_ready(&mut self.reader, &self.gather).await?;
            if received.is_none() {
                self.gather.drained(Instant::now());
                if delivered {
                    return Ok(());
                }
                let mut until = entered + IDLE;
                if self.transactions.passed_pending() {
                    until = until.min(self.passed_at + PASSED_INTERVAL);
                }
                received = self.wait(until).await?;
            }
            let Some(received) = received else {
                self.tell_passed(Instant::now(), sink)?;
                return self.silence.check(Instant::now(), &self.feedback);
            };
            self.gather.received(received);
            self.silence.heard(Instant::now());
            delivered |= self.use_input(sink)?;
        }
    }
}

impl Capture for PgCapture {
    async fn read(&mut self, sink: &mut dyn Sink) -> Result<()> {
        self.silence.entered(Instant::now());
        let result = self.read_until_idle(sink).await;
        self.silence.left = Instant::now();
        result.map_err(|error| match error.position {
            Some(_) => error,
            None => error.at(Position::Postgres { lsn: self.transactions.position() }),
        })
    }
}

/// How long nothing was heard, while we listened.
struct Silence {
    heard: Instant,
    left: Instant,
    asked: Option<Instant>,
}

impl Silence {
    /// Time in which nobody read does not count.
    fn entered(&mut self, now: Instant) {
        if now.duration_since(self.left) > IDLE {
            self.heard(now);
        }
    }

    fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    fn check(&mut self, now: Instant, feedback: &Feedback) -> Result<()> {
        let silence = now.duration_since(self.heard);
        if silence > SILENCE_MAX {
            return Err(Error::retry(format!("the server has been silent for {} s", silence.as_secs())));
        }
        if silence > ASK_AFTER && self.asked.is_none() {
            self.asked = Some(now);
            feedback.ask();
        }
        Ok(())
    }
}

/// A server that shuts down asks again and again until everything that it sent is
/// acknowledged, and does not end before. If the journal cannot, we have to go.
#[derive(Default)]
struct Burst {
    wal_end: Lsn,
    began: Option<Instant>,
    last: Option<Instant>,
    count: u32,
}

impl Burst {
    fn hangs(&mut self, wal_end: Lsn, now: Instant) -> bool {
        let goes_on =
            self.wal_end == wal_end && self.last.is_some_and(|last| now.duration_since(last) < SHUTDOWN_PATIENCE);
        if !goes_on {
            *self = Burst { wal_end, began: Some(now), last: None, count: 0 };
        }
        self.last = Some(now);
        self.count += 1;
        self.count > 10 && self.began.is_some_and(|began| now.duration_since(began) > SHUTDOWN_PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_burst_of_questions_at_one_place_is_a_shutdown() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);

        let mut regular = Burst::default();
        assert!(!(0..40).any(|i| regular.hangs(Lsn(7), at(30_000 * i))));
        let mut moving = Burst::default();
        assert!(!(0..400).any(|i| moving.hangs(Lsn(i), at(100 * i))));
        let mut shutdown = Burst::default();
        let first = (0..100).find(|&i| shutdown.hangs(Lsn(7), at(100 * i)));
        assert_eq!(first, Some(51), "after five seconds");
    }
}
