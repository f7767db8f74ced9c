//! What nobody asked for is said nowhere: passwords and the values of rows, in logs at their most
//! talkative, on the port, in errors and in what commands print.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::agent::{http_request, write_secret};
use super::support::quarantine::{list, settled};
use super::support::receiver::Receiver;
use super::support::servers::{Kind, PASSWORD};
use super::support::world::{Entity, Type, World};
use super::support::{SOON, eventually};

const THREE: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

fn contact() -> Entity {
    Entity::new("contact")
        .key("id", Type::Int)
        .field("name", Type::Varchar(60))
        .field("email", Type::Varchar(60))
        .field("born", Type::Date)
        .field("phone", Type::Varchar(60))
        .option("sensitive = [\"phone\"]")
}

/// Where changes are told.
const NOTIFY: &str = "/planted/changes?token=planted";

/// Each row says `planted` in every field that can.
fn row(id: u64) -> String {
    format!("({id}, 'planted name {id}', 'planted{id}@example.com', '1999-09-09', 'planted phone {id}')")
}

/// What the port tells within a moment of whoever listens.
async fn events(port: u16) -> String {
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut told = Vec::new();
    let listening = async { while stream.read_buf(&mut told).await.unwrap() > 0 {} };
    let _ = tokio::time::timeout(Duration::from_secs(3), listening).await;
    String::from_utf8_lossy(&told).into_owned()
}

/// Values are shown to whoever asks for them, but for those that are sensitive.
async fn asked_for(world: &World, audit: &Path) -> Vec<(String, String)> {
    let mut shown = Vec::new();
    let conflicts: Value = serde_json::from_str(&world.agent.run(&["conflicts", "list", "--json"]).await).unwrap();
    let conflict = conflicts[0]["id"].as_str().unwrap();
    for command in [
        &["history", "contact", "110"][..],
        &["history", "contact", "110", "--json"],
        &["audit"],
        &["audit", "--format", "csv"],
        &["quarantine", "--values"],
        &["conflicts", "show", conflict],
        &["undo", "--system", "crm", "--since", "1h", "--skip-changed", "--dry-run", "--json"],
    ] {
        shown.push((command.join(" "), world.agent.run(command).await));
    }
    for path in ["/quarantine?values=true".to_owned(), format!("/conflicts/{conflict}")] {
        let (code, values) =
            http_request(world.agent.port, "GET", &path, Some("Bearer planted token"), "").await.unwrap();
        assert_eq!(code, 200, "{path}: {values}");
        shown.push((path, values));
    }
    let written = async || {
        let file = std::fs::read_dir(audit).map_err(|error| error.to_string())?.next().ok_or("no file")?;
        let text = std::fs::read_to_string(file.unwrap().path()).map_err(|error| error.to_string())?;
        if text.contains("planted by shop") { Ok(text) } else { Err("not all is written".to_owned()) }
    };
    shown.push(("the audit file".to_owned(), eventually(SOON, written).await));
    shown
}

