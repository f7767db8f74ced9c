//! When each system got what: what the journal itself does not say.
//!
//! ```text
//! data_dir/applied/SYSTEM.JOURNAL/000000001042.at     pairs (seq, time): everything up to seq was there by then
//! ```
//!
//! Noted by looking at how far a system is, ten times a second while it moves. Times that nobody saw,
//! because the agent was not there to note them, are 0.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::change::Micros;
use crate::position::Seq;

const PAIR: usize = 16;
/// Of one file; a quarter of a million looks.
const FILE_MAX: u64 = 4 << 20;

#[derive(Debug)]
pub struct AppliedLog {
    dir: PathBuf,
    file: Option<(File, u64)>,
    last: Seq,
}

impl AppliedLog {
    pub fn open(data_dir: &Path, journal: u128, system: &str) -> Self {
        let dir = directory(data_dir, journal, system);
        let last = files(&dir).last().and_then(|path| Pairs::open(path)?.last()).map_or(0, |(seq, _)| seq);
        AppliedLog { dir, file: None, last }
    }

    /// Up to which entry something is noted.
    pub fn last(&self) -> Seq {
        self.last
    }

    /// Everything up to `seq` is there since `at`; 0: nobody saw since when.
    pub fn note(&mut self, seq: Seq, at: Micros) -> std::io::Result<()> {
        if seq <= self.last {
            return Ok(());
        }
        if self.file.as_ref().is_none_or(|(_, size)| *size >= FILE_MAX) {
            fs::create_dir_all(&self.dir)?;
            let path = self.dir.join(format!("{seq:012}.at"));
            self.file = Some((File::options().create(true).append(true).mode(0o600).open(path)?, 0));
        }
        let (file, size) = self.file.as_mut().expect("just opened");
        let mut pair = [0; PAIR];
        pair[..8].copy_from_slice(&seq.to_le_bytes());
        pair[8..].copy_from_slice(&at.to_le_bytes());
        file.write_all(&pair)?;
        *size += PAIR as u64;
        self.last = seq;
        Ok(())
    }

    /// Forgets what is about entries before `oldest` alone.
    pub fn forget(&self, oldest: Seq) {
        let files = files(&self.dir);
        for (path, next) in files.iter().zip(files.iter().skip(1)) {
            if first(next).is_some_and(|first| first < oldest) {
                let _ = fs::remove_file(path); // a file that stays is no harm
            }
        }
    }
}

/// When that system had entry `seq`; `None` where nobody noted it.
pub fn applied_at(data_dir: &Path, journal: u128, system: &str, seq: Seq) -> Option<Micros> {
    let files = files(&directory(data_dir, journal, system));
    let after = files.partition_point(|path| first(path).is_some_and(|first| first <= seq));
    // In the file that begins before it, or else the first of the next one.
    let candidates = files[after.saturating_sub(1)..].iter().take(2);
    let found = candidates.filter_map(|path| Pairs::open(path)?.reached(seq)).next();
    found.filter(|at| *at != 0)
}

/// Another journal counts its entries anew.
fn directory(data_dir: &Path, journal: u128, system: &str) -> PathBuf {
    let system = utf8_percent_encode(system, NON_ALPHANUMERIC);
    data_dir.join("applied").join(format!("{system}.{:08x}", journal as u32))
}

/// In order.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(|path| first(path).is_some()).collect();
    files.sort_by_key(|path| first(path));
    files
}

fn first(path: &Path) -> Option<Seq> {
    path.file_name()?.to_str()?.strip_suffix(".at")?.parse().ok()
}

struct Pairs {
    file: File,
    count: u64,
}

impl Pairs {
    fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        let count = file.metadata().ok()?.len() / PAIR as u64;
        Some(Pairs { file, count })
    }

    fn get(&self, number: u64) -> Option<(Seq, Micros)> {
        let mut pair = [0; PAIR];
        self.file.read_exact_at(&mut pair, number * PAIR as u64).ok()?;
        let number = |at: usize| u64::from_le_bytes(pair[at..at + 8].try_into().expect("eight bytes"));
        Some((number(0), number(8) as Micros))
    }

    fn last(&self) -> Option<(Seq, Micros)> {
        self.get(self.count.checked_sub(1)?)
    }

    /// The first that says that `seq` is there.
    fn reached(&self, seq: Seq) -> Option<Micros> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle)?.0 < seq {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        (low < self.count).then(|| self.get(low)).flatten().map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_was_there_when_the_first_look_saw_it_or_a_later_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = AppliedLog::open(dir.path(), 7, "a/b");
        log.note(10, 0).unwrap();
        log.note(12, 500).unwrap();
        log.note(12, 700).unwrap();
        drop(log);
        let mut log = AppliedLog::open(dir.path(), 7, "a/b");
        assert_eq!(log.last(), 12);
        log.note(20, 900).unwrap(); // in a file of its own

        let at = |seq| applied_at(dir.path(), 7, "a/b", seq);
        assert_eq!([3, 10, 11, 12, 13, 20, 21].map(at), [None, None, Some(500), Some(500), Some(900), Some(900), None]);
        assert_eq!(applied_at(dir.path(), 7, "other", 11), None);
        assert_eq!(applied_at(dir.path(), 8, "a/b", 11), None);
    }
}
