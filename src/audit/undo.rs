//! Takes transactions back: for each key they changed, what leads from what they left to what they
//! found.
//!
//! ```text
//! inserted → delete      deleted → insert of the row before      updated → the fields before
//! ```
//!
//! Only the net counts, so a row that came and went is left alone; of fields whose differences are
//! merged the difference is taken back, and others keep theirs. A key that somebody else changed
//! since is not touched: what was before is not what that one built on.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{each, key_text, origin};
use crate::change::{Change, ChangeWriter, Changes, Entry, Fate, Micros, Op, Origin, Record, overlay};
use crate::config::{Config, Merge};
use crate::control::{Image, image};
use crate::error::{Error, Result};
use crate::http::status::timestamp;
use crate::journal::Journal;
use crate::position::Seq;
use crate::schema::{EntityId, EntitySchema, Schema, Translation};
use crate::value::number::write_difference;
use crate::value::{Datum, Row, write_datum};

/// Images that are held at a time; a transaction of more is taken back by entity.
const HELD_MAX: usize = 64 << 20;
/// Keys that are named.
const NAMED: usize = 20;

/// `anechoic undo`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UndoSpec {
    pub tx: Option<String>,
    pub system: Option<String>,
    /// Commit times, by the clocks of the servers.
    pub since: Option<Micros>,
    pub until: Option<Micros>,
    pub entity: Option<String>,
    pub dry_run: bool,
    /// Leave rows alone that others changed since, and take back the rest.
    pub skip_changed: bool,
}

impl UndoSpec {
    /// Names it in the audit trail.
    pub fn txid(&self) -> Arc<str> {
        match (&self.tx, &self.system) {
            (Some(tx), _) => format!("undo {tx}").into(),
            (None, system) => format!("undo {}", system.as_deref().unwrap_or_default()).into(),
        }
    }

