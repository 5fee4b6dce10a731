//! What the worker says of itself: log lines, metrics, and the small server that shows them.
//! Knows names and numbers; must not know any stage. The pipeline is what records.

mod admin;
mod health;
mod log_limit;
mod logging;
mod metrics;
mod partitions;

pub use admin::{AdminError, AdminServer, AdminSettings};
pub use health::{Health, Part};
pub use log_limit::LogLimit;
pub use logging::{LogError, LogFormat, LogSettings, init_logging};
pub use metrics::{Metrics, Outcome, Stage};
pub use partitions::PartitionLag;
