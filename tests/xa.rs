//! XA transactions through a whole agent: applied when they are committed, whoever died since
//! they were prepared.

use super::support::books::Books;
use super::support::servers::{Kind, Session};
use super::support::world::{Entity, Type, World};

const MYSQLS: [Kind; 2] = [Kind::Mysql, Kind::Mariadb];

fn item() -> Entity {
    Entity::new("item").key("id", Type::Int).field("name", Type::Text)
}

async fn world(kind: Kind) -> World {
    World::of(&[("crm", Kind::Postgres17), ("shop", kind)]).private("shop").entity(item()).start().await
}

/// Everything committed so far is applied; what is prepared is read, and held.
async fn caught_up(world: &World) {
    world.agent.run(&["wait", "--timeout", "120s"]).await;
}

async fn in_crm(world: &World) -> Vec<String> {
    let rows = world["crm"].rows("SELECT id, name FROM item ORDER BY id").await;
    rows.into_iter().map(|row| format!("{} {}", row[0].clone().unwrap(), row[1].clone().unwrap())).collect()
}

async fn prepare(session: &mut Session, xid: &str, sql: &str) {
    session.execute(&format!("XA START '{xid}'; {sql}; XA END '{xid}'; XA PREPARE '{xid}'")).await;
}

/// Two of them interleaved; the agent is killed, and the server, while both are prepared.
#[tokio::test]
async fn what_is_prepared_survives_the_deaths_of_agent_and_server() {
    for kind in MYSQLS {
        let mut world = world(kind).await;
        world["shop"].execute("INSERT INTO item VALUES (1, 'one'), (2, 'two')").await;
        let (mut a, mut b) = (world["shop"].session().await, world["shop"].session().await);
        prepare(&mut a, "a", "INSERT INTO item VALUES (10, 'of a'); UPDATE item SET name = 'changed' WHERE id = 1")
            .await;
        prepare(&mut b, "b", "INSERT INTO item VALUES (20, 'of b'); DELETE FROM item WHERE id = 2").await;
        world["shop"].execute("INSERT INTO item VALUES (3, 'three')").await;
        caught_up(&world).await;
        assert_eq!(in_crm(&world).await, ["1 one", "2 two", "3 three"], "{}", kind.name());

        world.agent.kill();
        world.server("shop").kill().await;
        world.server("shop").start().await;
        let _ = world["shop"].try_rows("SELECT 1").await; // its session died with the server
        world.agent.start();
        world.agent.ready().await;
        caught_up(&world).await;
        assert_eq!(in_crm(&world).await, ["1 one", "2 two", "3 three"], "{}", kind.name());

        let mut admin = world["shop"].admin().await;
        admin.execute("XA COMMIT 'a'").await;
        caught_up(&world).await;
        assert_eq!(in_crm(&world).await, ["1 changed", "2 two", "3 three", "10 of a"], "{}", kind.name());
        // Once more, with the other one held by a journal that was checkpointed meanwhile.
        assert_eq!(world.agent.stop().await.code(), Some(0));
        world.agent.start();
        world.agent.ready().await;
        admin.execute("XA ROLLBACK 'b'").await;
        world.quiet().await;
        assert_eq!(in_crm(&world).await, ["1 changed", "2 two", "3 three", "10 of a"], "{}", kind.name());
        let spool = world.agent.data_dir().join("journal/spool");
        let left = std::fs::read_dir(spool).unwrap().count();
        assert_eq!(left, 1, "{}: of b nothing is kept", kind.name());
    }
}

/// The decision's place in the order counts, not the rows': what was applied in between is seen.
#[tokio::test]
async fn an_xa_commit_is_admitted_with_the_base_of_its_commit() {
    for kind in MYSQLS {
        let world = world(kind).await;
        world["shop"].execute("INSERT INTO item VALUES (1, 'one'), (2, 'two')").await;
        caught_up(&world).await;
        let mut a = world["shop"].session().await;
        prepare(&mut a, "a", "UPDATE item SET name = 'by xa' WHERE id = 1").await;
        caught_up(&world).await;
        // The shop sees this one before it commits: no conflict.
        world["crm"].execute("UPDATE item SET name = 'by crm' WHERE id = 2").await;
        caught_up(&world).await;
        a.execute("XA COMMIT 'a'; UPDATE item SET name = 'then' WHERE id = 2").await;
        world.quiet().await;

        assert_eq!(in_crm(&world).await, ["1 by xa", "2 then"], "{}", kind.name());
        let books = Books::read(&world.agent).await;
        books.assert_balanced(&["crm", "shop"]);
    }
}

/// More than a MiB is spooled in chunks; a rollback leaves nothing, the books balance.
#[tokio::test]
async fn large_and_rolled_back_ones_leave_the_books_in_balance() {
    for kind in MYSQLS {
        let world = world(kind).await;
        let mut a = world["shop"].session().await;
        let rows: Vec<String> = (0..300).map(|id| format!("({id}, repeat('{}', 10000))", id % 10)).collect();
        prepare(&mut a, "big", &format!("INSERT INTO item VALUES {}", rows.join(", "))).await;
        caught_up(&world).await;
        assert!(in_crm(&world).await.is_empty());
        a.execute("XA ROLLBACK 'big'").await;
        prepare(&mut a, "big", &format!("INSERT INTO item VALUES {}", rows.join(", "))).await;
        a.execute("XA COMMIT 'big'").await;
        world.quiet().await;

        assert_eq!(in_crm(&world).await.len(), 300, "{}", kind.name());
        Books::read(&world.agent).await.assert_balanced(&["crm", "shop"]);
    }
}

/// Prepared as one kind of value, committed when the tables have another: read as what it became.
#[tokio::test]
async fn what_is_prepared_is_carried_as_the_tables_are_when_it_is_committed() {
    for kind in MYSQLS {
        let item = Entity::new("item").key("id", Type::Int).field("name", Type::Text).field("qty", Type::Int);
        let mut world =
            World::of(&[("crm", Kind::Postgres17), ("shop", kind)]).private("shop").entity(item).start().await;
        world["shop"].execute("INSERT INTO item VALUES (1, 'one', 1)").await;
        let mut session = world["shop"].session().await;
        prepare(
            &mut session,
            "a",
            "INSERT INTO item VALUES (10, 'of a', 2147483647); UPDATE item SET qty = 2 WHERE id = 1",
        )
        .await;
        caught_up(&world).await;

        world["crm"].execute("ALTER TABLE item ALTER qty TYPE numeric(20)").await;
        assert_eq!(world.agent.stop().await.code(), Some(0));
        world.agent.start();
        world.agent.ready().await;
        world["crm"].execute("INSERT INTO item VALUES (2, 'two', 22)").await;
        caught_up(&world).await;
        session.execute("XA COMMIT 'a'").await;
        caught_up(&world).await;

        let rows = world["crm"].rows("SELECT id, qty FROM item ORDER BY id").await;
        let rows: Vec<String> =
            rows.iter().map(|row| row.iter().flatten().cloned().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows, ["1 2", "2 22", "10 2147483647"], "{}", kind.name());
        world.quiet().await;
    }
}