    fn chooses(&self, entry: &Entry) -> bool {
        let Origin::System(name) = &entry.origin else { return false };
        self.system.as_ref().is_none_or(|system| **system == **name)
            && self.tx.as_ref().is_none_or(|tx| **tx == *entry.txid)
            && self.since.is_none_or(|since| since <= entry.committed_at)
            && self.until.is_none_or(|until| entry.committed_at <= until)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Undone {
    /// The entry that carries it to all systems; 0 where nothing was written.
    pub seq: Seq,
    pub transactions: Vec<Transaction>,
    /// Per entity.
    pub entities: Vec<Counts>,
    /// A few of the rows, as they would be.
    pub samples: Vec<Sample>,
    /// Rows that others changed since: how many, and a few of them.
    pub changed: u64,
    pub changed_samples: Vec<Changed>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// One that is taken back; of many, the first few.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    pub seq: Seq,
    pub system: String,
    pub txid: String,
    pub committed_at: Option<String>,
    pub changes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub entity: String,
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    pub entity: String,
    pub key: String,
    /// What is done: `insert`, `update`, `delete`.
    pub op: String,
    /// What the transactions left, and what will be; of an update the fields that change.
    pub now: Option<Image>,
    pub then: Option<Image>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub entity: String,
    pub key: String,
    /// The entry that changed it since, and who wrote that.
    pub seq: Seq,
    pub by: String,
}

/// What is to be admitted, and what is told of it.
#[derive(Debug)]
pub struct Plan {
    pub undone: Undone,
    /// Encoded changes of the schema that it was made for.
    pub body: Bytes,
    pub changes: u64,
    /// Hashes of the keys: nobody else may have changed them behind `head`.
    pub keys: Vec<u128>,
    pub head: Seq,
}

/// One key, as the chosen transactions found it and as they left it.
#[derive(Debug)]
struct Net {
    entity: EntityId,
    before: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
    /// The entry of the first of their changes, and the last of them.
    first: Seq,
    last: (Seq, u64),
    changed: Option<(Seq, String)>,
}

impl Net {
    fn bytes(&self) -> usize {
        let len = |row: &Option<Vec<u8>>| row.as_ref().map_or(0, Vec::len);
        128 + len(&self.before) + len(&self.after)
    }
}

struct Planner<'p> {
    journal: &'p Journal,
    spec: &'p UndoSpec,
    schema: &'p Arc<Schema>,
    /// By entity: fields whose differences are merged.
    added: Vec<u128>,
    nets: HashMap<u128, Net>,
    bytes: usize,
    undone: Undone,
    chosen: u64,
    rejected: u64,
    systems: Vec<String>,
}

/// Reads the whole journal once: what is chosen, and who came after.
pub fn plan(journal: &Journal, spec: &UndoSpec, schema: &Arc<Schema>, config: &Config) -> Result<Plan> {
    let head = journal.head();
    let mut planner = Planner {
        journal,
        spec,
        schema,
        added: added(config, schema),
        nets: HashMap::new(),
        bytes: 0,
        undone: Undone::default(),
        chosen: 0,
        rejected: 0,
        systems: Vec::new(),
    };
    let mut reader = journal.reader(journal.oldest())?;
    while let Some(record) = reader.next()? {
        match record {
            Record::Entry(entry) if entry.seq > head => break,
            Record::Entry(entry) => planner.entry(&entry)?,
            _ => {}
        }
    }
    planner.finish(head)
}

/// Whether an entry behind a plan's head changed one of its keys.
pub fn meets(journal: &Journal, entry: &Entry, keys: &[u128], schema: &Arc<Schema>) -> Result<bool> {
    let mut found = false;
    accepted(journal, entry, schema, None, &mut |_, change| {
        found |= keys.binary_search(&change.key_hash).is_ok();
        Ok(())
    })?;
    Ok(found)
}

/// The changes of an entry that were carried to others, of this schema. `lost` counts those that
/// were not.
fn accepted(
    journal: &Journal,
    entry: &Entry,
    schema: &Arc<Schema>,
    mut lost: Option<&mut u64>,
    found: &mut dyn FnMut(u64, &Change<'_>) -> Result<()>,
) -> Result<()> {
    // It carries once more what its entry carried.
    if entry.is_retry() {
        return Ok(());
    }
    let translation = Translation::between(&entry.schema, schema);
    let mut out = ChangeWriter::default();
    let mut cursor = 0;
    each(journal, entry, &mut |index, change| {
        let change = match entry.fate(index, "", &mut cursor) {
            Fate::Apply => Some(*change),
            // A delete that lost is answered by the row, an insert that lost by the delete.
            Fate::Replace(with) => {
                Some(with.change()).filter(|with| (change.op == Op::Delete) == (with.op == Op::Delete))
            }
            Fate::Skip => None,
        };
        let Some(change) = change else {
            lost.iter_mut().for_each(|lost| **lost += 1);
            return Ok(());
        };
        match &translation {
            None => found(index, &change),
            Some(translation) => {
                out.bytes.clear();
                match translation.translate(&change, &mut out) {
                    true => found(index, &Changes::new(&out.bytes).next().expect("just written")),
                    false => Ok(()),
                }
            }
        }
    })
}

impl Planner<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<()> {
        let chosen = self.spec.chooses(entry);
        if !chosen && self.nets.is_empty() {
            return Ok(());
        }
        let (journal, schema) = (self.journal, self.schema);
        let mut lost = 0;
        let mut taken = 0;
        accepted(journal, entry, schema, Some(&mut lost), &mut |index, change| {
            if schema.entity(change.entity).key_len == 0 {
                return match chosen && self.is_wanted(change.entity) {
                    true => Err(self.keyless(change.entity)),
                    false => Ok(()),
                };
            }
            if chosen && self.is_wanted(change.entity) {
                taken += 1;
                self.fold(entry, index, change)
            } else {
                self.meet(entry, change);
                Ok(())
            }
        })?;
        if chosen && taken + lost > 0 {
            self.rejected += lost;
            self.chosen += 1;
            let system = origin(&entry.origin);
            if !self.systems.contains(&system) {
                self.systems.push(system.clone());
            }
            if self.undone.transactions.len() < NAMED {
                self.undone.transactions.push(Transaction {
                    seq: entry.seq,
                    system,
                    txid: entry.txid.to_string(),
                    committed_at: timestamp(entry.committed_at),
                    changes: taken,
                });
            }
        }
        Ok(())
    }

    fn is_wanted(&self, entity: EntityId) -> bool {
        self.spec.entity.as_ref().is_none_or(|name| *name == self.schema.entity(entity).name)
    }

    fn keyless(&self, entity: EntityId) -> Error {
        let what = format!("entity {:?} has no key: its rows cannot be told apart", self.schema.entity(entity).name);
        Error::stop(what, "take back other entities alone: --entity")
    }

    /// A change of a chosen transaction.
    fn fold(&mut self, entry: &Entry, index: u64, change: &Change<'_>) -> Result<()> {
        let whole = |under: Option<Row<'_>>, over: Option<Row<'_>>| match (under, over) {
            (Some(under), Some(over)) => Some(overlay(under, over)),
            (_, over) => over.map(|row| row.0.to_vec()),
        };
        // An update may carry less than its row.
        let after = |under| match change.op {
            Op::Update => whole(under, change.after),
            Op::Insert | Op::Delete => change.after.map(|row| row.0.to_vec()),
        };
        let net = match self.nets.get_mut(&change.key_hash) {
            Some(net) => {
                self.bytes -= net.bytes();
                let under = net.after.take().or_else(|| change.before.map(|row| row.0.to_vec()));
                net.after = after(under.as_deref().map(Row));
                net.last = (entry.seq, index);
                net
            }
            None => {
                let before = change.before.map(|row| row.0.to_vec());
                let net = Net {
                    entity: change.entity,
                    after: after(change.before),
                    before,
                    first: entry.seq,
                    last: (entry.seq, index),
                    changed: None,
                };
                self.nets.entry(change.key_hash).or_insert(net)
            }
        };
        self.bytes += net.bytes();
        if self.bytes > HELD_MAX {
            return Err(Error::stop(
                format!("what is to be taken back has more than {} MiB of rows", HELD_MAX >> 20),
                "take it back in parts: --entity, or --since with --until, the newest first",
            ));
        }
        Ok(())
    }

    /// A change of somebody else, behind a chosen one. Differences alone leave the rest as it was.
    fn meet(&mut self, entry: &Entry, change: &Change<'_>) {
        let Some(net) = self.nets.get_mut(&change.key_hash) else { return };
        let key_len = self.schema.entity(change.entity).key_len;
        let differences =
            |row: Row<'_>| row.iter().skip(key_len).all(|datum| matches!(datum, Datum::NotSent | Datum::Added(_)));
        let harmless = change.op == Op::Update && net.after.is_some() && change.after.is_some_and(differences);
        // Where the row itself would go, a difference would go with it.
        if !harmless || net.before.is_none() {
            net.changed = Some((entry.seq, origin(&entry.origin)));
        }
    }

    fn finish(mut self, head: Seq) -> Result<Plan> {
        self.nothing_chosen(head)?;
        self.complete()?;
        let mut nets: Vec<(u128, Net)> = std::mem::take(&mut self.nets).into_iter().collect();
        // What was done last is taken back first.
        nets.sort_by_key(|(_, net)| std::cmp::Reverse(net.last));
        let (mut out, mut keys) = (ChangeWriter::default(), Vec::new());
        for (key_hash, net) in &nets {
            let start = out.bytes.len();
            if !self.inverse(*key_hash, net, &mut out) {
                continue;
            }
            let change = Changes::new(&out.bytes[start..]).next().expect("just written");
            let entity = self.schema.entity(net.entity);
            if let Some((seq, by)) = &net.changed {
                self.undone.changed += 1;
                if self.undone.changed_samples.len() < NAMED {
                    let key = key_text(entity, &change);
                    let by = by.clone();
                    self.undone.changed_samples.push(Changed { entity: entity.name.clone(), key, seq: *seq, by });
                }
                out.take_back();
                continue;
            }
            keys.push(*key_hash);
            let counts = match self.undone.entities.iter_mut().position(|counts| counts.entity == entity.name) {
                Some(at) => &mut self.undone.entities[at],
                None => {
                    let counts = Counts { entity: entity.name.clone(), inserts: 0, updates: 0, deletes: 0 };
                    self.undone.entities.push(counts);
                    self.undone.entities.last_mut().expect("just pushed")
                }
            };
            match change.op {
                Op::Insert => counts.inserts += 1,
                Op::Update => counts.updates += 1,
                Op::Delete => counts.deletes += 1,
            }
            if self.undone.samples.len() < NAMED {
                let touched = |row: &Vec<u8>| {
                    let mut image = image(entity, Row(row));
                    if let (Op::Update, Some(after)) = (change.op, change.after) {
                        let names = entity.fields.iter().zip(after.iter()).skip(entity.key_len);
                        let names: Vec<&String> =
                            names.filter(|(_, datum)| datum.is_sent()).map(|(field, _)| &field.name).collect();
                        image.retain(|name, _| names.contains(&name));
                    }
                    image
                };
                self.undone.samples.push(Sample {
                    entity: entity.name.clone(),
                    key: key_text(entity, &change),
                    op: change.op.name().into(),
                    now: net.after.as_ref().map(touched),
                    then: net.before.as_ref().map(touched),
                });
            }
        }
        keys.sort_unstable();
        self.notes();
        let changes = out.count;
        Ok(Plan { undone: self.undone, body: out.take().into(), changes, keys, head })
    }

    /// What a system does not bind, its deletion does not tell: the fields of others are those that
    /// the journal had last.
    fn complete(&mut self) -> Result<()> {
        let lacks = |row: &Vec<u8>| Row(row).iter().any(|datum| !datum.is_sent());
        let lacking = |net: &Net| net.after.is_none() && net.before.as_ref().is_some_and(lacks);
        let mut known: HashMap<u128, Option<Vec<u8>>> =
            self.nets.iter().filter(|(_, net)| lacking(net)).map(|(key_hash, _)| (*key_hash, None)).collect();
        if known.is_empty() {
            return Ok(());
        }
        let (journal, schema) = (self.journal, self.schema);
        let mut reader = journal.reader(journal.oldest())?;
        while let Some(record) = reader.next()? {
            let Record::Entry(entry) = record else { continue };
            accepted(journal, &entry, schema, None, &mut |_, change| {
                let key_hash = change.key_hash;
                let (Some(net), Some(row)) = (self.nets.get(&key_hash), known.get_mut(&key_hash)) else {
                    return Ok(());
                };
                if entry.seq < net.first {
                    *row = match (change.op, change.after, row.take()) {
                        (Op::Update, Some(after), Some(row)) => Some(overlay(Row(&row), after)),
                        (_, after, _) => after.map(|after| after.0.to_vec()),
                    };
                }
                Ok(())
            })?;
        }
        let mut incomplete = 0;
        for (key_hash, row) in known {
            let Some(before) = self.nets.get_mut(&key_hash).and_then(|net| net.before.as_mut()) else { continue };
            if let Some(row) = row {
                *before = overlay(Row(&row), Row(before));
            }
            incomplete += u64::from(lacks(before));
        }
        if incomplete > 0 {
            self.undone
                .notes
                .push(format!("{incomplete} rows come back without fields that the journal does not have"));
        }
        Ok(())
    }

    fn nothing_chosen(&self, head: Seq) -> Result<()> {
        if self.systems.len() > 1 && self.spec.tx.is_some() {
            let what = format!(
                "transaction {:?} is one of {} each: systems number theirs on their own",
                self.spec.tx.as_deref().unwrap_or_default(),
                self.systems.join(" and of ")
            );
            return Err(Error::stop(what, format!("say which: --system {}", self.systems[0])));
        }
        if self.chosen > 0 {
            return Ok(());
        }
        let what = match &self.spec.tx {
            Some(tx) => format!("the journal has no transaction {tx:?} with such rows"),
            None => "no transaction with such rows was committed then".to_owned(),
        };
        let reach = format!(
            "it reaches from entry {} to {head}; anechoic conflicts and the log name txids",
            self.journal.oldest()
        );
        Err(Error::stop(what, reach))
    }

    /// Writes what takes a key back; `false`: nothing does, it is as it was.
    fn inverse(&self, key_hash: u128, net: &Net, out: &mut ChangeWriter) -> bool {
        let entity = net.entity;
        let change = |op, before, after| Change { op, entity, key_hash, before, after };
        match (&net.before, &net.after) {
            (None, None) => return false,
            (None, Some(after)) => out.push_change(&change(Op::Delete, Some(Row(after)), None)),
            (Some(before), None) => out.push_change(&change(Op::Insert, None, Some(Row(before)))),
            (Some(before), Some(after)) => {
                let (key_len, added) = (self.schema.entity(entity).key_len, self.added[entity.index()]);
                let (mut row, mut differs) = (Vec::new(), false);
                for (field, (then, now)) in Row(before).iter().zip(Row(after).iter()).enumerate() {
                    if field < key_len {
                        write_datum(&mut row, then);
                        continue;
                    }
                    let known = then.is_sent() && now.is_sent();
                    let same = !known || alike(then, now);
                    differs |= !same;
                    match same {
                        true => write_datum(&mut row, Datum::NotSent),
                        false if added >> field & 1 == 1 && write_difference(&mut row, now, then) => {}
                        false => write_datum(&mut row, then),
                    }
                }
                if !differs {
                    return false;
                }
                out.push_change(&change(Op::Update, Some(Row(after)), Some(Row(&row))));
            }
        }
        true
    }

    fn notes(&mut self) {
        let more = self.chosen.saturating_sub(self.undone.transactions.len() as u64);
        if more > 0 {
            self.undone.notes.push(format!("{more} more transactions"));
        }
        if self.rejected > 0 {
            self.undone.notes.push(format!(
                "{} of their changes had lost a conflict and were never carried: nothing of them is there to be taken back",
                self.rejected
            ));
        }
    }
}

/// Bit by bit, or a NaN would never be itself.
fn alike(a: Datum<'_>, b: Datum<'_>) -> bool {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    write_datum(&mut left, a);
    write_datum(&mut right, b);
    left == right
}

/// By entity of `schema`: the fields whose differences are merged.
fn added(config: &Config, schema: &Schema) -> Vec<u128> {
    let of = |entity: &EntitySchema| {
        let config = config.entities.iter().find(|config| config.name == entity.name);
        let merges = config.into_iter().flat_map(|config| &config.merge);
        let fields = merges.filter(|(_, merge)| *merge == Merge::Add).filter_map(|(name, _)| entity.field(name));
        fields.fold(0, |set, field| set | 1 << field)
    };
    schema.entities.iter().map(of).collect()
}
