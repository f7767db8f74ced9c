//! Rows written anywhere are everywhere: every ordered pair of engines and the mesh of three,
//! each kind of change, compared value by value.

use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};

/// Two entities with names of their own in each system: a key of one column, and a key of two.
fn entities() -> [Entity; 2] {
    [
        Entity::new("contact")
            .key("id", Type::Int)
            .field("name", Type::Varchar(60))
            .field("score", Type::Decimal(12, 3))
            .field("joined", Type::Timestamp)
            .renamed(),
        Entity::new("order line")
            .key("order", Type::BigInt)
            .key("line", Type::Varchar(20))
            .field("amount", Type::Int)
            .field("note", Type::Text)
            .renamed(),
    ]
}

async fn world(kinds: &[(&str, Kind)]) -> World {
    let [contact, line] = entities();
    World::of(kinds).entity(contact).entity(line).start().await
}

struct Names {
    contact: String,
    contact_columns: [String; 4],
    line: String,
    line_columns: [String; 4],
}

impl Names {
    fn of(world: &World, system: &str) -> Names {
        let column = |entity: &str, field: &str| world.column(entity, field, system);
        Names {
            contact: world.table("contact", system),
            contact_columns: ["id", "name", "score", "joined"].map(|f| column("contact", f)),
            line: world.table("order line", system),
            line_columns: ["order", "line", "amount", "note"].map(|f| column("order line", f)),
        }
    }
}

/// Every kind of change in system `system`, on keys from `base` on.
async fn write(world: &World, system: &str, base: i64) {
    let names = Names::of(world, system);
    let db = &world.system(system).db;
    let Names {
        contact,
        contact_columns: [id, name, score, joined],
        line,
        line_columns: [order, number, amount, note],
    } = names;
    let insert = |key: i64, who: &str| {
        format!(
            "INSERT INTO {contact} ({id}, {name}, {score}, {joined}) VALUES ({key}, '{who}', {key}.250, '2024-02-29 12:34:56.789012')"
        )
    };
    // one by one
    for key in base..base + 10 {
        db.execute(&insert(key, "Ada Łukasz 😀")).await;
    }
    db.execute(&format!("UPDATE {contact} SET {name} = '' WHERE {id} = {base}")).await;
    db.execute(&format!("UPDATE {contact} SET {name} = NULL, {score} = -0.001 WHERE {id} = {}", base + 1)).await;
    db.execute(&format!("DELETE FROM {contact} WHERE {id} = {}", base + 2)).await;
    // a key change, and a key that comes back
    db.execute(&format!("UPDATE {contact} SET {id} = {} WHERE {id} = {}", base + 50, base + 3)).await;
    db.execute(&format!("DELETE FROM {contact} WHERE {id} = {}", base + 4)).await;
    db.execute(&insert(base + 4, "again")).await;
    // many rows and two tables in one transaction
    let mut session = db.session().await;
    session.execute("BEGIN").await;
    let rows: Vec<String> =
        (0..500).map(|i| format!("({}, 'L{i}', {i}, 'it''s \\ \t line {i}')", base + i % 7)).collect();
    session
        .execute(&format!("INSERT INTO {line} ({order}, {number}, {amount}, {note}) VALUES {}", rows.join(",")))
        .await;
    session.execute(&format!("UPDATE {line} SET {amount} = {amount} + 1 WHERE {amount} % 2 = 0")).await;
    session.execute(&format!("DELETE FROM {line} WHERE {order} = {}", base + 6)).await;
    session
        .execute(&format!("UPDATE {contact} SET {score} = {score} + 1 WHERE {id} >= {base} AND {id} < {}", base + 9))
        .await;
    session.execute("COMMIT").await;
    // what is rolled back is nowhere
    session.execute("BEGIN").await;
    session.execute(&format!("DELETE FROM {contact}")).await;
    session.execute("ROLLBACK").await;
}

async fn pair(from: (&'static str, Kind), to: (&'static str, Kind)) {
    replicates(world(&[from, to]).await, from.0, to.0).await;
}

async fn replicates(world: World, from: &str, to: &str) {
    write(&world, from, 1000).await;
    world.agent.wait_quiet().await;

    assert_eq!(world.rows("contact", to).await.len(), 9);
    assert_eq!(world.rows("order line", to).await.len(), 429);
    world.compare().await.unwrap();
}

const PG: (&str, Kind) = ("crm", Kind::Postgres17);
const PG15: (&str, Kind) = ("hub", Kind::Postgres15);
const MY: (&str, Kind) = ("shop", Kind::Mysql);
const MARIA: (&str, Kind) = ("erp", Kind::Mariadb);
const MARIA11: (&str, Kind) = ("depot", Kind::Mariadb11);

#[tokio::test]
async fn postgresql_to_postgresql() {
    pair(PG, PG15).await;
}

#[tokio::test]
async fn older_postgresql_to_postgresql() {
    pair(PG15, PG).await;
}

#[tokio::test]
async fn postgresql_to_mysql() {
    pair(PG, MY).await;
}

#[tokio::test]
async fn mysql_to_postgresql() {
    pair(MY, PG).await;
}

#[tokio::test]
async fn postgresql_to_mariadb() {
    pair(PG, MARIA).await;
}

#[tokio::test]
async fn mariadb_to_postgresql() {
    pair(MARIA, PG).await;
}

#[tokio::test]
async fn mysql_to_mariadb() {
    pair(MY, MARIA).await;
}

#[tokio::test]
async fn mariadb_to_mysql() {
    pair(MARIA, MY).await;
}

#[tokio::test]
async fn mysql_to_mysql() {
    let [contact, line] = entities();
    let world = World::of(&[MY, ("store", Kind::Mysql)]).private("store").entity(contact).entity(line).start().await;

    replicates(world, "shop", "store").await;
}

#[tokio::test]
async fn mariadb_to_newer_mariadb_and_back() {
    pair(MARIA, MARIA11).await;
    pair(MARIA11, MARIA).await;
}

/// Everything at once in all three, on keys of their own.
#[tokio::test]
async fn three_systems_in_a_mesh() {
    let world = world(&[PG, MY, MARIA]).await;

    tokio::join!(write(&world, "crm", 1000), write(&world, "shop", 2000), write(&world, "erp", 3000));
    world.agent.wait_quiet().await;

    assert_eq!(world.rows("contact", "crm").await.len(), 27);
    world.compare().await.unwrap();
}
