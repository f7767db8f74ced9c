//! Rows that are most likely not there yet, through LOAD DATA LOCAL out of memory: two to three
//! times as fast as a statement of many rows.
//!
//! Without REPLACE a LOCAL one passes over what it cannot insert, and bends what does not fit,
//! with a warning. So it stands behind a savepoint, and counts only if every row came in and
//! nothing was warned of; else the rows are written once more the ordinary way: what is right
//! never depends on the guess. A table whose rows turn out to be there is left alone for a while.
//!
//! ```text
//! marker ─ SAVEPOINT ─ LOAD DATA LOCAL ─┬─ all rows, no warning
//!                                       └─ ROLLBACK TO SAVEPOINT ─ statements
//! ```
//!
//! No file is read: the server asks for one by name, and is given the rows. Where `local_infile`
//! is off it refuses, and is not asked again.

use bytes::Bytes;
use futures_util::StreamExt;
use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use super::Columns;
use super::literal::field;
use crate::apply::sql::{Shape, backquoted, backquoted_table};
use crate::catalog::{Column, ColumnType};
use crate::error::Result;
use crate::normalize::binding::Binding;
use crate::value::Row;

/// Fewer rows do not repay the round trip.
pub const ROWS_MIN: usize = 100;
/// Handed to the connection at once.
const PIECE: usize = 128 << 10;

/// The statement for rows of this shape; `None` where a column's type cannot be loaded exactly.
pub fn statement(binding: &Binding, shape: &Shape) -> Option<String> {
    let (mut names, mut set) = (Vec::new(), Vec::new());
    for place in &shape.insert {
        let column = &binding.columns[shape.sent[*place]].column;
        let (name, variable) = (backquoted(&column.name), format!("@c{place}"));
        let assigned = match form(column)? {
            Form::Text => {
                names.push(name);
                continue;
            }
            Form::Hex => format!("{name}=UNHEX({variable})"),
            Form::Number => format!("{name}=CAST({variable} AS UNSIGNED)"),
        };
        set.push(assigned);
        names.push(variable);
    }
    let set = if set.is_empty() { String::new() } else { format!(" SET {}", set.join(",")) };
    Some(format!(
        "LOAD DATA LOCAL INFILE 'rows' INTO TABLE {} CHARACTER SET utf8mb4 FIELDS TERMINATED BY '\\t' ENCLOSED BY '' \
         ESCAPED BY '\\\\' LINES TERMINATED BY '\\n' STARTING BY '' ({}){set}",
        backquoted_table(&binding.table.name),
        names.join(",")
    ))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The column takes the text.
    Text,
    /// Bytes are no text in any character set.
    Hex,
    /// As text it would be another one: '0' is the year 2000, and a bit string.
    Number,
}

fn form(column: &Column) -> Option<Form> {
    Some(match &column.ty {
        ColumnType::Binary { .. } | ColumnType::Bytes { .. } => Form::Hex,
        ColumnType::Bits { .. } | ColumnType::Year => Form::Number,
        ColumnType::Bool
        | ColumnType::Int { .. }
        | ColumnType::Decimal { .. }
        | ColumnType::Float32
        | ColumnType::Float64
        | ColumnType::Char { .. }
        | ColumnType::Text { .. }
        | ColumnType::Json
        | ColumnType::Enum { .. }
        | ColumnType::Set { .. }
        | ColumnType::Date
        | ColumnType::Time { .. }
        | ColumnType::DateTime { .. }
        | ColumnType::Timestamp { .. }
        | ColumnType::Inet { .. }
        | ColumnType::Uuid => Form::Text,
        ColumnType::Geometry | ColumnType::Array { .. } | ColumnType::Verbatim | ColumnType::Unsupported => {
            return None;
        }
    })
}

