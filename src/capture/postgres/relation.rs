//! Relations as the log describes them, matched with what is wanted of them.
//!
//! The catalog shows now, the log shows then: columns are matched by name on each Relation
//! message, and one that is missing or holds another kind of values stops the flow. Limits
//! (varchar(10) made varchar(20)) may differ; they do not change how a value is read.

use super::decode::Format;
use super::pgoutput::{Relation, RelationColumn};
use crate::capture::altered::{Logged, seen};
use crate::capture::{TableNow, WantedColumn, WantedTable};
use crate::catalog::postgres::{column_type, oid};
use crate::catalog::{ColumnType, TableName};
use crate::error::{Error, Result};
use crate::marker;
use crate::normalize::recast::leads;
use crate::position::Position;
use crate::value::Kind;

/// What becomes of a relation's rows.
#[derive(Debug)]
pub enum Mapping {
    /// In the publication, though nobody wants it.
    Unwanted,
    Marker(MarkerColumns),
    Wanted(Wanted),
}

#[derive(Debug)]
pub struct Wanted {
    pub name: TableName,
    /// Per column of the relation; `None` is never decoded.
    pub formats: Vec<Option<Format>>,
    pub columns: Vec<String>,
    /// Its identity is FULL: every old row is whole.
    pub full: bool,
    /// The columns of the entities' keys.
    keys: Vec<String>,
    /// Its partitions that rows were logged of, as far as their own identity is not FULL.
    pub partial: Vec<Partial>,
    /// Entities that are bound to the same table.
    pub targets: Vec<Target>,
}

/// A partition of which the log holds old rows by its own identity, whatever the table's says.
#[derive(Debug)]
pub struct Partial {
    id: u32,
    pub name: TableName,
    /// The columns of its identity.
    identity: Vec<String>,
    /// Per column of the table's relation: of that identity.
    pub held: Vec<bool>,
    /// Every key column is.
    pub holds_key: bool,
}

impl Wanted {
    /// Takes in what the log says of a partition.
    pub fn partition(&mut self, relation: &Relation) {
        self.partial.retain(|partial| partial.id != relation.id);
        if relation.identity == b'f' {
            return;
        }
        let identity = relation.columns.iter().filter(|column| column.identifies).map(|column| column.name.clone());
        let name = TableName { schema: relation.schema.clone(), name: relation.name.clone() };
        let partial =
            Partial { id: relation.id, name, identity: identity.collect(), held: Vec::new(), holds_key: false };
        self.partial.push(partial);
        self.hold();
    }

    /// The same table was described anew; of its partitions that need not be.
    pub fn after(&mut self, before: Wanted) {
        self.partial = before.partial;
        self.hold();
    }

    fn hold(&mut self) {
        for partial in &mut self.partial {
            partial.held = self.columns.iter().map(|column| partial.identity.contains(column)).collect();
            partial.holds_key = self.keys.iter().all(|column| partial.identity.contains(column));
        }
    }
}

#[derive(Debug)]
pub struct Target {
    pub table: usize,
    /// Per wanted column its place in the relation; `None`: the table did not have it yet.
    pub places: Vec<Option<usize>>,
}

/// Places of the marker's columns in its relation, in the order of [`marker::COLUMNS`].
#[derive(Debug)]
pub struct MarkerColumns(pub [usize; marker::COLUMNS.len()]);

