use super::*;
use crate::catalog::{Collation, DecimalLimits};
use crate::normalize::binding::Role;

const TWO_SYSTEMS: &str = r#"
[agent]
id = "hq"
[[system]]
name = "crm"
url = "postgresql://a@h/crm"
[[system]]
name = "shop"
url = "mysql://a@h/shop"
[[entity]]
name = "contact"
key = ["id"]
"#;

const INT: ColumnType = ColumnType::Int { bytes: 8, signed: true };
const TEXT: ColumnType = ColumnType::Text { chars: None, bytes: None };

fn column(name: &str, ty: ColumnType) -> Column {
    let type_name = format!("{ty:?}").split([' ', '{']).next().unwrap_or("").to_lowercase();
    Column { nullable: name != "id", ..Column::new(name, ty, type_name) }
}

fn table(name: &str, columns: Vec<Column>) -> Table {
    let (schema, name) = name.split_once('.').unwrap();
    Table {
        columns,
        primary_key: vec!["id".into()],
        unique_keys: vec![vec!["id".into()]],
        replica_identity: (schema == "public").then_some(ReplicaIdentity::Full),
        ..Table::new(TableName { schema: schema.into(), name: name.into() })
    }
}

fn catalog(tables: impl IntoIterator<Item = Table>) -> Catalog {
    tables.into_iter().map(|table| (table.name.clone(), Some(table))).collect()
}

/// `bindings` is what follows the entity's head; one table per system.
fn resolved(bindings: &str, crm: Table, shop: Table) -> Result<Model, String> {
    let config = Config::from_str(&format!("{TWO_SYSTEMS}{bindings}"), "t.toml").unwrap_or_else(|e| panic!("{e:?}"));
    resolve(&config, &[catalog([crm]), catalog([shop])])
        .map_err(|findings| findings.iter().map(|f| format!("{f}\n")).collect::<String>())
}

const BOTH: &str = "[entity.in.crm]\ntable = \"c\"\n[entity.in.shop]\ntable = \"c\"\n";

/// One field `v` beside the key, of these types.
fn kind_of_pair(crm: ColumnType, shop: ColumnType) -> Result<Kind, String> {
    let model = resolved(
        BOTH,
        table("public.c", vec![column("id", INT), column("v", crm)]),
        table("shop.c", vec![column("id", INT), column("v", shop)]),
    )?;
    Ok(model.schema.entities[0].fields[1].kind)
}

#[test]
fn columns_of_the_same_name_are_bound_key_first() {
    let crm = table("public.c", vec![column("name", TEXT), column("id", INT), column("secret", TEXT)]);
    let shop = table("shop.c", vec![column("id", INT), column("name", TEXT), column("other", TEXT)]);

    let model = resolved(BOTH, crm, shop).expect("resolves");

    let names: Vec<&str> = model.schema.entities[0].fields.iter().map(|f| f.name.as_str()).collect();
    assert_eq!((names, model.schema.entities[0].key_len), (vec!["id", "name"], 1));
    let wanted = &model.wanted[0][0];
    assert_eq!(wanted.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["id", "name"]);
    assert_eq!((wanted.id, &wanted.key), (0, &vec!["id".to_owned()]));
    assert_eq!(model.warnings, []);
}

/// A list anywhere is the limit of what is synchronised: nobody named `secret`.
#[test]
fn where_one_binding_lists_its_columns_the_others_take_no_more() {
    let columns = || vec![column("id", INT), column("name", TEXT), column("secret", TEXT)];
    let bindings = "[entity.in.crm]\ntable = \"c\"\ncolumns = { id = \"id\", name = \"name\" }\n\
                    [entity.in.shop]\ntable = \"c\"\n";

    let model = resolved(bindings, table("public.c", columns()), table("shop.c", columns())).expect("resolves");

    assert_eq!(model.wanted[1][0].columns.len(), 2);
    assert_eq!(model.schema.entities[0].fields.len(), 2);
}

