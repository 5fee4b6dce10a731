//! What can be configured about decoding, and the bounds of each value.
//! Must not know where a value came from.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::json::Mapping;
use super::pointers::FieldPointers;
use super::text::{TextRule, TextSettings};
use crate::keys::{Declared, Violation, section};
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

section! {
    /// How records become documents, and documents the text for the model.
    #[derive(Eq)]
    pub struct DecodeSettings in "decode" {
        /// How records are written: "json" (objects; headers are not looked at), "cloudevents" (CloudEvents 1.0,
        /// binary or structured; anything else is rejected), or "auto" (decided by each record's headers).
        format: Format = Format::Auto;
        /// Which id names a document: "key" (the record's key; an id in the value has to be equal to it, a value
        /// without an id takes it) or "body" (the id in the value whatever the key is; the key where there is none).
        /// With "body", a deletion (null value) still deletes the document that its key names.
        id_from: IdFrom = IdFrom::Key;
        /// Largest value of a record, in bytes; larger ones become dead letters.
        max_value_bytes: usize = 4 << 20, in 1 << 10..=LARGEST_VALUE;
        /// Deepest nesting of arrays and objects in a value.
        max_depth: usize = 32, in 1..=HIGHEST_MAX_DEPTH;
        /// Whether fields that are not named in the section `decode.fields` are kept as attributes in the store.
        keep_unmapped: bool = true;
        /// Zone of times that name none: "UTC", an offset such as "+08:00", or an IANA name such as "Asia/Shanghai"
        /// (needs the system's time zone data). It applies to the time of publication, to the age of records of files
        /// (backfill.timestamp_field) and to --from and --to; Parquet timestamps that are not adjusted to UTC name
        /// none.
        time_zone: String = "UTC".to_owned();
        /// How far in the future a record's time may lie, in minutes. A later one (microseconds taken for
        /// milliseconds, an embargo date) would win against every update that follows: it counts as no time, is warned
        /// about and counted (tcbert_future_times_total), and what is stored with one yields to the next write. The
        /// time of publication in the payload stays as it is.
        future_tolerance_minutes: u64 = 24 * 60, in 0..=HIGHEST_FUTURE_TOLERANCE_MINUTES;
        /// What the model reads of a document: "title_and_body", "title" or "body". The two latter read the other part
        /// where theirs is blank.
        text: TextRule = TextRule::TitleAndBody;
        /// What stands between title and body. At most 32 characters.
        text_separator: String = "。".to_owned();
        /// Characters given to the tokeniser at most; a longer text is cut there and its document marked `truncated`.
        /// The model reads at most 512 tokens (a Chinese character is one).
        max_text_chars: usize = 4096, in 16..=1_000_000;
        /// Where the fields stand.
        fields: FieldPointers = FieldPointers::default();
    }
}

impl DecodeSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = self.out_of_range();
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
        violations
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
