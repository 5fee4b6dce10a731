//! The section `kafka` of the configuration: keys, defaults and bounds.
//! Must not know how a client is built from them beyond the names that librdkafka gives them.

use std::time::Duration;

use rdkafka::ClientConfig;
use serde::{Deserialize, Serialize};

use crate::kafka::properties::Properties;
use crate::keys::{Declared, Violation, check_range, section};
use crate::source::SourceError;

/// Longest topic name that Kafka allows.
const MAX_TOPIC_BYTES: usize = 249;
/// Longest group, client or instance id accepted; Kafka's own bound is that of a short string.
const MAX_ID_BYTES: usize = 249;
/// Kafka's own least session timeout, unless a broker was told otherwise.
const MIN_SESSION_TIMEOUT_MS: u64 = 6_000;
/// Kafka's own greatest session timeout, unless a broker was told otherwise.
const MAX_SESSION_TIMEOUT_MS: u64 = 1_800_000;
const DAY_MS: u64 = 86_400_000;
/// Heartbeats a session timeout holds: three may be lost before a member is.
const HEARTBEATS_A_SESSION: u64 = 4;

/// Where to begin in a partition that the group has never committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissingOffset {
    /// At the oldest record that the topic still has.
    #[default]
    Earliest,
    /// Nowhere: end with an error.
    Error,
}

section! {
    /// The cluster, the topics and the consumer group.
    #[derive(Eq)]
    pub struct KafkaSettings in "kafka" {
        /// Brokers to ask first: `host:port`, comma separated.
        brokers: String = "localhost:9092".to_owned();
        /// Topics to consume, comma separated. A topic that does not exist yet is waited for.
        topic: String = "documents".to_owned();
        /// Consumer group. Its committed offsets say where a start resumes; workers of one group share the partitions.
        /// 1 to 249 bytes.
        group_id: String = "tcbert-worker".to_owned();
        /// How the worker names itself to the brokers (quotas, logs). 1 to 249 bytes.
        client_id: String = "tcbert-worker".to_owned();
        /// Static membership: a name that is unique within the group and stays the same over restarts, such as a
        /// pod's. A worker that comes back within the session timeout gets its partitions again without a rebalance;
        /// one that stops for good keeps them until then. Empty: off.
        group_instance_id: String = String::new();
        /// Where to begin in a partition that the group has never committed: "earliest" (the oldest record there is)
        /// or "error". Records are never skipped in silence.
        on_missing_offset: OnMissingOffset = OnMissingOffset::Earliest;
        /// Whether to continue at the oldest record where the committed offset has expired. false: end with an error
        /// that says how many records are gone. `run --accept-gap` sets it for one run. An offset beyond the end (the
        /// topic was recreated or truncated) is rejected either way: what is stored would count as newer than what
        /// comes.
        accept_gap: bool = false;
        /// How long a broker has to respond at the start, in milliseconds. Later the worker waits for brokers as long
        /// as it takes.
        connect_timeout_ms: u64 = 15_000, in 100..=300_000;
        /// How long the group waits for a worker that fell silent before others take its partitions over, in
        /// milliseconds (a broker has bounds of its own). With 10000 a killed worker's partitions are worked on again
        /// within 15 seconds.
        session_timeout_ms: u64 = 10_000, in MIN_SESSION_TIMEOUT_MS..=MAX_SESSION_TIMEOUT_MS;
        /// How long the group waits for a worker that lives but does not poll, in milliseconds; at least
        /// session_timeout_ms and revoke_drain_ms, at most a day. The poll thread never waits for the model or the
        /// store, so this concerns frozen processes only.
        max_poll_interval_ms: u64 = 300_000;
        /// How long a partition that moves to another worker may finish what is in flight before it is let go, in
        /// milliseconds. What is not finished by then is done again by its next owner.
        revoke_drain_ms: u64 = 10_000, in 0..=600_000;
        /// How often offsets are committed while running, in milliseconds.
        commit_interval_ms: u64 = 1_000, in 10..=600_000;
        /// Records that may wait between the poll thread and the pipeline. Beyond it fetching is paused.
        queue_records: usize = 8_192, in 8..=1 << 20;
        /// Bytes that may wait between the poll thread and the pipeline. Beyond it fetching is paused. The client
        /// reads a quarter of it ahead (its property queued.max.messages.kbytes) and asks each broker for a quarter of
        /// that at a time (fetch.max.bytes); both may be set among the properties.
        queue_bytes: usize = 16 << 20, in 64 << 10..=1 << 31;
        /// Topic for records that cannot be processed. Dead letters are sent with the present time; the record's own
        /// stands in a header. The topic needs cleanup.policy=delete and a retention that leaves time to look at them;
        /// `doctor` checks it. Where it does not exist and the broker does not create it within ten seconds, the
        /// worker does not start.
        dead_letter_topic: String = "documents.dead-letters".to_owned();
        /// Further properties for librdkafka, by its own names, for security above all:
        /// - "security.protocol" = "SASL_SSL"
        /// - "sasl.mechanism" = "SCRAM-SHA-512"
        /// - "sasl.username" = "worker"
        /// - "sasl.password.file" = "/run/secrets/kafka-password"
        ///
        /// A secret is best kept in a file: the key with `.file` behind it names one (sasl.password, ssl.key.password,
        /// ssl.key.pem, ssl.keystore.password, sasl.oauthbearer.client.secret). In the environment `_` stands for `.`:
        /// TCBERT__KAFKA__PROPERTIES__SASL_PASSWORD. Those that concern the connection hold for dead letters as well.
        /// Properties that guarantees rest on (enable.auto.commit, auto.offset.reset, acks and the like) are rejected.
        properties: Properties = Properties::default();
    }
}

