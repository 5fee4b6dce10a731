//! The section `dead_letter` of the configuration.

use crate::kafka::properties::Properties;
use crate::keys::{Declared, Violation, section};

section! {
    /// How dead letters are sent, and where records go that are too large for their topic.
    #[derive(Eq)]
    pub struct DeadLetterSettings in "dead_letter" {
        /// Who sends a dead letter: its header __connect.errors.connector.name.
        connector_name: String = "tcbert-worker".to_owned();
        /// Folder for records that the broker rejects for their size. Their dead letter has a cut value and names the
        /// file. It should be on a volume that outlives the worker; several workers may share it. A worker that cannot
        /// write there does not start.
        spool_dir: String = "data/dead-letters".to_owned();
        /// Bytes that the folder may hold. When it is full the worker waits and says so; nothing is dropped.
        spool_max_bytes: u64 = 1 << 30, in 1 << 20..=1 << 50;
        /// Bytes of a value that the dead letter keeps where the whole is too large.
        cut_value_bytes: usize = 16 << 10, in 0..=1 << 20;
        /// Longest pause between two attempts to send a dead letter, in milliseconds. The first is a tenth of a
        /// second; it doubles.
        retry_max_ms: u64 = 10_000, in 100..=3_600_000;
        /// Further properties for the producer of dead letters, by librdkafka's own names.
        properties: Properties = Properties::default();
    }
}

impl DeadLetterSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = self.out_of_range();
        for (key, value) in [
            ("connector_name", &self.connector_name),
            ("spool_dir", &self.spool_dir),
        ] {
            if value.trim().is_empty() {
                violations.push(Violation::new(key, value, "not empty"));
            }
        }
        self.properties.validate("properties", &mut violations);
        violations
    }
}
