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

/// What a server says where it does not take the password.
pub(super) const WRONG_PASSWORD: &str = "check user and password";

/// A refused login, with how another password is taken: not everything is read anew.
pub(super) fn refused(error: Error, source: &PasswordSource) -> Error {
    if error.hint != WRONG_PASSWORD {
        return error;
    }
    let way = match source {
        PasswordSource::None => "the system has neither password_file nor password_env".to_owned(),
        PasswordSource::Inline(_) => "it is in the url, and another one is taken by a reload".to_owned(),
        PasswordSource::Env(name) => {
            format!("it is in the environment variable {name}, and another one is taken by a restart")
        }
        PasswordSource::File(path) if readable(path) == *path => {
            format!("{} is read again at the next attempt", path.display())
        }
        PasswordSource::File(path) => format!(
            "the service has a copy of {} as it was when it started: mend the file, then systemctl restart anechoic",
            path.display()
        ),
    };
    error.hint(format!("{WRONG_PASSWORD}; {way}"))
}

/// Code of the error that says: there is no password to log in with.
pub const UNREADABLE: &str = "unreadable password file";

fn in_file(path: &Path) -> Result<String> {
    // Missing or half written while it is being replaced is no reason to stand still.
    let mut text = std::fs::read_to_string(readable(path)).map_err(|error| unreadable(path, error))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    let (mut what, place) = (format!("cannot read password file {}", path.display()), path.display());
    let hint = match error.kind() {
        std::io::ErrorKind::InvalidData => "a password is UTF-8 text".to_owned(),
        _ if credentials().is_some() => {
            let names: Vec<String> = names(path).iter().map(|name| format!("{name:?}")).collect();
            what += &format!(", and the service manager has given no copy of it (credential {})", names.join(" or "));
            format!("as root write it into {place}, then systemctl restart anechoic: only a start copies it")
        }
        std::io::ErrorKind::NotFound => format!("write it into {place}, mode 0600"),
        _ => "run this as root, or as a user who may read it; in the service, LoadCredential= also serves".to_owned(),
    };
    Error::retry(what).code(UNREADABLE).hint(hint).because(error)
}

/// The file itself, which is never older than a copy of it; the credential where only that can
/// be opened.
pub(super) fn readable(path: &Path) -> PathBuf {
    let file = |path: &Path| File::open(path).is_ok();
    if file(path) {
        return path.to_owned();
    }
    credentials()
        .and_then(|directory| names(path).into_iter().map(|name| directory.join(name)).find(|path| file(path)))
        .unwrap_or_else(|| path.to_owned())
}

fn credentials() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from)
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

    /// In a service a file is read once, by the service manager.
    #[test]
    fn a_refused_password_is_said_with_how_another_one_is_taken() {
        let hint = |source: &PasswordSource| refused(Error::retry("no").hint(WRONG_PASSWORD), source).hint;
        let file = tempfile::NamedTempFile::new().unwrap();

        let read = hint(&PasswordSource::File(file.path().to_owned()));
        assert!(read.ends_with("is read again at the next attempt"), "{read}");
        assert!(hint(&PasswordSource::Env("PW".into())).contains("PW"));
        assert!(hint(&PasswordSource::Inline("s3cret".into())).contains("reload"));
        assert_eq!(refused(Error::retry("no").hint("other"), &PasswordSource::None).hint, "other");
    }

    #[test]
    fn a_credential_is_called_like_its_file_or_like_directory_and_file() {
        assert_eq!(names(Path::new("/etc/anechoic/passwords/crm")), ["passwords_crm", "crm"]);
        assert_eq!(names(Path::new("crm.password")), ["crm.password"]);
    }
}
