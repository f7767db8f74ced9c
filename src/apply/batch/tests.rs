use super::*;
use crate::catalog::{Action, Column, ColumnType, ForeignKey, Table, TableName};
use crate::change::{ChangeWriter, Changes, fold};
use crate::normalize::binding::{BoundColumn, Transform};
use crate::schema::{EntitySchema, Field};
use crate::value::{Kind, Value};

fn schema() -> Arc<Schema> {
    let field = |name: &str| Field { name: name.into(), kind: Kind::Int };
    let fields = || ["id", "a", "b"].map(field).to_vec();
    Schema::new(
        ["line", "order", "customer", "event"]
            .map(|n| EntitySchema::new(n, fields(), usize::from(n != "event")))
            .to_vec(),
    )
}

fn name(name: &str) -> TableName {
    TableName { schema: "public".into(), name: name.into() }
}

fn column(name: &str) -> Column {
    Column::new(name, ColumnType::Int { bytes: 8, signed: true }, "bigint")
}

fn table(table: &str, parents: &[&str]) -> Arc<Table> {
    let reference = |parent: &&str| ForeignKey {
        name: format!("{table}_{parent}"),
        columns: vec!["a".into()],
        references: name(parent),
        referenced: vec!["id".into()],
        on_update: Action::Refuse,
        on_delete: Action::Refuse,
        acts: false,
    };
    Arc::new(Table {
        columns: ["id", "a", "b"].map(column).to_vec(),
        primary_key: vec!["id".into()],
        foreign_keys: parents.iter().map(reference).collect(),
        ..Table::new(name(table))
    })
}

fn routes() -> Routes {
    let schema = schema();
    let parents: [&[&str]; 4] = [&["order"], &["customer"], &["order"], &[]];
    let bind = |(i, entity): (usize, &EntitySchema)| {
        let columns = entity.fields.iter().enumerate().map(|(field, f)| BoundColumn {
            field,
            kind: f.kind,
            column: column(&f.name),
            transform: Transform::None,
            engine: crate::config::Engine::Postgres,
            label: "".into(),
        });
        Arc::new(Binding {
            system: SystemId(0),
            entity: EntityId(i as u16),
            table: table(&entity.name, parents[i]),
            role: Role::Both,
            columns: columns.collect(),
            key_len: entity.key_len,
            filter: None,
            clash_keys: Vec::new(),
        })
    };
    let bindings: Vec<_> = schema.entities.iter().enumerate().map(bind).collect();
    Routes::new(SystemId(0), "crm".into(), schema, &bindings)
}

type Image<'a> = Option<[Option<i64>; 3]>;

fn body(schema: &Schema, changes: &[(u16, Op, Image<'_>, Image<'_>)]) -> Bytes {
    let mut out = ChangeWriter::default();
    let row =
        |image: [Option<i64>; 3]| image.into_iter().map(|v| v.map_or(Datum::NotSent, |v| Datum::Value(Value::Int(v))));
    for (entity, op, before, after) in changes {
        out.push(schema, EntityId(*entity), *op, before.map(row), after.map(row));
    }
    out.take().into()
}

