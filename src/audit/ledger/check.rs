//! Whether anybody has changed the audit files.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::chain::{Hash, file_hash, lines_of, split_hash};
use super::{Begins, Ends, files};
use crate::error::{Error, Result};

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    pub file: String,
    pub operations: u64,
    /// `closed`, `open`.
    pub state: String,
    /// What is not as it was written; the first of it.
    pub fault: Option<String>,
}

/// All files of a directory, in order. What one says of the one before it is held against that.
pub fn check(dir: &Path) -> Result<Vec<Checked>> {
    let unread = |error: std::io::Error| {
        Error::stop(format!("cannot read the audit files in {}: {error}", dir.display()), "[audit] dir names them")
    };
    let mut checked: Vec<Checked> = Vec::new();
    let mut before: Option<(String, String, Hash)> = None;
    for (_, is_open, path) in files(dir).map_err(unread)? {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let state = if is_open { "open" } else { "closed" }.to_owned();
        let (operations, last, fault) = match walk(&path, is_open, before.as_ref()) {
            Ok((operations, last)) => (operations, last, None),
            Err(fault) => (0, Hash::default(), Some(fault)),
        };
        checked.push(Checked { file: file.clone(), operations, state, fault });
        before = Some((file, file_hash(&path).map_err(unread)?, last));
    }
    Ok(checked)
}

/// How many operations it has, and the hash of its last line.
fn walk(
    path: &Path,
    is_open: bool,
    before: Option<&(String, String, Hash)>,
) -> std::result::Result<(u64, Hash), String> {
    let lines = lines_of(path).map_err(|error| format!("cannot be read: {error}"))?;
    let begins = lines.first().and_then(|line| split_hash(line)).and_then(|(line, _)| serde_json::from_str(&line).ok());
    let begins: Begins = begins.ok_or("its first line does not say what it is")?;
    let mut hash = Hash::default();
    if let Some(previous) = &begins.previous {
        hash = Hash::parse(&previous.last).ok_or("its first line names no hash")?;
        if let Some((file, sha256, last)) = before {
            if *file != previous.file {
                return Err(format!("{} is missing before it", previous.file));
            }
            if *sha256 != previous.sha256 || *last != hash {
                return Err(format!("{file} is not as it was when it was closed"));
            }
        }
    } else if let Some((file, ..)) = before {
        return Err(format!("it does not follow {file}"));
    }
    let (mut operations, mut ends) = (0, None);
    for (at, line) in lines.iter().enumerate() {
        let (content, own) = split_hash(line).ok_or_else(|| format!("line {} has no hash", at + 1))?;
        hash = hash.next(&content);
        if hash != own {
            return Err(format!("line {} is not as it was written, or something is missing before it", at + 1));
        }
        if ends.is_some() {
            return Err(format!("line {} stands behind its end", at + 1));
        }
        ends = serde_json::from_str::<Ends>(&content).ok();
        operations += u64::from(at > 0 && ends.is_none());
    }
    match ends {
        Some(ends) if ends.operations != operations => Err(format!("it had {} operations", ends.operations)),
        None if !is_open => Err("its end is missing".into()),
        _ => Ok((operations, hash)),
    }
}
