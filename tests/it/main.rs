//! Integration tests, one file a capability.

mod kafka_source;