impl KafkaSettings {
    /// Values outside what their keys allow; keys are given below the section.
    pub fn violations(&self) -> Vec<Violation> {
        let mut violations = self.out_of_range();
        self.validate_names(&mut violations);
        // librdkafka wants it so; the drain must end before the group gives the member up.
        let slowest = self.session_timeout_ms.max(self.revoke_drain_ms);
        let range = slowest.min(DAY_MS)..=DAY_MS;
        violations.extend(check_range(
            "max_poll_interval_ms",
            &self.max_poll_interval_ms,
            &range,
        ));
        self.properties.validate("properties", &mut violations);
        violations
    }

    fn validate_names(&self, violations: &mut Vec<Violation>) {
        let brokers: Vec<&str> = self.brokers.split(',').map(str::trim).collect();
        if !brokers.iter().all(|broker| is_broker(broker)) {
            let allowed = "host:port, comma separated, ports from 1 to 65535";
            violations.push(Violation::new("brokers", &self.brokers, allowed));
        }
        if self.topics().is_empty() || !self.topics().iter().all(|topic| is_topic(topic)) {
            violations.push(Violation::new("topic", &self.topic, TOPICS_ALLOWED));
        }
        if !is_topic(&self.dead_letter_topic) {
            let value = &self.dead_letter_topic;
            violations.push(Violation::new("dead_letter_topic", value, TOPIC_ALLOWED));
        } else if self.topics().contains(&self.dead_letter_topic.as_str()) {
            let allowed = "a topic other than those consumed, or dead letters would come back";
            violations.push(Violation::new(
                "dead_letter_topic",
                &self.dead_letter_topic,
                allowed,
            ));
        }
        for (key, value) in [("group_id", &self.group_id), ("client_id", &self.client_id)] {
            if value.trim().is_empty() || value.len() > MAX_ID_BYTES {
                let allowed = format!("a name of 1 to {MAX_ID_BYTES} bytes");
                violations.push(Violation::new(key, value, allowed));
            }
        }
        if let Some(instance) = self.instance()
            && !is_topic(instance)
        {
            violations.push(Violation::new("group_instance_id", instance, TOPIC_ALLOWED));
        }
    }

    /// The topics, one by one.
    pub fn topics(&self) -> Vec<&str> {
        self.topic
            .split(',')
            .map(str::trim)
            .filter(|topic| !topic.is_empty())
            .collect()
    }

    /// The static member's name, where static membership is on.
    pub fn instance(&self) -> Option<&str> {
        Some(self.group_instance_id.trim()).filter(|instance| !instance.is_empty())
    }

