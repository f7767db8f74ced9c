//! The character sets of MySQL and MariaDB: a log has text in its column's own.
//!
//! Text that is read becomes UTF-8 exactly, or is refused where its set defines no character
//! for a byte. Nothing is converted when writing: sessions speak utf8mb4, the server converts
//! into the column, and in strict mode refuses a character that the column's set lacks.

mod tables;

/// How the bytes of a text column are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charset {
    /// No text at all: BINARY, BLOB.
    Binary,
    /// ascii, utf8mb3, utf8mb4: text as it stands.
    Utf8,
    /// ASCII, and these characters from 0x80 on; U+FFFD where there is none.
    Single(&'static [u16; 128]),
    /// ucs2 and utf16.
    Utf16,
    Utf16Le,
    Utf32,
}

macro_rules! single {
    ($table:ident) => {{
        static TABLE: [u16; 128] = upper_half(tables::$table);
        Some(Charset::Single(&TABLE))
    }};
}

/// Of a column, by the name in `information_schema`; `None` where the set is not known here
/// (swe7 and the East Asian sets of several bytes).
pub fn named(name: &str) -> Option<Charset> {
    match name {
        "binary" => Some(Charset::Binary),
        "ascii" | "utf8" | "utf8mb3" | "utf8mb4" => Some(Charset::Utf8),
        "ucs2" | "utf16" => Some(Charset::Utf16),
        "utf16le" => Some(Charset::Utf16Le),
        "utf32" => Some(Charset::Utf32),
        "armscii8" => single!(ARMSCII8),
        "cp1250" => single!(CP1250),
        "cp1251" => single!(CP1251),
        "cp1256" => single!(CP1256),
        "cp1257" => single!(CP1257),
        "cp850" => single!(CP850),
        "cp852" => single!(CP852),
        "cp866" => single!(CP866),
        "dec8" => single!(DEC8),
        "geostd8" => single!(GEOSTD8),
        "greek" => single!(GREEK),
        "hebrew" => single!(HEBREW),
        "hp8" => single!(HP8),
        "keybcs2" => single!(KEYBCS2),
        "koi8r" => single!(KOI8R),
        "koi8u" => single!(KOI8U),
        "latin1" => single!(LATIN1),
        "latin2" => single!(LATIN2),
        "latin5" => single!(LATIN5),
        "latin7" => single!(LATIN7),
        "macce" => single!(MACCE),
        "macroman" => single!(MACROMAN),
        "tis620" => single!(TIS620),
        _ => None,
    }
}

/// Of a column, by the number of its collation, which is what a log says.
pub fn of_collation(id: u64) -> Option<Charset> {
    // MariaDB's NO PAD twins lie 1024 above.
    let id = if (1024..2048).contains(&id) { id - 1024 } else { id };
    named(match id {
        63 => "binary",
        11 | 65 => "ascii",
        33 | 76 | 83 | 192..=215 | 223 | 576..=578 => "utf8mb3",
        45 | 46 | 224..=247 | 255..=350 | 608..=610 => "utf8mb4",
        35 | 90 | 128..=151 | 159 | 640..=642 => "ucs2",
        54 | 55 | 101..=124 | 672..=674 => "utf16",
        56 | 62 => "utf16le",
        60 | 61 | 160..=183 | 736..=738 => "utf32",
        // MariaDB's UCA 14.0.0, 256 numbers for each set.
        2048..=2303 => "utf8mb3",
        2304..=2559 => "utf8mb4",
        2560..=2815 => "ucs2",
        2816..=3071 => "utf16",
        3072..=3327 => "utf32",
        32 | 64 => "armscii8",
        26 | 34 | 44 | 66 | 99 => "cp1250",
        14 | 23 | 50 | 51 | 52 => "cp1251",
        57 | 67 => "cp1256",
        29 | 58 | 59 => "cp1257",
        4 | 80 => "cp850",
        40 | 81 => "cp852",
        36 | 68 => "cp866",
        3 | 69 => "dec8",
        92 | 93 => "geostd8",
        25 | 70 => "greek",
        16 | 71 => "hebrew",
        6 | 72 => "hp8",
        37 | 73 => "keybcs2",
        7 | 74 => "koi8r",
        22 | 75 => "koi8u",
        5 | 8 | 15 | 31 | 47 | 48 | 49 | 94 => "latin1",
        2 | 9 | 21 | 27 | 77 => "latin2",
        30 | 78 => "latin5",
        20 | 41 | 42 | 79 => "latin7",
        38 | 43 => "macce",
        39 | 53 => "macroman",
        18 | 89 => "tis620",
        _ => return None,
    })
}

