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
use crate::check::preflight;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::finding::Finding;
use crate::notify::Manager;

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
    pub async fn next(&mut self, running: &Config) -> Config {
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
        let findings = preflight(&config, &decided::load(&config)).await.report(&config);
        let errors: Vec<String> = findings.iter().filter(|f| f.is_error()).map(Finding::to_string).collect();
        match errors.is_empty() {
            true => Ok(config),
            false => Err(Error::stop(errors.join("\n"), "the whole list: anechoic check")),
        }
    }
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
