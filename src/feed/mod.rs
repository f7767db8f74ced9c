//! Tells others of each committed change: `[[notify]]`.
//!
//! ```text
//! JOURNAL ─▶ batches (one thread reads and cuts) ─▶ send ─▶ webhook, until it has arrived
//!               ▲ from here on                        │
//!               └── place (data_dir/notify-NAME.json) ┘ noted before a request is first sent
//! ```
//!
//! At least once, and in the order of the journal: one request at a time, each tried until it is
//! taken. What is told is what the change came to for those who did not write it: what lost is not
//! told, what a person decided is. A follower like the appliers: what it has not told stays in the
//! journal, beyond its retention, but not beyond its size; what had to go is counted, and said.

mod batches;
mod place;
mod told;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use self::batches::{Batch, Batches};
use self::place::Place;
pub use crate::audit::export::Cursor;
use crate::change::Op;
use crate::config::{Config, NotifyConfig};
use crate::error::Result;
use crate::failpoint;
use crate::journal::Journal;
use crate::position::Seq;
use crate::status::{NotifyStatus, Status, now};
use crate::webhook::{Failure, Patience, Webhook};

/// Requests that are made while one is on its way.
const AHEAD: usize = 2;
/// A place where there was nothing to tell is noted no more often.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// Whether the journal still has what is to be told, while a receiver is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
const AFTER_ERROR: Duration = Duration::from_secs(30);

/// What is told, and how.
#[derive(Debug, Clone)]
pub struct Spec {
    pub agent: String,
    pub name: String,
    /// Tells the changes of this journal from those of another.
    pub journal: String,
    pub entity: String,
    /// `None`: all that are not sensitive.
    pub fields: Option<Vec<String>>,
    pub ops: Vec<Op>,
    /// Rows that a load copies, too.
    pub copies: bool,
    /// Changes in one request, and bytes of them, at most.
    pub batch: usize,
    pub max_body: usize,
}

impl Spec {
    fn of(config: &NotifyConfig, agent: &str, journal: &Journal) -> Spec {
        Spec {
            agent: agent.to_owned(),
            name: config.name.clone(),
            journal: format!("{:08x}", journal.id() as u32),
            entity: config.entity.clone(),
            fields: config.fields.clone(),
            ops: config.on.clone(),
            copies: config.copies,
            batch: config.batch,
            max_body: config.max_body,
        }
    }
}

/// Tells by this part of the configuration, until `stop`. `begin`: the first entry that one who is new
/// is told of.
pub async fn run(
    config: Arc<Config>,
    index: usize,
    journal: Journal,
    begin: Seq,
    status: Arc<Status>,
    stop: CancellationToken,
) {
    let notify = config.notifies[index].clone();
    let data_dir = config.agent.data_dir.clone();
    let place = Place::open(&data_dir, &notify.name, &journal, begin);
    let spec = Spec::of(&notify, &config.agent.id, &journal);
    let webhook = Webhook::new(notify.webhook.clone(), notify.timeout);
    let mut feed = Feed { notify, data_dir, place, webhook, status, index, failing: false, noted: Instant::now() };
    feed.note().await;
    while !stop.is_cancelled() {
        feed.mind_the_gap(&journal).await;
        let begun = feed.place.from.seq;
        let batches = Batches::new(journal.clone(), spec.clone(), feed.place.from, feed.place.until);
        let (sender, batch) = mpsc::channel(AHEAD);
        let (followed, ending) = (journal.clone(), stop.child_token());
        let reading = tokio::task::spawn_blocking({
            let ending = ending.clone();
            move || read(batches, &followed, &sender, &ending)
        });
        feed.send(batch, &journal, &stop).await;
        ending.cancel();
        match reading.await {
            Ok(Ok(())) => {}
            // Dropped while it was read: the next round begins behind that.
            Ok(Err(_)) if begun < journal.oldest() => {}
            Ok(Err(failed)) => {
                error!(notify = feed.notify.name, error = %failed.full(), "changes are not told: the journal cannot be read");
                stop.run_until_cancelled(tokio::time::sleep(AFTER_ERROR)).await;
            }
            Err(_) => return, // a panic ends the process
        }
    }
}

/// Hands out what the journal has, and waits for more.
fn read(mut batches: Batches, journal: &Journal, out: &mpsc::Sender<Batch>, ending: &CancellationToken) -> Result<()> {
    let mut durable = journal.durable();
    while !ending.is_cancelled() {
        durable.borrow_and_update();
        batches.follow(&mut |batch| !ending.is_cancelled() && out.blocking_send(batch).is_ok())?;
        let more = Handle::current().block_on(ending.run_until_cancelled(durable.changed()));
        if out.is_closed() || more.is_none_or(|more| more.is_err()) {
            break;
        }
    }
    Ok(())
}

struct Feed {
    notify: NotifyConfig,
    data_dir: PathBuf,
    place: Place,
    webhook: Webhook,
    status: Arc<Status>,
    index: usize,
    /// The place could not be noted, and it was said.
    failing: bool,
    noted: Instant,
}

