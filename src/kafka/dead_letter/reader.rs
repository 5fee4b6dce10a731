//! Reads the dead-letter topic back, from its beginning to the end it had at the start.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::Offset;

use crate::document::{Generation, RecordPosition, TopicPartition};
use crate::kafka::client::{self, Reporting};
use crate::kafka::consumer::poll::headers_of;
use crate::kafka::dead_letter::wire::StoredDeadLetter;
use crate::kafka::offsets;
use crate::kafka::settings::KafkaSettings;
use crate::source::{SourceError, SourceRecord};

/// Longest wait for the next letter before the broker counts as silent.
const SILENCE: Duration = Duration::from_secs(30);
const POLL_WAIT: Duration = Duration::from_millis(200);

/// Which letters are wanted; an empty filter wants all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Topic that the record came from.
    pub topic: Option<String>,
    /// Stage that refused it.
    pub stage: Option<String>,
    /// Short name of the reason.
    pub class: Option<String>,
    /// Key of the record.
    pub key: Option<String>,
    /// Part of the message.
    pub message: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
}

impl DeadLetterFilter {
    /// Whether a letter is wanted, its number aside.
    pub fn wants(&self, letter: &StoredDeadLetter) -> bool {
        let equals = |wanted: &Option<String>, found: &str| {
            wanted.as_ref().is_none_or(|wanted| wanted == found)
        };
        let topic = letter
            .origin
            .as_ref()
            .map(|origin| &*origin.partition.topic);
        equals(&self.topic, topic.unwrap_or_default())
            && equals(&self.stage, &letter.stage)
            && equals(&self.class, &letter.class)
            && equals(&self.key, &letter.key_text())
            && self
                .message
                .as_ref()
                .is_none_or(|part| letter.message.contains(part.as_str()))
    }
}

/// Reads every letter that `filter` wants and hands it to `visit`, which may end it.
///
/// # Errors
/// When the broker does not answer.
pub fn visit_dead_letters(
    kafka: &KafkaSettings,
    filter: &DeadLetterFilter,
    mut visit: impl FnMut(StoredDeadLetter) -> ControlFlow<()>,
) -> Result<(), SourceError> {
    let reader = Reader::open(kafka)?;
    let limit = filter.limit.unwrap_or(usize::MAX);
    let mut wanted = 0;
    if limit == 0 {
        return Ok(());
    }
    reader.read(|record| {
        let letter = StoredDeadLetter::parse(record);
        if !filter.wants(&letter) {
            return ControlFlow::Continue(());
        }
        wanted += 1;
        let flow = visit(letter);
        if wanted >= limit {
            return ControlFlow::Break(());
        }
        flow
    })
}

/// The letters that `filter` wants, all in memory; give it a limit.
///
/// # Errors
/// When the broker does not answer.
pub fn list_dead_letters(
    kafka: &KafkaSettings,
    filter: &DeadLetterFilter,
) -> Result<Vec<StoredDeadLetter>, SourceError> {
    let mut letters = Vec::new();
    visit_dead_letters(kafka, filter, |letter| {
        letters.push(letter);
        ControlFlow::Continue(())
    })?;
    Ok(letters)
}

/// A consumer that belongs to no group and commits nothing.
struct Reader {
    consumer: BaseConsumer<Reporting>,
    /// Offset after the last letter there was at the start, for partitions that have letters.
    ends: HashMap<i32, i64>,
    topic: String,
}

impl Reader {
    fn open(kafka: &KafkaSettings) -> Result<Self, SourceError> {
        let reporting = Reporting::default();
        let mut config = kafka.consumer_config()?;
        config.set("group.id", format!("{}-dead-letters", kafka.group_id));
        config.remove("group.instance.id");
        config.set("auto.offset.reset", "earliest");
        // What stands last may be a transaction's marker, which is never delivered.
        config.set("enable.partition.eof", "true");
        let failed = |what: &str, error| client::source_error(what, &error);
        let consumer: BaseConsumer<Reporting> = config
            .create_with_context(reporting.clone())
            .map_err(|error| failed("the kafka client cannot be set up", error))?;
        let topic = kafka.dead_letter_topic.clone();
        let metadata = client::metadata(&consumer, Some(&topic), &reporting.faults, kafka)?;
        let known = metadata.topics().iter().find(|known| known.name() == topic);
        if let Some(error) = known.and_then(|known| known.error()) {
            return Err(SourceError::Fatal(format!(
                "the dead-letter topic {topic} cannot be read: {}; check kafka.dead_letter_topic and the \
                 right to read there",
                RDKafkaErrorCode::from(error)
            )));
        }
        let partitions: Vec<TopicPartition> = known
            .map_or(&[][..], |known| known.partitions())
            .iter()
            .map(|found| TopicPartition::new(topic.as_str(), found.id()))
            .collect();
        let ranges = offsets::all_ranges(&consumer, &partitions)?;
        let mut list = TopicPartitionList::new();
        let mut ends = HashMap::new();
        for (partition, range) in ranges.iter().filter(|(_, range)| range.low < range.high) {
            let begin = Offset::Offset(range.low);
            list.add_partition_offset(&topic, partition.partition, begin)
                .map_err(|error| failed("the dead letters cannot be read", error))?;
            ends.insert(partition.partition, range.high);
        }
        if !ends.is_empty() {
            consumer
                .assign(&list)
                .map_err(|error| failed("the dead letters cannot be read", error))?;
        }
        Ok(Self {
            consumer,
            ends,
            topic,
        })
    }

    fn read(
        mut self,
        mut visit: impl FnMut(SourceRecord) -> ControlFlow<()>,
    ) -> Result<(), SourceError> {
        let mut last = Instant::now();
        while !self.ends.is_empty() {
            match self.consumer.poll(POLL_WAIT) {
                Some(Ok(message)) => {
                    last = Instant::now();
                    let (partition, offset) = (message.partition(), message.offset());
                    let end = self.ends.get(&partition).copied().unwrap_or_default();
                    if offset < end {
                        let record = SourceRecord {
                            position: RecordPosition {
                                partition: TopicPartition::new(self.topic.as_str(), partition),
                                offset,
                            },
                            generation: Generation(0),
                            timestamp_ms: message.timestamp().to_millis(),
                            key: message.key().map(<[u8]>::to_vec),
                            value: message.payload().map(<[u8]>::to_vec),
                            headers: headers_of(&message),
                            fault: None,
                        };
                        if visit(record).is_break() {
                            return Ok(());
                        }
                    }
                    if offset + 1 >= end {
                        self.ends.remove(&partition);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    self.ends.remove(&partition);
                }
                Some(Err(error)) => tracing::debug!(%error, "reading dead letters"),
                None => {}
            }
            if last.elapsed() > SILENCE {
                let text = format!("the broker sent no more of {} for too long", self.topic);
                return Err(SourceError::Transient(text));
            }
        }
        Ok(())
    }
}
