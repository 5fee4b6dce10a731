//! The librdkafka properties a user passes through: how they may be written, which of them are
//! refused because guarantees rest on them, and which are secret. Pure but for reading secret files.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::{Serialize, Serializer};

use crate::keys::Violation;

/// Largest secret file read; a secret is a line, not a document.
const MAX_SECRET_FILE_BYTES: u64 = 64 * 1024;

/// Properties that the worker sets itself, and why a user's own value is refused.
const OWNED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set kafka.brokers instead"),
    ("metadata.broker.list", "set kafka.brokers instead"),
    ("group.id", "set kafka.group_id instead"),
    ("group.instance.id", "set kafka.group_instance_id instead"),
    ("client.id", "set kafka.client_id instead"),
    ("session.timeout.ms", "set kafka.session_timeout_ms instead"),
    (
        "max.poll.interval.ms",
        "set kafka.max_poll_interval_ms instead",
    ),
    (
        "enable.auto.commit",
        "offsets are committed after the write",
    ),
    (
        "auto.commit.enable",
        "offsets are committed after the write",
    ),
    (
        "auto.commit.interval.ms",
        "set kafka.commit_interval_ms instead",
    ),
    (
        "enable.auto.offset.store",
        "offsets are committed after the write",
    ),
    ("auto.offset.reset", "set kafka.on_missing_offset instead"),
    ("offset.store.method", "offsets are kept by the broker"),
    (
        "enable.partition.eof",
        "the worker sets it where it needs it",
    ),
    ("group.protocol", "the worker speaks the classic protocol"),
    (
        "group.remote.assignor",
        "the worker speaks the classic protocol",
    ),
    ("enable.idempotence", "dead letters are sent idempotently"),
    ("acks", "dead letters wait for all replicas"),
    (
        "request.required.acks",
        "dead letters wait for all replicas",
    ),
    (
        "message.timeout.ms",
        "dead letters are sent until they arrive",
    ),
    (
        "delivery.timeout.ms",
        "dead letters are sent until they arrive",
    ),
    ("transactional.id", "the worker uses no transactions"),
    (
        "delivery.report.only.error",
        "dead letters wait for their receipt",
    ),
    ("log.queue", "the worker reads the client's log itself"),
    (
        "enabled_events",
        "the worker reads the client's events itself",
    ),
];

/// Properties whose value may stand in a file: `<property>.file` (in the environment `_FILE`).
const SECRETS: &[&str] = &[
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.assertion.private.key.passphrase",
];

/// What marks a property as secret wherever it stands in the name.
const SECRET_WORDS: &[&str] = &[
    "password",
    "secret",
    "passphrase",
    "pem",
    "token",
    "credential",
    "oauthbearer.config",
];

/// Names that a connection needs whichever way records go; the rest of a consumer's properties
/// mean nothing to a producer.
const CONNECTION_PREFIXES: &[&str] = &[
    "security.",
    "sasl.",
    "ssl.",
    "https.",
    "enable.ssl.",
    "enable.sasl.",
    "enable.metrics.",
    "socket.",
    "broker.",
    "client.",
    "connections.",
    "reconnect.",
    "retry.",
    "api.",
    "metadata.",
    "topic.metadata.",
    "log",
    "debug",
    "statistics.",
    "plugin.",
];

