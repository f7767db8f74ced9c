//! Fields marked `sensitive`: what they hold is shown to nobody, by no command.
//!
//! One place for the whole process, so that no way of showing a row can forget it; by name, so that
//! it also covers entries of older schemas.

use std::collections::{HashMap, HashSet};
use std::sync::{LazyLock, RwLock};

use crate::config::Config;

pub const MASKED: &str = "(masked)";

static FIELDS: LazyLock<RwLock<HashMap<String, HashSet<String>>>> = LazyLock::new(RwLock::default);

/// From here on what this configuration says.
pub fn set(config: &Config) {
    let entities = config.entities.iter().filter(|entity| !entity.sensitive.is_empty());
    let of = |entity: &crate::config::EntityConfig| {
        (entity.name.clone(), entity.sensitive.iter().cloned().collect::<HashSet<String>>())
    };
    *FIELDS.write().expect("nobody panics while holding names") = entities.map(of).collect();
}

pub fn is_masked(entity: &str, field: &str) -> bool {
    let fields = FIELDS.read().expect("nobody panics while holding names");
    fields.get(entity).is_some_and(|fields| fields.contains(field))
}
