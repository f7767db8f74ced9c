//! Relations as the log describes them, matched with what is wanted of them.
//!
//! The catalog shows now, the log shows then: columns are matched by name on each Relation
//! message, and one that is missing or holds another kind of values stops the flow. Limits
//! (varchar(10) made varchar(20)) may differ; they do not change how a value is read.

use super::decode::Format;
use super::pgoutput::{Relation, RelationColumn};
use crate::capture::{WantedColumn, WantedTable};
use crate::catalog::postgres::{column_type, oid};
use crate::catalog::{ColumnType, TableName};
use crate::error::{Error, Result};
use crate::marker;

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
    /// Entities that are bound to the same table.
    pub targets: Vec<Target>,
}

#[derive(Debug)]
pub struct Target {
    pub table: usize,
    /// Per wanted column its place in the relation.
    pub places: Vec<usize>,
}

/// Places of the marker's columns in its relation, in the order of [`marker::COLUMNS`].
#[derive(Debug)]
pub struct MarkerColumns(pub [usize; marker::COLUMNS.len()]);

/// Checks a relation against everything that is wanted of it.
pub fn map(relation: &Relation, wanted: &[WantedTable], marker: &TableName) -> Result<Mapping> {
    let same = |name: &TableName| name.schema == relation.schema && name.name == relation.name;
    if same(marker) {
        return marker_columns(relation, marker).map(Mapping::Marker);
    }
    let tables: Vec<&WantedTable> = wanted.iter().filter(|table| same(&table.name)).collect();
    let Some(first) = tables.first() else {
        return Ok(Mapping::Unwanted);
    };
    let mut mapping = Wanted {
        name: first.name.clone(),
        formats: vec![None; relation.columns.len()],
        columns: relation.columns.iter().map(|column| column.name.clone()).collect(),
        targets: Vec::with_capacity(tables.len()),
    };
    for table in tables {
        let mut places = Vec::with_capacity(table.columns.len());
        for column in &table.columns {
            let place = place(relation, &table.name, &column.name)?;
            mapping.formats[place] = Some(format(&table.name, column, &relation.columns[place])?);
            places.push(place);
        }
        identifies(relation, table)?;
        mapping.targets.push(Target { table: table.id, places });
    }
    Ok(Mapping::Wanted(mapping))
}

fn place(relation: &Relation, table: &TableName, column: &str) -> Result<usize> {
    relation.columns.iter().position(|found| found.name == column).ok_or_else(|| {
        Error::stop(
            format!("the log's rows of table {table} have no column {column:?}"),
            format!(
                "if it was dropped or renamed, change its binding in the configuration; if it was added just now, \
                 `anechoic load --resync` passes over the rows written before; if the publication has a column list, \
                 add it there; bound are the columns of {table} as they are now"
            ),
        )
    })
}

fn format(table: &TableName, wanted: &WantedColumn, found: &RelationColumn) -> Result<Format> {
    let differs = |now: String| {
        Error::stop(
            format!(
                "column {:?} of table {table} is {now} in the log, but not where its binding was checked",
                wanted.name
            ),
            "the column's type was changed: restart the agent to take the new type; rows from before the change need \
             `anechoic load --resync`",
        )
    };
    if let ColumnType::Enum { .. } = wanted.ty {
        // Labels are text; the catalog has said that it is an enum.
        return match Format::of(found.type_oid) {
            None if found.type_oid >= oid::FIRST_OF_USERS => Ok(Format::Text),
            Some(Format::Text) => Ok(Format::Text),
            _ => Err(differs(format!("of type {}", found.type_oid))),
        };
    }
    let ty = column_type(found.type_oid, found.typmod);
    match Format::of(found.type_oid) {
        // Without a length it is never padded.
        Some(Format::Char) if !matches!(ty, ColumnType::Char { .. }) => Ok(Format::Text),
        Some(format) if ty.kind() == wanted.ty.kind() => Ok(format),
        _ => Err(differs(match ty.kind() {
            Some(kind) => kind.name().to_owned(),
            None => format!("of a type that cannot be carried (OID {})", found.type_oid),
        })),
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
        WantedTable { id: 5, name: name(), columns, key: vec![key.into()] }
    }

    fn map_one(relation: &Relation, wanted: WantedTable) -> Result<Wanted> {
        let marker = TableName { schema: "anechoic".into(), name: "marker".into() };
        map(relation, &[wanted], &marker).map(|mapping| match mapping {
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
        assert_eq!(mapping.targets[0].places, [2, 1]);
        assert_eq!(mapping.targets[0].table, 5);
    }

    #[test]
    fn a_column_that_is_gone_or_of_another_kind_stops_the_flow_by_name() {
        let found = relation(b'd', &[("id", true, oid::INT4), ("name", false, oid::NUMERIC)]);

        for (table, part) in [
            (wanted("id", &[("id", INT), ("nom", TEXT)]), "\"nom\""),
            (wanted("id", &[("id", INT), ("name", TEXT)]), "decimal in the log"),
            (wanted("id", &[("id", ColumnType::Enum { labels: Vec::new() })]), "of type 23"),
            (wanted("name", &[("id", INT)]), "replica identity"),
        ] {
            let error = map_one(&found, table).unwrap_err();

            assert_eq!(error.recovery, Recovery::Stop);
            assert!(error.message.contains(part), "{}", error.message);
            assert!(error.message.contains("public.contacts") && !error.hint.is_empty());
        }
    }

    #[test]
    fn a_full_identity_holds_every_key() {
        let found = relation(b'f', &[("id", true, oid::INT4), ("name", true, 70_000)]);

        let mapping = map_one(&found, wanted("name", &[("name", ColumnType::Enum { labels: Vec::new() })])).unwrap();

        assert_eq!(mapping.formats, [None, Some(Format::Text)]);
    }
}
