//! The audit trail as daily files, for whoever may read those and nothing else, and beyond what the
//! journal keeps.
//!
//! ```text
//! audit-2026-01-30.jsonl.gz    begins … operation … operation … ends     closed: compressed, never touched again
//!        │ hash of its last line, hash of the file
//!        ▼
//! audit-2026-01-31.jsonl       begins … operation …                      open: appended to
//! ```
//!
//! Every line ends with a hash over itself and the line before it, and the first line of a file with
//! that of the file before: whoever changes one byte, or takes a line or a file out, breaks the chain
//! from there on ([`check`]). The file itself says how far the trail has come, so a restart goes on
//! behind its last whole entry.

mod chain;
mod check;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::{Compression, GzBuilder};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use self::chain::{Hash, file_hash, lines_of, put_hash, split_hash};
pub use self::check::{Checked, check};
use super::operation::{Operation, each_of};
use crate::change::{Conflicted, Entry, Micros, Record};
use crate::error::{Error, Result};
use crate::file::unwritable;
use crate::http::status::timestamp;
use crate::journal::Journal;
use crate::position::Seq;
use crate::value::MICROS_PER_DAY;

/// The first line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Begins {
    /// The day, and the number of the file on it.
    begins: String,
    agent: String,
    journal: String,
    /// The file before it, its hash, and that of its last line; absent in the very first.
    previous: Option<Previous>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Previous {
    file: String,
    sha256: String,
    last: String,
}

/// The last line of a closed one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Ends {
    ends: String,
    /// Operations in it, and the last entry that is.
    operations: u64,
    last: Seq,
}

/// `audit-2026-01-31.jsonl`, `audit-2026-01-31.1.jsonl.gz`: day, number, open or closed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    day: String,
    number: u32,
}

impl Name {
    fn parse(path: &Path) -> Option<(Name, bool)> {
        let name = path.file_name()?.to_str()?.strip_prefix("audit-")?;
        let (name, open) = match name.strip_suffix(".jsonl.gz") {
            Some(name) => (name, false),
            None => (name.strip_suffix(".jsonl")?, true),
        };
        let (day, number) = name.split_once('.').unwrap_or((name, "0"));
        Some((Name { day: day.to_owned(), number: number.parse().ok()? }, open))
    }

    fn path(&self, dir: &Path) -> PathBuf {
        let Name { day, number } = self;
        dir.join(if *number == 0 { format!("audit-{day}.jsonl") } else { format!("audit-{day}.{number}.jsonl") })
    }
}

/// In order, closed and open.
fn files(dir: &Path) -> std::io::Result<Vec<(Name, bool, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        files.extend(Name::parse(&path).map(|(name, open)| (name, open, path)));
    }
    files.sort();
    Ok(files)
}

/// What is written to.
#[derive(Debug)]
pub struct Ledger {
    dir: PathBuf,
    retention: Duration,
    agent: String,
    journal: Journal,
    open: Option<Open>,
    /// The last entry that is in it.
    last: Seq,
}

/// How far a file is whole.
#[derive(Debug, Clone, Copy, Default)]
struct Whole {
    end: u64,
    hash: Hash,
    operations: u64,
    last: Seq,
}

#[derive(Debug)]
struct Open {
    name: Name,
    path: PathBuf,
    out: BufWriter<File>,
    hash: Hash,
    operations: u64,
}

