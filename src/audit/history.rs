//! Everything that happened to one record: each version, who wrote it, how it was decided, and when
//! which system had it.

use serde::{Deserialize, Serialize};

use super::applied::applied_at;
use super::keys::{Hit, KeyIndex};
use super::operation::{Operation, each_of};
use crate::change::{Change, Changes, Conflicted, Entry, Fate, Quarantined, Record};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::http::status::timestamp;
use crate::journal::{Journal, Reader};
use crate::normalize::typed::typed;
use crate::position::Seq;
use crate::schema::{EntityId, Schema};
use crate::value::{Datum, key_hash};

/// `anechoic history`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistorySpec {
    pub entity: String,
    /// The key's values, in its order.
    pub key: Vec<String>,
    /// The newest so many entries.
    pub limit: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    pub entity: String,
    pub key: String,
    /// The oldest first.
    pub versions: Vec<Told>,
    /// Older ones were left out.
    pub more: bool,
    /// Since when the journal tells; `None` while it is empty.
    pub since: Option<String>,
}

/// Something that happened to the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Told {
    Version(Box<Version>),
    /// A system refused it, at that version; or what was refused was freed or given up.
    Quarantine {
        seq: Seq,
        system: String,
        what: String,
        reason: String,
        at: Option<String>,
    },
    /// A change in that system could not be carried.
    Refused {
        seq: Seq,
        system: String,
        txid: String,
        op: String,
        reason: String,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    #[serde(flatten)]
    pub operation: Operation,
    pub systems: Vec<Reached>,
}

/// What became of a version in one system that receives the entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    pub system: String,
    /// `applied`, `pending`, `held` in quarantine, `origin`.
    pub state: String,
    /// When it was applied; absent where nobody saw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// How far the systems are.
pub trait Progress {
    /// The last entry that the system has or skips.
    fn applied(&self, system: &str) -> Seq;
    fn held(&self) -> Vec<Quarantined>;
}

/// The hash of a key as a person types it.
pub fn key_of(schema: &Schema, spec: &HistorySpec) -> Result<(EntityId, u128)> {
    let unknown = || Error::stop(format!("there is no entity {:?}", spec.entity), "anechoic status lists them");
    let id = schema.find(&spec.entity).ok_or_else(unknown)?;
    let entity = schema.entity(id);
    let fields = &entity.fields[..entity.key_len];
    let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
    if fields.is_empty() {
        return Err(Error::stop(
            format!("{} has no key: its rows cannot be told apart", spec.entity),
            "anechoic audit --entity lists them",
        ));
    }
    if spec.key.len() != fields.len() {
        return Err(Error::stop(
            format!("{} has a key of {} values, and {} were given", spec.entity, fields.len(), spec.key.len()),
            format!("anechoic history {} {}", spec.entity, names.join(" ").to_uppercase()),
        ));
    }
    let mut scratches = vec![Vec::new(); fields.len()];
    let values = fields.iter().zip(&spec.key).zip(&mut scratches).map(|((field, text), scratch)| {
        let wrong = || {
            let what = format!("{text:?} is no {} for {:?}", field.kind.name(), field.name);
            Error::stop(what, "as `anechoic quarantine` and `anechoic audit` show keys")
        };
        typed(text, field.kind, scratch).map(Datum::Value).ok_or_else(wrong)
    });
    let values: Vec<Datum<'_>> = values.collect::<Result<_>>()?;
    Ok((id, key_hash(entity.seed, values.into_iter(), &mut Vec::new())))
}

pub fn history(
    journal: &Journal,
    index: &KeyIndex,
    config: &Config,
    schema: &Schema,
    spec: &HistorySpec,
    progress: &dyn Progress,
) -> Result<History> {
    let (_, key) = key_of(schema, spec)?;
    let asked = Asked { journal, config, entity: &spec.entity, key, progress, held: progress.held() };
    let limit = spec.limit.max(1);
    let (hits, complete) = index.find(key, limit + 1);
    let mut newest = asked.scan(complete + 1)?;
    let mut more = hits.len() > limit;
    let mut told: Vec<Vec<Told>> = Vec::new();
    // What stands behind the last indexed entry is read with what is not indexed.
    for hit in hits.iter().filter(|hit| hit.seq <= complete).take(limit) {
        match asked.at(hit) {
            Ok(found) if found.is_empty() => {} // another key with the same print
            Ok(found) => told.push(found),
            // The journal has dropped it meanwhile.
            Err(_) if hit.seq < journal.oldest() => more = true,
            Err(error) => return Err(error),
        }
    }
    told.reverse();
    let mut versions: Vec<Told> = told.into_iter().flatten().collect();
    versions.append(&mut newest);
    let since = journal.entry(journal.oldest())?.and_then(|entry| timestamp(entry.committed_at));
    Ok(History { entity: spec.entity.clone(), key: spec.key.join(", "), versions, more, since })
}

