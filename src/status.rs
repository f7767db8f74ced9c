//! What the parts of the running agent say about themselves: counters and states, written by
//! the stages, read by `/status`, `/metrics`, `/ready` and the control socket.
//!
//! The books balance (invariant 8). Per system: captured = journaled + filtered + rejected +
//! quarantined at capture. Per target: addressed = applied + coalesced + held + pending.

mod histogram;
mod validity;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub use self::histogram::Histogram;
pub use self::validity::Validity;
use crate::change::{Op, Operations, Outcome, Rule};
use crate::error::Error;

#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Changes by what they do.
#[derive(Debug, Default)]
pub struct OperationCounters([Counter; 3]);

impl OperationCounters {
    pub fn add(&self, operations: &Operations) {
        Op::ALL.iter().zip(&self.0).for_each(|(op, counter)| counter.add(operations.get(*op)));
    }

    pub fn get(&self, op: Op) -> u64 {
        self.0[op as usize - 1].get()
    }
}

/// Rows that were written, by how: a row that is as it should be, or one that is gone.
#[derive(Debug, Default)]
pub struct WriteCounters {
    pub writes: Counter,
    pub deletes: Counter,
}

/// Of one half (capture or apply) of a system; the system shows the worse of the two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum State {
    /// Nothing to do here: no capture for a target, no apply for a source.
    #[default]
    Unused,
    Streaming,
    Loading,
    Connecting,
    /// By a person, until a person lets it go on.
    Paused,
    /// With what went wrong; time or a reconnect may mend it.
    Retrying(String),
    /// With what went wrong and the way out; needs a person.
    Stopped(String),
}

impl State {
    pub fn name(&self) -> &'static str {
        match self {
            State::Unused | State::Streaming => "streaming",
            State::Loading => "loading",
            State::Connecting => "connecting",
            State::Paused => "paused",
            State::Retrying(_) => "retrying",
            State::Stopped(_) => "stopped",
        }
    }

    pub fn of(error: &Error) -> State {
        match error.recovery {
            crate::error::Recovery::Stop => State::Stopped(error.full()),
            crate::error::Recovery::Retry | crate::error::Recovery::Quarantine => State::Retrying(error.full()),
        }
    }

    pub fn error(&self) -> Option<&str> {
        match self {
            State::Retrying(error) | State::Stopped(error) => Some(error),
            _ => None,
        }
    }
}

#[derive(Debug, Default)]
pub struct CaptureStatus {
    pub state: Mutex<State>,
    /// As its log names it.
    pub position: Mutex<String>,
    pub transactions: Counter,
    /// Row changes of bound tables, echoes not counted.
    pub changes: Counter,
    /// Of these: into entries, accepted.
    pub journaled: Counter,
    /// The same by entity, in the order of [`Status::entities`].
    pub entities: Vec<OperationCounters>,
    /// Of local transactions, in canonical form.
    pub bytes: Counter,
    /// Connections that ended and were made anew.
    pub retries: Counter,
    /// Outside a `where` filter on both sides, or drift in a `target` table.
    pub filtered: Counter,
    pub drift: Counter,
    pub rejected: Counter,
    /// Quarantined at capture.
    pub refused: Counter,
    /// Transactions of ours that came back and were dropped.
    pub echoes: Counter,
    /// Of the changes: what triggers and referential actions added to transactions of ours.
    pub side_effects: Counter,
    /// Rows of ours that a trigger or an action made into something else: not sent back.
    pub rewritten: Counter,
    /// Commit time of the last transaction read, µs; 0 before the first.
    pub last_commit: Gauge,
    /// When the log was last heard of (bytes, heartbeat), µs; 0 before the first.
    pub heard: Gauge,
    /// How much older than the clock the last transaction was when it was read, µs; 0 once the
    /// log's end is reached.
    pub lag: Gauge,
    /// How far the server's clock is ahead of ours, µs; 0 where nothing is decided by it.
    pub clock_ahead: Gauge,
    /// Bytes of log that the server keeps: in PostgreSQL the WAL for our slot, else all binlogs;
    /// negative where it is not known.
    pub retained_bytes: Gauge,
    /// Bytes of log between where we are and its end; negative where it is not known.
    pub lag_bytes: Gauge,
}

#[derive(Debug)]
pub struct ApplyStatus {
    pub state: Mutex<State>,
    /// Last seq applied or skipped.
    pub seq: Counter,
    /// What it had when it was opened last.
    pub found: Counter,
    /// Target transactions committed.
    pub commits: Counter,
    /// Journal entries applied.
    pub transactions: Counter,
    /// Changes for this system: admitted since the start, or admitted before and read since.
    pub addressed: Counter,
    /// Changes written.
    pub changes: Counter,
    /// Changes that a later one of the same key in the same batch made unnecessary.
    pub coalesced: Counter,
    /// Changes set aside, or folded onto one that is.
    pub held: Counter,
    pub retries: Counter,
    /// Of the changes written, by entity in the order of [`Status::entities`].
    pub entities: Vec<WriteCounters>,
    /// Of changes addressed to this system, in canonical form, written or not.
    pub bytes: Counter,
    /// Source commit → target commit of live transactions, in seconds.
    pub latency: Histogram<LATENCY_BUCKETS>,
    /// Changes of one target transaction.
    pub batches: Histogram<BATCH_BUCKETS>,
    /// Keys in quarantine.
    pub quarantined: Gauge,
    /// Commit time of the oldest entry not yet applied, µs; 0 when there is none.
    pub oldest_pending: Gauge,
}

