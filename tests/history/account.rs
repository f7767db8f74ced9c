//! Every acknowledged commit is accounted for in the audit trail, and nothing else is in there.
//!
//! ```text
//! what a database acknowledged        one entry of that system, in the order of its commits
//!   each row that it wrote            one operation: the same key, both images, in the same order
//!     accepted, everywhere, completed   stands until something later replaces it: replayed, the trail is
//!                                       what the tables hold at the end of every schedule
//!     rejected, partly                  names what it lost to: an entry that has this key, and stands
//! ```

use std::collections::{BTreeMap, BTreeSet};

use anechoic::audit::operation::Operation;
use anechoic::control::Image;
use bigdecimal::BigDecimal;

use super::write::Effect;
use crate::support::trail::{Replayed, Table};

/// What was acknowledged, by whom.
pub struct Acknowledged {
    pub system: String,
    pub effects: Vec<Effect>,
    pub seed: u64,
}

/// Where it is in the journal.
pub struct Written {
    pub system: String,
    pub seq: u64,
}

/// How everything stood when all was quiet.
pub struct Quiet {
    pub head: u64,
    pub seed: u64,
    pub tables: Vec<(&'static str, Table)>,
}

#[derive(Debug, Default)]
pub struct Counts {
    pub operations: usize,
    pub rejected: usize,
    pub partly: usize,
}

/// The trail so far.
#[derive(Default)]
pub struct Account {
    /// Updates carry what they change, and need not carry more.
    partial: bool,
    replayed: Replayed,
    /// Up to where it was read.
    head: u64,
    /// Entries that have something of a record which was not lost.
    standing: BTreeSet<(String, String, u64)>,
    /// The last transaction of each system.
    last: BTreeMap<String, u64>,
    pub counts: Counts,
}

impl Account {
    pub fn of(partial: bool) -> Account {
        Account { partial, ..Account::default() }
    }

    /// Takes up what the journal has since the last time, which must be all of `acknowledged` and end as the
    /// `quiets` say. Returns where each transaction is.
    pub fn take(
        &mut self,
        operations: &[Operation],
        mut acknowledged: BTreeMap<u64, Acknowledged>,
        quiets: &[Quiet],
    ) -> BTreeMap<u64, Written> {
        let new = operations.iter().filter(|operation| operation.seq > self.head);
        let new: Vec<&Operation> = new.collect();
        let (mut written, mut quiets) = (BTreeMap::new(), quiets.iter().peekable());
        for entry in new.chunk_by(|a, b| a.seq == b.seq) {
            let seq = entry[0].seq;
            self.head = seq;
            while let Some(quiet) = quiets.next_if(|quiet| quiet.head < seq) {
                self.compare(quiet);
            }
            if entry[0].how == "retried" {
                continue;
            }
            let number = number(entry);
            let Some(this) = acknowledged.remove(&number) else {
                panic!(
                    "entry {seq} is transaction {number}, which is not acknowledged, or for the second time: {}",
                    lines(entry)
                );
            };
            self.entry(entry, number, &this);
            written.insert(number, Written { system: this.system, seq });
        }
        quiets.for_each(|quiet| self.compare(quiet));
        if let Some((number, lost)) = acknowledged.first_key_value() {
            panic!("seed {}: transaction {number} of {} is not in the trail", lost.seed, lost.system);
        }
        written
    }

    fn entry(&mut self, entry: &[&Operation], number: u64, this: &Acknowledged) {
        let place = format!("seed {}: transaction {number} of {}, entry {}", this.seed, this.system, entry[0].seq);
        let last = self.last.insert(this.system.clone(), number);
        assert!(last < Some(number), "{place}: behind transaction {last:?} of the same system");
        // Where changes are carried in parts, there is nothing to carry of one that changes nothing.
        let is_none = |effect: &&Effect| self.partial && effect.before == effect.after;
        let done: Vec<&Effect> = this.effects.iter().filter(|effect| !is_none(effect)).collect();
        let told: Vec<&&Operation> = entry.iter().filter(|operation| operation.entity != "ledger").collect();
        let same = told.len() == done.len() && told.iter().zip(&done).all(|(told, effect)| self.is(told, effect));
        assert!(same, "{place}: acknowledged was{}\nthe trail says{}", lines(&done), lines(&told));
        for operation in entry {
            assert!(operation.origin == this.system && operation.how == "written", "{place}: {operation:?}");
            assert!(operation.to.is_empty(), "{place}: not for everybody: {operation:?}");
            self.decided(&place, operation);
            self.replayed.apply(operation);
            self.counts.operations += 1;
        }
    }

