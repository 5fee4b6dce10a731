//! The pipeline over a scripted source and a store and a model that misbehave: what is tried again, what
//! is isolated, what stops the worker, and that a commit never runs ahead of what is durable.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tcbert_worker::decode::{DecodeSettings, Decoder};
use tcbert_worker::document::{DocumentId, Generation, LatestTime, RecordPosition, TopicPartition};
use tcbert_worker::model::twin::TwinModel;
use tcbert_worker::model::{Model, ModelError, PassInput, PassOutput};
use tcbert_worker::pipeline::{self, Counters, Ending, PipelineError, Stages, Wiring};
use tcbert_worker::score::{ModelIdentity, Tagger, TaggingSettings};
use tcbert_worker::source::{MemoryDeadLetters, SourceEvent, SourceRecord};
use tcbert_worker::store::counting::CountingStore;
use tcbert_worker::store::point::Provenance;
use tcbert_worker::store::{
    Admin, CollectionInfo, PointFilter, PointWrite, SearchHit, Store, StoreError, WriteOutcome,
};
use tcbert_worker::telemetry::Metrics;
use tcbert_worker::tokenize::PromptTokenizer;
use tokio_util::sync::CancellationToken;

use crate::scripted_source::{Script, ScriptedSource};
use crate::support::wait_until;

const TOPIC: &str = "documents";
const HIDDEN: usize = 16;
const PATIENCE: Duration = Duration::from_secs(30);

/// What the store does with a write before it looks at its points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Works,
    Away,
    Full,
    Rejects,
    Broken,
}

/// Keeps what was written; refuses batches that hold poison.
struct MoodyStore {
    mood: Mutex<Vec<Mood>>,
    poison: HashSet<String>,
    /// A write that holds it fails in a way that looks as if it passed by itself.
    stumbles_over: HashSet<String>,
    /// Only what is there already may be written.
    takes_no_new: AtomicBool,
    written: Mutex<BTreeMap<String, usize>>,
    rest: CountingStore,
}

impl MoodyStore {
    fn new(moods: &[Mood], poison: &[&str]) -> Arc<Self> {
        Arc::new(Self::of(moods, poison))
    }

    fn of(moods: &[Mood], poison: &[&str]) -> Self {
        Self {
            mood: Mutex::new(moods.iter().rev().copied().collect()),
            poison: poison.iter().map(|id| (*id).to_owned()).collect(),
            stumbles_over: HashSet::new(),
            takes_no_new: AtomicBool::new(false),
            written: Mutex::default(),
            rest: CountingStore::default(),
        }
    }

    fn take(&self, batch: &[PointWrite]) -> Result<(), StoreError> {
        match self.mood.lock().pop().unwrap_or(Mood::Works) {
            Mood::Works => {}
            Mood::Away => return Err(StoreError::Transient("away".to_owned())),
            Mood::Full => return Err(StoreError::Full("disk full".to_owned())),
            Mood::Rejects => return Err(StoreError::Rejected("strict mode".to_owned())),
            Mood::Broken => return Err(StoreError::Fatal("the flush failed".to_owned())),
        }
        if batch
            .iter()
            .any(|write| self.poison.contains(write.id().as_str()))
        {
            return Err(StoreError::Rejected("poison".to_owned()));
        }
        let stumbles = |write: &PointWrite| self.stumbles_over.contains(write.id().as_str());
        if batch.iter().any(stumbles) {
            return Err(StoreError::Transient("internal error".to_owned()));
        }
        let mut written = self.written.lock();
        let is_known = |write: &PointWrite| written.contains_key(write.id().as_str());
        if self.takes_no_new.load(Ordering::Acquire) && !batch.iter().all(is_known) {
            return Err(StoreError::Rejected("quota of points".to_owned()));
        }
        for write in batch {
            *written.entry(write.id().as_str().to_owned()).or_default() += 1;
        }
        Ok(())
    }

    fn ids(&self) -> HashSet<String> {
        self.written.lock().keys().cloned().collect()
    }
}

