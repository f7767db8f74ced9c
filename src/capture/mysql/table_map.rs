//! Which columns the rows of an event have, as of that event.
//!
//! The log's own metadata (`binlog_row_metadata=FULL`) names the columns; the catalog, which
//! shows the table as it is now, is never used for their order. A value is decoded by the
//! log's own type, so that a column that was merely widened since stays exact; a column that
//! is gone or of another kind stops the flow.
//!
//! Protocol: MySQL `Table_map_event` with optional metadata.

use super::bytes::{Bytes, bit};
use crate::capture::altered::Logged;
use crate::capture::{TableNow, WantedColumn, WantedTable};
use crate::catalog::{ColumnType, TableName};
use crate::charset::{self, Charset};
use crate::connect::mysql::Flavour;
use crate::error::{Error, Result};
use crate::marker;
use crate::normalize::recast::leads;
use crate::value::Kind;

/// How a column's values lie in a row event.
#[derive(Debug, Clone, PartialEq)]
pub enum LogType {
    Int {
        bytes: u8,
        signed: bool,
    },
    Float32,
    Float64,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Date,
    Time {
        digits: u8,
    },
    DateTime {
        digits: u8,
    },
    Timestamp {
        digits: u8,
    },
    /// CHAR and BINARY: cut of their padding by the server.
    Fixed {
        bytes: u16,
        binary: bool,
    },
    /// Text or bytes behind a length of `prefix` bytes.
    Sized {
        prefix: u8,
        binary: bool,
    },
    /// MySQL's binary JSON behind a length.
    Jsonb {
        prefix: u8,
    },
    Enum {
        bytes: u8,
        labels: Vec<String>,
    },
    /// One bit per label.
    Set {
        bytes: u8,
        labels: Vec<String>,
    },
    Year,
    /// BIT: so many digits, the first byte first.
    Bits {
        digits: u8,
    },
    /// SRID and WKB behind a length.
    Geometry {
        prefix: u8,
    },
    /// MariaDB's COMPRESSED columns: a head that says how, then the value, behind a length.
    Compressed {
        prefix: u8,
        binary: bool,
    },
    /// Not carried, only stepped over: so many bytes.
    Skip {
        bytes: u16,
    },
}

/// One column of the table, in the order of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogColumn {
    pub ty: LogType,
    /// Its place in the row that is handed on; `None`: not wanted.
    pub place: Option<usize>,
    pub reading: Reading,
}

/// What values behind a length are, beyond what the log says of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// UTF-8, or bytes.
    Plain,
    /// Text in another character set.
    Text(Charset),
    /// Text that holds JSON (MariaDB).
    Json,
    /// MariaDB's, in bytes.
    Uuid,
    Inet4,
    Inet6,
}

/// A table whose rows are decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    pub columns: Vec<LogColumn>,
    /// How many columns are handed on.
    pub width: usize,
    /// Of these, the ones that the table did not have yet.
    pub absent: Vec<usize>,
}

/// The beginning of a table map: enough to know whose rows follow.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    pub id: u64,
    pub schema: &'a str,
    pub table: &'a str,
    flavour: Flavour,
    rest: Bytes<'a>,
}

pub fn head(data: &[u8], flavour: Flavour) -> Option<Head<'_>> {
    let mut bytes = Bytes(data);
    let id = bytes.uint(6)?;
    bytes.skip(2)?;
    let schema = std::str::from_utf8(bytes.sized()?).ok()?;
    bytes.skip(1)?;
    let table = std::str::from_utf8(bytes.sized()?).ok()?;
    bytes.skip(1)?;
    Some(Head { id, schema, table, flavour, rest: bytes })
}

/// What the log says of one column before it is matched with the wanted ones.
#[derive(Debug, Clone)]
struct Described<'a> {
    kind: u8,
    meta: u16,
    unsigned: bool,
    collation: Option<u64>,
    name: Option<&'a str>,
    /// In the column's character set.
    labels: Vec<&'a [u8]>,
}

