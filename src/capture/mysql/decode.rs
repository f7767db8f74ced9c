//! Row images of the binlog as datums, exact and without an allocation per value.
//!
//! Text and bytes stay where they are, in the event; what has to be written out (decimals,
//! JSON, padding, text of other character sets) goes to a scratch that is reused from row to
//! row. A value that has no canonical form, such as 0000-00-10, neither stops the flow nor is
//! altered: the row carries the reason instead, and goes to quarantine.
//!
//! Protocol: MySQL `Rows_event`, field formats of `rpl_utility` and `my_time`.

use std::fmt::Write;
use std::io::Read;
use std::ops::Range;

use flate2::read::{DeflateDecoder, ZlibDecoder};

use super::bytes::{Bytes, bit};
use super::table_map::{Layout, LogColumn, LogType, Reading};
use super::{jsonb, jsondiff};
use crate::charset::Charset;
use crate::value::{DATE_ZERO, Datum, INSTANT_ZERO, Value, days_from_mysql, write_inet6};

/// A datum on its way: text that was written out is still a range of the scratch.
#[derive(Debug, Clone)]
pub enum Cell<'a> {
    Refused,
    Null,
    Value(Value<'a>),
    Decimal(Range<usize>),
    /// A label, or text of another character set.
    Text(Range<usize>),
    Json(Range<usize>),
    Bits(Range<usize>),
    Padded(Range<usize>),
}

/// What rows are written out into; reused.
#[derive(Debug, Default)]
pub struct Scratch {
    text: String,
    bytes: Vec<u8>,
    /// Column place and reason of the first value of the row that cannot be represented.
    pub refused: Option<(usize, &'static str)>,
}

impl Scratch {
    pub fn clear(&mut self) {
        self.text.clear();
        self.bytes.clear();
        self.refused = None;
    }

    /// The cells of one image as datums.
    pub fn datums<'s>(&'s self, cells: &[Cell<'s>], out: &mut Vec<Datum<'s>>) {
        out.extend(cells.iter().map(|cell| match cell {
            Cell::Refused => Datum::NotSent,
            Cell::Null => Datum::Null,
            Cell::Value(value) => Datum::Value(*value),
            Cell::Decimal(range) => Datum::Value(Value::Decimal(&self.text[range.clone()])),
            Cell::Text(range) => Datum::Value(Value::Text(&self.text[range.clone()])),
            Cell::Json(range) => Datum::Value(Value::Json(&self.text[range.clone()])),
            Cell::Bits(range) => Datum::Value(Value::Bits(&self.text[range.clone()])),
            Cell::Padded(range) => Datum::Value(Value::Bytes(&self.bytes[range.clone()])),
        }));
    }
}

/// One value, or why there is none.
enum Decoded<'a> {
    Cell(Cell<'a>),
    Refused(&'static str),
}

/// Of an image in which JSON documents may be told by what changed in them.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// One per JSON column of the table: it is told so.
    changed: &'a [u8],
    /// The image before, undecoded, and its columns.
    before: Bytes<'a>,
    present: &'a [u8],
}

impl<'a> Parts<'a> {
    /// Reads what stands before the image.
    pub fn read(layout: &Layout, bytes: &mut Bytes<'a>, before: Bytes<'a>, present: &'a [u8]) -> Option<Self> {
        let documents = layout.columns.iter().filter(|column| matches!(column.ty, LogType::Jsonb { .. })).count();
        let changed = if bytes.lenenc()? & 1 == 1 { bytes.take(documents.div_ceil(8))? } else { &[] };
        Some(Parts { changed, before, present })
    }

    /// The document of a column in the image before.
    fn document(&self, layout: &Layout, wanted: usize) -> Option<&'a [u8]> {
        let mut bytes = self.before;
        let count = (0..layout.columns.len()).filter(|index| bit(self.present, *index)).count();
        let nulls = bytes.take(count.div_ceil(8))?;
        let present = layout.columns.iter().enumerate().filter(|(index, _)| bit(self.present, *index));
        for (at, (index, column)) in present.enumerate() {
            let null = bit(nulls, at);
            match &column.ty {
                LogType::Jsonb { prefix } if index == wanted && !null => return document(&mut bytes, *prefix),
                _ if index == wanted => return None,
                _ if null => {}
                ty => skip(ty, &mut bytes)?,
            }
        }
        None
    }
}

fn document<'a>(bytes: &mut Bytes<'a>, prefix: u8) -> Option<&'a [u8]> {
    let length = usize::try_from(bytes.uint(usize::from(prefix))?).ok()?;
    bytes.take(length)
}

