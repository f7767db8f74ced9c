//! Rows that are most likely not there yet, through COPY: twice as fast as a statement.
//!
//! COPY inserts and nothing else, so a row that is there already fails all of it. It stands
//! behind a savepoint, and whatever it fails on, the rows are written once more the ordinary
//! way: what is right never depends on the guess. A table whose rows turn out to be there is
//! left alone for a while.
//!
//! ```text
//! marker ─ SAVEPOINT ─ COPY … FROM STDIN (FORMAT binary) ─┬─ done
//!                                                         └─ ROLLBACK TO SAVEPOINT ─ statements
//! ```
//!
//! Binary, as each type's receive function reads it; a type for which that is not exactly what
//! the statement would have assigned is not copied, and its table with it.

use bytes::{BufMut, Bytes};
use futures_util::{SinkExt, pin_mut};
use tokio_postgres::{Client, Statement};

use super::error::recovery;
use super::value::{Wire, encode};
use crate::apply::sql::{Shape, quoted, quoted_table};
use crate::catalog::{Column, ColumnType};
use crate::error::{Error, Recovery, Result};
use crate::normalize::binding::Binding;
use crate::value::{Datum, Row, Value};

/// Fewer rows do not repay the round trip.
pub const ROWS_MIN: usize = 100;
/// Handed to the connection at once.
const PIECE: usize = 128 << 10;
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// The statement for rows of this shape; `None` where a column's type cannot be copied exactly.
pub fn statement(binding: &Binding, shape: &Shape) -> Option<String> {
    let columns = || shape.insert.iter().map(|place| &binding.columns[shape.sent[*place]].column);
    let names: Vec<String> = columns().map(|column| quoted(&column.name)).collect();
    columns().all(is_exact).then(|| {
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", quoted_table(&binding.table.name), names.join(", "))
    })
}

/// The server's own types, whose binary form is known and which a statement would assign as they
/// are: a type of somebody else's may have the same kind.
fn is_exact(column: &Column) -> bool {
    let named = |names: &[&str]| {
        let base = column.type_name.split(['(', ' ']).next().unwrap_or_default();
        names.contains(&base)
    };
    match &column.ty {
        ColumnType::Bool => named(&["boolean"]),
        ColumnType::Int { .. } => named(&["smallint", "integer", "bigint"]),
        ColumnType::Float32 => named(&["real"]),
        ColumnType::Float64 => named(&["double"]),
        ColumnType::Decimal { .. } => named(&["numeric"]),
        ColumnType::Char { .. } | ColumnType::Text { .. } => named(&["text", "character", "bpchar"]),
        ColumnType::Date => named(&["date"]),
        ColumnType::Time { .. } => named(&["time"]),
        ColumnType::DateTime { .. } | ColumnType::Timestamp { .. } => named(&["timestamp"]),
        ColumnType::Uuid => named(&["uuid"]),
        ColumnType::Binary { .. } | ColumnType::Bytes { .. } => named(&["bytea"]),
        ColumnType::Json => named(&["json", "jsonb"]),
        // Its receive function takes the label.
        ColumnType::Enum { .. } => true,
        ColumnType::Set { .. }
        | ColumnType::Bits { .. }
        | ColumnType::Array { .. }
        | ColumnType::Verbatim
        | ColumnType::Year
        | ColumnType::Inet { .. }
        | ColumnType::Geometry
        | ColumnType::Unsupported => false,
    }
}

/// The rows in the form that COPY reads, made piece by piece: the server works on one while the
/// next is made.
pub struct Pieces<'a> {
    binding: &'a Binding,
    columns: Vec<(usize, Wire)>,
    count: i16,
    /// `None` behind the last piece.
    rows: Option<std::slice::Iter<'a, Row<'a>>>,
    out: Vec<u8>,
    datums: Vec<Datum<'a>>,
    scratch: Vec<u8>,
}

