//! One failure of each kind: its alerts fire once and clear once, no others fire, and what the dashboard shows
//! of it moves.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tcbert_worker::document::{Generation, RecordPosition, TopicPartition};
use tcbert_worker::kafka::{FailingRequest, InjectedError, SampleRecord};
use tcbert_worker::source::SourceRecord;

use super::film::{Film, Page};
use super::scene::{AHEAD, Scene, done};
use crate::apache_kafka;
use crate::backfill::Ground;
use crate::operations;
use crate::processes::{finish, signal};
use crate::qdrant_server::Fault;
use crate::support::{PATIENCE, TOPIC, document};

type Labels = &'static [(&'static str, &'static str)];
/// A failure: its alerts, and the series that move.
pub struct Failure {
    pub alerts: &'static [(&'static str, Labels)],
    pub moves: &'static [&'static str],
}

impl Failure {
    fn assert_seen(&self, film: &Film) {
        film.assert_fired(self.alerts);
        film.assert_moved(self.moves);
    }
}

const STORE: (&str, Labels) = ("TcbertNotWell", &[("part", "store")]);
const BROKER: (&str, Labels) = ("TcbertNotWell", &[("part", "broker")]);
const ASSIGNMENT: (&str, Labels) = ("TcbertNotWell", &[("part", "assignment")]);
const DEAD_LETTERS: (&str, Labels) = ("TcbertNotWell", &[("part", "dead_letters")]);
const STALLED: (&str, Labels) = ("TcbertPartitionStalled", &[("partition", "0")]);
const NOTHING_MOVES: (&str, Labels) = ("TcbertNothingMoves", &[]);

pub const ALL: [&Failure; 13] = [
    &STORE_AWAY,
    &BROKER_AWAY,
    &MODEL_HANGS,
    &DEAD_LETTERS_ARRIVE,
    &DEAD_LETTERS_WAIT,
    &COMMITS_FAIL,
    &STORE_STUMBLES,
    &STORE_SLOW,
    &SESSIONS_LOST,
    &PADDING,
    &KILLED,
    &VANISHED,
    &TOPIC_MISSING,
];

/// Documents whose texts are like no others: those that came before are not tagged again.
fn texts(name: &str, count: usize) -> Vec<SampleRecord> {
    let text = |n| format!("国家队公布世界杯预选赛大名单（{name}，{n}）");
    (0..count)
        .map(|n| document(&format!("{name}-{n}"), &text(n)))
        .collect()
}

fn count(page: &Page, name: &str) -> f64 {
    page.sum(name, &[])
}

fn is_well(page: &Page, part: &str) -> bool {
    page.sum("tcbert_well", &[("part", part)]) == 1.0
}
fn lag(page: &Page) -> f64 {
    count(page, "tcbert_lag_records")
}

const STORE_AWAY: Failure = Failure {
    alerts: &[
        STORE,
        ASSIGNMENT,
        STALLED,
        NOTHING_MOVES,
        ("TcbertStorePaused", &[]),
    ],
    moves: &[
        "tcbert_well{part=\"store\"}",
        "tcbert_well{part=\"assignment\"}",
        "tcbert_partition_stalled",
        "tcbert_store_paused",
        "tcbert_lag_records",
        "tcbert_in_flight_documents",
        "tcbert_stage_seconds_count{stage=\"write\"}",
        "process_resident_memory_bytes",
    ],
};

#[test]
fn a_store_that_is_away_fires_and_clears() {
    let mut scene = Scene::start(1, &[]);
    scene.ahead = AHEAD;
    scene.produce(&texts("before", 5));
    scene.hold_well(10, 5);
    scene.server.stop();
    scene.film.failure_begins();
    scene.produce(&texts("during", 20));
    scene.hold(20, "the outage", |page| {
        !is_well(page, "store") && !is_well(page, "assignment") && lag(page) == 20.0
    });
    scene.server.resume();
    scene.film.failure_ends();
    scene.hold_well(20, 25);
    STORE_AWAY.assert_seen(&scene.film);
}

