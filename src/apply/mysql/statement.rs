//! Statement text for MySQL and MariaDB. Rows are literals; a [`Pattern`] is a statement with
//! a hole for them.

use super::literal::{Place, literal};
use crate::apply::Write;
use crate::apply::sql::{Shape, backquoted, backquoted_table};
use crate::catalog::{Column, ColumnType};
use crate::connect::mysql::Flavour;
use crate::error::Result;
use crate::normalize::binding::Binding;
use crate::value::Datum;

/// How existing rows are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// ON DUPLICATE KEY UPDATE, which fires on *any* unique key and would overwrite another
    /// row: only where the entity's key is the only one, and nothing minds the attempt.
    Propose,
    /// UPDATE joined with the rows, then an insert of those that are missing.
    Join,
    /// Two statements per row, with constants: for few rows, and for keys in a character set
    /// other than utf8mb4, where a join would not find its index.
    Each,
}

/// What the server says of a table beyond the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub flavour: Flavour,
    /// The entity's key is the table's only unique key, of whole columns.
    pub sole_key: bool,
    /// Per key column its collation; `None` where it has none.
    pub collations: Vec<Option<String>>,
}

impl Facts {
    pub fn joinable(&self) -> bool {
        self.collations.iter().flatten().all(|collation| collation.starts_with("utf8mb4"))
    }
}

/// A statement with a hole for rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    head: String,
    between: &'static str,
    tail: String,
    row: RowForm,
}

/// How one row is spelled in the hole, by places in [`Shape::sent`].
#[derive(Debug, Clone, PartialEq, Eq)]
enum RowForm {
    /// (1,'a') or ROW(1,'a')
    Tuple { open: &'static str, places: Vec<usize> },
    /// 1 — of a key of one column
    Bare,
    /// (`a`=1 AND `b`='x')
    Key,
    /// `c`=1,`d`=COALESCE(`d`,0)+-2 WHERE `a`=1: an update of one row
    Assignments,
    /// 1,'a',NULL FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM t WHERE `a`=1): an insert of one
    /// row, with as many NULLs as there are columns that it lacks
    IfMissing { table: String, lacking: usize },
}

impl Pattern {
    /// How many rows one statement may have.
    pub fn rows_max(&self) -> usize {
        match self.row {
            RowForm::Assignments | RowForm::IfMissing { .. } => 1,
            RowForm::Key => 500,
            RowForm::Tuple { .. } | RowForm::Bare => 1000,
        }
    }

    pub fn begin(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head.as_bytes());
    }

    pub fn end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.tail.as_bytes());
    }

    /// `datums` are the row's values in the order of `shape.sent`.
    pub fn row(
        &self,
        binding: &Binding,
        shape: &Shape,
        datums: &[Datum<'_>],
        first: bool,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let column = |place: usize| &binding.columns[shape.sent[place]].column;
        if !first {
            out.extend_from_slice(self.between.as_bytes());
        }
        let values = |places: &mut dyn Iterator<Item = usize>, out: &mut Vec<u8>| -> Result<()> {
            for (nth, place) in places.enumerate() {
                if nth > 0 {
                    out.push(b',');
                }
                literal(column(place), datums[place], Place::Assigned, out)?;
            }
            Ok(())
        };
        let key = |out: &mut Vec<u8>| -> Result<()> {
            for (place, datum) in datums.iter().enumerate().take(shape.key) {
                out.extend_from_slice(if place == 0 { b"" } else { b" AND " });
                out.extend_from_slice(backquoted(&column(place).name).as_bytes());
                out.push(b'=');
                literal(column(place), *datum, Place::Compared, out)?;
            }
            Ok(())
        };
        match &self.row {
            RowForm::Tuple { open, places } => {
                out.extend_from_slice(open.as_bytes());
                values(&mut places.iter().copied(), out)?;
                out.push(b')');
            }
            RowForm::Bare => literal(column(0), datums[0], Place::Compared, out)?,
            RowForm::Key => {
                out.push(b'(');
                key(out)?;
                out.push(b')');
            }
            RowForm::Assignments => {
                for (nth, place) in shape.set.iter().enumerate() {
                    out.extend_from_slice(if nth == 0 { b"" } else { b"," });
                    let name = backquoted(&column(*place).name);
                    out.extend_from_slice(name.as_bytes());
                    out.push(b'=');
                    if shape.added.contains(place) {
                        out.extend_from_slice(format!("COALESCE({name},0)+").as_bytes());
                    }
                    literal(column(*place), datums[*place], Place::Assigned, out)?;
                }
                out.extend_from_slice(b" WHERE ");
                key(out)?;
            }
            RowForm::IfMissing { table, lacking } => {
                values(&mut shape.insert.iter().copied(), out)?;
                (0..*lacking).for_each(|_| out.extend_from_slice(b",NULL"));
                out.extend_from_slice(b" FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM ");
                out.extend_from_slice(table.as_bytes());
                out.extend_from_slice(b" WHERE ");
                key(out)?;
                out.push(b')');
            }
        }
        Ok(())
    }
}