/// Checks a relation against everything that is wanted of it. `before`: this was logged before
/// that end of the log.
pub fn map(
    relation: &Relation,
    wanted: &[WantedTable],
    marker: &TableName,
    before: impl Fn(&Position) -> bool,
) -> Result<Mapping> {
    let same = |name: &TableName| name.schema == relation.schema && name.name == relation.name;
    if same(marker) {
        return marker_columns(relation, marker).map(Mapping::Marker);
    }
    let also = |now: &TableNow| now.also.iter().any(|(name, until)| same(name) && before(until));
    let own = |table: &WantedTable| {
        same(&table.name) || table.now.as_ref().is_some_and(|now| now.oid == Some(relation.id) || also(now))
    };
    let tables: Vec<&WantedTable> = wanted.iter().filter(|table| own(table)).collect();
    let Some(first) = tables.first() else {
        return Ok(Mapping::Unwanted);
    };
    let mut mapping = Wanted {
        name: first.name.clone(),
        formats: vec![None; relation.columns.len()],
        columns: relation.columns.iter().map(|column| column.name.clone()).collect(),
        full: relation.identity == b'f',
        keys: tables.iter().flat_map(|table| table.key.clone()).collect(),
        partial: Vec::new(),
        targets: Vec::with_capacity(tables.len()),
    };
    let names: Vec<&str> = relation.columns.iter().map(|column| column.name.as_str()).collect();
    for table in tables {
        let logged = Logged { wanted: table, seen: seen(table.now.as_deref(), &before) };
        if !same(&table.name) && !logged.seen {
            let now = TableName { schema: relation.schema.clone(), name: relation.name.clone() };
            return Err(logged.moved(now));
        }
        let fits = |at: usize, place: usize| format(&table.columns[at], &relation.columns[place], true).is_ok();
        let places = logged.places(&names, fits)?;
        for (place, column) in places.iter().zip(&table.columns) {
            let Some(place) = *place else { continue };
            let found = format(column, &relation.columns[place], logged.seen);
            let found = found.map_err(|what| logged.other_type(&column.name, &format!("is {what} in the log")))?;
            mapping.formats[place] = Some(found);
        }
        identifies(relation, table)?;
        mapping.targets.push(Target { table: table.id, places });
    }
    Ok(Mapping::Wanted(mapping))
}

/// How a column's values are read; `Err`: what it is instead. `former`: its type may have been
/// changed since.
fn format(wanted: &WantedColumn, found: &RelationColumn, former: bool) -> std::result::Result<Format, String> {
    let ty = column_type(found.type_oid, found.typmod);
    let array = oid::is_array(found.type_oid);
    let becomes = |kind: Option<Kind>| {
        kind == wanted.ty.kind() || former && matches!((kind, wanted.ty.kind()), (Some(a), Some(b)) if leads(a, b))
    };
    let read = match &wanted.ty {
        // The catalog has said what a type that users made is: an enum, a domain on something.
        of_users if found.type_oid >= oid::FIRST_OF_USERS => return Ok(Format::of(of_users).unwrap_or(Format::Text)),
        ColumnType::Array { .. } => array,
        ColumnType::Verbatim => ty == ColumnType::Verbatim && !array,
        ColumnType::Enum { .. } if matches!(ty, ColumnType::Char { .. }) => former,
        _ => ty != ColumnType::Verbatim && becomes(ty.kind()),
    };
    match Format::of(if array { &wanted.ty } else { &ty }) {
        Some(format) if read => Ok(format),
        _ => Err(match ty.kind() {
            Some(kind) if ty != ColumnType::Verbatim => kind.name().to_owned(),
            _ => format!("of another type (OID {})", found.type_oid),
        }),
    }
}

/// Every image must hold the entity's key. Without any identity the server itself refuses
/// updates and deletes, and inserts are whole.
fn identifies(relation: &Relation, table: &WantedTable) -> Result<()> {
    if relation.identity == b'f' || !relation.columns.iter().any(|column| column.identifies) {
        return Ok(());
    }
    for key in &table.key {
        if !relation.columns.iter().any(|column| column.identifies && &column.name == key) {
            return Err(Error::stop(
                format!("the replica identity of table {} does not hold the key column {key:?}", table.name),
                format!("ALTER TABLE {} REPLICA IDENTITY FULL", super::slot::quoted(&table.name)),
            ));
        }
    }
    Ok(())
}

