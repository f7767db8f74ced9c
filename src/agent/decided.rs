//! What was decided of bindings by name, on disk beside the journal.
//!
//! Derived, and yet worth keeping: without it the tables as they are now count as what was
//! there all along.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use tracing::warn;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::normalize::follow::Decided;

fn path(config: &Config) -> PathBuf {
    config.agent.data_dir.join("columns.json")
}

pub fn load(config: &Config) -> Decided {
    let (decided, unread) = read(config);
    if let Some(error) = unread {
        warn!(path = %path(config).display(), error, "cannot read which columns were carried; taken as the tables are now");
    }
    decided
}

/// And why it could not be read, where there is something.
pub fn read(config: &Config) -> (Decided, Option<String>) {
    let found = match std::fs::read(path(config)) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Decided::default()),
        Err(error) => Err(error.to_string()),
    };
    match found {
        Ok(decided) => (decided, None),
        Err(why) => (Decided::default(), Some(why)),
    }
}

/// Nothing is followed any more: the next setup begins with the tables as they are then.
pub fn forget(config: &Config) -> Result<()> {
    match std::fs::remove_file(path(config)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let what = format!("cannot remove {}: {error}", path(config).display());
            Err(Error::stop(what, "remove it by hand, then run teardown again").because(error))
        }
        _ => Ok(()),
    }
}

/// A system's log is about to begin anew: how its tables were published before is past.
pub fn forget_published(config: &Config, system: &str) -> Result<()> {
    let mut decided = load(config);
    if !decided.knows_published(system) {
        return Ok(());
    }
    decided.forget_published(system);
    save(config, &decided)
}

/// On disk before a row is read by it.
pub fn save(config: &Config, decided: &Decided) -> Result<()> {
    let path = path(config);
    let fresh = path.with_extension("json.new");
    let text = serde_json::to_vec(decided).expect("names are plain data");
    let written = || {
        let mut file = File::create(&fresh)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &path)?;
        File::open(&config.agent.data_dir)?.sync_all()
    };
    written().map_err(|error: std::io::Error| {
        Error::stop(
            format!("cannot write {}: {error}", path.display()),
            "data_dir must be writable by the agent's user, and its disk have space",
        )
        .because(error)
    })
}
