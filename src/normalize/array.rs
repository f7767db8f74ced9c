//! PostgreSQL's arrays as JSON and back: `{{1,NULL},{"a b",""}}` ⇄ `[[1,null],["a b",""]]`.
//!
//! Exact in both directions, or refused: JSON knows no lower bounds, no NaN, no array of
//! `NULL` next to a string "NULL" that it could confuse; PostgreSQL knows no ragged or empty
//! inner dimension, and would round a number to its element's type without a word.

use serde_json::Value as Json;
use serde_json::value::RawValue;

use super::transform::{Refusal, fits, json_eq, scientific, uuid_from_text};
use crate::catalog::ColumnType;
use crate::config::Engine;
use crate::value::{Value, is_special_decimal};

/// What an element is in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Number,
    Bool,
    /// A document of its own: such arrays have one dimension, or it could not be told.
    Document,
    Text,
}

fn class(element: &ColumnType) -> Class {
    match element {
        ColumnType::Int { .. } | ColumnType::Decimal { .. } | ColumnType::Float32 | ColumnType::Float64 => {
            Class::Number
        }
        ColumnType::Bool => Class::Bool,
        ColumnType::Json => Class::Document,
        _ => Class::Text,
    }
}

/// Elements that are the same in JSON, so that arrays of both can be one field.
pub fn same_class(a: &ColumnType, b: &ColumnType) -> bool {
    class(a) == class(b)
}

/// One array as PostgreSQL writes it, to JSON in `out`.
pub fn to_json(text: &str, element: &ColumnType, out: &mut Vec<u8>) -> Result<(), Refusal> {
    if text.starts_with('[') {
        return Err("an array with lower bounds of its own has no form in JSON".into());
    }
    let mut reader = Reader { rest: text, class: class(element), depth: 0, unquoted: String::new() };
    out.clear();
    reader.level(out)?;
    if reader.rest.is_empty() { Ok(()) } else { Err(malformed()) }
}

/// Whether two arrays with such elements hold the same: numbers by what they are.
pub fn same(a: &str, b: &str, element: &ColumnType) -> bool {
    let document = |text: &str| {
        let mut out = Vec::new();
        to_json(text, element, &mut out).ok().and_then(|()| String::from_utf8(out).ok())
    };
    a == b || matches!((document(a), document(b)), (Some(a), Some(b)) if json_eq(&a, &b))
}

fn malformed() -> Refusal {
    "the text is not an array as PostgreSQL writes it".into()
}

struct Reader<'t> {
    rest: &'t str,
    class: Class,
    depth: usize,
    unquoted: String,
}

impl Reader<'_> {
    fn eat(&mut self, c: char) -> bool {
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn level(&mut self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        if !self.eat('{') {
            return Err(malformed());
        }
        self.depth += 1;
        // PostgreSQL has six dimensions at most.
        if self.depth > 6 || (self.depth > 1 && self.class == Class::Document) {
            return Err("an array of JSON with more than one dimension has no form in JSON".into());
        }
        out.push(b'[');
        if self.eat('}') {
            out.push(b']');
            self.depth -= 1;
            return Ok(());
        }
        loop {
            match self.rest.starts_with('{') {
                true => self.level(out)?,
                false => self.element(out)?,
            }
            if self.eat('}') {
                out.push(b']');
                self.depth -= 1;
                return Ok(());
            }
            if !self.eat(',') {
                return Err(malformed());
            }
            out.push(b',');
        }
    }

    fn element(&mut self, out: &mut Vec<u8>) -> Result<(), Refusal> {
        self.unquoted.clear();
        if self.eat('"') {
            loop {
                let mut chars = self.rest.chars();
                match chars.next().ok_or_else(malformed)? {
                    '"' => {
                        self.rest = chars.as_str();
                        break;
                    }
                    '\\' => self.unquoted.push(chars.next().ok_or_else(malformed)?),
                    c => self.unquoted.push(c),
                }
                self.rest = chars.as_str();
            }
        } else {
            let end = self.rest.find([',', '}']).ok_or_else(malformed)?;
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            if word == "NULL" {
                out.extend_from_slice(b"null");
                return Ok(());
            }
            self.unquoted.push_str(word);
        }
        let text = self.unquoted.as_str();
        match self.class {
            Class::Number if is_special_decimal(text) => Err("NaN and Infinity do not exist in JSON".into()),
            // Digits, sign, point and exponent: the same in both.
            Class::Number => {
                out.extend_from_slice(text.as_bytes());
                Ok(())
            }
            Class::Bool => {
                out.extend_from_slice(if text == "t" { b"true" } else { b"false" });
                Ok(())
            }
            Class::Document if text.trim() == "null" => {
                Err("a JSON null in an array cannot be told from NULL in JSON".into())
            }
            Class::Document => {
                out.extend_from_slice(text.as_bytes());
                Ok(())
            }
            Class::Text => serde_json::to_writer(out, text).map_err(|_| malformed()),
        }
    }
}