struct Asked<'a> {
    journal: &'a Journal,
    config: &'a Config,
    entity: &'a str,
    key: u128,
    progress: &'a dyn Progress,
    held: Vec<Quarantined>,
}

impl Asked<'_> {
    /// What entry `hit.seq` and what stands right before it tell of the key.
    fn at(&self, hit: &Hit) -> Result<Vec<Told>> {
        let mut reader = match hit.place {
            Some(place) => self.journal.reader_at(place, hit.seq)?,
            None => self.journal.reader(hit.seq)?,
        };
        self.read(&mut reader, Some(hit.seq))
    }

    /// What the journal tells of it from an entry on.
    fn scan(&self, from: Seq) -> Result<Vec<Told>> {
        let from = from.max(self.journal.oldest());
        if from > self.journal.head() + 1 {
            return Ok(Vec::new());
        }
        self.read(&mut self.journal.reader(from)?, None)
    }

    fn read(&self, reader: &mut Reader, last: Option<Seq>) -> Result<Vec<Told>> {
        let (mut told, mut conflicts) = (Vec::new(), Vec::new());
        while let Some(record) = reader.next()? {
            match record {
                Record::Conflict(conflict) => conflicts.push(conflict),
                Record::Quarantine(held) if self.is_of(&held.change) => told.push(Told::Quarantine {
                    seq: held.last_seq,
                    system: held.system.to_string(),
                    what: if held.folded { "a later change joined it" } else { "refused" }.into(),
                    reason: held.reason,
                    at: timestamp(held.at),
                }),
                Record::Released { system, key_hash, by, .. } if key_hash == self.key => told.push(Told::Quarantine {
                    seq: by,
                    system: system.to_string(),
                    what: "released".into(),
                    reason: String::new(),
                    at: None,
                }),
                Record::Refused(refused) if self.is_of(&refused.change) => {
                    let change = Changes::new(&refused.change).next().expect("one encoded change");
                    told.push(Told::Refused {
                        seq: reader.seq() + 1,
                        system: refused.system.to_string(),
                        txid: refused.txid.to_string(),
                        op: change.op.name().into(),
                        reason: refused.reason.clone(),
                    });
                }
                Record::Entry(entry) => {
                    self.versions(&entry, &std::mem::take(&mut conflicts), &mut told)?;
                    if last.is_some_and(|last| last <= entry.seq) {
                        break;
                    }
                }
                _ => {}
            }
        }
        Ok(told)
    }

    fn is_of(&self, change: &[u8]) -> bool {
        Changes::new(change).next().is_some_and(|change| change.key_hash == self.key)
    }

    fn versions(&self, entry: &Entry, conflicts: &[Conflicted], told: &mut Vec<Told>) -> Result<()> {
        let wanted = |change: &Change<'_>| change.key_hash == self.key;
        each_of(self.journal, entry, conflicts, 0, &wanted, &mut |operation| {
            let systems = self.reached(entry, operation.index);
            told.push(Told::Version(Box::new(Version { operation, systems })));
            Ok(true)
        })
    }

    fn reached(&self, entry: &Entry, index: u64) -> Vec<Reached> {
        let bindings = self.config.entities.iter().filter(|entity| entity.name == self.entity);
        let bindings = bindings.flat_map(|entity| &entity.bindings);
        let reached = bindings.filter_map(|binding| {
            let name = &*self.config.system(binding.system).name;
            let is_origin = entry.origin.system().is_some_and(|origin| **origin == *name);
            let state = match entry.fate(index, name, &mut 0) {
                Fate::Skip if is_origin => "origin",
                Fate::Skip => return None,
                _ if !binding.role.receives() => return None,
                _ if self.holds(name, entry.seq) => "held",
                _ if self.progress.applied(name) >= entry.seq => "applied",
                _ => "pending",
            };
            let at = || applied_at(&self.config.agent.data_dir, self.journal.id(), name, entry.seq);
            let at = (state == "applied").then(at).flatten().and_then(timestamp);
            Some(Reached { system: name.to_owned(), state: state.into(), at })
        });
        reached.collect()
    }

    fn holds(&self, system: &str, seq: Seq) -> bool {
        let held = self.held.iter().filter(|held| *held.system == *system && self.is_of(&held.change));
        held.into_iter().any(|held| (held.held_seq..=held.last_seq).contains(&seq))
    }
}
