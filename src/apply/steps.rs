//! The applier's steps as a state machine: events in, actions out. Time and randomness are
//! passed in, so that it runs the same against servers and in the simulation.
//!
//! ```text
//! open ─▶ seek ─▶ fetch ─▶ begin (marker) ─▶ write … ─▶ quarantine synced ─▶ commit ─▶ fetch
//!  ▲               │ caught up                │ data error
//!  │               ▼                          ▼
//! pause ◀─ retry   wait                  rollback ─▶ begin ─▶ write alone … ─▶ quarantine …
//!
//! a full batch:  fetch ─▶ submit ─▶ fetch ─▶ … ─▶ land (the oldest one's commit) ─▶ …
//! ```
//!
//! - A full batch is written while the next one is prepared, on a connection of its own where the target
//!   has several: [`flights`].
//! - *Exactly once*: it always goes on at the marker that `open` returns, whatever became of
//!   the last commit.
//! - *Whole*: a batch joins whole entries; a spooled one streams through one transaction.
//! - *Quarantine keeps order*: see [`super::keys`]. The replay writes uncoalesced, in source
//!   order, behind savepoints; only listed data errors get there.
//! - An entry that is addressed to the system moves the marker even where no row results; one
//!   that is not needs no write.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::admit::{HeldKey, Rival};
use crate::apply::TableRows;
use crate::apply::batch::{Batch, Group, KeySet, Routes, settled};
use crate::apply::filter::{self, Checked};
use crate::apply::keys::{At, Keys, Refusal, Route};
use crate::change::{
    Address, Body, ChangeWriter, Changes, Entry, HOPS_JOINED, Micros, Op, Origin, Quarantined, Record, SpoolRef,
    overlay,
};
use crate::error::{Error, Recovery, backoff};
use crate::marker::Marker;
use crate::normalize::binding::Binding;
use crate::position::Seq;
use crate::schema::Translation;
use crate::value::{Datum, Row};

mod flights;

/// A batch of so many transactions and changes is a part of a flood: it waits for more.
const GATHERED_ENTRIES: usize = 8;
const GATHERED_CHANGES: u64 = 500;
const GATHERED_FOR: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A batch is closed when it has this many changes or bytes; a larger entry is one alone.
    pub changes: u64,
    pub bytes: usize,
    /// More refusals than `refused` among the last `window` changes stop the system.
    pub refused: usize,
    pub window: u64,
    /// So many batches are under way at once.
    pub connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { changes: 10_000, bytes: 2 << 20, refused: 100, window: 1000, connections: 1 }
    }
}

/// What the driver is to do next; it answers with the event named.
#[derive(Debug)]
pub enum Action {
    /// Connect, take the fence, read the marker: `Opened`.
    Open,
    /// Read the journal from this entry on: `Done`.
    Seek(Seq),
    /// The next durable record: `Fetched`.
    Fetch,
    /// Until the journal has grown: `Done`.
    Wait,
    /// The same, but not longer: `Done`.
    Gather(Duration),
    /// Before the next try: `Done`.
    Pause(Duration),
    /// Hand [`Steps::take_groups`] to a connection that is free, to be written in one transaction with this
    /// marker, and committed in its turn: `Done`.
    Submit(Marker),
    /// The commit of the oldest transaction under way: `Done`. An error with `Recovery::Quarantine`: it
    /// was refused in its turn, and neither it nor a later one is in the target.
    Land,
    /// `Done`.
    Begin(Marker),
    /// The next chunk of a spooled body, from its start where `first`: `Chunk`.
    Chunk { spool: SpoolRef, first: bool },
    /// The rows that are there for [`Steps::group`]: `Rows`.
    Read,
    /// [`Steps::group`], `alone` behind a savepoint: `Done`.
    Write { alone: bool },
    /// The row that has the values of [`Steps::sought`]: `Holder`.
    Holder,
    /// Sync these records, and hand on what is in their way: `Done`.
    Quarantine(Vec<Quarantined>, Vec<Rival>),
    /// `Done`.
    Commit,
    /// `Done`.
    Rollback,
    /// No further: for a person, or after [`Steps::finish`].
    Stop(Option<Error>),
}

#[derive(Debug)]
pub enum Event {
    Opened(Box<Opened>),
    Done,
    /// `None`: caught up.
    Fetched(Option<Record>),
    /// `None`: at its end.
    Chunk(Option<Bytes>),
    /// Canonical rows, one per row of the group.
    Rows(Vec<Option<Vec<u8>>>),
    /// A canonical row.
    Holder(Option<Vec<u8>>),
    Failed(Error),
}

