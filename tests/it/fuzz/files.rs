//! Files: whatever stands in one, reading it ends, in bounded records or with an error that names it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tcbert_worker::source::files::{BackfillSettings, FilesOptions, FilesSource};
use tcbert_worker::source::{Source, SourceEvent};

use super::fuzz;

const WORDS: [&str; 14] = [
    "\n",
    "\r\n",
    "\"",
    "\"\"",
    ",",
    ",,,,",
    "id,title\n",
    "{\"id\":1}\n",
    "[\n",
    "\u{feff}",
    "PAR1",
    "\u{1f}\u{8b}\u{8}",
    "\u{0}",
    "标题",
];

/// Largest record that the test allows.
const MAX_VALUE_BYTES: usize = 1024;

/// Longest that reading one small file may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The first byte of an input chooses the format, the rest is the file.
#[test]
fn files_of_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let names = [
        "a.jsonl",
        "a.csv",
        "a.tsv",
        "a.parquet",
        "a.jsonl.gz",
        "a.csv.zst",
    ];
    fuzz("files", &WORDS, |input| {
        let (choice, bytes) = input.split_first().unwrap_or((&0, &[]));
        let name = names[usize::from(*choice) % names.len()];
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let (records, failure) = read(path, folder.path().join("state"));
        if let Some(failure) = &failure {
            assert!(failure.contains(name), "{failure}");
        }
        format!("{name} {} {}", records.min(3), failure.is_some())
    });
}

fn read(path: PathBuf, state_dir: PathBuf) -> (usize, Option<String>) {
    let source = FilesSource::start(&FilesOptions {
        inputs: vec![path],
        job: "fuzz".to_owned(),
        fingerprint: String::new(),
        max_value_bytes: MAX_VALUE_BYTES,
        settings: BackfillSettings {
            state_dir,
            ..BackfillSettings::default()
        },
        time_zone: jiff::tz::TimeZone::UTC,
        now: jiff::Timestamp::UNIX_EPOCH,
    })
    .unwrap();
    let events = source.events();
    let mut count = 0;
    loop {
        match events.recv_timeout(PATIENCE).unwrap() {
            SourceEvent::Records(records) => {
                for record in &records {
                    assert!(record.value.as_ref().unwrap().len() <= MAX_VALUE_BYTES + 1);
                }
                count += records.len();
            }
            SourceEvent::Ended => return (count, None),
            SourceEvent::Failed(error) => return (count, Some(error.to_string())),
            SourceEvent::Assigned { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}
