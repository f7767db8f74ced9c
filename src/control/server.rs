//! The agent's end of the socket.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::{Answer, OfHeld, Probe, Request, socket_path, wait};
use crate::error::{Error, Result};
use crate::http::status::Report;
use crate::status::now;

/// No request comes near it.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;
/// A system that is away does not keep anybody from taking something back elsewhere.
const CAPTURED_WITHIN: Duration = Duration::from_secs(10);

const ANSWERED_WITHIN: Duration = Duration::from_millis(300);

/// The bound socket; its file goes with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Call it with the journal's lock held: then a socket file that is there is a dead agent's.
    pub fn bind(data_dir: &Path) -> Result<Self> {
        let path = socket_path(data_dir);
        // Bound beside its place, closed to others, then moved: never open to anybody, and a
        // stale file is replaced in one step.
        let fresh = path.with_extension("sock.new");
        let failed = |error: std::io::Error| {
            Error::stop(
                format!("cannot make the control socket {}: {error}", path.display()),
                "data_dir must be writable by the agent's user, and its path shorter than 90 bytes",
            )
            .because(error)
        };
        let _ = std::fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        std::fs::rename(&fresh, &path).map_err(failed)?;
        Ok(Socket { listener, path })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Answers commands until `stop`.
pub async fn serve(socket: Arc<Socket>, probe: Arc<impl Probe>, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = socket.listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, probe.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Requests of one client, one after the other, until it hangs up.
async fn converse(stream: UnixStream, probe: Arc<impl Probe>, stop: CancellationToken) {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    loop {
        line.clear();
        let mut limited = (&mut reader).take(REQUEST_BYTES_MAX);
        match stop.run_until_cancelled(limited.read_line(&mut line)).await {
            None | Some(Ok(0) | Err(_)) => return,
            Some(Ok(_)) => {}
        }
        let request = serde_json::from_str(&line);
        let stops = matches!(request, Ok(Request::Stop));
        let mut answering = Box::pin(answer(request, &*probe));
        let answer = tokio::select! {
            answer = &mut answering => answer,
            () = hung_up(&mut reader) => return,
            // What was asked last may be what ends this turn.
            () = stop.cancelled() => match tokio::time::timeout(ANSWERED_WITHIN, answering).await {
                Ok(answer) => answer,
                Err(_) => return,
            },
        };
        let mut text = serde_json::to_string(&answer).expect("answers are plain data");
        text.push('\n');
        if writer.write_all(text.as_bytes()).await.is_err() {
            return;
        }
        if stops {
            probe.stop();
        }
    }
}

async fn answer(request: serde_json::Result<Request>, probe: &impl Probe) -> Answer {
    let answer = match request {
        Ok(request) => answer_to(request, probe).await,
        Err(error) => Err(Error::stop(
            format!("the request is not understood: {error}"),
            "command and agent must be of the same version: restart the agent after an upgrade",
        )),
    };
    answer.unwrap_or_else(|Error { message, hint, .. }| Answer::Error { message, hint })
}

/// What comes of one request, whoever carries it.
pub(crate) async fn answer_to(request: Request, probe: &impl Probe) -> Result<Answer> {
    Ok(match request {
        Request::Ping => Answer::Pong { agent: probe.status().agent.clone(), pid: std::process::id() },
        Request::Status => Answer::Status { report: Box::new(Report::of(probe.status(), now())) },
        Request::Wait { timeout_ms } => Answer::Waited(wait::wait(probe, Duration::from_millis(timeout_ms)).await),
        Request::Quarantine => Answer::Quarantine { held: probe.quarantined() },
        Request::Load(spec) => {
            probe.load(spec)?;
            Answer::Loading
        }
        Request::Resync(spec) => {
            probe.resync(spec)?;
            Answer::Loading
        }
        Request::Verify(spec) => {
            probe.verify(spec)?;
            Answer::Loading
        }
        Request::History(spec) => Answer::History(Box::new(probe.history(spec).await?)),
        Request::Audit(spec) => Answer::Audited(probe.audit(spec).await?),
        Request::Conflicts(spec) => Answer::Conflicts { conflicts: probe.conflicts(spec).await? },
        Request::Conflict { id } => {
            let id = id.parse().map_err(|why: String| Error::stop(why, "anechoic conflicts list"))?;
            Answer::Conflict(Box::new(probe.conflict(id).await?))
        }
        Request::Resolve(choice) => Answer::Resolved(probe.resolve(choice).await?),
        Request::Undo(spec) => {
            // What was written before the call counts as written since.
            let unknown = wait::captured(probe, CAPTURED_WITHIN).await;
            let mut undone = probe.undo(spec).await?;
            let may = "what was written there since may be lost to what is taken back";
            undone.notes.extend(unknown.into_iter().map(|problem| format!("{problem}: {may}")));
            Answer::Undone(Box::new(undone))
        }
        Request::Pause { system } => probe.pause(&system, true).await.map(|()| Answer::Told)?,
        Request::Resume { system } => probe.pause(&system, false).await.map(|()| Answer::Told)?,
        Request::Retry(of) => Answer::Treated(probe.set_aside(of, OfHeld::Retry).await?),
        Request::Drop(of) => Answer::Treated(probe.set_aside(of, OfHeld::Drop).await?),
        Request::Reload => probe.reload().await.map(|()| Answer::Told)?,
        Request::Alert { name } => Answer::Alerted(probe.alert(name).await),
        Request::Stop => Answer::Stopping,
    })
}

/// Completes when the client closed its end; what it sent ahead stays for later.
async fn hung_up(reader: &mut (impl AsyncBufRead + Unpin)) {
    match reader.fill_buf().await {
        Ok(bytes) if !bytes.is_empty() => std::future::pending().await,
        _ => {}
    }
}
