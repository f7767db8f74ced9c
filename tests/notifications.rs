//! Others are told of each committed change: at least once, in order per key, whatever happens to the
//! receiver and to the agent; the chosen fields, and none that is sensitive.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use serde_json::{Value, json};

use super::support::agent::{Step, write_secret};
use super::support::receiver::{Receiver, Request};
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};
use super::support::{SOON, eventually, seeded, soak};

const TWO: [(&str, Kind); 2] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql)];
const SECRET: &str = "the receiver's own secret";

fn order() -> Entity {
    Entity::new("order")
        .key("id", Type::Int)
        .field("n", Type::Int)
        .field("note", Type::Varchar(2000))
        .field("phone", Type::Varchar(60))
        .option("sensitive = [\"phone\"]")
}

/// Each change once, in the order of its first coming.
fn changes(requests: &[Request]) -> Vec<Value> {
    let mut seen: BTreeMap<String, Value> = BTreeMap::new();
    let mut changes = Vec::new();
    for request in requests {
        for change in request.json()["changes"].as_array().unwrap() {
            let id = change["id"].as_str().unwrap().to_owned();
            match seen.get(&id) {
                Some(known) => assert_eq!(known, change, "one id, two changes"),
                None => {
                    seen.insert(id, change.clone());
                    changes.push(change.clone());
                }
            }
        }
    }
    changes
}

