//! Tells the service manager how the agent is: ready, alive, going, and in one line what it does.
//!
//! *Ready* is what has started, not what is reachable: a database that is down is the databases'
//! trouble, and must not have the agent killed. *Alive* is said only while the process really turns:
//! this task runs (the runtime), and the desk has turned since the last time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::notify::Manager;
use crate::status::{State, Status};

/// A system that is not to be had yet keeps the service from being ready no longer than this.
const READY_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The manager shows one line.
const STATUS_MAX: usize = 400;

/// Runs until `stop`; at once over where nobody wants to hear.
pub async fn announce(mut shown: watch::Receiver<Arc<Status>>, stop: CancellationToken) {
    let Some(manager) = Manager::from_env() else { return };
    let mut pause = tokio::time::interval(manager.watchdog.map_or(LOOK_EVERY, |limit| (limit / 4).min(LOOK_EVERY)));
    let (mut started, mut ready, mut said, mut turns) = (Instant::now(), false, String::new(), None);
    let mut status = shown.borrow_and_update().clone();
    loop {
        tokio::select! {
            _ = pause.tick() => {}
            () = stop.cancelled() => break manager.tell(&["STOPPING=1", "STATUS=stopping"]),
        }
        // By another configuration it starts anew, and is ready anew.
        if shown.has_changed().unwrap_or(false) {
            status = shown.borrow_and_update().clone();
            (started, ready) = (Instant::now(), false);
        }
        let (settled, text) = look(&status);
        if !ready && (settled || started.elapsed() >= READY_WITHIN) {
            ready = true;
            manager.tell(&["READY=1", &text]);
        } else if text != said {
            manager.tell(&[&text]);
        }
        said = text;
        // While no desk is at work (the start, another model), this task is what turns.
        let turned = desk_turns(&status);
        if manager.watchdog.is_some() && (turned.is_none() || turned != turns) {
            manager.tell(&["WATCHDOG=1"]);
        }
        turns = turned;
    }
}

fn state(status: &Status) -> &'static str {
    *status.state.lock().expect("never held across a panic")
}

fn desk_turns(status: &Status) -> Option<u64> {
    status.desk_works.load(Ordering::Relaxed).then(|| status.desk_turns.get())
}

/// Whether each system has been tried, and the line that says how they are.
fn look(status: &Status) -> (bool, String) {
    let running = state(status) == "running";
    let (mut settled, mut fine, mut troubles) = (running, Vec::new(), Vec::new());
    for system in &status.systems {
        let capture = system.capture.state.lock().expect("never held across a panic").clone();
        let apply = system.apply.state.lock().expect("never held across a panic").clone();
        let worse = match capture.max(apply) {
            // Nothing is tried there until a person says so.
            worse if system.paused.load(Ordering::Relaxed) => worse.max(State::Paused),
            worse => worse,
        };
        settled &= !matches!(worse, State::Connecting | State::Loading);
        match worse.error() {
            Some(error) => troubles.push(format!("{} {}: {error}", system.name, worse.name())),
            None if worse.name() == "streaming" && running => fine.push(system.name.to_string()),
            None => troubles.push(format!("{} {}", system.name, if running { worse.name() } else { "waiting" })),
        }
    }
    if !fine.is_empty() {
        troubles.push(format!("{} streaming", fine.join(", ")));
    }
    if let Some(error) = &*status.file_error.lock().expect("never held across a panic") {
        let first = error.lines().next().unwrap_or_default();
        troubles.insert(0, format!("the file is not taken, and the agent goes on with what it had: {first}"));
    }
    let line = troubles.join("; ").replace(['\n', '\r'], " ");
    let text: String = format!("STATUS={line}").chars().take(STATUS_MAX).collect();
    (settled, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Arc<Status> {
        let text = "[agent]\nid = \"a\"\ndata_dir = \"/d\"\n\n\
                    [[system]]\nname = \"crm\"\nurl = \"postgresql://a@h/d\"\n\n\
                    [[system]]\nname = \"shop\"\nurl = \"mysql://a@h/d\"\n\n\
                    [[entity]]\nname = \"e\"\nkey = [\"id\"]\n\
                    [entity.in.crm]\ntable = \"e\"\n[entity.in.shop]\ntable = \"e\"\n";
        Status::new(&crate::config::Config::from_str(text, "test.toml").unwrap())
    }

    #[test]
    fn settled_is_what_streams_or_has_been_tried() {
        let status = status();
        let set = |index: usize, state| *status.systems[index].capture.state.lock().unwrap() = state;

        assert_eq!(look(&status), (false, "STATUS=crm waiting; shop waiting".into()), "it is still starting");
        *status.state.lock().unwrap() = "running";
        set(0, State::Connecting);
        assert_eq!(look(&status), (false, "STATUS=crm connecting; shop streaming".into()));
        set(0, State::Retrying("cannot connect to h:5432\nis it running?".into()));
        let expected = "STATUS=crm retrying: cannot connect to h:5432 is it running?; shop streaming";
        assert_eq!(look(&status), (true, expected.into()), "one line");
        set(0, State::Connecting);
        status.systems[0].paused.store(true, Ordering::Relaxed);
        assert_eq!(look(&status), (true, "STATUS=crm paused; shop streaming".into()));
        status.systems[0].paused.store(false, Ordering::Relaxed);
        set(0, State::Streaming);
        assert_eq!(look(&status), (true, "STATUS=crm, shop streaming".into()));
    }
}