const BROKER_AWAY: Failure = Failure {
    alerts: &[BROKER],
    moves: &["tcbert_well{part=\"broker\"}"],
};

#[test]
fn a_broker_that_is_away_fires_and_clears() {
    let mut scene = Scene::start(1, &[]);
    scene.ahead = AHEAD;
    scene.produce(&texts("before", 5));
    scene.hold_well(10, 5);
    scene.broker.broker_down(-1).unwrap();
    scene.film.failure_begins();
    scene.hold(20, "the outage", |page| !is_well(page, "broker"));
    assert!(scene.readiness().contains(" 503 "), "{}", scene.readiness());
    scene.broker.broker_up(-1).unwrap();
    scene.film.failure_ends();
    scene.wait("the broker", |page| is_well(page, "broker"));
    scene.produce(&texts("after", 5));
    scene.hold_well(10, 10);
    BROKER_AWAY.assert_seen(&scene.film);
}

const MODEL_HANGS: Failure = Failure {
    alerts: &[ASSIGNMENT, STALLED, NOTHING_MOVES],
    moves: &["tcbert_stage_seconds_count{stage=\"infer\"}"],
};

#[test]
fn a_model_that_hangs_fires_and_clears() {
    let mut scene = Scene::start(1, &[]);
    scene.ahead = AHEAD;
    scene.produce(&texts("before", 5));
    scene.hold_well(10, 5);
    scene.gate.close();
    scene.film.failure_begins();
    scene.produce(&texts("during", 5));
    scene.hold(20, "the lag", |page| lag(page) == 5.0);
    scene.gate.open();
    scene.film.failure_ends();
    scene.hold_well(10, 10);
    MODEL_HANGS.assert_seen(&scene.film);
}

const DEAD_LETTERS_ARRIVE: Failure = Failure {
    alerts: &[("TcbertDeadLetters", &[])],
    moves: &[
        "tcbert_dead_letters_total{reason=\"invalid_json\"}",
        "tcbert_documents_total{outcome=\"written\"}",
        "tcbert_documents_total{outcome=\"deleted\"}",
        "tcbert_documents_total{outcome=\"superseded\"}",
        "tcbert_documents_total{outcome=\"dead_lettered\"}",
        "tcbert_commits_total",
        "tcbert_unknown_tokens_total",
        "tcbert_batch_rows_bucket",
        "tcbert_batch_rows_count",
        "tcbert_stage_seconds_count{stage=\"decode\"}",
        "tcbert_stage_seconds_count{stage=\"tokenise\"}",
        "tcbert_stage_seconds_count{stage=\"batch\"}",
        "tcbert_stage_seconds_count{stage=\"score\"}",
        "tcbert_stage_seconds_count{stage=\"commit\"}",
        "tcbert_stage_seconds_count{stage=\"end_to_end\"}",
        "tcbert_stage_seconds_bucket{stage=\"end_to_end\"}",
        "tcbert_stage_seconds_sum{stage=\"infer\"}",
    ],
};

#[test]
fn dead_letters_that_arrive_fire_and_clear() {
    let mut scene = Scene::start(1, &[]);
    // A counter that appears with its first event has no rate for it.
    let (name, reason) = ("tcbert_dead_letters_total", ("reason", "invalid_json"));
    scene.hold(2, "nothing", |page| {
        done(page) == 0.0 && page.shows(name, &[reason])
    });
    scene.produce(&[
        document("twice", "后来的标题").at(2_000),
        document("twice", "先前的标题").at(1_000),
        document("unknown", "ꙮ ꙮ ꙮ 新款电动汽车"),
        SampleRecord::tombstone("gone"),
    ]);
    let mut total = 4;
    let mut frame = |scene: &mut Scene, name: &str, broken: usize| {
        let mut records = texts(name, 20 - broken);
        let bad = |n| SampleRecord::new(&format!("{name}-bad-{n}"), "{not json");
        records.extend((0..broken).map(bad));
        scene.produce(&records);
        total += 20;
        scene.hold(5, name, |page| done(page) == f64::from(total));
    };
    (0..2).for_each(|n| frame(&mut scene, &format!("before-{n}"), 0));
    scene.film.failure_begins();
    (0..8).for_each(|n| frame(&mut scene, &format!("during-{n}"), 2));
    scene.film.failure_ends();
    (0..6).for_each(|n| frame(&mut scene, &format!("after-{n}"), 0));
    scene.hold_well(5, 324);
    DEAD_LETTERS_ARRIVE.assert_seen(&scene.film);
}

