//! Tables as PostgreSQL's own catalogs show them.
//!
//! `information_schema` hides what a role does not own; `pg_catalog` shows all of it. The
//! replication stream lacks what stands here: the primary key behind a full replica identity,
//! NOT NULL, generated columns, defaults, enum labels.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use super::{
    Action, Collation, Column, ColumnType, DecimalLimits, ForeignKey, Loose, LooseKey, ReferentialAction,
    ReplicaIdentity, Table, TableName, Trigger, mark_side_effects,
};
use crate::connect::postgres::error;
use crate::error::Result;

/// Types by OID; those of the built-in ones never change.
pub(crate) mod oid {
    pub const BOOL: u32 = 16;
    pub const BYTEA: u32 = 17;
    pub const INT8: u32 = 20;
    pub const INT2: u32 = 21;
    pub const INT4: u32 = 23;
    pub const TEXT: u32 = 25;
    pub const JSON: u32 = 114;
    pub const FLOAT4: u32 = 700;
    pub const FLOAT8: u32 = 701;
    pub const BPCHAR: u32 = 1042;
    pub const VARCHAR: u32 = 1043;
    pub const DATE: u32 = 1082;
    pub const TIME: u32 = 1083;
    pub const TIMESTAMP: u32 = 1114;
    pub const TIMESTAMPTZ: u32 = 1184;
    pub const NUMERIC: u32 = 1700;
    pub const UUID: u32 = 2950;
    pub const BIT: u32 = 1560;
    pub const VARBIT: u32 = 1562;
    pub const JSONB: u32 = 3802;
    /// Where OIDs of what users create begin.
    pub const FIRST_OF_USERS: u32 = 16_384;

    /// Arrays of built-in types.
    pub fn is_array(oid: u32) -> bool {
        matches!(oid, 143 | 199 | 210 | 270..=273 | 629 | 651 | 719 | 775 | 791 | 1000..=1017 | 1019..=1022 | 1027
            | 1028 | 1034 | 1040 | 1041 | 1115 | 1182 | 1183 | 1185 | 1187 | 1231 | 1263 | 1270 | 1561 | 1563 | 2201
            | 2207..=2211 | 2949 | 2951 | 3221 | 3643..=3645 | 3735 | 3770 | 3807 | 3905 | 3907 | 3909 | 3911 | 3913
            | 3927 | 4073 | 4090 | 4097 | 4192 | 5039 | 6150..=6153 | 6155 | 6157)
    }

    /// Types whose values are names or numbers of things of one database: regclass and its kin,
    /// vectors of OIDs, expression trees.
    pub fn is_local(oid: u32) -> bool {
        matches!(oid, 24 | 30 | 194 | 1033 | 2202..=2206 | 3734 | 3769 | 4089 | 4096 | 4191)
    }
}

/// The type of values of a built-in type; `Unsupported` for what cannot be carried. Arrays need
/// their element's type, which only the catalog knows: see [`column`].
pub(crate) fn column_type(oid: u32, typmod: i32) -> ColumnType {
    let length = (typmod >= 4).then(|| (typmod - 4) as u32);
    let digits = u8::try_from(typmod).map_or(6, |digits| digits.min(6));
    match oid {
        oid::BOOL => ColumnType::Bool,
        oid::INT2 => ColumnType::Int { bytes: 2, signed: true },
        oid::INT4 => ColumnType::Int { bytes: 4, signed: true },
        oid::INT8 => ColumnType::Int { bytes: 8, signed: true },
        oid::NUMERIC => decimal(typmod),
        oid::FLOAT4 => ColumnType::Float32,
        oid::FLOAT8 => ColumnType::Float64,
        oid::BPCHAR => match length {
            Some(chars) => ColumnType::Char { chars },
            None => ColumnType::Text { chars: None, bytes: None },
        },
        oid::VARCHAR => ColumnType::Text { chars: length, bytes: None },
        oid::TEXT => ColumnType::Text { chars: None, bytes: None },
        oid::BYTEA => ColumnType::Bytes { bytes: None },
        oid::DATE => ColumnType::Date,
        oid::TIME => ColumnType::Time { digits },
        oid::TIMESTAMP => ColumnType::DateTime { digits },
        oid::TIMESTAMPTZ => ColumnType::Timestamp { digits },
        oid::UUID => ColumnType::Uuid,
        oid::JSON | oid::JSONB => ColumnType::Json,
        // Their typmod is the plain length.
        oid::BIT | oid::VARBIT => ColumnType::Bits { length: u32::try_from(typmod).ok(), varying: oid == oid::VARBIT },
        _ if oid::is_local(oid) => ColumnType::Unsupported,
        _ => ColumnType::Verbatim,
    }
}

