//! What a user may ask for: times or offsets. Pure.

use std::fmt::Write;

use jiff::tz::TimeZone;

use crate::kafka::backfill::Span;
use crate::source::timestamp;

/// What part of the topics is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeSpec {
    /// From the first record that is not older than `from_ms` up to the first that is not older than
    /// `to_ms`, in milliseconds since the epoch; absent: the oldest record, and the end of the topic at
    /// the start of the job.
    Times {
        /// Lower bound.
        from_ms: Option<i64>,
        /// Upper bound, not included.
        to_ms: Option<i64>,
    },
    /// These offsets; partitions that are not named are left out.
    Offsets(Vec<OffsetRange>),
}

/// Offsets of one partition as a user names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetRange {
    /// The topic; absent: the only one configured.
    pub topic: Option<String>,
    /// The partition.
    pub partition: i32,
    /// First offset; absent: the oldest there is.
    pub begin: Option<i64>,
    /// After the last offset; absent: the end at the start of the job.
    pub end: Option<i64>,
}

/// A range that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// No such form.
    #[error(
        "{0:?} is no range of offsets: write [TOPIC:]PARTITION:FROM..TO, such as 0:100..200 (200 is not \
         included; FROM or TO may be left out), several with commas between them"
    )]
    Form(String),
    /// The end before the beginning.
    #[error("{0:?} ends before it begins")]
    Backwards(String),
    /// One partition twice.
    #[error("{0:?} names a partition a second time")]
    Twice(String),
    /// A time that is none.
    #[error(
        "{0:?} is no time: write 2026-11-23T00:00:00Z, 2026-11-23 (midnight in decode.time_zone), or \
         seconds or milliseconds since 1970"
    )]
    Time(String),
}

/// A time of the command line, in milliseconds since the epoch; one that names no zone is in `zone`.
///
/// # Errors
/// When it is none.
pub fn parse_time(text: &str, zone: &TimeZone) -> Result<i64, RangeError> {
    timestamp::parse(text, zone)
        .map(|time| time.as_millisecond())
        .ok_or_else(|| RangeError::Time(text.to_owned()))
}

impl RangeSpec {
    /// Reads `[TOPIC:]PARTITION:FROM..TO,...`.
    ///
    /// # Errors
    /// When it has another form, or names a partition twice.
    pub fn parse_offsets(text: &str) -> Result<Self, RangeError> {
        let mut ranges: Vec<OffsetRange> = Vec::new();
        for item in text.split(',').map(str::trim) {
            let range = parse_item(item).ok_or_else(|| RangeError::Form(item.to_owned()))?;
            if let (Some(begin), Some(end)) = (range.begin, range.end)
                && end < begin
            {
                return Err(RangeError::Backwards(item.to_owned()));
            }
            let same = |other: &&OffsetRange| {
                other.topic == range.topic && other.partition == range.partition
            };
            if ranges.iter().find(same).is_some() {
                return Err(RangeError::Twice(item.to_owned()));
            }
            ranges.push(range);
        }
        Ok(Self::Offsets(ranges))
    }

    /// One text for one range, by which a job is known again.
    pub(super) fn canonical(&self) -> String {
        let number = |number: &Option<i64>| number.map_or_else(String::new, |n| n.to_string());
        match self {
            Self::Times { from_ms, to_ms } => {
                format!("times {}..{}", number(from_ms), number(to_ms))
            }
            Self::Offsets(ranges) => {
                let mut ranges: Vec<&OffsetRange> = ranges.iter().collect();
                ranges.sort_by_key(|range| (&range.topic, range.partition));
                let mut text = "offsets".to_owned();
                for range in ranges {
                    let topic = range.topic.as_deref().unwrap_or_default();
                    let (begin, end) = (number(&range.begin), number(&range.end));
                    let _ = write!(text, " {topic}:{}:{begin}..{end}", range.partition);
                }
                text
            }
        }
    }
}