const TINY: u8 = 1;
const SHORT: u8 = 2;
const LONG: u8 = 3;
const FLOAT: u8 = 4;
const DOUBLE: u8 = 5;
const TIMESTAMP: u8 = 7;
const LONGLONG: u8 = 8;
const INT24: u8 = 9;
const DATE: u8 = 10;
const TIME: u8 = 11;
const DATETIME: u8 = 12;
const YEAR: u8 = 13;
const NEWDATE: u8 = 14;
const VARCHAR: u8 = 15;
const BIT: u8 = 16;
const TIMESTAMP2: u8 = 17;
const DATETIME2: u8 = 18;
const TIME2: u8 = 19;
const BLOB_COMPRESSED: u8 = 140;
const VARCHAR_COMPRESSED: u8 = 141;
const VECTOR: u8 = 242;
const JSON: u8 = 245;
const NEWDECIMAL: u8 = 246;
const ENUM: u8 = 247;
const SET: u8 = 248;
const TINY_BLOB: u8 = 249;
const BLOB: u8 = 252;
const VAR_STRING: u8 = 253;
const STRING: u8 = 254;
const GEOMETRY: u8 = 255;

/// What a table map is read by that names no columns (`binlog_row_metadata=MINIMAL`).
#[derive(Debug, Clone, Copy)]
pub enum Unnamed<'a> {
    Refused,
    /// The marker has the columns that we gave it.
    Marker,
    /// Nothing was altered between these rows and when the catalog was read.
    Catalog(&'a TableNow),
    /// Something was.
    Altered,
}

/// Matches the log's columns with the wanted ones. `seen`: they were logged before the catalog
/// was read.
pub fn layout(head: Head<'_>, wanted: &WantedTable, seen: bool, unnamed: Unnamed<'_>) -> Result<Layout> {
    let Some((mut described, named, nullable)) = describe(head.rest, head.flavour) else {
        return Err(Error::stop(format!("the table map of {} is malformed", wanted.name), "report this as a bug"));
    };
    if let Err(field) = named {
        return Err(Error::stop(
            format!("the table map of {} says something of its columns that is not known (field {field})", wanted.name),
            "the server is newer than this version of the agent knows: take a newer one, or set binlog_row_metadata as it \
             was before",
        ));
    }
    let named = named == Ok(true);
    let logged = Logged { wanted, seen };
    if !named {
        name(&mut described, nullable, logged, unnamed)?;
    }
    let names: Vec<&str> = described.iter().map(|column| column.name.unwrap_or("?")).collect();
    let types: Vec<Option<LogType>> = described.iter().map(Described::log_type).collect();
    let fits = |at: usize, place: usize| {
        types[place].as_ref().is_some_and(|ty| described[place].becomes(ty, &wanted.columns[at].ty))
    };
    let places = logged.places(&names, fits)?;
    let mut columns = Vec::with_capacity(described.len());
    for (index, (column, ty)) in described.iter().zip(&types).enumerate() {
        let place = places.iter().position(|place| *place == Some(index));
        let mut reading = Reading::Plain;
        if let Some(place) = place {
            let WantedColumn { name, ty: wanted_type } = &wanted.columns[place];
            if ty.as_ref().is_some_and(|ty| column.carries(ty, wanted_type)) {
                reading = column.reading(Some(wanted_type));
            } else if seen && fits(place, index) {
                reading = column.reading(None);
            } else {
                return Err(logged.other_type(name, "is of another type in the log"));
            }
        }
        let Some(ty) = ty.clone() else {
            return Err(logged.other_type(names[index], &format!("is of a type ({}) that is not known", column.kind)));
        };
        columns.push(LogColumn { ty, place, reading });
    }
    let absent = (0..places.len()).filter(|place| places[*place].is_none()).collect();
    Ok(Layout { columns, width: wanted.columns.len(), absent })
}

