//! The whole pipeline on librdkafka's mock cluster and the embedded store: nothing is lost, nothing is stale.

use tcbert_worker::store::PointFilter;

use crate::support::{
    DEAD_LETTERS, TOPIC, Worker, broker, document, documents, settings, titles, wait_until,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_documents_are_all_accounted_for() {
    let broker = broker(4);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    let mut records = documents("doc", 200);
    records.push(tcbert_worker::kafka::SampleRecord {
        key: Some(b"broken".to_vec()),
        value: Some(b"{not json".to_vec()),
        ..Default::default()
    });
    let mut tombstone = document("doc-7", "");
    tombstone.value = None;
    records.push(tombstone);
    broker.produce(TOPIC, records).await.unwrap();

    let worker = Worker::start(&settings).await;
    worker.wait_for(202).await;
    let store = worker.store.clone();
    let counts = worker.stop().await;

    assert_eq!(counts.delivered, 202);
    assert_eq!(counts.tagged, 200);
    // The deletion needs no model and may overtake its document.
    assert_eq!(counts.written + counts.superseded, 200);
    assert_eq!(counts.deleted, 1);
    assert_eq!(counts.dead_lettered, 1);
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), 199);
    assert_eq!(broker.committed(&settings.kafka).unwrap(), 202);
    let letters = broker.read_dead_letters(&settings.kafka).unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].key_text(), "broken");
    assert_eq!(letters[0].stage, "decode");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_in_the_middle_loses_nothing() {
    let broker = broker(4);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    broker.produce(TOPIC, documents("doc", 200)).await.unwrap();

    let first = Worker::start(&settings).await;
    first.wait_for(50).await;
    let store = first.store.clone();
    let before = first.stop().await;
    let committed = broker.committed(&settings.kafka).unwrap();
    assert_eq!(committed, i64::try_from(before.accounted_for()).unwrap());

    let second = Worker::start_with(&settings, store.clone()).await;
    wait_until("the rest", || {
        broker.committed(&settings.kafka).unwrap() == 200
    })
    .await;
    let after = second.stop().await;
    assert_eq!(
        before.accounted_for() + after.accounted_for(),
        200,
        "a clean stop leaves nothing to do twice"
    );
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), 200);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_in_one_group_share_and_take_over() {
    let broker = broker(6);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&broker, folder.path(), &[]);

    let first = Worker::start(&settings).await;
    let store = first.store.clone();
    let second = Worker::start_with(&settings, store.clone()).await;
    broker
        .produce(TOPIC, documents("early", 100))
        .await
        .unwrap();
    wait_until("the first half", || {
        broker.committed(&settings.kafka).unwrap() >= 100
    })
    .await;
    let first_counts = first.stop().await;
    broker.produce(TOPIC, documents("late", 100)).await.unwrap();
    wait_until("the second half", || {
        broker.committed(&settings.kafka).unwrap() >= 200
    })
    .await;
    let second_counts = second.stop().await;

    assert!(
        second_counts.accounted_for() >= 100,
        "the second worker took over: {second_counts:?}"
    );
    assert!(first_counts.accounted_for() + second_counts.accounted_for() >= 200);
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), 200);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_version_through_another_partition_loses_and_the_dead_stay_dead() {
    let broker = broker(2);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    let at = |mut record: tcbert_worker::kafka::SampleRecord, partition, timestamp| {
        record.partition = Some(partition);
        record.timestamp_ms = Some(timestamp);
        record
    };
    let mut deletion = document("dead", "");
    deletion.value = None;
    let records = vec![
        at(document("kept", "新版本的标题"), 0, 2_000),
        at(document("kept", "旧版本的标题"), 1, 1_000),
        at(deletion, 0, 2_000),
        at(document("dead", "迟到的旧版本"), 1, 1_000),
    ];
    broker.produce(TOPIC, records).await.unwrap();
    let worker = Worker::start(&settings).await;
    worker.wait_for(4).await;
    let store = worker.store.clone();
    worker.stop().await;
    let found = titles(store.as_ref(), ["kept".to_owned(), "dead".to_owned()]).await;
    assert_eq!(
        found.into_iter().collect::<Vec<_>>(),
        vec![("kept".to_owned(), "新版本的标题".to_owned())]
    );
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), 1);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_a_few_records_slows_down_and_loses_nothing() {
    let broker = broker(3);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(
        &broker,
        folder.path(),
        &[
            ("PIPELINE__MAX_IN_FLIGHT_RECORDS", "7"),
            ("KAFKA__QUEUE_RECORDS", "16"),
        ],
    );
    broker.produce(TOPIC, documents("doc", 150)).await.unwrap();
    let worker = Worker::start(&settings).await;
    worker.wait_for(150).await;
    let store = worker.store.clone();
    let counts = worker.stop().await;
    assert_eq!(counts.accounted_for(), 150);
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), 150);
    assert!(
        broker
            .read_dead_letters(&settings.kafka)
            .unwrap()
            .is_empty(),
        "{DEAD_LETTERS}"
    );
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_text_that_comes_again_under_other_ids_needs_no_model() {
    const TITLE: &str = "央行下调存款准备金率，股市应声上涨";
    let broker = broker(1);
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(&broker, folder.path(), &[]);
    broker
        .produce(TOPIC, vec![document("first", TITLE)])
        .await
        .unwrap();
    let worker = Worker::start(&settings).await;
    worker.wait_for(1).await;
    let again: Vec<_> = (0..30)
        .map(|index| document(&format!("again-{index}"), TITLE))
        .collect();
    broker.produce(TOPIC, again).await.unwrap();
    worker.wait_for(31).await;
    let store = worker.store.clone();
    let counts = worker.stop().await;

    assert_eq!(counts.repeated, 30);
    assert_eq!(counts.tagged, 31);
    assert_eq!(counts.written, 31);
    assert_eq!(store.count(PointFilter::default()).await.unwrap(), 31);
    let topic = async |id: &str| {
        let id = tcbert_worker::document::DocumentId::new(id).unwrap();
        let payload = store.fetch(id).await.unwrap().unwrap();
        (payload["topic"].clone(), payload["probability"].clone())
    };
    assert_eq!(topic("first").await, topic("again-29").await);
    store.close().await.unwrap();
}
