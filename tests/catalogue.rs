//! A catalogue of broken set-ups: what `check` says of each, and that what it prints is all that
//! is needed to mend it.
//!
//! Each case breaks one thing in a world that is well, on real servers. `check` has to end with
//! the case's exit code and say it (a snapshot per area). Then the SQL and TOML are taken out of
//! what was printed and run, by the one that the message names, and `check` has to be content.

mod case;
mod configuration;
mod mend;

use futures_util::StreamExt;

use self::case::{Case, Scene, run};
use crate::support::servers::Kind;
use crate::support::world::{Entity, Type, World};

const PG_MYSQL: [(&str, Kind); 2] = [("crm", Kind::Postgres17), ("shop", Kind::Mysql)];
const PG_MARIADB: [(&str, Kind); 2] = [("crm", Kind::Postgres17), ("erp", Kind::Mariadb)];

fn contact() -> Entity {
    Entity::new("contact").key("id", Type::Int).field("name", Type::Varchar(50))
}

/// A PostgreSQL and another system, on the shared servers.
fn two(other: Kind) -> Scene {
    let systems = if other == Kind::Mysql { PG_MYSQL } else { PG_MARIADB };
    Scene::new(World::of(&systems).entity(contact()))
}

fn other_name(kind: Kind) -> &'static str {
    if kind == Kind::Mysql { "shop" } else { "erp" }
}

/// All scenes, a few at a time; what was said in the order of the list.
async fn told(scenes: Vec<Scene>) -> String {
    let only = std::env::var("ANECHOIC_CASE").unwrap_or_default();
    let wanted = scenes.into_iter().filter(|scene| scene.cases.iter().any(|case| case.name.contains(&only)));
    let runs = wanted.map(|scene| {
        let name = scene.cases[0].name.clone();
        // A thread for each: a world that ends waits for its server, which may be waiting for another
        // world's login. And one that fails hides none of the others.
        let run = tokio::task::spawn_blocking(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(scene))
        });
        async move { run.await.map_err(|_| name) }
    });
    let told: Vec<Result<String, String>> = futures_util::stream::iter(runs).buffered(3).collect().await;
    let failed: Vec<&String> = told.iter().filter_map(|told| told.as_ref().err()).collect();
    assert!(failed.is_empty(), "failed (see above): {failed:#?}");
    told.into_iter().flatten().collect()
}

#[tokio::test]
async fn a_server_that_lets_nobody_in() {
    let password = |kind: Kind| {
        let other = other_name(kind);
        let case =
            Case::new(&format!("wrong password, {other}")).admin(other, "ALTER USER {agent}@'%' IDENTIFIED BY 'other'");
        two(kind).case(case)
    };
    let crm = |case: Case| two(Kind::Mysql).case(case);
    let scenes = vec![
        Scene::new(World::of(&PG_MYSQL).entity(contact()).proxied("crm")).case(Case::new("unreachable").refused("crm")),
        crm(Case::new("wrong password, crm").admin("crm", "ALTER ROLE {agent} PASSWORD 'other'")),
        password(Kind::Mysql),
        password(Kind::Mariadb),
        crm(Case::new("may not log in").admin("crm", "ALTER ROLE {agent} NOLOGIN")),
        crm(Case::new("lacks CONNECT")
            .after_setup()
            .admin("crm", "REVOKE CONNECT ON DATABASE {db} FROM PUBLIC, {agent}")),
        crm(Case::new("unknown database, crm").config("crm", "/{db}?", "/{db}x?")),
        crm(Case::new("unknown database, shop").config("shop", "/{db}?", "/{db}x?")),
        crm(Case::new("an authority that nobody knows").config("crm", "sslmode=disable", "sslmode=verify-full")),
        Scene::new(World::of(&PG_MYSQL).entity(contact()).private_with("crm", &["-c", "ssl=off"]))
            .case(Case::new("no TLS where it is asked for").config("crm", "sslmode=disable", "sslmode=require")),
        Scene::new(World::of(&PG_MYSQL).entity(contact()).private_with("shop", &[]))
            .case(Case::new("TLS where it is not asked for").admin("shop", "SET GLOBAL require_secure_transport = ON")),
    ];

    insta::assert_snapshot!(told(scenes).await);
}

