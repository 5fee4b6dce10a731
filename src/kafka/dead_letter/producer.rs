//! Sends dead letters: a letter counts as sent only when all replicas have it. What passes by
//! itself is tried again for as long as it takes; what is too large is cut and spooled whole.

use std::path::Path;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, FutureProducer, FutureRecord, Producer};
use rdkafka::util::Timeout;

use crate::backoff::Backoff;
use crate::kafka::client::{self, Reporting};
use crate::kafka::dead_letter::check::{self, Presence};
use crate::kafka::dead_letter::client_config::producer_config;
use crate::kafka::dead_letter::settings::DeadLetterSettings;
use crate::kafka::dead_letter::spool::Spool;
use crate::kafka::dead_letter::wire::{Envelope, Form, pack};
use crate::kafka::producer::client_headers;
use crate::kafka::settings::KafkaSettings;
use crate::source::{DeadLetter, DeadLetterError, DeadLetterSink};

/// First pause before another attempt; it doubles up to `dead_letter.retry_max_ms`.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

type Client = FutureProducer<Reporting>;

/// Sends letters to `kafka.dead_letter_topic`.
pub struct DeadLetterProducer {
    /// Made for the first letter: a client keeps connections and threads awake, and most workers never refuse a record.
    client: Mutex<Option<Client>>,
    config: ClientConfig,
    kafka: KafkaSettings,
    topic: String,
    connector: String,
    spool: Spool,
    cut_value_bytes: usize,
    retry_max: Duration,
}

/// What to do after an attempt that failed.
enum Next {
    /// The broker does not take a record of this size.
    Smaller,
    /// Trying again may help.
    Again(String),
    /// Trying again does not help.
    Never(String),
}

impl DeadLetterProducer {
    /// A producer for the configured topic. Does not wait for a broker.
    ///
    /// # Errors
    /// When a property is refused.
    pub fn start(
        kafka: &KafkaSettings,
        settings: &DeadLetterSettings,
    ) -> Result<Self, DeadLetterError> {
        let config = producer_config(kafka, settings)?;
        // What is wrong with the properties is said at start, not when the first letter waits.
        config
            .create::<BaseProducer>()
            .map_err(|error| refused(&error))?;
        Ok(Self {
            client: Mutex::new(None),
            config,
            kafka: kafka.clone(),
            topic: kafka.dead_letter_topic.clone(),
            connector: settings.connector_name.clone(),
            spool: Spool::new(Path::new(&settings.spool_dir), settings.spool_max_bytes),
            cut_value_bytes: settings.cut_value_bytes,
            retry_max: Duration::from_millis(settings.retry_max_ms),
        })
    }

    /// Checks that dead letters can be kept: the topic is there, or the broker makes it, and the
    /// spool folder takes files. Otherwise the first record that is rejected would block its
    /// partition for good.
    ///
    /// # Errors
    /// When the topic does not appear within ten seconds, no broker answers, or the folder cannot be
    /// written.
    pub async fn check(&self) -> Result<(), DeadLetterError> {
        let (config, kafka, spool) = (self.config.clone(), self.kafka.clone(), self.spool.clone());
        let checked = tokio::task::spawn_blocking(move || {
            spool
                .check()
                .map_err(|error| DeadLetterError(error.to_string()))?;
            match check::find_topic(&config, &kafka) {
                Ok(Presence::There) => Ok(()),
                Ok(Presence::Hidden(warning)) => {
                    tracing::warn!("{warning}");
                    Ok(())
                }
                Err(error) => Err(DeadLetterError(error.to_string())),
            }
        });
        checked.await.map_err(|error| {
            DeadLetterError(format!("the check of the dead letters ended: {error}"))
        })?
    }

