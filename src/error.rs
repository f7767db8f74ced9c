//! Errors that say what, where and the way out, and that know their own recovery.

use std::time::Duration;

use crate::position::Position;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What becomes of the flow in which an error occurred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Connect again with backoff, and go on from the last durable position.
    Retry,
    /// Set this one change aside with both images; everything else goes on.
    Quarantine,
    /// Halt this system's flow until a person has acted on the hint.
    Stop,
}

/// Code of errors that say: a system's log cannot be read from our position on, or its rows and
/// the journal contradict each other. No time mends that.
const LOST: &str = "lost";

/// What mends it; the system's name follows.
pub const RESYNC: &str = "anechoic load --resync";

/// One sentence, lower case: what could not be done, to which named object, at which
/// position. The cause stays in `source()`, the way out is the hint.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub recovery: Recovery,
    pub message: String,
    /// What a person can do about it: SQL, TOML or a command. Empty where time mends it.
    pub hint: String,
    /// SQLSTATE or server error number, where a server said it.
    pub code: Option<String>,
    /// Where in the system's log.
    pub position: Option<Box<Position>>,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub fn new(recovery: Recovery, message: impl Into<String>) -> Self {
        Error { recovery, message: message.into(), hint: String::new(), code: None, position: None, source: None }
    }

    /// Transient: connection, lock or resource trouble.
    pub fn retry(message: impl Into<String>) -> Self {
        Self::new(Recovery::Retry, message)
    }

    /// The value or row cannot be carried; only that change is set aside.
    pub fn data(message: impl Into<String>) -> Self {
        Self::new(Recovery::Quarantine, message)
    }

    /// Needs a person: `hint` says what to do.
    pub fn stop(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(Recovery::Stop, message).hint(hint)
    }

    /// A system's position is lost: `before` is what to do, or to know, before the command that
    /// makes a new one.
    pub fn lost(message: impl Into<String>, before: &str) -> Self {
        Self::stop(message, format!("{before}: {RESYNC}")).code(LOST)
    }

    pub fn is_lost(&self) -> bool {
        self.code.as_deref() == Some(LOST)
    }

    /// The command names the system. Captures do not know what theirs is called.
    #[must_use]
    pub fn of_system(mut self, name: &str) -> Self {
        if self.hint.ends_with(RESYNC) {
            self.hint = format!("{} {name}", self.hint);
        }
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    #[must_use]
    pub fn at(mut self, position: Position) -> Self {
        self.position = Some(Box::new(position));
        self
    }

    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Puts "what was being done" in front: `context: message`.
    #[must_use]
    pub fn context(mut self, context: impl std::fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Message, causes and hint on one line, for logs and `/status`.
    pub fn full(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let said = undoubled(&error.to_string());
            if !text.contains(&said) && !repeats(&said, &text) {
                text.push_str(": ");
                text.push_str(&said);
            }
            cause = error.source();
        }
        if let Some(position) = &self.position {
            text.push_str(&format!(" (at {position})"));
        }
        if !self.hint.is_empty() {
            text.push_str("; ");
            text.push_str(&self.hint);
        }
        text
    }
}

/// Drivers say what their cause says, and then the cause: "Input/output error: Input/output error: …".
fn undoubled(said: &str) -> String {
    let mut parts: Vec<&str> = said.split(": ").collect();
    parts.dedup();
    parts.join(": ")
}

/// Drivers put a server's own sentence between words of theirs.
fn repeats(said: &str, text: &str) -> bool {
    text.rsplit("the server says: ")
        .next()
        .is_some_and(|sentence| sentence.len() < text.len() && said.contains(sentence))
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::retry(error.to_string()).because(error)
    }
}

/// Exponential backoff with jitter; `random` in 0..1 is passed in so that the simulation decides
/// it. Attempt 0 waits at most 200 ms, later ones at most 5 s: however long a server was away,
/// what waited for it begins within that after it is back, and asking so often costs nobody much.
pub fn backoff(attempt: u32, random: f64) -> Duration {
    let ceiling = 0.2 * 2f64.powi(attempt.min(8) as i32);
    Duration::from_secs_f64(ceiling.min(5.0) * (0.5 + random / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_to_five_seconds_and_no_further() {
        let longest = |attempt| backoff(attempt, 1.0);

        assert_eq!(longest(0), Duration::from_millis(200));
        assert_eq!(longest(3), Duration::from_millis(1600));
        assert_eq!((longest(5), longest(u32::MAX)), (Duration::from_secs(5), Duration::from_secs(5)));
        assert_eq!(backoff(100, 0.0), Duration::from_millis(2500), "some jitter, so that not all come at once");
    }
}