/// numeric's typmod: precision and an 11-bit signed scale, plus 4.
fn decimal(typmod: i32) -> ColumnType {
    if typmod < 4 {
        return ColumnType::Decimal { limits: None };
    }
    let packed = typmod - 4;
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    match u16::try_from(scale) {
        Ok(scale) => {
            ColumnType::Decimal { limits: Some(DecimalLimits { precision: (packed >> 16 & 0xffff) as u16, scale }) }
        }
        // numeric(5,-2), rounded to hundreds: no other engine has it.
        Err(_) => ColumnType::Unsupported,
    }
}

/// The tables in the order asked for; `None` where there is no such table (a view is none).
pub async fn read(client: &Client, names: &[TableName]) -> Result<Vec<Option<Table>>> {
    if names.is_empty() {
        return Ok(vec![]);
    }
    let mut tables: Vec<Option<Table>> = vec![None; names.len()];
    let mut at: HashMap<u32, usize> = HashMap::new();
    let schemas: Vec<&str> = names.iter().map(|name| name.schema.as_str()).collect();
    let bare: Vec<&str> = names.iter().map(|name| name.name.as_str()).collect();
    for row in query(client, TABLES, &[&schemas, &bare]).await? {
        let index = row.get::<_, i64>("ord") as usize - 1;
        at.insert(row.get("oid"), index);
        tables[index] = Some(table(&names[index], &row));
    }
    let oids: Vec<u32> = at.keys().copied().collect();
    let mut each = |row: &Row, add: &mut dyn FnMut(&mut Table, &Row)| {
        if let Some(table) = at.get(&row.get("oid")).and_then(|&index| tables[index].as_mut()) {
            add(table, row);
        }
    };
    for row in query(client, COLUMNS, &[&oids]).await? {
        each(&row, &mut |table, row| table.columns.push(column(row)));
    }
    for row in query(client, KEYS, &[&oids]).await? {
        each(&row, &mut |table, row| {
            let columns = row.get::<_, Option<Vec<String>>>("columns").unwrap_or_default();
            if row.get("is_primary") {
                table.primary_key.clone_from(&columns);
            }
            table.loose_keys.extend(loose_key(row, table.unique_keys.len()));
            table.unique_keys.push(columns);
        });
    }
    for row in query(client, FOREIGN_KEYS, &[&oids]).await? {
        each(&row, &mut |table, row| {
            table.foreign_keys.push(ForeignKey {
                name: row.get("name"),
                columns: row.get("columns"),
                references: TableName { schema: row.get("ref_schema"), name: row.get("ref_name") },
                referenced: row.get("ref_columns"),
                on_update: action(row.get("on_update")),
                on_delete: action(row.get("on_delete")),
                acts: action(row.get("on_update")).acts() || action(row.get("on_delete")).acts(),
            });
        });
    }
    for row in query(client, TRIGGERS, &[&oids]).await? {
        each(&row, &mut |table, row| table.named_triggers.push(Trigger::new(row.get("name"), row.get("text"))));
    }
    let action = |row: &Row| ReferentialAction {
        parent: TableName { schema: row.get("parent_schema"), name: row.get("parent_name") },
        child: TableName { schema: row.get("child_schema"), name: row.get("child_name") },
        triggers: row.get("triggers"),
    };
    let actions: Vec<ReferentialAction> = query(client, ACTIONS, &[]).await?.iter().map(action).collect();
    mark_side_effects(&mut tables, &actions);
    Ok(tables)
}