#[derive(Debug)]
pub struct Opened {
    pub marker: Marker,
    /// The journal's identity and durable head.
    pub journal: u128,
    pub head: Seq,
    /// The highest marker that the system's own log has shown.
    pub seen: Seq,
    /// [`crate::admit::Arbiter::applies_from`]: entries between the marker and this are not for
    /// this system, and may be gone from the journal.
    pub from: Seq,
    /// What the arbiter holds for this system, asked after the target was opened and answered
    /// after a sync.
    pub held: Vec<HeldKey>,
}

/// What was committed since it was last taken.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Progress {
    pub commits: u64,
    pub transactions: u64,
    /// Changes addressed to this system: written, made unnecessary by a later one, set aside.
    pub addressed: u64,
    /// Of these, the ones of entries up to [`Steps::known`].
    pub backlog: u64,
    pub applied: u64,
    pub coalesced: u64,
    pub held: u64,
    /// Of changes addressed to this system, in canonical form.
    pub bytes: u64,
    /// Written, per entity.
    pub entities: Vec<Written>,
    /// Commit times of live transactions, in their sources.
    pub committed_at: Vec<Micros>,
}

/// Rows of one entity.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    pub writes: u64,
    pub deletes: u64,
}

impl Progress {
    fn add(&mut self, other: &Progress) {
        self.commits += other.commits;
        self.transactions += other.transactions;
        self.addressed += other.addressed;
        self.backlog += other.backlog;
        self.applied += other.applied;
        self.coalesced += other.coalesced;
        self.held += other.held;
        self.bytes += other.bytes;
        self.entities.resize(self.entities.len().max(other.entities.len()), Written::default());
        for (sum, written) in self.entities.iter_mut().zip(&other.entities) {
            sum.writes += written.writes;
            sum.deletes += written.deletes;
        }
        self.committed_at.extend(&other.committed_at);
    }

    fn wrote(&mut self, entity: usize, deleted: bool) {
        self.applied += 1;
        self.entities.resize(self.entities.len().max(entity + 1), Written::default());
        let written = &mut self.entities[entity];
        *(if deleted { &mut written.deletes } else { &mut written.writes }) += 1;
    }
}

#[derive(Debug)]
enum State {
    Paused(u32),
    Opening,
    Seeking,
    Reading,
    Waiting,
    /// For more to join what is in hand.
    Gathering(Duration),
    Submitting,
    Landing,
    Beginning,
    Chunk,
    Writing,
    Looking(Look),
    Syncing,
    Committing,
    RollingBack,
    Stopped(Option<Error>),
}

/// One change of the replay.
#[derive(Debug)]
struct Single {
    encoded: Bytes,
    at: At,
    route: Route,
}

/// Which record is in the way of a change of the replay that the target refused as a duplicate.
#[derive(Debug)]
struct Look {
    error: Arc<Error>,
    binding: Arc<Binding>,
    /// The refused row, canonical, with what it does not carry as it was before.
    values: Vec<u8>,
    /// Unique keys that it may clash with, not asked for yet.
    keys: VecDeque<Vec<usize>>,
}

/// A batch: one target transaction.
#[derive(Debug, Default)]
struct Work {
    entries: Vec<Entry>,
    bytes: usize,
    changes: u64,
    /// Nothing more joins it.
    closed: bool,
    /// Its statements are there.
    planned: bool,
    /// Written when nothing else is under way.
    alone: bool,
    /// Keys that it writes; only where several batches are written at once.
    keys: KeySet,
    /// When more is waited for no longer.
    gathered_until: Option<Micros>,
    replay: bool,
    /// Where in a spooled entry: chunks begun, changes passed, decisions passed.
    begun: bool,
    index: u64,
    cursor: usize,
    /// Statements to send; in the replay those of `single`.
    groups: VecDeque<Group>,
    /// The first group was compared with the rows that are there.
    checked: bool,
    single: Option<Single>,
    /// Encoded changes of the replay that wait: entry, number, bytes.
    singles: VecDeque<(usize, u64, Bytes)>,
    refused: usize,
    rivals: Vec<Rival>,
    /// Keys of which nothing is to be written in this replay, and why.
    aside: HashMap<u128, Arc<Error>>,
    progress: Progress,
}

impl Work {
    fn to(&self) -> Seq {
        self.entries.last().map_or(0, |e| e.seq)
    }

