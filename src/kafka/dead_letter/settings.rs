//! The section `dead_letter` of the configuration: keys, defaults and bounds.

use serde::Deserialize;

use crate::bounds::{Violation, check_range};
use crate::kafka::properties::Properties;

/// The section `dead_letter`; every key is described in `config/default.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetterSettings {
    /// Name under which letters are sent: the header `__connect.errors.connector.name`.
    pub connector_name: String,
    /// Folder for records that the broker refuses for their size.
    pub spool_dir: String,
    /// Bytes that the folder may hold.
    pub spool_max_bytes: u64,
    /// Bytes of a value that are kept where the whole is too large for the broker.
    pub cut_value_bytes: usize,
    /// Longest pause between two attempts.
    pub retry_max_ms: u64,
    /// Further properties for librdkafka's producer.
    pub properties: Properties,
}

impl Default for DeadLetterSettings {
    fn default() -> Self {
        Self {
            connector_name: "tcbert-worker".to_owned(),
            spool_dir: "data/dead-letters".to_owned(),
            spool_max_bytes: 1024 * 1024 * 1024,
            cut_value_bytes: 16 * 1024,
            retry_max_ms: 10_000,
            properties: Properties::default(),
        }
    }
}

impl DeadLetterSettings {
    /// Notes values outside what their keys allow; keys are given below the section.
    pub fn validate(&self, violations: &mut Vec<Violation>) {
        for (key, value) in [
            ("connector_name", &self.connector_name),
            ("spool_dir", &self.spool_dir),
        ] {
            if value.trim().is_empty() {
                violations.push(Violation::new(key, value, "not empty"));
            }
        }
        let mebibyte = 1024 * 1024;
        check_range(
            violations,
            "spool_max_bytes",
            self.spool_max_bytes,
            mebibyte,
            mebibyte << 30,
        );
        check_range(
            violations,
            "cut_value_bytes",
            self.cut_value_bytes,
            0,
            1024 * 1024,
        );
        check_range(
            violations,
            "retry_max_ms",
            self.retry_max_ms,
            100,
            3_600_000,
        );
        self.properties.validate("properties", violations);
    }
}
