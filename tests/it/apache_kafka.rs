//! Apache Kafka for tests: brokers in KRaft mode on free ports in a temporary folder, gone when
//! dropped or when the test process dies. Fetched once by `tests/kafka/fetch.sh`.
//!
//! `TCBERT_TEST_KAFKA=host:port` names a cluster to use instead (tests that kill brokers are then
//! skipped); `TCBERT_TEST_REQUIRE_KAFKA=1` makes a missing Java a failure instead of a skip.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// Longest wait for brokers to answer after a start.
const START_WITHIN: Duration = Duration::from_secs(90);
const ADMIN_WITHIN: Duration = Duration::from_secs(20);
/// Cluster id, as KRaft wants it: a UUID in 22 characters of base64.
const CLUSTER_ID: &str = "dGNiZXJ0LXdvcmtlci10ZQ";

/// A cluster.
pub(crate) struct ApacheKafka {
    bootstrap: String,
    /// Empty where the cluster is somebody else's.
    nodes: Mutex<Vec<Node>>,
    jars: PathBuf,
    /// Removed by the last broker's script: a cluster that all tests share is never dropped.
    left_behind: Option<PathBuf>,
    /// Removed with everything in it at the end.
    _folder: Option<tempfile::TempDir>,
}

struct Node {
    folder: PathBuf,
    supervisor: Option<Child>,
}

/// The one-broker cluster that all tests of this process share, so that Java starts once.
/// `None`, with a visible line, where there is none to have.
pub(crate) fn shared(test: &str) -> Option<&'static ApacheKafka> {
    static SHARED: OnceLock<Option<ApacheKafka>> = OnceLock::new();
    let kafka = SHARED.get_or_init(|| {
        if let Ok(bootstrap) = std::env::var("TCBERT_TEST_KAFKA") {
            return Some(ApacheKafka {
                bootstrap,
                nodes: Mutex::new(Vec::new()),
                jars: PathBuf::new(),
                left_behind: None,
                _folder: None,
            });
        }
        ApacheKafka::start(1, &[], true)
    });
    if kafka.is_none() {
        skip(test, "Java or Maven is missing");
    }
    kafka.as_ref()
}

/// A cluster of this test's own, whose brokers it may kill; `properties` are added to each
/// broker's own, `{client}` and `{controller}` in them standing for its ports.
pub(crate) fn own(test: &str, brokers: usize, properties: &[(&str, &str)]) -> Option<ApacheKafka> {
    if std::env::var_os("TCBERT_TEST_KAFKA").is_some() {
        skip(
            test,
            "TCBERT_TEST_KAFKA names a cluster that is not ours to kill",
        );
        return None;
    }
    let kafka = ApacheKafka::start(brokers, properties, false);
    if kafka.is_none() {
        skip(test, "Java or Maven is missing");
    }
    kafka
}

/// A broker of this test's own that names another address than its own as where it is to be
/// reached (`advertised.listeners` among `properties`). `lead` is told its real address and must
/// make the other one lead there.
pub(crate) fn own_behind(
    test: &str,
    properties: &[(&str, &str)],
    lead: impl FnOnce(&str),
) -> Option<ApacheKafka> {
    if std::env::var_os("TCBERT_TEST_KAFKA").is_some() {
        skip(
            test,
            "TCBERT_TEST_KAFKA names a cluster that is not ours to cut off",
        );
        return None;
    }
    let kafka = ApacheKafka::prepare(1, properties, false).inspect(|kafka| {
        lead(kafka.bootstrap_servers());
        kafka.start_all(1);
    });
    if kafka.is_none() {
        skip(test, "Java or Maven is missing");
    }
    kafka
}

/// A broker of this test's own with a user for SCRAM, `user` as `kafka-storage format --add-scram` takes it.
pub(crate) fn own_with_user(
    test: &str,
    properties: &[(&str, &str)],
    user: &str,
) -> Option<ApacheKafka> {
    if std::env::var_os("TCBERT_TEST_KAFKA").is_some() {
        skip(
            test,
            "TCBERT_TEST_KAFKA names a cluster that is not ours to set up",
        );
        return None;
    }
    let kafka = ApacheKafka::prepare(1, properties, false).inspect(|kafka| {
        let folder = kafka.nodes.lock().expect("no test has panicked here")[0]
            .folder
            .clone();
        std::fs::write(folder.join("scram"), user).expect("a file");
        kafka.start_all(1);
    });
    if kafka.is_none() {
        skip(test, "Java or Maven is missing");
    }
    kafka
}

