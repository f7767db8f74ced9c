//! A desk that is fed at random, stopped anywhere and started again: from the index checkpoint it
//! must know what it would know from the whole journal, and of a checkpoint that is not what it
//! should be it must know that.

use std::fs;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::checkpoint::write;
use super::*;
use crate::admit::checkpoint::State;
use crate::admit::{DiskStore, EntityTopology, Member, Topology};
use crate::change::Op;
use crate::config::Config;
use crate::journal::{Options, open};
use crate::normalize::binding::Role;
use crate::schema::{EntityId, EntitySchema, Field};
use crate::value::{Datum, Kind, Value};

const NAMES: [&str; 3] = ["crm", "shop", "erp"];
const KEYS: i64 = 60;

fn topology() -> Topology {
    let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
    let schema = Schema::new(vec![EntitySchema::new("stock", ["id", "count", "place"].map(field).to_vec(), 1)]);
    let member = |system: u8, fields| Member { system: SystemId(system), role: Role::Both, fields, inexact: 0 };
    let members = vec![member(0, 0b111), member(1, 0b111), member(2, 0b011)];
    Topology {
        systems: NAMES.map(Arc::from).to_vec(),
        schema,
        entities: vec![EntityTopology { rules: Arc::default(), members }],
    }
}

fn status(dir: &Path) -> (Arc<Status>, JournalConfig) {
    let system = |name: &str| format!("[[system]]\nname = \"{name}\"\nurl = \"postgresql://a@h/{name}\"\n\n");
    let bound = |name: &str| format!("[entity.in.{name}]\ntable = \"stock\"\n");
    let text = format!(
        "[agent]\nid = \"a\"\ndata_dir = {dir:?}\n\n{}[[entity]]\nname = \"stock\"\nkey = [\"id\"]\n{}",
        NAMES.map(system).concat(),
        NAMES.map(bound).concat()
    );
    let config = Config::from_str(&text, "test.toml").unwrap();
    (Status::new(&config), config.journal.clone())
}

fn at(index: u64, base: Seq) -> PositionRecord {
    PositionRecord { position: Position::Memory { index }, base, identity: "".into() }
}

/// The agent's directory, and what makes a desk of it.
struct Place {
    dir: TempDir,
    topology: Topology,
}

/// What a start came to.
struct Came {
    state: State,
    covered: Option<Seq>,
}

impl Place {
    fn new() -> Self {
        Place { dir: TempDir::new().unwrap(), topology: topology() }
    }

    fn checkpoint(&self) -> PathBuf {
        self.dir.path().join("index.checkpoint")
    }

    fn arbiter(&self) -> Result<Arbiter> {
        let index = DiskStore::new(self.dir.path().join("index"))?;
        Ok(Arbiter::new(self.topology.clone(), Box::new(index)))
    }

    fn opened(&self) -> (Writer, Journal, Recovered) {
        let mut options = Options::new(self.dir.path().join("journal"), 1 << 40);
        options.segment_bytes = 64 << 10;
        open(&options).unwrap()
    }

    fn systems(&self, recovered: &Recovered) -> Vec<SystemDesk> {
        let known = |name: &str| recovered.positions.get(name).cloned().unwrap_or_else(|| at(0, 0));
        NAMES.iter().map(|name| SystemDesk::new((*name).into(), known(name), true)).collect()
    }

    fn desk(&self) -> Desk {
        let (writer, journal, recovered) = self.opened();
        let systems = self.systems(&recovered);
        let (status, retention) = status(self.dir.path());
        let schema = self.topology.schema.clone();
        let make = || self.arbiter();
        Desk::open(&make, self.checkpoint(), writer, journal, schema, systems, recovered, status, retention).unwrap()
    }

    /// Starts, as far as the arbiter, with the checkpoint that lies there.
    fn start(&self, checkpoint: &Path) -> Came {
        self.start_with(checkpoint, |_| ())
    }

    fn start_with(&self, checkpoint: &Path, change: impl Fn(&mut Vec<SystemDesk>)) -> Came {
        let (_writer, journal, recovered) = self.opened();
        let mut systems = self.systems(&recovered);
        change(&mut systems);
        let archive = Archive { journal, schema: self.topology.schema.clone(), fresh: Vec::new() };
        let (held, conflicts) = (&recovered.quarantined, &recovered.conflicts);
        let (make, systems) = (&|| self.arbiter(), &systems);
        let start = Start { make, archive: &archive, systems, held, conflicts, checkpoint, every: 1 << 20 };
        let started = start.run().unwrap();
        Came { state: started.arbiter.state().unwrap(), covered: started.covered }
    }