    fn spool(&self) -> Option<&SpoolRef> {
        match &self.entries.first()?.body {
            Body::Spooled(spool) => Some(spool),
            Body::Inline(_) => None,
        }
    }

    /// From the start again, in a new target transaction.
    fn again(self, replay: bool) -> Self {
        let Work { entries, bytes, changes, aside, .. } = self;
        Work { entries, bytes, changes, replay, aside, ..Work::default() }
    }
}

pub struct Steps {
    routes: Routes,
    limits: Limits,
    state: State,
    marker: Option<Marker>,
    keys: Keys,
    /// The batch in hand.
    work: Work,
    /// Batches that were submitted, the oldest first.
    flying: VecDeque<Work>,
    /// Up to this entry batches are written one by one: one of them was refused.
    alone_until: Seq,
    /// Read, and too large to join the batch in hand.
    stashed: Option<Entry>,
    /// The last entry that was read.
    read: Seq,
    /// Everything up to here is applied or was not for this system.
    passed: Seq,
    translations: HashMap<u64, Option<Translation>>,
    /// An entry that was read can be neither applied nor passed over.
    unreadable: Option<Error>,
    attempt: u32,
    finishing: bool,
    /// Ordinals of refused changes, and how many changes there were.
    refusals: VecDeque<u64>,
    ordinal: u64,
    /// What was journaled before the agent started.
    known: Seq,
    progress: Progress,
}

impl Steps {
    pub fn new(routes: Routes, limits: Limits) -> Self {
        Steps {
            routes,
            limits,
            state: State::Opening,
            marker: None,
            keys: Keys::default(),
            work: Work::default(),
            flying: VecDeque::new(),
            alone_until: 0,
            stashed: None,
            read: 0,
            passed: 0,
            translations: HashMap::new(),
            unreadable: None,
            attempt: 0,
            finishing: false,
            refusals: VecDeque::new(),
            ordinal: 0,
            known: 0,
            progress: Progress::default(),
        }
    }

    /// Entries up to `seq` were journaled before anybody counted whom they are for.
    #[must_use]
    pub fn known(mut self, seq: Seq) -> Self {
        self.known = seq;
        self
    }

    /// After the batch in hand: stop.
    pub fn finish(&mut self) {
        self.finishing = true;
    }

    /// Everything up to this entry is applied here or was not addressed to this system.
    pub fn passed(&self) -> Seq {
        self.passed
    }

    /// The marker as it was last read or committed.
    pub fn marker(&self) -> Option<&Marker> {
        self.marker.as_ref()
    }

    /// A commit may have been sent.
    pub fn is_committing(&self) -> bool {
        matches!(self.state, State::Committing)
    }

    pub fn take_progress(&mut self) -> Progress {
        std::mem::take(&mut self.progress)
    }

    /// Commit time of the oldest entry in hand; `None` when there is none.
    pub fn oldest_pending(&self) -> Option<Micros> {
        let hand = self.work.entries.first().or(self.stashed.as_ref());
        self.flying.front().and_then(|work| work.entries.first()).or(hand).map(|e| e.committed_at)
    }

    /// What `Read` and `Write` are about.
    pub fn group(&self) -> &Group {
        self.work.groups.front().expect("asked for only while there is something to write")
    }

    /// What `Holder` asks for: columns of the binding, and a row with their values.
    pub fn sought(&self) -> (Arc<Binding>, &[usize], Row<'_>) {
        let State::Looking(look) = &self.state else { unreachable!("asked for only while it is looked for") };
        let columns = look.keys.front().expect("a look has a key to ask for");
        (look.binding.clone(), columns, Row(&look.values))
    }

