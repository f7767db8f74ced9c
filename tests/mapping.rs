//! Bindings: names, formats, value maps, filters, roles, keys, and what no binding names.

use super::support::books::Books;
use super::support::quarantine::{settled, until_held};
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World, quote};
use super::support::{SOON, eventually};

const PG: (&str, Kind) = ("crm", Kind::Postgres17);
const MY: (&str, Kind) = ("shop", Kind::Mysql);
const MARIA: (&str, Kind) = ("erp", Kind::Mariadb);
const THREE: [(&str, Kind); 3] = [PG, MY, MARIA];

/// `a b` per row, of the columns named, sorted.
async fn told(world: &World, system: &str, sql: &str) -> Vec<String> {
    let rows = world[system].rows(sql).await;
    let line = |row: Vec<Option<String>>| {
        row.into_iter().map(|v| v.unwrap_or_else(|| "NULL".into())).collect::<Vec<_>>().join(" ")
    };
    let mut rows: Vec<String> = rows.into_iter().map(line).collect();
    rows.sort();
    rows
}

#[tokio::test]
async fn dates_in_text_and_mapped_values_cross_in_both_directions() {
    let contact = Entity::new("contact")
        .key("id", Type::Int)
        .field("joined", Type::Date)
        .field("seen", Type::DateTime)
        .field("status", Type::Text)
        .field("kind", Type::Text)
        .stored("shop", "joined", "varchar(10)")
        .mapped("shop", "joined", r#"{ column = "joined", format = "%d/%m/%Y" }"#)
        .stored("shop", "status", "char(1)")
        .mapped("shop", "status", r#"{ column = "status", values = { active = "A", closed = "C" } }"#)
        .stored("erp", "seen", "varchar(30)")
        .mapped("erp", "seen", r#"{ column = "seen", format = "%Y-%m-%dT%H:%M:%S.%f" }"#)
        .stored("erp", "kind", "int")
        .mapped("erp", "kind", r#"{ column = "kind", values = { person = "1", firm = "2" } }"#);
    let world = World::of(&THREE).entity(contact).start().await;

    world["crm"]
        .execute("INSERT INTO contact VALUES (1, '2024-02-29', '2024-02-29 12:34:56.789', 'active', 'firm')")
        .await;
    world["shop"].execute("INSERT INTO contact VALUES (2, '01/12/0999', '1999-12-31 23:59:59', 'C', 'person')").await;
    world["erp"]
        .execute("INSERT INTO contact VALUES (3, '9999-12-31', '2024-07-01T00:00:00.000001', 'active', 1)")
        .await;
    world["erp"].execute("INSERT INTO contact VALUES (4, NULL, NULL, NULL, NULL)").await;
    world.agent.wait_quiet().await;

    let all = "SELECT id, joined, seen, status, kind FROM contact";
    assert_eq!(
        told(&world, "crm", all).await,
        [
            "1 2024-02-29 2024-02-29 12:34:56.789 active firm",
            "2 0999-12-01 1999-12-31 23:59:59 closed person",
            "3 9999-12-31 2024-07-01 00:00:00.000001 active person",
            "4 NULL NULL NULL NULL",
        ]
    );
    assert_eq!(
        told(&world, "shop", all).await,
        [
            "1 29/02/2024 2024-02-29 12:34:56.789000 A firm",
            "2 01/12/0999 1999-12-31 23:59:59.000000 C person",
            "3 31/12/9999 2024-07-01 00:00:00.000001 A person",
            "4 NULL NULL NULL NULL",
        ]
    );
    assert_eq!(
        told(&world, "erp", all).await,
        [
            "1 2024-02-29 2024-02-29T12:34:56.789000 active 2",
            "2 0999-12-01 1999-12-31T23:59:59.000000 closed 1",
            "3 9999-12-31 2024-07-01T00:00:00.000001 active 1",
            "4 NULL NULL NULL NULL",
        ]
    );

    // what is in no map is set aside where it cannot be written; what is no date where it is read
    world["crm"].execute("UPDATE contact SET status = 'unheard of' WHERE id = 1").await;
    world["shop"].execute("UPDATE contact SET joined = '31/02/2024' WHERE id = 2").await;
    let held = until_held(&world, 1).await;
    settled(&world).await;
    assert_eq!((held[0].system.as_str(), held[0].key.as_str()), ("shop", "1"), "{held:?}");
    assert!(held[0].reason.contains("not in the values map"), "{held:?}");
    assert_eq!(world["shop"].value("SELECT status FROM contact WHERE id = 1").await.as_deref(), Some("A"));
    assert_eq!(world["crm"].value("SELECT joined FROM contact WHERE id = 2").await.as_deref(), Some("0999-12-01"));

    world["crm"].execute("UPDATE contact SET status = 'closed' WHERE id = 1").await;
    until_held(&world, 0).await;
    assert_eq!(world["shop"].value("SELECT status FROM contact WHERE id = 1").await.as_deref(), Some("C"));
}

/// The source shows only its German rows; who leaves is deleted elsewhere, who enters is
/// inserted, and rows outside never cross.
#[tokio::test]
async fn rows_that_leave_a_sources_filter_are_deleted_and_those_that_enter_are_inserted() {
    for (source, target) in [(PG, MY), (MY, MARIA), (MARIA, PG)] {
        let contact = Entity::new("contact")
            .key("id", Type::Int)
            .field("country", Type::Varchar(2))
            .field("name", Type::Text)
            .option_in(source.0, "role = \"source\"")
            .option_in(source.0, "where = \"country = 'DE'\"")
            .option_in(target.0, "role = \"target\"");
        let world = World::of(&[source, target]).entity(contact).start().await;
        let db = &world[source.0];

        db.execute("INSERT INTO contact VALUES (1, 'DE', 'a'), (2, 'FR', 'b'), (3, NULL, 'c'), (4, 'DE', 'd')").await;
        world.agent.wait_quiet().await;
        let all = "SELECT id, country, name FROM contact";
        assert_eq!(told(&world, target.0, all).await, ["1 DE a", "4 DE d"]);

        db.execute("UPDATE contact SET country = 'AT' WHERE id = 1").await;
        db.execute("UPDATE contact SET country = 'DE' WHERE id = 2").await;
        db.execute("UPDATE contact SET name = 'cc' WHERE id = 3").await;
        db.execute("UPDATE contact SET id = 40, name = 'dd' WHERE id = 4").await;
        world.agent.wait_quiet().await;
        assert_eq!(told(&world, target.0, all).await, ["2 DE b", "40 DE dd"]);

        db.execute("DELETE FROM contact WHERE id = 3").await;
        db.execute("UPDATE contact SET id = 20, country = 'XX' WHERE id = 2").await;
        world.agent.wait_quiet().await;
        assert_eq!(told(&world, target.0, all).await, ["40 DE dd"]);
    }
}

/// The target holds only its part; a row of its own outside of it is never touched.
#[tokio::test]
async fn a_filtered_target_receives_its_part_and_keeps_rows_of_its_own() {
    for (whole, part) in [(MARIA, PG), (PG, MY), (MY, MARIA)] {
        let contact = Entity::new("contact")
            .key("id", Type::Int)
            .field("country", Type::Varchar(2))
            .field("name", Type::Text)
            .option_in(part.0, "where = \"country = 'DE'\"");
        let world = World::of(&[whole, part]).entity(contact).start().await;
        world[part.0].execute("INSERT INTO contact VALUES (9, 'FR', 'its own')").await;

        let db = &world[whole.0];
        db.execute("INSERT INTO contact VALUES (1, 'DE', 'a'), (2, 'FR', 'b'), (3, 'DE', 'c')").await;
        world.agent.wait_quiet().await;
        let all = "SELECT id, country, name FROM contact";
        assert_eq!(told(&world, part.0, all).await, ["1 DE a", "3 DE c", "9 FR its own"]);
        assert_eq!(told(&world, whole.0, all).await, ["1 DE a", "2 FR b", "3 DE c"]);

        db.execute("UPDATE contact SET country = 'AT' WHERE id = 1").await;
        db.execute("UPDATE contact SET country = 'DE' WHERE id = 2").await;
        // an edit that leaves the own filter is the edit it is
        world[part.0].execute("UPDATE contact SET country = 'CH', name = 'moved' WHERE id = 3").await;
        world.agent.wait_quiet().await;
        assert_eq!(told(&world, part.0, all).await, ["2 DE b", "3 CH moved", "9 FR its own"]);
        assert_eq!(told(&world, whole.0, all).await, ["1 AT a", "2 DE b", "3 CH moved"]);

        // its key is taken there by a row outside the filter
        db.execute("INSERT INTO contact VALUES (9, 'DE', 'clash')").await;
        let held = until_held(&world, 1).await;
        assert_eq!((held[0].system.as_str(), held[0].key.as_str()), (part.0, "9"));
        assert!(held[0].reason.contains("outside the filter"), "{held:?}");
        db.execute("DELETE FROM contact WHERE id = 9").await;
        until_held(&world, 0).await;
        assert_eq!(told(&world, part.0, all).await, ["2 DE b", "3 CH moved", "9 FR its own"]);
    }
}

/// What is written in a target is counted and stays there; a source receives nothing.
#[tokio::test]
async fn a_target_is_not_journaled_and_a_source_receives_nothing() {
    for (source, target) in [(PG, MARIA), (MY, PG), (MARIA, MY)] {
        let contact = Entity::new("contact")
            .key("id", Type::Int)
            .field("name", Type::Text)
            .option_in(source.0, "role = \"source\"")
            .option_in(target.0, "role = \"target\"");
        let world = World::of(&[source, target]).entity(contact).start().await;

        world[source.0].execute("INSERT INTO contact VALUES (1, 'a'), (2, 'b')").await;
        world.agent.wait_quiet().await;
        world[target.0].execute("UPDATE contact SET name = 'drifted' WHERE id = 1").await;
        world[target.0].execute("INSERT INTO contact VALUES (7, 'local')").await;
        world[target.0].execute("DELETE FROM contact WHERE id = 2").await;
        world.agent.wait_quiet().await;

        assert_eq!(told(&world, source.0, "SELECT id, name FROM contact").await, ["1 a", "2 b"]);
        assert_eq!(told(&world, target.0, "SELECT id, name FROM contact").await, ["1 drifted", "7 local"]);
        let metric = format!("system=\"{}\"", target.0);
        eventually(SOON, || async {
            let metrics = world.agent.metrics().await;
            let drift: Vec<&str> = metrics.lines().filter(|l| l.contains("drift") && l.contains(&metric)).collect();
            match drift.iter().any(|line| line.ends_with(" 3")) {
                true => Ok(()),
                false => Err(format!("{drift:?}")),
            }
        })
        .await;
        // the source goes on winning
        world[source.0].execute("UPDATE contact SET name = 'again' WHERE id = 1").await;
        world[source.0].execute("UPDATE contact SET name = 'back' WHERE id = 2").await;
        world.agent.wait_quiet().await;
        assert_eq!(told(&world, target.0, "SELECT id, name FROM contact").await, ["1 again", "2 back", "7 local"]);
    }
}

#[tokio::test]
async fn composite_keys_and_key_changes() {
    let line = Entity::new("line")
        .key("order_no", Type::BigInt)
        .key("pos", Type::SmallInt)
        .key("part", Type::Varchar(10))
        .field("amount", Type::Decimal(10, 2))
        .renamed();
    let world = World::of(&THREE).entity(line).start().await;

    for (at, (system, _)) in THREE.iter().enumerate() {
        let table = world.table("line", system);
        let [order, pos, part, amount] = ["order_no", "pos", "part", "amount"].map(|f| world.column("line", f, system));
        let base = 100 * at;
        let db = &world[*system];
        db.execute(&format!(
            "INSERT INTO {table} VALUES ({base}, 1, 'a', 1), ({base}, 2, 'a', 2), ({base}, 2, 'b', 3), ({base}, 3, 'x', 4)"
        ))
        .await;
        // part of the key; two in a row; a swap through a third; onto a key that was just deleted
        db.execute(&format!("UPDATE {table} SET {pos} = 7 WHERE {order} = {base} AND {pos} = 1")).await;
        db.execute(&format!("UPDATE {table} SET {pos} = 8, {amount} = 10.5 WHERE {order} = {base} AND {pos} = 7"))
            .await;
        let mut session = db.session().await;
        session.execute("BEGIN").await;
        for (from, to) in [("a", "tmp"), ("b", "a"), ("tmp", "b")] {
            let sql = format!(
                "UPDATE {table} SET {part} = '{to}' WHERE {order} = {base} AND {pos} = 2 AND {part} = '{from}'"
            );
            session.execute(&sql).await;
        }
        session.execute("COMMIT").await;
        session.execute("BEGIN").await;
        session.execute(&format!("DELETE FROM {table} WHERE {order} = {base} AND {pos} = 3")).await;
        session
            .execute(&format!("UPDATE {table} SET {pos} = 3, {part} = 'x' WHERE {order} = {base} AND {pos} = 8"))
            .await;
        session.execute("COMMIT").await;
        // all keys of a table move at once
        session.execute(&format!("UPDATE {table} SET {order} = {order} + 1000 WHERE {order} = {base}")).await;
    }
    world.quiet().await;

    for (system, _) in THREE {
        let rows = world.rows("line", system).await;
        let line: Vec<String> =
            rows.iter().map(|r| r.iter().flatten().cloned().collect::<Vec<_>>().join(" ")).collect();
        let expected: Vec<String> = [1000, 1100, 1200]
            .iter()
            .flat_map(|o| [format!("{o} 2 a 3.00"), format!("{o} 2 b 2.00"), format!("{o} 3 x 10.50")])
            .collect();
        assert_eq!(line, expected, "{system}");
    }
}

/// What no binding names is in no file of the agent and in no log line. The text does not
/// compress, so that its bytes would stand in a file as they are.
#[tokio::test]
async fn columns_that_nobody_names_never_leave_the_database() {
    let secret = "kQ7vZx2LpW9rTn4YbHs8DfGm3JcVu6Ea";
    for (system, other) in [(PG, MY), (MY, MARIA), (MARIA, PG)] {
        let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Text);
        let contact = contact.mapped(system.0, "id", "\"id\"").mapped(other.0, "id", "\"id\"");
        let mut world = World::of(&[system, other])
            .entity(contact)
            .ddl(system.0, "ALTER TABLE contact ADD password text")
            .start()
            .await;
        let db = &world[system.0];

        db.execute(&format!("INSERT INTO contact VALUES (1, 'Ada', '{secret}'), (2, 'Bob', '{secret}')")).await;
        db.execute(&format!("UPDATE contact SET password = 'x{secret}' WHERE id = 1")).await;
        db.execute(&format!("UPDATE contact SET name = 'Eve', password = 'y{secret}' WHERE id = 1")).await;
        db.execute("DELETE FROM contact WHERE id = 2").await;
        world.agent.wait_quiet().await;
        assert_eq!(told(&world, other.0, "SELECT id, name FROM contact").await, ["1 Eve"]);
        // written by the other side: the secret stays where it is
        world[other.0].execute("UPDATE contact SET name = 'Ida' WHERE id = 1").await;
        world.agent.wait_quiet().await;
        let kept = format!("1 Ida y{secret}");
        assert_eq!(told(&world, system.0, "SELECT id, name, password FROM contact").await, [kept]);

        world.agent.stop().await;
        let files = files(&world.agent.data_dir());
        assert!(files.iter().any(|(_, bytes)| contains(bytes, b"Ida")), "the search would find what is there");
        for (path, bytes) in &files {
            assert!(!contains(bytes, secret.as_bytes()), "{} holds what nobody named", path.display());
        }
        assert!(!world.agent.log().contains(secret) && !world.agent.log().contains("Ida"));
        let records = super::support::quarantine::records(&world);
        assert!(records.len() > 3 && !format!("{records:?}").contains(secret));
        for record in &records {
            if let anechoic::change::Record::Entry(entry) = record {
                let anechoic::change::Body::Inline(body) = &entry.body else { panic!("a small body is inline") };
                assert!(!contains(body, secret.as_bytes()));
                assert_eq!(entry.schema.entities[0].fields.len(), 2);
            }
        }
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn files(dir: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let (path, kind) = entry.map(|e| (e.path(), e.file_type().unwrap())).unwrap();
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            found.push((path.clone(), std::fs::read(&path).unwrap()));
        }
    }
    found
}

/// Names that have to be quoted, each in each engine: mixed case, reserved, spaces, quotes,
/// dots, beyond ASCII.
#[tokio::test]
async fn every_name_that_a_database_takes() {
    let tables = ["Order", "select", "odd \"name\"", "dotted.name", "Straße", "表 1", "it's"];
    let columns = ["Key", "group", "a \"b\"", "x.y", "Größe", "列", "per cent %s $1 ?", "back`tick"];
    let mut builder = World::of(&THREE);
    for (at, name) in tables.iter().enumerate() {
        // each system has other names for the same things
        let mut entity = Entity::new(&format!("entity {at} {}", name.replace('"', "''"))).key("id", Type::Int);
        for field in ["eins", "zwei"] {
            entity = entity.field(field, Type::Text);
        }
        let own = entity.name.clone();
        for (s, (system, _)) in THREE.iter().enumerate() {
            let column = |shift: usize| columns[(at + s + shift) % columns.len()];
            entity = entity
                .named(system, &own, tables[(at + s) % tables.len()])
                .named(system, "id", column(0))
                .named(system, "eins", column(1))
                .named(system, "zwei", column(2));
        }
        builder = builder.entity(entity);
    }
    let world = builder.start().await;

    let names: Vec<String> = world.entities.iter().map(|e| e.name.clone()).collect();
    for (s, (system, _)) in THREE.iter().enumerate() {
        for name in &names {
            let table = world.table(name, system);
            let [id, one, two] = ["id", "eins", "zwei"].map(|f| world.column(name, f, system));
            let db = &world[*system];
            let base = s * 10;
            let rows = format!("({base}, 'a', 'b'), ({}, 'c', 'd'), ({}, 'e', 'f')", base + 1, base + 2);
            db.execute(&format!("INSERT INTO {table} ({id}, {one}, {two}) VALUES {rows}")).await;
            db.execute(&format!("UPDATE {table} SET {two} = '{system}' WHERE {id} = {base}")).await;
            db.execute(&format!("DELETE FROM {table} WHERE {id} = {}", base + 1)).await;
            db.execute(&format!("UPDATE {table} SET {id} = {} WHERE {id} = {}", base + 5, base + 2)).await;
        }
    }
    world.quiet().await;

    for name in &names {
        assert_eq!(world.rows(name, "erp").await.len(), 6, "{name}");
    }
    assert_eq!(quote(Kind::Mysql, "a`b"), "`a``b`");
}

/// Without `columns` equal names find each other, and what only one table has stays there; an
/// entity that two of three systems have is none of the third one's business.
#[tokio::test]
async fn equal_names_find_each_other_and_a_third_system_is_left_alone() {
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Text);
    let stock = Entity::new("stock").key("sku", Type::Varchar(20)).field("count", Type::Int).only(&["shop", "erp"]);
    let world = World::of(&THREE)
        .entity(contact)
        .entity(stock)
        .ddl("crm", "ALTER TABLE contact ADD crm_only text DEFAULT 'mine'")
        .ddl("shop", "ALTER TABLE contact ADD shop_only int NOT NULL DEFAULT 5")
        .ddl("crm", "CREATE TABLE stock (sku text PRIMARY KEY, count int)")
        .start()
        .await;

    world["crm"].execute("INSERT INTO contact (id, name) VALUES (1, 'Ada')").await;
    world["erp"].execute("INSERT INTO contact VALUES (2, 'Bob')").await;
    world["shop"].execute("INSERT INTO stock VALUES ('a', 1)").await;
    world["erp"].execute("INSERT INTO stock VALUES ('b', 2)").await;
    world["crm"].execute("INSERT INTO stock VALUES ('c', 3)").await;
    world.quiet().await;
    world["shop"].execute("UPDATE stock SET count = 9 WHERE sku = 'b'").await;
    world["shop"].execute("UPDATE contact SET name = 'Eve', shop_only = 7 WHERE id = 1").await;
    world.quiet().await;

    assert_eq!(told(&world, "crm", "SELECT id, name, crm_only FROM contact").await, ["1 Eve mine", "2 Bob mine"]);
    assert_eq!(told(&world, "shop", "SELECT id, name, shop_only FROM contact").await, ["1 Eve 7", "2 Bob 5"]);
    assert_eq!(told(&world, "erp", "SELECT sku, count FROM stock").await, ["a 1", "b 9"]);
    assert_eq!(told(&world, "crm", "SELECT sku, count FROM stock").await, ["c 3"]);
}

/// Two databases of one server are two systems.
#[tokio::test]
async fn two_databases_of_one_server() {
    for kind in [Kind::Postgres17, Kind::Mysql, Kind::Mariadb] {
        let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Text).renamed();
        let mut builder = World::of(&[("north", kind), ("south", kind)]).entity(contact);
        if !kind.is_postgres() {
            builder = builder.system_option("south", "marker = \"MARKER.marker_south\"");
        }
        let world = builder.start().await;
        let (north, south) = (world.table("contact", "north"), world.table("contact", "south"));
        let (name_n, name_s) = (world.column("contact", "name", "north"), world.column("contact", "name", "south"));

        for key in 0..50 {
            world["north"].execute(&format!("INSERT INTO {north} VALUES ({key}, 'n')")).await;
            world["south"].execute(&format!("INSERT INTO {south} VALUES ({}, 's')", 100 + key)).await;
        }
        world["north"].execute(&format!("UPDATE {north} SET {name_n} = 'nn'")).await;
        world["south"].execute(&format!("UPDATE {south} SET {name_s} = 'ss'")).await;
        world.quiet().await;
        assert_eq!(world.rows("contact", "north").await.len(), 100, "{}", kind.name());

        let before = world.agent.status().await.unwrap()["journal"]["head"].as_u64().unwrap();
        world["north"].execute(&format!("UPDATE {north} SET {name_n} = 'last'")).await;
        world.quiet().await;
        let after = world.agent.status().await.unwrap()["journal"]["head"].as_u64().unwrap();
        assert_eq!(after, before + 1, "{}: an echo was taken for a change", kind.name());
        let status = world.agent.status().await.unwrap();
        assert!(status["systems"].as_array().unwrap().iter().all(|s| s["state"] == "streaming"), "{status}");
    }
}

/// With one marker for both, what one has applied would count for the other.
#[tokio::test]
async fn two_systems_of_one_mysql_server_may_not_share_a_marker() {
    for kind in [Kind::Mysql, Kind::Mariadb] {
        let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Text);
        let mut world = World::of(&[("north", kind), ("south", kind)]).entity(contact).build().await;

        let check = world.agent.command(&["check"]).await;
        let setup = world.agent.command(&["setup"]).await;
        world.agent.start();
        let status = world.agent.exited(SOON).await;

        let said = [check.stdout, setup.stdout].map(|text| String::from_utf8_lossy(&text).into_owned());
        for text in said.iter().chain([&world.agent.log()]) {
            assert!(text.contains("is on the same server as \"north\"") && text.contains("marker_south"), "{text}");
        }
        assert!(!check.status.success() && !setup.status.success() && !status.success());
    }
}

