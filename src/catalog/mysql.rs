//! Tables as `information_schema` shows them, for MySQL and MariaDB.
//!
//! The binlog's own metadata lacks what stands here: generated columns, MariaDB's UUID and
//! JSON (a LONGTEXT with a check), unique keys, references. A role sees triggers only with the
//! TRIGGER privilege and references only of tables on which it has a privilege.

mod column;

use std::collections::{BTreeMap, HashMap, HashSet};

use mysql_async::prelude::{FromRow, Queryable};
use mysql_async::{Conn, Params};

use self::column::{column, definitions, json_checked};
use super::{
    Action, Column, ColumnType, ForeignKey, Loose, LooseKey, ReferentialAction, Table, TableName, Trigger,
    mark_side_effects,
};
use crate::apply::sql::backquoted_table;
use crate::connect::mysql::{Flavour, failed, server};
use crate::error::{Error, Result};

/// From so many tables of one schema on, if they are a good part of it, it is read as a whole.
const MANY: usize = 16;

/// The tables in the order asked for; `None` where there is no such base table.
pub async fn read(conn: &mut Conn, names: &[TableName]) -> Result<Vec<Option<Table>>> {
    if names.is_empty() {
        return Ok(vec![]);
    }
    let folds: Option<u8> = conn.query_first("SELECT @@lower_case_table_names").await.map_err(unread)?;
    let (flavour, _, version) = server(conn).await?;
    let folds = folds.unwrap_or(0) != 0;
    let (wanted, incoming) = (HashSet::new(), HashMap::new());
    let mut reader = Reader { conn, flavour, version, folds, wanted, incoming };
    reader.wanted = names.iter().map(|name| reader.key(name)).collect();
    reader.count_references().await?;
    let mut found = HashMap::new();
    for scope in reader.scopes(names).await? {
        found.extend(reader.read(&scope).await?);
    }
    let mut tables: Vec<Option<Table>> = names.iter().map(|name| found.get(&reader.key(name)).cloned()).collect();
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
        .map_err(unread)?;
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

fn unread(error: mysql_async::Error) -> Error {
    failed(error, "reading the catalog")
}

/// What one set of queries reads: one table, or all of a schema. MariaDB opens each table that a query of
/// `information_schema` is about, so that few of many are cheaper one by one.
struct Scope {
    schema: String,
    table: Option<String>,
}

impl Scope {
    /// Given what the two columns are called; its parameters are those of [`Reader::rows`].
    fn condition(&self, schema: &str, table: &str) -> String {
        match self.table {
            Some(_) => format!("{schema} = ? AND {table} = ?"),
            None => format!("{schema} = ?"),
        }
    }
}

/// Schema and table, as they are compared.
type Key = (String, String);

struct Reader<'a> {
    conn: &'a mut Conn,
    flavour: Flavour,
    version: (u16, u16, u16),
    /// The server does not tell upper from lower case in names of tables.
    folds: bool,
    /// What was asked for.
    wanted: HashSet<Key>,
    /// How many foreign keys point to a table.
    incoming: HashMap<Key, u32>,
}