impl Feed {
    fn told(&self) -> &NotifyStatus {
        &self.status.notifies[self.index]
    }

    /// Entries that the journal has dropped, because it was full, are told by nobody; but for the few
    /// that were read before, which no restart would find again, and which count as lost.
    async fn mind_the_gap(&mut self, journal: &Journal) {
        let (from, oldest) = (self.place.from.seq, journal.oldest());
        if from >= oldest {
            return;
        }
        error!(
            notify = self.notify.name,
            from,
            to = oldest - 1,
            "the journal was full and has dropped entries that were not told: \
             compare what the receiver has, and give [journal] max_size more room"
        );
        self.place.lost += oldest - from;
        self.place.lost_at = now();
        (self.place.from, self.place.until) = (Cursor { seq: oldest, index: 0 }, None);
        self.note().await;
    }

    /// Until there is nothing more to read, or `stop`.
    async fn send(&mut self, mut batches: mpsc::Receiver<Batch>, journal: &Journal, stop: &CancellationToken) {
        loop {
            let Some(Some(batch)) = stop.run_until_cancelled(batches.recv()).await else { return };
            let Some(body) = batch.body else {
                self.passed(batch.until);
                if self.noted.elapsed() > NOTE_EVERY {
                    self.note().await;
                }
                continue;
            };
            self.told().oldest_pending.set(batch.committed_at);
            self.place.until = Some(batch.until).filter(|until| *until > self.place.from);
            self.note().await;
            failpoint::pass("notify-noted");
            if !self.deliver(&batch.id, &body.into(), journal, stop).await {
                return;
            }
            self.told().oldest_pending.set(0);
            self.told().changes.add(batch.changes);
            self.passed(batch.until);
            failpoint::pass("notify-told");
            // With the next request, where one waits already.
            if batches.is_empty() {
                self.note().await;
            }
        }
    }

    fn passed(&mut self, until: Cursor) {
        // It is further where the journal dropped entries after they were read.
        (self.place.from, self.place.until) = (self.place.from.max(until), None);
        self.told().at.set(self.place.from.seq);
    }

    /// False: told to stop before it had arrived.
    async fn deliver(&mut self, id: &str, body: &Bytes, journal: &Journal, stop: &CancellationToken) -> bool {
        let mut patience = Patience::default();
        loop {
            let Some(tried) = stop.run_until_cancelled(self.webhook.post(id, body)).await else { return false };
            let Err(failure) = tried else {
                self.told().requests.add(1);
                *self.told().error.lock().expect("never held across a panic") = None;
                if patience.attempts > 0 {
                    info!(notify = self.notify.name, attempts = patience.attempts, "changes are told again");
                }
                return true;
            };
            self.failed(&failure, patience.attempts);
            let pause = patience.pause(&failure, rand::random());
            if !self.wait(pause, journal, stop).await {
                return false;
            }
        }
    }

    /// Whoever is away for so long is told of this one yet; what had to go behind it is said soon,
    /// however much patience the receiver asks for. False: told to stop.
    async fn wait(&mut self, pause: Duration, journal: &Journal, stop: &CancellationToken) -> bool {
        let end = Instant::now() + pause;
        loop {
            if self.place.until.unwrap_or(self.place.from).seq < journal.oldest() {
                self.mind_the_gap(journal).await;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            if stop.run_until_cancelled(tokio::time::sleep(left.min(LOOK_EVERY))).await.is_none() {
                return false;
            }
        }
    }

    fn failed(&self, failure: &Failure, attempt: u32) {
        self.told().failures.add(1);
        let text = failure.error.full();
        let before = self.told().error.lock().expect("never held across a panic").replace(text.clone());
        // Once for each reason, not for each try.
        if attempt > 0 && before.as_ref() == Some(&text) {
            return;
        }
        let (notify, target) = (&self.notify.name, self.webhook.place());
        match failure.refused {
            true => {
                error!(notify, target, error = text, "changes are refused, and what is behind them waits; trying on");
            }
            false => warn!(notify, target, error = text, "changes are not told; trying on"),
        }
    }

    /// A disk that takes nothing keeps nobody from being told; what is told then, is told again.
    async fn note(&mut self) {
        let (place, data_dir, name) = (self.place.clone(), self.data_dir.clone(), self.notify.name.clone());
        let saved = tokio::task::spawn_blocking(move || place.save(&data_dir, &name)).await;
        let Ok(saved) = saved else { return }; // a panic ends the process
        self.noted = Instant::now();
        let told = self.told();
        told.at.set(self.place.from.seq);
        told.lost.set(self.place.lost);
        told.lost_at.set(self.place.lost_at);
        let failing = saved.is_err();
        match saved {
            Ok(()) => {
                told.kept_from.set(self.place.from.seq);
                if self.failing {
                    info!(notify = self.notify.name, "how far changes were told is noted again");
                }
            }
            Err(failed) if !self.failing => {
                error!(notify = self.notify.name, error = %failed.full(), "how far changes were told is not noted");
            }
            Err(_) => {}
        }
        self.failing = failing;
    }
}
