//! What triggers and referential actions of a target write while the agent applies: it reaches
//! the other systems once, and never loops.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use super::support::SOON;
use super::support::agent::Step;
use super::support::books::Books;
use super::support::servers::{Db, Kind};
use super::support::world::{Builder, Entity, Type, World};

const SYSTEMS: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

fn entities(world: Builder) -> Builder {
    let purchase = Entity::new("purchase").key("id", Type::Int).field("customer", Type::Varchar(20));
    let line = Entity::new("line")
        .key("id", Type::Int)
        .field("purchase", Type::Int)
        .field("item", Type::Int)
        .field("pieces", Type::Int);
    let stock = Entity::new("stock").key("id", Type::Int).field("pieces", Type::Int).field("note", Type::Varchar(20));
    let journal = Entity::new("ledger").field("line", Type::Int).field("pieces", Type::Int);
    world.entity(purchase).entity(line).entity(stock).entity(journal)
}

/// Each new line takes its pieces from the stock and is entered in the ledger, also while the
/// agent applies. Lines without pieces are nobody's business.
fn booking(kind: Kind) -> String {
    let body = "UPDATE stock SET pieces = pieces - NEW.pieces WHERE id = NEW.item; \
                INSERT INTO ledger (line, pieces) VALUES (NEW.id, NEW.pieces);";
    trigger(kind, "booking", "AFTER INSERT ON line", body)
}

fn trigger(kind: Kind, name: &str, when: &str, body: &str) -> String {
    match kind.is_postgres() {
        true => format!(
            "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$; \
             CREATE TRIGGER {name} {when} FOR EACH ROW EXECUTE FUNCTION {name}()"
        ),
        false => format!("CREATE TRIGGER {name} {when} FOR EACH ROW BEGIN {body} END"),
    }
}

/// With these triggers, which only an administrator may create where there is a binlog.
async fn started(builder: Builder, triggers: &[(&str, String)]) -> World {
    let mut world = builder.build().await;
    for (system, trigger) in triggers {
        world[*system].admin().await.execute(trigger).await;
    }
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
    world
}

/// What an applied transaction adds is written only then: a wait for it, and one for that.
async fn settled(world: &World) {
    for _ in 0..3 {
        world.agent.wait_quiet().await;
    }
    world.compare().await.unwrap_or_else(|error| panic!("{error}"));
}

fn kind_of(system: &str) -> Kind {
    SYSTEMS.iter().find(|(name, _)| *name == system).expect("one of the three").1
}

async fn count(db: &Db, query: &str) -> i64 {
    db.value(query).await.expect("a number").parse().expect("a number")
}

/// Nobody writes any more: neither does the agent.
async fn silent(world: &World) {
    let before = Books::read(&world.agent).await;
    tokio::time::sleep(Duration::from_secs(3)).await; // the silence itself is what is looked at
    let after = Books::read(&world.agent).await;
    for system in world.systems.iter().map(|system| system.name.as_str()) {
        for counter in ["capture_changes_total", "apply_commits_total"] {
            assert_eq!(after.since(&before, counter, system), 0, "{counter} of {system}");
        }
    }
}