impl Reader<'_> {
    fn folded(&self, name: &str) -> String {
        if self.folds { name.to_lowercase() } else { name.to_owned() }
    }

    fn key(&self, name: &TableName) -> Key {
        (self.folded(&name.schema), self.folded(&name.name))
    }

    /// In one query of all: MariaDB looks through every table for each.
    async fn count_references(&mut self) -> Result<()> {
        let counted: Vec<(String, String, u32)> = self
            .conn
            .query(
                "SELECT UNIQUE_CONSTRAINT_SCHEMA, REFERENCED_TABLE_NAME, COUNT(*) \
                 FROM information_schema.REFERENTIAL_CONSTRAINTS GROUP BY 1, 2",
            )
            .await
            .map_err(unread)?;
        for (schema, name, count) in counted {
            *self.incoming.entry((self.folded(&schema), self.folded(&name))).or_default() += count;
        }
        Ok(())
    }

    async fn scopes(&mut self, names: &[TableName]) -> Result<Vec<Scope>> {
        let mut schemas: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for name in names {
            schemas.entry(&name.schema).or_default().push(&name.name);
        }
        let mut scopes = Vec::new();
        for (schema, tables) in schemas {
            let all: Option<usize> = match tables.len() >= MANY {
                true => self
                    .conn
                    .exec_first("SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = ?", (schema,))
                    .await
                    .map_err(unread)?,
                false => None,
            };
            match all {
                Some(all) if all <= tables.len() * 4 => scopes.push(Scope { schema: schema.into(), table: None }),
                _ => scopes
                    .extend(tables.iter().map(|name| Scope { schema: schema.into(), table: Some((*name).into()) })),
            }
        }
        Ok(scopes)
    }

    /// What `sql` finds in the scope, by table: the name is what `table` says of a row.
    async fn rows<T: FromRow + Send + 'static>(
        &mut self,
        scope: &Scope,
        sql: &str,
        table: fn(&T) -> &str,
    ) -> Result<HashMap<String, Vec<T>>> {
        let parameters = [Some(&scope.schema), scope.table.as_ref()].into_iter().flatten();
        let parameters = Params::Positional(parameters.map(|name| name.as_str().into()).collect());
        let found: Vec<T> = self.conn.exec(sql, parameters).await.map_err(|e| {
            let what =
                scope.table.as_ref().map_or_else(|| scope.schema.clone(), |table| format!("{}.{table}", scope.schema));
            failed(e, &format!("reading the catalog of {what}"))
        })?;
        let mut by_table: HashMap<String, Vec<T>> = HashMap::new();
        for row in found {
            by_table.entry(self.folded(table(&row))).or_default().push(row);
        }
        Ok(by_table)
    }

    /// What was asked for and lies in the scope.
    async fn read(&mut self, scope: &Scope) -> Result<HashMap<Key, Table>> {
        let sql = format!(
            "SELECT t.TABLE_NAME, t.TABLE_SCHEMA, t.TABLE_TYPE, e.TRANSACTIONS FROM information_schema.TABLES t \
             LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE WHERE {}",
            scope.condition("t.TABLE_SCHEMA", "t.TABLE_NAME")
        );
        type Described = (String, String, String, Option<String>);
        let found = self.rows::<Described>(scope, &sql, |row| &row.0).await?;
        let found: Vec<Described> = found.into_values().flatten().filter(|(_, _, kind, _)| kind != "VIEW").collect();
        let named = |(name, schema, ..): &Described| TableName { schema: schema.clone(), name: name.clone() };
        let found: Vec<(TableName, Described)> = found
            .into_iter()
            .map(|row| (named(&row), row))
            .filter(|(name, _)| self.wanted.contains(&self.key(name)))
            .collect();
        if found.is_empty() {
            return Ok(HashMap::new());
        }
        let mut columns = self.columns(scope).await?;
        let json = self.json_columns(scope).await?;
        let (mut keys, mut foreign_keys) = (self.keys(scope).await?, self.foreign_keys(scope).await?);
        let mut triggers = self.triggers(scope).await?;
        let mut tables = HashMap::new();
        for (name, (_, _, kind, transactions)) in found {
            let (key, of) = (self.key(&name), self.folded(&name.name));
            let definitions = self.definitions(&name).await?;
            let json = json.get(&of);
            let described = columns.remove(&of).unwrap_or_default();
            let mut columns: Vec<Column> =
                described.into_iter().map(|row| column(row, json, &definitions, self.flavour)).collect();
            if kind != "BASE TABLE" {
                // Sequences and system-versioned tables log rows that are no one's writes.
                for column in &mut columns {
                    column.ty = ColumnType::Unsupported;
                    column.type_name = format!("{} ({})", column.type_name, kind.to_lowercase());
                }
            }
            let (primary_key, unique_keys, loose_keys) = joined(keys.remove(&of).unwrap_or_default(), self.flavour);
            let triggers = triggers.remove(&of).unwrap_or_default();
            let table = Table {
                columns,
                primary_key,
                unique_keys,
                loose_keys,
                foreign_keys: references(foreign_keys.remove(&of).unwrap_or_default()),
                referenced_by: self.incoming.get(&key).copied().unwrap_or(0),
                triggers: !triggers.is_empty(),
                delete_triggers: triggers.iter().any(|(_, _, event, ..)| event == "DELETE"),
                named_triggers: triggers
                    .into_iter()
                    .map(|(_, name, event, when, body)| Trigger::new(name, &[event, when, body].concat()))
                    .collect(),
                side_effects: false, // marked when all are known
                transactional: transactions.as_deref() == Some("YES"),
                replica_identity: None,
                name,
            };
            tables.insert(key, table);
        }
        Ok(tables)
    }

    async fn columns(&mut self, scope: &Scope) -> Result<HashMap<String, Vec<mysql_async::Row>>> {
        let sql = format!(
            "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, CHARACTER_SET_NAME, CHARACTER_MAXIMUM_LENGTH, \
             CHARACTER_OCTET_LENGTH, NUMERIC_PRECISION, NUMERIC_SCALE, DATETIME_PRECISION, \
             IS_NULLABLE, COLUMN_DEFAULT, EXTRA, COLLATION_NAME, TABLE_NAME \
             FROM information_schema.COLUMNS WHERE {} ORDER BY TABLE_NAME, ORDINAL_POSITION",
            scope.condition("TABLE_SCHEMA", "TABLE_NAME")
        );
        self.rows(scope, &sql, table_of_column).await
    }

    /// MariaDB's JSON columns: those whose own check is `json_valid`. MySQL has a type for them.
    async fn json_columns(&mut self, scope: &Scope) -> Result<HashMap<String, HashSet<String>>> {
        if self.flavour != Flavour::Mariadb {
            return Ok(HashMap::new());
        }
        let sql = format!(
            "SELECT TABLE_NAME, CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS WHERE {}",
            scope.condition("CONSTRAINT_SCHEMA", "TABLE_NAME")
        );
        let checks = self.rows::<(String, String)>(scope, &sql, |row| &row.0).await?;
        let json =
            |checks: Vec<(String, String)>| checks.iter().filter_map(|(_, clause)| json_checked(clause)).collect();
        Ok(checks.into_iter().map(|(table, checks)| (table, json(checks))).collect())
    }

    async fn triggers(&mut self, scope: &Scope) -> Result<HashMap<String, Vec<FoundTrigger>>> {
        let sql = format!(
            "SELECT EVENT_OBJECT_TABLE, TRIGGER_NAME, EVENT_MANIPULATION, ACTION_TIMING, ACTION_STATEMENT \
             FROM information_schema.TRIGGERS WHERE {} ORDER BY TRIGGER_NAME",
            scope.condition("EVENT_OBJECT_SCHEMA", "EVENT_OBJECT_TABLE")
        );
        self.rows::<FoundTrigger>(scope, &sql, |row| &row.0).await
    }

    async fn keys(&mut self, scope: &Scope) -> Result<HashMap<String, Vec<IndexPart>>> {
        let (expression, hidden) = match self.flavour {
            Flavour::Mysql => ("EXPRESSION", "IS_VISIBLE = 'NO'"),
            Flavour::Mariadb if self.version >= (10, 6, 0) => ("NULL", "IGNORED = 'YES'"),
            Flavour::Mariadb => ("NULL", "FALSE"),
        };
        let sql = format!(
            "SELECT TABLE_NAME, INDEX_NAME, COLUMN_NAME, SUB_PART, {expression}, {hidden} \
             FROM information_schema.STATISTICS WHERE {} AND NON_UNIQUE = 0 ORDER BY INDEX_NAME, SEQ_IN_INDEX",
            scope.condition("TABLE_SCHEMA", "TABLE_NAME")
        );
        self.rows::<IndexPart>(scope, &sql, |row| &row.0).await
    }

    async fn foreign_keys(&mut self, scope: &Scope) -> Result<HashMap<String, Vec<ReferencePart>>> {
        let sql = format!(
            "SELECT k.TABLE_NAME, k.CONSTRAINT_NAME, k.COLUMN_NAME, k.REFERENCED_TABLE_SCHEMA, \
             k.REFERENCED_TABLE_NAME, k.REFERENCED_COLUMN_NAME, r.UPDATE_RULE, r.DELETE_RULE \
             FROM information_schema.KEY_COLUMN_USAGE k JOIN information_schema.REFERENTIAL_CONSTRAINTS r \
             ON r.CONSTRAINT_SCHEMA = k.CONSTRAINT_SCHEMA AND r.CONSTRAINT_NAME = k.CONSTRAINT_NAME \
             AND r.TABLE_NAME = k.TABLE_NAME WHERE {} AND k.REFERENCED_TABLE_NAME IS NOT NULL \
             ORDER BY k.CONSTRAINT_NAME, k.ORDINAL_POSITION",
            scope.condition("k.TABLE_SCHEMA", "k.TABLE_NAME")
        );
        self.rows::<ReferencePart>(scope, &sql, |row| &row.0).await
    }

    /// Each column as the server itself spells it; none where it does not let us see that.
    async fn definitions(&mut self, table: &TableName) -> Result<BTreeMap<String, String>> {
        let sql = format!("SHOW CREATE TABLE {}", backquoted_table(table));
        match self.conn.query_first::<(String, String), _>(sql).await {
            Ok(row) => Ok(row.map_or_else(BTreeMap::new, |(_, text)| definitions(&text))),
            Err(mysql_async::Error::Server(_)) => Ok(BTreeMap::new()),
            Err(error) => Err(failed(error, &format!("reading the catalog of {table}"))),
        }
    }
}