    /// By the whole journal.
    fn whole(&self) -> State {
        let came = self.start(&self.dir.path().join("none.checkpoint"));
        assert_eq!(came.covered, None);
        came.state
    }
}

/// What the systems do, and the desk that hears of it.
struct Feed {
    random: StdRng,
    schema: Arc<Schema>,
    /// By system: transactions read, and the marker that was seen.
    read: [(u64, Seq); 3],
    desk: Desk,
}

impl Feed {
    fn new(place: &Place, random: StdRng) -> Self {
        let desk = place.desk();
        let read = [0, 1, 2].map(|system: usize| {
            let PositionRecord { position: Position::Memory { index }, base, .. } = desk.systems[system].at else {
                unreachable!("positions of memory");
            };
            (index, base)
        });
        Feed { random, schema: place.topology.schema.clone(), read, desk }
    }

    fn change(&mut self, key: i64) -> Bytes {
        let mut writer = ChangeWriter::default();
        let value = self.random.random_range(0..1000);
        let row = |value| [key, value, value].map(|value| Datum::Value(Value::Int(value))).into_iter();
        let none = None::<std::array::IntoIter<Datum<'_>, 3>>;
        match self.random.random_range(0..8) {
            0 => writer.push(&self.schema, EntityId(0), Op::Delete, Some(row(0)), none),
            _ => writer.push(&self.schema, EntityId(0), Op::Update, Some(row(0)), Some(row(value))),
        }
        writer.take().into()
    }

    fn step(&mut self) -> Result<()> {
        let system = self.random.random_range(0..3usize);
        let id = SystemId(system as u8);
        match self.random.random_range(0..100) {
            0..60 => {
                let count = self.random.random_range(1..4u64);
                let keys: Vec<i64> = (0..count).map(|_| self.random.random_range(0..KEYS)).collect();
                let body: Vec<u8> = keys.into_iter().flat_map(|key| self.change(key).to_vec()).collect();
                self.read[system].0 += 1;
                let (index, base) = self.read[system];
                let captured = Captured {
                    system: id,
                    position: Position::Memory { index },
                    base,
                    txid: index.to_string().into(),
                    committed_at: i64::try_from(index).unwrap(),
                    hops: 0,
                    schema: self.schema.clone(),
                    changes: count,
                    body: Body::Inline(body.into()),
                    refused: Vec::new(),
                };
                self.desk.captured(id, captured, None)
            }
            60..80 => {
                let head = self.desk.archive.journal.head();
                let (index, base) = &mut self.read[system];
                (*index, *base) = (*index + 1, self.random.random_range(*base..=head.max(*base)));
                let position = Position::Memory { index: *index };
                self.desk.passed(id, position, *base)
            }
            80..90 => self.refuse(system),
            90..93 => self.desk.take(Message::Tick),
            _ => self.desk.commit(),
        }
    }

    /// A system refuses what it was about to apply, or folds something newer onto what it holds.
    fn refuse(&mut self, system: usize) -> Result<()> {
        self.desk.commit()?;
        let (head, seen) = (self.desk.archive.journal.head(), self.read[system].1);
        if head == seen {
            return Ok(());
        }
        let seq = self.random.random_range(seen + 1..=head);
        let Some(entry) = self.desk.archive.journal.entry(seq)? else { return Ok(()) };
        let Body::Inline(body) = &entry.body else { return Ok(()) };
        if entry.origin.system().is_some_and(|name| &**name == NAMES[system]) || entry.is_retry() {
            return Ok(());
        }
        let change = Changes::new(body).next().unwrap();
        let held = self.desk.arbiter.held(SystemId(system as u8)).into_iter().map(|held| held.quarantined);
        let before =
            held.into_iter().find(|held| Changes::new(&held.change).next().unwrap().key_hash == change.key_hash);
        let mut writer = ChangeWriter::default();
        writer.push_change(&change);
        let record = Quarantined {
            system: NAMES[system].into(),
            schema: self.schema.clone(),
            held_seq: before.as_ref().map_or(seq, |before| before.held_seq.min(seq)),
            last_seq: seq,
            change: writer.take().into(),
            reason: "a parent is missing".into(),
            code: "23503".into(),
            attempts: 1,
            at: 0,
            folded: before.is_some(),
        };
        if before.is_some_and(|before| before.last_seq >= seq) {
            return Ok(());
        }
        let (reply, _) = oneshot::channel();
        self.desk.take(Message::Ask(Ask::Quarantine { records: vec![record], rivals: Vec::new(), reply }))
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step().unwrap();
        }
    }

    fn save(&mut self) {
        if let Some(write) = self.desk.checkpoint().unwrap() {
            write().unwrap();
        }
    }
}

