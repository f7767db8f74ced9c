//! Check, setup and teardown against real servers.

use serde_json::Value;

use crate::support::servers::{Db, Kind};
use crate::support::world::{Entity, Type, World};

const THREE: [(&str, Kind); 3] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];

async fn three() -> World {
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(50)).renamed();
    World::of(&THREE).entity(contact).build().await
}

async fn check(world: &World) -> (bool, Value) {
    let output = world.agent.command(&["check", "--json"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), report)
}

/// `severity system what | mend` of each finding.
fn findings(report: &Value) -> Vec<String> {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let line =
        |f: &Value| format!("{} {} {} | {}", text(f, "severity"), text(f, "system"), text(f, "what"), text(f, "mend"));
    report["findings"].as_array().unwrap().iter().map(line).collect()
}

async fn count(db: &Db, sql: &str) -> u64 {
    db.admin().await.rows(sql).await[0][0].as_deref().unwrap().parse().unwrap()
}

/// What the agent's setup left in a system: slots, publications, marker tables and their schemas.
async fn left_in(db: &Db) -> u64 {
    let marker = &db.marker;
    if db.kind.is_postgres() {
        return count(db, "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()").await
            + count(db, "SELECT count(*) FROM pg_publication").await
            + count(db, &format!("SELECT count(*) FROM pg_namespace WHERE nspname = '{marker}'")).await;
    }
    count(db, &format!("SELECT count(*) FROM information_schema.schemata WHERE schema_name = '{marker}'")).await
}

/// Whose the tables are it asks where it can, so that the line that lets setup publish them runs as it stands.
#[tokio::test]
async fn the_grants_name_the_owner_of_the_tables() {
    let world = three().await;

    let printed = world.agent.run(&["check", "--grants"]).await;

    let crm = &world["crm"];
    let publishes = format!("GRANT \"{}\" TO \"{}\";", crm.application, crm.agent);
    let line = printed.lines().find(|line| *line == publishes);
    let line = line.unwrap_or_else(|| panic!("no {publishes} in {printed}"));
    crm.admin().await.execute(line).await;
    world.agent.run(&["setup"]).await;
}

#[tokio::test]
async fn check_before_setup_only_says_what_setup_will_do_and_writes_nothing() {
    let world = three().await;
    world["crm"].lend_ownership(true).await;

    let (ok, report) = check(&world).await;

    let findings = findings(&report);
    assert!(ok, "{findings:#?}");
    for system in ["crm", "shop", "erp"] {
        let steps =
            findings.iter().filter(|f| f.starts_with(&format!("warning {system} ")) && f.ends_with("| anechoic setup"));
        assert!(steps.count() >= 2, "{system}: {findings:#?}");
        assert_eq!(left_in(&world[system]).await, 0, "{system}");
    }
    assert!(!world.agent.data_dir().exists());
}

#[tokio::test]
async fn setup_may_be_repeated_and_then_check_finds_nothing_to_do() {
    let world = three().await;
    world.setup().await;

    let again = world.agent.run(&["setup", "--json"]).await;
    let (ok, report) = check(&world).await;

    let again: Value = serde_json::from_str(&again).unwrap();
    for system in again["systems"].as_array().unwrap() {
        assert_eq!(system["created"].as_array().unwrap().len(), 0, "{system}");
    }
    let findings = findings(&report);
    assert!(ok && !findings.iter().any(|f| f.contains("anechoic setup")), "{findings:#?}");
    assert_eq!(report["systems"][2]["kind"], "mariadb");
}

#[tokio::test]
async fn teardown_leaves_nothing_behind_and_may_be_repeated() {
    let world = three().await;
    world.setup().await;
    for (system, _) in THREE {
        assert!(left_in(&world[system]).await > 0, "{system}");
    }

    let said = world.agent.run(&["teardown"]).await;
    world.agent.run(&["teardown"]).await;

    for (system, _) in THREE {
        assert_eq!(left_in(&world[system]).await, 0, "{system}");
    }
    // What setup changed in the table is told with the statement that takes it back.
    let back = "ALTER TABLE \"public\".\"contact\" REPLICA IDENTITY DEFAULT;";
    assert!(said.contains(back) && said.contains("nothing else is left"), "{said}");
    world["crm"].admin().await.execute(back).await;
    let said = world.agent.run(&["teardown"]).await;
    assert!(!said.contains("REPLICA") && said.contains("nothing is left"), "{said}");
    world.setup().await;
}

