//! What becomes of a change that has not seen the current version of what it writes, by the entity's
//! [`Rules`]. One arbiter asks, once, and the answer is journaled: it need not come out the same twice.

use std::cmp::Ordering;

use super::Bodies;
use super::index::Slot;
use super::merge::{self, United};
use crate::change::{Change, Changes, Micros, Op, Rule};
use crate::error::Result;
use crate::position::Seq;
use crate::rules::{Merge, OnDelete, Policy, Rules};
use crate::schema::SystemId;
use crate::value::{Datum, Value};

/// What is written without having seen what is there.
pub(super) struct Contest<'a> {
    pub rules: &'a Rules,
    pub system: SystemId,
    pub change: &'a Change<'a>,
    /// Of the entry in the making.
    pub seq: Seq,
    /// When it was committed, by its server's clock.
    pub at: Micros,
    /// By system: how much its clock is ahead of ours.
    pub clocks: &'a [Micros],
    pub bodies: &'a dyn Bodies,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weighed {
    Wins,
    Loses,
    /// Loses for now: a person decides.
    Waits,
    /// Neither: this encoded datum takes the place of both.
    Merged(Vec<u8>),
}

impl Contest<'_> {
    /// Against the latest version of a slot; `merge` is the slot's, of its only `field`.
    pub fn weigh(&self, latest: Slot, merge: Option<(usize, Merge)>) -> Result<(Weighed, Rule)> {
        if latest.is_decided() {
            return Ok((Weighed::Loses, Rule::Person));
        }
        if latest.seq() == self.seq && self.rules.policy != Policy::Manual {
            // A deletion that is told again because an insert of this very transaction lost to it: so
            // does what the transaction made of that row.
            return Ok((Weighed::Loses, self.rules.policy.into()));
        }
        let deletes = self.change.op == Op::Delete;
        if deletes != latest.deleted() {
            return match self.rules.on_delete {
                Some(OnDelete::UpdateWins) => Ok((won(!deletes), Rule::UpdateWins)),
                Some(OnDelete::DeleteWins) => Ok((won(deletes), Rule::DeleteWins)),
                None => self.prefer(self.rules.policy, latest),
            };
        }
        if deletes {
            // Both want the same; nobody has to be asked.
            return Ok((won(self.rules.rank(self.system) < self.rules.rank(latest.origin())), Rule::Authority));
        }
        match merge {
            Some((field, merge @ (Merge::Max | Merge::Min | Merge::Union))) => {
                if let Some(merged) = self.merge(latest, field, merge)? {
                    return Ok(merged);
                }
                self.prefer(self.rules.policy, latest)
            }
            Some((_, Merge::Policy(policy))) => self.prefer(policy, latest),
            // Of an additive field two whole values: they belong to the row.
            Some((_, Merge::Add)) | None => self.prefer(self.rules.policy, latest),
        }
    }

    fn prefer(&self, policy: Policy, latest: Slot) -> Result<(Weighed, Rule)> {
        let by_authority = self.rules.rank(self.system) < self.rules.rank(latest.origin());
        Ok(match policy {
            Policy::Authority => (won(by_authority), Rule::Authority),
            Policy::Manual => (Weighed::Waits, Rule::Manual),
            Policy::Latest => match self.lateness(latest)? {
                Some(Ordering::Greater) => (Weighed::Wins, Rule::Latest),
                Some(Ordering::Less) => (Weighed::Loses, Rule::Latest),
                Some(Ordering::Equal) | None => (won(by_authority), Rule::Latest),
            },
        })
    }

    /// How late the change is beside the version that is there; `None` where nothing tells.
    fn lateness(&self, latest: Slot) -> Result<Option<Ordering>> {
        let written = self.change.op != Op::Delete && !latest.deleted();
        if let Some(field) = self.rules.version.filter(|_| written) {
            return self.with_version(latest, |there| match (left(self.change, field), left(there, field)) {
                (Datum::Value(here), Datum::Value(there)) => merge::order(here, there),
                (Datum::Value(_), _) => Some(Ordering::Greater),
                (_, Datum::Value(_)) => Some(Ordering::Less),
                _ => None,
            });
        }
        let corrected = |at: Micros, system: SystemId| {
            at.saturating_sub(self.clocks.get(system.index()).copied().unwrap_or_default())
        };
        let there = self.bodies.committed_at(latest.seq())?;
        Ok(there.map(|there| corrected(self.at, self.system).cmp(&corrected(there, latest.origin()))))
    }

    /// `None` where both values cannot be merged: then one of them stands.
    fn merge(&self, latest: Slot, field: usize, merge: Merge) -> Result<Option<(Weighed, Rule)>> {
        let here = self.change.image().get(field);
        self.with_version(latest, |there| {
            let there = there.image().get(field);
            let (here, there): (Value<'_>, Value<'_>) = match (here, there) {
                (Datum::Value(here), Datum::Value(there)) => (here, there),
                // What is there is more than nothing.
                (Datum::Value(_), Datum::Null) => return Some((Weighed::Wins, rule_of(merge))),
                (Datum::Null, Datum::Value(_)) => return Some((Weighed::Loses, rule_of(merge))),
                _ => return None,
            };
            let weighed = match merge {
                Merge::Max => won(merge::order(here, there)? != Ordering::Less),
                Merge::Min => won(merge::order(here, there)? != Ordering::Greater),
                _ => match merge::united(there, here)? {
                    United::Left => Weighed::Loses,
                    United::Right => Weighed::Wins,
                    United::Both(datum) => Weighed::Merged(datum),
                },
            };
            Some((weighed, rule_of(merge)))
        })
    }

    /// The version that is there, as its entry has it.
    fn with_version<T>(&self, latest: Slot, then: impl FnOnce(&Change<'_>) -> Option<T>) -> Result<Option<T>> {
        let image = self.bodies.image(latest.seq(), self.change.key_hash)?;
        let change = image.as_ref().and_then(|bytes| Changes::new(bytes).next());
        Ok(change.and_then(|change| then(&change)))
    }
}

/// The field as it is behind the change: what that does not carry is what it was.
pub(super) fn left<'a>(change: &Change<'a>, field: usize) -> Datum<'a> {
    match change.image().get(field) {
        Datum::NotSent => change.before.map_or(Datum::NotSent, |before| before.get(field)),
        sent => sent,
    }
}

fn won(wins: bool) -> Weighed {
    if wins { Weighed::Wins } else { Weighed::Loses }
}

fn rule_of(merge: Merge) -> Rule {
    match merge {
        Merge::Max => Rule::Max,
        Merge::Min => Rule::Min,
        Merge::Union => Rule::Union,
        Merge::Add => Rule::Add,
        Merge::Policy(policy) => policy.into(),
    }
}

impl From<Policy> for Rule {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Authority => Rule::Authority,
            Policy::Latest => Rule::Latest,
            Policy::Manual => Rule::Manual,
        }
    }
}