/// Gives the columns the names of the catalog, after they were found to be the same.
fn name<'a>(described: &mut [Described<'a>], nullable: &[u8], logged: Logged<'a>, unnamed: Unnamed<'a>) -> Result<()> {
    let table = &logged.wanted.name;
    let stop = |what: &str| {
        Error::stop(
            format!("the log names no columns of {table}{what}"),
            "SET GLOBAL binlog_row_metadata=FULL, and binlog_row_metadata=FULL in the server's configuration",
        )
    };
    let now = match unnamed {
        Unnamed::Refused => return Err(stop("")),
        Unnamed::Altered => return Err(logged.unnamed()),
        Unnamed::Marker => {
            if described.len() != marker::COLUMNS.len()
                || !described.iter().zip(MARKER).all(|(c, kind)| c.kind == kind || (c.kind, kind) == (STRING, VARCHAR))
            {
                return Err(stop(", and they are not those of a marker"));
            }
            described.iter_mut().zip(marker::COLUMNS).for_each(|(column, name)| column.name = Some(name));
            return Ok(());
        }
        Unnamed::Catalog(now) => now,
    };
    if described.len() != now.shape.len() {
        let (log, catalog) = (described.len(), now.shape.len());
        return Err(stop(&format!(", and has {log} where the catalog shows {catalog}")));
    }
    for (index, (column, shown)) in described.iter_mut().zip(&now.shape).enumerate() {
        if bit(nullable, index) != shown.nullable || !column.is_declared(&shown.type_name.to_lowercase()) {
            return Err(stop(&format!(", and number {} is not {:?} of the catalog", index + 1, shown.name)));
        }
        column.name = Some(&shown.name);
        if let ColumnType::Enum { labels } | ColumnType::Set { labels } = &shown.ty {
            column.labels = labels.iter().map(String::as_bytes).collect();
            column.collation = Some(UTF8MB4);
        }
    }
    Ok(())
}

/// Whether the columns have names; else the number of a field that may change how they are read.
type Named = std::result::Result<bool, u8>;

/// Columns, whether they have names, and which may be NULL.
fn describe(mut bytes: Bytes<'_>, flavour: Flavour) -> Option<(Vec<Described<'_>>, Named, &[u8])> {
    let count = usize::try_from(bytes.lenenc()?).ok()?;
    let kinds = bytes.take(count)?;
    let mut metadata = Bytes(bytes.sized()?);
    let nullable = bytes.take(count.div_ceil(8))?;
    let mut columns = Vec::with_capacity(count);
    for kind in kinds {
        columns.push(Described::new(*kind, &mut metadata)?);
    }
    let mut named = false;
    while !bytes.is_empty() {
        let field = bytes.u8()?;
        let mut value = Bytes(bytes.sized()?);
        match field {
            1 => signedness(&mut columns, value.0),
            2 => default_charset(&mut columns, |column| column.is_text(flavour), &mut value)?,
            3 => charsets(&mut columns, |column| column.is_text(flavour), &mut value)?,
            4 => {
                for column in &mut columns {
                    column.name = Some(std::str::from_utf8(value.sized()?).ok()?);
                }
                named = true;
            }
            5 => labels(&mut columns, SET, &mut value)?,
            6 => labels(&mut columns, ENUM, &mut value)?,
            10 => default_charset(&mut columns, |column| column.is_labelled(), &mut value)?,
            11 => charsets(&mut columns, |column| column.is_labelled(), &mut value)?,
            // Kinds of geometry, keys, visibility, dimensions of vectors: they change no value.
            7..=9 | 12 | 13 => {}
            unknown => return Some((columns, Err(unknown), nullable)),
        }
    }
    Some((columns, Ok(named || count == 0), nullable))
}

