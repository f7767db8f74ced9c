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
    let path = path(config);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Decided::default(),
        Err(error) => {
            warn!(path = %path.display(), %error, "cannot read which columns were carried; taken as the tables are now");
            return Decided::default();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        warn!(path = %path.display(), %error, "cannot read which columns were carried; taken as the tables are now");
        Decided::default()
    })
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
