//! What can be configured about reading documents from files.
//! Must not know where a value came from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bounds::Violation;

/// How bounded runs over files remember and order what they read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackfillSettings {
    /// JSON pointer to the time that says how old a file's record is; empty for none.
    pub timestamp_field: String,
    /// Folder that holds how far each job has come.
    pub state_dir: PathBuf,
}

impl Default for BackfillSettings {
    fn default() -> Self {
        Self {
            timestamp_field: "/published_at".to_owned(),
            state_dir: PathBuf::from("state/backfill"),
        }
    }
}

impl BackfillSettings {
    /// Notes every value that is not allowed; keys are relative to the section.
    pub fn validate(&self, violations: &mut Vec<Violation>) {
        if !self.timestamp_field.is_empty() && !self.timestamp_field.starts_with('/') {
            violations.push(Violation::new(
                "timestamp_field",
                &self.timestamp_field,
                "a JSON pointer such as \"/published_at\", or \"\" for none",
            ));
        }
        if self.state_dir.as_os_str().is_empty() {
            violations.push(Violation::new("state_dir", "", "a folder"));
        }
    }
}
