//! What the agent has set aside, as an operator sees it: the list on the control socket while it
//! runs, the journal's records when it does not.

use anechoic::change::{Changes, Record};
use anechoic::control::{Answer, Client, Held, Request};
use anechoic::value::Datum;

use super::world::World;
use super::{SOON, eventually};

pub async fn list(world: &World) -> Result<Vec<Held>, String> {
    let client = Client::connect(&world.agent.data_dir()).await.map_err(|e| e.full())?;
    let answer = client.ok_or("no agent listens")?.ask(&Request::Quarantine).await.map_err(|e| e.full())?;
    match answer {
        Answer::Quarantine { held } => Ok(held),
        other => Err(format!("{other:?}")),
    }
}

/// `system entity key` of each, sorted.
pub async fn held(world: &World) -> Vec<String> {
    let list = list(world).await.unwrap();
    let mut held: Vec<String> = list.iter().map(|h| format!("{} {} {}", h.system, h.entity, h.key)).collect();
    held.sort();
    held
}

/// Waits until that many keys are held, over all systems.
#[track_caller]
pub fn until_held(world: &World, count: usize) -> impl Future<Output = Vec<Held>> {
    // Some are within large transactions.
    eventually(2 * SOON, move || async move {
        let list = list(world).await?;
        match list.len() == count {
            true => Ok(list),
            false => Err(format!("{} keys are held instead of {count}: {list:#?}", list.len())),
        }
    })
}

/// Everything committed before is applied or set aside.
pub async fn settled(world: &World) {
    let output = world.agent.command(&["wait", "--timeout", "120s"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    for behind in ["not captured up to", "has seq", "cannot tell", "stopped"] {
        assert!(!said.contains(behind), "{said}");
    }
}

/// The records of a journal whose agent has ended.
pub fn records(world: &World) -> Vec<Record> {
    let options = anechoic::journal::Options::new(world.agent.data_dir().join("journal"), 1 << 30);
    let (_writer, journal, _) = anechoic::journal::open(&options).unwrap();
    let mut reader = journal.reader(journal.oldest()).unwrap();
    std::iter::from_fn(|| reader.next().unwrap()).collect()
}

/// `system entity key … reason` of each row that was set aside at its capture.
pub fn refused(world: &World) -> Vec<String> {
    let line = |record: Record| {
        let Record::Refused(refused) = record else { return None };
        let change = Changes::new(&refused.change).next().unwrap();
        let entity = refused.schema.entity(change.entity);
        let Datum::Value(key) = change.image().get(0) else { return None };
        let key = anechoic::control::text(key);
        Some(format!("{} {} {key} … {}", refused.system, entity.name, refused.reason))
    };
    records(world).into_iter().filter_map(line).collect()
}
