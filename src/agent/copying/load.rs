//! One entity's load: from the system whose rows count, then from every other one that writes it,
//! for rows which only that one has.

use std::sync::Arc;

use tracing::{error, info, warn};

use super::pass::{Pass, Receiver};
use super::reach::LOOK_EVERY;
use super::{Context, Counted, First};
use crate::change::{LoadMark, LoadState};
use crate::config::LoadPolicy;
use crate::error::{Error, Recovery, Result, backoff};
use crate::load::{Counts, Decision, Found, LoadSpec, decide};
use crate::scan::{PageSize, Scanner};
use crate::schema::{EntityId, SystemId};
use crate::status::now;

/// Chunks that are read at once: one that is on its way, one whose log is waited for, one that is
/// journaled.
const PARALLEL: usize = 3;

/// Loads one entity, to its end or until a person must act.
pub(super) async fn load(
    context: &Arc<Context>,
    mut counted: Counted,
    entity: EntityId,
    source: Option<SystemId>,
    spec: &LoadSpec,
    mut first: Option<First>,
) {
    let mut attempt = 0;
    let outcome = loop {
        match load_entity(context, &mut counted, entity, source, spec, first.as_ref()).await {
            Err(error) if error.recovery == Recovery::Retry && !context.stop.is_cancelled() => {
                let pause = backoff(attempt, rand::random());
                attempt += 1;
                warn!(error = %error.full(), retry_in_ms = pause.as_millis() as u64, "load cannot go on, retrying");
                counted.report("", "retrying", Some(error.full()));
                if let Some(mark) = counted.mark.take() {
                    // The journal has it that far.
                    first = Some(First { policy: LoadPolicy::FirstRun, resumed: Some(mark), settled: Vec::new() });
                }
                if context.pause(pause).await.is_err() {
                    return;
                }
            }
            outcome => break outcome,
        }
    };
    match outcome {
        Ok(Some(from)) => {
            info!(rows = counted.counts.read, copied = counted.counts.copied, "loaded");
            counted.report(&from, "done", None);
        }
        Ok(None) => counted.forget(),
        Err(_) if context.stop.is_cancelled() => {}
        Err(error) => {
            error!(error = %error.full(), "load failed: a person must act");
            counted.report("", "failed", Some(error.full()));
        }
    }
}

/// How an entity is loaded.
struct Begin {
    /// Whose rows count.
    authority: SystemId,
    /// Whoever receives it is empty.
    fresh: bool,
    /// Systems that need none of it.
    settled: Vec<Arc<str>>,
    /// Systems without a row.
    empty: Vec<Arc<str>>,
}

/// `None`: there is nothing to do, or it is decided against.
async fn begin(
    context: &Context,
    counted: &Counted,
    entity: EntityId,
    order: &[SystemId],
    first: Option<&First>,
) -> Result<Option<Begin>> {
    let name = |system: SystemId| context.config.system(system).name.clone();
    let (bound, mut tables) = (context.bound(entity), Vec::new());
    let resumed = first.and_then(|first| first.resumed.as_ref());
    if resumed.is_none_or(|mark| mark.bound != bound) {
        for system in order {
            if let Some((plan, role)) = context.plan(*system, entity) {
                let mut scanner = Scanner::connect(&context.config, *system).await?;
                let empty = scanner.is_empty(&plan.binding.table.name).await?;
                tables.push(Found::new(name(*system), role, empty));
            }
        }
    }
    let captured = tables.iter().find(|table| table.captures).map(|table| table.system.clone());
    let (from, fresh, settled) = match first {
        Some(First { resumed: Some(mark), .. }) if mark.bound == bound => {
            (Some(mark.authority.clone()), mark.fresh, mark.settled.clone())
        }
        Some(First { resumed: None, settled, policy }) => match decide(&tables, settled, *policy) {
            Decision::Load { authority, fresh, settled } => (Some(authority), fresh, settled),
            decision => {
                if decision == Decision::Unasked {
                    warn!("{}", crate::setup::unasked(&counted.entity).logged());
                }
                context.mark(LoadMark::settled(&counted.entity, bound, now())).await?;
                return Ok(None);
            }
        },
        // With another system in the file it begins anew, among all of them.
        Some(First { resumed: Some(_), .. }) | None => {
            let fresh = tables.iter().all(|table| table.empty || Some(&table.system) == captured.as_ref());
            (captured, fresh, Vec::new())
        }
    };
    let authority = order.iter().copied().find(|system| Some(name(*system)) == from);
    let empty = tables.into_iter().filter(|table| table.empty).map(|table| table.system).collect();
    Ok(authority.map(|authority| Begin { authority, fresh, settled, empty }))
}

