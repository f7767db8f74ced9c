//! A program that is told of an event: JSON on its standard input, and a limit to its time.
//!
//! It has arrived where the program ends with 0. What it prints is nobody's: it might repeat what it
//! was told elsewhere. Of our environment it gets what finds programs and files, no passwords.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::error::{Error, Result};

const ENVIRONMENT: [&str; 5] = ["PATH", "HOME", "USER", "LANG", "TZ"];

pub async fn run(argv: &[String], body: &[u8], timeout: Duration) -> Result<()> {
    let [program, arguments @ ..] = argv else { return Err(Error::stop("there is no command", "command = [\"…\"]")) };
    let environment = ENVIRONMENT.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0) // so that what it started ends with it
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            let hint = "the program must be there, and the agent's user be allowed to run it";
            Error::retry(format!("cannot run {program}")).hint(hint).because(error)
        })?;
    let group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
    let mut stdin = child.stdin.take().expect("it is piped");
    let told = async {
        // One that does not read may still do its work.
        let _ = stdin.write_all(body).await;
        drop(stdin);
        child.wait().await
    };
    match tokio::time::timeout(timeout, told).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("ends with {code}"),
                (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
            };
            Err(Error::retry(format!("{program} {how}")).hint("run it by hand, with the event on its standard input"))
        }
        Ok(Err(error)) => Err(Error::retry(format!("cannot tell how {program} ends")).because(error)),
        Err(_) => {
            group.end();
            Err(Error::retry(format!("{program} does not end within {timeout:?}")).hint("timeout gives it longer"))
        }
    }
}

/// The program with what it started.
struct Group(Option<i32>);

impl Group {
    fn end(&self) {
        if let Some(id) = self.0 {
            // SAFETY: a signal to a group that begins with our own child, which has not been waited for.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn the_event_is_on_its_standard_input_and_0_says_that_it_arrived() {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("cat > {0}/event; env > {0}/env", dir.path().display());

        run(&shell(&script), b"{\"id\":1}", Duration::from_secs(10)).await.unwrap();

        assert_eq!(std::fs::read_to_string(dir.path().join("event")).unwrap(), "{\"id\":1}");
        let env = std::fs::read_to_string(dir.path().join("env")).unwrap();
        assert!(!env.contains("CARGO"), "{env}");
    }

    #[tokio::test]
    async fn what_fails_and_what_hangs_is_said() {
        let said =
            async |argv: Vec<String>, millis| run(&argv, b"x", Duration::from_millis(millis)).await.unwrap_err().full();

        assert!(said(shell("exit 7"), 10_000).await.contains("/bin/sh ends with 7"));
        assert!(said(vec!["/does/not/exist".into()], 10_000).await.contains("cannot run /does/not/exist"));
        let began = Instant::now();
        // What it started would hold its output open.
        assert!(said(shell("sleep 30 & sleep 30"), 200).await.contains("does not end within 200ms"));
        assert!(began.elapsed() < Duration::from_secs(10));
    }
}