    /// [`KafkaSettings::revoke_drain_ms`] as a duration.
    pub fn revoke_drain(&self) -> Duration {
        Duration::from_millis(self.revoke_drain_ms)
    }

    /// [`KafkaSettings::commit_interval_ms`] as a duration.
    pub fn commit_interval(&self) -> Duration {
        Duration::from_millis(self.commit_interval_ms)
    }

    /// [`KafkaSettings::connect_timeout_ms`] as a duration.
    pub fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// What every client needs: where the brokers are and who asks. The user's properties come
    /// after the defaults given here, which they may override.
    pub(super) fn client_config(
        &self,
        properties: &Properties,
        defaults: &[(&str, &str)],
    ) -> Result<ClientConfig, SourceError> {
        let mut config = ClientConfig::new();
        for (name, value) in SHARED_DEFAULTS.iter().chain(defaults) {
            config.set(*name, *value);
        }
        properties.apply(&mut config).map_err(|reason| {
            SourceError::Fatal(format!("a property of kafka.properties needs {reason}"))
        })?;
        config.set("bootstrap.servers", &self.brokers);
        config.set("client.id", &self.client_id);
        Ok(config)
    }

    /// The consumer's whole configuration.
    pub(super) fn consumer_config(&self) -> Result<ClientConfig, SourceError> {
        let mut config = self.client_config(&self.properties, CONSUMER_DEFAULTS)?;
        if self.properties.get("queued.max.messages.kbytes").is_none() {
            let kibibytes = (self.queue_bytes / AHEAD_A_QUEUE / 1024).max(1);
            config.set("queued.max.messages.kbytes", kibibytes.to_string());
        }
        if self.properties.get("fetch.max.bytes").is_none() {
            let bytes = self.queue_bytes / AHEAD_A_QUEUE / ANSWERS_AHEAD;
            let bytes = bytes
                .min(CLIENTS_LARGEST_ANSWER)
                .max(self.largest_message());
            config.set("fetch.max.bytes", bytes.to_string());
        }
        if self.properties.get("heartbeat.interval.ms").is_none() {
            let heartbeat = self.session_timeout_ms / HEARTBEATS_A_SESSION;
            config.set("heartbeat.interval.ms", heartbeat.to_string());
        }
        config.set("group.id", &self.group_id);
        if let Some(instance) = self.instance() {
            config.set("group.instance.id", instance);
        }
        config.set("session.timeout.ms", self.session_timeout_ms.to_string());
        config.set(
            "max.poll.interval.ms",
            self.max_poll_interval_ms.to_string(),
        );
        config.set("enable.auto.commit", "false");
        config.set("enable.auto.offset.store", "false");
        // The worker decides at the assignment where to begin; what it did not foresee is an error.
        config.set("auto.offset.reset", "error");
        Ok(config)
    }

    /// Bytes of the largest message that the client takes; it refuses a `fetch.max.bytes` below that.
    fn largest_message(&self) -> usize {
        let wanted = self.properties.get("message.max.bytes");
        wanted
            .and_then(|bytes| bytes.parse().ok())
            .unwrap_or(CLIENTS_LARGEST_MESSAGE)
    }
}

/// What the client reads ahead lies beside our queue, as a share of it, and an answer of each broker beside that. Both
/// come and go in large pieces, for which the C library keeps for good what they once took.
const AHEAD_A_QUEUE: usize = 4;
/// By the client's own default an answer would fill its queue many times over.
const ANSWERS_AHEAD: usize = 4;
/// librdkafka's `fetch.max.bytes`.
const CLIENTS_LARGEST_ANSWER: usize = 50 * 1024 * 1024;
/// librdkafka's `message.max.bytes`.
const CLIENTS_LARGEST_MESSAGE: usize = 1_000_000;

const TOPIC_ALLOWED: &str = "a name of letters, digits, '.', '_' and '-', at most 249 long";
const TOPICS_ALLOWED: &str =
    "one or more names of letters, digits, '.', '_' and '-', comma separated";

