//! Where to begin in a partition: the committed offset against what the topic still has, and
//! whether that is still the log that was read. Pure.

use crate::document::TopicPartition;
use crate::kafka::offsets::LogRange;
use crate::kafka::settings::OnMissingOffset;
use crate::source::SourceError;

/// Partitions that a message names before it says how many more there are.
const NAMED_PARTITIONS: usize = 8;

/// What the user wants done where the committed offset does not settle it.
#[derive(Debug, Clone, Copy)]
pub(in crate::kafka) struct StartPolicy {
    pub(in crate::kafka) on_missing: OnMissingOffset,
    pub(in crate::kafka) accept_gap: bool,
    /// Whether a bounded job asks, so that messages name its command.
    pub(in crate::kafka) bounded: bool,
}

/// What comparing a record that was delivered with the one that stands at its offset now says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) enum Compared {
    /// It is the log that was read.
    Same,
    /// Another record stands at this offset.
    Another(i64),
    /// The offset is gone (retention, compaction), or no record is known: nothing is proved.
    Unknown,
}

/// Records that are gone before they could be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka) struct Gap {
    pub(in crate::kafka) partition: TopicPartition,
    /// Where the group wanted to go on.
    pub(in crate::kafka) wanted: i64,
    /// What the topic has.
    pub(in crate::kafka) log: LogRange,
}

impl Gap {
    /// Whether offsets began anew since: what comes may count as older than what is stored.
    fn is_reset(&self) -> bool {
        self.wanted > self.log.high
    }

    fn describe(&self) -> String {
        let Self {
            partition,
            wanted,
            log,
        } = self;
        if !self.is_reset() {
            let gone = log.low - wanted;
            format!(
                "the next record of {partition} to read was {wanted}, but the topic now begins \
                 at {}: {gone} records are gone",
                log.low
            )
        } else {
            format!(
                "the next record of {partition} to read was {wanted}, but the topic now ends at \
                 {}: it was recreated or truncated, and what it held before is gone",
                log.high
            )
        }
    }
}

/// Why a partition has no place to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka) enum Refusal {
    Missing(TopicPartition),
    Gap(Gap),
    /// Another record stands at this offset than the one that was delivered from there.
    Replaced(TopicPartition, i64),
    /// Of topics of which nothing is committed, so many documents are stored from beyond the end.
    Recreated(String, u64),
}

impl Refusal {
    /// Whether the offsets that were read are those of another log.
    fn describe_other_log(&self) -> Option<String> {
        match self {
            Self::Gap(gap) => gap.is_reset().then(|| gap.describe()),
            Self::Replaced(partition, offset) => Some(format!(
                "offset {offset} of {partition} holds another record than the one that was read \
                 there: the topic was recreated, or its log was truncated and written again"
            )),
            Self::Missing(_) | Self::Recreated(..) => None,
        }
    }
}

/// Decides where to begin. An accepted gap leads forward to the oldest record, never back.
pub(in crate::kafka) fn decide(
    partition: &TopicPartition,
    next: Option<i64>,
    log: LogRange,
    compared: Compared,
    policy: StartPolicy,
) -> Result<(i64, Option<Gap>), Refusal> {
    if let Compared::Another(offset) = compared {
        return Err(Refusal::Replaced(partition.clone(), offset));
    }
    let Some(wanted) = next else {
        return match policy.on_missing {
            OnMissingOffset::Earliest => Ok((log.low, None)),
            OnMissingOffset::Error => Err(Refusal::Missing(partition.clone())),
        };
    };
    if (log.low..=log.high).contains(&wanted) {
        return Ok((wanted, None));
    }
    let gap = Gap {
        partition: partition.clone(),
        wanted,
        log,
    };
    // Within a partition the offset says what is newer. Offsets that start again would let what is stored
    // win over what comes, in silence: nobody can accept that.
    if policy.accept_gap && !gap.is_reset() {
        Ok((log.low, Some(gap)))
    } else {
        Err(Refusal::Gap(gap))
    }
}

/// All refusals as one message that says what to do.
pub(in crate::kafka) fn refuse(refusals: &[Refusal], policy: StartPolicy) -> SourceError {
    let mut expired = Vec::new();
    let mut missing = Vec::new();
    let mut recreated = Vec::new();
    let reset: Vec<String> = refusals
        .iter()
        .filter_map(Refusal::describe_other_log)
        .collect();
    for refusal in refusals {
        match refusal {
            Refusal::Gap(gap) if !gap.is_reset() => expired.push(gap.describe()),
            Refusal::Missing(partition) => missing.push(partition.to_string()),
            Refusal::Recreated(topics, documents) => {
                recreated.push(format!(
                    "{documents} documents from beyond the end of {topics}"
                ));
            }
            Refusal::Gap(_) | Refusal::Replaced(..) => {}
        }
    }
    let mut sentences = Vec::new();
    if !expired.is_empty() {
        let command = if policy.bounded {
            "the same `tcbert-worker backfill` with --accept-gap"
        } else {
            "`tcbert-worker run --accept-gap` once"
        };
        sentences.push(format!(
            "{}; to go on at the oldest record run {command} (or set kafka.accept_gap = true)",
            shorten(&expired, "; ")
        ));
    }
    if !reset.is_empty() {
        sentences.push(format!(
            "{}; its offsets start again, so that documents stored from its earlier life would count as newer than \
             what comes now, which --accept-gap does not change: name a new store.collection (or delete the old \
             one) and a new kafka.group_id, and the whole topic is read",
            shorten(&reset, "; ")
        ));
    }
    if !recreated.is_empty() {
        sentences.push(format!(
            "the store holds {}: the topic was deleted and created again, its offsets start again, \
             and what is stored would count as newer than what comes; name a new store.collection, \
             or delete the old one",
            shorten(&recreated, ", ")
        ));
    }
    if !missing.is_empty() {
        sentences.push(format!(
            "the group has no committed offset for {} and kafka.on_missing_offset is \"error\"; \
             set it to \"earliest\" to begin at the oldest record",
            shorten(&missing, ", ")
        ));
    }
    SourceError::Fatal(sentences.join(". "))
}

