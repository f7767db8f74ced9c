//! Wholeness: what one transaction committed becomes visible in a target all at once. A reader
//! that polls the target while thousands of transfers catch up never sees half of one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Looks until told to stop: how often it looked, and how many different states it saw.
async fn watch(mut session: Session, stop: Arc<AtomicBool>) -> (u64, usize) {
    let (mut looks, mut states) = (0, BTreeSet::new());
    while !stop.load(Ordering::Relaxed) {
        let row = session.rows(LOOK).await.remove(0);
        let whole = [(ACCOUNTS * OPENING).to_string(), ACCOUNTS.to_string()].map(Some);
        assert_eq!(row[..2], whole, "look {looks}, after {} states", states.len());
        looks += 1;
        states.insert(row);
    }
    (looks, states.len())
}

async fn catches_up_whole(world: &mut World, source: &str, targets: &[&str]) {
    let db = &world[source];
    let rows: Vec<String> = (0..ACCOUNTS).map(|id| format!("({id}, {OPENING})")).collect();
    db.execute(&format!("INSERT INTO account VALUES {}", rows.join(", "))).await;
    db.execute(procedure(db.kind)).await;
    world.quiet().await;
    world.agent.stop().await;
    transfer(&world[source], 0, transfers()).await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut watchers = Vec::new();
    for target in targets {
        watchers.push((target, tokio::spawn(watch(world[target].session().await, stop.clone()))));
    }
    world.agent.start();
    world.agent.ready().await;
    // behind the backlog, which goes in large batches, some that are applied one by one
    transfer(&world[source], transfers(), transfers() + 1000).await;
    world.quiet().await;
    stop.store(true, Ordering::Relaxed);

    for (target, watcher) in watchers {
        let (looks, states) = watcher.await.unwrap();
        eprintln!("{} transfers into {target}: {looks} looks, {states} states", transfers() + 1000);
        assert!(looks >= 300 && states >= 5, "{target}: {looks} looks, {states} states");
    }
    assert_eq!(world.rows("parcel", targets[0]).await.len() as u64, (transfers() + 1000) / 10);
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
