use super::*;

const REFERENCE: &str = include_str!("../../config/reference.toml");

#[test]
fn the_reference_loads_and_shows_every_key() {
    let config = Config::from_str(REFERENCE, "reference.toml").expect("the reference is valid");

    assert_eq!(config.systems[0].marker.to_string(), "anechoic.marker");
    assert_eq!(config.journal.max_size, 20 << 30);
    for (table, keys) in raw::KEYS {
        for key in keys {
            let shown = REFERENCE.lines().any(|line| {
                let line = line.trim_start_matches(['#', ' ']);
                match table {
                    "" => line.starts_with(&format!("[{key}")) || line.starts_with(&format!("[[{key}")),
                    "system.apply" | "entity.in.columns" | "entity.unique" => line.contains(&format!("{key} = ")),
                    _ => {
                        line.starts_with(&format!("{key} "))
                            || line.starts_with(&format!("[entity.{key}"))
                            || line.starts_with(&format!("[entity.in.shop.{key}"))
                    }
                }
            });
            assert!(shown, "config/reference.toml does not show {table}.{key}");
        }
    }
}

/// What an installation begins with is what README.md walks through.
#[test]
fn the_first_configuration_loads_and_stands_in_the_readme() {
    let first = include_str!("../../config/anechoic.toml");
    let readme = include_str!("../../README.md");

    Config::from_str(first, "anechoic.toml").expect("it is valid");

    let indented = |line: &str| if line.is_empty() { String::new() } else { format!("    {line}") };
    let lines: Vec<String> = first.lines().filter(|line| !line.starts_with('#')).map(indented).collect();
    assert!(readme.contains(lines.join("\n").trim_start_matches('\n')), "README.md has another one");
}

/// What the reference says of defaults is what a file without these keys gets.
#[test]
fn the_reference_shows_the_defaults() {
    let least = r#"
        [agent]
        id = "hq"
    "#;
    let errors = Config::from_str(least, "x").unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    let systems = "[[system]]\nname = \"a\"\nurl = \"mysql://u@h/d\"\n";
    let config = Config::from_str(&format!("{least}\n{systems}"), "x").expect("valid");
    let reference = Config::from_str(REFERENCE, "reference.toml").expect("valid");

    assert_eq!(format!("{:?}", config.journal), format!("{:?}", reference.journal));
    assert_eq!(config.agent.max_lag, reference.agent.max_lag);
    assert_eq!(config.agent.listen, reference.agent.listen);
    assert_eq!(config.agent.data_dir, reference.agent.data_dir);
}

/// Each file under fixtures/config has its mistakes, all of them, as a snapshot here.
#[test]
fn faulty_files_say_what_is_wrong_everywhere_at_once() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/config");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    let mut said = String::new();
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let errors = Config::from_str(&text, &name).expect_err(&name);
        errors.iter().for_each(|e| said.push_str(&format!("{e}\n")));
        said.push('\n');
    }

    assert!(!said.contains("hunter2"), "a password in an error");
    insta::assert_snapshot!(said);
}

#[test]
fn table_names_are_taken_as_they_are_written() {
    let name = |text| table_name(text, Some("public")).map(|t| (t.schema, t.name));
    let ok = |schema: &str, table: &str| Ok((schema.to_owned(), table.to_owned()));

    assert_eq!(name("contacts"), ok("public", "contacts"));
    assert_eq!(name("Sales.Order"), ok("Sales", "Order"));
    assert_eq!(name("\"My Schema\".\"T.x\""), ok("My Schema", "T.x"));
    assert_eq!(name("shop.`größe \"x\"`"), ok("shop", "größe \"x\""));
    assert_eq!(name("\"a\"\"b\""), ok("public", "a\"b"));
    for wrong in ["", "a.b.c", "a.", ".a", "\"a", "\"\"", "a\"b", "\"a\"b"] {
        assert!(name(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn an_unreadable_file_is_one_error() {
    let errors = Config::load(Path::new("/nonexistent/anechoic.toml")).unwrap_err();
    assert!(errors[0].to_string().starts_with("/nonexistent/anechoic.toml: cannot be read"), "{errors:?}");
}

#[test]
fn what_is_said_of_conflicts_is_taken_as_it_is_said() {
    let said = r#"
conflict = "latest"
latest_by = "joined"
authority = ["shop", "crm"]
on_delete = "delete_wins"
merge = { status = "max", country = "manual" }
unique = { first_name = { policy = "rename", template = "{value} ({key})" } }
"#;
    let text = REFERENCE
        .replace("conflict = \"authority\"", said)
        .replace("\"row\"\n", "\"field\"\n")
        .replace("where = \"country = 'DE'\"", "");

    let config = Config::from_str(&text, "x").expect("valid");

    let entity = &config.entities[0];
    assert_eq!((entity.conflict, entity.scope), (Conflict::Latest, Scope::Field));
    assert_eq!(entity.latest_by.as_deref(), Some("joined"));
    assert_eq!(entity.authority, Some(vec![SystemId(1), SystemId(0)]));
    assert_eq!(entity.on_delete, Some(OnDelete::DeleteWins));
    let merges = [("status".to_owned(), Merge::Max), ("country".to_owned(), Merge::Policy(Conflict::Manual))];
    assert_eq!(entity.merge, merges);
    assert_eq!(entity.unique, [("first_name".to_owned(), OnClash::Rename("{value} ({key})".to_owned()))]);
}

#[test]
fn where_the_journal_is_is_told_by_a_broken_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("anechoic.toml");
    for (text, expected) in [
        ("[agent]\n  data_dir = \"/srv/hq\"\n[[system", Some("/srv/hq")),
        ("[agent]\ndata_dir = '/srv/hq' # there\ncolour = 1", Some("/srv/hq")),
        ("[agent]\nid = 7\n", Some("/var/lib/anechoic")),
        ("[agent]\ndata_dir = 7\n", None),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(Config::data_dir_in(&path), expected.map(PathBuf::from), "{text}");
    }
    assert_eq!(Config::data_dir_in(&dir.path().join("absent")), None);
}
