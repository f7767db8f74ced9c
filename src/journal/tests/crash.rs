//! Crashes cut what nobody was told of, and nothing else; damage is named.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::*;

/// Three groups that were acknowledged and one whose sync the kill came before. Returns the
/// directory's files and the place of the last group.
fn killed(last: &[Record]) -> (TempDir, PathBuf, usize, Vec<u8>) {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    for seq in 1..=3 {
        writer.append(&small(seq)).expect("append");
        writer.sync().expect("sync");
    }
    let start = written(&journal);
    for record in last {
        writer.append(record).expect("append");
    }
    writer.sync().expect("sync");
    let end = written(&journal);
    writer.abandon();
    let path = segments(dir.path()).pop().expect("one");
    let bytes = fs::read(&path).expect("read")[..end].to_vec();
    (dir, path, start, bytes)
}

/// The file as the crash left it; padded, as segments are allocated beforehand.
fn leave(path: &Path, bytes: &[u8]) {
    let mut file = bytes.to_vec();
    file.resize(64 << 10, 0);
    fs::write(path, file).expect("write");
}

/// Opens, expects entries 1–3 and perhaps 4 and 5, and that the journal goes on from there.
fn recovers(dir: &Path, what: &str) -> Seq {
    let (mut writer, journal, recovered) = opened(dir);
    let head = recovered.head;
    assert!((3..=5).contains(&head), "{what}: head {head}");
    assert_eq!(seqs(&all(&journal)), (1..=head).collect::<Vec<_>>(), "{what}");
    writer.append(&small(head + 1)).expect("append");
    writer.sync().expect("sync");
    writer.abandon();
    drop(journal);

    let (_writer, journal, recovered) = opened(dir);
    assert_eq!(recovered.head, head + 1, "{what}: nothing of the cut end comes back");
    assert_eq!(recovered.torn, None, "{what}");
    assert_eq!(seqs(&all(&journal)), (1..=head + 1).collect::<Vec<_>>(), "{what}");
    head
}

#[test]
fn a_write_torn_at_any_byte_is_cut() {
    let (dir, path, start, bytes) = killed(&[small(4), small(5)]);

    for len in start..=bytes.len() {
        leave(&path, &bytes[..len]);
        recovers(dir.path(), &format!("torn at {len}"));
    }
}

#[test]
fn a_file_shortened_at_any_byte_is_cut() {
    let (dir, path, start, bytes) = killed(&[small(4), small(5)]);

    for len in start..=bytes.len() {
        fs::write(&path, &bytes[..len]).expect("write");
        let (mut writer, journal, recovered) = opened(dir.path());
        let head = recovered.head;
        assert!((3..=5).contains(&head), "shortened to {len}: head {head}");
        writer.append(&large(head + 1, 2000)).expect("append");
        writer.sync().expect("sync");
        assert_eq!(seqs(&all(&journal)), (1..=head + 1).collect::<Vec<_>>());
        drop((writer, journal));
        for path in segments(dir.path()) {
            fs::remove_file(path).expect("remove");
        }
    }
}

/// Sectors reach the disk in any order: the last group's second frame did, the first did not.
#[test]
fn the_rest_of_a_torn_group_does_not_come_back() {
    let (dir, path, start, mut bytes) = killed(&[large(4, 9000), Record::Entry(other_schema(5))]);
    bytes[start + 100] ^= 1;
    leave(&path, &bytes);

    let head = recovers(dir.path(), "first frame of the group torn");

    assert_eq!(head, 3);
}

fn other_schema(seq: Seq) -> Entry {
    Entry { schema: schema_with("town"), ..entry(seq, &noise(seq, 900)) }
}