#[tokio::test]
async fn a_postgresql_server_that_is_not_set_for_it() {
    let private = |options: &[&str]| Scene::new(World::of(&PG_MYSQL).entity(contact()).private_with("crm", options));
    let scenes = vec![
        private(&["-c", "wal_level=replica"]).case(Case::new("wal_level").born_broken()),
        private(&["-c", "max_replication_slots=1"])
            .case(Case::new("slots exhausted").admin("crm", "SELECT pg_create_physical_replication_slot('other')")),
        private(&["-c", "max_wal_senders=0"]).case(Case::new("senders exhausted").born_broken()),
        two(Kind::Mysql).case(
            Case::new("sessions are read-only")
                .admin("crm", "ALTER ROLE {agent} SET default_transaction_read_only = on"),
        ),
        two(Kind::Mysql).case(Case::new("the slot is another database's").slot_elsewhere("crm")),
        private(&[])
            .case(Case::new("a slot may hold back everything").note().born_broken().about("max_slot_wal_keep_size")),
    ];

    insta::assert_snapshot!(told(scenes).await);
}

/// `SET GLOBAL` and restarts of a server of their own, one after the other.
#[tokio::test]
async fn a_mysql_server_that_is_not_set_for_it() {
    let set = |name: &str, value: &str| Case::new(name).admin("shop", &format!("SET GLOBAL {name} = {value}"));
    let well = ["--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1"];
    let server = Scene::new(World::of(&PG_MYSQL).entity(contact()).private_with("shop", &well));
    let settings = [
        set("binlog_format", "'STATEMENT'"),
        set("binlog_row_image", "'MINIMAL'"),
        set("binlog_row_metadata", "'MINIMAL'").warning(),
        set("server_id", "0"),
        set("read_only", "ON"),
        set("super_read_only", "ON"),
        set("innodb_flush_log_at_trx_commit", "2").warning(),
        set("binlog_expire_logs_seconds", "3600").warning(),
        Case::new("gtid_mode").warning().admin(
            "shop",
            "SET GLOBAL gtid_mode = ON_PERMISSIVE; SET GLOBAL gtid_mode = OFF_PERMISSIVE; SET GLOBAL gtid_mode = OFF",
        ),
    ];
    let restarts = [
        Case::new("log_bin").restarted("shop", &["--skip-log-bin"]),
        Case::new("the log leaves out the marker")
            .restarted("shop", &["--binlog-ignore-db={marker}"])
            .refuses_to_start(),
        Case::new("the log has the tables alone").restarted("shop", &["--binlog-do-db={db}"]),
        Case::new("the log leaves out the tables").restarted("shop", &["--binlog-ignore-db={db}"]),
        set("sync_binlog", "0").config("shop", "allow_unsafe_binlog = true\n", "").refuses_to_start(),
    ];

    insta::assert_snapshot!(told(vec![server.cases(settings).cases(restarts)]).await);
}

#[tokio::test]
async fn a_mariadb_server_that_is_not_set_for_it() {
    let set = |name: &str, value: &str| Case::new(name).admin("erp", &format!("SET GLOBAL {name} = {value}"));
    let server = Scene::new(World::of(&PG_MARIADB).entity(contact()).private_with("erp", &["--sync-binlog=1"]));
    let settings = [
        set("binlog_format", "'MIXED'"),
        set("binlog_row_image", "'NOBLOB'"),
        set("binlog_row_metadata", "'NO_LOG'"),
        set("read_only", "1"),
        set("sync_binlog", "0").config("erp", "allow_unsafe_binlog = true\n", ""),
        set("gtid_strict_mode", "OFF").warning(),
        Case::new("annotations").note().born_broken().about("binlog_annotate_row_events"),
    ];

    insta::assert_snapshot!(told(vec![server.cases(settings)]).await);
}