#[tokio::test]
async fn neither_passwords_nor_values_are_said_by_anybody() {
    let log = tempfile::tempdir().unwrap();
    let file = log.path().join("anechoic.log");
    let secret = log.path().join("secret");
    write_secret(&secret, "planted secret");
    let (token, audit) = (log.path().join("token"), log.path().join("audit"));
    write_secret(&token, "planted token");
    let mut receiver = Receiver::new(1);
    let keys = format!("secret_file = {secret:?}\nheaders = {{ Authorization = \"planted\" }}");
    let alert = format!(
        "[[alert]]\nname = \"ops\"\non = [\"conflict\", \"quarantine\"]\nwebhook = {:?}\n{keys}\n",
        receiver.url("/planted?token=planted"),
    );
    let notify = format!(
        "[[notify]]\nname = \"billing\"\nentity = \"contact\"\nfields = [\"born\", \"phone\"]\nwebhook = {:?}\n{keys}\n",
        receiver.url(NOTIFY),
    );
    let mut world = World::of(&THREE)
        .proxied("shop")
        .entity(contact())
        .ddl("crm", "ALTER TABLE contact ADD CONSTRAINT named CHECK (name NOT LIKE '%forbidden%')")
        .ddl("erp", "ALTER TABLE contact ADD CONSTRAINT named CHECK (name NOT LIKE '%forbidden%')")
        .ddl("crm", "CREATE UNIQUE INDEX one_email ON contact (email)")
        .ddl("erp", "CREATE UNIQUE INDEX one_email ON contact (email)")
        .toml(&format!("{alert}{notify}[audit]\ndir = {audit:?}\n"))
        .build()
        .await;
    let config = std::fs::read_to_string(world.agent.config()).unwrap();
    let config = config.replacen("[agent]\n", &format!("[agent]\ntoken_file = {token:?}\n"), 1);
    std::fs::write(world.agent.config(), config).unwrap();
    world.setup().await;
    // the drivers', too
    world.agent.set_env("RUST_LOG", "trace");
    world.agent.start_with(&["--log", "json", "--log-file", file.to_str().unwrap()]);
    world.agent.ready().await;

    // rows of all sorts, a conflict, and what each system refuses or cannot say
    for (at, (system, _)) in THREE.into_iter().enumerate() {
        let base = 100 * (at as u64 + 1);
        let rows: Vec<String> = (base..base + 20).map(row).collect();
        world[system].execute(&format!("INSERT INTO contact VALUES {}", rows.join(", "))).await;
        world[system].execute(&format!("UPDATE contact SET name = 'planted anew' WHERE id = {base}")).await;
        world[system].execute(&format!("DELETE FROM contact WHERE id = {}", base + 1)).await;
    }
    world.quiet().await;
    world.agent.run(&["pause", "shop"]).await;
    world["crm"].execute("UPDATE contact SET name = 'planted by crm' WHERE id = 105").await;
    world["shop"].execute("UPDATE contact SET name = 'planted by shop' WHERE id = 105").await;
    world.agent.run(&["resume", "shop"]).await;
    world["shop"]
        .execute(
            "INSERT INTO contact VALUES (900, 'planted forbidden', 'planted900@example.com', NULL, 'planted phone')",
        )
        .await;
    world["shop"]
        .execute("INSERT INTO contact VALUES (901, 'planted', 'planted105@example.com', NULL, 'planted phone')")
        .await;
    world["shop"]
        .execute("SET sql_mode = ''; INSERT INTO contact VALUES (902, 'planted date', 'planted902@example.com', '0000-00-10', 'planted phone')")
        .await;
    let held = async || match list(&world).await?.len() {
        4.. => Ok(()),
        held => Err(format!("{held} are held")),
    };
    eventually(SOON, held).await;
    settled(&world).await;
    world.proxy("shop").cut();
    // One that is being tried just now is left alone.
    eventually(SOON, || async {
        let retried = world.agent.command(&["quarantine", "retry", "erp", "--all"]).await;
        if retried.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&retried.stdout).into_owned()) }
    })
    .await;
    let tried = async || {
        let status = world.agent.status().await?;
        let states = status["systems"].as_array().unwrap().iter().map(|s| s["state"].as_str().unwrap().to_owned());
        let states: Vec<String> = states.collect();
        if states.iter().all(|state| state == "streaming") { Ok(()) } else { Err(format!("{states:?}")) }
    };
    eventually(SOON, tried).await;
    // nobody, then one who refuses, then one who takes it
    receiver.up().await;
    receiver.always(400);
    let refused = async || {
        let (told, changes): (Vec<_>, Vec<_>) = receiver.requests().into_iter().partition(|r| r.path != NOTIFY);
        if told.is_empty() || changes.is_empty() { Err("not everybody was told".to_owned()) } else { Ok(()) }
    };
    eventually(SOON, refused).await;
    receiver.always(0);
    let told = async || match receiver.taken("/planted?token=planted").len() {
        2.. => Ok(()),
        count => Err(format!("{count} events have arrived")),
    };
    eventually(SOON, told).await;
    let told = |status: &Value| match status["notifications"][0]["pending"].as_u64() {
        Some(0) => Ok(()),
        pending => Err(format!("{pending:?} entries are not told")),
    };
    world.agent.until(SOON, told).await;
    world.agent.run(&["load", "contact", "--dry-run"]).await;

    let mut said = String::new();
    for path in ["/", "/live", "/ready", "/metrics", "/status", "/quarantine", "/conflicts"] {
        said += &world.agent.get(path).await.unwrap().1;
    }
    for (method, path) in [("GET", "/quarantine?values=true"), ("POST", "/quarantine/retry"), ("POST", "/reload")] {
        let (code, refused) = http_request(world.agent.port, method, path, Some("Bearer guess"), "").await.unwrap();
        assert_eq!(code, 401, "{path}: {refused}");
        said += &refused;
    }
    let events = events(world.agent.port).await;
    assert!(events.contains("event: state") && events.contains("contact"), "{events}");
    said += &events;
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["quarantine"],
        &["conflicts"],
        &["check"],
        &["verify"],
        &["alert", "test"],
    ] {
        let output = world.agent.command(command).await;
        said += &(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr));
    }
    let masked = asked_for(&world, &audit).await;
    // a password that is refused
    world.agent.set_env("ANECHOIC_TEST_PASSWORD", "planted password");
    let output = world.agent.command(&["check"]).await;
    said += &(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr));
    world.agent.stop().await;
    let logged = std::fs::read_to_string(&file).unwrap();

    for (what, text) in masked {
        assert!(text.contains("planted"), "{what} shows no values: {text}");
        assert!(text.contains("(masked)"), "{what} masks nothing: {text}");
        let line = text.lines().find(|line| line.contains("planted phone"));
        assert_eq!(line, None, "{what} shows what is sensitive");
    }
    let lines: Vec<Value> = logged.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.iter().any(|line| line["level"] == "TRACE") && logged.contains("conflict"),
        "it says next to nothing"
    );
    for request in receiver.requests() {
        assert!(request.is_signed_by("planted secret") && request.headers["authorization"] == "planted");
        let body = String::from_utf8_lossy(&request.body);
        // what was chosen is told, to whom it was chosen for
        said += &if request.path == NOTIFY { body.replace("1999-09-09", "") } else { body.into_owned() };
    }
    let changes = receiver.taken(NOTIFY);
    let changes = changes.iter().map(|request| String::from_utf8_lossy(&request.body)).collect::<String>();
    assert!(changes.contains("\"born\":\"1999-09-09\"") && changes.contains("\"phone\":\"(masked)\""), "{changes}");
    let mut kept = 0;
    for entry in std::fs::read_dir(world.agent.data_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            said += &std::fs::read_to_string(path).unwrap();
            kept += 1;
        }
    }
    assert!(kept >= 2, "no place of alerts and notifications");
    assert!(logged.contains("changes are refused"), "no word of notifications");
    assert!(logged.contains("an alert is refused") && said.contains("ops: webhook http"), "no word of alerts");
    assert!(said.contains("contact") && said.contains("anechoic_capture_changes_total"));
    let words = ["planted", "1999-09-09", PASSWORD, "pässword", "0000-00-10"];
    for (what, text) in [("the log", &logged), ("what was told", &said), ("stderr", &world.agent.log())] {
        for word in words {
            let line = text.lines().find(|line| line.contains(word));
            assert_eq!(line, None, "{what} says {word:?}");
        }
    }
}
