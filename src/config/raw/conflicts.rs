//! What an entity says of conflicts, as it was typed.

use toml::Spanned;
use toml::de::DeValue;

use super::{At, Reader, Section, in_order};

#[derive(Debug)]
pub(in crate::config) struct RawConflicts {
    pub conflict: Option<At<String>>,
    pub authority: Option<At<Vec<At<String>>>>,
    pub latest_by: Option<At<String>>,
    pub scope: Option<At<String>>,
    pub on_delete: Option<At<String>>,
    /// Field, what is done.
    pub merge: Vec<(At<String>, At<String>)>,
    pub unique: Vec<RawClash>,
}

/// Another record has the field's value.
#[derive(Debug)]
pub(in crate::config) struct RawClash {
    pub field: At<String>,
    pub policy: At<String>,
    pub template: Option<At<String>>,
}

impl Reader<'_> {
    pub(super) fn conflicts(&mut self, section: &Section<'_, '_>) -> RawConflicts {
        let order = self.strings(section, "authority");
        let is_list = |value: &&Spanned<DeValue<'_>>| matches!(value.get_ref(), DeValue::Array(_));
        let authority = section.table.get("authority").filter(is_list);
        let authority = authority.map(|value| At { value: order, line: self.line(value.span().start) });
        let mut merge = Vec::new();
        let place = format!("{}: merge", section.place);
        if let Some(fields) = self.table(section, "merge", &place) {
            for (field, value) in in_order(fields.table) {
                let line = self.line(field.line);
                match value.get_ref() {
                    DeValue::String(how) => {
                        let how = At { value: how.to_string(), line: self.line(value.span().start) };
                        merge.push((At { value: field.value, line }, how));
                    }
                    other => self.wrong_type(line, &place, &field.value, "a string", other),
                }
            }
        }
        RawConflicts {
            conflict: self.string(section, "conflict"),
            authority,
            latest_by: self.string(section, "latest_by"),
            scope: self.string(section, "scope"),
            on_delete: self.string(section, "on_delete"),
            merge,
            unique: self.unique(section),
        }
    }

    fn unique(&mut self, section: &Section<'_, '_>) -> Vec<RawClash> {
        let mut clashes = Vec::new();
        let place = format!("{}: unique", section.place);
        let Some(fields) = self.table(section, "unique", &place) else { return clashes };
        for (field, value) in in_order(fields.table) {
            let field = At { line: self.line(field.line), value: field.value };
            let line = self.line(value.span().start);
            match value.get_ref() {
                DeValue::String(policy) => {
                    let policy = At { value: policy.to_string(), line };
                    clashes.push(RawClash { field, policy, template: None });
                }
                DeValue::Table(_) => {
                    let place = format!("{place} {:?}", field.value);
                    let Some(inner) = self.as_table(value, line, place) else { continue };
                    self.known_keys(&inner, "entity.unique");
                    let (policy, template) = (self.string(&inner, "policy"), self.string(&inner, "template"));
                    if !inner.table.contains_key("policy") {
                        self.error(line, &inner.place, "key \"policy\" is missing: policy = \"rename\"");
                    }
                    clashes.extend(policy.map(|policy| RawClash { field, policy, template }));
                }
                other => self.wrong_type(line, &place, &field.value, "a policy or a table", other),
            }
        }
        clashes
    }
}