#[tokio::test]
async fn a_role_that_lacks_rights() {
    let crm = |case: Case| two(Kind::Mysql).case(case);
    let mut scenes = vec![
        crm(Case::new("lacks REPLICATION").admin("crm", "ALTER ROLE {agent} NOREPLICATION").refuses_to_start()),
        crm(Case::new("lacks USAGE").after_setup().admin("crm", "REVOKE USAGE ON SCHEMA public FROM PUBLIC, {agent}")),
        crm(Case::new("lacks CREATE")
            .without_ownership()
            .born_broken()
            .admin("crm", "REVOKE CREATE ON DATABASE {db} FROM {agent}")),
        crm(Case::new("is not the tables' owner").without_ownership().born_broken()),
        crm(Case::new("row level security")
            .after_setup()
            .admin("crm", "ALTER TABLE contact ENABLE ROW LEVEL SECURITY")),
        crm(Case::new("may not write the marker, crm").after_setup().admin(
            "crm",
            "ALTER TABLE {marker}.marker OWNER TO postgres; REVOKE ALL ON {marker}.marker FROM {agent}; \
             GRANT SELECT ON {marker}.marker TO {agent}",
        )),
        crm(Case::new("may not write the marker, shop")
            .after_setup()
            .admin("shop", "REVOKE UPDATE ON {marker}.* FROM {agent}@'%'")),
        crm(Case::new("may not make the marker, shop").admin("shop", "REVOKE ALL ON {marker}.* FROM {agent}@'%'")),
        crm(Case::new("sees nothing of the table")
            .app("shop", "CREATE TABLE other (id int PRIMARY KEY)")
            .admin("shop", "REVOKE ALL ON {db}.* FROM {agent}@'%'; GRANT SELECT ON {db}.other TO {agent}@'%'")),
    ];
    for privilege in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
        let case = Case::new(&format!("lacks {privilege}, crm"));
        scenes.push(crm(case
            .without_ownership()
            .after_setup()
            .admin("crm", &format!("REVOKE {privilege} ON contact FROM {{agent}}"))));
    }
    for kind in [Kind::Mysql, Kind::Mariadb] {
        let system = other_name(kind);
        for privilege in ["SELECT", "INSERT", "UPDATE", "DELETE", "TRIGGER"] {
            let case = Case::new(&format!("lacks {privilege}, {system}"));
            scenes.push(
                two(kind).case(case.admin(system, &format!("REVOKE {privilege} ON {{db}}.* FROM {{agent}}@'%'"))),
            );
        }
        let status = if kind == Kind::Mysql { "REPLICATION CLIENT" } else { "BINLOG MONITOR" };
        for privilege in ["REPLICATION SLAVE", status] {
            let case = Case::new(&format!("lacks {privilege}, {system}"));
            scenes.push(two(kind).case(case.admin(system, &format!("REVOKE {privilege} ON *.* FROM {{agent}}@'%'"))));
        }
    }

    insta::assert_snapshot!(told(scenes).await);
}

