//! Tables as `information_schema` shows them, for MySQL and MariaDB.
//!
//! The binlog's own metadata lacks what stands here: generated columns, MariaDB's UUID and
//! JSON (a LONGTEXT with a check), unique keys, references. A role sees triggers only with the
//! TRIGGER privilege and references only of tables on which it has a privilege.

use std::collections::{BTreeMap, HashSet};

use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{Conn, Params};

use super::{
    Action, Collation, Column, ColumnType, DecimalLimits, ForeignKey, Loose, LooseKey, ReferentialAction, Table,
    TableName, Trigger, mark_side_effects,
};
use crate::apply::sql::backquoted_table;
use crate::charset::{self, Charset};
use crate::connect::mysql::{Flavour, failed, server};
use crate::error::Result;

/// The tables in the order asked for; `None` where there is no such base table.
pub async fn read(conn: &mut Conn, names: &[TableName]) -> Result<Vec<Option<Table>>> {
    let folded: Option<u8> =
        conn.query_first("SELECT @@lower_case_table_names").await.map_err(|e| failed(e, "reading the catalog"))?;
    let mut tables = Vec::with_capacity(names.len());
    for name in names {
        tables.push(read_table(conn, name, folded.unwrap_or(0) != 0).await?);
    }
    let (flavour, _, version) = server(conn).await?;
    let logged = flavour == Flavour::Mysql && version >= CASCADES_LOGGED;
    let actions = if logged { read_actions(conn, &tables).await? } else { Vec::new() };
    mark_side_effects(&mut tables, &actions);
    if logged && tables.iter().flatten().any(|table| hidden_parent(table, &tables, &actions)) {
        tables.iter_mut().flatten().for_each(|table| table.side_effects = true);
    }
    Ok(tables)
}

/// From this version on MySQL itself carries out referential actions, and logs them. Before it,
/// and in MariaDB, InnoDB does so beneath the log.
const CASCADES_LOGGED: (u16, u16, u16) = (9, 6, 0);

/// The referential actions that the role may see. Triggers of tables that are not bound cannot
/// be seen, and are taken to be there.
async fn read_actions(conn: &mut Conn, tables: &[Option<Table>]) -> Result<Vec<ReferentialAction>> {
    let found: Vec<(String, String, String, String)> = conn
        .query(
            "SELECT UNIQUE_CONSTRAINT_SCHEMA, REFERENCED_TABLE_NAME, CONSTRAINT_SCHEMA, TABLE_NAME \
             FROM information_schema.REFERENTIAL_CONSTRAINTS \
             WHERE DELETE_RULE IN ('CASCADE', 'SET NULL', 'SET DEFAULT') \
             OR UPDATE_RULE IN ('CASCADE', 'SET NULL', 'SET DEFAULT')",
        )
        .await
        .map_err(|e| failed(e, "reading the catalog's referential actions"))?;
    let action = |(parent_schema, parent, child_schema, child)| {
        let child = TableName { schema: child_schema, name: child };
        let triggers = tables.iter().flatten().find(|table| table.name == child).is_none_or(|table| table.triggers);
        ReferentialAction { parent: TableName { schema: parent_schema, name: parent }, child, triggers }
    };
    Ok(found.into_iter().map(action).collect())
}

/// Whether rows of this table are written for a table of which nothing more can be seen.
fn hidden_parent(table: &Table, tables: &[Option<Table>], actions: &[ReferentialAction]) -> bool {
    let seen = |name: &TableName| {
        tables.iter().flatten().any(|table| table.name == *name) || actions.iter().any(|action| action.child == *name)
    };
    table.foreign_keys.iter().any(|key| key.acts && !seen(&key.references))
}

