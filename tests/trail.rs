//! Who changed a record, when, and why it looks like this: history, from the running agent and from its
//! journal alone; fields that nobody is to see; and how fast a key is found.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::quarantine::{settled, until_held};
use super::support::servers::{Db, Kind};
use super::support::trail::{Replayed, operations};
use super::support::world::{Entity, Type, World};
use super::support::{SOON, eventually, soak};

const THREE: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

fn contact() -> Entity {
    Entity::new("contact")
        .key("id", Type::Int)
        .field("name", Type::Varchar(60))
        .field("phone", Type::Varchar(60))
        .option("sensitive = [\"phone\"]")
}

async fn history(world: &World, key: &str) -> Vec<Value> {
    let text = world.agent.run(&["history", "contact", key, "--json"]).await;
    let history: Value = serde_json::from_str(&text).unwrap();
    history["versions"].as_array().unwrap().clone()
}

fn versions(told: &[Value]) -> Vec<&Value> {
    told.iter().filter_map(|one| one.get("version")).collect()
}

fn state(version: &Value, system: &str) -> String {
    let systems = version["systems"].as_array().unwrap();
    let found = systems.iter().find(|reached| reached["system"] == system);
    found.map_or("none".into(), |reached| reached["state"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn history_tells_of_each_version_who_wrote_it_how_it_was_decided_and_who_has_it() {
    let mut world = World::of(&THREE)
        .entity(contact())
        .ddl("erp", "ALTER TABLE contact ADD CONSTRAINT named CHECK (name <> 'forbidden')")
        .start()
        .await;
    world["shop"].execute("INSERT INTO contact VALUES (7, 'Ada', '555-planted-1')").await;
    world.quiet().await;
    world.agent.run(&["pause", "shop"]).await;
    world["crm"].execute("UPDATE contact SET name = 'Eva' WHERE id = 7").await;
    let there = || async { world["erp"].try_rows("SELECT name FROM contact WHERE name = 'Eva'").await };
    eventually(SOON, || async { there().await.and_then(|rows| rows.first().map(drop).ok_or("not there".into())) })
        .await;
    world["shop"].execute("UPDATE contact SET name = 'Ida' WHERE id = 7").await;
    world.agent.run(&["resume", "shop"]).await;
    world.quiet().await;
    world["crm"].execute("UPDATE contact SET name = 'forbidden', phone = '555-planted-2' WHERE id = 7").await;
    until_held(&world, 1).await;
    settled(&world).await;

    let told = eventually(SOON, || async {
        let told = history(&world, "7").await;
        // whoever has it is noted with the next look
        let dated = |version: &&Value| {
            let systems = version["systems"].as_array().unwrap().iter();
            systems.filter(|reached| reached["state"] == "applied").all(|reached| reached["at"].is_string())
        };
        if versions(&told).iter().all(dated) { Ok(told) } else { Err(format!("{told:#?}")) }
    })
    .await;

    let versions = versions(&told);
    assert_eq!(versions.len(), 4, "{told:#?}");
    let field = |version: &Value, image: &str| version[image]["name"].as_str().unwrap_or("-").to_owned();
    let seen: Vec<String> = versions
        .iter()
        .map(|v| {
            let text = |key: &str| v[key].as_str().unwrap().to_owned();
            format!(
                "{} {} {} {}→{}",
                text("origin"),
                text("op"),
                text("decision"),
                field(v, "before"),
                field(v, "after")
            )
        })
        .collect();
    assert_eq!(seen[0], "shop insert accepted -→Ada");
    assert_eq!(seen[1..3], ["crm update accepted Ada→Eva", "shop update rejected Ada→Ida"]);
    assert_eq!(seen[3], "crm update accepted Eva→forbidden");
    let lost = versions.iter().find(|v| v["decision"] == "rejected").unwrap();
    assert_eq!((&lost["conflict"]["rule"], &lost["conflict"]["outcome"]), (&"authority".into(), &"lost".into()));
    assert_eq!(lost["systems"], serde_json::json!([{"system": "shop", "state": "origin"}]));
    assert!(versions[0]["at"].as_str().unwrap().starts_with("20") && !versions[0]["txid"].as_str().unwrap().is_empty());
    let last = versions[3];
    assert_eq!(["crm", "shop", "erp"].map(|system| state(last, system)), ["origin", "applied", "held"]);
    let refusals: Vec<&Value> = told.iter().filter_map(|one| one.get("quarantine")).collect();
    assert!(refusals.len() == 1 && refusals[0]["reason"].as_str().unwrap().contains("named"), "{told:#?}");

    // for people, and by a person who has the journal only; nobody is shown what is sensitive
    let human = world.agent.run(&["history", "contact", "7"]).await;
    assert!(human.contains("name: Eva → forbidden") && human.contains("phone: (masked)"), "{human}");
    assert!(human.contains("erp refuses it: in quarantine") && human.contains("shop has it since 20"), "{human}");
    let held = world.agent.run(&["quarantine", "--values"]).await;
    assert!(held.contains("phone = (masked)") && held.contains("name = forbidden"), "{held}");
    let conflict = lost["conflict"]["id"].as_str().unwrap();
    let shown = world.agent.run(&["conflicts", "show", conflict]).await;
    world.agent.stop().await;
    let alone = history(&world, "7").await;
    let planted = format!("{human}{held}{shown}{told:?}{alone:?}{}", world.agent.log());
    assert!(!planted.contains("planted"), "{planted}");
    assert_eq!(alone.iter().filter(|one| one.get("version").is_some()).count(), 4);
    let none = world.agent.command(&["history", "contact", "8"]).await;
    assert_eq!(none.status.code(), Some(1));
    let wrong = world.agent.command(&["history", "contact", "seven"]).await;
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no int"), "{}", String::from_utf8_lossy(&wrong.stderr));
}

#[tokio::test]
async fn a_sensitive_field_that_nobody_binds_is_a_mistake_in_the_file() {
    let entity = Entity::new("contact").key("id", Type::Int).field("phone", Type::Varchar(60));
    let world = World::of(&THREE).entity(entity.option("sensitive = [\"fone\"]")).build().await;

    let output = world.agent.command(&["check"]).await;

    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("sensitive names \"fone\"") && said.contains("nearest: \"phone\""), "{said}");
    assert_eq!(output.status.code(), Some(2), "{said}");
}

/// As an application does that its server takes for the one to give way in a deadlock.
async fn patiently(db: &Db, sql: &str) {
    let gave_way = |error: &String| ["(40001)", "(40P01)", "1020 (HY000)"].iter().any(|code| error.contains(code));
    while let Err(error) = db.try_execute(sql).await {
        assert!(gave_way(&error), "{error}\n  in: {sql}");
    }
}

/// 100,000 changes of three systems in the long run, many of them of the same keys at once.
#[tokio::test]
async fn the_audit_trail_replays_to_the_final_tables_and_one_flipped_byte_in_it_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let rounds = if soak() { 110 } else { 6 };
    let item = Entity::new("item").key("id", Type::Int).field("name", Type::Varchar(60)).field("n", Type::Int);
    let audit = dir.path().join("audit");
    let mut world =
        World::of(&THREE).entity(item).toml(&format!("[audit]\ndir = {:?}\n", audit.display())).start().await;
    for round in 0..rounds {
        let writers = THREE.iter().enumerate().map(|(at, (system, _))| {
            let (own, name) = (100_000 * (at + 1) + round * 100, format!("{system} in round {round}, \"quoted\""));
            let rows: Vec<String> = (own..own + 100).map(|id| format!("({id}, '{name}', {round})")).collect();
            let db = &world[system];
            async move {
                patiently(db, &format!("INSERT INTO item VALUES {}", rows.join(", "))).await;
                patiently(db, &format!("UPDATE item SET name = '{name}', n = {round} WHERE id % 10 = {at}")).await;
                // what all have by now, without having seen each other
                patiently(db, &format!("UPDATE item SET n = n + 1 WHERE id < {}", 100_000 + 20)).await;
                patiently(db, &format!("DELETE FROM item WHERE id BETWEEN {} AND {}", own + 90, own + 95)).await;
            }
        });
        futures_util::future::join_all(writers).await;
        if round == 3 {
            world.agent.restart_after_kill();
            world.agent.ready().await;
        }
    }
    world.quiet().await;
    let head = world.agent.status().await.unwrap()["journal"]["head"].as_u64().unwrap();

    let expected = world.by_key("item", "crm").await;
    let replayed = |lines: &str| Replayed::of(&operations(lines)).table("item");
    let written = world.agent.run(&["audit"]).await;
    let count = written.lines().count();
    assert!(count > rounds * 300, "{count}");
    assert_eq!(replayed(&written), expected);
    let inserts = world.agent.run(&["audit", "--op", "insert", "--system", "shop", "--format", "csv"]).await;
    assert_eq!(inserts.lines().count(), 1 + rounds * 100);

    // the files have the same, once, although the agent was killed
    let file = eventually(SOON, || async {
        let path = std::fs::read_dir(&audit).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        match text.contains(&format!("{{\"seq\":{head},")) {
            true => Ok(path),
            false => Err("the last entry is not in the file".into()),
        }
    })
    .await;
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), count + 1);
    assert_eq!(replayed(&text), expected);
    assert!(world.agent.run(&["audit", "--check"]).await.contains("nothing was altered"));
    world.agent.stop().await;
    let mut bytes = text.clone().into_bytes();
    let at = bytes.len() * 2 / 3;
    bytes[at] ^= 4;
    std::fs::write(&file, bytes).unwrap();
    let altered = world.agent.command(&["audit", "--check"]).await;
    assert_eq!(altered.status.code(), Some(1), "{}", String::from_utf8_lossy(&altered.stdout));
    eprintln!("{count} operations replayed");
}

