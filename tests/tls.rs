//! Whom the agent talks to: certificates, in each engine and each kind of connection.

use std::sync::Arc;
use std::time::Duration;

use anechoic::config::{CertificateFiles, ConnectConfig, TlsConfig, TlsMode};
use anechoic::error::Recovery;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::certificates::{Authority, Certificate, Valid, show};
use crate::support::servers::{Db, Kind, Server};
use crate::support::ways::Ways;
use crate::support::{SOON, eventually, unique};

/// Both kinds of connection end so: `Ok`, or with an error that says all of this.
async fn expect(ways: &Ways, config: &ConnectConfig, expected: Result<(), &[&str]>) -> Result<(), String> {
    for (way, result) in ways.try_all(config).await {
        let what = format!("{way} to {}:{} with {:?}", config.host, config.port, config.tls);
        match (result, expected) {
            (Ok(()), Ok(())) => {}
            (Ok(()), Err(parts)) => return Err(format!("{what}: connected, instead of saying {parts:?}")),
            (Err(error), Ok(())) => return Err(format!("{what}: {}", error.full())),
            (Err(error), Err(parts)) => {
                let said = error.full();
                let place = format!("{}:{}", config.host, config.port);
                if let Some(missing) = parts.iter().copied().chain([&*place]).find(|part| !said.contains(part)) {
                    return Err(format!("{what}: not {missing:?}, but {said}"));
                }
                // A certificate is renewed on the server: then the agent comes back by itself.
                assert_eq!(error.recovery, Recovery::Retry, "{said}");
                assert!(!error.hint.is_empty(), "{said}");
            }
        }
    }
    Ok(())
}

/// The wrong name, an unknown authority, an expired certificate: refused, each with its reason;
/// the right certificate: accepted. The server changes it while it runs.
#[tokio::test]
async fn a_server_that_does_not_prove_itself_is_refused_in_each_engine() {
    let files = tempfile::tempdir().unwrap();
    let ours = Authority::new(files.path(), "ours");
    let others = Authority::new(files.path(), "others");
    let here = ["localhost", "127.0.0.1"];
    let authority = format!("signed by no authority in {}", ours.file.display());
    use TlsMode::{Prefer, Require, VerifyCa, VerifyFull};
    type Case<'a> = (&'a Authority, &'a [&'a str], Valid, &'a [(TlsMode, Result<(), &'a [&'a str]>)]);
    let cases: [Case; 6] = [
        (&ours, &here, Valid::Now, &[(VerifyFull, Ok(())), (VerifyCa, Ok(()))]),
        (
            &ours,
            &["db.example.com", "db2.example.com"],
            Valid::Now,
            &[
                (
                    VerifyFull,
                    Err(&["is not for \"127.0.0.1\", but for db.example.com, db2.example.com", "sslservername"]),
                ),
                (VerifyCa, Ok(())),
            ],
        ),
        (
            &ours,
            &[],
            Valid::Now,
            &[(VerifyFull, Err(&["bears no host name", "sslmode=verify-ca"])), (VerifyCa, Ok(()))],
        ),
        (
            &others,
            &here,
            Valid::Now,
            &[(VerifyFull, Err(&[&authority, "sslrootcert"])), (VerifyCa, Err(&[&authority])), (Require, Ok(()))],
        ),
        (
            &ours,
            &here,
            Valid::Moments,
            &[(VerifyFull, Err(&["expired on 20", "renew it"])), (VerifyCa, Err(&["expired on 20"])), (Prefer, Ok(()))],
        ),
        (&ours, &here, Valid::Future, &[(VerifyFull, Err(&["is not valid before 2080-01-01", "clock"]))]),
    ];
    for kind in [Kind::Postgres17, Kind::Mysql, Kind::Mariadb, Kind::Mariadb11] {
        let server = Arc::new(Server::private(kind, &[]).await);
        let db = Db::on(&server, &unique()).await;
        let ways = Ways::of(&db).await;
        for (authority, names, valid, modes) in cases {
            if kind == Kind::Mysql && valid == Valid::Future {
                continue; // it loads none that is not valid yet
            }
            show(&server, &authority.certify(names, valid), authority).await;
            for (mode, expected) in modes {
                let mut config = db.connect_config();
                config.tls = TlsConfig { ca_file: Some(ours.file.clone()), ..TlsConfig::new(*mode) };
                eventually(SOON, || expect(&ways, &config, *expected)).await;
            }
        }
    }
}

/// What MySQL makes for itself has no name in it: its authority can be checked, its name cannot.
#[tokio::test]
async fn mysqls_own_certificate_passes_verify_ca_alone() {
    let server = Arc::new(Server::private(Kind::Mysql, &["--ssl-ca=", "--ssl-cert=", "--ssl-key="]).await);
    let db = Db::on(&server, &unique()).await;
    let ways = Ways::of(&db).await;
    let mut config = db.connect_config();
    config.tls = TlsConfig { ca_file: Some(server.dir.join("data/ca.pem")), ..TlsConfig::new(TlsMode::VerifyCa) };

    expect(&ways, &config, Ok(())).await.unwrap();
    config.tls.mode = TlsMode::VerifyFull;
    expect(&ways, &config, Err(&["bears no host name", "MySQL makes for itself", "verify-ca"])).await.unwrap();
    let files = tempfile::tempdir().unwrap();
    config.tls.mode = TlsMode::VerifyCa;
    config.tls.ca_file = Some(Authority::new(files.path(), "another").file);
    expect(&ways, &config, Err(&["signed by no authority"])).await.unwrap();
}