impl Store for MoodyStore {
    fn write(
        &self,
        batch: Vec<PointWrite>,
        _latest: LatestTime,
    ) -> BoxFuture<'_, Result<WriteOutcome, StoreError>> {
        let outcome = self.take(&batch).map(|()| WriteOutcome::default());
        Box::pin(std::future::ready(outcome))
    }

    fn search(
        &self,
        vector: Vec<f32>,
        filter: PointFilter,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<SearchHit>, StoreError>> {
        self.rest.search(vector, filter, limit)
    }

    fn count(&self, filter: PointFilter) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.rest.count(filter)
    }

    fn fetch(
        &self,
        id: DocumentId,
    ) -> BoxFuture<'_, Result<Option<Map<String, Value>>, StoreError>> {
        self.rest.fetch(id)
    }

    fn collection(&self) -> BoxFuture<'_, Result<Option<CollectionInfo>, StoreError>> {
        self.rest.collection()
    }

    fn remove_markers(&self, before: jiff::Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.rest.remove_markers(before)
    }

    fn admin(&self) -> &dyn Admin {
        self.rest.admin()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.rest.close()
    }
}

/// Fails on rows longer than `most` tokens; `most = 0` fails on everything.
struct FragileModel {
    twin: TwinModel,
    most: usize,
}

impl Model for FragileModel {
    fn hidden_size(&self) -> usize {
        self.twin.hidden_size()
    }

    fn run(&mut self, input: &PassInput) -> Result<PassOutput, ModelError> {
        if input.tokens > self.most {
            return Err(ModelError::Run {
                batch: input.batch,
                tokens: input.tokens,
                reason: "out of memory".to_owned(),
            });
        }
        self.twin.run(input)
    }
}

/// A pipeline under test.
struct Ground {
    script: Script,
    dead_letters: Arc<MemoryDeadLetters>,
    counters: Arc<Counters>,
    metrics: Metrics,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<Result<Ending, PipelineError>>,
}

impl Ground {
    fn start(store: Arc<MoodyStore>, most_tokens: usize) -> Self {
        Self::start_wired(store, most_tokens, |_| {})
    }

    fn start_wired(
        store: Arc<MoodyStore>,
        most_tokens: usize,
        rewire: impl FnOnce(&mut Wiring),
    ) -> Self {
        Self::over(ScriptedSource::scripted(), store, most_tokens, rewire)
    }

    fn over(
        (source, script): (Arc<ScriptedSource>, Script),
        store: Arc<MoodyStore>,
        most_tokens: usize,
        rewire: impl FnOnce(&mut Wiring),
    ) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let tokenizer = root.join("models/compact/tokenizer.json");
        let tokenizer = Arc::new(PromptTokenizer::from_file(&tokenizer).unwrap());
        let identity = ModelIdentity {
            fingerprint: "twin".to_owned(),
            max_tokens: 512,
            hidden_size: HIDDEN,
        };
        let tagger = Tagger::new(&TaggingSettings::default(), tokenizer, &identity).unwrap();
        let model = FragileModel {
            twin: TwinModel::new(HIDDEN),
            most: most_tokens,
        };
        let decode = DecodeSettings::default();
        let dead_letters = Arc::new(MemoryDeadLetters::default());
        let metrics = Metrics::new().unwrap();
        let stages = Stages {
            source,
            decoder: Decoder::new(&decode).unwrap(),
            text: decode.text_settings(),
            tagger,
            models: vec![Box::new(model)],
            provenance: Provenance {
                embedding_fingerprint: "e".to_owned(),
                labelling_fingerprint: "l".to_owned(),
                keep_text: false,
            },
            store,
            dead_letters: dead_letters.clone(),
            metrics: metrics.clone(),
        };
        let mut wiring = Wiring {
            commit_interval: Duration::from_millis(10),
            revoke_drain: Duration::from_secs(5),
            batch_points: 32,
            write_concurrency: 4,
            ..wiring()
        };
        rewire(&mut wiring);
        let counters = Arc::new(Counters::default());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(pipeline::run(
            stages,
            wiring,
            counters.clone(),
            shutdown.clone(),
        ));
        Self {
            script,
            dead_letters,
            counters,
            metrics,
            shutdown,
            running,
        }
    }

    fn wait_for_commit(&self, partition: i32, next_offset: i64) {
        let partition = TopicPartition::new(TOPIC, partition);
        assert!(
            self.script
                .wait_for_commit(&partition, next_offset, PATIENCE),
            "committed {:?}, counted {:?}",
            self.script.committed(),
            self.counters.snapshot()
        );
    }

    async fn stop(self) -> Result<Ending, PipelineError> {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .unwrap()
            .unwrap()
    }

    async fn fails(self) -> PipelineError {
        tokio::time::timeout(PATIENCE, self.running)
            .await
            .unwrap()
            .unwrap()
            .unwrap_err()
    }
}

