//! A table's columns as its log has them, matched with those that the catalog shows.
//!
//! The catalog shows now, the log shows then, and a table may have been altered in between. What
//! can be told apart: a row that was logged before the catalog was read is older than anything
//! the catalog shows, so a bound column that it lacks was added (or renamed) since. Of a row
//! that was logged later nothing is sure: the catalogs have to be read again first.
//!
//! ```text
//! log ────row lacks c────▶│ catalog read: has c      c came later: the row has no value of it
//! log      catalog read ──│──▶ row lacks c           look again, then decide
//! ```

use super::{TableNow, WantedTable};
use crate::catalog::TableName;
use crate::error::{Error, Result};
use crate::position::Position;

/// Code of the error that says: the log is ahead of the catalog that was read. Reading it
/// again decides.
pub const UNSEEN: &str = "altered since the catalog was read";

/// Code of the error that says: what the catalogs show now does not fit what the log holds.
/// Another change of a table, or of a trigger, may mend it.
pub const ALTERED: &str = "altered";

pub fn is_unseen(error: &Error) -> bool {
    error.code.as_deref() == Some(UNSEEN)
}

pub fn is_altered(error: &Error) -> bool {
    error.code.as_deref() == Some(ALTERED)
}

/// A wanted table that has another name for a while: the source of an error that says so.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("called {to} from there on")]
pub struct Moved {
    pub table: TableName,
    pub to: TableName,
}

impl Moved {
    pub fn of(error: &Error) -> Option<&Moved> {
        error.source.as_ref()?.downcast_ref()
    }
}

/// One table of the log as of some transaction.
#[derive(Debug, Clone, Copy)]
pub struct Logged<'a> {
    pub wanted: &'a WantedTable,
    /// It was logged before the catalog was read.
    pub seen: bool,
}

impl Logged<'_> {
    /// The place of each wanted column among the log's; `None`: it was added later. `fits` tells
    /// whether a column of the log, by its place, could hold a wanted one's values.
    pub fn places(self, names: &[&str], fits: impl Fn(usize, usize) -> bool) -> Result<Vec<Option<usize>>> {
        let WantedTable { columns, now, .. } = self.wanted;
        if let Some(now) = now {
            self.unexpected(names, now)?;
        }
        let find = |name: &str| names.iter().position(|found| *found == name);
        let bound = |name: &str| columns.iter().any(|column| column.name == name);
        let mut places = Vec::with_capacity(columns.len());
        for (index, column) in columns.iter().enumerate() {
            if let Some(place) = find(&column.name) {
                places.push(Some(place));
                continue;
            }
            let Some(now) = now.as_deref().filter(|_| self.seen) else {
                return Err(self.gone(&column.name));
            };
            let formerly = now.formerly.iter().find(|(of, _)| *of == index).map(|(_, names)| names);
            let place = match formerly {
                Some(names) => names.iter().find_map(|name| find(name).filter(|_| !bound(name))),
                None => {
                    let gone = |name: &&str| !now.columns.iter().any(|column| column == name) && !bound(name);
                    let may_be = (0..names.len()).filter(|place| gone(&names[*place]) && fits(index, *place));
                    let may_be: Vec<&str> = may_be.map(|place| names[place]).collect();
                    if !may_be.is_empty() {
                        return Err(self.renamed(&column.name, &may_be));
                    }
                    None
                }
            };
            if place.is_none() && self.wanted.key.contains(&column.name) {
                return Err(self.gone(&column.name));
            }
            places.push(place);
        }
        Ok(places)
    }

    /// A column that a binding by name may have to carry.
    fn unexpected(self, names: &[&str], now: &TableNow) -> Result<()> {
        if !now.by_name {
            return Ok(());
        }
        let table = &self.wanted.name;
        for name in names {
            if !self.seen && !now.columns.iter().any(|column| column == name) {
                return Err(self.unseen(format!("column {name:?} of {table} is new in the log")));
            }
            if now.awaited.iter().any(|awaited| awaited == name) {
                return Err(Error::stop(
                    format!("column {name:?} of {table} is new, and no other system has one of that name yet"),
                    format!(
                        "it is bound by its name, so its values wait for the other column: ALTER TABLE … ADD COLUMN \
                         {name} in the other systems and the flow goes on by itself, nothing lost; to leave it alone: \
                         ignore = [{name:?}] in the binding, and restart the agent"
                    ),
                )
                .code(ALTERED));
            }
        }
        Ok(())
    }

    /// The type of a column is another one than its binding was checked with.
    pub fn other_type(self, column: &str, what: &str) -> Error {
        let table = &self.wanted.name;
        let message = format!("column {column:?} of {table} {what}: the table was altered");
        match self.seen || self.wanted.now.is_none() {
            false => self.unseen(message),
            true => Error::stop(
                message,
                "give the column a type whose values are those of the log, or change its binding, then restart the \
                 agent; rows that were logged with the former type cannot become values of the new one",
            )
            .code(ALTERED),
        }
    }

    /// The table itself, under a name that it has not in the catalog.
    pub fn moved(self, to: TableName) -> Error {
        let table = self.wanted.name.clone();
        self.unseen(format!("{table} was renamed to {to}")).because(Moved { table, to })
    }

    /// The log names no columns, and the catalog shows the table as it was at another time.
    pub fn unnamed(self) -> Error {
        let message = format!("the log names no columns of {}, and the table was altered", self.wanted.name);
        match self.seen {
            false => self.unseen(message),
            true => Error::stop(
                format!("{message} since these rows were logged"),
                "SET GLOBAL binlog_row_metadata=FULL, then begin anew at the log's present end and compare the tables",
            )
            .code(ALTERED),
        }
    }

    fn gone(self, column: &str) -> Error {
        let message =
            format!("column {column:?} of {} is not in the log's table: the table was altered", self.wanted.name);
        match self.seen || self.wanted.now.is_none() {
            false => self.unseen(message),
            true => Error::stop(
                message,
                "add the column again, or change its binding: formerly = [\"…\"] names what it was called when those \
                 rows were logged",
            )
            .code(ALTERED),
        }
    }

    fn renamed(self, column: &str, may_be: &[&str]) -> Error {
        let list: Vec<String> = may_be.iter().map(|name| format!("{name:?}")).collect();
        Error::stop(
            format!(
                "rows of {} were logged before column {column:?} was there, with {} that {} gone: renamed, or dropped?",
                self.wanted.name,
                list.join(", "),
                if may_be.len() == 1 { "is" } else { "are" },
            ),
            format!(
                "say it in the binding: {{ column = {column:?}, formerly = [{}] }} where it was renamed, formerly = [] \
                 where {column:?} is a new column; then restart the agent, and the flow goes on from here",
                list[0]
            ),
        )
        .code(ALTERED)
    }

    fn unseen(self, message: String) -> Error {
        Error::stop(message, "the catalogs are read again").code(UNSEEN)
    }
}

