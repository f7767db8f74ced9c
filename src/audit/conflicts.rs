//! Which changes met versions that they had not seen, and how each was decided.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::{Version, change_at, each, encoded, key_text};
use crate::change::{Changes, ConflictId, Conflicted, Entry, Fate, Record, Rule, Settled, clash_txid};
use crate::error::{Error, Result};
use crate::http::status::timestamp;
use crate::journal::Journal;
use crate::position::Seq;

/// Entries that are looked at together, from the newest back.
const WINDOW: u64 = 4096;

/// `anechoic conflicts list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListSpec {
    pub entity: Option<String>,
    /// Only those that wait for a person.
    pub open: bool,
    /// The newest so many.
    pub limit: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    pub id: String,
    pub entity: String,
    /// The key's values; absent where the journal no longer has the change.
    pub key: Option<String>,
    /// Who wrote the change that had not seen the other version.
    pub system: String,
    /// Who wrote that version: a system, or `agent`; and the entry that has it.
    pub against: String,
    pub against_seq: Seq,
    pub rule: String,
    pub outcome: String,
    /// Commit time of the change.
    pub at: Option<String>,
    /// It waits for a person.
    pub open: bool,
    /// What became of one that waited: `superseded` or `resolved`, and by which entry; 0: what was
    /// there was left as it is.
    pub settled: Option<String>,
    pub settled_by: Option<Seq>,
}

impl Conflict {
    fn new(of: &Conflicted, settled: Option<Settled>) -> Self {
        Conflict {
            id: of.id.to_string(),
            entity: of.entity.to_string(),
            key: None,
            system: of.system.to_string(),
            against: of.against_system.as_ref().map_or_else(|| "agent".to_owned(), |name| name.to_string()),
            against_seq: of.against,
            rule: of.rule.name().into(),
            outcome: of.outcome.name().into(),
            at: timestamp(of.at),
            open: of.waits() && settled.is_none(),
            settled: settled.map(|settled| settled.how.name().to_owned()),
            settled_by: settled.map(|settled| settled.by),
        }
    }
}

/// `anechoic conflicts show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub conflict: Conflict,
    /// In the order of the entity.
    pub fields: Vec<String>,
    /// Those that wait for a person.
    pub waiting: Vec<String>,
    pub change: Option<Version>,
    /// The version that it had not seen.
    pub against: Option<Version>,
}

/// The newest first. `open`: those that wait, as the arbiter or the journal's end has them.
pub fn list(journal: &Journal, spec: &ListSpec, open: &[Conflicted]) -> Result<Vec<Conflict>> {
    list_by(journal, spec, open, WINDOW)
}

pub(super) fn list_by(journal: &Journal, spec: &ListSpec, open: &[Conflicted], entries: u64) -> Result<Vec<Conflict>> {
    let wanted = |conflict: &Conflicted| spec.entity.as_ref().is_none_or(|name| **name == *conflict.entity);
    let mut found: Vec<(Conflicted, Option<Settled>)> = Vec::new();
    if spec.open {
        found.extend(open.iter().rev().filter(|conflict| wanted(conflict)).map(|conflict| (conflict.clone(), None)));
        found.truncate(spec.limit);
    } else {
        let mut settled = HashMap::new();
        // What follows the last entry ends conflicts, too.
        let (oldest, mut high) = (journal.oldest(), journal.head() + 2);
        while found.len() < spec.limit && high > oldest {
            let low = high.saturating_sub(entries).max(oldest);
            let window = window(journal, low, high, &mut settled)?;
            found.extend(window.into_values().rev().filter(|(conflict, _)| wanted(conflict)));
            high = low;
        }
        found.truncate(spec.limit);
    }
    let mut listed: Vec<Conflict> = found.iter().map(|(conflict, settled)| Conflict::new(conflict, *settled)).collect();
    name_keys(journal, &found, &mut listed)?;
    Ok(listed)
}

type Window = BTreeMap<ConflictId, (Conflicted, Option<Settled>)>;

/// Conflicts of the entries `low..high`. `settled` has what came to its end behind them, and
/// gets what did here.
fn window(journal: &Journal, low: Seq, high: Seq, settled: &mut HashMap<ConflictId, Settled>) -> Result<Window> {
    let mut found = Window::new();
    let mut here = Vec::new();
    let mut reader = journal.reader(low)?;
    while let Some(record) = reader.next()? {
        match record {
            Record::Entry(entry) => {
                found.retain(|id, (conflict, _)| id.seq != entry.seq || is_of(conflict, &entry));
                if entry.seq + 1 >= high {
                    break;
                }
            }
            // One of before a crash that was decided again has the same number.
            Record::Conflict(conflict) if conflict.id.seq <= journal.head() => {
                drop(found.insert(conflict.id, (conflict.clone(), settled.get(&conflict.id).copied())));
            }
            Record::Settled(end) => match found.get_mut(&end.id) {
                Some((_, settled)) => *settled = Some(end),
                None => here.push(end),
            },
            _ => {}
        }
    }
    settled.extend(here.into_iter().map(|end| (end.id, end)));
    Ok(found)
}

/// Where a crash took the entry of a clash along, another one has its number.
fn is_of(conflict: &Conflicted, entry: &Entry) -> bool {
    conflict.rule != Rule::Unique || *entry.txid == *clash_txid(conflict.id)
}

