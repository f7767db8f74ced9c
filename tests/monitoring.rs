//! What monitoring is told, checked by the tools that read it.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::books::Books;
use crate::support::servers::Kind;
use crate::support::world::{Entity, Type, World};
use crate::support::{SOON, eventually};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/prometheus");

/// Prometheus' own tool; what it says where it finds fault.
async fn promtool(args: &[&str], input: &str) -> Result<(), String> {
    let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/servers.sh"))
        .args(["run", "prometheus", "promtool"])
        .args(args)
        .current_dir(RULES)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let said = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    if output.status.success() { Ok(()) } else { Err(said) }
}

#[tokio::test]
async fn prometheus_takes_the_metrics_of_a_running_agent() {
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(20));
    let world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)])
        .entity(contact)
        .start()
        .await;
    for (id, system) in ["crm", "shop", "erp"].into_iter().enumerate() {
        world[system].execute(&format!("INSERT INTO contact VALUES ({id}, 'Ada')")).await;
    }
    world.agent.wait_quiet().await;

    // How much log there is is asked now and then.
    let metrics = eventually(SOON, || async {
        let books = Books::read(&world.agent).await;
        for system in ["crm", "shop", "erp"] {
            let known = books.known("capture_retained_bytes", system) && books.known("capture_lag_bytes", system);
            known.then_some(()).ok_or_else(|| format!("how much log {system} keeps is not told"))?;
        }
        Ok(world.agent.metrics().await)
    })
    .await;

    promtool(&["check", "metrics"], &metrics).await.unwrap();
    let broken = metrics.replacen(
        "# TYPE anechoic_capture_echoes_total counter",
        "# TYPE anechoic_capture_echoes_total gauge",
        1,
    );
    assert!(promtool(&["check", "metrics"], &broken).await.unwrap_err().contains("anechoic_capture_echoes_total"));
}

#[tokio::test]
async fn the_alert_rules_are_valid_and_each_rings_when_it_should() {
    promtool(&["check", "rules", "anechoic.rules.yml"], "").await.unwrap();
    promtool(&["test", "rules", "anechoic.rules.test.yml"], "").await.unwrap();
}
