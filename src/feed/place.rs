//! How far somebody has been told, on disk.
//!
//! Before a request is first sent, it is noted where it ends. So a restart sends the same changes
//! under the same id again, whatever has come to the journal meanwhile.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::Cursor;
use crate::change::Micros;
use crate::error::Result;
use crate::file;
use crate::journal::Journal;
use crate::position::Seq;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    version: u32,
    journal: String,
    /// The first change that nobody has been told of.
    pub from: Cursor,
    /// Where the request ends that is on its way.
    pub until: Option<Cursor>,
    /// Entries that the journal dropped before they were told, and when that was seen last.
    pub lost: u64,
    pub lost_at: Micros,
}

const VERSION: u32 = 1;

pub fn path(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join(format!("notify-{name}.json"))
}

impl Place {
    /// Whoever is new is told of what comes from now on. A journal that was made anew is told from its
    /// beginning, and so is one whose place cannot be read: twice rather than never.
    pub fn open(data_dir: &Path, name: &str, journal: &Journal, begin: Seq) -> Place {
        let path = path(data_dir, name);
        let id = format!("{:032x}", journal.id());
        let at = |seq| Place {
            version: VERSION,
            journal: id.clone(),
            from: Cursor { seq, index: 0 },
            until: None,
            lost: 0,
            lost_at: 0,
        };
        let read = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Place>(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return at(begin),
            Err(error) => Err(error.to_string()),
        };
        let read = read.and_then(|place| match place.version {
            VERSION => Ok(place),
            other => Err(format!("it has the format version {other}")),
        });
        match read {
            Ok(place) if place.journal == id => place,
            Ok(_) => at(journal.oldest()),
            Err(error) => {
                warn!(path = %path.display(), error, "cannot read how far changes were told: told again from the journal's beginning");
                at(journal.oldest())
            }
        }
    }

    /// On disk when it returns.
    pub fn save(&self, data_dir: &Path, name: &str) -> Result<()> {
        file::replace(&path(data_dir, name), &serde_json::to_vec(self).expect("numbers are plain data"))
    }
}
