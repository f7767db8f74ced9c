//! Passwords and keys, read anew at each connect, so that they can be changed without a restart.
//!
//! A service that may not read a file itself finds a copy among the credentials that the service
//! manager loaded for it (systemd: `LoadCredential=`), under the name of the file, or of its
//! directory and the file: `/etc/anechoic/passwords/crm` is `passwords_crm`. So the same
//! configuration serves the service and an administrator's commands.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::config::PasswordSource;
use crate::error::{Error, Result};

/// The password as it is now. One newline at the end of a file does not belong to it.
pub fn password(source: &PasswordSource) -> Result<Option<String>> {
    let password = match source {
        PasswordSource::None => return Ok(None),
        PasswordSource::Inline(password) => password.clone(),
        PasswordSource::Env(name) => std::env::var(name).map_err(|_| {
            Error::stop(
                format!("cannot read the password: environment variable {name} is not set or not UTF-8"),
                format!("set {name} in the service's environment"),
            )
        })?,
        PasswordSource::File(path) => in_file(path)?,
    };
    if password.contains('\0') {
        return Err(Error::stop("the password holds a zero byte, which no server takes", "use another password"));
    }
    Ok(Some(password))
}

fn in_file(path: &Path) -> Result<String> {
    // Missing or half written while it is being replaced is no reason to stand still.
    let mut text = std::fs::read_to_string(readable(path)).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::InvalidData => "a password is UTF-8 text",
            _ => "the agent's user must be able to read it; in the service, LoadCredential= also serves",
        };
        Error::retry(format!("cannot read password file {}", path.display())).hint(hint).because(error)
    })?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// The file itself, which is never older than a copy of it; the credential where only that can
/// be opened.
pub(super) fn readable(path: &Path) -> PathBuf {
    let credentials = || std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let file = |path: &Path| File::open(path).is_ok();
    if file(path) {
        return path.to_owned();
    }
    credentials()
        .and_then(|directory| names(path).into_iter().map(|name| directory.join(name)).find(|path| file(path)))
        .unwrap_or_else(|| path.to_owned())
}

fn names(path: &Path) -> Vec<String> {
    let part = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let Some(name) = part(path.file_name()) else { return Vec::new() };
    let directory = part(path.parent().and_then(Path::file_name));
    directory.map(|directory| format!("{directory}_{name}")).into_iter().chain([name]).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn one_newline_at_the_end_of_a_password_file_is_not_part_of_it() {
        for (content, expected) in
            [("s3cret\n", "s3cret"), ("s3cret", "s3cret"), (" a b \n\n", " a b \n"), ("x\r\n", "x"), ("\n", "")]
        {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            let source = PasswordSource::File(file.path().to_owned());

            assert_eq!(password(&source).unwrap().as_deref(), Some(expected));
        }
    }

    #[test]
    fn a_missing_password_file_is_named_and_tried_again() {
        let error = password(&PasswordSource::File("/does/not/exist".into())).unwrap_err();

        assert!(error.message.contains("/does/not/exist"));
        assert_eq!(error.recovery, crate::error::Recovery::Retry);
    }

    #[test]
    fn what_is_no_text_is_said_without_saying_it() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"s3cr\xe9t").unwrap();

        let error = password(&PasswordSource::File(file.path().to_owned())).unwrap_err();

        assert!(error.full().contains("UTF-8") && !error.full().contains("s3cr"), "{}", error.full());
        let zero = password(&PasswordSource::Inline("s3\0cret".into())).unwrap_err();
        assert!(!zero.full().contains("cret"), "{}", zero.full());
    }

    #[test]
    fn a_credential_is_called_like_its_file_or_like_directory_and_file() {
        assert_eq!(names(Path::new("/etc/anechoic/passwords/crm")), ["passwords_crm", "crm"]);
        assert_eq!(names(Path::new("crm.password")), ["crm.password"]);
    }
}