fn wiring() -> Wiring {
    let settings = tcbert_worker::settings::Settings::load(&Default::default()).unwrap();
    tcbert_worker::assemble::wiring(&settings)
}

fn record(partition: i32, offset: i64, id: &str, title: &str) -> SourceRecord {
    SourceRecord {
        position: RecordPosition {
            partition: TopicPartition::new(TOPIC, partition),
            offset,
        },
        generation: Generation(1),
        timestamp_ms: Some(1_000 + offset),
        key: Some(id.as_bytes().to_vec()),
        value: Some(
            serde_json::json!({ "title": title })
                .to_string()
                .into_bytes(),
        ),
        headers: Vec::new(),
        fault: None,
    }
}

fn records(partition: i32, offsets: std::ops::Range<i64>) -> Vec<SourceRecord> {
    offsets
        .map(|offset| {
            record(
                partition,
                offset,
                &format!("{partition}-{offset}"),
                "国家队公布大名单",
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_or_full_is_waited_for() {
    let store = MoodyStore::new(
        &[Mood::Away, Mood::Full, Mood::Away, Mood::Away, Mood::Full],
        &[],
    );
    let ground = Ground::start(store.clone(), 512);
    ground.script.assign(TOPIC, &[0, 1], 1);
    ground.script.records(records(0, 0..100));
    ground.script.records(records(1, 0..100));
    ground.wait_for_commit(0, 100);
    ground.wait_for_commit(1, 100);
    assert!(
        ground.dead_letters.all().is_empty(),
        "an outage dead-letters nothing"
    );
    assert_eq!(store.ids().len(), 200);
    assert_eq!(ground.stop().await.unwrap(), Ending::Stopped);
}

/// A chunk of records is cut to the room that is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_in_flight_than_the_budget_allows() {
    type Set = fn(&mut Wiring);
    let limits: [(Set, u64); 3] = [
        (|wiring| wiring.pipeline.max_in_flight_records = 8, 8),
        (|wiring| wiring.pipeline.max_uncommitted_records = 9, 9),
        // A record has its id as key and 36 bytes of value: one that does not fit waits.
        (|wiring| wiring.pipeline.max_in_flight_bytes = 100, 2),
    ];
    for (limit, most) in limits {
        let store = MoodyStore::new(&[Mood::Away; 8], &[]);
        let ground = Ground::start_wired(store.clone(), 512, limit);
        ground.script.assign(TOPIC, &[0], 1);
        ground.script.records(records(0, 0..100));
        tokio::time::sleep(Duration::from_millis(400)).await;
        let delivered = ground.counters.snapshot().delivered;
        assert!((1..=most).contains(&delivered), "{delivered} of {most}");
        ground.wait_for_commit(0, 100);
        assert_eq!(store.ids().len(), 100);
        ground.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_poison_goes_to_the_dead_letters() {
    let store = MoodyStore::new(&[], &["0-17", "0-63"]);
    let ground = Ground::start(store.clone(), 512);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..100));
    ground.wait_for_commit(0, 100);
    let mut keys: Vec<Vec<u8>> = ground
        .dead_letters
        .all()
        .into_iter()
        .filter_map(|letter| letter.record.key)
        .collect();
    keys.sort();
    assert_eq!(keys, vec![b"0-17".to_vec(), b"0-63".to_vec()]);
    assert!(
        ground
            .dead_letters
            .all()
            .iter()
            .all(|letter| letter.stage == "store")
    );
    assert_eq!(store.ids().len(), 98);
    ground.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_rejects_everything_stops_the_worker_and_dead_letters_nothing() {
    let ids: Vec<String> = (0..400).map(|offset| format!("0-{offset}")).collect();
    let poison: Vec<&str> = ids.iter().map(String::as_str).collect();
    let ground = Ground::start(MoodyStore::new(&[], &poison), 512);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..400));
    let (dead_letters, script) = (ground.dead_letters.clone(), ground.script.clone());
    let error = ground.fails().await;
    assert!(
        matches!(&error, PipelineError::Store(StoreError::Fatal(reason)) if reason.contains("poison")),
        "{error}"
    );
    assert_eq!(dead_letters.all().len(), 0);
    assert!(script.committed().is_empty(), "{:?}", script.committed());
}

/// A server whose memory or quota is used up rejects sound records with the statuses of bad ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sound_records_wait_for_a_store_that_rejects_for_a_while() {
    for works_first in [false, true] {
        let mut moods = vec![Mood::Works; usize::from(works_first)];
        // Each failed try takes two of them where there is a probe, and one for each record where not.
        moods.extend(vec![Mood::Rejects; if works_first { 16 } else { 150 }]);
        let store = MoodyStore::new(&moods, &[]);
        let ground = Ground::start(store.clone(), 512);
        ground.script.assign(TOPIC, &[0], 1);
        ground.script.records(records(0, 0..5));
        if works_first {
            ground.wait_for_commit(0, 5);
        }
        ground.script.records(records(0, 5..60));
        ground.wait_for_commit(0, 60);
        assert_eq!(ground.dead_letters.all().len(), 0, "{works_first}");
        assert_eq!(store.ids().len(), 60);
        ground.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_record_that_comes_first_waits_for_the_proof() {
    let store = MoodyStore::new(&[], &["0-0"]);
    let ground = Ground::start(store.clone(), 512);
    ground.script.assign(TOPIC, &[0, 1], 1);
    ground.script.records(records(0, 0..1));
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(
        ground.dead_letters.all().len(),
        0,
        "nothing proves its fault"
    );
    assert!(ground.script.committed().is_empty());
    ground.script.records(records(1, 0..1));
    ground.wait_for_commit(1, 1);
    ground.wait_for_commit(0, 1);
    assert_eq!(ground.dead_letters.all().len(), 1);
    ground.stop().await.unwrap();
}

/// Each in a batch of its own, as many as there are writes in flight: the proof has to get past them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_records_in_all_places_let_the_proof_pass() {
    let store = MoodyStore::new(&[], &["0-0", "0-1", "0-2", "0-3", "0-4"]);
    let ground = Ground::start_wired(store.clone(), 512, |wiring| wiring.batch_points = 1);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..6));
    ground.wait_for_commit(0, 6);
    assert_eq!(ground.dead_letters.all().len(), 5);
    assert_eq!(store.ids().len(), 1);
    ground.stop().await.unwrap();
}