#[tokio::test]
async fn a_table_that_cannot_be_kept_in_step() {
    let on = |kind: Kind, case: Case| two(kind).case(case);
    let my = |case: Case| on(Kind::Mysql, case);
    let maria = |case: Case| on(Kind::Mariadb, case);
    let named = || Scene::new(World::of(&PG_MYSQL).entity(contact().renamed()));
    let newest = |case: Case| {
        let systems = [("crm", Kind::Postgres18), ("shop", Kind::Mysql)];
        Scene::new(World::of(&systems).entity(contact()).private_with("crm", &[])).case(case)
    };
    let table = |system: &str, sql: &str, name: &str| Case::new(name).app(system, sql);
    let scenes = vec![
        my(Case::new("no such table, crm").config("crm", "table = \"contact\"", "table = \"contcat\"")),
        named().case(Case::new("no such table, shop").config("shop", "\"contact_shop\"", "\"contacts_shop\"")),
        my(Case::new("a view")
            .config("crm", "table = \"contact\"", "table = \"v\"")
            .app("crm", "CREATE VIEW v AS SELECT * FROM contact")
            .by_hand(case::Step::Config("crm".into(), "table = \"v\"".into(), "table = \"contact\"".into()))),
        named().case(Case::new("no such column, shop").config("shop", "\"name_shop\"", "\"nmae_shop\"")),
        named().case(Case::new("no such column, crm").config("crm", "\"name\" = \"name\"", "\"name\" = \"nam\"")),
        my(table("crm", "ALTER TABLE contact DROP CONSTRAINT contact_pkey", "the key is not unique, crm")),
        my(table("shop", "ALTER TABLE contact DROP PRIMARY KEY", "the key is not unique, shop")),
        my(table(
            "crm",
            "ALTER TABLE contact DROP CONSTRAINT contact_pkey; CREATE UNIQUE INDEX few ON contact (id) WHERE name <> 'x'",
            "the key is unique in some rows, crm",
        )
        .refuses_to_start()),
        my(table(
            "crm",
            "ALTER TABLE contact DROP CONSTRAINT contact_pkey; CREATE UNIQUE INDEX odd ON contact ((id + 0))",
            "the key is computed, crm",
        )),
        my(table(
            "crm",
            "ALTER TABLE contact DROP CONSTRAINT contact_pkey; ALTER TABLE contact ADD CONSTRAINT late UNIQUE (id) DEFERRABLE",
            "the key is checked late, crm",
        )),
        my(Case::new("the key's index is not valid, crm")
            .app("crm", "ALTER TABLE contact DROP CONSTRAINT contact_pkey; CREATE UNIQUE INDEX half ON contact (id)")
            .admin("crm", "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half'::regclass")),
        my(table(
            "shop",
            "ALTER TABLE contact DROP PRIMARY KEY, ADD UNIQUE odd ((id + 0))",
            "the key is computed, shop",
        )),
        my(table(
            "shop",
            "ALTER TABLE contact DROP PRIMARY KEY, ADD n int AUTO_INCREMENT PRIMARY KEY, ADD UNIQUE unseen (id) INVISIBLE",
            "the key's index is invisible, shop",
        )),
        maria(table(
            "erp",
            "ALTER TABLE contact DROP PRIMARY KEY, ADD n int AUTO_INCREMENT PRIMARY KEY, ADD UNIQUE unseen (id) IGNORED",
            "the key's index is ignored, erp",
        )),
        my(table(
            "crm",
            "ALTER TABLE contact DROP CONSTRAINT contact_pkey; ALTER TABLE contact ALTER id DROP NOT NULL; \
             ALTER TABLE contact ADD UNIQUE (id)",
            "the key may be NULL, crm",
        )),
        my(table(
            "shop",
            "ALTER TABLE contact DROP PRIMARY KEY, MODIFY id int NULL COMMENT 'NOT NULL once', ADD UNIQUE (id)",
            "the key may be NULL, shop",
        )),
        my(Case::new("replica identity").after_setup().app("crm", "ALTER TABLE contact REPLICA IDENTITY DEFAULT")),
        my(Case::new("a partition of weaker replica identity")
            .after_setup()
            .app(
                "crm",
                "DROP TABLE contact; CREATE TABLE contact (id int PRIMARY KEY, name varchar(50)) PARTITION BY RANGE (id); \
                 CREATE TABLE \"Part 1\" PARTITION OF contact DEFAULT; ALTER TABLE contact REPLICA IDENTITY FULL; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON contact TO {agent}",
            )
            .admin("crm", "ALTER PUBLICATION anechoic_{id} ADD TABLE contact")),
        newest(Case::new("a virtual column").app("crm", "ALTER TABLE contact ADD v int GENERATED ALWAYS AS (id * 2) VIRTUAL")),
        newest(
            Case::new("stored columns are not published")
                .after_setup()
                .app("crm", "ALTER TABLE contact ADD v int GENERATED ALWAYS AS (id * 2) STORED")
                .admin("crm", "ALTER PUBLICATION anechoic_{id} SET (publish_generated_columns = none)"),
        ),
        my(table("crm", "CREATE TABLE heir () INHERITS (contact)", "inherited")),
        my(Case::new("the publication was narrowed")
            .after_setup()
            .admin("crm", "ALTER PUBLICATION anechoic_{id} SET TABLE {marker}.marker, contact WHERE (id > 0)")),
        my(Case::new("the publication lacks the table")
            .after_setup()
            .admin("crm", "ALTER PUBLICATION anechoic_{id} DROP TABLE contact")),
        my(table("crm", "ALTER TABLE contact SET UNLOGGED", "unlogged")),
        my(Case::new("a type that cannot be carried")
            .app("crm", "ALTER TABLE contact ADD v regclass")
            .app("shop", "ALTER TABLE contact ADD v text")),
        named().case(
            Case::new("computed by the server")
                .app("shop", "ALTER TABLE contact_shop ADD upper_name varchar(50) AS (upper(name_shop)) STORED")
                .config("shop", "\"name\" = \"name_shop\"", "\"name\" = \"upper_name\""),
        ),
        my(Case::new("types without a common form")
            .app("shop", "ALTER TABLE contact ADD v text")
            .app("crm", "ALTER TABLE contact ADD v int")),
        my(table("shop", "ALTER TABLE contact ENGINE=MyISAM", "an engine without transactions, shop")
            .refuses_to_start()),
        maria(table("erp", "ALTER TABLE contact ENGINE=Aria", "an engine without transactions, erp")),
        my(Case::new("the marker's engine").after_setup().admin("shop", "ALTER TABLE {marker}.marker ENGINE=MyISAM")),
        my(table("shop", "ALTER TABLE contact ADD must int NOT NULL", "a column that must be given, shop")),
        my(table("crm", "ALTER TABLE contact ADD must int NOT NULL", "a column that must be given, crm")),
        my(Case::new("the filter has an unknown field")
            .config("crm", "table = \"contact\"", "table = \"contact\"\nwhere = \"nmae = 'x'\"")
            .by_hand(case::Step::Config("crm".into(), "nmae = ".into(), "name = ".into()))),
        Scene::new(World::of(&[("shop", Kind::Mysql), ("store", Kind::Mysql)]).entity(contact()))
            .case(Case::new("two systems share a marker").born_broken().refuses_to_start()),
    ];

    insta::assert_snapshot!(told(scenes).await);
}

