//! Wholeness: what one transaction committed becomes visible in a target all at once. A reader
//! that polls the target while thousands of transfers catch up never sees half of one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio_util::sync::CancellationToken;

use super::support::servers::{Db, Kind, Session};
use super::support::world::{Entity, Type, World};

const ACCOUNTS: u64 = 2000;
const OPENING: u64 = 1000;

/// As many in a soak as peers were seen to tear a third of.
fn transfers() -> u64 {
    if std::env::var_os("ANECHOIC_SOAK").is_some() { 30_000 } else { 5000 }
}

/// Money lies in accounts and, until it arrives, in parcels.
fn entities() -> [Entity; 2] {
    [
        Entity::new("account").key("id", Type::Int).field("balance", Type::BigInt),
        Entity::new("parcel").key("id", Type::Int).field("amount", Type::BigInt),
    ]
}

async fn world(systems: &[(&str, Kind)]) -> World {
    let [account, parcel] = entities();
    World::of(systems).entity(account).entity(parcel).start().await
}

/// Transfers `from..to`, a transaction each: two accounts are updated. Every tenth goes from an
/// account into a parcel, which lies in another table.
fn procedure(kind: Kind) -> &'static str {
    if kind.is_postgres() {
        "CREATE PROCEDURE transfer(i int, last int) LANGUAGE plpgsql AS $$
         BEGIN
           WHILE i < last LOOP
             UPDATE account SET balance = balance - i % 17 - 1 WHERE id = i * 7919 % 2000;
             IF i % 10 = 0 THEN
               INSERT INTO parcel VALUES (i, i % 17 + 1);
             ELSE
               UPDATE account SET balance = balance + i % 17 + 1 WHERE id = (i * 7919 + 1 + i % 1999) % 2000;
             END IF;
             COMMIT;
             i := i + 1;
           END LOOP;
         END $$"
    } else {
        "CREATE PROCEDURE transfer(i int, last int)
         BEGIN
           WHILE i < last DO
             START TRANSACTION;
             UPDATE account SET balance = balance - i % 17 - 1 WHERE id = i * 7919 % 2000;
             IF i % 10 = 0 THEN
               INSERT INTO parcel VALUES (i, i % 17 + 1);
             ELSE
               UPDATE account SET balance = balance + i % 17 + 1 WHERE id = (i * 7919 + 1 + i % 1999) % 2000;
             END IF;
             COMMIT;
             SET i = i + 1;
           END WHILE;
         END"
    }
}

/// One statement, one snapshot.
const LOOK: &str = "SELECT (SELECT sum(balance) FROM account) + (SELECT coalesce(sum(amount), 0) FROM parcel), \
                    (SELECT count(*) FROM account), (SELECT count(*) FROM parcel), \
                    (SELECT sum(balance) FROM account WHERE id < 1000)";

#[derive(Debug, Default)]
struct Seen {
    looks: AtomicU64,
    /// Different ones.
    states: AtomicU64,
}

impl Seen {
    fn enough(&self) -> bool {
        self.looks.load(Ordering::Relaxed) >= 300 && self.states.load(Ordering::Relaxed) >= 20
    }
}

/// Looks until it is stopped; every look must find all accounts and all money.
async fn watch(mut session: Session, seen: Arc<Seen>, stop: CancellationToken) {
    let mut states = BTreeSet::new();
    while !stop.is_cancelled() {
        let row = session.rows(LOOK).await.remove(0);
        let whole = [(ACCOUNTS * OPENING).to_string(), ACCOUNTS.to_string()].map(Some);
        assert_eq!(row[..2], whole, "after {seen:?}");
        states.insert(row);
        seen.looks.fetch_add(1, Ordering::Relaxed);
        seen.states.store(states.len() as u64, Ordering::Relaxed);
    }
}

async fn catches_up_whole(world: &mut World, source: &str, targets: &[&str]) {
    let db = &world[source];
    let rows: Vec<String> = (0..ACCOUNTS).map(|id| format!("({id}, {OPENING})")).collect();
    db.execute(&format!("INSERT INTO account VALUES {}", rows.join(", "))).await;
    db.execute(procedure(db.kind)).await;
    world.quiet().await;
    world.agent.stop().await;
    transfer(&world[source], 0, transfers()).await;

    let stop = CancellationToken::new();
    let mut watchers = Vec::new();
    for target in targets {
        let seen = Arc::new(Seen::default());
        let session = world[target].session().await;
        watchers.push((target, seen.clone(), tokio::spawn(watch(session, seen, stop.clone()))));
    }
    world.agent.start();
    world.agent.ready().await;
    // the backlog goes in a few large batches; behind it small ones, until enough was seen
    let mut last = transfers();
    while !watchers.iter().all(|(_, seen, watcher)| seen.enough() || watcher.is_finished()) {
        transfer(&world[source], last, last + 10).await;
        last += 10;
    }
    world.quiet().await;
    stop.cancel();

    for (target, seen, watcher) in watchers {
        watcher.await.unwrap();
        eprintln!("{last} transfers into {target}: {seen:?}");
    }
    assert_eq!(world.rows("parcel", targets[0]).await.len() as u64, last / 10);
}

async fn transfer(db: &Db, from: u64, to: u64) {
    db.execute(&format!("CALL transfer({from}, {to})")).await;
}

#[tokio::test]
async fn readers_of_mysql_and_mariadb_never_see_half_a_transfer() {
    let mut world = world(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)]).await;

    catches_up_whole(&mut world, "crm", &["shop", "erp"]).await;
}

#[tokio::test]
async fn readers_of_postgresql_never_see_half_a_transfer() {
    let mut world = world(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)]).await;

    catches_up_whole(&mut world, "shop", &["crm"]).await;
}