const DEAD_LETTERS_WAIT: Failure = Failure {
    alerts: &[DEAD_LETTERS, ASSIGNMENT, STALLED],
    moves: &["tcbert_well{part=\"dead_letters\"}"],
};

#[test]
fn dead_letters_that_cannot_be_kept_fire_and_clear() {
    let mut scene = Scene::start(2, &[]);
    scene.ahead = AHEAD;
    let to = |partition: i32, name: &str| document(name, name).to_partition(partition);
    scene.produce(&[to(0, "first"), to(1, "second")]);
    scene.hold_well(10, 2);
    scene.dead_letters.broker_down(-1).unwrap();
    scene.film.failure_begins();
    scene.produce(&[SampleRecord::new("bad", "{not json").to_partition(0)]);
    scene.wait("the dead letter", |page| !is_well(page, "dead_letters"));
    for n in 0..5 {
        // The other partition goes on.
        scene.produce(&[to(1, &format!("during-{n}"))]);
        let written = f64::from(3 + n);
        scene.hold(4, "the other partition", |page| {
            let of_other = page.sum("tcbert_lag_records", &[("partition", "1")]);
            done(page) == written && lag(page) == 1.0 && of_other == 0.0
        });
    }
    scene.dead_letters.broker_up(-1).unwrap();
    scene.film.failure_ends();
    scene.hold_well(20, 8);
    DEAD_LETTERS_WAIT.assert_seen(&scene.film);
}

const COMMITS_FAIL: Failure = Failure {
    alerts: &[("TcbertCommitsFail", &[])],
    moves: &["tcbert_commit_failures_total"],
};

#[test]
fn commits_that_fail_fire_and_clear() {
    let mut scene = Scene::start(1, &[]);
    scene.produce(&texts("before", 5));
    scene.hold_well(10, 5);
    scene.film.failure_begins();
    for n in 1..=8 {
        let unknown = InjectedError::Unknown;
        let fails = FailingRequest::OffsetCommit;
        scene.broker.fail_requests(fails, unknown, 1).unwrap();
        scene.produce(&texts(&format!("during-{n}"), 1));
        scene.hold(2, "a failed commit", |page| {
            done(page) == f64::from(5 + n)
                && count(page, "tcbert_commit_failures_total") >= f64::from(n)
        });
    }
    scene.film.failure_ends();
    scene.hold_well(20, 13);
    COMMITS_FAIL.assert_seen(&scene.film);
}

const STORE_STUMBLES: Failure = Failure {
    alerts: &[("TcbertStoreRetries", &[])],
    moves: &["tcbert_store_retries_total"],
};

#[test]
fn a_store_that_stumbles_fires_and_clears() {
    let mut scene = Scene::start(1, &[("STORE__BATCH_POINTS", "1")]);
    scene.produce(&texts("before", 5));
    scene.hold_well(10, 5);
    scene.film.failure_begins();
    for n in 1..=15_i32 {
        let retries = |page: &Page| count(page, "tcbert_store_retries_total");
        let enough = retries(&scene.scrape()) + 8.0;
        scene.server.faults().always(Some(Fault::Unavailable));
        scene.produce(&texts(&format!("during-{n}"), 6));
        scene.wait("retries", |page| retries(page) >= enough);
        scene.server.faults().always(None);
        let written = f64::from(5 + 6 * n);
        scene.hold(1, "the writes", |page| done(page) == written);
    }
    scene.film.failure_ends();
    scene.hold_well(20, 95);
    STORE_STUMBLES.assert_seen(&scene.film);
}