fn by_key(ty: Type) -> Entity {
    Entity::new("stock").key("sku", ty).field("count", Type::Int)
}

#[tokio::test]
async fn keys_that_are_not_one_key_everywhere() {
    let keyed = |kind: Kind, entity: Entity, name: &str| {
        let systems = if kind == Kind::Mysql { PG_MYSQL } else { PG_MARIADB };
        Scene::new(World::of(&systems).entity(entity)).case(Case::new(name).born_broken().about("key column"))
    };
    let text = |kind: Kind, ddl: &str, name: &str| {
        keyed(kind, by_key(Type::Varchar(20)).stored(other_name(kind), "sku", ddl), name)
    };
    let in_crm = |ty: Type, ddl: &str, name: &str| keyed(Kind::Mysql, by_key(ty).stored("crm", "sku", ddl), name);
    let in_shop = |ty: Type, ddl: &str, name: &str| keyed(Kind::Mysql, by_key(ty).stored("shop", "sku", ddl), name);
    let begin = |kind: Kind, ty: &str| {
        let system = other_name(kind);
        let (text, key) = (format!("ALTER TABLE stock DROP PRIMARY KEY, MODIFY sku {ty}"), "ADD PRIMARY KEY (sku(3))");
        let systems = if kind == Kind::Mysql { PG_MYSQL } else { PG_MARIADB };
        Scene::new(World::of(&systems).entity(by_key(Type::Varchar(20))))
            .case(Case::new(&format!("a key by its beginning, {system}")).app(system, &format!("{text}, {key}")))
    };
    let scenes = vec![
        begin(Kind::Mysql, "text CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL"),
        begin(Kind::Mariadb, "varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin NOT NULL"),
        text(
            Kind::Mysql,
            "varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_ai_ci DEFAULT 'x' COMMENT 'it''s'",
            "case and accents do not count, shop",
        ),
        text(Kind::Mysql, "varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", "spaces do not count, shop"),
        text(Kind::Mysql, "char(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin", "spaces are dropped, shop"),
        text(Kind::Mariadb, "varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci", "case does not count, erp"),
        text(Kind::Mariadb, "varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin", "spaces do not count, erp"),
        in_crm(Type::Varchar(20), "char(20)", "spaces are dropped, crm"),
        Scene::new(World::of(&PG_MYSQL).entity(by_key(Type::Varchar(20)))).case(
            Case::new("case does not count, crm").app(
                "crm",
                "CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
                 ALTER TABLE stock ALTER sku TYPE varchar(20) COLLATE loose",
            ),
        ),
        in_shop(Type::DateTime, "datetime", "fewer digits of a second, shop"),
        in_crm(Type::DateTime, "timestamp(3)", "fewer digits of a second, crm"),
        in_shop(Type::Decimal(10, 4), "decimal(10,2)", "fewer digits, shop"),
    ];

    insta::assert_snapshot!(told(scenes).await);
}

