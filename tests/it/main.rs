//! Integration tests, one module a capability; one binary, so that the crate is linked once.

mod goldens;
mod kafka_source;
mod pipeline;
mod process;
mod qdrant_server;
mod store_contract;
mod support;
mod tidy;