/// Decodes one row image and appends its cells; `None` where the event is malformed.
pub fn image<'a>(
    layout: &Layout,
    present: &[u8],
    bytes: &mut Bytes<'a>,
    scratch: &mut Scratch,
    cells: &mut Vec<Cell<'a>>,
) -> Option<()> {
    image_of(layout, present, None, bytes, scratch, cells)
}

/// The same, of an image that may have documents in parts.
pub fn image_of<'a>(
    layout: &Layout,
    present: &[u8],
    parts: Option<Parts<'a>>,
    bytes: &mut Bytes<'a>,
    scratch: &mut Scratch,
    cells: &mut Vec<Cell<'a>>,
) -> Option<()> {
    let mut documents = 0;
    let first = cells.len();
    cells.resize(first + layout.width, Cell::Null);
    for place in &layout.absent {
        cells[first + place] = Cell::Refused; // not sent
    }
    let count = (0..layout.columns.len()).filter(|index| bit(present, *index)).count();
    let nulls = bytes.take(count.div_ceil(8))?;
    let mut at = 0;
    for (index, column) in layout.columns.iter().enumerate() {
        let mut part = None;
        if let (Some(parts), LogType::Jsonb { prefix }) = (parts, &column.ty) {
            part = bit(parts.changed, documents).then_some((parts, *prefix));
            documents += 1;
        }
        if !bit(present, index) {
            continue;
        }
        let null = bit(nulls, at);
        at += 1;
        if null {
            continue;
        }
        let Some(place) = column.place else {
            skip(&column.ty, bytes)?;
            continue;
        };
        if let Some((parts, prefix)) = part {
            let (changes, start) = (document(bytes, prefix)?, scratch.text.len());
            jsondiff::write_changed(parts.document(layout, index)?, changes, &mut scratch.text)?;
            cells[first + place] = Cell::Json(start..scratch.text.len());
            continue;
        }
        cells[first + place] = match value(column, bytes, scratch)? {
            Decoded::Cell(cell) => cell,
            Decoded::Refused(reason) => {
                scratch.refused.get_or_insert((place, reason));
                Cell::Refused
            }
        };
    }
    Some(())
}

fn skip(ty: &LogType, bytes: &mut Bytes<'_>) -> Option<()> {
    let count = match ty {
        LogType::Int { bytes, .. } | LogType::Enum { bytes, .. } | LogType::Set { bytes, .. } => usize::from(*bytes),
        LogType::Year => 1,
        LogType::Bits { digits } => usize::from(digits.div_ceil(8)),
        LogType::Float32 => 4,
        LogType::Float64 => 8,
        LogType::Decimal { precision, scale } => decimal_bytes(*precision, *scale)?,
        LogType::Date => 3,
        LogType::Time { digits } => 3 + fraction_bytes(*digits),
        LogType::DateTime { digits } => 5 + fraction_bytes(*digits),
        LogType::Timestamp { digits } => 4 + fraction_bytes(*digits),
        LogType::Fixed { bytes: limit, .. } => bytes.uint(if *limit > 255 { 2 } else { 1 })? as usize,
        LogType::Sized { prefix, .. }
        | LogType::Jsonb { prefix }
        | LogType::Geometry { prefix }
        | LogType::Compressed { prefix, .. } => usize::try_from(bytes.uint(usize::from(*prefix))?).ok()?,
        LogType::Skip { bytes } => usize::from(*bytes),
    };
    bytes.skip(count)
}

