//! The hashes that tie lines and files together.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

/// Half a SHA-256 is as hard to meet as anybody needs, and twice as short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hash([u8; 16]);

impl std::fmt::Display for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Hash {
    pub fn parse(text: &str) -> Option<Hash> {
        let mut hash = [0; 16];
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return None;
        }
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
        }
        Some(Hash(hash))
    }

    /// Of a line behind the one with this hash.
    pub fn next(self, line: &str) -> Hash {
        let mut digest = Sha256::new();
        digest.update(self.0);
        digest.update(line);
        Hash(digest.finalize()[..16].try_into().expect("sixteen bytes"))
    }
}

const BEFORE: &str = ",\"hash\":\"";

/// Puts the hash into the JSON object as its last member, and returns it.
pub fn put_hash(line: &mut String, before: Hash) -> Hash {
    let hash = before.next(line);
    debug_assert!(line.ends_with('}') && line.len() > 2, "an object with members");
    line.pop();
    line.push_str(&format!("{BEFORE}{hash}\"}}"));
    hash
}

/// The object without its hash, and the hash that it says it has.
pub fn split_hash(line: &str) -> Option<(String, Hash)> {
    let (content, end) = line.split_at(line.len().checked_sub(BEFORE.len() + 32 + 2)?);
    let hash = end.strip_prefix(BEFORE)?.strip_suffix("\"}")?;
    Some((format!("{content}}}"), Hash::parse(hash)?))
}

/// Of an open or a closed file.
pub fn lines_of(path: &Path) -> std::io::Result<Vec<String>> {
    let (mut text, file) = (String::new(), File::open(path)?);
    match path.extension().is_some_and(|end| end == "gz") {
        true => MultiGzDecoder::new(file).read_to_string(&mut text)?,
        false => { file }.read_to_string(&mut text)?,
    };
    Ok(text.split_terminator('\n').map(str::to_owned).collect())
}

pub fn file_hash(path: &Path) -> std::io::Result<String> {
    let mut digest = Sha256::new();
    std::io::copy(&mut File::open(path)?, &mut digest)?;
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