/// Lines are written elsewhere; the system with the trigger books them.
async fn booked_once_by(target: &str) {
    let world = started(entities(World::of(&SYSTEMS)), &[(target, booking(kind_of(target)))]).await;
    let others: Vec<&str> = SYSTEMS.iter().map(|(name, _)| *name).filter(|name| *name != target).collect();
    world[others[0]].execute("INSERT INTO stock VALUES (1, 1000, 'a'), (2, 1000, NULL)").await;
    settled(&world).await;
    let before = Books::read(&world.agent).await;

    for id in 0..20 {
        let writer = &world[others[id % 2]];
        writer.execute(&format!("INSERT INTO line VALUES ({id}, 1, {}, 3)", 1 + id % 2)).await;
    }
    world[others[0]]
        .execute("BEGIN; INSERT INTO purchase VALUES (1, 'x'); INSERT INTO line VALUES (50, 1, 1, 7); COMMIT")
        .await;
    settled(&world).await;

    for (system, _) in SYSTEMS {
        let left = "SELECT concat(pieces, '') FROM stock ORDER BY id";
        let left: Vec<_> = world[system].rows(left).await.into_iter().flatten().flatten().collect();
        assert_eq!(left, ["963", "970"], "{system}");
        assert_eq!(count(&world[system], "SELECT count(*) FROM ledger").await, 21, "{system}");
    }
    let books = Books::read(&world.agent).await;
    books.assert_balanced(&["crm", "shop", "erp"]);
    assert_eq!(books.since(&before, "capture_side_effect_changes_total", target), 42);
    for system in &others {
        assert_eq!(books.since(&before, "capture_side_effect_changes_total", system), 0);
    }
    assert_eq!(books.since(&before, "capture_changes_total", target), 42, "and nothing of ours beside it");
    assert_eq!(books.get("capture_rewritten_rows_total", target), 0);
    silent(&world).await;
}

#[tokio::test]
async fn what_a_trigger_in_postgresql_writes_reaches_the_others_once() {
    booked_once_by("crm").await;
}

#[tokio::test]
async fn what_a_trigger_in_mysql_writes_reaches_the_others_once() {
    booked_once_by("shop").await;
}

#[tokio::test]
async fn what_a_trigger_in_mariadb_writes_reaches_the_others_once() {
    booked_once_by("erp").await;
}

/// Lines vanish with their purchase, by way of a table that nobody binds, and forget an item that
/// is gone: where the target's own rules say so. The others have no such rules, and hear of it.
async fn cascaded_once_by(target: &str) {
    let ddl = [
        "CREATE TABLE parcel (id int PRIMARY KEY, purchase int NOT NULL, CONSTRAINT of_purchase \
         FOREIGN KEY (purchase) REFERENCES purchase (id) ON DELETE CASCADE)",
        "ALTER TABLE line ADD CONSTRAINT in_parcel FOREIGN KEY (purchase) REFERENCES parcel (id) ON DELETE CASCADE",
        "ALTER TABLE line ADD CONSTRAINT of_item FOREIGN KEY (item) REFERENCES stock (id) ON DELETE SET NULL",
    ];
    let builder = ddl.iter().fold(entities(World::of(&SYSTEMS)), |builder, sql| builder.ddl(target, sql));
    let world = builder.start().await;
    let others: Vec<&str> = SYSTEMS.iter().map(|(name, _)| *name).filter(|name| *name != target).collect();
    let writer = &world[others[0]];
    writer.execute("INSERT INTO stock VALUES (1, 10, 'a'), (2, 10, 'b')").await;
    writer.execute("INSERT INTO purchase VALUES (1, 'x'), (2, 'y')").await;
    settled(&world).await;
    world[target].execute("INSERT INTO parcel VALUES (1, 1), (2, 2)").await;
    let rows: Vec<String> = (0..20).map(|id| format!("({id}, {}, {}, 1)", 1 + id % 2, 1 + id / 10)).collect();
    writer.execute(&format!("INSERT INTO line VALUES {}", rows.join(", "))).await;
    settled(&world).await;
    let before = Books::read(&world.agent).await;

    writer.execute("DELETE FROM purchase WHERE id = 1").await;
    writer.execute("DELETE FROM stock WHERE id = 2").await;
    settled(&world).await;

    for (system, _) in SYSTEMS {
        let left = "SELECT count(*) FROM line WHERE purchase = 2";
        assert_eq!(count(&world[system], left).await, 10, "{system}");
        assert_eq!(count(&world[system], "SELECT count(*) FROM line WHERE item IS NULL").await, 5, "{system}");
        assert_eq!(count(&world[system], "SELECT count(*) FROM line").await, 10, "{system}");
    }
    let books = Books::read(&world.agent).await;
    books.assert_balanced(&["crm", "shop", "erp"]);
    let by_target = books.since(&before, "capture_side_effect_changes_total", target);
    // both at once: lines that go lose their item first
    assert!((15..=20).contains(&by_target), "{by_target}");
    assert_eq!(books.since(&before, "capture_changes_total", target), by_target);
    silent(&world).await;
}