#[test]
fn any_flipped_byte_before_the_last_group_is_refused_by_name() {
    let (dir, path, start, bytes) = killed(&[small(4)]);
    leave(&path, &bytes);
    let checkpoint_end = 64 + 56;
    let third = bytes[..start].windows(4).rposition(|w| w == 0x6d72_6661u32.to_le_bytes()).expect("frame") - 4;

    for at in (64..checkpoint_end).chain(third..start) {
        // The padding of a frame says nothing and is covered by nothing.
        let padding = bytes[at] == 0 && is_padding(&bytes[..start], at);
        flip(&path, at);
        match open(&options(dir.path())) {
            Err(error) => {
                assert_eq!(error.recovery, Recovery::Stop);
                assert!(error.message.contains(&format!("{}", path.display())), "{error}");
                if at >= third {
                    assert!(error.message.contains("entry 3"), "{error}");
                }
            }
            Ok((writer, ..)) => {
                assert!(padding, "a flip at {at} was not noticed");
                writer.abandon();
            }
        }
        leave(&path, &bytes);
    }
    recovers(dir.path(), "mended");
}

/// Whether `at` lies behind the payload of its frame.
fn is_padding(bytes: &[u8], at: usize) -> bool {
    let mut offset = 64;
    loop {
        let len = u32::from_le_bytes(bytes[offset + 8..offset + 12].try_into().expect("four")) as usize;
        let next = offset + (56 + len).next_multiple_of(8);
        if at < next {
            return at >= offset + 56 + len;
        }
        offset = next;
    }
}

#[test]
fn the_last_frame_is_covered_once_the_agent_ended_in_order() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    writer.append(&large(1, 500)).expect("append");
    writer.sync().expect("sync");
    let last = written(&journal) - 40;
    drop((writer, journal));
    flip(&segments(dir.path())[0], last);

    let error = open(&options(dir.path())).expect_err("refused");

    assert!(error.message.contains("entry 1"), "{error}");
}

#[test]
fn a_flipped_byte_in_a_sealed_segment_is_reported_when_it_is_read() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    for seq in 1..=60 {
        writer.append(&large(seq, 3000)).expect("append");
        writer.sync().expect("sync");
    }
    drop((writer, journal));
    let path = segments(dir.path())[1].clone();
    let bytes = fs::read(&path).expect("read");

    for at in [70, 200, 5000, 20_000, 40_000] {
        flip(&path, at);
        let (writer, journal, _) = opened(dir.path());
        let mut reader = journal.reader(1).expect("reader");
        let error = std::iter::repeat_with(|| reader.next()).find_map(Result::err).expect("noticed");
        let named = format!("entry {} ", reader.seq() + 1);
        assert!(error.message.contains(&named) && error.message.contains("offset"), "{error}");
        assert_eq!(error.recovery, Recovery::Stop);
        drop((writer, journal, reader));
        fs::write(&path, &bytes).expect("write");
    }
}

#[test]
fn a_missing_or_foreign_segment_is_refused() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    for seq in 1..=60 {
        writer.append(&large(seq, 3000)).expect("append");
    }
    writer.sync().expect("sync");
    drop((writer, journal));
    let path = segments(dir.path())[1].clone();
    let bytes = fs::read(&path).expect("read");

    fs::remove_file(&path).expect("remove");
    assert!(open(&options(dir.path())).expect_err("a gap").message.contains("segment 2 is missing"));
    fs::write(&path, &bytes[..30]).expect("write");
    assert!(open(&options(dir.path())).expect_err("short").message.contains("cut short"));
    let mut newer = bytes;
    newer[12] = 99;
    let crc = crc32fast::hash(&newer[12..64]).to_le_bytes();
    newer[8..12].copy_from_slice(&crc);
    fs::write(&path, newer).expect("write");
    assert!(open(&options(dir.path())).expect_err("format").message.contains("format 99"));
}