    /// Both images of what was done are told.
    fn is(&self, told: &Operation, effect: &Effect) -> bool {
        let op = match (&effect.before, &effect.after) {
            (None, _) => "insert",
            (Some(_), None) => "delete",
            (Some(_), Some(_)) => "update",
        };
        (told.entity.as_str(), told.key.as_str(), told.op.as_str()) == (effect.entity, effect.key.as_str(), op)
            && told.before == effect.before
            && match (&told.after, &effect.after, &effect.before) {
                (Some(told), Some(after), Some(before)) if self.partial => carries(told, before, after),
                (Some(told), Some(after), Some(before)) if effect.entity == "tally" => carries(told, before, after),
                (told, after, _) => told == after,
            }
    }

    fn decided(&mut self, place: &str, operation: &Operation) {
        let name = |seq: u64| (operation.entity.clone(), operation.key.clone(), seq);
        let additive = matches!(operation.entity.as_str(), "ledger" | "tally");
        match (operation.decision.as_str(), operation.lost_to) {
            ("accepted" | "everywhere", None) => {}
            ("completed", None) => assert!(operation.instead.is_some(), "{place}: by what? {operation:?}"),
            ("rejected" | "partly", Some(winner)) if !additive => {
                assert!(self.standing.contains(&name(winner)), "{place}: lost to nothing: {operation:?}");
                let met = operation.conflict.as_ref().map(|met| met.outcome.as_str());
                assert!(matches!(met, Some("lost" | "partly" | "merged" | "waiting")), "{place}: {operation:?}");
            }
            decision => panic!("{place}: decided {decision:?}: {operation:?}"),
        }
        if operation.decision != "rejected" || operation.instead.is_some() {
            self.standing.insert(name(operation.seq));
        }
        self.counts.rejected += usize::from(operation.decision == "rejected");
        self.counts.partly += usize::from(operation.decision == "partly");
    }

    fn compare(&self, quiet: &Quiet) {
        for (entity, table) in &quiet.tables {
            let replayed = self.replayed.table(entity);
            assert_eq!(&replayed, table, "seed {}: {entity} replayed up to {}, and as it is", quiet.seed, quiet.head);
        }
    }
}

fn lines(of: &[impl std::fmt::Debug]) -> String {
    of.iter().map(|one| format!("\n  {one:?}")).collect()
}

/// Which transaction an entry is.
fn number(entry: &[&Operation]) -> u64 {
    let ledger: Vec<&&Operation> = entry.iter().filter(|operation| operation.entity == "ledger").collect();
    let [one] = ledger[..] else { panic!("not one row of the ledger in {}", lines(entry)) };
    let number = one.after.as_ref().and_then(|row| row["n"].as_deref());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{one:?}"))
}

/// All that was changed is carried, as what it became or by how much; and whatever else is, as it is.
fn carries(told: &Image, before: &Image, after: &Image) -> bool {
    let changed = after.iter().filter(|(field, value)| before.get(*field) != Some(value));
    let as_it_became = |(field, value): (&String, &Option<String>)| match value.as_deref() {
        Some(value) if value.starts_with("add ") => {
            let number = |image: &Image| image[field].as_deref().unwrap().parse::<BigDecimal>().unwrap();
            value["add ".len()..].parse::<BigDecimal>().unwrap() == number(after) - number(before)
        }
        _ => after.get(field) == Some(value),
    };
    changed.into_iter().all(|(field, _)| told.contains_key(field)) && told.iter().all(as_it_became)
}