async fn read_table(conn: &mut Conn, wanted: &TableName, folded: bool) -> Result<Option<Table>> {
    let found: Vec<(String, String, String, Option<String>)> = rows(
        conn,
        "SELECT t.TABLE_SCHEMA, t.TABLE_NAME, t.TABLE_TYPE, e.TRANSACTIONS FROM information_schema.TABLES t \
         LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE \
         WHERE t.TABLE_SCHEMA = ? AND t.TABLE_NAME = ?",
        wanted,
    )
    .await?;
    let same = |a: &str, b: &str| if folded { a.to_lowercase() == b.to_lowercase() } else { a == b };
    let Some((schema, name, kind, transactions)) =
        found.into_iter().find(|(s, n, kind, _)| same(s, &wanted.schema) && same(n, &wanted.name) && kind != "VIEW")
    else {
        return Ok(None);
    };
    let name = TableName { schema, name };
    let mut columns = read_columns(conn, &name).await?;
    if kind != "BASE TABLE" {
        // Sequences and system-versioned tables log rows that are no one's writes.
        for column in &mut columns {
            column.ty = ColumnType::Unsupported;
            column.type_name = format!("{} ({})", column.type_name, kind.to_lowercase());
        }
    }
    let (primary_key, unique_keys, loose_keys) = read_keys(conn, &name).await?;
    let triggers: Vec<(String, String, String, String)> = rows(
        conn,
        "SELECT TRIGGER_NAME, EVENT_MANIPULATION, ACTION_TIMING, ACTION_STATEMENT FROM information_schema.TRIGGERS \
         WHERE EVENT_OBJECT_SCHEMA = ? AND EVENT_OBJECT_TABLE = ? ORDER BY TRIGGER_NAME",
        &name,
    )
    .await?;
    let incoming: Vec<(u32,)> = rows(
        conn,
        "SELECT COUNT(*) FROM information_schema.REFERENTIAL_CONSTRAINTS \
         WHERE UNIQUE_CONSTRAINT_SCHEMA = ? AND REFERENCED_TABLE_NAME = ?",
        &name,
    )
    .await?;
    Ok(Some(Table {
        columns,
        primary_key,
        unique_keys,
        loose_keys,
        foreign_keys: read_foreign_keys(conn, &name).await?,
        referenced_by: incoming.first().map_or(0, |(count,)| *count),
        triggers: !triggers.is_empty(),
        delete_triggers: triggers.iter().any(|(_, event, ..)| event == "DELETE"),
        named_triggers: triggers
            .into_iter()
            .map(|(name, event, when, body)| Trigger::new(name, &[event, when, body].concat()))
            .collect(),
        side_effects: false, // marked when all are known
        transactional: transactions.as_deref() == Some("YES"),
        replica_identity: None,
        name,
    }))
}

async fn rows<T: FromRow + Send + 'static>(conn: &mut Conn, query: &str, name: &TableName) -> Result<Vec<T>> {
    let parameters = Params::Positional(vec![name.schema.as_str().into(), name.name.as_str().into()]);
    conn.exec(query, parameters).await.map_err(|e| failed(e, &format!("reading the catalog of {name}")))
}

/// What `information_schema.COLUMNS` says of one column.
#[derive(Debug, Default)]
struct Described {
    name: String,
    data_type: String,
    column_type: String,
    charset: Option<String>,
    chars: Option<u64>,
    octets: Option<u64>,
    precision: Option<u64>,
    scale: Option<u64>,
    fraction: Option<u64>,
}

async fn read_columns(conn: &mut Conn, table: &TableName) -> Result<Vec<Column>> {
    let found: Vec<mysql_async::Row> = rows(
        conn,
        "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, CHARACTER_SET_NAME, CHARACTER_MAXIMUM_LENGTH, \
         CHARACTER_OCTET_LENGTH, NUMERIC_PRECISION, NUMERIC_SCALE, DATETIME_PRECISION, \
         IS_NULLABLE, COLUMN_DEFAULT, EXTRA, COLLATION_NAME \
         FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? ORDER BY ORDINAL_POSITION",
        table,
    )
    .await?;
    let (flavour, ..) = server(conn).await?;
    let json = json_columns(conn, table, flavour).await?;
    let definitions = read_definitions(conn, table).await?;
    Ok(found.into_iter().map(|row| column(row, &json, &definitions, flavour)).collect())
}

