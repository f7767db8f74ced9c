//! The ground under the other tests: servers, databases, roles, proxy.

use std::time::{Duration, Instant};

use crate::support::proxy::{Proxy, Side};
use crate::support::servers::{Db, Kind, Server, Session};
use crate::support::world::{Entity, Type, World};
use crate::support::{SOON, eventually};

#[tokio::test]
async fn each_test_gets_a_database_of_its_own_and_reads_text() {
    for kind in Kind::ENGINES {
        let db = Db::new(kind).await;
        let other = Db::new(kind).await;

        for db in [&db, &other] {
            db.execute("CREATE TABLE t (id int PRIMARY KEY, name varchar(20)); INSERT INTO t VALUES (1, 'Zoë 🦊')")
                .await;
        }
        db.execute("INSERT INTO t VALUES (2, NULL)").await;

        assert_eq!(
            db.rows("SELECT id, name FROM t ORDER BY id").await,
            [[Some("1".into()), Some("Zoë 🦊".into())], [Some("2".into()), None]]
        );
        assert_eq!(other.value("SELECT count(*) FROM t").await.as_deref(), Some("1"));
    }
}

/// The agent's role is a plain one; a superuser's rights would hide what README.md forgets.
#[tokio::test]
async fn the_agent_logs_in_with_its_password_and_is_no_superuser() {
    for kind in Kind::ENGINES {
        let db = Db::new(kind).await;
        let config = db.connect_config();
        let query = if kind.is_postgres() {
            "SELECT rolsuper::int FROM pg_roles WHERE rolname = current_user"
        } else {
            "SELECT count(*) FROM information_schema.user_privileges WHERE privilege_type = 'SUPER'"
        };

        let mut agent = Session::open_as(&db.server, &db.agent, config.port, Some(&db.name)).await.unwrap();

        assert_eq!(agent.rows(query).await, [[Some("0".to_owned())]], "{}", kind.name());
    }
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port_with_what_was_committed() {
    for kind in Kind::ENGINES {
        let server = std::sync::Arc::new(Server::private(kind, &[]).await);
        let db = Db::on(&server, "kill").await;
        db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
        db.execute("INSERT INTO t VALUES (7)").await;
        let pid = server.pid();

        server.kill().await;
        assert!(db.try_rows("SELECT 1").await.is_err());
        server.start().await;

        let ids = eventually(SOON, || db.try_rows("SELECT id FROM t")).await;
        assert_eq!(ids, [[Some("7".to_owned())]]);
        assert_ne!(server.pid(), pid);
    }
}

#[tokio::test]
async fn the_proxy_stalls_cuts_and_refuses() {
    let db = Db::new(Kind::Postgres17).await;
    let proxy = Proxy::new(db.server.port).await;
    let through = async || Session::open_as(&db.server, &db.agent, proxy.port(), Some(&db.name)).await;
    let mut session = through().await.unwrap();
    session.execute("SELECT 1").await;

    proxy.stall();
    let began = Instant::now();
    assert!(tokio::time::timeout(Duration::from_millis(100), session.try_rows("SELECT 1")).await.is_err());
    proxy.pass();
    session.execute("SELECT 1").await;
    assert!(began.elapsed() >= Duration::from_millis(100));

    proxy.cut();
    assert!(session.try_execute("SELECT 1").await.is_err());

    proxy.refuse();
    eventually(SOON, async || match through().await {
        Err(error) if error.contains("refused") => Ok(()),
        other => Err(other.err().unwrap_or_default()),
    })
    .await;
    proxy.pass();
    let mut session = eventually(SOON, &through).await;

    proxy.half_close(Side::Agent);
    assert!(session.try_execute("SELECT 1").await.is_err());
}

/// What an applier must survive: the server has committed, and nobody says so.
#[tokio::test]
async fn cut_after_commit_leaves_the_outcome_unknown_and_the_row_there() {
    for kind in Kind::ENGINES {
        let db = Db::new(kind).await;
        db.execute("CREATE TABLE t (id int PRIMARY KEY)").await;
        let proxy = Proxy::new(db.server.port).await;
        let mut session = Session::open_as(&db.server, &db.application, proxy.port(), Some(&db.name)).await.unwrap();
        session.execute("BEGIN").await;
        session.execute("INSERT INTO t VALUES (7)").await;

        proxy.cut_after("COMMIT");
        assert!(session.try_execute("COMMIT").await.is_err(), "{}", kind.name());

        assert_eq!(proxy.fired(), 1);
        assert_eq!(db.rows("SELECT id FROM t").await, [[Some("7".to_owned())]]);
    }
}

/// The comparison that the other tests trust: equal values are equal in every engine's own
/// spelling, and different ones are found.
#[tokio::test]
async fn a_world_compares_values_not_spellings() {
    let world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)])
        .entity(
            Entity::new("thing")
                .key("id", Type::Int)
                .field("flag", Type::Bool)
                .field("big", Type::Unsigned)
                .field("price", Type::Decimal(12, 3))
                .field("f4", Type::Float)
                .field("f8", Type::Double)
                .field("name", Type::Text)
                .field("data", Type::Bytes)
                .field("day", Type::Date)
                .field("hour", Type::Time)
                .field("local", Type::DateTime)
                .field("at", Type::Timestamp)
                .field("uid", Type::Uuid)
                .field("doc", Type::Json)
                .field("size", Type::Enum(&["small", "large"]))
                .renamed(),
        )
        .build()
        .await;
    for system in ["crm", "shop", "erp"] {
        let (table, kind) = (world.table("thing", system), world[system].kind);
        let bytes = if kind.is_postgres() { "'\\x00ff'" } else { "x'00ff'" };
        let zone = if kind.is_postgres() { "+00" } else { "" };
        world[system]
            .execute(&format!(
                "INSERT INTO {table} VALUES (1, true, 18446744073709551615, 1.500, 0.1, 1e-300, 'Zoë', {bytes}, \
                 '2026-02-28', '23:59:59.000001', '2026-02-28 01:02:03.5', '2026-02-28 01:02:03.25{zone}', \
                 'a0EEbc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{{\"b\":1, \"a\": [null]}}', 'large'), \
                 (2, null, null, null, null, null, null, null, null, null, null, null, null, null, null)"
            ))
            .await;
    }

    assert_eq!(world.compare().await, Ok(()));

    let column = world.column("thing", "name", "erp");
    world["erp"].execute(&format!("UPDATE thing_erp SET {column} = 'zoë' WHERE id_erp = 1")).await;
    let difference = world.compare().await.unwrap_err();
    assert!(difference.contains("only in crm: 1 | 1 |") && difference.contains("only in erp: 1 | 1 |"), "{difference}");
}
