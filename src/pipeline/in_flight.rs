//! A record on its way through the stages. Knows no stage.

use super::ledger::Ticket;
use crate::source::SourceRecord;

/// A record that the ledger holds, with what the stages have made of it so far. The record itself is kept until
/// it is durable: a rejection sends it to the dead letters as it came.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    /// Its place in the ledger.
    pub(super) ticket: Ticket,
    /// As the source delivered it.
    pub(super) record: SourceRecord,
    /// What the last stage has made of it.
    pub(super) body: T,
}

impl<T> InFlight<T> {
    /// The same record with what the next stage makes of it.
    pub(super) fn map<U>(self, stage: impl FnOnce(T) -> U) -> InFlight<U> {
        InFlight {
            ticket: self.ticket,
            record: self.record,
            body: stage(self.body),
        }
    }
}
