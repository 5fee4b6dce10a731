//! What a point holds: the payload of a tagged document and the marker of a deleted one.
//! Pure: knows no engine and no clock but the time passed in.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::document::{Document, DocumentId, Version};
use crate::store::version::write_version;
use crate::store::{Point, PointWrite, key};

/// Keys of a payload at most: it never has to grow.
const MOST_KEYS: usize = 21;

/// What the model said of a text, in the form that a point needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Best topic, or `other`.
    pub topic: String,
    /// Probability of the best label, 0 to 1.
    pub probability: f32,
    /// The best labels with their probabilities, best first.
    pub topics: Vec<(String, f32)>,
    /// L2-normalised embedding `[hidden]`.
    pub embedding: Vec<f32>,
}

/// A document with what the model said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TaggedDocument {
    /// The document itself.
    pub document: Document,
    /// Where its record stood and how old it is.
    pub version: Version,
    /// What the model said, shared with whoever keeps it for the same text under another id.
    pub answer: Arc<Answer>,
    /// Whether the text did not fit into the model.
    pub truncated: bool,
}

/// What is the same for every point of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// Model, tokenizer, prompt and whitening.
    pub embedding_fingerprint: String,
    /// The above with taxonomy and calibration.
    pub labelling_fingerprint: String,
    /// Whether the body is kept in the payload.
    pub keep_text: bool,
}

/// The point of a tagged document; `now` becomes `tagged_at`.
pub fn build_point(
    tagged: &TaggedDocument,
    provenance: &Provenance,
    now: jiff::Timestamp,
) -> Point {
    let attributes = tagged.document.attributes.clone();
    build(&tagged.document, attributes, tagged, provenance, now)
}

/// As [`build_point`] where a part of the document was left in its record: `whole` was read from there.
pub fn build_whole_point(
    mut whole: Document,
    tagged: &TaggedDocument,
    provenance: &Provenance,
    now: jiff::Timestamp,
) -> Point {
    let attributes = std::mem::take(&mut whole.attributes);
    build(&whole, attributes, tagged, provenance, now)
}

fn build(
    document: &Document,
    attributes: Map<String, Value>,
    tagged: &TaggedDocument,
    provenance: &Provenance,
    now: jiff::Timestamp,
) -> Point {
    let answer = &tagged.answer;
    let mut payload = Map::with_capacity(MOST_KEYS);
    let mut put = |key: &str, value: Value| payload.insert(key.to_owned(), value);
    put(key::ID, document.id.as_str().into());
    put(key::TOPIC, answer.topic.as_str().into());
    put(key::PROBABILITY, short(answer.probability));
    let topics: Vec<Value> = answer
        .topics
        .iter()
        .map(|(label, probability)| json!({"label": label, "probability": short(*probability)}))
        .collect();
    put(key::TOPICS, topics.into());
    put(key::TITLE, document.title.as_str().into());
    if provenance.keep_text {
        put(key::TEXT, document.text.as_str().into());
    }
    if let Some(source) = &document.source {
        put(key::SOURCE, source.as_str().into());
    }
    if let Some(published_at) = document.published_at {
        put(key::PUBLISHED_AT, published_at.to_string().into());
    }
    if let Some(language) = &document.language {
        put(key::LANGUAGE, language.as_str().into());
    }
    put(key::ATTRIBUTES, attributes.into());
    put(key::TRUNCATED, tagged.truncated.into());
    put(
        key::EMBEDDING_FINGERPRINT,
        provenance.embedding_fingerprint.as_str().into(),
    );
    put(
        key::LABELLING_FINGERPRINT,
        provenance.labelling_fingerprint.as_str().into(),
    );
    put(key::TAGGED_AT, now.to_string().into());
    Point {
        id: document.id.clone(),
        version: tagged.version.clone(),
        vector: answer.embedding.clone(),
        payload,
    }
}

/// A probability as a reader expects it: six digits, not the seventeen of a widened f32.
fn short(probability: f32) -> Value {
    Value::from((f64::from(probability) * 1e6).round() / 1e6)
}

/// The whole payload that is stored for a write, the version's keys included.
pub fn stored_payload(write: &PointWrite) -> Map<String, Value> {
    match write {
        PointWrite::Upsert(point) => {
            let mut payload = point.payload.clone();
            write_version(&mut payload, &point.version);
            payload
        }
        PointWrite::Tombstone {
            id,
            version,
            deleted_at,
        } => marker(id, version, *deleted_at),
    }
}