/// JSON as an array in PostgreSQL's own spelling, in `out`.
pub fn from_json(text: &str, element: &ColumnType, out: &mut Vec<u8>) -> Result<(), Refusal> {
    if class(element) == Class::Document {
        return documents(text, out);
    }
    let document: Json = serde_json::from_str(text).map_err(|_| "the document is not valid JSON".to_owned())?;
    let Json::Array(items) = &document else {
        return Err("a document other than an array has no form as array of PostgreSQL".into());
    };
    out.clear();
    let mut literal = String::from_utf8(std::mem::take(out)).unwrap_or_default();
    let dimensions = dimensions(items)?;
    write_level(items, &dimensions, element, &mut literal)?;
    *out = literal.into_bytes();
    Ok(())
}

/// Elements that are documents stay as they are written, names in their order.
fn documents(text: &str, out: &mut Vec<u8>) -> Result<(), Refusal> {
    let items: Vec<&RawValue> = serde_json::from_str(text)
        .map_err(|_| "a document other than an array has no form as array of PostgreSQL".to_owned())?;
    let mut literal = String::from("{");
    for (at, item) in items.iter().enumerate() {
        literal.push_str(if at > 0 { "," } else { "" });
        match item.get() {
            "null" => literal.push_str("NULL"),
            document => write_text(document, &mut literal),
        }
    }
    literal.push('}');
    *out = literal.into_bytes();
    Ok(())
}

/// The lengths of all dimensions, told by the first element of each.
fn dimensions(items: &[Json]) -> Result<Vec<usize>, Refusal> {
    let mut dimensions = vec![items.len()];
    let mut level = items;
    while let Some(Json::Array(inner)) = level.first() {
        if inner.is_empty() || dimensions.len() == 6 {
            return Err("an empty inner array, or one of more than six dimensions, does not exist in PostgreSQL".into());
        }
        dimensions.push(inner.len());
        level = inner;
    }
    Ok(dimensions)
}

fn write_level(items: &[Json], dimensions: &[usize], element: &ColumnType, out: &mut String) -> Result<(), Refusal> {
    if items.len() != dimensions[0] {
        return Err("inner arrays of different lengths do not exist in PostgreSQL".into());
    }
    out.push('{');
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        match (item, &dimensions[1..]) {
            (Json::Array(inner), rest @ [_, ..]) => write_level(inner, rest, element, out)?,
            (_, [_, ..]) => return Err("elements beside inner arrays do not exist in PostgreSQL".into()),
            (item, []) => write_element(item, element, out)?,
        }
    }
    out.push('}');
    Ok(())
}

fn write_element(item: &Json, element: &ColumnType, out: &mut String) -> Result<(), Refusal> {
    match (item, class(element)) {
        (Json::Null, _) => out.push_str("NULL"),
        (Json::Bool(flag), Class::Bool) => out.push(if *flag { 't' } else { 'f' }),
        (Json::Number(number), Class::Number) => write_number(&number.to_string(), element, out)?,
        (Json::String(text), Class::Text) => {
            if let ColumnType::Uuid = element {
                uuid_from_text(text)?;
            }
            write_text(text, out);
        }
        _ => return Err("an element is not of the kind that the array holds".into()),
    }
    Ok(())
}

