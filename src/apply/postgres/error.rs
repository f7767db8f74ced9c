//! What an error of the server means for the flow: the SQLSTATE decides.
//!
//! Only data errors set a change aside; connection, lock and resource errors are tried again;
//! everything else stops the system for a person. DETAIL is never passed on, nor are quoted
//! values: row values do not belong in logs.

use tokio_postgres::error::DbError;

use super::value::{REASON_HEAD, REASON_TAIL};
use crate::apply::sql::quoted_table;
use crate::catalog::TableName;
use crate::error::{Error, Recovery};

/// An error while writing to `table` as `role`.
pub fn classify(error: tokio_postgres::Error, table: &TableName, role: &str) -> Error {
    let Some(db) = error.as_db_error() else {
        return Error::retry(format!("the connection failed while writing to {table}")).because(error);
    };
    let code = db.code().code();
    let recovery = match code {
        // Not our statement's syntax, which is prepared by then, but that of a value.
        "42601" if ["tsvector", "tsquery"].iter().any(|ty| db.message().contains(ty)) => Recovery::Quarantine,
        _ => recovery(code),
    };
    let mut said = Error::new(recovery.clone(), format!("{table}: {}", message(db))).code(code);
    if recovery == Recovery::Stop {
        said = said.hint(hint(code, table, role));
    }
    said
}

pub fn recovery(code: &str) -> Recovery {
    let class = code.get(..2).unwrap_or_default();
    match (class, code) {
        // Data exception; integrity constraint violation; a view's WITH CHECK OPTION.
        ("22" | "23" | "44", _) => Recovery::Quarantine,
        // Two rows of one statement are one row by the column's own equality (citext, a
        // case-insensitive collation): alone, one after the other, they pass.
        (_, "21000") => Recovery::Quarantine,
        // RAISE EXCEPTION in a user's trigger: its way to refuse a row.
        (_, "P0001") => Recovery::Quarantine,
        // An index entry too large for its page.
        (_, "54000") => Recovery::Quarantine,
        // Connection; rolled back: deadlock, serialization; resources; shutdown and cancel;
        // system errors (I/O), operator intervention.
        ("08" | "40" | "53" | "57" | "58", _) => Recovery::Retry,
        // Lock not available, object in use; a standby or read-only after a failover; a
        // prepared statement that a pooler or DDL took away; XX000 while a plan is outdated.
        (_, "55P03" | "55006" | "25006" | "25P02" | "26000" | "0A000") => Recovery::Retry,
        _ => Recovery::Stop,
    }
}

fn hint(code: &str, table: &TableName, role: &str) -> String {
    match code {
        "42501" => format!(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}",
            quoted_table(table),
            crate::apply::sql::quoted(role)
        ),
        "3F000" | "42P01" => "create the table, or take the entity's binding out of the configuration".into(),
        "42703" | "42804" | "42704" => {
            "the table has changed: its catalog is read again; where that does not help, correct the binding".into()
        }
        _ => "see the server's log, then restart the agent".into(),
    }
}

/// The primary message, without what it quotes of the row: `invalid input syntax for type
/// numeric: "x"`.
fn message(db: &DbError) -> String {
    let text = db.message();
    let quotes = db.code().code().starts_with("22") || db.code().code() == "42601";
    let text = match text.find(": \"") {
        Some(at) if quotes => own_reason(&text[at + 3..]).unwrap_or(&text[..at]),
        _ => text,
    };
    match db.column() {
        Some(column) if !text.contains(column) => format!("{text} (column {column:?})"),
        _ => text.to_owned(),
    }
}

/// A statement of ours that refuses a value does so by a cast of the reason.
fn own_reason(quoted: &str) -> Option<&str> {
    quoted.strip_suffix('"')?.strip_prefix(REASON_HEAD).filter(|reason| reason.ends_with(REASON_TAIL))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_of_ours_is_told_from_a_quoted_value() {
        let quoted = format!("{REASON_HEAD}as inet{REASON_TAIL}\"");

        assert_eq!(own_reason(&quoted), Some(&*format!("as inet{REASON_TAIL}")));
        assert_eq!(own_reason("hunter2\""), None);
    }

    #[test]
    fn only_data_errors_set_a_change_aside() {
        for code in ["22001", "22003", "22P02", "23502", "23503", "23505", "23514", "23P01", "21000", "P0001"] {
            assert_eq!(recovery(code), Recovery::Quarantine, "{code}");
        }
        for code in ["08006", "40001", "40P01", "53100", "53300", "55P03", "57014", "57P01", "57P03", "25006"] {
            assert_eq!(recovery(code), Recovery::Retry, "{code}");
        }
        for code in ["42501", "42P01", "42703", "28P01", "XX001", "55000", "54001", "42P10"] {
            assert_eq!(recovery(code), Recovery::Stop, "{code}");
        }
    }
}
