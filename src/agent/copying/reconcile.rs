//! One entity of a system whose log was lost, against the others: every row that anybody has is
//! judged, and what its users wrote unseen is handed in as if its log had told it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::chunk::Chunk;
use super::compare::differing;
use super::judge::{self, Case, Verdict};
use super::pass::{Pass, Read, Receiver, shown};
use super::past::{Image, Past};
use super::{Context, Counted};
use crate::agent::chunks::{Copying, Outcome, Rows};
use crate::change::{ChangeWriter, Changes, Op, ResyncMark, overlay};
use crate::error::Result;
use crate::failpoint;
use crate::normalize::binding::Role;
use crate::position::Position;
use crate::scan::{Page, PageSize, Plan, Scanner};
use crate::schema::{EntityId, SystemId};
use crate::status::now;
use crate::value::Row;

/// Keys that are brought at once.
const KEYS: usize = 500;

/// Another system that holds the entity.
pub struct Peer {
    pub system: SystemId,
    pub name: Arc<str>,
    pub plan: Plan,
    pub role: Role,
    pub scanner: Option<Scanner>,
}

impl Peer {
    async fn scanner(&mut self, context: &Context) -> Result<&mut Scanner> {
        if self.scanner.is_none() {
            self.scanner = Some(Scanner::connect(&context.config, self.system).await?);
        }
        Ok(self.scanner.as_mut().expect("just connected"))
    }

    /// Everything that was read of it is in the journal.
    async fn settle(&mut self, context: &Context) -> Result<()> {
        let system = self.system;
        let scanner = self.scanner(context).await?;
        let high = scanner.finish().await?;
        context.captured(system, scanner, &high).await
    }
}

/// One entity of the system against its peers.
pub struct Comparison<'a> {
    context: &'a Arc<Context>,
    mark: &'a ResyncMark,
    role: Role,
    /// Reads the system's own rows.
    pass: Pass<'a>,
    pub peers: Vec<Peer>,
    past: &'a mut Past,
    fields: u128,
    /// Keys that a peer's rows are to bring, by peer.
    bring: Vec<Vec<Vec<u8>>>,
    /// Changes that its log would have told.
    written: ChangeWriter,
    system: SystemId,
    entity: EntityId,
}

impl<'a> Comparison<'a> {
    pub fn new(
        context: &'a Arc<Context>,
        mark: &'a ResyncMark,
        system: SystemId,
        plan: Plan,
        role: Role,
        peers: Vec<Peer>,
        past: &'a mut Past,
        counted: &'a mut Counted,
    ) -> Self {
        let entity = plan.entity;
        let fields = plan.binding.columns.iter().fold(0, |set, column| set | 1 << column.field);
        let bring = peers.iter().map(|_| Vec::new()).collect();
        let pass = pass(context, system, mark.system.clone(), plan, Vec::new(), mark.begun, counted);
        Comparison {
            context,
            mark,
            role,
            pass,
            peers,
            past,
            fields,
            bring,
            written: ChangeWriter::default(),
            system,
            entity,
        }
    }

