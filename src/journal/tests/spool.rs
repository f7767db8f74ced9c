//! Spool files live exactly as long as the entry that refers to them.

use super::*;

fn spooled(journal: &Journal, chunks: &[Bytes]) -> SpoolRef {
    let mut writer = journal.spool().create().expect("create");
    chunks.iter().for_each(|chunk| writer.write(chunk).expect("write"));
    writer.finish().expect("finish")
}

fn chunks(journal: &Journal, spool: &SpoolRef) -> Vec<Bytes> {
    let mut reader = journal.spool_chunks(spool).expect("reader");
    std::iter::from_fn(|| reader.next().expect("readable")).collect()
}

fn refer(seq: Seq, spool: &SpoolRef) -> Record {
    Record::Entry(Entry { body: Body::Spooled(spool.clone()), ..entry(seq, &Bytes::new()) })
}

fn files(dir: &Path) -> Vec<String> {
    let dir = fs::read_dir(dir.join("journal/spool")).expect("dir").flatten();
    let mut names: Vec<String> = dir.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn chunks_come_back_in_order_and_whole() {
    let dir = TempDir::new().expect("dir");
    let (_writer, journal, _) = opened(dir.path());
    let wanted = [noise(1, 100_000), Bytes::from(vec![7; 1 << 20]), change(1, "x"), noise(2, 300)];

    let spool = spooled(&journal, &wanted);

    assert_eq!(spool.bytes, wanted.iter().map(|c| c.len() as u64).sum::<u64>());
    assert!(journal.spool().bytes() < 110_000);
    assert_eq!(chunks(&journal, &spool), wanted);
}

#[test]
fn what_no_entry_refers_to_is_gone_after_a_restart() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    let kept = spooled(&journal, &[noise(1, 1000)]);
    let orphan = spooled(&journal, &[noise(2, 1000)]);
    let discarded = spooled(&journal, &[noise(3, 1000)]);
    journal.spool().discard(&discarded).expect("discard");
    drop(journal.spool().create().expect("unfinished"));
    writer.append(&refer(1, &kept)).expect("append");
    writer.sync().expect("sync");
    let before = files(dir.path());
    drop((writer, journal));

    let (_writer, journal, _) = opened(dir.path());

    assert_eq!(before, [kept.id.to_string(), orphan.id.to_string()]);
    assert_eq!(files(dir.path()), [kept.id.to_string()]);
    assert_eq!(chunks(&journal, &kept), [noise(1, 1000)]);
}

fn prepared(xid: &str, index: u64, spool: &SpoolRef) -> Record {
    Record::Prepared(Prepared {
        system: "shop".into(),
        xid: xid.into(),
        position: Position::Memory { index },
        base: 3,
        schema: schema(),
        changes: 1,
        spool: Some(spool.clone()),
        refused: Vec::new(),
    })
}

/// Over restarts and segments, and not a moment longer.
#[test]
fn a_prepared_transaction_keeps_its_spool_until_it_is_decided() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    let committed = spooled(&journal, &[noise(1, 1000)]);
    let rolled_back = spooled(&journal, &[noise(2, 1000)]);
    let waiting = spooled(&journal, &[noise(3, 1000)]);
    for (index, (xid, spool)) in [("a", &committed), ("b", &rolled_back), ("c", &waiting)].into_iter().enumerate() {
        writer.append(&prepared(xid, index as u64 + 1, spool)).expect("append");
    }
    for seq in 1..=100 {
        writer.append(&large(seq, 3000)).expect("append");
    }
    writer.retain(100, u64::MAX, i64::MAX / 2, Duration::from_secs(1)).expect("retain");
    writer.sync().expect("sync");
    drop((writer, journal));

    let (mut writer, journal, recovered) = opened(dir.path());
    let xids = |prepared: &[Prepared]| prepared.iter().map(|p| p.xid.to_string()).collect::<Vec<_>>();
    assert_eq!(xids(&recovered.prepared), ["a", "b", "c"]);
    assert_eq!(recovered.positions["shop"].position, Position::Memory { index: 3 });
    assert_eq!(chunks(&journal, &waiting), [noise(3, 1000)]);
    let decided =
        Record::Decided { system: "shop".into(), xid: "b".into(), position: Position::Memory { index: 9 }, base: 4 };
    writer.append(&refer(101, &committed)).expect("append");
    writer.append(&decided).expect("append");
    writer.sync().expect("sync");
    drop((writer, journal));

    let (_writer, journal, recovered) = opened(dir.path());
    assert_eq!(xids(&recovered.prepared), ["c"]);
    assert_eq!(recovered.positions["shop"].position, Position::Memory { index: 9 });
    assert_eq!(files(dir.path()), [committed.id.to_string(), waiting.id.to_string()]);
    assert_eq!(chunks(&journal, &committed), [noise(1, 1000)]);
}

