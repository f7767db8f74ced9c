//! Which columns of which table are which fields of which entity, and how they are mapped.

use std::sync::Arc;

use crate::catalog::{Column, Table};
use crate::error::Result;
use crate::schema::{EntityId, SystemId};
use crate::value::{Datum, Kind};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Both,
    /// Receives nothing.
    Source,
    /// Local writes are drift: counted, not journaled.
    Target,
}

/// One entity in one system, resolved against the catalog.
#[derive(Debug, Clone)]
pub struct Binding {
    pub system: SystemId,
    pub entity: EntityId,
    pub table: Arc<Table>,
    pub role: Role,
    /// Key columns first, in the order of the entity's fields. At most 128.
    pub columns: Vec<BoundColumn>,
    /// `columns[..key_len]` is the key.
    pub key_len: usize,
    // filter: Option<Filter>  (added by normalize)
}

#[derive(Debug, Clone)]
pub struct BoundColumn {
    /// Index of the field in the entity's schema.
    pub field: usize,
    pub kind: Kind,
    pub column: Column,
    pub transform: Transform,
}

/// What happens to a value beyond the change of representation that its types imply.
#[derive(Debug, Clone)]
pub enum Transform {
    None,
    // Format(..), Values(..)  (added by normalize)
}

impl BoundColumn {
    /// Column value as captured → canonical, appended to `out` in row form. A value that
    /// cannot be carried exactly is `Recovery::Quarantine`.
    pub fn to_canonical(&self, datum: Datum<'_>, out: &mut Vec<u8>) -> Result<()> {
        crate::value::write_datum(out, datum);
        Ok(())
    }

    /// Canonical value → what the column takes: of the column's own kind, in range, not
    /// rounded, not cut; text that was made for it lies in `scratch`. Errors as above.
    pub fn to_column<'a>(&self, datum: Datum<'a>, _scratch: &'a mut String) -> Result<Datum<'a>> {
        Ok(datum)
    }
}
