//! Marks of loads and resyncs.

use super::{Decoded, Decoder, LOAD, Malformed, RESYNC, put_bytes, put_i64, put_names, put_str, put_u64};
use crate::change::{LoadMark, LoadState, ResyncMark, ResyncState};

pub(super) fn put_load(out: &mut Vec<u8>, mark: &LoadMark) {
    out.push(LOAD);
    put_str(out, &mark.entity);
    put_str(out, &mark.system);
    put_str(out, &mark.authority);
    out.push(u8::from(mark.only_missing) | u8::from(mark.delete_extra) << 1);
    out.push(u8::from(mark.fresh));
    put_names(out, &mark.bound);
    put_names(out, &mark.settled);
    out.push(mark.state as u8);
    put_i64(out, mark.begun);
    out.extend_from_slice(&mark.schema.id.to_le_bytes());
    put_bytes(out, &mark.key);
    put_u64(out, mark.read);
    put_u64(out, mark.copied);
}

pub(super) fn put_resync(out: &mut Vec<u8>, mark: &ResyncMark) {
    out.push(RESYNC);
    put_str(out, &mark.system);
    out.push(mark.state as u8);
    put_i64(out, mark.begun);
    put_u64(out, mark.marker);
    put_u64(out, mark.head);
    out.push(u8::from(mark.causal));
    out.push(u8::from(mark.restored));
    out.push(u8::from(mark.delete_extra));
    put_str(out, &mark.reason);
    put_u64(out, mark.done.len() as u64);
    mark.done.iter().for_each(|entity| put_str(out, entity));
}

impl Decoder<'_> {
    pub(super) fn load(&mut self) -> Decoded<LoadMark> {
        let (entity, system, authority) = (self.name()?, self.name()?, self.name()?);
        let options = self.u8()?;
        if options > 3 {
            return Err(Malformed::Content("has a load with unknown options"));
        }
        Ok(LoadMark {
            entity,
            system,
            authority,
            only_missing: options & 1 != 0,
            delete_extra: options & 2 != 0,
            fresh: self.bool()?,
            bound: self.names()?,
            settled: self.names()?,
            state: match self.u8()? {
                0 => LoadState::Running,
                1 => LoadState::Done,
                2 => LoadState::Skipped,
                _ => return Err(Malformed::Content("has a load in an unknown state")),
            },
            begun: self.i64()?,
            schema: self.schema_ref()?,
            key: self.slice()?,
            read: self.u64()?,
            copied: self.u64()?,
        })
    }

    pub(super) fn resync(&mut self) -> Decoded<ResyncMark> {
        let mut mark = ResyncMark {
            system: self.name()?,
            state: match self.u8()? {
                0 => ResyncState::Needed,
                1 => ResyncState::Begun,
                2 => ResyncState::Placed,
                3 => ResyncState::Done,
                _ => return Err(Malformed::Content("has a resync in an unknown state")),
            },
            begun: self.i64()?,
            marker: self.u64()?,
            head: self.u64()?,
            causal: self.bool()?,
            restored: self.bool()?,
            delete_extra: self.bool()?,
            reason: self.str()?.to_owned(),
            done: Vec::new(),
        };
        for _ in 0..self.count()? {
            mark.done.push(self.name()?);
        }
        Ok(mark)
    }
}
