//! Marks of loads and resyncs.

use super::{Decoded, Decoder, LOAD, Malformed, RESYNC, put_bytes, put_i64, put_names, put_str, put_u64};
use crate::change::{LoadMark, LoadState, ResyncMark, ResyncState};
use crate::load::{Classes, Counts};

/// Among a load's options: its mark tells all that was counted. Earlier ones ended behind the rows copied.
const COUNTED: u8 = 4;

pub(super) fn put_load(out: &mut Vec<u8>, mark: &LoadMark) {
    out.push(LOAD);
    put_str(out, &mark.entity);
    put_str(out, &mark.system);
    put_str(out, &mark.authority);
    out.push(u8::from(mark.only_missing) | u8::from(mark.delete_extra) << 1 | COUNTED);
    out.push(u8::from(mark.fresh));
    put_names(out, &mark.bound);
    put_names(out, &mark.settled);
    out.push(mark.state as u8);
    put_i64(out, mark.begun);
    out.extend_from_slice(&mark.schema.id.to_le_bytes());
    put_bytes(out, &mark.key);
    put_counts(out, &mark.counts);
    put_u64(out, mark.lost.len() as u64);
    mark.lost.iter().for_each(|key| put_bytes(out, key));
}

fn put_counts(out: &mut Vec<u8>, counts: &Counts) {
    let Counts { read, copied, lost, refused, deleted, systems } = counts;
    [read, copied, lost, refused, deleted].into_iter().for_each(|count| put_u64(out, *count));
    put_u64(out, systems.len() as u64);
    for (system, classes) in systems {
        let Classes { equal, different, missing, extra, held, fields, samples } = classes;
        put_str(out, system);
        [equal, different, missing, extra, held].into_iter().for_each(|count| put_u64(out, *count));
        put_u64(out, fields.len() as u64);
        for (field, rows) in fields {
            put_str(out, field);
            put_u64(out, *rows);
        }
        put_u64(out, samples.len() as u64);
        for (class, keys) in samples {
            put_str(out, class);
            put_u64(out, keys.len() as u64);
            keys.iter().for_each(|key| put_str(out, key));
        }
    }
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
        if options > 3 | COUNTED {
            return Err(Malformed::Content("has a load with unknown options"));
        }
        let mut mark = LoadMark {
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
            counts: Counts { read: self.u64()?, copied: self.u64()?, ..Counts::default() },
            lost: Vec::new(),
        };
        if options & COUNTED != 0 {
            self.counts(&mut mark.counts)?;
            for _ in 0..self.count()? {
                mark.lost.push(self.slice()?);
            }
        }
        Ok(mark)
    }

    /// What stands behind the rows read and copied.
    fn counts(&mut self, counts: &mut Counts) -> Decoded<()> {
        (counts.lost, counts.refused, counts.deleted) = (self.u64()?, self.u64()?, self.u64()?);
        for _ in 0..self.count()? {
            let classes = counts.of(self.str()?);
            for count in [
                &mut classes.equal,
                &mut classes.different,
                &mut classes.missing,
                &mut classes.extra,
                &mut classes.held,
            ] {
                *count = self.u64()?;
            }
            for _ in 0..self.count()? {
                classes.fields.insert(self.str()?.to_owned(), self.u64()?);
            }
            for _ in 0..self.count()? {
                let class = self.str()?.to_owned();
                let keys = (0..self.count()?).map(|_| self.str().map(str::to_owned)).collect::<Decoded<_>>()?;
                classes.samples.insert(class, keys);
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{Names, put_record};
    use super::*;
    use crate::change::Record;

    #[test]
    fn a_mark_of_before_all_was_counted_is_read() {
        let mut mark = LoadMark::settled("order", vec!["crm".into()], 7);
        (mark.counts.read, mark.counts.copied) = (9, 5);
        let mut bytes = Vec::new();
        put_record(&mut bytes, &Record::Load(mark.clone()));
        let options = 4 + 1 + "_order_crm_crm".len();
        assert_eq!(bytes[options], COUNTED);

        bytes[options] = 0;
        bytes.truncate(bytes.len() - 5); // lost, refused, deleted; systems; keys
        let len = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&len.to_le_bytes());

        let (bytes, mut names) = (Bytes::from(bytes), Names::default());
        let schemas = |_| Some(mark.schema.clone());
        let read = Decoder::new(&bytes, 0, &mut names, &schemas).record(0).expect("it is read");
        assert_eq!(read, Record::Load(mark));
    }
}