    async fn deliver(&self, letter: DeadLetter) -> Result<(), DeadLetterError> {
        let mut form = Form::Whole;
        let mut backoff = Backoff::new(FIRST_PAUSE, self.retry_max);
        loop {
            let envelope = pack(&letter, &self.connector, &form);
            let Err(next) = self.attempt(&envelope).await else {
                return Ok(());
            };
            let reason = match next {
                Next::Smaller => match self.shrink(&letter, form.clone()).await? {
                    Ok(smaller) => {
                        form = smaller;
                        continue;
                    }
                    Err(reason) => reason,
                },
                Next::Again(reason) => reason,
                Next::Never(reason) => return Err(DeadLetterError(reason)),
            };
            let pause = backoff.pause();
            tracing::warn!(
                position = %letter.record.position,
                topic = self.topic,
                reason,
                pause_ms = pause.as_millis(),
                "a dead letter could not be sent yet"
            );
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends once, with the present time, and waits for all replicas.
    async fn attempt(&self, envelope: &Envelope) -> Result<(), Next> {
        let mut record = FutureRecord::<[u8], [u8]>::to(&self.topic);
        record.key = envelope.key.as_deref();
        record.payload = envelope.value.as_deref();
        record.headers = client_headers(&envelope.headers);
        let client = self.client().map_err(|error| Next::Never(error.0))?;
        // Room in the client's own queue is waited for as long as it takes: letters hold their
        // records' place in the pipeline's budget, so few can wait.
        match client.send(record, Timeout::Never).await {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(self.judge(&client, &error)),
        }
    }

    fn client(&self) -> Result<Client, DeadLetterError> {
        let mut client = self.client.lock();
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        Ok(client.insert(connect(&self.config)?).clone())
    }

    fn judge(&self, client: &Client, error: &KafkaError) -> Next {
        let Some(code) = error.rdkafka_error_code() else {
            return Next::Never(format!("dead letters cannot be sent: {error}"));
        };
        match code {
            // The latter where it is larger than a segment of the topic.
            RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge => {
                Next::Smaller
            }
            RDKafkaErrorCode::InvalidTimestamp => Next::Again(format!(
                "{error}: the topic {} rejects the present time; check this machine's clock and the \
                 topic's message.timestamp.before.max.ms and message.timestamp.after.max.ms",
                self.topic
            )),
            RDKafkaErrorCode::InvalidRecord => Next::Never(format!(
                "the topic {} does not take the letter: {error}; a compacted topic takes no records without a \
                 key, dead letters need one that deletes by age",
                self.topic
            )),
            // An idempotent producer that has lost its place takes no more records; a new one
            // begins anew. What was sent before is sent, so nothing is lost, at worst twice there.
            RDKafkaErrorCode::Fatal => self.renew(client, error),
            _ if client.client().fatal_error().is_some() => self.renew(client, error),
            _ if client::is_permanent(code) => Next::Never(format!(
                "dead letters cannot be sent to {}: {error}; the worker may need the right to write there",
                self.topic
            )),
            _ => Next::Again(error.to_string()),
        }
    }

    fn renew(&self, failed: &Client, error: &KafkaError) -> Next {
        // The next attempt makes a new one, unless another letter's attempt has done so by now.
        let mut current = self.client.lock();
        let native = failed.client().native_ptr();
        if matches!(&*current, Some(client) if client.client().native_ptr() == native) {
            *current = None;
        }
        Next::Again(format!("the producer was renewed: {error}"))
    }

    /// The next smaller form, once the whole record is in the spool. The inner error is why it is
    /// not there yet.
    async fn shrink(
        &self,
        letter: &DeadLetter,
        form: Form,
    ) -> Result<Result<Form, String>, DeadLetterError> {
        let position = &letter.record.position;
        match form {
            Form::Whole => {}
            Form::Cut { file, .. } => return Ok(Ok(Form::Bare { file })),
            Form::Bare { file } => {
                return Err(DeadLetterError(format!(
                    "the broker refuses even a letter without value for its size; the record {position} is \
                     whole in {file} of dead_letter.spool_dir, but {} takes no letter that says so",
                    self.topic
                )));
            }
        }
        let spool = self.spool.clone();
        let letter = letter.clone();
        let written = tokio::task::spawn_blocking(move || spool.write(&letter)).await;
        match written {
            Ok(Ok(file)) => Ok(Ok(Form::Cut {
                value_bytes: self.cut_value_bytes,
                file,
            })),
            Ok(Err(error)) => Ok(Err(error.to_string())),
            Err(error) => Ok(Err(format!("the spool's task ended: {error}"))),
        }
    }
}

impl DeadLetterSink for DeadLetterProducer {
    fn send(&self, letter: DeadLetter) -> BoxFuture<'_, Result<(), DeadLetterError>> {
        Box::pin(self.deliver(letter))
    }
}

fn connect(config: &ClientConfig) -> Result<Client, DeadLetterError> {
    config
        .create_with_context(Reporting::default())
        .map_err(|error| refused(&error))
}

fn refused(error: &KafkaError) -> DeadLetterError {
    let error = client::source_error("the dead-letter producer cannot be set up", error);
    DeadLetterError(error.to_string())
}
