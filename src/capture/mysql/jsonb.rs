//! MySQL's binary JSON, written out as text with every number digit for digit.
//!
//! Protocol: MySQL `json_binary.h`. An object or array holds a table of entries (offset, or the
//! value itself where it is small), then the values.

use super::bytes::Bytes;
use super::decode::{write_decimal, write_packed_date, write_packed_datetime, write_packed_time};

/// MySQL refuses deeper documents itself.
pub const DEPTH_MAX: usize = 100;

/// Appends the document as JSON text; `None` where it is malformed.
pub fn write_json(data: &[u8], out: &mut String) -> Option<()> {
    // A NOT NULL column that got no value holds no bytes: the server shows null.
    let Some((kind, value)) = data.split_first() else {
        out.push_str("null");
        return Some(());
    };
    // Every value takes at least a byte: what claims more goes in circles.
    let mut budget = data.len();
    write_value(*kind, value, out, 0, &mut budget)
}

pub fn write_value(kind: u8, data: &[u8], out: &mut String, depth: usize, budget: &mut usize) -> Option<()> {
    let mut bytes = Bytes(data);
    match kind {
        0x00..=0x03 => return write_container(kind, data, out, depth, budget),
        0x04 => out.push_str(literal(bytes.u8()?)?),
        0x05 => write_int(i64::from(bytes.uint(2)? as i16), out),
        0x06 => write_uint(bytes.uint(2)?, out),
        0x07 => write_int(i64::from(bytes.uint(4)? as i32), out),
        0x08 => write_uint(bytes.uint(4)?, out),
        0x09 => write_int(bytes.uint(8)? as i64, out),
        0x0a => write_uint(bytes.uint(8)?, out),
        0x0b => {
            let number = f64::from_le_bytes(bytes.array()?);
            out.push_str(number.is_finite().then(|| ryu::Buffer::new().format_finite(number).to_owned())?.as_str());
        }
        0x0c => {
            let length = length(&mut bytes)?;
            write_string(std::str::from_utf8(bytes.take(length)?).ok()?, out);
        }
        0x0f => {
            let field = bytes.u8()?;
            let length = length(&mut bytes)?;
            return write_opaque(field, bytes.take(length)?, out);
        }
        _ => return None,
    }
    Some(())
}

fn literal(byte: u8) -> Option<&'static str> {
    Some(match byte {
        0 => "null",
        1 => "true",
        2 => "false",
        _ => return None,
    })
}

fn write_container(kind: u8, data: &[u8], out: &mut String, depth: usize, budget: &mut usize) -> Option<()> {
    if depth > DEPTH_MAX {
        return None;
    }
    let object = kind < 2;
    out.push(if object { '{' } else { '[' });
    let mut first = true;
    entries(kind, data, budget, &mut |key, kind, value, budget| {
        if !std::mem::replace(&mut first, false) {
            out.push_str(", ");
        }
        if let Some(key) = key {
            write_string(key, out);
            out.push_str(": ");
        }
        write_value(kind, value, out, depth + 1, budget)
    })?;
    out.push(if object { '}' } else { ']' });
    Some(())
}

/// What is done with one value of a container: its key in an object, its kind and its bytes.
type Each<'e> = &'e mut dyn FnMut(Option<&str>, u8, &[u8], &mut usize) -> Option<()>;

/// Goes through an object or array in its order.
pub fn entries(kind: u8, data: &[u8], budget: &mut usize, each: Each<'_>) -> Option<()> {
    let object = kind < 2;
    // Offsets and counts take 2 bytes in small containers, 4 in large ones.
    let wide = if kind & 1 == 0 { 2 } else { 4 };
    let mut head = Bytes(data);
    let count = head.uint(wide)? as usize;
    let size = head.uint(wide)? as usize;
    let data = data.get(..size)?;
    let mut keys = head;
    let mut values = head;
    if object {
        values.skip(count.checked_mul(wide + 2)?)?;
    }
    for _ in 0..count {
        *budget = budget.checked_sub(1)?;
        let mut key = None;
        if object {
            let offset = keys.uint(wide)? as usize;
            let length = keys.uint(2)? as usize;
            key = Some(std::str::from_utf8(data.get(offset..offset.checked_add(length)?)?).ok()?);
        }
        let kind = values.u8()?;
        let entry = values.take(wide)?;
        let inline = matches!(kind, 0x04..=0x06) || wide == 4 && matches!(kind, 0x07 | 0x08);
        let value = if inline { entry } else { data.get(Bytes(entry).uint(wide)? as usize..)? };
        each(key, kind, value, budget)?;
    }
    Some(())
}

