//! Systems that a person has told to pause: nothing is read from their logs and nothing is applied
//! there until they are told to go on. Kept over restarts in `data_dir/paused.json`; their logs
//! wait on their servers meanwhile.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use tracing::warn;

use crate::config::Config;
use crate::error::{Error, Result};

pub struct Paused {
    path: PathBuf,
    names: Mutex<BTreeSet<String>>,
}

impl Paused {
    /// A file that cannot be read pauses nobody, and says so.
    pub fn load(config: &Config) -> Self {
        let path = config.agent.data_dir.join("paused.json");
        let read = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(error.to_string()),
        };
        let names = read.unwrap_or_else(|error| {
            warn!(path = %path.display(), error, "cannot read which systems are paused; none is");
            BTreeSet::new()
        });
        Paused { path, names: Mutex::new(names) }
    }

    pub fn contains(&self, system: &str) -> bool {
        self.names.lock().expect("never held across a panic").contains(system)
    }

    /// On disk when it returns.
    pub fn set(&self, system: &str, paused: bool) -> Result<()> {
        let mut names = self.names.lock().expect("never held across a panic");
        let mut next = names.clone();
        match paused {
            true => next.insert(system.to_owned()),
            false => next.remove(system),
        };
        self.save(&next).map_err(|error| {
            Error::stop(
                format!("cannot write {}: {error}", self.path.display()),
                "data_dir must be writable by the agent's user, and its disk have space",
            )
            .because(error)
        })?;
        *names = next;
        Ok(())
    }

    fn save(&self, names: &BTreeSet<String>) -> std::io::Result<()> {
        let fresh = self.path.with_extension("json.new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(names).expect("names are plain data"))?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        File::open(self.path.parent().expect("it lies in data_dir"))?.sync_all()
    }
}
