//! The agent as its users run it: the real binary, a process, a configuration file.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{SOON, eventually, free_port};

/// Named steps at which the agent kills itself (see src/failpoint.rs).
#[derive(Debug, Clone, Copy)]
pub enum Step {
    BeforeJournalSync,
    AfterJournalSync,
    BeforeTargetCommit,
    AfterTargetCommit,
    /// A conflict is on disk, its entry is not.
    ConflictWritten,
    /// The index checkpoint is on disk, without its name; and with it.
    BeforeCheckpointRename,
    AfterCheckpointRename,
    /// Where a notification ends is noted, it is not sent; and sent, and not noted.
    NotifyNoted,
    NotifyTold,
}

impl Step {
    pub const ALL: [Step; 4] =
        [Step::BeforeJournalSync, Step::AfterJournalSync, Step::BeforeTargetCommit, Step::AfterTargetCommit];

    pub fn name(self) -> &'static str {
        match self {
            Step::BeforeJournalSync => "before-journal-sync",
            Step::AfterJournalSync => "after-journal-sync",
            Step::BeforeTargetCommit => "before-target-commit",
            Step::AfterTargetCommit => "after-target-commit",
            Step::ConflictWritten => "conflict-written",
            Step::BeforeCheckpointRename => "before-checkpoint-rename",
            Step::AfterCheckpointRename => "after-checkpoint-rename",
            Step::NotifyNoted => "notify-noted",
            Step::NotifyTold => "notify-told",
        }
    }
}

/// The build under test; `ANECHOIC_TEST_BINARY` names another one, to measure a release.
fn binary() -> PathBuf {
    std::env::var_os("ANECHOIC_TEST_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_anechoic").into(), PathBuf::from)
}

/// Killed when dropped; its log is shown when the test fails.
pub struct Agent {
    pub id: String,
    /// Holds configuration, passwords, data_dir and log.
    pub dir: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
    env: Vec<(String, String)>,
}

