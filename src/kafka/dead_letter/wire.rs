//! A dead letter on the wire: the original record and headers that say where it came from and why
//! it was refused, named as Kafka Connect names them. Pure.

use crate::document::{RecordPosition, TopicPartition};
use crate::source::{DeadLetter, Header, RecordFault, SourceRecord};

/// First of the headers that are added: what stands before it is the original record's.
const TOPIC: &str = "__connect.errors.topic";
const PARTITION: &str = "__connect.errors.partition";
const OFFSET: &str = "__connect.errors.offset";
const CONNECTOR: &str = "__connect.errors.connector.name";
const TASK: &str = "__connect.errors.task.id";
const STAGE: &str = "__connect.errors.stage";
const CLASS: &str = "__connect.errors.class.name";
const EXCEPTION_CLASS: &str = "__connect.errors.exception.class.name";
const EXCEPTION_MESSAGE: &str = "__connect.errors.exception.message";
/// The record's own timestamp in milliseconds since the epoch; null where it has none. A dead letter
/// is sent with the present time, or a topic that deletes by age would drop the one of an old record
/// at once. Absent in those of earlier versions, which were sent with the record's timestamp.
const TIMESTAMP: &str = "__connect.errors.timestamp";
/// Bytes that the value had before it was cut; present only where it was.
const VALUE_SIZE: &str = "__connect.errors.value.size";
/// SHA-256 of a value that was too large to be kept, in hexadecimal digits.
const VALUE_SHA256: &str = "__connect.errors.value.sha256";
/// File in the spool folder of the worker that holds the whole record.
const SPOOL_FILE: &str = "__connect.errors.spool.file";

/// Longest message kept; a reason is a sentence, not a document.
const MAX_MESSAGE_BYTES: usize = 4 * 1024;
/// Bytes of a key that are kept where even a letter without a value is too large.
const BARE_KEY_BYTES: usize = 1024;

/// How much of a record its letter holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Form {
    /// All of it.
    Whole,
    /// The value's first bytes; all of it is in the spool.
    Cut { value_bytes: usize, file: String },
    /// The key's first bytes and no value: key or headers are too large themselves.
    Bare { file: String },
}

/// What is sent for a letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Envelope {
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Option<Vec<u8>>,
    pub(super) headers: Vec<Header>,
}

/// Packs a letter.
pub(super) fn pack(letter: &DeadLetter, connector: &str, form: &Form) -> Envelope {
    let record = &letter.record;
    let mut envelope = Envelope {
        key: record.key.clone(),
        value: record.value.clone(),
        headers: record.headers.clone(),
    };
    let file = match form {
        Form::Whole => None,
        Form::Cut { value_bytes, file } => {
            if let Some(value) = &mut envelope.value {
                value.truncate(*value_bytes);
            }
            Some(file)
        }
        Form::Bare { file } => {
            if let Some(key) = &mut envelope.key {
                key.truncate(BARE_KEY_BYTES);
            }
            envelope.value = None;
            envelope.headers.clear();
            Some(file)
        }
    };
    let RecordPosition { partition, offset } = &record.position;
    let mut add = |name: &str, value: Option<String>| {
        envelope.headers.push(Header {
            name: name.to_owned(),
            value: value.map(String::into_bytes),
        });
    };
    let timestamp = record.timestamp_ms.map(|ms| ms.to_string());
    let mut say = |name: &str, value: String| add(name, Some(value));
    say(TOPIC, partition.topic.to_string());
    say(PARTITION, partition.partition.to_string());
    say(OFFSET, offset.to_string());
    say(CONNECTOR, connector.to_owned());
    say(TASK, "0".to_owned());
    say(STAGE, letter.stage.clone());
    say(CLASS, format!("tcbert_worker::{}", letter.stage));
    say(EXCEPTION_CLASS, letter.class.clone());
    say(EXCEPTION_MESSAGE, shortened(&letter.message).to_owned());
    let omitted = match &record.fault {
        Some(RecordFault::TooLarge { bytes, sha256 }) => Some((bytes, sha256)),
        Some(RecordFault::NotOneValue(_)) | None => None,
    };
    if let Some((bytes, sha256)) = omitted {
        say(VALUE_SIZE, bytes.to_string());
        say(VALUE_SHA256, sha256.to_string());
    }
    if let Some(file) = file {
        if omitted.is_none() {
            let size = record.value.as_ref().map_or(0, Vec::len);
            say(VALUE_SIZE, size.to_string());
        }
        say(SPOOL_FILE, file.clone());
    }
    add(TIMESTAMP, timestamp);
    envelope
}

fn shortened(message: &str) -> &str {
    message
        .get(..message.floor_char_boundary(MAX_MESSAGE_BYTES))
        .unwrap_or(message)
}

/// What of a record is missing in its letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutValue {
    /// Bytes that the value had.
    pub value_bytes: u64,
    /// Where the rest is.
    pub rest: Rest,
}

