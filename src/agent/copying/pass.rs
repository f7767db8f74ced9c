//! One pass over one entity of one system: chunk by chunk in key order, each between two moments
//! of the system's own log.
//!
//! ```text
//! desk: low watermark ─▶ scan: read ─▶ log's end ─▶ captured so far ─▶ desk: admit, mark, sync
//!                              └─ look up in systems that have rows ─┘
//! ```
//!
//! Chunks are read ahead ([`super::ahead`]), and handed in one after the other: a chunk's rows
//! become durable together with the mark that it is done, and with what was counted by then.
//!
//! Rows that lose to something live may be read again ([`super::lost`]).

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::warn;

use super::ahead::{Ahead, Fetched, Spec};
use super::chunk::Chunk;
use super::compare::{Class, compare, names};
use super::reach::LOOK_EVERY;
use super::{Context, Counted};
use crate::agent::chunks::{Copying, Outcome, Rows};
use crate::change::{ChangeWriter, Changes, LoadMark, LoadState};
use crate::control::text;
use crate::error::{Error, Recovery, Result, backoff};
use crate::failpoint;
use crate::load::Counts;
use crate::position::{Position, Seq};
use crate::scan::{Page, PageSize, Plan, Scanner};
use crate::schema::{SystemId, SystemSet};
use crate::status::{State, now};
use crate::value::{Datum, Row, key_hash};

/// Entries that may wait for a target before more is read.
const AHEAD: usize = 24;
/// Of all chunks that are read ahead, about; and of one where its rows are only inserted.
const BYTES_AHEAD: usize = 12 << 20;
const CHUNK_BYTES: usize = 4 << 20;

/// A system that receives the entity.
pub struct Receiver {
    pub system: SystemId,
    pub name: Arc<str>,
    pub plan: Plan,
    /// It had no rows when the load began: whatever is read is missing there.
    pub empty: bool,
    /// Its rows count more than those that are read: what it has was compared when it was read.
    pub higher: bool,
    scanner: Option<Scanner>,
}

impl Receiver {
    pub fn new(system: SystemId, name: Arc<str>, plan: Plan, empty: bool, higher: bool) -> Self {
        Receiver { system, name, plan, empty, higher, scanner: None }
    }

    pub async fn look_up(&mut self, context: &Context, keys: &[Row<'_>]) -> Result<Page> {
        let plan = self.plan.clone();
        let found = self.scanner(context).await?.by_keys(&plan, keys).await;
        self.or_anew(found)
    }

    pub async fn page(&mut self, context: &Context, after: Option<&[u8]>, size: PageSize) -> Result<Page> {
        let plan = self.plan.clone();
        let page = self.scanner(context).await?.page(&plan, after, size).await;
        self.or_anew(page)
    }

    /// Everything that was committed there before is captured.
    pub async fn until_captured(&mut self, context: &Context) -> Result<()> {
        let scanner = self.scanner(context).await?;
        let captured = match scanner.finish().await {
            Ok(end) => context.captured(self.system, self.scanner(context).await?, &end).await,
            Err(error) => Err(error),
        };
        self.or_anew(captured)
    }

    async fn scanner(&mut self, context: &Context) -> Result<&mut Scanner> {
        if self.scanner.is_none() {
            self.scanner = Some(Scanner::connect(&context.config, self.system).await?);
        }
        Ok(self.scanner.as_mut().expect("just connected"))
    }

    /// What failed on a connection is tried again on another one.
    fn or_anew<T>(&mut self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.scanner = None;
        }
        result.map_err(|error| error.context(format!("in {}", self.name)))
    }
}

