//! How the arbiter comes to know what it knew: from the index checkpoint and what the journal has
//! behind it, else from all that the journal has.
//!
//! A checkpoint only saves time. Retention keeps what a replay without it needs, and one that is
//! not what it should be, or not of this journal or configuration, is told of, removed and done
//! without.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::Path;
use std::time::Instant;

use tracing::{info, warn};

use super::checkpoint::{draft, weight};
use super::{Archive, SystemDesk};
use crate::admit::Arbiter;
use crate::admit::checkpoint::{Saved, verify};
use crate::change::{Changes, Conflicted, Quarantined, Record};
use crate::error::Result;
use crate::journal::{PositionRecord, Reader};
use crate::position::Seq;
use crate::schema::SystemId;

/// What a start has.
pub(super) struct Start<'a> {
    pub make: &'a dyn Fn() -> Result<Arbiter>,
    pub archive: &'a Archive,
    pub systems: &'a [SystemDesk],
    /// What the journal says is held, and waits for a person.
    pub held: &'a [Quarantined],
    pub conflicts: &'a [Conflicted],
    pub checkpoint: &'a Path,
    /// A journal that holds more than this should have one.
    pub every: u64,
}

pub(super) struct Started {
    pub arbiter: Arbiter,
    /// To be appended.
    pub told: Vec<Record>,
    /// What was replayed, as [`weight`] has it.
    pub replayed: u64,
    /// Without that much, which a checkpoint covered.
    pub covered: Option<Seq>,
}

/// Why there is nothing to begin with.
enum Without {
    Missing,
    /// All of it was seen by all systems since.
    Needless,
    /// It is of another time, as it has to be now and then.
    Outdated(String),
    /// It is not what it should be.
    Wrong(String),
}

type Found = (Saved<BufReader<File>>, Reader);

