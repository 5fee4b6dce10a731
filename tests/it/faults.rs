//! The fault matrix over real processes: the binary's workers, Apache Kafka, a Qdrant server for
//! tests, and a ledger that says whether anything is missing, stale or made up. Kills at named points
//! stand in `kill_points`.

use std::time::Duration;

use tcbert_worker::kafka::SampleProducer;
use tcbert_worker::source::CommitMode;

use crate::field::{Field, ONE_AT_A_TIME, behind, is_soak, own, pause, run, shared, sized, until};
use crate::kafka_reader::Reader;
use crate::processes::PROCESS_PATIENCE;
use crate::proxy::Proxy;
use crate::qdrant_server::{Fault, Options, TestServer};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_are_killed_lose_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("workers_that_are_killed_lose_nothing").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("killed", cluster, &server, (None, None), &[]).await;
    for _ in 0..3 {
        field.start_worker();
    }
    run(
        &mut field,
        sized((3_000, 16), (20_000, 125)),
        async |field| {
            for round in 0..sized(3, 24) {
                pause(5.0).await;
                let victim = round % field.workers.len();
                field.check_workers();
                drop(field.workers.remove(victim));
                field.start_worker();
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_come_and_go_lose_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("workers_that_come_and_go_lose_nothing").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("joining", cluster, &server, (None, None), &[]).await;
    field.start_worker();
    run(
        &mut field,
        sized((3_000, 10), (20_000, 50)),
        async |field| {
            for _ in 0..sized(2, 12) {
                field.start_worker();
                pause(3.0).await;
                let leaver = field.workers.remove(0);
                leaver.signal("-TERM");
                let (status, log) = leaver.ended(PROCESS_PATIENCE).await;
                assert!(status.success(), "it leaves with exit code 0: {log}");
            }
        },
    )
    .await;
}

/// A process that stands still beyond every bound and wakes up with work of long ago in its hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_worker_overwrites_nothing_newer() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("a_frozen_worker_overwrites_nothing_newer").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let bounds = [
        ("KAFKA__SESSION_TIMEOUT_MS", "6000"),
        ("KAFKA__MAX_POLL_INTERVAL_MS", "10000"),
        ("KAFKA__REVOKE_DRAIN_MS", "5000"),
    ];
    let mut field = Field::new("frozen", cluster, &server, (None, None), &bounds).await;
    field.start_worker();
    field.start_worker();
    run(
        &mut field,
        sized((3_000, 20), (20_000, 60)),
        async |field| {
            for _ in 0..sized(1, 3) {
                pause(4.0).await;
                field.workers[0].signal("-STOP");
                pause(14.0).await;
                field.workers[0].signal("-CONT");
                pause(2.0).await;
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = own("a_broker_that_is_killed_loses_nothing", 1).await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("broker", &cluster, &server, (None, None), &[]).await;
    field.start_worker();
    field.start_worker();
    run(&mut field, sized((3_000, 12), (20_000, 60)), async |_| {
        for _ in 0..sized(1, 3) {
            pause(4.0).await;
            cluster.kill_broker(1);
            pause(5.0).await;
            cluster.start_broker(1);
            pause(sized(0.0, 10.0)).await;
        }
    })
    .await;
}

/// Leaders of partitions and the coordinator of the group move with every broker that goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_and_coordinators_that_move_lose_nothing() {
    if !is_soak() {
        return;
    }
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = own("leaders_and_coordinators_that_move_lose_nothing", 3).await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("leaders", &cluster, &server, (None, None), &[]).await;
    field.start_worker();
    field.start_worker();
    run(&mut field, (20_000, 110), async |_| {
        for broker in [1, 2, 3, 1] {
            pause(4.0).await;
            cluster.kill_broker(broker);
            pause(8.0).await;
            cluster.start_broker(broker);
            // The next one goes only once this one is back, or no quorum would be left.
            pause(15.0).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_in_every_way_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("a_store_that_fails_in_every_way_loses_nothing").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("store", cluster, &server, (None, None), &[]).await;
    field.start_worker();
    field.start_worker();
    // The checker's own questions are reads, which no fault concerns.
    run(&mut field, sized((3_000, 16), (20_000, 120)), async |_| {
        for round in 0..sized(1, 3) {
            server.faults().random(Some((round, 0.5)));
            pause(sized(4.0, 15.0)).await;
            server.faults().random(None);
            server.faults().always(Some(Fault::DiskFull));
            pause(sized(3.0, 10.0)).await;
            server.faults().always(Some(Fault::UnknownOutcome));
            pause(sized(2.0, 5.0)).await;
            // Beyond the store's timeout of these workers.
            server
                .faults()
                .always(Some(Fault::Slow(Duration::from_secs(4))));
            pause(sized(5.0, 10.0)).await;
            server.faults().always(None);
        }
    })
    .await;
    assert!(server.faults().served() > 10, "faults happened");
}

/// A store without memory rejects sound records as it rejects bad ones. Whatever runs the worker starts
/// it again when it ends, and five times more, as a deployment does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_memory_and_a_worker_that_is_restarted_lose_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let test = "a_store_without_memory_and_a_worker_that_is_restarted";
    let Some(cluster) = shared(test).await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let mut field = Field::new("memory", cluster, &server, (None, None), &[]).await;
    field.start_worker();
    let (records, seconds) = sized((1_500, 25), (20_000, 600));
    run(&mut field, (records, seconds), async |field| {
        until("commits", async || field.committed().await != [0; 12]).await;
        server.faults().always(Some(Fault::MemoryFull));
        for _ in 0..5 {
            for _ in 0..seconds / 5 {
                pause(1.0).await;
                field.restart_ended();
            }
            field.kill(0);
            field.start_worker();
        }
        let committed = field.committed().await;
        pause(1.0).await;
        assert_eq!(committed, field.committed().await, "nothing is committed");
        server.faults().always(None);
        // One that was about to end does so; from here on it continues by itself.
        pause(2.0).await;
        field.restart_ended();
    })
    .await;
    assert!(server.faults().served() > 10, "faults happened");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_swallows_everything_loses_nothing() {
    let _turn = ONE_AT_A_TIME.lock().await;
    // The broker itself must name the proxy as its address, so it needs a cluster of its own.
    let broker_proxy = Proxy::reserve();
    let advertised = format!("CLIENT://{}", broker_proxy.address());
    let properties = [("advertised.listeners", advertised.as_str())];
    let Some(cluster) = behind(
        "a_network_that_swallows_everything",
        &properties,
        &broker_proxy,
    )
    .await
    else {
        return;
    };
    let server = TestServer::start(Options::default());
    let store_proxy = Proxy::reserve();
    store_proxy.forward_to(server.url().trim_start_matches("http://"));
    let url = format!("http://{}", store_proxy.address());
    let through = (Some(broker_proxy.address()), Some(url.as_str()));
    let mut field = Field::new("network", &cluster, &server, through, &[]).await;
    field.start_worker();
    field.start_worker();
    run(&mut field, sized((3_000, 25), (20_000, 170)), async |_| {
        for _ in 0..sized(1, 3) {
            pause(4.0).await;
            store_proxy.swallow(true);
            pause(sized(6.0, 25.0)).await;
            store_proxy.swallow(false);
            pause(3.0).await;
            broker_proxy.swallow(true);
            // Longer than the session: the partitions are lost and taken again.
            pause(sized(12.0, 25.0)).await;
            broker_proxy.swallow(false);
        }
    })
    .await;
}

/// The checker is worth something only if it notices: a worker that commits before it writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_notices_a_commit_before_the_write() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let Some(cluster) = shared("the_checker_notices_a_commit_before_the_write").await else {
        return;
    };
    let server = TestServer::start(Options::default());
    let field = Field::new("early", cluster, &server, (None, None), &[]).await;
    let mut ledger = field.ledger();
    let records = ledger.draw(500);
    let kafka = field.kafka.clone();
    tokio::task::spawn_blocking(move || {
        let producer = SampleProducer::new(&kafka.brokers).unwrap();
        producer.produce(&kafka.topic, &records).unwrap();
        // Acknowledges what it is given at once, writes nothing, commits, and is gone.
        let mut reader = Reader::start(&kafka);
        reader.read_all(500);
        reader.commit(CommitMode::Wait).unwrap();
    })
    .await
    .unwrap();
    let (committed, ahead) = ledger.look(&field.kafka, &field.store).await;
    assert_eq!(committed, 500);
    assert_eq!(
        ahead.len(),
        500,
        "every record is committed and none is durable"
    );
    let verdict = ledger.verify(&field.kafka, &field.store).await;
    assert!(!verdict.holds() && !verdict.lost.is_empty());
}
