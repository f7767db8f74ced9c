//! Alerts and notifications as they were typed.

use toml::de::DeValue;

use super::{At, Reader, Section, in_order};

#[derive(Debug)]
pub(in crate::config) struct RawAlert {
    pub line: usize,
    pub name: Option<At<String>>,
    pub on: Vec<At<String>>,
    pub webhook: RawWebhook,
    pub format: Option<At<String>>,
    /// `None`: not given.
    pub command: Option<Vec<At<String>>>,
    pub settle: Option<At<String>>,
}

#[derive(Debug)]
pub(in crate::config) struct RawNotify {
    pub line: usize,
    pub name: Option<At<String>>,
    pub entity: Option<At<String>>,
    /// `None`: not given.
    pub fields: Option<Vec<At<String>>>,
    pub on: Option<Vec<At<String>>>,
    pub copies: Option<At<bool>>,
    pub webhook: RawWebhook,
    pub batch: Option<At<String>>,
    pub max_body: Option<At<String>>,
}

/// No `Debug`: an address may hold a token, a header a password.
#[derive(Default)]
pub(in crate::config) struct RawWebhook {
    pub url: Option<At<String>>,
    pub url_file: Option<At<String>>,
    pub url_env: Option<At<String>>,
    pub secret_file: Option<At<String>>,
    pub secret_env: Option<At<String>>,
    pub headers: Vec<(At<String>, String)>,
    pub ca_file: Option<At<String>>,
    pub timeout: Option<At<String>>,
}

impl std::fmt::Debug for RawWebhook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawWebhook").finish_non_exhaustive()
    }
}

impl Reader<'_> {
    pub(super) fn alert(&mut self, section: &Section<'_, '_>) -> RawAlert {
        self.known_keys(section, "alert");
        RawAlert {
            line: section.line,
            name: self.string(section, "name"),
            on: self.strings(section, "on"),
            webhook: self.webhook(section),
            format: self.string(section, "format"),
            command: section.table.contains_key("command").then(|| self.strings(section, "command")),
            settle: self.string(section, "settle"),
        }
    }

    pub(super) fn notify(&mut self, section: &Section<'_, '_>) -> RawNotify {
        self.known_keys(section, "notify");
        RawNotify {
            line: section.line,
            name: self.string(section, "name"),
            entity: self.string(section, "entity"),
            fields: section.table.contains_key("fields").then(|| self.strings(section, "fields")),
            on: section.table.contains_key("on").then(|| self.strings(section, "on")),
            copies: self.boolean(section, "copies"),
            webhook: self.webhook(section),
            batch: self.number(section, "batch"),
            max_body: self.string(section, "max_body"),
        }
    }

    pub(super) fn webhook(&mut self, section: &Section<'_, '_>) -> RawWebhook {
        RawWebhook {
            url: self.string(section, "webhook"),
            url_file: self.string(section, "webhook_file"),
            url_env: self.string(section, "webhook_env"),
            secret_file: self.string(section, "secret_file"),
            secret_env: self.string(section, "secret_env"),
            headers: self.headers(section),
            ca_file: self.string(section, "ca_file"),
            timeout: self.string(section, "timeout"),
        }
    }

    fn headers(&mut self, section: &Section<'_, '_>) -> Vec<(At<String>, String)> {
        let place = format!("{}: headers", section.place);
        let Some(headers) = self.table(section, "headers", &place) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, value) in in_order(headers.table) {
            let line = self.line(name.line);
            match value.get_ref() {
                DeValue::String(text) => found.push((At { value: name.value, line }, text.to_string())),
                other => self.wrong_type(line, &place, &name.value, "a string", other),
            }
        }
        found
    }
}
