//! A transaction, or all of a time, taken back everywhere through the journal; and what conflicts
//! tell of themselves.

use std::time::Duration;

use serde_json::Value;

use super::support::books::Books;
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};

const SYSTEMS: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

fn contact() -> Entity {
    Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(60)).field("score", Type::Int)
}

/// Three systems with contacts 1 to 6, and the rows that they have.
async fn six() -> (World, Vec<Vec<Option<String>>>) {
    let world = World::of(&SYSTEMS).entity(contact()).start().await;
    let rows: Vec<String> = (1..=6).map(|id| format!("({id}, 'name {id}', {id})")).collect();
    world["crm"].execute(&format!("INSERT INTO contact VALUES {}", rows.join(", "))).await;
    world.quiet().await;
    let rows = world.rows("contact", "erp").await;
    (world, rows)
}

/// What it printed, and how it ended.
async fn undo(world: &World, args: &[&str]) -> (i32, Value) {
    let args: Vec<&str> = ["undo", "--json"].iter().chain(args).copied().collect();
    let output = world.agent.command(&args).await;
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let report = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{args:?}: {out}{error}"));
    (output.status.code().unwrap(), report)
}

async fn xid(world: &World, sql: &str) -> String {
    let rows = world["crm"].rows(&format!("{sql} RETURNING pg_current_xact_id()::text")).await;
    rows[0][0].clone().unwrap()
}

/// Of every engine: a batch job that updates, deletes, inserts and changes a key.
#[tokio::test]
async fn a_bad_batch_job_is_taken_back_in_all_systems() {
    let (world, before) = six().await;

    for (system, _) in SYSTEMS {
        let bad = "BEGIN; UPDATE contact SET name = 'bad', score = 0 WHERE id < 4; DELETE FROM contact WHERE id = 2; \
                   UPDATE contact SET name = 'worse' WHERE id = 1; UPDATE contact SET id = 60 WHERE id = 6; \
                   INSERT INTO contact VALUES (7, 'bad', 7); COMMIT";
        let clock = "SELECT CAST(CURRENT_TIMESTAMP AS char(19))";
        tokio::time::sleep(Duration::from_millis(1100)).await; // MariaDB logs whole seconds
        let since = world[system].rows(clock).await[0][0].clone().unwrap();
        world[system].execute(bad).await;
        world.quiet().await;
        assert_ne!(world.rows("contact", "crm").await, before, "{system}");

        let args = ["--system", system, "--since", &since];
        let (code, dry) = undo(&world, &[&args[..], &["--dry-run"]].concat()).await;
        world.quiet().await;
        assert_eq!((code, &dry["seq"]), (0, &Value::from(0)), "{system}: {dry}");
        assert_ne!(world.rows("contact", "crm").await, before, "{system}: a dry run writes nothing");
        let (code, undone) = undo(&world, &args).await;
        world.quiet().await;

        assert_eq!(code, 0, "{system}: {undone}");
        assert_eq!(undone["entities"], dry["entities"], "{system}");
        let counts = serde_json::json!([{ "entity": "contact", "inserts": 2, "updates": 2, "deletes": 2 }]);
        assert_eq!(undone["entities"], counts, "{system}");
        assert_eq!(world.rows("contact", "shop").await, before, "{system}");
    }
    Books::read(&world.agent).await.assert_balanced(&["crm", "shop", "erp"]);
}

