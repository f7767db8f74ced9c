use super::*;
use crate::normalize::resolve::resolve_after;

/// An entity bound by name in as many systems as there are tables, looked at again and again.
struct World {
    config: Config,
    decided: Decided,
}

fn table(at: usize, columns: &[&str]) -> Table {
    let column = |name: &&str| Column {
        nullable: *name != "id",
        ..Column::new(*name, ColumnType::Int { bytes: 8, signed: true }, "bigint")
    };
    Table {
        columns: columns.iter().map(column).collect(),
        primary_key: vec!["id".into()],
        unique_keys: vec![vec!["id".into()]],
        ..Table::new(TableName { schema: format!("d{at}"), name: "c".into() })
    }
}

impl World {
    fn new(systems: usize, options: &str) -> World {
        let mut text = "[agent]\nid = \"hq\"\n".to_owned();
        for at in 0..systems {
            text += &format!("[[system]]\nname = \"s{at}\"\nurl = \"mysql://a@h/d{at}\"\n");
        }
        text += "[[entity]]\nname = \"contact\"\nkey = [\"id\"]\n";
        for at in 0..systems {
            let options = if at == 0 { options } else { "" };
            text += &format!("[entity.in.s{at}]\ntable = \"c\"\n{options}\n");
        }
        World { config: Config::from_str(&text, "t.toml").unwrap(), decided: Decided::default() }
    }

    /// The fields after the key, or what is in the way.
    fn look(&mut self, tables: &[&[&str]]) -> Result<(Vec<String>, Model), String> {
        let catalogs: Vec<Catalog> = tables
            .iter()
            .enumerate()
            .map(|(at, columns)| {
                let table = table(at, columns);
                [(table.name.clone(), Some(table))].into()
            })
            .collect();
        let mut model = resolve_after(&self.config, &catalogs, &self.decided)
            .map_err(|findings| findings.iter().map(|finding| format!("{finding}\n")).collect::<String>())?;
        let seen = vec![Seen::default(); tables.len()];
        self.decided = judge(&mut model, &self.config, &catalogs, &seen, &[], &self.decided);
        let fields = model.schema.entities[0].fields[1..].iter().map(|field| field.name.clone()).collect();
        Ok((fields, model))
    }

    fn fields(&mut self, tables: &[&[&str]]) -> Vec<String> {
        self.look(tables).unwrap().0
    }

    fn awaited(&mut self, tables: &[&[&str]]) -> Vec<Vec<String>> {
        let model = self.look(tables).unwrap().1;
        model.wanted.iter().map(|wanted| wanted[0].now.as_ref().unwrap().awaited.clone()).collect()
    }
}

#[test]
fn a_new_column_waits_for_its_like_and_is_carried_then() {
    let mut world = World::new(2, "");
    assert_eq!(world.fields(&[&["id", "name"], &["id", "name"]]), ["name"]);

    assert_eq!(world.awaited(&[&["id", "name", "x"], &["id", "name"]]), [vec!["x".to_owned()], vec![]]);
    assert_eq!(world.fields(&[&["id", "name", "x"], &["id", "name", "x"]]), ["name", "x"]);
    assert_eq!(world.awaited(&[&["id", "name", "x"], &["id", "name", "x"]]), [[""; 0]; 2]);
}

/// Its rows hold values that the other table's new column does not have: carried, the defaults
/// there would be written over them.
#[test]
fn a_column_that_one_table_had_all_along_is_left_alone_even_when_the_other_gets_it() {
    let mut world = World::new(2, "");
    assert_eq!(world.awaited(&[&["id", "name", "x"], &["id", "name"]]), [[""; 0]; 2]);

    for _ in 0..2 {
        let (fields, model) = world.look(&[&["id", "name", "x"], &["id", "name", "x"]]).unwrap();
        assert_eq!(fields, ["name"]);
        assert!(model.wanted.iter().all(|wanted| wanted[0].now.as_ref().unwrap().awaited.is_empty()));
    }
}

