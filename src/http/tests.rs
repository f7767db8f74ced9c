//! The port by itself, through real sockets: no database is asked, and no agent runs behind it.

use std::path::Path;
use std::time::{Duration, Instant};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::limits::Rate;
use super::*;
use crate::config::CertificateFiles;
use crate::control::port::routes;
use crate::status::State as Phase;

const TOKEN: &str = "correct horse battery";

struct Opened {
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
    certificate: Option<Certificate>,
    dir: tempfile::TempDir,
}

/// As an agent opens it that has such lines in `[agent]`, changed by `change`.
async fn open_by(lines: &str, change: impl FnOnce(&mut Door)) -> Opened {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), format!("{TOKEN}\n")).unwrap();
    self_signed(dir.path(), "port");
    let config = config(dir.path(), lines);
    let mut door = bind(&config).await.unwrap();
    change(&mut door);
    let (address, stop) = (door.listener.local_addr().unwrap(), CancellationToken::new());
    let certificate = door.certificate();
    let shown = watch::Sender::new(status::tests::example());
    let control = routes(&config);
    let stopped = stop.clone();
    let server = tokio::spawn(async move { serve(door, shown.subscribe(), control, true, stopped).await });
    Opened { address, stop, server, certificate, dir }
}

async fn open(lines: &str) -> Opened {
    open_by(lines, |_| ()).await
}

const TLS: &str = "tls_cert = \"{dir}/port.pem\"\ntls_key = \"{dir}/port.key\"";

fn config(dir: &Path, lines: &str) -> Config {
    let dir = dir.display();
    let text = format!(
        "[agent]\nid = \"hq\"\ndata_dir = \"{dir}\"\nlisten = \"127.0.0.1:0\"\ntoken_file = \"{dir}/token\"\n{}\n\
         [[system]]\nname = \"crm\"\nurl = \"mysql://u@h/d\"\n",
        lines.replace("{dir}", &dir.to_string())
    );
    Config::from_str(&text, "x").unwrap()
}

/// A certificate for localhost, as NAME.pem and NAME.key.
fn self_signed(dir: &Path, name: &str) -> CertificateFiles {
    self_signed_until(dir, name, 4096)
}

