//! The demo's records: the sample documents, and after them what goes wrong in real streams.
//! Pure: what ought to come out is computed here from the records alone.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use crate::kafka::SampleRecord;

/// Topic of what is refused.
pub(super) const DEAD_LETTER_TOPIC: &str = "documents.dead-letters";

const DOCUMENTS: &str = include_str!("../../../samples/news.jsonl");
const QUERIES: &str = include_str!("../../../samples/queries.jsonl");

/// Timestamp of the first record, in milliseconds since the epoch: 2026-01-01T00:00:00Z.
const FIRST_TIMESTAMP_MS: i64 = 1_767_225_600_000;

/// Time between two records.
const STEP_MS: i64 = 1000;

/// The first documents, to which things happen later, all stand in one partition.
const STORY_DOCUMENTS: usize = 4;

/// The partition of those documents.
const HOME_PARTITION: i32 = 1;

/// The partition through which versions arrive late.
const DETOUR_PARTITION: i32 = 0;

/// Characters of the text that is far too long for the model.
const LONG_TEXT_CHARACTERS: usize = 10_000;

/// One line of `samples/news.jsonl`.
#[derive(Debug, Clone, Deserialize)]
struct Sample {
    id: String,
    topic: String,
}

/// One line of `samples/queries.jsonl`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Query {
    pub(super) query: String,
    pub(super) topic: String,
}

/// What a record is in the demo's story.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    /// The newest version of a document about a topic.
    Newest { id: String, topic: String },
    /// An older version that must not win, or a copy.
    Superseded,
    /// The end of a document.
    Deletion { id: String },
    /// A record that no document can be made of.
    Undecodable,
}

/// The records in the order in which they are produced.
#[derive(Debug)]
pub(super) struct Script(Vec<(Role, SampleRecord)>);

/// What ought to be in the store and in the dead-letter topic at the end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expectation {
    /// Topic of each document that lives, by id.
    pub(super) documents: BTreeMap<String, String>,
    /// Documents that were deleted.
    pub(super) deleted: Vec<String>,
    /// Records refused.
    pub(super) dead_letters: usize,
}

/// The fixed queries, each with the topic that its first hit ought to have.
pub(super) fn queries() -> Vec<Query> {
    lines(QUERIES)
}

/// The files are part of the program; a test parses every line of both.
fn lines<T: serde::de::DeserializeOwned>(text: &str) -> Vec<T> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

impl Script {
    /// The samples, then a duplicate, an update, a late older version, a deletion, a late write of
    /// the deleted document, an undecodable record and a text far too long.
    pub(super) fn of_samples() -> Self {
        let mut records: Vec<(Role, SampleRecord)> = DOCUMENTS
            .lines()
            .filter_map(|line| {
                let sample: Sample = serde_json::from_str(line).ok()?;
                let record = record(&sample.id, Some(line.as_bytes().to_vec()));
                Some((
                    Role::Newest {
                        id: sample.id,
                        topic: sample.topic,
                    },
                    record,
                ))
            })
            .collect();
        for (index, (_, record)) in records.iter_mut().enumerate() {
            record.timestamp_ms = Some(FIRST_TIMESTAMP_MS + STEP_MS * index as i64);
            if index < STORY_DOCUMENTS {
                record.partition = Some(HOME_PARTITION);
            }
        }
        let mut script = Self(records);
        script.add_story();
        script
    }