fn groups(changes: &[(u16, Op, Image<'_>, Image<'_>)]) -> Vec<(String, Write, u128, Vec<String>)> {
    let routes = routes();
    let body = body(&routes.schema, changes);
    let mut batch = Batch::default();
    Changes::new(&body).for_each(|c| batch.add(&routes, &body, &c));
    let show = |group: Group| {
        let rows = group
            .rows()
            .iter()
            .map(|r| {
                r.iter()
                    .map(|d| {
                        d.value().map_or("-".into(), |v| match v {
                            Value::Int(v) => v.to_string(),
                            other => format!("{other:?}"),
                        })
                    })
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        (group.binding.table.name.name.clone(), group.write, group.carried, rows)
    };
    batch.groups(&routes).into_iter().map(show).collect()
}

const ROW: Image<'_> = Some([Some(1), Some(2), Some(3)]);

#[test]
fn the_last_image_wins_and_a_partial_one_lies_over_it() {
    let partial = Some([Some(1), Some(9), None]);

    let groups = groups(&[(1, Op::Insert, None, ROW), (1, Op::Update, ROW, partial)]);

    assert_eq!(groups, [("order".into(), Write::Upsert, 0b111, vec!["1 9 3".into()])]);
}

#[test]
fn an_insert_after_a_delete_of_the_key_replaces_the_row() {
    let whole = groups(&[(1, Op::Delete, ROW, None), (1, Op::Insert, None, ROW)]);
    let partial = groups(&[(1, Op::Delete, ROW, None), (1, Op::Insert, None, Some([Some(1), Some(9), None]))]);

    assert_eq!(whole, [("order".into(), Write::Upsert, 0b111, vec!["1 2 3".into()])]);
    assert_eq!(partial[0], ("order".into(), Write::Delete, 0, vec!["1 2 3".into()]));
    assert_eq!(partial[1], ("order".into(), Write::Upsert, 0b011, vec!["1 9 -".into()]));
}

#[test]
fn a_delete_after_an_insert_stays_since_the_row_may_exist() {
    let groups = groups(&[(1, Op::Insert, None, ROW), (1, Op::Delete, ROW, None)]);

    assert_eq!(groups, [("order".into(), Write::Delete, 0, vec!["1 2 3".into()])]);
}

/// customer refers to order as well: the cycle is cut, line still follows order.
#[test]
fn parents_are_written_first_and_children_deleted_first() {
    let other = Some([Some(7), None, None]);

    let groups = groups(&[
        (0, Op::Insert, None, ROW),
        (1, Op::Insert, None, ROW),
        (1, Op::Delete, other, None),
        (0, Op::Delete, other, None),
    ]);

    let order: Vec<_> = groups.iter().map(|g| (g.0.as_str(), g.1)).collect();
    assert_eq!(
        order,
        [("line", Write::Delete), ("order", Write::Delete), ("order", Write::Upsert), ("line", Write::Upsert)]
    );
}

/// What is updated or replaced is there, and one such row among many fails all that are copied.
#[test]
fn only_rows_that_begin_with_an_insert_are_most_likely_not_there() {
    let fresh = |changes: &[(u16, Op, Image<'_>, Image<'_>)]| -> Vec<bool> {
        let (routes, mut batch) = (routes(), Batch::default());
        let body = body(&routes.schema, changes);
        Changes::new(&body).for_each(|c| batch.add(&routes, &body, &c));
        batch.groups(&routes).iter().map(|group| group.fresh).collect()
    };
    let other = Some([Some(7), Some(2), Some(3)]);

    assert_eq!(fresh(&[(1, Op::Insert, None, ROW), (1, Op::Update, ROW, ROW)]), [true]);
    assert_eq!(fresh(&[(1, Op::Insert, None, ROW), (1, Op::Update, other, other)]), [false]);
    assert_eq!(fresh(&[(1, Op::Insert, ROW, ROW)]), [false]);
    assert_eq!(fresh(&[(1, Op::Delete, ROW, None), (1, Op::Insert, None, ROW)]), [false]);
    assert_eq!(fresh(&[(1, Op::Insert, None, ROW), (1, Op::Delete, ROW, None)]), [false]);
}

#[test]
fn rows_without_a_key_are_never_coalesced() {
    let groups = groups(&[(3, Op::Insert, None, ROW), (3, Op::Insert, None, ROW)]);

    assert_eq!(groups, [("event".into(), Write::Insert, 0b111, vec!["1 2 3".into(), "1 2 3".into()])]);
}

#[test]
fn folding_keeps_what_the_later_change_does_not_carry() {
    let schema = schema();
    let encode = |op, before, after| body(&schema, &[(1, op, before, after)]);
    let fold = |first: &Bytes, second: &Bytes| fold(first, &Changes::new(second).next().unwrap());
    let update = encode(Op::Update, ROW, ROW);
    let partial = encode(Op::Update, ROW, Some([Some(1), Some(9), None]));
    let delete = encode(Op::Delete, ROW, None);

    let folded = fold(&update, &partial);
    let change = Changes::new(&folded).next().unwrap();
    assert_eq!((change.op, change.after.unwrap().get(2)), (Op::Update, Datum::Value(Value::Int(3))));

    let gone = fold(&update, &delete);
    assert_eq!(Changes::new(&gone).next().unwrap().op, Op::Delete);

    let anew = fold(&delete, &partial);
    let change = Changes::new(&anew).next().unwrap();
    assert_eq!((change.op, change.after.unwrap().get(2)), (Op::Insert, Datum::NotSent));
    assert!(change.before.is_some(), "it replaces the row");
}
