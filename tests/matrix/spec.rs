//! What is written where: the columns of each engine with hard values, and the column that each
//! of the others gives them.

/// How a value is read, by means of the servers alone, so that both sides can be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// The characters, as UTF-8.
    Text,
    Bytes,
    /// Digits; zeros at the end of a fraction do not count.
    Number,
    /// The very bits.
    Float,
    Bool,
    Date,
    Time,
    /// A wall clock, or an instant in UTC.
    Instant,
    Bits,
    Uuid,
    /// Of the internet, however it is spelled.
    Address,
    /// The same document, numbers digit for digit.
    Json,
}

/// One column of an engine.
pub struct Spec {
    pub ddl: &'static str,
    pub read: As,
    /// What the page calls it, and the SQL.
    pub values: &'static [(&'static str, &'static str)],
    /// In PostgreSQL, MySQL and MariaDB: the column's type there, and how values change their
    /// form on the way; exact where nothing is said.
    pub to: [(&'static str, &'static str); 3],
}

const fn spec(
    ddl: &'static str,
    read: As,
    values: &'static [(&'static str, &'static str)],
    to: [(&'static str, &'static str); 3],
) -> Spec {
    Spec { ddl, read, values, to }
}

const TEXT: &str = "as text";
const JSON: &str = "the same document";
const ARRAY: &str = "as JSON";

/// Created before the tables.
pub const POSTGRES_TYPES: &str = "CREATE TYPE mood AS ENUM ('new', 'größer', 'it''s'); \
    CREATE TYPE pair AS (n int, t text); CREATE DOMAIN email AS varchar(40) CHECK (VALUE LIKE '%@%'); \
    CREATE DOMAIN cents AS numeric(12,2)";

