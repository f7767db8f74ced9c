//! `where`: which rows belong to a binding, decided by the agent the same way for capture and
//! for apply, whatever the collations and casts of the databases on both ends.
//!
//! SQL text, parsed by a library, over canonical fields; compiled once against their kinds,
//! evaluated with SQL's three-valued logic. Text compares byte by byte.

use std::cmp::Ordering;
use std::sync::Arc;

use sqlparser::ast::{BinaryOperator, Expr, Spanned, UnaryOperator, Value as SqlValue};
use sqlparser::dialect::GenericDialect;
use sqlparser::parser::Parser;
use sqlparser::tokenizer::Token;

use super::typed::{hex, typed};
use crate::config::nearest;
use crate::schema::EntitySchema;
use crate::value::{Datum, Kind, Value};

/// A compiled predicate. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Filter {
    node: Arc<Node>,
    fields: Arc<[usize]>,
}

impl Filter {
    /// `Err` completes "where …": what is not understood, and at which character.
    pub fn compile(text: &str, entity: &EntitySchema) -> Result<Filter, String> {
        let expr = parse(text)?;
        let mut compiler = Compiler { entity, fields: Vec::new() };
        let node = Arc::new(compiler.condition(&expr)?);
        compiler.fields.sort_unstable();
        compiler.fields.dedup();
        Ok(Filter { node, fields: compiler.fields.into() })
    }

    /// Whether the text is a predicate at all, before anything is known of fields.
    pub fn check_syntax(text: &str) -> Result<(), String> {
        parse(text).map(drop)
    }

    /// `None` is SQL's unknown; a row belongs to the binding where it is `Some(true)`. `row`
    /// has one datum per field. A field that is not sent counts as unknown like NULL: ask
    /// [`Self::fields`] first where images may be incomplete.
    pub fn matches(&self, row: &[Datum<'_>]) -> Option<bool> {
        self.node.eval(row)
    }

    /// The fields that the verdict depends on.
    pub fn fields(&self) -> &[usize] {
        &self.fields
    }
}

fn parse(text: &str) -> Result<Expr, String> {
    let said = |error: sqlparser::parser::ParserError| error.to_string().replace("sql parser error: ", "");
    let mut parser = Parser::new(&GenericDialect {}).try_with_sql(text).map_err(said)?;
    let expr = parser.parse_expr().map_err(said)?;
    let next = parser.peek_token();
    match next.token {
        Token::EOF => Ok(expr),
        other => Err(format!(
            "has {:?} behind its end{}",
            other.to_string(),
            at(next.span.start.line, next.span.start.column)
        )),
    }
}

fn at(line: u64, column: u64) -> String {
    match (line, column) {
        (0, _) => String::new(),
        (1, column) => format!(" at character {column}"),
        (line, column) => format!(" at line {line}, character {column}"),
    }
}

fn place(expr: &Expr) -> String {
    let start = expr.span().start;
    at(start.line, start.column)
}

#[derive(Debug)]
enum Node {
    Known(Option<bool>),
    /// A boolean field standing alone.
    Field(usize),
    Not(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Compare(usize, Comparison, Operand),
    /// The flag: the list holds a NULL.
    In(usize, Vec<Operand>, bool),
    Like(usize, Vec<Wild>),
    IsNull(usize),
    /// IS [NOT] TRUE and FALSE: never unknown.
    Is(Box<Node>, bool),
}

#[derive(Debug, Clone, Copy)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Comparison::Equal => ordering.is_eq(),
            Comparison::NotEqual => ordering.is_ne(),
            Comparison::Less => ordering.is_lt(),
            Comparison::LessOrEqual => ordering.is_le(),
            Comparison::Greater => ordering.is_gt(),
            Comparison::GreaterOrEqual => ordering.is_ge(),
        }
    }

    /// For `5 < field` read as `field > 5`.
    fn mirrored(self) -> Comparison {
        match self {
            Comparison::Equal | Comparison::NotEqual => self,
            Comparison::Less => Comparison::Greater,
            Comparison::LessOrEqual => Comparison::GreaterOrEqual,
            Comparison::Greater => Comparison::Less,
            Comparison::GreaterOrEqual => Comparison::LessOrEqual,
        }
    }
}

