//! The agent as a system service: what it tells the service manager, how it ends and comes back,
//! and the unit file.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::agent::write_secret;
use crate::support::servers::{Kind, PASSWORD};
use crate::support::world::{Builder, Entity, Type, World};
use crate::support::{SOON, eventually, unique};

fn world() -> Builder {
    World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)])
        .entity(Entity::new("contact").key("id", Type::Int).field("name", Type::Text))
}

/// The socket of a service manager.
struct Manager {
    socket: UnixDatagram,
    seen: Vec<String>,
}

impl Manager {
    fn of(socket: UnixDatagram) -> Manager {
        socket.set_nonblocking(true).unwrap();
        Manager { socket, seen: Vec::new() }
    }

    /// Everything said so far.
    fn hear(&mut self) -> &[String] {
        let mut buffer = [0; 4096];
        while let Ok(size) = self.socket.recv(&mut buffer) {
            self.seen.push(String::from_utf8(buffer[..size].to_vec()).unwrap());
        }
        &self.seen
    }

    fn count(&mut self, line: &str) -> usize {
        self.hear().iter().filter(|message| message.lines().any(|l| l == line)).count()
    }

    /// Waits for a message that has the line, and returns it.
    async fn until(&mut self, line: &str) -> String {
        let began = Instant::now();
        loop {
            if let Some(found) = self.hear().iter().find(|message| message.lines().any(|l| l == line)) {
                return found.clone();
            }
            assert!(began.elapsed() < SOON, "never {line:?}, but {:?}", self.seen);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Ready when everything streams, alive several times per watchdog period, going at the end.
#[tokio::test]
async fn the_service_manager_hears_that_it_is_ready_alive_and_going() {
    let mut world = world().build().await;
    world.setup().await;
    let path = world.agent.dir.path().join("notify");
    let mut manager = Manager::of(UnixDatagram::bind(&path).unwrap());
    world.agent.set_env("NOTIFY_SOCKET", path.to_str().unwrap());
    world.agent.set_env("WATCHDOG_USEC", "2000000");

    world.agent.start();
    let ready = manager.until("READY=1").await;

    assert_eq!(ready, "READY=1\nSTATUS=crm, shop streaming");
    let before = manager.count("WATCHDOG=1");
    eventually(SOON, || {
        let count = manager.count("WATCHDOG=1");
        async move { if count >= before + 4 { Ok(()) } else { Err(format!("{count} signs of life")) } }
    })
    .await;
    assert_eq!(manager.count("STOPPING=1"), 0);
    assert_eq!(world.agent.stop().await.code(), Some(0));
    manager.until("STOPPING=1").await;
    assert_eq!(manager.count("READY=1"), 1, "once");
}

/// Over a change of the file it is told that the agent reloads, and that it is ready by the new one;
/// where the file is not taken, that it is ready all the same.
#[tokio::test]
async fn the_service_manager_hears_of_a_reload_and_its_end() {
    let mut world = world().build().await;
    world.setup().await;
    let path = world.agent.dir.path().join("notify");
    let mut manager = Manager::of(UnixDatagram::bind(&path).unwrap());
    world.agent.set_env("NOTIFY_SOCKET", path.to_str().unwrap());
    world.agent.start();
    manager.until("READY=1").await;
    let good = std::fs::read_to_string(world.agent.config()).unwrap();

    for file in [good.clone(), good.replace("[[entity]]", "[[entety]]")] {
        manager.seen.clear();
        std::fs::write(world.agent.config(), file).unwrap();
        world.agent.reload();
        manager.until("READY=1").await;
        let told = |line: &str| manager.seen.iter().position(|message| message.lines().any(|l| l == line));
        assert!(told("RELOADING=1").unwrap() < told("READY=1").unwrap(), "{:?}", manager.seen);
    }
}

/// A database that is down must not have the manager kill the agent before it has begun; what is
/// wrong is in the line that `systemctl status` shows. An abstract socket, and no watchdog.
#[tokio::test]
async fn a_database_that_is_down_does_not_keep_the_service_from_being_ready() {
    let mut world = world().proxied("shop").build().await;
    world.setup().await;
    world.proxy("shop").refuse();
    let name = format!("anechoic-{}", unique());
    let mut manager = Manager::of(UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap());
    world.agent.set_env("NOTIFY_SOCKET", &format!("@{name}"));

    // Never seen so far: nothing can start yet, and after a while that is how it is.
    world.agent.start();
    let ready = manager.until("READY=1").await;
    assert!(ready.contains("shop retrying: ") && ready.contains("cannot connect to 127.0.0.1"), "{ready}");
    world.proxy("shop").pass();
    manager.until("STATUS=crm, shop streaming").await;
    assert_eq!(world.agent.stop().await.code(), Some(0));
    // Seen before: the others go on at once.
    manager.hear();
    manager.seen.clear();
    world.proxy("shop").refuse();
    let began = Instant::now();
    world.agent.start();
    let ready = manager.until("READY=1").await;
    assert!(ready.contains("shop retrying: ") && ready.contains("crm streaming"), "{ready}");
    assert!(began.elapsed() < Duration::from_millis(4500), "{:?}", began.elapsed());
    world.proxy("shop").pass();
    manager.until("STATUS=crm, shop streaming").await;
    assert_eq!(manager.count("WATCHDOG=1"), 0, "nobody asked for it");
}

/// Nothing is tried in a system that a person has paused, and a restart does not wait for that.
#[tokio::test]
async fn a_paused_system_does_not_keep_the_service_from_being_ready() {
    let mut world = world().start().await;
    world.agent.run(&["pause", "shop"]).await;
    world.agent.stop().await;
    let path = world.agent.dir.path().join("notify");
    let mut manager = Manager::of(UnixDatagram::bind(&path).unwrap());
    world.agent.set_env("NOTIFY_SOCKET", path.to_str().unwrap());
    let began = Instant::now();

    world.agent.start();

    assert_eq!(manager.until("READY=1").await, "READY=1\nSTATUS=shop paused; crm streaming");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// The runtime turns and answers on the port, but the desk does not: no sign of life is given.
#[tokio::test]
async fn the_watchdog_stops_when_the_desk_hangs() {
    let mut world = world().build().await;
    world.setup().await;
    let path = world.agent.dir.path().join("notify");
    let mut manager = Manager::of(UnixDatagram::bind(&path).unwrap());
    world.agent.set_env("NOTIFY_SOCKET", path.to_str().unwrap());
    world.agent.set_env("WATCHDOG_USEC", "2000000");
    world.agent.set_env("ANECHOIC_HANG_AT", "desk-turn:30");

    world.agent.start();
    manager.until("READY=1").await;
    manager.until("WATCHDOG=1").await;
    eventually(SOON, || async {
        world.agent.log().contains("desk-turn").then_some(()).ok_or_else(|| "the desk still turns".to_owned())
    })
    .await;

    // One sign may be on its way; then the manager's whole period passes without any.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let before = manager.count("WATCHDOG=1");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(manager.count("WATCHDOG=1"), before);
    assert_eq!(world.agent.get("/live").await.unwrap().0, 200, "the runtime turns");
}

/// In the desk's thread and in an applier's task. The next start takes everything up. What a message
/// was put together from might be a value: it is shown where that is asked for.
#[tokio::test]
async fn a_panic_ends_the_process_with_its_place_but_no_values_and_the_next_start_goes_on() {
    let mut world = world().build().await;
    world.setup().await;
    world.agent.set_env("ANECHOIC_PANIC_SAYS", "planted");
    for (id, step) in [(1, "desk-turn:20"), (2, "before-target-commit:1"), (3, "before-target-commit:1")] {
        world.agent.set_env("ANECHOIC_PANIC_AT", step);
        if id == 3 {
            world.agent.set_env("ANECHOIC_PANIC_TEXT", "1");
        }
        world.agent.start();
        world["crm"].execute(&format!("INSERT INTO contact VALUES ({id}, 'Ada')")).await;

        let status = world.agent.exited(SOON).await;

        assert_eq!(status.signal(), Some(libc::SIGABRT), "{step}: {status}");
        let log = world.agent.log();
        let line = log.lines().rfind(|line| line.contains("panicked at src/failpoint.rs"));
        let line = line.unwrap_or_else(|| panic!("no line about {step} in the log"));
        assert_eq!(line.contains("a test wants a panic at before-target-commit planted"), id == 3, "{line}");
        assert!(line.contains("ERROR") && (id == 3 || !log.contains("planted")), "{line}");
    }

    world.agent.set_env("ANECHOIC_PANIC_AT", "");
    world.agent.start();
    world.agent.ready().await;
    world.quiet().await;
    assert_eq!(world.rows("contact", "shop").await.len(), 3);
}

/// The service may not read the file; systemd has given it a copy.
#[tokio::test]
async fn a_password_that_only_root_may_read_comes_as_a_credential() {
    let mut world = world().build().await;
    let dir = world.agent.dir.path().to_owned();
    let config = std::fs::read_to_string(world.agent.config()).unwrap();
    let config = config.replace(
        "password_env = \"ANECHOIC_TEST_PASSWORD\"",
        &format!("password_file = {:?}", dir.join("passwords/of-all")),
    );
    std::fs::write(world.agent.config(), config).unwrap();
    let refused = world.agent.command(&["check"]).await;
    let said = String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("cannot read password file") && said.contains("write it into"), "{said}");
    assert!(!said.contains("let the url lead"), "{said}");

    // A copy that was not made, and one that is not right: neither is read again.
    std::fs::create_dir(dir.join("credentials")).unwrap();
    world.agent.set_env("CREDENTIALS_DIRECTORY", dir.join("credentials").to_str().unwrap());
    let refused = world.agent.command(&["check"]).await;
    let said = String::from_utf8_lossy(&refused.stdout);
    let copies = "no copy of it (credential \"passwords_of-all\" or \"of-all\")";
    assert!(said.contains(copies) && said.contains("systemctl restart anechoic"), "{said}");
    write_secret(&dir.join("credentials/passwords_of-all"), "wr0ng\n");
    world.agent.start();
    eventually(SOON, || async {
        let log = world.agent.log();
        let told = log.contains("the service has a copy of") && log.contains("then systemctl restart anechoic");
        told.then_some(()).ok_or_else(|| "not refused yet".to_owned())
    })
    .await;
    assert!(!world.agent.log().contains("read again"), "{}", world.agent.log());
    world.agent.kill();

    write_secret(&dir.join("credentials/passwords_of-all"), &format!("{PASSWORD}\n"));
    world.setup().await;
    world.agent.start();
    world.agent.ready().await;
}

fn analyze(args: &[&str]) -> String {
    let output = Command::new("systemd-analyze").args(args).output();
    let output = output.unwrap_or_else(|error| panic!("systemd-analyze: {error}; apt-get install systemd"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "systemd-analyze {}: {}\n{said}", args.join(" "), output.status);
    said
}

/// By systemd's own judgement: below 2.0, and no line that it does not know.
#[test]
fn the_unit_file_is_hardened_and_understood() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/config/anechoic.service");

    let said = analyze(&["security", "--offline=true", "--threshold=20", "--no-pager", unit]);

    let exposure = said.lines().find_map(|line| line.split("exposure level for anechoic.service: ").nth(1)).unwrap();
    let exposure: f64 = exposure.split(' ').next().unwrap().parse().unwrap();
    assert!(exposure < 2.0, "{said}");
    // Verified with a program that exists here; an unknown key is a warning, and fails as well.
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(unit).unwrap();
    let here = dir.path().join("anechoic.service");
    std::fs::write(&here, text.replace("/usr/local/bin/anechoic", env!("CARGO_BIN_EXE_anechoic"))).unwrap();
    let said = analyze(&["verify", "--man=no", here.to_str().unwrap()]);
    assert!(!said.contains("anechoic.service:"), "{said}");
}
