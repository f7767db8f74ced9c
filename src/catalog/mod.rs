//! What the systems' catalogs say of the bound tables: columns, keys, references.
//!
//! The catalog shows *now*, a log shows *then*: columns of a log are matched by name, and a
//! type that differs stops the flow. Read by `postgres` and `mysql` beside this file.

pub mod mysql;
pub mod postgres;

use serde::{Deserialize, Serialize};

use crate::value::Kind;

/// A table by name. PostgreSQL: schema and table; MySQL and MariaDB: database and table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    pub name: TableName,
    /// In the table's own order.
    pub columns: Vec<Column>,
    pub primary_key: Vec<String>,
    /// Every unique key (primary included) as column names; partial and expression indexes are
    /// listed with the columns they name.
    pub unique_keys: Vec<Vec<String>>,
    /// Those of them by which no row can be told, or none can be sought.
    #[serde(default)]
    pub loose_keys: Vec<LooseKey>,
    /// References to other tables.
    pub foreign_keys: Vec<ForeignKey>,
    /// How many foreign keys of other tables refer to this one.
    pub referenced_by: u32,
    /// Has user triggers of any kind; of DELETE kind.
    pub triggers: bool,
    pub delete_triggers: bool,
    /// By name, as far as they can be seen.
    #[serde(default)]
    pub named_triggers: Vec<Trigger>,
    /// Who writes to it may write rows of bound tables besides: by triggers of any kind, or by
    /// referential actions that lead, over any tables, to a bound one or to triggers.
    #[serde(default = "unknown")]
    pub side_effects: bool,
    /// Writes to it can be rolled back: always in PostgreSQL, InnoDB in MySQL.
    pub transactional: bool,
    /// PostgreSQL only.
    pub replica_identity: Option<ReplicaIdentity>,
}

impl Table {
    /// Without columns; what is written there can be taken back.
    pub fn new(name: TableName) -> Self {
        Table {
            name,
            columns: Vec::new(),
            primary_key: Vec::new(),
            unique_keys: Vec::new(),
            loose_keys: Vec::new(),
            foreign_keys: Vec::new(),
            referenced_by: 0,
            triggers: false,
            delete_triggers: false,
            named_triggers: Vec::new(),
            side_effects: false,
            transactional: true,
            replica_identity: None,
        }
    }

    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }
}

/// A unique index that is no key of the columns that it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LooseKey {
    /// Its place in `unique_keys`.
    pub at: usize,
    pub index: String,
    /// What is unique by it, columns of a predicate left out.
    pub columns: Vec<String>,
    pub why: Loose,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loose {
    /// Holds the rows alone for which this is true.
    Partial(String),
    /// Holds what is computed of the columns.
    Expression,
    /// Holds the beginning of this column alone.
    Prefix(String, u64),
    /// Not used to seek rows. `true`: MariaDB, which calls it ignored.
    Invisible(bool),
    /// Checked when a statement or a transaction has ended: nothing can be merged by it.
    Deferrable,
    /// Not completed: duplicates may be there.
    Invalid,
    /// With a period: the columns may repeat.
    Overlaps,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trigger {
    pub name: String,
    /// Hash of all that it is made of: of another value, it does something else.
    pub text: u64,
}

impl Trigger {
    fn new(name: String, text: &str) -> Self {
        Trigger { name, text: xxhash_rust::xxh3::xxh3_64(text.as_bytes()) }
    }
}

/// What is not known is taken to be so.
fn unknown() -> bool {
    true
}

/// A foreign key that writes rows of `child` where rows of `parent` are deleted or changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferentialAction {
    pub parent: TableName,
    pub child: TableName,
    /// Writing to the child may go on from there, unseen.
    pub triggers: bool,
}