/// Entries are read once, however many conflicts they have.
fn name_keys(journal: &Journal, found: &[(Conflicted, Option<Settled>)], listed: &mut [Conflict]) -> Result<()> {
    let mut by_entry: BTreeMap<Seq, HashMap<u64, usize>> = BTreeMap::new();
    for (place, (conflict, _)) in found.iter().enumerate() {
        match &conflict.images {
            Some(images) => {
                let change = Changes::new(&images.change).next().expect("a conflict has one change");
                listed[place].key = Some(key_text(images.schema.entity(change.entity), &change));
            }
            None => drop(by_entry.entry(conflict.id.seq).or_default().insert(conflict.id.index, place)),
        }
    }
    for (seq, places) in by_entry {
        let Some(entry) = journal.entry(seq)? else { continue };
        each(journal, &entry, &mut |index, change| {
            if let Some(place) = places.get(&index) {
                listed[*place].key = Some(key_text(entry.schema.entity(change.entity), change));
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// One conflict with both images.
pub fn show(journal: &Journal, id: ConflictId, open: Option<&Conflicted>) -> Result<Shown> {
    let (conflict, settled) = match open {
        Some(open) => (open.clone(), None),
        None => find(journal, id)?,
    };
    let mut shown = Shown {
        conflict: Conflict::new(&conflict, settled),
        fields: Vec::new(),
        waiting: Vec::new(),
        change: None,
        against: None,
    };
    if let Some(images) = conflict.images.as_ref().filter(|_| conflict.waits()) {
        let change = Changes::new(&images.change).next().expect("a conflict has one change");
        let fields = &images.schema.entity(change.entity).fields;
        let waits = fields.iter().enumerate().filter(|(field, _)| images.fields >> field & 1 == 1);
        shown.waiting = waits.map(|(_, field)| field.name.clone()).collect();
    }
    // Of two records both are told as they were: the entry has what became of the one that lost.
    let two = conflict.rule == Rule::Unique;
    if !two
        && let Some(entry) = journal.entry(id.seq)?
        && let Some(change) = change_at(journal, &entry, id.index)?
    {
        let change = Changes::new(&change).next().expect("one encoded change");
        let schema = entry.schema.entity(change.entity);
        shown.conflict.key = Some(key_text(schema, &change));
        shown.fields = schema.fields.iter().map(|field| field.name.clone()).collect();
        shown.change = Some(Version::of(&entry, &change));
    }
    if !two && let Some(entry) = journal.entry(conflict.against)? {
        shown.against = standing(journal, &entry, conflict.key_hash)?;
    }
    // What waits is kept for as long as that takes, whatever becomes of the entries.
    if let Some(images) = &conflict.images {
        let version = |bytes: &bytes::Bytes, seq: Seq, origin: &str| {
            let change = Changes::new(bytes).next()?;
            let schema = images.schema.entity(change.entity);
            Some(Version {
                seq,
                origin: origin.into(),
                txid: String::new(),
                committed_at: None,
                op: change.op.name().into(),
                before: change.before.map(|row| crate::control::image(schema, row)),
                after: change.after.map(|row| crate::control::image(schema, row)),
            })
        };
        let (system, against) = (shown.conflict.system.clone(), shown.conflict.against.clone());
        shown.change = shown.change.or_else(|| version(&images.change, id.seq, &system));
        shown.against = shown.against.or_else(|| version(&images.current, conflict.against, &against));
        let change = Changes::new(&images.change).next().expect("a conflict has one change");
        let schema = images.schema.entity(change.entity);
        shown.conflict.key.get_or_insert_with(|| key_text(schema, &change));
        if shown.fields.is_empty() {
            shown.fields = schema.fields.iter().map(|field| field.name.clone()).collect();
        }
    }
    Ok(shown)
}

/// A clash of two records that was decided by a rule, and that nobody has resolved since: what gave way can
/// be given other values for as long as the journal has it.
pub fn decided(journal: &Journal, id: ConflictId) -> Result<Option<Conflicted>> {
    let (conflict, settled) = find(journal, id)?;
    let again = settled.is_none() && !conflict.waits() && conflict.rule == Rule::Unique;
    Ok(Some(conflict).filter(|_| again))
}

fn find(journal: &Journal, id: ConflictId) -> Result<(Conflicted, Option<Settled>)> {
    let unknown = || {
        Error::stop(
            format!(
                "the journal has no conflict {id}; it reaches from entry {} to {}",
                journal.oldest(),
                journal.head()
            ),
            "anechoic conflicts list",
        )
    };
    if id.seq < journal.oldest() || id.seq > journal.head() {
        return Err(unknown());
    }
    let mut settled = None;
    let mut conflict = None;
    let mut reader = journal.reader(id.seq)?;
    while let Some(record) = reader.next()? {
        match record {
            Record::Conflict(found) if found.id == id => (conflict, settled) = (Some(found), None),
            Record::Settled(end) if end.id == id => settled = Some(end),
            // Only one that waited ever ends.
            Record::Entry(entry) if entry.seq >= id.seq => match &conflict {
                None => return Err(unknown()),
                Some(conflict) if entry.seq == id.seq && !is_of(conflict, &entry) => return Err(unknown()),
                Some(conflict) if !conflict.waits() && conflict.rule != Rule::Unique => break,
                Some(_) if settled.is_some() => break,
                Some(_) => {}
            },
            _ => {}
        }
    }
    conflict.map(|conflict| (conflict, settled)).ok_or_else(unknown)
}

/// What an entry made of a key in the end, as others got it.
fn standing(journal: &Journal, entry: &Entry, key_hash: u128) -> Result<Option<Version>> {
    let (mut cursor, mut last) = (0, None);
    each(journal, entry, &mut |index, change| {
        if change.key_hash == key_hash {
            match entry.fate(index, "", &mut cursor) {
                Fate::Apply => last = Some(encoded(change)),
                Fate::Replace(with) => last = Some(encoded(&with.change())),
                Fate::Skip => {}
            }
        }
        Ok(())
    })?;
    Ok(last.and_then(|last| Changes::new(&last).next().map(|change| Version::of(entry, &change))))
}