    fn add_story(&mut self) {
        let after = FIRST_TIMESTAMP_MS + STEP_MS * self.0.len() as i64;
        let mut story = Vec::new();
        if let Some((_, first)) = self.0.first() {
            story.push((Role::Superseded, first.clone()));
        }
        if let Some((id, topic, update)) = self
            .document(1)
            .map(|(id, topic, value)| (id, topic, updated(&value)))
        {
            self.supersede(1);
            let record = record(&id, Some(update))
                .at(after)
                .to_partition(HOME_PARTITION);
            story.push((Role::Newest { id, topic }, record));
        }
        if let Some((id, _, _)) = self.document(2) {
            story.push((Role::Superseded, late(&id)));
        }
        if let Some((id, _, _)) = self.document(3) {
            self.supersede(3);
            let record = record(&id, None)
                .at(after + STEP_MS)
                .to_partition(HOME_PARTITION);
            story.push((Role::Deletion { id: id.clone() }, record));
            story.push((Role::Superseded, late(&id)));
        }
        let broken = SampleRecord::new("demo-broken", "{\"id\": \"demo-broken\", \"title\": ")
            .at(after + 2 * STEP_MS);
        story.push((Role::Undecodable, broken));
        let long = SampleRecord::new("demo-long", long_document()).at(after + 3 * STEP_MS);
        story.push((
            Role::Newest {
                id: "demo-long".to_owned(),
                topic: "体育".to_owned(),
            },
            long,
        ));
        self.0.append(&mut story);
    }

    /// Id, topic and value of the document at `index`.
    fn document(&self, index: usize) -> Option<(String, String, Vec<u8>)> {
        match self.0.get(index)? {
            (
                Role::Newest { id, topic },
                SampleRecord {
                    value: Some(value), ..
                },
            ) => Some((id.clone(), topic.clone(), value.clone())),
            _ => None,
        }
    }

    fn supersede(&mut self, index: usize) {
        if let Some((role, _)) = self.0.get_mut(index) {
            *role = Role::Superseded;
        }
    }

    /// The records in the order in which they are produced.
    pub(super) fn records(&self) -> Vec<SampleRecord> {
        self.0.iter().map(|(_, record)| record.clone()).collect()
    }

    /// What ought to come out.
    pub(super) fn expectation(&self) -> Expectation {
        let mut expectation = Expectation::default();
        for (role, _) in &self.0 {
            match role {
                Role::Newest { id, topic } => {
                    expectation.documents.insert(id.clone(), topic.clone());
                }
                Role::Superseded => {}
                Role::Deletion { id } => {
                    expectation.documents.remove(id);
                    expectation.deleted.push(id.clone());
                }
                Role::Undecodable => expectation.dead_letters += 1,
            }
        }
        expectation
    }
}

fn record(id: &str, value: Option<Vec<u8>>) -> SampleRecord {
    match value {
        Some(value) => SampleRecord::new(id, value),
        None => SampleRecord::tombstone(id),
    }
}

/// A version from before all others that arrives after them, through another partition.
fn late(id: &str) -> SampleRecord {
    let value = json!({
        "id": id,
        "title": "过期的旧版本",
        "text": "这一版早已被取代，不应再出现在检索结果中。",
    });
    SampleRecord::new(id, value.to_string())
        .at(FIRST_TIMESTAMP_MS - STEP_MS)
        .to_partition(DETOUR_PARTITION)
}

fn updated(value: &[u8]) -> Vec<u8> {
    let Ok(mut document) = serde_json::from_slice::<serde_json::Value>(value) else {
        return value.to_vec();
    };
    let title = document
        .get("title")
        .and_then(|title| title.as_str())
        .unwrap_or_default();
    document["title"] = json!(format!("{title}（更新）"));
    document.to_string().into_bytes()
}

fn long_document() -> Vec<u8> {
    let sentence = "球队在主场以三比一战胜对手，主教练赛后称赞了全队的防守，前锋梅开二度锁定胜局。";
    let text: String = sentence
        .chars()
        .cycle()
        .take(LONG_TEXT_CHARACTERS)
        .collect();
    json!({
        "id": "demo-long",
        "title": "联赛第二十轮战报：主队逆转取胜升至积分榜第三",
        "text": text,
        "source": "示例体育",
        "topic": "体育",
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_files_can_be_read() {
        assert_eq!(lines::<Sample>(DOCUMENTS).len(), DOCUMENTS.lines().count());
        assert_eq!(queries().len(), QUERIES.lines().count());
    }
}
