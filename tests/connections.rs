//! Several connections to one target: what is in it is a beginning of the journal at any time, whatever lies
//! between the rows of batches that are written at once, whoever dies, and whatever is refused.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::support::quarantine::{held, settled, until_held};
use super::support::servers::Kind;
use super::support::world::{Builder, Entity, Type, World};
use super::support::{eventually, seeded};

/// Owners have a tag that no two have at once; items belong to owners. Half a dozen changes fill a batch.
fn world(systems: &[(&str, Kind)], connections: usize) -> Builder {
    let owner = Entity::new("owner").key("id", Type::Int).field("tag", Type::Varchar(20)).field("note", Type::Int);
    let item = Entity::new("item").key("id", Type::Int).field("owner", Type::Int).field("count", Type::Int);
    let mut builder = World::of(systems).entity(owner).entity(item);
    for (system, _) in systems {
        let apply = format!("apply = {{ connections = {connections} }}");
        builder = builder
            .system_option(system, &apply)
            .ddl(system, "CREATE UNIQUE INDEX one_tag ON owner (tag)")
            .ddl(system, "ALTER TABLE item ADD FOREIGN KEY (owner) REFERENCES owner (id)");
    }
    builder
}

async fn started(builder: Builder, changes: u64) -> World {
    let mut world = builder.build().await;
    world.agent.set_env("ANECHOIC_BATCH_CHANGES", &changes.to_string());
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
    world
}

/// What the source has, so that what is written is allowed there.
struct Source {
    random: StdRng,
    owners: BTreeMap<u64, Option<u64>>,
    items: BTreeMap<u64, u64>,
    /// Tags that somebody had and nobody has.
    free: Vec<u64>,
    next: u64,
}

impl Source {
    fn new() -> Source {
        Source { random: seeded(), owners: BTreeMap::new(), items: BTreeMap::new(), free: Vec::new(), next: 0 }
    }

    fn one_of<V: Copy>(&mut self, of: fn(&Source) -> &BTreeMap<u64, V>) -> Option<(u64, V)> {
        let from = self.random.random_range(0..=self.next);
        let all = of(self);
        // Mostly a new one: what was just written is what the next batch meets.
        all.range(from.max(self.next.saturating_sub(30))..).next().or(all.iter().next_back()).map(|(k, v)| (*k, *v))
    }

    fn tag(tag: Option<u64>) -> String {
        tag.map_or("NULL".into(), |tag| format!("'t{tag}'"))
    }

    /// One statement that the source takes.
    fn statement(&mut self) -> String {
        self.next += 1;
        let new = self.next;
        let owner = self.one_of(|source| &source.owners);
        match (self.random.random_range(0..10), owner) {
            (0..2, _) | (_, None) => {
                let tag = self.free.pop().unwrap_or(new);
                self.owners.insert(new, Some(tag));
                format!("INSERT INTO owner VALUES ({new}, {}, 0)", Self::tag(Some(tag)))
            }
            (2, Some((id, Some(tag)))) => {
                self.free.push(tag);
                self.owners.insert(id, None);
                format!("UPDATE owner SET tag = NULL WHERE id = {id}")
            }
            (2, Some((id, None))) => {
                let tag = self.free.pop();
                self.owners.insert(id, tag);
                format!("UPDATE owner SET tag = {} WHERE id = {id}", Self::tag(tag))
            }
            (3, Some((id, _))) => format!("UPDATE owner SET note = note + 1 WHERE id = {id}"),
            (4, Some((id, tag))) if self.items.values().all(|owner| *owner != id) => {
                self.owners.remove(&id);
                self.free.extend(tag);
                format!("DELETE FROM owner WHERE id = {id}")
            }
            (5, Some(_)) if !self.items.is_empty() => {
                let (item, _) = self.one_of(|source| &source.items).expect("there are some");
                self.items.remove(&item);
                format!("DELETE FROM item WHERE id = {item}")
            }
            (6, Some((owner, _))) if !self.items.is_empty() => {
                let (item, _) = self.one_of(|source| &source.items).expect("there are some");
                self.items.insert(item, owner);
                format!("UPDATE item SET owner = {owner}, count = count + 1 WHERE id = {item}")
            }
            (_, Some((owner, _))) => {
                self.items.insert(new, owner);
                format!("INSERT INTO item VALUES ({new}, {owner}, 1)")
            }
        }
    }

    async fn write(&mut self, world: &World, system: &str, transactions: usize) {
        let mut session = world[system].session().await;
        for _ in 0..transactions {
            let size = self.random.random_range(1..6);
            let statements: Vec<String> = (0..size).map(|_| self.statement()).collect();
            session.execute(&format!("BEGIN; {}; COMMIT", statements.join("; "))).await;
        }
    }
}

/// Rows whose order only the servers' own rules show: a tag that goes from one owner to another, an item behind
/// its owner, an owner without items. Nothing is refused for good, and all is equal.
async fn rows_that_lean_on_each_other(source: Kind, targets: &[(&str, Kind)], connections: usize) {
    let systems: Vec<(&str, Kind)> = [("crm", source)].into_iter().chain(targets.iter().copied()).collect();
    let mut world = started(world(&systems, connections), 6).await;
    let mut from = Source::new();
    for round in 0..3 {
        world.agent.stop().await;
        from.write(&world, "crm", 400).await;
        world.agent.start();
        world.agent.ready().await;
        world.quiet().await;
        assert!(held(&world).await.is_empty(), "round {round}: something is held");
    }
    assert!(world.rows("owner", "crm").await.len() > 20 && world.rows("item", "crm").await.len() > 100);
}