#[tokio::test]
async fn what_a_cascade_in_postgresql_deletes_is_gone_everywhere() {
    cascaded_once_by("crm").await;
}

#[tokio::test]
async fn what_a_cascade_in_mysql_deletes_is_gone_everywhere() {
    cascaded_once_by("shop").await;
}

/// Every system books by itself, and none knows of the others: twice too much is in the ledger,
/// but in every system the same, and then there is silence.
#[tokio::test]
async fn triggers_that_do_not_stand_aside_never_answer_each_other() {
    let mut triggers = Vec::new();
    for (system, kind) in SYSTEMS {
        let stamp = match kind.is_postgres() {
            true => format!("NEW.note := '{system}';"),
            false => format!("SET NEW.note = '{system}';"),
        };
        triggers.push((system, booking(kind)));
        triggers.push((system, trigger(kind, "stamp", "BEFORE UPDATE ON stock", &stamp)));
    }
    let world = started(entities(World::of(&SYSTEMS)), &triggers).await;
    world["crm"].execute("INSERT INTO stock VALUES (1, 1000, 'new')").await;
    settled(&world).await;

    for (n, (system, _)) in SYSTEMS.iter().cycle().take(9).enumerate() {
        world[*system].execute(&format!("INSERT INTO line VALUES ({n}, 1, 1, 3)")).await;
        for _ in 0..3 {
            world.agent.wait_quiet().await;
        }
    }

    for (system, _) in SYSTEMS {
        assert_eq!(count(&world[system], "SELECT count(*) FROM line").await, 9, "{system}");
        assert_eq!(count(&world[system], "SELECT count(*) FROM ledger").await, 27, "{system}");
        assert_eq!(world[system].value("SELECT note FROM stock").await.as_deref(), Some(system), "rewritten in place");
    }
    let books = Books::read(&world.agent).await;
    books.assert_balanced(&["crm", "shop", "erp"]);
    assert!(books.get("entity_rewritten_rows_total", "stock") >= 9);
    assert_eq!(books.get("entity_rewritten_rows_total", "line"), 0);
    let log = world.agent.log();
    let named = |line: &&str| line.contains("rewritten") && line.contains("stock") && line.contains("note");
    assert!(log.lines().any(|line| named(&line)), "the field is named");
    assert!(!log.lines().any(|line| line.contains("rewritten") && line.contains("1000")), "values are not");
    silent(&world).await;
}

/// With the guard that the manual gives, each booking is made once, by the system that sold.
#[tokio::test]
async fn triggers_that_stand_aside_book_once() {
    let mut triggers = Vec::new();
    for (system, kind) in SYSTEMS {
        let body = "UPDATE stock SET pieces = pieces - NEW.pieces WHERE id = NEW.item; \
                    INSERT INTO ledger (line, pieces) VALUES (NEW.id, NEW.pieces);";
        let guard = match kind.is_postgres() {
            true => "coalesce(current_setting('anechoic.applying', true), '') <> 'on'",
            false => "@anechoic_applying IS NULL",
        };
        let body = format!("IF {guard} THEN {body} END IF;");
        triggers.push((system, trigger(kind, "booking", "AFTER INSERT ON line", &body)));
    }
    let world = started(entities(World::of(&SYSTEMS)), &triggers).await;
    world["crm"].execute("INSERT INTO stock VALUES (1, 1000, 'a')").await;
    settled(&world).await;

    for (n, (system, _)) in SYSTEMS.iter().cycle().take(9).enumerate() {
        world[*system].execute(&format!("INSERT INTO line VALUES ({n}, 1, 1, 3)")).await;
        settled(&world).await;
    }

    assert_eq!(count(&world["erp"], "SELECT pieces FROM stock").await, 1000 - 27);
    assert_eq!(count(&world["shop"], "SELECT count(*) FROM ledger").await, 9);
    let books = Books::read(&world.agent).await;
    assert_eq!(SYSTEMS.map(|(system, _)| books.get("capture_side_effect_changes_total", system)), [0; 3]);
    assert_eq!(SYSTEMS.map(|(system, _)| books.get("capture_rewritten_rows_total", system)), [0; 3]);
}

