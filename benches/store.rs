//! Points a second into each store: widths 256 and 1024, new points and points written over, one
//! batch at a time and eight in flight; and what building a point costs. The server is the test
//! server, in this process: it shows what our side and the wire cost, not what Qdrant can take.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/it/qdrant_server/mod.rs"]
#[allow(dead_code)]
mod qdrant_server;

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use qdrant_server::{Options, TestServer};
use tcbert_worker::document::{
    Document, DocumentId, LatestTime, RecordPosition, TopicPartition, Version,
};
use tcbert_worker::store::point::{Answer, Provenance, TaggedDocument, build_point};
use tcbert_worker::store::{
    self, CollectionSpec, Expectation, PointWrite, Store, StoreKind, StoreSettings,
};

/// Points of one batch.
const BATCH: usize = 128;
/// Points of one measurement.
const POINTS: usize = 20_480;

fn tagged(number: usize, width: usize, offset: usize) -> TaggedDocument {
    let vector = (0..width)
        .map(|at| ((number * 31 + at * 17) % 97) as f32 / 97.0 - 0.5)
        .collect();
    TaggedDocument {
        document: Document {
            id: DocumentId::new(&format!("news-{number}")).unwrap(),
            title: format!("第{number}条：央行下调存款准备金率，释放长期资金约一万亿元"),
            text: String::new(),
            published_at: Some(jiff::Timestamp::UNIX_EPOCH),
            source: Some("电讯".into()),
            language: Some("zh".into()),
            left_in_record: 0,
            attributes: serde_json::Map::new(),
        },
        version: Version {
            position: RecordPosition {
                partition: TopicPartition::new("wire", 3),
                offset: i64::try_from(offset).unwrap(),
            },
            timestamp_ms: 1_700_000_000_000,
            order: 7,
        },
        answer: Arc::new(Answer {
            topic: "财经".into(),
            probability: 0.9,
            topics: vec![
                ("财经".into(), 0.9),
                ("股票".into(), 0.05),
                ("房产".into(), 0.02),
            ],
            embedding: vector,
        }),
        truncated: false,
    }
}

fn batches(width: usize, round: usize) -> Vec<Vec<PointWrite>> {
    let provenance = Provenance {
        embedding_fingerprint: "a".repeat(64),
        labelling_fingerprint: "b".repeat(64),
        keep_text: false,
    };
    let documents: Vec<_> = (0..POINTS)
        .map(|number| tagged(number, width, round * POINTS + number))
        .collect();
    let started = Start::now();
    let points: Vec<_> = documents
        .into_iter()
        .map(|document| {
            PointWrite::Upsert(build_point(
                &document,
                &provenance,
                jiff::Timestamp::UNIX_EPOCH,
            ))
        })
        .collect();
    if round == 0 {
        started.report(&format!("build {width}"));
    }
    points.chunks(BATCH).map(<[_]>::to_vec).collect()
}

/// When a measurement began, by the clock and by processor time.
struct Start {
    clock: Instant,
    processor: f64,
}

impl Start {
    fn now() -> Self {
        Self {
            clock: Instant::now(),
            processor: processor_seconds(),
        }
    }

    fn report(&self, what: &str) {
        let rate = POINTS as f64 / self.clock.elapsed().as_secs_f64();
        let busy = (processor_seconds() - self.processor) * 1e6 / POINTS as f64;
        println!("{what:<32} {rate:>9.0} points/s {busy:>7.1} us of processor time each");
    }
}

/// Processor time of this process in seconds; 0 where the system does not say. On a machine that is
/// shared it says more than the clock.
fn processor_seconds() -> f64 {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else {
        return 0.0;
    };
    // After the name in parentheses: user and system time are the 12th and 13th, in hundredths.
    let ticks = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    ticks
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok())
        .sum::<f64>()
        / 100.0
}

async fn measure(name: &str, store: Arc<dyn Store>, width: usize) {
    for (round, (what, in_flight)) in [
        ("new, 8 in flight", 8),
        ("over, 8 in flight", 8),
        ("over, 1 in flight", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let batches = batches(width, round);
        let started = Start::now();
        futures::stream::iter(batches)
            .for_each_concurrent(in_flight, |batch| {
                let store = Arc::clone(&store);
                async move { store.write(batch, LatestTime::ANY).await.map(drop).unwrap() }
            })
            .await;
        started.report(&format!("{name} {width}, {what}"));
    }
    assert_eq!(store.count(Default::default()).await, Ok(POINTS as u64));
    let started = Instant::now();
    let query = vec![0.1; width];
    for _ in 0..20 {
        store
            .search(query.clone(), Default::default(), 10)
            .await
            .unwrap();
    }
    let milliseconds = started.elapsed().as_secs_f64() * 1000.0 / 20.0;
    println!("{name} {width}, search of {POINTS}: {milliseconds:.1} ms");
    store.close().await.unwrap();
}

#[tokio::main]
async fn main() {
    for width in [256, 1024] {
        let expectation = Expectation {
            vector: CollectionSpec {
                vector_name: "bench".into(),
                vector_size: width,
            },
            embedding_fingerprint: "bench".into(),
        };
        let now = jiff::Timestamp::now();
        let folder = tempfile::tempdir().unwrap();
        let embedded = StoreSettings {
            kind: StoreKind::Embedded,
            path: folder.path().to_owned(),
            ..StoreSettings::default()
        };
        let store = store::open(&embedded, &expectation, true, now)
            .await
            .unwrap();
        measure("embedded", store, width).await;

        let server = TestServer::start(Options::default());
        let remote = StoreSettings {
            kind: StoreKind::Qdrant,
            url: server.url(),
            concurrency: 8,
            ..StoreSettings::default()
        };
        let store = store::open(&remote, &expectation, true, now).await.unwrap();
        measure("grpc", store, width).await;
    }
}
