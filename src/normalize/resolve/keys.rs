//! Keys that are one key to all of them. The agent tells keys apart by the bytes of their canonical
//! form; where a server takes two such keys for one, or one for two, it would write the wrong row.

use std::collections::BTreeSet;

use super::{Draft, DraftColumn, Resolver, ddl, quoted, quoted_table};
use crate::catalog::{Collation, Column, ColumnType, Loose, LooseKey, Table};
use crate::config::{Engine, EntityConfig};
use crate::schema::EntitySchema;
use crate::value::Kind;

impl Resolver<'_> {
    /// One row per key: the key's columns are a key of the table, without NULL.
    pub(super) fn check_key(&mut self, entity: &EntityConfig, draft: &Draft<'_>) {
        let key = super::key_columns(entity, draft);
        if key.is_empty() {
            return;
        }
        let engine = self.engine(draft.config.system);
        if !super::is_key(draft.table, &key) {
            let (what, mend) = no_key(engine, draft.table, &key);
            self.error(entity, draft.config, what, by_owner(&mend));
        }
        for column in key.iter().filter(|column| column.nullable) {
            let what = format!("key column {:?} may be NULL, which identifies nothing", column.name);
            self.error(entity, draft.config, what, by_owner(&ddl::not_null(engine, draft.table, column)));
        }
    }

    /// Texts that are one key in a system are one in every other.
    pub(super) fn same_texts(&mut self, entity: &EntityConfig, schema: &EntitySchema, drafts: &[Draft<'_>]) {
        for field in schema.fields[..schema.key_len].iter().filter(|field| field.kind == Kind::Text) {
            let of =
                |draft: &Draft<'_>| draft.columns.iter().position(|bound| bound.field == field.name && is_text(bound));
            let bound: Vec<(&Draft<'_>, &DraftColumn<'_>)> =
                drafts.iter().filter_map(|draft| Some((draft, &draft.columns[of(draft)?]))).collect();
            let trimmed = |bound: &DraftColumn<'_>| matches!(bound.column.ty, ColumnType::Char { .. });
            let some_keep = bound.iter().any(|(_, column)| !trimmed(column));
            for (draft, column) in &bound {
                let engine = self.engine(draft.config.system);
                let Some(collation) = &column.column.collation else { continue };
                let Some((why, ty)) = unlike_bytes(column, collation, some_keep) else { continue };
                let mut mend = by_owner(&ddl::comparing_bytes(engine, draft.table, column.column, &ty));
                if engine == Engine::Mysql && (draft.table.referenced_by > 0 || refers(draft, &column.column.name)) {
                    mend +=
                        "\n-- together with the columns that foreign keys tie to it, under SET foreign_key_checks = 0";
                }
                let what = format!("key column {:?} {why}", column.column.name);
                self.error(entity, draft.config, what, mend);
            }
        }
    }
}

/// Why nothing in the table is the key, and what would be.
fn no_key(engine: Engine, table: &Table, key: &[&Column]) -> (String, String) {
    let list: Vec<String> = key.iter().map(|column| quoted(engine, &column.name)).collect();
    let (list, of) = (list.join(", "), quoted_table(engine, table));
    // Texts without a length of their own are taken into no index of MySQL whole.
    let long = |column: &&&Column| {
        engine == Engine::Mysql && ["text", "blob"].iter().any(|ty| column.type_name.to_lowercase().ends_with(ty))
    };
    let short = |column: &&Column| {
        let ty = if column.type_name.to_lowercase().ends_with("blob") { "varbinary(255)" } else { "varchar(255)" };
        ddl::of_type(engine, table, column, ty) + "\n"
    };
    let add =
        key.iter().filter(long).map(short).collect::<String>() + &format!("ALTER TABLE {of} ADD UNIQUE ({list});");
    let names: BTreeSet<&str> = key.iter().map(|column| column.name.as_str()).collect();
    let near = |loose: &&LooseKey| loose.columns.iter().map(String::as_str).collect::<BTreeSet<_>>() == names;
    let Some(LooseKey { index, why, .. }) = table.loose_keys.iter().find(near) else {
        return (format!("nothing keeps the key ({list}) unique in the table"), add);
    };
    let index_name = quoted(engine, index);
    match why {
        Loose::Partial(predicate) => {
            (format!("index {index:?} keeps the key ({list}) unique only in rows with {predicate}"), add)
        }
        Loose::Expression => {
            (format!("index {index:?} keeps what is computed of the key ({list}) unique, which finds no row"), add)
        }
        Loose::Prefix(column, chars) => {
            let what = format!(
                "index {index:?} holds the first {chars} of column {column:?} alone: two keys that begin alike are one to it"
            );
            let drop = match index.as_str() {
                "PRIMARY" => format!("ALTER TABLE {of} DROP PRIMARY KEY;"),
                _ => format!("ALTER TABLE {of} DROP INDEX {index_name};"),
            };
            let add = if index == "PRIMARY" { add.replace(" ADD UNIQUE (", " ADD PRIMARY KEY (") } else { add };
            (what, format!("{drop}\n{add}"))
        }
        Loose::Invisible(mariadb) => {
            let (word, shown) = if *mariadb { ("ignored", "NOT IGNORED") } else { ("invisible", "VISIBLE") };
            let what =
                format!("index {index:?}, which keeps the key ({list}) unique, is {word}: no row is found by it");
            (what, format!("ALTER TABLE {of} ALTER INDEX {index_name} {shown};"))
        }
        Loose::Deferrable => {
            let what = format!(
                "index {index:?}, which keeps the key ({list}) unique, is DEFERRABLE: nothing can be merged by it"
            );
            (what, add)
        }
        Loose::Invalid => {
            let what =
                format!("index {index:?}, which is to keep the key ({list}) unique, is not valid: its creation failed");
            let index = format!("{}.{index_name}", quoted(engine, &table.name.schema));
            (what, format!("REINDEX INDEX {index};"))
        }
        Loose::Overlaps => (format!("index {index:?} keeps the key ({list}) unique only within a period"), add),
    }
}

pub(super) fn by_owner(sql: &str) -> String {
    format!("-- as the table's owner:\n{sql}")
}

fn is_text(bound: &DraftColumn<'_>) -> bool {
    // What one engine has alone may be text with rules of its own: citext.
    let text = matches!(bound.column.ty, ColumnType::Text { .. } | ColumnType::Char { .. } | ColumnType::Verbatim);
    text && bound.format.is_none() && bound.values.is_none()
}

fn refers(draft: &Draft<'_>, column: &str) -> bool {
    draft.table.foreign_keys.iter().any(|key| key.columns.iter().any(|name| name == column))
}

/// Why it is not the bytes that decide, and the type that it should have.
fn unlike_bytes(bound: &DraftColumn<'_>, collation: &Collation, some_keep: bool) -> Option<(String, String)> {
    let column = bound.column;
    let kept = match &column.ty {
        ColumnType::Char { chars } if some_keep => format!("varchar({chars})"),
        ColumnType::Verbatim => "text".to_owned(),
        _ => column.type_name.clone(),
    };
    let trims = matches!(column.ty, ColumnType::Char { .. });
    let why = if !collation.binary {
        format!(
            "is compared by {}: texts that differ in case or accents are one key here and two elsewhere",
            collation.name
        )
    } else if trims && some_keep {
        format!(
            "is {}, which drops spaces at the end: \"a\" and \"a \" are one key here and two elsewhere",
            column.type_name
        )
    } else if !trims && collation.pads {
        format!("is compared by {}, which pads: \"a\" and \"a \" are one key here and two elsewhere", collation.name)
    } else {
        return None;
    };
    Some((why, kept))
}