impl Ledger {
    /// Goes on where the files end; what a kill left half written is cut.
    pub fn open(dir: &Path, retention: Duration, agent: &str, journal: &Journal) -> Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| failed(dir, error))?;
        let (dir, agent) = (dir.to_owned(), agent.to_owned());
        let mut ledger = Ledger { dir, retention, agent, journal: journal.clone(), open: None, last: 0 };
        let mut files = files(&ledger.dir).map_err(|error| failed(&ledger.dir, error))?;
        while let Some((name, is_open, path)) = files.pop() {
            let prior = files.last();
            if is_open && prior.is_some_and(|(before, ..)| *before == name) {
                // Compressed already.
                fs::remove_file(&path).map_err(|error| failed(&path, error))?;
                continue;
            }
            if !is_open {
                ledger.last = ledger.last_of(&path);
                break;
            }
            let prior = prior.map_or(0, |(.., path)| ledger.last_of(path));
            if ledger.resume(name, &path, prior).map_err(|error| failed(&path, error))? {
                break;
            }
        }
        Ok(ledger)
    }

    /// The last entry of a closed file, where it is of this journal.
    fn last_of(&self, path: &Path) -> Seq {
        let lines = lines_of(path).unwrap_or_default();
        let begins = lines.first().and_then(|line| serde_json::from_str::<Begins>(line).ok());
        let ends = lines.last().and_then(|line| serde_json::from_str::<Ends>(line).ok());
        let of_this = begins.is_some_and(|begins| begins.journal == self.journal_name());
        ends.filter(|_| of_this).map_or(0, |ends| ends.last)
    }

    fn journal_name(&self) -> String {
        format!("{:032x}", self.journal.id())
    }

    /// The open file, up to the last entry that is surely whole: the last one is written again.
    /// False: it was not even begun, and is gone. `prior`: the last entry of the file before it.
    fn resume(&mut self, name: Name, path: &Path, prior: Seq) -> std::io::Result<bool> {
        let text = fs::read_to_string(path)?;
        let first = text.split_inclusive('\n').next().and_then(|line| line.strip_suffix('\n'));
        let begins = first.and_then(split_hash).and_then(|(line, _)| serde_json::from_str::<Begins>(&line).ok());
        let Some(begins) = begins else {
            fs::remove_file(path)?;
            return Ok(false);
        };
        let (mut at, mut now, mut ended) = (0, Whole::default(), false);
        // As it was before the first line of the entry that is being read.
        let (mut whole, mut current) = (now, 0);
        for line in text.split_inclusive('\n') {
            at += line.len() as u64;
            let Some((content, own)) = line.strip_suffix('\n').and_then(split_hash) else { break };
            let seq = serde_json::from_str::<Operation>(&content).map_or(0, |operation| operation.seq);
            if seq != current {
                now.last = current;
                (whole, current) = (now, seq);
            }
            ended = serde_json::from_str::<Ends>(&content).is_ok();
            now = Whole { end: at, hash: own, operations: now.operations + u64::from(seq > 0), ..now };
        }
        let of_this = begins.journal == self.journal_name();
        // Behind its first line, or behind its last, no entry is in doubt; what another journal held
        // cannot be written again.
        let whole = match current {
            0 => now,
            _ if !of_this => Whole { last: current, ..now },
            _ => whole,
        };
        let file = File::options().append(true).open(path)?;
        file.set_len(whole.end)?;
        let out = BufWriter::new(file);
        let Whole { hash, operations, last, .. } = whole;
        let open = Open { name, path: path.to_owned(), out, hash, operations };
        let last = if last > 0 { last } else { prior };
        match (ended, of_this) {
            (true, _) => self.seal(open)?,
            (false, true) => self.open = Some(open),
            // Entries of another journal are counted anew: they have a file of their own.
            (false, false) => {
                (self.open, self.last) = (Some(open), last);
                self.close()?;
            }
        }
        self.last = if of_this { last } else { 0 };
        Ok(true)
    }

    /// The entry from which on it lacks what the journal has.
    pub fn wants(&self) -> Seq {
        self.last + 1
    }

    /// Takes in what the journal has more, and returns. `now`: whose day it is.
    pub fn follow(&mut self, now: Micros, ends: &dyn Fn() -> bool) -> Result<()> {
        self.turn(now)?;
        // A closed file is vouched for by the one behind it.
        if self.open.is_none() && self.last > 0 {
            self.begin(now).map_err(|error| failed(&self.dir, error))?;
        }
        let oldest = self.journal.oldest();
        if self.last > 0 && self.wants() < oldest {
            warn!(from = self.wants(), to = oldest - 1, "the journal has dropped entries that the audit files lack");
        }
        let from = self.wants().max(oldest);
        if from > self.journal.head() {
            return Ok(());
        }
        let (mut reader, mut conflicts) = (self.journal.reader(from)?, Vec::new());
        while let Some(record) = reader.next()? {
            match record {
                Record::Conflict(conflict) => conflicts.push(conflict),
                Record::Entry(entry) => self.put(&entry, &std::mem::take(&mut conflicts), now)?,
                _ => {}
            }
            if ends() {
                break;
            }
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        match &mut self.open {
            Some(open) => open.out.flush().map_err(|error| failed(&open.path, error)),
            None => Ok(()),
        }
    }

    fn put(&mut self, entry: &Entry, conflicts: &[Conflicted], now: Micros) -> Result<()> {
        if self.open.is_none() {
            self.begin(now).map_err(|error| failed(&self.dir, error))?;
        }
        let open = self.open.as_mut().expect("just begun");
        each_of(&self.journal, entry, conflicts, 0, &|_| true, &mut |operation| {
            open.line(&operation).map_err(|error| failed(&open.path, error))?;
            open.operations += 1;
            Ok(true)
        })?;
        self.last = entry.seq;
        Ok(())
    }

    /// Another day: what is open is closed, and what is too old goes.
    fn turn(&mut self, now: Micros) -> Result<()> {
        let today = day(now);
        if self.open.as_ref().is_some_and(|open| open.name.day != today) {
            self.close().map_err(|error| failed(&self.dir, error))?;
            self.begin(now).map_err(|error| failed(&self.dir, error))?;
            self.expire(now);
        }
        Ok(())
    }

    fn begin(&mut self, now: Micros) -> std::io::Result<()> {
        let (day, files) = (day(now), files(&self.dir)?);
        let number = files.iter().filter(|(name, ..)| name.day == day).map(|(name, ..)| name.number + 1).max();
        let name = Name { day, number: number.unwrap_or(0) };
        let (mut hash, mut previous) = (Hash::default(), None);
        if let Some((_, _, path)) = files.last() {
            let last = lines_of(path)?.last().and_then(|line| split_hash(line)).map(|(_, hash)| hash);
            hash = last.unwrap_or_default();
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            previous = Some(Previous { file, sha256: file_hash(path)?, last: hash.to_string() });
        }
        let path = name.path(&self.dir);
        let out = BufWriter::new(File::options().create_new(true).append(true).mode(0o600).open(&path)?);
        let begins =
            Begins { begins: name.day.clone(), agent: self.agent.clone(), journal: self.journal_name(), previous };
        let mut open = Open { name, path, out, hash, operations: 0 };
        open.line(&begins)?;
        self.open = Some(open);
        Ok(())
    }

    /// Ends the file, and puts its compressed form in its place.
    fn close(&mut self) -> std::io::Result<()> {
        let Some(mut open) = self.open.take() else { return Ok(()) };
        open.line(&Ends { ends: open.name.day.clone(), operations: open.operations, last: self.last })?;
        self.seal(open)
    }

    fn seal(&self, mut open: Open) -> std::io::Result<()> {
        open.out.flush()?;
        open.out.get_ref().sync_all()?;
        let (closed, fresh) = (open.path.with_extension("jsonl.gz"), open.path.with_extension("new"));
        let out = File::options().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        let mut zip = GzBuilder::new().write(out, Compression::default());
        std::io::copy(&mut File::open(&open.path)?, &mut zip)?;
        zip.finish()?.sync_all()?;
        fs::rename(&fresh, &closed)?;
        fs::remove_file(&open.path)?;
        info!(file = %closed.display(), operations = open.operations, "audit file closed");
        Ok(())
    }

    fn expire(&self, now: Micros) {
        let retention = i64::try_from(self.retention.as_micros()).unwrap_or(i64::MAX);
        let before = day(now.saturating_sub(retention).max(0));
        let files = files(&self.dir).unwrap_or_default();
        for (_, _, path) in files.iter().filter(|(name, is_open, _)| !is_open && name.day < before) {
            match fs::remove_file(path) {
                Ok(()) => info!(file = %path.display(), "audit file has expired"),
                Err(error) => warn!(file = %path.display(), %error, "an expired audit file cannot be removed"),
            }
        }
    }
}

impl Open {
    fn line(&mut self, content: &impl Serialize) -> std::io::Result<()> {
        let mut line = serde_json::to_string(content).expect("operations are plain data");
        self.hash = put_hash(&mut line, self.hash);
        line.push('\n');
        self.out.write_all(line.as_bytes())
    }
}

fn day(at: Micros) -> String {
    let day = timestamp(at - at.rem_euclid(MICROS_PER_DAY) + 1).expect("a day of our time");
    day[..10].to_owned()
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    let hint = unwritable(&error, "[audit] dir must be writable by the agent's user, and its disk have space");
    Error::stop(format!("cannot write the audit trail {}: {error}", path.display()), hint).because(error)
}

#[cfg(test)]
mod tests;
