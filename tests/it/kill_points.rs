//! `kill -9` of a worker at named points, reached from outside: the store or the broker keeps an answer back,
//! or the commit is far away. Part of the fault matrix; see `faults` for kills at random times.

use std::sync::atomic::Ordering;

use tcbert_worker::kafka::{DeadLetterFilter, StoredDeadLetter, list_dead_letters};
use tcbert_worker::store::PointFilter;

use crate::field::{Field, ONE_AT_A_TIME, behind, pause, run, shared, sized, until};
use crate::proxy::Proxy;
use crate::qdrant_server::{Fault, Options, TestServer};

/// A dead member is noticed as soon as Kafka allows.
const SESSION: (&str, &str) = ("KAFKA__SESSION_TIMEOUT_MS", "6000");
/// No timer commits within a test.
const NO_COMMITS: (&str, &str) = ("KAFKA__COMMIT_INTERVAL_MS", "600000");
/// A write is waited for longer than any test lasts.
const PATIENT: (&str, &str) = ("STORE__TIMEOUT_MS", "600000");
/// Kafka's number of a request to produce.
const PRODUCE: [u8; 2] = [0, 0];

async fn points(field: &Field) -> u64 {
    field.store.count(PointFilter::default()).await.unwrap()
}

/// What the workers have written stays, nothing of it is committed, and whoever comes next does it once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_write_and_commit_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("a_kill_between_write_and_commit").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("uncommitted", cluster, &server, (None, None), &[SESSION]).await;
    run(&mut field, sized((1_500, 8), (20_000, 40)), async |field| {
        for round in 0..sized(2, 4) {
            let (before, requests) = (
                points(field).await,
                server.seen().upserts.load(Ordering::SeqCst),
            );
            field.start_worker_with(&[NO_COMMITS]);
            let enough = sized(100, 1_000) * (round + 1);
            until("writes", async || points(field).await >= enough).await;
            // What is in flight is answered as well: the kill comes after the write, not in it.
            until("new writes", async || {
                server.seen().upserts.load(Ordering::SeqCst) > requests + 3
            })
            .await;
            field.check_workers();
            field.kill(0);
            assert_eq!(field.committed().await, [0; 12], "nothing is committed");
            assert!(points(field).await >= before.max(enough), "the writes stay");
        }
        field.start_worker();
    })
    .await;
}

/// The store has taken half of a batch and owes the answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_a_batch_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("a_kill_in_the_middle_of_a_batch").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("mid-batch", cluster, &server, (None, None), &[SESSION]).await;
    run(&mut field, sized((1_500, 8), (20_000, 40)), async |field| {
        for round in 0..sized(2, 4) {
            let before = server.faults().served();
            field.start_worker_with(&[PATIENT]);
            // The first one does some work before it is held, those after it are held in their first write.
            if round == 0 {
                until("commits", async || field.committed().await != [0; 12]).await;
            }
            server.faults().always(Some(Fault::Held));
            until("a held write", async || server.faults().served() > before).await;
            // What was written before is committed by now, and nothing after it.
            pause(2.0).await;
            let held = field.committed().await;
            pause(1.2).await;
            assert_eq!(
                field.committed().await,
                held,
                "commits while writes are held"
            );
            field.check_workers();
            field.kill(0);
            server.faults().always(None);
        }
        field.start_worker();
    })
    .await;
}

/// A second worker joins while the first one's writes are held: it drains what it is to give away, and is killed
/// in that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_during_a_revocation_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("a_kill_during_a_revocation").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("revoking", cluster, &server, (None, None), &[SESSION]).await;
    run(&mut field, sized((1_500, 8), (20_000, 40)), async |field| {
        field.start_worker_with(&[PATIENT]);
        until("commits", async || field.committed().await != [0; 12]).await;
        for _ in 0..sized(1, 3) {
            let before = server.faults().served();
            server.faults().always(Some(Fault::Held));
            until("a held write", async || server.faults().served() > before).await;
            field.start_worker_with(&[PATIENT]);
            let drains = "partitions are to leave";
            until("the revocation", async || {
                field.workers[0].log().contains(drains)
            })
            .await;
            pause(0.5).await;
            field.check_workers();
            let log = field.workers[0].log();
            assert!(
                !log.contains("partitions revoked"),
                "it still drains: {log}"
            );
            field.kill(0);
            server.faults().always(None);
            let done = field.committed().await;
            until("the other takes over", async || {
                field.committed().await != done
            })
            .await;
        }
    })
    .await;
}

/// The letter stands in its topic, and the worker that sent it never hears of that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_a_dead_letter_is_sent_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    // The broker itself must name the proxy as its address, so it needs a cluster of its own.
    let proxy = Proxy::reserve();
    let advertised = format!("CLIENT://{}", proxy.address());
    let properties = [("advertised.listeners", advertised.as_str())];
    let Some(cluster) = behind("a_kill_while_a_dead_letter_is_sent", &properties, &proxy).await
    else {
        return;
    };
    let server = TestServer::start(Options::default());
    let through = (Some(proxy.address()), None);
    let mut field = Field::new("letter", &cluster, &server, through, &[SESSION]).await;
    run(&mut field, sized((1_500, 8), (20_000, 40)), async |field| {
        for round in 0..sized(1, 4) {
            let topic = field.kafka.dead_letter_topic.clone().into_bytes();
            let (held, before) = (proxy.held(), letters(field).await.len());
            let names =
                move |request: &[u8]| request.windows(topic.len()).any(|part| part == topic);
            proxy.leave_unanswered(Some(Box::new(move |request| {
                request.starts_with(&PRODUCE) && names(request)
            })));
            field.start_worker();
            until("a letter on its way", async || proxy.held() > held).await;
            until("the letter itself", async || {
                letters(field).await.len() > before
            })
            .await;
            // Time to commit past it, had the worker a mind to.
            pause(2.5).await;
            field.check_workers();
            field.kill(0);
            proxy.leave_unanswered(None);
            let committed = field.committed().await;
            let sent = letters(field).await;
            if round == 0 {
                for letter in &sent {
                    let origin = letter.origin.as_ref().unwrap();
                    let number = usize::try_from(origin.partition.partition).unwrap();
                    assert!(
                        committed[number] <= origin.offset,
                        "committed past {origin}"
                    );
                }
            }
        }
        field.start_worker();
    })
    .await;
}

async fn letters(field: &Field) -> Vec<StoredDeadLetter> {
    let settings = field.kafka.clone();
    let listed = tokio::task::spawn_blocking(move || {
        list_dead_letters(&settings, &DeadLetterFilter::default())
    });
    listed.await.unwrap().unwrap()
}
