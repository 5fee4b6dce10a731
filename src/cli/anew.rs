//! A topic that was deleted and created again: Kafka forgets the group's offsets with it, so nothing but the
//! store knows. Its offsets begin anew, and within a partition the offset says what is newer: what is stored of
//! the earlier life would win over what comes, in silence.

use std::sync::Arc;
use std::time::Duration;

use super::failure::Failure;
use crate::kafka::{KafkaSettings, ends_of_new_partitions};
use crate::store::{PointFilter, Store};

/// How often it is asked: between the two questions another group may add to topic and store.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(300);

/// Longest that the start is held up: the store counts without an index.
const WITHIN: Duration = Duration::from_secs(15);

/// Refuses to begin in partitions that the group has never committed where the store holds documents from
/// beyond their end. Where nobody can say in time, nothing is refused.
pub(super) async fn refuse_offsets_that_began_anew(
    settings: &KafkaSettings,
    store: &Arc<dyn Store>,
) -> Result<(), Failure> {
    match tokio::time::timeout(WITHIN, documents_from_beyond(settings, store)).await {
        Ok(Some(0)) => Ok(()),
        Ok(Some(found)) => Err(Failure::failed(format!(
            "the store holds {found} documents from beyond the end of {}: the topic was deleted and created again, \
             its offsets begin anew, and what is stored would count as newer than what comes; name a new \
             store.collection, or delete the old one",
            settings.topic
        ))),
        Ok(None) | Err(_) => {
            tracing::warn!(
                "whether the store holds documents of an earlier topic of this name is not known"
            );
            Ok(())
        }
    }
}

/// How many there are; `None` where that is not known.
async fn documents_from_beyond(settings: &KafkaSettings, store: &Arc<dyn Store>) -> Option<u64> {
    let mut found = None;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let kafka = settings.clone();
        let ends = tokio::task::spawn_blocking(move || ends_of_new_partitions(&kafka));
        let ends = match ends.await.ok()? {
            Ok(ends) if ends.is_empty() => return Some(0),
            Ok(ends) => ends,
            Err(error) => {
                // A cluster that is new has no coordinator of the group yet.
                tracing::debug!(%error, "where new partitions end is not known yet");
                continue;
            }
        };
        let beyond = PointFilter {
            from_or_beyond: ends,
            ..PointFilter::default()
        };
        match store.count(beyond).await {
            Ok(0) => return Some(0),
            Ok(count) => found = Some(count),
            Err(error) => {
                tracing::debug!(%error, "what the store holds from beyond them is not known");
                return None;
            }
        }
    }
    found
}