/// A transaction of the log lies before the end that the log had when the catalog was read.
/// `None`: it was not read from the server, and says nothing of when.
pub fn seen(now: Option<&TableNow>, before: impl Fn(&Position) -> bool) -> bool {
    now.and_then(|now| now.at.as_ref()).is_some_and(before)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::capture::WantedColumn;
    use crate::catalog::ColumnType;
    use crate::error::Recovery;

    fn wanted(columns: &[&str], now: TableNow) -> WantedTable {
        let column = |name: &&str| WantedColumn { name: (*name).into(), ty: ColumnType::Bool };
        WantedTable {
            id: 0,
            name: TableName { schema: "d".into(), name: "t".into() },
            columns: columns.iter().map(column).collect(),
            key: vec!["id".into()],
            now: Some(Arc::new(now)),
        }
    }

    fn now(columns: &[&str]) -> TableNow {
        TableNow { columns: columns.iter().map(|c| (*c).to_owned()).collect(), ..TableNow::default() }
    }

    fn any(_: usize, _: usize) -> bool {
        true
    }

    #[test]
    fn a_column_that_older_rows_lack_was_added_since() {
        let table = wanted(&["id", "note"], now(&["id", "note", "x"]));

        let places = Logged { wanted: &table, seen: true }.places(&["x", "id"], any).unwrap();
        assert_eq!(places, [Some(1), None]);

        let unseen = Logged { wanted: &table, seen: false }.places(&["x", "id"], any).unwrap_err();
        assert!(is_unseen(&unseen) && unseen.recovery == Recovery::Stop, "{unseen}");
    }

    /// Whether `nom` became `name` or was dropped is not for us to guess.
    #[test]
    fn a_column_that_may_have_been_renamed_wants_its_former_name() {
        let mut known = now(&["id", "name"]);
        let ask = |known: &TableNow, log: &[&str]| {
            Logged { wanted: &wanted(&["id", "name"], known.clone()), seen: true }.places(log, any)
        };

        let error = ask(&known, &["id", "nom"]).unwrap_err();
        assert!(is_altered(&error) && error.full().contains("formerly = [\"nom\"]"), "{}", error.full());

        known.formerly = vec![(1, vec!["nom".into()])];
        assert_eq!(ask(&known, &["nom", "id"]).unwrap(), [Some(1), Some(0)]);
        assert_eq!(ask(&known, &["id"]).unwrap(), [Some(0), None], "older still: it had neither name");

        known.formerly = vec![(1, vec![])];
        assert_eq!(ask(&known, &["nom", "id"]).unwrap(), [Some(1), None]);
    }

    #[test]
    fn a_column_of_another_type_is_no_former_name() {
        let table = wanted(&["id", "name"], now(&["id", "name"]));

        let places = Logged { wanted: &table, seen: true }.places(&["id", "junk"], |_, _| false).unwrap();

        assert_eq!(places, [Some(0), None]);
    }

    #[test]
    fn a_key_that_is_gone_stops_whatever_was_added() {
        let table = wanted(&["id"], now(&["id"]));

        assert!(is_altered(&Logged { wanted: &table, seen: true }.places(&["x"], |_, _| false).unwrap_err()));
    }

    #[test]
    fn new_columns_matter_to_bindings_by_name_alone() {
        let mut known = now(&["id", "x"]);
        known.awaited = vec!["x".into()];
        let ask = |known: &TableNow, seen, log: &[&str]| {
            Logged { wanted: &wanted(&["id"], known.clone()), seen }.places(log, any).map(drop)
        };

        assert!(ask(&known, false, &["id", "x", "y"]).is_ok());
        known.by_name = true;
        assert!(is_altered(&ask(&known, true, &["id", "x"]).unwrap_err()));
        assert!(is_unseen(&ask(&known, false, &["id", "y"]).unwrap_err()));
        assert!(ask(&known, true, &["id", "y"]).is_ok(), "y came and went");
    }
}