/// What a field is compared with.
#[derive(Debug)]
enum Operand {
    Field(usize),
    /// Numbers without payload on the heap, dates, uuids, booleans.
    Fixed(Value<'static>),
    Text(String),
    Decimal(String),
    Bytes(Vec<u8>),
    Null,
}

impl Operand {
    fn value<'a>(&'a self, row: &[Datum<'a>]) -> Option<Value<'a>> {
        match self {
            Operand::Field(field) => row.get(*field).copied().and_then(Datum::value),
            Operand::Fixed(value) => Some(*value),
            Operand::Text(text) => Some(Value::Text(text)),
            Operand::Decimal(text) => Some(Value::Decimal(text)),
            Operand::Bytes(bytes) => Some(Value::Bytes(bytes)),
            Operand::Null => None,
        }
    }
}

#[derive(Debug)]
enum Wild {
    Any,
    One,
    Char(char),
}

impl Node {
    fn eval(&self, row: &[Datum<'_>]) -> Option<bool> {
        let field = |index: &usize| row.get(*index).copied().and_then(Datum::value);
        match self {
            Node::Known(verdict) => *verdict,
            Node::Field(index) => match field(index)? {
                Value::Bool(flag) => Some(flag),
                _ => None,
            },
            Node::Not(node) => node.eval(row).map(|verdict| !verdict),
            Node::And(left, right) => match (left.eval(row), right.eval(row)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            },
            Node::Or(left, right) => match (left.eval(row), right.eval(row)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            },
            Node::Compare(index, comparison, operand) => {
                compare(field(index)?, operand.value(row)?).map(|ordering| comparison.holds(ordering))
            }
            Node::In(index, list, has_null) => {
                let value = field(index)?;
                let found = list.iter().any(|o| o.value(row).and_then(|o| compare(value, o)) == Some(Ordering::Equal));
                if found || !has_null { Some(found) } else { None }
            }
            Node::Like(index, pattern) => match field(index)? {
                Value::Text(text) => Some(like(text, pattern)),
                _ => None,
            },
            Node::IsNull(index) => Some(matches!(row.get(*index), Some(Datum::Null))),
            Node::Is(node, wanted) => Some(node.eval(row) == Some(*wanted)),
        }
    }
}

/// Values of one kind in order; `None` where they are of different ones.
fn compare(a: Value<'_>, b: Value<'_>) -> Option<Ordering> {
    Some(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => a.cmp(&b),
        (Value::Int(a), Value::Int(b)) => a.cmp(&b),
        (Value::UInt(a), Value::UInt(b)) => a.cmp(&b),
        (Value::Int(_), Value::UInt(_)) => Ordering::Less,
        (Value::UInt(_), Value::Int(_)) => Ordering::Greater,
        (Value::Decimal(a), Value::Decimal(b)) => decimal_cmp(a, b),
        (Value::Float32(a), Value::Float32(b)) => float_cmp(a.into(), b.into()),
        (Value::Float64(a), Value::Float64(b)) => float_cmp(a, b),
        (Value::Text(a), Value::Text(b)) => a.cmp(b),
        (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
        (Value::Date(a), Value::Date(b)) => a.cmp(&b),
        (Value::Time(a), Value::Time(b))
        | (Value::DateTime(a), Value::DateTime(b))
        | (Value::Timestamp(a), Value::Timestamp(b)) => a.cmp(&b),
        (Value::Uuid(a), Value::Uuid(b)) => a.cmp(&b),
        (Value::Bits(a), Value::Bits(b)) => a.cmp(b),
        _ => return None,
    })
}

/// NaN equals itself and is above everything, as in PostgreSQL.
fn float_cmp(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// NaN is above everything, as in PostgreSQL.
fn decimal_cmp(a: &str, b: &str) -> Ordering {
    let rank = |text: &str| match text {
        "-Infinity" => -1,
        "Infinity" => 1,
        "NaN" => 2,
        _ => 0,
    };
    if (rank(a), rank(b)) != (0, 0) {
        return rank(a).cmp(&rank(b));
    }
    fn parts(text: &str) -> (bool, &str, &str) {
        let digits = text.trim_start_matches(['-', '+']);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        (text.starts_with('-') && !(whole.is_empty() && fraction.is_empty()), whole, fraction)
    }
    let ((a_negative, a_whole, a_fraction), (b_negative, b_whole, b_fraction)) = (parts(a), parts(b));
    let size = a_whole.len().cmp(&b_whole.len()).then(a_whole.cmp(b_whole)).then(a_fraction.cmp(b_fraction));
    match (a_negative, b_negative) {
        (false, false) => size,
        (true, true) => size.reverse(),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
    }
}

/// Greedy with one way back: the last `%` takes one character more.
fn like(text: &str, pattern: &[Wild]) -> bool {
    let (mut rest, mut at) = (text, 0);
    let mut retry: Option<(&str, usize)> = None;
    loop {
        let mut chars = rest.chars();
        match (pattern.get(at), chars.next()) {
            (None, None) => return true,
            (Some(Wild::Any), _) => {
                at += 1;
                retry = Some((rest, at));
                continue;
            }
            (Some(Wild::One), Some(_)) => (rest, at) = (chars.as_str(), at + 1),
            (Some(Wild::Char(wanted)), Some(c)) if *wanted == c => (rest, at) = (chars.as_str(), at + 1),
            _ => {
                let Some((from, after)) = retry else { return false };
                let mut chars = from.chars();
                if chars.next().is_none() {
                    return false;
                }
                (rest, at) = (chars.as_str(), after);
                retry = Some((rest, after));
            }
        }
    }
}

struct Compiler<'e> {
    entity: &'e EntitySchema,
    fields: Vec<usize>,
}

impl Compiler<'_> {
    fn condition(&mut self, expr: &Expr) -> Result<Node, String> {
        let both = |this: &mut Self, left: &Expr, right: &Expr| {
            Ok::<_, String>((Box::new(this.condition(left)?), Box::new(this.condition(right)?)))
        };
        Ok(match expr {
            Expr::Nested(inner) => self.condition(inner)?,
            Expr::UnaryOp { op: UnaryOperator::Not, expr } => Node::Not(Box::new(self.condition(expr)?)),
            Expr::BinaryOp { left, op: BinaryOperator::And, right } => {
                let (left, right) = both(self, left, right)?;
                Node::And(left, right)
            }
            Expr::BinaryOp { left, op: BinaryOperator::Or, right } => {
                let (left, right) = both(self, left, right)?;
                Node::Or(left, right)
            }
            Expr::BinaryOp { left, op, right } => match comparison(op) {
                Some(comparison) => self.comparison(left, comparison, right, expr)?,
                None => return Err(format!("does not know the operator {op}{}", place(expr))),
            },
            Expr::Between { expr, negated, low, high } => {
                let low = self.comparison(expr, Comparison::GreaterOrEqual, low, expr)?;
                let high = self.comparison(expr, Comparison::LessOrEqual, high, expr)?;
                negate(Node::And(Box::new(low), Box::new(high)), *negated)
            }
            Expr::InList { expr, list, negated } => {
                let field = self.needs_field(expr)?;
                let operands = list.iter().map(|item| self.operand(field, item)).collect::<Result<Vec<_>, _>>()?;
                let has_null = operands.iter().any(|o| matches!(o, Operand::Null));
                negate(Node::In(field, operands, has_null), *negated)
            }
            Expr::Like { negated, any: false, expr, pattern, escape_char } => {
                let like = self.like(expr, pattern, escape_char.as_deref())?;
                negate(like, *negated)
            }
            Expr::IsNull(inner) => Node::IsNull(self.needs_field(inner)?),
            Expr::IsNotNull(inner) => Node::Not(Box::new(Node::IsNull(self.needs_field(inner)?))),
            Expr::IsTrue(inner) => Node::Is(Box::new(self.condition(inner)?), true),
            Expr::IsFalse(inner) => Node::Is(Box::new(self.condition(inner)?), false),
            Expr::IsNotTrue(inner) => Node::Not(Box::new(Node::Is(Box::new(self.condition(inner)?), true))),
            Expr::IsNotFalse(inner) => Node::Not(Box::new(Node::Is(Box::new(self.condition(inner)?), false))),
            Expr::Value(value) => match &value.value {
                SqlValue::Boolean(flag) => Node::Known(Some(*flag)),
                SqlValue::Null => Node::Known(None),
                _ => return Err(format!("has {expr} where a condition is expected{}", place(expr))),
            },
            Expr::Identifier(_) => {
                let field = self.needs_field(expr)?;
                if self.entity.fields[field].kind != Kind::Bool {
                    return Err(format!("has {expr} alone, which is no bool{}", place(expr)));
                }
                Node::Field(field)
            }
            _ => return Err(format!("does not know {expr}{}", place(expr))),
        })
    }

