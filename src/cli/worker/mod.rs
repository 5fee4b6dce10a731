//! What `run`, `backfill` and `doctor` share: whether the store is the one that the commits speak of, and how
//! the worker does.

pub(super) mod lost_store;
pub(super) mod parts;
pub(super) mod recreated_topic;
pub mod vitals;
