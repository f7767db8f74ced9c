//! Which of two concurrent versions stands. Pure: a function of both versions, so that it
//! comes out the same wherever and whenever it is asked.
//!
//! Only `authority` so far. `latest` and `manual` get their arm here; a version then also
//! tells its commit time.

use crate::schema::SystemId;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Policy {
    /// The system listed first wins.
    #[default]
    Authority,
}

/// What a policy may know of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    pub origin: SystemId,
}

impl Policy {
    /// Whether `new`, written without having seen `current`, takes its place. The origins differ.
    pub fn prefers(self, new: Version, current: Version) -> bool {
        match self {
            Policy::Authority => new.origin < current.origin,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_listed_first_wins() {
        let version = |n| Version { origin: SystemId(n) };
        assert!(Policy::Authority.prefers(version(0), version(1)));
        assert!(!Policy::Authority.prefers(version(2), version(1)));
    }
}