/// Killed at each step while the target books: whatever it was in, it is told once.
async fn booked_once_through_kills(target: &str) {
    let writer = if target == "crm" { "erp" } else { "crm" };
    let mut world = started(entities(World::of(&SYSTEMS)), &[(target, booking(kind_of(target)))]).await;
    world[writer].execute("INSERT INTO stock VALUES (1, 100000, 'a')").await;
    settled(&world).await;
    let mut lines = 0;

    for step in Step::ALL.into_iter().chain([Step::AfterTargetCommit, Step::AfterTargetCommit]) {
        world.agent.kill();
        world.agent.kill_at(step, 3);
        world.agent.start();
        while world.agent.is_running() {
            world[writer].execute(&format!("INSERT INTO line VALUES ({lines}, 1, 1, 1)")).await;
            lines += 1;
        }
        assert_eq!(world.agent.exited(SOON).await.signal(), Some(libc::SIGKILL), "{}", step.name());
        world.agent.kill_nowhere();
        world.agent.start();
        world.agent.ready().await;
    }
    settled(&world).await;

    for (system, _) in SYSTEMS {
        assert_eq!(count(&world[system], "SELECT pieces FROM stock").await, 100_000 - lines, "{system}");
        assert_eq!(count(&world[system], "SELECT count(*) FROM ledger").await, lines, "{system}");
    }
    silent(&world).await;
}

#[tokio::test]
async fn kills_neither_lose_nor_double_what_a_trigger_in_postgresql_writes() {
    booked_once_through_kills("crm").await;
}

#[tokio::test]
async fn kills_neither_lose_nor_double_what_a_trigger_in_mysql_writes() {
    booked_once_through_kills("shop").await;
}

/// More than is held in memory: the target's transaction has as many rows of its own.
#[tokio::test]
async fn a_large_transaction_is_told_from_its_side_effects() {
    const LINES: i64 = 60_000;
    const ITEMS: i64 = 2000;
    let world = started(entities(World::of(&SYSTEMS)), &[("crm", booking(Kind::Postgres17))]).await;
    let items: Vec<String> = (0..ITEMS).map(|id| format!("({id}, 1000, 'a')")).collect();
    world["shop"].execute(&format!("INSERT INTO stock VALUES {}", items.join(", "))).await;
    settled(&world).await;

    let rows = |from: i64| (from..from + 6000).map(|id| format!("({id}, 1, {}, 1)", id % ITEMS)).collect::<Vec<_>>();
    let inserts = (0..LINES).step_by(6000).map(|from| format!("INSERT INTO line VALUES {};", rows(from).join(", ")));
    world["shop"].execute(&format!("BEGIN; {} COMMIT", inserts.collect::<String>())).await;
    settled(&world).await;

    for (system, _) in SYSTEMS {
        assert_eq!(count(&world[system], "SELECT sum(pieces) FROM stock").await, ITEMS * 1000 - LINES, "{system}");
        assert_eq!(count(&world[system], "SELECT count(*) FROM ledger").await, LINES, "{system}");
    }
    let books = Books::read(&world.agent).await;
    books.assert_balanced(&["crm", "shop", "erp"]);
    assert_eq!(books.get("capture_side_effect_changes_total", "crm"), 2 * LINES as u64);
    silent(&world).await;
}