#[tokio::test]
async fn rows_that_others_changed_since_keep_all_of_it_or_are_left_alone() {
    let (world, before) = six().await;
    let bad = xid(&world, "UPDATE contact SET name = 'bad' WHERE id IN (1, 2)").await;
    world.quiet().await;
    world["shop"].execute("UPDATE contact SET name = 'mended' WHERE id = 1").await;

    // not captured yet, perhaps: what was committed before the call counts
    let (code, refused) = undo(&world, &["--tx", &bad]).await;
    assert_eq!((code, &refused["seq"], &refused["changed"]), (1, &Value::from(0), &Value::from(1)), "{refused}");
    let changed = &refused["changed_samples"][0];
    assert_eq!((&changed["key"], &changed["by"]), (&Value::from("1"), &Value::from("shop")));
    let (code, skipped) = undo(&world, &["--tx", &bad, "--skip-changed"]).await;
    world.quiet().await;

    assert_eq!((code, &skipped["changed"]), (0, &Value::from(1)), "{skipped}");
    let mut expected = before;
    expected[0][1] = Some("mended".into());
    assert_eq!(world.rows("contact", "erp").await, expected);
    let (code, again) = undo(&world, &["--tx", &bad]).await;
    assert_eq!((code, &again["seq"]), (1, &Value::from(0)), "taken back by the agent since: {again}");
}

/// Between reading the journal and writing to it, somebody builds on what is to be taken back.
#[tokio::test]
async fn who_writes_while_it_is_planned_is_not_overwritten() {
    let (mut world, before) = six().await;
    world.agent.stop().await;
    world.agent.set_env("ANECHOIC_SLOW_AT", "undo-planned:1");
    world.agent.start();
    world.agent.ready().await;
    let bad = xid(&world, "UPDATE contact SET name = 'bad' WHERE id IN (1, 2)").await;
    world.quiet().await;

    let meanwhile = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        world["shop"].execute("UPDATE contact SET name = 'mended' WHERE id = 1").await;
    };
    let args = ["--tx", &bad, "--skip-changed"];
    let ((code, undone), ()) = tokio::join!(undo(&world, &args), meanwhile);
    world.quiet().await;

    assert_eq!((code, &undone["changed"]), (0, &Value::from(1)), "{undone}");
    let mut expected = before;
    expected[0][1] = Some("mended".into());
    assert_eq!(world.rows("contact", "erp").await, expected);
}

/// What was sold since stays sold.
#[tokio::test]
async fn of_what_is_added_up_the_difference_is_taken_back() {
    let item = Entity::new("item")
        .key("id", Type::Int)
        .field("price", Type::Decimal(10, 2))
        .field("stock", Type::Int)
        .option("merge = { stock = \"add\" }");
    let world = World::of(&SYSTEMS).entity(item).start().await;
    world["crm"].execute("INSERT INTO item VALUES (1, 9.50, 10), (2, 1.00, 10)").await;
    world.quiet().await;
    let bad = world["crm"].rows("UPDATE item SET stock = stock - 7 RETURNING pg_current_xact_id()::text").await;
    world.quiet().await;
    world["shop"].execute("UPDATE item SET stock = stock - 2 WHERE id = 1").await;

    let (code, undone) = undo(&world, &["--tx", bad[0][0].as_deref().unwrap()]).await;
    world.quiet().await;

    assert_eq!((code, &undone["changed"]), (0, &Value::from(0)), "{undone}");
    let stock = world["erp"].rows("SELECT stock FROM item ORDER BY id").await;
    assert_eq!(stock, [[Some("8".to_owned())], [Some("10".to_owned())]]);
}

/// More than a message's worth: it lies in the spool.
#[tokio::test]
async fn a_large_transaction_is_taken_back_as_one() {
    let world = World::of(&SYSTEMS).entity(contact()).start().await;
    let rows = "INSERT INTO contact SELECT n, repeat('x', 50), n FROM generate_series(1, 20000) n";
    world["crm"].execute(rows).await;
    world.quiet().await;
    let bad = xid(&world, "DELETE FROM contact WHERE id > 5").await;
    world.quiet().await;

    let (code, undone) = undo(&world, &["--tx", &bad]).await;
    world.quiet().await;

    assert_eq!((code, &undone["entities"][0]["inserts"]), (0, &Value::from(19_995)), "{undone}");
    assert_eq!(world["erp"].rows("SELECT count(*) FROM contact").await[0][0].as_deref(), Some("20000"));
    let status = world.agent.status().await.unwrap();
    assert_eq!(undone["seq"], status["journal"]["head"], "one entry");
}