/// Properties for librdkafka, names in its own form (`security.protocol`).
///
/// In a file they may be quoted (`"security.protocol" = ...`) or nested; in the environment `_`
/// stands for `.`, and what stands there wins. Values may be text, numbers or true and false.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Properties from pairs in librdkafka's own form.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }

    /// The value of one property, where the user set it.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Forgets every property.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Notes each property that is refused, misspelt or of a wrong value; `prefix` is the key
    /// that they stand below. Never repeats a secret.
    pub fn validate(&self, prefix: &str, violations: &mut Vec<Violation>) {
        for (name, value) in &self.0 {
            let key = format!("{prefix}.{name}");
            let shown = if is_secret(name) { "(secret)" } else { value };
            if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| owned == name) {
                let allowed = format!("no value: {reason}");
                violations.push(Violation::new(&key, shown, allowed));
                continue;
            }
            let resolved = match resolve(name, value) {
                Ok(resolved) => resolved,
                Err(reason) => {
                    violations.push(Violation::new(&key, shown, reason));
                    continue;
                }
            };
            let mut config = ClientConfig::new();
            config.set(resolved.0, resolved.1);
            if let Err(error) = config.create_native_config() {
                let allowed = allowed_by_client(&error, is_secret(name));
                violations.push(Violation::new(&key, shown, allowed));
            }
        }
    }

    /// Sets every property on a consumer's configuration.
    ///
    /// # Errors
    /// When a secret file cannot be read; the text says which.
    pub(super) fn apply(&self, config: &mut ClientConfig) -> Result<(), String> {
        for (name, value) in &self.0 {
            let (name, value) = resolve(name, value)?;
            config.set(name, value);
        }
        Ok(())
    }

    /// The properties that concern the connection, for a producer beside the consumer.
    pub(super) fn connection(&self) -> Self {
        let connection = |name: &str| {
            CONNECTION_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        Self(
            self.0
                .iter()
                .filter(|(name, _)| connection(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        )
    }
}

impl Properties {
    /// Names and values, those of secrets hidden.
    fn shown(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| {
            let value = if is_secret(name) { "***" } else { value };
            (name.as_str(), value)
        })
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.shown()).finish()
    }
}

/// Hides secrets, as what is serialised is what people are shown.
impl Serialize for Properties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.shown())
    }
}

/// Whether the value of `name` must not be shown. A path to a secret file may be.
fn is_secret(name: &str) -> bool {
    !name.ends_with(".file")
        && !name.ends_with(".location")
        && SECRET_WORDS.iter().any(|word| name.contains(word))
}

/// The property that librdkafka is to get: itself, or the secret out of the file it names.
fn resolve(name: &str, value: &str) -> Result<(String, String), String> {
    let secret = name
        .strip_suffix(".file")
        .filter(|stem| SECRETS.contains(stem));
    let Some(stem) = secret else {
        return Ok((name.to_owned(), value.to_owned()));
    };
    let content = read_secret(Path::new(value))
        .map_err(|error| format!("a readable file that holds {stem}: {value}: {error}"))?;
    Ok((stem.to_owned(), content))
}

fn read_secret(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut content = String::new();
    std::fs::File::open(path)?
        .take(MAX_SECRET_FILE_BYTES)
        .read_to_string(&mut content)?;
    Ok(content.trim_end_matches(['\r', '\n']).to_owned())
}

/// What librdkafka says of a property it does not take, without the value where it is secret.
fn allowed_by_client(error: &KafkaError, secret: bool) -> String {
    match error {
        KafkaError::ClientConfig(_, description, _, _) if !secret => {
            format!("what librdkafka takes: {description}")
        }
        _ => "a value that librdkafka takes".to_owned(),
    }
}

impl<'de> Deserialize<'de> for Properties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut found = Found::default();
        for (name, value) in Nested::deserialize(deserializer)?.0 {
            found.add(&name, value);
        }
        found.from_file.extend(found.from_environment);
        Ok(Self(found.from_file))
    }
}

/// Properties by the form of their names, since the environment's wins.
#[derive(Default)]
struct Found {
    from_file: BTreeMap<String, String>,
    from_environment: BTreeMap<String, String>,
}

impl Found {
    fn add(&mut self, name: &str, value: Node) {
        match value {
            Node::Nested(Nested(children)) => {
                for (child, value) in children {
                    self.add(&format!("{name}.{child}"), value);
                }
            }
            Node::Text(text) => {
                let into = if name.contains('_') {
                    &mut self.from_environment
                } else {
                    &mut self.from_file
                };
                into.insert(name.replace('_', "."), text);
            }
        }
    }
}

struct Nested(Vec<(String, Node)>);

enum Node {
    Text(String),
    Nested(Nested),
}