    fn comparison(&mut self, left: &Expr, comparison: Comparison, right: &Expr, whole: &Expr) -> Result<Node, String> {
        if let Some(field) = self.field(left)? {
            return Ok(Node::Compare(field, comparison, self.operand(field, right)?));
        }
        match self.field(right)? {
            Some(field) => Ok(Node::Compare(field, comparison.mirrored(), self.operand(field, left)?)),
            None => Err(format!("compares no field in {whole}{}", place(whole))),
        }
    }

    fn like(&mut self, expr: &Expr, pattern: &Expr, escape: Option<&Expr>) -> Result<Node, String> {
        let field = self.needs_field(expr)?;
        if self.entity.fields[field].kind != Kind::Text {
            return Err(format!("has {expr} before LIKE, which is no text{}", place(expr)));
        }
        let text = string(pattern).ok_or_else(|| format!("needs a string behind LIKE{}", place(pattern)))?;
        let escape = match escape {
            None => Some('\\'),
            Some(expr) => {
                let text = string(expr).filter(|text| text.chars().count() <= 1);
                text.ok_or_else(|| format!("needs one character behind ESCAPE{}", place(expr)))?.chars().next()
            }
        };
        let mut wild = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            wild.push(match c {
                c if Some(c) == escape => Wild::Char(
                    chars
                        .next()
                        .ok_or_else(|| format!("has a LIKE pattern that ends with its escape{}", place(pattern)))?,
                ),
                '%' => Wild::Any,
                '_' => Wild::One,
                c => Wild::Char(c),
            });
        }
        Ok(Node::Like(field, wild))
    }