/// `None`: there was nothing to do, or it was decided against.
async fn load_entity(
    context: &Arc<Context>,
    counted: &mut Counted,
    entity: EntityId,
    source: Option<SystemId>,
    spec: &LoadSpec,
    first: Option<&First>,
) -> Result<Option<String>> {
    let name = |system: SystemId| context.config.system(system).name.clone();
    let captures = |system: SystemId| context.plan(system, entity).is_some_and(|(_, role)| role.captures());
    let mut order: Vec<SystemId> = context.config.system_ids().filter(|s| !context.absent[s.index()]).collect();
    if let Some(source) = source {
        if !captures(source) {
            return Err(Error::stop(
                format!("entity {:?} is not read from that system", counted.entity),
                "--from a system that binds it with role both or source",
            ));
        }
        order.retain(|system| *system != source);
        order.insert(0, source);
    }
    let Some(Begin { authority, fresh, settled, empty }) = begin(context, counted, entity, &order, first).await? else {
        return Ok(None);
    };
    let (bound, resumed) = (context.bound(entity), first.and_then(|first| first.resumed.as_ref()));
    let passed_over = |system: SystemId| settled.contains(&name(system));
    let begun = resumed.map_or_else(now, |mark| mark.begun);
    let delete_extra = resumed.map_or(spec.delete_extra, |mark| mark.delete_extra);
    let receives = |system: SystemId| context.plan(system, entity).is_some_and(|(_, role)| role.receives());
    let reads = |system: &SystemId| *system == authority || (!fresh && captures(*system));
    let mut sources: Vec<SystemId> = order.iter().copied().filter(reads).collect();
    let mut witnesses = Vec::new();
    if delete_extra {
        if !receives(authority) && sources.iter().any(|system| *system != authority && receives(*system)) {
            return Err(Error::stop(
                format!(
                    "{} receives nothing of {:?}, so it lacks whatever others write",
                    name(authority),
                    counted.entity
                ),
                "without --delete-extra; or --from a system with role both",
            ));
        }
        // Where nothing can be deleted counts like the authority, and is read next.
        sources.sort_by_key(|system| *system != authority && receives(*system));
        sources.retain(|system| !spec.dry_run || *system == authority || !receives(*system));
        witnesses.extend(sources.iter().copied().filter(|system| *system != authority && !receives(*system)));
    }
    // Once for each load: not where it goes on behind that.
    let mut deletes = delete_extra
        && resumed.is_none_or(|mark| mark.bound != bound || (*mark.system == *name(authority) && mark.key.is_empty()));
    let mut done = Vec::new();
    let mut resumes = resumed.filter(|mark| mark.bound == bound);
    counted.counts = Counts::default();
    for (at, system) in sources.iter().copied().enumerate() {
        let (mut after, mut lost) = (None, Default::default());
        match resumes.take() {
            // Finished before.
            Some(mark) if *mark.system != *name(system) => {
                done.push(system);
                resumes = Some(mark);
                continue;
            }
            Some(mark) if mark.schema.id == context.model.schema.id || mark.key.is_empty() => {
                if !mark.key.is_empty() {
                    info!(from = %mark.system, rows = mark.counts.read, "load goes on");
                    after = Some(mark.key.to_vec());
                }
                lost = mark.lost.iter().cloned().collect();
                counted.counts = mark.counts.clone();
            }
            _ => {}
        }
        let (plan, _) = context.plan(system, entity).expect("only bound systems are sources");
        let others = order.iter().filter(|other| **other != system && !passed_over(**other));
        let receivers = others.filter_map(|other| {
            let (plan, role) = context.plan(*other, entity)?;
            let is_empty = fresh || empty.contains(&name(*other));
            // Of a system that receives nothing only whether it has a row matters.
            let higher = done.contains(other);
            (role.receives() || higher).then(|| Receiver::new(*other, name(*other), plan, is_empty, higher))
        });
        let sums = context.model.rules[entity.index()].added() != 0;
        if first.is_some() || sums && !spec.dry_run {
            caught_up(context, counted, system, entity).await?;
        }
        let mut scanner = Scanner::connect(&context.config, system).await?;
        if system == authority {
            counted.total = scanner.estimate(&plan).await?;
        }
        info!(from = %name(system), "load begins");
        let mut pass = Pass {
            context,
            source: system,
            name: name(system),
            plan,
            receivers: receivers.collect(),
            only_missing: resumed.map_or(spec.only_missing, |mark| mark.only_missing),
            delete_extra,
            authority: name(authority),
            bound: bound.clone(),
            settled: settled.clone(),
            next: sources.get(at + 1).map(|next| name(*next)),
            dry_run: spec.dry_run,
            fresh,
            max_rate: spec.max_rate,
            parallel: spec.parallel.map_or(PARALLEL, usize::from),
            begun,
            word: "load",
            counted,
            scanner: Some(scanner),
            size: PageSize::default(),
            ahead: Default::default(),
            lost,
        };
        if std::mem::take(&mut deletes) {
            let witness = |system: &SystemId| {
                let (plan, _) = context.plan(*system, entity).expect("only bound systems are sources");
                Receiver::new(*system, name(*system), plan, false, true)
            };
            pass.mark(LoadState::Running, &[]).await?;
            pass.delete_extra(&mut witnesses.iter().map(witness).collect::<Vec<_>>()).await?;
        }
        pass.run(after).await?;
        pass.until_applied().await?;
        done.push(system);
    }
    Ok(Some(name(authority).to_string()))
}

/// Until that system has what was journaled by now. One that was added begins at the journal's head,
/// so that older entries reach it by the load alone: what the tables that are read did not show
/// yet, it would never have. And one whose sums are added to may lack a row for a moment that comes back to it
/// alone, with what it had of them (see [`super::lost`]): by now, or it is told of from here on.
async fn caught_up(context: &Context, counted: &mut Counted, system: SystemId, entity: EntityId) -> Result<()> {
    let head = context.status.journal_head.get();
    while !context.has(system, entity, head) && !context.stands(system) {
        let name = &context.config.system(system).name;
        counted.report(name, "waiting", Some(format!("until {name} has what was journaled before")));
        context.pause(LOOK_EVERY).await?;
    }
    Ok(())
}
