//! The type matrix: hard values of every type, written in each engine, carried by the running
//! agent, and read in each other one by the servers' own rendering. `TYPES.md` is what was seen;
//! a value that arrived as another one fails, whatever the page says.
//!
//! `make types` writes the page anew.

mod copied;
mod spec;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use self::spec::{As, MARIADB_ALONE, MYSQL, MYSQL_ALONE, POSTGRES, POSTGRES_TYPES, REFUSED, Spec};
use super::support::quarantine::{list, refused, settled};
use super::support::servers::{Kind, Session};
use super::support::world::{Builder, Entity, Type, World, one_spelling};

const SYSTEMS: [(&str, Kind); 6] = [
    ("pg", Kind::Postgres17),
    ("my", Kind::Mysql),
    ("ma", Kind::Mariadb),
    ("pg2", Kind::Postgres15),
    ("my2", Kind::Mysql),
    ("ma2", Kind::Mariadb11),
];

/// One engine as a source: its system, the entity, and who receives it, in the order of
/// [`Spec::to`].
struct Source {
    system: &'static str,
    entity: &'static str,
    title: &'static str,
    targets: [&'static str; 3],
    specs: Vec<&'static Spec>,
}

fn sources() -> [Source; 3] {
    let source = |system, entity, title, targets, lists: &[&'static [Spec]]| Source {
        system,
        entity,
        title,
        targets,
        specs: lists.iter().copied().flatten().collect(),
    };
    [
        source("pg", "pg_types", "PostgreSQL", ["pg2", "my", "ma"], &[POSTGRES]),
        source("my", "my_types", "MySQL", ["pg", "my2", "ma"], &[MYSQL, MYSQL_ALONE]),
        source("ma", "ma_types", "MariaDB", ["pg", "my", "ma2"], &[MYSQL, MARIADB_ALONE]),
    ]
}

fn kind(system: &str) -> Kind {
    SYSTEMS.iter().find(|(name, _)| *name == system).unwrap().1
}

/// `mood (an enum)` → `mood`
fn ddl(text: &str) -> &str {
    text.split(" (a").next().unwrap()
}

/// What a server is asked for, so that equal answers mean equal values.
fn rendered(read: As, kind: Kind, ty: &str, column: &str) -> String {
    let postgres = kind.is_postgres();
    let text_of = |column: &str| match postgres {
        // The output function; some casts to text say something else (inet).
        true => format!(
            "CASE WHEN num_nulls({column}) = 0 THEN encode(convert_to(format('%s', {column}), 'UTF8'), 'hex') END"
        ),
        false => format!("lower(hex(cast({column} AS char CHARACTER SET utf8mb4)))"),
    };
    match read {
        // Padding is no part of it.
        As::Text if postgres && ty.starts_with("char(") => format!("encode(convert_to({column}::text, 'UTF8'), 'hex')"),
        As::Text => text_of(column),
        As::Address if postgres => format!("host({column})"),
        As::Address => format!("cast({column} AS char)"),
        As::Uuid if ty == "binary(16)" => format!("lower(hex({column}))"),
        As::Uuid => format!("lower(cast({column} AS char(36)))"),
        As::Bytes if postgres => format!("encode({column}, 'hex')"),
        As::Bytes => format!("lower(hex({column}))"),
        As::Json if postgres && ty.ends_with("[]") => format!("to_json({column})::text"),
        As::Number | As::Json | As::Date if postgres => format!("{column}::text"),
        As::Number | As::Json | As::Date => format!("cast({column} AS char CHARACTER SET utf8mb4)"),
        As::Float if postgres => format!("{column}::float8::text"),
        As::Float => format!("cast({column} AS double)"),
        As::Bool if postgres && ty == "boolean" => format!("{column}::int::text"),
        As::Bool => format!("cast({column} + 0 AS char)"),
        As::Time if postgres => format!("to_char({column}, 'HH24:MI:SS.US')"),
        As::Time => format!("time_format({column}, '%H:%i:%s.%f')"),
        As::Instant if postgres => format!(
            "CASE WHEN isfinite({column}) THEN to_char({column}, 'YYYY-MM-DD HH24:MI:SS.US BC') ELSE {column}::text END"
        ),
        // All of six digits.
        As::Instant => format!("concat(cast({column} AS char), ' AD')"),
        As::Bits if postgres => format!("{column}::text"),
        As::Bits => {
            let length = ty.trim_start_matches("bit(").trim_end_matches(')');
            format!("lpad(bin({column} + 0), {length}, '0')")
        }
    }
}

/// Between two servers of one engine: their own text, whatever the type.
fn native(read: As, kind: Kind, ty: &str, column: &str) -> String {
    match kind.is_postgres() && !matches!(read, As::Bytes) {
        true => format!("CASE WHEN num_nulls({column}) = 0 THEN format('%s', {column}) END"),
        false => rendered(read, kind, ty, column),
    }
}

fn same(read: As, how: &str, source: &str, target: &str) -> bool {
    let number = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.trim_start_matches('0').to_owned(),
    };
    match read {
        As::Number => number(source) == number(target),
        As::Float => {
            let (source, target): (f64, f64) = (source.parse().unwrap(), target.parse().unwrap());
            source.to_bits() == target.to_bits() || (source == target && how.contains('−'))
        }
        As::Uuid => source.replace('-', "") == target.replace('-', ""),
        As::Json => {
            let document = |text: &str| one_spelling(serde_json::from_str(text).unwrap());
            document(source) == document(target)
        }
        As::Address => {
            let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
            address(source) == address(target)
        }
        _ => source == target,
    }
}

