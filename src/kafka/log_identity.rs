//! The identity of a log: a delivered record, known by its offset, timestamp and content. A topic
//! that was deleted and created again, or a log that was truncated and written again, holds another
//! record at that offset. Pure: knows no client.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use twox_hash::XxHash64;

/// Seed of the hash of a value whose record has no key.
const NO_KEY: u64 = 1;

/// A record as far as it can be recognized later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordIdentity {
    pub(super) offset: i64,
    /// Milliseconds since the epoch.
    #[serde(rename = "time", default, skip_serializing_if = "Option::is_none")]
    timestamp_ms: Option<i64>,
    /// XXH64 of the value, seeded with the XXH64 of the key (see [`RecordIdentity::of`]).
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    hash: u64,
}

impl RecordIdentity {
    /// The identity of a record. The hash is stored with commits: it must stay what it is.
    pub(super) fn of(
        offset: i64,
        timestamp_ms: Option<i64>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Self {
        let seed = key.map_or(NO_KEY, |key| XxHash64::oneshot(0, key));
        // A tombstone is another record than an empty value.
        let hash = value.map_or(!seed, |value| XxHash64::oneshot(seed, value));
        Self {
            offset,
            timestamp_ms,
            hash,
        }
    }
}

fn to_hex<S: Serializer>(hash: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{hash:016x}"))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
}

/// What the metadata of a commit says of the log that it belongs to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogNote {
    /// The last record delivered below the committed offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<RecordIdentity>,
    /// An earlier record, read again from the log after it was delivered: a log that was replaced
    /// unnoticed since then differs here, even where the last record is already one of the new log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) verified: Option<RecordIdentity>,
}

impl LogNote {
    /// Reads a commit's metadata. Whatever another program or an older version wrote says nothing.
    pub(super) fn parse(metadata: &str) -> Self {
        serde_json::from_str(metadata).unwrap_or_default()
    }

    /// The metadata of a commit; empty where nothing is known.
    pub(super) fn to_metadata(self) -> String {
        if self == Self::default() {
            return String::new();
        }
        // Numbers and short texts: there is nothing in it that could fail.
        serde_json::to_string(&self).unwrap_or_default()
    }

    /// The records to compare, each once.
    pub(super) fn records(self) -> impl Iterator<Item = RecordIdentity> {
        let verified = self
            .verified
            .filter(|verified| self.last != Some(*verified));
        self.last.into_iter().chain(verified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(offset: i64, value: &[u8]) -> RecordIdentity {
        RecordIdentity::of(offset, Some(1_700_000_000_000), Some(b"doc"), Some(value))
    }

    #[test]
    fn offset_time_key_and_value_tell_records_apart() {
        let one = identity(5, b"value");
        assert_eq!(one, identity(5, b"value"));
        let others = [
            identity(6, b"value"),
            identity(5, b"valuf"),
            RecordIdentity::of(5, Some(1), Some(b"doc"), Some(b"value")),
            RecordIdentity::of(5, None, Some(b"doc"), Some(b"value")),
            RecordIdentity::of(5, Some(1_700_000_000_000), None, Some(b"value")),
            RecordIdentity::of(5, Some(1_700_000_000_000), Some(b"do"), Some(b"cvalue")),
            RecordIdentity::of(5, Some(1_700_000_000_000), Some(b"doc"), None),
            RecordIdentity::of(5, Some(1_700_000_000_000), Some(b"doc"), Some(b"")),
        ];
        for other in others {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn what_is_stored_with_commits_stays_as_it_is() {
        let note = LogNote {
            last: Some(RecordIdentity::of(7, None, None, None)),
            verified: Some(RecordIdentity::of(3, Some(12), Some(b"key"), Some(b""))),
        };
        let metadata = note.to_metadata();
        assert_eq!(
            metadata,
            r#"{"last":{"offset":7,"hash":"fffffffffffffffe"},"verified":{"offset":3,"time":12,"hash":"2d5a85ce20c0e388"}}"#
        );
        assert_eq!(LogNote::parse(&metadata), note);
        assert!(metadata.len() < 256);
    }

    #[test]
    fn metadata_of_others_says_nothing() {
        let others = [
            "",
            "x",
            "{}",
            "7",
            r#"{"run":"a","begin":0,"end":4}"#,
            r#"{"last":7}"#,
            r#"{"last":{"offset":7}}"#,
            r#"{"last":{"offset":7,"hash":"zz"}}"#,
        ];
        for metadata in others {
            assert_eq!(LogNote::parse(metadata), LogNote::default(), "{metadata}");
        }
        assert_eq!(LogNote::default().to_metadata(), "");
    }
}
