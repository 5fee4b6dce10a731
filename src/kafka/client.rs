//! What every Kafka client of the worker shares: its log lines, its last fault, and what an error
//! means for whoever waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::producer::{DeliveryResult, ProducerContext};
use rdkafka::statistics::Statistics;

use crate::kafka::settings::KafkaSettings;
use crate::source::SourceError;

/// How long to listen for why nothing answers.
const FAULTS_WAIT: Duration = Duration::from_millis(100);
/// How long one question for metadata may take before it is listened why nothing answers.
const METADATA_TIMEOUT: Duration = Duration::from_millis(1500);

/// The last fault that a client spoke of, for messages that say why nothing answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Faults(Arc<Mutex<Option<Fault>>>);

/// A fault in the client's own words.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) code: Option<RDKafkaErrorCode>,
    pub(super) reason: String,
}

impl Faults {
    fn note(&self, fault: Fault) {
        let mut last = self.0.lock();
        // "all brokers down" says less than the fault that led to it.
        let says_less = fault.code == Some(RDKafkaErrorCode::AllBrokersDown);
        if !says_less || last.is_none() {
            *last = Some(fault);
        }
    }

    pub(super) fn last(&self) -> Option<Fault> {
        self.0.lock().clone()
    }

    /// The last fault as the end of a sentence.
    pub(super) fn describe(&self) -> String {
        self.last()
            .map_or_else(|| "no broker answered".to_owned(), |fault| fault.reason)
    }
}

/// The context of clients that need nothing but their log and their faults kept.
#[derive(Debug, Clone, Default)]
pub(super) struct Reporting {
    pub(super) faults: Faults,
}

impl ClientContext for Reporting {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        report(&self.faults, &error, reason);
    }

    fn stats(&self, _: Statistics) {}
}

impl ConsumerContext for Reporting {}

/// For producers that only ask.
impl ProducerContext for Reporting {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// Hands a line of the client's log on. What the client calls an error it tries again, so it is a
/// warning here; what ends the worker is said where that is decided.
pub(super) fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: "librdkafka", facility, message, "kafka client");
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::debug!(target: "librdkafka", facility, message, "kafka client");
        }
        RDKafkaLogLevel::Debug => {
            tracing::trace!(target: "librdkafka", facility, message, "kafka client");
        }
    }
}

/// Keeps a fault that the client reports.
pub(super) fn report(faults: &Faults, error: &KafkaError, reason: &str) {
    tracing::debug!(target: "librdkafka", %error, reason, "kafka client reports a fault");
    faults.note(Fault {
        code: error.rdkafka_error_code(),
        reason: reason.to_owned(),
    });
}

/// Whether trying again cannot help: a matter of rights, credentials or settings.
pub(super) fn is_permanent(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::Fatal
            | Code::Authentication
            | Code::SaslAuthenticationFailed
            | Code::UnsupportedSASLMechanism
            | Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::InvalidTopic
            | Code::InvalidGroupId
            | Code::InvalidSessionTimeout
            | Code::InconsistentGroupProtocol
            | Code::FencedInstanceId
            | Code::UnsupportedVersion
            | Code::UnsupportedForMessageFormat
            | Code::SSL
            | Code::InvalidArgument
    )
}

/// What the cluster says of `topic`, or of all topics, asked until `kafka.connect_timeout_ms` is over.
/// Each attempt is short, so that a fault that no waiting repairs is told at once.
///
/// # Errors
/// Fatal when no broker responds, or rejects us.
pub(super) fn metadata<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: Option<&str>,
    faults: &Faults,
    settings: &KafkaSettings,
) -> Result<Metadata, SourceError> {
    let deadline = Instant::now() + settings.connect_timeout();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match consumer.fetch_metadata(topic, left.min(METADATA_TIMEOUT)) {
            Ok(metadata) => return Ok(metadata),
            Err(error) => error,
        };
        listen(consumer);
        if let Some(refused) = refusal(faults, settings) {
            return Err(refused);
        }
        if Instant::now() >= deadline {
            return Err(unreachable(&error, faults, settings));
        }
    }
}

/// Listens for why nothing answers. Faults arrive with the poll, among log lines that it hides; a
/// consumer without subscription delivers nothing else.
pub(super) fn listen<C: ConsumerContext>(consumer: &BaseConsumer<C>) {
    let until = Instant::now() + FAULTS_WAIT;
    while Instant::now() < until {
        consumer.poll(FAULTS_WAIT / 10);
    }
}

/// What to say where a broker refuses us, which no waiting mends.
pub(super) fn refusal(faults: &Faults, settings: &KafkaSettings) -> Option<SourceError> {
    let fault = faults.last()?;
    fault.code.is_some_and(is_permanent).then(|| {
        SourceError::Fatal(format!(
            "kafka refuses the connection: {}; check kafka.properties (security.protocol, sasl.*, \
             ssl.*) and kafka.brokers = {}",
            fault.reason, settings.brokers
        ))
    })
}

/// What to say where nobody answered within `kafka.connect_timeout_ms`.
pub(super) fn unreachable(
    error: &KafkaError,
    faults: &Faults,
    settings: &KafkaSettings,
) -> SourceError {
    if let Some(refused) = refusal(faults, settings) {
        return refused;
    }
    let reason = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::OperationTimedOut)
        | None => faults.describe(),
        Some(_) => error.to_string(),
    };
    SourceError::Fatal(format!(
        "no kafka broker answered at kafka.brokers = {} within {} ms: {reason}; is the address right, \
         is the broker up, does it need security.protocol in kafka.properties?",
        settings.brokers, settings.connect_timeout_ms
    ))
}

/// An error of the client as whoever waits must take it. `doing` begins the sentence.
pub(super) fn source_error(doing: &str, error: &KafkaError) -> SourceError {
    let text = format!("{doing}: {error}");
    match error.rdkafka_error_code() {
        Some(code) if is_permanent(code) => SourceError::Fatal(text),
        Some(_) => SourceError::Transient(text),
        None => match error {
            KafkaError::Canceled | KafkaError::NoMessageReceived => SourceError::Transient(text),
            KafkaError::ClientConfig(_, description, key, _) => {
                // The value is left out: it may be a secret.
                SourceError::Fatal(format!("{doing}: kafka property {key}: {description}"))
            }
            _ => SourceError::Fatal(text),
        },
    }
}
