//! A topic that was deleted and created again: Kafka forgets the group's offsets with it, so
//! nothing but the store knows. What the store holds from beyond the end of a partition is of such
//! an earlier topic, and would win over what comes.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::document::RecordPosition;
use crate::kafka::CountStoredBeyond;
use crate::store::{PointFilter, Store};

/// Longest that a partition waits for the store, which counts without an index.
const WITHIN: Duration = Duration::from_secs(15);

/// Lets the source ask `store`. Has to be called within the runtime that the store uses.
pub(in crate::cli) fn count_stored_beyond(store: &Arc<dyn Store>) -> CountStoredBeyond {
    let (store, runtime) = (store.clone(), Handle::current());
    Arc::new(move |ends: Vec<RecordPosition>| {
        if ends.is_empty() {
            return Some(0);
        }
        let beyond = PointFilter {
            from_or_beyond: ends,
            ..PointFilter::default()
        };
        let counted = async { tokio::time::timeout(WITHIN, store.count(beyond)).await };
        match runtime.block_on(counted) {
            Ok(Ok(count)) => Some(count),
            Ok(Err(error)) => {
                tracing::debug!(%error, "what the store holds from beyond the end is not known");
                None
            }
            Err(_) => None,
        }
    })
}
