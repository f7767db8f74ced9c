//! A small file that is always whole: what is written takes the place of what was there.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// On disk when it returns, for the agent's user alone.
pub fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let fresh = path.with_extension("json.new");
    let written = || {
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(path.parent().expect("it lies in data_dir"))?.sync_all()
    };
    written().map_err(|error: std::io::Error| {
        Error::stop(
            format!("cannot write {}: {error}", path.display()),
            "data_dir must be writable by the agent's user, and its disk have space",
        )
        .because(error)
    })
}

/// The way out where a directory of the configuration cannot be written: `otherwise`, but where no change
/// of owner or mode helps.
pub fn unwritable<'a>(error: &std::io::Error, otherwise: &'a str) -> &'a str {
    match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem => {
            "the service's unit leaves it one writable directory; for another, that must exist and belong to the \
             agent's user: `systemctl edit anechoic`, [Service], ReadWritePaths=. Or the disk is mounted read-only"
        }
        _ => otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_unit_keeps_from_writing_is_mended_there() {
        let hint = |number| unwritable(&std::io::Error::from_raw_os_error(number), "give it to the agent's user");
        assert!(hint(libc::EROFS).contains("[Service], ReadWritePaths="));
        assert_eq!(hint(libc::EACCES), "give it to the agent's user");
    }
}