impl Charset {
    /// The text itself, where it needs no conversion.
    pub fn as_utf8(self, bytes: &[u8]) -> Option<&str> {
        match self {
            Charset::Utf8 => std::str::from_utf8(bytes).ok(),
            Charset::Single(_) if bytes.is_ascii() => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// Appends the text; `false` where the bytes are none (what was appended then is undefined).
    pub fn decode(self, bytes: &[u8], out: &mut String) -> bool {
        match self {
            Charset::Binary => false,
            Charset::Utf8 => std::str::from_utf8(bytes).map(|text| out.push_str(text)).is_ok(),
            Charset::Single(upper) => {
                out.reserve(bytes.len());
                bytes.iter().all(|byte| match byte.checked_sub(0x80) {
                    None => push(out, u32::from(*byte)),
                    Some(at) => push(out, u32::from(upper[usize::from(at)])),
                })
            }
            Charset::Utf16 => utf16(bytes, u16::from_be_bytes, out),
            Charset::Utf16Le => utf16(bytes, u16::from_le_bytes, out),
            Charset::Utf32 => {
                let (chunks, rest) = bytes.as_chunks::<4>();
                rest.is_empty() && chunks.iter().all(|chunk| push(out, u32::from_be_bytes(*chunk)))
            }
        }
    }
}

fn push(out: &mut String, code: u32) -> bool {
    match char::from_u32(code) {
        Some(char::REPLACEMENT_CHARACTER) | None => false,
        Some(c) => {
            out.push(c);
            true
        }
    }
}

fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16, out: &mut String) -> bool {
    let (chunks, rest) = bytes.as_chunks::<2>();
    let mut chars = char::decode_utf16(chunks.iter().map(|chunk| unit(*chunk)));
    rest.is_empty() && chars.all(|c| c.map(|c| out.push(c)).is_ok())
}

/// 128 characters of the basic plane, at compile time.
const fn upper_half(text: &str) -> [u16; 128] {
    let bytes = text.as_bytes();
    let mut out = [0; 128];
    let (mut from, mut to) = (0, 0);
    while from < bytes.len() {
        let lead = bytes[from];
        let (length, mut code) = match lead {
            0..=0x7f => (1, lead as u16),
            0xc0..=0xdf => (2, (lead & 0x1f) as u16),
            0xe0..=0xef => (3, (lead & 0x0f) as u16),
            _ => panic!("a character beyond the basic plane"),
        };
        let mut next = 1;
        while next < length {
            code = code << 6 | (bytes[from + next] & 0x3f) as u16;
            next += 1;
        }
        out[to] = code;
        from += length;
        to += 1;
    }
    assert!(to == 128, "an upper half has 128 characters");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(name: &str, bytes: &[u8]) -> Option<String> {
        let mut out = String::new();
        named(name).expect("known").decode(bytes, &mut out).then_some(out)
    }

    #[test]
    fn text_of_each_family_becomes_the_characters_that_the_server_means() {
        assert_eq!(decoded("latin1", b"\x80 \xfc\x81").as_deref(), Some("€ ü\u{81}"));
        assert_eq!(decoded("cp1251", b"\xcf\xf0").as_deref(), Some("Пр"));
        assert_eq!(decoded("latin2", b"\xa3").as_deref(), Some("Ł"));
        assert_eq!(decoded("ucs2", &[0x20, 0xac]).as_deref(), Some("€"));
        assert_eq!(decoded("utf16", &[0xd8, 0x3d, 0xde, 0x00]).as_deref(), Some("😀"));
        assert_eq!(decoded("utf16le", &[0x3d, 0xd8, 0x00, 0xde]).as_deref(), Some("😀"));
        assert_eq!(decoded("utf32", &[0, 1, 0xf6, 0]).as_deref(), Some("😀"));
        assert_eq!(decoded("utf8mb4", "😀".as_bytes()).as_deref(), Some("😀"));
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        assert_eq!(decoded("cp1250", b"a\x81"), None);
        assert_eq!(decoded("utf16", &[0xd8, 0x3d]), None);
        assert_eq!(decoded("utf16", &[0x61]), None);
        assert_eq!(decoded("utf32", &[0, 0x11, 0, 0]), None);
        assert_eq!(decoded("utf8mb4", b"\xff"), None);
        assert_eq!(named("swe7"), None, "its lower half is not ASCII");
    }

    #[test]
    fn a_twin_without_padding_has_the_set_of_its_base() {
        assert_eq!(of_collation(8), named("latin1"));
        assert_eq!(of_collation(1032), named("latin1"));
        assert_eq!(of_collation(2304), Some(Charset::Utf8));
        assert_eq!(of_collation(28), None, "gbk");
    }
}
