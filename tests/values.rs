//! Every type of every engine, with the values that are hard for one of them: written in each,
//! equal in each other one; and what cannot be carried, which is set aside and never altered.

use super::support::quarantine::{held, refused, settled, until_held};
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};

const THREE: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

const LABELS: &[&str] = &["a", "größer", "it''s"];

fn fields() -> Vec<(&'static str, Type)> {
    vec![
        ("flag", Type::Bool),
        ("small", Type::SmallInt),
        ("n", Type::Int),
        ("big", Type::BigInt),
        ("un", Type::Unsigned),
        ("money", Type::Decimal(20, 6)),
        ("num", Type::Numeric),
        ("f", Type::Float),
        ("d", Type::Double),
        ("c", Type::Char(10)),
        ("v", Type::Varchar(40)),
        ("t", Type::Text),
        ("raw", Type::Bytes),
        ("vb", Type::Varbinary(300)),
        ("day", Type::Date),
        ("clock", Type::Time),
        ("at", Type::DateTime),
        ("instant", Type::Timestamp),
        ("u", Type::Uuid),
        ("u16", Type::Uuid16),
        ("doc", Type::Json),
        ("e", Type::Enum(LABELS)),
    ]
}

/// In the order of [`fields`]; bytes in hex.
fn rows() -> Vec<Vec<Option<String>>> {
    let row = |values: [&str; 22]| values.iter().map(|v| Some((*v).to_owned())).collect::<Vec<_>>();
    let every_byte: String = (0..=255).map(|byte| format!("{byte:02x}")).collect();
    let deep = format!("{}1{}", "[".repeat(30), "]".repeat(30));
    let zero = "00000000-0000-0000-0000-000000000000";
    let full = "ffffffff-ffff-ffff-ffff-ffffffffffff";
    let mut quarter = row([
        "f",
        "7",
        "-7",
        "7",
        "9223372036854775808",
        "-0.000001",
        "0.000000000000000000000000000001",
        "0.1",
        "0.1",
        "a b",
        "a  ",
        " \t\r\n%_'\"\\`",
        "00",
        "ff00",
        "2024-02-29",
        "12:34:56.789012",
        "2024-02-29 23:59:59.999999",
        "2001-09-09 01:46:40.000001",
        "0f8fad5b-d9cb-469f-a165-70867728950e",
        "0f8fad5b-d9cb-469f-a165-70867728950e",
        r#"{"a": {"b": [true, null, "x\"y\\z\n", "😀", 18446744073709551615, -9223372036854775808]}, "": 0.1}"#,
        "größer",
    ]);
    quarter[11] = Some(" \t\r\n%_'\"\\`$1 ?".into());
    vec![
        vec![None; 22],
        row([
            "f",
            "0",
            "0",
            "0",
            "0",
            "0.000000",
            "0",
            "0",
            "0",
            "",
            "",
            "",
            "",
            "",
            "0001-01-01",
            "00:00:00",
            "0001-01-01 00:00:00",
            "1970-01-01 00:00:01",
            zero,
            zero,
            "{}",
            "a",
        ]),
        row([
            "t",
            "32767",
            "2147483647",
            "9223372036854775807",
            "18446744073709551615",
            "99999999999999.999999",
            "99999999999999999999999999999999999.999999999999999999999999999999",
            "3.4028234663852886e38",
            "1.7976931348623157e308",
            "äöüß€𝄞😀漢字x",
            "Łukasz 😀👨‍👩‍👧 ÅÅ",
            "مرحبا \u{feff}\u{200b} שלום \u{1f600}",
            &every_byte,
            &every_byte,
            "9999-12-31",
            "23:59:59.999999",
            "9999-12-31 23:59:59.999999",
            "2038-01-19 03:14:07.999999",
            full,
            full,
            r#"[1.7976931348623157e308, 5e-324, 0.30000000000000004, -1.5E+10, 123456789012345678]"#,
            "it's",
        ]),
        row([
            "f",
            "-32768",
            "-2147483648",
            "-9223372036854775808",
            "1",
            "-99999999999999.999999",
            "-99999999999999999999999999999999999.999999999999999999999999999999",
            "-1.1754943508222875e-38",
            "-2.2250738585072014e-308",
            "0",
            "00",
            "'",
            "27",
            "5c",
            "1582-10-10",
            "00:00:00.000001",
            "1582-10-10 00:00:00.000001",
            "1970-01-01 00:00:01.000001",
            zero,
            full,
            &deep,
            "a",
        ]),
        quarter,
        row([
            "t",
            "1",
            "1",
            "1",
            "1",
            "1.500000",
            "1.50",
            "16777217",
            "9007199254740993",
            "NULL",
            "NULL",
            "NULL",
            "4e554c4c",
            "00",
            "1970-01-01",
            "12:00:00",
            "1969-12-31 23:59:59.999999",
            "2024-03-31 02:30:00",
            full,
            zero,
            r#""text""#,
            "größer",
        ]),
    ]
}

