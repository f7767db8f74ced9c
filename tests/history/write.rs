//! People at work: transactions, and what they did to the rows they wrote, as the database itself says.
//!
//! ```text
//! SELECT … FOR UPDATE      the row before (the lock that the statement takes anyway)
//! INSERT, UPDATE, DELETE   how many rows it wrote
//! SELECT … FOR UPDATE      the row after
//! ```

use std::time::Duration;

use anechoic::control::Image;

use crate::support::servers::Session;

pub const KEYS: u64 = 4;
pub const TALLIES: u64 = 2;

/// The fields of what is written by key.
const FIELDS: [(&str, &[&str]); 2] =
    [("article", &["id", "name", "place", "pieces", "best"]), ("tally", &["id", "pieces", "worth"])];

/// splitmix64: small, seeded, and the same everywhere.
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// One statement about one record.
struct Statement {
    sql: String,
    entity: &'static str,
    /// The record's key before and after it, where it has one.
    from: Option<u64>,
    to: Option<u64>,
}

/// One transaction, and what it means if it is acknowledged.
pub struct Planned {
    statements: Vec<Statement>,
    pub number: u64,
    /// By tally.
    pub added: [i64; TALLIES as usize],
    pause: Duration,
}

impl Planned {
    fn new(number: u64, pause: Duration) -> Planned {
        Planned { statements: Vec::new(), number, added: [0; TALLIES as usize], pause }
    }

    fn push(&mut self, entity: &'static str, from: Option<u64>, to: Option<u64>, sql: String) {
        self.statements.push(Statement { sql, entity, from, to });
    }

    /// Makes the tallies.
    pub fn first(number: u64) -> Planned {
        let mut planned = Planned::new(number, Duration::ZERO);
        for id in 0..TALLIES {
            let sql = format!("INSERT INTO tally (id, pieces, worth) VALUES ({id}, 0, 0)");
            planned.push("tally", None, Some(id), sql);
        }
        planned
    }

    pub fn random(random: &mut Random, number: u64) -> Planned {
        let mut planned = Planned::new(number, Duration::from_millis(random.below(6)));
        for _ in 0..1 + random.below(3) {
            planned.add(random);
        }
        planned
    }

    fn add(&mut self, random: &mut Random) {
        let (key, value) = (random.below(KEYS), random.below(1000));
        let (here, moved) = (Some(key), (key + 1) % KEYS);
        let (from, to, sql) = match random.below(10) {
            0..2 => (None, here, format!("INSERT INTO article VALUES ({key}, 'i{value}', 'p', {value}, 0)")),
            2..4 => (here, here, format!("UPDATE article SET name = 'n{value}' WHERE id = {key}")),
            4 => (here, here, format!("UPDATE article SET place = 'p{value}', best = {value} WHERE id = {key}")),
            5 => (here, here, format!("UPDATE article SET pieces = pieces - {} WHERE id = {key}", value % 7)),
            6 => (here, None, format!("DELETE FROM article WHERE id = {key}")),
            7 => (here, Some(moved), format!("UPDATE article SET id = {moved} WHERE id = {key}")),
            _ => {
                let (tally, pieces) = (random.below(TALLIES), random.below(201) as i64 - 100);
                self.added[tally as usize] += pieces;
                let sql = format!(
                    "UPDATE tally SET pieces = pieces + ({pieces}), worth = worth + ({pieces}.25) WHERE id = {tally}"
                );
                return self.push("tally", Some(tally), Some(tally), sql);
            }
        };
        self.push("article", from, to, sql);
    }
}

/// What a statement did to one record. A change of the key is a deletion and an insertion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    pub entity: &'static str,
    pub key: String,
    pub before: Option<Image>,
    pub after: Option<Image>,
}

/// Executes it, and asks what it did.
async fn execute(session: &mut Session, statement: &Statement, effects: &mut Vec<Effect>) -> Result<(), String> {
    let entity = statement.entity;
    let before = row(session, entity, statement.from).await?;
    let written = session.try_write(&statement.sql).await?;
    if written == 0 {
        return Ok(());
    }
    if before.is_none() && statement.from.is_some() {
        return Err("it came between the look and the statement, so nobody knows what it was".to_owned());
    }
    let after = row(session, entity, statement.to).await?;
    let effect = |before: Option<Image>, after: Option<Image>| {
        let key = after.as_ref().or(before.as_ref()).and_then(|row| row["id"].clone()).expect("rows have keys");
        Effect { entity, key, before, after }
    };
    match (statement.from, statement.to) {
        (Some(from), Some(to)) if from != to => effects.extend([effect(before, None), effect(None, after)]),
        _ => effects.push(effect(before, after)),
    }
    Ok(())
}

/// Locked, so that it stays what it is; and read so, because a plain read would show the past.
async fn row(session: &mut Session, entity: &str, key: Option<u64>) -> Result<Option<Image>, String> {
    let Some(key) = key else { return Ok(None) };
    let (_, fields) = FIELDS.iter().find(|(name, _)| *name == entity).expect("it is one of these");
    let query = format!("SELECT {} FROM {entity} WHERE id = {key} FOR UPDATE", fields.join(", "));
    let found = session.try_rows(&query).await?.pop();
    Ok(found.map(|row| fields.iter().map(|field| (*field).to_owned()).zip(row).collect()))
}

/// A transaction that was carried out, in source order.
pub struct Done {
    pub planned: Planned,
    pub effects: Vec<Effect>,
}

/// What became of plans.
#[derive(Default)]
pub struct Written {
    pub acknowledged: Vec<Done>,
    /// The connection broke at its commit: the ledger tells.
    pub unknown: Option<Done>,
}

/// Writes one plan after the other, as long as there is a server.
pub async fn write(mut session: Session, plans: Vec<Planned>) -> Written {
    let mut written = Written::default();
    for planned in plans {
        tokio::time::sleep(planned.pause).await;
        if session.try_execute("BEGIN").await.is_err() {
            return written;
        }
        let (number, mut effects) = (planned.number, Vec::new());
        let mut refused = session.try_execute(&format!("INSERT INTO ledger (n) VALUES ({number})")).await.is_err();
        for statement in &planned.statements {
            // A key that is there, a deadlock: the transaction is given up.
            refused = refused || execute(&mut session, statement, &mut effects).await.is_err();
        }
        let done = !refused && session.try_execute("COMMIT").await.is_ok();
        let this = Done { planned, effects };
        if done {
            written.acknowledged.push(this);
        } else if session.try_execute("ROLLBACK").await.is_err() {
            written.unknown = Some(this);
            return written;
        }
    }
    written
}
