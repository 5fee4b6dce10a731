//! Why a record is refused: one typed error, each with a short stable name for dead-letter headers.
//! Must not hold more of a document than an excerpt.

use std::fmt;

use crate::document::DocumentIdError;

/// Characters of a record's own content that a message repeats.
const EXCERPT_CHARS: usize = 60;

/// Which part of a record an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The record's key.
    Key,
    /// The record's value.
    Value,
    /// The id inside the value.
    BodyId,
    /// The `id` of a CloudEvent.
    EventId,
    /// A header.
    Header,
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Key => "the record's key",
            Self::Value => "the record's value",
            Self::BodyId => "the id in the record's value",
            Self::EventId => "the id of the CloudEvent",
            Self::Header => "a header of the record",
        })
    }
}

/// Why a record is no document. Permanent: the same record gives the same error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than allowed.
    #[error("the value has {bytes} bytes, decode.max_value_bytes allows {limit}")]
    Oversized {
        /// Size of the value.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// Arrays or objects nested too deeply.
    #[error("the JSON is nested more than {limit} levels deep (decode.max_depth)")]
    TooDeep {
        /// The bound.
        limit: usize,
    },
    /// What the source could not make one value of.
    #[error("{reason}")]
    InvalidRow {
        /// What the source said.
        reason: String,
    },
    /// Bytes that are no UTF-8.
    #[error("{part} is not UTF-8: byte {at} is wrong; send UTF-8")]
    InvalidUtf8 {
        /// Where.
        part: Part,
        /// Index of the first wrong byte.
        at: usize,
    },
    /// A `\ud800` escape without its second half: no character.
    #[error("the JSON escapes half a surrogate pair in {place}, which is no character")]
    LoneSurrogate {
        /// Line and column.
        place: String,
    },
    /// No JSON.
    #[error("the value is not JSON: {reason}")]
    InvalidJson {
        /// What the parser said, with line and column.
        reason: String,
    },
    /// The framing of a schema registry.
    #[error(
        "the value begins with a zero byte, as serialisers of a schema registry write it; produce plain JSON"
    )]
    FramedValue,
    /// JSON, but not an object with fields.
    #[error("the value is JSON but {found}, not an object with fields")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A field of another type.
    #[error("the {field} at {pointer} is {found}; it has to be {expected}")]
    WrongType {
        /// Which field.
        field: &'static str,
        /// Where it was looked for.
        pointer: String,
        /// What it has to be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// Neither a key nor an id in the body.
    #[error(
        "there is no id: the record has no key and its value nothing at {pointer:?} (decode.fields.id)"
    )]
    MissingId {
        /// Where it was looked for.
        pointer: String,
    },
    /// An id that cannot be one.
    #[error("{part} cannot be used as id: {reason}")]
    InvalidId {
        /// Where it stands.
        part: Part,
        /// What is wrong with it.
        reason: DocumentIdError,
    },
    /// Key and body name different documents.
    #[error(
        "the record's key is {key:?} but the id in its value {body:?}; make them equal, or set decode.id_from = \"body\""
    )]
    IdMismatch {
        /// The key, shortened.
        key: String,
        /// The body's id, shortened.
        body: String,
    },
    /// A time that cannot be read.
    #[error(
        "the time {value:?} at {pointer} cannot be read; use RFC 3339 (2026-01-31T08:00:00+08:00), YYYY-MM-DD HH:MM:SS, or seconds or milliseconds since 1970"
    )]
    InvalidTime {
        /// Where it stands.
        pointer: String,
        /// What stands there, shortened.
        value: String,
    },
    /// Nothing to tag.
    #[error(
        "there is no text: both the title ({title:?}) and the text ({text:?}) are empty or missing"
    )]
    EmptyText {
        /// Where the title was looked for.
        title: String,
        /// Where the text was looked for.
        text: String,
    },
    /// A null value without a key.
    #[error("the value is null (a deletion) but the record has no key that says which document")]
    TombstoneWithoutKey,
    /// `format = "cloudevents"`, but the record is none.
    #[error(
        "the record is no CloudEvent: it has neither ce_specversion among its headers nor the content-type application/cloudevents+json"
    )]
    NotCloudEvent,
    /// A CloudEvent without or with a wrong attribute.
    #[error("the CloudEvent's attribute `{attribute}` {reason}")]
    InvalidCloudEvent {
        /// Which attribute.
        attribute: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Data of a type that holds no text.
    #[error(
        "the content type {found:?} cannot be read; use application/json or text/plain in UTF-8"
    )]
    UnsupportedContentType {
        /// The content type, shortened.
        found: String,
    },
}

impl DecodeError {
    /// All that [`class`](Self::class) gives.
    pub const CLASSES: [&str; 18] = [
        "oversized",
        "too_deep",
        "invalid_row",
        "invalid_utf8",
        "lone_surrogate",
        "invalid_json",
        "framed_value",
        "not_an_object",
        "wrong_type",
        "missing_id",
        "invalid_id",
        "id_mismatch",
        "invalid_time",
        "empty_text",
        "tombstone_without_key",
        "not_a_cloudevent",
        "invalid_cloudevent",
        "unsupported_content_type",
    ];

    /// Short stable name, such as `invalid_json`: dead-letter headers and metrics carry it.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Oversized { .. } => "oversized",
            Self::TooDeep { .. } => "too_deep",
            Self::InvalidRow { .. } => "invalid_row",
            Self::InvalidUtf8 { .. } => "invalid_utf8",
            Self::LoneSurrogate { .. } => "lone_surrogate",
            Self::InvalidJson { .. } => "invalid_json",
            Self::FramedValue => "framed_value",
            Self::NotAnObject { .. } => "not_an_object",
            Self::WrongType { .. } => "wrong_type",
            Self::MissingId { .. } => "missing_id",
            Self::InvalidId { .. } => "invalid_id",
            Self::IdMismatch { .. } => "id_mismatch",
            Self::InvalidTime { .. } => "invalid_time",
            Self::EmptyText { .. } => "empty_text",
            Self::TombstoneWithoutKey => "tombstone_without_key",
            Self::NotCloudEvent => "not_a_cloudevent",
            Self::InvalidCloudEvent { .. } => "invalid_cloudevent",
            Self::UnsupportedContentType { .. } => "unsupported_content_type",
        }
    }

    /// What the JSON parser refused.
    pub(super) fn of_json(error: &serde_json::Error) -> Self {
        let reason = error.to_string();
        // The parser has no typed code for these; the tests hold its wording.
        let half_pair = [
            "lone leading surrogate in hex escape",
            "unexpected end of hex escape",
        ];
        if half_pair.iter().any(|start| reason.starts_with(start)) {
            return Self::LoneSurrogate {
                place: format!("line {} column {}", error.line(), error.column()),
            };
        }
        Self::InvalidJson { reason }
    }
}

/// The beginning of `text`, for messages.
pub(super) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(EXCERPT_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}
