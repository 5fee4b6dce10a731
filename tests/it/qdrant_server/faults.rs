//! What the test server can be told to do wrong.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::Status;

/// One thing that goes wrong with a write.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// Not applied; the status says unavailable.
    Unavailable,
    /// Applied after a pause.
    Slow(Duration),
    /// Applied, but the answer is lost: the status says that the deadline passed.
    UnknownOutcome,
    /// Applied or not, the answer is OK and its status WaitTimeout.
    WaitTimeout {
        /// Whether the write was applied.
        applied: bool,
    },
    /// The first half of the points is applied, the status says internal error.
    Partial,
    /// The first half of the points is applied, and no answer comes as long as the client waits.
    Held,
    /// Not applied; too many requests.
    ResourceExhausted,
    /// Not applied; no space is left.
    DiskFull,
    /// Not applied; strict mode finds more memory in use than it allows.
    MemoryFull,
}

/// What goes wrong, and when.
#[derive(Default)]
pub(crate) struct Faults {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: VecDeque<Fault>,
    always: Option<Fault>,
    random: Option<(StdRng, f64)>,
    poison: BTreeSet<String>,
    served: usize,
}

impl Faults {
    /// The next write fails like this, the one after it like the next one pushed.
    pub(crate) fn push(&self, fault: Fault) {
        self.state.lock().next.push_back(fault);
    }

    /// Every write fails like this until told otherwise.
    pub(crate) fn always(&self, fault: Option<Fault>) {
        self.state.lock().always = fault;
    }

    /// A `share` (0 to 1) of the writes fails in a random way that passes; `None` ends it.
    pub(crate) fn random(&self, seed_and_share: Option<(u64, f64)>) {
        self.state.lock().random =
            seed_and_share.map(|(seed, share)| (StdRng::seed_from_u64(seed), share));
    }

    /// Requests that hold this document are refused as invalid.
    pub(crate) fn poison(&self, document_id: &str) {
        self.state.lock().poison.insert(document_id.to_owned());
    }

    /// How many faults have happened.
    pub(crate) fn served(&self) -> usize {
        self.state.lock().served
    }

    pub(crate) fn draw(&self) -> Option<Fault> {
        let mut state = self.state.lock();
        let fault = state
            .next
            .pop_front()
            .or_else(|| state.always.clone())
            .or_else(|| {
                let (random, share) = state.random.as_mut()?;
                random
                    .random_bool(*share)
                    .then(|| match random.random_range(0..6) {
                        0 => Fault::Unavailable,
                        1 => Fault::Slow(Duration::from_millis(20)),
                        2 => Fault::UnknownOutcome,
                        3 => Fault::WaitTimeout {
                            applied: random.random(),
                        },
                        4 => Fault::Partial,
                        _ => Fault::ResourceExhausted,
                    })
            });
        state.served += usize::from(fault.is_some());
        fault
    }

    pub(crate) fn is_poison(&self, document_id: &str) -> bool {
        self.state.lock().poison.contains(document_id)
    }
}

impl Fault {
    /// The status with which a write that is not applied is refused.
    pub(crate) fn refusal(&self) -> Option<Status> {
        match self {
            Self::Unavailable => Some(Status::unavailable("the server is shutting down")),
            Self::ResourceExhausted => Some(Status::resource_exhausted("rate limit exceeded")),
            Self::DiskFull => Some(Status::internal(
                "Service internal error: No space left on device (os error 28)",
            )),
            Self::MemoryFull => Some(Status::invalid_argument(
                "Wrong input: Resident memory usage is at 92% of available memory, which exceeds the limit of 90%",
            )),
            Self::Slow(_)
            | Self::UnknownOutcome
            | Self::WaitTimeout { .. }
            | Self::Partial
            | Self::Held => None,
        }
    }
}
