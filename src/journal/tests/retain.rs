//! Retention drops whole segments, and none that somebody needs.

use super::*;

const DAY: Duration = Duration::from_secs(86_400);
const FAR: Micros = i64::MAX / 2;

fn filled(dir: &Path, entries: Seq) -> (Writer, Journal) {
    let (mut writer, journal, _) = opened(dir);
    writer.append(&position("quiet", 3, 2)).expect("append");
    writer.append(&Record::Quarantine(held("shop", 1, 1))).expect("append");
    for seq in 1..=entries {
        writer.append(&large(seq, 3000)).expect("append");
        writer.sync().expect("sync");
    }
    (writer, journal)
}

#[test]
fn what_is_old_and_needed_by_nobody_goes() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal) = filled(dir.path(), 200);
    let before = journal.bytes();

    let young = writer.retain(200, u64::MAX, now(), DAY).expect("retain");
    let needed = writer.retain(1, u64::MAX, FAR, DAY).expect("retain");
    let some = writer.retain(100, u64::MAX, FAR, DAY).expect("retain");
    let oldest = journal.oldest();
    let kept = all(&journal);
    let error = journal.reader(1).expect_err("gone");
    drop((writer, journal));
    let (_writer, journal, recovered) = opened(dir.path());

    assert_eq!((young, needed), (Retained::default(), Retained::default()));
    assert!(some.freed > 200_000 && some.freed < before && !some.full, "{some:?}");
    assert!(oldest > 50 && oldest <= 100, "{oldest}");
    assert_eq!(seqs(&kept), (oldest..=200).collect::<Vec<_>>());
    assert!(error.message.contains(&format!("begins at {oldest}")), "{error}");
    assert_eq!((journal.oldest(), recovered.head), (oldest, 200));
    assert_eq!(journal.entry(1).expect("entry"), None);
    assert_eq!((recovered.positions["quiet"].base, recovered.quarantined.len()), (2, 1));
}

#[test]
fn a_full_journal_says_so_when_nothing_may_go() {
    let dir = TempDir::new().expect("dir");
    let tight = Options { max_size: 300_000, ..options(dir.path()) };
    let (mut writer, journal, _) = open(&tight).expect("open");
    for seq in 1..=200 {
        writer.append(&large(seq, 3000)).expect("append");
    }
    writer.sync().expect("sync");

    let stuck = writer.retain(1, u64::MAX, now(), DAY).expect("retain");
    let free = writer.retain(201, u64::MAX, now(), DAY).expect("retain");

    assert_eq!(stuck, Retained { freed: 0, full: true });
    assert!(!free.full && free.freed > 200_000);
    assert!(journal.bytes() <= 300_000);
    assert!(journal.oldest() > 100 && journal.oldest() < 200, "no more goes than has to: {}", journal.oldest());
}

#[test]
fn a_reader_in_a_dropped_segment_reads_it_to_its_end() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal) = filled(dir.path(), 100);
    let mut reader = journal.reader(1).expect("reader");
    reader.next().expect("readable");

    writer.retain(101, u64::MAX, FAR, DAY).expect("retain");
    for seq in 101..=300 {
        writer.append(&large(seq, 3000)).expect("append");
    }
    writer.sync().expect("sync");

    let mut last = 0;
    let error = loop {
        match reader.next() {
            Ok(Some(Record::Entry(entry))) => {
                assert_eq!(entry, entry_of(&large(last + 1, 3000)));
                last = entry.seq;
            }
            Ok(Some(_)) => {}
            Ok(None) => panic!("the next segment is gone, and that must be said"),
            Err(error) => break error,
        }
    };
    assert!(last > 10, "{last}");
    assert!(error.message.contains(&format!("no longer holds entry {}", last + 1)), "{error}");
}

fn entry_of(record: &Record) -> Entry {
    let Record::Entry(entry) = record else { panic!("an entry") };
    entry.clone()
}

/// Dropped files are written again: nothing of their earlier life may be taken for a record.
#[test]
fn used_files_do_not_speak_of_their_past() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal) = filled(dir.path(), 100);
    let mut next = 101;
    for round in 0..12 {
        writer.retain(next, u64::MAX, FAR, DAY).expect("retain");
        for _ in 0..30 {
            writer.append(&large(next, 2500 + round * 100)).expect("append");
            next += 1;
        }
        writer.sync().expect("sync");
    }
    let spares = fs::read_dir(dir.path().join("journal")).expect("dir").flatten();
    let spares = spares.filter(|e| e.file_name().to_string_lossy().starts_with("spare-")).count();
    let oldest = journal.oldest();
    writer.abandon();
    drop(journal);

    let (_writer, journal, recovered) = opened(dir.path());

    assert!(spares <= 2, "{spares}");
    assert_eq!((recovered.head, recovered.torn), (next - 1, None));
    assert_eq!(seqs(&all(&journal)), (oldest..next).collect::<Vec<_>>());
}
