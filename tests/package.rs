//! The Debian package: installed, run, upgraded, removed and purged in a root of its own, a layer
//! over this machine's that goes with the test.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::servers::{Kind, PASSWORD};
use crate::support::world::{Entity, Type, World};

const BINARY: &str = env!("CARGO_BIN_EXE_anechoic");
const PACKAGING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/deb.sh");
const LIFE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/package/life.sh");

fn packaging(version: &str, out: &Path) -> Command {
    let mut command = Command::new(PACKAGING);
    command
        .env("ANECHOIC_BINARY", BINARY)
        .env("ANECHOIC_VERSION", version)
        .env("ANECHOIC_OUT", out)
        .env("ANECHOIC_COMPRESSION", "none")
        .env("DEBFULLNAME", "Ada Lovelace")
        .env("DEBEMAIL", "ada@example.com");
    command
}

fn package(version: &str, out: &Path) -> String {
    let output = packaging(version, out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut found = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    let package = found.find(|path| path.to_str().unwrap().contains(&format!("_{version}_"))).unwrap();
    package.to_str().unwrap().to_owned()
}

/// What each step must leave is in `life.sh`. It ends with every process that it started.
#[tokio::test]
async fn the_package_is_installed_run_upgraded_removed_and_purged() {
    // SAFETY: asks, and changes nothing.
    assert!(unsafe { libc::geteuid() } == 0, "installs a package in a root of its own: run this test as root");
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Text);
    let world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)]).entity(contact).build().await;
    world["crm"].execute("INSERT INTO contact VALUES (7, 'Ada')").await;
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (package("0.1.0", dir.path()), package("0.1.1", dir.path()));
    let config = std::fs::read_to_string(world.agent.config()).unwrap();
    let config = config
        .replace(world.agent.data_dir().to_str().unwrap(), "/var/lib/anechoic")
        .replace("password_env = \"ANECHOIC_TEST_PASSWORD\"", "password_file = \"/etc/anechoic/passwords/all\"");
    let config_file = dir.path().join("config");
    std::fs::write(&config_file, config).unwrap();
    let root = dir.path().join("scratch");
    std::fs::create_dir(&root).unwrap();
    for system in &world.systems {
        system.db.lend_ownership(true).await;
    }

    let life = tokio::process::Command::new("unshare")
        .args(["--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "sh", LIFE])
        .args([root.to_str().unwrap(), &old, &new, config_file.to_str().unwrap(), PASSWORD])
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(180), life).await.expect("it hangs");
    let output = output.unwrap_or_else(|error| panic!("unshare: {error}; apt-get install util-linux"));

    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("WHOLE\n"),
        "{}; it needs root that may unshare and mount (in a container: --privileged)\n{said}",
        output.status
    );
    assert_eq!(world.rows("contact", "shop").await.len(), 1);
}

/// Who answers for a package is who builds it.
#[test]
fn the_package_names_who_built_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = package("0.1.0", dir.path());
    let field = Command::new("dpkg-deb").args(["--field", &file, "Maintainer"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&field.stdout).trim(), "Ada Lovelace <ada@example.com>");
}

/// Each command that `--help` names has its page and is completed in each shell, and no other.
#[test]
fn the_manual_and_the_completions_know_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new(BINARY).arg("generate").arg(dir.path()).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let help = String::from_utf8(Command::new(BINARY).arg("--help").output().unwrap().stdout).unwrap();
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // A command stands two columns in; what is further in goes on about the one above.
    let named = listed.lines().filter_map(|line| line.strip_prefix("  ").filter(|rest| !rest.starts_with(' ')));
    let commands: Vec<&str> =
        named.map(|line| line.split(' ').next().unwrap()).filter(|name| *name != "help").collect();
    assert!(commands.len() > 10 && !commands.contains(&"generate"), "{help}");

    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let (manual, bash, zsh, fish) =
        (read("anechoic.1"), read("anechoic.bash"), read("_anechoic"), read("anechoic.fish"));
    for command in commands {
        assert!(manual.contains(&format!("anechoic\\-{command}(1)")), "{command}: {manual}");
        assert!(read(&format!("anechoic-{command}.1")).starts_with(".ie"), "{command}");
        assert!(bash.contains(&format!("anechoic,{command})")), "{command} in bash");
        assert!(zsh.contains(&format!("'{command}:")), "{command} in zsh");
        assert!(fish.contains(&format!("-a \"{command}\"")), "{command} in fish");
    }
    for text in [&manual, &bash, &zsh, &fish] {
        assert!(!text.contains("generate"), "{text}");
    }
    let mut pages = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(pages.all(|page| !page.to_str().unwrap().contains("help")), "a page for each help");
}