/// Where the rest of a value is that its dead letter does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rest {
    /// The whole record is in this file of the spool folder of the worker that sent the dead letter.
    Spooled(String),
    /// Nowhere: it was too large to be kept. Its SHA-256 in hexadecimal digits.
    Omitted(String),
}

/// A letter as it was found in the dead-letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDeadLetter {
    /// Where the letter stands.
    pub position: RecordPosition,
    /// Where the record stood; `None` where the headers do not say it.
    pub origin: Option<RecordPosition>,
    /// The stage that refused it.
    pub stage: String,
    /// Short stable name of the reason.
    pub class: String,
    /// What was wrong.
    pub message: String,
    /// Who sent the letter.
    pub connector: String,
    /// The record's timestamp in milliseconds since the epoch.
    pub timestamp_ms: Option<i64>,
    /// The record's key.
    pub key: Option<Vec<u8>>,
    /// The record's value, as much of it as the letter holds.
    pub value: Option<Vec<u8>>,
    /// The record's own headers.
    pub headers: Vec<Header>,
    /// What is missing, where the broker refused the whole for its size.
    pub cut: Option<CutValue>,
}

impl StoredDeadLetter {
    /// Reads a record of the dead-letter topic, whoever wrote it. What its headers do not say
    /// stays empty; nothing in them is trusted to be well-formed.
    pub fn parse(record: SourceRecord) -> Self {
        let mut headers = record.headers;
        let added = headers
            .iter()
            .rposition(|header| header.name == TOPIC)
            .map_or_else(Vec::new, |first| headers.split_off(first));
        let text = |name: &str| -> Option<String> {
            let header = added.iter().rfind(|header| header.name == name)?;
            let value = header.value.as_deref()?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        let origin = || {
            let partition = text(PARTITION)?
                .parse()
                .ok()
                .filter(|number| *number >= 0)?;
            let offset = text(OFFSET)?.parse().ok().filter(|offset| *offset >= 0)?;
            let topic = text(TOPIC).filter(|topic| !topic.is_empty())?;
            Some(RecordPosition {
                partition: TopicPartition::new(topic, partition),
                offset,
            })
        };
        let timestamp_ms = match added.iter().rfind(|header| header.name == TIMESTAMP) {
            Some(_) => text(TIMESTAMP).and_then(|ms| ms.parse().ok().filter(|ms| *ms >= 0)),
            None => record.timestamp_ms,
        };
        let cut = || {
            Some(CutValue {
                value_bytes: text(VALUE_SIZE)?.parse().ok()?,
                rest: match text(VALUE_SHA256) {
                    Some(sha256) => Rest::Omitted(sha256),
                    None => Rest::Spooled(text(SPOOL_FILE)?),
                },
            })
        };
        Self {
            position: record.position,
            origin: origin(),
            stage: text(STAGE).unwrap_or_default(),
            class: text(EXCEPTION_CLASS).unwrap_or_default(),
            message: text(EXCEPTION_MESSAGE).unwrap_or_default(),
            connector: text(CONNECTOR).unwrap_or_default(),
            timestamp_ms,
            key: record.key,
            value: record.value,
            cut: cut(),
            headers,
        }
    }

    /// Where the record stood, for a table.
    pub fn origin(&self) -> String {
        self.origin
            .as_ref()
            .map_or_else(|| "unknown".to_owned(), ToString::to_string)
    }

    /// The key, for a table: text as it is, other bytes replaced, `null` where there is none.
    pub fn key_text(&self) -> String {
        self.key.as_ref().map_or_else(
            || "null".to_owned(),
            |key| String::from_utf8_lossy(key).into_owned(),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::document::Generation;

    fn header(name: &str, value: &[u8]) -> Header {
        Header {
            name: name.to_owned(),
            value: Some(value.to_vec()),
        }
    }

    fn record(headers: Vec<Header>) -> SourceRecord {
        SourceRecord {
            position: RecordPosition {
                partition: TopicPartition::new("news", 3),
                offset: 42,
            },
            generation: Generation(1),
            timestamp_ms: Some(1_700_000_000_000),
            key: Some(b"id".to_vec()),
            value: Some(b"{broken".to_vec()),
            headers,
            fault: None,
        }
    }

    fn letter(headers: Vec<Header>) -> DeadLetter {
        DeadLetter {
            record: record(headers),
            stage: "decode".to_owned(),
            class: "invalid_json".to_owned(),
            message: "不是 JSON".to_owned(),
        }
    }

    /// The letter as the topic holds it.
    fn delivered(envelope: Envelope) -> SourceRecord {
        SourceRecord {
            position: RecordPosition {
                partition: TopicPartition::new("dead", 0),
                offset: 7,
            },
            generation: Generation(0),
            timestamp_ms: Some(1_900_000_000_000),
            key: envelope.key,
            value: envelope.value,
            headers: envelope.headers,
            fault: None,
        }
    }

    #[test]
    fn a_letter_comes_back_as_it_was() {
        let original = vec![header("ce_type", b"article"), header("x", b"\xff")];
        let sent = letter(original.clone());
        let envelope = pack(&sent, "worker", &Form::Whole);
        assert_eq!(envelope.headers[2], header(TOPIC, b"news"));
        assert_eq!(envelope.headers[3], header(PARTITION, b"3"));
        assert_eq!(envelope.headers[4], header(OFFSET, b"42"));
        let found = StoredDeadLetter::parse(delivered(envelope));
        assert_eq!(found.origin, Some(sent.record.position));
        assert_eq!(found.headers, original);
        assert_eq!(found.value, sent.record.value);
        assert_eq!(found.timestamp_ms, sent.record.timestamp_ms);
        assert_eq!(
            (
                &*found.stage,
                &*found.class,
                &*found.message,
                &*found.connector
            ),
            ("decode", "invalid_json", "不是 JSON", "worker")
        );
        assert_eq!(
            (found.origin().as_str(), found.key_text().as_str()),
            ("news[3]@42", "id")
        );
        assert_eq!(found.cut, None);
    }

    #[test]
    fn the_records_own_time_is_kept_beside_that_of_the_dead_letter() {
        let mut untimed = letter(Vec::new());
        untimed.record.timestamp_ms = None;
        let found = StoredDeadLetter::parse(delivered(pack(&untimed, "w", &Form::Whole)));
        assert_eq!(found.timestamp_ms, None);
        // As versions before this header sent it: with the record's own timestamp.
        let mut earlier = delivered(pack(&letter(Vec::new()), "w", &Form::Whole));
        earlier.headers.retain(|header| header.name != TIMESTAMP);
        earlier.timestamp_ms = Some(5);
        assert_eq!(
            StoredDeadLetter::parse(earlier.clone()).timestamp_ms,
            Some(5)
        );
        // What cannot be read makes the record older than any, never newer.
        for value in [&b"-1"[..], b"now", b""] {
            earlier.headers.push(header(TIMESTAMP, value));
            assert_eq!(StoredDeadLetter::parse(earlier.clone()).timestamp_ms, None);
        }
    }

    #[test]
    fn a_record_that_was_a_letter_before_keeps_its_own_headers() {
        let before = pack(&letter(Vec::new()), "elsewhere", &Form::Whole).headers;
        let envelope = pack(&letter(before.clone()), "worker", &Form::Whole);
        let found = StoredDeadLetter::parse(delivered(envelope));
        assert_eq!(found.headers, before);
        assert_eq!(found.connector, "worker");
    }

    #[test]
    fn a_cut_letter_says_what_is_missing() {
        let form = Form::Cut {
            value_bytes: 3,
            file: "news-3-42.json".to_owned(),
        };
        let found = StoredDeadLetter::parse(delivered(pack(&letter(Vec::new()), "w", &form)));
        assert_eq!(found.value.as_deref(), Some(&b"{br"[..]));
        assert_eq!(
            found.cut,
            Some(CutValue {
                value_bytes: 7,
                rest: Rest::Spooled("news-3-42.json".to_owned())
            })
        );
        let bare = Form::Bare {
            file: "f".to_owned(),
        };
        let found = StoredDeadLetter::parse(delivered(pack(
            &letter(vec![header("big", b"x")]),
            "w",
            &bare,
        )));
        assert_eq!((found.value, found.headers), (None, Vec::new()));
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let mut long = letter(Vec::new());
        long.message = "汉".repeat(5_000);
        let found = StoredDeadLetter::parse(delivered(pack(&long, "w", &Form::Whole)));
        assert_eq!(found.message, "汉".repeat(MAX_MESSAGE_BYTES / 3));
    }

    proptest! {
        /// Headers that anybody may have written never do harm.
        #[test]
        fn hostile_headers_are_read_as_far_as_they_go(
            headers in prop::collection::vec(
                (
                    prop_oneof![
                        Just(TOPIC.to_owned()), Just(PARTITION.to_owned()), Just(OFFSET.to_owned()),
                        Just(STAGE.to_owned()), Just(VALUE_SIZE.to_owned()),
                        Just(TIMESTAMP.to_owned()), any::<String>(),
                    ],
                    prop::option::of(prop_oneof![
                        any::<Vec<u8>>(),
                        any::<i64>().prop_map(|n| n.to_string().into_bytes()),
                    ]),
                )
                    .prop_map(|(name, value)| Header { name, value }),
                0..12,
            )
        ) {
            let found = StoredDeadLetter::parse(record(headers.clone()));
            prop_assert!(found.headers.len() <= headers.len());
            prop_assert!(found.timestamp_ms.is_none_or(|ms| ms >= 0));
            if let Some(origin) = found.origin {
                prop_assert!(origin.offset >= 0 && origin.partition.partition >= 0);
            }
        }
    }
}