/// Each column as the server itself spells it; none where it does not let us see that.
async fn read_definitions(conn: &mut Conn, table: &TableName) -> Result<BTreeMap<String, String>> {
    let sql = format!("SHOW CREATE TABLE {}", backquoted_table(table));
    match conn.query_first::<(String, String), _>(sql).await {
        Ok(row) => Ok(row.map_or_else(BTreeMap::new, |(_, text)| definitions(&text))),
        Err(mysql_async::Error::Server(_)) => Ok(BTreeMap::new()),
        Err(error) => Err(failed(error, &format!("reading the catalog of {table}"))),
    }
}

/// The lines of CREATE TABLE that begin with a name in backticks.
fn definitions(create: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in create.lines() {
        let line = line.trim().trim_end_matches(',');
        let Some(rest) = line.strip_prefix('`') else { continue };
        // A backtick inside of the name is doubled.
        let end = rest.replace("``", "\u{0}\u{0}").find('`');
        if let Some(end) = end {
            found.insert(rest[..end].replace("``", "`"), line.to_owned());
        }
    }
    found
}

/// By their names: `information_schema` tells of neither in MariaDB. In MySQL padding ended with
/// the collations of Unicode 9.
fn collation(name: &str, ty: &ColumnType, flavour: Flavour) -> Collation {
    let charset = name.split('_').next().unwrap_or(name);
    let nopad = name == "binary" || name.contains("_nopad_") || name.contains("_0900_");
    Collation {
        name: name.to_owned(),
        binary: name == "binary" || name.ends_with("_bin"),
        pads: !nopad || matches!(ty, ColumnType::Char { .. }),
        bytes: match flavour {
            Flavour::Mysql => "utf8mb4_0900_bin".to_owned(),
            Flavour::Mariadb => format!("{charset}_nopad_bin"),
        },
    }
}

fn column(
    mut row: mysql_async::Row,
    json: &HashSet<String>,
    definitions: &BTreeMap<String, String>,
    flavour: Flavour,
) -> Column {
    let mut text = |at: usize| row.take_opt::<Option<String>, _>(at).and_then(Result::ok).flatten();
    let mut described = Described {
        name: text(0).unwrap_or_default(),
        data_type: text(1).unwrap_or_default().to_lowercase(),
        column_type: text(2).unwrap_or_default(),
        charset: text(3),
        ..Described::default()
    };
    let nullable = text(9).as_deref() == Some("YES");
    let default = text(10);
    let extra = text(11).unwrap_or_default().to_lowercase();
    let collated = text(12);
    let mut number = |at: usize| row.take_opt::<Option<u64>, _>(at).and_then(Result::ok).flatten();
    described.chars = number(4);
    described.octets = number(5);
    described.precision = number(6);
    described.scale = number(7);
    described.fraction = number(8);
    let nextval = default.as_deref().is_some_and(|d| d.to_lowercase().contains("nextval("));
    let ty = column_type(&described, json.contains(&described.name));
    Column {
        collation: collated.map(|name| collation(&name, &ty, flavour)),
        definition: definitions.get(&described.name).cloned().unwrap_or_default(),
        ty,
        nullable,
        generated: ["virtual generated", "stored generated", "persistent"].iter().any(|word| extra.contains(word)),
        identity_always: false,
        // MariaDB spells "no default" of a nullable column as the word.
        has_default: default.as_deref().is_some_and(|d| d != "NULL") || extra.contains("auto_increment"),
        auto_increment: extra.contains("auto_increment") || nextval,
        name: described.name,
        type_name: described.column_type,
    }
}

