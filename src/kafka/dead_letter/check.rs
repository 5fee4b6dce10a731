//! Whether dead letters can be kept: asked before the first record is read, and by `doctor`.

use std::path::Path;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, ResourceSpecifier};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, Producer};

use crate::kafka::client::{self, Reporting};
use crate::kafka::dead_letter::client_config::producer_config;
use crate::kafka::dead_letter::settings::DeadLetterSettings;
use crate::kafka::dead_letter::spool::Spool;
use crate::kafka::settings::KafkaSettings;
use crate::source::SourceError;

/// How long a topic that the broker makes by itself may take to appear.
const TOPIC_WITHIN: Duration = Duration::from_secs(10);
/// Longest wait for one response.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two questions for the topic.
const ASK_EVERY: Duration = Duration::from_millis(250);
/// How long the producer is listened to for why nothing answers.
const FAULTS_WAIT: Duration = Duration::from_millis(100);
/// Less time than this is hardly enough for somebody to look at dead letters.
const SHORT_RETENTION_MS: i64 = 7 * 24 * 3600 * 1000;

/// Whether the dead-letter topic is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presence {
    /// It is, or the broker has just made it.
    There,
    /// The user may not ask for it; what that means.
    Hidden(String),
}

/// Asks for the dead-letter topic as a producer does, so that a broker which makes topics by itself
/// makes it, and waits for it to appear.
///
/// # Errors
/// When no broker answers, or the topic is not there after [`TOPIC_WITHIN`].
pub(super) fn find_topic(
    config: &ClientConfig,
    kafka: &KafkaSettings,
) -> Result<Presence, SourceError> {
    let topic = kafka.dead_letter_topic.as_str();
    let reporting = Reporting::default();
    // To ask needs no producer's id, which some users may not have.
    let mut config = config.clone();
    config.set("enable.idempotence", "false");
    let failed = |error| client::source_error("the dead-letter producer cannot be set up", &error);
    let producer: BaseProducer<Reporting> = config
        .create_with_context(reporting.clone())
        .map_err(failed)?;
    let deadline = Instant::now() + kafka.connect_timeout();
    let mut answered: Option<Instant> = None;
    loop {
        let wait = match answered {
            None => deadline.saturating_duration_since(Instant::now()),
            Some(_) => METADATA_TIMEOUT,
        };
        let metadata = producer
            .client()
            .fetch_metadata(Some(topic), wait.min(METADATA_TIMEOUT));
        let missing = match &metadata {
            Ok(metadata) => match presence(metadata, topic) {
                Ok(presence) => return Ok(presence),
                Err(missing) => missing,
            },
            Err(error) if answered.is_none() => {
                producer.poll(FAULTS_WAIT);
                if let Some(refused) = client::refusal(&reporting.faults, kafka) {
                    return Err(refused);
                }
                if Instant::now() >= deadline {
                    return Err(client::unreachable(error, &reporting.faults, kafka));
                }
                continue;
            }
            Err(error) => error
                .rdkafka_error_code()
                .unwrap_or(RDKafkaErrorCode::UnknownTopicOrPartition),
        };
        if answered.get_or_insert_with(Instant::now).elapsed() >= TOPIC_WITHIN {
            return Err(SourceError::Fatal(missing_topic(topic, missing)));
        }
        std::thread::sleep(ASK_EVERY);
    }
}

/// What the broker says of the topic; the error says why it is not there.
fn presence(metadata: &Metadata, topic: &str) -> Result<Presence, RDKafkaErrorCode> {
    let missing = RDKafkaErrorCode::UnknownTopicOrPartition;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let found = found.ok_or(missing)?;
    match found.error().map(RDKafkaErrorCode::from) {
        None if found.partitions().is_empty() => Err(missing),
        None => Ok(Presence::There),
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => Ok(Presence::Hidden(format!(
            "could not check whether the dead-letter topic {topic} exists: the user may not describe it; the \
             right to write there includes that"
        ))),
        Some(error) => Err(error),
    }
}