pub const POSTGRES: &[Spec] = &[
    spec(
        "boolean",
        As::Bool,
        &[("true", "true"), ("false", "false")],
        [("boolean", ""), ("tinyint(1)", ""), ("bit(1)", "")],
    ),
    spec(
        "smallint",
        As::Number,
        &[("max", "32767"), ("min", "-32768")],
        [("smallint", ""), ("smallint", ""), ("smallint", "")],
    ),
    spec(
        "integer",
        As::Number,
        &[("max", "2147483647"), ("min", "-2147483648")],
        [("integer", ""), ("int", ""), ("int", "")],
    ),
    spec(
        "bigint",
        As::Number,
        &[("max", "9223372036854775807"), ("min", "-9223372036854775808")],
        [("bigint", ""), ("bigint", ""), ("bigint", "")],
    ),
    spec(
        "numeric",
        As::Number,
        &[
            ("35 and 30 digits", "99999999999999999999999999999999999.999999999999999999999999999999"),
            ("10^-30", "0.000000000000000000000000000001"),
            ("10^-31", "0.0000000000000000000000000000001"),
            ("-1.50", "-1.50"),
            ("NaN", "'NaN'"),
            ("Infinity", "'Infinity'"),
            ("-Infinity", "'-Infinity'"),
        ],
        [("numeric", ""), ("decimal(65,30)", ""), ("decimal(65,30)", "")],
    ),
    spec(
        "numeric(65)",
        As::Number,
        &[
            ("65 digits", "99999999999999999999999999999999999999999999999999999999999999999"),
            ("-65 digits", "-12345678901234567890123456789012345678901234567890123456789012345"),
        ],
        [("numeric(65)", ""), ("decimal(65,0)", ""), ("decimal(65,0)", "")],
    ),
    spec(
        "real",
        As::Float,
        &[
            ("0.1", "0.1"),
            ("max", "3.4028235e38"),
            ("least subnormal", "1e-45"),
            ("-0", "'-0'"),
            ("NaN", "'NaN'"),
            ("-Infinity", "'-Infinity'"),
        ],
        [("real", ""), ("float", ""), ("float", "−0 becomes 0")],
    ),
    spec(
        "double precision",
        As::Float,
        &[
            ("0.1", "0.1"),
            ("max", "1.7976931348623157e308"),
            ("least subnormal", "5e-324"),
            ("2^53+1, which is 2^53", "9007199254740993"),
            ("-0", "'-0'"),
            ("NaN", "'NaN'"),
            ("Infinity", "'Infinity'"),
        ],
        [("double precision", ""), ("double", ""), ("double", "−0 becomes 0")],
    ),
    spec(
        "char(5)",
        As::Text,
        &[("empty", "''"), ("padded", "'ab'"), ("accents", "'äöüßé'"), ("4-byte characters", "'😀漢字'")],
        [("char(5)", ""), ("char(5)", ""), ("char(5)", "")],
    ),
    spec(
        "varchar(20)",
        As::Text,
        &[
            ("empty", "''"),
            ("spaces at the end", "'a  '"),
            ("euro, ü", "'€ü'"),
            ("NULL as text", "'NULL'"),
            ("Ł", "'Ł'"),
            ("😀", "'😀'"),
        ],
        [("varchar(20)", ""), ("varchar(20)", ""), ("varchar(20) CHARACTER SET latin1", "")],
    ),
    spec(
        "text",
        As::Text,
        &[
            ("empty", "''"),
            ("quotes, backslash, controls", "E'\\x01\\t\\r\\n''\"\\\\`%_\\x7f'"),
            ("emoji of several", "'👨‍👩‍👧 ÅÅ مرحبا'"),
            ("100,000 characters", "repeat('ä', 100000)"),
        ],
        [("text", ""), ("longtext", ""), ("longtext", "")],
    ),
    spec(
        "bytea",
        As::Bytes,
        &[("empty", "''"), ("0x00", "'\\x00'"), ("0xff 0x00", "'\\xff00'"), ("0x27 0x5c", "'\\x275c'")],
        [("bytea", ""), ("longblob", ""), ("varbinary(20)", "")],
    ),
    spec(
        "date",
        As::Date,
        &[
            ("year 1", "'0001-01-01'"),
            ("year 9999", "'9999-12-31'"),
            ("44 BC", "'0044-03-15 BC'"),
            ("year 10000", "'10000-01-01'"),
            ("infinity", "'infinity'"),
            ("-infinity", "'-infinity'"),
        ],
        [("date", ""), ("date", ""), ("date", "")],
    ),
    spec(
        "time",
        As::Time,
        &[("00:00", "'00:00'"), ("last microsecond", "'23:59:59.999999'"), ("24:00", "'24:00'")],
        [("time", ""), ("time(6)", ""), ("time(6)", "")],
    ),
    spec(
        "timetz",
        As::Text,
        &[("+05:30", "'12:34:56.789+05:30'")],
        [("timetz", ""), ("varchar(40)", TEXT), ("varchar(40)", TEXT)],
    ),
    spec(
        "timestamp",
        As::Instant,
        &[
            ("year 1", "'0001-01-01 00:00:00.000001'"),
            ("year 9999", "'9999-12-31 23:59:59.999999'"),
            ("44 BC", "'0044-03-15 00:00:00 BC'"),
            ("infinity", "'infinity'"),
        ],
        [("timestamp", ""), ("datetime(6)", ""), ("datetime(6)", "")],
    ),
    spec(
        "timestamptz",
        As::Instant,
        &[
            ("1970", "'1970-01-01 00:00:01Z'"),
            ("with an offset", "'2024-03-31 02:30:00.000001+05:30'"),
            ("2038", "'2038-01-19 03:14:07.999999Z'"),
            ("1960", "'1960-01-01 00:00:00Z'"),
            ("-infinity", "'-infinity'"),
        ],
        [("timestamptz", ""), ("timestamp(6) NULL", ""), ("datetime(6)", "as UTC")],
    ),
    spec(
        "interval",
        As::Text,
        &[
            ("mixed signs", "'1 year 2 mons -3 days 04:05:06.7'"),
            ("zero", "'0'"),
            ("months and days apart", "'1 mon 30 days'"),
            ("178,000,000 years", "'-178000000 years'"),
        ],
        [("interval", ""), ("varchar(60)", TEXT), ("varchar(60)", TEXT)],
    ),
    spec(
        "uuid",
        As::Uuid,
        &[("zeros", "'00000000-0000-0000-0000-000000000000'"), ("mixed", "'A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11'")],
        [("uuid", ""), ("char(36)", TEXT), ("uuid", "")],
    ),
    spec(
        "json",
        As::Json,
        &[
            ("30-digit number", "'[123456789012345678901234567890]'"),
            ("30 decimals", "'[0.123456789012345678901234567890]'"),
            ("2^64−1", "'[18446744073709551615, -9223372036854775808]'"),
            ("deep", "(repeat('[', 30) || repeat(']', 30))::json"),
            ("40 levels", "(repeat('[', 40) || repeat(']', 40))::json"),
            ("null", "'null'"),
            ("text", "'\"x\\\"y\\\\z\\n😀\"'"),
            ("1.50", "'{\"a\": 1.50, \"\": {}}'"),
        ],
        [("json", ""), ("json", JSON), ("json", JSON)],
    ),
    spec(
        "jsonb",
        As::Json,
        &[
            ("30-digit number", "'[123456789012345678901234567890]'"),
            ("2^64−1", "'[18446744073709551615]'"),
            ("1.50", "'{\"b\": 1.50, \"a\": [true, null, \"\"]}'"),
            ("null", "'null'"),
        ],
        [("jsonb", ""), ("json", JSON), ("json", JSON)],
    ),
    spec(
        "mood (an enum)",
        As::Text,
        &[("ö", "'größer'"), ("quote", "'it''s'")],
        [("mood", ""), ("enum('new','größer','it''s')", ""), ("varchar(20)", TEXT)],
    ),
    spec(
        "bit(10)",
        As::Bits,
        &[("zeros", "B'0000000000'"), ("ones", "B'1111111111'"), ("1 at both ends", "B'1000000001'")],
        [("bit(10)", ""), ("bit(10)", ""), ("bit(10)", "")],
    ),
    spec(
        "varbit",
        As::Text,
        &[("empty", "B''"), ("00101", "B'00101'")],
        [("varbit", ""), ("varchar(80)", TEXT), ("varchar(80)", TEXT)],
    ),
    spec(
        "inet",
        As::Text,
        &[
            ("host", "'10.0.0.1'"),
            ("with mask", "'10.0.0.1/8'"),
            ("IPv6", "'2001:db8::1'"),
            ("mapped", "'::ffff:1.2.3.4'"),
        ],
        [("inet", ""), ("varchar(50)", TEXT), ("varchar(50)", TEXT)],
    ),
    spec(
        "cidr",
        As::Text,
        &[("network", "'10.1.0.0/16'")],
        [("cidr", ""), ("varchar(50)", TEXT), ("varchar(50)", TEXT)],
    ),
    spec(
        "macaddr",
        As::Text,
        &[("any", "'08-00-2b-01-02-03'")],
        [("macaddr", ""), ("varchar(50)", TEXT), ("varchar(50)", TEXT)],
    ),
    spec(
        "int4range",
        As::Text,
        &[("closed", "'[1,3]'"), ("empty", "'empty'"), ("unbounded", "'(,)'")],
        [("int4range", ""), ("varchar(50)", TEXT), ("varchar(50)", TEXT)],
    ),
    spec(
        "tstzmultirange",
        As::Text,
        &[("two", "'{[2024-01-01 00:00+00,2024-01-02 00:00+00),[2025-01-01 00:00+00,infinity)}'")],
        [("tstzmultirange", ""), ("varchar(200)", TEXT), ("varchar(200)", TEXT)],
    ),
    spec(
        "tsvector",
        As::Text,
        &[("positions", "to_tsvector('simple', 'a fat cat''s hat')")],
        [("tsvector", ""), ("varchar(200)", TEXT), ("varchar(200)", TEXT)],
    ),
    spec("xml", As::Text, &[("document", "'<a b=\"1\">é</a>'")], [("xml", ""), ("longtext", TEXT), ("longtext", TEXT)]),
    spec(
        "money",
        As::Text,
        &[("max", "'92233720368547758.07'"), ("negative", "'-1.5'")],
        [("money", ""), ("varchar(40)", TEXT), ("varchar(40)", TEXT)],
    ),
    spec(
        "point",
        As::Text,
        &[("fractions", "'(0.1,-2)'")],
        [("point", ""), ("varchar(80)", TEXT), ("varchar(80)", TEXT)],
    ),
    spec(
        "pg_lsn",
        As::Text,
        &[("any", "'16/B374D848'")],
        [("pg_lsn", ""), ("varchar(20)", TEXT), ("varchar(20)", TEXT)],
    ),
    spec(
        "pair (a composite)",
        As::Text,
        &[("NULL inside", "ROW(NULL, 'a \"b\" (c), d')::pair"), ("all NULL inside", "ROW(NULL, NULL)::pair")],
        [("pair", ""), ("varchar(80)", TEXT), ("varchar(80)", TEXT)],
    ),
    spec("email (a domain)", As::Text, &[("any", "'a@b'")], [("email", ""), ("varchar(40)", ""), ("varchar(40)", "")]),
    spec(
        "cents (a domain)",
        As::Number,
        &[("max", "9999999999.99")],
        [("cents", ""), ("decimal(12,2)", ""), ("decimal(12,2)", "")],
    ),
    spec(
        "integer[]",
        As::Json,
        &[
            ("NULL inside", "'{1,NULL,-3}'"),
            ("empty", "'{}'"),
            ("2 dimensions", "'{{1,2},{3,4}}'"),
            ("own lower bound", "'[0:1]={5,6}'"),
        ],
        [("integer[]", ""), ("json", ARRAY), ("json", ARRAY)],
    ),
    spec(
        "text[]",
        As::Json,
        &[
            ("NULL and \"NULL\"", "ARRAY[NULL, 'NULL', 'null', '']"),
            ("quotes, braces", "ARRAY['a\"b', '{x,y}', E'back\\\\slash', ' ', E'\\t', '😀']"),
            ("2 dimensions", "'{{a,NULL},{\"\",d}}'"),
        ],
        [("text[]", ""), ("json", ARRAY), ("json", ARRAY)],
    ),
    spec(
        "numeric[]",
        As::Json,
        &[
            ("15 digits", "'{1.50,-123456789012.345}'"),
            ("30 digits", "'{123456789012345678901234567890.1}'"),
            ("NaN", "'{NaN}'"),
        ],
        [("numeric[]", ""), ("json", ARRAY), ("json", ARRAY)],
    ),
    spec(
        "double precision[]",
        As::Json,
        &[("large, small", "'{1e+20,1e-05,0.1,5e-324}'"), ("Infinity", "'{Infinity}'")],
        [("double precision[]", ""), ("json", ARRAY), ("json", ARRAY)],
    ),
    spec(
        "boolean[]",
        As::Json,
        &[("with NULL", "'{t,f,NULL}'")],
        [("boolean[]", ""), ("json", ARRAY), ("json", ARRAY)],
    ),
    spec(
        "jsonb[]",
        As::Json,
        &[
            ("documents", "ARRAY['{\"a\": [1, 2]}', '\"x\"', NULL]::jsonb[]"),
            ("2 dimensions", "ARRAY[ARRAY['1']]::jsonb[]"),
        ],
        [("jsonb[]", ""), ("json", ARRAY), ("json", ARRAY)],
    ),
    spec(
        "mood[]",
        As::Json,
        &[("labels", "'{größer,it''s,NULL}'")],
        [("mood[]", ""), ("json", ARRAY), ("json", ARRAY)],
    ),
    spec("date[]", As::Json, &[("days", "'{2024-02-29,NULL}'")], [("date[]", ""), ("json", ARRAY), ("json", ARRAY)]),
];

