//! Integration tests, one module a capability; one binary, so that the crate is linked once.

// Tests say what they expect by unwrapping it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
// What is skipped or measured is said on standard output.
#![allow(clippy::print_stdout)]
// One binary: what its modules share is reachable nowhere else.
#![allow(unreachable_pub)]

mod alerts;
mod apache_kafka;
mod authority;
mod backfill;
mod batches;
mod bulk;
mod dead_letter_faults;
mod dead_letters;
mod faults;
mod field;
mod fuzz;
mod goldens;
mod import_cycles;
mod interrupted_jobs;
mod kafka_reader;
mod kafka_real;
mod kafka_security;
mod kafka_source;
mod kill_points;
mod later_deletions;
mod ledger;
mod log_identity;
mod lost_store;
mod memory;
mod operations;
mod pipeline;
mod pipeline_faults;
mod prerequisites;
mod process;
mod processes;
mod progress;
mod proxy;
mod qdrant_server;
mod recreated;
mod samples;
mod scripted_source;
mod store_contract;
mod store_security;
mod stored_data;
mod support;
mod tidy;
mod versions;
mod wire;
