//! Mutated records through the running pipeline: none crashes it, each is accounted for, and the
//! store holds what the last good record of each key says.
//!
//! `TCBERT_FUZZ_RECORDS` sets how many (3000 unless set).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tcbert_worker::assemble::{self, Engine};
use tcbert_worker::decode::{Decoded, Decoder};
use tcbert_worker::document::{DocumentId, Generation, RecordPosition, TopicPartition};
use tcbert_worker::model::Model;
use tcbert_worker::model::twin::TwinModel;
use tcbert_worker::pipeline::{self, Counters, Ending};
use tcbert_worker::score::{ModelIdentity, Tagger};
use tcbert_worker::settings::{Origins, Settings};
use tcbert_worker::source::{Header, MemoryDeadLetters, SourceEvent, SourceRecord};
use tcbert_worker::store::PointFilter;
use tcbert_worker::telemetry::Metrics;
use tcbert_worker::tokenize::PromptTokenizer;
use tokio_util::sync::CancellationToken;

use super::decoding::JSON;
use super::{Random, corpus, from_environment, mutate};

use crate::scripted_source::{Script, ScriptedSource};

const DEFAULT_RECORDS: f64 = 3_000.0;
const PARTITIONS: usize = 4;
const KEYS: usize = 300;
const TOPIC: &str = "hostile";

fn settings(folder: &Path) -> Settings {
    let store = folder.join("store").display().to_string();
    let variables = [
        ("STORE__KIND", "embedded"),
        ("STORE__PATH", store.as_str()),
        ("STORE__APPLY_MIGRATIONS", "true"),
        ("DECODE__MAX_VALUE_BYTES", "8192"),
    ];
    let variables = variables
        .iter()
        .map(|(key, value)| (format!("TCBERT__{key}"), (*value).to_owned()));
    Settings::load(&Origins {
        file: None,
        variables: variables.collect(),
        ..Origins::default()
    })
    .unwrap()
}

/// An engine whose model needs no runtime: what is tested here is everything around it.
fn engine(settings: &Settings) -> Engine {
    let bundle = settings.model.open_bundle().unwrap();
    let identity = ModelIdentity {
        fingerprint: bundle.fingerprint().to_owned(),
        max_tokens: bundle.manifest().max_tokens,
        hidden_size: bundle.manifest().hidden_size,
    };
    let tokenizer = Arc::new(PromptTokenizer::from_file(&bundle.tokenizer_path()).unwrap());
    let tagger = Tagger::new(&settings.tagging, tokenizer, &identity).unwrap();
    let model: Box<dyn Model> = Box::new(TwinModel::new(identity.hidden_size));
    Engine::with_models(bundle, tagger, vec![model]).unwrap()
}

fn records(count: usize) -> Vec<SourceRecord> {
    let seeds: Vec<_> = corpus("decode")
        .into_iter()
        .filter(|seed| !seed.is_empty())
        .collect();
    let mut random = Random(7);
    let mut next_offsets = [0; PARTITIONS];
    (0..count)
        .map(|_| {
            let key = random.below(KEYS);
            // A key has one partition, as a producer would choose it.
            let partition = key % PARTITIONS;
            let offset = next_offsets[partition];
            next_offsets[partition] += 1 + random.below(3) as i64;
            let value = match random.below(20) {
                0 => None,
                1..=4 => Some(format!(r#"{{"title":"标题 {offset}","text":"正文"}}"#).into_bytes()),
                _ => Some(mutate(&seeds, &JSON, &mut random)),
            };
            let header = Header {
                name: "x".to_owned(),
                value: Some(vec![0xff]),
            };
            SourceRecord {
                position: RecordPosition {
                    partition: TopicPartition::new(TOPIC, partition as i32),
                    offset,
                },
                generation: Generation(1),
                timestamp_ms: Some(offset),
                key: Some(if key == 0 {
                    b"n-1".to_vec()
                } else {
                    format!("k{key}").into_bytes()
                }),
                value,
                headers: if random.below(4) == 0 {
                    vec![header]
                } else {
                    Vec::new()
                },
                fault: None,
            }
        })
        .collect()
}

/// What the records amount to: the title of each document that lives, and how many are refused.
fn expected(settings: &Settings, records: &[SourceRecord]) -> (BTreeMap<String, String>, usize) {
    let decoder = Decoder::new(&settings.decode).unwrap();
    let mut alive = BTreeMap::new();
    let mut refused = 0;
    for record in records {
        match decoder.decode(record) {
            Ok(Decoded::Document(document)) => {
                alive.insert(document.id.to_string(), document.title);
            }
            Ok(Decoded::Tombstone(id)) => drop(alive.remove(id.as_str())),
            Err(_) => refused += 1,
        }
    }
    (alive, refused)
}

fn deliver(script: &Script, records: Vec<SourceRecord>) {
    let partitions: Vec<_> = (0..PARTITIONS as i32).collect();
    script.assign(TOPIC, &partitions, 1);
    let mut records = records.into_iter().peekable();
    while records.peek().is_some() {
        let batch = records.by_ref().take(50).collect();
        assert!(script.records(batch));
    }
    assert!(script.send(SourceEvent::Ended));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mutated_records_are_each_accounted_for() {
    let count = from_environment("TCBERT_FUZZ_RECORDS").unwrap_or(DEFAULT_RECORDS) as usize;
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path());
    let records = records(count);
    let (alive, refused) = expected(&settings, &records);
    assert!(
        alive.len() > 10 && refused > count / 4,
        "{} live, {refused} refused",
        alive.len()
    );

    let (source, script) = ScriptedSource::scripted();
    let expectation = assemble::expected_collection(&settings).unwrap();
    let store = assemble::open_store_for_run(&settings, &expectation)
        .await
        .unwrap();
    let dead_letters = Arc::new(MemoryDeadLetters::default());
    let stages = engine(&settings)
        .into_stages(
            &settings,
            source,
            store.clone(),
            dead_letters.clone(),
            Metrics::new().unwrap(),
        )
        .unwrap();
    let counters = Arc::new(Counters::default());
    let last: BTreeMap<_, _> = records
        .iter()
        .map(|record| {
            (
                record.position.partition.clone(),
                record.position.offset + 1,
            )
        })
        .collect();
    let delivery = std::thread::spawn({
        let script = script.clone();
        move || deliver(&script, records)
    });
    let ending = pipeline::run(
        stages,
        assemble::wiring(&settings),
        counters.clone(),
        CancellationToken::new(),
    )
    .await
    .unwrap();
    delivery.join().unwrap();

    assert_eq!(ending, Ending::Complete);
    assert_eq!(counters.snapshot().accounted_for(), count as u64);
    assert_eq!(dead_letters.all().len(), refused);
    assert_eq!(
        script.committed(),
        last.into_iter().collect(),
        "everything is committed"
    );
    assert_eq!(
        store.count(PointFilter::default()).await.unwrap(),
        alive.len() as u64
    );
    for (id, title) in alive {
        let payload = store
            .fetch(DocumentId::new(&id).unwrap())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(
            payload.get("title").and_then(|title| title.as_str()),
            Some(title.as_str())
        );
    }
    store.close().await.unwrap();
}
