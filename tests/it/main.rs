//! Integration tests, one module a capability; one binary, so that the crate is linked once.

mod dead_letters;
mod fuzz;
mod goldens;
mod kafka_source;
mod pipeline;
mod process;
mod support;
mod tidy;
