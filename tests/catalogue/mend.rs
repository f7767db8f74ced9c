//! What a finding prints, done: SQL run, TOML taken into the file, options given to a server.

use toml::{Table, Value};

use super::case::Found;
use crate::support::servers::{PASSWORD, Session};
use crate::support::world::World;

pub struct Mender<'w> {
    world: &'w World,
    found: &'w Found,
}

impl<'w> Mender<'w> {
    pub fn new(world: &'w World, found: &'w Found) -> Self {
        Mender { world, found }
    }

    fn lines(&self) -> impl Iterator<Item = &'w str> {
        self.found.mend.lines()
    }

    pub async fn mend(&self) {
        let plain: Vec<&str> = self.lines().filter(|line| !line.starts_with("--") && !line.starts_with('#')).collect();
        if plain.iter().any(|line| line.starts_with('[')) {
            self.configure(&plain.join("\n"));
        } else if let Some(command) = plain.iter().find_map(|line| line.strip_prefix("anechoic ")) {
            self.world.agent.run(&command.split(' ').collect::<Vec<_>>()).await;
        } else {
            self.execute(&plain).await;
        }
        if self.lines().any(|line| line.contains("then restart the server")) {
            self.restart(&plain).await;
        }
    }

    /// By the one that the first line names. A statement ends with its line.
    async fn execute(&self, lines: &[&str]) {
        let db = &self.world.system(&self.found.system).db;
        let owner = self.found.mend.starts_with("-- as the table's owner:");
        assert!(owner || self.found.mend.starts_with("-- as an administrator:"), "by whom? {:#?}", self.found);
        let mut session: Session = match owner {
            true => db.session().await,
            // Also where the database itself is the trouble.
            false if self.found.what.contains("TLS") => db.server.admin().await,
            false => db.admin().await,
        };
        let backslashes = if db.kind.is_postgres() { "\\" } else { "\\\\" };
        let password = PASSWORD.replace('\\', backslashes).replace('\'', "''");
        for line in lines {
            assert!(line.ends_with(';'), "no statement: {line:?} of {:#?}", self.found);
            session.execute(&line.trim_end_matches(';').replace('…', &password)).await;
        }
    }

    /// Keys of `[entity.in.SYSTEM]` go to the finding's entity, those of `[[system]]` to the one
    /// of that name. What has a table of its own there is joined, everything else is replaced.
    fn configure(&self, text: &str) {
        let change: Table = text.parse().unwrap_or_else(|e| panic!("{e}: {text}"));
        let path = self.world.agent.config();
        let own_table = text.contains(".columns]");
        let mut file: Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        for (section, change) in change {
            let changes = match change {
                Value::Array(list) => list,
                table => vec![table],
            };
            for change in changes {
                let name = change.get("name").and_then(Value::as_str).unwrap_or(&self.found.entity).to_owned();
                let list = file[&section].as_array_mut().unwrap();
                let place = list.iter_mut().find(|item| item["name"].as_str() == Some(&name));
                join(place.unwrap_or_else(|| panic!("no {section} {name:?}")), change, own_table);
            }
        }
        std::fs::write(&path, file.to_string()).unwrap();
    }

    /// Test servers have their settings on the command line, which is stronger than any file.
    async fn restart(&self, statements: &[&str]) {
        let server = self.world.server(&self.found.system);
        let mut options = Vec::new();
        for statement in statements {
            if let Some(setting) = statement.strip_prefix("ALTER SYSTEM SET ") {
                let (name, value) = setting.trim_end_matches(';').split_once(" = ").unwrap();
                options.extend(["-c".to_owned(), format!("{name}={}", value.trim_matches('\''))]);
            }
        }
        for line in self.lines().filter_map(|line| line.strip_prefix("# my.cnf, [mysqld]: ")) {
            if !line.starts_with("without the line ") {
                options.push(format!("--{}", line.replace(" = ", "=")));
            }
        }
        server.restart_with(&options).await;
    }
}

fn join(place: &mut Value, change: Value, columns: bool) {
    match (place, change) {
        (Value::Table(place), Value::Table(change)) => {
            for (key, value) in change {
                match place.get_mut(&key) {
                    Some(old) if key != "columns" || columns => join(old, value, columns),
                    _ => drop(place.insert(key, value)),
                }
            }
        }
        (place, change) => *place = change,
    }
}