const LATENCY_BUCKETS: usize = 16;
const BATCH_BUCKETS: usize = 6;
const SYNC_BUCKETS: usize = 12;

impl Default for ApplyStatus {
    fn default() -> Self {
        ApplyStatus {
            state: Mutex::default(),
            seq: Counter::default(),
            found: Counter::default(),
            commits: Counter::default(),
            transactions: Counter::default(),
            addressed: Counter::default(),
            changes: Counter::default(),
            coalesced: Counter::default(),
            held: Counter::default(),
            retries: Counter::default(),
            entities: Vec::new(),
            bytes: Counter::default(),
            latency: Histogram::new([
                0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0,
            ]),
            batches: Histogram::new([1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0]),
            quarantined: Gauge::default(),
            oldest_pending: Gauge::default(),
        }
    }
}

impl ApplyStatus {
    /// Changes for this system that are neither written nor made unnecessary nor set aside.
    pub fn pending(&self) -> u64 {
        let done = self.changes.get() + self.coalesced.get() + self.held.get();
        self.addressed.get().saturating_sub(done)
    }
}

#[derive(Debug)]
pub struct SystemStatus {
    pub name: Arc<str>,
    /// `postgresql`, `mysql` or `mariadb`, once known; and the server's version.
    pub server: Mutex<(String, String)>,
    pub capture: CaptureStatus,
    pub apply: ApplyStatus,
    /// A person has told it to stand still.
    pub paused: AtomicBool,
}

impl SystemStatus {
    pub fn new(name: Arc<str>, entities: usize) -> Self {
        let unknown = || {
            let gauge = Gauge::default();
            gauge.set(-1);
            gauge
        };
        SystemStatus {
            name,
            server: Mutex::default(),
            capture: CaptureStatus {
                entities: (0..entities).map(|_| OperationCounters::default()).collect(),
                retained_bytes: unknown(),
                lag_bytes: unknown(),
                ..CaptureStatus::default()
            },
            paused: AtomicBool::default(),
            apply: ApplyStatus {
                entities: (0..entities).map(|_| WriteCounters::default()).collect(),
                ..ApplyStatus::default()
            },
        }
    }
}

#[derive(Debug)]
pub struct EntityStatus {
    pub name: String,
    pub applied: Counter,
    pub conflicts: Counter,
    pub decisions: Decisions,
    /// Conflicts that wait for a person.
    pub waiting: Gauge,
    pub rejected: Counter,
    /// Rows that a system rewrote while they were applied there, over all systems.
    pub rewritten: Counter,
    /// Live quarantined keys, over all systems.
    pub quarantined: Gauge,
    /// Commit time, µs.
    pub last_change: Gauge,
}

impl EntityStatus {
    pub fn new(name: &str) -> Self {
        EntityStatus {
            name: name.to_owned(),
            applied: Counter::default(),
            conflicts: Counter::default(),
            decisions: Decisions::default(),
            waiting: Gauge::default(),
            rejected: Counter::default(),
            rewritten: Counter::default(),
            quarantined: Gauge::default(),
            last_change: Gauge::default(),
        }
    }
}

/// Conflicts by what decided them, and how it ended for the change that had not seen the other.
#[derive(Debug, Default)]
pub struct Decisions(Mutex<BTreeMap<(Rule, Outcome), u64>>);

impl Decisions {
    pub fn add(&self, rule: Rule, outcome: Outcome) {
        *self.0.lock().expect("never held across a panic").entry((rule, outcome)).or_default() += 1;
    }

    pub fn get(&self) -> BTreeMap<(Rule, Outcome), u64> {
        self.0.lock().expect("never held across a panic").clone()
    }
}

/// How one alert is delivered.
#[derive(Debug, Default)]
pub struct AlertStatus {
    pub name: String,
    /// Delivered: that something is the matter, and that it is over.
    pub fired: Counter,
    pub resolved: Counter,
    /// Tries that did not arrive.
    pub failures: Counter,
    /// Conditions that hold.
    pub firing: Gauge,
    /// Of these, what is said of each.
    pub messages: Mutex<Vec<String>>,
    /// Events that nobody has heard yet.
    pub pending: Gauge,
    /// Why the last try did not arrive.
    pub error: Mutex<Option<String>>,
}