async fn session(world: &World, system: &str) -> Session {
    let mut session = world[system].session().await;
    session
        .execute(match kind(system).is_postgres() {
            true => "SET TimeZone = 'UTC'; SET IntervalStyle = 'iso_8601'; SET bytea_output = 'hex'",
            // Zero dates and labels that are none can be written.
            false => "SET time_zone = '+00:00', sql_mode = ''",
        })
        .await;
    session
}

fn builder() -> Builder {
    let mut builder = World::of(&SYSTEMS).system_option("my2", "marker = \"MARKER.marker_my2\"");
    for source in sources() {
        let systems: Vec<&str> = std::iter::once(source.system).chain(source.targets).collect();
        let mut entity = Entity::new(source.entity).key("id", Type::Int).only(&systems);
        for (at, system) in systems.iter().enumerate() {
            entity = entity.option_in(system, if at == 0 { "role = \"source\"" } else { "role = \"target\"" });
        }
        builder = builder.entity(entity);
    }
    for system in ["pg", "pg2"] {
        builder = builder.ddl(system, POSTGRES_TYPES);
    }
    for source in sources() {
        for (at, system) in std::iter::once(source.system).chain(source.targets).enumerate() {
            let column = |(number, spec): (usize, &&Spec)| {
                format!("ADD c{number} {}", if at == 0 { ddl(spec.ddl) } else { spec.to[at - 1].0 })
            };
            let columns: Vec<String> = source.specs.iter().enumerate().map(column).collect();
            builder = builder.ddl(system, &format!("ALTER TABLE {} {}", source.entity, columns.join(", ")));
        }
    }
    builder
}

/// Key → (column, value) of each value, in the order in which they are written.
fn numbered(source: &Source) -> Vec<(usize, usize)> {
    source.specs.iter().enumerate().flat_map(|(c, spec)| (0..spec.values.len()).map(move |v| (c, v))).collect()
}

/// One row per value, keys from `first` on; every second one comes as an update of a row of NULLs.
async fn write(world: &World, source: &Source, first: usize) {
    let mut session = session(world, source.system).await;
    for (at, (column, value)) in numbered(source).into_iter().enumerate() {
        let key = first + at;
        let spec = source.specs[column];
        let (table, literal) = (source.entity, spec.values[value].1);
        let cast = if kind(source.system).is_postgres() { format!("::{}", ddl(spec.ddl)) } else { String::new() };
        let sql = match at % 2 {
            0 => format!("INSERT INTO {table} (id, c{column}) VALUES ({key}, ({literal}){cast})"),
            _ => {
                session.execute(&format!("INSERT INTO {table} (id) VALUES ({key})")).await;
                format!("UPDATE {table} SET c{column} = ({literal}){cast} WHERE id = {key}")
            }
        };
        session.execute(&sql).await;
    }
}

