//! Jobs over topics that are killed, begun again or told to continue without a part: none counts as done
//! what it has not done.

use std::fs::File;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tcbert_worker::kafka::{KafkaSettings, SampleProducer};
use tcbert_worker::store::groups::{self, Writer};
use tcbert_worker::store::{PointFilter, Store};

use crate::apache_kafka::{self, unique};
use crate::backfill::Ground;
use crate::processes::{finish, signal};
use crate::support::{PATIENCE, TOPIC, document, documents};

/// A ground with a live worker.
struct Site {
    ground: Ground,
}

impl Site {
    fn new(partitions: i32) -> Self {
        Self {
            ground: Ground::new(partitions),
        }
    }

    fn set(&mut self, key: &'static str, value: &str) {
        self.ground.set(key, value);
    }

    fn committed(&self, topic: &str) -> i64 {
        let mut kafka = KafkaSettings {
            topic: topic.to_owned(),
            ..self.ground.settings().kafka
        };
        for (key, setting) in [
            ("KAFKA__BROKERS", &mut kafka.brokers),
            ("KAFKA__GROUP_ID", &mut kafka.group_id),
        ] {
            if let Some(value) = self.ground.setting(key) {
                value.clone_into(setting);
            }
        }
        // The coordinator of a cluster that has just started may not be there yet.
        self.ground.broker.committed(&kafka).unwrap_or(0)
    }

    /// Lets the live worker run until its group has committed so much of `topic`; false where it is
    /// rejected.
    async fn work_until(&self, topic: &str, committed: i64, arguments: &[&str]) -> bool {
        let mut child = self.ground.spawn(&[&["run"], arguments].concat());
        let deadline = Instant::now() + Duration::from_secs(90);
        while self.committed(topic) < committed {
            if child.try_wait().unwrap().is_some() {
                let output = finish(child);
                let log = String::from_utf8_lossy(&output.stderr);
                assert!(log.contains("--accept-empty-store"), "{log}");
                return false;
            }
            assert!(Instant::now() < deadline, "too slow");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        signal(&child, "-TERM");
        let output = finish(child);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        true
    }

    async fn store(&self, collection: &str) -> Arc<dyn Store> {
        let mut settings = self.ground.settings();
        settings.store.collection = collection.to_owned();
        tcbert_worker::store::connect(&settings.store)
            .await
            .unwrap()
    }

    async fn points(&self, collection: &str) -> u64 {
        let store = self.store(collection).await;
        store.count(PointFilter::default()).await.unwrap()
    }
}

fn ended_well(output: &Output) -> Value {
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A client of a group that nobody is a member of.
fn client(servers: &str, group: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", servers)
        .set("group.id", group)
        .create()
        .unwrap()
}

/// What the group has committed of partition 0 says.
fn note(servers: &str, group: &str, topic: &str) -> Value {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, 0);
    let found = client(servers, group).committed_offsets(list, PATIENCE);
    let found = found.unwrap();
    let element = found.find_partition(topic, 0).unwrap();
    serde_json::from_str(element.metadata()).unwrap()
}

fn commit_note(servers: &str, group: &str, topic: &str, note: &Value) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(0))
        .unwrap();
    list.find_partition(topic, 0)
        .unwrap()
        .set_metadata(note.to_string());
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = client(servers, group).commit(&list, CommitMode::Sync) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A finished job starts again. Where its workers end when the span of one partition is written and that
/// of another is not, the other one counts as done: by the run before, into a store that is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_begins_again_and_is_killed_early_reads_every_partition() {
    let Some(kafka) = apache_kafka::shared("a_job_that_begins_again_and_is_killed") else {
        return;
    };
    let topic = unique("again");
    let dead = format!("{topic}-dead");
    kafka.create_topic(&topic, 2, &[]);
    kafka.create_topic(&dead, 1, &[]);
    let mut site = Site::new(2);
    site.set("KAFKA__BROKERS", kafka.bootstrap_servers());
    site.set("KAFKA__TOPIC", &topic);
    site.set("KAFKA__GROUP_ID", &topic);
    site.set("KAFKA__DEAD_LETTER_TOPIC", &dead);
    let producer = SampleProducer::new(kafka.bootstrap_servers()).unwrap();
    let records: Vec<_> = documents("doc", 20)
        .into_iter()
        .enumerate()
        .map(|(index, record)| record.to_partition(i32::try_from(index % 2).unwrap()))
        .collect();
    producer.produce(&topic, &records).unwrap();
    assert!(site.work_until(&topic, 20, &[]).await);
    let all = ["backfill", "--json", "--from", "1970-01-01"];
    let done = ended_well(&site.ground.run(&all));
    let group = done["source"]["group"].as_str().unwrap().to_owned();
    // The collection is lost, and the job begins again into a new one.
    let store = site.ground.store().await;
    store.admin().drop_collection().await.unwrap();
    drop(store);
    let store = site.ground.store().await;
    let job = Writer::Job(group.clone());
    groups::register(&*store, &job, jiff::Timestamp::now())
        .await
        .unwrap();
    // Two workers got a partition each; one was killed before it wrote its span, the other one before
    // the group gave it the first one's partition.
    let servers = kafka.bootstrap_servers();
    let before = note(servers, &group, &topic);
    let begun = json!({
        "run": "0123456789abcdef0123456789abcdef",
        "begin": 0,
        "end": 10,
        "undecided": true,
        "replaces": [before["run"]],
    });
    commit_note(servers, &group, &topic, &begun);
    let again = ended_well(&site.ground.run(&all));
    let last = [document("last", "最后的标题").to_partition(0)];
    producer.produce(&topic, &last).unwrap();
    if site.work_until(&topic, 21, &[]).await {
        assert_eq!(
            site.points("documents").await,
            21,
            "run continues over a collection that lacks a partition; {again}"
        );
    }
}