fn missing_topic(topic: &str, error: RDKafkaErrorCode) -> String {
    format!(
        "the dead-letter topic {topic} does not exist and did not appear within {} s ({error}): the first \
         record that cannot be processed would block its partition; create the topic with \
         cleanup.policy=delete and a retention of days, or set kafka.dead_letter_topic",
        TOPIC_WITHIN.as_secs()
    )
}

/// What a look at the place of dead letters found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFindings {
    /// What is as it should be.
    pub found: Vec<String>,
    /// What deserves attention and blocks nothing.
    pub warnings: Vec<String>,
    /// What would lose dead letters or block a partition.
    pub faults: Vec<String>,
}

/// Checks the dead-letter topic, its settings and the spool folder, for `doctor`.
pub async fn check_dead_letters(
    kafka: &KafkaSettings,
    settings: &DeadLetterSettings,
) -> DeadLetterFindings {
    let mut findings = DeadLetterFindings::default();
    look_at_spool(settings, &mut findings);
    let config = match producer_config(kafka, settings) {
        Ok(config) => config,
        Err(error) => {
            findings.faults.push(error.0);
            return findings;
        }
    };
    let asking = kafka.clone();
    let found = tokio::task::spawn_blocking(move || find_topic(&config, &asking)).await;
    match found {
        Ok(Ok(Presence::There)) => look_at_topic(kafka, &mut findings).await,
        Ok(Ok(Presence::Hidden(warning))) => findings.warnings.push(warning),
        Ok(Err(error)) => findings.faults.push(error.to_string()),
        Err(error) => findings.faults.push(error.to_string()),
    }
    findings
}

fn look_at_spool(settings: &DeadLetterSettings, findings: &mut DeadLetterFindings) {
    let folder = &settings.spool_dir;
    let spool = Spool::new(Path::new(folder), settings.spool_max_bytes);
    match spool.check() {
        Err(error) => findings.faults.push(error.to_string()),
        Ok(held) if held >= spool.max_bytes() => findings.faults.push(format!(
            "the spool folder {folder} is full: it holds {held} bytes of {}; move its files away or raise \
             dead_letter.spool_max_bytes",
            spool.max_bytes()
        )),
        Ok(held) => findings
            .found
            .push(format!("{folder} can be written and holds {held} bytes")),
    }
}

async fn look_at_topic(kafka: &KafkaSettings, findings: &mut DeadLetterFindings) {
    let topic = kafka.dead_letter_topic.as_str();
    match describe(kafka, topic).await {
        Ok(settings) => judge(topic, |name| settings.get(name)?.value.clone(), findings),
        Err(error) => findings.warnings.push(format!(
            "could not read the settings of {topic}: {error}; whether they keep dead letters long enough \
             needs the right DescribeConfigs, or a look with kafka-configs --describe"
        )),
    }
}

/// Whether compaction keeps only the last record of each key of a topic; `None` where the broker does not
/// say it.
pub(super) fn is_compacted(kafka: &KafkaSettings, topic: &str) -> Option<bool> {
    // On a thread of its own: the caller may be one of a runtime.
    let described = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.ok()?.block_on(describe(kafka, topic)).ok()
        });
        asking.join().ok().flatten()
    });
    let described = described?;
    let policy = described.get("cleanup.policy")?.value.as_deref()?;
    Some(compacts(policy))
}

fn compacts(policy: &str) -> bool {
    policy.split(',').any(|part| part.trim() == "compact")
}

async fn describe(kafka: &KafkaSettings, topic: &str) -> Result<ConfigResource, KafkaError> {
    let config = kafka
        .client_config(&kafka.properties.connection(), &[])
        .map_err(|error| KafkaError::AdminOpCreation(error.to_string()))?;
    let admin: AdminClient<Reporting> = config.create_with_context(Reporting::default())?;
    let options = AdminOptions::new().request_timeout(Some(kafka.connect_timeout()));
    let mut described = admin
        .describe_configs(&[ResourceSpecifier::Topic(topic)], &options)
        .await?;
    described
        .pop()
        .ok_or(KafkaError::Canceled)?
        .map_err(KafkaError::AdminOp)
}