#[test]
fn types_meet_in_a_kind_that_is_exact_for_both() {
    let decimal = ColumnType::Decimal { limits: None };
    let small = ColumnType::Int { bytes: 1, signed: true };
    let label = ColumnType::Enum { labels: vec!["a".into()] };
    for (crm, shop, kind) in [
        (ColumnType::Bool, small, Kind::Bool),
        (INT, decimal, Kind::Decimal),
        (ColumnType::Float32, ColumnType::Float64, Kind::Float64),
        (ColumnType::Uuid, ColumnType::Char { chars: 36 }, Kind::Uuid),
        (ColumnType::Uuid, ColumnType::Binary { bytes: 16 }, Kind::Uuid),
        (ColumnType::Json, TEXT, Kind::Json),
        (ColumnType::DateTime { digits: 6 }, ColumnType::Timestamp { digits: 0 }, Kind::Timestamp),
        (label, TEXT, Kind::Text),
        (ColumnType::Bool, bits(1), Kind::Bool),
        (bits(8), TEXT, Kind::Bits),
        (ColumnType::Year, INT, Kind::Int),
        (array(INT), ColumnType::Json, Kind::Array),
        (array(INT), TEXT, Kind::Array),
        (ColumnType::Geometry, ColumnType::Bytes { bytes: None }, Kind::Bytes),
        (ColumnType::Verbatim, TEXT, Kind::Text),
        (ColumnType::Set { labels: vec!["a".into()] }, TEXT, Kind::Text),
    ] {
        assert_eq!(kind_of_pair(crm.clone(), shop.clone()), Ok(kind));
        assert_eq!(kind_of_pair(shop, crm), Ok(kind));
    }
    for (crm, shop) in [
        (INT, TEXT),
        (ColumnType::Date, ColumnType::DateTime { digits: 0 }),
        (ColumnType::Uuid, ColumnType::Char { chars: 32 }),
        (ColumnType::Uuid, ColumnType::Binary { bytes: 18 }),
        (TEXT, ColumnType::Bytes { bytes: None }),
        (ColumnType::Bool, bits(2)),
        (array(INT), array(TEXT)),
        (array(INT), INT),
        (ColumnType::Geometry, TEXT),
    ] {
        let said = kind_of_pair(crm, shop).unwrap_err();
        assert!(said.contains("field \"v\" has types that have no exact common form"), "{said}");
    }
}

fn bits(length: u32) -> ColumnType {
    ColumnType::Bits { length: Some(length), varying: false }
}

fn array(element: ColumnType) -> ColumnType {
    ColumnType::Array { element: Box::new(element) }
}

#[test]
fn a_stand_in_for_a_date_suits_its_column() {
    let pair = |map: &str, ty: ColumnType| {
        let bindings = format!(
            "[entity.in.crm]\ntable = \"c\"\ncolumns = {{ id = \"id\", v = \"v\" }}\n[entity.in.shop]\ntable = \"c\"\n\
             columns = {{ id = \"id\", v = {{ column = \"v\", {map} }} }}\n"
        );
        let crm = table("public.c", vec![column("id", INT), column("v", ty.clone())]);
        let shop = table("shop.c", vec![column("id", INT), column("v", ty)]);
        resolved(&bindings, crm, shop).map(drop)
    };

    assert_eq!(pair("infinity = \"9999-12-31\", zero_date = \"null\"", ColumnType::Date), Ok(()));
    let instant = ColumnType::Timestamp { digits: 0 };
    assert!(pair("infinity = \"9999-12-31\"", instant).unwrap_err().contains("infinity of column \"v\" does not suit"));
    assert!(pair("zero_date = \"null\"", TEXT).unwrap_err().contains("need a date or a time"));
}

