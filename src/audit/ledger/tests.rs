use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::change::{Address, Body, ChangeWriter, Op, Origin};
use crate::journal::{Options, Writer, open};
use crate::schema::{EntityId, EntitySchema, Field, Schema};
use crate::value::{Datum, Kind, Value};

const DAY: Micros = MICROS_PER_DAY;
const BEGIN: Micros = 20_000 * DAY + 7;
const KEPT: Duration = Duration::from_secs(3 * 86_400);

fn schema() -> Arc<Schema> {
    let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
    Schema::new(vec![EntitySchema::new("item", vec![field("id"), field("n")], 1)])
}

struct Book {
    dir: tempfile::TempDir,
    writer: Writer,
    journal: Journal,
}

impl Book {
    fn new() -> Book {
        let dir = tempfile::tempdir().unwrap();
        let (writer, journal, _) = open(&Options::new(dir.path().join("journal"), 1 << 30)).unwrap();
        Book { dir, writer, journal }
    }

    fn write(&mut self, entries: u64) {
        for _ in 0..entries {
            let seq = self.writer.head() + 1;
            let mut body = ChangeWriter::default();
            for n in 0..3 {
                let row = [seq as i64 * 10 + n, n].map(|n| Datum::Value(Value::Int(n)));
                let none = None::<std::iter::Empty<Datum<'_>>>;
                body.push(&schema(), EntityId(0), Op::Insert, none, Some(row.into_iter()));
            }
            let entry = Entry {
                seq,
                origin: Origin::System("crm".into()),
                position: None,
                base: 0,
                txid: seq.to_string().into(),
                committed_at: BEGIN,
                hops: 0,
                to: Address::Others,
                schema: schema(),
                changes: 3,
                body: Body::Inline(body.take().into()),
                decisions: Vec::new(),
                replacements: Bytes::new(),
            };
            self.writer.append(&Record::Entry(entry)).unwrap();
        }
        self.writer.sync().unwrap();
    }

    fn audit(&self) -> PathBuf {
        self.dir.path().join("audit")
    }

    fn ledger(&self) -> Ledger {
        Ledger::open(&self.audit(), KEPT, "hq", &self.journal).unwrap()
    }

