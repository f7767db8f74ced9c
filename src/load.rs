//! What a load is asked to do, and what it says of itself: the nouns that the command, the
//! control socket and the running agent share.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::config::LoadPolicy;
use crate::normalize::binding::Role;

/// `anechoic load`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadSpec {
    /// All that have a key where empty.
    pub entities: Vec<String>,
    /// Whose rows count; the first system that writes the entity where absent.
    pub from: Option<String>,
    /// Count and show, write nothing.
    pub dry_run: bool,
    /// Rows that are there already stay as they are.
    pub only_missing: bool,
    /// At most so many rows read per second.
    pub max_rate: Option<u64>,
    /// Chunks that are read at once.
    #[serde(default)]
    pub parallel: Option<u8>,
    /// What the systems that receive have, and nobody above them, goes there.
    #[serde(default)]
    pub delete_extra: bool,
}

/// `anechoic load --resync SYSTEM`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResyncSpec {
    pub system: String,
    /// Its tables are from a backup.
    pub restored: bool,
    /// Rows that only the others have were deleted there: delete them everywhere.
    pub delete_extra: bool,
}

/// `anechoic verify`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifySpec {
    /// All that have a key where empty.
    pub entities: Vec<String>,
    /// Of the rows, chosen by key; all where absent.
    pub sample_percent: Option<f64>,
    /// Bring the others to the authority's rows.
    pub repair: bool,
    /// Show the values that differ.
    pub values: bool,
    pub max_rate: Option<u64>,
}

/// How the rows of one system compare with those that are read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classes {
    pub equal: u64,
    pub different: u64,
    /// Not there.
    pub missing: u64,
    /// There, and not in the system that is read.
    pub extra: u64,
    /// Different, and set aside there: in quarantine.
    #[serde(default)]
    pub held: u64,
    /// Fields in which rows differ, and in how many.
    pub fields: BTreeMap<String, u64>,
    /// A few keys of each class but `equal`.
    pub samples: BTreeMap<String, Vec<String>>,
}

/// What a load has counted. It is kept with its mark, so that neither a step that is tried again nor
/// a restart loses or doubles any of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub read: u64,
    pub copied: u64,
    /// Rows that lost to what is written live, and are read again.
    pub lost: u64,
    /// Rows that have no canonical form, set aside.
    pub refused: u64,
    /// Rows that only a receiver had.
    pub deleted: u64,
    /// By system; of tables that were not empty.
    pub systems: BTreeMap<String, Classes>,
}

impl Counts {
    pub fn of(&mut self, system: &str) -> &mut Classes {
        if !self.systems.contains_key(system) {
            self.systems.insert(system.to_owned(), Classes::default());
        }
        self.systems.get_mut(system).expect("just looked up")
    }

    pub fn add(&mut self, more: Counts) {
        self.read += more.read;
        self.copied += more.copied;
        self.lost += more.lost;
        self.refused += more.refused;
        self.deleted += more.deleted;
        for (system, classes) in more.systems {
            self.of(&system).add(classes);
        }
    }

    /// What became of rows that were handed in.
    pub fn took(&mut self, taken: u64, lost: usize, deletes: bool) {
        *(if deletes { &mut self.deleted } else { &mut self.copied }) += taken;
        self.lost += lost as u64;
    }
}

/// Samples per class.
pub const SAMPLES: usize = 5;

impl Classes {
    pub fn sample(&mut self, class: &str, key: impl FnOnce() -> String) {
        let samples = self.samples.entry(class.to_owned()).or_default();
        if samples.len() < SAMPLES {
            samples.push(key());
        }
    }

    fn add(&mut self, more: Classes) {
        self.equal += more.equal;
        self.different += more.different;
        self.missing += more.missing;
        self.extra += more.extra;
        self.held += more.held;
        for (field, rows) in more.fields {
            *self.fields.entry(field).or_default() += rows;
        }
        for (class, keys) in more.samples {
            keys.into_iter().for_each(|key| self.sample(&class, || key));
        }
    }

    /// Rows that were looked at in both; what was only there is not among them.
    pub fn compared(&self) -> u64 {
        self.equal + self.different + self.missing + self.held
    }

    pub fn differences(&self) -> u64 {
        self.different + self.missing + self.extra
    }
}

/// What the newest comparison of an entity found; of all its rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub entity: String,
    /// Whose rows were the measure.
    pub against: String,
    /// When it ended, µs.
    pub ended: i64,
    pub seconds: f64,
    /// One of [`Verdict::OUTCOMES`].
    pub outcome: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// By system. Where it failed: what the one before it found.
    pub systems: BTreeMap<String, Classes>,
}

impl Verdict {
    /// `repaired`: different, and then mended.
    pub const OUTCOMES: [&str; 4] = ["same", "different", "repaired", "failed"];
}

/// One entity of a load, or of a comparison.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadProgress {
    pub entity: String,
    /// The system that is read now.
    pub from: String,
    /// `waiting`, `running`, `retrying`, `done`, `failed`.
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// By the server's statistics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    pub read: u64,
    pub copied: u64,
    /// Rows that lost to what is written live, and are read again.
    pub lost: u64,
    /// Rows that have no canonical form, set aside.
    pub refused: u64,
    /// Rows that only a receiver had.
    #[serde(default)]
    pub deleted: u64,
    pub seconds: f64,
    /// By system; of tables that were not empty.
    pub systems: BTreeMap<String, Classes>,
}

