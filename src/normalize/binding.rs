//! Which columns of which table are which fields of which entity, and how they are mapped.

use std::net::Ipv6Addr;
use std::sync::Arc;

use super::array;
use super::dates::Dates;
use super::filter::Filter;
use super::format::Format;
use super::recast::recast;
use super::transform::{Refusal, ValueMap, convert, fits, json_numbers_fit};
use crate::catalog::{Column, ColumnType, Table};
use crate::config::Engine;
use crate::error::{Error, Result};
use crate::schema::{EntityId, SystemId};
use crate::value::{Datum, Kind, Value, write_datum, write_inet6};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Both,
    /// Receives nothing.
    Source,
    /// Local writes are drift: counted, not journaled.
    Target,
}

impl Role {
    pub fn captures(self) -> bool {
        matches!(self, Role::Both | Role::Source)
    }

    pub fn receives(self) -> bool {
        matches!(self, Role::Both | Role::Target)
    }
}

/// One entity in one system, resolved against the catalog.
#[derive(Debug, Clone)]
pub struct Binding {
    pub system: SystemId,
    pub entity: EntityId,
    pub table: Arc<Table>,
    pub role: Role,
    /// Key columns first, in the order of the entity's fields. At most 128.
    pub columns: Vec<BoundColumn>,
    /// `columns[..key_len]` is the key.
    pub key_len: usize,
    /// Which rows belong here, over canonical fields; all of them where absent.
    pub filter: Option<Filter>,
    /// Unique keys of the table beside the entity's, as places in `columns`: those whose clashes are
    /// decided between records ([`Rules::uniques`](crate::rules::Rules)).
    pub clash_keys: Vec<Vec<usize>>,
}

#[derive(Debug, Clone)]
pub struct BoundColumn {
    /// Index of the field in the entity's schema.
    pub field: usize,
    pub kind: Kind,
    pub column: Column,
    pub transform: Transform,
    /// Whose limits apply.
    pub engine: Engine,
    /// `field "joined" of "contact" (column "joined_on")`, for errors.
    pub label: Arc<str>,
}

/// What happens to a value beyond the change of representation that its types imply.
#[derive(Debug, Clone, PartialEq)]
pub enum Transform {
    None,
    Format(Format),
    Values(ValueMap),
    /// A JSON column in place of an array with such elements.
    Array(ColumnType),
    /// A date column in which other values stand for dates that not all engines have.
    Dates(Dates),
}

impl BoundColumn {
    /// Column value as captured → canonical, appended to `out` in row form. A value that
    /// cannot be carried exactly is `Recovery::Quarantine`; then nothing is appended.
    pub fn to_canonical(&self, datum: Datum<'_>, out: &mut Vec<u8>) -> Result<()> {
        let Datum::Value(value) = datum else {
            write_datum(out, datum);
            return Ok(());
        };
        let mut address = String::new();
        let mut scratch = Vec::new(); // allocates only where an integer becomes decimal text
        let value = match (value, &self.column.ty) {
            (Value::Text(text), ColumnType::Char { .. }) => Value::Text(text.trim_end_matches(' ')),
            // MariaDB's own spelling is another than its log's bytes are given.
            (Value::Text(text), ColumnType::Inet { v6: true }) => {
                let parsed: Ipv6Addr = text.parse().map_err(|_| self.refused("the text is not an address"))?;
                write_inet6(parsed.octets(), &mut address);
                Value::Text(&address)
            }
            _ => value,
        };
        let canonical = match (&self.transform, value) {
            // Of its former type where the log is from before it was altered.
            (Transform::None, value) => recast(value, self.kind, &mut scratch),
            (Transform::Format(format), Value::Text(text)) => {
                format.read(text).and_then(|value| convert(value, self.kind, &mut scratch))
            }
            (Transform::Format(_), _) => Err("a format needs text".into()),
            (Transform::Array(element), Value::Json(text)) => {
                array::from_json(text, element, &mut scratch).map(|()| Value::Array(made(&scratch)))
            }
            (Transform::Array(_), _) => Err("an array needs JSON".into()),
            (Transform::Dates(dates), value) => match dates.to_canonical(value, self.engine) {
                Ok(Datum::Value(value)) => convert(value, self.kind, &mut scratch),
                Ok(datum) => {
                    write_datum(out, datum);
                    return Ok(());
                }
                Err(why) => Err(why),
            },
            (Transform::Values(map), value) => map.to_canonical(value),
        };
        let canonical = canonical.map_err(|why| self.refused(&why))?;
        write_datum(out, Datum::Value(canonical));
        Ok(())
    }

