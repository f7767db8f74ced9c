//! The socket that commands talk to: one JSON value per line, a request, then its answer:
//! `"status"`, `{"wait":{"timeout_ms":60000}}`.
//!
//! It lies in the data directory, for the agent's own user alone. Where nobody listens no agent
//! runs, and a command that can do without one opens the journal itself, under its lock.

pub mod client;
mod held;
pub mod mask;
pub mod port;
pub mod server;
pub mod wait;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use self::client::Client;
pub use self::held::{Held, HeldSpec, Image, OfHeld, Treated, image, text};
pub use self::server::{Socket, serve};
use crate::alert::Tried;
use crate::audit::conflicts::{Conflict, ListSpec, Shown};
use crate::audit::export::{AuditSpec, Page};
use crate::audit::history::{History, HistorySpec};
use crate::audit::resolve::{Choice, Resolved};
use crate::audit::undo::{UndoSpec, Undone};
use crate::change::ConflictId;
use crate::error::Result;
use crate::http::status::Report;
use crate::load::{LoadSpec, ResyncSpec, VerifySpec};
use crate::position::{Position, Seq};
use crate::schema::SystemId;
use crate::status::Status;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    Ping,
    Status,
    Wait {
        timeout_ms: u64,
    },
    Quarantine,
    /// Begins a load; how it goes is in the status.
    Load(LoadSpec),
    /// Makes a new log position and compares; how it goes is in the status.
    Resync(ResyncSpec),
    /// Begins a comparison; how it goes is in the status.
    Verify(VerifySpec),
    /// What happened to a record.
    History(HistorySpec),
    /// A page of all operations.
    Audit(AuditSpec),
    Conflicts(ListSpec),
    Conflict {
        id: String,
    },
    /// A person decides a conflict that waits.
    Resolve(Choice),
    /// Takes transactions back, in all systems.
    Undo(UndoSpec),
    /// Nothing is read from that system and nothing applied there until it is told to go on.
    Pause {
        system: String,
    },
    Resume {
        system: String,
    },
    /// Tries what is in quarantine now.
    Retry(HeldSpec),
    /// Gives up what is in quarantine: its system keeps the rows that it has.
    Drop(HeldSpec),
    /// Reads the file again; answered when it is taken, or with why not.
    Reload,
    /// A test event through each alert, or through this one.
    Alert {
        name: Option<String>,
    },
    /// As SIGTERM.
    Stop,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Pong {
        agent: String,
        pid: u32,
    },
    Status {
        report: Box<Report>,
    },
    Waited(wait::Waited),
    Quarantine {
        held: Vec<Held>,
    },
    Loading,
    History(Box<History>),
    Audited(Page),
    Conflicts {
        conflicts: Vec<Conflict>,
    },
    Conflict(Box<Shown>),
    Resolved(Resolved),
    Undone(Box<Undone>),
    /// What was told is so.
    Told,
    Treated(Treated),
    Alerted(Vec<Tried>),
    Stopping,
    Error {
        message: String,
        hint: String,
    },
}

/// What the socket may ask of the running agent.
pub trait Probe: Send + Sync + 'static {
    fn status(&self) -> &Arc<Status>;

    /// The end of that system's log now, asked of the server.
    fn log_end(&self, system: SystemId) -> impl Future<Output = Result<Position>> + Send;

    /// The journal has, durably, everything of that system's log up to `end`.
    fn captured(&self, system: SystemId, end: &Position) -> bool;

    /// The journal's durable head.
    fn head(&self) -> Seq;

    /// The last entry that the system has or skips; `None` where nothing is applied.
    fn applied(&self, system: SystemId) -> Option<Seq>;

    fn quarantined(&self) -> Vec<Held>;

    /// Begins a load.
    fn load(&self, spec: LoadSpec) -> Result<()>;

    /// Begins a resync.
    fn resync(&self, spec: ResyncSpec) -> Result<()>;

    /// Begins a comparison.
    fn verify(&self, spec: VerifySpec) -> Result<()>;

    fn audit(&self, spec: AuditSpec) -> impl Future<Output = Result<Page>> + Send;

    fn history(&self, spec: HistorySpec) -> impl Future<Output = Result<History>> + Send;

    fn conflicts(&self, spec: ListSpec) -> impl Future<Output = Result<Vec<Conflict>>> + Send;

    fn conflict(&self, id: ConflictId) -> impl Future<Output = Result<Shown>> + Send;

    /// Durable when it returns.
    fn resolve(&self, choice: Choice) -> impl Future<Output = Result<Resolved>> + Send;

    /// Kept over restarts. When it returns, nothing is read or written there any more.
    fn pause(&self, system: &str, paused: bool) -> impl Future<Output = Result<()>> + Send;

    /// Durable when it returns.
    fn set_aside(&self, of: HeldSpec, what: OfHeld) -> impl Future<Output = Result<Treated>> + Send;

    /// One try each.
    fn alert(&self, only: Option<String>) -> impl Future<Output = Vec<Tried>> + Send;

    /// Returns when the file is taken.
    fn reload(&self) -> impl Future<Output = Result<()>> + Send;

    /// Durable when it returns.
    fn undo(&self, spec: UndoSpec) -> impl Future<Output = Result<Undone>> + Send;

    /// As SIGTERM.
    fn stop(&self);
}

pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::Ordering;

    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;
    use tokio_util::sync::CancellationToken;

    use super::wait::tests::Fake;
    use super::*;

    struct Running {
        dir: tempfile::TempDir,
        probe: Arc<Fake>,
        stop: CancellationToken,
    }

    impl Running {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (probe, stop) = (Arc::new(Fake::new(5, 7)), CancellationToken::new());
            tokio::spawn(serve(Arc::new(Socket::bind(dir.path()).unwrap()), probe.clone(), stop.clone()));
            Running { dir, probe, stop }
        }

        async fn client(&self) -> Client {
            Client::connect(self.dir.path()).await.unwrap().unwrap()
        }
    }

    #[tokio::test]
    async fn requests_are_answered_one_after_the_other() {
        let running = Running::new();
        let mut client = running.client().await;

        let pong = client.ask(&Request::Ping).await.unwrap();
        let status = client.ask(&Request::Status).await.unwrap();
        let waited = client.ask(&Request::Wait { timeout_ms: 1000 }).await.unwrap();
        let held = client.ask(&Request::Quarantine).await.unwrap();

        assert_eq!(pong, Answer::Pong { agent: "hq".into(), pid: std::process::id() });
        assert!(matches!(status, Answer::Status { report } if report.systems[0].name == "crm"));
        assert!(matches!(waited, Answer::Waited(waited) if waited.done));
        assert_eq!(held, Answer::Quarantine { held: vec![] });
        assert_eq!(running.probe.stopped.load(Ordering::Relaxed), 0);
        let listed = client.ask(&Request::Conflicts(ListSpec::default())).await.unwrap();
        assert_eq!(listed, Answer::Conflicts { conflicts: vec![] });
        let unknown = client.ask(&Request::Conflict { id: "7.0".into() }).await.unwrap_err();
        assert!(unknown.message.contains("no conflict 7.0"), "{}", unknown.message);
        let undone = client.ask(&Request::Undo(UndoSpec::default())).await.unwrap();
        assert!(matches!(undone, Answer::Undone(undone) if undone.seq == 9 && undone.notes.is_empty()));
        assert_eq!(client.ask(&Request::Pause { system: "crm".into() }).await.unwrap(), Answer::Told);
        let unknown = client.ask(&Request::Resume { system: "warehouse".into() }).await.unwrap_err();
        assert!(unknown.message.contains("warehouse"), "{}", unknown.message);
        let treated = client.ask(&Request::Retry(HeldSpec::default())).await.unwrap();
        assert_eq!(treated, Answer::Treated(Treated { done: 1, left: 0 }));
        let dropped = client.ask(&Request::Drop(HeldSpec::default())).await.unwrap();
        assert_eq!(dropped, Answer::Treated(Treated { done: 0, left: 1 }));
        assert_eq!(client.ask(&Request::Reload).await.unwrap(), Answer::Told);
        assert_eq!(client.ask(&Request::Stop).await.unwrap(), Answer::Stopping);
    }

    #[tokio::test]
    async fn the_wire_is_one_json_value_per_line() {
        let running = Running::new();
        let mut stream = BufReader::new(UnixStream::connect(socket_path(running.dir.path())).await.unwrap());

        stream.write_all(b"\"ping\"\n\"dance\"\n").await.unwrap();

        let (mut pong, mut error) = (String::new(), String::new());
        stream.read_line(&mut pong).await.unwrap();
        stream.read_line(&mut error).await.unwrap();
        assert_eq!(pong, format!("{{\"pong\":{{\"agent\":\"hq\",\"pid\":{}}}}}\n", std::process::id()));
        assert!(error.starts_with("{\"error\":") && error.contains("dance"), "{error}");
    }

    #[tokio::test]
    async fn a_dead_agents_socket_means_nobody_runs_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Client::connect(dir.path()).await.unwrap().is_none());
        drop(std::os::unix::net::UnixListener::bind(socket_path(dir.path())).unwrap());
        assert!(Client::connect(dir.path()).await.unwrap().is_none());

        let socket = Socket::bind(dir.path()).unwrap();

        let mode = std::fs::metadata(socket_path(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(socket);
        assert!(!socket_path(dir.path()).exists());
    }

    #[tokio::test]
    async fn an_agent_that_stops_hangs_up() {
        let running = Running::new();
        let mut client = running.client().await;
        client.ask(&Request::Ping).await.unwrap();

        running.stop.cancel();

        assert!(client.ask(&Request::Ping).await.is_err());
    }
}
