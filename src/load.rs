//! What a load is asked to do, and what it says of itself: the nouns that the command, the
//! control socket and the running agent share.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// `anechoic load`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// `anechoic verify`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
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

/// Samples per class.
pub const SAMPLES: usize = 5;

impl Classes {
    pub fn sample(&mut self, class: &str, key: impl FnOnce() -> String) {
        let samples = self.samples.entry(class.to_owned()).or_default();
        if samples.len() < SAMPLES {
            samples.push(key());
        }
    }

    pub fn differences(&self) -> u64 {
        self.different + self.missing + self.extra
    }
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
    pub seconds: f64,
    /// By system; of tables that were not empty.
    pub systems: BTreeMap<String, Classes>,
}

impl LoadProgress {
    pub fn is_over(&self) -> bool {
        matches!(&*self.state, "done" | "failed")
    }

    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.read as f64 / self.seconds } else { 0.0 }
    }
}
