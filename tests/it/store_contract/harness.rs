//! A store under test, and what tests write into it.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tcbert_worker::document::{DocumentId, RecordPosition, TopicPartition, Version};
use tcbert_worker::store::{
    self, CollectionSpec, Expectation, Point, PointWrite, Store, StoreError, StoreKind,
    StoreSettings,
};
use tempfile::TempDir;

use crate::qdrant_server::{Options, TestServer};

/// Width of the vectors in these tests.
pub(crate) const SIZE: usize = 8;

/// A store with an empty collection, and what keeps it alive.
pub(crate) struct Harness {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) settings: StoreSettings,
    pub(crate) server: Option<TestServer>,
    _folder: Option<TempDir>,
}

impl Harness {
    /// The embedded store in a temporary folder.
    pub(crate) async fn embedded() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = embedded_settings(folder.path());
        Self {
            store: open(&settings).await.unwrap(),
            settings,
            server: None,
            _folder: Some(folder),
        }
    }

    /// The test server, or the one that `TCBERT_TEST_QDRANT_URL` names.
    pub(crate) async fn server() -> Self {
        match std::env::var("TCBERT_TEST_QDRANT_URL") {
            Ok(url) => {
                let mut settings = server_settings(&url);
                settings.collection = format!("tcbert_test_{}", uuid::Uuid::new_v4().simple());
                Self {
                    store: open(&settings).await.unwrap(),
                    settings,
                    server: None,
                    _folder: None,
                }
            }
            Err(_) => Self::test_server().await,
        }
    }

    /// The test server, for what only it can do.
    pub(crate) async fn test_server() -> Self {
        let server = TestServer::start(Options::default());
        let settings = server_settings(&server.url());
        Self {
            store: open(&settings).await.unwrap(),
            settings,
            server: Some(server),
            _folder: None,
        }
    }

    pub(crate) fn server_mut(&mut self) -> &mut TestServer {
        self.server.as_mut().unwrap()
    }

    pub(crate) fn server_ref(&self) -> &TestServer {
        self.server.as_ref().unwrap()
    }

    /// Leaves nothing behind on a server that was there before.
    pub(crate) async fn end(self) {
        if self.server.is_none() && self.settings.kind == StoreKind::Qdrant {
            self.store.admin().drop_collection().await.unwrap();
        }
        self.store.close().await.unwrap();
    }

    /// The title that is stored for a document; `None` for a marker or nothing.
    pub(crate) async fn title(&self, document: &str) -> Option<String> {
        let payload = self.store.fetch(id(document)).await.unwrap()?;
        Some(payload.get("title")?.as_str()?.to_owned())
    }
}

pub(crate) fn embedded_settings(folder: &Path) -> StoreSettings {
    StoreSettings {
        kind: StoreKind::Embedded,
        path: folder.to_owned(),
        min_free_mb: 1,
        ..StoreSettings::default()
    }
}

pub(crate) fn server_settings(url: &str) -> StoreSettings {
    StoreSettings {
        kind: StoreKind::Qdrant,
        url: url.into(),
        ..StoreSettings::default()
    }
}

pub(crate) fn expectation(size: usize) -> Expectation {
    Expectation {
        vector: CollectionSpec {
            vector_name: "test".into(),
            vector_size: size,
        },
        embedding_fingerprint: format!("space-{size}"),
    }
}

pub(crate) async fn open(settings: &StoreSettings) -> Result<Arc<dyn Store>, StoreError> {
    let now = jiff::Timestamp::now();
    store::open(settings, &expectation(SIZE), true, now).await
}

pub(crate) fn id(document: &str) -> DocumentId {
    DocumentId::new(document).unwrap()
}

pub(crate) fn version(partition: i32, offset: i64, timestamp_ms: i64) -> Version {
    let topic = if partition == TopicPartition::NO_PARTITION {
        "file"
    } else {
        "wire"
    };
    Version {
        position: RecordPosition {
            partition: TopicPartition::new(topic, partition),
            offset,
        },
        timestamp_ms,
        // As small as the rest of this world, so that every case occurs.
        order: i64::from(partition.rem_euclid(2)),
    }
}

/// A vector of length one that leans to `axis`.
pub(crate) fn vector(axis: usize) -> Vec<f32> {
    let mut vector = [0.1_f32; SIZE];
    vector[axis % SIZE] = 1.0;
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter().map(|value| value / length).collect()
}

/// A point whose title says which write it is.
pub(crate) fn write(document: &str, version: Version, title: &str) -> PointWrite {
    PointWrite::Upsert(Point {
        id: id(document),
        version,
        vector: vector(title.len()),
        payload: payload(document, title, "财经", "电讯"),
    })
}

/// As [`write`], with what searches ask for.
pub(crate) fn write_on(
    document: &str,
    offset: i64,
    axis: usize,
    topic: &str,
    source: &str,
) -> PointWrite {
    PointWrite::Upsert(Point {
        id: id(document),
        version: version(0, offset, offset),
        vector: vector(axis),
        payload: payload(document, document, topic, source),
    })
}

pub(crate) fn tombstone(document: &str, version: Version) -> PointWrite {
    tombstone_at(document, version, "2024-05-01T00:00:00Z")
}

pub(crate) fn tombstone_at(document: &str, version: Version, deleted_at: &str) -> PointWrite {
    PointWrite::Tombstone {
        id: id(document),
        version,
        deleted_at: deleted_at.parse().unwrap(),
    }
}

fn payload(document: &str, title: &str, topic: &str, source: &str) -> Map<String, Value> {
    let payload = json!({
        "id": document, "title": title, "topic": topic, "source": source, "probability": 0.5,
        "topics": [{"label": topic, "probability": 0.5}], "attributes": {"页": 3, "空": null},
        "published_at": "2024-04-30T08:00:00Z", "truncated": false,
    });
    payload.as_object().unwrap().clone()
}