fn literal(kind: Kind, ty: &Type, value: &Option<String>) -> String {
    let Some(text) = value else { return "NULL".into() };
    let postgres = kind.is_postgres();
    match ty {
        Type::Bool if !postgres => u8::from(text == "t").to_string(),
        Type::Bytes | Type::Varbinary(_) if postgres => format!("'\\x{text}'"),
        Type::Bytes | Type::Varbinary(_) => format!("x'{text}'"),
        Type::Uuid16 if !postgres => format!("x'{}'", text.replace('-', "")),
        _ if postgres => format!("'{}'", text.replace('\'', "''")),
        _ => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''")),
    }
}

async fn insert(world: &World, system: &str, key: usize, row: &[Option<String>]) {
    let kind = world[system].kind;
    let values: Vec<String> = fields().iter().zip(row).map(|((_, ty), value)| literal(kind, ty, value)).collect();
    world[system].execute(&format!("INSERT INTO thing VALUES ({key}, {})", values.join(", "))).await;
}

async fn update(world: &World, system: &str, key: usize, row: &[Option<String>]) {
    let kind = world[system].kind;
    let set = |((name, ty), value): (&(&str, Type), &Option<String>)| format!("{name} = {}", literal(kind, ty, value));
    let sets: Vec<String> = fields().iter().zip(row).map(set).collect();
    world[system].execute(&format!("UPDATE thing SET {} WHERE id = {key}", sets.join(", "))).await;
}

#[tokio::test]
async fn every_type_is_equal_in_every_engine() {
    let mut thing = Entity::new("thing").key("id", Type::Int);
    for (name, ty) in fields() {
        thing = thing.field(name, ty);
    }
    let world = World::of(&THREE).entity(thing).start().await;
    let rows = rows();

    for (at, (system, _)) in THREE.iter().enumerate() {
        for (key, row) in rows.iter().enumerate() {
            insert(&world, system, at * 100 + key, row).await;
        }
    }
    world.quiet().await;
    assert_eq!(world.rows("thing", "erp").await.len(), 3 * rows.len());
    assert_eq!(held(&world).await, Vec::<String>::new());

    // each value becomes each other one, in a row that another system wrote
    for (at, (system, _)) in THREE.iter().enumerate() {
        for (key, row) in rows.iter().enumerate() {
            update(&world, THREE[(at + 1) % 3].0, at * 100 + (key + 1) % rows.len(), row).await;
            assert!(!system.is_empty());
        }
    }
    world.quiet().await;
    assert_eq!(held(&world).await, Vec::<String>::new());
    let nulls = world["crm"].value("SELECT count(*) FROM thing WHERE t IS NULL AND raw IS NULL").await;
    let empty = world["crm"].value("SELECT count(*) FROM thing WHERE t = '' AND raw = ''").await;
    assert_eq!((nulls.as_deref(), empty.as_deref()), (Some("3"), Some("3")));
}