/// Seven bits per byte, the lowest first; the high bit says that more follow.
fn length(bytes: &mut Bytes<'_>) -> Option<usize> {
    let mut length = 0usize;
    for shift in 0..5 {
        let byte = bytes.u8()?;
        length |= usize::from(byte & 0x7f) << (7 * shift);
        if byte & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}

fn write_int(value: i64, out: &mut String) {
    out.push_str(itoa::Buffer::new().format(value));
}

fn write_uint(value: u64, out: &mut String) {
    out.push_str(itoa::Buffer::new().format(value));
}

/// A value of an SQL type: decimals are numbers, times are text, the rest is base64.
fn write_opaque(field: u8, data: &[u8], out: &mut String) -> Option<()> {
    let packed = || Bytes(data).uint(8).map(|packed| packed as i64);
    match field {
        246 => {
            let mut bytes = Bytes(data);
            let (precision, scale) = (bytes.u8()?, bytes.u8()?);
            return write_decimal(&mut bytes, precision, scale, out);
        }
        7 | 10 | 11 | 12 => {
            out.push('"');
            match field {
                10 => write_packed_date(packed()?, out),
                11 => write_packed_time(packed()?, out),
                _ => write_packed_datetime(packed()?, out),
            }
            out.push('"');
        }
        _ => {
            out.push_str("\"base64:type");
            write_uint(u64::from(field), out);
            out.push(':');
            write_base64(data, out);
            out.push('"');
        }
    }
    Some(())
}

fn write_base64(data: &[u8], out: &mut String) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in data.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            out.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
}

pub fn write_string(text: &str, out: &mut String) {
    out.push('"');
    let mut clean = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0x08 => "\\b",
            0x0c => "\\f",
            0..=0x1f => "",
            _ => continue,
        };
        out.push_str(&text[clean..at]);
        clean = at + 1;
        if escape.is_empty() {
            out.push_str(if byte < 0x10 { "\\u000" } else { "\\u001" });
            out.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
        } else {
            out.push_str(escape);
        }
    }
    out.push_str(&text[clean..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(data: &[u8]) -> Option<String> {
        let mut out = String::new();
        write_json(data, &mut out).map(|()| out)
    }

    #[test]
    fn documents_are_written_as_text() {
        // {"a": [1, 2.5, null], "b\n": "x"} as a small object
        let double = 2.5f64.to_le_bytes();
        let mut array = vec![3, 0, 21, 0, 0x05, 1, 0, 0x0b, 13, 0, 0x04, 0, 0];
        array.extend(double);
        let mut object = vec![2, 0, 0, 0, 18, 0, 1, 0, 19, 0, 2, 0, 0x02, 21, 0, 0x0c, 42, 0];
        object.extend(b"ab\n");
        object.extend(&array);
        object.extend([1, b'x']);
        object[2] = object.len() as u8;
        let mut data = vec![0x00];
        data.extend(&object);

        assert_eq!(text(&data).as_deref(), Some(r#"{"a": [1, 2.5, null], "b\n": "x"}"#));
        assert_eq!(text(&[]).as_deref(), Some("null"));
        assert_eq!(text(&[0x04, 1]).as_deref(), Some("true"));
        assert_eq!(text(&[0x0a, 255, 255, 255, 255, 255, 255, 255, 255]).as_deref(), Some("18446744073709551615"));
        for cut in 0..data.len() {
            assert!(cut == 0 || text(&data[..cut]).is_none(), "cut at {cut}");
        }
    }

    #[test]
    fn sql_values_inside_keep_their_digits() {
        // decimal(5,2) 123.45
        assert_eq!(text(&[0x0f, 246, 5, 5, 2, 0x80, 0x7b, 45]).as_deref(), Some("123.45"));
        assert_eq!(text(&[0x0f, 252, 2, 0xff, 0x00]).as_deref(), Some("\"base64:type252:/wA=\""));
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(text(&[0x0c, 4, 1, 31, b'"', b'\\']).as_deref(), Some(r#""\u0001\u001f\"\\""#));
    }

    proptest::proptest! {
        #[test]
        fn malformed_documents_are_refused_without_panic(
            data in proptest::collection::vec(0u8..20, 0..200),
        ) {
            let _ = text(&data);
        }
    }
}
