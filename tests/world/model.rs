//! The in-memory systems of the simulation: a few rows, a log, a marker, one transaction of
//! the agent at a time, and a mood in which they refuse values.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use anechoic::apply::Write;
use anechoic::apply::batch::Group;
use anechoic::apply::lanes::Flight;
use anechoic::catalog::{Column, ColumnType, Table, TableName};
use anechoic::change::Op;
use anechoic::config::Engine;
use anechoic::marker::Marker;
use anechoic::normalize::binding::{Binding, BoundColumn, Role, Transform};
use anechoic::schema::{EntityId, EntitySchema, Field, Schema, SystemId};
use anechoic::value::{Datum, Kind, Row, Value};

pub const CONTACT: EntityId = EntityId(0);
pub const EVENT: EntityId = EntityId(1);
/// Fields of a contact beside its key.
pub const FIELDS: usize = 3;

/// splitmix64: small, seeded, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True `n` times in a hundred.
    pub fn percent(&mut self, n: u64) -> bool {
        self.next() % 100 < n
    }
}

/// `text`: the field of a contact, without its key, that is text.
pub fn schema(text: Option<usize>) -> Arc<Schema> {
    let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
    let mut contact = ["id", "a", "b", "c"].map(field);
    if let Some(at) = text {
        contact[at + 1].kind = Kind::Text;
    }
    Schema::new(vec![
        EntitySchema::new("contact", contact.to_vec(), 1),
        EntitySchema::new("event", [field("amount")].to_vec(), 0),
    ])
}

fn column(field: &Field) -> Column {
    match field.kind {
        Kind::Text => Column::new(&field.name, ColumnType::Text { chars: None, bytes: None }, "text"),
        _ => Column::new(&field.name, ColumnType::Int { bytes: 8, signed: true }, "bigint"),
    }
}

/// A value as it stands in a row: in a field that is text, its digits, or what `{value}-{system}-{key}`
/// makes of them.
pub fn datum(value: Option<i64>, text: bool) -> Datum<'static> {
    static TEXTS: Mutex<BTreeMap<i64, &'static str>> = Mutex::new(BTreeMap::new());
    let spelled = |value: i64| match value / RENAMED {
        0 => value.to_string(),
        system => format!("{}-s{}-{}", value % RENAMED / 100, system - 1, value % 100),
    };
    match value {
        None => Datum::Null,
        Some(value) if !text => Datum::Value(Value::Int(value)),
        Some(value) => {
            let mut texts = TEXTS.lock().unwrap();
            let text = texts.entry(value).or_insert_with(|| String::leak(spelled(value)));
            Datum::Value(Value::Text(text))
        }
    }
}

/// From here on values are renamed ones: the system, the value and the key.
const RENAMED: i64 = 1_000_000_000;

/// The value of a datum, whatever it is spelled as.
pub fn number(datum: Datum<'_>) -> Option<i64> {
    match datum {
        Datum::Value(Value::Int(value)) => Some(value),
        Datum::Value(Value::Text(text)) => match text.split_once("-s") {
            None => text.parse().ok(),
            Some((value, rest)) => {
                let (system, key) = rest.split_once('-')?;
                let [value, system, key] = [value, system, key].map(|part| part.parse::<i64>().unwrap());
                Some((system + 1) * RENAMED + value * 100 + key)
            }
        },
        _ => None,
    }
}

/// `fields`: bit i is contact's field i + 1. `clashes`: the contact's field that the table keeps unique.
pub fn bindings(
    system: SystemId,
    role: Role,
    fields: u8,
    triggers: bool,
    clashes: Option<usize>,
    schema: &Schema,
) -> Vec<Arc<Binding>> {
    let bind = |entity: EntityId, has: &dyn Fn(usize) -> bool| {
        let spec = schema.entity(entity);
        let bound: Vec<BoundColumn> = (0..spec.fields.len())
            .filter(|field| has(*field))
            .map(|field| BoundColumn {
                field,
                kind: spec.fields[field].kind,
                column: column(&spec.fields[field]),
                transform: Transform::None,
                engine: Engine::Postgres,
                label: "".into(),
            })
            .collect();
        let table = Table {
            columns: bound.iter().map(|b| b.column.clone()).collect(),
            side_effects: triggers,
            ..Table::new(TableName { schema: "public".into(), name: spec.name.clone() })
        };
        let unique = bound.iter().position(|b| entity == CONTACT && clashes.is_some_and(|at| b.field == at + 1));
        Arc::new(Binding {
            system,
            entity,
            table: Arc::new(table),
            role,
            columns: bound,
            key_len: spec.key_len,
            filter: None,
            clash_keys: unique.map(|place| vec![place]).into_iter().collect(),
        })
    };
    vec![bind(CONTACT, &|field| field == 0 || fields >> (field - 1) & 1 == 1), bind(EVENT, &|_| true)]
}