const STORE_SLOW: Failure = Failure {
    alerts: &[("TcbertLagGrows", &[])],
    moves: &["tcbert_lag_records"],
};

#[test]
fn a_lag_that_grows_fires_and_clears() {
    let small = [("STORE__BATCH_POINTS", "16"), ("STORE__CONCURRENCY", "1")];
    let mut scene = Scene::start(1, &small);
    scene.produce(&texts("before", 5));
    scene.hold_well(10, 5);
    let slow = Fault::Slow(Duration::from_secs(1));
    scene.server.faults().always(Some(slow));
    scene.film.failure_begins();
    scene.produce(&texts("at-once", 1100));
    let (mut written, mut waiting, mut total) = (5.0, 1000.0, 1105);
    for n in 0..7 {
        scene.produce(&texts(&format!("during-{n}"), 80));
        total += 80;
        let grown = |page: &Page| done(page) > written && lag(page) > waiting;
        let page = scene.wait("a lag that grows", grown);
        (written, waiting) = (done(&page), lag(&page));
        scene.film.hold(Some(&page), 4);
    }
    scene.server.faults().always(None);
    scene.film.failure_ends();
    scene.hold_well(20, total);
    STORE_SLOW.assert_seen(&scene.film);
}

const SESSIONS_LOST: Failure = Failure {
    alerts: &[("TcbertRebalancesOften", &[])],
    moves: &[
        "tcbert_rebalances_total{kind=\"assigned\"}",
        "tcbert_rebalances_total{kind=\"revoked\"}",
        "tcbert_rebalances_total{kind=\"lost\"}",
        "tcbert_documents_total{outcome=\"abandoned\"}",
    ],
};

#[test]
fn sessions_that_are_lost_again_and_again_fire_and_clear() {
    let mut scene = Scene::scripted();
    scene.script.assign(TOPIC, &[0], 1);
    scene.hold(10, "the assignment", |page| {
        count(page, "tcbert_rebalances_total") == 1.0
    });
    scene.film.failure_begins();
    scene.gate.close();
    scene.script.records(vec![record(0)]);
    scene.wait("a record in flight", |page| {
        count(page, "tcbert_in_flight_documents") == 1.0
    });
    for generation in 2..14 {
        scene.script.lose(TOPIC, &[0]);
        scene.script.assign(TOPIC, &[0], generation);
    }
    let given_back = scene.script.revoke(TOPIC, &[0]);
    given_back.recv_timeout(PATIENCE).unwrap();
    scene.gate.open();
    scene.hold(2, "all changes", |page| {
        count(page, "tcbert_rebalances_total") == 26.0 && done(page) == 1.0
    });
    scene.film.failure_ends();
    scene.hold(40, "the same", |_| true);
    SESSIONS_LOST.assert_seen(&scene.film);
}