/// One value that one system cannot hold: the row stays there as it was, is shown with its
/// reason and both images, and everything else goes on; mended at the source, it is mended there.
#[tokio::test]
async fn what_a_target_cannot_hold_is_set_aside_there_and_mended_by_the_next_change() {
    let thing = Entity::new("thing")
        .key("id", Type::Int)
        .field("d", Type::Double)
        .field("v", Type::Varchar(200))
        .field("n", Type::Int)
        .field("m", Type::Numeric)
        .field("day", Type::Date)
        .field("doc", Type::Json)
        .field("raw", Type::Bytes)
        .stored("shop", "v", "varchar(5)")
        .stored("shop", "n", "smallint")
        .stored("shop", "m", "decimal(10,2)")
        .stored("shop", "raw", "varbinary(2)")
        .stored("erp", "d", "float");
    let world = World::of(&THREE).entity(thing).start().await;
    // set, in which system, who holds it, why
    let cases: &[(&str, &str, &[&str], &str)] = &[
        ("d = 'NaN'", "crm", &["shop", "erp"], "NaN and Infinity do not exist"),
        ("m = 'NaN'", "crm", &["shop", "erp"], "NaN and Infinity do not exist as decimals"),
        ("day = 'infinity'", "crm", &["shop", "erp"], "infinity does not exist in MySQL"),
        ("day = '0000-00-00'", "erp", &["crm"], "the zero date 0000-00-00 does not exist in PostgreSQL"),
        ("day = '2024-00-10'", "erp", &["crm"], "complete it where it was written"),
        ("d = '-Infinity'", "crm", &["shop", "erp"], "NaN and Infinity do not exist"),
        ("d = 0.1", "crm", &["erp"], "not exact in single precision"),
        ("v = 'längere'", "crm", &["shop"], "7 characters into a column of at most 5"),
        ("n = 40000", "erp", &["shop"], "not within -32768 and 32767"),
        ("m = 1.234", "crm", &["shop"], "3 decimals, the column 2"),
        ("m = 123456789", "erp", &["shop"], "more digits than 10,2"),
        ("m = 1e-31", "crm", &["shop", "erp"], "decimals, the column"),
        ("day = '0044-03-15 BC'", "crm", &["shop", "erp"], "beyond what the column takes"),
        ("v = CONCAT('a', CHAR(0))", "erp", &["crm"], "no zero byte in text"),
        ("raw = x'010203'", "erp", &["shop"], "3 bytes into a column of at most 2"),
        ("doc = '[12345678901234567890123]'", "crm", &["shop"], "is not exact in a JSON document of MySQL"),
        ("doc = '[0.12345678901234567890123]'", "erp", &["shop"], "is not exact in a JSON document of MySQL"),
        ("doc = (repeat('[', 40) || repeat(']', 40))::jsonb", "crm", &["erp"], "4025"),
        ("doc = '[\"\\\\u0000\"]'", "erp", &["crm"], "22P05"),
    ];
    for key in 0..cases.len() {
        world["crm"]
            .execute(&format!("INSERT INTO thing VALUES ({key}, 1, 'good', 1, 1, '2024-01-01', '1', '')"))
            .await;
    }
    world.quiet().await;

    for (key, (set, system, ..)) in cases.iter().enumerate() {
        world[*system].execute(&format!("UPDATE thing SET {set} WHERE id = {key}")).await;
        world[*system].execute(&format!("INSERT INTO thing (id, v) VALUES ({}, 'next')", 100 + key)).await;
    }
    let expected: usize = cases.iter().map(|(_, _, holders, _)| holders.len()).sum();
    let list = until_held(&world, expected).await;

    for (key, (set, _, holders, reason)) in cases.iter().enumerate() {
        for (system, _) in THREE {
            let found = list.iter().find(|h| h.system == system && h.key == key.to_string());
            let row = world.rows("thing", system).await.into_iter().find(|r| r[0] == Some(key.to_string())).unwrap();
            let good = row[1..6].iter().map(|v| v.as_deref().unwrap_or("NULL")).collect::<Vec<_>>();
            if !holders.contains(&system) {
                assert!(found.is_none(), "{set} is not held by {system}: {found:?}");
                continue;
            }
            let found = found.unwrap_or_else(|| panic!("{set} is held by {system}: {list:#?}"));
            let said = format!("{} {}", found.reason, found.code);
            assert!(said.contains(reason), "{set} in {system}: {said}");
            assert!(found.before.as_ref().unwrap()["v"] == Some("good".into()), "{found:?}");
            assert!(found.after.is_some(), "{found:?}");
            assert!(good.starts_with(&["1.0", "good", "1"]) && good[4] == "2024-01-01", "{set} in {system}: {good:?}");
        }
    }
    for (system, _) in THREE {
        let others = world.rows("thing", system).await.iter().filter(|row| row[2] == Some("next".into())).count();
        assert_eq!(others, cases.len(), "{system}");
    }

    world["crm"]
        .execute("UPDATE thing SET d = 2, v = 'fine', n = 2, m = 2, day = '2024-01-02', doc = '2', raw = ''")
        .await;
    world.quiet().await;
    until_held(&world, 0).await;
}