/// The others pass it, and it is neither given up nor committed past.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_the_store_stumbles_over_holds_up_no_other() {
    let mut store = MoodyStore::of(&[], &[]);
    store.stumbles_over.insert("0-20".to_owned());
    let store = Arc::new(store);
    let ground = Ground::start(store.clone(), 512);
    ground.script.assign(TOPIC, &[0, 1], 1);
    ground.script.records(records(0, 0..40));
    ground.script.records(records(1, 0..40));
    ground.wait_for_commit(1, 40);
    ground.wait_for_commit(0, 20);
    let deadline = Instant::now() + PATIENCE;
    while store.ids().len() < 79 {
        assert!(Instant::now() < deadline, "{} written", store.ids().len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(ground.dead_letters.all().len(), 0);
    let committed = ground.script.committed();
    assert_eq!(committed.get(&TopicPartition::new(TOPIC, 0)), Some(&20));
    ground.shutdown.cancel();
}

/// As a server does one of whose shards is away: more of them than writes may be in flight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_shard_that_is_away_let_the_others_pass() {
    for batch_points in [1, 32] {
        let mut store = MoodyStore::of(&[], &[]);
        let away = (1..60).step_by(6).map(|offset| format!("0-{offset}"));
        store.stumbles_over.extend(away);
        let store = Arc::new(store);
        let ground = Ground::start_wired(store.clone(), 512, |wiring| {
            wiring.batch_points = batch_points;
        });
        ground.script.assign(TOPIC, &[0, 1], 1);
        ground.script.records(records(0, 0..60));
        ground.script.records(records(1, 0..60));
        ground.wait_for_commit(1, 60);
        let deadline = Instant::now() + PATIENCE;
        while store.ids().len() < 110 {
            assert!(Instant::now() < deadline, "{} written", store.ids().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(ground.dead_letters.all().len(), 0);
        ground.wait_for_commit(0, 1);
        let committed = ground.script.committed();
        assert_eq!(committed.get(&TopicPartition::new(TOPIC, 0)), Some(&1));
        ground.shutdown.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_flush_stops_without_a_commit() {
    let ground = Ground::start(MoodyStore::new(&[Mood::Broken; 64], &[]), 512);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..50));
    let script = ground.script.clone();
    let error = ground.fails().await;
    assert!(
        matches!(error, PipelineError::Store(StoreError::Fatal(_))),
        "{error}"
    );
    assert!(script.committed().is_empty(), "{:?}", script.committed());
    assert!(script.is_closed(), "the source leaves its group");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_the_model_fails_on_is_isolated() {
    let store = MoodyStore::new(&[], &[]);
    let ground = Ground::start(store.clone(), 60);
    ground.script.assign(TOPIC, &[0], 1);
    let mut batch = records(0, 0..40);
    batch.push(record(0, 40, "0-40", &"很长的标题".repeat(40)));
    ground.script.records(batch);
    ground.wait_for_commit(0, 41);
    let dead_letters = ground.dead_letters.all();
    assert_eq!(dead_letters.len(), 1);
    assert_eq!(
        (
            dead_letters[0].stage.as_str(),
            dead_letters[0].record.position.offset
        ),
        ("model", 40)
    );
    assert_eq!(store.ids().len(), 40);
    ground.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_fails_on_everything_stops_the_worker() {
    let ground = Ground::start(MoodyStore::new(&[], &[]), 0);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..40));
    let (dead_letters, script) = (ground.dead_letters.clone(), ground.script.clone());
    let error = ground.fails().await;
    assert!(matches!(error, PipelineError::Model(_)), "{error}");
    assert!(dead_letters.all().is_empty() && script.committed().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_drains_and_hands_over_its_offsets() {
    let store = MoodyStore::new(&[Mood::Away, Mood::Away], &[]);
    let ground = Ground::start(store.clone(), 512);
    ground.script.assign(TOPIC, &[0, 1], 1);
    ground.script.records(records(0, 0..30));
    ground.script.records(records(1, 0..30));
    let answer = ground
        .script
        .revoke(TOPIC, &[1])
        .recv_timeout(PATIENCE)
        .unwrap();
    let committed = ground
        .script
        .committed()
        .get(&TopicPartition::new(TOPIC, 1))
        .copied();
    let handed_over = answer.first().map(|offset| offset.next_offset);
    assert_eq!(
        handed_over.or(committed),
        Some(30),
        "drained before it is let go"
    );
    // What still arrives of it belongs to its next owner.
    ground.script.records(records(1, 30..40));
    ground.script.records(records(0, 30..40));
    ground.wait_for_commit(0, 40);
    assert!(!store.ids().contains("1-35"));
    ground.stop().await.unwrap();
}

/// While the store is away, sessions expire for hours: each loss and each assignment is taken in meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_number_of_lost_sessions_during_an_outage_leaves_a_working_worker() {
    let store = MoodyStore::new(&[Mood::Away; 10_000], &[]);
    let group = ScriptedSource::scripted_group();
    let ground = Ground::over(group, store.clone(), 512, |wiring| {
        wiring.pipeline.max_in_flight_records = 8;
    });
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..40));
    let deadline = Instant::now() + PATIENCE;
    while ground.counters.snapshot().delivered < 8 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let change = |generations: std::ops::Range<u64>| {
        for generation in generations {
            ground.script.lose(TOPIC, &[0]);
            ground.script.assign(TOPIC, &[0], generation);
        }
    };
    change(2..12);
    let all = [
        "tcbert_rebalances_total{kind=\"assigned\"} 11",
        "tcbert_rebalances_total{kind=\"lost\"} 10",
        "tcbert_documents_total{outcome=\"abandoned\"} 8",
    ];
    let shows_all = || {
        let shown = ground.metrics.render();
        all.iter().all(|line| shown.contains(line))
    };
    while !shows_all() {
        assert!(Instant::now() < deadline, "{}", ground.metrics.render());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(store.ids().is_empty(), "the store is still away");
    change(12..200);
    store.mood.lock().clear();
    let mut last = records(0, 0..40);
    for record in &mut last {
        record.generation = Generation(199);
    }
    ground.script.records(last);
    ground.wait_for_commit(0, 40);
    assert_eq!(store.ids().len(), 40);
    ground.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_source_ends_when_all_is_durable() {
    let store = MoodyStore::new(&[Mood::Away, Mood::Away, Mood::Away], &["0-5"]);
    let ground = Ground::start(store.clone(), 512);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..70));
    ground.script.send(SourceEvent::Ended);
    let ending = tokio::time::timeout(PATIENCE, ground.running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(ending, Ending::Complete);
    assert_eq!(
        ground
            .script
            .committed()
            .get(&TopicPartition::new(TOPIC, 0)),
        Some(&70)
    );
    assert_eq!(
        (store.ids().len(), ground.dead_letters.all().len()),
        (69, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_fail_are_made_again() {
    let ground = Ground::start(MoodyStore::new(&[], &[]), 512);
    ground.script.fail_commits(3);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..10));
    ground.wait_for_commit(0, 10);
    ground.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_commit_is_made_again_while_there_is_time() {
    let store = MoodyStore::new(&[], &[]);
    let ground = Ground::start(store.clone(), 512);
    // More than the timer gets through before the end is asked for.
    ground.script.fail_commits(1_000_000);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..10));
    let deadline = Instant::now() + PATIENCE;
    while store.ids().len() < 10 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let script = ground.script.clone();
    let stopping = tokio::spawn(ground.stop());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(script.committed().is_empty() && !stopping.is_finished());
    script.fail_commits(1);
    assert_eq!(stopping.await.unwrap().unwrap(), Ending::Stopped);
    let committed = script.committed();
    assert_eq!(committed.get(&TopicPartition::new(TOPIC, 0)), Some(&10));
}

/// The last accepted write is accepted again, which proves little where no new document is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_takes_no_new_documents_is_not_the_fault_of_all_of_them() {
    let store = MoodyStore::new(&[], &[]);
    let ground = Ground::start(store.clone(), 512);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..4));
    ground.wait_for_commit(0, 4);
    store.takes_no_new.store(true, Ordering::Release);
    ground.script.records(records(0, 4..404));
    let dead_letters = ground.dead_letters.clone();
    let error = ground.fails().await;
    assert!(
        matches!(&error, PipelineError::Store(StoreError::Fatal(reason)) if reason.contains("quota")),
        "{error}"
    );
    let given_up = dead_letters.all().len();
    assert!(given_up <= 50, "{given_up} sound records are dead-lettered");
}

