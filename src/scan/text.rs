//! The texts of page queries. Pure.

use crate::apply::mysql::literal::{Place, literal};
use crate::apply::mysql::statement::selected;
use crate::apply::postgres::value::{Wire, cast, select};
use crate::apply::sql::{backquoted, backquoted_table, quoted, quoted_table};
use crate::catalog::{Column, ColumnType};
use crate::error::Result;
use crate::normalize::binding::{Binding, BoundColumn};
use crate::value::Datum;

/// The page behind a key, whose values are one-element arrays as [`crate::apply`] writes them:
/// parameters `$1 …`; the number of rows is the last one.
pub fn postgres_page(binding: &Binding, after: bool) -> Result<String> {
    let columns: Vec<String> = binding
        .columns
        .iter()
        .map(|bound| select(&bound.column, &format!("t.{}", quoted(&bound.column.name))))
        .collect::<Result<_>>()?;
    let key = &binding.columns[..binding.key_len];
    let names: Vec<String> = key.iter().map(|bound| format!("t.{}", quoted(&bound.column.name))).collect();
    let behind = match after {
        false => String::new(),
        true => {
            let value = |(at, bound): (usize, &BoundColumn)| {
                let element = format!("(${}::{}[])[1]", at + 1, Wire::of(&bound.column)?.sql_type());
                Ok(cast(&bound.column).map_or(element.clone(), |ty| format!("{element}::{ty}")))
            };
            let values: Vec<String> = key.iter().enumerate().map(value).collect::<Result<_>>()?;
            format!(" WHERE ({}) > ({})", names.join(", "), values.join(", "))
        }
    };
    Ok(format!(
        "SELECT {} FROM {} AS t{behind} ORDER BY {} LIMIT ${}",
        columns.join(", "),
        quoted_table(&binding.table.name),
        names.join(", "),
        if after { key.len() + 1 } else { 1 },
    ))
}

/// The page behind a key. `locking`: waits for transactions that are about to be visible.
pub fn mysql_page(binding: &Binding, after: Option<&[Datum<'_>]>, rows: usize, locking: bool) -> Result<Vec<u8>> {
    let columns: Vec<String> = binding.columns.iter().map(|bound| selected(&bound.column)).collect();
    let key: Vec<&Column> = binding.columns[..binding.key_len].iter().map(|bound| &bound.column).collect();
    let mut out = format!("SELECT {} FROM {}", columns.join(","), backquoted_table(&binding.table.name)).into_bytes();
    if let Some(after) = after {
        out.extend_from_slice(b" WHERE ");
        behind(&key, after, &mut out)?;
    }
    let order: Vec<String> = key.iter().map(|column| ordered(column)).collect();
    out.extend_from_slice(format!(" ORDER BY {} LIMIT {rows}", order.join(",")).as_bytes());
    if locking {
        out.extend_from_slice(b" LOCK IN SHARE MODE");
    }
    Ok(out)
}

/// The server sorts an ENUM or SET by its number and compares it as text.
fn ordered(column: &Column) -> String {
    match column.ty {
        ColumnType::Enum { .. } | ColumnType::Set { .. } => format!("CAST({} AS CHAR)", backquoted(&column.name)),
        _ => backquoted(&column.name),
    }
}

/// `a>=x AND (a>x OR (a=x AND b>y))`: a comparison of row values would not find the index.
fn behind(key: &[&Column], after: &[Datum<'_>], out: &mut Vec<u8>) -> Result<()> {
    let compare = |at: usize, sign: &str, out: &mut Vec<u8>| {
        out.extend_from_slice(ordered(key[at]).as_bytes());
        out.extend_from_slice(sign.as_bytes());
        literal(key[at], after[at], Place::Compared, out)
    };
    if key.len() > 1 {
        compare(0, ">=", out)?;
        out.extend_from_slice(b" AND ");
    }
    for at in 0..key.len() {
        if at > 0 {
            out.extend_from_slice(b" OR (");
            compare(at - 1, "=", out)?;
            out.extend_from_slice(b" AND ");
        }
        if at + 1 < key.len() {
            out.push(b'(');
        }
        compare(at, ">", out)?;
    }
    // Each but the last opened one, each but the first another.
    out.extend(std::iter::repeat_n(b')', 2 * (key.len() - 1)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::sql::fixture::{contacts, lines};
    use crate::value::Value;

    #[test]
    fn pages_follow_the_key() {
        insta::assert_snapshot!(postgres_page(&contacts(), false).unwrap(), @r##"SELECT t."id", t."firstName"::text, t."order"::text, t."od""d`größe"::text FROM "public"."Kontakte" AS t ORDER BY t."id" LIMIT $1"##);
        insta::assert_snapshot!(postgres_page(&lines(), true).unwrap(), @r##"SELECT t."land"::text, t."price"::text, t."mood"::text FROM "shop"."lines" AS t WHERE (t."land", t."price") > (($1::text[])[1]::bpchar, ($2::text[])[1]::numeric) ORDER BY t."land", t."price" LIMIT $3"##);
    }

    #[test]
    fn composite_keys_are_compared_part_by_part() {
        let text =
            |after: Option<&[Datum<'_>]>| String::from_utf8(mysql_page(&lines(), after, 10, false).unwrap()).unwrap();
        let after = [Datum::Value(Value::Text("DE")), Datum::Value(Value::Decimal("1.5"))];

        insta::assert_snapshot!(text(None), @"SELECT `land`,`price`,`mood` FROM `shop`.`lines` ORDER BY `land`,`price` LIMIT 10");
        insta::assert_snapshot!(text(Some(&after)), @"SELECT `land`,`price`,`mood` FROM `shop`.`lines` WHERE `land`>='DE' AND (`land`>'DE' OR (`land`='DE' AND `price`>1.5)) ORDER BY `land`,`price` LIMIT 10");
    }
}