impl AlertStatus {
    pub fn new(name: &str) -> Self {
        AlertStatus { name: name.to_owned(), ..AlertStatus::default() }
    }
}

/// How far others have been told of an entity's changes.
#[derive(Debug, Default)]
pub struct NotifyStatus {
    pub name: String,
    pub entity: String,
    /// The first entry that is not told, or was not looked at.
    pub at: Counter,
    /// The same, as it is on disk: the journal keeps what is from there on. 0: not known yet.
    pub kept_from: Counter,
    /// Changes and requests that arrived.
    pub changes: Counter,
    pub requests: Counter,
    /// Tries that did not arrive.
    pub failures: Counter,
    /// Commit time of the oldest change that is being told, µs; 0 when there is none.
    pub oldest_pending: Gauge,
    /// Entries that the journal dropped before they were told, and when that was seen last, µs.
    pub lost: Counter,
    pub lost_at: Gauge,
    /// Why the last try did not arrive.
    pub error: Mutex<Option<String>>,
}

impl NotifyStatus {
    pub fn new(name: &str, entity: &str) -> Self {
        NotifyStatus { name: name.to_owned(), entity: entity.to_owned(), ..NotifyStatus::default() }
    }

    /// Entries that are not told, or were not looked at. `head`: the journal's.
    pub fn pending(&self, head: u64) -> u64 {
        match self.at.get() {
            0 => 0,
            at => (head + 1).saturating_sub(at),
        }
    }

    /// Age of the oldest change that is being told, µs.
    pub fn lag(&self, now: i64) -> i64 {
        match self.oldest_pending.get() {
            0 => 0,
            oldest => (now - oldest).max(0),
        }
    }
}

#[derive(Debug)]
pub struct Status {
    pub agent: String,
    /// µs
    pub started: i64,
    /// Above it the agent is not ready.
    pub max_lag: std::time::Duration,
    /// `starting`, `running`, `stopping`.
    pub state: Mutex<&'static str>,
    pub systems: Vec<SystemStatus>,
    pub entities: Vec<EntityStatus>,
    pub alerts: Vec<AlertStatus>,
    pub notifies: Vec<NotifyStatus>,
    pub journal_head: Counter,
    pub journal_bytes: Counter,
    /// How long a group commit took, in seconds.
    pub journal_syncs: Histogram<SYNC_BUCKETS>,
    /// Why the journal is not written: disk or max_size full. Capture pauses meanwhile.
    pub journal_error: Mutex<Option<String>>,
    /// Why the file, read again, is not what the agent works by.
    pub file_error: Mutex<Option<String>>,
    /// Loads since the start, or since the last command began one.
    pub loads: Mutex<Vec<crate::load::LoadProgress>>,
    /// The arbiter's desk is at work: it must turn.
    pub desk_works: AtomicBool,
    /// Grows while it turns, also while it waits for a disk.
    pub desk_turns: Counter,
    /// The newest comparison of each entity that a command asked for.
    pub verified: Mutex<Vec<crate::load::LoadProgress>>,
    /// What the newest comparison of all rows of an entity found, whoever asked for it.
    pub verdicts: Mutex<Vec<crate::load::Verdict>>,
    /// The entity that is compared by itself now.
    pub verifying: Mutex<Option<String>>,
    /// When comparisons by themselves began and ended, µs: the next one (0: none is planned), and
    /// the last that came to its end (0: none has).
    pub verify_next: Gauge,
    pub verify_ended: Gauge,
    /// Of the port's certificate; `None` without TLS.
    pub certificate: Mutex<Option<Validity>>,
}

impl Status {
    pub fn new(config: &crate::config::Config) -> Arc<Self> {
        Arc::new(Status {
            agent: config.agent.id.clone(),
            started: now(),
            max_lag: config.agent.max_lag,
            state: Mutex::new("starting"),
            systems: config.systems.iter().map(|s| SystemStatus::new(s.name.clone(), config.entities.len())).collect(),
            entities: config.entities.iter().map(|e| EntityStatus::new(&e.name)).collect(),
            alerts: config.alerts.iter().map(|alert| AlertStatus::new(&alert.name)).collect(),
            notifies: config.notifies.iter().map(|n| NotifyStatus::new(&n.name, &n.entity)).collect(),
            journal_head: Counter::default(),
            journal_bytes: Counter::default(),
            journal_syncs: sync_times(),
            journal_error: Mutex::default(),
            file_error: Mutex::default(),
            loads: Mutex::default(),
            desk_works: AtomicBool::default(),
            desk_turns: Counter::default(),
            verified: Mutex::default(),
            verdicts: Mutex::default(),
            verifying: Mutex::default(),
            verify_next: Gauge::default(),
            verify_ended: Gauge::default(),
            certificate: Mutex::default(),
        })
    }
}

pub(crate) fn sync_times() -> Histogram<SYNC_BUCKETS> {
    Histogram::new([0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5])
}

/// Microseconds since 1970-01-01 UTC, by this machine's clock.
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
}