fn value<'a>(column: &LogColumn, bytes: &mut Bytes<'a>, scratch: &mut Scratch) -> Option<Decoded<'a>> {
    let plain = |value| Some(Decoded::Cell(Cell::Value(value)));
    match &column.ty {
        LogType::Int { bytes: width, signed } => plain(int(bytes, usize::from(*width), *signed)?),
        LogType::Float32 => plain(Value::Float32(f32::from_le_bytes(bytes.array()?))),
        LogType::Float64 => plain(Value::Float64(f64::from_le_bytes(bytes.array()?))),
        LogType::Decimal { precision, scale } => {
            let start = scratch.text.len();
            write_decimal(bytes, *precision, *scale, &mut scratch.text)?;
            Some(Decoded::Cell(Cell::Decimal(start..scratch.text.len())))
        }
        LogType::Date => {
            let packed = bytes.uint(3)? as u32;
            Some(match days_from_mysql((packed >> 9) as i32, packed >> 5 & 15, packed & 31) {
                Some(days) => Decoded::Cell(Cell::Value(Value::Date(days))),
                None if packed == 0 => Decoded::Cell(Cell::Value(Value::Date(DATE_ZERO))),
                None => Decoded::Refused("is a date that does not exist, of the year 0"),
            })
        }
        LogType::Time { digits } => plain(Value::Time(time(bytes, *digits)?)),
        LogType::DateTime { digits } => Some(match datetime(bytes, *digits)? {
            Some(micros) => Decoded::Cell(Cell::Value(Value::DateTime(micros))),
            None => Decoded::Refused("is a date that does not exist, of the year 0"),
        }),
        LogType::Timestamp { digits } => {
            let seconds = bytes.uint_be(4)? as i64;
            let micros = seconds * 1_000_000 + fraction(bytes, *digits)?;
            // The type begins one second after 1970.
            plain(Value::Timestamp(if micros == 0 { INSTANT_ZERO } else { micros }))
        }
        LogType::Fixed { bytes: limit, binary } => {
            let length = bytes.uint(if *limit > 255 { 2 } else { 1 })? as usize;
            let data = bytes.take(length)?;
            Some(match column.reading {
                Reading::Uuid => uuid(data),
                Reading::Inet4 => inet(data, false, scratch),
                Reading::Inet6 => inet(data, true, scratch),
                _ if *binary => Decoded::Cell(padded(data, usize::from(*limit), scratch)),
                reading => text(reading, data, scratch),
            })
        }
        LogType::Sized { prefix, binary } => {
            let length = usize::try_from(bytes.uint(usize::from(*prefix))?).ok()?;
            let data = bytes.take(length)?;
            if *binary { plain(Value::Bytes(data)) } else { Some(text(column.reading, data, scratch)) }
        }
        LogType::Geometry { prefix } => {
            let length = usize::try_from(bytes.uint(usize::from(*prefix))?).ok()?;
            plain(Value::Bytes(bytes.take(length)?))
        }
        LogType::Year => plain(Value::Int(match bytes.u8()? {
            0 => 0,
            since_1900 => 1900 + i64::from(since_1900),
        })),
        LogType::Bits { digits } => {
            let value = bytes.uint_be(usize::from(digits.div_ceil(8)))?;
            let start = scratch.text.len();
            scratch.text.extend((0..*digits).rev().map(|at| if value >> at & 1 == 1 { '1' } else { '0' }));
            Some(Decoded::Cell(Cell::Bits(start..scratch.text.len())))
        }
        LogType::Set { bytes: width, labels } => {
            let set = bytes.uint(usize::from(*width))?;
            let start = scratch.text.len();
            for at in (0..64).filter(|at| set >> at & 1 == 1) {
                if scratch.text.len() > start {
                    scratch.text.push(',');
                }
                scratch.text.push_str(labels.get(at)?);
            }
            Some(Decoded::Cell(Cell::Text(start..scratch.text.len())))
        }
        LogType::Jsonb { prefix } => {
            let length = usize::try_from(bytes.uint(usize::from(*prefix))?).ok()?;
            let data = bytes.take(length)?;
            let start = scratch.text.len();
            jsonb::write_json(data, &mut scratch.text)?;
            Some(Decoded::Cell(Cell::Json(start..scratch.text.len())))
        }
        LogType::Enum { bytes: width, labels } => {
            let index = bytes.uint(usize::from(*width))? as usize;
            // The label borrows from the layout, not from the event: it is copied.
            match index.checked_sub(1) {
                None => plain(Value::Text("")),
                Some(at) => Some(Decoded::Cell(label(labels.get(at)?, scratch))),
            }
        }
        LogType::Compressed { prefix, binary } => {
            let length = usize::try_from(bytes.uint(usize::from(*prefix))?).ok()?;
            unpacked(bytes.take(length)?, *binary, column.reading, scratch)
        }
        LogType::Skip { .. } => None,
    }
}

fn label(label: &str, scratch: &mut Scratch) -> Cell<'static> {
    let start = scratch.text.len();
    scratch.text.push_str(label);
    Cell::Text(start..scratch.text.len())
}

fn text<'a>(reading: Reading, data: &'a [u8], scratch: &mut Scratch) -> Decoded<'a> {
    let charset = match reading {
        Reading::Text(charset) => charset,
        _ => Charset::Utf8,
    };
    if let Some(text) = charset.as_utf8(data) {
        return Decoded::Cell(Cell::Value(if reading == Reading::Json {
            Value::Json(text)
        } else {
            Value::Text(text)
        }));
    }
    let start = scratch.text.len();
    if charset.decode(data, &mut scratch.text) {
        return Decoded::Cell(Cell::Text(start..scratch.text.len()));
    }
    scratch.text.truncate(start);
    Decoded::Refused(NO_CHARACTER)
}

