//! Headers of dead letters: whoever wrote them, reading gives a letter whose own parts are kept.

use tcbert_worker::document::{Generation, RecordPosition, TopicPartition};
use tcbert_worker::kafka::{DeadLetterFilter, StoredDeadLetter};
use tcbert_worker::source::{Header, SourceRecord};

use super::fuzz;

const WORDS: [&str; 18] = [
    "__connect.errors.topic: news\n",
    "__connect.errors.partition: 3\n",
    "__connect.errors.offset: 12\n",
    "__connect.errors.offset: -1\n",
    "__connect.errors.exception.class.name: invalid_json\n",
    "__connect.errors.exception.message: m\n",
    "__connect.errors.stage: decode\n",
    "__connect.errors.timestamp: 1700000000000\n",
    "__connect.errors.timestamp: -1\n",
    "99999999999999999999",
    "\n",
    ":",
    "x: y\n",
    "__connect.errors.",
    "../../etc",
    "\u{0}",
    "\u{202e}",
    "标题",
];

/// An input is header lines; what follows an empty line is the value.
#[test]
fn headers_of_dead_letters() {
    fuzz("dead_letter_headers", &WORDS, |input| {
        let end = input.windows(2).position(|pair| pair == b"\n\n");
        let (lines, value) = end.map_or((input, None), |end| {
            (&input[..end], Some(&input[end + 2..]))
        });
        let headers: Vec<_> = lines
            .split(|byte| *byte == b'\n')
            .map(|line| {
                let at = line.iter().position(|byte| *byte == b':');
                Header {
                    name: String::from_utf8_lossy(&line[..at.unwrap_or(line.len())]).into_owned(),
                    value: at.map(|at| line[at + 1..].trim_ascii_start().to_vec()),
                }
            })
            .collect();
        let record = SourceRecord {
            position: RecordPosition {
                partition: TopicPartition::new("letters", 0),
                offset: 5,
            },
            generation: Generation(1),
            timestamp_ms: Some(1),
            key: (input.len() % 2 == 1).then(|| input.iter().take(9).copied().collect()),
            value: value.map(<[u8]>::to_vec),
            headers,
            fault: None,
        };
        let letter = StoredDeadLetter::parse(record.clone());
        assert_eq!(letter.position, record.position);
        assert_eq!((&letter.key, &letter.value), (&record.key, &record.value));
        assert!(
            record.headers.starts_with(&letter.headers),
            "its own headers come first, unchanged"
        );
        if let Some(origin) = &letter.origin {
            assert!(origin.offset >= 0 && origin.partition.partition >= 0);
            assert!(!origin.partition.topic.is_empty());
        }
        assert!(letter.timestamp_ms.is_none_or(|ms| ms >= 0));
        let _ = DeadLetterFilter::default().wants(&letter);
        assert!(
            !letter.origin().is_empty() && !letter.key_text().is_empty()
                || letter.key == Some(Vec::new())
        );
        format!(
            "{} {} {} {} {}",
            letter.origin.is_some(),
            letter.stage.is_empty(),
            letter.class.is_empty(),
            letter.cut.is_some(),
            letter.headers.len().min(4)
        )
    });
}