/// A server that wants to know who connects, and by which certificate.
#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks_for_it() {
    let files = tempfile::tempdir().unwrap();
    let ours = Authority::new(files.path(), "ours");
    let (certificate, key) = ours.certify(&[], Valid::Now).files(files.path(), "client");
    for kind in [Kind::Postgres17, Kind::Mysql, Kind::Mariadb] {
        let server = Arc::new(Server::private(kind, &[]).await);
        let db = Db::on(&server, &unique()).await;
        let ways = Ways::of(&db).await;
        show(&server, &ours.certify(&["127.0.0.1"], Valid::Now), &ours).await;
        let refusal = if kind.is_postgres() {
            let hba = server.dir.join("data/pg_hba.conf");
            let rules = "local all all trust\nhost all postgres 127.0.0.1/32 trust\n\
                         hostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n";
            std::fs::write(hba, rules).unwrap();
            server.admin().await.execute("SELECT pg_reload_conf()").await;
            "client certificate"
        } else {
            db.admin().await.execute(&format!("ALTER USER {}@'%' REQUIRE X509", db.agent)).await;
            "Access denied"
        };
        let mut config = db.connect_config();
        config.tls = TlsConfig { ca_file: Some(ours.file.clone()), ..TlsConfig::new(TlsMode::VerifyFull) };

        eventually(SOON, || async {
            match ways.session(&config).await {
                Err(error) if error.full().contains(refusal) => Ok(()),
                Err(error) => Err(error.full()),
                Ok(()) => Err("let in".to_owned()),
            }
        })
        .await;
        config.tls.client = Some(CertificateFiles { certificate: certificate.clone(), key: key.clone() });
        expect(&ways, &config, Ok(())).await.unwrap();
        config.tls.client = Some(CertificateFiles { certificate: certificate.clone(), key: "/no/such.key".into() });
        for (way, result) in ways.try_all(&config).await {
            let said = result.unwrap_err().full();
            assert!(said.contains("/no/such.key") && said.contains("sslkey"), "{way}: {said}");
        }
    }
}

/// Somebody between us and the server, whose certificate nobody checks (`require`): SCRAM is
/// bound to the server's own one, so the server notices.
#[tokio::test]
async fn somebody_in_between_is_noticed_by_scram_even_where_no_certificate_is_checked() {
    let files = tempfile::tempdir().unwrap();
    let db = Db::new(Kind::Postgres17).await;
    let password = crate::support::servers::PASSWORD.replace('\'', "''");
    let sql = format!("SET password_encryption = 'scram-sha-256'; ALTER ROLE {} PASSWORD '{password}'", db.agent);
    db.admin().await.execute(&sql).await;
    let ways = Ways::of(&db).await;
    let between = Authority::new(files.path(), "between").certify(&["127.0.0.1"], Valid::Now);
    let mut config = db.connect_config();
    config.tls = TlsConfig::new(TlsMode::Require);
    expect(&ways, &config, Ok(())).await.unwrap();

    config.port = stand_between(db.server.port, &between).await;

    for (way, result) in ways.try_all(&config).await {
        let error = result.expect_err(way);
        assert!(error.full().contains("channel binding"), "{way}: {}", error.full());
    }
}

/// Ends our TLS with `certificate`, and begins another one with the PostgreSQL server behind.
async fn stand_between(server: u16, certificate: &Certificate) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = certificate.acceptor();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut request = [0; 8];
                client.read_exact(&mut request).await.unwrap();
                client.write_all(b"S").await.unwrap();
                let mut client = acceptor.accept(client).await.unwrap();
                let mut behind = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                behind.write_all(&request).await.unwrap();
                assert_eq!(behind.read_u8().await.unwrap(), b'S');
                let trusting = anechoic::connect::tls::client_config(&TlsConfig::new(TlsMode::Require)).unwrap();
                let name = rustls_pki_types::ServerName::try_from("localhost").unwrap();
                let mut behind = tokio_rustls::TlsConnector::from(trusting).connect(name, behind).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut behind).await;
            });
        }
    });
    port
}

/// What to do where a server has no TLS is the mode's affair.
#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_required() {
    for (kind, options) in [
        (Kind::Postgres17, &["-c", "ssl=off"][..]),
        (Kind::Mariadb, &["--skip-ssl"][..]),
        (Kind::Mysql, &["--tls-version="][..]),
    ] {
        let server = Arc::new(Server::private(kind, options).await);
        let db = Db::on(&server, &unique()).await;
        let ways = Ways::of(&db).await;
        let mut config = db.connect_config();
        for mode in [TlsMode::Require, TlsMode::VerifyCa, TlsMode::VerifyFull] {
            config.tls = TlsConfig { ca_file: Some(server.ca.clone()), ..TlsConfig::new(mode) };
            expect(&ways, &config, Err(&["offers no TLS", "sslmode=disable"])).await.unwrap();
        }
        config.tls = TlsConfig::new(TlsMode::Prefer);
        expect(&ways, &config, Ok(())).await.unwrap();
    }
}

/// A peer that takes the connection and says nothing, or stops amid the TLS handshake.
#[tokio::test]
async fn a_silent_peer_is_given_up_in_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((mut client, _)) = listener.accept().await {
            // To PostgreSQL's question: yes, TLS; then silence. MySQL's client waits for a greeting.
            client.write_all(b"S").await.unwrap();
            held.push(client);
        }
    });
    for kind in [Kind::Postgres17, Kind::Mariadb] {
        let db = Db::new(kind).await;
        let ways = Ways::of(&db).await;
        let mut config = db.connect_config();
        config.tls = TlsConfig::new(TlsMode::Require);
        config.connect_timeout = Duration::from_secs(1);
        config.port = port;

        let began = std::time::Instant::now();
        expect(&ways, &config, Err(&["no answer from 127.0.0.1", "within 1s"])).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}
