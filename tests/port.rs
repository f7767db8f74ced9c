//! The port of a running agent, where other machines may reach it: TLS, a renewed certificate, and what it does not
//! open without. What is refused request by request stands in src/http/tests.rs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::agent::write_secret;
use super::support::certificates::{Authority, Valid};
use super::support::servers::Kind;
use super::support::world::{Entity, Type, World};
use super::support::{SOON, eventually};

/// From the start until everything is set up and read.
const LONG: Duration = Duration::from_secs(90);
const TOKEN: &str = "0123456789abcdef0123456789abcdef";

async fn world() -> World {
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(60));
    let world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)]).entity(contact).build().await;
    world.setup().await;
    world
}

/// Puts these lines in the place of the key `listen`.
fn configure(world: &World, lines: &str) {
    let config = std::fs::read_to_string(world.agent.config()).unwrap();
    let before = config.lines().position(|line| line.starts_with("listen")).unwrap();
    let with = config.lines().enumerate().map(|(at, line)| if at == before { lines } else { line });
    std::fs::write(world.agent.config(), with.collect::<Vec<_>>().join("\n")).unwrap();
}

/// What is answered over TLS to who trusts that authority.
async fn get(port: u16, authority: &Path, path: &str) -> Result<String, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())?;
    let name = ServerName::try_from("localhost").unwrap();
    let session = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let mut session = session.map_err(|e| e.to_string())?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent.example\r\nConnection: close\r\n\r\n");
    session.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
    let mut answer = String::new();
    session.read_to_string(&mut answer).await.map_err(|e| e.to_string())?;
    Ok(answer)
}

async fn until_answered(port: u16, authority: &Path, path: &str) {
    eventually(LONG, async || {
        let answer = get(port, authority, path).await?;
        if answer.starts_with("HTTP/1.1 200") { Ok(()) } else { Err(answer) }
    })
    .await;
}

