//! `anechoic demo`, as somebody meets it who has just cloned the project.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{SOON, eventually};

struct Demo {
    child: Child,
    dir: PathBuf,
}

impl Demo {
    /// Returns when it says how it is ended, which is when everything runs.
    fn start() -> Demo {
        let mut child = Command::new(env!("CARGO_BIN_EXE_anechoic"))
            .arg("demo")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        while !said.last().is_some_and(|line: &String| line.starts_with("Ctrl-C")) {
            let line = lines.next().unwrap_or_else(|| panic!("it ended early:\n{}", said.join("\n"))).unwrap();
            said.push(line);
        }
        // it goes on talking, and must not be held up
        std::thread::spawn(move || lines.for_each(drop));
        let config = said.iter().find_map(|line| line.strip_prefix("configuration")).unwrap();
        let dir = Path::new(config.trim()).parent().unwrap().to_owned();
        Demo { child, dir }
    }

    /// At the prompt that it offers.
    async fn sql(&self, system: &str, sql: &str) -> String {
        let mut command = tokio::process::Command::new(self.dir.join("servers.sh"));
        command.arg("sql").arg(self.dir.join(system));
        let options: &[&str] = if system == "crm" { &["-d", "crm", "-At", "-c"] } else { &[system, "-N", "-B", "-e"] };
        let output = command.args(options).arg(sql).stdin(Stdio::null()).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    async fn shows(&self, system: &str, sql: &str, expected: &str) {
        eventually(SOON, async || {
            let found = self.sql(system, sql).await;
            (found == expected).then_some(()).ok_or_else(|| format!("{system} shows {found:?}"))
        })
        .await;
    }

    async fn ends_with_nothing_left(&mut self, signal: i32) {
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
        eventually(SOON, || {
            let ended = self.child.try_wait().unwrap().map(drop);
            std::future::ready(ended.ok_or_else(|| "it still runs".to_owned()))
        })
        .await;
        eventually(Duration::from_secs(20), async || {
            let left = processes_of(&self.dir);
            (!self.dir.exists() && left.is_empty()).then_some(()).ok_or_else(|| format!("left behind: {left:?}"))
        })
        .await;
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill(); // then its sweeper sweeps
        let _ = self.child.wait();
    }
}

fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let commands = processes.filter_map(|p| std::fs::read(p.path().join("cmdline")).ok());
    commands.map(|command| String::from_utf8_lossy(&command).replace('\0', " ")).filter(|c| c.contains(&dir)).collect()
}

#[tokio::test]
async fn a_change_made_by_hand_in_the_demo_appears_in_the_other_two() {
    let mut demo = Demo::start();
    demo.shows("erp", "SELECT count(*) FROM partner WHERE nr = 1", "1").await;

    demo.sql("crm", "UPDATE contacts SET \"firstName\" = 'Grace' WHERE id = 1").await;
    demo.shows("shop", "SELECT first_name FROM customers WHERE customer_id = 1", "Grace").await;
    demo.sql("shop", "UPDATE customers SET surname = 'Hopper', joined_on = '28/02/2026' WHERE customer_id = 1").await;
    demo.shows("erp", "SELECT nachname, kunde_seit FROM partner WHERE nr = 1", "Hopper\t2026-02-28").await;
    demo.sql("erp", "UPDATE partner SET zustand = 'closed' WHERE nr = 1").await;
    demo.shows("crm", "SELECT \"firstName\", \"lastName\", state FROM contacts WHERE id = 1", "Grace|Hopper|closed")
        .await;
    demo.shows("shop", "SELECT st FROM customers WHERE customer_id = 1", "C").await;

    demo.ends_with_nothing_left(libc::SIGINT).await;
}

#[tokio::test]
async fn a_killed_demo_leaves_nothing_behind_either() {
    let mut demo = Demo::start();

    demo.ends_with_nothing_left(libc::SIGKILL).await;
}
