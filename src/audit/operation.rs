//! One operation on one record, as an entry of the journal tells it: what `history` and `audit` show.

use serde::{Deserialize, Serialize};

use super::{each, key_text, origin};
use crate::change::{Change, Conflicted, Entry, Fate, Op, Origin, Others, Verdict};
use crate::control::{Image, image};
use crate::error::Result;
use crate::http::status::timestamp;
use crate::journal::Journal;
use crate::position::Seq;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The journal's entry, and which of its changes.
    pub seq: Seq,
    pub index: u64,
    /// When it was committed where it was written; of a copied row when it was read.
    pub at: Option<String>,
    /// Who wrote it: a system, or `agent`.
    pub origin: String,
    /// `written`; `copied` by a load; `retried` from quarantine; else what a person had the agent
    /// do: `resolve …`, `undo …`.
    pub how: String,
    /// As that database names the transaction.
    pub txid: String,
    pub entity: String,
    /// The key's values.
    pub key: String,
    pub op: String,
    pub before: Option<Image>,
    pub after: Option<Image>,
    /// `accepted`; `everywhere`, its origin included; `partly` and `completed`, with what the others
    /// got instead; `rejected`, where something may go out instead: of a delete the row that lives on, of an
    /// insert the deletion that won; `drift`, where nobody else is to have it.
    pub decision: String,
    /// The entry against which all or some of it was lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_to: Option<Seq>,
    /// Where it met a version that it had not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Met>,
    /// What the others got in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instead: Option<Instead>,
    /// Only for these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Met {
    pub id: String,
    pub rule: String,
    pub outcome: String,
    /// The version that it met.
    pub against: Seq,
    pub against_system: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instead {
    pub op: String,
    pub after: Option<Image>,
}

/// The changes of an entry that are wanted, from number `begin` on, in source order, until `found`
/// says that it has enough. `conflicts`: those of the entry.
pub fn each_of(
    journal: &Journal,
    entry: &Entry,
    conflicts: &[Conflicted],
    begin: u64,
    wanted: &dyn Fn(&Change<'_>) -> bool,
    found: &mut dyn FnMut(Operation) -> Result<bool>,
) -> Result<()> {
    let mut enough = false;
    each(journal, entry, &mut |index, change| {
        if !enough && index >= begin && wanted(change) {
            let conflict = conflicts.iter().find(|met| met.id.index == index);
            enough = !found(Operation::of(entry, index, change, conflict))?;
        }
        Ok(())
    })
}

impl Operation {
    /// Bytes that it takes, about.
    pub fn size(&self) -> usize {
        let of = |image: &Option<Image>| -> usize {
            let fields = image.iter().flatten();
            fields.map(|(name, value)| name.len() + value.as_ref().map_or(4, String::len) + 8).sum()
        };
        300 + self.txid.len() + self.key.len() + of(&self.before) + of(&self.after)
    }

    fn of(entry: &Entry, index: u64, change: &Change<'_>, conflict: Option<&Conflicted>) -> Self {
        let schema = entry.schema.entity(change.entity);
        let (decision, lost_to) = decided(change.op, verdict(entry, index));
        let to: Vec<String> = match &entry.to {
            crate::change::Address::Others => Vec::new(),
            crate::change::Address::Only(names) => names.iter().map(ToString::to_string).collect(),
        };
        let reader = to.first().map_or("", String::as_str);
        let instead = match entry.fate(index, reader, &mut 0) {
            Fate::Replace(with) => {
                let with = with.change();
                Some(Instead { op: with.op.name().into(), after: with.after.map(|row| image(schema, row)) })
            }
            Fate::Apply | Fate::Skip => None,
        };
        Operation {
            seq: entry.seq,
            index,
            at: timestamp(entry.committed_at),
            origin: origin(&entry.origin),
            how: how(entry),
            txid: entry.txid.to_string(),
            entity: schema.name.clone(),
            key: key_text(schema, change),
            op: change.op.name().into(),
            before: change.before.map(|row| image(schema, row)),
            after: change.after.map(|row| image(schema, row)),
            decision: decision.into(),
            lost_to,
            conflict: conflict.map(Met::of),
            instead,
            to,
        }
    }
}

impl Met {
    fn of(met: &Conflicted) -> Self {
        Met {
            id: met.id.to_string(),
            rule: met.rule.name().into(),
            outcome: met.outcome.name().into(),
            against: met.against,
            against_system: met.against_system.as_ref().map_or_else(|| "agent".to_owned(), |name| name.to_string()),
        }
    }
}

fn how(entry: &Entry) -> String {
    match &entry.origin {
        Origin::System(_) => "written".into(),
        Origin::Copied(_) => "copied".into(),
        Origin::Agent if entry.is_retry() => "retried".into(),
        Origin::Agent => entry.txid.to_string(),
    }
}

fn verdict(entry: &Entry, index: u64) -> Option<&Verdict> {
    let at = entry.decisions.partition_point(|decision| decision.to <= index);
    entry.decisions.get(at).filter(|decision| decision.from <= index).map(|decision| &decision.verdict)
}

/// A delete cannot be halved, and of an insert that is answered by the deletion nothing stands: whatever goes
/// out instead of these, all of them is lost.
fn decided(op: Op, verdict: Option<&Verdict>) -> (&'static str, Option<Seq>) {
    let lost = |winner: Seq| (if op == Op::Delete { "rejected" } else { "partly" }, Some(winner));
    match verdict {
        None => ("accepted", None),
        Some(Verdict::Everywhere) => ("everywhere", None),
        Some(Verdict::Rejected { winner: 0 }) => ("drift", None),
        Some(Verdict::Rejected { winner } | Verdict::Redeleted { winner, .. }) => ("rejected", Some(*winner)),
        Some(Verdict::Replaced { winner: Some(winner), .. }) => lost(*winner),
        Some(Verdict::Replaced { winner: None, .. }) => ("completed", None),
        Some(Verdict::Split { others: Others::Nothing, winner, .. }) => ("rejected", *winner),
        Some(Verdict::Split { winner: Some(winner), .. }) => lost(*winner),
        Some(Verdict::Split { winner: None, .. }) => ("everywhere", None),
    }
}
