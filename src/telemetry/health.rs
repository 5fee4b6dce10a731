//! Whether the worker lives and is ready, set by the pipeline and read by the admin server.
//! Must not know why.

use std::sync::Arc;

use arc_swap::ArcSwap;

/// A shared note of the worker's state; clones share it.
#[derive(Debug, Clone)]
pub struct Health {
    state: Arc<ArcSwap<State>>,
}

#[derive(Debug)]
enum State {
    Ready,
    NotReady(String),
    Failed(String),
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Alive and not ready: starting.
    pub fn new() -> Self {
        let state = State::NotReady("starting".to_owned());
        Self {
            state: Arc::new(ArcSwap::from_pointee(state)),
        }
    }

    /// The worker takes and tags documents.
    pub fn set_ready(&self) {
        self.state.store(Arc::new(State::Ready));
    }

    /// The worker lives and cannot take documents, such as while the store is full.
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.state.store(Arc::new(State::NotReady(reason.into())));
    }

    /// The worker is at its end; whoever watches should start it anew.
    pub fn set_failed(&self, reason: impl Into<String>) {
        self.state.store(Arc::new(State::Failed(reason.into())));
    }

    /// Whether the worker takes and tags documents.
    pub fn is_ready(&self) -> bool {
        self.ready().is_ok()
    }

    /// `Err` with the reason where the worker has failed.
    pub(super) fn alive(&self) -> Result<(), String> {
        match &**self.state.load() {
            State::Ready | State::NotReady(_) => Ok(()),
            State::Failed(reason) => Err(reason.clone()),
        }
    }

    /// `Err` with the reason where the worker takes no documents.
    pub(super) fn ready(&self) -> Result<(), String> {
        match &**self.state.load() {
            State::Ready => Ok(()),
            State::NotReady(reason) | State::Failed(reason) => Err(reason.clone()),
        }
    }
}
