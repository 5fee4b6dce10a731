//! The order of versions from end to end: files through `backfill` into the embedded store, where what
//! is stored and what is counted have to agree.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tcbert_worker::assemble;
use tcbert_worker::document::DocumentId;
use tcbert_worker::settings::{Origins, Settings};
use tcbert_worker::store::Store;

use crate::processes;

/// A folder with an embedded store, and the variables that point the binary at it.
pub struct Place {
    folder: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Place {
    pub fn new(more: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut variables = vec![
            ("STORE__KIND".to_owned(), "embedded".to_owned()),
            ("STORE__PATH".to_owned(), path("store")),
            ("STORE__MIN_FREE_MB".to_owned(), "1".to_owned()),
            ("BACKFILL__STATE_DIR".to_owned(), path("state")),
            ("DEAD_LETTER__SPOOL_DIR".to_owned(), path("spool")),
            ("MODEL__SESSIONS".to_owned(), "2".to_owned()),
            ("MODEL__THREADS".to_owned(), "1".to_owned()),
        ];
        variables.extend(
            more.iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        for (key, _) in &mut variables {
            *key = format!("TCBERT__{key}");
        }
        Self { folder, variables }
    }

    pub fn write(&self, name: &str, lines: &[Value]) -> String {
        let path = self.folder.path().join(name);
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        path.display().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The standard output of a command that is to end well.
    pub fn run(&self, arguments: &[&str]) -> String {
        self.run_with(arguments).0
    }

    fn run_with(&self, arguments: &[&str]) -> (String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tcbert-worker"));
        command
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .envs(self.variables.iter().cloned());
        let output = processes::run(&mut command);
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{log}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (text, log)
    }

    /// What a backfill of these files says of itself, and its log.
    pub fn backfill(&self, inputs: &[&str]) -> (Value, String) {
        let (output, log) = self.run_with(&[&["backfill", "--json", "--input"], inputs].concat());
        let report: Value = serde_json::from_str(&output).unwrap();
        assert_eq!(report["finished"], true, "{report}");
        (report, log)
    }

    pub async fn store(&self) -> Arc<dyn Store> {
        let settings = Settings::load(&Origins {
            file: None,
            variables: self.variables.clone(),
            ..Origins::default()
        })
        .unwrap();
        let expectation = assemble::expected_collection(&settings).unwrap();
        assemble::open_store(&settings, &expectation).await.unwrap()
    }

    pub async fn stored(&self, id: &str) -> Map<String, Value> {
        let store = self.store().await;
        let id = DocumentId::new(id).unwrap();
        let stored = store.fetch(id).await.unwrap().unwrap();
        store.close().await.unwrap();
        stored
    }
}

/// Forty ids, each with an old line and, next, a new one; `new_title` of each id.
fn old_and_new(new_title: impl Fn(usize) -> String) -> Vec<Value> {
    let lines = (0..40).flat_map(|number| {
        // As long as the model reads, so that the old line takes longer than the new one.
        let old = format!("旧版{number}{}", "央行下调存款准备金率".repeat(40));
        [
            json!({"id": format!("r{number}"), "title": old}),
            json!({"id": format!("r{number}"), "title": new_title(number)}),
        ]
    });
    lines.collect()
}

async fn all_are_new(place: &Place, lines: &[Value]) {
    let input = place.write("tiny.jsonl", lines);
    let (report, _) = place.backfill(&[&input]);
    let count = |name: &str| report[name].as_u64().unwrap();
    assert_eq!(count("written") + count("superseded"), 80, "{report}");
    assert!(count("written") >= 40, "{report}");
    let store = place.store().await;
    for number in 0..40 {
        let id = DocumentId::new(&format!("r{number}")).unwrap();
        let stored = store.fetch(id).await.unwrap().unwrap();
        let title = stored["title"].as_str().unwrap();
        assert!(title.starts_with("新版"), "r{number}: {title}");
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn later_lines_win_whatever_the_sessions() {
    for sessions in ["1", "2"] {
        let place = Place::new(&[("MODEL__SESSIONS", sessions)]);
        all_are_new(&place, &old_and_new(|number| format!("新版{number}号"))).await;
    }
}

/// A text that comes again overtakes those before it, because it needs no model.
#[tokio::test]
async fn later_lines_win_though_their_text_is_known() {
    let place = Place::new(&[("MODEL__SESSIONS", "1"), ("BATCH__MAX_ROWS", "1")]);
    all_are_new(&place, &old_and_new(|_| "新版".to_owned())).await;
}

#[tokio::test]
async fn a_later_job_wins_over_longer_files_without_times() {
    let place = Place::new(&[]);
    let mut lines: Vec<Value> = (0..5)
        .map(|number| json!({"id": format!("x{number}"), "title": "别的新闻"}))
        .collect();
    lines.push(json!({"id": "a", "title": "第一次"}));
    let first = place.write("first.jsonl", &lines);
    place.backfill(&[&first]);
    let second = place.write("second.jsonl", &[json!({"id": "a", "title": "第二次"})]);
    let (report, _) = place.backfill(&[&second]);
    assert_eq!(report["superseded"], 0, "{report}");
    assert_eq!(place.stored("a").await["title"], "第二次");
}

#[tokio::test]
async fn a_time_in_the_future_counts_as_none() {
    let place = Place::new(&[]);
    let future = json!({
        "id": "f1", "title": "旧标题：长期公告", "published_at": "2099-12-31T00:00:00Z",
    });
    let input = place.write("future.jsonl", &[future]);
    let (report, log) = place.backfill(&[&input]);
    assert_eq!(report["written"], 1, "{report}");
    assert_eq!(report["future_times"], 1, "{report}");
    assert!(log.contains("decode.future_tolerance_minutes"), "{log}");
    let stored = place.stored("f1").await;
    assert_eq!(stored["version"], 0);
    assert_eq!(stored["published_at"], "2099-12-31T00:00:00Z");

    let true_one = json!({
        "id": "f1", "title": "新标题：更正", "published_at": "2024-11-20T00:00:00Z",
    });
    let input = place.write("now.jsonl", &[true_one]);
    let (report, _) = place.backfill(&[&input]);
    let counts = ["written", "superseded", "future_times"].map(|name| &report[name]);
    assert_eq!(counts, [1, 0, 0], "{report}");
    assert_eq!(place.stored("f1").await["title"], "新标题：更正");
    // The other one comes again and is counted as what it is.
    let input = place.folder.path().join("future.jsonl");
    let (report, _) = place.backfill(&[&input.display().to_string()]);
    let counts = ["written", "superseded", "future_times"].map(|name| &report[name]);
    assert_eq!(counts, [0, 1, 1], "{report}");
    assert_eq!(place.stored("f1").await["title"], "新标题：更正");
}

/// The same field in the zone of its publication is also aged in it: an archive that is an hour older
/// than what is stored does not overwrite it.
#[tokio::test]
async fn publication_and_age_are_read_in_one_zone() {
    let place = Place::new(&[("DECODE__TIME_ZONE", "+08:00")]);
    let live = json!({"id": "z", "title": "现在", "published_at": "2024-01-31T01:00:00Z"});
    let archive = json!({"id": "z", "title": "一小时前", "published_at": "2024-01-31 08:00:00"});
    let inputs = [
        place.write("live.jsonl", &[live]),
        place.write("archive.jsonl", &[archive]),
    ];
    let (report, _) = place.backfill(&[&inputs[0]]);
    assert_eq!(report["written"], 1, "{report}");
    let (report, _) = place.backfill(&[&inputs[1]]);
    assert_eq!(report["superseded"], 1, "{report}");
    let stored = place.stored("z").await;
    assert_eq!(stored["title"], "现在");
    let named = json!({
        "id": "y", "title": "有时区", "published_at": "2024-01-31T09:00:00[Asia/Tokyo]",
    });
    let plain = json!({"id": "x", "title": "没有时区", "published_at": "2024-01-31T08:00:00"});
    let input = place.write("zones.jsonl", &[named, plain]);
    place.backfill(&[&input]);
    for id in ["x", "y"] {
        let stored = place.stored(id).await;
        assert_eq!(stored["published_at"], "2024-01-31T00:00:00Z", "{id}");
        assert_eq!(stored["version"], 1_706_659_200_000_i64, "{id}");
    }
}