    /// Every row that the system has.
    pub async fn own_rows(&mut self) -> Result<()> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let chunk = self.pass.open().await?;
            let page = self.own_page(&chunk.low, after.as_deref()).await?;
            if !self.hand_in(chunk, page.running.clone()).await? {
                self.bring.iter_mut().for_each(Vec::clear);
                self.pass.size = self.pass.size.at_most(self.pass.size.rows() / 2);
                continue;
            }
            self.set_aside(&page).await?;
            self.bring_now().await?;
            self.pass.size.learn(&page);
            self.pass.counted.counts.read += page.seen;
            after = page.last.or(after);
            self.pass.counted.report(&self.mark.system, "running", None);
            failpoint::pass("after-resync-page");
            if page.end {
                return Ok(());
            }
        }
    }

    /// Reads a page of it, what the others have for the same keys, and judges.
    async fn own_page(&mut self, low: &Position, after: Option<&[u8]>) -> Result<Page> {
        let page = self.pass.read(low, &Read::Behind(after)).await?;
        let key_len = self.pass.plan.binding.key_len;
        let keys: Vec<Row<'_>> = Changes::new(&page.rows).map(|change| Row(change.key(key_len))).collect();
        let found = self.look_up(&keys).await?;
        self.past.follow()?;
        for change in Changes::new(&page.rows) {
            self.judge(change.key_hash, change.key(key_len), change.after, found.get(&change.key_hash))?;
        }
        Ok(page)
    }

    /// Rows of a peer that the system has not.
    pub async fn rows_of(&mut self, peer: usize) -> Result<()> {
        if !self.peers[peer].role.captures() {
            return Ok(());
        }
        let (mut after, mut size): (Option<Vec<u8>>, _) = (None, PageSize::default());
        loop {
            let Peer { plan, system, .. } = &self.peers[peer];
            let (plan, low) = (plan.clone(), self.context.taken[system.index()].borrow().clone());
            let scanner = self.peers[peer].scanner(self.context).await?;
            self.context.begin(scanner, &low).await?;
            let page = scanner.page(&plan, after.as_deref(), size).await?;
            self.peers[peer].settle(self.context).await?;
            size.learn(&page);
            let mut missing = self.missing(&page).await?;
            while missing.is_none() {
                missing = self.missing(&page).await?;
            }
            self.bring_now().await?;
            after = page.last.clone().or(after);
            self.pass.counted.report(&self.peers[peer].name.clone(), "running", None);
            if page.end {
                return Ok(());
            }
        }
    }

    /// Judges those rows of a peer's page that the system has not. `None`: once more.
    async fn missing(&mut self, page: &Page) -> Result<Option<()>> {
        if page.rows.is_empty() {
            return Ok(Some(()));
        }
        let key_len = self.pass.plan.binding.key_len;
        let keys: Vec<Vec<u8>> = Changes::new(&page.rows).map(|change| change.key(key_len).to_vec()).collect();
        let chunk = self.pass.open().await?;
        let running = self.judge_missing(&chunk.low, page, &keys).await?;
        let handed_in = self.hand_in(chunk, running).await?;
        if !handed_in {
            self.bring.iter_mut().for_each(Vec::clear);
        }
        Ok(handed_in.then_some(()))
    }

    async fn judge_missing(&mut self, low: &Position, page: &Page, keys: &[Vec<u8>]) -> Result<Vec<u32>> {
        let here = self.pass.read(low, &Read::Keys(keys)).await?;
        let known: BTreeSet<u128> = Changes::new(&here.rows).map(|change| change.key_hash).collect();
        let key_len = self.pass.plan.binding.key_len;
        let plan = self.pass.plan.clone();
        let missing = |change: &crate::change::Change<'_>| {
            !known.contains(&change.key_hash) && change.after.is_some_and(|row| plan.belongs(row))
        };
        let rows: Vec<Row<'_>> =
            Changes::new(&page.rows).filter(missing).map(|change| Row(change.key(key_len))).collect();
        if !rows.is_empty() {
            // As they are now: the page may be older than what the journal tells.
            let found = self.look_up(&rows).await?;
            self.past.follow()?;
            for change in Changes::new(&page.rows).filter(missing) {
                self.judge(change.key_hash, change.key(key_len), None, found.get(&change.key_hash))?;
            }
        }
        Ok(here.running)
    }

    /// What the peers have for these keys, each field from the first that has it; and of whom the
    /// row is. All of it is in the journal, or was before.
    async fn look_up(&mut self, keys: &[Row<'_>]) -> Result<HashMap<u128, (usize, Vec<u8>)>> {
        let writers = self.peers.iter().any(|peer| peer.role.captures());
        let mut found: HashMap<u128, (usize, Vec<u8>)> = HashMap::new();
        for (at, peer) in self.peers.iter_mut().enumerate() {
            // Where nobody else writes it, what the targets have is all there is.
            if keys.is_empty() || writers && !peer.role.captures() {
                continue;
            }
            let plan = peer.plan.clone();
            let page = peer.scanner(self.context).await?.by_keys(&plan, keys).await?;
            peer.settle(self.context).await?;
            for change in Changes::new(&page.rows) {
                let Some(row) = change.after else { continue };
                let of_peer = || (at, row.0.to_vec());
                found
                    .entry(change.key_hash)
                    .and_modify(|(_, known)| *known = overlay(row, Row(known)))
                    .or_insert_with(of_peer);
            }
        }
        Ok(found)
    }

    fn judge(
        &mut self,
        key_hash: u128,
        key: &[u8],
        here: Option<Row<'_>>,
        there: Option<&(usize, Vec<u8>)>,
    ) -> Result<()> {
        let known = self.past.known(key_hash)?;
        let plan = &self.pass.plan;
        let same = |elsewhere: Row<'_>, here: Row<'_>| differing(elsewhere, here, plan) == 0;
        let case = Case {
            here,
            there: there.map(|(_, row)| Row(row)),
            known: known.as_ref(),
            held: self.held(key_hash),
            delete_extra: self.mark.delete_extra,
            receives: self.role.receives(),
            restored: self.mark.restored,
            same: &same,
        };
        // Nobody who should have it has it, and it was told before or belongs to nobody else.
        if there.is_none()
            && known.is_none()
            && here.is_some_and(|row| !self.peers.iter().any(|peer| peer.plan.belongs(row)))
        {
            return Ok(());
        }
        let expected = case.expected();
        let verdict = case.judge(&expected);
        let class = match verdict {
            Verdict::Nothing => return Ok(()),
            Verdict::Bring => {
                let writer = || self.peers.iter().position(|peer| peer.role.captures());
                let from = there.map(|(at, _)| *at).filter(|at| self.peers[*at].role.captures()).or_else(writer);
                if let Some(from) = from {
                    self.bring[from].push(key.to_vec());
                }
                "missing"
            }
            Verdict::Written(op) => {
                judge::write(&mut self.written, self.entity, key_hash, op, here, &expected, self.fields);
                if op == Op::Update { "different" } else { "extra" }
            }
        };
        let counts = self.pass.counted.counts.of(&self.mark.system);
        match class {
            "missing" => counts.missing += 1,
            "different" => counts.different += 1,
            _ => counts.extra += 1,
        }
        counts.sample(class, || shown(Row(key)));
        Ok(())
    }

    /// A key that the system holds was never applied there.
    fn held(&self, key_hash: u128) -> Option<Image> {
        let quarantine = self.context.quarantine.borrow();
        quarantine.iter().filter(|record| record.system == self.mark.system).find_map(|record| {
            let change = Changes::new(&record.change).find(|change| change.key_hash == key_hash)?;
            Some(match (change.op, change.before) {
                (_, Some(before)) => Image::Row(before.0.to_vec()),
                (Op::Insert, None) => Image::Absent,
                _ => Image::Unknown,
            })
        })
    }

    /// `false`: what was read may miss something, or too much has changed: once more.
    async fn hand_in(&mut self, chunk: Chunk, running: Vec<u32>) -> Result<bool> {
        let changes: Bytes = self.written.take().into();
        let (reply, answer) = oneshot::channel();
        let txid = format!("resync {}", self.mark.begun).into();
        self.context.lay(Copying::Written { chunk: chunk.into_number(), txid, changes, running, reply }).await?;
        match answer.await.map_err(|_| super::gone())? {
            Outcome::Taken { taken, .. } => {
                self.pass.counted.counts.copied += taken;
                Ok(true)
            }
            Outcome::Again => Ok(false),
        }
    }

    /// Rows without canonical form: noted, as where their log tells of them.
    async fn set_aside(&mut self, page: &Page) -> Result<()> {
        if page.refused.is_empty() {
            return Ok(());
        }
        let chunk = self.pass.open().await?.into_number();
        let rows = Rows {
            txid: format!("resync {}", self.mark.begun).into(),
            read_at: now(),
            refused: page.refused.clone(),
            ..Rows::default()
        };
        let (reply, answer) = oneshot::channel();
        self.context.lay(Copying::Rows { chunk, rows, mark: None, reply }).await?;
        self.pass.counted.counts.refused += page.refused.len() as u64;
        answer.await.map(drop).map_err(|_| super::gone())
    }

    /// The peers' rows for what the system lacks, to it alone.
    async fn bring_now(&mut self) -> Result<()> {
        for peer in 0..self.peers.len() {
            let keys = std::mem::take(&mut self.bring[peer]);
            if keys.is_empty() {
                continue;
            }
            let Peer { system, name, plan, .. } = &self.peers[peer];
            let receiver = Receiver::new(self.system, self.mark.system.clone(), self.pass.plan.clone(), false, false);
            let mut pass = pass(
                self.context,
                *system,
                name.clone(),
                plan.clone(),
                vec![receiver],
                self.mark.begun,
                self.pass.counted,
            );
            for keys in keys.chunks(KEYS) {
                pass.repair(keys).await?;
            }
        }
        Ok(())
    }
}

fn pass<'a>(
    context: &'a Arc<Context>,
    source: SystemId,
    name: Arc<str>,
    plan: Plan,
    receivers: Vec<Receiver>,
    begun: i64,
    counted: &'a mut Counted,
) -> Pass<'a> {
    Pass {
        context,
        source,
        authority: name.clone(),
        name,
        plan,
        receivers,
        only_missing: false,
        delete_extra: false,
        bound: Vec::new(),
        settled: Vec::new(),
        dry_run: false,
        fresh: false,
        next: None,
        max_rate: None,
        parallel: 1,
        begun,
        word: "resync",
        counted,
        scanner: None,
        size: PageSize::default(),
        ahead: Default::default(),
        lost: Default::default(),
    }
}
