//! Statement text for PostgreSQL. Rows come as arrays, one per column, joined by `unnest`.

use super::value::{Wire, assigned, cast, select};
use crate::apply::Write;
use crate::apply::sql::{Shape, quoted, quoted_table};
use crate::catalog::Column;
use crate::error::Result;
use crate::normalize::binding::Binding;

/// How existing rows are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// `ON CONFLICT`: a unique index on exactly the key, and nothing that minds the attempt.
    /// A clash on any other unique key raises.
    Propose,
    /// Two statements, update and insert of what is missing. Two and not one, because each
    /// takes its own snapshot: a row that was deleted while the update waited for it is
    /// missing to the insert.
    UpdateThenInsert,
}

/// The statements of one write, in order; all take the same parameters.
pub fn write(binding: &Binding, shape: &Shape, write: Write, form: Form) -> Result<Vec<String>> {
    let text = Text { binding, shape };
    Ok(match (write, form) {
        (Write::Insert, _) => vec![text.insert("")?],
        (Write::Delete, _) => vec![text.delete()?],
        (Write::Upsert, Form::Propose) => vec![text.insert(&text.on_conflict())?],
        (Write::Upsert, Form::UpdateThenInsert) if shape.set.is_empty() => vec![text.insert(&text.if_missing())?],
        (Write::Upsert, Form::UpdateThenInsert) => vec![text.update()?, text.insert(&text.if_missing())?],
    })
}

/// Rows by key, `locked` for update, each with the number of its key (from 1).
pub fn read(binding: &Binding, shape: &Shape, locked: bool) -> Result<String> {
    let text = Text { binding, shape };
    let mut columns = String::from("s.n");
    for bound in &binding.columns {
        let expression = format!("t.{}", quoted(&bound.column.name));
        columns.push_str(", ");
        columns.push_str(&select(&bound.column, &expression)?);
    }
    Ok(format!(
        "SELECT {columns} FROM {} AS t JOIN {} ON {}{}",
        quoted_table(&binding.table.name),
        text.rows(" WITH ORDINALITY", ", n")?,
        text.same_key(),
        if locked { " FOR UPDATE OF t" } else { "" },
    ))
}

/// Whether there is a unique index that ON CONFLICT can use for exactly these columns: not
/// partial, not of expressions, not deferrable. Parameters: schema, table, column names.
pub const ARBITER: &str = "SELECT count(*) > 0 FROM pg_index i \
    JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname = $1 AND c.relname = $2 AND i.indisunique AND i.indisvalid AND i.indimmediate \
    AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = cardinality($3::text[]) \
    AND NOT EXISTS (SELECT FROM generate_series(0, i.indnkeyatts - 1) AS k \
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[k] \
    WHERE a.attname IS NULL OR NOT a.attname = ANY ($3::text[]))";

impl Shape {
    /// How the values of a place travel: a difference need not fit into its column.
    pub(crate) fn wire(&self, place: usize, column: &Column) -> Result<Wire> {
        if self.added.contains(&place) { Ok(Wire::Text) } else { Wire::of(column) }
    }
}

struct Text<'a> {
    binding: &'a Binding,
    shape: &'a Shape,
}