/// All values as one system has them, by key and column.
async fn read(
    world: &World,
    source: &Source,
    system: &str,
    of: impl Fn(&Spec) -> String,
) -> BTreeMap<usize, Vec<Option<String>>> {
    let columns: Vec<String> = source
        .specs
        .iter()
        .enumerate()
        .map(|(number, spec)| of(spec).replace("COLUMN", &format!("c{number}")))
        .collect();
    let sql = format!("SELECT id, {} FROM {}", columns.join(", "), source.entity);
    let rows = session(world, system).await.rows(&sql).await;
    rows.into_iter().map(|mut row| (row.remove(0).unwrap().parse().unwrap(), row)).collect()
}

/// Per column the labels that did not reach the target; whatever did is equal.
async fn seen(world: &World, source: &Source, place: usize, set_aside: &[String]) -> Vec<Vec<&'static str>> {
    let target = source.targets[place];
    let (from, to) = (kind(source.system), kind(target));
    let one_engine = from.is_postgres() && to.is_postgres();
    let expression = if one_engine { native } else { rendered };
    let written = read(world, source, source.system, |spec| expression(spec.read, from, ddl(spec.ddl), "COLUMN")).await;
    let arrived = read(world, source, target, |spec| expression(spec.read, to, spec.to[place].0, "COLUMN")).await;
    let mut missing = vec![Vec::new(); source.specs.len()];
    let mut wrong = Vec::new();
    for (key, (column, value)) in numbered(source).into_iter().enumerate() {
        let spec = source.specs[column];
        let (label, _) = spec.values[value];
        let what = format!("{} {} {label:?} in {target} ({})", source.title, spec.ddl, spec.to[place].0);
        let original = written[&key][column].as_deref().unwrap_or_else(|| panic!("{what} was written"));
        let held = set_aside.iter().any(|line| *line == format!("{target} {} {key}", source.entity))
            || set_aside.iter().any(|line| *line == format!("{} {} {key}", source.system, source.entity));
        match arrived.get(&key) {
            Some(row) if row.iter().enumerate().any(|(at, v)| at != column && v.is_some()) => {
                wrong.push(format!("{what}: NULL of another column became a value: {row:?}"));
            }
            Some(row) => match (&row[column], held) {
                (Some(there), false) => {
                    let read = if one_engine && spec.read != As::Bytes { As::Text } else { spec.read };
                    if !same(read, spec.to[place].1, original, there) {
                        wrong.push(format!("{what}: {original:.80} became {there:.80}"));
                    }
                }
                (None, true) => missing[column].push(label),
                (there, held) => wrong.push(format!("{what}: {there:?}, held: {held}")),
            },
            None if held => missing[column].push(label),
            None => wrong.push(format!("{what}: is not there, and nobody holds it")),
        }
    }
    assert!(wrong.is_empty(), "silently different:\n{}", wrong.join("\n"));
    missing
}

/// `**exact**; quarantined: NaN, Infinity`
fn cell(spec: &Spec, place: usize, missing: &[&str]) -> String {
    let (ty, how) = spec.to[place];
    let mut cell = format!("`{ty}` ");
    cell += &if how.is_empty() { "exact".to_owned() } else { format!("converted: {how}") };
    if !missing.is_empty() {
        let _ = write!(cell, "; *quarantined:* {}", missing.join(", "));
    }
    cell
}

const HEAD: &str = "# The type matrix

What becomes of a value of each type in each engine, as a test saw it that writes the values named here in one engine, lets the agent
carry them, and reads them in the others by the servers' own rendering (`tests/matrix.rs`; `make types` writes this page anew). *Exact*
means the same value: the same characters, bytes, bits or digits; *converted* says in which form. A value that a column cannot hold is
*quarantined* there, shown with its reason, never altered. Pairs of types without an exact common form are refused by `check`.

- Types that PostgreSQL alone has travel as the text that its output function writes. Text that such a type would write otherwise
  (`10.0.0.1/32` into `inet`) is quarantined, not normalised.
