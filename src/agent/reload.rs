//! SIGHUP, or a command: the file is read again, and the agent works by it from then on.
//!
//! What would keep an agent from starting with it keeps this one with what it has. Else all
//! flows are taken down in order and made anew from the journal, as at a restart; the port
//! answers all the while.

use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info};

use super::decided;
use super::prepare::last_seen;
use crate::check::{Preflight, catalogs, preflight, together};
use crate::config::{Config, SystemConfig};
use crate::error::{Error, Result};
use crate::finding::Finding;
use crate::normalize::follow::Decided;
use crate::normalize::resolve::resolve_after;
use crate::notify::Manager;
use crate::status::Status;

pub struct Reload {
    file: PathBuf,
    hangup: Signal,
    manager: Option<Manager>,
    asking: mpsc::Sender<Asked>,
    asked: mpsc::Receiver<Asked>,
}

/// Told whether the file is taken.
pub type Asked = oneshot::Sender<Result<()>>;

impl Reload {
    /// From now on SIGHUP no longer ends the process.
    pub fn on_hangup(file: PathBuf) -> Result<Self> {
        let (asking, asked) = mpsc::channel(1);
        Ok(Reload { file, hangup: signal(SignalKind::hangup())?, manager: Manager::from_env(), asking, asked })
    }

    /// For those who ask in another way, and want to hear what became of it.
    pub(super) fn asking(&self) -> mpsc::Sender<Asked> {
        self.asking.clone()
    }

    /// Returns when it was asked for, with a file that the agent can work by.
    pub async fn next(&mut self, running: &Config, status: &Status) -> Config {
        loop {
            let asked = tokio::select! {
                hangup = self.hangup.recv() => match hangup {
                    Some(()) => None,
                    None => std::future::pending().await,
                },
                // We hold a sender ourselves.
                asked = self.asked.recv() => asked,
            };
            info!(file = %self.file.display(), "reading the file again");
            self.tell("RELOADING=1");
            match self.read(running).await {
                Ok(config) => {
                    // Who went away does not need the answer; so below.
                    asked.map(|asked| asked.send(Ok(())));
                    return config;
                }
                Err(error) => {
                    error!(error = %error.full(), "the file is not taken: the agent goes on with what it has");
                    *status.file_error.lock().expect("never held across a panic") = Some(error.full());
                    self.tell("READY=1");
                    asked.map(|asked| asked.send(Err(error)));
                }
            }
        }
    }

    fn tell(&self, line: &str) {
        if let Some(manager) = &self.manager {
            manager.tell(&[line]);
        }
    }

    async fn read(&self, running: &Config) -> Result<Config> {
        let config = Config::load(&self.file).map_err(|mistakes| {
            let list: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
            Error::stop(list.join("\n"), "mend the file; `anechoic check` reads it, too")
        })?;
        fixed(running, &config)?;
        let decided = decided::load(&config);
        let preflight = preflight(&config, &decided).await;
        let errors = in_the_way(running, &config, &preflight, &decided);
        let errors: Vec<String> = errors.iter().map(Finding::logged).collect();
        match errors.is_empty() {
            true => Ok(config),
            false => Err(Error::stop(errors.join("\n"), "the whole list: anechoic check")),
        }
    }
}

/// What an agent could not start with. One that was connected to a system that is away would, by its
/// tables as they were last seen.
fn in_the_way(running: &Config, next: &Config, preflight: &Preflight, decided: &Decided) -> Vec<Finding> {
    let mut errors = preflight.report(next);
    let mut catalogs = catalogs(next, &preflight.surveys);
    let place = |system: &SystemConfig| {
        let to = &system.connect;
        (system.name.clone(), to.host.clone(), to.port, to.user.clone(), to.database.clone())
    };
    let mut absent = Vec::new();
    for id in &preflight.away {
        let system = next.system(*id);
        let known = running.systems.iter().any(|before| place(before) == place(system));
        let seen = last_seen(next, *id).filter(|tables| known && tables.values().all(Option::is_some));
        if let Some(tables) = seen {
            catalogs[id.index()] = tables;
            absent.push(&*system.name);
        }
    }
    if !absent.is_empty() {
        errors.retain(|finding| !absent.contains(&&*finding.system));
        errors.extend(resolve_after(next, &catalogs, decided).err().unwrap_or_default());
        errors.extend(together(next, &preflight.surveys, &catalogs));
    }
    errors.retain(Finding::is_error);
    errors
}

/// What others know the process by stays while it runs.
fn fixed(running: &Config, next: &Config) -> Result<()> {
    let (old, new) = (&running.agent, &next.agent);
    let kept = [
        ("id", old.id == new.id),
        ("data_dir", old.data_dir == new.data_dir),
        ("listen", old.listen == new.listen),
        ("token_file", old.token_file == new.token_file),
        ("tls_cert", old.tls.is_some() == new.tls.is_some()),
    ];
    match kept.iter().find(|(_, kept)| !kept) {
        None => Ok(()),
        Some((key, _)) => Err(Error::stop(
            format!("[agent] {key} is another one"),
            "restart the agent: that is not changed while it runs",
        )),
    }
}
