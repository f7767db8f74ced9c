//! One column: of which type it is, as far as other engines have it too, and how its server spells it.

use std::collections::{BTreeMap, HashSet};

use crate::catalog::{Collation, Column, ColumnType, DecimalLimits};
use crate::charset::{self, Charset};
use crate::connect::mysql::Flavour;

/// What `information_schema.COLUMNS` says of one column.
#[derive(Debug, Default)]
struct Described {
    name: String,
    data_type: String,
    column_type: String,
    charset: Option<String>,
    chars: Option<u64>,
    octets: Option<u64>,
    precision: Option<u64>,
    scale: Option<u64>,
    fraction: Option<u64>,
}

/// The lines of CREATE TABLE that begin with a name in backticks.
pub(super) fn definitions(create: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for line in create.lines() {
        let line = line.trim().trim_end_matches(',');
        let Some(rest) = line.strip_prefix('`') else { continue };
        // A backtick inside of the name is doubled.
        let end = rest.replace("``", "\u{0}\u{0}").find('`');
        if let Some(end) = end {
            found.insert(rest[..end].replace("``", "`"), line.to_owned());
        }
    }
    found
}

/// By their names: `information_schema` tells of neither in MariaDB. In MySQL padding ended with
/// the collations of Unicode 9.
fn collation(name: &str, ty: &ColumnType, flavour: Flavour) -> Collation {
    let charset = name.split('_').next().unwrap_or(name);
    let nopad = name == "binary" || name.contains("_nopad_") || name.contains("_0900_");
    Collation {
        name: name.to_owned(),
        binary: name == "binary" || name.ends_with("_bin"),
        pads: !nopad || matches!(ty, ColumnType::Char { .. }),
        bytes: match flavour {
            Flavour::Mysql => "utf8mb4_0900_bin".to_owned(),
            Flavour::Mariadb => format!("{charset}_nopad_bin"),
        },
    }
}

pub(super) fn column(
    mut row: mysql_async::Row,
    json: Option<&HashSet<String>>,
    definitions: &BTreeMap<String, String>,
    flavour: Flavour,
) -> Column {
    let mut text = |at: usize| row.take_opt::<Option<String>, _>(at).and_then(Result::ok).flatten();
    let mut described = Described {
        name: text(0).unwrap_or_default(),
        data_type: text(1).unwrap_or_default().to_lowercase(),
        column_type: text(2).unwrap_or_default(),
        charset: text(3),
        ..Described::default()
    };
    let nullable = text(9).as_deref() == Some("YES");
    let default = text(10);
    let extra = text(11).unwrap_or_default().to_lowercase();
    let collated = text(12);
    let mut number = |at: usize| row.take_opt::<Option<u64>, _>(at).and_then(Result::ok).flatten();
    described.chars = number(4);
    described.octets = number(5);
    described.precision = number(6);
    described.scale = number(7);
    described.fraction = number(8);
    let nextval = default.as_deref().is_some_and(|d| d.to_lowercase().contains("nextval("));
    let ty = column_type(&described, json.is_some_and(|json| json.contains(&described.name)));
    Column {
        collation: collated.map(|name| collation(&name, &ty, flavour)),
        definition: definitions.get(&described.name).cloned().unwrap_or_default(),
        ty,
        nullable,
        generated: ["virtual generated", "stored generated", "persistent"].iter().any(|word| extra.contains(word)),
        identity_always: false,
        // MariaDB spells "no default" of a nullable column as the word.
        has_default: default.as_deref().is_some_and(|d| d != "NULL") || extra.contains("auto_increment"),
        auto_increment: extra.contains("auto_increment") || nextval,
        name: described.name,
        type_name: described.column_type,
    }
}

fn column_type(column: &Described, json: bool) -> ColumnType {
    let charset = column.charset.as_deref().and_then(charset::named);
    let utf8 = charset == Some(Charset::Utf8);
    let text = charset.is_some_and(|charset| charset != Charset::Binary);
    let declared = column.column_type.to_lowercase();
    let int = |bytes| ColumnType::Int { bytes, signed: !declared.contains("unsigned") };
    let digits = column.fraction.unwrap_or(0) as u8;
    let octets = column.octets.or(column.chars);
    let labels = |set: &str| labels(&column.column_type, set);
    match column.data_type.as_str() {
        "tinyint" => int(1),
        "smallint" => int(2),
        "mediumint" => int(3),
        "int" | "integer" => int(4),
        "bigint" => int(8),
        "decimal" => match (column.precision, column.scale) {
            (Some(precision), Some(scale)) => {
                ColumnType::Decimal { limits: Some(DecimalLimits { precision: precision as u16, scale: scale as u16 }) }
            }
            _ => ColumnType::Unsupported,
        },
        // float(7,2) would round what is written.
        "float" if column.scale.is_none() => ColumnType::Float32,
        "double" if column.scale.is_none() => ColumnType::Float64,
        "bit" => ColumnType::Bits { length: column.precision.map(|n| n as u32), varying: false },
        "year" => ColumnType::Year,
        "longtext" if json && utf8 => ColumnType::Json,
        "json" => ColumnType::Json,
        "char" if text => ColumnType::Char { chars: column.chars.unwrap_or(0) as u32 },
        "varchar" if text => ColumnType::Text { chars: column.chars.map(|n| n as u32), bytes: None },
        // Octets of another set are the server's to count.
        "tinytext" | "text" | "mediumtext" | "longtext" if text => {
            ColumnType::Text { chars: None, bytes: octets.filter(|_| utf8) }
        }
        "binary" => ColumnType::Binary { bytes: octets.unwrap_or(0) as u32 },
        "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => ColumnType::Bytes { bytes: octets },
        "date" => ColumnType::Date,
        "time" => ColumnType::Time { digits },
        "datetime" => ColumnType::DateTime { digits },
        "timestamp" => ColumnType::Timestamp { digits },
        "uuid" => ColumnType::Uuid,
        "enum" if text => labels("enum(").map_or(ColumnType::Unsupported, |labels| ColumnType::Enum { labels }),
        "set" if text => labels("set(").map_or(ColumnType::Unsupported, |labels| ColumnType::Set { labels }),
        "inet4" => ColumnType::Inet { v6: false },
        "inet6" => ColumnType::Inet { v6: true },
        "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
        | "geomcollection" | "geometrycollection" => ColumnType::Geometry,
        // Floats of four bytes, low one first.
        "vector" => ColumnType::Bytes { bytes: octets },
        // Text in swe7 and in the East Asian sets of several bytes.
        _ => ColumnType::Unsupported,
    }
}