pub struct Pass<'a> {
    pub context: &'a Arc<Context>,
    pub source: SystemId,
    pub name: Arc<str>,
    pub plan: Plan,
    pub receivers: Vec<Receiver>,
    pub only_missing: bool,
    /// What only receivers had is gone, and was counted.
    pub delete_extra: bool,
    /// Nothing is written.
    pub dry_run: bool,
    /// Whoever receives was empty when the load was begun.
    pub fresh: bool,
    /// Systems that bind the entity, and those of them that need none of it.
    pub bound: Vec<Arc<str>>,
    pub settled: Vec<Arc<str>>,
    /// Whose rows count most.
    pub authority: Arc<str>,
    /// Whose rows are read after these.
    pub next: Option<Arc<str>>,
    pub max_rate: Option<u64>,
    /// Chunks that are read at once.
    pub parallel: usize,
    pub begun: i64,
    /// What the audit trail calls it.
    pub word: &'static str,
    pub counted: &'a mut Counted,
    pub scanner: Option<Scanner>,
    pub size: PageSize,
    /// Of entries that not every receiver has applied, perhaps.
    pub ahead: VecDeque<Seq>,
    /// Keys of rows that lost to what did not tell all of them, or that were missed.
    pub lost: BTreeSet<Bytes>,
}

/// What is made of a page.
#[derive(Default)]
pub struct Made {
    pub parts: Parts,
    pub deletes: bool,
    /// What it adds, once it is taken in.
    pub counts: Counts,
    /// Keys that lost before, and are not there.
    pub absent: Vec<(u128, Bytes)>,
}