/// Judges the settings of the topic.
fn judge(topic: &str, setting: impl Fn(&str) -> Option<String>, findings: &mut DeadLetterFindings) {
    let policy = setting("cleanup.policy").unwrap_or_default();
    if compacts(&policy) {
        findings.faults.push(format!(
            "{topic} has cleanup.policy={policy}: compaction drops all dead letters of a key but the last \
             and rejects those without a key; set it to delete"
        ));
    }
    let number = |name: &str| setting(name)?.parse::<i64>().ok();
    let kept = match number("retention.ms") {
        Some(ms) if ms >= 0 => {
            if ms < SHORT_RETENTION_MS {
                findings.warnings.push(format!(
                    "{topic} has retention.ms={ms}: a dead letter is gone {} after it was sent, replayed or \
                     not; raise it",
                    duration(ms)
                ));
            }
            format!("keeps dead letters for {}", duration(ms))
        }
        Some(_) => "keeps dead letters for good".to_owned(),
        None => "has a retention that the broker does not tell".to_owned(),
    };
    if let Some(bytes) = number("retention.bytes").filter(|bytes| *bytes >= 0) {
        findings.warnings.push(format!(
            "{topic} has retention.bytes={bytes}: the oldest dead letters of a partition are dropped beyond \
             that"
        ));
    }
    let timestamps = setting("message.timestamp.type").unwrap_or_default();
    if timestamps == "LogAppendTime" {
        findings.warnings.push(format!(
            "{topic} has message.timestamp.type=LogAppendTime: dead letters of versions that send no \
             __connect.errors.timestamp have lost the time of their record, so that a replay counts as \
             newer than what came through other partitions since; set it to CreateTime"
        ));
    }
    findings
        .found
        .push(format!("{topic} {kept} ({timestamps})"));
}

/// Milliseconds for people.
fn duration(ms: i64) -> String {
    const MINUTE: i64 = 60_000;
    for (unit, name) in [
        (24 * 60 * MINUTE, "days"),
        (60 * MINUTE, "hours"),
        (MINUTE, "minutes"),
    ] {
        if ms >= 2 * unit {
            return format!("{} {name}", ms / unit);
        }
    }
    format!("{ms} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(settings: &[(&str, &str)]) -> DeadLetterFindings {
        let mut findings = DeadLetterFindings::default();
        let setting = |name: &str| {
            let found = settings.iter().find(|(known, _)| *known == name)?;
            Some(found.1.to_owned())
        };
        judge("dead", setting, &mut findings);
        findings
    }

    #[test]
    fn the_defaults_of_a_broker_are_well() {
        let found = judged(&[
            ("cleanup.policy", "delete"),
            ("retention.ms", "604800000"),
            ("retention.bytes", "-1"),
            ("message.timestamp.type", "CreateTime"),
        ]);
        assert_eq!(found.warnings, [""; 0]);
        assert_eq!(found.faults, [""; 0]);
        assert_eq!(
            found.found,
            ["dead keeps dead letters for 7 days (CreateTime)"]
        );
        let found = judged(&[("retention.ms", "-1")]);
        assert!(found.found[0].contains("for good"), "{found:?}");
    }

    #[test]
    fn what_loses_dead_letters_is_named_with_its_setting() {
        for policy in ["compact", "compact,delete", "delete, compact"] {
            let found = judged(&[("cleanup.policy", policy)]);
            assert!(found.faults[0].contains("cleanup.policy"), "{found:?}");
        }
        for (name, value) in [
            ("retention.ms", "360000"),
            ("retention.bytes", "1000"),
            ("message.timestamp.type", "LogAppendTime"),
        ] {
            let found = judged(&[(name, value)]);
            assert_eq!(found.faults, [""; 0]);
            assert!(found.warnings[0].contains(name), "{found:?}");
        }
    }
}
