//! Whether the worker lives and is ready: set by those who know a part of it, read by the admin server.
//! Must not know why.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// A part of the worker that can be in trouble on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The connection to Kafka.
    Broker,
    /// The topics and the partitions that are assigned.
    Assignment,
    /// The store.
    Store,
    /// The dead-letter topic and the spool folder.
    DeadLetters,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Broker,
        Self::Assignment,
        Self::Store,
        Self::DeadLetters,
    ];

    /// Name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Assignment => "assignment",
            Self::Store => "store",
            Self::DeadLetters => "dead_letters",
        }
    }
}

/// A shared note of the worker's state; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    started: bool,
    failed: Option<String>,
    troubles: BTreeMap<Part, String>,
}

impl Health {
    /// Alive and not ready: starting.
    pub fn new() -> Self {
        Self::default()
    }

    /// The worker has started; it is ready unless a part is in trouble.
    pub fn set_started(&self) {
        self.0.lock().started = true;
    }

    /// The worker lives, and cannot take documents for this reason until the part is well again.
    pub fn set_trouble(&self, part: Part, reason: impl Into<String>) {
        let reason = reason.into();
        let before = self.0.lock().troubles.insert(part, reason.clone());
        if before.is_none() {
            tracing::warn!(part = part.name(), reason, "not ready");
        }
    }

    /// The part is well.
    pub fn set_well(&self, part: Part) {
        if self.0.lock().troubles.remove(&part).is_some() {
            tracing::info!(part = part.name(), "well again");
        }
    }

    /// The worker is at its end, and is to be started again.
    pub fn set_failed(&self, reason: impl Into<String>) {
        self.0.lock().failed = Some(reason.into());
    }

    /// Whether a part is well, as far as anybody has said.
    pub fn is_well(&self, part: Part) -> bool {
        !self.0.lock().troubles.contains_key(&part)
    }

    /// Whether the worker takes and tags documents.
    pub fn is_ready(&self) -> bool {
        self.ready().is_ok()
    }

    /// `Err` with the reason where the worker has failed. Trouble that may pass is no reason: a restart
    /// would not help.
    pub(super) fn alive(&self) -> Result<(), String> {
        self.0.lock().failed.clone().map_or(Ok(()), Err)
    }

    /// `Err` with the reasons where the worker takes no documents.
    pub(super) fn ready(&self) -> Result<(), String> {
        let state = self.0.lock();
        if let Some(reason) = &state.failed {
            return Err(reason.clone());
        }
        if !state.started {
            return Err("starting".to_owned());
        }
        let reasons: Vec<&str> = state.troubles.values().map(String::as_str).collect();
        match reasons.as_slice() {
            [] => Ok(()),
            reasons => Err(reasons.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_trouble_has_to_end() {
        let health = Health::new();
        assert_eq!(health.ready().unwrap_err(), "starting");
        health.set_trouble(Part::Store, "the store is full");
        health.set_started();
        health.set_trouble(Part::Broker, "no broker responds");
        assert_eq!(
            health.ready().unwrap_err(),
            "no broker responds; the store is full"
        );
        assert!(!health.is_well(Part::Broker) && health.is_well(Part::Assignment));
        health.set_well(Part::Store);
        assert_eq!(health.ready().unwrap_err(), "no broker responds");
        assert_eq!(health.alive(), Ok(()), "a restart would not help");
        health.set_well(Part::Broker);
        assert!(health.is_ready());
        health.set_failed("the disk is gone");
        assert!(health.alive().is_err() && !health.is_ready());
    }
}
