//! One broken thing, and the world in which it is broken.

use std::time::Duration;

use serde_json::Value;

use super::mend::Mender;
use crate::support::world::{Builder, System, World};

/// How one thing is broken. `{agent}`, `{app}`, `{db}`, `{marker}` and `{id}` stand for the names
/// of the system that is meant.
#[derive(Debug, Clone)]
pub enum Step {
    /// One statement or several, each on its own.
    Admin(String, String),
    App(String, String),
    /// In the file: this text for that one.
    Config(String, String, String),
    /// Nobody listens; and again somebody does.
    Refuse(String),
    Pass(String),
    /// The agent's slot exists, for another database.
    SlotElsewhere(String),
    /// The private server gets these options, too.
    Restart(String, Vec<String>),
}

#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    steps: Vec<Step>,
    severity: &'static str,
    /// Broken as the world is made: there is nothing to compare with.
    from_the_start: bool,
    /// Of what is found there, only this.
    about: String,
    after_setup: bool,
    owner: bool,
    starts: bool,
    /// What no statement can do.
    by_hand: Option<Step>,
}

impl Case {
    pub fn new(name: &str) -> Case {
        Case {
            name: name.to_owned(),
            steps: Vec::new(),
            severity: "error",
            from_the_start: false,
            about: String::new(),
            after_setup: false,
            owner: true,
            starts: false,
            by_hand: None,
        }
    }

    fn step(mut self, step: Step) -> Case {
        self.steps.push(step);
        self
    }

    pub fn admin(self, system: &str, sql: &str) -> Case {
        self.step(Step::Admin(system.into(), sql.into()))
    }

    pub fn app(self, system: &str, sql: &str) -> Case {
        self.step(Step::App(system.into(), sql.into()))
    }

    pub fn config(self, system: &str, from: &str, to: &str) -> Case {
        self.step(Step::Config(system.into(), from.into(), to.into()))
    }

    pub fn restarted(self, system: &str, options: &[&str]) -> Case {
        self.step(Step::Restart(system.into(), options.iter().map(|o| (*o).to_owned()).collect()))
    }

    pub fn refused(mut self, system: &str) -> Case {
        self.by_hand = Some(Step::Pass(system.into()));
        self.step(Step::Refuse(system.into()))
    }

    pub fn slot_elsewhere(self, system: &str) -> Case {
        self.step(Step::SlotElsewhere(system.into()))
    }

    /// Mended so, because the message can only say what is wanted.
    pub fn by_hand(mut self, step: Step) -> Case {
        self.by_hand = Some(step);
        self
    }

    pub fn warning(mut self) -> Case {
        self.severity = "warning";
        self
    }

    pub fn note(mut self) -> Case {
        self.severity = "note";
        self
    }

    pub fn born_broken(mut self) -> Case {
        self.from_the_start = true;
        self
    }

    pub fn about(mut self, what: &str) -> Case {
        self.about = what.to_owned();
        self
    }

    /// `anechoic setup` has been there, with the owner's rights and without them since.
    pub fn after_setup(mut self) -> Case {
        self.after_setup = true;
        self.owner = false;
        self
    }

    /// The agent's role has no part in the tables' owner.
    pub fn without_ownership(mut self) -> Case {
        self.owner = false;
        self
    }

    /// `anechoic run` has to refuse in the same words.
    pub fn refuses_to_start(mut self) -> Case {
        self.starts = true;
        self
    }
}

/// A world, and what is broken in it, one after the other: each mend brings it back.
pub struct Scene {
    world: Builder,
    pub cases: Vec<Case>,
}

impl Scene {
    pub fn new(world: Builder) -> Scene {
        Scene { world, cases: Vec::new() }
    }

    pub fn case(mut self, case: Case) -> Scene {
        self.cases.push(case);
        self
    }

    pub fn cases(mut self, cases: impl IntoIterator<Item = Case>) -> Scene {
        self.cases.extend(cases);
        self
    }
}

#[derive(Clone, PartialEq)]
pub struct Found {
    pub severity: String,
    pub system: String,
    pub entity: String,
    pub what: String,
    pub mend: String,
    shown: String,
}

impl std::fmt::Debug for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.shown)
    }
}

impl Found {
    /// The same trouble, whatever is proposed against it by now.
    fn same(&self, other: &Found) -> bool {
        (&self.system, &self.entity, &self.what) == (&other.system, &other.entity, &other.what)
    }
}

/// Exit code and findings.
async fn check(world: &World) -> (i32, Vec<Found>) {
    let output = world.agent.command(&["check", "--json"]).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let found = |finding: &Value| {
        let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let (severity, system, entity, what, mend) =
            (text("severity"), text("system"), text("entity"), text("what"), text("mend"));
        let place = match (entity.as_str(), text("table").as_str()) {
            ("", "") => String::new(),
            (entity, "") => format!("{entity}: "),
            ("", table) => format!("{table}: "),
            (entity, table) => format!("{entity} ({table}): "),
        };
        let shown = format!("{severity}: {system}: {place}{what}\n    {}\n", mend.replace('\n', "\n    "));
        Found { severity, system, entity, what, mend, shown }
    };
    (output.status.code().unwrap_or(-1), report["findings"].as_array().unwrap().iter().map(found).collect())
}

/// Runs a scene; what was said, without the names that differ from run to run.
pub async fn run(scene: Scene) -> String {
    let world = scene.world.build().await;
    let mut told = String::new();
    for case in scene.cases {
        told += &one(&world, &case).await;
    }
    told
}

