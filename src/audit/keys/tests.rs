use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::change::{Address, ChangeWriter, Entry, Op, Origin, Quarantined};
use crate::journal::{Options, Writer, open};
use crate::schema::{EntityId, EntitySchema, Field, Schema};
use crate::value::{Datum, Kind, Value};

const RUN: usize = 64;

fn schema() -> Arc<Schema> {
    let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
    Schema::new(vec![EntitySchema::new("item", vec![field("id"), field("n")], 1)])
}

fn changes(ids: &[i64]) -> Bytes {
    let mut writer = ChangeWriter::default();
    for id in ids {
        let row = [*id, 1].map(|n| Datum::Value(Value::Int(n)));
        writer.push(&schema(), EntityId(0), Op::Insert, None::<std::iter::Empty<Datum<'_>>>, Some(row.into_iter()));
    }
    writer.take().into()
}

fn hash(id: i64) -> u128 {
    Changes::new(&changes(&[id])).next().unwrap().key_hash
}

struct Book {
    dir: tempfile::TempDir,
    writer: Option<Writer>,
    journal: Journal,
    /// What a look-up has to find.
    expected: BTreeMap<i64, Vec<Seq>>,
}

impl Book {
    fn new() -> Book {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { segment_bytes: 1 << 20, ..Options::new(dir.path().join("journal"), 1 << 30) };
        let (writer, journal, _) = open(&options).unwrap();
        Book { dir, writer: Some(writer), journal, expected: BTreeMap::new() }
    }

    fn write(&mut self, ids: &[i64], spooled: bool) {
        let writer = self.writer.as_mut().unwrap();
        let (seq, body) = (writer.head() + 1, changes(ids));
        let body = match spooled {
            false => Body::Inline(body),
            true => {
                let mut out = self.journal.spool().create().unwrap();
                out.write(&body).unwrap();
                Body::Spooled(out.finish().unwrap())
            }
        };
        let entry = Entry {
            seq,
            origin: Origin::System("crm".into()),
            position: None,
            base: 0,
            txid: seq.to_string().into(),
            committed_at: 0,
            hops: 0,
            to: Address::Others,
            schema: schema(),
            changes: ids.len() as u64,
            body,
            decisions: Vec::new(),
            replacements: Bytes::new(),
        };
        writer.append(&Record::Entry(entry)).unwrap();
        for id in ids {
            let seqs = self.expected.entry(*id).or_default();
            seqs.push(seq);
            seqs.dedup();
        }
    }

    fn sync(&mut self) {
        self.writer.as_mut().unwrap().sync().unwrap();
    }

    fn index(&self) -> KeyIndex {
        KeyIndex::open_with(self.dir.path(), &self.journal, RUN)
    }

    fn runs(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("keys")).into_iter().flatten();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// 40 entries of five keys each, one of 400 keys in the spool among them.
    fn filled() -> Book {
        let mut book = Book::new();
        for n in 0..40 {
            book.write(&[n, n + 1, 7, 7, 1000 + n], false);
            if n == 20 {
                book.write(&(5000..5400).collect::<Vec<_>>(), true);
            }
        }
        book.sync();
        book
    }
}

#[track_caller]
fn assert_finds_all(index: &KeyIndex, book: &Book) {
    for (id, seqs) in &book.expected {
        let (hits, complete) = index.find(hash(*id), usize::MAX);
        let found: Vec<Seq> = hits.iter().rev().map(|hit| hit.seq).collect();
        assert_eq!(&found, seqs, "key {id}");
        assert_eq!(complete, book.journal.head());
        for Hit { seq, place } in hits {
            let mut reader = match place {
                Some(place) => book.journal.reader_at(place, seq).unwrap(),
                None => book.journal.reader(seq).unwrap(),
            };
            let entry = std::iter::from_fn(|| reader.next().unwrap()).find_map(|record| match record {
                Record::Entry(entry) => Some(entry),
                _ => None,
            });
            assert_eq!(entry.unwrap().seq, seq);
        }
    }
    assert_eq!(index.find(hash(99_999), 9).0, []);
}

#[test]
fn every_entry_of_a_key_is_found_in_runs_and_tail_and_after_a_restart() {
    let mut book = Book::filled();
    let index = book.index();
    index.follow(&|| false).unwrap();
    assert!(book.runs().len() == 8, "{:?}", book.runs());
    assert_finds_all(&index, &book);
    assert_eq!(index.find(hash(7), 3).0.iter().map(|hit| hit.seq).collect::<Vec<_>>(), [41, 40, 39]);

    drop(index); // the tail is made again from the journal
    book.write(&[7, 8], false);
    book.sync();
    let index = book.index();
    assert!(index.complete() > 20 && index.complete() < book.journal.head());
    index.follow(&|| false).unwrap();
    assert_finds_all(&index, &book);
}

#[test]
fn a_run_that_is_damaged_or_missing_is_made_again_and_until_then_its_entries_are_read() {
    for byte in [3, 30, 9000, 16_500 + 64] {
        let book = Book::filled();
        let index = book.index();
        index.follow(&|| false).unwrap();
        let path = book.runs().into_iter().min().unwrap();
        let mut bytes = fs::read(&path).unwrap();
        let at = byte.min(bytes.len() - 4);
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();

        // one that was open finds it by what it knows, or reads every entry of it
        for (id, seqs) in &book.expected {
            let found: Vec<Seq> = index.find(hash(*id), usize::MAX).0.iter().map(|hit| hit.seq).collect();
            assert!(seqs.iter().all(|seq| found.contains(seq)), "byte {byte}, key {id}");
        }

        let index = book.index();
        index.follow(&|| false).unwrap();
        assert_finds_all(&index, &book);
    }
}

/// Small transactions that come one by one are a frame each.
#[test]
fn a_run_has_far_fewer_places_than_the_journal_has_frames() {
    let mut book = Book::new();
    for id in 0..1000 {
        book.write(&[id % 300], false);
        book.sync();
    }
    let index = book.index();
    index.follow(&|| false).unwrap();

    let path = book.runs().into_iter().min().unwrap();
    let bare = 64 + 2048 * 8 + RUN as u64 * 8;
    let places = fs::metadata(path).unwrap().len() - bare;
    assert!((32..=64).contains(&places), "{places} bytes of places, for {RUN} entries");
    assert_finds_all(&index, &book);
}

#[test]
fn a_run_of_another_journal_is_no_run_of_this_one() {
    let (old, mut new) = (Book::filled(), Book::new());
    old.index().follow(&|| false).unwrap();
    fs::create_dir(new.dir.path().join("keys")).unwrap();
    for path in old.runs() {
        fs::copy(&path, new.dir.path().join("keys").join(path.file_name().unwrap())).unwrap();
    }
    new.write(&[1], false);
    new.sync();

    let index = new.index();
    index.follow(&|| false).unwrap();

    assert_finds_all(&index, &new);
}

#[test]
fn what_was_set_aside_is_found_with_the_entry_that_follows_it() {
    let mut book = Book::new();
    book.write(&[1], false);
    let held = Quarantined {
        system: "shop".into(),
        schema: schema(),
        held_seq: 1,
        last_seq: 1,
        change: changes(&[3]),
        reason: "refused".into(),
        code: "1".into(),
        attempts: 1,
        at: 0,
        folded: false,
    };
    book.writer.as_mut().unwrap().append(&Record::Quarantine(held)).unwrap();
    book.sync();

    let index = book.index();
    index.follow(&|| false).unwrap();

    assert_eq!(index.find(hash(3), 9), (vec![Hit { seq: 2, place: None }], 1));
}