/// As [`stored_payload`], with the vector; consumes the write, so that nothing is copied.
/// A marker has no vector.
pub fn into_stored(write: PointWrite) -> (Map<String, Value>, Option<Vec<f32>>) {
    match write {
        PointWrite::Upsert(point) => {
            let mut payload = point.payload;
            write_version(&mut payload, &point.version);
            (payload, Some(point.vector))
        }
        PointWrite::Tombstone {
            id,
            version,
            deleted_at,
        } => (marker(&id, &version, deleted_at), None),
    }
}

fn marker(id: &DocumentId, version: &Version, deleted_at: jiff::Timestamp) -> Map<String, Value> {
    let mut payload = Map::new();
    payload.insert(key::ID.into(), id.as_str().into());
    payload.insert(key::DELETED.into(), true.into());
    payload.insert(key::DELETED_AT.into(), deleted_at.to_string().into());
    write_version(&mut payload, version);
    payload
}

/// Whether a stored payload is the marker of a deletion.
pub fn is_marker(payload: &Map<String, Value>) -> bool {
    payload.get(key::DELETED) == Some(&Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{RecordPosition, TopicPartition};

    fn version() -> Version {
        Version {
            position: RecordPosition {
                partition: TopicPartition::new("wire", 3),
                offset: 17,
            },
            timestamp_ms: 1_700_000_000_000,
            order: 77,
        }
    }

    fn tagged() -> TaggedDocument {
        TaggedDocument {
            document: Document {
                id: DocumentId::new("n-1").unwrap(),
                title: "央行下调存款准备金率".into(),
                text: "正文".into(),
                published_at: Some("2024-02-05T09:00:00Z".parse().unwrap()),
                source: Some("电讯".into()),
                language: None,
                attributes: Map::from_iter([("desk".into(), json!("财经"))]),
                left_in_record: 0,
            },
            version: version(),
            answer: Arc::new(Answer {
                topic: "财经".into(),
                probability: 0.9,
                topics: vec![("财经".into(), 0.9), ("股票".into(), 0.05)],
                embedding: vec![0.6, 0.8],
            }),
            truncated: false,
        }
    }

    fn provenance(keep_text: bool) -> Provenance {
        Provenance {
            embedding_fingerprint: "e1".into(),
            labelling_fingerprint: "l1".into(),
            keep_text,
        }
    }

    #[test]
    fn a_point_holds_the_keys_of_the_design() {
        let now = "2024-02-05T09:00:01Z".parse().unwrap();
        let write = PointWrite::Upsert(build_point(&tagged(), &provenance(false), now));
        let expected = json!({
            "id": "n-1", "version": 1_700_000_000_000_i64, "topic": "财经", "probability": 0.9,
            "topics": [{"label": "财经", "probability": 0.9}, {"label": "股票", "probability": 0.05}],
            "title": "央行下调存款准备金率", "source": "电讯", "published_at": "2024-02-05T09:00:00Z",
            "attributes": {"desk": "财经"}, "truncated": false, "kafka_topic": "wire",
            "kafka_partition": 3, "kafka_offset": 17, "version_order": 77,
            "embedding_fingerprint": "e1",
            "labelling_fingerprint": "l1", "tagged_at": "2024-02-05T09:00:01Z",
        });
        assert_eq!(Value::Object(stored_payload(&write)), expected);
        let (payload, vector) = into_stored(write);
        assert_eq!(Value::Object(payload), expected);
        assert_eq!(vector, Some(vec![0.6, 0.8]));
    }

    #[test]
    fn the_text_is_kept_only_if_asked_for() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let kept = build_point(&tagged(), &provenance(true), now);
        assert_eq!(kept.payload.get(key::TEXT), Some(&json!("正文")));
        let dropped = build_point(&tagged(), &provenance(false), now);
        assert_eq!(dropped.payload.get(key::TEXT), None);
    }

    #[test]
    fn a_marker_has_age_and_no_content() {
        let write = PointWrite::Tombstone {
            id: DocumentId::new("n-1").unwrap(),
            version: version(),
            deleted_at: "2024-02-06T00:00:00Z".parse().unwrap(),
        };
        let (payload, vector) = into_stored(write);
        assert_eq!(vector, None);
        assert!(is_marker(&payload));
        assert_eq!(
            Value::Object(payload),
            json!({
                "id": "n-1", "version": 1_700_000_000_000_i64, "deleted": true,
                "deleted_at": "2024-02-06T00:00:00Z", "kafka_topic": "wire",
                "kafka_partition": 3, "kafka_offset": 17, "version_order": 77,
            })
        );
    }
}