fn parse_item(item: &str) -> Option<OffsetRange> {
    let (place, offsets) = item.rsplit_once(':')?;
    let (topic, partition) = match place.rsplit_once(':') {
        Some((topic, partition)) => (Some(topic), partition),
        None => (None, place),
    };
    if topic.is_some_and(str::is_empty) {
        return None;
    }
    let (begin, end) = offsets.split_once("..")?;
    let offset = |text: &str| match text {
        "" => Some(None),
        text => text.parse::<i64>().ok().filter(|n| *n >= 0).map(Some),
    };
    Some(OffsetRange {
        topic: topic.map(str::to_owned),
        partition: partition.parse().ok().filter(|number| *number >= 0)?,
        begin: offset(begin)?,
        end: offset(end)?,
    })
}

/// What the job reads of a partition that holds the offsets of `log`; `wanted` are its bounds as
/// far as they are known. The answer lies within the log and may be empty.
pub(super) fn clip(log: Span, begin: Option<i64>, end: Option<i64>) -> Span {
    let begin = begin
        .unwrap_or(log.begin)
        .clamp(log.begin, log.end.max(log.begin));
    let end = end.unwrap_or(log.end).min(log.end).max(begin);
    Span { begin, end }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(
        topic: Option<&str>,
        partition: i32,
        begin: Option<i64>,
        end: Option<i64>,
    ) -> OffsetRange {
        OffsetRange {
            topic: topic.map(str::to_owned),
            partition,
            begin,
            end,
        }
    }

    #[test]
    fn offsets_as_people_write_them() {
        let parsed = RangeSpec::parse_offsets("0:100..200, news:3:..5 ,2:7..,1:..").unwrap();
        assert_eq!(
            parsed,
            RangeSpec::Offsets(vec![
                range(None, 0, Some(100), Some(200)),
                range(Some("news"), 3, None, Some(5)),
                range(None, 2, Some(7), None),
                range(None, 1, None, None),
            ])
        );
        for wrong in [
            "", "0", "0:1-2", "x:1..2", "0:a..2", "-1:1..2", ":0:1..2", "0:-4..2",
        ] {
            assert!(
                matches!(RangeSpec::parse_offsets(wrong), Err(RangeError::Form(_))),
                "{wrong}"
            );
        }
        assert!(matches!(
            RangeSpec::parse_offsets("0:5..4"),
            Err(RangeError::Backwards(_))
        ));
        assert!(matches!(
            RangeSpec::parse_offsets("0:5..6,0:7..8"),
            Err(RangeError::Twice(_))
        ));
    }

    #[test]
    fn the_order_of_writing_does_not_make_another_job() {
        let one = RangeSpec::parse_offsets("0:1..2,1:3..4").unwrap();
        let other = RangeSpec::parse_offsets("1:3..4,0:1..2").unwrap();
        assert_eq!(one.canonical(), other.canonical());
        let more = RangeSpec::parse_offsets("1:3..5,0:1..2").unwrap();
        assert_ne!(one.canonical(), more.canonical());
    }

    #[test]
    fn times_as_people_write_them() {
        let utc = |text: &str| parse_time(text, &TimeZone::UTC);
        let midnight = utc("2026-11-23T00:00:00Z").unwrap();
        assert_eq!(utc("2026-11-23").unwrap(), midnight);
        assert_eq!(utc("2026-11-23T08:00:00+08:00").unwrap(), midnight);
        assert_eq!(utc(&midnight.to_string()).unwrap(), midnight);
        assert!(utc("yesterday").is_err());
        let shanghai = timestamp::zone("+08:00").unwrap();
        let local = parse_time("2026-11-23T08:00:00", &shanghai).unwrap();
        assert_eq!(local, midnight);
    }

    proptest! {
        #[test]
        fn a_range_lies_within_the_log(
            low in 0i64..1000, length in 0i64..1000,
            begin in prop::option::of(0i64..3000), end in prop::option::of(0i64..3000),
        ) {
            let log = Span { begin: low, end: low + length };
            let span = clip(log, begin, end);
            prop_assert!(log.begin <= span.begin && span.begin <= span.end && span.end <= log.end);
            for offset in log.begin..log.end {
                let wanted = begin.is_none_or(|b| offset >= b) && end.is_none_or(|e| offset < e);
                prop_assert_eq!(wanted, (span.begin..span.end).contains(&offset));
            }
        }
    }
}