/// Nothing, a zero byte and the value, or the bytes of its length (low bits of the head), that
/// length, and the value as zlib or, with bit 3 of the head, as plain deflate has it.
fn unpacked<'a>(data: &'a [u8], binary: bool, reading: Reading, scratch: &mut Scratch) -> Option<Decoded<'a>> {
    let whole = |value, scratch: &mut Scratch| match binary {
        true => Decoded::Cell(Cell::Value(Value::Bytes(value))),
        false => text(reading, value, scratch),
    };
    let Some((&head, rest)) = data.split_first() else { return Some(whole(&[], scratch)) };
    if head == 0 {
        return Some(whole(rest, scratch));
    }
    let mut rest = Bytes(rest);
    let length = rest.uint_be(usize::from(head & 7))?;
    if head >> 4 != 8 {
        return None;
    }
    let start = scratch.bytes.len();
    let limit = length.saturating_add(1);
    let read = match head & 8 {
        0 => ZlibDecoder::new(rest.0).take(limit).read_to_end(&mut scratch.bytes),
        _ => DeflateDecoder::new(rest.0).take(limit).read_to_end(&mut scratch.bytes),
    };
    if read.ok()? as u64 != length {
        return None;
    }
    if binary {
        return Some(Decoded::Cell(Cell::Padded(start..scratch.bytes.len())));
    }
    let from = scratch.text.len();
    let charset = if let Reading::Text(charset) = reading { charset } else { Charset::Utf8 };
    let readable = charset.decode(&scratch.bytes[start..], &mut scratch.text);
    scratch.bytes.truncate(start);
    if !readable {
        scratch.text.truncate(from);
        return Some(Decoded::Refused(NO_CHARACTER));
    }
    let range = from..scratch.text.len();
    Some(Decoded::Cell(if reading == Reading::Json { Cell::Json(range) } else { Cell::Text(range) }))
}

const NO_CHARACTER: &str = "is text with bytes that are no character of its character set";

/// INET4 and INET6: bytes, of which the server cuts trailing zeros as if they were padding.
fn inet<'a>(data: &[u8], six: bool, scratch: &mut Scratch) -> Decoded<'a> {
    let mut address = [0; 16];
    let Some(head) = address[..if six { 16 } else { 4 }].get_mut(..data.len()) else {
        return Decoded::Refused("is not an address");
    };
    head.copy_from_slice(data);
    let start = scratch.text.len();
    if six {
        write_inet6(address, &mut scratch.text);
    } else {
        let [a, b, c, d, ..] = address;
        let _ = write!(scratch.text, "{a}.{b}.{c}.{d}");
    }
    Decoded::Cell(Cell::Text(start..scratch.text.len()))
}

/// The server cuts trailing zero bytes; cut off bytes are put back.
fn padded<'a>(data: &'a [u8], length: usize, scratch: &mut Scratch) -> Cell<'a> {
    if data.len() >= length {
        return Cell::Value(Value::Bytes(data));
    }
    let start = scratch.bytes.len();
    scratch.bytes.extend_from_slice(data);
    scratch.bytes.resize(start + length, 0);
    Cell::Padded(start..scratch.bytes.len())
}

fn uuid<'a>(data: &[u8]) -> Decoded<'a> {
    let mut uuid = [0; 16];
    match uuid.get_mut(..data.len()) {
        Some(head) => {
            head.copy_from_slice(data);
            Decoded::Cell(Cell::Value(Value::Uuid(uuid)))
        }
        None => Decoded::Refused("is not a uuid"),
    }
}

