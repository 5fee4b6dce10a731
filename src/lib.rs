//! tcbert-worker turns a stream of documents into tagged, searchable vectors.
//!
//! The modules stand in the order in which data flows; each imports only from those above it:
//!
//! ```text
//! Kafka topic -> decode -> prompt + tokenise -> batch -> ONNX Runtime -> score topics + pool embedding -> Qdrant collection -> commit
//! ```
//!
//! The invariants of the whole stand in `ARCHITECTURE.md`.

mod backoff;
pub mod keys;
mod digest;
mod durable;
pub mod document;
pub mod telemetry;
pub mod source;
pub mod watermark;
pub mod kafka;
pub mod decode;
pub mod taxonomy;
pub mod tokenize;
pub mod batch;
pub mod model;
pub mod score;
pub mod store;
pub mod pipeline;
pub mod settings;
pub mod assemble;
pub mod bench;
pub mod cli;