/// Only as exact as the element's type is; floats as PostgreSQL spells them.
fn write_number(number: &str, element: &ColumnType, out: &mut String) -> Result<(), Refusal> {
    let inexact = || "a number is not exact in the array's elements".to_owned();
    match element {
        ColumnType::Float32 => {
            let value: f32 = number.parse().map_err(|_| inexact())?;
            let shortest = ryu::Buffer::new().format(value).to_owned();
            if !value.is_finite() || scientific(&shortest) != scientific(number) {
                return Err(inexact());
            }
            write_float(&shortest, 6, out);
        }
        ColumnType::Float64 => {
            let value: f64 = number.parse().map_err(|_| inexact())?;
            let shortest = ryu::Buffer::new().format(value).to_owned();
            if !value.is_finite() || scientific(&shortest) != scientific(number) {
                return Err(inexact());
            }
            write_float(&shortest, 15, out);
        }
        _ if number.contains(['e', 'E']) => return Err("a number with an exponent is not exact in the array".into()),
        ColumnType::Int { .. } if number.contains('.') => return Err(inexact()),
        _ => match fits(Value::Decimal(number), element, Engine::Postgres)? {
            Value::Decimal(number) => out.push_str(number),
            _ => return Err(inexact()),
        },
    }
    Ok(())
}