fn int(bytes: &mut Bytes<'_>, width: usize, signed: bool) -> Option<Value<'static>> {
    let raw = bytes.uint(width)?;
    if signed {
        let unused = 64 - 8 * width as u32;
        return Some(Value::Int(((raw << unused) as i64) >> unused));
    }
    Some(i64::try_from(raw).map_or(Value::UInt(raw), Value::Int))
}

/// Bytes of a number of decimal digits below nine.
const DIGIT_BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

fn decimal_bytes(precision: u8, scale: u8) -> Option<usize> {
    let (whole, scale) = (usize::from(precision.checked_sub(scale)?), usize::from(scale));
    Some(whole / 9 * 4 + DIGIT_BYTES[whole % 9] + scale / 9 * 4 + DIGIT_BYTES[scale % 9])
}

/// Appends a packed decimal with all digits of its scale: `-12.50`.
pub fn write_decimal(bytes: &mut Bytes<'_>, precision: u8, scale: u8, out: &mut String) -> Option<()> {
    let size = decimal_bytes(precision, scale)?;
    // DECIMAL(65,30) takes 30 bytes.
    let mut packed = [0u8; 128];
    let packed = packed.get_mut(..size)?;
    packed.copy_from_slice(bytes.take(size)?);
    // The first bit is set where the number is not negative; negative ones are inverted.
    let first = packed.first_mut()?;
    let negative = *first & 0x80 == 0;
    *first ^= 0x80;
    if negative {
        packed.iter_mut().for_each(|byte| *byte = !*byte);
        out.push('-');
    }
    let mut packed = Bytes(packed);
    let (whole, scale) = (usize::from(precision - scale), usize::from(scale));
    let start = out.len();
    push_group(&mut packed, whole % 9, out)?;
    for _ in 0..whole / 9 {
        push_group(&mut packed, 9, out)?;
    }
    let zeros = out[start..].bytes().take_while(|byte| *byte == b'0').count();
    out.replace_range(start..start + zeros, "");
    if out.len() == start {
        out.push('0');
    }
    if scale > 0 {
        out.push('.');
        for _ in 0..scale / 9 {
            push_group(&mut packed, 9, out)?;
        }
        push_group(&mut packed, scale % 9, out)?;
    }
    Some(())
}

fn push_group(bytes: &mut Bytes<'_>, digits: usize, out: &mut String) -> Option<()> {
    if digits == 0 {
        return Some(());
    }
    let mut value = bytes.uint_be(DIGIT_BYTES[digits])?;
    let mut text = [b'0'; 9];
    for digit in text[..digits].iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    if value > 0 {
        return None;
    }
    out.push_str(std::str::from_utf8(&text[..digits]).ok()?);
    Some(())
}

fn fraction_bytes(digits: u8) -> usize {
    usize::from(digits.div_ceil(2))
}

/// Microseconds of a fraction that is not negative.
fn fraction(bytes: &mut Bytes<'_>, digits: u8) -> Option<i64> {
    let count = fraction_bytes(digits);
    let raw = bytes.uint_be(count)? as i64;
    Some(raw * [1_000_000, 10_000, 100, 1][count])
}

/// Microseconds since 1970 without zone, or the zero; inner `None` where there is no such day
/// or time.
fn datetime(bytes: &mut Bytes<'_>, digits: u8) -> Option<Option<i64>> {
    let packed = bytes.uint_be(5)? as i64 - 0x80_0000_0000;
    let micros = fraction(bytes, digits)?;
    if packed == 0 && micros == 0 {
        return Some(Some(INSTANT_ZERO));
    }
    let (date, time) = (packed >> 17, packed & 0x1_ffff);
    let (month_count, day) = (date >> 5, date & 31);
    let civil = days_from_mysql((month_count / 13) as i32, (month_count % 13) as u32, day as u32);
    let (hour, minute, second) = (time >> 12, time >> 6 & 63, time & 63);
    Some(
        civil
            .filter(|_| packed > 0 && hour < 24 && minute < 60 && second < 60)
            .map(|days| ((i64::from(days) * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000 + micros),
    )
}

/// Signed microseconds, up to 838 hours. The bytes are one big endian number with an offset,
/// whole part and fraction side by side.
fn time(bytes: &mut Bytes<'_>, digits: u8) -> Option<i64> {
    let count = fraction_bytes(digits);
    let bits = 8 * (3 + count as u32);
    let packed = bytes.uint_be(3 + count)? as i64 - (1 << (bits - 1));
    let (sign, packed) = (packed.signum(), packed.abs());
    let whole = packed >> (8 * count);
    let micros = (packed & ((1 << (8 * count)) - 1)) * [1_000_000, 10_000, 100, 1][count];
    let seconds = (whole >> 12 & 0x3ff) * 3600 + (whole >> 6 & 63) * 60 + (whole & 63);
    Some(sign * (seconds * 1_000_000 + micros))
}

/// Dates and times inside JSON: one 64-bit number, 24 bits of it the fraction.
pub fn write_packed_date(packed: i64, out: &mut String) {
    let date = packed >> 24 >> 17;
    let months = date >> 5;
    let _ = write!(out, "{:04}-{:02}-{:02}", months / 13, months % 13, date & 31);
}

pub fn write_packed_datetime(packed: i64, out: &mut String) {
    write_packed_date(packed, out);
    out.push(' ');
    write_clock(packed >> 24 & 0x1_ffff, packed & 0xff_ffff, out);
}

pub fn write_packed_time(packed: i64, out: &mut String) {
    if packed < 0 {
        out.push('-');
    }
    let packed = packed.unsigned_abs() as i64;
    write_clock(packed >> 24 & 0x3f_ffff, packed & 0xff_ffff, out);
}

fn write_clock(time: i64, micros: i64, out: &mut String) {
    let _ = write!(out, "{:02}:{:02}:{:02}.{micros:06}", time >> 12, time >> 6 & 63, time & 63);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::MICROS_PER_DAY;

    fn decode<'a>(ty: LogType, data: &'a [u8], scratch: &'a mut Scratch) -> (Datum<'a>, Option<&'static str>) {
        let layout = Layout {
            columns: vec![LogColumn { ty, place: Some(0), reading: Reading::Plain }],
            width: 1,
            absent: vec![],
        };
        let mut row = Bytes(data);
        let mut cells = Vec::new();
        image(&layout, &[1], &mut row, scratch, &mut cells).expect("well formed");
        assert!(row.is_empty(), "everything is read");
        let mut datums = Vec::new();
        let refused = scratch.refused.map(|(_, reason)| reason);
        scratch.datums(&cells, &mut datums);
        (datums[0], refused)
    }

    /// The null bitmap of one column, then its bytes.
    fn row(bytes: &[u8]) -> Vec<u8> {
        [&[0], bytes].concat()
    }

    fn value_of(ty: LogType, bytes: &[u8]) -> String {
        let mut scratch = Scratch::default();
        let data = row(bytes);
        let (datum, refused) = decode(ty, &data, &mut scratch);
        refused.map_or_else(|| format!("{:?}", datum.value().expect("a value")), str::to_owned)
    }

    #[test]
    fn integers_keep_their_sign() {
        let int = |bytes, signed| LogType::Int { bytes, signed };

        assert_eq!(value_of(int(3, true), &[0xff, 0xff, 0xff]), "Int(-1)");
        assert_eq!(value_of(int(3, false), &[0xff, 0xff, 0xff]), "Int(16777215)");
        assert_eq!(value_of(int(1, true), &[0x80]), "Int(-128)");
        assert_eq!(value_of(int(8, false), &[0xff; 8]), "UInt(18446744073709551615)");
        assert_eq!(value_of(int(8, true), &[0, 0, 0, 0, 0, 0, 0, 0x80]), "Int(-9223372036854775808)");
    }

    #[test]
    fn decimals_keep_every_digit() {
        let decimal = |precision, scale| LogType::Decimal { precision, scale };

        // The manual's example: 1234567890.1234 as DECIMAL(14,4), and its negative.
        assert_eq!(
            value_of(decimal(14, 4), &[0x81, 0x0d, 0xfb, 0x38, 0xd2, 0x04, 0xd2]),
            "Decimal(\"1234567890.1234\")"
        );
        assert_eq!(
            value_of(decimal(14, 4), &[0x7e, 0xf2, 0x04, 0xc7, 0x2d, 0xfb, 0x2d]),
            "Decimal(\"-1234567890.1234\")"
        );
        assert_eq!(value_of(decimal(5, 2), &[0x80, 0, 5]), "Decimal(\"0.05\")");
        assert_eq!(value_of(decimal(2, 0), &[0x80]), "Decimal(\"0\")");
        assert_eq!(value_of(decimal(2, 2), &[0x80 | 7]), "Decimal(\"0.07\")");
    }

    #[test]
    fn times_keep_sign_and_fraction() {
        // -00:00:01.1 with one digit: whole -2, fraction 256 - 10
        assert_eq!(value_of(LogType::Time { digits: 1 }, &[0x7f, 0xff, 0xfe, 0xf6]), "Time(-1100000)");
        assert_eq!(value_of(LogType::Time { digits: 0 }, &[0x80, 0x10, 0x83]), "Time(3723000000)");
        let limit = -(838i64 << 12 | 59 << 6 | 59) + 0x80_0000;
        assert_eq!(value_of(LogType::Time { digits: 0 }, &limit.to_be_bytes()[5..]), "Time(-3020399000000)");
    }

    #[test]
    fn dates_and_datetimes_are_days_and_microseconds() {
        let packed = |y: i64, m: i64, d: i64, h: i64| ((y * 13 + m) << 5 | d) << 17 | h << 12;
        let datetime = |at: i64| (at + 0x80_0000_0000).to_be_bytes()[3..].to_vec();
        let day = |y: u32, m: u32, d: u32| (y << 9 | m << 5 | d).to_le_bytes()[..3].to_vec();

        assert_eq!(value_of(LogType::Date, &day(1970, 1, 2)), "Date(1)");
        let noon = [datetime(packed(1970, 1, 2, 12)), vec![0, 0, 7]].concat();
        assert_eq!(
            value_of(LogType::DateTime { digits: 6 }, &noon),
            format!("DateTime({})", MICROS_PER_DAY * 3 / 2 + 7)
        );
        assert_eq!(value_of(LogType::Timestamp { digits: 3 }, &[0, 0, 0, 1, 0x13, 0x88]), "Timestamp(1500000)");
    }

    #[test]
    fn dates_that_do_not_exist_refuse_their_row() {
        assert!(value_of(LogType::Date, &[0x0a, 0, 0]).contains("does not exist"), "0000-00-10");
        assert!(value_of(LogType::DateTime { digits: 0 }, &[0x80, 0, 1, 0, 0]).contains("does not exist"));
        assert!(value_of(LogType::Sized { prefix: 1, binary: false }, &[1, 0xff]).contains("no character"));
    }

    #[test]
    fn the_zero_dates_are_values_of_their_own() {
        let partial = days_from_mysql(2024, 1, 0).unwrap();
        assert_eq!(value_of(LogType::Date, &[0x20, 0xd0, 0x0f]), format!("Date({partial})"), "2024-01-00");
        assert_eq!(value_of(LogType::Date, &[0, 0, 0]), format!("Date({DATE_ZERO})"));
        assert_eq!(
            value_of(LogType::DateTime { digits: 6 }, &[0x80, 0, 0, 0, 0, 0, 0, 0]),
            format!("DateTime({INSTANT_ZERO})")
        );
        assert_eq!(value_of(LogType::Timestamp { digits: 0 }, &[0; 4]), format!("Timestamp({INSTANT_ZERO})"));
    }

    #[test]
    fn years_bits_and_sets_are_numbers_digits_and_labels() {
        assert_eq!(value_of(LogType::Year, &[0]), "Int(0)");
        assert_eq!(value_of(LogType::Year, &[255]), "Int(2155)");
        assert_eq!(value_of(LogType::Bits { digits: 10 }, &[0b10, 1]), "Bits(\"1000000001\")");
        assert_eq!(value_of(LogType::Bits { digits: 1 }, &[0]), "Bits(\"0\")");
        let set = || LogType::Set { bytes: 1, labels: vec!["a".into(), "b".into(), "c".into()] };
        assert_eq!(value_of(set(), &[0b101]), "Text(\"a,c\")");
        assert_eq!(value_of(set(), &[0]), "Text(\"\")");
    }

    #[test]
    fn text_of_another_character_set_is_converted_and_addresses_are_written_out() {
        let read = |ty: LogType, reading, bytes: &[u8]| {
            let layout = Layout { columns: vec![LogColumn { ty, place: Some(0), reading }], width: 1, absent: vec![] };
            let data = row(bytes);
            let (mut scratch, mut cells) = (Scratch::default(), Vec::new());
            image(&layout, &[1], &mut Bytes(&data), &mut scratch, &mut cells).expect("well formed");
            let mut datums = Vec::new();
            scratch.datums(&cells, &mut datums);
            format!("{:?}", datums[0].value())
        };
        let sized = || LogType::Sized { prefix: 1, binary: false };
        let latin1 = Reading::Text(crate::charset::named("latin1").expect("known"));
        let fixed = |bytes| LogType::Fixed { bytes, binary: true };

        assert_eq!(read(sized(), latin1, &[3, 0x80, b'a', 0xfc]), "Some(Text(\"€aü\"))");
        assert_eq!(read(sized(), latin1, &[1, b'a']), "Some(Text(\"a\"))");
        assert_eq!(read(fixed(4), Reading::Inet4, &[2, 10, 1]), "Some(Text(\"10.1.0.0\"))");
        assert_eq!(read(fixed(16), Reading::Inet6, &[0]), "Some(Text(\"::\"))");
    }

    #[test]
    fn binary_is_padded_and_labels_are_resolved() {
        assert_eq!(value_of(LogType::Fixed { bytes: 4, binary: true }, &[2, 7, 0]), "Bytes([7, 0, 0, 0])");
        assert_eq!(value_of(LogType::Fixed { bytes: 4, binary: false }, &[2, b'a', b'b']), "Text(\"ab\")");
        let labels = || LogType::Enum { bytes: 1, labels: vec!["new".into(), "old".into()] };
        assert_eq!(value_of(labels(), &[2]), "Text(\"old\")");
        assert_eq!(value_of(labels(), &[0]), "Text(\"\")");
    }

    #[test]
    fn compressed_columns_are_unpacked_or_taken_as_they_are() {
        let ty = |binary| LogType::Compressed { prefix: 2, binary };

        assert_eq!(value_of(ty(false), &[0, 0]), "Text(\"\")");
        assert_eq!(value_of(ty(false), &[3, 0, 0, b'a', b'b']), "Text(\"ab\")");
        // 300 times ü in latin1, as MariaDB wrote it
        let packed = [10, 0, 0x8a, 0x01, 0x2c, 0xfb, 0xf3, 0x67, 0x14, 0x10, 0x0b, 0x00];
        assert_eq!(value_of(ty(true), &packed), format!("{:?}", Value::Bytes(&[0xfc; 300])));
        assert!(value_of(ty(false), &packed).contains("no character"));
        let mut scratch = Scratch::default();
        let layout = Layout {
            columns: vec![LogColumn { ty: ty(true), place: Some(0), reading: Reading::Plain }],
            width: 1,
            absent: vec![],
        };
        let short = row(&[[10, 0, 0x8a, 0x01, 0x2d].as_slice(), &packed[5..]].concat());
        assert!(image(&layout, &[1], &mut Bytes(&short), &mut scratch, &mut Vec::new()).is_none(), "of another length");
    }

    #[test]
    fn columns_that_are_not_wanted_are_stepped_over() {
        let column = |ty, place| LogColumn { ty, place, reading: Reading::Plain };
        let layout = Layout {
            columns: vec![
                column(LogType::Sized { prefix: 2, binary: false }, None),
                column(LogType::Int { bytes: 2, signed: true }, Some(1)),
                column(LogType::Decimal { precision: 10, scale: 2 }, None),
                column(LogType::Int { bytes: 1, signed: true }, Some(0)),
            ],
            width: 2,
            absent: vec![],
        };
        let data = [&[0b0010][..], &[1, 0, b'x'], &[0; 5], &[9]].concat();
        let mut scratch = Scratch::default();
        let mut cells = Vec::new();

        image(&layout, &[0b1111], &mut Bytes(&data), &mut scratch, &mut cells).expect("well formed");

        let mut datums = Vec::new();
        scratch.datums(&cells, &mut datums);
        assert_eq!(datums, [Datum::Value(Value::Int(9)), Datum::Null]);
    }

    proptest::proptest! {
        #[test]
        fn malformed_rows_are_refused_without_panic(
            data in proptest::collection::vec(proptest::num::u8::ANY, 0..60), kind in 0usize..17, n in 0u8..70, m in 0u8..70,
        ) {
            let ty = [
                LogType::Int { bytes: 8, signed: true }, LogType::Float32, LogType::Float64,
                LogType::Decimal { precision: n, scale: m }, LogType::Date, LogType::Time { digits: n % 7 },
                LogType::DateTime { digits: n % 7 }, LogType::Timestamp { digits: n % 7 },
                LogType::Fixed { bytes: u16::from(n) * 8, binary: true }, LogType::Sized { prefix: n % 4 + 1, binary: false },
                LogType::Jsonb { prefix: n % 4 + 1 }, LogType::Enum { bytes: n % 2 + 1, labels: vec![] },
                LogType::Set { bytes: n % 8 + 1, labels: vec!["a".into()] }, LogType::Year,
                LogType::Bits { digits: n.min(64) }, LogType::Geometry { prefix: n % 4 + 1 },
                LogType::Compressed { prefix: 1, binary: n % 2 == 0 },
            ][kind].clone();
            let reading = [Reading::Plain, Reading::Uuid, Reading::Inet4, Reading::Inet6, Reading::Text(Charset::Utf16)][usize::from(n) % 5];
            let layout = Layout { columns: vec![LogColumn { ty, place: Some(0), reading }], width: 1, absent: vec![] };
            let mut bytes = Bytes(&data);
            let mut scratch = Scratch::default();
            let mut cells = Vec::new();
            while image(&layout, &[m], &mut bytes, &mut scratch, &mut cells).is_some() && !bytes.is_empty() && cells.len() < 99 {}
        }
    }
}