#[tokio::test]
async fn a_renewed_certificate_is_taken_at_reload_and_a_bad_one_changes_nothing() {
    let mut world = world().await;
    let (dir, port) = (world.agent.dir.path().to_owned(), world.agent.port);
    let (old, new) = (Authority::new(&dir, "old"), Authority::new(&dir, "new"));
    let (chain, key) = old.certify(&["localhost"], Valid::Now).files(&dir, "port");
    let token = dir.join("token");
    write_secret(&token, TOKEN);
    configure(
        &world,
        &format!("listen = \"0.0.0.0:{port}\"\ntoken_file = {token:?}\ntls_cert = {chain:?}\ntls_key = {key:?}"),
    );
    world.agent.run(&["check"]).await;
    world.agent.start();
    until_answered(port, &old.file, "/ready").await;
    let clear = world.agent.get("/status").await;
    assert!(clear.as_ref().map_or(true, |(code, _)| *code != 200), "{clear:?}");
    assert!(!world.agent.log().contains("insecure"), "there is nothing to warn of");

    let renewed = new.certify(&["localhost"], Valid::Now);
    renewed.files(&dir, "port");
    world.agent.reload();

    until_answered(port, &new.file, "/ready").await;
    get(port, &old.file, "/ready").await.unwrap_err();

    // The key of another certificate, as where one of two files was replaced.
    write_secret(&key, &old.certify(&["localhost"], Valid::Now).key);
    let refused = world.agent.command(&["reload"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("port.pem") && said.contains("tls_key"), "{said}");
    until_answered(port, &new.file, "/ready").await;
    let check = world.agent.command(&["check"]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.code() == Some(2) && said.contains("the port cannot use"), "{said}");
    assert!(world.agent.is_running());

    // Nor does an agent begin with it.
    world.agent.stop().await;
    world.agent.start();
    assert!(!world.agent.exited(SOON).await.success());
    assert!(world.agent.log().contains("the port cannot use"), "{}", world.agent.log());

    write_secret(&key, &renewed.key);
    world.agent.start();
    until_answered(port, &new.file, "/ready").await;
    world["crm"].execute("INSERT INTO contact VALUES (1, 'Ada')").await;
    world.quiet().await;
}

#[tokio::test]
async fn a_certificate_that_expires_is_told_before_and_until_it_is_renewed() {
    let mut world = world().await;
    let (dir, port) = (world.agent.dir.path().to_owned(), world.agent.port);
    let authority = Authority::new(&dir, "authority");
    let certify = |valid| authority.certify(&["localhost"], valid).files(&dir, "port");
    let (chain, key) = certify(Valid::Future);
    let (token, pages) = (dir.join("token"), dir.join("pages"));
    write_secret(&token, TOKEN);
    configure(
        &world,
        &format!("listen = \"127.0.0.1:{port}\"\ntoken_file = {token:?}\ntls_cert = {chain:?}\ntls_key = {key:?}"),
    );
    let mut config = std::fs::read_to_string(world.agent.config()).unwrap();
    let command = format!("cat >>{0} && echo >>{0}", pages.display());
    config += &format!(
        "\n[[alert]]\nname = \"ops\"\non = [\"certificate\"]\ncommand = [\"/bin/sh\", \"-c\", {command:?}]\nsettle = \"1s\"\n"
    );
    std::fs::write(world.agent.config(), config).unwrap();
    let warns =
        |said: &str, of: &str| said.lines().any(|line| line.contains("the port's certificate") && line.contains(of));

    let said = world.agent.run(&["check"]).await;
    assert!(warns(&said, "is not valid yet (2080-01-01T") && said.contains("systemctl reload anechoic"), "{said}");
    certify(Valid::Moments);
    let said = world.agent.run(&["check"]).await;
    assert!(warns(&said, "expires in 0 days") || warns(&said, "has expired"), "{said}");
    world.agent.start();
    let paged = async |event: &str| {
        eventually(LONG, async || {
            let pages = std::fs::read_to_string(&pages).unwrap_or_default();
            let found = pages.lines().find(|line| line.contains(event) && line.contains("the port's certificate"));
            found.map(str::to_owned).ok_or(pages)
        })
        .await
    };
    paged("\"firing\"").await;
    let log = world.agent.log();
    assert!(log.lines().any(|line| line.contains("WARN") && warns(line, "")), "{log}");

    certify(Valid::Now);
    world.agent.reload();
    paged("\"resolved\"").await;
    let metrics = get(port, &authority.file, "/metrics").await.unwrap();
    assert!(metrics.contains("\nanechoic_certificate_expiry_time_seconds 3786912000"), "{metrics}");
    let said = world.agent.run(&["check"]).await;
    assert!(!warns(&said, ""), "{said}");
}

#[tokio::test]
async fn other_machines_are_let_in_without_tls_only_where_that_is_said() {
    let mut world = world().await;
    let (port, token) = (world.agent.port, world.agent.dir.path().join("token"));
    write_secret(&token, "short");
    let open = format!("listen = \"0.0.0.0:{port}\"");

    for (lines, missing) in [(open.clone(), "token_file"), (format!("{open}\ntoken_file = {token:?}"), "tls_cert")] {
        configure(&world, &lines);
        world.agent.start();
        assert_eq!(world.agent.exited(SOON).await.code(), Some(2));
        assert!(world.agent.log().contains(&format!("listen 0.0.0.0:{port}")), "{}", world.agent.log());
        assert!(world.agent.log().contains(missing), "{}", world.agent.log());
        let config = std::fs::read_to_string(world.agent.config()).unwrap();
        std::fs::write(world.agent.config(), config.replace(&format!("\ntoken_file = {token:?}"), "")).unwrap();
    }

    configure(&world, &format!("{open}\ntoken_file = {token:?}\ninsecure = true"));
    let said = world.agent.run(&["check"]).await;
    assert!(said.contains("short (under 16 characters)"), "{said}");
    world.agent.start();
    world.agent.ready_within(LONG).await;

    let log = world.agent.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("insecure = true")), "{log}");
    // Which names are ours is not known here.
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"GET /live HTTP/1.1\r\nHost: agent.example\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("x-frame-options"), "{answer}");
}
