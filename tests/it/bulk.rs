//! `backfill --bulk` over a Qdrant server: the search graph is off while it works and on again afterwards,
//! whichever way it ends.

use std::process::Child;
use std::time::Duration;

use tcbert_worker::store::bulk;

use crate::backfill::Ground;
use crate::processes::{finish, signal};
use crate::support::{documents, wait_until};

const DOCUMENTS: usize = 400;

async fn threshold(ground: &Ground) -> u64 {
    let store = ground.store().await;
    store.admin().graph_threshold().await.unwrap()
}

/// A slow backfill that has begun to write, bulk mode on.
async fn filling(ground: &Ground) -> Child {
    filling_as(ground, "backfill", "0:..").await
}

/// The same under a name, over these offsets.
async fn filling_as(ground: &Ground, job: &str, offsets: &str) -> Child {
    let arguments = [
        "backfill",
        "--bulk",
        "--job",
        job,
        "--offsets",
        offsets,
        "--max-docs-per-second",
        "40",
    ];
    let before = ground.points().await;
    let running = ground.spawn(&arguments);
    wait_until("some points", || {
        let points = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(ground.points())
        });
        points >= before + 10
    })
    .await;
    assert_eq!(threshold(ground).await, 0, "off while it fills");
    running
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_search_graph_is_on_again_however_a_backfill_ends() {
    let ground = Ground::new(1);
    ground.produce(&documents("doc", DOCUMENTS));
    let normal = threshold(&ground).await;
    assert!(normal > 0);

    // Stopped.
    let stopped = filling(&ground).await;
    signal(&stopped, "-TERM");
    let output = finish(stopped);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("switched on again"), "{log}");
    assert_eq!(threshold(&ground).await, normal);

    // Killed: off until its time is over, then on by whoever looks.
    let mut killed = filling(&ground).await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_eq!(threshold(&ground).await, 0);
    let store = ground.store().await;
    let late = jiff::Timestamp::now() + bulk::LEASE + Duration::from_secs(1);
    assert_eq!(bulk::end_abandoned(&*store, late).await, Ok(true));
    assert_eq!(threshold(&ground).await, normal);

    // Killed, and the next run finishes what it began.
    let mut killed = filling(&ground).await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    let output = ground.run(&["backfill", "--bulk", "--json", "--offsets", "0:.."]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert_eq!(threshold(&ground).await, normal);
    assert_eq!(ground.points().await, DOCUMENTS as u64);

    // Without the flag it is never off.
    let output = ground.run(&["backfill", "--offsets", "0:..50"]);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("search graph"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_backfills_of_which_one_is_killed_leave_the_search_graph_on() {
    const DOCUMENTS: usize = 900;
    let ground = Ground::new(1);
    ground.produce(&documents("doc", DOCUMENTS));
    let normal = threshold(&ground).await;

    // The one that switched it off is killed; the one that joined later switches it on.
    let mut first = filling_as(&ground, "first", "0:..300").await;
    let second = filling_as(&ground, "second", "0:300..360").await;
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(threshold(&ground).await, 0, "the second goes on");
    let output = finish(second);
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert_eq!(threshold(&ground).await, normal, "{log}");

    // One is killed after another has switched it on: it stays on, and what the killed one left runs out.
    let mut third = filling_as(&ground, "third", "0:400..").await;
    let fourth = filling_as(&ground, "fourth", "0:360..400").await;
    assert!(finish(fourth).status.success());
    assert_eq!(threshold(&ground).await, normal);
    third.kill().unwrap();
    third.wait().unwrap();
    let store = ground.store().await;
    let late = jiff::Timestamp::now() + bulk::LEASE + Duration::from_secs(1);
    bulk::end_abandoned(&*store, late).await.unwrap();
    assert_eq!(threshold(&ground).await, normal);

    // The killed ones go on where they were.
    for (job, offsets) in [("first", "0:..300"), ("third", "0:400..")] {
        let output = ground.run(&["backfill", "--bulk", "--job", job, "--offsets", offsets]);
        assert!(output.status.success());
    }
    assert_eq!(threshold(&ground).await, normal);
    assert_eq!(ground.points().await, DOCUMENTS as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_search_graph_is_on_again_after_an_error() {
    let ground = Ground::new(1);
    ground.produce(&documents("doc", DOCUMENTS));
    let normal = threshold(&ground).await;
    // A store that refuses every document stops the backfill.
    for number in 0..DOCUMENTS {
        ground.server.faults().poison(&format!("doc-{number}"));
    }
    let output = ground.run(&["backfill", "--bulk", "--offsets", "0:.."]);
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("switched off until"), "{log}");
    assert_eq!(threshold(&ground).await, normal, "{log}");
}