/// The receiver is away, then in trouble at random, while two systems write; the agent is killed again
/// and again. In the long run the receiver is away for a minute.
#[tokio::test]
async fn each_change_arrives_in_order_whatever_happens_to_receiver_and_agent() {
    let mut random = seeded();
    let mut receiver = Receiver::new(random.random());
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    write_secret(&secret, SECRET);
    let toml = format!(
        "[[notify]]\nname = \"billing\"\nentity = \"order\"\nfields = [\"n\", \"phone\"]\nwebhook = {:?}\n\
         secret_file = {secret:?}\nbatch = 7\n",
        receiver.url("/orders?token=planted"),
    );
    let mut world = World::of(&TWO).entity(order()).toml(&toml).start().await;
    let rounds = if soak() { 8 } else { 3 };
    let mut expected: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for round in 0..rounds {
        for (base, (system, _)) in [100, 200].into_iter().zip(TWO) {
            let table = world.table("order", system);
            for id in base..base + 10 {
                let value = round * 10;
                let sql = match round {
                    0 => format!("INSERT INTO {table} VALUES ({id}, 0, 'a', 'planted phone')"),
                    _ => format!("UPDATE {table} SET n = {value} WHERE id = {id}"),
                };
                world[system].execute(&sql).await;
                expected.entry(id).or_default().push(value);
            }
            world[system]
                .execute(&format!("UPDATE {table} SET n = n + 1 WHERE id BETWEEN {base} AND {}", base + 9))
                .await;
            for id in base..base + 10 {
                expected.get_mut(&id).unwrap().push(round * 10 + 1);
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        world.agent.restart_after_kill();
        world.agent.ready().await;
        if soak() && round == 0 {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        receiver.trouble(25);
        receiver.up().await;
        tokio::time::sleep(Duration::from_millis(random.random_range(200..1200))).await;
        world.agent.restart_after_kill();
        world.agent.ready().await;
        receiver.down().await;
    }
    receiver.up().await;
    world.quiet().await; // then the deletion is the journal's last
    world["crm"].execute(&format!("DELETE FROM {} WHERE id = 100", world.table("order", "crm"))).await;
    world.quiet().await;
    world.agent.until(SOON, until_told).await;

    let taken = receiver.taken("/orders?token=planted");
    let changes = changes(&taken);
    let mut arrived: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for change in changes.iter().filter(|change| change["op"] != "delete") {
        let id = change["key"]["id"].as_i64().unwrap();
        arrived.entry(id).or_default().push(change["after"]["n"].as_i64().unwrap());
        assert_eq!(change["after"]["phone"], "(masked)");
        assert_eq!(change["after"].as_object().unwrap().len(), 2, "{change}");
    }
    assert_eq!(arrived, expected, "each once, in order");
    let places: Vec<_> = changes.iter().map(|c| (c["seq"].as_u64(), c["index"].as_u64())).collect();
    assert!(places.is_sorted(), "in the order of the journal: {places:?}");
    let last = changes.last().unwrap();
    assert_eq!((&last["op"], &last["key"], last.get("after")), (&json!("delete"), &json!({"id": 100}), None));
    let requests = receiver.requests();
    assert!(requests.iter().all(|request| request.is_signed_by(SECRET)));
    assert!(requests.iter().any(|request| request.answer == 500), "no trouble at all");
    assert!(requests.iter().all(|request| request.json()["changes"].as_array().unwrap().len() <= 7));
    assert!(requests.iter().all(|request| !String::from_utf8_lossy(&request.body).contains("planted")));
    assert!(!world.agent.log().contains("planted"), "the log tells a token or a value");
    let metrics = world.agent.metrics().await;
    assert!(metrics.contains("anechoic_notify_pending_entries{notify=\"billing\",entity=\"order\"} 0"), "{metrics}");
    eprintln!(
        "{} changes came in {} requests, {} of them in vain",
        changes.len(),
        taken.len(),
        requests.len() - taken.len()
    );
}

/// What lost is not told; what is refused waits, in order, and is seen; what is too large leaves a field out.
#[tokio::test]
async fn what_is_told_is_what_counts_and_a_refusal_holds_it_up() {
    let mut receiver = Receiver::new(1);
    receiver.up().await;
    receiver.always(422);
    let toml = format!(
        "[[notify]]\nentity = \"order\"\nwebhook = {:?}\nmax_body = \"4KiB\"\non = [\"insert\", \"update\"]\n",
        receiver.url("/")
    );
    let world = World::of(&TWO).entity(order()).toml(&toml).start().await;
    let [crm, shop] = ["crm", "shop"].map(|system| world.table("order", system));
    let long = "x".repeat(1900);
    world["crm"].execute(&format!("INSERT INTO {crm} VALUES (1, 1, '{long}', NULL), (2, 1, 'a', NULL)")).await;
    world.quiet().await;
    world.agent.run(&["pause", "shop"]).await;
    world["crm"].execute(&format!("UPDATE {crm} SET n = 10 WHERE id = 2")).await;
    world["shop"].execute(&format!("UPDATE {shop} SET n = 20 WHERE id = 2")).await;
    world.agent.run(&["resume", "shop"]).await;
    world.quiet().await;
    world["shop"].execute(&format!("UPDATE {shop} SET note = '{}' WHERE id = 1", "y".repeat(2000))).await;
    world.quiet().await;
    world["crm"].execute(&format!("DELETE FROM {crm} WHERE id = 2")).await;
    world.quiet().await;
    let refused = |status: &Value| {
        let notify = &status["notifications"][0];
        let error = notify["error"].as_str().unwrap_or_default();
        if error.contains("(422)") && notify["pending"].as_u64() > Some(0) { Ok(()) } else { Err(notify.to_string()) }
    };
    world.agent.until(SOON, refused).await;
    receiver.always(0);
    let changes = eventually(SOON, async || {
        let changes = changes(&receiver.taken("/"));
        if changes.len() >= 4 { Ok(changes) } else { Err(format!("{changes:?}")) }
    })
    .await;

    let told: Vec<String> = changes
        .iter()
        .map(|c| {
            format!(
                "{} {} {} {}",
                c["op"].as_str().unwrap(),
                c["key"]["id"],
                c["after"]["n"],
                c["origin"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(told, ["insert 1 1 crm", "insert 2 1 crm", "update 2 10 crm", "update 1 1 shop"]);
    assert!(changes.iter().all(|c| c["after"].get("phone").is_none()), "sensitive fields are left out");
    assert_eq!(changes[0]["after"]["note"], long);
    assert!(receiver.requests().iter().all(|request| request.body.len() < 4300));
    assert!(changes[..3].iter().all(|c| c.get("omitted").is_none()));
    assert_eq!(changes[3]["omitted"], json!(["note"]), "before and after are too large together");
    assert!(changes[3]["before"].get("note").is_none() && changes[3]["after"].get("note").is_none());
    assert!(world.agent.log().contains("changes are refused"));
}

fn until_told(status: &Value) -> Result<(), String> {
    let all = status["notifications"].as_array().unwrap();
    if all.iter().all(|notify| notify["pending"] == 0) { Ok(()) } else { Err(format!("{all:?}")) }
}

/// Killed before a request and after it, again and again, in the middle of transactions that are too
/// large for memory, too: what comes twice is the same, and comes under the same id.
#[tokio::test]
async fn a_kill_before_or_after_a_request_neither_loses_nor_reorders_what_is_told() {
    const ROWS: i64 = 20_000;
    let mut receiver = Receiver::new(1);
    receiver.up().await;
    let notify = |name: &str, keys: &str| {
        format!(
            "[[notify]]\nname = {name:?}\nentity = \"order\"\nfields = [\"n\", \"note\"]\nwebhook = {:?}\n{keys}\n",
            receiver.url(&format!("/{name}")),
        )
    };
    let toml = notify("plain", "batch = 500") + &notify("copying", "batch = 700\ncopies = true");
    let mut world = World::of(&TWO).entity(order()).toml(&toml).build().await;
    let [crm, shop] = ["crm", "shop"].map(|system| world.table("order", system));
    world["crm"].execute(&format!("INSERT INTO {crm} VALUES (-2, -1, 'loaded', NULL), (-1, -1, 'loaded', NULL)")).await;
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
    world.quiet().await;
    world.agent.until(SOON, until_told).await;

    // some of it large in bytes, too
    let insert = format!(
        "INSERT INTO {crm} SELECT n, 0, repeat(md5(n::text), 40), NULL FROM generate_series(0, {}) AS s(n)",
        ROWS - 1
    );
    let statements =
        [insert, format!("UPDATE {crm} SET n = 1 WHERE id >= 0"), format!("UPDATE {shop} SET n = 2 WHERE id < 10")];
    for ((system, sql), step) in ["crm", "crm", "shop"].into_iter().zip(statements).zip([0, 1, 2]) {
        let kills = if step < 2 { 3 } else { 1 };
        for kill in 0..kills {
            for at in [Step::NotifyNoted, Step::NotifyTold] {
                world.agent.kill();
                world.agent.kill_at(at, kill + 1);
                world.agent.start();
                if kill == 0 && matches!(at, Step::NotifyNoted) {
                    world[system].execute(&sql).await;
                }
                world.agent.exited(SOON).await;
            }
        }
        world.agent.kill_nowhere();
        world.agent.start();
        world.agent.ready().await;
        world.quiet().await;
        world.agent.until(SOON, until_told).await;
    }

    for (path, copies) in [("/plain", 0), ("/copying", 2)] {
        let changes = changes(&receiver.taken(path));
        let mut told: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
        for change in &changes {
            told.entry(change["key"]["id"].as_i64().unwrap()).or_default().push(change["after"]["n"].as_i64().unwrap());
        }
        let loaded = told.remove(&-1).into_iter().chain(told.remove(&-2)).flatten().filter(|n| *n == -1).count();
        assert_eq!(loaded, copies, "{path}");
        assert_eq!(told.len() as i64, ROWS, "{path}");
        for (id, values) in told {
            assert_eq!(values, if id < 10 { vec![0, 1, 2] } else { vec![0, 1] }, "{path}: {id}, each once, in order");
        }
        let places: Vec<_> = changes.iter().map(|c| (c["seq"].as_u64(), c["index"].as_u64())).collect();
        assert!(places.is_sorted(), "{path}: in the order of the journal");
    }
    let requests = receiver.requests();
    let ids: std::collections::BTreeSet<_> = requests.iter().map(|r| (r.path.clone(), r.id().to_owned())).collect();
    assert!(ids.len() < requests.len(), "nothing was told again: no kill was felt");
    eprintln!("{} requests under {} ids", requests.len(), ids.len());
}

/// 8,000 rows in 80 transactions, more than a journal of 2 MiB holds.
async fn flood(world: &World) {
    let crm = world.table("order", "crm");
    for from in (0..8000).step_by(100) {
        let note = "(SELECT string_agg(md5(random()::text || i || n), '') FROM generate_series(1, 30) AS p(i))";
        let sql =
            format!("INSERT INTO {crm} SELECT n, 0, {note}, NULL FROM generate_series({from}, {}) AS s(n)", from + 99);
        world["crm"].execute(&sql).await;
    }
    world.quiet().await;
}

fn lost(status: &Value) -> Result<(), String> {
    match status["notifications"][0]["lost"].as_u64() {
        Some(1..) => Ok(()),
        _ => Err(status["notifications"][0].to_string()),
    }
}

/// A journal that may not grow drops what nobody was told of. That is said at once, in the log and as an
/// alert, and what is left is told.
#[tokio::test]
async fn what_a_full_journal_drops_untold_is_counted_and_said() {
    let mut alerts = Receiver::new(1);
    alerts.up().await;
    let mut receiver = Receiver::new(2);
    let toml = format!(
        "[journal]\nmax_size = \"2MiB\"\n\n\
         [[notify]]\nname = \"billing\"\nentity = \"order\"\nwebhook = {:?}\nbatch = 20\n\n\
         [[alert]]\nname = \"ops\"\non = [\"notify_lost\"]\nwebhook = {:?}\n",
        receiver.url("/"),
        alerts.url("/"),
    );
    let mut world = World::of(&TWO).entity(order()).toml(&toml).start().await;
    let crm = world.table("order", "crm");
    flood(&world).await;

    let said = world.agent.until(Duration::from_secs(90), lost).await;
    eventually(SOON, async || alerts.requests().first().map(drop).ok_or("nobody was told".into())).await;
    receiver.up().await;
    world["crm"].execute(&format!("INSERT INTO {crm} VALUES (-1, 7, 'last', NULL)")).await;
    world.quiet().await;
    world.agent.until(SOON, until_told).await;

    let event = alerts.requests()[0].json();
    assert_eq!(
        (&event["event"], &event["condition"], &event["notify"]),
        (&json!("firing"), &json!("notify_lost"), &json!("billing"))
    );
    assert!(
        world.agent.log().lines().any(|line| line.contains("ERROR") && line.contains("entries that were not told"))
    );
    let changes = changes(&receiver.taken("/"));
    assert_eq!(changes.last().unwrap()["key"]["id"], -1, "what is left is told");
    assert!(changes.len() < 8000, "nothing was dropped");
    let status = world.agent.status().await.unwrap();
    let dropped = status["notifications"][0]["lost"].as_u64().unwrap();
    assert!(
        changes.len() as u64 + 100 * dropped >= 8001,
        "{} came, {dropped} entries are said to be lost",
        changes.len()
    );
    eprintln!("{} of 8001 changes were told; {dropped} entries lost, {}", changes.len(), said["notifications"][0]);
    world.agent.restart_after_kill();
    world.agent.ready().await;
    let kept = |status: &Value| match status["notifications"][0]["lost"].as_u64() {
        Some(count) if count == dropped => Ok(()),
        other => Err(format!("{other:?}")),
    };
    world.agent.until(SOON, kept).await;
}

/// It asks for five minutes of patience, and gets them; what goes meanwhile is said nevertheless.
#[tokio::test]
async fn what_is_dropped_while_a_receiver_asks_for_patience_is_said_at_once() {
    let mut receiver = Receiver::new(1);
    receiver.up().await;
    receiver.always(429);
    let toml = format!(
        "[journal]\nmax_size = \"2MiB\"\n\n[[notify]]\nentity = \"order\"\nwebhook = {:?}\nbatch = 20\n",
        receiver.url("/")
    );
    let world = World::of(&TWO).entity(order()).toml(&toml).start().await;
    let crm = world.table("order", "crm");
    world["crm"].execute(&format!("INSERT INTO {crm} VALUES (-1, 7, 'first', NULL)")).await;
    eventually(SOON, async || receiver.requests().first().map(drop).ok_or("nobody was told".into())).await;

    flood(&world).await;

    world.agent.until(SOON, lost).await;
    assert_eq!(receiver.requests().len(), 1, "it is asked again before its time");
}

/// What a receiver took without our hearing of it, it must know again: not as the first part of something
/// larger, because more was there to tell after the restart.
#[tokio::test]
async fn a_restart_sends_the_same_changes_under_the_same_id_whatever_came_meanwhile() {
    let mut receiver = Receiver::new(1);
    receiver.up().await;
    receiver.always(503);
    let toml = format!("[[notify]]\nentity = \"order\"\nwebhook = {:?}\n", receiver.url("/"));
    let mut world = World::of(&TWO).entity(order()).toml(&toml).start().await;
    let crm = world.table("order", "crm");
    world["crm"].execute(&format!("INSERT INTO {crm} VALUES (1, 1, 'a', NULL), (2, 1, 'a', NULL)")).await;
    eventually(SOON, async || receiver.requests().first().map(drop).ok_or("nobody was told".into())).await;

    world["crm"].execute(&format!("INSERT INTO {crm} VALUES (3, 1, 'a', NULL), (4, 1, 'a', NULL)")).await;
    world.quiet().await;
    world.agent.restart_after_kill();
    world.agent.ready().await;
    receiver.always(0);
    world.agent.until(SOON, until_told).await;

    let requests = receiver.requests();
    let mut under: BTreeMap<String, String> = BTreeMap::new();
    for request in &requests {
        for change in request.json()["changes"].as_array().unwrap() {
            let id = under.entry(change["id"].to_string()).or_insert_with(|| request.id().to_owned());
            assert_eq!(id, request.id(), "{change} came under two ids");
        }
    }
    assert_eq!(changes(&receiver.taken("/")).len(), 4);
}
