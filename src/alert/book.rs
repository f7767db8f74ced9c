//! What is known of all alerts, on disk: which conditions hold, which events nobody has heard yet, and
//! how far the journal was read. One file, written as a whole, so that none of it can be true without
//! the rest: an event is there before it is first sent, and is sent until it has arrived.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::watch::Watch;
use crate::error::Result;
use crate::file;
use crate::position::Seq;

const VERSION: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    version: u32,
    /// Which journal the number is of, and its last entry that was looked at for conflicts.
    pub journal: Option<String>,
    pub seq: Seq,
    pub alerts: BTreeMap<String, Watch>,
}

impl Default for Book {
    fn default() -> Self {
        Book { version: VERSION, journal: None, seq: 0, alerts: BTreeMap::new() }
    }
}

pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("alerts.json")
}

impl Book {
    /// A file that cannot be read is kept aside, and said so: conditions that hold are told anew.
    pub fn load(data_dir: &Path) -> Book {
        let path = path(data_dir);
        let read = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Book>(&text).map_err(|error| error.to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Book::default(),
            Err(error) => Err(error.to_string()),
        };
        let read = read.and_then(|book| match book.version {
            VERSION => Ok(book),
            other => Err(format!("it has the format version {other}")),
        });
        read.unwrap_or_else(|error| {
            let aside = path.with_extension("json.unread");
            let kept = std::fs::rename(&path, &aside);
            warn!(path = %aside.display(), error, kept = kept.is_ok(), "cannot read which alerts are still to be delivered");
            Book::default()
        })
    }

    /// On disk when it returns.
    pub fn save(&self, data_dir: &Path) -> Result<()> {
        file::replace(&path(data_dir), &serde_json::to_vec(self).expect("events are plain data"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_is_read_again_by_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = Book { seq: 7, journal: Some("a".into()), ..Book::default() };
        book.alerts.insert("ops".into(), Watch::default());

        book.save(dir.path()).unwrap();

        assert_eq!(Book::load(dir.path()), book);
        let mode = std::fs::metadata(path(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_cannot_be_read_is_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(path(dir.path()), "{\"version\":2").unwrap();

        assert_eq!(Book::load(dir.path()), Book::default());
        assert!(dir.path().join("alerts.json.unread").exists());
        assert_eq!(Book::load(Path::new("/does/not/exist")), Book::default());
    }
}
