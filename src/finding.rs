//! What `check`, `setup` and start-up found in the way, each with what mends it.
//!
//! What mends it can be taken as it is printed: SQL whose statements end with `;`, TOML for the
//! configuration file, or a command. Lines that begin with `--` or `#` say who runs it, what
//! follows, what else would do, and what goes into a server's own file
//! (`# my.cnf, [mysqld]: name = value`).

use serde::Serialize;

use crate::catalog::TableName;
use crate::error::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Would lose data, loop, or cannot work: nothing starts there.
    Error,
    /// Works, with a risk that a person should know.
    Warning,
    /// Works; a cost or a limit that is easily forgotten.
    Note,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// Empty where it concerns no single system.
    pub system: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub entity: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub table: String,
    /// One sentence, lower case: what is wrong with which named object.
    pub what: String,
    /// The SQL, TOML or command that mends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mend: String,
}

impl Finding {
    pub fn error(system: &str, what: impl Into<String>) -> Self {
        Finding {
            severity: Severity::Error,
            system: system.into(),
            entity: String::new(),
            table: String::new(),
            what: what.into(),
            mend: String::new(),
        }
    }

    pub fn warning(system: &str, what: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, ..Self::error(system, what) }
    }

    pub fn note(system: &str, what: impl Into<String>) -> Self {
        Finding { severity: Severity::Note, ..Self::error(system, what) }
    }

    /// What kept us from looking at all.
    pub fn of(system: &str, error: &Error) -> Self {
        let mut what = error.full();
        if !error.hint.is_empty() {
            what.truncate(what.len() - error.hint.len() - 2);
        }
        // A list of findings says of each how bad it is.
        let what = what.strip_prefix("error: ").unwrap_or(&what).to_owned();
        Self::error(system, what).mend(error.hint.clone())
    }

    #[must_use]
    pub fn entity(mut self, entity: impl Into<String>) -> Self {
        self.entity = entity.into();
        self
    }

    #[must_use]
    pub fn table(mut self, table: &TableName) -> Self {
        self.table = table.to_string();
        self
    }

    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = mend.into();
        self
    }

    /// SQL for whoever administers the system.
    #[must_use]
    pub fn by_administrator(self, sql: impl AsRef<str>) -> Self {
        self.mend(format!("-- as an administrator:\n{}", sql.as_ref()))
    }

    /// SQL for the role that owns the table.
    #[must_use]
    pub fn by_owner(self, sql: impl AsRef<str>) -> Self {
        self.mend(format!("-- as the table's owner:\n{}", sql.as_ref()))
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl Finding {
    /// For the log, whose level says how bad it is.
    pub fn logged(&self) -> String {
        let text = self.to_string();
        text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_owned())
    }
}

/// `error: crm: contact (public.contacts): what`, then what mends it, indented.
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{severity}: ")?;
        if !self.system.is_empty() {
            write!(f, "{}: ", self.system)?;
        }
        match (self.entity.is_empty(), self.table.is_empty()) {
            (false, false) => write!(f, "{} ({}): ", self.entity, self.table)?,
            (false, true) => write!(f, "{}: ", self.entity)?,
            (true, false) => write!(f, "{}: ", self.table)?,
            (true, true) => {}
        }
        write!(f, "{}", self.what)?;
        for line in self.mend.lines() {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_as_place_then_what_then_the_way_out() {
        let table = TableName { schema: "public".into(), name: "contacts".into() };
        let finding =
            Finding::error("crm", "role \"hq\" may not UPDATE").entity("contact").table(&table).mend("GRANT …;\nand\n");

        assert_eq!(
            finding.to_string(),
            "error: crm: contact (public.contacts): role \"hq\" may not UPDATE\n    GRANT …;\n    and"
        );
    }

    #[test]
    fn an_errors_hint_becomes_what_mends_it() {
        let finding = Finding::of("crm", &Error::stop("slot is gone", "anechoic teardown"));

        assert_eq!((finding.what.as_str(), finding.mend.as_str()), ("slot is gone", "anechoic teardown"));
    }
}
