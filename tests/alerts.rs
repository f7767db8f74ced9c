//! People are told that something is the matter, and that it is over: each event, in order, whatever
//! happens to the receiver and to the agent.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::RngExt;
use serde_json::Value;

use super::support::agent::write_secret;
use super::support::certificates::{Authority, Valid};
use super::support::quarantine::{settled, until_held};
use super::support::receiver::{Receiver, Request};
use super::support::servers::Kind;
use super::support::world::{Builder, Entity, Type, World};
use super::support::{SOON, eventually, seeded, soak};

const TWO: [(&str, Kind); 2] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql)];
const SECRET: &str = "the receiver's own secret";

fn world(toml: &str) -> Builder {
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(60));
    World::of(&TWO)
        .proxied("shop")
        .entity(contact)
        .ddl("crm", "ALTER TABLE contact ADD CONSTRAINT named CHECK (name NOT LIKE '%forbidden%')")
        .toml(toml)
}

async fn alerts(world: &World, check: impl Fn(&Value) -> bool) {
    let holds = |status: &Value| match status["alerts"].as_array().is_some_and(|all| all.iter().all(&check)) {
        true => Ok(()),
        false => Err("the alerts are not so".to_owned()),
    };
    world.agent.until(SOON, holds).await;
}

/// Two systems change one record, neither having seen the other's change.
async fn clash(world: &World, id: u64, round: u64) {
    world.agent.run(&["pause", "shop"]).await;
    for system in ["crm", "shop"] {
        world[system].execute(&format!("UPDATE contact SET name = 'by {system}, {round}' WHERE id = {id}")).await;
    }
    world.agent.run(&["resume", "shop"]).await;
    settled(world).await;
}

/// Incident → its events, in the order in which they came.
fn incidents(requests: &[Request]) -> BTreeMap<String, Vec<String>> {
    let mut incidents: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in requests {
        let event = request.json();
        let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
        assert_eq!(text("id"), request.id());
        let told = format!("{} {} {}{}", text("event"), text("condition"), text("system"), text("entity"));
        incidents.entry(text("incident")).or_default().push(told);
    }
    incidents
}