    fn needs_field(&mut self, expr: &Expr) -> Result<usize, String> {
        let field = self.field(expr)?;
        field.ok_or_else(|| format!("needs a field instead of {expr}{}", place(expr)))
    }

    fn field(&mut self, expr: &Expr) -> Result<Option<usize>, String> {
        let name = match expr {
            Expr::Nested(inner) => return self.field(inner),
            Expr::Identifier(name) => &name.value,
            Expr::CompoundIdentifier(_) => {
                return Err(format!("has {expr}; fields are named without a table{}", place(expr)));
            }
            _ => return Ok(None),
        };
        let Some(field) = self.entity.field(name) else {
            let near = nearest(name, self.entity.fields.iter().map(|f| f.name.as_str()));
            let way_out = near.map_or_else(String::new, |near| format!("; nearest: {near:?}"));
            return Err(format!("names the unknown field {name:?}{}{way_out}", place(expr)));
        };
        self.fields.push(field);
        Ok(Some(field))
    }

    /// A literal read as the kind of `field`, or another field of that kind.
    fn operand(&mut self, field: usize, expr: &Expr) -> Result<Operand, String> {
        let (kind, name) = (self.entity.fields[field].kind, &self.entity.fields[field].name);
        let wrong = || format!("compares {name:?}, which is of type {}, with {expr}{}", kind.name(), place(expr));
        if let Some(other) = self.field(expr)? {
            return if self.entity.fields[other].kind == kind && !matches!(kind, Kind::Json | Kind::Array) {
                Ok(Operand::Field(other))
            } else {
                Err(wrong())
            };
        }
        literal(kind, expr).ok_or_else(wrong)
    }
}

fn negate(node: Node, negated: bool) -> Node {
    if negated { Node::Not(Box::new(node)) } else { node }
}

fn comparison(op: &BinaryOperator) -> Option<Comparison> {
    Some(match op {
        BinaryOperator::Eq => Comparison::Equal,
        BinaryOperator::NotEq => Comparison::NotEqual,
        BinaryOperator::Lt => Comparison::Less,
        BinaryOperator::LtEq => Comparison::LessOrEqual,
        BinaryOperator::Gt => Comparison::Greater,
        BinaryOperator::GtEq => Comparison::GreaterOrEqual,
        _ => return None,
    })
}

/// The text of `'…'`, also behind DATE, TIME or TIMESTAMP.
fn string(expr: &Expr) -> Option<&str> {
    let value = match expr {
        Expr::Nested(inner) => return string(inner),
        Expr::Value(value) => &value.value,
        Expr::TypedString(typed) => &typed.value.value,
        _ => return None,
    };
    match value {
        SqlValue::SingleQuotedString(text) => Some(text),
        _ => None,
    }
}

fn number(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Nested(inner) => number(inner),
        Expr::UnaryOp { op: UnaryOperator::Minus, expr } => number(expr).map(|n| format!("-{n}")),
        Expr::UnaryOp { op: UnaryOperator::Plus, expr } => number(expr),
        Expr::Value(value) => match &value.value {
            SqlValue::Number(text, _) => Some(text.clone()),
            _ => None,
        },
        _ => None,
    }
}

