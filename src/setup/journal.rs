//! The journal in the hands of a command, while no agent runs.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Known, NewPosition};
use crate::change::{Record, ResyncMark};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::file::unwritable;
use crate::journal::{Journal, Options, Recovered, Writer};

/// The journal of a configuration. One place decides where it lies.
pub fn options(config: &Config) -> Options {
    Options::new(directory(&config.agent.data_dir), config.journal.max_size)
}

fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("journal")
}

/// A journal exists, whether or not somebody has it open.
pub fn exists(config: &Config) -> bool {
    directory(&config.agent.data_dir).is_dir()
}

/// There is none, for sure: where data_dir may not be looked into nobody knows.
pub fn absent(config: &Config) -> bool {
    directory(&config.agent.data_dir).try_exists().is_ok_and(|exists| !exists)
}

/// The journal under its lock; a running agent has it, and then this is an error that says so.
#[derive(Debug)]
pub struct Operator {
    pub writer: Writer,
    pub journal: Journal,
    pub recovered: Recovered,
}

pub fn operator(config: &Config) -> Result<Operator> {
    let data_dir = &config.agent.data_dir;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(|error| {
        let hint = unwritable(&error, "create it and give it to the agent's user");
        Error::stop(format!("cannot create data_dir {}: {error}", data_dir.display()), hint).because(error)
    })?;
    let (writer, journal, recovered) = crate::journal::open(&options(config))?;
    Ok(Operator { writer, journal, recovered })
}

impl Operator {
    pub fn known(&self, system: &str) -> Known {
        Known {
            journal: self.journal.id(),
            head: self.journal.head(),
            positioned: self.recovered.positions.contains_key(system),
        }
    }

    /// Writes down where a system's log begins for us.
    pub fn note(&mut self, system: &str, new: &NewPosition) -> Result<()> {
        self.writer.append(&Record::Position {
            system: system.into(),
            position: new.position.clone(),
            base: new.base,
            identity: new.identity.as_str().into(),
        })?;
        self.writer.sync()?;
        Ok(())
    }

    /// What is to be known of a system whose position was lost.
    pub fn resync(&mut self, mark: &ResyncMark) -> Result<()> {
        self.writer.append(&Record::Resync(mark.clone()))?;
        self.writer.sync().map(drop)
    }

    /// Its log begins anew. What was prepared in the old one is decided by now: a new position is
    /// made only where nothing is.
    pub fn replace(&mut self, mark: &ResyncMark, new: &NewPosition) -> Result<()> {
        let (system, base) = (mark.system.clone(), new.base);
        for prepared in self.recovered.prepared.iter().filter(|prepared| prepared.system == system) {
            let (xid, position) = (prepared.xid.clone(), new.position.clone());
            self.writer.append(&Record::Decided { system: system.clone(), xid, position, base })?;
        }
        let (position, identity) = (new.position.clone(), new.identity.as_str().into());
        self.writer.append(&Record::Position { system, position, base, identity })?;
        self.resync(mark)
    }

    /// After a teardown its positions and seqs stand for nothing any more: it is set aside
    /// whole, as the audit trail that it is, and the next setup begins a new one.
    pub fn set_aside(self, config: &Config) -> Result<PathBuf> {
        let from = directory(&config.agent.data_dir);
        let to = from.with_file_name(format!("journal-{:032x}", self.journal.id()));
        drop(self);
        // Of this journal alone, and made again from one.
        let _ = std::fs::remove_file(from.with_file_name("index.checkpoint"));
        std::fs::rename(&from, &to)?;
        Ok(to)
    }
}
