//! Conflicts, and how those that waited ended.

use super::{CONFLICT, Decoded, Decoder, Malformed, SETTLED, put_bytes, put_i64, put_str, put_u64};
use crate::change::{ConflictId, Conflicted, Images, Outcome, Rule, Settled, Settlement};

fn put_id(out: &mut Vec<u8>, id: ConflictId) {
    put_u64(out, id.seq);
    put_u64(out, id.index);
}

pub(super) fn put_conflict(out: &mut Vec<u8>, conflict: &Conflicted) {
    out.push(CONFLICT);
    put_id(out, conflict.id);
    put_str(out, &conflict.entity);
    out.extend_from_slice(&conflict.key_hash.to_le_bytes());
    put_str(out, &conflict.system);
    put_u64(out, conflict.against);
    put_str(out, conflict.against_system.as_deref().unwrap_or_default());
    out.push(conflict.rule as u8);
    out.push(conflict.outcome as u8);
    put_i64(out, conflict.at);
    out.push(u8::from(conflict.images.is_some()));
    if let Some(images) = &conflict.images {
        out.extend_from_slice(&images.schema.id.to_le_bytes());
        put_bytes(out, &images.change);
        put_bytes(out, &images.current);
        out.extend_from_slice(&images.fields.to_le_bytes());
    }
}

pub(super) fn put_settled(out: &mut Vec<u8>, settled: &Settled) {
    out.push(SETTLED);
    put_id(out, settled.id);
    out.push(settled.how as u8);
    put_u64(out, settled.by);
}

impl Decoder<'_> {
    fn conflict_id(&mut self) -> Decoded<ConflictId> {
        Ok(ConflictId { seq: self.u64()?, index: self.u64()? })
    }

    pub(super) fn conflict(&mut self) -> Decoded<Conflicted> {
        Ok(Conflicted {
            id: self.conflict_id()?,
            entity: self.name()?,
            key_hash: u128::from_le_bytes(self.array()?),
            system: self.name()?,
            against: self.u64()?,
            against_system: Some(self.name()?).filter(|name| !name.is_empty()),
            rule: {
                let rule = self.u8()?;
                let known = Rule::ALL.into_iter().find(|known| *known as u8 == rule);
                known.ok_or(Malformed::Content("has a conflict decided by an unknown rule"))?
            },
            outcome: {
                let outcome = self.u8()?;
                let known = Outcome::ALL.into_iter().find(|known| *known as u8 == outcome);
                known.ok_or(Malformed::Content("has a conflict of an unknown outcome"))?
            },
            at: self.i64()?,
            images: match self.bool()? {
                false => None,
                true => Some(Images {
                    schema: self.schema_ref()?,
                    change: self.slice()?,
                    current: self.slice()?,
                    fields: u128::from_le_bytes(self.array()?),
                }),
            },
        })
    }

    pub(super) fn settled(&mut self) -> Decoded<Settled> {
        Ok(Settled {
            id: self.conflict_id()?,
            how: match self.u8()? {
                1 => Settlement::Superseded,
                2 => Settlement::Resolved,
                _ => return Err(Malformed::Content("has a conflict that was settled in an unknown way")),
            },
            by: self.u64()?,
        })
    }
}