fn column_type(column: &Described, json: bool) -> ColumnType {
    let charset = column.charset.as_deref().and_then(charset::named);
    let utf8 = charset == Some(Charset::Utf8);
    let text = charset.is_some_and(|charset| charset != Charset::Binary);
    let declared = column.column_type.to_lowercase();
    let int = |bytes| ColumnType::Int { bytes, signed: !declared.contains("unsigned") };
    let digits = column.fraction.unwrap_or(0) as u8;
    let octets = column.octets.or(column.chars);
    let labels = |set: &str| labels(&column.column_type, set);
    match column.data_type.as_str() {
        "tinyint" => int(1),
        "smallint" => int(2),
        "mediumint" => int(3),
        "int" | "integer" => int(4),
        "bigint" => int(8),
        "decimal" => match (column.precision, column.scale) {
            (Some(precision), Some(scale)) => {
                ColumnType::Decimal { limits: Some(DecimalLimits { precision: precision as u16, scale: scale as u16 }) }
            }
            _ => ColumnType::Unsupported,
        },
        // float(7,2) would round what is written.
        "float" if column.scale.is_none() => ColumnType::Float32,
        "double" if column.scale.is_none() => ColumnType::Float64,
        "bit" => ColumnType::Bits { length: column.precision.map(|n| n as u32), varying: false },
        "year" => ColumnType::Year,
        "longtext" if json && utf8 => ColumnType::Json,
        "json" => ColumnType::Json,
        "char" if text => ColumnType::Char { chars: column.chars.unwrap_or(0) as u32 },
        "varchar" if text => ColumnType::Text { chars: column.chars.map(|n| n as u32), bytes: None },
        // Octets of another set are the server's to count.
        "tinytext" | "text" | "mediumtext" | "longtext" if text => {
            ColumnType::Text { chars: None, bytes: octets.filter(|_| utf8) }
        }
        "binary" => ColumnType::Binary { bytes: octets.unwrap_or(0) as u32 },
        "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => ColumnType::Bytes { bytes: octets },
        "date" => ColumnType::Date,
        "time" => ColumnType::Time { digits },
        "datetime" => ColumnType::DateTime { digits },
        "timestamp" => ColumnType::Timestamp { digits },
        "uuid" => ColumnType::Uuid,
        "enum" if text => labels("enum(").map_or(ColumnType::Unsupported, |labels| ColumnType::Enum { labels }),
        "set" if text => labels("set(").map_or(ColumnType::Unsupported, |labels| ColumnType::Set { labels }),
        "inet4" => ColumnType::Inet { v6: false },
        "inet6" => ColumnType::Inet { v6: true },
        "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
        | "geomcollection" | "geometrycollection" => ColumnType::Geometry,
        // Floats of four bytes, low one first.
        "vector" => ColumnType::Bytes { bytes: octets },
        // Text in swe7 and in the East Asian sets of several bytes.
        _ => ColumnType::Unsupported,
    }
}

/// MariaDB's JSON columns: those whose own check is `json_valid`. MySQL has a type for them.
async fn json_columns(conn: &mut Conn, table: &TableName, flavour: Flavour) -> Result<HashSet<String>> {
    if flavour != Flavour::Mariadb {
        return Ok(HashSet::new());
    }
    let checks: Vec<(String,)> = rows(
        conn,
        "SELECT CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS \
         WHERE CONSTRAINT_SCHEMA = ? AND TABLE_NAME = ?",
        table,
    )
    .await?;
    Ok(checks.iter().filter_map(|(clause,)| json_checked(clause)).collect())
}

/// json_valid(`name`) → name
fn json_checked(clause: &str) -> Option<String> {
    let inner = clause.trim().strip_prefix("json_valid(`")?.strip_suffix("`)")?;
    Some(inner.replace("``", "`"))
}

/// Index, column, its prefix, its expression, hidden.
type IndexPart = (String, Option<String>, Option<u64>, Option<String>, bool);

