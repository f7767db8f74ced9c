//! Columns that hold less than those they get values from. What does not fit is set aside when it
//! comes, never cut or rounded; better that somebody knows before.

use super::keys::by_owner;
use super::{Draft, DraftColumn, Resolver, ddl};
use crate::catalog::{Column, ColumnType, DecimalLimits};
use crate::config::{Engine, EntityConfig};

/// A text column of MySQL that takes so many bytes is as good as unlimited.
const ROOMY: u64 = 65_535;

/// What a column lacks beside another one.
struct Lack {
    what: String,
    /// That mends it; `None` where its engine has no such type.
    ty: Option<String>,
    /// Two keys could become one.
    precision: bool,
}

impl Resolver<'_> {
    pub(super) fn narrower(&mut self, entity: &EntityConfig, drafts: &[Draft<'_>]) {
        for draft in drafts.iter().filter(|draft| draft.config.role.receives()) {
            for own in draft.columns.iter().filter(|own| is_plain(own)) {
                let mut sources = drafts
                    .iter()
                    .filter(|other| other.config.system != draft.config.system && other.config.role.captures())
                    .flat_map(|other| {
                        other.columns.iter().filter(|c| c.field == own.field && is_plain(c)).map(move |c| (other, c))
                    });
                let in_key = entity.key.contains(&own.field);
                self.one_column(entity, draft, own.column, in_key, &mut sources);
            }
        }
    }

    fn one_column<'d>(
        &mut self,
        entity: &EntityConfig,
        draft: &Draft<'_>,
        own: &Column,
        in_key: bool,
        sources: &mut dyn Iterator<Item = (&'d Draft<'d>, &'d DraftColumn<'d>)>,
    ) {
        let engine = self.engine(draft.config.system);
        let (mut lacking, mut refusing_null) = (None, None);
        for (other, column) in sources {
            let name = self.system(other.config.system);
            if lacking.is_none() {
                lacking = lack(engine, own, column.column).map(|lack| (lack, name, column.column));
            }
            if refusing_null.is_none() && column.column.nullable && !own.nullable && !in_key {
                refusing_null = Some(name);
            }
        }
        if let Some((lack, system, source)) = lacking {
            let what = format!(
                "column {:?} ({}) {} than {:?} in {system} ({}): what does not fit is set aside",
                own.name, own.type_name, lack.what, source.name, source.type_name
            );
            let mend = match &lack.ty {
                Some(ty) => by_owner(&ddl::of_type(engine, draft.table, own, ty)),
                None => "-- no type of this server holds all of them".to_owned(),
            };
            match in_key && lack.precision {
                true => self.error(entity, draft.config, format!("key {what}"), mend),
                false => self.warning(entity, draft.config, what, mend),
            }
        }
        if let Some(system) = refusing_null {
            let what =
                format!("column {:?} is NOT NULL and may be NULL in {system}: such rows are set aside", own.name);
            self.warning(entity, draft.config, what, by_owner(&ddl::nullable(engine, draft.table, own)));
        }
    }
}

fn is_plain(bound: &DraftColumn<'_>) -> bool {
    bound.format.is_none() && bound.values.is_none()
}

