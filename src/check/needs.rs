//! What the configuration asks of one system, table by table.

use crate::catalog::TableName;
use crate::config::{BindingConfig, Config};
use crate::normalize::binding::Role;
use crate::schema::SystemId;

/// Of one system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// Bound tables, each once, in the order of the file.
    pub tables: Vec<TableNeed>,
    /// `Some` where anything is applied: a system that is only read has no marker.
    pub marker: Option<TableName>,
    /// Other systems get what is written here.
    pub captured: bool,
    /// Even where a crash may take some of it back.
    pub unsafe_binlog: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableNeed {
    pub name: TableName,
    /// The first entity that is bound to it, for messages.
    pub entity: String,
    pub applied: bool,
    /// The columns of the entity's key; empty: inserts only.
    pub key: Vec<String>,
    /// Every old row must be in the log whole: several systems write the entity, a filter
    /// asks what a row was before, or a change is a difference.
    pub full_images: bool,
}

impl Needs {
    pub fn of(config: &Config, system: SystemId) -> Self {
        let mut tables: Vec<TableNeed> = Vec::new();
        for entity in &config.entities {
            let writers = entity.bindings.iter().filter(|b| b.role != Role::Target).count();
            for binding in entity.bindings.iter().filter(|b| b.system == system) {
                let need = TableNeed {
                    name: binding.table.clone(),
                    entity: entity.name.clone(),
                    applied: binding.role != Role::Source,
                    key: entity.key.iter().map(|field| column_of(binding, field)).collect(),
                    full_images: binding.role != Role::Target
                        && !entity.key.is_empty()
                        && (writers > 1 || binding.filter.is_some() || entity.carries_parts()),
                };
                match tables.iter_mut().find(|t| t.name == need.name) {
                    Some(table) => {
                        table.applied |= need.applied;
                        table.full_images |= need.full_images || table.key != need.key;
                    }
                    None => tables.push(need),
                }
            }
        }
        let bindings = || config.entities.iter().flat_map(|entity| &entity.bindings).filter(|b| b.system == system);
        let captured = bindings().any(|binding| binding.role.captures());
        let unsafe_binlog = config.system(system).allow_unsafe_binlog;
        let marker = tables.iter().any(|t| t.applied).then(|| config.system(system).marker.clone());
        Needs { tables, marker, captured, unsafe_binlog }
    }

    /// Nobody gets what is written here.
    pub fn is_only_written(&self) -> bool {
        self.marker.is_some() && !self.captured
    }

    /// Bound tables and the marker's.
    pub fn published(&self) -> impl Iterator<Item = &TableName> {
        self.tables.iter().map(|t| &t.name).chain(&self.marker)
    }

    pub fn names(&self) -> Vec<TableName> {
        self.tables.iter().map(|t| t.name.clone()).collect()
    }
}

fn column_of(binding: &BindingConfig, field: &str) -> String {
    let named = binding.columns.iter().flatten().find(|column| column.field == field);
    named.map_or(field, |column| &column.column).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        [agent]
        id = "hq"
        data_dir = "/tmp/x"
        [[system]]
        name = "crm"
        url = "postgresql://hq@localhost/crm"
        [[system]]
        name = "shop"
        url = "mysql://hq@localhost/shop"
        [[entity]]
        name = "contact"
        key = ["id"]
        [entity.in.crm]
        table = "contacts"
        columns = { id = "contact_id", name = "name" }
        [entity.in.shop]
        table = "customers"
        role = "source"
        columns = { id = "id", name = "name" }
    "#;

    #[test]
    fn a_system_that_is_only_read_needs_no_marker_and_two_writers_need_whole_images() {
        let config = Config::from_str(FILE, "test").unwrap();

        let (crm, shop) = (Needs::of(&config, SystemId(0)), Needs::of(&config, SystemId(1)));

        assert_eq!(crm.marker.map(|m| m.to_string()).as_deref(), Some("anechoic.marker"));
        assert_eq!((crm.tables[0].key.as_slice(), crm.tables[0].full_images), (&["contact_id".to_owned()][..], true));
        assert_eq!((shop.marker, shop.tables[0].applied), (None, false));
    }
}