- Arrays are JSON elsewhere: nested arrays, `null`, numbers digit for digit. Lower bounds of their own, NaN and infinity have no form there.
- Geometry is SRID (four bytes, low one first) and WKB, as MySQL and MariaDB store it.
- Text is in the column's own character set: every single-byte set but swe7, UTF-8, UTF-16, UTF-32, ucs2.
- `0000-00-00` and infinity go where they exist; `zero_date`, `infinity` and `minus_infinity` of a column say what stands for them elsewhere.
  Dates such as 2024-00-10 and 2024-02-31 go between MySQL and MariaDB as they are; for PostgreSQL they are quarantined until they are completed.
- `-0` is `0` to MariaDB, which has no other.
- A field has one kind in all systems: a `tinyint(1)` that is `boolean` in one of them holds 0 and 1.
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_value_of_any_type_is_silently_different_in_another_engine() {
    let mut world = builder().start().await;
    for source in sources() {
        write(&world, &source, 0).await;
    }
    settled(&world).await;

    let mut set_aside: Vec<String> =
        list(&world).await.unwrap().iter().map(|h| format!("{} {} {}", h.system, h.entity, h.key)).collect();
    let mut tables = BTreeMap::new();
    // What a source cannot say stands in the journal alone, which the agent has open.
    world.agent.stop().await;
    set_aside.extend(refused(&world).iter().map(|line| line.split(" … ").next().unwrap().to_owned()));
    for (at, source) in sources().iter().enumerate() {
        let mut missing = Vec::new();
        for place in 0..3 {
            missing.push(seen(&world, source, place, &set_aside).await);
        }
        tables.insert(at, missing);
    }
    let page = page(&tables);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/TYPES.md");
    if std::env::var_os("ANECHOIC_WRITE_TYPES").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let differs = committed.lines().zip(page.lines()).find(|(committed, seen)| committed != seen);
    assert!(committed == page, "TYPES.md is not what was seen; `make types` writes it. First: {differs:#?}");
}

fn page(tables: &BTreeMap<usize, Vec<Vec<Vec<&'static str>>>>) -> String {
    let mut page = HEAD.to_owned();
    for (at, source) in sources().iter().enumerate() {
        let _ =
            write!(page, "\n## From {}\n\n| type | PostgreSQL | MySQL | MariaDB |\n|---|---|---|---|\n", source.title);
        for (column, spec) in source.specs.iter().enumerate() {
            let cells: Vec<String> = (0..3).map(|place| cell(spec, place, &tables[&at][place][column])).collect();
            let values: Vec<&str> = spec.values.iter().map(|(label, _)| *label).collect();
            let _ = writeln!(page, "| `{}`: {} | {} |", spec.ddl, values.join(", "), cells.join(" | "));
        }
    }
    page += "\n## Refused by `check`\n\n| type | with | why |\n|---|---|---|\n";
    let title = |system: &str| sources().iter().find(|source| source.system == system).unwrap().title;
    for (from, ty, to, other, why) in REFUSED {
        let _ = writeln!(page, "| {} `{ty}` | {} `{other}` | {why} |", title(from), title(to));
    }
    page
}

/// Pairs without an exact common form never begin to run.
#[tokio::test]
async fn types_that_no_exact_form_leads_between_are_refused_by_check() {
    let mut builder = World::of(&SYSTEMS[..3]);
    for (at, (from, ty, to, other, _)) in REFUSED.iter().enumerate() {
        let entity = Entity::new(&format!("pair{at}")).key("id", Type::Int).field("v", Type::Int).only(&[from, to]);
        builder = builder.entity(entity.stored(from, "v", ty).stored(to, "v", other));
    }
    let world = builder.build().await;

    let output = world.agent.command(&["check"]).await;

    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for (at, (.., why)) in REFUSED.iter().enumerate() {
        let name = format!("pair{at}");
        let lines: Vec<&str> = said.lines().collect();
        let found = lines
            .iter()
            .position(|line| line.contains(why) && line.split(|c: char| !c.is_alphanumeric()).any(|w| w == name))
            .or_else(|| {
                lines
                    .windows(2)
                    .position(|pair| pair.concat().contains(why) && pair.concat().contains(&format!("{name} ")))
            });
        assert!(found.is_some(), "{:?} is refused: {said}", REFUSED[at]);
    }
}