/// The rows as lines, in pieces. An error: one of them cannot be written at all.
pub fn lines(binding: &Binding, shape: &Shape, rows: &[Row<'_>]) -> Result<Vec<Bytes>> {
    let mut values = Columns::new(binding, &shape.sent);
    let (mut pieces, mut out) = (Vec::new(), Vec::with_capacity(PIECE + PIECE / 8));
    for row in rows {
        values.of(*row, |datums| {
            for (nth, place) in shape.insert.iter().enumerate() {
                if nth > 0 {
                    out.push(b'\t');
                }
                field(&binding.columns[shape.sent[*place]].column, datums[*place], &mut out)?;
            }
            Ok(())
        })?;
        out.push(b'\n');
        if out.len() >= PIECE {
            pieces.push(std::mem::replace(&mut out, Vec::with_capacity(PIECE + PIECE / 8)).into());
        }
    }
    pieces.push(out.into());
    Ok(pieces)
}

/// What the server says to have done.
pub struct Loaded {
    pub rows: u64,
    pub warnings: u16,
}

pub async fn send(conn: &mut Conn, statement: &str, pieces: Vec<Bytes>) -> Result<Loaded, mysql_async::Error> {
    conn.set_infile_handler(async move { Ok(futures_util::stream::iter(pieces.into_iter().map(Ok)).boxed()) });
    let answer = conn.query_iter(statement).await?;
    let loaded = Loaded { rows: answer.affected_rows(), warnings: answer.warnings() };
    answer.drop_result().await?;
    Ok(loaded)
}

/// The server, or what it was built with, does not load what a client has.
pub fn is_off(code: u16) -> bool {
    matches!(code, 1148 | 3948 | 4166)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::sql::fixture::{column, contacts};
    use crate::value::{Datum, Value, write_datum};

    #[test]
    fn columns_that_text_would_miss_go_through_a_variable() {
        let mut binding = contacts();
        let text = |binding: &Binding| statement(binding, &Shape::of(binding, u128::MAX, 0));
        insta::assert_snapshot!(text(&binding).unwrap(), @r##"LOAD DATA LOCAL INFILE 'rows' INTO TABLE `public`.`Kontakte` CHARACTER SET utf8mb4 FIELDS TERMINATED BY '\t' ENCLOSED BY '' ESCAPED BY '\\' LINES TERMINATED BY '\n' STARTING BY '' (`id`,`firstName`,`order`,`od"d``größe`)"##);
        binding.columns[1].column = column("b", ColumnType::Bytes { bytes: None }, "blob");
        binding.columns[2].column = column("y", ColumnType::Year, "year");
        insta::assert_snapshot!(text(&binding).unwrap(), @r##"LOAD DATA LOCAL INFILE 'rows' INTO TABLE `public`.`Kontakte` CHARACTER SET utf8mb4 FIELDS TERMINATED BY '\t' ENCLOSED BY '' ESCAPED BY '\\' LINES TERMINATED BY '\n' STARTING BY '' (`id`,@c1,@c2,`od"d``größe`) SET `b`=UNHEX(@c1),`y`=CAST(@c2 AS UNSIGNED)"##);
        binding.columns[3].column = column("g", ColumnType::Geometry, "geometry");
        assert_eq!(text(&binding), None);
    }

    #[test]
    fn lines_keep_what_separates_them() {
        let mut binding = contacts();
        binding.columns.iter_mut().for_each(|bound| bound.engine = crate::config::Engine::Mysql);
        let mut row = Vec::new();
        for datum in [
            Datum::Value(Value::Int(7)),
            Datum::Value(Value::Text("a\tb\nc\\N\0d")),
            Datum::Value(Value::Decimal("1.50")),
            Datum::Null,
        ] {
            write_datum(&mut row, datum);
        }
        let pieces = lines(&binding, &Shape::of(&binding, u128::MAX, 0), &[Row(&row), Row(&row)]).unwrap();
        let line = "7\ta\\tb\\nc\\\\N\\0d\t1.50\t\\N\n";
        assert_eq!(pieces.concat(), [line, line].concat().as_bytes());
    }
}