/// An outage that begins while rejected records wait is an outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_after_rejections_is_waited_for() {
    // Enough that more records than may be held are: until each is alone, a batch takes two tries a half.
    let moods = [vec![Mood::Rejects; 900], vec![Mood::Away; 100_000]].concat();
    let store = MoodyStore::new(&moods, &[]);
    let ground = Ground::start(store.clone(), 512);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..200));
    wait_until("the outage", || store.mood.lock().len() < 100_000).await;
    // Longer than rejected records may wait.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!ground.running.is_finished(), "the worker ended");
    store.mood.lock().clear();
    ground.wait_for_commit(0, 200);
    assert!(ground.dead_letters.all().is_empty());
    ground.stop().await.unwrap();
}

/// Rejected records at the end of a job are given up as elsewhere, though nothing follows them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_records_at_the_end_let_a_job_end() {
    let ids: Vec<String> = (20..40).map(|offset| format!("0-{offset}")).collect();
    let poison: Vec<&str> = ids.iter().map(String::as_str).collect();
    let ground = Ground::start(MoodyStore::new(&[], &poison), 512);
    ground.script.assign(TOPIC, &[0], 1);
    ground.script.records(records(0, 0..40));
    ground.wait_for_commit(0, 40);
    assert_eq!(ground.dead_letters.all().len(), 20);
    ground.stop().await.unwrap();
}
