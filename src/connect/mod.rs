//! Connections to the systems: TLS by mode, sessions in which values mean the same everywhere.

pub mod mysql;

use crate::config::PasswordSource;
use crate::error::{Error, Result};

/// The password as it is now: read at every connect, so that a rotation needs no restart.
pub fn password(source: &PasswordSource) -> Result<Option<String>> {
    match source {
        PasswordSource::None => Ok(None),
        PasswordSource::Inline(password) => Ok(Some(password.clone())),
        PasswordSource::File(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Error::retry(format!("the password file {} cannot be read", path.display()))
                    .hint("name a file that the agent's user can read in password_file")
                    .because(error)
            })?;
            let line = text.strip_suffix('\n').unwrap_or(&text);
            Ok(Some(line.strip_suffix('\r').unwrap_or(line).to_owned()))
        }
        PasswordSource::Env(name) => std::env::var(name).map(Some).map_err(|error| {
            Error::retry(format!("the password's environment variable {name} is not usable"))
                .hint("set it for the agent's service, or use password_file")
                .because(error)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_file_loses_one_trailing_newline() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("password");
        std::fs::write(&path, "s3cret \n\n").expect("written");

        assert_eq!(password(&PasswordSource::File(path)).expect("readable").as_deref(), Some("s3cret \n"));
        assert!(password(&PasswordSource::Env("ANECHOIC_NO_SUCH_VARIABLE".into())).is_err());
    }
}