/// Finds the tables whose writes may reach further than themselves, among those that are bound.
fn mark_side_effects(tables: &mut [Option<Table>], actions: &[ReferentialAction]) {
    let bound: Vec<TableName> = tables.iter().flatten().map(|table| table.name.clone()).collect();
    for table in tables.iter_mut().flatten() {
        let mut reached = vec![&table.name];
        let mut at = 0;
        let mut further = table.triggers;
        while let Some(parent) = reached.get(at).copied() {
            at += 1;
            for action in actions.iter().filter(|action| action.parent == *parent) {
                further |= action.triggers || bound.contains(&action.child);
                if !reached.contains(&&action.child) {
                    reached.push(&action.child);
                }
            }
        }
        table.side_effects = further;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaIdentity {
    Default,
    Nothing,
    Full,
    Index,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    pub name: String,
    pub columns: Vec<String>,
    pub references: TableName,
    /// The columns that they refer to, in the same order.
    pub referenced: Vec<String>,
    pub on_update: Action,
    pub on_delete: Action,
    /// `true` for CASCADE, SET NULL and SET DEFAULT on delete or update.
    pub acts: bool,
}

/// What a foreign key does with the rows that refer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// NO ACTION and RESTRICT: the statement is refused.
    Refuse,
    Cascade,
    SetNull,
    SetDefault,
}

impl Action {
    pub fn acts(self) -> bool {
        self != Action::Refuse
    }

    pub fn sql(self) -> &'static str {
        match self {
            Action::Refuse => "NO ACTION",
            Action::Cascade => "CASCADE",
            Action::SetNull => "SET NULL",
            Action::SetDefault => "SET DEFAULT",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub ty: ColumnType,
    /// As the server prints it, for messages: `numeric(12,2)`.
    pub type_name: String,
    pub nullable: bool,
    /// Computed by the server: never written.
    pub generated: bool,
    /// PostgreSQL GENERATED ALWAYS AS IDENTITY: written with OVERRIDING SYSTEM VALUE.
    pub identity_always: bool,
    /// Filled by the server where an insert does not name it.
    pub has_default: bool,
    /// The server generates keys here (serial, identity, AUTO_INCREMENT).
    pub auto_increment: bool,
    /// How the server compares texts in it; `None` where it holds none.
    pub collation: Option<Collation>,
    /// MySQL and MariaDB: what `ALTER TABLE … MODIFY` takes to leave it as it is, name included.
    pub definition: String,
}

impl Column {
    /// Nullable, without anything special.
    pub fn new(name: impl Into<String>, ty: ColumnType, type_name: impl Into<String>) -> Self {
        Column {
            name: name.into(),
            ty,
            type_name: type_name.into(),
            nullable: true,
            generated: false,
            identity_always: false,
            has_default: false,
            auto_increment: false,
            collation: None,
            definition: String::new(),
        }
    }
}

/// Which texts are one to the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collation {
    pub name: String,
    /// Texts are equal when their bytes are; else case, accents or more do not count.
    pub binary: bool,
    /// Spaces at the end do not count.
    pub pads: bool,
    /// Its kin in which the bytes decide, all of them.
    pub bytes: String,
}

/// A column's type as far as values are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColumnType {
    Bool,
    /// `bytes` 1, 2, 3, 4 or 8.
    Int {
        bytes: u8,
        signed: bool,
    },
    /// `None`: PostgreSQL's numeric without limits.
    Decimal {
        limits: Option<DecimalLimits>,
    },
    Float32,
    Float64,
    /// char(n): padded by PostgreSQL, trimmed by MySQL; carried without trailing spaces.
    Char {
        chars: u32,
    },
    /// varchar, text. `chars` where the type limits characters, `bytes` where bytes (MySQL's
    /// TEXT family).
    Text {
        chars: Option<u32>,
        bytes: Option<u64>,
    },
    /// binary(n): padded with zero bytes to `n`.
    Binary {
        bytes: u32,
    },
    /// varbinary, blob, bytea.
    Bytes {
        bytes: Option<u64>,
    },
    Date,
    /// Fraction digits 0 to 6. MySQL's reaches ±838:59:59.
    Time {
        digits: u8,
    },
    /// Without zone: timestamp in PostgreSQL, datetime in MySQL.
    DateTime {
        digits: u8,
    },
    /// An instant: timestamptz in PostgreSQL, timestamp in MySQL.
    Timestamp {
        digits: u8,
    },
    Uuid,
    Json,
    Enum {
        labels: Vec<String>,
    },
    /// SET: some of the labels, with commas between them, in their own order.
    Set {
        labels: Vec<String>,
    },
    /// bit, bit varying and BIT. `None`: without a limit.
    Bits {
        length: Option<u32>,
        varying: bool,
    },
    /// YEAR: 0, and 1901 to 2155.
    Year,
    /// A type that PostgreSQL alone has: carried as the text that it reads and writes.
    Verbatim,
    /// PostgreSQL's, of any number of dimensions.
    Array {
        element: Box<ColumnType>,
    },
    /// MariaDB's INET4 and INET6, as text.
    Inet {
        v6: bool,
    },
    /// MySQL's and MariaDB's, in their own form: SRID in four bytes, low one first, then WKB.
    Geometry,
    /// Cannot be carried yet; refused by `check` and at start where it is bound.
    Unsupported,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecimalLimits {
    pub precision: u16,
    pub scale: u16,
}

impl ColumnType {
    /// The kind in which capture yields this column's values, before any mapping.
    pub fn kind(&self) -> Option<Kind> {
        Some(match self {
            ColumnType::Bool => Kind::Bool,
            ColumnType::Int { .. } | ColumnType::Year => Kind::Int,
            ColumnType::Decimal { .. } => Kind::Decimal,
            ColumnType::Float32 => Kind::Float32,
            ColumnType::Float64 => Kind::Float64,
            ColumnType::Char { .. }
            | ColumnType::Text { .. }
            | ColumnType::Enum { .. }
            | ColumnType::Set { .. }
            | ColumnType::Verbatim
            | ColumnType::Inet { .. } => Kind::Text,
            ColumnType::Binary { .. } | ColumnType::Bytes { .. } | ColumnType::Geometry => Kind::Bytes,
            ColumnType::Date => Kind::Date,
            ColumnType::Time { .. } => Kind::Time,
            ColumnType::DateTime { .. } => Kind::DateTime,
            ColumnType::Timestamp { .. } => Kind::Timestamp,
            ColumnType::Uuid => Kind::Uuid,
            ColumnType::Json => Kind::Json,
            ColumnType::Bits { .. } => Kind::Bits,
            ColumnType::Array { .. } => Kind::Array,
            ColumnType::Unsupported => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> TableName {
        TableName { schema: "s".into(), name: name.into() }
    }

    fn table(of: &str, triggers: bool) -> Option<Table> {
        Some(Table { triggers, ..Table::new(name(of)) })
    }

    #[test]
    fn writes_go_on_by_triggers_and_by_actions_over_any_tables_and_cycles() {
        let action = |parent: &str, child: &str, triggers| ReferentialAction {
            parent: name(parent),
            child: name(child),
            triggers,
        };
        let mut tables = [
            table("alone", false),
            table("triggers", true),
            table("parent", false),
            table("child", false),
            table("aside", false),
            table("audited", false),
            None,
        ];
        let actions = [
            action("parent", "unbound", false),
            action("unbound", "child", false),
            action("aside", "loop", false),
            action("loop", "aside2", false),
            action("aside2", "loop", false),
            action("audited", "trail", true),
        ];

        mark_side_effects(&mut tables, &actions);

        let marked = tables.iter().flatten().filter(|table| table.side_effects).map(|table| table.name.name.as_str());
        assert_eq!(marked.collect::<Vec<_>>(), ["triggers", "parent", "audited"]);
    }
}