/// What already its own system's log cannot say in common terms: set aside at the capture, with
/// what could be carried; nothing reaches the others.
#[tokio::test]
async fn what_a_source_cannot_say_is_set_aside_and_the_rest_goes_on() {
    let thing = Entity::new("thing")
        .key("id", Type::Int)
        .field("flag", Type::Bool)
        .field("day", Type::Date)
        .field("at", Type::DateTime)
        .field("num", Type::Numeric);
    let mut world = World::of(&THREE).entity(thing).start().await;

    world["crm"].execute("INSERT INTO thing (id, at) VALUES (1, '294276-12-31 23:59:59')").await;
    for (system, base) in [("shop", 10), ("erp", 20)] {
        let mut session = world[system].session().await;
        session.execute("SET SESSION sql_mode = ''").await;
        session.execute(&format!("INSERT INTO thing (id, flag) VALUES ({base}, 2)")).await;
        session.execute(&format!("INSERT INTO thing (id, day) VALUES ({}, '0000-10-00')", base + 1)).await;
        session.execute(&format!("INSERT INTO thing (id, at) VALUES ({}, '0000-02-00 00:00:00')", base + 2)).await;
        // a good and a bad row in one transaction
        session.execute(&format!("INSERT INTO thing (id, flag) VALUES ({}, 1), ({}, 3)", base + 3, base + 4)).await;
    }
    settled(&world).await;

    let ids = |rows: Vec<Vec<Option<String>>>| rows.into_iter().map(|row| row[0].clone().unwrap()).collect::<Vec<_>>();
    assert_eq!(ids(world.rows("thing", "crm").await), ["1", "13", "23"]);
    assert_eq!(ids(world.rows("thing", "shop").await), ["10", "11", "12", "13", "14", "23"]);
    assert_eq!(ids(world.rows("thing", "erp").await), ["13", "20", "21", "22", "23", "24"]);
    let status = world.agent.status().await.unwrap();
    assert!(status["systems"].as_array().unwrap().iter().all(|s| s["state"] == "streaming"), "{status}");

    world.agent.stop().await;
    let log = world.agent.log();
    assert_eq!(log.lines().filter(|line| line.contains("cannot be carried")).count(), 9);
    let refused = refused(&world);
    let of = |system: &str| refused.iter().filter(|r| r.starts_with(system)).count();
    assert_eq!((of("crm"), of("shop"), of("erp")), (1, 4, 4), "{refused:#?}");
    for part in [
        "crm thing 1 … column \"at\"",
        "shop thing 10 … field \"flag\"",
        "shop thing 11 … column \"day\"",
        "erp thing 22 … column \"at\"",
    ] {
        assert!(refused.iter().any(|r| r.contains(part)), "{part}: {refused:#?}");
    }
}

