//! Mistakes in the file alone: each with its line and the way out; no server is asked.

use std::process::Output;

use anechoic::config::Config;

const WELL: &str = r#"[agent]
id = "hq"
data_dir = "/tmp/anechoic"
listen = "127.0.0.1:8642"
max_lag = "60s"

[journal]
retention = "30d"
max_size = "1GiB"

[[system]]
name = "crm"
url = "postgresql://anechoic@localhost:5432/crm"

[[system]]
name = "shop"
url = "mysql://anechoic@localhost:3306/shop"
password_file = "/etc/anechoic/shop"

[[entity]]
name = "contact"
key = ["id"]
conflict = "authority"

[entity.in.crm]
table = "public.contacts"
role = "both"
columns = { id = "id", joined = "signup", status = "state" }

[entity.in.shop]
table = "customers"
where = "status = 'active'"

[entity.in.shop.columns]
id = "customer_id"
joined = { column = "joined_on", format = "%d/%m/%Y" }
status = { column = "st", values = { active = "A", closed = "C" } }
"#;

/// What is typed for what; the message holds the last, which is the way out.
const MISTAKES: [(&str, &str, &str); 31] = [
    ("data_dir =", "datadir =", "nearest: \"data_dir\""),
    ("id = \"hq\"", "id = \"Head Quarters\"", "a-z, 0-9 and _"),
    ("\"127.0.0.1:8642\"", "\"localhost\"", "such as \"127.0.0.1:8642\""),
    ("\"127.0.0.1:8642\"", "8642", "has to be a string"),
    ("max_lag = \"60s\"", "max_lag = \"5 minutes\"", "\"5m\""),
    ("[journal]", "[jurnal]", "nearest: \"journal\""),
    ("\"30d\"", "\"30\"", "\"30d\""),
    ("\"1GiB\"", "\"1GB\"", "\"20GiB\""),
    ("[[system]]\nname = \"crm\"", "[system]\nname = \"crm\"", ""),
    ("name = \"shop\"", "name = \"crm\"", "given twice"),
    ("url = \"mysql://anechoic@localhost:3306/shop\"\n", "", "url = \"postgresql://user@host:5432/database\""),
    ("postgresql://", "postgers://", "nearest: \"postgresql\""),
    ("/crm\"", "/crm?sslmod=require\"", "nearest: \"sslmode\""),
    ("/crm\"", "/crm?sslmode=requires\"", "nearest: \"require\""),
    ("localhost:5432/crm", "localhost:5432", "names no database"),
    ("anechoic@localhost:3306", "anechoic:hunter2@localhost:3306", "given twice"),
    ("/etc/anechoic/shop\"", "/etc/anechoic/shop\"\npassword_env = \"X\"", "password_file and password_env"),
    ("name = \"crm\"\n", "name = \"crm\"\nallow_unsafe_binlog = true\n", "leave it out"),
    ("name = \"shop\"\n", "name = \"shop\"\nallow_unsafe_binlog = \"yes\"\n", "true or false"),
    ("name = \"shop\"\n", "name = \"shop\"\nsynchronous_commit = false\n", "leave it out"),
    ("key = [\"id\"]", "key = \"id\"", "a list of strings"),
    ("key = [\"id\"]", "key = [\"ident\"]", "do not name the key field \"ident\""),
    ("\"authority\"", "\"autority\"", "nearest: \"authority\""),
    ("role = \"both\"", "role = \"sauce\"", "nearest: \"source\""),
    ("[entity.in.shop]", "[entity.in.shp]", "nearest: \"shop\""),
    ("table = \"customers\"\n", "", "table = \"public.contacts\""),
    ("\"public.contacts\"", "\"crm.public.contacts\"", "quote names that contain dots"),
    ("status = 'active'", "status = ", "where"),
    ("joined = \"signup\"", "joined = \"id\"", "bound to two fields"),
    ("%d/%m/%Y", "%d/%m/%Q", "known: %Y"),
    ("closed = \"C\"", "closed = \"A\"", "map two canonical values"),
];

async fn check(dir: &std::path::Path, args: &[&str]) -> Output {
    let binary = env!("CARGO_BIN_EXE_anechoic");
    tokio::process::Command::new(binary)
        .current_dir(dir)
        .args(args)
        .args(["-c", "anechoic.toml"])
        .output()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_mistake_in_the_file_ends_with_2_and_names_its_line_and_the_way_out() {
    assert!(Config::from_str(WELL, "t").is_ok());
    let dir = tempfile::tempdir().unwrap();
    let mut told = String::new();
    for (well, faulty, way_out) in MISTAKES {
        assert!(WELL.contains(well), "{well}");
        std::fs::write(dir.path().join("anechoic.toml"), WELL.replacen(well, faulty, 1)).unwrap();

        let output = check(dir.path(), &["check"]).await;

        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{faulty}: {said}");
        assert!(said.contains(way_out) && said.contains("anechoic.toml:"), "{faulty}: {said}");
        assert!(!said.contains("hunter2"), "{said}");
        told += &format!("# {}\n{said}\n", faulty.trim().replace('\n', " ⏎ "));
    }

    insta::assert_snapshot!(told);
}

#[tokio::test]
async fn mistakes_in_the_file_are_findings_where_json_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("anechoic.toml"), WELL.replacen("max_lag", "maxlag", 1)).unwrap();

    let output = check(dir.path(), &["check", "--json"]).await;

    assert_eq!(output.status.code(), Some(2));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["ok"], false);
    let what = report["findings"][0]["what"].as_str().unwrap();
    assert!(what.starts_with("anechoic.toml:5: [agent]: unknown key \"maxlag\""), "{what}");
}