    /// Canonical value → what the column takes: of the column's own kind, in range, not
    /// rounded, not cut; what was made for it lies in `scratch`. Errors as above.
    pub fn to_column<'a>(&'a self, datum: Datum<'a>, scratch: &'a mut Vec<u8>) -> Result<Datum<'a>> {
        let value = match datum {
            // A difference has no range of its own: the server checks what it leads to.
            Datum::NotSent | Datum::Added(_) => return Ok(datum),
            Datum::Null if self.column.nullable => return Ok(datum),
            Datum::Null if self.zero().is_some() => return Ok(self.zero().map_or(Datum::Null, Datum::Value)),
            // MySQL and MariaDB may put their own value where a timestamp is not nullable.
            Datum::Null => return Err(self.refused("NULL into a column that is NOT NULL")),
            Datum::Value(value) => value,
        };
        self.value_to_column(value, scratch).map_err(|why| self.refused(&why))
    }

    /// What NULL is in this column.
    fn zero(&self) -> Option<Value<'static>> {
        match &self.transform {
            Transform::Dates(dates) => dates.null(self.column.ty.kind()?, self.engine),
            _ => None,
        }
    }

    fn value_to_column<'a>(&'a self, value: Value<'a>, scratch: &'a mut Vec<u8>) -> Result<Datum<'a>, Refusal> {
        let own = match &self.transform {
            Transform::None => {
                let kind = self.column.ty.kind().ok_or("the column's type is not supported")?;
                convert(value, kind, scratch)?
            }
            Transform::Format(format) => {
                let mut unused = Vec::new(); // at most a zone comes or goes: nothing is made
                let value = convert(value, format.kind, &mut unused)?;
                Value::Text(format.write(value, scratch)?)
            }
            Transform::Values(map) => map.to_column(value)?,
            Transform::Array(element) => match value {
                Value::Array(text) => {
                    array::to_json(text, element, scratch)?;
                    Value::Json(made(scratch))
                }
                _ => return Err("an array is needed to make JSON of".into()),
            },
            Transform::Dates(dates) => {
                let kind = self.column.ty.kind().ok_or("the column's type is not supported")?;
                match dates.to_column(convert(value, kind, scratch)?, self.engine)? {
                    Datum::Value(value) => return fits(value, &self.column.ty, self.engine).map(Datum::Value),
                    Datum::Null if !self.column.nullable => {
                        return Err("its stand-in is NULL, and the column is NOT NULL".into());
                    }
                    datum => return Ok(datum),
                }
            }
        };
        if let (Value::Json(text), true) = (own, self.is_binary_json()) {
            json_numbers_fit(text)?;
        }
        fits(own, &self.column.ty, self.engine).map(Datum::Value)
    }

    /// MySQL parses documents; MariaDB and PostgreSQL keep every digit.
    fn is_binary_json(&self) -> bool {
        self.engine == Engine::Mysql && self.column.type_name.eq_ignore_ascii_case("json")
    }

    fn refused(&self, why: &str) -> Error {
        Error::data(format!("{}: {why}", self.label))
    }
}

/// Of the array or JSON text that was written there.
fn made(scratch: &[u8]) -> &str {
    std::str::from_utf8(scratch).expect("made of text")
}