/// Each column says what stands for the dates that its engine has alone, or lacks: one to one,
/// there and back; the stand-in itself, written as a date of its own, is set aside.
#[tokio::test]
async fn stand_ins_for_dates_cross_in_both_directions() {
    let shop = |column: &str| {
        format!(
            "{{ column = \"{column}\", zero_date = \"1000-01-01\", infinity = \"9999-12-31\", minus_infinity = \"0001-01-01\" }}"
        )
    };
    let erp = |column: &str| format!("{{ column = \"{column}\", zero_date = \"null\", infinity = \"null\" }}");
    let thing = Entity::new("thing")
        .key("id", Type::Int)
        .field("day", Type::Date)
        .field("at", Type::DateTime)
        .field("note", Type::Varchar(20))
        .stored("erp", "day", "date NOT NULL")
        .mapped("shop", "day", &shop("day"))
        .mapped("shop", "at", &shop("at"))
        .mapped("erp", "day", &erp("day"))
        .mapped("erp", "at", &erp("at"));
    let world = World::of(&THREE).entity(thing).start().await;
    let mut shop = world["shop"].session().await;
    let mut erp = world["erp"].session().await;
    shop.execute("SET SESSION sql_mode = ''").await;
    erp.execute("SET SESSION sql_mode = ''").await;

    world["crm"]
        .execute("INSERT INTO thing VALUES (1, '2024-01-01', 'infinity', ''), (2, NULL, '-infinity', '')")
        .await;
    world["crm"].execute("INSERT INTO thing VALUES (3, '1000-01-01', '1000-01-01', '')").await;
    shop.execute("INSERT INTO thing VALUES (11, '0000-00-00', '0000-00-00', ''), (12, '9999-12-31', '0001-01-01', '')")
        .await;
    erp.execute("INSERT INTO thing VALUES (21, '0000-00-00', '0000-00-00', ''), (22, '2024-01-01', NULL, '')").await;
    settled(&world).await;
    // nothing of it changes where another field of the row does
    shop.execute("UPDATE thing SET note = 'shop'").await;
    settled(&world).await;

    let stored = |system: &'static str, session: &'static str| {
        let world = &world;
        async move {
            let mut own = world[system].session().await;
            own.execute(session).await;
            let day =
                if system == "crm" { "day::text, \"at\"::text" } else { "cast(day AS char), cast(date(at) AS char)" };
            let rows = own.rows(&format!("SELECT id, {day} FROM thing ORDER BY id")).await;
            rows.into_iter()
                .map(|row| row.into_iter().map(|v| v.unwrap_or("-".into())).collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        }
    };
    assert_eq!(
        stored("crm", "SET DateStyle = ISO").await,
        [
            "1 2024-01-01 infinity",
            "2 - -infinity",
            "3 1000-01-01 1000-01-01 00:00:00",
            "11 1000-01-01 1000-01-01 00:00:00",
            "12 infinity -infinity",
            "21 - -",
            "22 2024-01-01 -",
        ]
    );
    assert_eq!(
        stored("shop", "SET sql_mode = ''").await,
        [
            "1 2024-01-01 9999-12-31",
            "2 - 0001-01-01",
            "3 0000-00-00 0000-00-00",
            "11 0000-00-00 0000-00-00",
            "12 9999-12-31 0001-01-01",
            "21 - -",
            "22 2024-01-01 -",
        ]
    );
    // -infinity has no stand-in in erp, and its day takes no NULL but as the zero date; where it
    // takes NULL, the zero date is NULL from the next change of the row on
    assert_eq!(
        stored("erp", "SET sql_mode = ''").await,
        ["1 2024-01-01 -", "3 1000-01-01 1000-01-01", "11 1000-01-01 1000-01-01", "21 0000-00-00 -", "22 2024-01-01 -",]
    );
    assert_eq!(held(&world).await, ["erp thing 12", "erp thing 2"]);

    world["crm"].execute("INSERT INTO thing VALUES (4, '9999-12-31', NULL, '')").await;
    shop.execute("INSERT INTO thing VALUES (13, '1000-01-01', NULL, '')").await;
    settled(&world).await;
    assert_eq!(held(&world).await, ["erp thing 12", "erp thing 2", "shop thing 4"]);
    assert_eq!(world["crm"].value("SELECT count(*) FROM thing WHERE id = 13").await.as_deref(), Some("0"));
}