/// The receiver is away, then in trouble at random; the agent is killed again and again meanwhile. In
/// the long run it is away for a minute.
#[tokio::test]
async fn every_alert_arrives_in_order_whatever_happens_to_receiver_and_agent() {
    let mut random = seeded();
    let mut receiver = Receiver::new(random.random());
    let dir = tempfile::tempdir().unwrap();
    let (secret, log) = (dir.path().join("secret"), dir.path().join("commands"));
    write_secret(&secret, SECRET);
    let command = format!("cat >> {0}; echo >> {0}", log.display());
    let toml = format!(
        "[[alert]]\nname = \"ops\"\non = [\"quarantine\", \"conflict\", \"unreachable > 1s\"]\n\
         webhook = {:?}\nsecret_file = {secret:?}\nsettle = \"1s\"\n\n\
         [[alert]]\nname = \"page\"\non = [\"quarantine\"]\ncommand = [\"/bin/sh\", \"-c\", {command:?}]\nsettle = \"1s\"\n",
        receiver.url("/ops?token=planted"),
    );
    let mut world = world(&toml).start().await;
    for id in 0..10 {
        world["crm"].execute(&format!("INSERT INTO contact VALUES ({id}, 'Ada')")).await;
    }
    world.quiet().await;

    let rounds = if soak() { 6 } else { 2 };
    for round in 0..rounds {
        // nobody is there to be told, and what tells is killed
        world["shop"].execute(&format!("INSERT INTO contact VALUES ({}, 'forbidden')", 100 + round)).await;
        until_held(&world, 1).await;
        alerts(&world, |alert| alert["firing"].as_u64() > Some(0)).await;
        world.agent.restart_after_kill();
        world.agent.ready().await;
        clash(&world, round, round).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
        world.agent.restart_after_kill();
        world.agent.ready().await;
        if soak() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        receiver.trouble(30);
        receiver.up().await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
        world.agent.restart_after_kill();
        world.agent.ready().await;
        world["shop"].execute(&format!("UPDATE contact SET name = 'Eva' WHERE id = {}", 100 + round)).await;
        until_held(&world, 0).await;
        world.proxy("shop").refuse();
        alerts(&world, |alert| alert["name"] != "ops" || alert["firing"].as_u64() > Some(0)).await;
        let unreachable = || async {
            let told = format!("{:?}", incidents(&receiver.taken("/ops?token=planted")));
            let count = told.matches("firing unreachable > 1s shop").count() as u64;
            if count == round + 1 { Ok(()) } else { Err(told) }
        };
        eventually(SOON, unreachable).await;
        world.proxy("shop").pass();
        world.agent.ready().await;
        alerts(&world, |alert| alert["firing"] == 0).await;
        receiver.down().await;
    }
    receiver.up().await;
    alerts(&world, |alert| alert["firing"] == 0 && alert["pending"] == 0).await;

    let taken = receiver.taken("/ops?token=planted");
    let mut told: BTreeMap<String, u64> = BTreeMap::new();
    for (incident, events) in incidents(&taken) {
        let [begins, ends] = &events[..] else { panic!("{incident}: {events:?}") };
        let what = begins.strip_prefix("firing ").unwrap();
        assert_eq!(ends.strip_prefix("resolved "), Some(what), "{incident}");
        *told.entry(what.to_owned()).or_default() += 1;
    }
    // On a busy machine another start may take that long, too.
    told.remove("unreachable > 1s crm-");
    let expected = ["conflict -contact", "quarantine -contact", "unreachable > 1s shop-"];
    let expected: BTreeMap<String, u64> = expected.map(|what| (what.to_owned(), rounds)).into();
    assert_eq!(told, expected, "each once: neither lost nor made anew by a restart");
    let counted: u64 =
        taken.iter().map(Request::json).filter(|e| e["event"] == "resolved").filter_map(|e| e["count"].as_u64()).sum();
    assert_eq!(counted, rounds, "each conflict was counted once");
    let requests = receiver.requests();
    let mut ids: BTreeMap<(String, String), String> = BTreeMap::new();
    for request in &requests {
        let event = request.json();
        let told = (event["incident"].to_string(), event["event"].to_string());
        assert_eq!(ids.entry(told).or_insert_with(|| request.id().to_owned()), request.id(), "one event, two ids");
    }
    assert!(requests.iter().all(|request| request.is_signed_by(SECRET) && !request.is_signed_by("another")));
    assert!(requests.len() > taken.len() && requests.iter().any(|request| request.answer == 500), "no trouble at all");
    let commands = std::fs::read_to_string(&log).unwrap();
    let mut seen = Vec::new();
    for line in commands.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let told = (event["id"].clone(), event["event"].clone());
        // a kill may have come between its end and the note of it
        if !seen.contains(&told) {
            seen.push(told);
        }
    }
    let kinds: Vec<&str> = seen.iter().map(|(_, event)| event.as_str().unwrap()).collect();
    assert_eq!(kinds, ["firing", "resolved"].repeat(rounds as usize));
    assert!(!world.agent.log().contains("planted"), "the log tells a webhook's token");
    let metrics = world.agent.metrics().await;
    assert!(metrics.contains("anechoic_alerts_pending_events{alert=\"ops\"} 0"), "{metrics}");
    eprintln!("{} requests brought {} events", requests.len(), taken.len());
}

/// What happens is over at once: after a kill nothing but the note of it can tell.
#[tokio::test]
async fn a_conflict_is_told_though_the_agent_was_killed_before_anybody_heard() {
    let mut receiver = Receiver::new(1);
    let toml = format!("[[alert]]\nname = \"ops\"\non = [\"conflict\"]\nwebhook = {:?}\n", receiver.url("/"));
    let mut world = world(&toml).start().await;
    world["crm"].execute("INSERT INTO contact VALUES (1, 'Ada')").await;
    world.quiet().await;

    clash(&world, 1, 1).await;
    alerts(&world, |alert| alert["firing"] == 1).await;
    world.agent.restart_after_kill();
    world.agent.ready().await;
    receiver.up().await;

    let told = eventually(SOON, async || {
        let taken = receiver.taken("/");
        taken.first().map(Request::json).ok_or("nobody is told".into())
    })
    .await;
    assert_eq!((told["event"].as_str(), told["condition"].as_str()), (Some("firing"), Some("conflict")));
    assert_eq!(told["entity"], "contact");
}

