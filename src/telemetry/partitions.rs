//! The series of partitions, written by hand: those of the exporter never end, and a partition that is no
//! longer assigned has none.

use std::fmt::Write;

/// How far behind a partition is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionLag {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// Records that are not processed yet; `None` as long as no broker has said where the partition ends.
    pub records: Option<u64>,
    /// Whether records wait and none was processed for minutes.
    pub stalled: bool,
}

/// The series of `partitions` in Prometheus' text format.
pub(super) fn render(partitions: &[PartitionLag], text: &mut String) {
    type Value = fn(&PartitionLag) -> Option<u64>;
    let series: [(&str, &str, Value); 2] = [
        (
            "tcbert_lag_records",
            "records of a partition that are not processed yet",
            |lag| lag.records,
        ),
        (
            "tcbert_partition_stalled",
            "1 while records of a partition wait and none was processed for minutes",
            |lag| Some(u64::from(lag.stalled)),
        ),
    ];
    for (name, help, value) in series {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
        for partition in partitions.iter() {
            let (topic, number) = (escaped(&partition.topic), partition.partition);
            if let Some(value) = value(partition) {
                let _ = writeln!(
                    text,
                    "{name}{{topic=\"{topic}\",partition=\"{number}\"}} {value}"
                );
            }
        }
    }
}

/// The value of a label.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