/// Systems that each round a sum in their own way end with different ones.
#[tokio::test]
async fn sums_that_are_rounded_somewhere() {
    let added = |crm: &str, shop: &str, name: &str| {
        let item = Entity::new("item").key("id", Type::Int).field("balance", Type::Decimal(12, 4));
        let item = item.stored("crm", "balance", crm).stored("shop", "balance", shop);
        let case = Case::new(name).born_broken().about("would be rounded");
        Scene::new(World::of(&PG_MYSQL).entity(item.option("merge = { balance = \"add\" }"))).case(case)
    };
    let scenes = vec![
        added("decimal(12,4)", "decimal(10,2)", "fewer places, shop"),
        added("decimal(10,2)", "decimal(12,4)", "fewer places, crm"),
        added("decimal(10,2)", "int", "no places, shop"),
        added("numeric", "decimal(10,2)", "any places, crm"),
    ];

    insta::assert_snapshot!(told(scenes).await);
}

/// What InnoDB changes by itself stands in the log of MySQL since 9.6, and in none of MariaDB.
#[tokio::test]
async fn rows_that_change_without_a_trace() {
    let order = || Entity::new("order").key("id", Type::Int).field("note", Type::Varchar(50));
    let line = || Entity::new("line").key("id", Type::Int).field("parent", Type::Int);
    let world = || World::of(&PG_MARIADB).entity(order()).entity(line());
    let cascade = |action: &str| {
        format!("ALTER TABLE line ADD CONSTRAINT line_of FOREIGN KEY (parent) REFERENCES `order` (id) {action}")
    };
    let both = |action: &str| format!("ALTER TABLE line ADD FOREIGN KEY (parent) REFERENCES \"order\" (id) {action}");
    let erp = |action: &str, name: &str| Case::new(name).app("erp", &cascade(action));
    let crm = Case::new("the primary does something else")
        .app("erp", &cascade("ON DELETE CASCADE"))
        .app("crm", &both("ON DELETE SET NULL"));
    let scenes = vec![
        Scene::new(world()).case(erp("ON DELETE CASCADE", "ON DELETE CASCADE").refuses_to_start()),
        Scene::new(world()).case(erp("ON UPDATE CASCADE", "ON UPDATE CASCADE")),
        Scene::new(world()).case(erp("ON DELETE SET NULL", "ON DELETE SET NULL")),
        Scene::new(world()).case(crm),
        Scene::new(World::of(&PG_MARIADB).entity(line())).case(
            Case::new("from a table that is not bound")
                .app("erp", "CREATE TABLE `order` (id int PRIMARY KEY)")
                .app("erp", &cascade("ON DELETE CASCADE")),
        ),
        Scene::new(
            World::of(&[("crm", Kind::Postgres17), ("shop", Kind::Mysql)])
                .entity(order())
                .entity(line())
                .private_with("shop", &["--innodb-native-foreign-keys=ON", "--sync-binlog=1"]),
        )
        .case(Case::new("InnoDB by itself, shop").app("shop", &cascade("ON DELETE CASCADE"))),
    ];

    insta::assert_snapshot!(told(scenes).await);
}