impl Pass<'_> {
    /// From behind `after` to the table's end.
    pub async fn run(&mut self, mut after: Option<Vec<u8>>) -> Result<()> {
        let most = (BYTES_AHEAD / self.parallel).min(CHUNK_BYTES);
        if self.receivers.iter().all(|receiver| receiver.empty) {
            self.size = PageSize::of(most);
        }
        let mut attempt = 0;
        while let Err(error) = self.chunks(&mut after, &mut attempt).await {
            self.retry(error, &mut attempt).await?;
        }
        self.read_all_lost().await?;
        if let Some(next) = self.next.clone() {
            self.mark_of(&next, LoadState::Running, &[]).await?;
        }
        self.mark(LoadState::Done, &[]).await
    }

    /// One chunk after the other to the table's end. What was read ahead of one that fails, or
    /// has to be read again, is given up.
    async fn chunks(&mut self, after: &mut Option<Vec<u8>>, attempt: &mut u32) -> Result<()> {
        let spec = Spec {
            context: self.context.clone(),
            source: self.source,
            plan: self.plan.clone(),
            max_rate: self.max_rate,
        };
        loop {
            let mut ahead = Ahead::begin(&spec, self.parallel, after.clone(), self.size);
            loop {
                let Fetched { chunk, page, place } = ahead.next().await?;
                let last = page.last.clone().or_else(|| after.clone());
                if !self.hand_in(chunk, &page, last.as_deref().unwrap_or_default()).await? {
                    // Half as many: fewer of them can change while they are read.
                    self.size = self.size.at_most(page.seen as usize / 2);
                    break;
                }
                *attempt = 0;
                *after = last;
                self.counted.report(&self.name, "running", None);
                if page.end {
                    return Ok(());
                }
                drop((page, place));
                failpoint::pass("after-load-chunk");
                self.keep_few_lost().await?;
                self.keep_pace().await?;
            }
        }
    }

    pub(super) async fn retry(&mut self, error: Error, attempt: &mut u32) -> Result<()> {
        self.scanner = None;
        if error.recovery != Recovery::Retry {
            return Err(error);
        }
        let pause = backoff(*attempt, rand::random());
        *attempt += 1;
        warn!(entity = %self.counted.entity, error = %error.full(), retry_in_ms = pause.as_millis() as u64, "load interrupted, retrying");
        self.counted.report(&self.name, "retrying", Some(error.full()));
        self.context.pause(pause).await
    }

    /// Brings the receivers to the rows that this system has for these keys: what it has not goes.
    pub async fn repair(&mut self, keys: &[Vec<u8>]) -> Result<()> {
        let mut again: Vec<Vec<u8>>;
        let mut keys = keys;
        while !keys.is_empty() {
            self.by_keys(keys, false).await?;
            self.read_all_lost().await?;
            let chunk = self.open().await?;
            let (page, parts) = self.surplus(&chunk.low, keys, None, &mut []).await?;
            if !self.lay_in(chunk, &page, Made { parts, ..Made::default() }, None).await? {
                continue;
            }
            // Somebody wrote where something was to go.
            again = std::mem::take(&mut self.lost).into_iter().map(Into::into).collect();
            keys = &again;
        }
        Ok(())
    }

    /// Reads, compares and hands in the rows of these keys. They were counted when they were found.
    /// `again`: they lost before, so that one which is not there may have to be waited for.
    pub(super) async fn by_keys(&mut self, keys: &[Vec<u8>], again: bool) -> Result<()> {
        loop {
            let chunk = self.open_for(keys).await?;
            let page = self.read(&chunk.low, &Read::Keys(keys)).await?;
            let Made { parts, .. } = self.made(&page).await?;
            let counts = Counts { refused: page.refused.len() as u64, ..Counts::default() };
            let mut made = Made { parts, counts, ..Made::default() };
            if again {
                let there: HashSet<u128> = page.all().map(|change| change.key_hash).collect();
                let keys = self.hashes(keys).into_iter().zip(keys);
                let absent = keys.filter(|(hash, _)| !there.contains(hash));
                made.absent = absent.map(|(hash, key)| (hash, Bytes::copy_from_slice(key))).collect();
            }
            if self.lay_in(chunk, &page, made, None).await? {
                return Ok(());
            }
        }
    }

    pub(super) async fn open(&self) -> Result<Chunk> {
        self.open_for(&[]).await
    }

    /// A chunk of these keys, whose rows may have lost before.
    async fn open_for(&self, keys: &[Vec<u8>]) -> Result<Chunk> {
        let keys = self.hashes(keys).into_iter().collect();
        self.context.open(self.source, self.plan.entity, keys).await
    }

    fn hashes(&self, keys: &[Vec<u8>]) -> Vec<u128> {
        let entity = self.plan.schema.entity(self.plan.entity);
        let mut scratch = Vec::new();
        keys.iter().map(|key| key_hash(entity.seed, Row(key).iter(), &mut scratch)).collect()
    }

    pub(super) async fn scanner(&mut self) -> Result<&mut Scanner> {
        if self.scanner.is_none() {
            self.scanner = Some(Scanner::connect(&self.context.config, self.source).await?);
        }
        Ok(self.scanner.as_mut().expect("just connected"))
    }

    /// What is there, all of it captured by now or behind what is read.
    pub(super) async fn read(&mut self, low: &Position, what: &Read<'_>) -> Result<Page> {
        let (context, plan, size) = (self.context, self.plan.clone(), self.size);
        let scanner = self.scanner().await?;
        context.begin(scanner, low).await?;
        let page = match what {
            Read::Behind(after) => scanner.page(&plan, *after, size).await?,
            Read::Keys(keys) => {
                let keys: Vec<Row<'_>> = keys.iter().map(|key| Row(key)).collect();
                scanner.by_keys(&plan, &keys).await?
            }
        };
        let high = scanner.finish().await?;
        self.wait_until_captured(&high).await?;
        Ok(page)
    }

    pub(super) async fn wait_until_captured(&mut self, high: &Position) -> Result<()> {
        let (context, source) = (self.context, self.source);
        context.captured(source, self.scanner().await?, high).await
    }

    /// `done`: everything up to that key is, with this. `false`: it has to be read again.
    async fn hand_in(&mut self, chunk: Chunk, page: &Page, done: &[u8]) -> Result<bool> {
        let made = self.made(page).await?;
        if self.dry_run {
            self.size.learn(page);
            self.counted.counts.add(made.counts);
            return Ok(true);
        }
        self.lay_in(chunk, page, made, Some(done)).await
    }

    /// As [`hand_in`](Self::hand_in). It is counted where it is taken in, and by the mark that becomes
    /// durable with it: not twice, however often it is read.
    pub(super) async fn lay_in(&mut self, chunk: Chunk, page: &Page, made: Made, done: Option<&[u8]>) -> Result<bool> {
        let Page { refused, running, .. } = page;
        let Made { parts, deletes, counts: more, absent } = made;
        let rows = Rows {
            txid: format!("{} {}", self.word, self.begun).into(),
            read_at: now(),
            parts,
            deletes,
            refused: refused.clone(),
            running: running.clone(),
            absent,
        };
        let mut counts = self.counted.counts.clone();
        counts.add(more);
        let marked = |counts, key| LoadMark { counts, ..self.marked(&self.name, LoadState::Running, key) };
        let mark = done.map(|key| marked(counts.clone(), key));
        let (reply, answer) = oneshot::channel();
        let chunk = chunk.into_number();
        self.context.lay(Copying::Rows { chunk, rows, mark: mark.clone().map(Box::new), reply }).await?;
        let Outcome::Taken { taken, lost, missed, seq } = answer.await.map_err(|_| super::gone())? else {
            return Ok(false);
        };
        self.size.learn(page);
        counts.took(taken, lost.len(), deletes);
        self.counted.counts = counts;
        if seq > 0 {
            self.ahead.push_back(seq);
        }
        self.note_lost(lost, missed);
        if let Some(mark) = mark {
            let (counts, lost) = (self.counted.counts.clone(), self.lost.iter().cloned().collect());
            self.counted.mark = Some(LoadMark { counts, lost, ..mark });
        }
        Ok(true)
    }

    /// The page's rows by who is to have them, and how they compare.
    async fn made(&mut self, page: &Page) -> Result<Made> {
        let mut counts = Counts { read: page.seen, refused: page.refused.len() as u64, ..Counts::default() };
        let made = |parts, counts| Made { parts, counts, ..Made::default() };
        if page.rows.is_empty() {
            return Ok(made(Vec::new(), counts));
        }
        if self.receivers.iter().all(|receiver| receiver.empty) {
            return Ok(made(vec![(None, page.rows.clone())], counts));
        }
        let key_len = self.plan.binding.key_len;
        let keys: Vec<Row<'_>> = Changes::new(&page.rows).map(|change| Row(change.key(key_len))).collect();
        let mut found: Vec<Vec<Class>> = Vec::new();
        for receiver in &mut self.receivers {
            found.push(match receiver.empty {
                true => vec![Class::Missing; keys.len()],
                false => compare(page, &receiver.look_up(self.context, &keys).await?, &receiver.plan),
            });
        }
        let has = |class: Class| matches!(class, Class::Equal | Class::Different(_));
        let entity = self.plan.schema.entity(self.plan.entity);
        // A row whose sums are alike may be so by chance, with a difference under way to one of the two.
        let by_chance = self.context.model.rules[self.plan.entity.index()].added() != 0;
        let mut to = vec![SystemSet::EMPTY; keys.len()];
        for (at, to) in to.iter_mut().enumerate() {
            let classes = || self.receivers.iter().zip(found.iter().map(|classes| classes[at]));
            if classes().any(|(receiver, class)| receiver.higher && has(class)) {
                continue;
            }
            if classes().any(|(receiver, _)| receiver.higher) && !self.delete_extra {
                let own = counts.of(&self.name);
                own.extra += 1;
                own.sample("extra", || shown(keys[at]));
            }
            for (receiver, class) in classes() {
                if receiver.empty {
                    *to = to.with(receiver.system);
                    continue;
                }
                let counts = counts.of(&receiver.name);
                match class {
                    Class::Equal => {
                        counts.equal += 1;
                        if by_chance && !self.only_missing {
                            *to = to.with(receiver.system);
                        }
                    }
                    Class::Elsewhere => {}
                    Class::Different(fields) => {
                        counts.different += 1;
                        names(entity, fields).for_each(|name| *counts.fields.entry(name.to_owned()).or_default() += 1);
                        counts.sample("different", || shown(keys[at]));
                        if !self.only_missing {
                            *to = to.with(receiver.system);
                        }
                    }
                    Class::Missing => {
                        counts.missing += 1;
                        counts.sample("missing", || shown(keys[at]));
                        *to = to.with(receiver.system);
                    }
                }
            }
        }
        let mut parts: BTreeMap<SystemSet, ChangeWriter> = BTreeMap::new();
        for (at, change) in Changes::new(&page.rows).enumerate() {
            if !to[at].is_empty() {
                parts.entry(to[at]).or_default().push_change(&change);
            }
        }
        let all: SystemSet = self.receivers.iter().map(|receiver| receiver.system).collect();
        let named = |to: SystemSet| {
            let names = self.receivers.iter().filter(|r| to.contains(r.system)).map(|r| r.name.clone());
            (to != all).then(|| names.collect())
        };
        let parts = parts.into_iter().map(|(to, mut writer)| (named(to), writer.take().into())).collect();
        Ok(made(parts, counts))
    }

    pub async fn mark(&mut self, state: LoadState, key: &[u8]) -> Result<()> {
        self.mark_of(&self.name.clone(), state, key).await
    }

    async fn mark_of(&mut self, system: &Arc<str>, state: LoadState, key: &[u8]) -> Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let mark = self.marked(system, state, key);
        self.context.mark(mark.clone()).await?;
        if state == LoadState::Running {
            self.counted.mark = Some(mark);
        }
        Ok(())
    }

    fn marked(&self, system: &Arc<str>, state: LoadState, key: &[u8]) -> LoadMark {
        LoadMark {
            entity: self.counted.entity.as_str().into(),
            system: system.clone(),
            authority: self.authority.clone(),
            only_missing: self.only_missing,
            delete_extra: self.delete_extra,
            fresh: self.fresh,
            bound: self.bound.clone(),
            settled: if state == LoadState::Done { self.bound.clone() } else { self.settled.clone() },
            state,
            begun: self.begun,
            schema: self.plan.schema.clone(),
            key: Bytes::copy_from_slice(key),
            counts: self.counted.counts.clone(),
            lost: self.lost.iter().cloned().collect(),
        }
    }

    /// The receivers have what was handed in so far, but for those that need a person.
    pub(super) async fn until_applied(&mut self) -> Result<()> {
        let Some(last) = self.ahead.back().copied() else { return Ok(()) };
        let (context, entity) = (self.context, self.plan.entity);
        let stopped = |system: SystemId| {
            let state = context.status.systems[system.index()].apply.state.lock().expect("never held across a panic");
            matches!(*state, State::Stopped(_))
        };
        let done = |r: &Receiver| context.stands(r.system) || stopped(r.system) || context.has(r.system, entity, last);
        while !self.receivers.iter().all(done) {
            context.pause(LOOK_EVERY).await?;
        }
        self.ahead.clear();
        Ok(())
    }

    /// Not far ahead of those who apply.
    async fn keep_pace(&mut self) -> Result<()> {
        while self.ahead.len() > AHEAD {
            let oldest = self.ahead[0];
            let (context, entity) = (self.context, self.plan.entity);
            let done = |r: &Receiver| context.stands(r.system) || context.has(r.system, entity, oldest);
            let applied = self.receivers.iter().all(done);
            match applied {
                true => drop(self.ahead.pop_front()),
                false => self.context.pause(Duration::from_millis(2)).await?,
            }
        }
        Ok(())
    }
}

/// Encoded changes by whom they are for; `None`: all others.
pub type Parts = Vec<(Option<Vec<Arc<str>>>, Bytes)>;

pub enum Read<'a> {
    Behind(Option<&'a [u8]>),
    Keys(&'a [Vec<u8>]),
}

/// A key for people.
pub fn shown(key: Row<'_>) -> String {
    key.iter().filter_map(Datum::value).map(text).collect::<Vec<_>>().join(", ")
}
