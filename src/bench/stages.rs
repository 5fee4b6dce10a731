//! Each stage alone, on one thread: seconds for a thousand documents.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::corpus::BenchDocument;
use super::error::BenchError;
use super::lent::NoModel;
use crate::assemble;
use crate::batch::{Batch, BatchItem, BatchPlanner};
use crate::decode::{Decoded, Decoder, compose_text};
use crate::document::{Document, Generation, LatestTime, RecordPosition, TopicPartition, Version};
use crate::model::Model;
use crate::pipeline::answer_of;
use crate::score::{Tagger, Tagging};
use crate::settings::Settings;
use crate::source::SourceRecord;
use crate::store::point::{Provenance, TaggedDocument, build_point};
use crate::store::{CollectionSpec, Expectation, PointWrite, StoreKind};
use crate::tokenize::EncodedText;

/// Seconds for a thousand documents, by stage.
#[derive(Debug, Clone, Default)]
pub(super) struct StageSeconds(pub(super) Vec<(&'static str, f64)>);

/// A row that waits for its batch.
struct Row {
    at: usize,
    tokens: usize,
}

impl BatchItem for Row {
    fn tokens(&self) -> usize {
        self.tokens
    }

    fn key_hash(&self) -> u64 {
        self.at as u64
    }
}

/// Takes the documents through every stage but the model, one stage after the other.
///
/// # Errors
/// When a stage fails.
pub(super) async fn measure(
    settings: &Settings,
    tagger: &Tagger,
    documents: &[BenchDocument],
) -> Result<StageSeconds, BenchError> {
    let records = records(documents)?;
    let mut seconds = StageSeconds::default();
    let mut note = |name, took: Duration| {
        let per_thousand = took.as_secs_f64() * 1000.0 / documents.len() as f64;
        seconds.0.push((name, per_thousand));
    };

    let started = Instant::now();
    let decoded = decode(settings, &records)?;
    note("decode", started.elapsed());

    let started = Instant::now();
    let texts = settings.decode.text_settings();
    let encoded: Vec<EncodedText> = decoded
        .iter()
        .map(|document| tagger.encode(&compose_text(document, &texts).text))
        .collect();
    note("tokenise", started.elapsed());

    let started = Instant::now();
    let batches = plan(settings, tagger, &encoded);
    note("plan", started.elapsed());

    let started = Instant::now();
    let taggings = score(tagger, &encoded, &batches)?;
    note("score", started.elapsed());

    let started = Instant::now();
    let points = points(tagger, settings, decoded, taggings, &records);
    note("point", started.elapsed());

    let took = write(settings, tagger, points).await?;
    note("write", took);
    Ok(seconds)
}

fn records(documents: &[BenchDocument]) -> Result<Vec<SourceRecord>, BenchError> {
    let partition = TopicPartition::new("bench", 0);
    (0..)
        .zip(documents)
        .map(|(offset, document)| {
            Ok(SourceRecord {
                position: RecordPosition {
                    partition: partition.clone(),
                    offset,
                },
                generation: Generation(1),
                timestamp_ms: Some(offset),
                key: Some(document.id.clone().into_bytes()),
                value: Some(serde_json::to_vec(document).map_err(BenchError::failed)?),
                headers: Vec::new(),
                fault: None,
            })
        })
        .collect()
}

fn decode(settings: &Settings, records: &[SourceRecord]) -> Result<Vec<Document>, BenchError> {
    let decoder = Decoder::new(&settings.decode).map_err(BenchError::setup)?;
    records
        .iter()
        .map(|record| match decoder.decode(record) {
            Ok(Decoded::Document(document)) => Ok(document),
            Ok(Decoded::Tombstone(id)) => Err(BenchError::failed(format!("{id} is a deletion"))),
            Err(error) => Err(BenchError::failed(error)),
        })
        .collect()
}

fn plan(settings: &Settings, tagger: &Tagger, encoded: &[EncodedText]) -> Vec<Batch<Row>> {
    let mut planner = BatchPlanner::new(&settings.batch);
    let mut batches = Vec::new();
    let now = Instant::now();
    for (at, text) in encoded.iter().enumerate() {
        let mut row = Row {
            at,
            tokens: tagger.row_tokens(text),
        };
        while let Err(back) = planner.push(row, now) {
            batches.extend(planner.next_batch(now, false));
            row = back;
        }
    }
    while let Some(batch) = planner.next_batch(now, true) {
        batches.push(batch);
    }
    batches
}

/// Building the passes and reading their answers; the model itself answers at once.
fn score(
    tagger: &Tagger,
    encoded: &[EncodedText],
    batches: &[Batch<Row>],
) -> Result<Vec<Tagging>, BenchError> {
    let mut model = NoModel {
        hidden_size: tagger.hidden_size(),
    };
    let model: &mut dyn Model = &mut model;
    let mut taggings = Vec::with_capacity(encoded.len());
    for batch in batches {
        let texts: Vec<&EncodedText> = batch
            .items
            .iter()
            .filter_map(|row| encoded.get(row.at))
            .collect();
        for tagging in tagger.tag(model, &texts).map_err(BenchError::failed)? {
            taggings.push(tagging.map_err(BenchError::failed)?);
        }
    }
    Ok(taggings)
}

fn points(
    tagger: &Tagger,
    settings: &Settings,
    documents: Vec<Document>,
    taggings: Vec<Tagging>,
    records: &[SourceRecord],
) -> Vec<PointWrite> {
    let fingerprints = tagger.fingerprints();
    let provenance = Provenance {
        embedding_fingerprint: fingerprints.embedding.clone(),
        labelling_fingerprint: fingerprints.labelling.clone(),
        keep_text: settings.store.keep_text,
    };
    let now = jiff::Timestamp::now();
    let first = records.first();
    let order = first.map_or(0, |record| record.position.partition.version_order());
    documents
        .into_iter()
        .zip(taggings)
        .zip(records)
        .map(|((document, tagging), record)| {
            let version = Version {
                position: record.position.clone(),
                timestamp_ms: record.timestamp_ms.unwrap_or_default(),
                order,
            };
            let tagged = TaggedDocument {
                document,
                version,
                truncated: tagging.truncated,
                answer: Arc::new(answer_of(tagging)),
            };
            PointWrite::Upsert(build_point(&tagged, &provenance, now))
        })
        .collect()
}

/// Into an embedded store of its own, in batches as configured, one after the other.
async fn write(
    settings: &Settings,
    tagger: &Tagger,
    points: Vec<PointWrite>,
) -> Result<Duration, BenchError> {
    let folder = tempfile::tempdir().map_err(BenchError::setup)?;
    let mut settings = settings.clone();
    settings.store.kind = StoreKind::Embedded;
    settings.store.path = folder.path().join("store");
    settings.store.apply_migrations = true;
    let expectation = Expectation {
        vector: CollectionSpec {
            vector_name: String::new(),
            vector_size: tagger.hidden_size(),
        },
        embedding_fingerprint: tagger.fingerprints().embedding.clone(),
    };
    let store: Arc<_> = assemble::open_store_for_run(&settings, &expectation)
        .await
        .map_err(BenchError::setup)?;
    let started = Instant::now();
    let mut points = points.into_iter().peekable();
    while points.peek().is_some() {
        let batch = points
            .by_ref()
            .take(settings.store.batch_points())
            .collect();
        store
            .write(batch, LatestTime::ANY)
            .await
            .map_err(BenchError::failed)?;
    }
    let took = started.elapsed();
    store.close().await.map_err(BenchError::failed)?;
    Ok(took)
}
