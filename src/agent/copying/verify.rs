//! Compares what all systems hold of an entity, in canonical form, while everybody writes.
//!
//! ```text
//! every system read ─▶ keys that differ ─▶ read again in all ─▶ unchanged since? ─▶ a difference
//!                                                   ▲      │ no: it was lag, or is written right now
//!                                                   └ logs passed, applied
//! ```
//!
//! Between two looks at a key every log is captured and applied past the first. So a row that
//! lags is equal at the second, and one that nobody has written in between and that still
//! differs differs. The authority's row is the measure.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tracing::info;

use super::abreast::is_ordered;
use super::compare::{Class, class_of, compare, names};
use super::pass::{Pass, Receiver, shown};
use super::{Context, Counted};
use crate::change::{Change, Changes};
use crate::control::{Image, image};
use crate::error::{Error, Result};
use crate::load::VerifySpec;
use crate::scan::{Page, PageSize, Plan, Scanner};
use crate::schema::{EntityId, SystemId};
use crate::value::Row;

/// More keys differ: then they are no single differences any more.
const CANDIDATES_MAX: usize = 200_000;
const KEYS: usize = 500;
const ROUNDS: u32 = 20;
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// One system that holds the entity.
pub(super) struct Party {
    system: SystemId,
    pub name: Arc<str>,
    pub plan: Plan,
    receives: bool,
    pub scanner: Scanner,
}

/// A key that did not look the same everywhere.
struct Candidate {
    key: Vec<u8>,
    /// Of its rows in all systems, as last seen: what many of them take must not depend on their
    /// width.
    seen: Option<u128>,
}

pub struct Verification<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) spec: &'a VerifySpec,
    entity: EntityId,
    pub counted: &'a mut Counted,
    /// The authority first.
    pub(super) parties: Vec<Party>,
    candidates: HashMap<u128, Candidate>,
    /// Keys that surely differ.
    confirmed: HashMap<u128, Vec<u8>>,
}

impl<'a> Verification<'a> {
    pub async fn open(
        context: &'a Arc<Context>,
        spec: &'a VerifySpec,
        entity: EntityId,
        counted: &'a mut Counted,
    ) -> Result<Self> {
        let mut parties = Vec::new();
        for system in context.config.system_ids() {
            let Some((plan, role)) = context.plan(system, entity) else { continue };
            let scanner = Scanner::connect(&context.config, system).await?;
            let name = context.config.system(system).name.clone();
            let party = Party { system, name, plan, receives: role.receives(), scanner };
            match role.captures() && parties.iter().all(|party: &Party| !party.plan.binding.role.captures()) {
                true => parties.insert(0, party),
                false => parties.push(party),
            }
        }
        let authority = &mut parties[0];
        counted.total = authority.scanner.estimate(&authority.plan).await?;
        Ok(Verification {
            context,
            spec,
            entity,
            counted,
            parties,
            candidates: HashMap::new(),
            confirmed: HashMap::new(),
        })
    }

    pub fn authority(&self) -> Arc<str> {
        self.parties[0].name.clone()
    }

    pub async fn run(&mut self) -> Result<()> {
        for party in &self.parties[1..] {
            self.counted.counts.of(&party.name);
        }
        match self.parties.iter().all(|party| is_ordered(&party.plan)) {
            true => self.abreast().await?,
            false => {
                for reader in 0..self.parties.len() {
                    self.read(reader).await?;
                }
            }
        }
        self.look_again().await?;
        if self.spec.repair && !self.confirmed.is_empty() {
            self.repair().await?;
        }
        Ok(())
    }

    /// Reads one system whole: the authority against all others, another one against the authority.
    async fn read(&mut self, reader: usize) -> Result<()> {
        let (mut size, mut after) = (PageSize::default(), None::<Vec<u8>>);
        let name = self.parties[reader].name.clone();
        let rate = self.spec.max_rate.filter(|rate| *rate > 0);
        loop {
            let began = Instant::now();
            // Little at a time, rather than much and then nothing for long.
            let asked = rate.map_or(size, |rate| size.at_most(rate.div_ceil(2) as usize));
            let party = &mut self.parties[reader];
            let page = party.scanner.page(&party.plan, after.as_deref(), asked).await?;
            size.learn(&page);
            self.counted.counts.read += page.seen;
            self.counted.counts.refused += page.refused.len() as u64;
            after = page.last.clone().or(after);
            self.compare_page(reader, &page).await?;
            self.counted.report(&name, "running", None);
            if let Some(rate) = rate {
                let due = Duration::from_secs_f64(page.seen as f64 / rate as f64);
                self.context.pause(due.saturating_sub(began.elapsed())).await?;
            }
            if page.end {
                return Ok(());
            }
        }
    }

