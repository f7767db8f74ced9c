//! What an error of the server means for the flow: a list of its numbers decides.
//!
//! SQLSTATE would not do: an ambiguous column is 23000 as well, and a failed check is HY000.

use crate::apply::sql::{backquoted, backquoted_table};
use crate::catalog::TableName;
use crate::error::{Error, Recovery};

/// An error while writing to `table` as `role`.
pub fn classify(error: mysql_async::Error, table: &TableName, role: &str) -> Error {
    let mysql_async::Error::Server(server) = &error else {
        return Error::retry(format!("the connection failed while writing to {table}")).because(error);
    };
    let recovery = recovery(server.code);
    let message = without_values(&server.message);
    let mut said = Error::new(recovery.clone(), format!("{table}: {message}")).code(server.code.to_string());
    if recovery == Recovery::Stop {
        said = said.hint(hint(server.code, table, role));
    }
    said
}

pub fn recovery(code: u16) -> Recovery {
    match code {
        // NULL where none may be: in a column, by an expression, in a row of several.
        1048 | 1263 => Recovery::Quarantine,
        // Duplicates: of a key, of a named key, made by a cascade, of a key that cannot be told.
        1022 | 1062 | 1169 | 1557 | 1586 | 1761 | 1762 => Recovery::Quarantine,
        // Foreign keys: no parent, still children; the newer spellings name the constraint.
        1216 | 1217 | 1451 | 1452 => Recovery::Quarantine,
        // Values: out of range, cut, wrong for their type, of a bad character string, without
        // default, illegal, too long, wrong for a function, bad geometry, wrong literal,
        // arithmetic out of range, too long for the row.
        1118 | 1264 | 1265 | 1292 | 1300 | 1364 | 1366 | 1367 | 1406 | 1411 | 1416 | 1525 | 1690 => {
            Recovery::Quarantine
        }
        // JSON: text, charset, path, key, depth.
        3140 | 3141 | 3143 | 3144 | 3157 | 3158 => Recovery::Quarantine,
        // Checks: MySQL's, MariaDB's, of a view; no partition for the value.
        1369 | 1526 | 1748 | 3819 | 4025 => Recovery::Quarantine,
        // SIGNAL in a user's trigger: its way to refuse a row.
        1644 => Recovery::Quarantine,
        // Locks: timeout, deadlock, NOWAIT, user locks, XA deadlock, changed since read.
        1020 | 1205 | 1213 | 1614 | 3058 | 3572 => Recovery::Retry,
        // Connections: too many, shutting down, packets cut, gone, killed, idle too long.
        1040 | 1042 | 1043 | 1053 | 1077..=1080 | 1129 | 1152 | 1158..=1161 | 1184 | 1203 | 1226 => Recovery::Retry,
        1317 | 1927 | 1969 | 2006 | 2013 | 3024 | 3169 | 4031 => Recovery::Retry,
        // Resources: disk, memory, sort buffers, tables full; failed commit, rollback, binlog.
        1021 | 1037 | 1038 | 1041 | 1114 | 1180 | 1181 | 1026 | 3100 | 3101 => Recovery::Retry,
        // Read-only after a failover, or while somebody holds a global lock.
        1099 | 1223 | 1290 | 1792 | 1836 => Recovery::Retry,
        _ => Recovery::Stop,
    }
}

fn hint(code: u16, table: &TableName, role: &str) -> String {
    match code {
        1044 | 1142 | 1143 | 1227 | 1370 => {
            format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}", backquoted_table(table), backquoted(role))
        }
        1049 | 1146 => "create the table, or take the entity's binding out of the configuration".into(),
        1054 => {
            "the table has changed: its catalog is read again; where that does not help, correct the binding".into()
        }
        _ => "see the server's log, then restart the agent".into(),
    }
}

/// Messages quote the row: `Duplicate entry 'a@b.c' for key 't.email'`, `Incorrect integer
/// value: 'x' for column 'n' at row 1`. Row values do not belong in logs.
fn without_values(message: &str) -> String {
    for (start, end) in [("entry '", "' for key"), ("value: '", "' for"), ("value '", "' for")] {
        let Some(from) = message.find(start).map(|at| at + start.len()) else { continue };
        if let Some(to) = message.rfind(end).filter(|to| *to >= from) {
            return format!("{}…{}", &message[..from], &message[to..]);
        }
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_data_errors_set_a_change_aside() {
        for code in [1048, 1062, 1216, 1217, 1264, 1265, 1292, 1366, 1406, 1451, 1452, 1690, 3140, 3819, 4025, 1644] {
            assert_eq!(recovery(code), Recovery::Quarantine, "{code}");
        }
        for code in [1205, 1213, 2006, 2013, 1040, 1053, 1159, 3024, 3572, 1290] {
            assert_eq!(recovery(code), Recovery::Retry, "{code}");
        }
        for code in [1045, 1052, 1054, 1064, 1142, 1146, 1267, 1242] {
            assert_eq!(recovery(code), Recovery::Stop, "{code}");
        }
    }

    #[test]
    fn messages_lose_the_values_that_they_quote() {
        assert_eq!(without_values("Duplicate entry 'it's' for key 't.email'"), "Duplicate entry '…' for key 't.email'");
        assert_eq!(
            without_values("Incorrect integer value: 'x' for column 'n' at row 1"),
            "Incorrect integer value: '…' for column 'n' at row 1"
        );
        assert_eq!(without_values("Column 'n' cannot be null"), "Column 'n' cannot be null");
    }
}
