//! Rows that no log tells of, over the whole type matrix: what a load writes is what the stream
//! writes of the same value, and a comparison calls equal what arrived either way, and nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::super::support::quarantine::{list, settled};
use super::super::support::world::World;
use super::{Source, builder, kind, native, numbered, read, rendered, same, session, sources, write};

/// Keys of the rows that were there before the agent; the same values come again, live.
const BEFORE: usize = 0;
const LIVE: usize = 100_000;
const LOADED_WITHIN: Duration = Duration::from_secs(60);

/// `system entity key` of all that is set aside in a target.
async fn held(world: &World) -> BTreeSet<String> {
    let list = list(world).await.unwrap();
    list.iter().map(|held| format!("{} {} {}", held.system, held.entity, held.key)).collect()
}

fn line(system: &str, source: &Source, key: usize) -> String {
    format!("{system} {} {key}", source.entity)
}

/// What each target stored of each value is the same, whichever way it came.
async fn both_ways_are_one(world: &World, source: &Source) {
    let held = held(world).await;
    let mut wrong = Vec::new();
    for (place, target) in source.targets.iter().copied().enumerate() {
        let there =
            read(world, source, target, |spec| native(spec.read, kind(target), spec.to[place].0, "COLUMN")).await;
        for (at, (column, value)) in numbered(source).into_iter().enumerate() {
            let spec = source.specs[column];
            let stored = |first: usize| there.get(&(first + at)).and_then(|row| row[column].as_ref());
            let aside = |first: usize| held.contains(&line(target, source, first + at));
            if (stored(BEFORE), aside(BEFORE)) != (stored(LIVE), aside(LIVE)) {
                wrong.push(format!(
                    "{} {} {:?} in {target} ({}): loaded {:?}, held: {}; streamed {:?}, held: {}",
                    source.title,
                    spec.ddl,
                    spec.values[value].0,
                    spec.to[place].0,
                    stored(BEFORE),
                    aside(BEFORE),
                    stored(LIVE),
                    aside(LIVE)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "a load writes other than the stream:\n{}", wrong.join("\n"));
}

/// `system entity` of rows that hold a NULL, because the value that followed is set aside.
async fn overtaken(world: &World, source: &Source, target: &str, held: &BTreeSet<String>) -> u64 {
    let rows = session(world, target).await.rows(&format!("SELECT id FROM {}", source.entity)).await;
    let keys = rows.into_iter().map(|mut row| row.remove(0).unwrap().parse::<usize>().unwrap());
    keys.filter(|key| held.contains(&line(target, source, *key))).count() as u64
}

/// One value in each column of each target becomes another one of that column, behind the
/// agent's back. How many did, by target and entity.
async fn plant(world: &World, source: &Source, place: usize) -> u64 {
    let target = source.targets[place];
    let to = kind(target);
    let there = read(world, source, target, |spec| rendered(spec.read, to, spec.to[place].0, "COLUMN")).await;
    let mut session = session(world, target).await;
    let mut planted = 0;
    for (column, spec) in source.specs.iter().enumerate() {
        let values: Vec<(usize, &String)> =
            there.iter().filter_map(|(key, row)| Some((*key, row[column].as_ref()?))).collect();
        let how = spec.to[place].1;
        let other = values.iter().find(|(_, value)| !same(spec.read, how, values[0].1, value));
        let Some((other, _)) = other else { continue };
        let (table, key) = (source.entity, values[0].0);
        let sql = match to.is_postgres() {
            true => format!(
                "UPDATE {table} a SET c{column} = b.c{column} FROM {table} b WHERE a.id = {key} AND b.id = {other}"
            ),
            false => format!(
                "UPDATE {table} a JOIN {table} b ON b.id = {other} SET a.c{column} = b.c{column} WHERE a.id = {key}"
            ),
        };
        session.execute(&sql).await;
        planted += 1;
    }
    planted
}

async fn verify(world: &World, options: &[&str]) -> (i32, Vec<Value>) {
    let words: Vec<&str> = ["verify", "--json", "--values"].iter().chain(options).copied().collect();
    let output = world.agent.command(&words).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let found = serde_json::from_str(&said);
    let complaint = String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), found.unwrap_or_else(|e| panic!("{e}: {said} {complaint}")))
}

fn of<'f>(found: &'f [Value], source: &Source, target: &str) -> &'f Value {
    &found.iter().find(|found| found["entity"] == source.entity).unwrap()["systems"][target]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_writes_what_the_stream_writes_and_both_compare_as_equal_in_every_type() {
    let mut world = builder().build().await;
    for source in sources() {
        write(&world, &source, BEFORE).await;
    }
    world.setup().await;
    world.agent.start();
    world.agent.ready_within(LOADED_WITHIN).await;
    for source in sources() {
        write(&world, &source, LIVE).await;
    }
    settled(&world).await;
    for source in sources() {
        both_ways_are_one(&world, &source).await;
    }

    let (code, found) = verify(&world, &[]).await;
    assert_eq!(code, 0, "{found:#?}");

    // once more, into tables that have rows
    for source in sources() {
        for target in source.targets {
            session(&world, target).await.execute(&format!("DELETE FROM {} WHERE id < {LIVE}", source.entity)).await;
        }
    }
    let held = held(&world).await;
    let said = world.agent.run(&["load", "--json"]).await;
    let loads: Vec<Value> = serde_json::from_str(&said).unwrap();
    settled(&world).await;
    for source in sources() {
        for target in source.targets {
            let different = overtaken(&world, &source, target, &held).await;
            assert_eq!(of(&loads, &source, target)["different"], different, "{said}");
        }
        both_ways_are_one(&world, &source).await;
    }

    let mut planted = Vec::new();
    for source in sources() {
        for (place, target) in source.targets.into_iter().enumerate() {
            planted.push((source.entity, target, plant(&world, &source, place).await));
        }
    }
    eprintln!("planted: {planted:?}");
    let (code, found) = verify(&world, &[]).await;
    assert_eq!(code, 1);
    for (entity, target, count) in planted {
        let source = sources().into_iter().find(|source| source.entity == entity).unwrap();
        assert_eq!(of(&found, &source, target)["different"], count, "{entity} in {target}: {found:#?}");
    }

    verify(&world, &["--repair"]).await;
    settled(&world).await;
    let (code, found) = verify(&world, &[]).await;
    assert_eq!(code, 0, "{found:#?}");
}