#[tokio::test]
async fn rows_that_lean_on_each_other_from_postgresql() {
    rows_that_lean_on_each_other(Kind::Postgres17, &[("shop", Kind::Mysql), ("hub", Kind::Postgres17)], 4).await;
}

#[tokio::test]
async fn rows_that_lean_on_each_other_from_mariadb() {
    rows_that_lean_on_each_other(Kind::Mariadb, &[("shop", Kind::Mysql), ("hub", Kind::Postgres15)], 3).await;
}

/// One row of a flood is refused: it alone is set aside, and what came behind it arrives.
#[tokio::test]
async fn of_a_flood_the_refused_row_alone_is_set_aside() {
    let only = "ALTER TABLE owner ADD CONSTRAINT few CHECK (note < 1000)";
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("hub", Kind::Postgres17)];
    let builder = world(&systems, 3).ddl("shop", only).ddl("hub", only);
    let mut world = started(builder, 6).await;
    world.agent.stop().await;
    let mut session = world["crm"].session().await;
    for id in 0..400 {
        let note = if id == 200 { 5000 } else { id };
        session.execute(&format!("INSERT INTO owner VALUES ({id}, NULL, {note})")).await;
    }

    world.agent.start();
    world.agent.ready().await;
    until_held(&world, 2).await;
    settled(&world).await;

    assert_eq!(held(&world).await, ["hub owner 200", "shop owner 200"]);
    for target in ["shop", "hub"] {
        assert_eq!(world.rows("owner", target).await.len(), 399, "{target}");
    }
    session.execute("UPDATE owner SET note = 7 WHERE id = 200").await;
    world.quiet().await;
    assert!(held(&world).await.is_empty());
}

/// The first of two batches waits for a row that somebody else is about to write. Meanwhile the second one is written,
/// and has locked an owner when the first one comes to an item of that owner: no server sees that the second one waits
/// for us. Without giving way the first one would run into the server's lock timeout, again and again.
#[tokio::test]
async fn a_later_batch_gives_way_and_is_not_seen_before_an_earlier_one() {
    let mut world = started(world(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)], 2), 6).await;
    let mut session = world["crm"].session().await;
    session.execute("INSERT INTO owner SELECT n, NULL, 0 FROM generate_series(1, 8) AS s(n)").await;
    world.quiet().await;
    world.agent.stop().await;
    let items = "INSERT INTO item SELECT n, 1, 1 FROM generate_series(10, 17) AS s(n)";
    session.execute(&format!("BEGIN; INSERT INTO owner VALUES (50, NULL, 0); {items}; COMMIT")).await;
    session.execute("UPDATE owner SET note = note + 1 WHERE id <= 8").await;
    session.execute("INSERT INTO owner SELECT n, NULL, 0 FROM generate_series(60, 70) AS s(n)").await;

    let mut other = world["shop"].session().await;
    other.execute("BEGIN").await;
    other.execute("INSERT INTO owner VALUES (50, NULL, 0)").await;
    world.agent.start();
    world.agent.ready().await;
    let waits = "SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p \
                 ON p.id = t.trx_mysql_thread_id WHERE t.trx_state = 'LOCK WAIT' AND p.db = database()";
    let watcher = tokio::sync::Mutex::new(world["shop"].admin().await);
    eventually(Duration::from_secs(20), async || match watcher.lock().await.rows(waits).await[0][0].as_deref() {
        Some("0") => Err("no session waits for a lock".to_owned()),
        _ => Ok(()),
    })
    .await;
    let ahead = "SELECT count(*) FROM owner WHERE id > 8 OR note > 0";
    for _ in 0..20 {
        assert_eq!(world["shop"].rows(ahead).await[0][0].as_deref(), Some("0"));
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    other.execute("ROLLBACK").await;

    world.converged(Duration::from_secs(20)).await;
    world.quiet().await;
}

/// As many connections as the file says from one start to the next; the marker goes on where it was.
#[tokio::test]
async fn connections_come_and_go() {
    let mut world = started(world(&[("crm", Kind::Postgres17), ("shop", Kind::Mariadb)], 1), 6).await;
    let mut from = Source::new();
    for connections in [4, 1, 2] {
        world.agent.stop().await;
        let config = std::fs::read_to_string(world.agent.config()).unwrap();
        let lines = config.lines().map(|line| match line.starts_with("apply = ") {
            true => format!("apply = {{ connections = {connections} }}\n"),
            false => format!("{line}\n"),
        });
        std::fs::write(world.agent.config(), lines.collect::<String>()).unwrap();
        from.write(&world, "crm", 150).await;
        world.agent.start();
        world.agent.ready().await;
        world.quiet().await;
    }
    let rows = format!("SELECT count(*) FROM {}.marker", world["shop"].marker);
    assert_eq!(world["shop"].admin().await.rows(&rows).await[0][0].as_deref(), Some("4"));
}