/// The statements of one write, in order; each is given all rows.
pub fn write(binding: &Binding, shape: &Shape, write: Write, form: Form, facts: &Facts) -> Vec<Pattern> {
    let text = Text { binding, shape, facts };
    match (write, form) {
        (Write::Insert, _) => vec![text.insert_values(String::new())],
        (Write::Delete, _) => vec![text.delete()],
        (Write::Upsert, Form::Propose) => vec![text.insert_values(text.on_duplicate())],
        (Write::Upsert, Form::Join) if shape.set.is_empty() => vec![text.insert_missing()],
        (Write::Upsert, Form::Join) => vec![text.update_joined(), text.insert_missing()],
        (Write::Upsert, Form::Each) if shape.set.is_empty() => vec![text.insert_one()],
        (Write::Upsert, Form::Each) => vec![text.update_one(), text.insert_one()],
    }
}

/// A query for rows by key, `locked` for update, each with the number of its key (from 0). By comparison
/// with constants, so that every type and collation finds its index; keys are few per query.
pub fn read(binding: &Binding, shape: &Shape, keys: &[Vec<Datum<'_>>], locked: bool) -> Result<Vec<u8>> {
    let pattern = Pattern { head: String::new(), between: "", tail: String::new(), row: RowForm::Key };
    let mut out = b"SELECT CASE".to_vec();
    for (number, key) in keys.iter().enumerate() {
        out.extend_from_slice(b" WHEN ");
        pattern.row(binding, shape, key, true, &mut out)?;
        out.extend_from_slice(format!(" THEN {number}").as_bytes());
    }
    out.extend_from_slice(b" END");
    for bound in &binding.columns {
        out.push(b',');
        out.extend_from_slice(selected(&bound.column).as_bytes());
    }
    out.extend_from_slice(format!(" FROM {} WHERE ", backquoted_table(&binding.table.name)).as_bytes());
    for (number, key) in keys.iter().enumerate() {
        out.extend_from_slice(if number == 0 { b"" } else { b" OR " });
        pattern.row(binding, shape, key, true, &mut out)?;
    }
    if locked {
        out.extend_from_slice(b" FOR UPDATE");
    }
    Ok(out)
}

/// How a column is read: bits as digits, everything else as it is. Of bytes that are no character
/// of their set a server makes question marks without a word; they come as what is no UTF-8.
pub(crate) fn selected(column: &Column) -> String {
    let name = backquoted(&column.name);
    match (&column.ty, other_charset(column)) {
        (ColumnType::Bits { length, .. }, _) => format!("LPAD(BIN({name}+0),{},'0')", length.unwrap_or(1)),
        (ColumnType::Char { .. } | ColumnType::Text { .. }, Some(set)) => format!(
            "IF(CAST(CONVERT(CONVERT({name} USING utf8mb4) USING {set}) AS BINARY)<=>CAST({name} AS BINARY),\
             CAST(CONVERT({name} USING utf8mb4) AS BINARY),x'ff')"
        ),
        _ => name,
    }
}

/// The column's character set, where it is not of UTF-8.
fn other_charset(column: &Column) -> Option<&str> {
    let set = column.collation.as_ref()?.name.split('_').next()?;
    (!set.starts_with("utf8")).then_some(set)
}

struct Text<'a> {
    binding: &'a Binding,
    shape: &'a Shape,
    facts: &'a Facts,
}