/// Under the default replica identity the log leaves out large values that did not change: what is
/// there stays, and a row that would be new without them is set aside until they are told.
#[tokio::test]
async fn a_large_value_that_the_log_leaves_out_stays_what_it_was() {
    let note = Entity::new("note")
        .key("id", Type::Int)
        .field("n", Type::Int)
        .field("text", Type::Text)
        .option_in("shop", "role = \"target\"");
    let world = World::of(&[PG, MY])
        .entity(note)
        .ddl("crm", "ALTER TABLE note ALTER text SET STORAGE EXTERNAL")
        .ddl("crm", "ALTER TABLE note REPLICA IDENTITY DEFAULT")
        .start()
        .await;
    let identity = "SELECT relreplident FROM pg_class WHERE oid = 'note'::regclass";
    assert_eq!(world["crm"].value(identity).await.as_deref(), Some("d"));

    world["crm"].execute("INSERT INTO note VALUES (1, 1, repeat('x', 5000)), (2, 2, repeat('y', 5000))").await;
    world.quiet().await;
    world["crm"].execute("UPDATE note SET n = n + 10").await;
    world.quiet().await;
    assert_eq!(world["shop"].value("SELECT sum(length(text)) FROM note WHERE n > 10").await.as_deref(), Some("10000"));

    world["crm"].execute("UPDATE note SET id = 5 WHERE id = 2").await;
    world.agent.wait_quiet().await;
    assert_eq!(world["shop"].rows("SELECT id FROM note").await, [[Some("1".to_owned())]], "not without its text");
    let books = Books::read(&world.agent).await;
    assert_eq!(books.get("capture_quarantined_changes_total", "crm"), 1);
    assert!(world.agent.log().contains("REPLICA IDENTITY FULL would"));
    world["crm"].execute("UPDATE note SET text = text || '!' WHERE id = 5").await;
    world.quiet().await;
    assert_eq!(world["shop"].value("SELECT length(text) FROM note WHERE id = 5").await.as_deref(), Some("5001"));
}
