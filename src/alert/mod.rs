//! Tells people that something is the matter, and that it is over.
//!
//! ```text
//! status, counters ─▶ condition ─looks─▶ watch ─events─▶ book (data_dir/alerts.json, synced)
//! journal ─conflicts────────────────────▶   (pure)            │ first undelivered, per alert
//!                                                             ▼
//!                                       delivery ─▶ webhook or command, until it has arrived
//! ```
//!
//! An event is on disk before it is first sent, in one write with what it follows from, and leaves
//! the disk when it has arrived: at least once, in order per alert, with the same id each time.
//! What holds is not re-evaluated into events at a restart: what had ended meanwhile would never be
//! told, and what goes on would be told again under another name.

mod book;
mod command;
mod condition;
mod conflicts;
mod delivery;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch as signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::book::Book;
pub use self::condition::Condition;
use self::condition::{Kind, Look, Subject};
use self::conflicts::{Conflicts, Met};
use self::delivery::{Target, deliver};
pub use self::watch::{Event, What};
use self::watch::{Moment, Watch};
use crate::config::{AlertTarget, Config};
use crate::http::status::timestamp;
use crate::journal::Journal;
use crate::position::Seq;
use crate::status::{AlertStatus, Status, now};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How far the journal was read, where there is nothing else to note.
const NOTE_EVERY: Duration = Duration::from_secs(30);

/// What looking and delivering share.
pub struct Desk {
    data_dir: PathBuf,
    book: Mutex<Book>,
    /// There may be something to deliver.
    wake: signal::Sender<()>,
    /// The disk did not take what was written last.
    failing: std::sync::atomic::AtomicBool,
}

impl Desk {
    fn open(config: &Config) -> Desk {
        let data_dir = config.agent.data_dir.clone();
        let mut book = Book::load(&data_dir);
        let known = |name: &String| config.alerts.iter().any(|alert| alert.name == *name);
        for (name, watch) in book.alerts.iter().filter(|(name, _)| !known(name)) {
            if !watch.pending.is_empty() {
                warn!(
                    alert = name,
                    events = watch.pending.len(),
                    "an alert was taken out of the file: its undelivered events go"
                );
            }
        }
        book.alerts.retain(|name, _| known(name));
        Desk { data_dir, book: Mutex::new(book), wake: signal::Sender::new(()), failing: false.into() }
    }

    fn woken(&self) -> signal::Receiver<()> {
        self.wake.subscribe()
    }

    async fn first(&self, alert: &str) -> Option<Event> {
        self.book.lock().await.alerts.get(alert)?.pending.front().cloned()
    }

    async fn delivered(&self, alert: &str, id: &str, told: &AlertStatus) {
        let mut book = self.book.lock().await;
        if let Some(watch) = book.alerts.get_mut(alert) {
            watch.pending.retain(|event| event.id != id);
            told.pending.set(watch.pending.len() as i64);
        }
        self.save(&book).await;
    }

    /// A disk that takes nothing keeps nobody from being told: what is sent then is not known after
    /// a restart, and told again.
    async fn save(&self, book: &Book) {
        let (book, data_dir) = (book.clone(), self.data_dir.clone());
        let saved = tokio::task::spawn_blocking(move || book.save(&data_dir)).await;
        let Ok(saved) = saved else { return }; // a panic ends the process
        let failed = saved.is_err();
        let before = self.failing.swap(failed, std::sync::atomic::Ordering::Relaxed);
        match saved {
            Err(failed) if !before => error!(error = %failed.full(), "which alerts were delivered is not noted"),
            Ok(()) if before => info!("which alerts were delivered is noted again"),
            _ => {}
        }
    }
}

/// The journal that is written to, and its head before anything was written to it.
pub type Current = Option<(Journal, Seq)>;

/// Looks and tells until `stop`. `journal`: once there is one.
pub async fn run(
    config: Arc<Config>,
    status: Arc<Status>,
    journal: signal::Receiver<Current>,
    stop: CancellationToken,
) {
    let stale = || book::path(&config.agent.data_dir).exists();
    if config.alerts.is_empty() && !stale() {
        return;
    }
    let desk = Arc::new(Desk::open(&config));
    let mut tasks = JoinSet::new();
    for alert in &config.alerts {
        tasks.spawn(deliver(alert.clone(), desk.clone(), status.clone(), stop.clone()));
    }
    let mut looking = Looking { config, status, journal, conflicts: None, unread: false, noted: Instant::now() };
    let mut interval = tokio::time::interval(LOOK_EVERY);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(interval.tick()).await.is_some() {
        looking.look(&desk, &stop).await;
    }
    while tasks.join_next().await.is_some() {}
}