impl Start<'_> {
    pub fn run(&self) -> Result<Started> {
        let began = Instant::now();
        // What was being written when the process ended.
        let _ = fs::remove_file(draft(self.checkpoint));
        let seen = self.systems.iter().filter(|system| system.receives).map(|system| system.at.base);
        let unseen = seen.min().unwrap_or(self.archive.journal.head()) + 1;
        // What a held key lowers can go back further than its live record says.
        let oldest = self.archive.journal.oldest();
        let from = if self.held.is_empty() { unseen.max(oldest) } else { oldest };
        let without = match self.found(from)? {
            Ok(found) => match self.restored(found)? {
                Ok(started) => {
                    let covered = started.covered.unwrap_or_default();
                    self.tell("journal replayed behind the index checkpoint", covered + 1, covered, began);
                    return Ok(started);
                }
                Err(why) => Without::Wrong(why),
            },
            Err(without) => without,
        };
        match &without {
            Without::Missing | Without::Needless => {}
            Without::Outdated(why) => {
                info!(from, "the index checkpoint is not used: {why}; the journal is replayed from where it is needed");
            }
            Without::Wrong(why) => {
                let path = self.checkpoint.display();
                warn!(%path, from, error = %why, "the index checkpoint is done without: the journal is replayed from where it is needed");
            }
        }
        if matches!(without, Without::Outdated(_) | Without::Wrong(_))
            && let Err(error) = fs::remove_file(self.checkpoint)
        {
            warn!(path = %self.checkpoint.display(), %error, "the index checkpoint cannot be removed");
        }
        let started = self.whole(from)?;
        if matches!(without, Without::Missing) && started.replayed > 2 * self.every {
            warn!(path = %self.checkpoint.display(), from, "there was no index checkpoint: all that some system has not seen was replayed");
        }
        self.tell("journal replayed", from, 0, began);
        Ok(started)
    }

    fn tell(&self, what: &str, from: Seq, checkpoint: Seq, began: Instant) {
        let elapsed_ms = began.elapsed().as_millis() as u64;
        info!(head = self.archive.journal.head(), from, checkpoint, elapsed_ms, "{what}");
    }

    /// Knows who takes part, and what the end of the journal says.
    fn begun(&self) -> Result<Arbiter> {
        let mut arbiter = (self.make)()?;
        for (index, system) in self.systems.iter().enumerate() {
            let PositionRecord { position, base, identity } = system.at.clone();
            arbiter.follow(SystemId(index as u8), position, base, identity);
        }
        arbiter.keep_held(self.held);
        Ok(arbiter)
    }

    fn whole(&self, from: Seq) -> Result<Started> {
        let mut arbiter = self.begun()?;
        for record in self.held {
            arbiter.replay(&Record::Quarantine(record.clone()), self.archive)?;
        }
        self.replayed(arbiter, self.archive.journal.reader(from)?)
    }

    fn replayed(&self, mut arbiter: Arbiter, mut reader: Reader) -> Result<Started> {
        for conflict in self.conflicts {
            arbiter.replay(&Record::Conflict(conflict.clone()), self.archive)?;
        }
        let mut replayed = 0;
        while let Some(record) = reader.next()? {
            replayed += weight(&record);
            arbiter.replay(&record, self.archive)?;
        }
        let told = arbiter.resume(self.archive.journal.head());
        Ok(Started { arbiter, told, replayed, covered: None })
    }

    /// The checkpoint, if it is whole and of what is here; and the journal behind it. `from`: where a
    /// replay without it would begin.
    fn found(&self, from: Seq) -> Result<Result<Found, Without>> {
        let opened = || File::open(self.checkpoint).map(|file| BufReader::with_capacity(1 << 20, file));
        let file = match opened() {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(Without::Missing)),
            Err(error) => return Ok(Err(Without::Wrong(error.to_string()))),
        };
        let again = || opened().map_err(|error| error.to_string());
        let saved = verify(file)
            .map_err(|error| error.full())
            .and_then(|()| again())
            .and_then(|file| Saved::open(file).map_err(|error| error.full()));
        let saved = match saved {
            Ok(saved) => saved,
            Err(why) => return Ok(Err(Without::Wrong(why))),
        };
        let journal = &self.archive.journal;
        if saved.journal != format!("{:032x}", journal.id()) {
            return Ok(Err(Without::Wrong(format!("it is of journal {}", saved.journal))));
        }
        if saved.tip.seq > journal.head() {
            let why = format!("it covers entry {}, the journal ends with {}", saved.tip.seq, journal.head());
            return Ok(Err(Without::Wrong(why)));
        }
        if saved.about.topology != (self.make)()?.print() {
            return Ok(Err(Without::Outdated("systems, bindings or rules are others".to_owned())));
        }
        let back = self.systems.iter().zip(&saved.about.systems).find(|(system, was)| system.at.base < was.seen);
        if let Some((system, was)) = back {
            let why = format!("the log of {} had shown {}, and begins before that now", system.name, was.seen);
            return Ok(Err(Without::Outdated(why)));
        }
        if saved.tip.seq < from {
            return Ok(Err(Without::Needless));
        }
        Ok(match journal.reader_behind(&saved.tip) {
            Ok(Some(reader)) => Ok((saved, reader)),
            Ok(None) => Err(Without::Wrong(format!("the journal is another one where entry {} was", saved.tip.seq))),
            Err(error) => Err(Without::Wrong(error.full())),
        })
    }

    fn restored(&self, (saved, reader): Found) -> Result<Result<Started, String>> {
        let mut arbiter = self.begun()?;
        let covered = saved.tip.seq;
        if let Err(error) = arbiter.restore(saved) {
            return Ok(Err(error.full()));
        }
        let started = Started { covered: Some(covered), ..self.replayed(arbiter, reader)? };
        if self.live(self.held.iter()) != self.live(started.arbiter.quarantine()) {
            return Ok(Err("it leads to other held keys than the journal has".to_owned()));
        }
        Ok(Ok(started))
    }

    /// What is held, by system and key; rows without a key are one.
    fn live<'q>(
        &self,
        held: impl Iterator<Item = &'q Quarantined>,
    ) -> BTreeMap<(usize, u128), Option<&'q Quarantined>> {
        let place = |held: &Quarantined| self.systems.iter().position(|system| system.name == held.system);
        let of = held.filter_map(|held| {
            let key = Changes::new(&held.change).next()?.key_hash;
            Some(((place(held)?, key), Some(held).filter(|_| key != 0)))
        });
        of.collect()
    }
}