/// The first of many names, and how many more partitions there are.
pub(crate) fn shorten(items: &[String], separator: &str) -> String {
    let named = items
        .iter()
        .take(NAMED_PARTITIONS)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(separator);
    match items.len().checked_sub(NAMED_PARTITIONS) {
        Some(more) if more > 0 => format!("{named}{separator}and {more} more partitions"),
        _ => named,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIEST: StartPolicy = StartPolicy {
        on_missing: OnMissingOffset::Earliest,
        accept_gap: false,
        bounded: false,
    };
    const LOG: LogRange = LogRange {
        low: 100,
        high: 200,
    };

    fn partition() -> TopicPartition {
        TopicPartition::new("news", 3)
    }

    fn decided(committed: Option<i64>, policy: StartPolicy) -> Result<i64, Refusal> {
        decide(&partition(), committed, LOG, Compared::Unknown, policy).map(|(start, _)| start)
    }

    #[test]
    fn goes_on_where_the_group_stopped() {
        for offset in [100, 150, 200] {
            assert_eq!(decided(Some(offset), EARLIEST), Ok(offset));
        }
    }

    #[test]
    fn a_group_that_never_committed_begins_at_the_oldest_or_not_at_all() {
        assert_eq!(decided(None, EARLIEST), Ok(100));
        let strict = StartPolicy {
            on_missing: OnMissingOffset::Error,
            ..EARLIEST
        };
        assert_eq!(decided(None, strict), Err(Refusal::Missing(partition())));
        assert!(
            refuse(&[Refusal::Missing(partition())], EARLIEST)
                .to_string()
                .contains("news[3]")
        );
    }

    #[test]
    fn an_expired_offset_is_refused_with_what_is_gone_and_what_accepts_it() {
        let refusal = decided(Some(40), EARLIEST).unwrap_err();
        let message = refuse(std::slice::from_ref(&refusal), EARLIEST).to_string();
        for part in ["news[3]", "60 records are gone", "run --accept-gap"] {
            assert!(message.contains(part), "{message}");
        }
        let bounded = StartPolicy {
            bounded: true,
            ..EARLIEST
        };
        let message = refuse(&[refusal], bounded).to_string();
        assert!(
            message.contains("`tcbert-worker backfill` with --accept-gap"),
            "{message}"
        );
        assert!(!message.contains("run --accept-gap"), "{message}");
    }

    #[test]
    fn an_accepted_gap_goes_on_at_the_oldest_record() {
        let accepting = StartPolicy {
            accept_gap: true,
            ..EARLIEST
        };
        let (start, gap) =
            decide(&partition(), Some(40), LOG, Compared::Unknown, accepting).unwrap();
        assert_eq!(start, 100);
        assert_eq!(gap.unwrap().wanted, 40);
    }

    #[test]
    fn offsets_that_begin_anew_are_refused_whatever_is_accepted() {
        let accepting = StartPolicy {
            accept_gap: true,
            ..EARLIEST
        };
        for policy in [EARLIEST, accepting] {
            let beyond = decided(Some(201), policy).unwrap_err();
            let message = refuse(&[beyond], policy).to_string();
            for part in ["news[3]", "recreated", "store.collection", "kafka.group_id"] {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[test]
    fn another_record_at_a_known_offset_is_refused_wherever_the_group_is() {
        let accepting = StartPolicy {
            accept_gap: true,
            ..EARLIEST
        };
        for policy in [EARLIEST, accepting] {
            for next in [None, Some(40), Some(150), Some(250)] {
                let other = Compared::Another(149);
                let refusal = decide(&partition(), next, LOG, other, policy).unwrap_err();
                let message = refuse(&[refusal], policy).to_string();
                for part in [
                    "149 of news[3]",
                    "another record",
                    "store.collection",
                    "group_id",
                ] {
                    assert!(message.contains(part), "{message}");
                }
            }
        }
        let same = decide(&partition(), Some(150), LOG, Compared::Same, EARLIEST);
        assert_eq!(same, Ok((150, None)));
    }

    #[test]
    fn a_long_list_is_cut() {
        let many: Vec<Refusal> = (0..20)
            .map(|n| Refusal::Missing(TopicPartition::new("news", n)))
            .collect();
        assert!(refuse(&many, EARLIEST).to_string().contains("and 12 more"));
    }
}