/// What a contact holds; `None` is NULL, or a field that the system has not.
pub type Contact = [Option<i64>; FIELDS];

#[derive(Debug, Clone)]
pub enum Local {
    Contact { op: Op, key: i64, before: Option<Contact>, after: Option<Contact> },
    Event(i64),
}

/// One committed transaction in a system's log.
#[derive(Debug, Clone)]
pub enum Logged {
    Local(Vec<Local>),
    /// Every row of it in order; the last `side` of them a trigger's.
    Echo {
        seq: u64,
        rows: Vec<Local>,
        side: usize,
    },
    /// The rows of an XA transaction; they count when it is committed.
    Prepared(u64, Vec<Local>),
    Decided {
        xid: u64,
        committed: bool,
    },
}

/// The agent's transaction.
#[derive(Debug, Clone)]
pub struct Open {
    pub marker: Marker,
    rows: BTreeMap<i64, Option<Contact>>,
    events: Vec<i64>,
    done: Vec<Local>,
    /// Keys that were to be deleted, and were not there.
    vain: Vec<i64>,
    /// A statement that was held back was refused: the commit will say why.
    doomed: Option<Written>,
}

/// What a server says to rows that the agent writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    Done,
    Refused,
    /// Another row has a value that is unique.
    Duplicate,
}

pub struct System {
    pub fields: u8,
    pub role: Role,
    /// An event that the agent writes changes a contact, unless that transaction does so itself.
    pub triggers: bool,
    pub rows: BTreeMap<i64, Contact>,
    pub events: Vec<i64>,
    pub log: Vec<Logged>,
    pub marker: Marker,
    pub open: Option<Open>,
    /// XA transactions that are prepared: what they wrote is locked.
    pub prepared: BTreeMap<u64, Vec<Local>>,
    /// Refuses values of this residue modulo four, and deletes of such keys.
    pub refuses: Option<i64>,
    /// Fields that users add to; bit i is contact's field i + 1.
    pub additive: u8,
    /// Percent of what is done to rows.
    pub deletes: u64,
    /// Rows are written again, and neither deleted nor given whole values of additive fields.
    pub only_added: bool,
    /// New rows are made here.
    pub inserts: bool,
    /// A field of few values; none twice, where the table keeps it unique.
    pub pooled: Option<usize>,
    pub unique: bool,
    /// Its clock, and when each transaction of its log was committed.
    pub now: i64,
    pub times: Vec<i64>,
}

impl System {
    pub fn new(fields: u8, role: Role, triggers: bool) -> Self {
        let marker = Marker {
            agent: "sim".into(),
            lane: 0,
            journal: 1,
            epoch: 0,
            seq: 0,
            part: 0,
            origin: String::new(),
            txid: String::new(),
        };
        System {
            fields,
            role,
            triggers,
            rows: BTreeMap::new(),
            events: Vec::new(),
            log: Vec::new(),
            marker,
            open: None,
            prepared: BTreeMap::new(),
            refuses: None,
            additive: 0,
            deletes: 25,
            only_added: false,
            inserts: true,
            pooled: None,
            unique: false,
            now: 0,
            times: Vec::new(),
        }
    }

    pub fn has(&self, field: usize) -> bool {
        self.fields >> field & 1 == 1
    }

    /// A key that the agent's transaction has written is locked, and one of a prepared transaction.
    fn is_locked(&self, key: i64) -> bool {
        self.open.as_ref().is_some_and(|open| open.rows.contains_key(&key)) || self.is_prepared(key)
    }

    fn is_prepared(&self, key: i64) -> bool {
        let of_key = |change: &Local| matches!(change, Local::Contact { key: of, .. } if *of == key);
        self.prepared.values().flatten().any(of_key)
    }