/// PostgreSQL's shortest spelling: plain from 0.0001 up to `whole` digits, else `1e+20`.
fn write_float(shortest: &str, whole: i64, out: &mut String) {
    let (negative, digits, power) = scientific(shortest);
    // ryu keeps the sign of zero.
    if negative || shortest.starts_with('-') {
        out.push('-');
    }
    if digits.is_empty() {
        return out.push('0');
    }
    let exponent = power + digits.len() as i64 - 1;
    if exponent < -4 || exponent >= whole {
        out.push_str(&digits[..1]);
        if digits.len() > 1 {
            out.push('.');
            out.push_str(&digits[1..]);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        out.push_str(&format!("e{sign}{:02}", exponent.abs()));
    } else if exponent < 0 {
        out.push_str("0.");
        (1..-exponent).for_each(|_| out.push('0'));
        out.push_str(&digits);
    } else {
        let at = exponent as usize + 1;
        if digits.len() <= at {
            out.push_str(&digits);
            (digits.len()..at).for_each(|_| out.push('0'));
        } else {
            out.push_str(&digits[..at]);
            out.push('.');
            out.push_str(&digits[at..]);
        }
    }
}

/// In quotes where PostgreSQL would put it in quotes.
fn write_text(text: &str, out: &mut String) {
    let special = |c: char| matches!(c, '"' | '\\' | '{' | '}' | ',') || (c.is_ascii() && is_space(c));
    if !text.is_empty() && !text.eq_ignore_ascii_case("NULL") && !text.contains(special) {
        return out.push_str(text);
    }
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::catalog::DecimalLimits;

    const TEXT: ColumnType = ColumnType::Text { chars: None, bytes: None };
    const INT: ColumnType = ColumnType::Int { bytes: 4, signed: true };
    const NUMERIC: ColumnType = ColumnType::Decimal { limits: None };

    fn json(text: &str, element: &ColumnType) -> Result<String, Refusal> {
        let mut out = Vec::new();
        to_json(text, element, &mut out).map(|()| String::from_utf8(out).expect("JSON is text"))
    }

    fn array(text: &str, element: &ColumnType) -> Result<String, Refusal> {
        let mut out = Vec::new();
        from_json(text, element, &mut out).map(|()| String::from_utf8(out).expect("an array is text"))
    }

    #[test]
    fn arrays_become_json_and_come_back_the_same() {
        for (literal, document, element) in [
            ("{}", "[]", INT),
            ("{1,NULL,-3}", "[1,null,-3]", INT),
            ("{{1,2},{3,4}}", "[[1,2],[3,4]]", INT),
            ("{1.50,123456789012345678901234567890.1}", "[1.50,123456789012345678901234567890.1]", NUMERIC),
            ("{t,f,NULL}", "[true,false,null]", ColumnType::Bool),
            (
                r#"{"",NULL,"NULL",null_,"a b","x,y","{","\"","\\"}"#,
                r#"["",null,"NULL","null_","a b","x,y","{","\"","\\"]"#,
                TEXT,
            ),
            ("{\"a\tb\",é😀}", "[\"a\\tb\",\"é😀\"]", TEXT),
            (r#"{"{\"a\":1}","[1,2]",NULL}"#, r#"[{"a":1},[1,2],null]"#, ColumnType::Json),
            ("{{{1}},{{2}}}", "[[[1]],[[2]]]", INT),
            ("{0.1,1e+20,1e-05,123456}", "[0.1,1e+20,1e-05,123456]", ColumnType::Float64),
        ] {
            assert_eq!(json(literal, &element).as_deref(), Ok(document), "{literal}");
            assert_eq!(array(document, &element).as_deref(), Ok(literal), "{document}");
        }
    }

    #[test]
    fn what_has_no_form_on_the_other_side_is_refused() {
        for (literal, element) in [
            ("[0:1]={1,2}", INT),
            ("{NaN}", NUMERIC),
            ("{Infinity}", ColumnType::Float64),
            (r#"{{"1"}}"#, ColumnType::Json),
            ("{null,\"null\"}", ColumnType::Json),
            ("{1", INT),
            ("1", INT),
            ("{1}}", INT),
        ] {
            assert!(json(literal, &element).is_err(), "{literal}");
        }
        let cents = ColumnType::Decimal { limits: Some(DecimalLimits { precision: 5, scale: 2 }) };
        for (document, element) in [
            ("null", INT),
            ("1", INT),
            ("{}", INT),
            ("[[]]", INT),
            ("[[1],[2,3]]", INT),
            ("[[1],2]", INT),
            ("[1,[2]]", INT),
            ("[\"1\"]", INT),
            ("[1.5]", INT),
            ("[1e2]", NUMERIC),
            ("[1.234]", cents),
            ("[1]", TEXT),
            ("[1]", ColumnType::Bool),
            ("[0.1234567891234]", ColumnType::Float32),
            ("[0.12345678901234567890]", ColumnType::Float64),
            ("[[[[[[[1]]]]]]]", INT),
        ] {
            assert!(array(document, &element).is_err(), "{document}");
        }
    }

    #[test]
    fn floats_are_spelled_as_postgresql_spells_them() {
        for (number, double, single) in [
            ("1.0", "1", "1"),
            ("100000", "100000", "100000"),
            ("1000000", "1000000", "1e+06"),
            ("1e15", "1e+15", "1e+15"),
            ("0.0001", "0.0001", "0.0001"),
            ("0.00001", "1e-05", "1e-05"),
            ("-0.0", "-0", "-0"),
            ("1.5e300", "1.5e+300", ""),
            ("123456.5", "123456.5", "123456.5"),
        ] {
            assert_eq!(array(&format!("[{number}]"), &ColumnType::Float64), Ok(format!("{{{double}}}")));
            if !single.is_empty() {
                assert_eq!(array(&format!("[{number}]"), &ColumnType::Float32), Ok(format!("{{{single}}}")));
            }
        }
    }

    #[test]
    fn arrays_are_the_same_whose_numbers_are() {
        assert!(same("{1.50,NULL}", "{1.5,NULL}", &NUMERIC));
        assert!(same("{1e+20}", "{100000000000000000000}", &ColumnType::Float64));
        assert!(same("{NaN}", "{NaN}", &NUMERIC));
        assert!(!same("{1.50}", "{1.51}", &NUMERIC));
        assert!(!same("{1.50}", "{1.5}", &TEXT));
        assert!(!same("{NULL}", "{\"NULL\"}", &TEXT));
    }

    proptest! {
        #[test]
        fn every_text_survives(texts in proptest::collection::vec("\\PC{0,8}|[ ,{}\"\\\\NUL]{0,6}", 1..5)) {
            let document = serde_json::to_string(&texts).expect("texts");
            let literal = array(&document, &TEXT).expect("texts have a form");
            let back: Vec<String> = serde_json::from_str(&json(&literal, &TEXT).expect("and come back")).expect("JSON");
            prop_assert_eq!(back, texts);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}\",\\\\0-9aNUL.:=]{0,24}") {
            for element in [INT, TEXT, ColumnType::Json] {
                let _ = json(&text, &element);
                let _ = array(&text, &element);
            }
        }
    }
}