impl<'de> Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NestedVisitor;
        impl<'de> Visitor<'de> for NestedVisitor {
            type Value = Nested;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a table of librdkafka properties")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Nested, A::Error> {
                let mut children = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    children.push(entry);
                }
                Ok(Nested(children))
            }
        }
        deserializer.deserialize_map(NestedVisitor)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NodeVisitor;
        impl<'de> Visitor<'de> for NodeVisitor {
            type Value = Node;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("text, a number, true, false or a table")
            }
            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Text(value.to_owned()))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Text(value.to_string()))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Node, A::Error> {
                let map = serde::de::value::MapAccessDeserializer::new(map);
                Nested::deserialize(map).map(Node::Nested)
            }
        }
        deserializer.deserialize_any(NodeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Properties {
        toml::from_str(text).unwrap()
    }

    fn violations(properties: &Properties) -> Vec<Violation> {
        let mut violations = Vec::new();
        properties.validate("properties", &mut violations);
        violations
    }

    #[test]
    fn takes_every_way_of_writing_a_name() {
        let properties = parse(
            "\"security.protocol\" = \"SASL_SSL\"\nssl.ca.location = \"ca.pem\"\n\
             fetch_wait_max_ms = 5\nsocket.keepalive.enable = true",
        );
        assert_eq!(properties.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(properties.get("ssl.ca.location"), Some("ca.pem"));
        assert_eq!(properties.get("fetch.wait.max.ms"), Some("5"));
        assert_eq!(properties.get("socket.keepalive.enable"), Some("true"));
        assert_eq!(violations(&properties), []);
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let properties =
            parse("security_protocol = \"ssl\"\n\"security.protocol\" = \"plaintext\"");
        assert_eq!(properties.get("security.protocol"), Some("ssl"));
    }

    #[test]
    fn refuses_what_guarantees_rest_on() {
        for (name, _) in OWNED {
            let found = violations(&Properties::from_pairs([(*name, "true")]));
            assert_eq!(found.len(), 1, "{name}");
            assert_eq!(found[0].key, format!("properties.{name}"));
            assert!(found[0].allowed.starts_with("no value"), "{:?}", found[0]);
        }
    }

    #[test]
    fn names_a_misspelt_property_and_a_wrong_value() {
        let found = violations(&parse("fetch_wait_maxms = 5\nfetch_min_bytes = \"many\""));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].key, "properties.fetch.min.bytes");
        assert_eq!(found[1].key, "properties.fetch.wait.maxms");
        assert!(found[1].allowed.contains("No such"), "{:?}", found[1]);
    }

    #[test]
    fn never_shows_a_secret() {
        let properties = Properties::from_pairs([
            ("sasl.password", "hunter2"),
            ("ssl.key.pem", "hunter2"),
            ("sasl.oauthbearer.client.secret", "hunter2"),
            ("sasl.password.wrong", "hunter2"),
            ("sasl.username", "reader"),
        ]);
        let shown = format!("{properties:?} {:?}", violations(&properties));
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("reader"));
    }

    #[test]
    fn reads_a_secret_out_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, "hunter2\n").unwrap();
        let properties = Properties::from_pairs([("sasl.password.file", path.to_str().unwrap())]);
        let mut config = ClientConfig::new();
        properties.apply(&mut config).unwrap();
        assert_eq!(config.get("sasl.password"), Some("hunter2"));

        let missing = Properties::from_pairs([("sasl.password.file", "no/such/file")]);
        assert!(
            missing
                .apply(&mut config)
                .unwrap_err()
                .contains("no/such/file")
        );
        assert_eq!(violations(&missing).len(), 1);
    }

    #[test]
    fn a_producer_gets_the_connection_alone() {
        let properties = Properties::from_pairs([
            ("security.protocol", "ssl"),
            ("fetch.min.bytes", "1"),
            ("partition.assignment.strategy", "range"),
        ]);
        assert_eq!(
            properties.connection(),
            Properties::from_pairs([("security.protocol", "ssl")])
        );
    }
}
