//! Keys that are one key to all of them. The agent tells keys apart by the bytes of their canonical
//! form; where a server takes two such keys for one, or one for two, it would write the wrong row.

use super::{Draft, DraftColumn, Resolver, ddl, quoted, quoted_table};
use crate::catalog::{Collation, ColumnType};
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
            let list: Vec<String> = key.iter().map(|column| quoted(engine, &column.name)).collect();
            let what = format!("nothing keeps the key ({}) unique in the table", list.join(", "));
            let mend = format!("ALTER TABLE {} ADD UNIQUE ({});", quoted_table(engine, draft.table), list.join(", "));
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