#[test]
fn a_full_disk_is_retried_and_nothing_half_written_shows() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    writer.append(&small(1)).expect("append");
    writer.sync().expect("sync");

    writer.append(&small(2)).expect("buffered");
    fault::inject(Fault::Write, libc::ENOSPC);
    let error = writer.sync().expect_err("no space");
    let seen = seqs(&all(&journal));
    writer.append(&small(3)).expect("append");
    let durable = writer.sync().expect("space is back");

    assert_eq!(error.recovery, Recovery::Retry);
    assert!(error.full().contains("agent.data_dir"), "{}", error.full());
    assert_eq!((seen, durable), (vec![1], 3));
    assert_eq!(seqs(&all(&journal)), [1, 2, 3]);
}

#[test]
fn no_space_for_a_new_segment_is_retried() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    let mut refused = 0;
    for seq in 1..=100 {
        if seq % 5 == 0 {
            fault::inject(Fault::Allocate, libc::ENOSPC);
        }
        if seq % 7 == 0 {
            fault::inject(Fault::Write, libc::ENOSPC);
        }
        while let Err(error) = writer.append(&large(seq, 3000)) {
            assert_eq!(error.recovery, Recovery::Retry);
            refused += 1;
        }
        while let Err(error) = writer.sync() {
            assert_eq!(error.recovery, Recovery::Retry);
        }
    }
    fault::take(Fault::Allocate);
    fault::take(Fault::Write);
    assert!(refused > 0);
    assert_eq!(seqs(&all(&journal)), (1..=100).collect::<Vec<_>>());
    writer.abandon();
    drop(journal);

    let (_writer, journal, _) = opened(dir.path());

    assert_eq!(seqs(&all(&journal)), (1..=100).collect::<Vec<_>>());
}

#[test]
fn a_failed_sync_closes_the_writer_for_good() {
    let dir = TempDir::new().expect("dir");
    let (mut writer, journal, _) = opened(dir.path());
    writer.append(&small(1)).expect("append");

    fault::inject(Fault::Sync, libc::EIO);
    let first = writer.sync().expect_err("failed");
    let second = writer.sync().expect_err("still");

    assert_eq!((first.recovery, second.recovery), (Recovery::Stop, Recovery::Stop));
    assert_eq!(journal.head(), 0);
    assert_eq!(all(&journal), []);
}

/// Not a test by itself: the process that the next test kills.
#[test]
fn writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os("ANECHOIC_TEST_JOURNAL") else { return };
    let (mut writer, _journal, recovered) = opened(Path::new(&dir));
    let mut seq = recovered.head;
    loop {
        for _ in 0..seq % 4 + 1 {
            seq += 1;
            writer.append(&large(seq, (seq as usize * 7919) % 30_000)).expect("append");
        }
        writer.sync().expect("sync");
        println!("\nacknowledged {seq}");
    }
}

#[test]
fn a_kill_loses_nothing_that_was_acknowledged() {
    let dir = TempDir::new().expect("dir");
    for round in 1..=6 {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "journal::tests::crash::writes_until_it_is_killed", "--nocapture"])
            .env("ANECHOIC_TEST_JOURNAL", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("child");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut acknowledged = 0;
        let mut note = |line: std::io::Result<String>| {
            let seq = line.ok().and_then(|line| line.strip_prefix("acknowledged ")?.parse::<Seq>().ok());
            acknowledged = seq.unwrap_or(acknowledged);
            acknowledged
        };
        while note(lines.next().expect("the child lives")) == 0 {}
        std::thread::sleep(Duration::from_millis(7 * round));
        child.kill().expect("kill");
        for line in lines {
            note(line);
        }
        child.wait().expect("wait");

        let (writer, journal, recovered) = opened(dir.path());
        assert!(recovered.head >= acknowledged, "{} < {acknowledged}", recovered.head);
        let read = all(&journal);
        assert_eq!(seqs(&read), (1..=recovered.head).collect::<Vec<_>>());
        let whole = |record: &Record| {
            matches!(record, Record::Entry(e)
            if e.body == Body::Inline(noise(e.seq, (e.seq as usize * 7919) % 30_000)))
        };
        assert!(read.iter().all(whole));
        writer.abandon();
    }
}