#[tokio::test]
async fn without_an_agent_a_dry_run_reads_the_journal_and_nothing_is_taken_back() {
    let (mut world, _) = six().await;
    let bad = xid(&world, "DELETE FROM contact WHERE id = 3").await;
    world.quiet().await;
    world.agent.stop().await;

    let (code, dry) = undo(&world, &["--tx", &bad, "--dry-run"]).await;
    let real = world.agent.command(&["undo", "--tx", &bad]).await;
    let unknown = world.agent.command(&["undo", "--tx", "nonsense", "--dry-run"]).await;

    assert_eq!((code, &dry["samples"][0]["op"]), (0, &Value::from("insert")), "{dry}");
    let said = String::from_utf8_lossy(&real.stderr).into_owned();
    assert!(real.status.code() == Some(1) && said.contains("no agent runs"), "{said}");
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(unknown.status.code() == Some(1) && said.contains("no transaction \"nonsense\""), "{said}");
    world.agent.start();
    world.agent.ready().await;
    let (code, _) = undo(&world, &["--tx", &bad]).await;
    world.quiet().await;
    assert_eq!(code, 0);
    assert_eq!(world["shop"].rows("SELECT count(*) FROM contact").await[0][0].as_deref(), Some("6"));
}

async fn listed(world: &World) -> Value {
    serde_json::from_str(&world.agent.run(&["conflicts", "--json"]).await).unwrap()
}

/// What the record of a conflict has is told: by the running agent, and by its journal.
#[tokio::test]
async fn conflicts_are_listed_and_shown_with_what_both_wrote() {
    let (mut world, _) = six().await;
    world.agent.pause();
    world["crm"].execute("UPDATE contact SET name = 'of crm' WHERE id = 1").await;
    world["shop"].execute("UPDATE contact SET name = 'of shop' WHERE id = 1").await;
    world.agent.resume();
    world.quiet().await;

    let running = listed(&world).await;
    let id = running[0]["id"].as_str().unwrap().to_owned();
    let shown = world.agent.run(&["conflicts", "show", &id]).await;
    let open = world.agent.run(&["conflicts", "list", "--open"]).await;
    let status = world.agent.status().await.unwrap();
    let unknown = world.agent.command(&["conflicts", "show", "99999.0"]).await;
    let decided = world.agent.command(&["conflicts", "resolve", &id, "--take", "shop"]).await;
    world.agent.stop().await;

    assert_eq!(running.as_array().unwrap().len(), 1, "{running}");
    let fields = ["entity", "key", "rule", "open"].map(|field| running[0][field].clone());
    assert_eq!(Value::from(fields.to_vec()), serde_json::json!(["contact", "1", "authority", false]));
    for said in ["name 1 -> of crm", "name 1 -> of shop", "authority", "transaction", "committed"] {
        assert!(shown.contains(said), "{said}: {shown}");
    }
    assert_eq!(open.trim(), "no conflicts");
    assert_eq!(unknown.status.code(), Some(1));
    let said = String::from_utf8_lossy(&decided.stderr).into_owned();
    assert!(said.contains("no conflict") && said.contains("waits"), "{said}");
    let entity = &status["entities"][0];
    let outcomes: u64 = entity["decided"]["authority"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!((outcomes, &entity["conflicts"]), (1, &Value::from(1)), "{entity}");
    let log = world.agent.log();
    let line = log.lines().find(|line| line.contains(&format!("conflict={id}"))).expect("a line in the log");
    assert!(line.contains("policy=\"authority\"") && !line.contains("of crm"), "{line}");
    assert_eq!(listed(&world).await, running, "of the journal alone");
    assert_eq!(world.agent.run(&["conflicts", "show", &id]).await, shown);
}