impl Text<'_> {
    fn column(&self, place: usize) -> &Column {
        &self.binding.columns[self.shape.sent[place]].column
    }

    fn name(&self, place: usize) -> String {
        backquoted(&self.column(place).name)
    }

    fn table(&self) -> String {
        backquoted_table(&self.binding.table.name)
    }

    fn list(&self, places: &[usize], each: impl Fn(usize) -> String) -> String {
        places.iter().map(|p| each(*p)).collect::<Vec<_>>().join(",")
    }

    fn insert_values(&self, tail: String) -> Pattern {
        Pattern {
            head: format!("INSERT INTO {} ({}) VALUES ", self.table(), self.list(&self.shape.insert, |p| self.name(p))),
            between: ",",
            tail,
            row: RowForm::Tuple { open: "(", places: self.shape.insert.clone() },
        }
    }

    /// MySQL deprecates VALUES(); MariaDB knows no row alias.
    fn on_duplicate(&self) -> String {
        if self.shape.set.is_empty() {
            let key = self.name(0);
            return format!(" ON DUPLICATE KEY UPDATE {key}={}.{key}", self.table());
        }
        match self.facts.flavour {
            Flavour::Mysql => {
                let set = self.list(&self.shape.set, |p| format!("{0}=new.{0}", self.name(p)));
                format!(" AS new ON DUPLICATE KEY UPDATE {set}")
            }
            Flavour::Mariadb => {
                let set = self.list(&self.shape.set, |p| format!("{0}=VALUES({0})", self.name(p)));
                format!(" ON DUPLICATE KEY UPDATE {set}")
            }
        }
    }

    /// The derived table of the rows: before and after its hole, and its rows' form.
    fn derived(&self) -> (&'static str, String, RowForm) {
        let places: Vec<usize> = (0..self.shape.sent.len()).collect();
        let names = self.list(&places, |p| format!("c{}", p + 1));
        match self.facts.flavour {
            Flavour::Mysql => ("(VALUES ", format!(") AS s ({names})"), RowForm::Tuple { open: "ROW(", places }),
            // The common table expression's column list stands in front; see `with`.
            Flavour::Mariadb => ("", ") SELECT * FROM s) AS s".to_owned(), RowForm::Tuple { open: "(", places }),
        }
    }

    fn with(&self) -> String {
        let places: Vec<usize> = (0..self.shape.sent.len()).collect();
        let names = self.list(&places, |p| format!("c{}", p + 1));
        match self.facts.flavour {
            Flavour::Mysql => String::new(),
            Flavour::Mariadb => format!("(WITH s ({names}) AS (VALUES "),
        }
    }

    /// Both sides of one type, so that the key's index is used and nothing is compared as a
    /// double or in another collation.
    fn same_key(&self) -> String {
        let same = |place: usize| {
            let (name, value) = (self.name(place), format!("s.c{}", place + 1));
            let value = match &self.column(place).ty {
                ColumnType::Int { signed: false, .. } | ColumnType::Bits { .. } => format!("CAST({value} AS UNSIGNED)"),
                ColumnType::Decimal { limits: Some(limits) } => {
                    format!("CAST({value} AS DECIMAL({},{}))", limits.precision, limits.scale)
                }
                ColumnType::Uuid => format!("CAST({value} AS UUID)"),
                ColumnType::Inet { v6 } => format!("CAST({value} AS INET{})", if *v6 { 6 } else { 4 }),
                _ => match self.facts.collations.get(place).and_then(Option::as_ref) {
                    Some(collation) => format!("{value} COLLATE {collation}"),
                    None => value,
                },
            };
            format!("t.{name}={value}")
        };
        (0..self.shape.key).map(same).collect::<Vec<_>>().join(" AND ")
    }

    /// STRAIGHT_JOIN: the rows first, then the table by its key, whatever the statistics say.
    fn update_joined(&self) -> Pattern {
        let (open, close, row) = self.derived();
        let set = self.list(&self.shape.set, |p| format!("t.{}=s.c{}", self.name(p), p + 1));
        Pattern {
            head: format!("UPDATE {}{open}", self.with()),
            between: ",",
            tail: format!("{close} STRAIGHT_JOIN {} AS t ON {} SET {set}", self.table(), self.same_key()),
            row,
        }
    }

    /// Columns that a new row must have and that are not carried. They are inserted as NULL,
    /// which fails for a row that is missing; left out, they would fail the statement even
    /// where no row is.
    fn lacking(&self) -> Vec<String> {
        let sent =
            |column: &Column| self.shape.sent.iter().any(|at| self.binding.columns[*at].column.name == column.name);
        let lacks = |column: &&Column| {
            !(column.nullable || column.has_default || column.generated || column.auto_increment || sent(column))
        };
        self.binding.table.columns.iter().filter(lacks).map(|column| backquoted(&column.name)).collect()
    }

    fn inserted(&self) -> String {
        let mut names = self.list(&self.shape.insert, |p| self.name(p));
        self.lacking().iter().for_each(|name| names.extend([",", name]));
        names
    }

    fn insert_missing(&self) -> Pattern {
        let (open, close, row) = self.derived();
        let mut values = self.list(&self.shape.insert, |p| format!("s.c{}", p + 1));
        self.lacking().iter().for_each(|_| values.push_str(",NULL"));
        Pattern {
            head: format!(
                "INSERT INTO {} ({}) SELECT {values} FROM {}{open}",
                self.table(),
                self.inserted(),
                self.with(),
            ),
            between: ",",
            tail: format!("{close} WHERE NOT EXISTS (SELECT 1 FROM {} AS t WHERE {})", self.table(), self.same_key()),
            row,
        }
    }

    fn update_one(&self) -> Pattern {
        Pattern {
            head: format!("UPDATE {} SET ", self.table()),
            between: "",
            tail: String::new(),
            row: RowForm::Assignments,
        }
    }

    fn insert_one(&self) -> Pattern {
        Pattern {
            head: format!("INSERT INTO {} ({}) SELECT ", self.table(), self.inserted()),
            between: "",
            tail: String::new(),
            row: RowForm::IfMissing { table: self.table(), lacking: self.lacking().len() },
        }
    }

    /// Composite keys by AND and OR: MariaDB reads a whole table for a list of row values.
    fn delete(&self) -> Pattern {
        match self.shape.key {
            1 => Pattern {
                head: format!("DELETE FROM {} WHERE {} IN (", self.table(), self.name(0)),
                between: ",",
                tail: ")".to_owned(),
                row: RowForm::Bare,
            },
            _ => Pattern {
                head: format!("DELETE FROM {} WHERE ", self.table()),
                between: " OR ",
                tail: String::new(),
                row: RowForm::Key,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::sql::fixture::{contacts, lines};
    use crate::value::Value;

    fn facts(flavour: Flavour) -> Facts {
        Facts { flavour, sole_key: true, collations: vec![None, None] }
    }

    fn spelled(binding: &Binding, carried: u128, what: Write, form: Form, facts: &Facts, row: &[Datum<'_>]) -> String {
        let shape = if what == Write::Delete { Shape::key(binding) } else { Shape::of(binding, carried, 0) };
        let mut statements = Vec::new();
        for pattern in write(binding, &shape, what, form, facts) {
            let mut out = Vec::new();
            pattern.begin(&mut out);
            pattern.row(binding, &shape, row, true, &mut out).unwrap();
            if pattern.rows_max() > 1 {
                pattern.row(binding, &shape, row, false, &mut out).unwrap();
            }
            pattern.end(&mut out);
            statements.push(String::from_utf8(out).unwrap());
        }
        statements.join(";\n")
    }

    fn contact() -> Vec<Datum<'static>> {
        vec![
            Datum::Value(Value::Int(7)),
            Datum::Value(Value::Text("O'Neil")),
            Datum::Value(Value::Decimal("1.50")),
            Datum::Null,
        ]
    }

    fn line() -> Vec<Datum<'static>> {
        vec![Datum::Value(Value::Text("DE")), Datum::Value(Value::Decimal("9.990")), Datum::Value(Value::Text("ok"))]
    }

    #[test]
    fn whole_rows_are_proposed_where_the_key_is_the_only_one() {
        let (mysql, mariadb) = (facts(Flavour::Mysql), facts(Flavour::Mariadb));
        insta::assert_snapshot!(spelled(&contacts(), u128::MAX, Write::Upsert, Form::Propose, &mysql, &contact()), @r##"INSERT INTO `public`.`Kontakte` (`id`,`firstName`,`order`,`od"d``größe`) VALUES (7,'O\'Neil','1.50',NULL),(7,'O\'Neil','1.50',NULL) AS new ON DUPLICATE KEY UPDATE `firstName`=new.`firstName`,`order`=new.`order`,`od"d``größe`=new.`od"d``größe`"##);
        insta::assert_snapshot!(spelled(&contacts(), u128::MAX, Write::Upsert, Form::Propose, &mariadb, &contact()), @r##"INSERT INTO `public`.`Kontakte` (`id`,`firstName`,`order`,`od"d``größe`) VALUES (7,'O\'Neil','1.50',NULL),(7,'O\'Neil','1.50',NULL) ON DUPLICATE KEY UPDATE `firstName`=VALUES(`firstName`),`order`=VALUES(`order`),`od"d``größe`=VALUES(`od"d``größe`)"##);
        insta::assert_snapshot!(spelled(&contacts(), 1, Write::Upsert, Form::Propose, &mariadb, &contact()), @r##"INSERT INTO `public`.`Kontakte` (`id`) VALUES (7),(7) ON DUPLICATE KEY UPDATE `id`=`public`.`Kontakte`.`id`"##);
    }

    #[test]
    fn elsewhere_rows_are_joined_by_the_key_and_what_is_missing_inserted() {
        let mut facts = facts(Flavour::Mysql);
        facts.collations[0] = Some("utf8mb4_general_ci".into());
        insta::assert_snapshot!(spelled(&lines(), u128::MAX, Write::Upsert, Form::Join, &facts, &line()), @r##"
UPDATE (VALUES ROW('DE','9.990','ok'),ROW('DE','9.990','ok')) AS s (c1,c2,c3) STRAIGHT_JOIN `shop`.`lines` AS t ON t.`land`=s.c1 COLLATE utf8mb4_general_ci AND t.`price`=CAST(s.c2 AS DECIMAL(9,3)) SET t.`mood`=s.c3;
INSERT INTO `shop`.`lines` (`land`,`price`,`mood`) SELECT s.c1,s.c2,s.c3 FROM (VALUES ROW('DE','9.990','ok'),ROW('DE','9.990','ok')) AS s (c1,c2,c3) WHERE NOT EXISTS (SELECT 1 FROM `shop`.`lines` AS t WHERE t.`land`=s.c1 COLLATE utf8mb4_general_ci AND t.`price`=CAST(s.c2 AS DECIMAL(9,3)))
"##);
        facts.flavour = Flavour::Mariadb;
        insta::assert_snapshot!(spelled(&lines(), u128::MAX, Write::Upsert, Form::Join, &facts, &line()), @r##"
UPDATE (WITH s (c1,c2,c3) AS (VALUES ('DE','9.990','ok'),('DE','9.990','ok')) SELECT * FROM s) AS s STRAIGHT_JOIN `shop`.`lines` AS t ON t.`land`=s.c1 COLLATE utf8mb4_general_ci AND t.`price`=CAST(s.c2 AS DECIMAL(9,3)) SET t.`mood`=s.c3;
INSERT INTO `shop`.`lines` (`land`,`price`,`mood`) SELECT s.c1,s.c2,s.c3 FROM (WITH s (c1,c2,c3) AS (VALUES ('DE','9.990','ok'),('DE','9.990','ok')) SELECT * FROM s) AS s WHERE NOT EXISTS (SELECT 1 FROM `shop`.`lines` AS t WHERE t.`land`=s.c1 COLLATE utf8mb4_general_ci AND t.`price`=CAST(s.c2 AS DECIMAL(9,3)))
"##);
    }

    #[test]
    fn a_few_rows_are_written_one_by_one() {
        insta::assert_snapshot!(spelled(&lines(), u128::MAX, Write::Upsert, Form::Each, &facts(Flavour::Mysql), &line()), @r##"
UPDATE `shop`.`lines` SET `mood`='ok' WHERE `land`='DE' AND `price`=9.990;
INSERT INTO `shop`.`lines` (`land`,`price`,`mood`) SELECT 'DE','9.990','ok' FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM `shop`.`lines` WHERE `land`='DE' AND `price`=9.990)
"##);
    }

    #[test]
    fn columns_that_a_new_row_would_lack_are_named_so_that_it_fails() {
        let mut binding = contacts();
        let mut table = (*binding.table).clone();
        table.columns[2].nullable = false;
        binding.table = table.into();
        let facts = facts(Flavour::Mysql);
        insta::assert_snapshot!(spelled(&binding, 0b0011, Write::Upsert, Form::Each, &facts, &contact()), @r##"
UPDATE `public`.`Kontakte` SET `firstName`='O\'Neil' WHERE `id`=7;
INSERT INTO `public`.`Kontakte` (`id`,`firstName`,`order`) SELECT 7,'O\'Neil',NULL FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM `public`.`Kontakte` WHERE `id`=7)
"##);
        insta::assert_snapshot!(spelled(&binding, 0b0011, Write::Upsert, Form::Join, &facts, &contact()), @r##"
UPDATE (VALUES ROW(7,'O\'Neil'),ROW(7,'O\'Neil')) AS s (c1,c2) STRAIGHT_JOIN `public`.`Kontakte` AS t ON t.`id`=s.c1 SET t.`firstName`=s.c2;
INSERT INTO `public`.`Kontakte` (`id`,`firstName`,`order`) SELECT s.c1,s.c2,NULL FROM (VALUES ROW(7,'O\'Neil'),ROW(7,'O\'Neil')) AS s (c1,c2) WHERE NOT EXISTS (SELECT 1 FROM `public`.`Kontakte` AS t WHERE t.`id`=s.c1)
"##);
    }

    #[test]
    fn deletes_name_the_key_alone() {
        let facts = facts(Flavour::Mysql);
        insta::assert_snapshot!(spelled(&contacts(), 0, Write::Delete, Form::Each, &facts, &contact()), @r##"DELETE FROM `public`.`Kontakte` WHERE `id` IN (7,7)"##);
        insta::assert_snapshot!(spelled(&lines(), 0, Write::Delete, Form::Each, &facts, &line()), @r##"DELETE FROM `shop`.`lines` WHERE (`land`='DE' AND `price`=9.990) OR (`land`='DE' AND `price`=9.990)"##);
    }

    #[test]
    fn reads_lock_and_number_what_they_find() {
        let binding = lines();
        let key = line()[..2].to_vec();
        let text = read(&binding, &Shape::key(&binding), &[key.clone(), key], true).unwrap();
        insta::assert_snapshot!(String::from_utf8(text).unwrap(), @r##"SELECT CASE WHEN (`land`='DE' AND `price`=9.990) THEN 0 WHEN (`land`='DE' AND `price`=9.990) THEN 1 END,`land`,`price`,`mood` FROM `shop`.`lines` WHERE (`land`='DE' AND `price`=9.990) OR (`land`='DE' AND `price`=9.990) FOR UPDATE"##);
    }
}