/// Ten million changes in the long run, as one agent's journal and index hold them; cold: the index is
/// opened anew.
#[test]
fn a_key_is_found_in_a_moment_however_much_the_journal_holds() {
    use anechoic::audit::keys::KeyIndex;
    use anechoic::change::{Address, Body, ChangeWriter, Changes, Entry, Op, Origin, Record};
    use anechoic::journal::{Options, open};
    use anechoic::schema::{EntityId, EntitySchema, Field, Schema};
    use anechoic::value::{Datum, Kind, Value};

    const PER_ENTRY: i64 = 20;
    let changes: i64 = if soak() { 10_000_000 } else { 400_000 };
    let field = |name: &str, kind| Field { name: name.into(), kind };
    let schema =
        Schema::new(vec![EntitySchema::new("item", vec![field("id", Kind::Int), field("name", Kind::Text)], 1)]);
    let body = |first: i64| {
        let mut writer = ChangeWriter::default();
        for id in first..first + PER_ENTRY {
            let name = format!("item number {} of many, as long as rows are", id * 7919);
            let row = [Datum::Value(Value::Int(id)), Datum::Value(Value::Text(&name))];
            writer.push(&schema, EntityId(0), Op::Update, Some(row.into_iter()), Some(row.into_iter()));
        }
        bytes::Bytes::from(writer.take())
    };
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new(dir.path().join("journal"), 1 << 40);
    let (mut writer, journal, _) = open(&options).unwrap();
    // Every key twice: now, and when all others have been changed.
    let keys = changes / 2;
    for n in 0..changes / PER_ENTRY {
        let (seq, first) = (writer.head() + 1, n * PER_ENTRY % keys);
        let entry = Entry {
            seq,
            origin: Origin::System("crm".into()),
            position: None,
            base: 0,
            txid: seq.to_string().into(),
            committed_at: seq as i64,
            hops: 0,
            to: Address::Others,
            schema: schema.clone(),
            changes: PER_ENTRY as u64,
            body: Body::Inline(body(first)),
            decisions: Vec::new(),
            replacements: bytes::Bytes::new(),
        };
        writer.append(&Record::Entry(entry)).unwrap();
        if n % 50 == 0 {
            writer.sync().unwrap();
        }
    }
    writer.sync().unwrap();
    let began = Instant::now();
    let index = KeyIndex::open(dir.path(), &journal);
    index.follow(&|| false).unwrap();
    let indexed = began.elapsed();

    drop((index, journal, writer));
    let (_writer, journal, _) = open(&options).unwrap();
    let index = KeyIndex::open(dir.path(), &journal);
    index.follow(&|| false).unwrap(); // the tail, as a start does
    let mut times = Vec::new();
    for n in 0..200 {
        let key = n * 7_919_777 % keys;
        let encoded = body(key / PER_ENTRY * PER_ENTRY);
        let hash = Changes::new(&encoded).nth((key % PER_ENTRY) as usize).unwrap().key_hash;

        let began = Instant::now();
        let (hits, _) = index.find(hash, 100);
        for hit in &hits {
            let mut reader = match hit.place {
                Some(place) => journal.reader_at(place, hit.seq).unwrap(),
                None => journal.reader(hit.seq).unwrap(),
            };
            let entry = std::iter::from_fn(|| reader.next().unwrap()).find_map(|record| match record {
                Record::Entry(entry) => Some(entry),
                _ => None,
            });
            let Body::Inline(body) = entry.unwrap().body else { panic!("inline") };
            assert!(Changes::new(&body).any(|change| change.key_hash == hash));
        }
        times.push(began.elapsed());
        assert_eq!(hits.len(), 2, "key {key}");
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("{changes} changes indexed in {indexed:?}; a key is found and read in {median:?}, at worst {worst:?}");
    assert!(worst < Duration::from_millis(if cfg!(debug_assertions) { 500 } else { 50 }), "{worst:?}");
}
