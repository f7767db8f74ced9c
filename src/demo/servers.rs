//! The three servers, and the sweeper that removes them.
//!
//! Servers come from fixtures/servers.sh, which is part of this binary and is written out
//! beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::error::{Error, Result};

const SCRIPT: &str = include_str!("../../fixtures/servers.sh");
pub const PASSWORD: &str = "demo";
pub const NAMES: [&str; 3] = ["crm", "shop", "erp"];
const KINDS: [&str; 3] = ["pg17", "mysql", "mariadb"];

pub struct Servers {
    pub script: PathBuf,
    dir: PathBuf,
    ports: BTreeMap<&'static str, u16>,
}

fn script_path(dir: &Path) -> PathBuf {
    dir.join("servers.sh")
}

/// In a process group of its own, so that Ctrl-C does not end it halfway; what it has begun is
/// swept away.
fn script(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command.arg(script_path(dir)).args(args).process_group(0).stdin(Stdio::null()).kill_on_drop(true);
    command
}

impl Servers {
    /// All at once; the slowest decides.
    pub async fn start(dir: &Path) -> Result<Self> {
        let starting = NAMES.into_iter().zip(KINDS).map(|(name, kind)| async move {
            let place = dir.join(name);
            let mut command = script(dir, &["start", kind]);
            let output = command.arg(&place).arg("auto").stderr(Stdio::inherit()).output().await?;
            let env = String::from_utf8_lossy(&output.stdout);
            let port = env.lines().find_map(|line| line.strip_prefix("PORT=")?.parse().ok());
            match port.filter(|_| output.status.success()) {
                Some(port) => Ok((name, port)),
                None => {
                    Err(Error::stop(format!("the server {name} ({kind}) did not start"), "the lines above say why"))
                }
            }
        });
        let ports = futures_util::future::try_join_all(starting).await?.into_iter().collect();
        Ok(Servers { script: script_path(dir), dir: dir.to_owned(), ports })
    }

    pub fn port(&self, name: &str) -> u16 {
        self.ports[name]
    }

    pub async fn create_tables(&self, name: &str) -> Result<()> {
        let sql = match name {
            "crm" => include_str!("crm.sql"),
            "shop" => include_str!("shop.sql"),
            _ => include_str!("erp.sql"),
        };
        let place = self.dir.join(name);
        let mut command = script(&self.dir, &["sql"]);
        command.arg(&place);
        if name == "crm" {
            command.args(["-q", "-v", "ON_ERROR_STOP=1"]);
        }
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = client.stdin.take().expect("is piped");
        stdin.write_all(sql.as_bytes()).await?;
        drop(stdin);
        let output = client.wait_with_output().await?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::stop(format!("cannot create the tables of {name}: {said}"), ""))
    }
}

/// Waits for the end of its input, which is this process's end if not earlier; then stops and
/// deletes everything.
pub struct Sweeper {
    process: Child,
    dir: PathBuf,
}

impl Sweeper {
    /// Writes the servers' script into `dir` and starts.
    pub fn start(dir: &Path) -> Result<Self> {
        std::fs::write(script_path(dir), SCRIPT)?;
        let sweep = r#"
            cat >/dev/null
            [ ! -e "$1/agent.pid" ] || kill -9 "$(cat "$1/agent.pid")" 2>/dev/null
            # an interrupted start may have a server on its way
            for again in 1 2 3; do
                bash "$1/servers.sh" destroy "$1/crm" "$1/shop" "$1/erp"
                grep -qasF -f <(echo "$1/") /proc/[0-9]*/cmdline || break
                sleep 0.3
            done 2>/dev/null
            rm -rf "$1"
        "#;
        std::fs::set_permissions(script_path(dir), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let mut command = Command::new("bash");
        // its own group: it has to survive the Ctrl-C that ends us
        command.args(["-c", sweep, "sweeper"]).arg(dir).process_group(0);
        let process = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        Ok(Sweeper { process, dir: dir.to_owned() })
    }

    /// Now; returns when nothing is left.
    pub async fn sweep(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        self.process.wait().await?;
        if self.dir.exists() {
            return Err(Error::stop(format!("could not remove {}", self.dir.display()), "remove it by hand"));
        }
        Ok(())
    }
}