impl LoadProgress {
    pub fn is_over(&self) -> bool {
        self.state == "done" || self.is_failed()
    }

    /// A person must act.
    pub fn is_failed(&self) -> bool {
        self.state == "failed"
    }

    pub fn counts(self) -> Counts {
        let LoadProgress { read, copied, lost, refused, deleted, systems, .. } = self;
        Counts { read, copied, lost, refused, deleted, systems }
    }

    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.read as f64 / self.seconds } else { 0.0 }
    }
}

/// A table that holds an entity, before anything is applied to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub system: Arc<str>,
    pub captures: bool,
    pub receives: bool,
    pub empty: bool,
}

impl Found {
    pub fn new(system: Arc<str>, role: Role, empty: bool) -> Self {
        Found { system, captures: role.captures(), receives: role.receives(), empty }
    }
}

/// What is to be done about rows that were there before.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    Nothing,
    /// There are rows in more than one system, and nobody asked that they be compared.
    Unasked,
    Load {
        authority: Arc<str>,
        /// Whoever receives it is empty.
        fresh: bool,
        /// Systems that are passed over: of these nothing is missing, and nothing to be read.
        settled: Vec<Arc<str>>,
    },
}

/// `tables` in order of authority; `settled`: systems whose rows need no load, none where the entity is new.
pub fn decide(tables: &[Found], settled: &[Arc<str>], policy: LoadPolicy) -> Decision {
    let added = |table: &Found| !settled.contains(&table.system);
    let added_filled = tables.iter().any(|table| added(table) && !table.empty);
    if !settled.is_empty() && added_filled && policy == LoadPolicy::FirstRun {
        // What was added holds rows, too: all are compared with all.
        return decide(tables, &[], policy);
    }
    let grown = !settled.is_empty();
    let Some(authority) = tables.iter().find(|table| table.captures && !(grown && added(table))) else {
        return Decision::Nothing;
    };
    let others = |wanted: &dyn Fn(&Found) -> bool| {
        tables.iter().any(|table| table.system != authority.system && !table.empty && wanted(table))
    };
    let asked = match grown {
        true => !added_filled,
        false => policy == LoadPolicy::FirstRun || !others(&|table| table.receives),
    };
    let receivers = tables.iter().any(|table| table.receives && added(table));
    match tables.iter().all(|table| table.empty) || !receivers || policy == LoadPolicy::Never {
        true => Decision::Nothing,
        false if !asked => Decision::Unasked,
        false => Decision::Load {
            authority: authority.system.clone(),
            fresh: grown || !others(&|_| true),
            settled: settled.to_vec(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `crm shop* erp-`: in order; `*` has rows, `-` receives nothing, `+` is not read.
    fn tables(text: &str) -> Vec<Found> {
        let table = |word: &str| Found {
            system: word.trim_end_matches(['*', '-', '+']).into(),
            captures: !word.contains('+'),
            receives: !word.contains('-'),
            empty: !word.contains('*'),
        };
        text.split(' ').map(table).collect()
    }

    fn decided(text: &str, settled: &[&str], policy: LoadPolicy) -> String {
        let settled: Vec<Arc<str>> = settled.iter().map(|name| (*name).into()).collect();
        match decide(&tables(text), &settled, policy) {
            Decision::Load { authority, fresh, settled } => format!("{authority} {fresh} {}", settled.join(" ")),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_new_entity_is_copied_where_those_that_receive_it_are_empty() {
        use LoadPolicy::{FirstRun, IfEmpty, Never};

        assert_eq!(decided("crm* shop erp", &[], IfEmpty), "crm true ");
        assert_eq!(decided("crm+* shop* erp", &[], IfEmpty), "Unasked");
        assert_eq!(decided("crm* shop* erp", &[], IfEmpty), "Unasked");
        assert_eq!(decided("crm* shop-* erp", &[], IfEmpty), "crm false ", "what only shop has is copied, too");
        assert_eq!(decided("crm* shop* erp", &[], FirstRun), "crm false ");
        assert_eq!(decided("crm shop erp", &[], FirstRun), "Nothing");
        assert_eq!(decided("crm* shop erp", &[], Never), "Nothing");
        assert_eq!(decided("crm-* shop-*", &[], FirstRun), "Nothing", "nobody receives it");
    }

    #[test]
    fn a_system_that_is_added_gets_what_the_others_agree_on() {
        use LoadPolicy::{FirstRun, IfEmpty};
        let settled = ["crm", "shop"];

        assert_eq!(decided("crm* shop* erp", &settled, IfEmpty), "crm true crm shop");
        assert_eq!(decided("erp crm* shop*", &settled, FirstRun), "crm true crm shop", "not from the empty one");
        assert_eq!(decided("crm* shop* erp*", &settled, IfEmpty), "Unasked");
        assert_eq!(decided("crm* shop* erp*", &settled, FirstRun), "crm false ");
        assert_eq!(decided("crm* shop* erp-", &settled, FirstRun), "Nothing");
    }
}