/// json_valid(`name`) → name
pub(super) fn json_checked(clause: &str) -> Option<String> {
    let inner = clause.trim().strip_prefix("json_valid(`")?.strip_suffix("`)")?;
    Some(inner.replace("``", "`"))
}

/// enum('a','it''s') → its labels, in order. `head` is `enum(` or `set(`.
fn labels(column_type: &str, head: &str) -> Option<Vec<String>> {
    let inner = column_type.strip_prefix(head)?.rsplit_once(')')?.0;
    let mut labels = Vec::new();
    let mut chars = inner.chars().peekable();
    loop {
        if chars.next()? != '\'' {
            return None;
        }
        let mut label = String::new();
        loop {
            match chars.next()? {
                '\'' if chars.peek() == Some(&'\'') => label.extend(chars.next()),
                '\'' => break,
                '\\' => label.push(match chars.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    '0' => '\0',
                    'Z' => '\u{1a}',
                    other => other,
                }),
                other => label.push(other),
            }
        }
        labels.push(label);
        match chars.next() {
            Some(',') => {}
            None => return Some(labels),
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_keep_quotes_commas_and_backslashes() {
        let found = labels(r"enum('a','it''s','x,y','b\\c','')", "enum(").expect("well formed");

        assert_eq!(found, ["a", "it's", "x,y", r"b\c", ""]);
        assert_eq!(labels("enum('a", "enum("), None);
        assert_eq!(labels("set('a')", "enum("), None);
        assert_eq!(labels("set('a')", "set("), Some(vec!["a".to_owned()]));
    }

    #[test]
    fn only_text_in_a_known_character_set_is_carried() {
        let described = |data_type: &str, charset: &str| Described {
            data_type: data_type.into(),
            column_type: data_type.into(),
            charset: Some(charset.into()),
            chars: Some(10),
            octets: Some(40),
            ..Described::default()
        };

        assert_eq!(
            column_type(&described("varchar", "utf8mb4"), false),
            ColumnType::Text { chars: Some(10), bytes: None }
        );
        assert_eq!(
            column_type(&described("varchar", "latin1"), false),
            ColumnType::Text { chars: Some(10), bytes: None }
        );
        assert_eq!(
            column_type(&described("text", "utf8mb3"), false),
            ColumnType::Text { chars: None, bytes: Some(40) }
        );
        assert_eq!(column_type(&described("text", "latin1"), false), ColumnType::Text { chars: None, bytes: None });
        assert_eq!(column_type(&described("varchar", "swe7"), false), ColumnType::Unsupported);
        assert_eq!(column_type(&described("longtext", "utf8mb4"), true), ColumnType::Json);
        let rounding = Described { scale: Some(2), ..described("float", "utf8mb4") };
        assert_eq!(column_type(&rounding, false), ColumnType::Unsupported);
    }

    #[test]
    fn a_column_is_defined_as_the_server_spells_it() {
        let create =
            "CREATE TABLE `t` (\n  `a``b` varchar(5) NOT NULL DEFAULT 'x,',\n  `n` int,\n  PRIMARY KEY (`n`)\n)";

        let definitions = definitions(create);

        assert_eq!(definitions["a`b"], "`a``b` varchar(5) NOT NULL DEFAULT 'x,'");
        assert_eq!(definitions["n"], "`n` int");
        assert_eq!(definitions.len(), 2);
    }

    #[test]
    fn a_collation_says_by_its_name_what_is_equal() {
        let said = |name: &str| {
            let c = collation(name, &ColumnType::Text { chars: None, bytes: None }, Flavour::Mysql);
            (c.binary, c.pads)
        };

        assert_eq!(said("utf8mb4_0900_ai_ci"), (false, false));
        assert_eq!(said("utf8mb4_0900_bin"), (true, false));
        assert_eq!(said("utf8mb4_nopad_bin"), (true, false));
        assert_eq!(said("utf8mb4_bin"), (true, true));
        assert_eq!(said("utf8mb4_uca1400_ai_ci"), (false, true));
        assert!(collation("utf8mb4_0900_bin", &ColumnType::Char { chars: 3 }, Flavour::Mysql).pads);
    }

    #[test]
    fn a_json_check_names_its_column() {
        assert_eq!(json_checked("json_valid(`a``b`)").as_deref(), Some("a`b"));
        assert_eq!(json_checked("`n` > 0"), None);
    }
}