/// The publication is another one then, which is no gap in the log that begins with it: neither
/// where a teardown came before, nor where the journal was removed by hand with everything else.
#[tokio::test]
async fn what_was_torn_down_and_set_up_anew_is_in_step() {
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(50));
    let mut world = World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mariadb)]).entity(contact).start().await;
    for round in 1..=2 {
        world["crm"].execute(&format!("INSERT INTO contact VALUES ({round}, 'Ada')")).await;
        world.quiet().await;
        world.agent.stop().await;
        let decided = world.agent.data_dir().join("columns.json");
        let kept = std::fs::read(&decided).unwrap();
        world.agent.run(&["teardown"]).await;
        assert!(!decided.exists());
        if round == 2 {
            std::fs::write(&decided, kept).unwrap();
        }
        world["crm"].execute(&format!("INSERT INTO contact VALUES ({}, 'unseen')", round + 10)).await;
        world.setup().await;
        world.agent.start();
        world.agent.ready().await;
        world.agent.run(&["load"]).await;
        world.quiet().await;
    }
}

/// The agent reads the log as a replica does, and that makes the server none.
#[tokio::test]
async fn a_server_that_the_agent_reads_from_is_no_replica_for_that() {
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(50));
    let world = World::of(&[("crm", Kind::Mysql), ("shop", Kind::Mariadb)]);
    let world = world.private_with("shop", &["--log-slave-updates=OFF"]).entity(contact).start().await;
    world["crm"].execute("INSERT INTO contact VALUES (1, 'Ada')").await;
    world.quiet().await;

    let (ok, report) = check(&world).await;

    let findings = findings(&report);
    assert!(ok && !findings.iter().any(|f| f.contains("replica")), "{findings:#?}");
}

#[tokio::test]
async fn without_a_running_agent_status_says_how_far_each_log_was_read() {
    let world = three().await;
    world.setup().await;

    let output = world.agent.command(&["status", "--json"]).await;

    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["state"], "stopped");
    for system in report["systems"].as_array().unwrap() {
        assert_ne!(system["capture"]["position"], "", "{system}");
    }
}

/// The slot stands for what was acknowledged; a journal that does not know of it cannot say
/// whether that ever reached the other systems.
#[tokio::test]
async fn a_slot_that_the_journal_does_not_know_stops_setup() {
    let world = three().await;
    world.setup().await;
    let (ok, _) = check(&world).await;
    assert!(ok, "while the journal is there");
    std::fs::remove_dir_all(world.agent.data_dir()).unwrap();

    let (ok, report) = check(&world).await;
    let orphans =
        findings(&report).into_iter().filter(|finding| finding.contains("anechoic teardown")).collect::<Vec<_>>();
    assert!(!ok && orphans.len() == 3, "{orphans:#?}");
    let output = world.agent.command(&["setup"]).await;

    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("crm: slot") && text.contains("anechoic load --resync crm"), "{text}");
    assert!(text.contains("belongs to another journal"), "{text}");
}

#[tokio::test]
async fn check_names_each_missing_right_with_its_grant() {
    let world = three().await;
    for (system, _) in THREE {
        let db = &world[system];
        let (agent, name) = (&db.agent, &db.name);
        let take = if db.kind.is_postgres() {
            format!(
                "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {agent}; REVOKE CREATE ON DATABASE {name} FROM {agent}; ALTER ROLE {agent} NOREPLICATION"
            )
        } else {
            format!(
                "REVOKE ALL PRIVILEGES, GRANT OPTION FROM {agent}@'%'; GRANT SELECT, INSERT ON {name}.* TO {agent}@'%'"
            )
        };
        for statement in take.split("; ") {
            db.admin().await.execute(statement).await;
        }
    }

    let (ok, report) = check(&world).await;

    assert!(!ok);
    let findings = findings(&report);
    let says = |system: &str, what: &str| {
        let found = findings.iter().any(|f| f.starts_with(&format!("error {system} ")) && f.contains(what));
        assert!(found, "{system}: {what}: {findings:#?}");
    };
    says("crm", "REPLICATION;");
    says("crm", "GRANT SELECT, INSERT, UPDATE, DELETE ON \"public\".\"contact\"");
    says("crm", "CREATE SCHEMA");
    says("crm", "CREATE PUBLICATION");
    for system in ["shop", "erp"] {
        says(system, "GRANT REPLICATION SLAVE, ");
        says(system, "GRANT UPDATE, DELETE ON");
        says(system, "GRANT TRIGGER ON");
        says(system, "CREATE TABLE IF NOT EXISTS");
    }
    let setup = world.agent.command(&["setup"]).await;
    assert_eq!(setup.status.code(), Some(1));
}

