//! No echo: a change crosses each link once, and when users stop writing, so does the agent.

use std::time::Duration;

use super::support::books::Books;
use super::support::servers::{Db, Kind, Rows, Session};
use super::support::world::{Entity, Type, World};

const SYSTEMS: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
const CONNECTIONS: u64 = 4;
const TRANSACTIONS: u64 = 250;

async fn three() -> World {
    let contact =
        Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(60)).field("score", Type::Int);
    World::of(&SYSTEMS).entity(contact).start().await
}

/// Transaction `n` of a series on keys of its own, and how many rows it changes.
fn transaction(base: u64, n: u64) -> (String, u64) {
    let (round, key) = (n / 5, base + n / 5 * 10);
    let row = |key: u64| format!("({key}, 'round {round}', {n})");
    let insert = |keys: &mut dyn Iterator<Item = u64>| {
        let rows: Vec<String> = keys.map(row).collect();
        format!("INSERT INTO contact (id, name, score) VALUES {}", rows.join(", "))
    };
    let update = |what: &str| format!("UPDATE contact SET score = score + 1000000 WHERE id {what}");
    match n % 5 {
        0 => (insert(&mut (key..key + 1)), 1),
        1 => (insert(&mut (key + 1..key + 6)), 5),
        2 => (update(&format!("BETWEEN {} AND {}", key + 1, key + 5)), 5),
        3 => {
            let delete = format!("DELETE FROM contact WHERE id IN ({}, {})", key + 1, key + 2);
            let parts = [insert(&mut (key + 6..key + 7)), update(&format!("= {key}")), delete];
            (format!("BEGIN; {}; COMMIT", parts.join("; ")), 4)
        }
        _ => (update(&format!("= {}", key + 3)), 1),
    }
}

async fn series(mut session: Session, base: u64) -> u64 {
    let mut rows = 0;
    for n in 0..TRANSACTIONS {
        let (sql, changed) = transaction(base, n);
        session.execute(&sql).await;
        rows += changed;
    }
    rows
}

/// Several connections at once; the rows they changed.
async fn traffic(db: &Db, base: u64) -> u64 {
    let mut series_of = tokio::task::JoinSet::new();
    for connection in 0..CONNECTIONS {
        series_of.spawn(series(db.session().await, base + connection * 100_000));
    }
    series_of.join_all().await.into_iter().sum()
}

/// What every write of the agent must move, asked of the database itself: its marker, which
/// differs after each of its transactions, and the server's account of the tables.
async fn traces(db: &Db) -> Rows {
    let mut admin = db.admin().await;
    let marker = &db.marker;
    let mut rows = admin.rows(&format!("SELECT * FROM {marker}.marker ORDER BY agent, lane")).await;
    if db.kind.is_postgres() {
        rows.extend(admin.rows(&format!("SELECT xmin FROM {marker}.marker")).await);
        let counted = "SELECT relname, n_tup_ins, n_tup_upd, n_tup_del FROM pg_stat_user_tables ORDER BY relid";
        rows.extend(admin.rows(counted).await);
    } else {
        if !db.kind.is_mariadb() {
            admin.execute("SET SESSION information_schema_stats_expiry = 0").await;
        }
        let touched = format!(
            "SELECT table_name, update_time FROM information_schema.tables \
             WHERE table_schema IN ('{marker}', '{}') ORDER BY table_name",
            db.name
        );
        rows.extend(admin.rows(&touched).await);
    }
    rows
}

/// Waits until all is applied and each log was read past the agent's own last transaction.
async fn quiet(world: &World) {
    world.quiet().await;
    world.agent.wait_quiet().await;
}

/// 1,000 transactions in each of three systems, on keys of their own.
#[tokio::test]
async fn each_change_crosses_each_link_once_and_then_there_is_silence() {
    let world = three().await;
    quiet(&world).await;
    let before = Books::read(&world.agent).await;

    let [crm, shop, erp] = ["crm", "shop", "erp"].map(|name| &world[name]);
    let written = tokio::join!(traffic(crm, 1_000_000), traffic(shop, 2_000_000), traffic(erp, 3_000_000));
    quiet(&world).await;

    let after = Books::read(&world.agent).await;
    let written = [written.0, written.1, written.2];
    assert_eq!(written, [3200; 3]);
    let grown = |name: &str, system: &str| after.since(&before, name, system);
    for ((system, _), rows) in SYSTEMS.iter().zip(written) {
        assert_eq!(grown("capture_transactions_total", system), CONNECTIONS * TRANSACTIONS, "{system}");
        assert_eq!(grown("capture_changes_total", system), rows, "{system}");
        assert_eq!(grown("capture_journaled_changes_total", system), rows, "{system}");
        let others = written.iter().sum::<u64>() - rows;
        let applied = ["apply_changes_total", "apply_coalesced_changes_total", "apply_held_changes_total"];
        assert_eq!(applied.map(|name| grown(name, system)).iter().sum::<u64>(), others, "{system}");
        assert_eq!(grown("apply_transactions_total", system), 2 * CONNECTIONS * TRANSACTIONS, "{system}");
        assert_eq!(grown("capture_echoes_total", system), grown("apply_commits_total", system), "{system}");
    }
    after.assert_balanced(&["crm", "shop", "erp"]);

    let still = [traces(crm).await, traces(shop).await, traces(erp).await];
    tokio::time::sleep(Duration::from_secs(5)).await; // the silence itself is what is looked at
    for (traces_before, db) in still.into_iter().zip([crm, shop, erp]) {
        assert_eq!(traces(db).await, traces_before, "{}", db.kind.name());
    }
    let later = Books::read(&world.agent).await;
    for (system, _) in SYSTEMS {
        for counter in ["capture_echoes_total", "capture_changes_total", "apply_commits_total"] {
            assert_eq!(later.since(&after, counter, system), 0, "{counter} of {system}");
        }
    }
}

/// Another installation may write to one of our systems: for us those are local writes.
#[tokio::test]
async fn the_marker_of_another_agent_makes_no_echo() {
    let world = three().await;
    quiet(&world).await;
    let before = Books::read(&world.agent).await;

    for (key, (system, _)) in SYSTEMS.iter().enumerate() {
        let db = &world[system];
        let marker = format!(
            "INSERT INTO {}.marker (agent, lane, journal, epoch, seq, part, origin, txid, applied_at, format) \
             VALUES ('branch', 0, '{:032x}', 1, 7, 0, 'till', '1', '2024-01-01 00:00:00', 1)",
            db.marker, 1
        );
        let row = format!("INSERT INTO contact VALUES ({key}, 'of a branch', 1)");
        db.admin().await.execute(&format!("BEGIN; {marker}; {row}; COMMIT")).await;
    }
    quiet(&world).await;

    assert_eq!(world.rows("contact", "crm").await.len(), 3);
    let after = Books::read(&world.agent).await;
    for (system, _) in SYSTEMS {
        assert_eq!(after.since(&before, "capture_journaled_changes_total", system), 1, "{system}");
        assert_eq!(after.since(&before, "apply_changes_total", system), 2, "{system}");
    }
}