impl Text<'_> {
    fn column(&self, place: usize) -> &Column {
        &self.binding.columns[self.shape.sent[place]].column
    }

    fn name(&self, place: usize) -> String {
        quoted(&self.column(place).name)
    }

    fn value(&self, place: usize) -> String {
        match self.shape.added.contains(&place) {
            true => format!("s.c{}::numeric", place + 1),
            false => assigned(self.column(place), &format!("s.c{}", place + 1)),
        }
    }

    fn table(&self) -> String {
        format!("{} AS t", quoted_table(&self.binding.table.name))
    }

    fn list(&self, places: &[usize], each: impl Fn(usize) -> String) -> String {
        places.iter().map(|p| each(*p)).collect::<Vec<_>>().join(", ")
    }

    fn rows(&self, ordinality: &str, number: &str) -> Result<String> {
        let mut parameters = Vec::new();
        let mut names = Vec::new();
        for place in 0..self.shape.sent.len() {
            parameters.push(format!("${}::{}[]", place + 1, self.shape.wire(place, self.column(place))?.sql_type()));
            names.push(format!("c{}", place + 1));
        }
        Ok(format!("unnest({}){ordinality} AS s({}{number})", parameters.join(", "), names.join(", ")))
    }

    fn same_key(&self) -> String {
        let pairs: Vec<String> =
            (0..self.shape.key).map(|place| format!("t.{} = {}", self.name(place), self.value(place))).collect();
        pairs.join(" AND ")
    }

    fn insert(&self, rest: &str) -> Result<String> {
        Ok(format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}{rest}",
            self.table(),
            self.list(&self.shape.insert, |p| self.name(p)),
            self.list(&self.shape.insert, |p| self.value(p)),
            self.rows("", "")?,
        ))
    }

    fn on_conflict(&self) -> String {
        let key: Vec<usize> = (0..self.shape.key).collect();
        let key = self.list(&key, |p| self.name(p));
        match self.shape.set.is_empty() {
            true => format!(" ON CONFLICT ({key}) DO NOTHING"),
            false => {
                let set = self.list(&self.shape.set, |p| format!("{0} = EXCLUDED.{0}", self.name(p)));
                format!(" ON CONFLICT ({key}) DO UPDATE SET {set}")
            }
        }
    }

    fn if_missing(&self) -> String {
        format!(" WHERE NOT EXISTS (SELECT FROM {} WHERE {})", self.table(), self.same_key())
    }

    fn update(&self) -> Result<String> {
        let set = self.list(&self.shape.set, |p| match self.shape.added.contains(&p) {
            true => format!("{0} = COALESCE(t.{0}, 0) + {1}", self.name(p), self.value(p)),
            false => format!("{} = {}", self.name(p), self.value(p)),
        });
        Ok(format!("UPDATE {} SET {set} FROM {} WHERE {}", self.table(), self.rows("", "")?, self.same_key()))
    }

    fn delete(&self) -> Result<String> {
        if self.shape.key == 1 {
            let array = format!("$1::{}[]", Wire::of(self.column(0))?.sql_type());
            let array = cast(self.column(0)).map_or(array.clone(), |ty| format!("{array}::{ty}[]"));
            return Ok(format!("DELETE FROM {} WHERE t.{} = ANY ({array})", self.table(), self.name(0)));
        }
        Ok(format!("DELETE FROM {} USING {} WHERE {}", self.table(), self.rows("", "")?, self.same_key()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::sql::fixture::{contacts, lines};

    fn texts(binding: &Binding, carried: u128, what: Write, form: Form) -> String {
        let shape = if what == Write::Delete { Shape::key(binding) } else { Shape::of(binding, carried, 0) };
        write(binding, &shape, what, form).unwrap().join(";\n")
    }

    #[test]
    fn whole_rows_are_proposed_and_existing_ones_updated_by_the_key() {
        insta::assert_snapshot!(texts(&contacts(), u128::MAX, Write::Upsert, Form::Propose), @r##"INSERT INTO "public"."Kontakte" AS t ("id", "firstName", "order", "od""d`größe") OVERRIDING SYSTEM VALUE SELECT s.c1, s.c2, s.c3::numeric, s.c4::jsonb FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) AS s(c1, c2, c3, c4) ON CONFLICT ("id") DO UPDATE SET "firstName" = EXCLUDED."firstName", "order" = EXCLUDED."order", "od""d`größe" = EXCLUDED."od""d`größe""##);
        insta::assert_snapshot!(texts(&contacts(), 1, Write::Upsert, Form::Propose), @r##"INSERT INTO "public"."Kontakte" AS t ("id") OVERRIDING SYSTEM VALUE SELECT s.c1 FROM unnest($1::bigint[]) AS s(c1) ON CONFLICT ("id") DO NOTHING"##);
    }

    #[test]
    fn parts_of_rows_are_updated_and_what_is_missing_inserted() {
        insta::assert_snapshot!(texts(&contacts(), 0b0101, Write::Upsert, Form::UpdateThenInsert), @r##"
UPDATE "public"."Kontakte" AS t SET "order" = s.c2::numeric FROM unnest($1::bigint[], $2::text[]) AS s(c1, c2) WHERE t."id" = s.c1;
INSERT INTO "public"."Kontakte" AS t ("id", "order") OVERRIDING SYSTEM VALUE SELECT s.c1, s.c2::numeric FROM unnest($1::bigint[], $2::text[]) AS s(c1, c2) WHERE NOT EXISTS (SELECT FROM "public"."Kontakte" AS t WHERE t."id" = s.c1)
"##);
        insta::assert_snapshot!(texts(&lines(), u128::MAX, Write::Upsert, Form::UpdateThenInsert), @r##"
UPDATE "shop"."lines" AS t SET "mood" = s.c3::app."Mood" FROM unnest($1::text[], $2::text[], $3::text[]) AS s(c1, c2, c3) WHERE t."land" = s.c1::bpchar AND t."price" = s.c2::numeric;
INSERT INTO "shop"."lines" AS t ("land", "price", "mood") OVERRIDING SYSTEM VALUE SELECT s.c1::bpchar, s.c2::numeric, s.c3::app."Mood" FROM unnest($1::text[], $2::text[], $3::text[]) AS s(c1, c2, c3) WHERE NOT EXISTS (SELECT FROM "shop"."lines" AS t WHERE t."land" = s.c1::bpchar AND t."price" = s.c2::numeric)
"##);
    }

    #[test]
    fn differences_are_added_as_numbers_of_any_size() {
        let shape = Shape::of(&contacts(), 0b0100, 0b0100);
        let text = write(&contacts(), &shape, Write::Upsert, Form::UpdateThenInsert).unwrap().join(";\n");
        insta::assert_snapshot!(text, @r##"
UPDATE "public"."Kontakte" AS t SET "order" = COALESCE(t."order", 0) + s.c2::numeric FROM unnest($1::bigint[], $2::text[]) AS s(c1, c2) WHERE t."id" = s.c1;
INSERT INTO "public"."Kontakte" AS t ("id", "order") OVERRIDING SYSTEM VALUE SELECT s.c1, s.c2::numeric FROM unnest($1::bigint[], $2::text[]) AS s(c1, c2) WHERE NOT EXISTS (SELECT FROM "public"."Kontakte" AS t WHERE t."id" = s.c1)
"##);
    }

    #[test]
    fn deletes_name_the_key_alone() {
        insta::assert_snapshot!(texts(&contacts(), 0, Write::Delete, Form::Propose), @r##"DELETE FROM "public"."Kontakte" AS t WHERE t."id" = ANY ($1::bigint[])"##);
        insta::assert_snapshot!(texts(&lines(), 0, Write::Delete, Form::Propose), @r##"DELETE FROM "shop"."lines" AS t USING unnest($1::text[], $2::text[]) AS s(c1, c2) WHERE t."land" = s.c1::bpchar AND t."price" = s.c2::numeric"##);
    }

    #[test]
    fn reads_lock_and_number_what_they_find() {
        insta::assert_snapshot!(read(&lines(), &Shape::key(&lines()), true).unwrap(), @r##"SELECT s.n, t."land"::text, t."price"::text, t."mood"::text FROM "shop"."lines" AS t JOIN unnest($1::text[], $2::text[]) WITH ORDINALITY AS s(c1, c2, n) ON t."land" = s.c1::bpchar AND t."price" = s.c2::numeric FOR UPDATE OF t"##);
    }
}