/// Of MySQL and MariaDB alike.
pub const MYSQL: &[Spec] = &[
    spec(
        "tinyint(1)",
        As::Bool,
        &[("0", "0"), ("1", "1"), ("2", "2"), ("-1", "-1")],
        [("boolean", ""), ("tinyint(1)", ""), ("bit(1)", "")],
    ),
    spec(
        "tinyint unsigned",
        As::Number,
        &[("max", "255")],
        [("smallint", ""), ("tinyint unsigned", ""), ("tinyint unsigned", "")],
    ),
    spec("mediumint", As::Number, &[("min", "-8388608")], [("integer", ""), ("mediumint", ""), ("mediumint", "")]),
    spec(
        "int unsigned",
        As::Number,
        &[("max", "4294967295")],
        [("bigint", ""), ("int unsigned", ""), ("int unsigned", "")],
    ),
    spec(
        "bigint unsigned",
        As::Number,
        &[("2^64−1", "18446744073709551615"), ("2^63", "9223372036854775808"), ("0", "0")],
        [("numeric(20)", ""), ("bigint unsigned", ""), ("bigint unsigned", "")],
    ),
    spec(
        "bigint",
        As::Number,
        &[("min", "-9223372036854775808"), ("2^63−1", "9223372036854775807")],
        [("bigint", ""), ("bigint", ""), ("bigint unsigned", "")],
    ),
    spec(
        "decimal(65,30)",
        As::Number,
        &[
            ("65 digits", "-99999999999999999999999999999999999.999999999999999999999999999999"),
            ("10^-30", "0.000000000000000000000000000001"),
        ],
        [("numeric", ""), ("decimal(65,30)", ""), ("decimal(65,30)", "")],
    ),
    spec(
        "decimal(65,0)",
        As::Number,
        &[("65 digits", "99999999999999999999999999999999999999999999999999999999999999999")],
        [("numeric(65)", ""), ("decimal(65,0)", ""), ("decimal(65,0)", "")],
    ),
    spec(
        "float",
        As::Float,
        &[
            ("0.1", "0.1"),
            ("max", "3.4028234663852886e38"),
            ("least subnormal", "1.401298464324817e-45"),
            ("16777217/3", "16777217/3e0"),
        ],
        [("real", ""), ("float", ""), ("float", "")],
    ),
    spec(
        "double",
        As::Float,
        &[
            ("0.1", "0.1e0"),
            ("max", "1.7976931348623157e308"),
            ("least normal", "2.2250738585072014e-308"),
            ("-0", "-0e0"),
        ],
        [("double precision", ""), ("double", ""), ("double", "−0 becomes 0")],
    ),
    spec(
        "char(5)",
        As::Text,
        &[("empty", "''"), ("padded", "'ab '"), ("4-byte characters", "'😀漢字'")],
        [("char(5)", ""), ("char(5)", ""), ("varchar(5)", "")],
    ),
    spec(
        "varchar(20) CHARACTER SET latin1",
        As::Text,
        &[("empty", "''"), ("euro, ü", "'€ü'"), ("byte 0x81", "_latin1 x'81'"), ("spaces at the end", "'a  '")],
        [("text", ""), ("varchar(20)", ""), ("varchar(20) CHARACTER SET latin1", "")],
    ),
    spec(
        "varchar(20) CHARACTER SET cp1251",
        As::Text,
        &[("Cyrillic", "'Привет'"), ("byte 0x98", "_cp1251 x'98'")],
        [("text", ""), ("varchar(20)", ""), ("varchar(20) CHARACTER SET latin1", "")],
    ),
    spec(
        "varchar(20) CHARACTER SET utf16",
        As::Text,
        &[("4-byte characters", "'😀漢字'")],
        [("text", ""), ("varchar(20)", ""), ("varchar(20) CHARACTER SET utf16", "")],
    ),
    spec(
        "varchar(20) CHARACTER SET utf8mb3",
        As::Text,
        &[("3-byte characters", "'漢字'")],
        [("text", ""), ("varchar(20) CHARACTER SET ucs2", ""), ("varchar(20)", "")],
    ),
    spec(
        "longtext",
        As::Text,
        &[
            ("empty", "''"),
            ("quotes, controls", "'\\t\\r\\n''\"\\\\`%_'"),
            ("NUL inside", "CONCAT('a', CHAR(0), 'b')"),
            ("100,000 characters", "repeat('ä', 100000)"),
            ("😀", "'😀'"),
        ],
        [("text", ""), ("longtext", ""), ("longtext", "")],
    ),
    spec(
        "binary(4)",
        As::Bytes,
        &[("zeros at the end", "x'0700'"), ("empty", "''")],
        [("bytea", ""), ("binary(4)", ""), ("binary(4)", "")],
    ),
    spec(
        "longblob",
        As::Bytes,
        &[("empty", "''"), ("0x00 0xff", "x'00ff'"), ("0x27 0x5c", "x'275c'"), ("zeros at the end", "x'010000'")],
        [("bytea", ""), ("longblob", ""), ("longblob", "")],
    ),
    spec(
        "date",
        As::Date,
        &[
            ("year 1", "'0001-01-01'"),
            ("year 9999", "'9999-12-31'"),
            ("0000-00-00", "'0000-00-00'"),
            ("2024-00-10", "'2024-00-10'"),
        ],
        [("date", ""), ("date", ""), ("date", "")],
    ),
    spec(
        "datetime(6)",
        As::Instant,
        &[
            ("year 1", "'0001-01-01 00:00:00.000001'"),
            ("year 9999", "'9999-12-31 23:59:59.999999'"),
            ("0000-00-00 00:00:00", "'0000-00-00 00:00:00'"),
            ("2024-10-00", "'2024-10-00 12:00:00'"),
        ],
        [("timestamp", ""), ("datetime(6)", ""), ("datetime(6)", "")],
    ),
    spec(
        "timestamp(6) NULL",
        As::Instant,
        &[
            ("1970", "'1970-01-01 00:00:01.000001'"),
            ("2038", "'2038-01-19 03:14:07.999999'"),
            ("0000-00-00 00:00:00", "'0000-00-00 00:00:00'"),
        ],
        [("timestamptz", ""), ("timestamp(6) NULL", ""), ("timestamp(6) NULL", "")],
    ),
    spec(
        "time(6)",
        As::Time,
        &[
            ("−838:59:59", "'-838:59:59'"),
            ("838:59:59", "'838:59:59'"),
            ("−1 microsecond", "'-00:00:00.000001'"),
            ("24:00", "'24:00:00'"),
        ],
        [("time", ""), ("time(6)", ""), ("time(6)", "")],
    ),
    spec(
        "year",
        As::Number,
        &[("0", "0"), ("1901", "1901"), ("2155", "2155")],
        [("smallint", ""), ("year", ""), ("year", "")],
    ),
    spec("bit(1)", As::Bool, &[("0", "b'0'"), ("1", "b'1'")], [("boolean", ""), ("bit(1)", ""), ("tinyint(1)", "")]),
    spec(
        "bit(10)",
        As::Bits,
        &[("zeros", "b'0'"), ("1 at both ends", "b'1000000001'")],
        [("bit(10)", ""), ("bit(10)", ""), ("bit(10)", "")],
    ),
    spec("bit(64)", As::Bits, &[("ones", "~0"), ("1", "1")], [("varbit", ""), ("bit(64)", ""), ("bit(64)", "")]),
    spec(
        "enum('new','größer','it''s') CHARACTER SET latin1",
        As::Text,
        &[("ö", "'größer'"), ("quote", "'it''s'"), ("number 0, which is no label", "0")],
        [("text", TEXT), ("enum('new','größer','it''s')", ""), ("enum('größer','new','it''s')", "")],
    ),
    spec(
        "set('a','ö','c')",
        As::Text,
        &[("none", "''"), ("some", "'c,a'"), ("all", "7")],
        [("text", TEXT), ("set('a','ö','c')", ""), ("set('a','ö','c') CHARACTER SET latin1", "")],
    ),
    spec(
        "json",
        As::Json,
        &[
            ("2^64−1", "'[18446744073709551615, -9223372036854775808, 0.1, 1e300]'"),
            ("deep", "CONCAT(REPEAT('[', 30), REPEAT(']', 30))"),
            ("text", "'{\"a\": \"x\\\\\"y\\\\\\\\z😀\", \"\": [true, null, {}]}'"),
            ("null", "'null'"),
            ("NUL inside", "'[\"\\\\u0000\"]'"),
        ],
        [("jsonb", JSON), ("json", JSON), ("json", JSON)],
    ),
    spec(
        "geometry",
        As::Bytes,
        &[
            ("point in SRID 4326", "x'E6100000010100000000000000000024400000000000003440'"),
            ("line", "ST_GeomFromText('LINESTRING(0 0,1.5 -2)')"),
        ],
        [("bytea", "as SRID and WKB"), ("geometry", ""), ("geometry", "")],
    ),
];

