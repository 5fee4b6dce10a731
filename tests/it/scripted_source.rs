//! A source whose events a test scripts and whose commits it can read.
//! Must not know what the events mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

use tcbert_worker::document::{Generation, TopicPartition};
use tcbert_worker::source::{
    CommitMode, CommitOffset, Events, Source, SourceError, SourceEvent, SourceRecord,
};

/// Events that wait for the reader before [`Script::send`] blocks.
const CAPACITY: usize = 64;

/// The source's side: hand it to what is tested.
#[derive(Debug)]
pub struct ScriptedSource {
    events: Events,
    // Kept so that the channels stay open when the script is dropped: a source that has nothing more
    // to say is not one that has gone.
    _keep_open: Script,
    shared: Arc<Shared>,
}

/// The test's side: says what the source delivers, and sees what is done with it.
#[derive(Debug, Clone)]
pub struct Script {
    /// Where changes of assignment go, if they have a channel of their own.
    control: Option<Sender<SourceEvent>>,
    events: Sender<SourceEvent>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    commits: Mutex<Vec<CommitOffset>>,
    committed: Condvar,
    failures: AtomicUsize,
    stopped: AtomicBool,
    closed: AtomicBool,
}

impl ScriptedSource {
    /// A source that delivers what its script sends, in that order.
    pub fn scripted() -> (Arc<Self>, Script) {
        let (sender, events) = crossbeam_channel::bounded(CAPACITY);
        Self::over(None, sender, Events::in_order(events))
    }

    /// The same, but changes of assignment pass the records that wait, as those of a group do.
    pub fn scripted_group() -> (Arc<Self>, Script) {
        let (control, announced) = crossbeam_channel::unbounded();
        let (sender, records) = crossbeam_channel::bounded(CAPACITY);
        Self::over(Some(control), sender, Events::new(announced, records))
    }

    fn over(
        control: Option<Sender<SourceEvent>>,
        sender: Sender<SourceEvent>,
        events: Events,
    ) -> (Arc<Self>, Script) {
        let shared = Arc::new(Shared::default());
        let script = Script {
            control,
            events: sender,
            shared: Arc::clone(&shared),
        };
        let source = Self {
            events,
            _keep_open: script.clone(),
            shared,
        };
        (Arc::new(source), script)
    }
}

impl Source for ScriptedSource {
    fn events(&self) -> Events {
        self.events.clone()
    }

    fn commit(&self, offsets: &[CommitOffset], _: CommitMode) -> Result<(), SourceError> {
        let failures = &self.shared.failures;
        let fails = failures
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
                left.checked_sub(1)
            })
            .is_ok();
        if fails {
            return Err(SourceError::Transient(
                "the script lets this commit fail".to_owned(),
            ));
        }
        self.shared.commits.lock().extend_from_slice(offsets);
        self.shared.committed.notify_all();
        Ok(())
    }

    fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
    }

    fn close(&self) {
        self.shared.closed.store(true, Ordering::Release);
    }
}

impl Script {
    /// Delivers one event; waits while the reader is more than the channel's capacity behind. False
    /// when the source is stopped and the event was dropped.
    pub fn send(&self, event: SourceEvent) -> bool {
        let control = match event {
            SourceEvent::Assigned { .. }
            | SourceEvent::Revoked { .. }
            | SourceEvent::Lost { .. }
            | SourceEvent::Failed(_) => self.control.as_ref(),
            SourceEvent::Records(_) | SourceEvent::Ended => None,
        };
        !self.is_stopped() && control.unwrap_or(&self.events).send(event).is_ok()
    }

    /// Assigns partitions of `topic`.
    pub fn assign(&self, topic: &str, partitions: &[i32], generation: u64) -> bool {
        self.send(SourceEvent::Assigned {
            partitions: partitions
                .iter()
                .map(|number| TopicPartition::new(topic, *number))
                .collect(),
            generation: Generation(generation),
        })
    }

    /// Delivers records.
    pub fn records(&self, records: Vec<SourceRecord>) -> bool {
        records.is_empty() || self.send(SourceEvent::Records(records))
    }

    /// Takes partitions of `topic` away at once, as an expired session does.
    pub fn lose(&self, topic: &str, partitions: &[i32]) -> bool {
        self.send(SourceEvent::Lost {
            partitions: partitions
                .iter()
                .map(|number| TopicPartition::new(topic, *number))
                .collect(),
        })
    }

    /// Takes partitions of `topic` away in order; the answer holds the last offsets to commit.
    pub fn revoke(&self, topic: &str, partitions: &[i32]) -> Receiver<Vec<CommitOffset>> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(SourceEvent::Revoked {
            partitions: partitions
                .iter()
                .map(|number| TopicPartition::new(topic, *number))
                .collect(),
            reply,
        });
        answer
    }

    /// Lets the next `count` commits fail as transient.
    pub fn fail_commits(&self, count: usize) {
        self.shared.failures.store(count, Ordering::Release);
    }

    /// All commits in their order.
    pub fn commits(&self) -> Vec<CommitOffset> {
        self.shared.commits.lock().clone()
    }

    /// The last committed offset of each partition.
    pub fn committed(&self) -> HashMap<TopicPartition, i64> {
        let commits = self.shared.commits.lock();
        commits
            .iter()
            .map(|commit| (commit.partition.clone(), commit.next_offset))
            .collect()
    }

    /// Waits until `partition` is committed up to `next_offset`; false when it is not in time.
    pub fn wait_for_commit(
        &self,
        partition: &TopicPartition,
        next_offset: i64,
        timeout: Duration,
    ) -> bool {
        let mut commits = self.shared.commits.lock();
        let result = self.shared.committed.wait_while_for(
            &mut commits,
            |commits| {
                !commits.iter().any(|commit| {
                    commit.partition == *partition && commit.next_offset >= next_offset
                })
            },
            timeout,
        );
        !result.timed_out()
    }

    /// Whether the source was told to stop.
    pub fn is_stopped(&self) -> bool {
        self.shared.stopped.load(Ordering::Acquire)
    }

    /// Whether the source was told to close.
    pub fn is_closed(&self) -> bool {
        self.shared.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset(next_offset: i64) -> CommitOffset {
        CommitOffset {
            partition: TopicPartition::new("news", 0),
            next_offset,
            generation: Generation(1),
        }
    }

    #[test]
    fn delivers_in_order_and_records_commits() {
        let (source, script) = ScriptedSource::scripted();
        assert!(script.assign("news", &[0], 1));
        assert!(script.send(SourceEvent::Ended));
        let events = source.events();
        assert!(matches!(
            events.recv().unwrap(),
            SourceEvent::Assigned { .. }
        ));
        assert!(matches!(events.recv().unwrap(), SourceEvent::Ended));
        script.fail_commits(1);
        assert!(source.commit(&[offset(1)], CommitMode::Wait).is_err());
        source.commit(&[offset(2)], CommitMode::Wait).unwrap();
        assert_eq!(script.commits(), [offset(2)]);
        let news = TopicPartition::new("news", 0);
        assert_eq!(script.committed()[&news], 2);
        assert!(script.wait_for_commit(&news, 2, Duration::ZERO));
        assert!(!script.wait_for_commit(&news, 3, Duration::from_millis(1)));
    }

    #[test]
    fn delivers_nothing_after_a_stop() {
        let (source, script) = ScriptedSource::scripted();
        source.stop();
        source.close();
        assert!(!script.send(SourceEvent::Ended));
        assert!(script.is_stopped() && script.is_closed());
        assert!(source.events().try_recv().is_err());
    }
}