    async fn compare_page(&mut self, reader: usize, page: &Page) -> Result<()> {
        let Some(page) = sampled(page, self.spec.sample_percent) else { return Ok(()) };
        let key_len = self.parties[reader].plan.binding.key_len;
        let keys: Vec<Row<'_>> = Changes::new(&page.rows).map(|change| Row(change.key(key_len))).collect();
        let others: Vec<usize> = if reader == 0 { (1..self.parties.len()).collect() } else { vec![0] };
        for other in others {
            let (party, candidates) = (&mut self.parties[other], &mut self.candidates);
            let there = party.scanner.by_keys(&party.plan, &keys).await?;
            for (change, class) in Changes::new(&page.rows).zip(compare(&page, &there, &party.plan)) {
                if reader == 0 && class != Class::Elsewhere {
                    // Until it is known to differ.
                    self.counted.counts.of(&party.name).equal += 1;
                }
                match class {
                    Class::Equal | Class::Elsewhere => {}
                    // The authority's rows were compared when it was read.
                    Class::Different(_) if reader > 0 => {}
                    Class::Different(_) | Class::Missing => note(candidates, &change, key_len),
                }
            }
        }
        self.not_too_many()
    }

    /// Its key is looked at again.
    pub(super) fn note(&mut self, change: &Change<'_>) {
        note(&mut self.candidates, change, self.parties[0].plan.binding.key_len);
    }

    pub(super) fn not_too_many(&self) -> Result<()> {
        if self.candidates.len() > CANDIDATES_MAX {
            return Err(Error::stop(
                format!("more than {CANDIDATES_MAX} rows of {:?} differ", self.counted.entity),
                format!("anechoic load {}", self.counted.entity),
            ));
        }
        Ok(())
    }

    /// Until every key that differed is equal, or stayed as it was while all logs passed.
    async fn look_again(&mut self) -> Result<()> {
        for round in 0..ROUNDS {
            if self.candidates.is_empty() {
                return Ok(());
            }
            if round > 0 {
                self.settle().await?;
            }
            let keys: Vec<(u128, Vec<u8>)> = self.candidates.iter().map(|(hash, c)| (*hash, c.key.clone())).collect();
            for keys in keys.chunks(KEYS) {
                let rows: Vec<Row<'_>> = keys.iter().map(|(_, key)| Row(key)).collect();
                let mut found: HashMap<u128, Vec<Option<Bytes>>> =
                    keys.iter().map(|(hash, _)| (*hash, vec![None; self.parties.len()])).collect();
                for (at, party) in self.parties.iter_mut().enumerate() {
                    let page = party.scanner.by_keys(&party.plan, &rows).await?;
                    for change in page.all() {
                        if let (Some(rows), Some(row)) = (found.get_mut(&change.key_hash), change.after) {
                            rows[at] = Some(Bytes::copy_from_slice(row.0));
                        }
                    }
                }
                for (hash, rows) in found {
                    self.judge(hash, &rows);
                }
            }
        }
        // Somebody writes them all the time: their differences do not last.
        self.counted.counts.lost = self.candidates.len() as u64;
        self.candidates.clear();
        Ok(())
    }

    fn judge(&mut self, hash: u128, rows: &[Option<Bytes>]) {
        let classes: Vec<Class> = (1..self.parties.len())
            .map(|at| class_of(rows[0].as_deref().map(Row), rows[at].as_deref().map(Row), &self.parties[at].plan))
            .collect();
        let same = |class: &Class| matches!(class, Class::Equal | Class::Elsewhere);
        let Some(candidate) = self.candidates.get_mut(&hash) else { return };
        // What has no canonical form was counted as such, and is no measure.
        let unread = rows[0].as_deref().is_some_and(|row| self.parties[0].plan.unread(Row(row)) != 0);
        if unread || classes.iter().all(same) {
            self.candidates.remove(&hash);
            return;
        }
        let seen = Some(print_of(rows));
        if candidate.seen != seen {
            candidate.seen = seen;
            return;
        }
        let candidate = self.candidates.remove(&hash).expect("looked up above");
        let entity = self.parties[0].plan.schema.entity(self.entity).clone();
        let held = self.context.held(hash);
        let measure = self.parties[0].name.clone();
        for (at, class) in classes.iter().enumerate().filter(|(_, class)| !same(class)) {
            let party = &self.parties[at + 1];
            let counts = self.counted.counts.of(&party.name);
            if rows[0].is_some() {
                counts.equal = counts.equal.saturating_sub(1);
            }
            if held.contains(&party.name) {
                counts.held += 1;
                continue;
            }
            let (word, fields) = match (class, &rows[0]) {
                (Class::Different(fields), _) => ("different", *fields),
                (_, None) => ("extra", 0),
                _ => ("missing", 0),
            };
            match word {
                "different" => counts.different += 1,
                "extra" => counts.extra += 1,
                _ => counts.missing += 1,
            }
            names(&entity, fields).for_each(|name| *counts.fields.entry(name.to_owned()).or_default() += 1);
            let values = self.spec.values;
            counts.sample(word, || {
                let key = shown(Row(&candidate.key));
                let show = |row: &Option<Bytes>| {
                    row.as_ref().map(|row| picked(image(&entity, Row(row)), fields, &entity)).unwrap_or_default()
                };
                match values {
                    true => format!("{key}: {measure}: {} | {}: {}", show(&rows[0]), party.name, show(&rows[at + 1])),
                    false => key,
                }
            });
            self.confirmed.insert(hash, candidate.key.clone());
        }
    }