fn skip(test: &str, reason: &str) {
    assert!(
        std::env::var_os("TCBERT_TEST_REQUIRE_KAFKA").is_none(),
        "{test} needs Apache Kafka: {reason}"
    );
    // Not `eprintln`, which the harness hides for tests that pass.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

/// A name that no other test uses, also not in another process on the same cluster.
pub(crate) fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{name}-{}-{count}", std::process::id())
}

/// The folder of Kafka's jars; `None` where Java or Maven is missing.
fn fetch() -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/fetch.sh");
    let output = Command::new(script)
        .output()
        .expect("tests/kafka/fetch.sh runs");
    if output.status.code() == Some(3) {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "Kafka could not be fetched: {said}"
    );
    let folder = String::from_utf8(output.stdout).expect("a path");
    Some(PathBuf::from(folder.trim_end()))
}

fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
        .collect();
    let port = |listener: &TcpListener| listener.local_addr().expect("an address").port();
    listeners.iter().map(port).collect()
}

impl ApacheKafka {
    fn start(brokers: usize, properties: &[(&str, &str)], shared: bool) -> Option<Self> {
        let kafka = Self::prepare(brokers, properties, shared)?;
        kafka.start_all(brokers);
        Some(kafka)
    }

    fn start_all(&self, brokers: usize) {
        for broker in 1..=brokers {
            self.start_broker(broker);
        }
        self.wait_until_up(brokers);
    }

    /// Everything but the processes.
    fn prepare(brokers: usize, properties: &[(&str, &str)], shared: bool) -> Option<Self> {
        let jars = fetch()?;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let ports = free_ports(brokers * 2);
        let (clients, controllers) = ports.split_at(brokers);
        let voters: Vec<String> = controllers
            .iter()
            .enumerate()
            .map(|(index, port)| format!("{}@127.0.0.1:{port}", index + 1))
            .collect();
        let replicas = brokers.min(3);
        let mut nodes = Vec::new();
        for (index, (client, controller)) in clients.iter().zip(controllers).enumerate() {
            let node = folder.path().join(format!("node-{}", index + 1));
            std::fs::create_dir_all(&node).expect("a folder");
            let mut lines = vec![
                "process.roles=broker,controller".to_owned(),
                format!("node.id={}", index + 1),
                format!("controller.quorum.voters={}", voters.join(",")),
                format!(
                    "listeners=CLIENT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}"
                ),
                format!("advertised.listeners=CLIENT://127.0.0.1:{client}"),
                "inter.broker.listener.name=CLIENT".to_owned(),
                "controller.listener.names=CONTROLLER".to_owned(),
                "listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned(),
                format!("log.dirs={}", node.join("data").display()),
                format!("offsets.topic.replication.factor={replicas}"),
                "offsets.topic.num.partitions=5".to_owned(),
                // Some records are older than the week that a broker keeps them by default.
                "log.retention.ms=-1".to_owned(),
                format!("transaction.state.log.replication.factor={replicas}"),
                "transaction.state.log.min.isr=1".to_owned(),
                "transaction.state.log.num.partitions=2".to_owned(),
                format!("default.replication.factor={replicas}"),
                "group.initial.rebalance.delay.ms=0".to_owned(),
                "auto.create.topics.enable=false".to_owned(),
            ];
            lines.extend(
                properties
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .map(|line| line.replace("{client}", &client.to_string()))
                    .map(|line| line.replace("{controller}", &controller.to_string())),
            );
            std::fs::write(node.join("server.properties"), lines.join("\n")).expect("a file");
            nodes.push(Node {
                folder: node,
                supervisor: None,
            });
        }
        let addresses: Vec<String> = clients
            .iter()
            .map(|port| format!("127.0.0.1:{port}"))
            .collect();
        let (left_behind, folder) = match shared {
            true => (Some(folder.keep()), None),
            false => (None, Some(folder)),
        };
        Some(Self {
            bootstrap: addresses.join(","),
            nodes: Mutex::new(nodes),
            jars,
            left_behind,
            _folder: folder,
        })
    }

    /// Where the brokers listen.
    pub(crate) fn bootstrap_servers(&self) -> &str {
        &self.bootstrap
    }