async fn one(world: &World, case: &Case) -> String {
    let place = &case.name;
    if case.after_setup && !world.agent.data_dir().exists() {
        world.setup().await;
    }
    for system in &world.systems {
        system.db.lend_ownership(case.owner).await;
    }
    let before = match case.from_the_start {
        true => Vec::new(),
        false => {
            let (code, before) = check(world).await;
            assert_eq!(code, 0, "{place}: not well before: {before:#?}");
            before
        }
    };
    for step in &case.steps {
        take(world, step).await;
    }

    let (code, after) = check(world).await;
    let new: Vec<&Found> = after
        .iter()
        .filter(|found| !before.iter().any(|old| old.same(found)))
        .filter(|found| found.severity == case.severity && found.what.contains(&case.about))
        .collect();
    assert_eq!(code, if case.severity == "error" { 2 } else { 0 }, "{place}: {after:#?}");
    assert!(!new.is_empty(), "{place}: nothing was found: {after:#?}");
    assert!(new.iter().all(|found| !found.mend.is_empty()), "{place}: without a way out: {new:#?}");
    if case.starts {
        refuses_to_start(world, place, &new).await;
    }

    mend(world, case, &new).await;

    let shown: String = new.iter().map(|found| found.shown.as_str()).collect();
    format!("# {place}\n{}\n", neutral(world, &shown))
}

/// What is printed is enough: one look shows all of it, or the next one the rest.
async fn mend(world: &World, case: &Case, new: &[&Found]) {
    let place = &case.name;
    if let Some(step) = &case.by_hand {
        take(world, step).await;
    } else {
        for found in new {
            Mender::new(world, found).mend().await;
        }
    }
    let mut left = check(world).await;
    for _ in 0..2 {
        let errors: Vec<Found> = left.1.iter().filter(|found| found.severity == "error").cloned().collect();
        for found in &errors {
            assert!(!new.iter().any(|old| old.same(found)), "{place}: still there: {found:#?}");
            Mender::new(world, found).mend().await;
        }
        if errors.is_empty() {
            break;
        }
        left = check(world).await;
    }
    assert_eq!(left.0, 0, "{place}: not mended: {:#?}", left.1);
    let still: Vec<&Found> = left.1.iter().filter(|found| new.iter().any(|old| old.same(found))).collect();
    assert!(still.is_empty(), "{place}: still there: {still:#?}");
}

async fn refuses_to_start(world: &World, place: &str, new: &[&Found]) {
    let output = tokio::time::timeout(Duration::from_secs(60), world.agent.command(&["run"])).await;
    let output = output.unwrap_or_else(|_| panic!("{place}: it runs"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{place}: it ran");
    for found in new {
        assert!(said.contains(&found.what), "{place}: start-up says otherwise: {said}");
    }
}

fn named(world: &World, system: &System, text: &str) -> String {
    let db = &system.db;
    text.replace("{agent}", &db.agent)
        .replace("{app}", &db.application)
        .replace("{db}", &db.name)
        .replace("{marker}", &db.marker)
        .replace("{id}", &world.agent.id)
}

async fn take(world: &World, step: &Step) {
    match step {
        Step::Admin(system, sql) => {
            let system = world.system(system);
            let mut admin = system.db.admin().await;
            for statement in named(world, system, sql).split("; ") {
                admin.execute(statement).await;
            }
        }
        Step::App(system, sql) => {
            let system = world.system(system);
            for statement in named(world, system, sql).split("; ") {
                system.db.execute(statement).await;
            }
        }
        Step::Config(system, from, to) => {
            let (from, to) = (named(world, world.system(system), from), named(world, world.system(system), to));
            let text = std::fs::read_to_string(world.agent.config()).unwrap();
            assert!(text.contains(&from), "{from:?} is not in\n{text}");
            std::fs::write(world.agent.config(), text.replacen(&from, &to, 1)).unwrap();
        }
        Step::Refuse(system) => world.proxy(system).refuse(),
        Step::Pass(system) => world.proxy(system).pass(),
        Step::SlotElsewhere(system) => {
            let db = &world.system(system).db;
            let slot = anechoic::capture::postgres::slot_name(&world.agent.id, &db.name);
            let sql = format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')");
            db.server.admin().await.execute(&sql).await;
        }
        Step::Restart(system, options) => {
            let named: Vec<String> = options.iter().map(|option| named(world, world.system(system), option)).collect();
            world.server(system).restart_with(&named).await;
        }
    }
}

/// Names and ports as README.md has them.
fn neutral(world: &World, text: &str) -> String {
    let mut text = text.to_owned();
    for system in &world.systems {
        let port = system.proxy.as_ref().map_or(system.db.server.port, crate::support::proxy::Proxy::port);
        text = text
            .replace(&system.db.name, &system.name)
            .replace(&system.db.agent, "anechoic")
            .replace(&system.db.application, &format!("{}_owner", system.name))
            .replace(&format!(":{port}"), ":PORT")
            .replace(&format!("server_id {port} "), "server_id N ")
            .replace(&format!("server_id = {}", port + 1), "server_id = N+1");
    }
    let marker = &world.systems[0].db.marker;
    let pattern = marker.replace('_', "\\_"); // of a database, in GRANT
    text.replace(marker, "anechoic").replace(&pattern, "anechoic").replace(&world.agent.id, "hq")
}