pub const MYSQL_ALONE: &[Spec] = &[
    spec(
        "vector(3)",
        As::Bytes,
        &[("3 floats", "STRING_TO_VECTOR('[1,-0.5,3e38]')")],
        [("bytea", "as floats of four bytes"), ("vector(3)", ""), ("varbinary(12)", "as floats of four bytes")],
    ),
    spec(
        "json",
        As::Json,
        &[("null, 1.0", "'{\"b\": 1.0, \"a\": null}'"), ("date inside", "JSON_ARRAY(CAST('2024-02-29' AS DATE))")],
        [("json", JSON), ("json", JSON), ("longtext", TEXT)],
    ),
];

pub const MARIADB_ALONE: &[Spec] = &[
    spec(
        "uuid",
        As::Uuid,
        &[("zeros at the end", "'a0eebc99-9c0b-4ef8-bb6d-000000000000'")],
        [("uuid", ""), ("binary(16)", "in bytes"), ("uuid", "")],
    ),
    spec(
        "longtext COMPRESSED CHARACTER SET latin1",
        As::Text,
        &[
            ("empty", "''"),
            ("short", "'€ü'"),
            ("300 characters", "REPEAT('ü', 300)"),
            ("70,000 characters", "REPEAT('€', 70000)"),
        ],
        [("text", ""), ("longtext", ""), ("longtext COMPRESSED", "")],
    ),
    spec(
        "varbinary(300) COMPRESSED",
        As::Bytes,
        &[("short", "x'00ff'"), ("300 bytes", "REPEAT(x'00', 300)")],
        [("bytea", ""), ("longblob", ""), ("blob COMPRESSED", "")],
    ),
    spec(
        "inet6",
        As::Address,
        &[
            ("short", "'::1'"),
            ("full", "'2001:db8::ff00:42:8329'"),
            ("mapped", "'::ffff:1.2.3.4'"),
            ("all zeros", "'::'"),
        ],
        [("inet", ""), ("varchar(45)", "as PostgreSQL spells it"), ("inet6", "")],
    ),
    spec(
        "inet4",
        As::Text,
        &[("zeros at the end", "'10.1.0.0'")],
        [("inet", ""), ("varchar(15)", TEXT), ("inet4", "")],
    ),
    spec(
        "json",
        As::Json,
        &[
            ("30-digit number", "'[123456789012345678901234567890]'"),
            ("30 decimals", "'[0.123456789012345678901234567890]'"),
        ],
        [("jsonb", JSON), ("json", JSON), ("json", "")],
    ),
];

/// Pairs that `check` refuses: engine and type, engine and type, a part of what it says.
pub const REFUSED: &[(&str, &str, &str, &str, &str)] = &[
    ("pg", "text", "my", "longblob", "no exact common form"),
    ("pg", "date", "my", "datetime", "no exact common form"),
    ("pg", "interval", "my", "time", "no exact common form"),
    ("pg", "text", "my", "int", "no exact common form"),
    ("pg", "bit(8)", "my", "int", "no exact common form"),
    ("pg", "bit(2)", "my", "tinyint(1)", "no exact common form"),
    ("pg", "point", "my", "point", "no exact common form"),
    ("pg", "integer[]", "my", "int", "no exact common form"),
    ("pg", "uuid", "my", "char(32)", "no exact common form"),
    ("pg", "regclass", "my", "text", "cannot be carried"),
    ("pg", "numeric(5,-2)", "my", "decimal(5,0)", "cannot be carried"),
    ("my", "float(7,2)", "pg", "real", "cannot be carried"),
    ("my", "varchar(9) CHARACTER SET gbk", "pg", "text", "cannot be carried"),
    ("my", "varchar(9) CHARACTER SET swe7", "pg", "text", "cannot be carried"),
];
