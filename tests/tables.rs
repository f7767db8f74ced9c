//! What the catalog of a server says of tables, however it is read.

use anechoic::catalog::mysql::read;
use anechoic::catalog::{ColumnType, Table, TableName};

use super::support::servers::{Db, Kind, Server};
use super::support::unique;

const ALL: [Kind; 3] = [Kind::Mysql, Kind::Mariadb, Kind::Mariadb11];

/// Of many tables, something of each sort.
const SORTS: [&str; 6] = [
    "CREATE TABLE parent (a int, b varchar(20), doc json, mood ENUM('sad','it''s ok') NOT NULL, \
     twice int AS (a * 2) STORED, PRIMARY KEY (a, b), UNIQUE KEY by_mood (mood), UNIQUE KEY begins (b(4)))",
    "CREATE TABLE child (id int AUTO_INCREMENT PRIMARY KEY, pa int, pb varchar(20), at datetime(3) DEFAULT now(3), \
     CONSTRAINT of_parent FOREIGN KEY (pa, pb) REFERENCES parent (a, b) ON DELETE CASCADE)",
    "CREATE TABLE other (id int PRIMARY KEY, pa int, pb varchar(20), \
     CONSTRAINT other_of_parent FOREIGN KEY (pa, pb) REFERENCES parent (a, b))",
    "CREATE TABLE `odd ``name` (`a ``column` int PRIMARY KEY, body text CHARACTER SET latin1) ENGINE = MyISAM",
    "CREATE TRIGGER first BEFORE INSERT ON child FOR EACH ROW SET NEW.pa = NEW.pa",
    "CREATE TRIGGER then AFTER DELETE ON child FOR EACH ROW SET @seen = OLD.id",
];

#[tokio::test]
async fn a_schema_that_is_read_as_a_whole_shows_what_its_tables_show_one_by_one() {
    for kind in ALL {
        let db = Db::new(kind).await;
        let mut admin = db.admin().await;
        for sql in SORTS {
            admin.execute(&sql.replace(" then ", " `then` ")).await;
        }
        admin.execute("CREATE VIEW seen AS SELECT id FROM child").await;
        let mut names: Vec<String> =
            ["parent", "child", "other", "odd `name", "seen", "absent"].map(str::to_owned).into();
        for n in 0..20 {
            admin.execute(&format!("CREATE TABLE t{n} (id int PRIMARY KEY, c{n} varchar({}))", n + 1)).await;
            names.push(format!("t{n}"));
        }
        let names: Vec<TableName> = names.into_iter().map(|name| TableName { schema: db.name.clone(), name }).collect();
        let mut conn = anechoic::connect::mysql::connect(&db.connect_config()).await.unwrap();

        let whole = read(&mut conn, &names).await.unwrap();
        let mut alone: Vec<Option<Table>> = Vec::new();
        for name in &names {
            alone.extend(read(&mut conn, std::slice::from_ref(name)).await.unwrap());
        }

        let found = |name: &str| {
            let at = names.iter().position(|known| known.name == name).unwrap();
            whole[at].as_ref().unwrap_or_else(|| panic!("{} does not show {name}", kind.name()))
        };
        let (parent, child) = (found("parent"), found("child"));
        assert_eq!((parent.referenced_by, parent.primary_key.len(), parent.unique_keys.len()), (2, 2, 3));
        assert_eq!(parent.loose_keys.len(), 1, "the key of a prefix");
        assert!(parent.columns.iter().any(|column| column.name == "doc" && column.ty == ColumnType::Json));
        assert!(parent.columns.iter().any(|column| column.name == "twice" && column.generated));
        assert_eq!((child.foreign_keys.len(), child.foreign_keys[0].columns.len()), (1, 2));
        assert_eq!((child.named_triggers.len(), child.delete_triggers), (2, true));
        assert!(!found("odd `name").transactional && found("t7").transactional);
        assert_eq!(found("t7").columns[1].type_name, "varchar(8)");
        assert_eq!(whole[4..6], [None, None], "neither a view nor what is not there");
        // Whether side effects are seen depends on which tables are known.
        let plain = |tables: Vec<Option<Table>>| -> Vec<Option<Table>> {
            let plain = |table: Table| Table { side_effects: false, ..table };
            tables.into_iter().map(|table| table.map(plain)).collect()
        };
        assert_eq!(plain(whole), plain(alone), "{}", kind.name());
    }
}

/// Where the server does not tell upper from lower case, the file need not either.
#[tokio::test]
async fn names_are_found_as_the_server_compares_them() {
    let server = std::sync::Arc::new(Server::private(Kind::Mariadb, &["--lower-case-table-names=1"]).await);
    let db = Db::on(&server, &unique()).await;
    let mut admin = db.admin().await;
    for n in 0..20 {
        let parent = n.max(1) - 1;
        let references = format!("FOREIGN KEY (id) REFERENCES Item{parent} (id)");
        let key = if n == 0 { "KEY by_id (id)".to_owned() } else { references };
        admin.execute(&format!("CREATE TABLE Item{n} (id int PRIMARY KEY, {key})")).await;
    }
    let named = |name: String| TableName { schema: db.name.clone(), name };
    let names: Vec<TableName> = (0..20).map(|n| named(format!("ITEM{n}"))).collect();
    let mut conn = anechoic::connect::mysql::connect(&db.connect_config()).await.unwrap();

    for names in [&names[..], &names[..2]] {
        for (n, table) in read(&mut conn, names).await.unwrap().into_iter().enumerate() {
            let table = table.unwrap_or_else(|| panic!("ITEM{n} of {}", names.len()));
            assert_eq!((table.name, table.columns.len()), (named(format!("item{n}")), 1));
            assert_eq!((table.referenced_by, table.foreign_keys.len()), (u32::from(n < 19), usize::from(n > 0)));
        }
    }
}
