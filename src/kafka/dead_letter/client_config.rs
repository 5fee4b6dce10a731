//! How the producer of dead letters is configured.

use rdkafka::ClientConfig;

use crate::kafka::dead_letter::settings::DeadLetterSettings;
use crate::kafka::settings::KafkaSettings;
use crate::source::DeadLetterError;

/// What the user may override for the producer.
const PRODUCER_DEFAULTS: &[(&str, &str)] = &[
    // A dead letter larger than this is sent alone, so that one rejected for its size takes no other
    // with it.
    ("batch.size", "65536"),
    // The broker's bound decides, not the client's.
    ("message.max.bytes", "1000000000"),
    ("linger.ms", "5"),
    ("compression.type", "zstd"),
    // Keys go where Java's clients put them.
    ("partitioner", "murmur2_random"),
];

/// The client's configuration.
///
/// # Errors
/// When a property is refused.
pub(super) fn producer_config(
    kafka: &KafkaSettings,
    settings: &DeadLetterSettings,
) -> Result<ClientConfig, DeadLetterError> {
    let mut config = kafka
        .client_config(&kafka.properties.connection(), PRODUCER_DEFAULTS)
        .map_err(|error| DeadLetterError(error.to_string()))?;
    settings
        .properties
        .apply(&mut config)
        .map_err(|reason| DeadLetterError(format!("dead_letter.properties needs {reason}")))?;
    config.set("enable.idempotence", "true");
    config.set("acks", "all");
    // Zero: until it arrives.
    config.set("message.timeout.ms", "0");
    Ok(config)
}