async fn query(
    client: &Client,
    sql: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Vec<Row>> {
    client.query(sql, parameters).await.map_err(|e| error(&e).context("cannot read the catalog"))
}

/// Disabled triggers count: they may be enabled while the agent runs. Rules act like triggers.
const TABLES: &str = "
    SELECT w.ord, c.oid, c.relreplident::text AS identity,
           c.relhasrules OR EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = ANY (p.members)
               AND NOT t.tgisinternal) AS triggers,
           c.relhasrules OR EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = ANY (p.members)
               AND NOT t.tgisinternal AND t.tgtype & 8 <> 0) AS delete_triggers,
           (SELECT count(*) FROM pg_catalog.pg_constraint f WHERE f.confrelid = c.oid AND f.contype = 'f'
               AND f.conparentid = 0 AND f.conrelid <> c.oid) AS referenced_by
    FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) WITH ORDINALITY AS w (schema, name, ord)
    JOIN pg_catalog.pg_namespace n ON n.nspname::text = w.schema
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname::text = w.name
    CROSS JOIN LATERAL (SELECT pg_catalog.array_append(pg_catalog.array_agg(m.relid::oid), c.oid) AS members
                        FROM pg_catalog.pg_partition_tree(c.oid) m) p
    WHERE c.relkind IN ('r', 'p')";

/// With the source of their functions; those of partitions that their table has as well only once.
const TRIGGERS: &str = "
    SELECT w.oid, t.tgname::text AS name,
           pg_catalog.concat(t.tgenabled, pg_catalog.pg_get_triggerdef(t.oid), f.prosrc) AS text
    FROM pg_catalog.unnest($1::oid[]) AS w (oid)
    CROSS JOIN LATERAL (SELECT m.relid FROM pg_catalog.pg_partition_tree(w.oid) m UNION SELECT w.oid) m
    JOIN pg_catalog.pg_trigger t ON t.tgrelid = m.relid AND NOT t.tgisinternal AND t.tgparentid = 0
    JOIN pg_catalog.pg_proc f ON f.oid = t.tgfoid
    UNION ALL
    SELECT r.ev_class, r.rulename::text, pg_catalog.concat(r.ev_enabled, pg_catalog.pg_get_ruledef(r.oid))
    FROM pg_catalog.pg_rewrite r WHERE r.ev_class = ANY ($1)
    ORDER BY oid, name";

/// A domain's column is one of the type that the domain stands on: that is how its values are
/// written and read, and the server checks the domain itself.
const COLUMNS: &str = "
    SELECT a.attrelid AS oid, a.attname::text AS name, t.oid AS type_oid, b.typmod,
           pg_catalog.format_type(t.oid, b.typmod) AS type_name,
           NOT (a.attnotnull OR b.not_null) AS nullable,
           a.attgenerated <> '' AS generated, a.attidentity::text AS identity,
           pg_catalog.pg_get_expr(d.adbin, d.adrelid) AS default_value,
           CASE WHEN t.typtype = 'e' THEN
               (SELECT pg_catalog.array_agg(e.enumlabel::text ORDER BY e.enumsortorder)
                FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid) END AS labels,
           l.collname::text AS collation, l.collisdeterministic AND t.typname <> 'citext' AS binary_equality,
           CASE WHEN t.typcategory = 'A' AND t.oid NOT IN (22, 30) THEN coalesce(nullif(e.typbasetype, 0), e.oid) END AS element,
           CASE WHEN t.typcategory = 'A' AND e.typbasetype <> 0 THEN e.typtypmod ELSE b.typmod END AS element_typmod
    FROM pg_catalog.pg_attribute a
    CROSS JOIN LATERAL (
        WITH RECURSIVE d (oid, typmod, not_null, depth) AS (
            SELECT a.atttypid, a.atttypmod, false, 0
            UNION ALL
            SELECT y.typbasetype, y.typtypmod, d.not_null OR y.typnotnull, d.depth + 1
            FROM d JOIN pg_catalog.pg_type y ON y.oid = d.oid WHERE y.typtype = 'd')
        SELECT d.oid, d.typmod, d.not_null FROM d ORDER BY d.depth DESC LIMIT 1) b
    JOIN pg_catalog.pg_type t ON t.oid = b.oid
    LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
    WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attrelid, a.attnum";

