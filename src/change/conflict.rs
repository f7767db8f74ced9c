//! What the journal tells of changes that met: one record for each, behind the entry that holds it.

use std::sync::Arc;

use bytes::Bytes;

use super::Micros;
use crate::position::Seq;
use crate::schema::Schema;

/// Which change of which entry: `1042.3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConflictId {
    pub seq: Seq,
    /// In source order, from 0.
    pub index: u64,
}

impl std::fmt::Display for ConflictId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.seq, self.index)
    }
}

impl std::str::FromStr for ConflictId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text
            .split_once('.')
            .and_then(|(seq, index)| Some(ConflictId { seq: seq.parse().ok()?, index: index.parse().ok()? }));
        parsed.ok_or_else(|| format!("{text:?} is no conflict: expected SEQ.INDEX, such as 1042.0"))
    }
}

/// By what it was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Rule {
    Authority = 1,
    Latest = 2,
    Manual = 3,
    UpdateWins = 4,
    DeleteWins = 5,
    Add = 6,
    Max = 7,
    Min = 8,
    Union = 9,
    /// What a person had decided stands.
    Person = 10,
    /// Two records that cannot both be, by a unique key beside their own.
    Unique = 11,
}

impl Rule {
    pub const ALL: [Rule; 11] = [
        Rule::Authority,
        Rule::Latest,
        Rule::Manual,
        Rule::UpdateWins,
        Rule::DeleteWins,
        Rule::Add,
        Rule::Max,
        Rule::Min,
        Rule::Union,
        Rule::Person,
        Rule::Unique,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Rule::Authority => "authority",
            Rule::Latest => "latest",
            Rule::Manual => "manual",
            Rule::UpdateWins => "update_wins",
            Rule::DeleteWins => "delete_wins",
            Rule::Add => "add",
            Rule::Max => "max",
            Rule::Min => "min",
            Rule::Union => "union",
            Rule::Person => "person",
            Rule::Unique => "unique",
        }
    }
}

/// What became of the change that had not seen the other one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// It stands, everywhere.
    Won = 1,
    /// Rejected.
    Lost = 2,
    /// Some of its fields stand.
    Partly = 3,
    /// Both went into one value.
    Merged = 4,
    /// What it lost waits for a person.
    Waiting = 5,
    /// Its record got another value in a unique field.
    Renamed = 6,
}

impl Outcome {
    pub const ALL: [Outcome; 6] =
        [Outcome::Won, Outcome::Lost, Outcome::Partly, Outcome::Merged, Outcome::Waiting, Outcome::Renamed];

    pub fn name(self) -> &'static str {
        match self {
            Outcome::Won => "won",
            Outcome::Lost => "lost",
            Outcome::Partly => "partly",
            Outcome::Merged => "merged",
            Outcome::Waiting => "waiting",
            Outcome::Renamed => "renamed",
        }
    }
}

/// A change that met a version which it had not seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflicted {
    pub id: ConflictId,
    pub entity: Arc<str>,
    pub key_hash: u128,
    /// Who wrote the change.
    pub system: Arc<str>,
    /// The entry that holds the other version, and who wrote that; nobody: the agent.
    pub against: Seq,
    pub against_system: Option<Arc<str>>,
    pub rule: Rule,
    pub outcome: Outcome,
    pub at: Micros,
    /// What a person needs to decide: kept for as long as that takes, whatever becomes of the entries. Of
    /// two records that cannot both be also where that was decided.
    pub images: Option<Images>,
}

impl Conflicted {
    /// A person is to decide.
    pub fn waits(&self) -> bool {
        self.outcome == Outcome::Waiting && self.images.is_some()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Images {
    pub schema: Arc<Schema>,
    /// The change that lost, whole and encoded.
    pub change: Bytes,
    /// The other version as it was journaled, or the other record; empty where the journal no longer had
    /// it.
    pub current: Bytes,
    /// Of the change's fields those that lost; bit i is field i.
    pub fields: u128,
}

/// How a conflict that waited came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Settlement {
    /// Somebody who had seen the current version wrote the record anew.
    Superseded = 1,
    /// A person decided.
    Resolved = 2,
}

impl Settlement {
    pub fn name(self) -> &'static str {
        match self {
            Settlement::Superseded => "superseded",
            Settlement::Resolved => "resolved",
        }
    }
}

/// A conflict waits no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    pub id: ConflictId,
    pub how: Settlement,
    /// The entry that did it; 0: what is there was left as it is.
    pub by: Seq,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back() {
        let id = ConflictId { seq: 1042, index: 3 };

        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("1042".parse::<ConflictId>().is_err());
        assert!("a.b".parse::<ConflictId>().is_err());
    }
}
