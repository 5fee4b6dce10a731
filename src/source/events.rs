//! The channels between a source and the reader of its events. Changes of assignment have a channel of
//! their own, without bound: none of them waits for records that the reader has no room for, and none is
//! lost when sessions expire one after the other.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvError, RecvTimeoutError, Select, TryRecvError};

use super::SourceEvent;

/// What a source says, for its one reader.
#[derive(Debug, Clone)]
pub struct Events {
    control: Option<Receiver<SourceEvent>>,
    records: Receiver<SourceEvent>,
}

impl Events {
    /// `control` comes before what waits in `records`. An assignment has to be sent before the records
    /// that belong to it.
    pub fn new(control: Receiver<SourceEvent>, records: Receiver<SourceEvent>) -> Self {
        Self {
            control: Some(control),
            records,
        }
    }

    /// All events in the order in which they are sent.
    pub fn in_order(events: Receiver<SourceEvent>) -> Self {
        Self {
            control: None,
            records: events,
        }
    }

    /// The next event, if there is one.
    ///
    /// # Errors
    /// Where none waits, or the source has gone.
    pub fn try_recv(&self) -> Result<SourceEvent, TryRecvError> {
        let Some(control) = &self.control else {
            return self.records.try_recv();
        };
        // Looked at first: the assignment of records that wait by now has arrived by then as well.
        let waits = !self.records.is_empty();
        match control.try_recv() {
            Ok(event) => Ok(event),
            Err(TryRecvError::Disconnected) => self.records.try_recv(),
            Err(TryRecvError::Empty) if waits => self.records.try_recv(),
            Err(TryRecvError::Empty) => Err(TryRecvError::Empty),
        }
    }

    /// Waits for the next event, at most `wait`.
    ///
    /// # Errors
    /// Where none has come, or the source has gone.
    pub fn recv_timeout(&self, wait: Duration) -> Result<SourceEvent, RecvTimeoutError> {
        let Some(control) = &self.control else {
            return self.records.recv_timeout(wait);
        };
        let deadline = Instant::now() + wait;
        loop {
            match self.try_recv() {
                Ok(event) => return Ok(event),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {}
            }
            let mut select = Select::new();
            select.recv(control);
            select.recv(&self.records);
            if select.ready_deadline(deadline).is_err() {
                return Err(RecvTimeoutError::Timeout);
            }
        }
    }

    /// Waits for the next event.
    ///
    /// # Errors
    /// Where the source has gone.
    pub fn recv(&self) -> Result<SourceEvent, RecvError> {
        loop {
            match self.recv_timeout(Duration::from_secs(60)) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(RecvError),
            }
        }
    }

    /// Waits for an event that does not wait for room, at most `wait`; `None` where none has come.
    pub fn control_within(&self, wait: Duration) -> Option<SourceEvent> {
        match self
            .control
            .as_ref()
            .map(|control| control.recv_timeout(wait))
        {
            Some(Ok(event)) => Some(event),
            Some(Err(RecvTimeoutError::Timeout)) => None,
            Some(Err(RecvTimeoutError::Disconnected)) | None => {
                std::thread::sleep(wait);
                None
            }
        }
    }

    /// Whether an event waits that does not wait for room.
    pub fn has_control(&self) -> bool {
        let waits = |control: &Receiver<SourceEvent>| !control.is_empty();
        self.control.as_ref().is_some_and(waits)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Sender, bounded, unbounded};

    use super::*;
    use crate::document::{Generation, RecordPosition, TopicPartition};
    use crate::source::SourceRecord;

    fn channels() -> (Sender<SourceEvent>, Sender<SourceEvent>, Events) {
        let ((control, announced), (records, delivered)) = (unbounded(), bounded(4));
        (control, records, Events::new(announced, delivered))
    }

    fn lost(number: i32) -> SourceEvent {
        SourceEvent::Lost {
            partitions: vec![TopicPartition::new("news", number)],
        }
    }

    fn records() -> SourceEvent {
        SourceEvent::Records(vec![SourceRecord {
            position: RecordPosition {
                partition: TopicPartition::new("news", 0),
                offset: 0,
            },
            generation: Generation(1),
            timestamp_ms: None,
            key: None,
            value: None,
            headers: Vec::new(),
            fault: None,
        }])
    }

    #[test]
    fn control_passes_what_waits_and_any_number_of_it_is_kept() {
        let (control, sender, events) = channels();
        sender.send(records()).unwrap();
        for number in 0..500 {
            control.send(lost(number)).unwrap();
        }
        assert!(events.has_control());
        for number in 0..500 {
            let event = events.recv().unwrap();
            assert!(
                matches!(&event, SourceEvent::Lost { partitions } if partitions[0].partition == number),
                "{event:?}"
            );
        }
        assert!(!events.has_control());
        assert!(matches!(events.try_recv(), Ok(SourceEvent::Records(_))));
        assert!(matches!(events.try_recv(), Err(TryRecvError::Empty)));
    }

    #[test]
    fn what_is_left_comes_before_the_end_of_the_source() {
        let (control, sender, events) = channels();
        let short = Duration::from_millis(5);
        assert!(events.control_within(short).is_none());
        assert_eq!(
            events.recv_timeout(short).unwrap_err(),
            RecvTimeoutError::Timeout
        );
        sender.send(records()).unwrap();
        control.send(lost(0)).unwrap();
        drop((control, sender));
        assert!(matches!(events.recv(), Ok(SourceEvent::Lost { .. })));
        assert!(matches!(events.recv(), Ok(SourceEvent::Records(_))));
        assert!(events.recv().is_err());
        assert!(events.control_within(short).is_none());
    }
}