#[test]
fn maps_decide_the_kind_together_with_the_other_columns() {
    let bindings = |map: &str| {
        format!(
            "[entity.in.crm]\ntable = \"c\"\ncolumns = {{ id = \"id\", v = \"v\" }}\n[entity.in.shop]\ntable = \"c\"\n\
             columns = {{ id = \"id\", v = {{ column = \"v\", {map} }} }}\n"
        )
    };
    let pair = |map: &str, crm: ColumnType, shop: ColumnType| {
        let crm = table("public.c", vec![column("id", INT), column("v", crm)]);
        let shop = table("shop.c", vec![column("id", INT), column("v", shop)]);
        resolved(&bindings(map), crm, shop).map(|model| model.schema.entities[0].fields[1].kind)
    };
    let yes_no = "values = { true = \"Y\", false = \"N\" }";

    assert_eq!(pair("format = \"%d/%m/%Y\"", ColumnType::Date, TEXT), Ok(Kind::Date));
    assert_eq!(pair(yes_no, ColumnType::Bool, ColumnType::Char { chars: 1 }), Ok(Kind::Bool));
    assert_eq!(pair(yes_no, TEXT, TEXT), Ok(Kind::Text));
    for (map, crm, shop, said) in [
        (yes_no, INT, TEXT, "value \"true\" is not of type int"),
        (yes_no, ColumnType::Bool, INT, "value \"Y\" is not of type int"),
        ("values = { a = \"long\" }", TEXT, ColumnType::Char { chars: 1 }, "4 characters"),
        ("values = { a = \"b\" }", TEXT, ColumnType::Enum { labels: vec!["a".into()] }, "labels"),
        ("format = \"%d/%m/%Y\"", ColumnType::Date, INT, "a format needs text"),
    ] {
        let error = pair(map, crm, shop).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn everything_in_the_way_is_found_at_once_with_what_mends_it() {
    let bindings = r#"
[entity.in.crm]
table = "c"
columns = { id = "id", name = "frist_name", note = "note" }
[entity.in.shop]
table = "customer"
[[entity]]
name = "order"
key = ["no"]
[entity.in.crm]
table = "o"
where = "stat = 1"
columns = { no = "no", place = "place", status = "status", sum = "sum" }
[entity.in.shop]
table = "o"
where = "status = 'A'"
columns = { no = "no", place = "place", sum = "sum" }
"#;
    let config = Config::from_str(&format!("{TWO_SYSTEMS}{bindings}"), "t.toml").expect("valid");
    let contacts = vec![column("id", INT), column("first_name", TEXT), column("note", ColumnType::Unsupported)];
    let mut crm_orders = table("public.o", vec![column("no", INT), column("place", ColumnType::Unsupported)]);
    crm_orders.columns.extend([column("status", TEXT), Column { generated: true, ..column("sum", INT) }]);
    let mut shop_orders = table("shop.o", vec![column("no", INT), column("place", TEXT), column("sum", INT)]);
    shop_orders.transactional = false;
    let crm = catalog([table("public.c", contacts), crm_orders]);
    let mut shop = catalog([table("shop.customers", vec![column("id", INT)]), shop_orders]);
    shop.insert(TableName { schema: "shop".into(), name: "customer".into() }, None);

    let findings = resolve(&config, &[crm, shop]).unwrap_err();

    insta::assert_snapshot!(findings.iter().map(|f| format!("{f}\n")).collect::<String>());
}

#[test]
fn tables_that_would_lose_or_refuse_rows_are_refused() {
    let good = |name: &str| table(name, vec![column("id", INT), column("v", TEXT)]);
    assert!(resolved(BOTH, good("public.c"), good("shop.c")).is_ok());
    let refused = |change: &dyn Fn(&mut Table, &mut Table), said: &str| {
        let (mut crm, mut shop) = (good("public.c"), good("shop.c"));
        change(&mut crm, &mut shop);
        let error = resolved(BOTH, crm, shop).expect_err(said);
        assert!(error.contains(said), "{said}: {error}");
    };

    refused(&|crm, _| (crm.primary_key, crm.unique_keys) = (vec![], vec![]), "ADD UNIQUE (\"id\")");
    refused(&|crm, _| crm.columns[0].nullable = true, "ALTER COLUMN \"id\" SET NOT NULL");
    refused(&|_, shop| shop.columns[0].nullable = true, "MODIFY `id` int NOT NULL");
    refused(&|crm, _| crm.replica_identity = Some(ReplicaIdentity::Default), "REPLICA IDENTITY FULL");
    refused(&|_, shop| shop.transactional = false, "ENGINE=InnoDB");
    refused(
        &|_, shop| shop.columns.push(Column { nullable: false, ..column("must", TEXT) }),
        "column \"must\" is NOT NULL without a default and not bound",
    );
    refused(
        &|crm, shop| (crm.columns[0].ty, shop.columns[0].ty) = (ColumnType::Float64, ColumnType::Float64),
        "does not identify anything",
    );
}

#[test]
fn one_writer_needs_no_more_identity_than_its_key() {
    let bindings = "[entity.in.crm]\ntable = \"c\"\n[entity.in.shop]\ntable = \"c\"\nrole = \"target\"\n";
    let good = |name: &str| table(name, vec![column("id", INT), column("v", TEXT)]);
    let crm = |identity| Table { replica_identity: Some(identity), ..good("public.c") };

    let model = resolved(bindings, crm(ReplicaIdentity::Default), good("shop.c")).expect("resolves");

    assert_eq!(model.bindings[1][0].role, Role::Target);
    assert!(model.wanted[1][0].columns.is_empty(), "of a target only the number of local writes is wanted");
    for identity in [ReplicaIdentity::Nothing, ReplicaIdentity::Index] {
        assert!(resolved(bindings, crm(identity), good("shop.c")).is_err());
    }
    let filtered = bindings.replacen("table = \"c\"", "table = \"c\"\nwhere = \"v = 'x'\"", 1);
    assert!(resolved(&filtered, crm(ReplicaIdentity::Default), good("shop.c")).unwrap_err().contains("old rows"));
}

/// Its drift is counted, so it is published, and PostgreSQL would refuse to update it.
#[test]
fn a_target_needs_some_identity_too() {
    let bindings = "[entity.in.crm]\ntable = \"c\"\nrole = \"target\"\n[entity.in.shop]\ntable = \"c\"\n";
    let good = |name: &str| table(name, vec![column("id", INT), column("v", TEXT)]);
    let crm = |identity| Table { replica_identity: Some(identity), ..good("public.c") };

    assert!(resolved(bindings, crm(ReplicaIdentity::Default), good("shop.c")).is_ok());
    let said = resolved(bindings, crm(ReplicaIdentity::Nothing), good("shop.c")).unwrap_err();
    assert!(said.contains("refuses UPDATE and DELETE"), "{said}");
}

fn collation(name: &str, binary: bool, pads: bool) -> Option<Collation> {
    Some(Collation { name: name.into(), binary, pads, bytes: "utf8mb4_0900_bin".into() })
}

/// What `shop` is told of its key `v` beside an exact text in `crm`.
fn said_of_key(ty: ColumnType, type_name: &str, collation: Option<Collation>) -> Result<(), String> {
    let key = |ty: ColumnType, type_name: &str, collation| Column {
        nullable: false,
        collation,
        ..Column::new("v", ty, type_name)
    };
    let with = |name: &str, key: Column| Table {
        primary_key: vec!["v".into()],
        unique_keys: vec![vec!["v".into()]],
        ..table(name, vec![key])
    };
    let crm = with("public.c", key(TEXT, "text", self::collation("default", true, false)));
    let config = Config::from_str(&format!("{TWO_SYSTEMS}{BOTH}").replace("[\"id\"]", "[\"v\"]"), "t").unwrap();
    let shop = with("shop.c", key(ty, type_name, collation));
    let found = match resolve(&config, &[catalog([crm]), catalog([shop])]) {
        Ok(_) => return Ok(()),
        Err(found) => found,
    };
    let errors = found.iter().filter(|finding| finding.is_error()).map(ToString::to_string);
    Err(errors.collect::<Vec<_>>().join("\n"))
}

#[test]
fn a_text_key_has_to_be_compared_by_its_bytes_everywhere() {
    let varchar = || ColumnType::Text { chars: Some(20), bytes: None };
    let said = |ty, name: &str, collation| said_of_key(ty, name, collation).expect_err("unlike keys");

    assert_eq!(said_of_key(varchar(), "varchar(20)", collation("utf8mb4_0900_bin", true, false)), Ok(()));
    insta::assert_snapshot!([
        said(varchar(), "varchar(20)", collation("utf8mb4_0900_ai_ci", false, false)),
        said(varchar(), "varchar(20)", collation("utf8mb4_bin", true, true)),
        said(ColumnType::Char { chars: 20 }, "char(20)", collation("utf8mb4_0900_bin", true, true)),
    ].join("\n"), @r#"
error: shop: contact (shop.c): key column "v" is compared by utf8mb4_0900_ai_ci: texts that differ in case or accents are one key here and two elsewhere
    -- as the table's owner:
    ALTER TABLE `shop`.`c` MODIFY `v` varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin;
error: shop: contact (shop.c): key column "v" is compared by utf8mb4_bin, which pads: "a" and "a " are one key here and two elsewhere
    -- as the table's owner:
    ALTER TABLE `shop`.`c` MODIFY `v` varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin;
error: shop: contact (shop.c): key column "v" is char(20), which drops spaces at the end: "a" and "a " are one key here and two elsewhere
    -- as the table's owner:
    ALTER TABLE `shop`.`c` MODIFY `v` varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin;
"#);
}

/// What does not fit is quarantined, and that is told before it happens.
#[test]
fn a_column_that_holds_less_is_warned_of_with_the_type_that_would_do() {
    let digits = |precision, scale| ColumnType::Decimal { limits: Some(DecimalLimits { precision, scale }) };
    let told = |ours: (ColumnType, &str), theirs: (ColumnType, &str)| {
        let with = |name: &str, (ty, type_name): (ColumnType, &str)| {
            table(name, vec![column("id", INT), Column::new("v", ty, type_name)])
        };
        let model = resolved(BOTH, with("public.c", theirs), with("shop.c", ours)).expect("resolves");
        model.warnings.iter().map(|f| f.to_string()).filter(|f| f.contains(" shop: ")).collect::<String>()
    };
    let varchar = |n| ColumnType::Text { chars: Some(n), bytes: None };
    let int = |bytes, signed| ColumnType::Int { bytes, signed };
    let time = |digits| ColumnType::DateTime { digits };

    assert_eq!(told((varchar(50), "varchar(50)"), (varchar(50), "character varying(50)")), "");
    assert_eq!(told((ColumnType::Text { chars: None, bytes: Some(65_535) }, "text"), (TEXT, "text")), "");
    insta::assert_snapshot!([
        told((varchar(10), "varchar(10)"), (varchar(50), "character varying(50)")),
        told((int(4, false), "int unsigned"), (int(8, true), "bigint")),
        told((digits(10, 2), "decimal(10,2)"), (digits(12, 4), "numeric(12,4)")),
        told((time(0), "datetime"), (time(6), "timestamp without time zone")),
    ].join("\n"), @r#"
warning: shop: contact (shop.c): column "v" (varchar(10)) is shorter than "v" in crm (character varying(50)): what does not fit is set aside
    -- as the table's owner:
    ALTER TABLE `shop`.`c` MODIFY `v` varchar(50);
warning: shop: contact (shop.c): column "v" (int unsigned) has a smaller range than "v" in crm (bigint): what does not fit is set aside
    -- as the table's owner:
    ALTER TABLE `shop`.`c` MODIFY `v` bigint;
warning: shop: contact (shop.c): column "v" (decimal(10,2)) holds fewer digits than "v" in crm (numeric(12,4)): what does not fit is set aside
    -- as the table's owner:
    ALTER TABLE `shop`.`c` MODIFY `v` decimal(12,4);
warning: shop: contact (shop.c): column "v" (datetime) has fewer digits of a second than "v" in crm (timestamp without time zone): what does not fit is set aside
    -- as the table's owner:
    ALTER TABLE `shop`.`c` MODIFY `v` datetime(6);
"#);
}

/// `conflicts` stands in the head of the entity; both tables have these fields beside the key.
fn decided(conflicts: &str, fields: &[(&str, ColumnType, ColumnType)]) -> String {
    let columns = |of: fn(&(&str, ColumnType, ColumnType)) -> ColumnType| {
        let fields = fields.iter().map(|field| column(field.0, of(field)));
        std::iter::once(column("id", INT)).chain(fields).collect::<Vec<_>>()
    };
    let crm = table("public.c", columns(|field| field.1.clone()));
    let shop = Table {
        unique_keys: vec![vec!["id".into()], vec!["v".into(), "w".into()]],
        ..table("shop.c", columns(|field| field.2.clone()))
    };
    match resolved(&format!("{conflicts}\n{BOTH}"), crm, shop) {
        Ok(model) => model.warnings.iter().map(|f| format!("{f}\n")).collect(),
        Err(said) => said,
    }
}

#[test]
fn what_the_file_says_of_conflicts_suits_the_columns() {
    let decimal = |scale| ColumnType::Decimal { limits: Some(DecimalLimits { precision: 10, scale }) };
    let any = ColumnType::Decimal { limits: None };
    let instant = ColumnType::Timestamp { digits: 6 };
    let label = ColumnType::Enum { labels: vec!["a".into()] };
    let set = ColumnType::Set { labels: vec!["a".into()] };
    let fits = |conflicts: &str, ty: &ColumnType| {
        assert_eq!(decided(conflicts, &[("v", ty.clone(), ty.clone())]), "", "{conflicts} {ty:?}");
    };
    for (conflicts, types) in [
        ("merge = { v = \"add\" }", vec![INT, decimal(2), any.clone()]),
        (
            "merge = { v = \"max\" }",
            vec![INT, any.clone(), TEXT, instant.clone(), ColumnType::Date, ColumnType::Float64],
        ),
        ("merge = { v = \"union\" }", vec![set, array(INT), ColumnType::Json]),
        ("conflict = \"latest\"\nlatest_by = \"v\"", vec![instant, ColumnType::Date, INT, any.clone()]),
        ("unique = { v = { policy = \"rename\", template = \"{value}-{key}\" } }", vec![TEXT]),
        ("unique = { v = \"manual\" }", vec![INT, TEXT, ColumnType::Uuid]),
    ] {
        types.iter().for_each(|ty| fits(conflicts, ty));
    }

    let mut said = String::new();
    for (conflicts, crm, shop) in [
        ("merge = { v = \"add\" }", ColumnType::Float64, ColumnType::Float64),
        ("merge = { v = \"add\" }", ColumnType::Year, INT),
        ("merge = { v = \"add\" }", decimal(4), decimal(2)),
        ("merge = { v = \"add\" }", decimal(2), INT),
        ("merge = { v = \"add\" }", any, decimal(2)),
        ("merge = { v = \"min\" }", label, TEXT),
        ("merge = { v = \"max\" }", ColumnType::Json, ColumnType::Json),
        ("merge = { v = \"union\" }", TEXT, TEXT),
        ("merge = { vv = \"max\" }", INT, INT),
        ("conflict = \"latest\"\nlatest_by = \"v\"", TEXT, TEXT),
        ("unique = { v = { policy = \"rename\", template = \"{value}-{key}\" } }", INT, INT),
        ("unique = { x = \"manual\" }", INT, INT),
    ] {
        let rest = ("x", INT, INT);
        said += &format!("{}\n", decided(conflicts, &[("v", crm, shop), rest]));
    }
    insta::assert_snapshot!(said);
}

#[test]
fn what_is_added_up_is_in_no_filter_and_needs_whole_old_rows() {
    let source = BOTH.replacen("table = \"c\"", "table = \"c\"\nrole = \"source\"\nwhere = \"v > 0 or w = 1\"", 1);
    let tables = || {
        let columns = || vec![column("id", INT), column("v", INT), column("w", INT)];
        (table("public.c", columns()), table("shop.c", columns()))
    };
    let (crm, shop) = tables();

    let said = resolved(&format!("merge = {{ v = \"add\" }}\n{source}"), crm, shop).unwrap_err();

    assert!(said.contains("where asks for field \"v\""), "{said}");
    let (crm, shop) = tables();
    assert!(resolved(&format!("merge = {{ v = \"max\" }}\n{source}"), crm, shop).is_ok());
    let one_writer = BOTH.to_owned() + "role = \"target\"\n";
    for (conflicts, refused) in [("", false), ("scope = \"field\"\n", true), ("merge = { v = \"add\" }\n", true)] {
        let (crm, shop) = tables();
        let weak = Table { replica_identity: Some(ReplicaIdentity::Default), ..crm };
        let said = resolved(&format!("{conflicts}{one_writer}"), weak, shop).map(drop);
        assert_eq!(said.is_err_and(|said| said.contains("single fields are carried")), refused, "{conflicts}");
    }
}

#[test]
fn who_writes_has_the_version_that_is_compared() {
    let conflicts = "conflict = \"latest\"\nlatest_by = \"v\"\n";
    let ignoring = BOTH.to_owned() + "ignore = [\"v\"]\n";
    let bindings =
        ignoring.replacen("table = \"c\"", "table = \"c\"\ncolumns = { id = \"id\", v = \"v\", w = \"w\" }", 1);
    let tables = || {
        let columns = || vec![column("id", INT), column("v", INT), column("w", INT)];
        (table("public.c", columns()), table("shop.c", columns()))
    };
    let (crm, shop) = tables();

    let said = resolved(&format!("{conflicts}{bindings}"), crm, shop).unwrap_err();

    assert!(said.contains("shop: contact (shop.c): does not bind \"v\", which latest_by compares"), "{said}");
    let (crm, shop) = tables();
    let received = format!("{conflicts}{bindings}role = \"target\"\n");
    let model = resolved(&received, crm, shop).expect("who only receives has no version");
    let said: Vec<String> = model.warnings.iter().map(|f| f.what.clone()).collect();
    assert!(said.iter().any(|said| said.contains("one system alone writes the entity")), "{said:?}");
}
