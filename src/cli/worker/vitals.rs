//! Whether the source of a running worker does what it should: published as metrics and readiness.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::document::RecordPosition;
use crate::kafka::{KafkaSource, PartitionStatus, SourceStatus, shorten};
use crate::telemetry::{Health, LogLimit, Metrics, Part, PartitionLag};

/// How often the source's status is read; it looks by itself about as often.
const INTERVAL: Duration = Duration::from_secs(1);
/// A trouble that is over within this time is none: leaders move, a topic is made a moment later.
const GRACE: Duration = Duration::from_secs(30);
/// How long an assigned partition may be checked before it is read.
const CHECK_GRACE: Duration = Duration::from_secs(60);
/// How long records of a partition may wait without one being processed.
const STALLED_AFTER: Duration = Duration::from_secs(180);
/// How often a stalled partition is named in the log.
const LOG_EVERY: Duration = Duration::from_secs(300);

/// Publishes until it is aborted.
pub(in crate::cli) async fn watch(source: Arc<KafkaSource>, metrics: Metrics, health: Health) {
    let logged = LogLimit::new(LOG_EVERY);
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = Instant::now();
        let status = source.status();
        publish(&status, now, &metrics, &health);
        let stalled = status.partitions.iter().filter(|p| is_stalled(p, now));
        let mut stalled = stalled.peekable();
        if stalled.peek().is_some() && logged.is_due(now) {
            for partition in stalled {
                tracing::warn!(
                    partition = %partition.partition,
                    offset = partition.position,
                    end = partition.end,
                    seconds = waited(partition, now).as_secs(),
                    "records of a partition wait and none is processed"
                );
            }
        }
    }
}

/// Publishes what the source says of itself, as it looks at `now`.
pub fn publish(status: &SourceStatus, now: Instant, metrics: &Metrics, health: &Health) {
    metrics.partitions(status.partitions.iter().map(|p| lag(p, now)).collect());
    for (part, trouble) in [
        (Part::Broker, broker_trouble(status, now)),
        (Part::Assignment, assignment_trouble(status, now)),
    ] {
        match trouble {
            Some(reason) => health.set_trouble(part, reason),
            None => health.set_well(part),
        }
    }
}

fn waited(partition: &PartitionStatus, now: Instant) -> Duration {
    let since = partition.waiting_since;
    since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
}

fn is_stalled(partition: &PartitionStatus, now: Instant) -> bool {
    waited(partition, now) >= STALLED_AFTER
}

fn lag(partition: &PartitionStatus, now: Instant) -> PartitionLag {
    PartitionLag {
        topic: partition.partition.topic.to_string(),
        partition: partition.partition.partition,
        records: partition.lag(),
        stalled: is_stalled(partition, now),
    }
}

fn broker_trouble(status: &SourceStatus, now: Instant) -> Option<String> {
    let (since, reason) = status.unreachable.as_ref()?;
    let lasted = now.saturating_duration_since(*since);
    (lasted >= GRACE).then(|| reason.clone())
}

/// A worker without partitions is well: there may be more workers than partitions.
fn assignment_trouble(status: &SourceStatus, now: Instant) -> Option<String> {
    let mut reasons = Vec::new();
    if let Some((since, topics)) = &status.missing
        && now.saturating_duration_since(*since) >= GRACE
    {
        reasons.push(format!(
            "the topic {} does not exist (kafka.topic)",
            topics.join(", ")
        ));
    }
    let partitions = status.partitions.iter();
    let unread: Vec<String> = partitions
        .clone()
        .filter(|partition| {
            let since = partition.checking_since;
            since.is_some_and(|since| now.saturating_duration_since(since) >= CHECK_GRACE)
        })
        .map(|partition| partition.partition.to_string())
        .collect();
    if !unread.is_empty() {
        reasons.push(format!(
            "where to begin is not known of {}; the log says why",
            shorten(&unread, ", ")
        ));
    }
    let stalled: Vec<String> = partitions
        .filter(|partition| is_stalled(partition, now))
        .map(|partition| {
            format!(
                "{} at offset {}",
                partition.partition,
                partition.position.unwrap_or_default()
            )
        })
        .collect();
    if !stalled.is_empty() {
        reasons.push(format!(
            "records wait and none was processed for {} s: {}",
            STALLED_AFTER.as_secs(),
            shorten(&stalled, ", ")
        ));
    }
    if let Some(RecordPosition { partition, offset }) = &status.damaged {
        reasons.push(format!(
            "a batch of records of {partition} at offset {offset} fails its checksum"
        ));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::TopicPartition;

    fn partition(number: i32, end: i64, waiting: Option<Instant>) -> PartitionStatus {
        PartitionStatus {
            partition: TopicPartition::new("news", number),
            position: Some(5),
            end: Some(end),
            waiting_since: waiting,
            checking_since: None,
        }
    }

    #[test]
    fn trouble_counts_once_it_has_lasted() {
        let start = Instant::now();
        let status = SourceStatus {
            partitions: vec![partition(0, 5, None)],
            unreachable: Some((start, "no broker responds".to_owned())),
            missing: Some((start, vec!["nwes".to_owned()])),
            damaged: None,
        };
        assert_eq!(broker_trouble(&status, start), None);
        assert_eq!(assignment_trouble(&status, start), None);
        let later = start + GRACE;
        assert_eq!(
            broker_trouble(&status, later).as_deref(),
            Some("no broker responds")
        );
        let missing = assignment_trouble(&status, later).unwrap();
        assert!(missing.contains("nwes") && missing.contains("kafka.topic"));
    }

    #[test]
    fn a_partition_that_stands_still_is_named() {
        let start = Instant::now();
        let later = start + STALLED_AFTER;
        let mut status = SourceStatus {
            partitions: vec![partition(0, 5, None), partition(1, 9, Some(start))],
            ..SourceStatus::default()
        };
        assert_eq!(assignment_trouble(&status, start), None);
        let reason = assignment_trouble(&status, later).unwrap();
        assert!(reason.contains("news[1] at offset 5"), "{reason}");
        assert!(!reason.contains("news[0]"), "{reason}");
        let lags: Vec<_> = status.partitions.iter().map(|p| lag(p, later)).collect();
        assert_eq!((lags[0].records, lags[0].stalled), (Some(0), false));
        assert_eq!((lags[1].records, lags[1].stalled), (Some(4), true));
        status.partitions = vec![PartitionStatus {
            checking_since: Some(start),
            position: None,
            ..partition(3, 9, None)
        }];
        let reason = assignment_trouble(&status, later).unwrap();
        assert!(reason.contains("news[3]"), "{reason}");
        status.partitions.clear();
        status.damaged = Some(RecordPosition {
            partition: TopicPartition::new("news", 7),
            offset: 8,
        });
        let reason = assignment_trouble(&status, start).unwrap();
        assert!(reason.contains("news[7] at offset 8"), "{reason}");
    }

    #[test]
    fn a_worker_without_partitions_is_well() {
        let later = Instant::now() + STALLED_AFTER;
        assert_eq!(assignment_trouble(&SourceStatus::default(), later), None);
    }
}
