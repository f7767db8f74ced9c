//! Statements that mend a column. MySQL and MariaDB change one only by a whole new definition:
//! theirs, as the server prints it, with the one thing changed.

use super::{quoted, quoted_table};
use crate::catalog::{Column, ColumnType, Table};
use crate::config::Engine;

/// NULL is taken no more.
pub(super) fn not_null(engine: Engine, table: &Table, column: &Column) -> String {
    match engine {
        Engine::Postgres => alter(engine, table, column, "SET NOT NULL"),
        Engine::Mysql => {
            let definition = without(&without(&definition(column), " DEFAULT NULL"), " NULL");
            modify(table, &format!("{definition} NOT NULL"))
        }
    }
}

/// NULL is taken.
pub(super) fn nullable(engine: Engine, table: &Table, column: &Column) -> String {
    match engine {
        Engine::Postgres => alter(engine, table, column, "DROP NOT NULL"),
        // The word has to stand for a TIMESTAMP.
        Engine::Mysql => modify(table, &format!("{} NULL", without(&definition(column), " NOT NULL"))),
    }
}

pub(super) fn of_type(engine: Engine, table: &Table, column: &Column, ty: &str) -> String {
    match engine {
        Engine::Postgres => alter(engine, table, column, &format!("TYPE {ty}")),
        Engine::Mysql => modify(table, &definition(column).replacen(&column.type_name, ty, 1)),
    }
}

/// Compared byte by byte; `ty` where the type changes with it.
pub(super) fn comparing_bytes(engine: Engine, table: &Table, column: &Column, ty: &str) -> String {
    let bytes = column.collation.as_ref().map_or_else(String::new, |collation| collation.bytes.clone());
    if engine == Engine::Postgres {
        return alter(engine, table, column, &format!("TYPE {ty} COLLATE {}", quoted(engine, &bytes)));
    }
    let plain = without_word_after(&without_word_after(&definition(column), " CHARACTER SET "), " COLLATE ");
    let charset = bytes.split('_').next().unwrap_or("utf8mb4");
    modify(table, &plain.replacen(&column.type_name, &format!("{ty} CHARACTER SET {charset} COLLATE {bytes}"), 1))
}

/// A type of the engine that holds all that `ty` of another does; `None` where it has none.
pub(super) fn type_for(engine: Engine, ty: &ColumnType) -> Option<String> {
    let either =
        |postgres: &str, mysql: &str| Some(if engine == Engine::Postgres { postgres } else { mysql }.to_owned());
    match ty {
        ColumnType::Int { bytes: 1 | 2, signed: true } => either("smallint", "smallint"),
        ColumnType::Int { bytes: 1, signed: false } => either("smallint", "smallint"),
        ColumnType::Int { bytes: 2, signed: false } | ColumnType::Int { bytes: 3 | 4, signed: true } => {
            either("integer", "int")
        }
        ColumnType::Int { bytes: 3, signed: false } => either("integer", "int"),
        ColumnType::Int { bytes: 8, signed: false } => either("numeric(20,0)", "bigint unsigned"),
        ColumnType::Int { .. } => either("bigint", "bigint"),
        ColumnType::Decimal { limits: None } => either("numeric", "decimal(65,30)"),
        ColumnType::Decimal { limits: Some(limits) } => {
            let text = format!("({},{})", limits.precision, limits.scale);
            either(&format!("numeric{text}"), &format!("decimal{text}"))
        }
        ColumnType::Float64 => either("double precision", "double"),
        ColumnType::Char { chars } | ColumnType::Text { chars: Some(chars), .. } => {
            let text = format!("varchar({chars})");
            either(&text, &text)
        }
        ColumnType::Text { chars: None, .. } => either("text", "longtext"),
        ColumnType::Bytes { .. } | ColumnType::Binary { .. } => either("bytea", "longblob"),
        _ => None,
    }
}

fn alter(engine: Engine, table: &Table, column: &Column, change: &str) -> String {
    format!("ALTER TABLE {} ALTER COLUMN {} {change};", quoted_table(engine, table), quoted(engine, &column.name))
}