/// Of a row that [`Reader::columns`] reads.
fn table_of_column(row: &mysql_async::Row) -> &str {
    match row.as_ref(13) {
        Some(mysql_async::Value::Bytes(name)) => std::str::from_utf8(name).unwrap_or_default(),
        _ => "",
    }
}

/// Table, name, event, time, body.
type FoundTrigger = (String, String, String, String, String);

/// Table, index, column, its prefix, its expression, hidden.
type IndexPart = (String, String, Option<String>, Option<u64>, Option<String>, bool);

/// Table, constraint, column; schema, table and column that it references; what an update and a delete do.
type ReferencePart = (String, String, String, String, String, String, String, String);

/// Primary key, every unique key with the columns that it names, and which of these are none.
fn joined(parts: Vec<IndexPart>, flavour: Flavour) -> (Vec<String>, Vec<Vec<String>>, Vec<LooseKey>) {
    let mut keys: BTreeMap<String, (Vec<String>, Option<Loose>)> = BTreeMap::new();
    for (_, index, column, prefix, computed, hidden) in parts {
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
    (primary, keys.into_values().map(|(columns, _)| columns).collect(), loose)
}

fn references(parts: Vec<ReferencePart>) -> Vec<ForeignKey> {
    let mut keys: Vec<ForeignKey> = Vec::new();
    for (_, name, column, schema, referenced, to, on_update, on_delete) in parts {
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
    keys
}

fn action(rule: &str) -> Action {
    match rule {
        "CASCADE" => Action::Cascade,
        "SET NULL" => Action::SetNull,
        "SET DEFAULT" => Action::SetDefault,
        _ => Action::Refuse,
    }
}
