//! A store that does not hold what a group or job has committed is rejected, whichever way it was lost,
//! and one that does is not.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tcbert_worker::kafka::SampleRecord;
use tcbert_worker::store::groups::{self, FilledTo, Standing, Writer};
use tcbert_worker::store::{PointFilter, Store};

use crate::backfill::Ground;
use crate::processes::{finish, signal};
use crate::qdrant_server::{Options, TestServer};
use crate::store_contract::harness::Harness;
use crate::support::{documents, wait_until};

/// A ground with a live worker.
struct Place {
    ground: Ground,
}

impl Place {
    fn server() -> Self {
        Self {
            ground: Ground::new(2),
        }
    }

    fn embedded() -> Self {
        let place = Self::server();
        let path = place.ground.folder.path().join("store");
        let place = place.with("STORE__KIND", "embedded");
        place.with("STORE__PATH", &path.display().to_string())
    }

    fn with(mut self, key: &'static str, value: &str) -> Self {
        self.ground.set(key, value);
        self
    }

    fn committed(&self) -> i64 {
        let settings = self.ground.settings();
        self.ground.broker.committed(&settings.kafka).unwrap()
    }

    /// Lets the live worker do `records` more, and stops it; gives its log.
    async fn work(&self, records: usize, arguments: &[&str]) -> String {
        let before = self.committed();
        self.ground
            .produce(&documents(&format!("doc-{before}"), records));
        self.work_until(before + i64::try_from(records).unwrap(), arguments)
            .await
    }