    /// Everything that is committed anywhere by now is captured, and applied everywhere.
    async fn settle(&mut self) -> Result<()> {
        let deadline = Instant::now() + SETTLED_WITHIN;
        let mut ends = Vec::new();
        for party in &mut self.parties {
            ends.push((party.system, party.scanner.finish().await?));
            party.scanner.nudge().await?;
        }
        let behind = |name: &str| Error::retry(format!("{name} is too far behind to be compared"));
        for (system, end) in &ends {
            let mut taken = self.context.taken[system.index()].clone();
            let left = deadline.saturating_duration_since(Instant::now());
            match tokio::time::timeout(left, taken.wait_for(|at| at.reached(end))).await {
                Ok(reached) => drop(reached.map_err(|_| super::gone())?),
                Err(_) => return Err(behind(&self.context.config.system(*system).name)),
            }
        }
        let head = self.context.status.journal_head.get();
        for party in &self.parties {
            let left = deadline.saturating_duration_since(Instant::now());
            self.context.applied(party.system, self.entity, head, left).await?;
        }
        Ok(())
    }

    /// The authority's rows for all that differ, through the journal.
    async fn repair(&mut self) -> Result<()> {
        let keys: Vec<Vec<u8>> = self.confirmed.values().cloned().collect();
        let authority = &self.parties[0];
        let receivers = self.parties[1..].iter().filter(|party| party.receives);
        let receivers = receivers
            .map(|party| Receiver::new(party.system, party.name.clone(), party.plan.clone(), false, false))
            .collect();
        let mut pass = Pass {
            context: self.context,
            source: authority.system,
            name: authority.name.clone(),
            plan: authority.plan.clone(),
            receivers,
            only_missing: false,
            delete_extra: false,
            dry_run: false,
            fresh: false,
            authority: authority.name.clone(),
            bound: Vec::new(),
            settled: Vec::new(),
            next: None,
            max_rate: None,
            parallel: 1,
            begun: crate::status::now(),
            word: "repair",
            counted: self.counted,
            scanner: None,
            size: PageSize::default(),
            ahead: Default::default(),
            lost: Default::default(),
        };
        for keys in keys.chunks(KEYS) {
            pass.repair(keys).await?;
        }
        info!(entity = %self.counted.entity, rows = self.counted.counts.copied, "repaired");
        Ok(())
    }
}

/// Of one key's rows in all systems.
fn print_of(rows: &[Option<Bytes>]) -> u128 {
    let mut print = xxhash_rust::xxh3::Xxh3::new();
    for row in rows {
        print.update(&row.as_ref().map_or(u64::MAX, |row| row.len() as u64).to_le_bytes());
        print.update(row.as_deref().unwrap_or_default());
    }
    print.digest128()
}

fn note(candidates: &mut HashMap<u128, Candidate>, change: &Change<'_>, key_len: usize) {
    let key = change.key(key_len).to_vec();
    candidates.entry(change.key_hash).or_insert(Candidate { key, seen: None });
}

/// Whether a key is of the sample.
pub(super) fn keeps(hash: u128, percent: Option<f64>) -> bool {
    percent.is_none_or(|percent| ((hash >> 64) % 10_000) < (percent * 100.0) as u128)
}

/// The page, or a part of it chosen by key; `None` where nothing is left.
fn sampled(page: &Page, percent: Option<f64>) -> Option<Page> {
    let keep = |hash: u128| keeps(hash, percent);
    let mut writer = crate::change::ChangeWriter::default();
    Changes::new(&page.rows).filter(|change| keep(change.key_hash)).for_each(|change| writer.push_change(&change));
    (!writer.is_empty()).then(|| Page { count: writer.count, rows: writer.take().into(), ..Page::default() })
}

/// The fields of a set, or all of them where it is empty.
fn picked(image: Image, fields: u128, entity: &crate::schema::EntitySchema) -> String {
    let wanted: HashSet<&str> = names(entity, fields).collect();
    let shown = image.into_iter().filter(|(name, _)| wanted.is_empty() || wanted.contains(name.as_str()));
    shown.map(|(name, value)| format!("{name} = {}", value.as_deref().unwrap_or("NULL"))).collect::<Vec<_>>().join(", ")
}