fn literal(kind: Kind, expr: &Expr) -> Option<Operand> {
    if let Expr::Value(value) = expr {
        match (&value.value, kind) {
            (SqlValue::Null, _) => return Some(Operand::Null),
            (SqlValue::Boolean(flag), Kind::Bool) => return Some(Operand::Fixed(Value::Bool(*flag))),
            (SqlValue::HexStringLiteral(text), Kind::Bytes) => return hex(text).map(Operand::Bytes),
            _ => {}
        }
    }
    let given = number(expr);
    let text = given.as_deref().or_else(|| string(expr))?;
    if given.is_some() && !matches!(kind, Kind::Bool | Kind::Int | Kind::Decimal | Kind::Float32 | Kind::Float64) {
        return None;
    }
    let mut bytes = Vec::new();
    Some(match typed(text, kind, &mut bytes)? {
        Value::Text(text) => Operand::Text(text.to_owned()),
        Value::Decimal(text) => Operand::Decimal(text.to_owned()),
        Value::Bool(flag) => Operand::Fixed(Value::Bool(flag)),
        Value::Int(n) => Operand::Fixed(Value::Int(n)),
        Value::UInt(n) => Operand::Fixed(Value::UInt(n)),
        Value::Float32(n) => Operand::Fixed(Value::Float32(n)),
        Value::Float64(n) => Operand::Fixed(Value::Float64(n)),
        Value::Uuid(uuid) => Operand::Fixed(Value::Uuid(uuid)),
        Value::Date(days) => Operand::Fixed(Value::Date(days)),
        Value::Time(micros) => Operand::Fixed(Value::Time(micros)),
        Value::DateTime(micros) => Operand::Fixed(Value::DateTime(micros)),
        Value::Timestamp(micros) => Operand::Fixed(Value::Timestamp(micros)),
        Value::Bytes(_) | Value::Json(_) | Value::Bits(_) | Value::Array(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Field;

    fn entity() -> EntitySchema {
        let field = |name: &str, kind| Field { name: name.into(), kind };
        let fields = vec![
            field("id", Kind::Int),
            field("country", Kind::Text),
            field("price", Kind::Decimal),
            field("active", Kind::Bool),
            field("day", Kind::Date),
            field("seen", Kind::Timestamp),
            field("uuid", Kind::Uuid),
            field("other", Kind::Int),
            field("Straße", Kind::Text),
            field("ratio", Kind::Float32),
            field("at", Kind::DateTime),
            field("data", Kind::Bytes),
        ];
        EntitySchema::new("contact", fields, 1)
    }

    fn verdict(text: &str) -> Option<bool> {
        let seen = 1_709_209_800_000_000; // 2024-02-29 12:30 UTC
        let row = [
            Datum::Value(Value::Int(7)),
            Datum::Value(Value::Text("DE")),
            Datum::Value(Value::Decimal("12.50")),
            Datum::Value(Value::Bool(true)),
            Datum::Value(Value::Date(19_782)), // 2024-02-29
            Datum::Value(Value::Timestamp(seen)),
            Datum::Value(Value::Uuid([0x11; 16])),
            Datum::Null,
            Datum::Value(Value::Text("50% off_now")),
            Datum::Value(Value::Float32(0.1)),
            Datum::Value(Value::DateTime(seen)),
            Datum::Value(Value::Bytes(&[0, 255])),
        ];
        Filter::compile(text, &entity()).unwrap_or_else(|e| panic!("{text}: {e}")).matches(&row)
    }

    #[test]
    fn what_matches_matches() {
        for text in [
            "country = 'DE'",
            "'DE' = country",
            "country <> 'de'",
            "id in (1, 7)",
            "id not in (1, 2)",
            "id between 7 and 8 and not id between 8 and 9",
            "5 < id",
            "id >= -7",
            "price = 12.5 and price < 100 and price > 9.99 and price > -20",
            "active",
            "active = true and not (active = 0)",
            "day = '2024-02-29' and day > DATE '2023-12-31'",
            "seen = '2024-02-29 12:30' and seen = '2024-02-29T13:30:00.000+01:00' and seen < '2024-02-29 12:30:00.1Z'",
            "at >= '2024-02-29'",
            "uuid = '11111111-1111-1111-1111-111111111111'",
            "data = X'00FF'",
            "ratio = 0.1",
            "other is null and id is not null",
            "id <> 8 or other = 1",
            "\"Straße\" like '50\\%%off!_now' escape '!' or \"Straße\" like '50\\% off_now'",
            "\"Straße\" like '%off%' and \"Straße\" not like '%OFF%' and country like 'D_'",
            "country like '%' and country like '%%E' and not country like '_'",
            "(other > 1) is not true",
        ] {
            assert_eq!(verdict(text), Some(true), "{text}");
        }
    }

    #[test]
    fn null_is_unknown_as_in_sql() {
        for text in ["other = 1", "other <> 1", "not other = 1", "other in (1)", "other = 1 or id = 8", "id = null"] {
            assert_eq!(verdict(text), None, "{text}");
        }
        assert_eq!(verdict("id in (1, null)"), None);
        assert_eq!(verdict("id not in (1, null)"), None);
        assert_eq!(verdict("id in (7, null)"), Some(true));
        assert_eq!(verdict("other = 1 and id = 8"), Some(false));
        assert_eq!(verdict("other = 1 or id = 7"), Some(true));
        assert_eq!(verdict("other between 1 and 2"), None);
        assert_eq!(verdict("id not between 1 and other"), None);
        assert_eq!(verdict("id not between 8 and other"), Some(true));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_its_place() {
        for (text, said) in [
            ("country ==", "Expected"),
            ("contry = 'DE'", "nearest: \"country\""),
            ("upper(country) = 'DE'", "compares no field"),
            ("id = 'seven'", "of type int"),
            ("id = 1.5", "of type int"),
            ("id = country", "of type int"),
            ("id + 1 = 8", "character"),
            ("id = 1; drop table x", "behind its end"),
            ("id in (select 1)", "does not know"),
            ("country ilike 'd%'", "does not know"),
            ("country", "no bool"),
            ("id like '7%'", "no text"),
            ("day = '2023-02-29'", "of type date"),
            ("c.country = 'DE'", "without a table"),
            ("1 = 1", "compares no field"),
            ("", "Expected"),
        ] {
            let error = Filter::compile(text, &entity()).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        let error = Filter::compile("id = 1 and contry = 'DE'", &entity()).unwrap_err();
        assert_eq!(error, "names the unknown field \"contry\" at character 12; nearest: \"country\"");
    }

    #[test]
    fn fields_are_those_that_the_verdict_depends_on() {
        let filter = Filter::compile("id = 7 or (country = 'DE' and other > id)", &entity()).unwrap();
        assert_eq!(filter.fields(), [0, 1, 7]);
    }

    #[test]
    fn decimals_compare_as_numbers() {
        for (a, b, expected) in [
            ("1.50", "1.5", Ordering::Equal),
            ("-0", "0.00", Ordering::Equal),
            ("10", "9", Ordering::Greater),
            ("-10", "-9", Ordering::Less),
            ("0.09", "0.1", Ordering::Less),
            ("-1", "1", Ordering::Less),
            ("1.05", "1.049", Ordering::Greater),
        ] {
            assert_eq!(decimal_cmp(a, b), expected, "{a} {b}");
        }
    }
}