    /// The agent's statement waits for a prepared transaction.
    pub fn blocks(&self, group: &Group) -> bool {
        let key = |row: Row<'_>| match row.get(0) {
            Datum::Value(Value::Int(key)) => self.is_prepared(key) || self.waits_for_value(key, row),
            _ => false,
        };
        group.binding.entity == CONTACT && group.rows().iter().any(|row| key(*row))
    }

    /// A prepared transaction has, or gives free, the unique value of a row.
    fn waits_for_value(&self, key: i64, row: Row<'_>) -> bool {
        let Some(field) = self.enforced() else { return false };
        let Some(value) = number(row.get(field + 1)) else { return false };
        self.prepared.values().flatten().any(|change| match change {
            Local::Contact { key: of, before, after, .. } => {
                let has = |row: &Option<Contact>| row.is_some_and(|row| row[field] == Some(value));
                *of != key && (has(before) || has(after))
            }
            Local::Event(_) => false,
        })
    }

    /// The field that this system keeps unique.
    pub fn enforced(&self) -> Option<usize> {
        self.pooled.filter(|field| self.unique && self.has(*field))
    }

    /// Another row than `key` has the value: committed, prepared or written by the agent's open
    /// transaction, or before one of these.
    fn is_taken(&self, key: i64, row: Contact) -> bool {
        let Some((field, value)) = self.enforced().and_then(|field| Some((field, row[field]?))) else { return false };
        let has = |of: i64, row: Option<Contact>| of != key && row.is_some_and(|row| row[field] == Some(value));
        let prepared = self.prepared.values().flatten().any(|change| match change {
            Local::Contact { key: of, before, after, .. } => has(*of, *before) || has(*of, *after),
            Local::Event(_) => false,
        });
        let open = self.open.iter().flat_map(|open| &open.rows).any(|(of, row)| has(*of, *row));
        prepared || open || self.rows.iter().any(|(of, row)| has(*of, Some(*row)))
    }

    /// The row that has the value of a contact, as the agent's transaction sees it.
    pub fn holder(&self, field: usize, row: Row<'_>) -> Option<(i64, Contact)> {
        let value = number(row.get(field + 1))?;
        self.seen().into_iter().find(|(_, row)| row[field] == Some(value))
    }

    /// The contacts as the agent's transaction sees them.
    fn seen(&self) -> BTreeMap<i64, Contact> {
        let mut rows = self.rows.clone();
        for (key, row) in self.open.iter().flat_map(|open| &open.rows) {
            match row {
                Some(row) => drop(rows.insert(*key, *row)),
                None => drop(rows.remove(key)),
            }
        }
        rows
    }

    fn log(&mut self, logged: Logged) {
        self.log.push(logged);
        self.times.push(self.now);
    }

    /// A local transaction of `size` changes; nothing where locks are in the way.
    pub fn write_locally(&mut self, random: &mut Random, keys: usize, size: usize, value: &mut i64) -> Vec<Local> {
        let done = self.changed_locally(random, keys, size, value);
        if !done.is_empty() {
            self.log(Logged::Local(done.clone()));
        }
        done
    }

    /// The same, of which nobody sees anything until it is decided.
    pub fn prepare_locally(&mut self, random: &mut Random, keys: usize, size: usize, value: &mut i64) {
        let (rows, events) = (self.rows.clone(), self.events.clone());
        let done = self.changed_locally(random, keys, size, value);
        (self.rows, self.events) = (rows, events);
        if !done.is_empty() {
            let xid = self.log.len() as u64;
            self.log(Logged::Prepared(xid, done.clone()));
            self.prepared.insert(xid, done);
        }
    }

    /// How many changes are committed by it.
    pub fn decide(&mut self, xid: u64, committed: bool) -> usize {
        let changes = self.prepared.remove(&xid).expect("decided once");
        self.log(Logged::Decided { xid, committed });
        if !committed {
            return 0;
        }
        for change in &changes {
            match change {
                Local::Event(amount) => self.events.push(*amount),
                Local::Contact { key, after: Some(row), .. } => drop(self.rows.insert(*key, *row)),
                Local::Contact { key, after: None, .. } => drop(self.rows.remove(key)),
            }
        }
        changes.len()
    }

    /// What a transaction of the log has committed.
    pub fn committed<'l>(&'l self, logged: &'l Logged) -> &'l [Local] {
        match logged {
            Logged::Local(changes) => changes,
            Logged::Echo { rows, side, .. } => &rows[rows.len() - side..],
            Logged::Decided { xid, committed: true } => match &self.log[*xid as usize] {
                Logged::Prepared(_, changes) => changes,
                other => unreachable!("{other:?} is not prepared"),
            },
            Logged::Prepared(..) | Logged::Decided { .. } => &[],
        }
    }

    fn changed_locally(&mut self, random: &mut Random, keys: usize, size: usize, value: &mut i64) -> Vec<Local> {
        let mut done = Vec::new();
        for _ in 0..size {
            *value += 1;
            if random.percent(15) {
                self.events.push(*value);
                done.push(Local::Event(*value));
                continue;
            }
            let key = random.below(keys) as i64;
            if self.is_locked(key) {
                continue;
            }
            let before = self.rows.get(&key).copied();
            let after = match before {
                Some(_) if !self.only_added && random.percent(self.deletes) => None,
                Some(old) => Some(self.edited(old, random, value)),
                None if !self.inserts => continue,
                None => Some(self.fresh(random, value)),
            };
            if after.is_some_and(|after| self.is_taken(key, after)) {
                continue;
            }
            let op = match (before, after) {
                (Some(old), Some(new)) if old == new => continue,
                (Some(_), Some(_)) => Op::Update,
                (None, _) => Op::Insert,
                (_, None) => Op::Delete,
            };
            match after {
                Some(row) => drop(self.rows.insert(key, row)),
                None => drop(self.rows.remove(&key)),
            }
            done.push(Local::Contact { op, key, before, after });
        }
        done
    }

    fn fresh(&self, random: &mut Random, value: &mut i64) -> Contact {
        std::array::from_fn(|field| {
            (self.has(field) && (self.only_added || !random.percent(10))).then(|| self.value(field, random, value))
        })
    }

    fn value(&self, field: usize, random: &mut Random, value: &mut i64) -> i64 {
        match self.pooled == Some(field) {
            true => random.below(3) as i64,
            false => next(value),
        }
    }

    /// Some of the fields change.
    fn edited(&self, old: Contact, random: &mut Random, value: &mut i64) -> Contact {
        std::array::from_fn(|field| match self.has(field) && random.percent(50) {
            true if self.additive >> field & 1 == 1 && (self.only_added || !random.percent(5)) => {
                let difference = random.below(9) as i64 - 4;
                old[field].map(|old| old + difference).or_else(|| Some(next(value)))
            }
            true => Some(self.value(field, random, value)),
            false => old[field],
        })
    }

    pub fn open(&mut self) -> Marker {
        self.open = None;
        self.marker.epoch += 1;
        self.marker.clone()
    }

    pub fn begin(&mut self, marker: &Marker) {
        assert_eq!(marker.epoch, self.marker.epoch, "the fence holds");
        assert!(marker.seq > self.marker.seq, "the marker only moves forward");
        self.open = Some(Open {
            marker: marker.clone(),
            rows: BTreeMap::new(),
            events: Vec::new(),
            done: Vec::new(),
            vain: Vec::new(),
            doomed: None,
        });
    }

    fn refused(&self, group: &Group) -> bool {
        let Some(residue) = self.refuses else { return false };
        let refuses = |datum: Datum<'_>| match datum {
            Datum::Value(Value::Int(v)) => v % 4 == residue,
            Datum::Added(text) => text.parse::<i64>().unwrap() % 4 == residue,
            _ => false,
        };
        group.rows().iter().any(|row| match group.write {
            Write::Delete => refuses(row.get(0)),
            _ => row.iter().skip(usize::from(group.binding.key_len > 0)).any(refuses),
        })
    }

    /// Writes a group as a server would, of which nothing is done that is refused; `late`: that is told
    /// by the commit.
    pub fn write(&mut self, group: &Group, late: bool) -> Written {
        let refused = match self.refused(group) {
            true => Written::Refused,
            false => {
                let before = self.open.clone();
                group.rows().iter().for_each(|row| self.write_row(group, *row));
                match self.has_duplicates() {
                    true => {
                        self.open = before;
                        Written::Duplicate
                    }
                    false => Written::Done,
                }
            }
        };
        let open = self.open.as_mut().expect("a transaction is open");
        if late && refused != Written::Done {
            open.doomed.get_or_insert(refused);
            return Written::Done;
        }
        refused
    }

    /// Writes a transaction in its turn, up to its commit; `None`: it waits for a lock.
    pub fn land(&mut self, flight: &Flight, late: bool) -> Option<Written> {
        if flight.groups.iter().any(|group| self.blocks(group)) {
            return None;
        }
        self.begin(&flight.marker);
        let groups = flight.groups.iter();
        let refused = groups.map(|group| self.write(group, late)).find(|written| *written != Written::Done);
        Some(refused.unwrap_or(Written::Done))
    }

    /// The oldest transaction under way is committed, if it can be, and the agent does not know yet.
    pub fn land_unasked(&mut self, aloft: &VecDeque<Flight>, keys: usize) {
        let Some(flight) = aloft.front().filter(|flight| flight.marker.seq > self.marker.seq) else { return };
        self.open = None;
        if self.land(flight, false) == Some(Written::Done) {
            self.commit(keys);
        }
        self.open = None;
    }

    fn has_duplicates(&self) -> bool {
        let Some(field) = self.enforced() else { return false };
        let mut values: Vec<i64> = self.seen().values().filter_map(|row| row[field]).collect();
        values.sort_unstable();
        values.windows(2).any(|pair| pair[0] == pair[1])
    }

    fn write_row(&mut self, group: &Group, row: Row<'_>) {
        let open = self.open.as_mut().expect("a transaction is open");
        if group.binding.entity == EVENT {
            let amount = number(row.get(0)).expect("events have amounts");
            open.events.push(amount);
            open.done.push(Local::Event(amount));
            return;
        }
        let key = number(row.get(0)).expect("contacts have keys");
        let there = open.rows.get(&key).copied().unwrap_or_else(|| self.rows.get(&key).copied());
        if group.write == Write::Delete && there.is_none() {
            // What is not there cannot be locked: a local insert may still commit before us.
            open.vain.push(key);
            return;
        }
        let after = (group.write == Write::Upsert).then(|| {
            let mut contact = there.unwrap_or_default();
            for (i, column) in group.binding.columns.iter().enumerate().skip(1) {
                let at = &mut contact[column.field - 1];
                let datum = row.get(column.field);
                assert_eq!(group.added >> i & 1 == 1, matches!(datum, Datum::Added(_)), "rows of a group are alike");
                if group.carried >> i & 1 == 1 {
                    *at = added(*at, datum);
                }
            }
            contact
        });
        open.rows.insert(key, after);
        open.done.push(change(key, there, after));
    }

    /// What the trigger does for the events of a transaction, each key once.
    fn fire(&self, open: &mut Open, keys: usize) -> usize {
        let mut side = 0;
        for amount in self.triggers.then(|| open.events.clone()).into_iter().flatten() {
            let key = amount % keys as i64;
            // Such a row would be taken for one that was rewritten; its insert is answered in any case.
            let rewritten = open.vain.contains(&key) && self.rows.contains_key(&key);
            if open.rows.contains_key(&key) || rewritten || self.is_prepared(key) {
                continue;
            }
            let before = self.rows.get(&key).copied();
            let mut after = before.unwrap_or_default();
            let field = (0..FIELDS).find(|field| self.has(*field)).expect("a system has a field");
            after[field] = Some(-amount);
            if before == Some(after) {
                continue;
            }
            open.rows.insert(key, Some(after));
            open.done.push(change(key, before, Some(after)));
            side += 1;
        }
        side
    }

    pub fn commit(&mut self, keys: usize) -> Written {
        let mut open = self.open.take().expect("a transaction is open");
        if let Some(why) = open.doomed {
            return why;
        }
        let side = self.fire(&mut open, keys);
        for (key, row) in open.rows {
            match row {
                Some(row) => drop(self.rows.insert(key, row)),
                None => drop(self.rows.remove(&key)),
            }
        }
        self.events.extend(open.events);
        self.log(Logged::Echo { seq: open.marker.seq, rows: open.done, side });
        self.marker = open.marker;
        Written::Done
    }
}

/// A field with this datum written into it.
pub fn added(under: Option<i64>, datum: Datum<'_>) -> Option<i64> {
    match datum {
        Datum::Value(_) => number(datum),
        Datum::Added(text) => {
            let difference: i64 = text.parse().expect("a difference of integers");
            Some(under.unwrap_or(0) + difference)
        }
        Datum::NotSent => under,
        _ => None,
    }
}

fn change(key: i64, before: Option<Contact>, after: Option<Contact>) -> Local {
    let op = match (before, after) {
        (None, _) => Op::Insert,
        (Some(_), Some(_)) => Op::Update,
        (Some(_), None) => Op::Delete,
    };
    Local::Contact { op, key, before, after }
}

fn next(value: &mut i64) -> i64 {
    *value += 1;
    *value
}
