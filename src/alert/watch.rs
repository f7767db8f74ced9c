//! When somebody is told, and what: once as a condition begins to hold, once when it is over. Pure:
//! looks in, events out; time and names are passed in.
//!
//! What comes and goes is one alert: a condition is over only when it has been absent for `settle`.
//! The events that are still to be delivered stand beside what they follow from, and both go to disk
//! together ([`super::book`]), so that no kill can lose one, or give one another name.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::condition::{Condition, Look, Subject};
use crate::change::Micros;
use crate::http::status::timestamp;

/// Undelivered events of one alert above which what flaps is not told anew each time.
const PENDING_MAX: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    Firing,
    Resolved,
    Test,
}

impl What {
    pub fn name(self) -> &'static str {
        match self {
            What::Firing => "firing",
            What::Resolved => "resolved",
            What::Test => "test",
        }
    }
}

/// What is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its own, however often it is sent.
    pub id: String,
    pub event: What,
    pub alert: String,
    pub agent: String,
    /// The same when it begins and when it is over.
    pub incident: String,
    pub condition: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notify: Option<String>,
    /// For people.
    pub message: String,
    /// When the condition began to hold, and when this came to be.
    pub since: Option<String>,
    pub at: Option<String>,
    /// Of what happens: how often, until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

/// A condition that holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Active {
    condition: String,
    system: Option<String>,
    entity: Option<String>,
    #[serde(default)]
    notify: Option<String>,
    incident: String,
    since: Micros,
    message: String,
    #[serde(default)]
    count: u64,
    /// Not seen since then. Seen anew after a restart.
    #[serde(skip)]
    absent: Option<Micros>,
}

impl Subject {
    /// System, entity, notification: one of them, or none.
    fn names(&self) -> (Option<String>, Option<String>, Option<String>) {
        match self {
            Subject::Agent => (None, None, None),
            Subject::System(name) => (Some(name.clone()), None, None),
            Subject::Entity(name) => (None, Some(name.clone()), None),
            Subject::Notify(name) => (None, None, Some(name.clone())),
        }
    }
}

/// A condition that has to hold for some time before it counts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rising {
    condition: String,
    subject: Subject,
    since: Micros,
}

/// What is known of one alert.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    active: Vec<Active>,
    /// Undelivered, in order.
    pub pending: VecDeque<Event>,
    #[serde(skip)]
    rising: Vec<Rising>,
}

/// Whose events they are, and when.
pub struct Moment<'a> {
    pub alert: &'a str,
    pub agent: &'a str,
    pub settle: Duration,
    pub now: Micros,
    /// Makes names that nothing else has.
    pub name: &'a mut dyn FnMut() -> String,
}

impl Watch {
    pub fn firing(&self) -> usize {
        self.active.len()
    }

    /// What holds, each as one would say it.
    pub fn messages(&self) -> Vec<String> {
        self.active.iter().map(|active| format!("{}: {}", active.condition, active.message)).collect()
    }

    /// Takes in what the looks found. True: what is on disk is no longer what is here.
    pub fn step(&mut self, looks: Vec<(&Condition, Subject, Look)>, moment: &mut Moment<'_>) -> bool {
        let mut changed = false;
        let mut seen = vec![false; self.active.len()];
        let mut begun = Vec::new();
        let mut rising = Vec::new();
        for (condition, subject, look) in looks {
            let at = self.active.iter().position(|active| active.is(&condition.text, &subject));
            if let Some(at) = at {
                seen[at] = look != Look::Clear;
                changed |= self.active[at].take_in(&look);
                continue;
            }
            let (count, message) = match look {
                Look::Holds(message) => (0, message),
                Look::Happened(count, message) => (count, message),
                Look::Clear | Look::Unknown => continue,
            };
            let before = self.rising.iter().find(|r| r.condition == condition.text && r.subject == subject);
            let since = before.map_or(moment.now, |rising| rising.since);
            if lasted(since, moment.now, condition.after()) {
                begun.push((condition.text.clone(), subject, since, count, message));
            } else {
                rising.push(Rising { condition: condition.text.clone(), subject, since });
            }
        }
        self.rising = rising;
        changed |= self.settle(&seen, moment);
        for (condition, subject, since, count, message) in begun {
            changed = true;
            self.begin(condition, &subject, since, count, message, moment);
        }
        changed
    }

    /// Ends what has been absent for long enough.
    fn settle(&mut self, seen: &[bool], moment: &mut Moment<'_>) -> bool {
        let mut changed = false;
        let mut seen = seen.iter();
        let mut left = Vec::new();
        for mut active in std::mem::take(&mut self.active) {
            if *seen.next().expect("one for each") {
                active.absent = None;
                left.push(active);
                continue;
            }
            let absent = *active.absent.get_or_insert(moment.now);
            if !lasted(absent, moment.now, moment.settle) {
                left.push(active);
                continue;
            }
            let event = active.event(What::Resolved, moment);
            self.pending.push_back(event);
            changed = true;
        }
        self.active = left;
        changed
    }

    fn begin(
        &mut self,
        condition: String,
        subject: &Subject,
        since: Micros,
        count: u64,
        message: String,
        moment: &mut Moment<'_>,
    ) {
        let (system, entity, notify) = subject.names();
        let incident = (moment.name)();
        let mut active = Active { condition, system, entity, notify, incident, since, message, count, absent: None };
        // Nobody has heard that it was over: it never was. The first one may be on its way.
        let over = |event: &Event| event.event == What::Resolved && active.is_of(event);
        let again = self.pending.iter().rposition(over).filter(|at| *at > 0 && self.pending.len() > PENDING_MAX);
        if let Some(event) = again.and_then(|at| self.pending.remove(at)) {
            active.incident = event.incident;
            active.count += event.count.unwrap_or(0);
            self.active.push(active);
            return;
        }
        let event = active.event(What::Firing, moment);
        self.pending.push_back(event);
        self.active.push(active);
    }
}

impl Active {
    fn is(&self, condition: &str, subject: &Subject) -> bool {
        let (system, entity, notify) = subject.names();
        self.condition == condition && (&self.system, &self.entity, &self.notify) == (&system, &entity, &notify)
    }

    fn is_of(&self, event: &Event) -> bool {
        let of = (&event.condition, &event.system, &event.entity, &event.notify);
        (&self.condition, &self.system, &self.entity, &self.notify) == of
    }

    fn take_in(&mut self, look: &Look) -> bool {
        match look {
            Look::Holds(message) => {
                message.clone_into(&mut self.message);
                false
            }
            Look::Happened(count, _) => {
                self.count += count;
                true
            }
            Look::Clear | Look::Unknown => false,
        }
    }

    fn event(&self, event: What, moment: &mut Moment<'_>) -> Event {
        let message = match event {
            What::Resolved if self.count > 0 => format!("no more of it; {} in all: {}", self.count, self.message),
            What::Resolved => format!("no longer: {}", self.message),
            What::Firing | What::Test => self.message.clone(),
        };
        Event {
            id: (moment.name)(),
            event,
            alert: moment.alert.to_owned(),
            agent: moment.agent.to_owned(),
            incident: self.incident.clone(),
            condition: self.condition.clone(),
            system: self.system.clone(),
            entity: self.entity.clone(),
            notify: self.notify.clone(),
            message,
            since: timestamp(self.since),
            at: timestamp(moment.now),
            count: (self.count > 0).then_some(self.count),
        }
    }
}

fn lasted(since: Micros, now: Micros, long: Duration) -> bool {
    now.saturating_sub(since) >= i64::try_from(long.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