fn signedness(columns: &mut [Described<'_>], bits: &[u8]) {
    for (index, column) in columns.iter_mut().filter(|column| column.is_numeric()).enumerate() {
        // Bits from the most significant on, unlike every other bitmap of the log.
        column.unsigned = bits.get(index / 8).is_some_and(|byte| byte >> (7 - index % 8) & 1 == 1);
    }
}

fn default_charset(
    columns: &mut [Described<'_>],
    of: impl Fn(&Described<'_>) -> bool,
    value: &mut Bytes<'_>,
) -> Option<()> {
    let default = value.lenenc()?;
    let mut others = Vec::new();
    while !value.is_empty() {
        others.push((value.lenenc()?, value.lenenc()?));
    }
    for (index, column) in columns.iter_mut().filter(|column| of(column)).enumerate() {
        let own = others.iter().find(|(at, _)| *at == index as u64);
        column.collation = Some(own.map_or(default, |(_, collation)| *collation));
    }
    Some(())
}

fn charsets(columns: &mut [Described<'_>], of: impl Fn(&Described<'_>) -> bool, value: &mut Bytes<'_>) -> Option<()> {
    for column in columns.iter_mut().filter(|column| of(column)) {
        column.collation = Some(value.lenenc()?);
    }
    Some(())
}

fn labels<'a>(columns: &mut [Described<'a>], kind: u8, value: &mut Bytes<'a>) -> Option<()> {
    for column in columns.iter_mut().filter(|column| column.kind == kind) {
        for _ in 0..value.lenenc()? {
            column.labels.push(value.sized()?);
        }
    }
    Some(())
}

impl<'a> Described<'a> {
    fn new(kind: u8, metadata: &mut Bytes<'_>) -> Option<Self> {
        let meta = match kind {
            FLOAT
            | DOUBLE
            | TINY_BLOB..=BLOB
            | JSON
            | GEOMETRY
            | VECTOR
            | BLOB_COMPRESSED
            | TIME2
            | DATETIME2
            | TIMESTAMP2 => metadata.uint(1)?,
            VARCHAR | VAR_STRING | VARCHAR_COMPRESSED | BIT => metadata.uint(2)?,
            // These are written high byte first: precision, scale; real type, length.
            NEWDECIMAL | STRING | ENUM | SET => metadata.uint_be(2)?,
            _ => 0,
        } as u16;
        let mut column = Described { kind, meta, unsigned: false, collation: None, name: None, labels: Vec::new() };
        if kind == STRING {
            let (real, length) = ((meta >> 8) as u8, meta & 0xff);
            if matches!(real, ENUM | SET) {
                (column.kind, column.meta) = (real, length);
            } else if real & 0x30 == 0x30 {
                column.meta = length;
            } else {
                // Two bits of the length hide, inverted, in the type: CHAR of more than 255 bytes.
                column.meta = length | u16::from(real & 0x30 ^ 0x30) << 4;
            }
        }
        Some(column)
    }

    fn is_numeric(&self) -> bool {
        matches!(self.kind, TINY | SHORT | INT24 | LONG | LONGLONG | NEWDECIMAL | FLOAT | DOUBLE | YEAR)
    }

    /// Counted where the log says character sets. MariaDB counts geometry with them.
    fn is_text(&self, flavour: Flavour) -> bool {
        let geometry = self.kind == GEOMETRY && flavour == Flavour::Mariadb;
        geometry
            || matches!(
                self.kind,
                STRING | VAR_STRING | VARCHAR | TINY_BLOB..=BLOB | BLOB_COMPRESSED | VARCHAR_COMPRESSED
            )
    }

    /// May be a column of this declaration, `decimal(12,2) unsigned`, as far as the log says.
    fn is_declared(&self, declared: &str) -> bool {
        let end = declared.find(['(', ' ']).unwrap_or(declared.len());
        let (base, rest) = declared.split_at(end);
        let within = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or("", |(within, _)| within);
        let binary = self.charset() == Some(Charset::Binary);
        let digits = || within.parse::<u16>().unwrap_or(0);
        let signs = self.unsigned == rest.contains("unsigned");
        let labels = || rest.matches("','").count() + 1;
        match base {
            "tinyint" | "smallint" | "mediumint" | "int" | "integer" | "bigint" | "float" | "double" => {
                let kinds =
                    [("tinyint", TINY), ("smallint", SHORT), ("mediumint", INT24), ("int", LONG), ("integer", LONG)];
                let kinds = kinds.into_iter().chain([("bigint", LONGLONG), ("float", FLOAT), ("double", DOUBLE)]);
                signs && kinds.into_iter().any(|(name, kind)| name == base && kind == self.kind)
            }
            "decimal" => {
                let (precision, scale) = within.split_once(',').unwrap_or((within, "0"));
                let meta = precision.parse::<u16>().ok().zip(scale.trim().parse::<u16>().ok());
                self.kind == NEWDECIMAL && signs && meta.is_some_and(|(p, s)| p << 8 | s == self.meta)
            }
            "year" => self.kind == YEAR,
            "date" => matches!(self.kind, DATE | NEWDATE),
            "time" => self.kind == TIME2 && self.meta == digits(),
            "datetime" => self.kind == DATETIME2 && self.meta == digits(),
            "timestamp" => self.kind == TIMESTAMP2 && self.meta == digits(),
            "bit" => self.kind == BIT && (self.meta >> 8) * 8 + (self.meta & 0xff) == digits(),
            "char" => self.kind == STRING && !binary,
            "binary" => self.kind == STRING && binary,
            "varchar" => self.kind == VARCHAR && !binary,
            "varbinary" => self.kind == VARCHAR && binary,
            "uuid" | "inet4" | "inet6" => self.kind == STRING,
            "tinytext" | "tinyblob" => self.kind == BLOB && self.meta == 1,
            "text" | "blob" => self.kind == BLOB && self.meta == 2,
            "mediumtext" | "mediumblob" => self.kind == BLOB && self.meta == 3,
            "longtext" | "longblob" => self.kind == BLOB && self.meta == 4,
            "json" => self.kind == JSON || self.kind == BLOB && self.meta == 4,
            "enum" => self.kind == ENUM && self.meta == if labels() > 255 { 2 } else { 1 },
            "set" => self.kind == SET && usize::from(self.meta) == set_bytes(labels()),
            "vector" => matches!(self.kind, VECTOR | VARCHAR),
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
            | "geometrycollection" | "geomcollection" => self.kind == GEOMETRY,
            _ => false,
        }
    }

    fn is_labelled(&self) -> bool {
        matches!(self.kind, ENUM | SET)
    }

    fn charset(&self) -> Option<Charset> {
        self.collation.and_then(charset::of_collation)
    }

    /// The labels as text; `None` where they are in a set that is not known.
    fn labels(&self) -> Option<Vec<String>> {
        let charset = self.charset()?;
        let label = |bytes: &&[u8]| {
            let mut text = String::new();
            charset.decode(bytes, &mut text).then_some(text)
        };
        self.labels.iter().map(label).collect()
    }

    /// How values are read that are wanted as that; `None`: as what they were.
    fn reading(&self, wanted: Option<&ColumnType>) -> Reading {
        match (wanted, self.charset()) {
            (Some(ColumnType::Uuid), _) => Reading::Uuid,
            (Some(ColumnType::Json), _) => Reading::Json,
            (Some(ColumnType::Inet { v6: false }), _) => Reading::Inet4,
            (Some(ColumnType::Inet { v6: true }), _) => Reading::Inet6,
            (_, None | Some(Charset::Utf8 | Charset::Binary)) => Reading::Plain,
            (_, Some(charset)) => Reading::Text(charset),
        }
    }

    /// `None` where the length of its values is not known.
    fn log_type(&self) -> Option<LogType> {
        let int = |bytes| LogType::Int { bytes, signed: !self.unsigned };
        let digits = self.meta.min(6) as u8;
        let prefix = if self.meta > 255 { 2 } else { 1 };
        let binary = self.charset() == Some(Charset::Binary);
        Some(match self.kind {
            TINY => int(1),
            SHORT => int(2),
            INT24 => int(3),
            LONG => int(4),
            LONGLONG => int(8),
            FLOAT => LogType::Float32,
            DOUBLE => LogType::Float64,
            NEWDECIMAL => LogType::Decimal { precision: (self.meta >> 8) as u8, scale: (self.meta & 0xff) as u8 },
            DATE | NEWDATE => LogType::Date,
            TIME2 => LogType::Time { digits },
            DATETIME2 => LogType::DateTime { digits },
            TIMESTAMP2 => LogType::Timestamp { digits },
            STRING => LogType::Fixed { bytes: self.meta, binary },
            VARCHAR | VAR_STRING => LogType::Sized { prefix, binary },
            TINY_BLOB..=BLOB => LogType::Sized { prefix: self.meta.clamp(1, 4) as u8, binary },
            JSON => LogType::Jsonb { prefix: self.meta.clamp(1, 4) as u8 },
            ENUM => match self.labels() {
                Some(labels) => LogType::Enum { bytes: self.meta.clamp(1, 2) as u8, labels },
                None => LogType::Skip { bytes: self.meta.clamp(1, 2) },
            },
            SET => match self.labels() {
                Some(labels) => LogType::Set { bytes: self.meta.clamp(1, 8) as u8, labels },
                None => LogType::Skip { bytes: self.meta.clamp(1, 8) },
            },
            YEAR => LogType::Year,
            TIME => LogType::Skip { bytes: 3 },
            TIMESTAMP => LogType::Skip { bytes: 4 },
            DATETIME => LogType::Skip { bytes: 8 },
            // Whole bytes, and the bits beyond them.
            BIT => LogType::Bits { digits: ((self.meta >> 8) * 8 + (self.meta & 0xff)).min(64) as u8 },
            GEOMETRY => LogType::Geometry { prefix: self.meta.clamp(1, 4) as u8 },
            VECTOR => LogType::Sized { prefix: self.meta.clamp(1, 4) as u8, binary: true },
            BLOB_COMPRESSED => LogType::Compressed { prefix: self.meta.clamp(1, 4) as u8, binary },
            VARCHAR_COMPRESSED => LogType::Compressed { prefix, binary },
            _ => return None,
        })
    }

    /// Values of the log's type can be read as the type that the column was given since.
    fn becomes(&self, ty: &LogType, wanted: &ColumnType) -> bool {
        let kinds = (kind_of(ty, self.charset().is_some()), wanted.kind());
        self.carries(ty, wanted) || matches!(kinds, (Some(former), Some(present)) if leads(former, present))
    }

    /// Values of the log's type are, exactly, values of the kind that is wanted.
    fn carries(&self, ty: &LogType, wanted: &ColumnType) -> bool {
        let charset = self.charset();
        let utf8 = charset == Some(Charset::Utf8);
        match ty {
            LogType::Int { .. } => matches!(wanted, ColumnType::Int { .. }),
            LogType::Float32 => *wanted == ColumnType::Float32,
            LogType::Float64 => *wanted == ColumnType::Float64,
            LogType::Decimal { .. } => matches!(wanted, ColumnType::Decimal { .. }),
            LogType::Date => *wanted == ColumnType::Date,
            LogType::Time { .. } => matches!(wanted, ColumnType::Time { .. }),
            LogType::DateTime { .. } => matches!(wanted, ColumnType::DateTime { .. }),
            LogType::Timestamp { .. } => matches!(wanted, ColumnType::Timestamp { .. }),
            LogType::Fixed { bytes: 16, .. } if matches!(wanted, ColumnType::Uuid | ColumnType::Inet { v6: true }) => {
                true
            }
            LogType::Fixed { bytes: 4, .. } if *wanted == (ColumnType::Inet { v6: false }) => true,
            LogType::Fixed { binary, .. } | LogType::Sized { binary, .. } | LogType::Compressed { binary, .. } => {
                match wanted {
                    ColumnType::Char { .. } | ColumnType::Text { .. } => charset.is_some() && !binary,
                    ColumnType::Binary { .. } | ColumnType::Bytes { .. } => *binary,
                    ColumnType::Json => matches!(ty, LogType::Sized { .. }) && utf8,
                    _ => false,
                }
            }
            LogType::Jsonb { .. } => *wanted == ColumnType::Json,
            LogType::Enum { .. } => matches!(wanted, ColumnType::Enum { .. }),
            LogType::Set { .. } => matches!(wanted, ColumnType::Set { .. }),
            LogType::Year => *wanted == ColumnType::Year,
            LogType::Bits { .. } => matches!(wanted, ColumnType::Bits { .. }),
            LogType::Geometry { .. } => *wanted == ColumnType::Geometry,
            LogType::Skip { .. } => false,
        }
    }
}

/// What a column's values are before any mapping; `None`: not carried.
fn kind_of(ty: &LogType, text: bool) -> Option<Kind> {
    Some(match ty {
        LogType::Int { .. } | LogType::Year => Kind::Int,
        LogType::Float32 => Kind::Float32,
        LogType::Float64 => Kind::Float64,
        LogType::Decimal { .. } => Kind::Decimal,
        LogType::Date => Kind::Date,
        LogType::Time { .. } => Kind::Time,
        LogType::DateTime { .. } => Kind::DateTime,
        LogType::Timestamp { .. } => Kind::Timestamp,
        LogType::Fixed { binary: true, .. } | LogType::Sized { binary: true, .. } => Kind::Bytes,
        LogType::Fixed { .. } | LogType::Sized { .. } if text => Kind::Text,
        LogType::Enum { .. } | LogType::Set { .. } => Kind::Text,
        LogType::Jsonb { .. } => Kind::Json,
        LogType::Bits { .. } => Kind::Bits,
        _ => return None,
    })
}

/// Every wanted column is present in a row image.
pub fn covers(layout: &Layout, present: &[u8]) -> bool {
    layout.columns.iter().enumerate().all(|(index, column)| column.place.is_none() || bit(present, index))
}

/// A set of so many labels takes 1, 2, 3, 4 or 8 bytes.
fn set_bytes(labels: usize) -> usize {
    match labels.div_ceil(8) {
        few @ 0..=4 => few,
        _ => 8,
    }
}

/// Kinds of the marker's columns, in their order.
const MARKER: [u8; 8] = [VARCHAR, LONG, VARCHAR, LONGLONG, LONGLONG, LONGLONG, VARCHAR, VARCHAR];

/// Of `utf8mb4_general_ci`, which every server has.
const UTF8MB4: u64 = 45;

/// The columns of the marker table that are read, as a wanted table.
pub fn marker_table(name: &TableName) -> WantedTable {
    let text = || ColumnType::Text { chars: None, bytes: None };
    let int = || ColumnType::Int { bytes: 8, signed: true };
    let columns = [
        ("agent", text()),
        ("lane", int()),
        ("journal", text()),
        ("epoch", int()),
        ("seq", int()),
        ("part", int()),
        ("origin", text()),
        ("txid", text()),
    ];
    WantedTable {
        id: usize::MAX,
        name: name.clone(),
        columns: columns.into_iter().map(|(name, ty)| WantedColumn { name: name.to_owned(), ty }).collect(),
        key: vec!["agent".into(), "lane".into()],
        now: None,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::capture::WantedColumn;

    /// Builds a table map event's data: (kind, metadata bytes, name), fields beside the names.
    pub fn table_map(id: u64, schema: &str, table: &str, columns: &[(u8, &[u8], &str)], extra: &[u8]) -> Vec<u8> {
        let mut data = id.to_le_bytes()[..6].to_vec();
        data.extend([1, 0]);
        for name in [schema, table] {
            data.push(name.len() as u8);
            data.extend(name.as_bytes());
            data.push(0);
        }
        data.push(columns.len() as u8);
        data.extend(columns.iter().map(|(kind, ..)| *kind));
        let metadata: Vec<u8> = columns.iter().flat_map(|(_, meta, _)| meta.iter().copied()).collect();
        data.push(metadata.len() as u8);
        data.extend(metadata);
        data.extend(vec![0xff; columns.len().div_ceil(8)]);
        let mut names = Vec::new();
        for (.., name) in columns {
            names.push(name.len() as u8);
            names.extend(name.as_bytes());
        }
        if columns.iter().any(|(.., name)| !name.is_empty()) {
            data.extend([4, names.len() as u8]);
            data.extend(names);
        }
        data.extend(extra);
        data
    }

    pub fn wanted(columns: &[(&str, ColumnType)]) -> WantedTable {
        WantedTable {
            id: 0,
            name: TableName { schema: "d".into(), name: "t".into() },
            columns: columns.iter().map(|(name, ty)| WantedColumn { name: (*name).into(), ty: ty.clone() }).collect(),
            key: vec!["id".into()],
            now: None,
        }
    }

    const INT: ColumnType = ColumnType::Int { bytes: 4, signed: true };
    const TEXT: ColumnType = ColumnType::Text { chars: Some(20), bytes: None };

    #[test]
    fn columns_are_found_by_name_wherever_they_stand() {
        // signedness: the second numeric column is unsigned; charset: utf8mb4, the first text is binary
        let extra = [1, 1, 0b0100_0000, 2, 3, 45, 0, 63];
        let data = table_map(
            9,
            "d",
            "t",
            &[(15, &[80, 0], "raw"), (3, &[], "n"), (254, &[0xee, 0x10], "c"), (3, &[], "id")],
            &extra,
        );
        let head = head(&data, Flavour::Mysql).expect("well formed");

        let layout = layout(head, &wanted(&[("id", INT), ("c", TEXT)]), false, Unnamed::Refused).expect("matches");

        assert_eq!((head.id, head.schema, head.table), (9, "d", "t"));
        assert_eq!(layout.columns[0].ty, LogType::Sized { prefix: 1, binary: true });
        assert_eq!(layout.columns[2].ty, LogType::Fixed { bytes: 0x110, binary: false });
        assert_eq!(layout.columns[3].ty, LogType::Int { bytes: 4, signed: false });
        assert_eq!(layout.columns.iter().map(|c| c.place).collect::<Vec<_>>(), [None, None, Some(1), Some(0)]);
    }

    #[test]
    fn a_table_that_no_longer_agrees_stops() {
        let stop = |columns: &[(u8, &[u8], &str)], extra: &[u8]| {
            let data = table_map(9, "d", "t", columns, extra);
            let error = layout(
                head(&data, Flavour::Mysql).expect("well formed"),
                &wanted(&[("id", INT), ("c", TEXT)]),
                false,
                Unnamed::Refused,
            )
            .expect_err("must stop");
            assert_eq!(error.recovery, crate::error::Recovery::Stop);
            error.full()
        };

        assert!(stop(&[(3, &[], ""), (15, &[80, 0], "")], &[2, 1, 45]).contains("binlog_row_metadata=FULL"));
        assert!(stop(&[(3, &[], "id")], &[]).contains("\"c\" of d.t is not in the log"));
        assert!(stop(&[(3, &[], "id"), (3, &[], "c")], &[]).contains("another type"));
        // bytes, and gbk, whose bytes nobody here can read
        assert!(stop(&[(3, &[], "id"), (15, &[80, 0], "c")], &[2, 1, 63]).contains("another type"));
        assert!(stop(&[(3, &[], "id"), (15, &[80, 0], "c")], &[2, 1, 28]).contains("another type"));
        assert!(stop(&[(3, &[], "id"), (15, &[80, 0], "c"), (99, &[], "x")], &[2, 1, 45]).contains("not known"));
        let fine: &[(u8, &[u8], &str)] = &[(3, &[], "id"), (15, &[80, 0], "c")];
        assert!(stop(fine, &[2, 1, 45, 14, 1, 0]).contains("is not known (field 14)"));
    }

    #[test]
    fn text_and_labels_are_read_in_the_columns_own_character_set() {
        // texts: latin1; labels: enum latin1, set utf8mb4
        let extra = [2, 1, 8, 10, 3, 8, 1, 45, 6, 3, 1, 1, 0xf6, 5, 4, 1, 2, 0xc3, 0xb6];
        let columns: &[(u8, &[u8], &str)] =
            &[(3, &[], "id"), (15, &[80, 0], "c"), (254, &[247, 1], "e"), (254, &[248, 1], "s")];
        let data = table_map(9, "d", "t", columns, &extra);
        let label = || vec!["ö".to_owned()];

        let wanted = wanted(&[
            ("c", TEXT),
            ("e", ColumnType::Enum { labels: label() }),
            ("s", ColumnType::Set { labels: label() }),
        ]);
        let layout = layout(head(&data, Flavour::Mysql).expect("well formed"), &wanted, false, Unnamed::Refused)
            .expect("matches");

        assert_eq!(layout.columns[1].reading, Reading::Text(charset::named("latin1").expect("known")));
        assert_eq!(layout.columns[2].ty, LogType::Enum { bytes: 1, labels: label() });
        assert_eq!(layout.columns[3].ty, LogType::Set { bytes: 1, labels: label() });
    }

    #[test]
    fn mariadb_counts_geometry_among_the_columns_with_character_sets() {
        let columns: &[(u8, &[u8], &str)] = &[(3, &[], "id"), (255, &[4], "g"), (15, &[80, 0], "c")];
        let wanted = wanted(&[("c", TEXT)]);
        for (flavour, extra) in [
            (Flavour::Mysql, &[3u8, 1, 8][..]),
            (Flavour::Mariadb, &[3, 2, 63, 8]),
            (Flavour::Mariadb, &[2, 3, 8, 0, 63]),
        ] {
            let data = table_map(9, "d", "t", columns, extra);
            let layout =
                layout(head(&data, flavour).expect("well formed"), &wanted, false, Unnamed::Refused).expect("matches");
            assert_eq!(layout.columns[2].reading, Reading::Text(charset::named("latin1").expect("known")));
        }
    }

    proptest::proptest! {
        #[test]
        fn malformed_table_maps_are_refused_without_panic(
            cut in 0usize..80, at in 0usize..80, byte in proptest::num::u8::ANY,
        ) {
            let mut data = table_map(9, "d", "t", &[(3, &[], "id"), (15, &[80, 0], "c")], &[2, 1, 45]);
            let at = at % data.len();
            data[at] = byte;
            data.truncate(data.len().saturating_sub(cut));
            if let Some(head) = head(&data, Flavour::Mariadb) {
                let _ = layout(head, &wanted(&[("id", INT), ("c", TEXT)]), false, Unnamed::Refused);
            }
        }
    }
}
