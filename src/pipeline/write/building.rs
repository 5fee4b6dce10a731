//! How much is built at once. What is in flight is held as the bytes of its records, which the budget counts; a
//! point with many small attributes takes twenty times as much. Knows no store.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of the points that are built at the same time, at most; a larger one is built alone.
const MOST_BUILT_BYTES: usize = 32 * 1024 * 1024;

/// What one permit stands for.
const PERMIT_BYTES: usize = 1024;

const PERMITS: usize = MOST_BUILT_BYTES / PERMIT_BYTES;

/// See the module.
#[derive(Debug)]
pub(in crate::pipeline) struct Building(Arc<Semaphore>);

impl Default for Building {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(PERMITS)))
    }
}

impl Building {
    /// Waits until so many bytes may be built; the room is free again when the permit is dropped.
    pub(in crate::pipeline) async fn room_for(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = bytes.div_ceil(PERMIT_BYTES).clamp(1, PERMITS);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        // Never closed.
        self.0.clone().acquire_many_owned(permits).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_larger_than_all_room_is_built_alone() {
        let building = Building::default();
        let small = building.room_for(10).await;
        let huge = building.room_for(usize::MAX);
        tokio::pin!(huge);
        let waits = tokio::time::timeout(Duration::from_millis(20), &mut huge).await;
        assert!(waits.is_err(), "beside another");
        drop(small);
        let huge = huge.await;
        assert!(huge.is_some());
        let beside = tokio::time::timeout(Duration::from_millis(20), building.room_for(10)).await;
        assert!(beside.is_err(), "beside the huge one");
        drop(huge);
        assert!(building.room_for(10).await.is_some());
    }
}