/// Key columns in the index's order; behind them what an expression or predicate names.
const KEYS: &str = "
    SELECT i.indrelid AS oid, i.indisprimary AS is_primary,
           (SELECT c.relname::text FROM pg_catalog.pg_class c WHERE c.oid = i.indexrelid) AS index_name,
           CASE WHEN NOT i.indisvalid THEN 'invalid' WHEN i.indisexclusion THEN 'overlaps'
                WHEN i.indpred IS NOT NULL THEN 'partial' WHEN i.indexprs IS NOT NULL THEN 'expression'
                WHEN NOT i.indimmediate THEN 'deferrable' END AS loose,
           pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate,
           CASE WHEN i.indexprs IS NULL THEN
               (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.place)
                FROM pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
                JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                WHERE k.place <= i.indnkeyatts) END AS own_columns,
           (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.place)
            FROM (SELECT u.attnum::int AS attnum, min(u.place) AS place FROM (
                      SELECT k.attnum, k.place FROM pg_catalog.unnest(i.indkey) WITH ORDINALITY AS k (attnum, place)
                      WHERE k.place <= i.indnkeyatts
                      UNION ALL
                      SELECT d.refobjsubid, 1000 + d.refobjsubid FROM pg_catalog.pg_depend d
                      WHERE (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)
                        AND d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid
                        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = i.indrelid) u
                  WHERE u.attnum > 0 GROUP BY u.attnum) k
            JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum) AS columns
    FROM pg_catalog.pg_index i
    WHERE i.indrelid = ANY ($1) AND i.indisunique
    ORDER BY i.indrelid, i.indisprimary DESC, i.indexrelid";

/// A reference to a partitioned table has a child per partition on the same table.
const FOREIGN_KEYS: &str = "
    SELECT f.conrelid AS oid, f.conname::text AS name, n.nspname::text AS ref_schema, c.relname::text AS ref_name,
           f.confdeltype::text AS on_delete, f.confupdtype::text AS on_update,
           (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.place)
            FROM pg_catalog.unnest(f.confkey) WITH ORDINALITY AS k (attnum, place)
            JOIN pg_catalog.pg_attribute a ON a.attrelid = f.confrelid AND a.attnum = k.attnum) AS ref_columns,
           (SELECT pg_catalog.array_agg(a.attname::text ORDER BY k.place)
            FROM pg_catalog.unnest(f.conkey) WITH ORDINALITY AS k (attnum, place)
            JOIN pg_catalog.pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = k.attnum) AS columns
    FROM pg_catalog.pg_constraint f
    JOIN pg_catalog.pg_class c ON c.oid = f.confrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE f.conrelid = ANY ($1) AND f.contype = 'f'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint p WHERE p.oid = f.conparentid AND p.conrelid = f.conrelid)
    ORDER BY f.conrelid, f.conname";

/// Referential actions of the whole database; partitions stand for their table.
const ACTIONS: &str = "
    SELECT DISTINCT pn.nspname::text AS parent_schema, p.relname::text AS parent_name,
           cn.nspname::text AS child_schema, c.relname::text AS child_name,
           EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE NOT t.tgisinternal
                   AND t.tgrelid IN (f.conrelid, c.oid)) AS triggers
    FROM pg_catalog.pg_constraint f
    JOIN pg_catalog.pg_class p ON p.oid = coalesce(pg_catalog.pg_partition_root(f.confrelid)::oid, f.confrelid)
    JOIN pg_catalog.pg_namespace pn ON pn.oid = p.relnamespace
    JOIN pg_catalog.pg_class c ON c.oid = coalesce(pg_catalog.pg_partition_root(f.conrelid)::oid, f.conrelid)
    JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
    WHERE f.contype = 'f' AND (f.confdeltype IN ('c', 'n', 'd') OR f.confupdtype IN ('c', 'n', 'd'))";