    /// Starts a broker (numbered from 1) that was killed; does not wait for it.
    pub(crate) fn start_broker(&self, broker: usize) {
        let mut nodes = self.nodes.lock().expect("no test has panicked here");
        let node = &mut nodes[broker - 1];
        let _ = std::fs::remove_file(node.folder.join("pid"));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka/run.sh");
        let supervisor = Command::new(script)
            .arg(&self.jars)
            .arg(&node.folder)
            .arg(CLUSTER_ID)
            .args(&self.left_behind)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("tests/kafka/run.sh runs");
        node.supervisor = Some(supervisor);
    }

    /// Ends a broker as `kill -9` does.
    pub(crate) fn kill_broker(&self, broker: usize) {
        let mut nodes = self.nodes.lock().expect("no test has panicked here");
        let node = &mut nodes[broker - 1];
        node.kill();
    }

    /// Waits until so many brokers are in the cluster.
    pub(crate) fn wait_until_up(&self, brokers: usize) {
        let admin = self.admin();
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let answer = admin.inner().fetch_metadata(None, Duration::from_secs(2));
            if answer.is_ok_and(|metadata| metadata.brokers().len() >= brokers) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "Kafka did not start:\n{}",
                self.logs()
            );
        }
    }

    /// The last lines of the brokers' logs.
    pub(crate) fn logs(&self) -> String {
        let nodes = self.nodes.lock().expect("no test has panicked here");
        let mut text = String::new();
        for node in nodes.iter() {
            for file in ["format.log", "server.log"] {
                let log = std::fs::read_to_string(node.folder.join(file)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let from = lines.len().saturating_sub(20);
                text.push_str(&format!(
                    "-- {}/{file}\n{}\n",
                    node.folder.display(),
                    lines[from..].join("\n")
                ));
            }
        }
        text
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
            .create()
            .expect("an admin client")
    }

    /// Makes a topic, with topic settings.
    pub(crate) fn create_topic(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let replicas =
            i32::try_from(self.nodes.lock().expect("no panic").len().clamp(1, 3)).expect("few");
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        self.create(&new);
    }

    /// Makes a topic of one partition with replicas on these brokers, the first of which leads it.
    pub(crate) fn create_topic_on(&self, topic: &str, brokers: &[i32]) {
        let replicas = [brokers];
        self.create(&NewTopic::new(
            topic,
            1,
            TopicReplication::Variable(&replicas),
        ));
    }

    /// A topic of the same name may still be on its way out.
    fn create(&self, new: &NewTopic<'_>) {
        let options = AdminOptions::new().operation_timeout(Some(ADMIN_WITHIN));
        let deadline = Instant::now() + ADMIN_WITHIN;
        loop {
            let made = block_on(self.admin().create_topics([new], &options)).expect("an answer");
            if made.iter().all(Result::is_ok) {
                return;
            }
            assert!(Instant::now() < deadline, "{made:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Removes a topic.
    pub(crate) fn delete_topic(&self, topic: &str) {
        let options = AdminOptions::new().operation_timeout(Some(ADMIN_WITHIN));
        let gone = block_on(self.admin().delete_topics(&[topic], &options)).expect("an answer");
        assert!(gone.iter().all(Result::is_ok), "{gone:?}");
    }

    /// Lets a partition begin at `offset`, as retention does.
    pub(crate) fn expire_before(&self, topic: &str, partition: i32, offset: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset))
            .expect("an offset");
        let options = AdminOptions::new().operation_timeout(Some(ADMIN_WITHIN));
        block_on(self.admin().delete_records(&list, &options)).expect("an answer");
    }
}

impl Node {
    fn kill(&mut self) {
        let Some(mut supervisor) = self.supervisor.take() else {
            return;
        };
        if let Ok(pid) = std::fs::read_to_string(self.folder.join("pid")) {
            crate::processes::kill(pid.trim().parse().expect("the id of a process"));
        }
        // The script ends with its standard input, and the broker with it.
        drop(supervisor.stdin.take());
        let _ = supervisor.wait();
    }
}

impl Drop for ApacheKafka {
    fn drop(&mut self) {
        if let Ok(mut nodes) = self.nodes.lock() {
            nodes.iter_mut().for_each(Node::kill);
        }
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    if let Ok(running) = tokio::runtime::Handle::try_current() {
        return tokio::task::block_in_place(|| running.block_on(future));
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}