fn self_signed_until(dir: &Path, name: &str, year: i32) -> CertificateFiles {
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    let made = params.self_signed(&key).unwrap();
    let files = CertificateFiles { certificate: dir.join(format!("{name}.pem")), key: dir.join(format!("{name}.key")) };
    std::fs::write(&files.certificate, made.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

/// A session with a server that shows the certificate of that file.
async fn tls(stream: TcpStream, certificate: &Path) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// What is answered until the server closes the connection.
async fn told(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> String {
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// `headers`: lines that end with `\r\n`.
fn request(method: &str, path: &str, headers: &str) -> String {
    let host = if headers.contains("Host:") { "" } else { "Host: 127.0.0.1\r\n" };
    format!("{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}\r\n")
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

impl Opened {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn ask(&self, method: &str, path: &str, headers: &str) -> String {
        told(self.connect().await, &request(method, path, headers)).await
    }
}

fn code(answer: &str) -> u16 {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn the_port_answers_while_a_system_is_stopped_and_says_which() {
    let status = status::tests::example();
    *status.systems[0].capture.state.lock().unwrap() = Phase::Stopped("slot is gone".into());
    let dir = tempfile::tempdir().unwrap();
    let door = bind(&config(dir.path(), "")).await.unwrap();
    let address = door.listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let shown = watch::Sender::new(status).subscribe();
    let server = tokio::spawn(serve(door, shown, Router::new(), false, stop.clone()));
    let get = async |path| told(TcpStream::connect(address).await.unwrap(), &request("GET", path, "")).await;

    let (live, ready) = (get("/live").await, get("/ready").await);
    let (metrics, page) = (get("/metrics").await, get("/").await);
    stop.cancel();

    assert_eq!(code(&live), 200);
    assert!(code(&ready) == 503 && ready.contains("slot is gone"), "{ready}");
    assert!(metrics.contains("anechoic_ready 0\n"));
    assert!(page.contains("<title>anechoic</title>") && page.contains("script-src 'sha256-"), "{page}");
    server.await.unwrap();
}

/// What every answer says of itself, whatever it is, and whoever gave it.
#[tokio::test]
async fn every_answer_says_how_it_may_be_used() {
    let port = open("").await;
    let wrong = bearer("guess");
    for (method, path, headers, expected) in [
        ("GET", "/", "", 200),
        ("GET", "/events", "", 200),
        ("GET", "/live", "", 200),
        ("GET", "/ready", "", 503),
        ("GET", "/metrics", "", 200),
        ("GET", "/status", "", 200),
        ("GET", "/quarantine", "", 409),
        ("GET", "/conflicts", "", 409),
        ("GET", "/conflicts/1.0", "", 401),
        ("POST", "/reload", &wrong, 401),
        ("GET", "/nothing", "", 404),
        ("DELETE", "/live", "", 405),
        ("GET", "/conflicts?limit=many", "", 400),
        ("GET", "/status", "Host: rebind.example\r\n", 421),
        ("POST", "/reload", "Origin: http://elsewhere.example\r\n", 403),
    ] {
        let mut stream = port.connect().await;
        stream.write_all(request(method, path, headers).as_bytes()).await.unwrap();
        let (mut answer, mut some) = (String::new(), [0; 4096]);
        while !answer.contains("\r\n\r\n") {
            let read = stream.read(&mut some).await.unwrap();
            assert_ne!(read, 0, "{method} {path}: {answer}");
            answer += &String::from_utf8_lossy(&some[..read]);
        }

        let head = answer.split("\r\n\r\n").next().unwrap();
        assert_eq!(code(head), expected, "{method} {path}: {answer}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-resource-policy", "same-origin"),
            ("content-security-policy", "default-src 'none'; "),
            ("cache-control", if ["/", "/events"].contains(&path) { "no-cache" } else { "no-store" }),
        ] {
            let lines: Vec<_> = head.lines().filter(|line| line.starts_with(&format!("{name}: "))).collect();
            assert!(lines.len() == 1 && lines[0][name.len() + 2..].starts_with(value), "{method} {path}: {head}");
        }
        assert!(head.contains("frame-ancestors 'none'"), "{path}: {head}");
    }
}

#[tokio::test]
async fn who_asks_too_often_is_told_so_and_answered_again_later() {
    let rate = Rate { per_second: 4.0, burst: 5.0 };
    let port = open_by("", |door| door.limits = Arc::new(Limits::new(rate, rate))).await;

    let mut codes = Vec::new();
    let mut refused = String::new();
    // On one connection: it is requests that are counted.
    let mut stream = port.connect().await;
    let all = "GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(30) + &request("GET", "/status", "");
    for answer in told(&mut stream, &all).await.split_inclusive("HTTP/1.1 ").skip(1) {
        codes.push(answer[..3].parse::<u16>().unwrap());
        if codes.last() == Some(&429) && refused.is_empty() {
            refused = answer.to_owned();
        }
    }

    assert!(codes[..5] == [200; 5] && codes.len() == 31, "{codes:?}");
    assert!(codes.iter().filter(|code| **code == 429).count() > 10, "{codes:?}");
    assert!(refused.contains("retry-after: 1\r\n") && !refused.contains("crm"), "{refused}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(code(&port.ask("GET", "/status", "").await), 200);
}

#[tokio::test]
async fn names_that_others_can_point_here_are_not_answered_to() {
    let port = open("").await;
    for host in ["rebind.example", "rebind.example:8642", "localhost.example", "Host: localhost\r\nHost: x.example"] {
        let header = if host.starts_with("Host") { format!("{host}\r\n") } else { format!("Host: {host}\r\n") };
        for path in ["/status", "/", "/quarantine", "/nothing"] {
            let answer = port.ask("GET", path, &header).await;
            assert!(code(&answer) == 421 && answer.contains("proxy") && !answer.contains("crm"), "{host}: {answer}");
        }
    }
    for host in ["localhost:8642", "127.0.0.1", "[::1]:8642"] {
        assert_eq!(code(&port.ask("GET", "/status", &format!("Host: {host}\r\n")).await), 200, "{host}");
    }
    // Monitoring of the old kind.
    assert_eq!(code(&told(port.connect().await, "GET /live HTTP/1.0\r\n\r\n").await.replace("1.0", "1.1")), 200);
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing_even_with_the_token() {
    let port = open("").await;
    let right = bearer(TOKEN);
    for foreign in [
        "Origin: http://elsewhere.example\r\n",
        "Origin: null\r\n",
        "Origin: http://127.0.0.1:3000\r\n",
        "Sec-Fetch-Site: cross-site\r\n",
        "Sec-Fetch-Site: same-site\r\nOrigin: http://127.0.0.1\r\n",
    ] {
        let answer = port.ask("POST", "/reload", &format!("{right}{foreign}")).await;
        assert!(code(&answer) == 403 && answer.contains("another site"), "{foreign}: {answer}");
    }
    for ours in ["", "Origin: http://127.0.0.1\r\n", "Sec-Fetch-Site: same-origin\r\nOrigin: https://proxy.example\r\n"]
    {
        let answer = port.ask("POST", "/reload", &format!("{right}{ours}")).await;
        assert!(code(&answer) == 409 && answer.contains("starting or stopping"), "{ours}: {answer}");
    }
}

/// Wrong tokens wait for each other, and the right one for none of them.
#[tokio::test]
async fn guessing_is_slow_and_holds_up_nobody_who_knows() {
    let port = open("").await;
    let began = Instant::now();
    let mut guesses = tokio::task::JoinSet::new();
    for guess in 0..4 {
        let (stream, wrong) = (port.connect().await, bearer(&format!("guess-{guess}")));
        guesses.spawn(async move { told(stream, &request("POST", "/reload", &wrong)).await });
    }

    let right = port.ask("POST", "/reload", &bearer(TOKEN)).await;
    let answered = std::iter::from_fn(|| guesses.try_join_next()).count();

    assert_eq!(code(&right), 409, "{right}");
    assert!(answered < 4, "all guesses are answered already");
    let all = guesses.join_all().await;
    assert!(all.iter().all(|answer| code(answer) == 401 && answer.contains("token")), "{all:?}");
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?} for four guesses", began.elapsed());
}

/// Who hangs up does not wait; so there is a number of guesses, too.
#[tokio::test]
async fn after_many_wrong_tokens_none_from_there_is_looked_at() {
    let (requests, guesses) = (Rate { per_second: 1e6, burst: 1e6 }, Rate { per_second: 1e-9, burst: 3.0 });
    let port = open_by("", |door| door.limits = Arc::new(Limits::new(requests, guesses))).await;
    for guess in 0..3 {
        let mut stream = port.connect().await;
        let wrong = request("GET", "/quarantine?values=true", &bearer(&format!("guess-{guess}")));
        stream.write_all(wrong.as_bytes()).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(100), stream.read(&mut [0])).await;
    }

    for token in ["guess", TOKEN] {
        let answer = port.ask("GET", "/quarantine?values=true", &bearer(token)).await;
        assert!(code(&answer) == 429 && answer.contains("retry-after"), "{answer}");
    }
    // What needs no token is answered.
    assert_eq!(code(&port.ask("GET", "/metrics", "").await), 200);
}

#[tokio::test]
async fn a_body_is_read_from_those_who_have_the_token_and_has_an_end() {
    let port = open("").await;
    let length = |length: usize| format!("Content-Length: {length}\r\n");

    // It does not come, and nobody waits for it.
    let answer = port.ask("POST", "/quarantine/drop", &length(1 << 20)).await;
    assert_eq!(code(&answer), 401, "{answer}");

    let answer = port.ask("POST", "/quarantine/drop", &(length(3 << 20) + &bearer(TOKEN))).await;
    assert!(code(&answer) == 413 && answer.contains("2 MiB"), "{answer}");
    let body = format!("{{\"key\":\"{}\"}}", "x".repeat(1 << 20));
    let whole = request("POST", "/quarantine/drop", &(length(body.len()) + &bearer(TOKEN))) + &body;
    assert_eq!(code(&told(port.connect().await, &whole).await), 409);
    // Nor are headers without end.
    let answer = port.ask("GET", "/live", &format!("X: {}\r\n", "x".repeat(100 << 10))).await;
    assert!([0, 431].contains(&code(&answer)), "{answer}");
}

#[tokio::test]
async fn who_sends_half_a_request_is_cut_off() {
    let patience = Patience { request: Duration::from_millis(200), ..Patience::default() };
    let port = open_by("", |door| door.patience = patience).await;

    // Both ends by the server's doing: the client waits for that.
    let answer = told(port.connect().await, "GET /live HTTP/1.1\r\nHost: loc").await;
    let silent = told(port.connect().await, "").await;

    assert!(!answer.contains("live\n") && silent.is_empty(), "{answer}{silent}");
}

#[tokio::test]
async fn one_address_cannot_take_all_connections() {
    let port = open("").await;
    let mut idle = Vec::new();
    for _ in 0..128 {
        let mut stream = port.connect().await;
        stream.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
        idle.push(stream);
    }

    assert_eq!(port.ask("GET", "/live", "").await, "");
    let other = TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let other = other.connect(port.address).await.unwrap();
    assert_eq!(code(&told(other, &request("GET", "/live", "")).await), 200);

    drop(idle);
    let deadline = Instant::now() + Duration::from_secs(10);
    while code(&port.ask("GET", "/live", "").await) != 200 {
        assert!(Instant::now() < deadline, "places are not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn with_a_certificate_nothing_is_said_in_the_clear() {
    let port = open(TLS).await;
    let certificate = port.dir.path().join("port.pem");

    for path in ["/", "/status", "/live"] {
        let clear = port.ask("GET", path, "").await;
        assert!(!clear.contains("HTTP") && !clear.contains("crm"), "{clear}");
    }
    // By any name: the certificate says which are ours.
    let session = tls(port.connect().await, &certificate).await.unwrap();
    let answer = told(session, &request("GET", "/status", "Host: agent.example\r\n")).await;
    assert!(code(&answer) == 200 && answer.contains("\"crm\""), "{answer}");
    assert!(answer.contains("x-frame-options") && !answer.contains("strict-transport-security"), "{answer}");
}

#[tokio::test]
async fn a_handshake_that_stands_still_holds_up_nobody_and_ends() {
    let patience = Patience { handshake: Duration::from_millis(300), ..Patience::default() };
    let port = open_by(TLS, |door| door.patience = patience).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(port.connect().await);
    }

    let session = tls(port.connect().await, &port.dir.path().join("port.pem")).await.unwrap();
    assert_eq!(code(&told(session, &request("GET", "/live", "")).await), 200);

    for stream in silent {
        assert_eq!(told(stream, "").await, "");
    }
}

#[tokio::test]
async fn another_certificate_is_shown_from_then_on_and_cuts_nobody_off() {
    let port = open(TLS).await;
    let dir = port.dir.path();
    let certificate = port.certificate.clone().unwrap();
    let old = dir.join("port.pem");
    let mut before = tls(port.connect().await, &old).await.unwrap();
    let next = self_signed(dir, "next");

    // Half of one and half of another changes nothing.
    for (files, what) in [
        (CertificateFiles { certificate: next.certificate.clone(), key: dir.join("port.key") }, "with the key in"),
        (CertificateFiles { certificate: next.certificate.clone(), key: dir.join("none.key") }, "none.key"),
        (CertificateFiles { certificate: dir.join("port.key"), key: next.key.clone() }, "there is no certificate"),
    ] {
        let error = certificate.renew(&files).unwrap_err().full();
        assert!(error.contains(what) && error.contains("tls_"), "{error}");
        tls(port.connect().await, &old).await.unwrap();
    }
    certificate.renew(&next).unwrap();

    tls(port.connect().await, &old).await.unwrap_err();
    let session = tls(port.connect().await, &next.certificate).await.unwrap();
    assert_eq!(code(&told(session, &request("GET", "/live", "")).await), 200);
    assert_eq!(code(&told(&mut before, &request("GET", "/live", "")).await), 200);
}

#[tokio::test]
async fn a_certificate_of_no_use_is_told_of_until_there_is_another() {
    let port = open(TLS).await;
    let certificate = port.certificate.clone().unwrap();
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let (changed, mut at_once) = tokio::sync::mpsc::unbounded_channel();
    let remind = |every: Duration, to: tokio::sync::mpsc::UnboundedSender<String>| {
        let certificate = certificate.clone();
        tokio::spawn(async move {
            certificate.remind(every, |trouble| to.send(trouble.to_owned()).unwrap()).await;
        })
    };
    let reminding = [remind(Duration::from_millis(50), told), remind(REMIND_EVERY, changed)];
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(heard.try_recv().is_err(), "there was nothing to tell");

    certificate.renew(&self_signed_until(port.dir.path(), "old", 2020)).unwrap();
    for _ in 0..3 {
        let trouble = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await.unwrap().unwrap();
        assert!(trouble.starts_with("the port's certificate has expired (2020-01-01T"), "{trouble}");
    }
    tokio::time::timeout(Duration::from_secs(10), at_once.recv()).await.unwrap().unwrap();
    certificate.renew(&self_signed(port.dir.path(), "next")).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(at_once.try_recv().is_err(), "once a day");
    while heard.try_recv().is_ok() {}
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(heard.try_recv().is_err(), "it was renewed");
    reminding.iter().for_each(JoinHandle::abort);
}

#[tokio::test]
async fn the_end_waits_for_answers_and_for_no_client() {
    let port = open("").await;
    let idle = port.connect().await;
    let mut watching = port.connect().await;
    watching.write_all(request("GET", "/events", "").as_bytes()).await.unwrap();
    assert_ne!(watching.read(&mut [0; 4096]).await.unwrap(), 0);
    let (stream, wrong) = (port.connect().await, request("POST", "/reload", &bearer("guess")));
    let guess = tokio::spawn(async move { told(stream, &wrong).await });
    // Taken in: what comes after it is answered.
    assert_eq!(code(&port.ask("GET", "/live", "").await), 200);
    tokio::time::sleep(Duration::from_millis(100)).await;

    port.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), port.server).await.expect("it ends").unwrap();

    assert_eq!(code(&guess.await.unwrap()), 401);
    drop(idle);
}
