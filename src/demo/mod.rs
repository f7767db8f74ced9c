//! Shows it: three private databases, people at work in all of them, and an agent between.
//!
//! ```text
//!      traffic ─▶ crm (PostgreSQL) ◀──┐
//!      traffic ─▶ shop (MySQL)     ◀──┼── agent (this binary, as a process of its own)
//!      traffic ─▶ erp (MariaDB)    ◀──┘        └── /status ─▶ one line per second
//! ```
//!
//! Servers, configuration and journal live in one directory of their own. A sweeper, a process
//! that outlives this one, removes all of it when this one ends, however it ends.

mod servers;
mod traffic;
mod watch;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::shutdown;
use servers::{Servers, Sweeper};

#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Ends by itself after so long; until Ctrl-C where absent.
    pub duration: Option<Duration>,
}

/// Runs until Ctrl-C or the end of `duration`; nothing is left behind either way.
pub async fn run(options: Options) -> Result<()> {
    let stop = shutdown::on_signal()?;
    let dir = private_dir()?;
    let sweeper = Sweeper::start(&dir)?;
    let outcome = show(&dir, &options, &stop).await;
    say("\nremoving servers and files");
    sweeper.sweep().await?;
    outcome
}

async fn show(dir: &Path, options: &Options, stop: &CancellationToken) -> Result<()> {
    let Some(begun) = stop.run_until_cancelled(begin(dir)).await else { return Ok(()) };
    let Scene { servers, config, port, mut agent } = begun?;
    explain(dir, &servers, port);

    let traffic_stop = stop.child_token();
    let traffic = traffic::start(&servers, &traffic_stop).await?;
    let log = dir.join("agent.log");
    let watching = stop.run_until_cancelled(watch::lines(port, &mut agent, &log));
    let watched = match options.duration {
        Some(duration) => tokio::time::timeout(duration, watching).await.unwrap_or(None),
        None => watching.await,
    };
    watched.unwrap_or(Ok(()))?;
    traffic_stop.cancel();
    traffic.finished().await;
    watch::summary(&config, port).await;
    terminate(&mut agent).await;
    Ok(())
}

struct Scene {
    servers: Servers,
    config: PathBuf,
    port: u16,
    agent: Child,
}

/// Servers, tables, configuration, and an agent that is ready.
async fn begin(dir: &Path) -> Result<Scene> {
    say("starting three private database servers (fetched and unpacked the first time, about 150 MB)");
    let servers = Servers::start(dir).await?;
    let port = free_port()?;
    let config = write_config(dir, &servers, port)?;
    for name in servers::NAMES {
        servers.create_tables(name).await?;
    }
    anechoic(&config, "setup").await?;
    let mut agent = start_agent(dir, &config)?;
    watch::until_ready(port, &mut agent, &dir.join("agent.log")).await?;
    Ok(Scene { servers, config, port, agent })
}

/// Prints to stdout; a reader that has gone away is nobody's trouble.
fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Short, because socket paths are: at most 107 bytes.
fn private_dir() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("anechoic-demo-{}", std::process::id()));
    std::fs::create_dir_all(&dir).map_err(|e| {
        Error::stop(format!("cannot create {}: {e}", dir.display()), "point TMPDIR to a place to write")
    })?;
    Ok(dir)
}

fn free_port() -> Result<u16> {
    // not 8642: that may be an installed agent's
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

fn write_config(dir: &Path, servers: &Servers, port: u16) -> Result<PathBuf> {
    use std::os::unix::fs::OpenOptionsExt;
    let text = include_str!("anechoic.toml")
        .replace("{dir}", &dir.display().to_string())
        .replace("{port}", &port.to_string())
        .replace("{crm_port}", &servers.port("crm").to_string())
        .replace("{shop_port}", &servers.port("shop").to_string())
        .replace("{erp_port}", &servers.port("erp").to_string());
    let path = dir.join("anechoic.toml");
    std::fs::write(&path, text)?;
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(dir.join("password"))?;
    std::io::Write::write_all(&mut file, servers::PASSWORD.as_bytes())?;
    Ok(path)
}

fn this_binary() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    // its own group: Ctrl-C is ours to hear, and the agent is stopped when traffic has ended
    command.process_group(0).stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

async fn anechoic(config: &Path, what: &str) -> Result<()> {
    let output = this_binary()?.arg(what).arg("-c").arg(config).output().await?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Error::stop(format!("anechoic {what} failed:\n{}", String::from_utf8_lossy(&said).trim_end()), ""))
}

fn start_agent(dir: &Path, config: &Path) -> Result<Child> {
    let log = std::fs::File::create(dir.join("agent.log"))?;
    let child = this_binary()?.arg("run").arg("-c").arg(config).stdout(log.try_clone()?).stderr(log).spawn()?;
    // the sweeper reads it, should this process die
    std::fs::write(dir.join("agent.pid"), child.id().unwrap_or_default().to_string())?;
    Ok(child)
}

async fn terminate(agent: &mut Child) {
    let Some(pid) = agent.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
    // SAFETY: a signal to a child that has not been waited for.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    if tokio::time::timeout(Duration::from_secs(10), agent.wait()).await.is_err() {
        let _ = agent.kill().await;
    }
}

fn explain(dir: &Path, servers: &Servers, port: u16) {
    let (script, token) = (servers.script.display(), servers::PASSWORD);
    let dir = dir.display();
    say(&format!(
        "\n\
         dashboard      http://127.0.0.1:{port}/   (also /status, /metrics, /ready; token: {token})\n\
         configuration  {dir}/anechoic.toml\n\
         log            {dir}/agent.log\n\
         \n\
         Try it from another terminal; contact 1 is nobody else's:\n\
         crm   {script} sql {dir}/crm -d crm\n\
         \x20     UPDATE contacts SET \"firstName\" = 'Grace' WHERE id = 1;   SELECT * FROM contacts WHERE id = 1;\n\
         shop  {script} sql {dir}/shop shop\n\
         \x20     UPDATE customers SET surname = 'Hopper' WHERE customer_id = 1;   SELECT * FROM customers WHERE customer_id = 1;\n\
         erp   {script} sql {dir}/erp erp\n\
         \x20     UPDATE partner SET zustand = 'closed' WHERE nr = 1;   SELECT * FROM partner WHERE nr = 1;\n\
         \n\
         Ctrl-C ends it and leaves nothing behind.\n"
    ));
}

#[cfg(test)]
mod tests {

    #[test]
    fn its_configuration_is_valid() {
        let text = include_str!("anechoic.toml")
            .replace("{dir}", "/tmp/demo")
            .replace("{port}", "8642")
            .replace("{crm_port}", "1")
            .replace("{shop_port}", "2")
            .replace("{erp_port}", "3");

        let config = crate::config::Config::from_str(&text, "anechoic.toml").unwrap();

        assert_eq!((config.systems.len(), config.entities.len()), (3, 4));
    }
}
