//! Kafka behind TLS and SASL for real: Apache Kafka with a listener for SASL_SSL, a user for SCRAM-SHA-512 and
//! certificates of an authority made here; the worker as its own process, set up as a user sets it up.

use std::path::Path;
use std::time::{Duration, Instant};

use tcbert_worker::kafka::{SampleProducer, SampleRecord};

use crate::apache_kafka::{self, ApacheKafka};
use crate::authority::Authority;
use crate::field::{Field, ONE_AT_A_TIME, until};
use crate::qdrant_server::{Options, TestServer};
use crate::support::documents;

const PASSWORD: &str = "hunter2-of-kafka";
const WRONG_PASSWORD: &str = "hunter3-of-nobody";
const STORE_KEY: &str = "hunter4-of-the-store";
/// Longest that a wrong login may take to be told.
const TOLD_WITHIN: Duration = Duration::from_secs(30);

fn write(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

/// A broker with a second listener for SASL_SSL; gives its address.
async fn secured(folder: &Path, server: &str) -> Option<(ApacheKafka, String)> {
    let keystore = write(folder, "server.pem", server);
    tokio::task::spawn_blocking(move || {
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let listeners = format!(
            "CLIENT://127.0.0.1:{{client}},SECURE://127.0.0.1:{port},CONTROLLER://127.0.0.1:{{controller}}"
        );
        let advertised = format!("CLIENT://127.0.0.1:{{client}},SECURE://localhost:{port}");
        let properties = [
            ("listeners", listeners.as_str()),
            ("advertised.listeners", &advertised),
            (
                "listener.security.protocol.map",
                "CLIENT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT",
            ),
            ("sasl.enabled.mechanisms", "SCRAM-SHA-512"),
            (
                "listener.name.secure.scram-sha-512.sasl.jaas.config",
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            ),
            ("ssl.keystore.type", "PEM"),
            ("ssl.keystore.location", &keystore),
        ];
        let user = format!("SCRAM-SHA-512=[name=reader,password={PASSWORD}]");
        let kafka = apache_kafka::own_with_user("kafka_security", &properties, &user)?;
        Some((kafka, format!("localhost:{port}")))
    })
    .await
    .unwrap()
}

/// Waits for the end of the last worker; gives its exit code and all that it said.
async fn ended(field: &mut Field) -> (Option<i32>, String) {
    let (status, log) = field.workers.pop().unwrap().ended(TOLD_WITHIN).await;
    (status.code(), log)
}

async fn produce(field: &Field, records: Vec<SampleRecord>) {
    let (brokers, topic) = (field.kafka.brokers.clone(), field.kafka.topic.clone());
    let produced = tokio::task::spawn_blocking(move || {
        let producer = SampleProducer::new(&brokers).unwrap();
        producer.produce(&topic, &records).unwrap();
    });
    produced.await.unwrap();
}

fn tells_no_secret(log: &str) {
    for secret in [PASSWORD, WRONG_PASSWORD, STORE_KEY, "PRIVATE KEY"] {
        assert!(!log.contains(secret), "{secret} is told");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_login_works_and_every_other_one_is_one_clear_line_without_secrets() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let (ours, strangers) = (Authority::new(), Authority::new());
    let Some((kafka, address)) = secured(folder.path(), &ours.key_and_certificate()).await else {
        return;
    };
    let store = TestServer::start(Options {
        api_key: Some(STORE_KEY.to_owned()),
        ..Options::default()
    });
    let through = (Some(address.as_str()), None);
    let key = [("STORE__API_KEY", STORE_KEY)];
    let mut field = Field::new("secured", &kafka, &store, through, &key).await;
    let mut records = documents("doc", 31);
    records[7].value = Some(b"{".to_vec());
    produce(&field, records).await;

    let trusted = write(folder.path(), "authority.pem", &ours.certificate);
    let stranger = write(folder.path(), "stranger.pem", &strangers.certificate);
    let password = write(folder.path(), "password", &format!("{PASSWORD}\n"));
    let shared = [
        ("LOG__LEVEL", "trace"),
        // The client's own log of everything that it does.
        ("KAFKA__PROPERTIES__DEBUG", "all"),
        ("KAFKA__PROPERTIES__SASL_MECHANISM", "SCRAM-SHA-512"),
        ("KAFKA__PROPERTIES__SASL_USERNAME", "reader"),
    ];
    let login = |authority, secret| {
        let login = [
            ("KAFKA__PROPERTIES__SECURITY_PROTOCOL", "sasl_ssl"),
            ("KAFKA__PROPERTIES__SSL_CA_LOCATION", authority),
            secret,
        ];
        [&shared[..], &login].concat()
    };

    let wrong_password = ("KAFKA__PROPERTIES__SASL_PASSWORD", WRONG_PASSWORD);
    let right_password = ("KAFKA__PROPERTIES__SASL_PASSWORD", PASSWORD);
    let plain = [
        &shared[..],
        &[("KAFKA__PROPERTIES__SECURITY_PROTOCOL", "plaintext")],
    ]
    .concat();
    for (what, variables, says) in [
        (
            "a wrong password",
            login(&trusted, wrong_password),
            "uthentication failed",
        ),
        (
            "a wrong authority",
            login(&stranger, right_password),
            "certificate",
        ),
        ("no encryption", plain, "security.protocol"),
    ] {
        let started = Instant::now();
        field.start_worker_with(&variables);
        let (code, log) = ended(&mut field).await;
        let lines: Vec<&str> = log
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert!(matches!(code, Some(1 | 2)), "{what}: {code:?} {lines:?}");
        assert!(
            lines.len() == 1 && lines[0].contains(says),
            "{what}: {lines:?}"
        );
        assert!(lines[0].contains(&address), "{what}: {lines:?}");
        tells_no_secret(&log);
        println!(
            "{what}: told in {:.1} s: {}",
            started.elapsed().as_secs_f64(),
            lines[0]
        );
    }
    assert_eq!(field.committed().await, [0; 12]);

    // The secret in the environment, then in a file; what was dead-lettered went over the same connection.
    let from_file = ("KAFKA__PROPERTIES__SASL_PASSWORD_FILE", password.as_str());
    for (secret, total) in [(right_password, 31), (from_file, 36)] {
        field.start_worker_with(&login(&trusted, secret));
        until("all commits", async || {
            field.committed().await.iter().sum::<i64>() == total
        })
        .await;
        field.workers[0].signal("-TERM");
        let (code, log) = ended(&mut field).await;
        assert_eq!(code, Some(0));
        assert!(log.lines().count() > 100, "everything is logged");
        tells_no_secret(&log);
        produce(&field, documents(&format!("after-{total}"), 5)).await;
    }
}
