//! Names and shapes of statements, common to both dialects. Pure: text in, text out.
//!
//! A statement's text depends on the table, on what is done and on which columns are carried,
//! never on values; so texts can be prepared, cached and shown in tests. The dialects
//! themselves are `postgres::statement` and `mysql::statement`.

use crate::catalog::TableName;
use crate::normalize::binding::Binding;

/// `"odd""name"`: any name, exactly as it is.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `` `odd``name` `` for MySQL and MariaDB.
pub fn backquoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

pub fn quoted_table(table: &TableName) -> String {
    format!("{}.{}", quoted(&table.schema), quoted(&table.name))
}

pub fn backquoted_table(table: &TableName) -> String {
    format!("{}.{}", backquoted(&table.schema), backquoted(&table.name))
}

/// Which columns take part in a statement, as indexes into [`Binding::columns`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Whose values are sent, ascending: the key, and what is carried and may be written.
    pub sent: Vec<usize>,
    /// Length of the key: `sent[..key]`.
    pub key: usize,
    /// Places in `sent` that a new row is given. A generated key column is compared, not written.
    pub insert: Vec<usize>,
    /// Places in `sent` that an existing row is given. Never the key; nor a column that the
    /// server lets nobody update (GENERATED ALWAYS AS IDENTITY).
    pub set: Vec<usize>,
    /// Of these, the ones that are added to what the row has.
    pub added: Vec<usize>,
}

impl Shape {
    pub fn of(binding: &Binding, carried: u128, added: u128) -> Shape {
        let written =
            |at: usize| at < binding.key_len || (carried >> at & 1 == 1 && !binding.columns[at].column.generated);
        let sent: Vec<usize> = (0..binding.columns.len()).filter(|at| written(*at)).collect();
        let column = |place: &usize| &binding.columns[sent[*place]].column;
        let insert = (0..sent.len()).filter(|p| !column(p).generated).collect();
        let set = (binding.key_len..sent.len()).filter(|p| !column(p).identity_always).collect();
        let added = (binding.key_len..sent.len()).filter(|place| added >> sent[*place] & 1 == 1).collect();
        Shape { key: binding.key_len, insert, set, added, sent }
    }

    /// These columns in the place of the key, for reads.
    pub fn sought(columns: &[usize]) -> Shape {
        let sent = columns.to_vec();
        Shape { key: sent.len(), insert: Vec::new(), set: Vec::new(), added: Vec::new(), sent }
    }

    /// The key alone, for deletes and reads.
    pub fn key(binding: &Binding) -> Shape {
        let sent: Vec<usize> = (0..binding.key_len).collect();
        Shape { key: binding.key_len, insert: Vec::new(), set: Vec::new(), added: Vec::new(), sent }
    }
}

/// Whether a statement that first tries to insert (ON CONFLICT, ON DUPLICATE KEY) may be used
/// for rows that may exist: what it proposes is checked as a new row before the old one is
/// found. So every column that is not carried must do without a value, none may draw a number
/// from a sequence for nothing, and no trigger may take the attempt for an insert.
pub fn may_propose(binding: &Binding, carried: u128) -> bool {
    let carried = |name: &str| {
        binding
            .columns
            .iter()
            .enumerate()
            .any(|(at, c)| c.column.name == name && (at < binding.key_len || carried >> at & 1 == 1))
    };
    !binding.table.triggers
        && binding.table.columns.iter().all(|column| {
            column.generated
                || carried(&column.name)
                || ((column.nullable || column.has_default) && !column.auto_increment)
        })
}

/// Bindings and columns for the tests of statement text.
#[cfg(test)]
pub(crate) mod fixture {
    use std::sync::Arc;

    use crate::catalog::{Column, ColumnType, DecimalLimits, Table, TableName};
    use crate::normalize::binding::{Binding, BoundColumn, Role, Transform};
    use crate::schema::{EntityId, SystemId};

    pub fn column(name: &str, ty: ColumnType, type_name: &str) -> Column {
        Column::new(name, ty, type_name)
    }

    pub fn binding(schema: &str, table: &str, key_len: usize, columns: Vec<Column>) -> Binding {
        let key: Vec<String> = columns[..key_len].iter().map(|c| c.name.clone()).collect();
        let bound = |(field, column): (usize, &Column)| BoundColumn {
            field,
            kind: column.ty.kind().expect("a kind"),
            column: column.clone(),
            transform: Transform::None,
            engine: crate::config::Engine::Postgres,
            label: column.name.as_str().into(),
        };
        Binding {
            system: SystemId(0),
            entity: EntityId(0),
            role: Role::Both,
            columns: columns.iter().enumerate().map(bound).collect(),
            key_len,
            filter: None,
            clash_keys: Vec::new(),
            table: Arc::new(Table {
                unique_keys: vec![key.clone()],
                primary_key: key,
                columns,
                ..Table::new(TableName { schema: schema.into(), name: table.into() })
            }),
        }
    }

    /// Mixed case, a reserved word, a quote, non-ASCII; a key of one column.
    pub fn contacts() -> Binding {
        binding(
            "public",
            "Kontakte",
            1,
            vec![
                column("id", ColumnType::Int { bytes: 8, signed: true }, "bigint"),
                column("firstName", ColumnType::Text { chars: Some(40), bytes: None }, "character varying(40)"),
                column(
                    "order",
                    ColumnType::Decimal { limits: Some(DecimalLimits { precision: 12, scale: 2 }) },
                    "numeric(12,2)",
                ),
                column("od\"d`größe", ColumnType::Json, "jsonb"),
            ],
        )
    }

    /// A key of two columns, with values of types that need a cast.
    pub fn lines() -> Binding {
        binding(
            "shop",
            "lines",
            2,
            vec![
                column("land", ColumnType::Char { chars: 2 }, "character(2)"),
                column(
                    "price",
                    ColumnType::Decimal { limits: Some(DecimalLimits { precision: 9, scale: 3 }) },
                    "numeric(9,3)",
                ),
                column("mood", ColumnType::Enum { labels: vec!["sad".into(), "ok".into()] }, "app.\"Mood\""),
            ],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_and_identity_columns_are_left_out_where_the_server_owns_them() {
        let mut binding = fixture::contacts();
        binding.columns[1].column.generated = true;
        binding.columns[2].column.identity_always = true;

        let shape = Shape::of(&binding, u128::MAX, 0);

        assert_eq!(shape.sent, [0, 2, 3]);
        assert_eq!(shape.insert, [0, 1, 2]);
        assert_eq!(shape.set, [2]);
    }

    #[test]
    fn a_row_is_proposed_only_where_the_attempt_has_no_side_effect() {
        let mut binding = fixture::contacts();
        assert!(may_propose(&binding, 0b0001));

        let mut table = (*binding.table).clone();
        table.columns[1].nullable = false;
        binding.table = table.clone().into();
        assert!(may_propose(&binding, 0b0011));
        assert!(!may_propose(&binding, 0b0101));

        table.columns[1].has_default = true;
        binding.table = table.clone().into();
        assert!(may_propose(&binding, 0b0101));

        table.columns[1].auto_increment = true;
        binding.table = table.clone().into();
        assert!(!may_propose(&binding, 0b0101));

        table.triggers = true;
        binding.table = table.into();
        assert!(!may_propose(&binding, 0b1111));
    }
}