/// Primary key, every unique key with the columns that it names, and which of these are none.
async fn read_keys(conn: &mut Conn, table: &TableName) -> Result<(Vec<String>, Vec<Vec<String>>, Vec<LooseKey>)> {
    let (flavour, _, version) = server(conn).await?;
    let (expression, hidden) = match flavour {
        Flavour::Mysql => ("EXPRESSION", "IS_VISIBLE = 'NO'"),
        Flavour::Mariadb if version >= (10, 6, 0) => ("NULL", "IGNORED = 'YES'"),
        Flavour::Mariadb => ("NULL", "FALSE"),
    };
    let sql = format!(
        "SELECT INDEX_NAME, COLUMN_NAME, SUB_PART, {expression}, {hidden} FROM information_schema.STATISTICS \
         WHERE TABLE_SCHEMA = ? AND TABLE_NAME = ? AND NON_UNIQUE = 0 ORDER BY INDEX_NAME, SEQ_IN_INDEX"
    );
    let parts: Vec<IndexPart> = rows(conn, &sql, table).await?;
    let mut keys: BTreeMap<String, (Vec<String>, Option<Loose>)> = BTreeMap::new();
    for (index, column, prefix, computed, hidden) in parts {
        let (columns, loose) = keys.entry(index).or_default();
        if let Some(expression) = computed {
            *loose = Some(Loose::Expression);
            columns.extend(expression.split('`').skip(1).step_by(2).map(str::to_owned));
        } else if let (Some(column), Some(chars)) = (&column, prefix) {
            *loose = Some(Loose::Prefix(column.clone(), chars));
        } else if hidden && loose.is_none() {
            *loose = Some(Loose::Invisible(flavour == Flavour::Mariadb));
        }
        columns.extend(column);
    }
    let primary = keys.get("PRIMARY").map(|(columns, _)| columns.clone()).unwrap_or_default();
    let mut loose = Vec::new();
    for (at, (index, (columns, why))) in keys.iter().enumerate() {
        if let Some(why) = why.clone() {
            loose.push(LooseKey { at, index: index.clone(), columns: columns.clone(), why });
        }
    }
    Ok((primary, keys.into_values().map(|(columns, _)| columns).collect(), loose))
}

async fn read_foreign_keys(conn: &mut Conn, table: &TableName) -> Result<Vec<ForeignKey>> {
    let parts: Vec<(String, String, String, String, String, String, String)> = rows(
        conn,
        "SELECT k.CONSTRAINT_NAME, k.COLUMN_NAME, k.REFERENCED_TABLE_SCHEMA, k.REFERENCED_TABLE_NAME, \
         k.REFERENCED_COLUMN_NAME, r.UPDATE_RULE, r.DELETE_RULE \
         FROM information_schema.KEY_COLUMN_USAGE k JOIN information_schema.REFERENTIAL_CONSTRAINTS r \
         ON r.CONSTRAINT_SCHEMA = k.CONSTRAINT_SCHEMA AND r.CONSTRAINT_NAME = k.CONSTRAINT_NAME \
         AND r.TABLE_NAME = k.TABLE_NAME \
         WHERE k.TABLE_SCHEMA = ? AND k.TABLE_NAME = ? AND k.REFERENCED_TABLE_NAME IS NOT NULL \
         ORDER BY k.CONSTRAINT_NAME, k.ORDINAL_POSITION",
        table,
    )
    .await?;
    let mut keys: Vec<ForeignKey> = Vec::new();
    for (name, column, schema, referenced, to, on_update, on_delete) in parts {
        let (on_update, on_delete) = (action(&on_update), action(&on_delete));
        match keys.last_mut().filter(|key| key.name == name) {
            Some(key) => {
                key.columns.push(column);
                key.referenced.push(to);
            }
            None => keys.push(ForeignKey {
                name,
                columns: vec![column],
                references: TableName { schema, name: referenced },
                referenced: vec![to],
                on_update,
                on_delete,
                acts: on_update.acts() || on_delete.acts(),
            }),
        }
    }
    Ok(keys)
}

fn action(rule: &str) -> Action {
    match rule {
        "CASCADE" => Action::Cascade,
        "SET NULL" => Action::SetNull,
        "SET DEFAULT" => Action::SetDefault,
        _ => Action::Refuse,
    }
}