#[test]
fn a_spool_goes_with_the_segment_of_its_entry() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    let early = spooled(&journal, &[noise(1, 1000)]);
    writer.append(&refer(1, &early)).expect("append");
    for seq in 2..=100 {
        writer.append(&large(seq, 3000)).expect("append");
    }
    let late = spooled(&journal, &[noise(2, 1000)]);
    writer.append(&refer(101, &late)).expect("append");
    writer.sync().expect("sync");
    let mut reading = journal.spool_chunks(&early).expect("reader");

    writer.retain(100, u64::MAX, i64::MAX / 2, Duration::from_secs(1)).expect("retain");

    assert_eq!(files(dir.path()), [late.id.to_string()]);
    assert_eq!(reading.next().expect("still readable"), Some(noise(1, 1000)));
    assert_eq!(journal.spool_chunks(&early).expect_err("gone").recovery, Recovery::Stop);
    drop((writer, journal));
    let (_writer, journal, _) = opened(dir.path());
    assert_eq!(chunks(&journal, &late), [noise(2, 1000)]);
    assert!(spooled(&journal, &[]).id > late.id, "an id is not given twice while its entry lives");
}

#[test]
fn any_flipped_byte_or_cut_end_is_noticed() {
    let dir = TempDir::new().expect("dir");
    let (_writer, journal, _) = opened(dir.path());
    let spool = spooled(&journal, &[change(1, "one"), Bytes::from(vec![3; 500])]);
    let path = dir.path().join("journal/spool").join(spool.id.to_string());
    let bytes = fs::read(&path).expect("read");
    let read = || {
        let mut reader = journal.spool_chunks(&spool)?;
        while reader.next()?.is_some() {}
        Ok::<(), Error>(())
    };

    for at in 0..bytes.len() {
        flip(&path, at);
        assert_eq!(read().expect_err("noticed").recovery, Recovery::Stop, "flip at {at}");
        fs::write(&path, &bytes[..at]).expect("write");
        assert_eq!(read().expect_err("noticed").recovery, Recovery::Stop, "cut at {at}");
        fs::write(&path, &bytes).expect("write");
    }
    read().expect("mended");
}

#[test]
fn a_lost_spool_file_is_refused_at_the_start() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    let spool = spooled(&journal, &[noise(1, 1000)]);
    writer.append(&refer(1, &spool)).expect("append");
    writer.sync().expect("sync");
    drop((writer, journal));
    fs::remove_file(dir.path().join("journal/spool").join(spool.id.to_string())).expect("remove");

    let error = open(&options(dir.path())).expect_err("refused");

    assert!(error.message.contains("spool file is gone"), "{error}");
}

#[test]
fn a_chunk_for_which_there_was_no_space_is_tried_again() {
    let dir = TempDir::new().expect("dir");
    let (_writer, journal, _) = opened(dir.path());
    let mut writer = journal.spool().create().expect("create");
    writer.write(&noise(1, 1000)).expect("write");

    fault::inject(Fault::Write, libc::ENOSPC);
    let error = writer.write(&noise(2, 1000)).expect_err("no space");
    writer.write(&noise(2, 1000)).expect("write");
    let spool = writer.finish().expect("finish");

    assert_eq!(error.recovery, Recovery::Retry);
    assert_eq!(chunks(&journal, &spool), [noise(1, 1000), noise(2, 1000)]);
}