/// What an administrator is told to run is all that was missing.
#[tokio::test]
async fn after_the_administrators_statements_a_plain_role_sets_up() {
    let world = three().await;
    let crm = &world["crm"];
    let (agent, name) = (&crm.agent, &crm.name);
    crm.admin().await.execute(&format!("REVOKE CREATE ON DATABASE {name} FROM {agent}")).await;
    let (ok, report) = check(&world).await;
    assert!(!ok);

    for finding in report["findings"].as_array().unwrap() {
        if finding["severity"] == "error" {
            for statement in finding["mend"].as_str().unwrap().lines() {
                crm.admin().await.execute(statement.trim_end_matches(';')).await;
            }
        }
    }

    world.setup().await;
    let (ok, report) = check(&world).await;
    assert!(ok, "{:#?}", findings(&report));
}

#[tokio::test]
async fn a_system_that_cannot_be_reached_hides_nothing_about_the_others() {
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Text).renamed();
    let world = World::of(&THREE).entity(contact).proxied("erp").build().await;
    world["crm"].lend_ownership(true).await;
    world.proxy("erp").refuse();
    world["shop"].execute("ALTER TABLE contact_shop DROP COLUMN name_shop").await;

    let (ok, report) = check(&world).await;

    assert!(!ok);
    let findings = findings(&report);
    assert!(findings.iter().any(|f| f.starts_with("error erp cannot connect to")), "{findings:#?}");
    assert!(findings.iter().any(|f| f.starts_with("error shop ") && f.contains("name_shop")), "{findings:#?}");
    assert!(!findings.iter().any(|f| f.starts_with("error crm ")), "{findings:#?}");
    assert_eq!(report["systems"][2]["kind"], Value::Null);
}

#[tokio::test]
async fn a_wrong_password_is_said_as_such() {
    let world = three().await;
    for (system, _) in THREE {
        let db = &world[system];
        let change = match db.kind.is_postgres() {
            true => format!("ALTER ROLE {} PASSWORD 'other'", db.agent),
            false => format!("ALTER USER {}@'%' IDENTIFIED BY 'other'", db.agent),
        };
        db.admin().await.execute(&change).await;
    }

    let (ok, report) = check(&world).await;

    assert!(!ok);
    let findings = findings(&report);
    assert_eq!(findings.len(), 3, "{findings:#?}");
    assert!(findings.iter().all(|f| f.to_lowercase().contains("password")), "{findings:#?}");
}

/// The servers run with a clock that is set for every session but an administrator's.
#[tokio::test]
async fn clocks_that_are_apart_are_told_with_by_how_much() {
    let contact = Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(50));
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let apart = |seconds: i32| format!("--init-connect=SET timestamp = UNIX_TIMESTAMP(SYSDATE(6)) + {seconds}");
    let world = World::of(&systems)
        .entity(contact)
        .private_with("shop", &["--sysdate-is-now", &apart(90)])
        .private_with("erp", &["--sysdate-is-now", &apart(-90)])
        .build()
        .await;
    world.setup().await;

    let said = world.agent.run(&["check"]).await;

    let told: Vec<&str> = said.lines().filter(|line| line.contains("clock")).collect();
    assert_eq!(told.len(), 2, "{said}");
    for (line, (system, way)) in told.iter().zip([("shop", "ahead of"), ("erp", "behind")]) {
        let start = format!("warning: {system}: its clock is ");
        let rest = line.strip_prefix(&start).unwrap_or_else(|| panic!("{line}"));
        let seconds: f64 = rest.split(' ').next().unwrap().parse().unwrap();
        // A session's clock stands still, so some of it passes until it is asked.
        assert!((80.0..=100.0).contains(&seconds), "{line}");
        assert_eq!(rest.matches(&format!("s {way} ")).count(), 2, "{line}");
        assert!(rest.contains(&format!("{way} that of crm and")) && rest.contains("this machine's"), "{line}");
        world[system].admin().await.execute("SET GLOBAL init_connect = ''").await;
    }
    assert!(said.contains("timedatectl set-ntp true"), "{said}");
    let said = world.agent.run(&["check"]).await;
    assert!(!said.contains("clock"), "{said}");
}