#[tokio::test]
async fn the_same_action_everywhere_and_one_that_is_logged_are_well() {
    let order = Entity::new("order").key("id", Type::Int).field("note", Type::Varchar(50));
    let line = Entity::new("line").key("id", Type::Int).field("parent", Type::Int);
    let systems = [("crm", Kind::Postgres17), ("shop", Kind::Mysql), ("erp", Kind::Mariadb)];
    let reference = |quote: &str| {
        format!("ALTER TABLE line ADD FOREIGN KEY (parent) REFERENCES {quote}order{quote} (id) ON DELETE CASCADE")
    };
    let world = World::of(&systems)
        .entity(order)
        .entity(line)
        .ddl("crm", &reference("\""))
        .ddl("shop", &reference("`"))
        .ddl("erp", &reference("`"))
        .build()
        .await;
    world["crm"].lend_ownership(true).await;

    let output = world.agent.command(&["check"]).await;

    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What works, with a risk that a person should know: exit code 0, and mended as it is printed.
#[tokio::test]
async fn risks_that_a_person_should_know() {
    let my = |case: Case| two(Kind::Mysql).case(case.warning());
    let with = |entity: Entity, about: &str, name: &str| {
        Scene::new(World::of(&PG_MYSQL).entity(entity)).case(Case::new(name).warning().born_broken().about(about))
    };
    let id = |name: &str| Entity::new(name).key("id", Type::BigInt).field("name", Type::Varchar(50));
    let numbered = id("contact").stored("crm", "id", "bigserial").stored("shop", "id", "bigint AUTO_INCREMENT");
    let same_server_id = |port: u16| port.to_string();
    let server = crate::support::servers::Server::shared(Kind::Mysql).port;
    let scenes = vec![
        Scene::new(World::of(&PG_MYSQL).entity(numbered).private("shop"))
            .case(Case::new("both number new rows").warning().born_broken().about("generate keys")),
        with(id("user").field("password", Type::Varchar(60)).field("cardNumber", Type::Varchar(20)), "sensitive", "sensitive columns"),
        with(id("contact").stored("shop", "name", "varchar(10)"), "shorter", "a shorter text"),
        with(id("contact").stored("shop", "name", "varchar(50) NOT NULL"), "may be NULL", "NULL is refused"),
        with(id("contact").field("at", Type::DateTime).stored("shop", "at", "datetime"), "digits of a second", "fewer digits of a second"),
        with(id("contact").field("n", Type::BigInt).stored("crm", "n", "integer"), "smaller range", "a smaller range"),
        Scene::new(World::of(&[("shop", Kind::Mysql), ("erp", Kind::Mariadb)]).entity(contact()).private_with("erp", &[
            &format!("--server-id={}", same_server_id(server)),
        ]))
        .case(Case::new("one server_id twice").warning().born_broken().about("server_id")),
        two(Kind::Mysql).case(
            Case::new("triggers in two systems")
                .note()
                .about("answer each other")
                .admin("crm", "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL;END'")
                .admin("crm", "CREATE TRIGGER t AFTER INSERT ON contact FOR EACH ROW EXECUTE FUNCTION f()")
                .admin("shop", "CREATE TRIGGER t AFTER INSERT ON contact FOR EACH ROW SET @x = 1")
                .by_hand(case::Step::Admin("shop".into(), "DROP TRIGGER t".into())),
        ),
        my(Case::new("another installation").after_setup()
            .admin("crm", "INSERT INTO {marker}.marker SELECT 'branch', lane, journal, epoch, seq, part, origin, txid, applied_at, format FROM {marker}.marker")
            .admin("shop", "INSERT INTO {marker}.marker SELECT 'branch', lane, journal, epoch, seq, part, origin, txid, applied_at, format FROM {marker}.marker")),
    ];

    insta::assert_snapshot!(told(scenes).await);
}