impl<'a> Pieces<'a> {
    pub fn new(binding: &'a Binding, shape: &Shape, rows: &'a [Row<'a>]) -> Result<Self> {
        let columns: Vec<(usize, Wire)> = shape
            .insert
            .iter()
            .map(|place| shape.sent[*place])
            .map(|at| Ok((at, Wire::of(&binding.columns[at].column)?)))
            .collect::<Result<_>>()?;
        let count = i16::try_from(columns.len()).map_err(|_| Error::data("too many columns to copy"))?;
        let datums = Vec::with_capacity(binding.columns.len());
        let (out, scratch) = (HEADER.to_vec(), Vec::new());
        Ok(Pieces { binding, columns, count, rows: Some(rows.iter()), out, datums, scratch })
    }

    /// An error: a row cannot be copied.
    fn piece(&mut self) -> Result<Option<Bytes>> {
        let Some(rows) = &mut self.rows else { return Ok(None) };
        for row in rows {
            row.read_into(&mut self.datums);
            self.out.put_i16(self.count);
            for (at, wire) in &self.columns {
                let bound = &self.binding.columns[*at];
                let datum = self.datums.get(bound.field).copied().unwrap_or(Datum::NotSent);
                self.scratch.clear();
                field(*wire, &bound.column, bound.to_column(datum, &mut self.scratch)?, &mut self.out)?;
            }
            if self.out.len() >= PIECE {
                let piece = std::mem::replace(&mut self.out, Vec::with_capacity(PIECE + PIECE / 8));
                return Ok(Some(piece.into()));
            }
        }
        self.rows = None;
        self.out.put_i16(-1);
        Ok(Some(std::mem::take(&mut self.out).into()))
    }
}

fn field(wire: Wire, column: &Column, datum: Datum<'_>, out: &mut Vec<u8>) -> Result<()> {
    let value = match datum {
        Datum::Value(value) => value,
        Datum::Null => {
            out.put_i32(-1);
            return Ok(());
        }
        Datum::NotSent | Datum::Added(_) => {
            return Err(Error::data(format!("column {:?} was not sent whole", column.name)));
        }
    };
    let start = out.len();
    out.put_i32(0);
    match value {
        Value::Decimal(text) => numeric(text, out).ok_or_else(|| Error::data("a number that is not copied"))?,
        Value::Json(text) if column.type_name == "jsonb" => {
            out.put_u8(1); // the version of the form
            out.extend_from_slice(text.as_bytes());
        }
        value => encode(wire, column, value, out)?,
    }
    let len = i32::try_from(out.len() - start - 4).map_err(|_| Error::data("a value that is too long"))?;
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    Ok(())
}

/// `numeric_recv`: digits to the base 10000, the weight of the first, sign, digits behind the
/// point. `None`: not written as sign, digits, point and digits.
fn numeric(text: &str, out: &mut Vec<u8>) -> Option<()> {
    const NEGATIVE: u16 = 0x4000;
    const LONGEST: usize = 16_000;
    let (sign, digits) = match text.as_bytes() {
        [b'-', rest @ ..] => (NEGATIVE, rest),
        [b'+', rest @ ..] => (0, rest),
        rest => (0, rest),
    };
    let point = digits.iter().position(|b| *b == b'.').unwrap_or(digits.len());
    let (whole, fraction) = (&digits[..point], digits.get(point + 1..).unwrap_or_default());
    let are_digits = |part: &[u8]| part.iter().all(u8::is_ascii_digit);
    if !are_digits(whole) || !are_digits(fraction) || whole.len() + fraction.len() == 0 || digits.len() > LONGEST {
        return None;
    }
    let whole = &whole[whole.iter().position(|b| *b != b'0').unwrap_or(whole.len())..];
    let (before, behind) = (whole.len().div_ceil(4), fraction.len().div_ceil(4));
    out.put_u16((before + behind) as u16);
    out.put_i16(before as i16 - 1);
    out.put_u16(sign);
    out.put_u16(fraction.len() as u16);
    let group = |digits: &[u8]| digits.iter().fold(0u16, |sum, b| sum * 10 + u16::from(b - b'0'));
    let (first, rest) = whole.split_at(whole.len() - whole.len() / 4 * 4);
    if !first.is_empty() {
        out.put_u16(group(first));
    }
    rest.chunks(4).for_each(|digits| out.put_u16(group(digits)));
    for digits in fraction.chunks(4) {
        out.put_u16(group(digits) * 10u16.pow(4 - digits.len() as u32));
    }
    Some(())
}

/// Why rows were not copied.
pub enum Unsent {
    Row(Error),
    Server(tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for Unsent {
    fn from(error: tokio_postgres::Error) -> Self {
        Unsent::Server(error)
    }
}

/// Sends the pieces; how many rows the server took. Left in the middle, the copy fails there.
pub async fn send(client: &Client, statement: &Statement, mut pieces: Pieces<'_>) -> Result<u64, Unsent> {
    let sink = client.copy_in::<_, Bytes>(statement).await?;
    pin_mut!(sink);
    while let Some(piece) = pieces.piece().map_err(Unsent::Row)? {
        sink.send(piece).await?;
    }
    Ok(sink.finish().await?)
}

/// An error of the rows or of COPY itself, not of the connection, of locks or of resources. What
/// it says will be said again by the statements where it is the rows' fault.
pub fn is_refusal(code: &str) -> bool {
    code == "0A000" || recovery(code) != Recovery::Retry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::sql::fixture::{column, contacts, lines};

    fn words(text: &str) -> Option<Vec<i32>> {
        let mut out = Vec::new();
        numeric(text, &mut out)?;
        Some(out.chunks(2).map(|word| i16::from_be_bytes([word[0], word[1]]).into()).collect())
    }

    #[test]
    fn numbers_are_groups_of_four_digits() {
        assert_eq!(words("0"), Some(vec![0, -1, 0, 0]));
        assert_eq!(words("0.50"), Some(vec![1, -1, 0, 2, 5000]));
        assert_eq!(words("-12345.678"), Some(vec![3, 1, 0x4000, 3, 1, 2345, 6780]));
        assert_eq!(words("0010000.00001"), Some(vec![4, 1, 0, 5, 1, 0, 0, 1000]));
        for not in ["NaN", "Infinity", "", "-", ".", "1e5", "1.2.3"] {
            assert_eq!(words(not), None, "{not}");
        }
    }

    #[test]
    fn a_table_with_a_type_of_somebody_elses_is_not_copied() {
        let text = |binding: &Binding| statement(binding, &Shape::of(binding, u128::MAX, 0));
        insta::assert_snapshot!(text(&contacts()).unwrap(), @r##"COPY "public"."Kontakte" ("id", "firstName", "order", "od""d`größe") FROM STDIN (FORMAT binary)"##);
        assert!(text(&lines()).is_some(), "an enum is written as its label");

        let mut binding = contacts();
        for (ty, name) in [("citext", "citext"), ("oid", "oid"), ("inet", "inet")] {
            let kind = match name {
                "oid" => ColumnType::Int { bytes: 4, signed: false },
                "inet" => ColumnType::Verbatim,
                _ => ColumnType::Text { chars: None, bytes: None },
            };
            binding.columns[1].column = column("c", kind, ty);
            assert_eq!(text(&binding), None, "{name}");
        }
    }
}