fn record(offset: i64) -> SourceRecord {
    SourceRecord {
        position: RecordPosition {
            partition: TopicPartition::new(TOPIC, 0),
            offset,
        },
        generation: Generation(1),
        timestamp_ms: Some(1_000),
        key: Some(b"key".to_vec()),
        value: Some(r#"{"title":"国家队公布大名单"}"#.as_bytes().to_vec()),
        headers: Vec::new(),
        fault: None,
    }
}

const PADDING: Failure = Failure {
    alerts: &[("TcbertPaddingIsHigh", &[])],
    moves: &[
        "tcbert_tokens_total{kind=\"real\"}",
        "tcbert_tokens_total{kind=\"padding\"}",
        "tcbert_truncated_documents_total",
    ],
};

#[test]
fn padding_that_is_high_fires_and_clears() {
    let allowed = [
        ("BATCH__MAX_PADDING", "1"),
        ("BATCH__TOKEN_BUDGET", "4096"),
        ("BATCH__LINGER_MS", "200"),
    ];
    let mut scene = Scene::start(1, &allowed);
    let mut total = 0;
    let mut frame = |scene: &mut Scene, with_long: bool| {
        total += 2;
        let short = document(&format!("short-{total}"), &format!("股市{total}"));
        let title = if with_long {
            "电影".repeat(400)
        } else {
            "股市".to_owned()
        };
        let other = document(&format!("other-{total}"), &format!("{total}{title}"));
        scene.produce(&[short, other]);
        let all = f64::from(total);
        scene.hold(5, "both", |page| done(page) == all);
    };
    (0..3).for_each(|_| frame(&mut scene, false));
    scene.film.failure_begins();
    (0..20).for_each(|_| frame(&mut scene, true));
    scene.film.failure_ends();
    (0..10).for_each(|_| frame(&mut scene, false));
    PADDING.assert_seen(&scene.film);
}

const KILLED: Failure = Failure {
    alerts: &[("TcbertWorkerDown", &[("instance", "worker:9464")])],
    moves: &["up"],
};
const VANISHED: Failure = Failure {
    alerts: &[("TcbertWorkerDown", &[("job", "tcbert-worker")])],
    moves: &[],
};
#[test]
fn a_worker_that_is_killed_and_one_that_vanished_fire_and_clear() {
    let ground = Ground::new(1);
    let port = operations::free_port();
    let scrape = || {
        let response = operations::get(port, "/metrics")?;
        let (_, body) = response.split_once("\r\n\r\n")?;
        Some(Page::parse(body))
    };
    let start = || {
        let mut command = ground.command(&["run"]);
        let address = format!("127.0.0.1:{port}");
        command.env("TCBERT__ADMIN__LISTEN", address);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let run = command.spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        let ready = || operations::get(port, "/readyz").is_some_and(|got| got.contains(" 200 "));
        while !ready() {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(20));
        }
        run
    };
    let (mut killed, mut vanished) = (Film::default(), Film::default());
    let run = start();
    let both = |killed: &mut Film, vanished: &mut Film| {
        let page = scrape();
        assert!(page.is_some());
        killed.hold(page.as_ref(), 10);
        vanished.hold(page.as_ref(), 10);
    };
    both(&mut killed, &mut vanished);
    signal(&run, "-KILL");
    finish(run);
    for film in [&mut killed, &mut vanished] {
        film.failure_begins();
    }
    assert!(scrape().is_none());
    killed.hold(scrape().as_ref(), 10);
    // Prometheus does not know of it any more.
    vanished.vanish(10);
    let run = start();
    for film in [&mut killed, &mut vanished] {
        film.failure_ends();
    }
    both(&mut killed, &mut vanished);
    signal(&run, "-TERM");
    assert!(finish(run).status.success());
    KILLED.assert_seen(&killed);
    VANISHED.assert_seen(&vanished);
}

const TOPIC_MISSING: Failure = Failure {
    alerts: &[ASSIGNMENT],
    moves: &[],
};
#[test]
fn a_topic_that_does_not_exist_fires_and_clears() {
    let Some(kafka) = apache_kafka::shared("a_topic_that_does_not_exist_fires_and_clears") else {
        return;
    };
    let topic = apache_kafka::unique("nwes");
    let there = [
        ("KAFKA__BROKERS", kafka.bootstrap_servers()),
        ("KAFKA__TOPIC", topic.as_str()),
        ("KAFKA__GROUP_ID", topic.as_str()),
    ];
    let mut scene = Scene::start(1, &there);
    // It may be made a moment later.
    scene.hold_well(10, 0);
    scene.ahead = AHEAD;
    scene.film.failure_begins();
    scene.hold(10, "the missing topic", |page| !is_well(page, "assignment"));
    assert!(scene.readiness().contains(&topic), "{}", scene.readiness());
    kafka.create_topic(&topic, 1, &[]);
    scene.film.failure_ends();
    scene.hold_well(10, 0);
    TOPIC_MISSING.assert_seen(&scene.film);
}