impl Agent {
    /// Writes the configuration: `[agent]` from here, the rest as given. Starts nothing.
    pub fn new(id: &str, marker: &str, config: &str) -> Agent {
        let dir = tempfile::Builder::new().prefix("anechoic-test-").tempdir().unwrap();
        let port = free_port();
        let agent = Agent { id: id.to_owned(), dir, port, child: None, env: Vec::new() };
        let head = format!(
            "[agent]\nid = \"{id}\"\ndata_dir = {data:?}\nlisten = \"127.0.0.1:{port}\"\nmarker = \"{marker}\"\n\n",
            data = agent.data_dir(),
        );
        std::fs::write(agent.config(), head + config).unwrap();
        agent
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("anechoic.toml")
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What all runs of it have said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// For every following start.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// The next start ends with SIGKILL at the `count`th pass of `step`. Needs the feature
    /// `failpoints`.
    pub fn kill_at(&mut self, step: Step, count: u64) {
        if cfg!(not(feature = "failpoints")) {
            panic!("run with --features failpoints, as make test does");
        }
        self.set_env("ANECHOIC_KILL_AT", &format!("{}:{count}", step.name()));
    }

    pub fn kill_nowhere(&mut self) {
        self.env.retain(|(n, _)| n != "ANECHOIC_KILL_AT");
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// With more options of `run`.
    pub fn start_with(&mut self, options: &[&str]) {
        assert!(self.child.is_none(), "already started");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).unwrap();
        let child = Command::new(binary())
            .args(["run", "-c"])
            .arg(self.config())
            .args(options)
            .envs(self.env.iter().map(|(n, v)| (n, v)))
            .env("RUST_BACKTRACE", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("not started").id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_none())
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.pid() as i32, signal) };
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM; it must leave within the 10 seconds it promises.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.exited(Duration::from_secs(10)).await
    }

    /// Waits for it to end by itself.
    pub async fn exited(&mut self, deadline: Duration) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().expect("not started").try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(began.elapsed() < deadline, "the agent does not end within {deadline:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGSTOP, until [`resume`](Self::resume); none of its threads runs any more when it returns.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
        let threads = format!("/proc/{}/task", self.pid());
        let began = Instant::now();
        let runs = |thread: std::fs::DirEntry| {
            // One that has just ended has none.
            let stat = std::fs::read_to_string(thread.path().join("stat"));
            stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('T')))
        };
        while std::fs::read_dir(&threads).unwrap().flatten().any(runs) {
            assert!(began.elapsed() < SOON, "it does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// SIGHUP: the configuration is read again.
    pub fn reload(&self) {
        self.signal(libc::SIGHUP);
    }

    pub fn restart_after_kill(&mut self) {
        self.kill();
        self.start();
    }

    /// Another command of the binary with this configuration.
    pub async fn command(&self, args: &[&str]) -> Output {
        tokio::process::Command::new(binary())
            .args(args)
            .arg("-c")
            .arg(self.config())
            .envs(self.env.iter().filter(|(n, _)| n != "ANECHOIC_KILL_AT").map(|(n, v)| (n, v)))
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap()
    }

    /// The same, and it must succeed; returns what it printed.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> impl Future<Output = String> {
        let place = std::panic::Location::caller();
        let output = self.command(args);
        let what = args.join(" ");
        async move {
            let output = output.await;
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(output.status.success(), "{place}: anechoic {what}: {}\n{out}{err}", output.status);
            out.into_owned()
        }
    }

    /// Everything committed anywhere before this call is applied everywhere.
    #[track_caller]
    pub fn wait_quiet(&self) -> impl Future<Output = ()> {
        let run = self.run(&["wait", "--timeout", "120s"]);
        async move {
            run.await;
        }
    }

    pub async fn get(&self, path: &str) -> Result<(u16, String), String> {
        http_get(self.port, path).await
    }

    pub async fn status(&self) -> Result<Value, String> {
        let (code, body) = self.get("/status").await?;
        if code != 200 {
            return Err(format!("/status says {code}"));
        }
        serde_json::from_str(&body).map_err(|e| e.to_string())
    }

    /// `/ready`: whether it is, and the reasons it gives.
    pub async fn readiness(&self) -> Result<(bool, String), String> {
        self.get("/ready").await.map(|(code, body)| (code == 200, body))
    }

    #[track_caller]
    pub fn ready(&mut self) -> impl Future<Output = ()> {
        self.ready_within(2 * SOON)
    }

    #[track_caller]
    pub fn ready_within(&mut self, deadline: Duration) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let began = Instant::now();
            loop {
                assert!(self.is_running(), "{place}: the agent ended instead of getting ready");
                let reason = match self.readiness().await {
                    Ok((true, _)) => return,
                    Ok((false, reasons)) => reasons,
                    Err(error) => error,
                };
                assert!(began.elapsed() < deadline, "{place}: not ready within {deadline:?}: {reason}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Until `/status` satisfies `check`, which says what is missing.
    pub async fn until(&self, deadline: Duration, check: impl Fn(&Value) -> Result<(), String>) -> Value {
        eventually(deadline, || async {
            let status = self.status().await?;
            check(&status).map_err(|missing| format!("{missing} in {status}"))?;
            Ok(status)
        })
        .await
    }

    pub async fn metrics(&self) -> String {
        let (code, body) = self.get("/metrics").await.unwrap();
        assert_eq!(code, 200, "/metrics");
        body
    }

    /// Resident memory now and at its highest, bytes.
    pub fn memory(&self) -> (u64, u64) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let kilobytes = |name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').split_whitespace().next().unwrap().parse().unwrap()
        };
        (kilobytes("VmRSS") * 1024, kilobytes("VmHWM") * 1024)
    }

    /// Processor time used so far.
    pub fn processor_time(&self) -> Duration {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        // SAFETY: asks for a constant.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as u64;
        Duration::from_millis(ticks * 1000 / per_second)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            eprintln!("--- agent {}, the last of {} lines:\n{last}\n---", self.id, lines.len());
        }
        if std::env::var_os("ANECHOIC_KEEP").is_some() {
            eprintln!("kept {}", self.dir.path().display());
            self.dir.disable_cleanup(true);
        }
    }
}

/// Status code and body.
pub async fn http_get(port: u16, path: &str) -> Result<(u16, String), String> {
    http_request(port, "GET", path, None, "").await
}

/// `authorization` is the header's value.
pub async fn http_request(
    port: u16,
    method: &str,
    path: &str,
    authorization: Option<&str>,
    body: &str,
) -> Result<(u16, String), String> {
    let authorization = authorization.map(|value| format!("Authorization: {value}\r\n")).unwrap_or_default();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n{authorization}\r\n{body}"
    );
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(10), exchange)
        .await
        .map_err(|_| format!("{method} {path}: no answer within 10 s"))?
        .map_err(|e| format!("{method} {path}: {e}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("{method} {path}: no answer"))?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.ok_or_else(|| format!("{method} {path}: not HTTP: {head}"))?, body.to_owned()))
}

pub fn write_secret(path: &Path, secret: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    std::io::Write::write_all(&mut file, secret.as_bytes()).unwrap();
}