/// A seed of its own each time, printed; `ANECHOIC_SEED` repeats one.
fn seeded() -> StdRng {
    let seed = std::env::var("ANECHOIC_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("ANECHOIC_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// A journal with held keys and a checkpoint in the middle of it.
fn written() -> Place {
    let place = Place::new();
    let mut feed = Feed::new(&place, seeded());
    let until_held = |feed: &mut Feed| {
        while feed.desk.arbiter.quarantine().next().is_none() {
            feed.step().unwrap();
        }
    };
    feed.steps(400);
    until_held(&mut feed);
    feed.save();
    feed.steps(200);
    // Where nothing is held and all has been seen, nobody needs the checkpoint.
    until_held(&mut feed);
    feed.desk.commit().unwrap();
    place
}

#[test]
fn from_a_checkpoint_a_start_knows_what_the_whole_journal_says() {
    let mut random = seeded();
    let place = Place::new();
    let (mut used, mut held) = (0, 0);
    for round in 0..40 {
        let mut feed = Feed::new(&place, StdRng::seed_from_u64(random.random()));
        let (before, behind) = (random.random_range(0..200), random.random_range(0..200));
        feed.steps(before);
        match random.random_range(0..4) {
            0 => {}
            1 => feed.desk.checkpoint_at_the_end().unwrap(),
            _ => feed.save(),
        }
        feed.steps(behind);
        // Killed: what was not synced is gone.
        drop(feed);

        let came = place.start(&place.checkpoint());
        let whole = place.whole();

        if let Some(what) = came.state.differs(&whole) {
            panic!("round {round}, checkpoint {:?}: {what}", came.covered);
        }
        used += usize::from(came.covered.is_some());
        held += usize::from(place.opened().2.quarantined.len() > 2);
    }
    println!("{used} starts from a checkpoint, {held} with held keys");
    assert!(used > 15 && held > 15, "{used} from a checkpoint, {held} with held keys");
}

#[test]
fn a_checkpoint_with_a_flipped_byte_or_without_its_end_is_done_without() {
    let place = written();
    let good = fs::read(place.checkpoint()).unwrap();
    let whole = place.whole();
    assert!(place.start(&place.checkpoint()).covered.is_some(), "it is good as it is");
    let flipped = (0..good.len()).step_by(good.len() / 60 + 1).map(|at| {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        bad
    });
    let cut = (0..good.len()).step_by(good.len() / 20 + 1).map(|len| good[..len].to_vec());
    let longer = std::iter::once([&good[..good.len() / 2], &good[..]].concat());

    for (n, bad) in flipped.chain(cut).chain(longer).enumerate() {
        fs::write(place.checkpoint(), &bad).unwrap();
        let came = place.start(&place.checkpoint());

        assert_eq!(came.covered, None, "bad file {n}");
        assert_eq!(came.state.differs(&whole), None, "bad file {n}");
        assert!(!place.checkpoint().exists(), "bad file {n} is tried once");
    }
}

#[test]
fn a_checkpoint_of_another_format_is_done_without() {
    let place = written();
    let mut bytes = fs::read(place.checkpoint()).unwrap();
    bytes[8] += 1;
    fs::write(place.checkpoint(), &bytes).unwrap();

    let came = place.start(&place.checkpoint());

    assert_eq!((came.covered, came.state.differs(&place.whole())), (None, None));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// The journal was put back from a copy, the checkpoint was not: it is ahead of what is there, and
/// not of it either where the journal has grown past it meanwhile.
#[test]
fn a_checkpoint_of_what_the_journal_has_lost_is_done_without() {
    let place = Place::new();
    let mut feed = Feed::new(&place, seeded());
    feed.steps(200);
    drop(feed);
    let older = TempDir::new().unwrap();
    copy(&place.dir.path().join("journal"), older.path());
    let mut feed = Feed::new(&place, seeded());
    feed.steps(100);
    feed.save();
    let head = feed.desk.archive.journal.head();
    drop(feed);
    let newer = fs::read(place.checkpoint()).unwrap();
    fs::remove_dir_all(place.dir.path().join("journal")).unwrap();
    copy(older.path(), &place.dir.path().join("journal"));

    let ahead = place.start(&place.checkpoint());
    let whole = place.whole();
    let mut feed = Feed::new(&place, StdRng::seed_from_u64(7));
    while feed.desk.archive.journal.head() < head + 20 {
        feed.steps(5);
    }
    drop(feed);
    fs::write(place.checkpoint(), newer).unwrap();
    let grown = place.start(&place.checkpoint());

    assert_eq!((ahead.covered, ahead.state.differs(&whole)), (None, None));
    assert_eq!((grown.covered, grown.state.differs(&place.whole())), (None, None));
}

/// What all had seen is not in it; a system that was put back has not seen that any more.
#[test]
fn a_checkpoint_from_before_a_system_went_back_is_done_without() {
    let place = Place::new();
    let mut feed = Feed::new(&place, seeded());
    feed.steps(300);
    let head = feed.desk.archive.journal.head();
    for system in 0..3 {
        feed.desk.passed(SystemId(system), Position::Memory { index: 10_000 }, head).unwrap();
    }
    feed.steps(1);
    feed.save();
    drop(feed);
    let back = |systems: &mut Vec<SystemDesk>| systems[1].at.base = 3;

    let came = place.start_with(&place.checkpoint(), back);
    let whole = place.start_with(&place.dir.path().join("none.checkpoint"), back);

    assert_eq!((came.covered, came.state.differs(&whole.state)), (None, None));
}

#[test]
fn a_checkpoint_of_other_bindings_is_done_without() {
    let mut place = written();
    place.topology.entities[0].members[2].fields = 0b111;

    let came = place.start(&place.checkpoint());

    assert_eq!((came.covered, came.state.differs(&place.whole())), (None, None));
}

/// Retention asks nobody for a checkpoint: what is gone from the journal, no start needs.
#[test]
fn a_journal_that_begins_behind_the_checkpoint_needs_none() {
    let place = Place::new();
    let mut feed = Feed::new(&place, seeded());
    feed.steps(100);
    feed.save();
    for _ in 0..20 {
        feed.steps(400);
        let held: Vec<Quarantined> = feed.desk.arbiter.quarantine().cloned().collect();
        feed.desk.commit().unwrap();
        let head = feed.desk.archive.journal.head();
        for (system, read) in feed.read.iter_mut().enumerate() {
            *read = (read.0 + 1, head);
            feed.desk.passed(SystemId(system as u8), Position::Memory { index: read.0 }, head).unwrap();
        }
        for held in &held {
            let records = feed.desk.arbiter.give_up(held);
            feed.desk.append(records).unwrap();
        }
        feed.desk.record_positions(true).unwrap();
        feed.desk.commit().unwrap();
        let needed = feed.desk.needed_from;
        feed.desk.writer.retain(needed, u64::MAX, now(), Duration::ZERO).unwrap();
    }
    let oldest = feed.desk.archive.journal.oldest();
    drop(feed);

    let came = place.start(&place.checkpoint());

    assert!(oldest > 200, "the journal has lost its beginning: {oldest}");
    assert_eq!((came.covered, came.state.differs(&place.whole())), (None, None));
}

/// A key that was held twice: what is held in the end was seen by all others in between.
#[test]
fn a_replay_keeps_what_a_key_is_held_for_in_the_end() {
    let place = Place::new();
    let mut feed = Feed::new(&place, seeded());
    let row = |key: i64| {
        let mut writer = ChangeWriter::default();
        let row = || [key, 1, 1].map(|value| Datum::Value(Value::Int(value))).into_iter();
        writer.push(&topology().schema, EntityId(0), Op::Update, Some(row()), Some(row()));
        Bytes::from(writer.take())
    };
    let write = |feed: &mut Feed, index: u64, rows: &[i64]| {
        let body: Vec<u8> = rows.iter().flat_map(|key| row(*key).to_vec()).collect();
        let captured = Captured {
            system: SystemId(0),
            position: Position::Memory { index },
            base: feed.read[0].1,
            txid: index.to_string().into(),
            committed_at: 0,
            hops: 0,
            schema: feed.schema.clone(),
            changes: rows.len() as u64,
            body: Body::Inline(body.into()),
            refused: Vec::new(),
        };
        feed.desk.captured(SystemId(0), captured, None).unwrap();
        feed.desk.commit().unwrap();
    };
    let hold = |feed: &mut Feed, seq: Seq, folded| {
        let (system, reason, code) = ("shop".into(), "a parent is missing".into(), "23503".into());
        let schema = feed.schema.clone();
        let (change, held_seq, last_seq) = (row(1), seq, seq);
        let record =
            Quarantined { system, schema, held_seq, last_seq, change, reason, code, attempts: 1, at: 0, folded };
        let (reply, _) = oneshot::channel();
        feed.desk.take(Message::Ask(Ask::Quarantine { records: vec![record], rivals: Vec::new(), reply })).unwrap();
        feed.desk.commit().unwrap();
    };
    let seen = |feed: &mut Feed, base: Seq| {
        for system in 0..3 {
            feed.desk.passed(SystemId(system), Position::Memory { index: 100 + base }, base).unwrap();
        }
        feed.desk.record_positions(true).unwrap();
        feed.desk.commit().unwrap();
    };
    write(&mut feed, 1, &[1]);
    hold(&mut feed, 1, true);
    seen(&mut feed, 2);
    assert_eq!(feed.desk.arbiter.quarantine().count(), 0, "its retry was seen");
    write(&mut feed, 2, &[1]);
    let many: Vec<i64> = (100..20_000).collect();
    write(&mut feed, 3, &many);
    hold(&mut feed, 3, false);
    seen(&mut feed, 4);
    let live = feed.desk.arbiter.state().unwrap();
    drop(feed);

    let whole = place.whole();

    assert_eq!(whole.differs(&live), None);
}

/// What lies on disk of an index is in its checkpoint, too.
#[test]
fn a_large_index_comes_back_from_its_checkpoint() {
    let place = Place::new();
    let mut feed = Feed::new(&place, seeded());
    for transaction in 0..12u64 {
        let mut writer = ChangeWriter::default();
        for key in 0..50_000 {
            let row = || [1000 + transaction as i64 * 40_000 + key, 1, 1].map(|v| Datum::Value(Value::Int(v)));
            writer.push(&feed.schema, EntityId(0), Op::Update, Some(row().into_iter()), Some(row().into_iter()));
        }
        let captured = Captured {
            system: SystemId(0),
            position: Position::Memory { index: 1 + transaction },
            base: 0,
            txid: "1".into(),
            committed_at: 0,
            hops: 0,
            schema: feed.schema.clone(),
            changes: 50_000,
            body: Body::Inline(writer.take().into()),
            refused: Vec::new(),
        };
        feed.desk.captured(SystemId(0), captured, None).unwrap();
        feed.desk.commit().unwrap();
    }
    feed.read[0].0 = 12;
    assert!(place.dir.path().join("index").exists(), "it has outgrown memory");
    let began = Instant::now();
    let tip = feed.desk.writer.tip().unwrap();
    let checkpoint = feed.desk.arbiter.checkpoint().unwrap();
    let copied = began.elapsed();
    // The index goes on while it is written.
    feed.steps(300);
    let slots = write(&place.checkpoint(), checkpoint, feed.desk.archive.journal.id(), &tip).unwrap();
    println!("{slots} slots: copied in {copied:?}, written after {:?}", began.elapsed());
    feed.desk.record_positions(true).unwrap();
    feed.desk.commit().unwrap();
    drop(feed);

    let began = Instant::now();
    let came = place.start(&place.checkpoint());
    let from_checkpoint = began.elapsed();
    let whole = place.whole();
    println!("start {from_checkpoint:?} from the checkpoint, {:?} from the journal", began.elapsed() - from_checkpoint);

    assert!(came.covered.is_some() && slots > 400_000, "{slots}");
    assert_eq!(came.state.differs(&whole), None);
}

/// Whoever looks sees what the journal takes, not what it took when it last dropped something.
#[test]
fn the_journals_size_is_told_with_each_tick() {
    let place = Place::new();
    let mut feed = Feed::new(&place, seeded());
    let told = |feed: &mut Feed| {
        feed.desk.take(Message::Tick).unwrap();
        feed.desk.status.journal_bytes.get()
    };
    let before = told(&mut feed);
    feed.steps(400);
    feed.desk.commit().unwrap();

    let after = told(&mut feed);
    assert!(after > before, "{before} ─▶ {after}");
    assert_eq!(after, feed.desk.archive.journal.bytes());
}
