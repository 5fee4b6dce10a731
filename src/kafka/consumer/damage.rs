//! Which batch fails its checksum: the client says neither the partition nor the offset. A consumer of its
//! own reads what comes next in each partition that was being read.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::Offset;

use crate::document::RecordPosition;
use crate::kafka::client::Reporting;
use crate::kafka::consumer::progress::SourceStatus;
use crate::kafka::settings::KafkaSettings;

/// How long one partition is read, and all of them.
const READ_WITHIN: Duration = Duration::from_secs(5);
const SEARCH_WITHIN: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(50);

/// Looks for damaged batches beside the poll thread, one search at a time.
pub(in crate::kafka) struct Search {
    pub(in crate::kafka) settings: KafkaSettings,
    pub(in crate::kafka) status: Arc<Mutex<SourceStatus>>,
    running: Option<thread::JoinHandle<()>>,
}

impl Search {
    pub(in crate::kafka) fn new(settings: KafkaSettings, status: Arc<Mutex<SourceStatus>>) -> Self {
        Self {
            settings,
            status,
            running: None,
        }
    }

    /// Searches at `places`, where partitions go on, and tells `tell` which batch is damaged; readiness
    /// names it until the partition is past it.
    pub(in crate::kafka) fn begin(
        &mut self,
        mut places: Vec<RecordPosition>,
        tell: impl FnOnce(Finding) + Send + 'static,
    ) {
        if self.running.as_ref().is_some_and(|one| !one.is_finished()) {
            return;
        }
        let (settings, status) = (self.settings.clone(), Arc::clone(&self.status));
        let spawned = thread::Builder::new()
            .name("kafka-damage".to_owned())
            .spawn(move || {
                // Nothing is fetched of a partition that is at its end.
                places.sort_by_cached_key(|place| status.lock().is_at_end(place));
                let finding = find(&settings, &places).unwrap_or_else(|error| {
                    tracing::debug!(%error, "looking for a damaged batch");
                    Finding::Unknown
                });
                if let Finding::At(place) = &finding {
                    status.lock().damaged = Some(place.clone());
                }
                tell(finding);
            });
        match spawned {
            Ok(thread) => self.running = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread to look for the damaged batch"),
        }
    }
}

/// What a search has found.
pub(in crate::kafka) enum Finding {
    /// The batch at this position is damaged.
    At(RecordPosition),
    /// All batches that come next are sound by now.
    Sound,
    /// Not all could be read in time.
    Unknown,
}

/// Says that a batch is read again.
pub(in crate::kafka) fn log(finding: Finding) {
    match finding {
        Finding::At(RecordPosition { partition, offset }) => tracing::warn!(
            topic = %partition.topic,
            partition = partition.partition,
            offset,
            "a batch of records fails its checksum; it is read again"
        ),
        Finding::Sound => tracing::warn!(
            "a batch of records failed its checksum; read again, all partitions are sound"
        ),
        Finding::Unknown => tracing::warn!(
            "a batch of records fails its checksum; it is read again; which one it is was not found in time"
        ),
    }
}

/// Why the worker ends.
pub(in crate::kafka) fn last_words(finding: Finding) -> String {
    let place = match finding {
        Finding::At(RecordPosition { partition, offset }) => {
            format!(" of {partition} at offset {offset}")
        }
        Finding::Sound | Finding::Unknown => String::new(),
    };
    format!(
        "a batch of records{place} fails its checksum whenever it is read, and the client would skip it; check the \
         broker's disk (kafka-dump-log finds it) and the network"
    )
}

fn find(settings: &KafkaSettings, places: &[RecordPosition]) -> KafkaResult<Finding> {
    let Ok(mut config) = settings.consumer_config() else {
        return Ok(Finding::Unknown);
    };
    config.set("enable.partition.eof", "true");
    config.set("statistics.interval.ms", "0");
    let consumer: BaseConsumer<Reporting> = config.create_with_context(Reporting::default())?;
    let until = Instant::now() + SEARCH_WITHIN;
    let mut all_read = true;
    for place in places {
        if Instant::now() >= until {
            return Ok(Finding::Unknown);
        }
        match is_damaged(&consumer, place)? {
            Some(true) => return Ok(Finding::At(place.clone())),
            Some(false) => {}
            None => all_read = false,
        }
    }
    Ok(if all_read {
        Finding::Sound
    } else {
        Finding::Unknown
    })
}

/// Whether the batch that comes next fails its checksum; `None` where nothing was read in time.
fn is_damaged(
    consumer: &BaseConsumer<Reporting>,
    place: &RecordPosition,
) -> KafkaResult<Option<bool>> {
    let mut list = TopicPartitionList::new();
    let at = Offset::Offset(place.offset);
    list.add_partition_offset(&place.partition.topic, place.partition.partition, at)?;
    consumer.assign(&list)?;
    let until = Instant::now() + READ_WITHIN;
    while Instant::now() < until {
        match consumer.poll(POLL) {
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::BadMessage))) => {
                return Ok(Some(true));
            }
            Some(Ok(_) | Err(KafkaError::PartitionEOF(_))) => return Ok(Some(false)),
            Some(Err(error)) => tracing::debug!(%error, %place, "looking for a damaged batch"),
            None => {}
        }
    }
    Ok(None)
}
