//! Columns whose names say that they hold what nobody meant to copy: journals and other systems
//! would keep it, too.

use crate::config::Config;
use crate::finding::Finding;
use crate::normalize::resolve::{Bound, columns_toml};

/// Words of a name, in the languages that tables are often in.
const WORDS: [&str; 32] = [
    "password",
    "passwd",
    "passwort",
    "kennwort",
    "pwd",
    "pass",
    "passphrase",
    "passcode",
    "token",
    "secret",
    "ssn",
    "iban",
    "card",
    "cardno",
    "cardnumber",
    "creditcard",
    "cvv",
    "cvc",
    "pin",
    "otp",
    "totp",
    "mfa",
    "salt",
    "credential",
    "credentials",
    "apikey",
    "privatekey",
    "passport",
    "taxid",
    "biometric",
    "fingerprint",
    "sozialversicherungsnummer",
];

/// Such as only say it together.
const PAIRS: [(&str, &str); 6] = [
    ("api", "key"),
    ("private", "key"),
    ("tax", "id"),
    ("social", "security"),
    ("security", "code"),
    ("account", "number"),
];

pub(super) fn findings(config: &Config, bound: &[Bound<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for bound in bound {
        let looks = |(field, column): &&(&str, &crate::catalog::Column)| {
            !bound.entity.key.iter().any(|key| key == field) && (is_sensitive(field) || is_sensitive(&column.name))
        };
        let columns: Vec<&(&str, &crate::catalog::Column)> = bound.columns.iter().filter(looks).collect();
        if columns.is_empty() {
            continue;
        }
        let names: Vec<String> = columns.iter().map(|(_, column)| format!("{:?}", column.name)).collect();
        let fields: Vec<&str> = columns.iter().map(|(field, _)| *field).collect();
        let (verb, plural) = if names.len() == 1 { ("looks", "") } else { ("look", "s") };
        let what = format!(
            "column{plural} {} {verb} sensitive: the journal keeps every value, and the other systems get it",
            names.join(", ")
        );
        let system = config.system(bound.binding.system);
        let mend = format!("{}\n# if it need not be everywhere", columns_toml(&system.name, bound, &fields));
        findings.push(
            Finding::warning(&system.name, what).entity(&bound.entity.name).table(&bound.binding.table).mend(mend),
        );
    }
    findings
}

fn is_sensitive(name: &str) -> bool {
    let words = words(name);
    let pair = |(first, second): &(&str, &str)| words.windows(2).any(|two| two[0] == *first && two[1] == *second);
    words.iter().any(|word| WORDS.contains(&word.as_str())) || PAIRS.iter().any(pair)
}

/// `userApiKey`, `user_api_key`, `user2-api.key` → user api key
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut lower = false;
    for c in name.chars() {
        if !c.is_alphabetic() || (c.is_uppercase() && lower) {
            words.push(String::new());
        }
        if c.is_alphabetic() {
            words.last_mut().expect("never empty").extend(c.to_lowercase());
        }
        lower = c.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_word_by_word() {
        for name in
            ["password", "userPassword", "PASSWD", "card_number", "creditCard", "pin", "API_KEY", "iban2", "tax-id"]
        {
            assert!(is_sensitive(name), "{name}");
        }
        for name in
            ["shipping", "cardinal", "keyboard", "compass", "spinner", "tokenized_by", "key", "api", "passenger"]
        {
            assert!(!is_sensitive(name), "{name}");
        }
    }
}