/// The same by kills alone: of two workers that begin again, one is killed before it has written its span,
/// the other one before the first one's session ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_that_are_killed_while_a_job_begins_again_leave_no_hole() {
    let site = Site::new(2);
    let records: Vec<_> = documents("doc", 20)
        .into_iter()
        .enumerate()
        .map(|(index, record)| record.to_partition(i32::try_from(index % 2).unwrap()))
        .collect();
    site.ground.produce(&records);
    assert!(site.work_until(TOPIC, 20, &[]).await);
    let all = ["backfill", "--json", "--from", "1970-01-01"];
    ended_well(&site.ground.run(&all));
    let store = site.ground.store().await;
    store.admin().drop_collection().await.unwrap();
    drop(store);

    site.ground
        .broker
        .delay_answers(Duration::from_millis(700))
        .unwrap();
    let log = |name: &str| site.ground.folder.path().join(name);
    let start = |name: &str| {
        site.ground
            .command(&all)
            .stdout(Stdio::null())
            .stderr(Stdio::from(File::create(log(name)).unwrap()))
            .spawn()
            .unwrap()
    };
    let mut workers = [start("one"), start("other")];
    let assigned = |name: &str| {
        let text = std::fs::read_to_string(log(name)).unwrap();
        let line = text
            .lines()
            .find(|line| line.contains("partitions assigned"));
        line.map(str::to_owned)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let victim = loop {
        if let Some(victim) = ["one", "other"]
            .iter()
            .position(|name| assigned(name).is_some())
        {
            break victim;
        }
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    };
    workers[victim].kill().unwrap();
    std::thread::sleep(Duration::from_secs(4));
    workers[1 - victim].kill().unwrap();
    for worker in &mut workers {
        worker.wait().unwrap();
    }
    site.ground.broker.delay_answers(Duration::ZERO).unwrap();
    let again = ended_well(&site.ground.run(&all));
    let last = [document("last", "最后的标题").to_partition(0)];
    site.ground.produce(&last);
    if site.work_until(TOPIC, 21, &[]).await {
        assert_eq!(
            site.points("documents").await,
            21,
            "run continues over a collection that lacks a partition; {again}"
        );
    }
}

/// A job that was told to continue without its beginning has not filled the collection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_continued_without_its_beginning_has_not_filled_the_collection() {
    let mut site = Site::new(1);
    site.set("STORE__COLLECTION", "lost");
    site.ground.produce(&documents("doc", 40));
    assert!(site.work_until(TOPIC, 40, &[]).await);
    site.set("STORE__COLLECTION", "first");
    let job = [
        "backfill",
        "--json",
        "--from",
        "1970-01-01",
        "--max-docs-per-second",
        "4",
    ];
    let child = site.ground.spawn(&job);
    let deadline = Instant::now() + Duration::from_secs(60);
    let store = site.store("first").await;
    while store
        .collection()
        .await
        .unwrap()
        .is_none_or(|it| it.points < 10)
    {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    signal(&child, "-KILL");
    finish(child);
    store.admin().drop_collection().await.unwrap();
    assert_eq!(site.ground.run(&job).status.code(), Some(1));
    ended_well(
        &site
            .ground
            .run(&[&job[..], &["--accept-empty-store"]].concat()),
    );
    site.ground.produce(&[document("last", "最后的标题")]);
    let accepted = site.work_until(TOPIC, 41, &[]).await;
    let points = site.points("first").await;
    assert!(
        !accepted || points == 41,
        "run accepts it without a flag, and it holds {points} of 41"
    );
}
