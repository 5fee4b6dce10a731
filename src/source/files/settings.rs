//! The section `backfill` of the configuration.

use std::path::PathBuf;

use crate::keys::{Violation, section};

section! {
    /// How bounded jobs over files remember and order what they read.
    #[derive(Eq)]
    pub struct BackfillSettings in "backfill" {
        /// Where a record read from a file says how old it is: a JSON pointer to a time (RFC 3339,
        /// "YYYY-MM-DD HH:MM:SS" in `decode.time_zone`, or seconds or milliseconds since 1970). Of two records with one
        /// id the older never overwrites the newer, also between a file and the live topic. "" or a record without
        /// such a time: older than everything that has one.
        timestamp_field: String = "/published_at".to_owned();
        /// Folder that remembers how far each job over files has come, so that an unfinished one resumes there, and
        /// that holds the dead letters of such jobs. A path, relative to the working directory.
        state_dir: PathBuf = PathBuf::from("state/backfill");
    }
}

impl BackfillSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = Vec::new();
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
        violations
    }
}
