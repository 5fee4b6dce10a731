//! The consumer: the poll thread delivers records and changes of assignment, the check thread decides where
//! a partition begins, the commit thread commits, the progress thread looks at lag and brokers.

pub(super) mod assignment;
pub(super) mod check;
pub(super) mod commit_thread;
pub(super) mod committer;
pub(super) mod counters;
pub(super) mod damage;
pub(super) mod poll;
pub(super) mod progress;
pub(super) mod rebalance;
pub(super) mod shared;
pub(super) mod source;
