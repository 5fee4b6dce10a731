//! Texts of others that need not be UTF-8: names of headers, metadata of commits. Brokers keep any
//! bytes there; rdkafka expects UTF-8, panics where it is not, and gives the bytes in no other way.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use rdkafka::topic_partition_list::TopicPartitionListElem;

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// What `read` gives; `None` where it panics, which is not reported.
pub(super) fn guarded<T>(read: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !READING.get() {
                report(info);
            }
        }));
    });
    READING.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(read));
    READING.set(false);
    outcome.ok()
}

/// The metadata of a commit; none where it is no text, which says as little.
pub(super) fn metadata<'a>(element: &'a TopicPartitionListElem<'_>) -> &'a str {
    guarded(|| element.metadata()).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_panics_gives_nothing_and_later_panics_are_reported() {
        assert_eq!(guarded(|| 7), Some(7));
        assert_eq!(guarded(|| -> u8 { panic!("never reported") }), None);
        assert!(!READING.get());
    }
}
