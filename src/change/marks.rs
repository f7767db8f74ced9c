//! How far a load, or the way back from a lost log, has come: what a restart goes on from.

use std::sync::Arc;

use bytes::Bytes;

use super::Micros;
use crate::load::Counts;
use crate::position::Seq;
use crate::schema::Schema;

/// How far a load of one entity from one system has come. The newest is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadMark {
    pub entity: Arc<str>,
    /// Whose rows are copied.
    pub system: Arc<str>,
    /// Whose rows count most in this load.
    pub authority: Arc<str>,
    pub only_missing: bool,
    /// What only receivers have is deleted there first.
    pub delete_extra: bool,
    /// Whoever receives it was empty when it was begun.
    pub fresh: bool,
    /// Systems that bound the entity when it was begun; one that is not among them was added since.
    pub bound: Vec<Arc<str>>,
    /// Of these, whose rows need no load: while it runs those that it passes over, all of them at its end.
    pub settled: Vec<Arc<str>>,
    pub state: LoadState,
    /// When it was begun: names the run.
    pub begun: Micros,
    /// Of `key`; a load whose schema has changed begins anew.
    pub schema: Arc<Schema>,
    /// The canonical key up to which every chunk is finished, in the order of that system's key;
    /// empty before the first.
    pub key: Bytes,
    /// Up to there.
    pub counts: Counts,
    /// Keys up to there whose rows lost to something live, and were not read again yet.
    pub lost: Vec<Bytes>,
}

impl LoadMark {
    /// None of these systems needs a load of it.
    pub fn settled(entity: &str, bound: Vec<Arc<str>>, begun: Micros) -> Self {
        let first = bound.first().cloned().unwrap_or_default();
        LoadMark {
            entity: entity.into(),
            system: first.clone(),
            authority: first,
            only_missing: false,
            delete_extra: false,
            fresh: false,
            settled: bound.clone(),
            bound,
            state: LoadState::Skipped,
            begun,
            schema: Schema::new(Vec::new()),
            key: Bytes::new(),
            counts: Counts::default(),
            lost: Vec::new(),
        }
    }

    /// Of the loads of an entity that came to an end, the last.
    pub fn newest<'m>(marks: impl Iterator<Item = &'m LoadMark>) -> Option<&'m LoadMark> {
        marks.filter(|mark| mark.state != LoadState::Running).max_by_key(|mark| mark.begun)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadState {
    Running,
    Done,
    /// Decided against: the targets held rows already, and nobody asked.
    Skipped,
}

/// How far a system whose log position was lost has come with a new one. The newest is live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResyncMark {
    pub system: Arc<str>,
    pub state: ResyncState,
    /// When it was asked for: names the run.
    pub begun: Micros,
    /// Once placed: the marker that the system had when its new position was made, and the
    /// journal's head then.
    pub marker: Seq,
    pub head: Seq,
    /// The journal tells everything that the system had not seen: its rows are judged by that.
    /// Else only authority can decide.
    pub causal: bool,
    /// Its tables are from a backup: what it wrote itself since may be missing there.
    pub restored: bool,
    /// Rows that only the others have were deleted there, and go.
    pub delete_extra: bool,
    /// Why it is needed.
    pub reason: String,
    /// Entities that were compared.
    pub done: Vec<Arc<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResyncState {
    /// Nothing flows until somebody asks for it.
    Needed,
    /// Asked for: a new position is being made.
    Begun,
    /// Its log is read from there; rows are compared, and nothing is applied yet.
    Placed,
    Done,
}