    fn follow(&self, now: Micros) {
        self.ledger().follow(now, &|| false).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let files = files(&self.audit()).unwrap();
        files.iter().map(|(.., path)| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    /// Entry and change of every operation, in the order of the files.
    fn operations(&self) -> Vec<(Seq, u64)> {
        let files = files(&self.audit()).unwrap();
        let lines = files.iter().flat_map(|(.., path)| lines_of(path).unwrap());
        let operation = |line: String| serde_json::from_str::<Operation>(&split_hash(&line)?.0).ok();
        lines.filter_map(operation).map(|operation| (operation.seq, operation.index)).collect()
    }

    #[track_caller]
    fn assert_whole(&self) {
        let expected: Vec<(Seq, u64)> =
            (1..=self.journal.head()).flat_map(|seq| (0..3).map(move |index| (seq, index))).collect();
        assert_eq!(self.operations(), expected);
        let checked = check(&self.audit()).unwrap();
        assert!(checked.iter().all(|file| file.fault.is_none()), "{checked:#?}");
        assert_eq!(checked.iter().map(|file| file.operations).sum::<u64>(), expected.len() as u64);
    }
}

#[test]
fn a_file_a_day_each_tied_to_the_one_before_and_expired_in_time() {
    let mut book = Book::new();
    for n in 0..3 {
        book.write(5);
        book.follow(BEGIN + n * DAY);
    }
    assert_eq!(book.names(), ["audit-2024-10-04.jsonl.gz", "audit-2024-10-05.jsonl.gz", "audit-2024-10-06.jsonl"]);
    book.assert_whole();
    for (.., path) in files(&book.audit()).unwrap() {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    book.write(1);
    book.follow(BEGIN + 5 * DAY);
    assert_eq!(book.names(), ["audit-2024-10-06.jsonl.gz", "audit-2024-10-09.jsonl"]);
    assert!(check(&book.audit()).unwrap().iter().all(|file| file.fault.is_none()));
}

#[test]
fn after_a_kill_at_any_byte_every_operation_is_in_it_once() {
    let mut book = Book::new();
    book.write(3);
    book.follow(BEGIN);
    book.write(3);
    book.follow(BEGIN + DAY);
    let path = files(&book.audit()).unwrap().pop().unwrap().2;
    let whole = fs::read(&path).unwrap();
    for end in (0..whole.len()).step_by(7).chain([whole.len()]) {
        fs::write(&path, &whole[..end]).unwrap();

        book.follow(BEGIN + DAY);

        book.assert_whole();
        assert_eq!(fs::read(&path).unwrap(), whole, "cut at {end}");
    }
}

/// Between each two steps of closing a file.
#[test]
fn after_a_kill_while_a_file_is_closed_it_is_closed_whole() {
    let mut book = Book::new();
    book.write(3);
    book.follow(BEGIN);
    let path = files(&book.audit()).unwrap().pop().unwrap().2;
    let open = fs::read(&path).unwrap();
    book.follow(BEGIN + DAY);
    let closed = files(&book.audit()).unwrap().remove(0).2;
    let ended = lines_of(&closed).unwrap().join("\n") + "\n";
    let zipped = fs::read(&closed).unwrap();
    for (text, gz) in [(open.as_slice(), false), (ended.as_bytes(), false), (ended.as_bytes(), true)] {
        files(&book.audit()).unwrap().into_iter().for_each(|(.., path)| fs::remove_file(path).unwrap());
        fs::write(&path, text).unwrap();
        if gz {
            fs::write(&closed, &zipped).unwrap();
        }

        book.follow(BEGIN + DAY);
        book.follow(BEGIN + DAY);

        book.assert_whole();
        assert_eq!(fs::read(&closed).unwrap(), zipped);
    }
}

#[test]
fn one_flipped_byte_anywhere_is_found_and_so_is_what_was_taken_out() {
    let mut book = Book::new();
    for n in 0..3 {
        book.write(4);
        book.follow(BEGIN + n * DAY);
    }
    let faults = || check(&book.audit()).unwrap().into_iter().filter_map(|file| file.fault).collect::<Vec<_>>();
    let paths: Vec<PathBuf> = files(&book.audit()).unwrap().into_iter().map(|(.., path)| path).collect();
    for path in &paths {
        let whole = fs::read(path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(path, &bytes).unwrap();
            assert!(!faults().is_empty(), "byte {at} of {}", path.display());
        }
        fs::write(path, &whole).unwrap();
    }
    assert_eq!(faults(), Vec::<String>::new());

    // a line of the open file, then a whole closed one
    let open = fs::read_to_string(&paths[2]).unwrap();
    let without: Vec<&str> = open.lines().enumerate().filter(|(at, _)| *at != 3).map(|(_, line)| line).collect();
    fs::write(&paths[2], without.join("\n") + "\n").unwrap();
    assert!(faults()[0].contains("something is missing before it"), "{:?}", faults());
    fs::write(&paths[2], open).unwrap();
    fs::remove_file(&paths[1]).unwrap();
    assert_eq!(faults(), ["audit-2024-10-05.jsonl.gz is missing before it"]);
}

#[test]
fn another_journal_counts_anew_in_a_file_of_its_own() {
    let (mut old, mut new) = (Book::new(), Book::new());
    old.write(4);
    old.follow(BEGIN);
    new.write(2);

    Ledger::open(&old.audit(), KEPT, "hq", &new.journal).unwrap().follow(BEGIN, &|| false).unwrap();

    assert_eq!(old.names(), ["audit-2024-10-04.jsonl.gz", "audit-2024-10-04.1.jsonl"]);
    assert_eq!(old.operations().len(), 4 * 3 + 2 * 3);
    assert!(check(&old.audit()).unwrap().iter().all(|file| file.fault.is_none()));
}
