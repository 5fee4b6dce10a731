//! Hands commits to the commit thread (`commit_thread.rs`).

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use crate::source::{CommitOffset, SourceError};

/// Longest wait for a commit that somebody waits for; the client itself gives up later.
pub(in crate::kafka) const COMMIT_WITHIN: Duration = Duration::from_secs(10);
/// Requests that may wait; there is one pipeline and one poll thread to make them.
const REQUESTS: usize = 8;

/// A commit that somebody waits for.
pub(in crate::kafka) struct Request {
    pub(in crate::kafka) offsets: Vec<CommitOffset>,
    /// Whether partitions whose revocation has begun are included.
    pub(in crate::kafka) with_leaving: bool,
    pub(in crate::kafka) reply: Sender<Result<(), SourceError>>,
}

/// Hands commits to the thread.
#[derive(Debug, Clone)]
pub(in crate::kafka) struct Committer {
    requests: Sender<Request>,
    wake: Sender<()>,
}

/// The thread's ends of the channels.
pub(in crate::kafka) struct Work {
    pub(in crate::kafka) requests: Receiver<Request>,
    pub(in crate::kafka) wake: Receiver<()>,
}

/// A committer and the work that its thread is to do.
pub(in crate::kafka) fn channel() -> (Committer, Work) {
    let (requests, waiting) = bounded(REQUESTS);
    let (wake, woken) = bounded(1);
    let work = Work {
        requests: waiting,
        wake: woken,
    };
    (Committer { requests, wake }, work)
}

impl Committer {
    /// Commits `offsets` and all that waits, as far as it is still held, and waits for the broker.
    pub(in crate::kafka) fn commit(
        &self,
        offsets: Vec<CommitOffset>,
        with_leaving: bool,
    ) -> Result<(), SourceError> {
        let (reply, answer) = bounded(1);
        let request = Request {
            offsets,
            with_leaving,
            reply,
        };
        let late = || SourceError::Transient("offsets were not committed in time".to_owned());
        self.requests
            .send_timeout(request, COMMIT_WITHIN)
            .map_err(|_| late())?;
        answer.recv_timeout(COMMIT_WITHIN).map_err(|_| late())?
    }

    /// Lets the thread look at what waits to be committed in the background.
    pub(in crate::kafka) fn wake(&self) {
        match self.wake.try_send(()) {
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}
