//! Integration tests, one module a capability; one binary, so that the crate is linked once.

mod kafka_source;
mod pipeline;
mod process;
mod support;
mod tidy;