    /// Runs the live worker until its group has committed so much; gives its log.
    async fn work_until(&self, committed: i64, arguments: &[&str]) -> String {
        let mut child = self.ground.spawn(&[&["run"], arguments].concat());
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.committed() < committed {
            if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let _ = child.kill();
                let output = finish(child);
                panic!("{}", String::from_utf8_lossy(&output.stderr));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        signal(&child, "-TERM");
        let output = finish(child);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        log
    }

    /// The live worker must not start, and must say how it can.
    fn is_rejected(&self) {
        let output = self.ground.run(&["run"]);
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{log}");
        for part in [
            "\"tests\"",
            "store.collection",
            "tcbert-worker backfill --from 1970-01-01",
            "tcbert-worker run --accept-empty-store",
        ] {
            assert!(log.contains(part), "{part:?} is missing in {log}");
        }
        let output = self.ground.run(&["doctor", "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
        let store = checks["checks"].as_array().unwrap().iter();
        let store = store
            .clone()
            .find(|check| check["name"] == "store")
            .unwrap();
        assert_eq!(store["passed"], false, "{checks}");
        let finding = store["finding"].as_str().unwrap();
        assert!(finding.contains("--accept-empty-store"), "{finding}");
    }
}

async fn drop_collection(store: &dyn Store) {
    store.admin().drop_collection().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_folder_under_a_committed_group_is_rejected_until_it_is_accepted() {
    let place = Place::embedded();
    place.work(20, &[]).await;
    // A restart over the same folder is nothing of that.
    place.work(1, &[]).await;
    let folder = place.ground.folder.path().join("store");
    std::fs::remove_dir_all(&folder).unwrap();
    place.is_rejected();
    place.is_rejected();
    assert!(
        !folder.join("documents/shard").exists(),
        "no empty collection is made"
    );
    place.work(10, &["--accept-empty-store"]).await;
    // Accepted once, it is listed.
    place.work(1, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_collection_is_rejected_until_a_backfill_has_filled_it() {
    let place = Place::server();
    place.work(20, &[]).await;
    let store = place.ground.store().await;
    drop_collection(&*store).await;
    place.is_rejected();
    assert_eq!(store.collection().await.unwrap(), None);
    // A part of the topic is not all that was committed.
    let part = ["backfill", "--offsets", "0:..", "--job", "part"];
    assert!(place.ground.run(&part).status.success());
    place.is_rejected();
    let output = place.ground.run(&["backfill", "--from", "1970-01-01"]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    place.work(10, &[]).await;
    assert_eq!(place.ground.points().await, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filled_collection_is_rejected_where_the_group_went_on_elsewhere() {
    let place = Place::server();
    place.work(20, &[]).await;
    let second = |place: Place| place.with("STORE__COLLECTION", "second");
    let place = second(place);
    let all = ["backfill", "--from", "1970-01-01"];
    assert!(place.ground.run(&all).status.success());
    // Beside it the group continues with the first collection.
    let place = place.with("STORE__COLLECTION", "documents");
    place.work(10, &[]).await;
    let place = second(place);
    place.is_rejected();
    // What is missing begins within what was filled.
    let rest = ["backfill", "--offsets", "0:1..,1:1..", "--job", "rest"];
    assert!(place.ground.run(&rest).status.success());
    place.work(1, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelt_collection_is_rejected_and_not_made() {
    let place = Place::server();
    place.work(20, &[]).await;
    let place = place.with("STORE__COLLECTION", "documnets");
    place.is_rejected();
    let place = place.with("STORE__COLLECTION", "documents");
    place.work(1, &[]).await;
    let mut settings = place.ground.settings();
    settings.store.collection = "documnets".to_owned();
    let store = tcbert_worker::store::connect(&settings.store)
        .await
        .unwrap();
    assert_eq!(store.collection().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_has_only_dead_lettered_is_listed() {
    let place = Place::server();
    let broken: Vec<_> = (0..4)
        .map(|n| SampleRecord::new(&format!("k{n}"), "{not json"))
        .collect();
    place.ground.produce(&broken);
    place.work_until(4, &[]).await;
    assert_eq!(place.ground.points().await, 0);
    place.work(1, &[]).await;
    drop_collection(&*place.ground.store().await).await;
    place.is_rejected();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_of_an_earlier_version_is_accepted_once() {
    let place = Place::server();
    place.work(20, &[]).await;
    let store = place.ground.store().await;
    let metadata = || async { store.collection().await.unwrap().unwrap().metadata };
    let without: std::collections::BTreeMap<_, _> = metadata()
        .await
        .into_keys()
        .filter(|key| key.contains("_writers") || key.contains("_group_"))
        .map(|key| (key, Value::Null))
        .collect();
    assert_eq!(without.len(), 2);
    store.admin().write_metadata(without).await.unwrap();

    place.work(1, &[]).await;
    assert_eq!(metadata().await["tcbert_worker_writers"]["id"], "adopted");
    place.work(1, &[]).await;
    // From then on it has a list: another group with commits is not in it.
    let group = Writer::Group("tests".to_owned());
    assert_eq!(
        groups::standing(&*store, &group).await,
        Ok(Standing::Listed)
    );
    let other = Writer::Group("others".to_owned());
    assert_eq!(
        groups::standing(&*store, &other).await,
        Ok(Standing::Absent)
    );
}

/// Starts a slow job, ends it after some points, and loses the collection.
async fn interrupt(place: &Place, arguments: &[&str]) {
    let slow = ["--max-docs-per-second", "60"];
    let mut running = place
        .ground
        .spawn(&[&["backfill"], arguments, &slow].concat());
    let store = place.ground.store().await;
    let deadline = Instant::now() + Duration::from_secs(120);
    while store.count(PointFilter::default()).await.unwrap() < 60 {
        assert!(running.try_wait().unwrap().is_none(), "it ended too early");
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signal(&running, "-TERM");
    assert_eq!(finish(running).status.code(), Some(1));
    drop_collection(&*store).await;
}

fn job_is_rejected(place: &Place, arguments: &[&str]) {
    let output = place.ground.run(&[&["backfill"], arguments].concat());
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    for part in [
        "\"backfill\"",
        "store.collection",
        "--job",
        "--accept-empty-store",
    ] {
        assert!(log.contains(part), "{part:?} is missing in {log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_of_topics_does_not_continue_on_a_collection_that_lacks_its_beginning() {
    let place = Place::server();
    place.ground.produce(&documents("doc", 300));
    let all = ["--offsets", "0:..,1:..", "--json"];
    interrupt(&place, &all).await;
    job_is_rejected(&place, &all);
    let accepting = [&["backfill", "--accept-empty-store"], &all[..]].concat();
    let output = place.ground.run(&accepting);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["resumed"], true, "{report}");
    // A finished job that is to be left alone relies on the collection as well.
    let once = [&all[..], &["--once"]].concat();
    assert!(
        place
            .ground
            .run(&[&["backfill"], &once[..]].concat())
            .status
            .success()
    );
    drop_collection(&*place.ground.store().await).await;
    job_is_rejected(&place, &once);
    // Started anew it begins at its beginning.
    assert!(
        place
            .ground
            .run(&[&["backfill"], &all[..]].concat())
            .status
            .success()
    );
    assert_eq!(place.ground.points().await, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backfill_of_files_does_not_continue_on_a_collection_that_lacks_its_beginning() {
    let place = Place::server();
    let line = |n: usize| json!({ "id": format!("f{n}"), "title": format!("高考志愿填报第{n}天") });
    let lines: Vec<String> = (0..300).map(|n| line(n).to_string()).collect();
    let file = place.ground.write("a.jsonl", lines.join("\n"));
    let all = ["--input", file.as_str()];
    interrupt(&place, &all).await;
    job_is_rejected(&place, &all);
    let accepting = [&["backfill", "--accept-empty-store"], &all[..]].concat();
    assert!(place.ground.run(&accepting).status.success());
    // Under another name all of it is done.
    drop_collection(&*place.ground.store().await).await;
    let other = [&["backfill", "--job", "other"], &all[..]].concat();
    assert!(place.ground.run(&other).status.success());
    assert_eq!(place.ground.points().await, 300);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_stops_where_its_collection_is_replaced_under_it() {
    let place = Place::server();
    place.ground.produce(&documents("doc", 20));
    let running = place.ground.spawn(&["run"]);
    wait_until("the commits", || place.committed() == 20).await;
    let store = place.ground.store().await;
    drop_collection(&*store).await;
    assert!(place.ground.run(&["migrate", "apply"]).status.success());
    let output = finish(running);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("removed or replaced"), "{log}");
    place.is_rejected();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_stops_where_its_folder_is_removed_under_it() {
    let place = Place::embedded();
    place.ground.produce(&documents("doc", 20));
    let running = place.ground.spawn(&["run"]);
    wait_until("the commits", || place.committed() == 20).await;
    std::fs::remove_dir_all(place.ground.folder.path().join("store")).unwrap();
    let output = finish(running);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    place.is_rejected();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_of_a_new_group_start_at_the_same_moment() {
    let place = Place::server();
    place.ground.produce(&documents("doc", 40));
    let workers = [place.ground.spawn(&["run"]), place.ground.spawn(&["run"])];
    wait_until("the commits", || place.committed() == 40).await;
    for worker in workers {
        signal(&worker, "-TERM");
        let output = finish(worker);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{log}");
    }
    place.work(1, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_server_is_warned_about_and_1_19_is_not() {
    for (version, warned) in [("1.18.3", true), ("1.19.0", false)] {
        let mut place = Place::server();
        place.ground.produce(&documents("doc", 4));
        place.ground.server = TestServer::start(Options {
            version: version.into(),
            ..Options::default()
        });
        let output = place.ground.run(&["doctor", "--json"]);
        let checks = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = "evaluates the conditions";
        assert_eq!(checks.contains(said), warned, "{checks}");
        assert!(output.status.success(), "a warning is no failure: {checks}");
        let output = place.ground.run(&["backfill", "--offsets", "0:..,1:.."]);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{log}");
        assert_eq!(log.contains(said), warned, "{log}");
        let log = place.work_until(4, &[]).await;
        assert_eq!(log.contains(said), warned, "{log}");
    }
}

async fn registers_side_by_side(it: Harness) {
    let names: Vec<String> = (0..12).map(|n| format!("group {n}")).collect();
    let now = jiff::Timestamp::now();
    let writers: Vec<Writer> = names.iter().cloned().map(Writer::Group).collect();
    for writer in &writers {
        assert_eq!(
            groups::standing(&*it.store, writer).await,
            Ok(Standing::Absent)
        );
    }
    let all = writers
        .iter()
        .map(|writer| groups::register(&*it.store, writer, now));
    let lists = futures::future::try_join_all(all).await.unwrap();
    assert!(lists.iter().all(|list| *list == lists[0]));
    // A job of the same name is another writer; some of them share a key, and overwrite each other.
    let jobs: Vec<Writer> = (0..24).map(|n| Writer::Job(format!("group {n}"))).collect();
    for job in &jobs {
        assert_eq!(
            groups::standing(&*it.store, job).await,
            Ok(Standing::Absent)
        );
    }
    let all = jobs
        .iter()
        .map(|job| groups::register(&*it.store, job, now));
    futures::future::try_join_all(all).await.unwrap();
    for writer in writers.iter().chain(&jobs) {
        assert_eq!(
            groups::standing(&*it.store, writer).await,
            Ok(Standing::Listed)
        );
    }
    assert_eq!(
        groups::list_id(&*it.store).await,
        Ok(Some(lists[0].clone()))
    );
    it.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_that_register_together_are_all_listed() {
    registers_side_by_side(Harness::embedded().await).await;
    registers_side_by_side(Harness::server().await).await;
}

/// An entry may be lost where a store takes longer than a job waits before it looks.
#[tokio::test]
async fn a_job_whose_entry_is_gone_may_lack_a_part() {
    let it = Harness::embedded().await;
    let (job, other) = (Writer::Job("a".to_owned()), Writer::Job("b".to_owned()));
    let now = jiff::Timestamp::now();
    groups::register_job(&*it.store, &job, now, true)
        .await
        .unwrap();
    assert_eq!(groups::lacks_a_part(&*it.store, &job).await, Ok(false));
    assert_eq!(groups::lacks_a_part(&*it.store, &other).await, Ok(true));
    it.end().await;
}

#[tokio::test]
async fn backfills_that_end_together_have_both_filled() {
    use tcbert_worker::document::TopicPartition;
    let now = jiff::Timestamp::now();
    let place = |number: i32| TopicPartition::new("news", number);
    let oldest = [(place(0), 0), (place(1), 0)].into();
    let (one, two) = ([(place(0), (0, 10))].into(), [(place(1), (0, 20))].into());
    for it in [Harness::embedded().await, Harness::server().await] {
        let live = Writer::Group("live".to_owned());
        groups::register_job(&*it.store, &Writer::Job("a".to_owned()), now, true)
            .await
            .unwrap();
        let (first, second) = tokio::join!(
            groups::note_filled(&*it.store, "live", &one, &oldest, now),
            groups::note_filled(&*it.store, "live", &two, &oldest, now),
        );
        first.and(second).unwrap();
        let both = [(place(0), 10), (place(1), 20)].into();
        let found = groups::standing(&*it.store, &live).await;
        assert_eq!(found, Ok(Standing::Filled(both)));
        it.end().await;
    }
}

#[tokio::test]
async fn what_backfills_have_filled_adds_up() {
    use tcbert_worker::document::TopicPartition;
    let it = Harness::embedded().await;
    let place = |number: i32| TopicPartition::new("news", number);
    let oldest = [(place(0), 5), (place(1), 0)].into();
    let read = |spans: &[(i32, i64, i64)]| {
        let span = |(number, begin, end): &(i32, i64, i64)| (place(*number), (*begin, *end));
        spans.iter().map(span).collect()
    };
    let now = jiff::Timestamp::now();
    let note = async |spans: &[(i32, i64, i64)]| -> FilledTo {
        groups::note_filled(&*it.store, "live", &read(spans), &oldest, now)
            .await
            .unwrap()
    };
    assert_eq!(note(&[(1, 3, 10)]).await, FilledTo::new());
    assert_eq!(
        note(&[(0, 5, 20), (1, 3, 10)]).await,
        [(place(0), 20)].into()
    );
    let both: FilledTo = [(place(0), 30), (place(1), 8)].into();
    assert_eq!(note(&[(0, 18, 30), (1, 0, 8)]).await, both);
    assert_eq!(note(&[(0, 31, 40), (1, 0, 4)]).await, both);
    let live = Writer::Group("live".to_owned());
    let found = groups::standing(&*it.store, &live).await;
    assert_eq!(found, Ok(Standing::Filled(both)));
    groups::register(&*it.store, &live, now).await.unwrap();
    assert_eq!(
        groups::standing(&*it.store, &live).await,
        Ok(Standing::Listed)
    );
    assert_eq!(note(&[(0, 0, 99)]).await, FilledTo::new());
    it.end().await;
}