    pub fn table_rows<'a>(&'a self, rows: &'a [Row<'a>]) -> TableRows<'a> {
        self.group().table_rows(rows)
    }

    /// What to do now. `random` in 0..1.
    pub fn next(&mut self, random: f64) -> Action {
        match &mut self.state {
            State::Stopped(error) => Action::Stop(error.take()),
            // What is under way ends in its turn.
            State::Reading | State::Submitting if self.finishing && !self.flying.is_empty() => {
                self.state = State::Landing;
                Action::Land
            }
            State::Paused(_)
            | State::Opening
            | State::Seeking
            | State::Reading
            | State::Waiting
            | State::Submitting
            | State::Gathering(_)
                if self.finishing =>
            {
                self.state = State::Stopped(None);
                Action::Stop(None)
            }
            State::Paused(attempt) => Action::Pause(backoff(*attempt, random)),
            State::Opening => Action::Open,
            State::Seeking => Action::Seek(self.passed + 1),
            State::Reading => Action::Fetch,
            State::Waiting => Action::Wait,
            State::Gathering(time) => Action::Gather(*time),
            State::Submitting => Action::Submit(self.next_marker()),
            State::Landing => Action::Land,
            State::Beginning => Action::Begin(self.next_marker()),
            State::Chunk => {
                let spool = self.work.spool().expect("only spooled entries come in chunks").clone();
                Action::Chunk { spool, first: !self.work.begun }
            }
            State::Writing => match self.group().binding.filter.is_some() && !self.work.checked {
                true => Action::Read,
                false => Action::Write { alone: self.work.replay },
            },
            State::Looking(_) => Action::Holder,
            State::Syncing => Action::Quarantine(self.keys.pending(), self.work.rivals.clone()),
            State::Committing => Action::Commit,
            State::RollingBack => Action::Rollback,
        }
    }

    /// What came of the last action.
    pub fn event(&mut self, event: Event, now: Micros) {
        match (&self.state, event) {
            (_, Event::Failed(error)) => self.failed(error, now),
            (State::Opening, Event::Opened(opened)) => self.opened(*opened),
            (State::Paused(_), Event::Done) => self.state = State::Opening,
            (State::Seeking | State::Waiting | State::Gathering(_), Event::Done) => self.state = State::Reading,
            (State::Reading, Event::Fetched(record)) => self.fetched(record, now),
            (State::Submitting, Event::Done) => self.submitted(now),
            (State::Landing, Event::Done) => self.landed(),
            (State::Beginning, Event::Done) => self.begun(now),
            (State::Chunk, Event::Chunk(chunk)) => self.chunk(chunk, now),
            (State::Writing, Event::Rows(rows)) => self.checked(&rows, now),
            (State::Writing, Event::Done) => self.wrote(now),
            (State::Looking(_), Event::Holder(row)) => self.looked(row, now),
            (State::Syncing, Event::Done) => {
                self.keys.synced();
                self.state = State::Committing;
            }
            (State::Committing, Event::Done) => self.committed(now),
            (State::RollingBack, Event::Done) => {
                self.keys.rolled_back();
                self.work = std::mem::take(&mut self.work).again(true);
                self.state = State::Beginning;
            }
            (State::Stopped(_), _) => {}
            (state, event) => unreachable!("{event:?} while {state:?}: the driver answers the action it was given"),
        }
    }

    fn stop(&mut self, error: Error) {
        self.state = State::Stopped(Some(error));
    }

    fn failed(&mut self, error: Error, now: Micros) {
        let refused = error.recovery == Recovery::Quarantine;
        match (&self.state, &error.recovery) {
            (State::Writing, Recovery::Quarantine) if self.work.replay => self.refused_alone(Arc::new(error), now),
            // What it has is beyond us.
            (State::Looking(_), Recovery::Quarantine) => self.looked(None, now),
            (State::Writing | State::Committing, Recovery::Quarantine) if !self.work.replay => {
                self.state = State::RollingBack;
            }
            (State::Landing, Recovery::Quarantine) => self.grounded(),
            (_, Recovery::Retry) => {
                self.state = State::Paused(self.attempt);
                self.attempt += 1;
            }
            _ if refused => {
                let code = error.code.clone().unwrap_or_default();
                self.stop(
                    Error::stop(
                        format!("refused by {:?}, and no single change is at fault", self.routes.name),
                        "is a constraint of a bound table deferred to the commit? make it immediate",
                    )
                    .code(code)
                    .because(error),
                );
            }
            _ => self.stop(error),
        }
    }

    fn opened(&mut self, opened: Opened) {
        let Opened { marker, journal, head, seen, from, held } = opened;
        let fresh = marker.seq == 0 && marker.part == 0;
        let wrong = if marker.journal != journal && !fresh {
            Some("its marker counts the entries of another journal".to_owned())
        } else if marker.seq > head {
            Some(format!("its marker is at seq {}, beyond the journal's head {head}", marker.seq))
        } else if marker.seq < seen {
            Some(format!("its marker is at seq {}, its own log has shown {seen}", marker.seq))
        } else {
            None
        };
        if let Some(why) = wrong {
            let name = &self.routes.name;
            let error = Error::lost(format!("system {name:?} or the journal is from a backup: {why}"), "compare them");
            return self.stop(error.of_system(name));
        }
        // Commits whose outcome was unknown: the marker tells.
        self.flying.push_back(std::mem::take(&mut self.work));
        for mut work in std::mem::take(&mut self.flying) {
            if !work.entries.is_empty() && marker.seq >= work.to() {
                self.count(&mut work);
            }
        }
        if marker.seq < self.passed {
            // A crash took back what had been counted as applied: it is addressed here once more.
            self.known = self.known.max(self.passed);
        }
        self.keys = Keys::opened(&self.routes, held, marker.seq);
        self.stashed = None;
        self.passed = marker.seq.max(from.saturating_sub(1));
        self.read = self.passed;
        self.marker = Some(marker);
        self.state = State::Seeking;
    }

    fn fetched(&mut self, record: Option<Record>, now: Micros) {
        match record {
            // By then there may be more to join what is in hand.
            None if self.is_aloft() => self.state = State::Landing,
            None if self.work.entries.is_empty() => {
                self.attempt = 0;
                self.state = State::Waiting;
            }
            None => self.state = self.gather(now),
            Some(Record::Entry(entry)) => self.take(entry, now),
            Some(Record::Quarantine(quarantined))
                if *quarantined.system == *self.routes.name && quarantined.held_seq > self.read =>
            {
                self.keys.set_aside(&quarantined);
            }
            Some(Record::Released { system, key_hash, by, .. }) if *system == *self.routes.name => {
                self.keys.given_up(key_hash, by);
            }
            Some(_) => {}
        }
    }

    /// Where changes come in masses, more of them fold onto each other in one transaction, and what it costs by
    /// itself is shared by more.
    fn gather(&mut self, now: Micros) -> State {
        let many = self.work.entries.len() >= GATHERED_ENTRIES && self.work.changes >= GATHERED_CHANGES;
        let until = *self.work.gathered_until.get_or_insert(now + GATHERED_FOR.as_micros() as Micros);
        match Duration::from_micros(u64::try_from(until - now).unwrap_or(0)) {
            left if many && !left.is_zero() => State::Gathering(left.min(GATHERED_FOR)),
            _ => State::Beginning,
        }
    }

    /// Joins an entry to the batch in hand, or begins with what is there.
    fn take(&mut self, entry: Entry, now: Micros) {
        debug_assert!(entry.seq > self.read, "the journal is read in order");
        self.read = entry.seq;
        let bytes = match &entry.body {
            Body::Inline(body) => body.len() + entry.replacements.len(),
            Body::Spooled(_) => usize::MAX,
        };
        let addressed = self.is_addressed(&entry);
        if let Some(error) = self.unreadable.take() {
            return self.stop(error);
        }
        if !addressed {
            if self.work.entries.is_empty() && !self.is_aloft() {
                self.passed = entry.seq;
            }
            return;
        }
        let full = self.work.bytes.saturating_add(bytes) > self.limits.bytes
            || self.work.changes + entry.changes > self.limits.changes
            || entry.hops > HOPS_JOINED;
        if full && !self.work.entries.is_empty() {
            self.stashed = Some(entry);
            return self.close(now);
        }
        self.work.bytes = self.work.bytes.saturating_add(bytes);
        self.work.changes += entry.changes;
        self.work.entries.push(entry);
        if full {
            self.close(now);
        }
    }

    /// Whether anything of it may be for this system. Spooled ones are not looked through: one
    /// that is not needs a marker write less than once in a while.
    fn is_addressed(&mut self, entry: &Entry) -> bool {
        if let Address::Only(names) = &entry.to {
            return names.contains(&self.routes.name);
        }
        let own = entry.origin.system().is_some_and(|name| *name == self.routes.name);
        let Body::Inline(body) = &entry.body else {
            return !own || !entry.decisions.is_empty();
        };
        if own && entry.decisions.is_empty() {
            return false;
        }
        if entry.decisions.is_empty() && entry.schema.id == self.routes.schema.id {
            return Changes::new(body).any(|change| self.routes.binding(change.entity).is_some());
        }
        let (mut index, mut cursor, mut any) = (0, 0, false);
        self.each(entry, body, &mut index, &mut cursor, &mut |_, _| any = true);
        any
    }

    /// The changes of a body or chunk that this system is to have, encoded in its schema.
    fn each(
        &mut self,
        entry: &Entry,
        body: &Bytes,
        index: &mut u64,
        cursor: &mut usize,
        found: &mut dyn FnMut(u64, Bytes),
    ) {
        let routes = &self.routes;
        let translation = self.translations.entry(entry.schema.id).or_insert_with(|| routes.translation(&entry.schema));
        let translation = translation.as_ref();
        let unreadable = &mut self.unreadable;
        entry.each_for(&routes.name, body, translation, index, cursor, &mut |number, encoded| {
            let encoded = match (encoded, translation) {
                (Ok(encoded), _) => encoded,
                (Err(entity), Some(translation)) if translation.is_rekeyed(entity) => {
                    let entity = &entry.schema.entity(entity).name;
                    unreadable.get_or_insert_with(|| rekeyed(entry.seq, entity, &routes.name));
                    return;
                }
                (Err(_), _) => return,
            };
            let change = Changes::new(&encoded).next().expect("one encoded change");
            if routes.binding(change.entity).is_some() {
                found(number, encoded);
            }
        });
    }

    fn next_marker(&self) -> Marker {
        let current = self.marker.as_ref().expect("opened before anything is written");
        let last = self.work.entries.last().expect("begun only with something in hand");
        let origin = match &last.origin {
            Origin::System(name) => name.to_string(),
            Origin::Copied(_) | Origin::Agent => "agent".to_owned(),
        };
        Marker { seq: last.seq, part: 0, origin, txid: last.txid.to_string(), ..current.clone() }
    }

    fn begun(&mut self, now: Micros) {
        if self.work.spool().is_some() {
            self.state = State::Chunk;
            return;
        }
        match self.planned(now) {
            Err(error) => self.stop(error),
            Ok(()) => self.write_on(now),
        }
    }

    /// Makes the statements of the batch in hand, where they are not there yet.
    fn planned(&mut self, now: Micros) -> Result<(), Error> {
        if std::mem::replace(&mut self.work.planned, true) {
            return Ok(());
        }
        let entries = std::mem::take(&mut self.work.entries);
        let mut batch = Batch::default();
        for (at, entry) in entries.iter().enumerate() {
            let Body::Inline(body) = &entry.body else { unreachable!("a spooled entry is a batch of its own") };
            let (mut index, mut cursor) = (0, 0);
            self.plan(at, entry, body, &mut index, &mut cursor, &mut batch, now);
        }
        self.work.entries = entries;
        self.unreadable.take().map_or(Ok(()), Err)?;
        self.spell(batch);
        Ok(())
    }

    fn chunk(&mut self, chunk: Option<Bytes>, now: Micros) {
        self.work.begun = true;
        let Some(chunk) = chunk else { return self.written() };
        let entries = std::mem::take(&mut self.work.entries);
        let (mut index, mut cursor) = (self.work.index, self.work.cursor);
        let mut batch = Batch::default();
        self.plan(0, &entries[0], &chunk, &mut index, &mut cursor, &mut batch, now);
        (self.work.index, self.work.cursor, self.work.entries) = (index, cursor, entries);
        self.keys.forget_written();
        match self.unreadable.take() {
            Some(error) => self.stop(error),
            None => {
                self.spell(batch);
                self.write_on(now);
            }
        }
    }

    /// Puts the changes of one body into the batch, or for a replay into its queue.
    fn plan(
        &mut self,
        at: usize,
        entry: &Entry,
        body: &Bytes,
        index: &mut u64,
        cursor: &mut usize,
        batch: &mut Batch,
        now: Micros,
    ) {
        let mut found = Vec::with_capacity(entry.changes.min(self.limits.changes) as usize);
        self.each(entry, body, index, cursor, &mut |number, encoded| found.push((number, encoded)));
        batch.reserve(found.len());
        self.work.progress.addressed += found.len() as u64;
        self.work.progress.bytes += found.iter().map(|(_, encoded)| encoded.len() as u64).sum::<u64>();
        if entry.seq <= self.known {
            self.work.progress.backlog += found.len() as u64;
        }
        if self.work.replay {
            self.work.singles.extend(found.into_iter().map(|(number, encoded)| (at, number, encoded)));
            return;
        }
        let retries = entry.is_retry().then_some(entry.base);
        for (index, encoded) in found {
            let change = Changes::new(&encoded).next().expect("one encoded change");
            match self.keys.route(&change, At { seq: entry.seq, index }, retries, now) {
                Route::Held => self.work.progress.held += 1,
                Route::Write => batch.add(&self.routes, &encoded, &change),
                Route::Retry => {
                    self.keys.freed(change.key_hash, entry.seq);
                    batch.add(&self.routes, &encoded, &change);
                }
            }
        }
    }

    /// The statements of a batch.
    fn spell(&mut self, mut batch: Batch) {
        self.work.progress.coalesced += batch.coalesced;
        for (entity, deleted) in batch.entities() {
            self.work.progress.wrote(entity, deleted);
        }
        if self.limits.connections > 1 {
            self.work.keys = batch.take_keys();
        }
        self.work.groups = batch.groups(&self.routes).into();
        self.work.checked = false;
    }

    /// To the next statement, or past the last one.
    fn write_on(&mut self, now: Micros) {
        while self.work.groups.is_empty() {
            let Some((entry, index, encoded)) = self.work.singles.pop_front() else {
                match self.work.spool() {
                    Some(_) => self.state = State::Chunk,
                    None => self.written(),
                }
                return;
            };
            let entry = &self.work.entries[entry];
            let (at, retries) = (At { seq: entry.seq, index }, entry.is_retry().then_some(entry.base));
            let change = Changes::new(&encoded).next().expect("one encoded change");
            let route = self.keys.route(&change, at, retries, now);
            if route == Route::Held {
                self.work.progress.held += 1;
                continue;
            }
            let mut batch = Batch::default();
            batch.add(&self.routes, &encoded, &change);
            let aside = self.work.aside.get(&change.key_hash).cloned();
            self.work.groups = batch.groups(&self.routes).into();
            self.work.single = Some(Single { encoded, at, route });
            if let Some(error) = aside {
                return self.refused(&error, now);
            }
        }
        self.work.checked = false;
        self.state = State::Writing;
    }

    fn wrote(&mut self, now: Micros) {
        self.work.groups.pop_front();
        self.work.checked = false;
        if self.work.groups.is_empty()
            && let Some(Single { encoded, at, route }) = self.work.single.take()
        {
            let change = Changes::new(&encoded).next().expect("one encoded change");
            self.work.progress.wrote(change.entity.index(), change.op == Op::Delete);
            self.keys.wrote(&encoded, at.seq, route);
        }
        self.write_on(now);
    }

    /// The rows that are there, for a binding with a filter.
    fn checked(&mut self, there: &[Option<Vec<u8>>], now: Micros) {
        let group = self.work.groups.pop_front().expect("read for a group");
        match filter::check(&group, there) {
            Checked::Write(groups) => {
                let any = !groups.is_empty();
                groups.into_iter().rev().for_each(|group| self.work.groups.push_front(group));
                self.work.checked = true;
                if !any {
                    // Nothing to do for it: as good as written.
                    self.work.groups.push_front(group);
                    self.wrote(now);
                }
            }
            Checked::Refused(error) if self.work.replay => self.refused(&Arc::new(error), now),
            Checked::Refused(_) => self.state = State::RollingBack,
        }
    }

    /// The replay: before a duplicate is set aside, it is asked what is in its way.
    fn refused_alone(&mut self, error: Arc<Error>, now: Micros) {
        match self.look(error) {
            Ok(look) => self.state = State::Looking(look),
            Err(error) => self.refused(&error, now),
        }
    }

    fn look(&self, error: Arc<Error>) -> Result<Look, Arc<Error>> {
        let Some(single) = self.work.single.as_ref().filter(|_| is_duplicate(&error)) else { return Err(error) };
        let change = Changes::new(&single.encoded).next().expect("one encoded change");
        let (Some(binding), Some(after)) = (self.routes.binding(change.entity), change.after) else {
            return Err(error);
        };
        let values = change.before.map_or_else(|| after.0.to_vec(), |before| overlay(before, after));
        let (sent, carried) = (settled(Row(&values)), settled(after));
        let field = |place: &usize| binding.columns[*place].field;
        let told = |key: &&Vec<usize>| {
            let fields = key.iter().fold(0u128, |set, place| set | 1 << field(place));
            fields & !sent == 0 && fields & carried != 0
        };
        let keys: VecDeque<Vec<usize>> = binding.clash_keys.iter().filter(told).cloned().collect();
        match keys.is_empty() {
            true => Err(error),
            false => Ok(Look { error, binding: binding.clone(), values, keys }),
        }
    }

    fn looked(&mut self, row: Option<Vec<u8>>, now: Micros) {
        let State::Looking(mut look) = std::mem::replace(&mut self.state, State::Writing) else {
            unreachable!("asked for only while it is looked for")
        };
        let columns = look.keys.pop_front().expect("it was asked for");
        let rival = row.map(|row| self.rival(&look.binding, &columns, &row));
        let single = self.work.single.as_ref().expect("a replay writes one change at a time");
        let key_hash = Changes::new(&single.encoded).next().expect("one encoded change").key_hash;
        let seq = single.at.seq;
        match rival.filter(|(_, of, _)| *of != key_hash) {
            Some((fields, _, row)) => self.work.rivals.push(Rival { key_hash, seq, fields, row }),
            None if !look.keys.is_empty() => {
                self.state = State::Looking(look);
                return;
            }
            None => {}
        }
        self.refused(&look.error, now);
    }

    /// The fields of the unique key, the hash of the row's own key, and the row as a change.
    fn rival(&self, binding: &Binding, columns: &[usize], row: &[u8]) -> (u128, u128, Bytes) {
        let fields = columns.iter().fold(0, |set, place| set | 1 << binding.columns[*place].field);
        let mut out = ChangeWriter::default();
        let row = Row(row);
        let all = 0..self.routes.schema.entity(binding.entity).fields.len();
        let after = Some(all.map(|field| row.get(field)));
        out.push(&self.routes.schema, binding.entity, Op::Insert, None::<std::iter::Empty<Datum<'_>>>, after);
        let key_hash = out.last().key_hash;
        (fields, key_hash, out.take().into())
    }

    /// The replay: one change is set aside, the others go on.
    fn refused(&mut self, error: &Arc<Error>, now: Micros) {
        self.work.groups.clear();
        let Some(Single { encoded, at, route }) = self.work.single.take() else {
            unreachable!("a replay writes one change at a time")
        };
        // The record says all that is to be done; done before, a difference would count twice.
        let change = Changes::new(&encoded).next().expect("one encoded change");
        if self.keys.has_added(change.key_hash) {
            self.work.aside.insert(change.key_hash, error.clone());
            self.state = State::RollingBack;
            return;
        }
        self.work.progress.held += 1;
        if route == Route::Write {
            self.work.refused += 1;
            let recent = self.ordinal + self.work.progress.addressed;
            let before = self.refusals.iter().filter(|at| *at + self.limits.window > recent).count();
            if before + self.work.refused > self.limits.refused {
                let name = &self.routes.name;
                return self.stop(
                    Error::stop(
                        format!(
                            "system {name:?} refused more than {} of the last {} changes",
                            self.limits.refused, self.limits.window
                        ),
                        "mend what it says and restart; nothing of this batch was applied",
                    )
                    .because(std::io::Error::other(error.full())),
                );
            }
        }
        self.keys.refused(&self.routes, &Refusal { encoded: &encoded, at, route, error, now });
        self.write_on(now);
    }

    fn written(&mut self) {
        self.state = match self.keys.pending().is_empty() {
            true => State::Committing,
            false => State::Syncing,
        };
    }

    /// The batch is in the target.
    fn count(&mut self, work: &mut Work) {
        let Work { entries, progress, .. } = work;
        progress.commits = 1;
        progress.transactions = entries.len() as u64;
        let live = entries.iter().filter(|entry| matches!(entry.origin, Origin::System(_)));
        progress.committed_at = live.map(|entry| entry.committed_at).collect();
        self.progress.add(progress);
    }

    fn committed(&mut self, now: Micros) {
        self.keys.committed();
        let mut work = std::mem::take(&mut self.work);
        self.count(&mut work);
        self.ordinal += work.progress.addressed;
        self.refusals.extend(std::iter::repeat_n(self.ordinal, work.refused));
        while self.refusals.front().is_some_and(|at| at + self.limits.window <= self.ordinal) {
            self.refusals.pop_front();
        }
        self.attempt = 0;
        self.move_on(&work);
        self.state = State::Reading;
        if !self.take_stashed(now) {
            self.passed = self.read.max(self.passed);
        }
    }

    /// The marker is where the batch ends.
    fn move_on(&mut self, work: &Work) {
        let next = Marker { seq: work.to(), ..self.marker.take().expect("opened before anything is written") };
        self.passed = next.seq;
        self.marker = Some(next);
    }

    /// Begins a batch with what did not fit into the last one.
    fn take_stashed(&mut self, now: Micros) -> bool {
        let Some(entry) = self.stashed.take() else { return false };
        self.read = entry.seq - 1;
        self.take(entry, now);
        true
    }
}

/// The target says that another row has a value which is unique there.
fn is_duplicate(error: &Error) -> bool {
    error.code.as_deref().is_some_and(|code| ["23505", "1062", "1169", "1586"].contains(&code))
}

fn rekeyed(seq: Seq, entity: &str, system: &str) -> Error {
    Error::stop(
        format!(
            "entry {seq} has changes of {entity:?} under the key that it had before, and {system} lacks them still"
        ),
        "give the entity its former key until `anechoic wait` returns, then change it",
    )
}

impl std::fmt::Debug for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Steps").field("state", &self.state).field("passed", &self.passed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