fn modify(table: &Table, definition: &str) -> String {
    format!("ALTER TABLE {} MODIFY {definition};", quoted_table(Engine::Mysql, table))
}

fn definition(column: &Column) -> String {
    match column.definition.is_empty() {
        true => format!("{} {}", quoted(Engine::Mysql, &column.name), column.type_name),
        false => column.definition.clone(),
    }
}

/// Where a phrase stands outside of quotes.
fn find(text: &str, phrase: &str) -> Option<usize> {
    let mut quote: Option<char> = None;
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if text[at..].starts_with(phrase) && !continues(&text[at + phrase.len()..], phrase) => {
                return Some(at);
            }
            None if matches!(c, '\'' | '"' | '`') => quote = Some(c),
            None => {}
        }
    }
    None
}

/// The phrase is only the beginning of a longer word.
fn continues(rest: &str, phrase: &str) -> bool {
    !phrase.ends_with(' ') && rest.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn without(text: &str, phrase: &str) -> String {
    // Of "NOT NULL" and "DEFAULT NULL" the last word is not a phrase of its own.
    let part_of_another =
        |at: usize| phrase == " NULL" && (text[..at].ends_with(" NOT") || text[..at].ends_with(" DEFAULT"));
    match find(text, phrase).filter(|at| !part_of_another(*at)) {
        Some(at) => format!("{}{}", &text[..at], &text[at + phrase.len()..]),
        None => text.to_owned(),
    }
}

fn without_word_after(text: &str, phrase: &str) -> String {
    let Some(at) = find(text, phrase) else { return text.to_owned() };
    let rest = &text[at + phrase.len()..];
    format!("{}{}", &text[..at], &rest[rest.find(' ').unwrap_or(rest.len())..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Collation, TableName};

    fn table() -> Table {
        Table::new(TableName { schema: "shop".into(), name: "c".into() })
    }

    fn column(definition: &str, type_name: &str) -> Column {
        let text = ColumnType::Text { chars: Some(20), bytes: None };
        let collation =
            Collation { name: "latin1_swedish_ci".into(), binary: false, pads: true, bytes: "utf8mb4_0900_bin".into() };
        Column { definition: definition.into(), collation: Some(collation), ..Column::new("v", text, type_name) }
    }

    #[test]
    fn a_definition_keeps_all_but_the_one_thing() {
        let v = column(
            "`v` varchar(20) CHARACTER SET latin1 COLLATE latin1_german1_ci NOT NULL DEFAULT 'a NULL' COMMENT 'x COLLATE y'",
            "varchar(20)",
        );

        assert_eq!(
            comparing_bytes(Engine::Mysql, &table(), &v, "varchar(20)"),
            "ALTER TABLE `shop`.`c` MODIFY `v` varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL \
             DEFAULT 'a NULL' COMMENT 'x COLLATE y';"
        );
        assert_eq!(
            nullable(Engine::Mysql, &table(), &v),
            "ALTER TABLE `shop`.`c` MODIFY `v` varchar(20) CHARACTER SET latin1 COLLATE latin1_german1_ci \
             DEFAULT 'a NULL' COMMENT 'x COLLATE y' NULL;"
        );
        assert_eq!(
            of_type(Engine::Mysql, &table(), &column("`v` int unsigned DEFAULT NULL", "int unsigned"), "bigint"),
            "ALTER TABLE `shop`.`c` MODIFY `v` bigint DEFAULT NULL;"
        );
    }

    #[test]
    fn null_is_taken_out_where_it_is_the_columns_own() {
        let mended = |definition: &str| not_null(Engine::Mysql, &table(), &column(definition, "int"));

        assert_eq!(mended("`v` int DEFAULT NULL"), "ALTER TABLE `shop`.`c` MODIFY `v` int NOT NULL;");
        assert_eq!(mended("`v` timestamp NULL DEFAULT NULL"), "ALTER TABLE `shop`.`c` MODIFY `v` timestamp NOT NULL;");
        assert_eq!(mended("`v` int COMMENT 'NULL'"), "ALTER TABLE `shop`.`c` MODIFY `v` int COMMENT 'NULL' NOT NULL;");
    }
}