fn marker_columns(relation: &Relation, name: &TableName) -> Result<MarkerColumns> {
    let mut places = [0; marker::COLUMNS.len()];
    for (place_of, column) in places.iter_mut().zip(marker::COLUMNS) {
        *place_of = relation.columns.iter().position(|found| found.name == column).ok_or_else(|| {
            Error::stop(
                format!("the marker table {name} has no column {column:?}"),
                "drop the table where nothing else uses it, and run `anechoic setup`",
            )
        })?;
    }
    Ok(MarkerColumns(places))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Recovery;

    fn name() -> TableName {
        TableName { schema: "public".into(), name: "contacts".into() }
    }

    fn relation(identity: u8, columns: &[(&str, bool, u32)]) -> Relation {
        Relation {
            id: 1,
            schema: "public".into(),
            name: "contacts".into(),
            identity,
            columns: columns
                .iter()
                .map(|&(name, identifies, type_oid)| RelationColumn {
                    identifies,
                    name: name.into(),
                    type_oid,
                    typmod: -1,
                })
                .collect(),
        }
    }

    fn wanted(key: &str, columns: &[(&str, ColumnType)]) -> WantedTable {
        let columns = columns.iter().map(|(name, ty)| WantedColumn { name: (*name).into(), ty: ty.clone() }).collect();
        WantedTable { id: 5, name: name(), columns, key: vec![key.into()], now: None }
    }

    fn map_one(relation: &Relation, wanted: WantedTable) -> Result<Wanted> {
        let marker = TableName { schema: "anechoic".into(), name: "marker".into() };
        map(relation, &[wanted], &marker, |_| false).map(|mapping| match mapping {
            Mapping::Wanted(wanted) => wanted,
            other => panic!("{other:?}"),
        })
    }

    const TEXT: ColumnType = ColumnType::Text { chars: Some(10), bytes: None };
    const INT: ColumnType = ColumnType::Int { bytes: 4, signed: true };

    #[test]
    fn columns_are_matched_by_name_and_others_never_decoded() {
        let relation =
            relation(b'd', &[("secret", false, oid::TEXT), ("name", false, oid::VARCHAR), ("id", true, oid::INT8)]);

        let mapping = map_one(&relation, wanted("id", &[("id", INT), ("name", TEXT)])).unwrap();

        assert_eq!(mapping.formats, [None, Some(Format::Text), Some(Format::Int)]);
        assert_eq!(mapping.targets[0].places, [Some(2), Some(1)]);
        assert_eq!(mapping.targets[0].table, 5);
    }

    #[test]
    fn a_column_that_is_gone_or_of_another_kind_stops_the_flow_by_name() {
        let found = relation(b'd', &[("id", true, oid::INT4), ("name", false, oid::NUMERIC)]);

        for (table, part) in [
            (wanted("id", &[("id", INT), ("nom", TEXT)]), "\"nom\""),
            (wanted("id", &[("id", INT), ("name", TEXT)]), "decimal in the log"),
            (wanted("id", &[("id", ColumnType::Enum { labels: Vec::new() })]), "int in the log"),
            (wanted("id", &[("id", ColumnType::Verbatim)]), "int in the log"),
            (wanted("id", &[("id", ColumnType::Array { element: Box::new(INT) })]), "int in the log"),
            (wanted("name", &[("id", INT)]), "replica identity"),
        ] {
            let error = map_one(&found, table).unwrap_err();

            assert_eq!(error.recovery, Recovery::Stop);
            assert!(error.message.contains(part), "{}", error.message);
            assert!(error.message.contains("public.contacts") && !error.hint.is_empty());
        }
    }

    #[test]
    fn arrays_and_types_of_postgresql_alone_are_read_as_text() {
        let array = || ColumnType::Array { element: Box::new(INT) };
        let found =
            relation(b'f', &[("id", true, oid::INT4), ("a", true, 1007), ("net", true, 869), ("own", true, 70_000)]);

        let columns = [("id", INT), ("a", array()), ("net", ColumnType::Verbatim), ("own", array())];
        let mapping = map_one(&found, wanted("id", &columns)).unwrap();

        assert_eq!(mapping.formats[1..], [Some(Format::Array), Some(Format::Text), Some(Format::Array)]);
        let error = map_one(&found, wanted("id", &[("a", ColumnType::Verbatim)])).unwrap_err();
        assert!(error.message.contains("OID 1007"), "{}", error.message);
    }

    #[test]
    fn a_full_identity_holds_every_key() {
        let found = relation(b'f', &[("id", true, oid::INT4), ("name", true, 70_000)]);

        let mapping = map_one(&found, wanted("name", &[("name", ColumnType::Enum { labels: Vec::new() })])).unwrap();

        assert_eq!(mapping.formats, [None, Some(Format::Text)]);
    }
}