#[test]
fn a_third_table_that_gets_a_carried_column_late_does_not_overwrite_the_others() {
    let mut world = World::new(3, "");
    assert_eq!(world.fields(&[&["id", "x"], &["id", "x"], &["id"]]), ["x"]);

    let (_, model) = world.look(&[&["id", "x"], &["id", "x"], &["id", "x"]]).unwrap();

    assert_eq!(model.bindings[2][0].columns.len(), 1, "the key");
    assert!(model.warnings[0].what.contains("is new here"), "{:?}", model.warnings);
}

#[test]
fn a_carried_column_that_is_gone_from_one_table_is_an_error_until_it_is_gone_from_both() {
    let mut world = World::new(2, "");
    assert_eq!(world.fields(&[&["id", "x", "y"], &["id", "x", "y"]]), ["x", "y"]);

    let error = world.look(&[&["id", "x", "z"], &["id", "x", "y"]]).unwrap_err();
    assert!(error.contains("\"y\" is gone") && error.contains("formerly = [\"y\"]"), "{error}");
    assert!(error.contains("{ column = \"z\""), "{error}");
    assert_eq!(world.fields(&[&["id", "x"], &["id", "x"]]), ["x"]);
}

#[test]
fn what_a_binding_ignores_neither_waits_nor_is_missed() {
    let mut world = World::new(2, "ignore = [\"x\", \"y\"]");
    world.fields(&[&["id", "name"], &["id", "name", "y"]]);

    assert_eq!(world.awaited(&[&["id", "name", "x"], &["id", "name", "y"]]), [[""; 0]; 2]);
    assert_eq!(world.fields(&[&["id", "name", "x", "y"], &["id", "name", "y"]]), ["name"]);
}

#[test]
fn what_changes_nothing_leaves_the_fingerprint() {
    let mut world = World::new(2, "");
    world.fields(&[&["id", "name"], &["id", "name"]]);
    let mut of = |tables: &[&[&str]]| fingerprint(&world.look(tables).unwrap().1);

    let before = of(&[&["id", "name"], &["id", "name"]]);
    assert_eq!(of(&[&["name", "id"], &["id", "name"]]), before, "reordered");
    assert_ne!(of(&[&["id", "name", "x"], &["id", "name"]]), before, "awaited");
    assert_ne!(of(&[&["id", "name", "x"], &["id", "name", "x"]]), before, "followed");
}

#[test]
fn a_table_that_is_bound_under_another_name_wants_its_former_one() {
    let mut world = World::new(2, "");
    world.fields(&[&["id", "name"], &["id", "name"]]);
    let mut moved = World::new(2, "");
    moved.config.entities[0].bindings[0].table.name = "c2".into();
    moved.decided = world.decided.clone();
    let look = |world: &World| {
        let catalogs = [table(0, &["id", "name"]), table(1, &["id", "name"])].map(|mut table| {
            if table.name.schema == "d0" {
                table.name.name = "c2".into();
            }
            Catalog::from([(table.name.clone(), Some(table))])
        });
        let mut model =
            resolve_after(&world.config, &catalogs, &world.decided).map_err(|findings| findings[0].to_string())?;
        let end = Position::Mysql {
            gtids: "01010101-0101-0101-0101-010101010101:1-4".parse().unwrap(),
            binlog: crate::position::BinlogPosition { file: "b.000001".into(), offset: 4, begun: 0 },
            server_uuid: "u".into(),
        };
        let seen = Seen { at: Some(end), ..Seen::default() };
        Ok::<_, String>(judge(&mut model, &world.config, &catalogs, &[seen.clone(), seen], &[], &world.decided))
    };

    let error = look(&moved).unwrap_err();
    assert!(error.contains("kept in table d0.c") && error.contains("formerly = [\"d0.c\"]"), "{error}");

    moved.config.entities[0].bindings[0].formerly = Some(vec![TableName { schema: "d0".into(), name: "c".into() }]);
    let decided = look(&moved).unwrap();
    assert_eq!(decided.also["s0"]["d0.c2"][0].name.name, "c");
    let text = serde_json::to_string(&decided).unwrap();
    assert_eq!(serde_json::from_str::<Decided>(&text).unwrap(), decided, "as it is kept");
}
