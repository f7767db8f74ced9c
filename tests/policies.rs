//! Policies beside authority, on servers: what each makes of writes that have not seen each other.

use super::support::books::Books;
use super::support::servers::{Kind, Rows};
use super::support::world::{Entity, Type, World};

const SYSTEMS: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

fn stock(name: &str) -> Entity {
    Entity::new(name)
        .key("id", Type::Int)
        .field("name", Type::Varchar(60))
        .field("place", Type::Varchar(60))
        .field("pieces", Type::Int)
        .field("worth", Type::Decimal(20, 4))
        .field("best", Type::Int)
}

const ROW: &str = "(1, 'screw', 'A', 100, 10.5, 7)";

fn insert(table: &str) -> String {
    format!("INSERT INTO {table} (id, name, place, pieces, worth, best) VALUES {ROW}")
}

/// The one row that all systems hold, its key left out.
async fn agreed(world: &World, entity: &str) -> Vec<String> {
    world.quiet().await;
    let rows: Rows = world.rows(entity, "crm").await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.iter().flatten().skip(1).map(|text| text.clone().unwrap_or_else(|| "NULL".into())).collect()
}

/// What three people sold of one article counts in all, whoever else renamed it, moved it or counted better.
#[tokio::test]
async fn differences_count_in_all_and_fields_are_decided_one_by_one() {
    let merge = r#"merge = { pieces = "add", worth = "add", best = "max" }"#;
    let entities = [stock("by_row").option(merge), stock("by_field").option(merge).option("scope = \"field\"")];
    let [by_row, by_field] = entities;
    let world = World::of(&SYSTEMS).entity(by_row).entity(by_field).start().await;
    for table in ["by_row", "by_field"] {
        world["crm"].execute(&insert(table)).await;
    }
    world.quiet().await;

    world.agent.pause();
    for table in ["by_row", "by_field"] {
        let write = |set: &str| format!("UPDATE {table} SET {set} WHERE id = 1");
        world["crm"].execute(&write("pieces = pieces - 3, name = 'bolt'")).await;
        world["shop"].execute(&write("pieces = pieces - 40, worth = worth + 0.0001, place = 'B', best = 12")).await;
        world["shop"].execute(&write("pieces = pieces - 2")).await;
        world["erp"].execute(&write("pieces = pieces + 1000000, worth = worth * 2, best = 9")).await;
    }
    world.agent.resume();

    let sum = ["1000055", "21.0001", "12"];
    // A row is of one writer, but for what is merged; fields are of several.
    assert_eq!(agreed(&world, "by_row").await, ["bolt", "A", sum[0], sum[1], sum[2]]);
    assert_eq!(agreed(&world, "by_field").await, ["bolt", "B", sum[0], sum[1], sum[2]]);

    // NULL counts as nothing, a type's width bounds no difference, and what all have seen is no conflict.
    let before = Books::read(&world.agent).await;
    world["erp"].execute("UPDATE by_row SET pieces = NULL WHERE id = 1").await;
    world.quiet().await;
    world["shop"].execute("UPDATE by_row SET pieces = 2147483647 WHERE id = 1").await;
    world.quiet().await;
    world["crm"].execute("UPDATE by_row SET pieces = -2147483648 WHERE id = 1").await;
    assert_eq!(agreed(&world, "by_row").await[2], "-2147483648");
    let books = Books::read(&world.agent).await;
    assert_eq!(books.since(&before, "entity_conflicts_total", "by_row"), 0);
    books.assert_balanced(&["crm", "shop", "erp"]);
}

/// A sale is an update: where the record outlives its deletion, what was sold meanwhile is counted.
#[tokio::test]
async fn a_record_that_outlives_its_deletion_keeps_its_sums() {
    let lives = stock("lives").option(r#"merge = { pieces = "add" }"#).option(r#"on_delete = "update_wins""#);
    let dies = stock("dies").option(r#"merge = { pieces = "add" }"#).option(r#"on_delete = "delete_wins""#);
    let world = World::of(&SYSTEMS).entity(lives).entity(dies).start().await;
    for table in ["lives", "dies"] {
        world["crm"].execute(&insert(table)).await;
    }
    world.quiet().await;

    world.agent.pause();
    for table in ["lives", "dies"] {
        world["shop"].execute(&format!("UPDATE {table} SET pieces = pieces - 5 WHERE id = 1")).await;
        world["erp"].execute(&format!("UPDATE {table} SET pieces = pieces - 20 WHERE id = 1")).await;
        world["crm"].execute(&format!("DELETE FROM {table} WHERE id = 1")).await;
    }
    world.agent.resume();

    assert_eq!(agreed(&world, "lives").await, ["screw", "A", "75", "10.5000", "7"]);
    assert_eq!(world.rows("dies", "erp").await.len(), 0);
}

#[tokio::test]
async fn the_latest_wins_by_commit_time_or_by_a_field() {
    let by_time = stock("by_time").option("conflict = \"latest\"");
    let by_best = stock("by_best").option("conflict = \"latest\"").option("latest_by = \"best\"");
    let own_order = stock("own_order").option("authority = [\"shop\", \"crm\"]").only(&["crm", "shop"]);
    let world = World::of(&SYSTEMS).entity(by_time).entity(by_best).entity(own_order).start().await;
    for table in ["by_time", "by_best", "own_order"] {
        world["crm"].execute(&insert(table)).await;
    }
    world.quiet().await;

    world.agent.pause();
    let write =
        |table: &str, name: &str, best: i32| format!("UPDATE {table} SET name = '{name}', best = {best} WHERE id = 1");
    world["crm"].execute(&write("by_best", "first", 30)).await;
    world["crm"].execute(&write("by_time", "first", 0)).await;
    world["crm"].execute(&write("own_order", "of crm", 0)).await;
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    world["shop"].execute(&write("by_best", "second", 20)).await;
    world["shop"].execute(&write("by_time", "second", 0)).await;
    world["shop"].execute(&write("own_order", "of shop", 0)).await;
    world.agent.resume();

    assert_eq!(agreed(&world, "by_time").await[0], "second");
    assert_eq!(agreed(&world, "by_best").await[0], "first");
    assert_eq!(agreed(&world, "own_order").await[0], "of shop");
}

/// What is there stays, whoever wrote the other; a later edit that has seen it leaves nothing to decide.
#[tokio::test]
async fn what_a_person_shall_decide_leaves_everything_as_it_is() {
    let world = World::of(&SYSTEMS).entity(stock("asked").option("conflict = \"manual\"")).start().await;
    world["crm"].execute(&insert("asked")).await;
    world.quiet().await;
    let before = Books::read(&world.agent).await;

    world.agent.pause();
    world["erp"].execute("UPDATE asked SET name = 'of erp' WHERE id = 1").await;
    world["shop"].execute("UPDATE asked SET place = 'of shop' WHERE id = 1").await;
    world.agent.resume();

    let kept = agreed(&world, "asked").await;
    assert!(kept[..2] == ["of erp", "A"] || kept[..2] == ["screw", "of shop"], "{kept:?}");
    assert_eq!(Books::read(&world.agent).await.since(&before, "entity_conflicts_total", "asked"), 1);
}