/// What the user may override for every client.
const SHARED_DEFAULTS: &[(&str, &str)] = &[
    // A request into a black hole is given up before the session is.
    ("socket.timeout.ms", "10000"),
    ("socket.keepalive.enable", "true"),
    ("reconnect.backoff.max.ms", "2000"),
    // A topic that appears while the worker waits for it is seen this soon.
    ("topic.metadata.refresh.interval.ms", "10000"),
    ("log.connection.close", "false"),
    // Nothing about the client is sent to brokers unless the user wants it.
    ("enable.metrics.push", "false"),
];

/// What the user may override for the consumer.
const CONSUMER_DEFAULTS: &[(&str, &str)] = &[
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("isolation.level", "read_committed"),
    ("check.crcs", "true"),
    // Once the client's own queue has room again it fetches at once instead of a second later.
    ("fetch.queue.backoff.ms", "50"),
];

fn is_broker(text: &str) -> bool {
    // `SSL://host:port` is librdkafka's own form.
    let address = text.rsplit("://").next().unwrap_or(text);
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    !host.is_empty()
        && !host.contains(char::is_whitespace)
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_topic(name: &str) -> bool {
    (1..=MAX_TOPIC_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_at_fault(text: &str) -> Vec<String> {
        let settings: KafkaSettings = toml::from_str(text).unwrap();
        settings.violations().into_iter().map(|v| v.key).collect()
    }

    #[test]
    fn the_defaults_are_allowed() {
        assert_eq!(keys_at_fault(""), Vec::<String>::new());
    }

    #[test]
    fn names_each_key_at_fault() {
        for (text, key) in [
            ("brokers = \"localhost\"", "brokers"),
            ("brokers = \"localhost:99999\"", "brokers"),
            ("brokers = \"\"", "brokers"),
            ("topic = \"a b\"", "topic"),
            ("topic = \" , \"", "topic"),
            ("group_id = \"\"", "group_id"),
            ("session_timeout_ms = 10", "session_timeout_ms"),
            ("queue_records = 0", "queue_records"),
            ("dead_letter_topic = \"documents\"", "dead_letter_topic"),
            ("max_poll_interval_ms = 6000", "max_poll_interval_ms"),
            ("properties.\"group.id\" = \"x\"", "properties.group.id"),
        ] {
            assert_eq!(keys_at_fault(text), [key], "{text}");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error() {
        let error = toml::from_str::<KafkaSettings>("topics = \"news\"").unwrap_err();
        assert!(error.to_string().contains("topics"), "{error}");
    }

    #[test]
    fn several_topics_and_brokers() {
        let text = "topic = \"news, wire\"\nbrokers = \"a:1,SSL://b:2,[::1]:9092\"";
        let settings: KafkaSettings = toml::from_str(text).unwrap();
        assert_eq!(settings.topics(), ["news", "wire"]);
        assert_eq!(keys_at_fault(text), Vec::<String>::new());
    }

    #[test]
    fn an_answer_is_a_small_part_of_the_queue_and_no_smaller_than_a_message() {
        for (text, expected) in [
            ("", "1048576"),
            ("queue_bytes = 65536", "1000000"),
            ("queue_bytes = 2147483648", "52428800"),
            ("properties.\"message.max.bytes\" = 9000000", "9000000"),
            ("properties.\"fetch.max.bytes\" = 2000000", "2000000"),
        ] {
            let settings: KafkaSettings = toml::from_str(text).unwrap();
            let config = settings.consumer_config().unwrap();
            assert_eq!(config.get("fetch.max.bytes"), Some(expected), "{text}");
            assert!(config.create_native_config().is_ok());
        }
    }

    #[test]
    fn a_users_assignor_is_kept_and_guarantees_are_not_overridden() {
        let settings: KafkaSettings =
            toml::from_str("properties.partition_assignment_strategy = \"range\"").unwrap();
        let config = settings.consumer_config().unwrap();
        assert_eq!(config.get("partition.assignment.strategy"), Some("range"));
        assert_eq!(config.get("enable.auto.commit"), Some("false"));
        assert_eq!(config.get("enable.auto.offset.store"), Some("false"));
        assert_eq!(config.get("auto.offset.reset"), Some("error"));
        assert!(config.create_native_config().is_ok());
    }
}