struct Looking {
    config: Arc<Config>,
    status: Arc<Status>,
    journal: signal::Receiver<Current>,
    conflicts: Option<Conflicts>,
    /// The journal could not be read, and it was said.
    unread: bool,
    /// When it was noted last how far it was read.
    noted: Instant,
}

impl Looking {
    async fn look(&mut self, desk: &Desk, stop: &CancellationToken) {
        let mut book = desk.book.lock().await;
        let (journal, seq) = (book.journal.clone(), book.seq);
        let met = self.met(&mut book, stop).await;
        // A restart must not have to read for long; where it begins is noted at once.
        let due = self.noted.elapsed() > NOTE_EVERY && book.seq != seq;
        let mut changed = !met.is_empty() || book.journal != journal || due;
        let now = now();
        for alert in &self.config.alerts {
            let looks = alert.on.iter().flat_map(|condition| {
                let seen = match condition.kind {
                    Kind::Conflict => happened(&met),
                    _ => condition.look(&self.status, now),
                };
                seen.into_iter().map(move |(subject, look)| (condition, subject, look))
            });
            let mut moment =
                Moment { alert: &alert.name, agent: &self.config.agent.id, settle: alert.settle, now, name: &mut name };
            let watch = book.alerts.entry(alert.name.clone()).or_default();
            changed |= watch.step(looks.collect(), &mut moment);
            self.tell(&alert.name, watch);
        }
        if changed {
            self.noted = Instant::now();
            desk.save(&book).await;
            desk.wake.send_replace(());
        }
    }

    fn tell(&self, alert: &str, watch: &Watch) {
        if let Some(told) = self.status.alerts.iter().find(|told| told.name == alert) {
            told.firing.set(watch.firing() as i64);
            *told.messages.lock().expect("never held across a panic") = watch.messages();
            told.pending.set(watch.pending.len() as i64);
        }
    }

    /// Conflicts since the last look. The book is of that moment when it returns.
    async fn met(&mut self, book: &mut Book, stop: &CancellationToken) -> Met {
        let wanted = self.config.alerts.iter().flat_map(|alert| &alert.on).any(|on| on.kind == Kind::Conflict);
        let journal = self.journal.borrow_and_update().clone();
        let Some((journal, head)) = journal.filter(|_| wanted) else { return Met::new() };
        let id = format!("{:032x}", journal.id());
        if book.journal.as_ref() != Some(&id) {
            // What was before the alert is nobody's news.
            (book.journal, book.seq) = (Some(id), head);
            self.conflicts = None;
        }
        let following = self.conflicts.take().filter(|following| following.is_of(&journal));
        let mut following = following.unwrap_or_else(|| Conflicts::behind(journal, book.seq));
        let ending = stop.clone();
        let followed = tokio::task::spawn_blocking(move || {
            let met = following.follow(&|| ending.is_cancelled());
            (following, met)
        });
        let Ok((following, met)) = followed.await else { return Met::new() }; // a panic ends the process
        match met {
            Ok(met) => {
                book.seq = following.seq;
                (self.conflicts, self.unread) = (Some(following), false);
                met
            }
            Err(failed) => {
                if !std::mem::replace(&mut self.unread, true) {
                    error!(error = %failed.full(), "conflicts are not told: the journal cannot be read");
                }
                Met::new()
            }
        }
    }
}

fn happened(met: &Met) -> Vec<(Subject, Look)> {
    let look = |(entity, (count, text)): (&String, &(u64, String))| {
        (Subject::Entity(entity.clone()), Look::Happened(*count, text.clone()))
    };
    met.iter().map(look).collect()
}

fn name() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    pub alert: String,
    /// `webhook` or `command`, and which.
    pub target: String,
    pub arrived: bool,
    pub error: Option<String>,
}

/// A test event through each alert, or through the one of that name, one try each.
pub async fn try_each(config: &Config, only: Option<&str>) -> Vec<Tried> {
    let alerts = config.alerts.iter().filter(|alert| only.is_none_or(|only| only == alert.name));
    let mut tried = Vec::new();
    for alert in alerts {
        let at = timestamp(now());
        let event = Event {
            id: name(),
            event: What::Test,
            alert: alert.name.clone(),
            agent: config.agent.id.clone(),
            incident: name(),
            condition: "test".into(),
            system: None,
            entity: None,
            notify: None,
            message: "a test, sent by a person: nothing is the matter".into(),
            since: at.clone(),
            at,
            count: None,
        };
        let mut target = Target::of(alert);
        let error = target.tell(alert, &event).await.err().map(|failure| failure.error.full());
        let kind = match alert.target {
            AlertTarget::Webhook(..) => "webhook",
            AlertTarget::Command(_) => "command",
        };
        let (alert, target) = (alert.name.clone(), format!("{kind} {}", target.place()));
        tried.push(Tried { alert, target, arrived: error.is_none(), error });
    }
    tried
}
