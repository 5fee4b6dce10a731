//! What can be configured about decoding, and the bounds of each value.
//! Must not know where a value came from.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::json::Mapping;
use super::pointers::FieldPointers;
use super::text::{TextRule, TextSettings};
use crate::bounds::{Violation, check_range};
use crate::source::{LARGEST_VALUE, timestamp};

/// Deepest nesting that can be allowed: below the JSON parser's own recursion limit of 128.
const HIGHEST_MAX_DEPTH: usize = 120;

/// Ten years: whoever wants times of the future to decide may have them.
const HIGHEST_FUTURE_TOLERANCE_MINUTES: u64 = 10 * 366 * 24 * 60;

/// Longest separator between title and body, in characters.
const LONGEST_SEPARATOR_CHARS: usize = 32;

/// How records are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Decided by each record's headers: a CloudEvent if they say so, JSON otherwise.
    #[default]
    Auto,
    /// JSON objects; headers are not looked at.
    Json,
    /// CloudEvents 1.0, binary or structured; anything else is refused.
    CloudEvents,
}

/// Which id names the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdFrom {
    /// The record's key; an id in the body has to be equal to it.
    #[default]
    Key,
    /// The body's id, whatever the key is; the key where the body has none.
    Body,
}

/// How records become documents, and documents the text for the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecodeSettings {
    /// How records are written.
    pub format: Format,
    /// Which id names the document.
    pub id_from: IdFrom,
    /// Largest value in bytes.
    pub max_value_bytes: usize,
    /// Deepest nesting of arrays and objects.
    pub max_depth: usize,
    /// Whether fields that are not mapped are kept as attributes.
    pub keep_unmapped: bool,
    /// Zone of times that name none: an IANA name or an offset such as `+08:00`.
    pub time_zone: String,
    /// How far in the future a record's time may lie; a later one counts as no time.
    pub future_tolerance_minutes: u64,
    /// Which parts of a document the model reads.
    pub text: TextRule,
    /// What stands between title and body.
    pub text_separator: String,
    /// Characters given to the tokeniser at most.
    pub max_text_chars: usize,
    /// Where the fields stand.
    pub fields: FieldPointers,
}

impl Default for DecodeSettings {
    fn default() -> Self {
        Self {
            format: Format::default(),
            id_from: IdFrom::default(),
            max_value_bytes: 4 << 20,
            max_depth: 32,
            keep_unmapped: true,
            time_zone: "UTC".to_owned(),
            future_tolerance_minutes: 24 * 60,
            text: TextRule::default(),
            text_separator: "。".to_owned(),
            max_text_chars: 4096,
            fields: FieldPointers::default(),
        }
    }
}

impl DecodeSettings {
    /// Notes every value that is not allowed; keys are relative to the section.
    pub fn validate(&self, violations: &mut Vec<Violation>) {
        check_range(
            violations,
            "max_value_bytes",
            self.max_value_bytes,
            1 << 10,
            LARGEST_VALUE,
        );
        check_range(
            violations,
            "max_depth",
            self.max_depth,
            1,
            HIGHEST_MAX_DEPTH,
        );
        check_range(
            violations,
            "max_text_chars",
            self.max_text_chars,
            16,
            1_000_000,
        );
        check_range(
            violations,
            "future_tolerance_minutes",
            self.future_tolerance_minutes,
            0,
            HIGHEST_FUTURE_TOLERANCE_MINUTES,
        );
        if self.text_separator.chars().count() > LONGEST_SEPARATOR_CHARS {
            violations.push(Violation::new(
                "text_separator",
                &self.text_separator,
                format!("a text of at most {LONGEST_SEPARATOR_CHARS} characters"),
            ));
        }
        if timestamp::zone(&self.time_zone).is_none() {
            violations.push(Violation::new(
                "time_zone",
                &self.time_zone,
                "\"UTC\", an IANA name such as \"Asia/Shanghai\" (needs the system's time zone data), or an offset such as \"+08:00\"",
            ));
        }
        if let Err(found) = Mapping::new(&self.fields, self.keep_unmapped) {
            violations.extend(found);
        }
        if self.fields.title.is_empty() && self.fields.text.is_empty() {
            violations.push(Violation::new(
                "fields",
                "without title and text",
                "a pointer for the title, the text or both",
            ));
        }
    }

    /// The zone of times that name none; UTC where `time_zone` is none.
    pub fn zone(&self) -> TimeZone {
        timestamp::zone(&self.time_zone).unwrap_or(TimeZone::UTC)
    }

    /// How far in the future a record's time may lie.
    pub fn future_tolerance(&self) -> Duration {
        Duration::from_secs(self.future_tolerance_minutes * 60)
    }

    /// How the text for the model is composed.
    pub fn text_settings(&self) -> TextSettings {
        TextSettings {
            rule: self.text,
            separator: self.text_separator.clone(),
            max_chars: self.max_text_chars,
        }
    }
}

/// Settings that no decoder can be built from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}",
    .0.iter()
        .map(|v| format!("`decode.{}` is {:?}; allowed is {}", v.key, v.value, v.allowed))
        .collect::<Vec<_>>()
        .join("\n")
)]
pub struct InvalidDecodeSettings(pub Vec<Violation>);