fn lack(engine: Engine, own: &Column, source: &Column) -> Option<Lack> {
    let says = |what: &str, ty: Option<String>, precision: bool| Some(Lack { what: what.to_owned(), ty, precision });
    let widened = || ddl::type_for(engine, &source.ty);
    match (&own.ty, &source.ty) {
        (ColumnType::Int { .. }, ColumnType::Int { .. }) => {
            let (low, high) = range(&own.ty)?;
            let (from, to) = range(&source.ty)?;
            // Of both, the range that holds all: never less than it was.
            let ty = if from < low && to < high { Some("bigint".to_owned()) } else { widened() };
            if from < low || to > high { says("has a smaller range", ty, false) } else { None }
        }
        (ColumnType::Int { .. }, ColumnType::Decimal { limits }) if limits.is_none_or(|limits| limits.scale > 0) => {
            says("holds no fractions, other", widened(), true)
        }
        (ColumnType::Decimal { limits: Some(own) }, ColumnType::Decimal { limits }) => decimal(engine, *own, *limits),
        (ColumnType::Float32, ColumnType::Float64) => says("is less precise", widened(), true),
        (
            ColumnType::Time { digits } | ColumnType::DateTime { digits } | ColumnType::Timestamp { digits },
            ColumnType::Time { digits: theirs }
            | ColumnType::DateTime { digits: theirs }
            | ColumnType::Timestamp { digits: theirs },
        ) if digits < theirs => says("has fewer digits of a second", Some(with_digits(&own.type_name, *theirs)), true),
        (ColumnType::Bytes { .. }, ColumnType::Bytes { .. })
        | (ColumnType::Text { .. } | ColumnType::Char { .. }, _) => {
            let limit = length(&own.ty)?;
            let longer = match &source.ty {
                ColumnType::Text { .. } | ColumnType::Char { .. } | ColumnType::Bytes { .. } => {
                    length(&source.ty).is_none_or(|theirs| theirs > limit)
                }
                _ => false,
            };
            if longer { says("is shorter", widened(), false) } else { None }
        }
        (ColumnType::Enum { labels }, ColumnType::Enum { labels: theirs })
        | (ColumnType::Set { labels }, ColumnType::Set { labels: theirs }) => {
            let name = if matches!(own.ty, ColumnType::Set { .. }) { "set" } else { "enum" };
            let missing: Vec<&String> = theirs.iter().filter(|label| !labels.contains(label)).collect();
            let all: Vec<String> =
                labels.iter().chain(missing.iter().copied()).map(|l| format!("'{}'", l.replace('\'', "''"))).collect();
            let ty = (engine == Engine::Mysql).then(|| format!("{name}({})", all.join(",")));
            if missing.is_empty() { None } else { says("has fewer labels", ty, false) }
        }
        _ => None,
    }
}

fn range(ty: &ColumnType) -> Option<(i128, i128)> {
    let ColumnType::Int { bytes, signed } = ty else { return None };
    let bits = u32::from(*bytes) * 8;
    Some(match signed {
        true => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        false => (0, (1 << bits) - 1),
    })
}

/// Characters or bytes; `None`: as many as anybody writes.
fn length(ty: &ColumnType) -> Option<u64> {
    match ty {
        ColumnType::Char { chars } | ColumnType::Text { chars: Some(chars), .. } => Some(u64::from(*chars)),
        ColumnType::Text { bytes: Some(bytes), .. } | ColumnType::Bytes { bytes: Some(bytes) } if *bytes < ROOMY => {
            Some(*bytes)
        }
        _ => None,
    }
}

fn decimal(engine: Engine, own: DecimalLimits, source: Option<DecimalLimits>) -> Option<Lack> {
    // The most that MySQL and MariaDB have.
    let most = DecimalLimits { precision: 65, scale: 30 };
    let whole = |limits: DecimalLimits| limits.precision.saturating_sub(limits.scale);
    let Some(source) = source else {
        let ty = Some(ddl::type_for(engine, &ColumnType::Decimal { limits: None })?);
        return (own != most).then(|| Lack { what: "holds fewer digits".into(), ty, precision: true });
    };
    if whole(own) >= whole(source) && own.scale >= source.scale {
        return None;
    }
    let scale = own.scale.max(source.scale);
    let precision = whole(own).max(whole(source)) + scale;
    let fits = engine == Engine::Postgres || (precision <= most.precision && scale <= most.scale);
    let ty =
        fits.then(|| ddl::type_for(engine, &ColumnType::Decimal { limits: Some(DecimalLimits { precision, scale }) }));
    Some(Lack { what: "holds fewer digits".into(), ty: ty.flatten(), precision: own.scale < source.scale })
}

/// datetime → datetime(6), timestamp(0) with time zone → timestamp(6) with time zone
fn with_digits(type_name: &str, digits: u8) -> String {
    let end = type_name.find(['(', ' ']).unwrap_or(type_name.len());
    let rest = type_name.find(' ').map_or("", |space| &type_name[space..]);
    format!("{}({digits}){rest}", &type_name[..end])
}