fn table(name: &TableName, row: &Row) -> Table {
    let identity = match row.get::<_, &str>("identity") {
        "f" => ReplicaIdentity::Full,
        "i" => ReplicaIdentity::Index,
        "n" => ReplicaIdentity::Nothing,
        _ => ReplicaIdentity::Default,
    };
    Table {
        referenced_by: row.get::<_, i64>("referenced_by") as u32,
        triggers: row.get("triggers"),
        delete_triggers: row.get("delete_triggers"),
        replica_identity: Some(identity),
        ..Table::new(name.clone())
    }
}

fn loose_key(row: &Row, at: usize) -> Option<LooseKey> {
    let why = match row.get::<_, Option<&str>>("loose")? {
        "invalid" => Loose::Invalid,
        "overlaps" => Loose::Overlaps,
        "partial" => Loose::Partial(row.get::<_, Option<String>>("predicate").unwrap_or_default()),
        "expression" => Loose::Expression,
        _ => Loose::Deferrable,
    };
    let columns = row.get::<_, Option<Vec<String>>>("own_columns").or_else(|| row.get("columns"));
    Some(LooseKey { at, index: row.get("index_name"), columns: columns.unwrap_or_default(), why })
}

fn action(code: &str) -> Action {
    match code {
        "c" => Action::Cascade,
        "n" => Action::SetNull,
        "d" => Action::SetDefault,
        _ => Action::Refuse,
    }
}

fn column(row: &Row) -> Column {
    let generated: bool = row.get("generated");
    let identity: &str = row.get("identity");
    let default: Option<&str> = row.get("default_value");
    let labels: Option<Vec<String>> = row.get("labels");
    let element: Option<u32> = row.get("element");
    let ty = match (labels, element) {
        (Some(labels), _) => ColumnType::Enum { labels },
        (None, Some(element)) => match column_type(element, row.get("element_typmod")) {
            ColumnType::Unsupported => ColumnType::Unsupported,
            element => ColumnType::Array { element: Box::new(element) },
        },
        (None, None) => column_type(row.get("type_oid"), row.get("typmod")),
    };
    let collation = row.get::<_, Option<String>>("collation").map(|name| Collation {
        name,
        binary: row.get("binary_equality"),
        pads: matches!(ty, ColumnType::Char { .. }),
        bytes: "C".to_owned(),
    });
    Column {
        name: row.get("name"),
        ty,
        type_name: row.get("type_name"),
        collation,
        definition: String::new(),
        nullable: row.get("nullable"),
        generated,
        identity_always: identity == "a",
        has_default: !generated && (default.is_some() || !identity.is_empty()),
        auto_increment: !identity.is_empty() || default.is_some_and(|value| value.starts_with("nextval(")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typmod_limits_what_its_type_limits() {
        let limits = |precision, scale| ColumnType::Decimal { limits: Some(DecimalLimits { precision, scale }) };

        assert_eq!(column_type(oid::NUMERIC, (12 << 16 | 2) + 4), limits(12, 2));
        assert_eq!(column_type(oid::NUMERIC, -1), ColumnType::Decimal { limits: None });
        assert_eq!(column_type(oid::NUMERIC, (5 << 16 | (-2 & 0x7ff)) + 4), ColumnType::Unsupported);
        assert_eq!(column_type(oid::VARCHAR, 36), ColumnType::Text { chars: Some(32), bytes: None });
        assert_eq!(column_type(oid::BPCHAR, 5), ColumnType::Char { chars: 1 });
        assert_eq!(column_type(oid::TIMESTAMPTZ, 3), ColumnType::Timestamp { digits: 3 });
        assert_eq!(column_type(oid::TIMESTAMPTZ, -1), ColumnType::Timestamp { digits: 6 });
        assert_eq!(column_type(oid::BIT, 10), ColumnType::Bits { length: Some(10), varying: false });
        assert_eq!(column_type(oid::VARBIT, -1), ColumnType::Bits { length: None, varying: true });
        assert_eq!(column_type(600, -1), ColumnType::Verbatim, "point");
        assert_eq!(column_type(2205, -1), ColumnType::Unsupported, "regclass");
    }
}