/// enum('a','it''s') → its labels, in order. `head` is `enum(` or `set(`.
fn labels(column_type: &str, head: &str) -> Option<Vec<String>> {
    let inner = column_type.strip_prefix(head)?.rsplit_once(')')?.0;
    let mut labels = Vec::new();
    let mut chars = inner.chars().peekable();
    loop {
        if chars.next()? != '\'' {
            return None;
        }
        let mut label = String::new();
        loop {
            match chars.next()? {
                '\'' if chars.peek() == Some(&'\'') => label.extend(chars.next()),
                '\'' => break,
                '\\' => label.push(match chars.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    '0' => '\0',
                    'Z' => '\u{1a}',
                    other => other,
                }),
                other => label.push(other),
            }
        }
        labels.push(label);
        match chars.next() {
            Some(',') => {}
            None => return Some(labels),
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_quotes_commas_and_backslashes() {
        let found = labels(r"enum('a','it''s','x,y','b\\c','')", "enum(").expect("well formed");

        assert_eq!(found, ["a", "it's", "x,y", r"b\c", ""]);
        assert_eq!(labels("enum('a", "enum("), None);
        assert_eq!(labels("set('a')", "enum("), None);
        assert_eq!(labels("set('a')", "set("), Some(vec!["a".to_owned()]));
    }

    #[test]
    fn only_text_in_a_known_character_set_is_carried() {
        let described = |data_type: &str, charset: &str| Described {
            data_type: data_type.into(),
            column_type: data_type.into(),
            charset: Some(charset.into()),
            chars: Some(10),
            octets: Some(40),
            ..Described::default()
        };

        assert_eq!(
            column_type(&described("varchar", "utf8mb4"), false),
            ColumnType::Text { chars: Some(10), bytes: None }
        );
        assert_eq!(
            column_type(&described("varchar", "latin1"), false),
            ColumnType::Text { chars: Some(10), bytes: None }
        );
        assert_eq!(
            column_type(&described("text", "utf8mb3"), false),
            ColumnType::Text { chars: None, bytes: Some(40) }
        );
        assert_eq!(column_type(&described("text", "latin1"), false), ColumnType::Text { chars: None, bytes: None });
        assert_eq!(column_type(&described("varchar", "swe7"), false), ColumnType::Unsupported);
        assert_eq!(column_type(&described("longtext", "utf8mb4"), true), ColumnType::Json);
        let rounding = Described { scale: Some(2), ..described("float", "utf8mb4") };
        assert_eq!(column_type(&rounding, false), ColumnType::Unsupported);
    }

    #[test]
    fn a_column_is_defined_as_the_server_spells_it() {
        let create =
            "CREATE TABLE `t` (\n  `a``b` varchar(5) NOT NULL DEFAULT 'x,',\n  `n` int,\n  PRIMARY KEY (`n`)\n)";

        let definitions = definitions(create);

        assert_eq!(definitions["a`b"], "`a``b` varchar(5) NOT NULL DEFAULT 'x,'");
        assert_eq!(definitions["n"], "`n` int");
        assert_eq!(definitions.len(), 2);
    }

    #[test]
    fn a_collation_says_by_its_name_what_is_equal() {
        let said = |name: &str| {
            let c = collation(name, &ColumnType::Text { chars: None, bytes: None }, Flavour::Mysql);
            (c.binary, c.pads)
        };

        assert_eq!(said("utf8mb4_0900_ai_ci"), (false, false));
        assert_eq!(said("utf8mb4_0900_bin"), (true, false));
        assert_eq!(said("utf8mb4_nopad_bin"), (true, false));
        assert_eq!(said("utf8mb4_bin"), (true, true));
        assert_eq!(said("utf8mb4_uca1400_ai_ci"), (false, true));
        assert!(collation("utf8mb4_0900_bin", &ColumnType::Char { chars: 3 }, Flavour::Mysql).pads);
    }

    #[test]
    fn a_json_check_names_its_column() {
        assert_eq!(json_checked("json_valid(`a``b`)").as_deref(), Some("a`b"));
        assert_eq!(json_checked("`n` > 0"), None);
    }
}