#[tokio::test]
async fn a_test_goes_through_each_alert_and_says_which_of_them_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "ours");
    let tls = tls_receiver(&authority).await;
    let mut receiver = Receiver::new(1);
    receiver.up().await;
    let url = dir.path().join("url");
    write_secret(&url, &(receiver.url("/planted-token") + "\n"));
    let toml = format!(
        "[[alert]]\nname = \"chat\"\non = [\"stopped\"]\nwebhook_file = {url:?}\nformat = \"slack\"\n\
         headers = {{ X-Team = \"ops\" }}\n\n\
         [[alert]]\nname = \"tls\"\non = [\"stopped\"]\nwebhook = \"https://localhost:{tls}/\"\nca_file = {:?}\n\n\
         [[alert]]\nname = \"untrusted\"\non = [\"stopped\"]\nwebhook = \"https://localhost:{tls}/\"\n\n\
         [[alert]]\nname = \"page\"\non = [\"stopped\"]\ncommand = [\"/bin/false\"]\n",
        authority.file,
    );
    let world = world(&toml).build().await;

    let all = world.agent.command(&["alert", "test"]).await;
    let one = world.agent.command(&["alert", "test", "chat"]).await;
    let unknown = world.agent.command(&["alert", "test", "chad"]).await;
    receiver.always(404);
    let refused = world.agent.command(&["alert", "test", "chat", "--json"]).await;

    let said = |output: &std::process::Output| {
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    assert_eq!((all.status.code(), one.status.code()), (Some(2), Some(0)), "{}{}", said(&all), said(&one));
    let text = said(&all);
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert_eq!(line("chat"), format!("chat: webhook http://127.0.0.1:{}: arrived", receiver.port));
    assert_eq!(line("tls"), format!("tls: webhook https://localhost:{tls}: arrived"));
    assert!(line("untrusted").contains("signed by no authority"), "{text}");
    assert!(line("page").contains("command /bin/false: /bin/false ends with 1"), "{text}");
    assert!(unknown.status.code() == Some(2) && said(&unknown).contains("nearest: \"chat\""), "{}", said(&unknown));
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert!(told[0]["error"].as_str().unwrap().contains("(404)") && told[0]["arrived"] == false, "{told}");
    assert!(![&all, &one, &refused].iter().any(|output| said(output).contains("planted")));
    let chat = &receiver.taken("/planted-token")[0];
    assert!(chat.json()["text"].as_str().unwrap().contains("nothing is the matter") && chat.headers["x-team"] == "ops");
}

/// What it shows is what alerts will be: a command runs as the agent's child, not as the caller's.
#[tokio::test]
async fn a_test_is_sent_by_the_running_agent() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("who");
    let command = format!("[\"/bin/sh\", \"-c\", \"echo $PPID >{}\"]", place.display());
    let mut world =
        world(&format!("[[alert]]\nname = \"page\"\non = [\"stopped\"]\ncommand = {command}\n")).start().await;
    let who = || std::fs::read_to_string(&place).unwrap().trim().parse::<u32>().unwrap();

    world.agent.run(&["alert", "test"]).await;
    assert_eq!(who(), world.agent.pid());
    let pid = world.agent.pid();
    world.agent.stop().await;
    let alone = world.agent.command(&["alert", "test"]).await;
    assert!(String::from_utf8_lossy(&alone.stderr).contains("no agent runs"), "{alone:?}");
    assert_ne!(who(), pid);
}

/// Answers whatever comes with 204, over TLS.
async fn tls_receiver(authority: &Authority) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let acceptor = authority.certify(&["localhost"], Valid::Now).acceptor();
    let listener = tokio::net::TcpListener::bind("localhost:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
                let _ = stream.shutdown().await;
            });
        }
    });
    port
}
