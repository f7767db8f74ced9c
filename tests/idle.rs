//! Where nobody writes, the agent does next to nothing: no processor, no commits, and it does
//! not hold back the WAL of databases that are busy.

use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::support::servers::{Db, Kind};
use crate::support::world::{Entity, Type, World};

const THREE: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

fn idle() -> Duration {
    Duration::from_secs(if std::env::var_os("ANECHOIC_SOAK").is_some() { 60 } else { 10 })
}

fn contact() -> Entity {
    Entity::new("contact").key("id", Type::Int).field("name", Type::Text)
}

/// What a commit would change: the binlog's end; in PostgreSQL, which writes of its own accord,
/// the marker's row version.
async fn end_of(db: &Db) -> String {
    let sql = match db.kind {
        Kind::Mysql => "SHOW BINARY LOG STATUS".to_owned(),
        kind if kind.is_mariadb() => "SHOW MASTER STATUS".to_owned(),
        _ => format!("SELECT ctid, xmin, applied_at FROM {}.marker", db.marker),
    };
    format!("{:?}", db.admin().await.rows(&sql).await)
}

#[tokio::test]
async fn idle_systems_cost_nothing_and_see_no_commit() {
    let world = World::of(&THREE).private("crm").private("shop").private("erp").entity(contact()).start().await;
    for (key, (system, _)) in THREE.iter().enumerate() {
        world[system].execute(&format!("INSERT INTO contact (id, name) VALUES ({key}, 'Ada')")).await;
    }
    world.quiet().await;
    // What the last commits set off (their echoes, a position record) is still work.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut ends = Vec::new();
    for (system, _) in THREE {
        ends.push(end_of(&world[system]).await);
    }
    let before = world.agent.status().await.unwrap();

    let (began, used) = (Instant::now(), world.agent.processor_time());
    tokio::time::sleep(idle()).await;
    let used = world.agent.processor_time() - used;
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64();

    eprintln!("idle: {:.2} % of a core", share * 100.0);
    for ((system, _), end) in THREE.iter().zip(ends) {
        assert_eq!(end_of(&world[system]).await, end, "a commit in {system}");
    }
    let after = world.agent.status().await.unwrap();
    assert_eq!(before["journal"]["head"], after["journal"]["head"]);
    for system in 0..3 {
        for counter in ["transactions", "changes"] {
            assert_eq!(before["systems"][system]["apply"][counter], after["systems"][system]["apply"][counter]);
        }
        assert_eq!(before["systems"][system]["capture"]["echoes"], after["systems"][system]["capture"]["echoes"]);
    }
    assert!(share < 0.005, "{:.2} % of a core for nothing", share * 100.0);
}

/// The WAL is the cluster's: a slot that only moves with its own database's commits would keep
/// everything that the others write.
#[tokio::test]
async fn the_slot_of_an_idle_database_lets_the_wal_of_busy_ones_go() {
    let world = World::of(&THREE[..2]).private("crm").entity(contact()).start().await;
    world["crm"].execute("INSERT INTO contact VALUES (1, 'Ada')").await;
    world.quiet().await;
    let busy = Db::on(&world["crm"].server, "busy").await;
    busy.execute("CREATE TABLE t (x text)").await;

    for _ in 0..3 {
        for _ in 0..4 {
            busy.execute("INSERT INTO t SELECT repeat('x', 500) FROM generate_series(1, 20000)").await;
        }
        eventually(Duration::from_secs(90), || async {
            let mut admin = world["crm"].admin().await;
            // The server lets go of WAL only from one snapshot of its running transactions to
            // the next, which it logs every 15 seconds.
            admin.execute("SELECT pg_log_standby_snapshot()").await;
            let lag = |column: &str| format!("pg_wal_lsn_diff(pg_current_wal_lsn(), {column})::bigint");
            let slot = admin
                .rows(&format!(
                    "SELECT {}, {} FROM pg_replication_slots WHERE database = '{}'",
                    lag("confirmed_flush_lsn"),
                    lag("restart_lsn"),
                    world["crm"].name
                ))
                .await;
            let bytes = |at: usize| slot[0][at].as_deref().unwrap().parse::<i64>().unwrap();
            match bytes(0) < 1 << 20 && bytes(1) < 4 << 20 {
                true => Ok(()),
                false => Err(format!("{} bytes are not confirmed, {} held back", bytes(0), bytes(1))),
            }
        })
        .await;
    }
}
