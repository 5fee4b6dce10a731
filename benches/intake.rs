//! What comes before the text stages costs: reading files, decoding records. `cargo bench --bench intake`.

// What cannot be set up cannot be measured.
#![allow(clippy::expect_used)]

use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tcbert_worker::decode::{DecodeSettings, Decoder};
use tcbert_worker::document::{Generation, RecordPosition, TopicPartition};
use tcbert_worker::source::files::{BackfillSettings, FilesOptions, FilesSource};
use tcbert_worker::source::{Source, SourceEvent, SourceRecord};

const LINES: usize = 50_000;
const LINE: &str = "{\"id\":\"n-1\",\"title\":\"城市更新让老街区焕发新活力，居民家门口有了新公园\",\"published_at\":\"2026-01-31T08:00:00+08:00\"}\n";
const ROW: &str =
    "n-1,城市更新让老街区焕发新活力，居民家门口有了新公园,2026-01-31T08:00:00+08:00\n";

fn record(value: &str) -> SourceRecord {
    SourceRecord {
        position: RecordPosition {
            partition: TopicPartition::new("news", 0),
            offset: 0,
        },
        generation: Generation(1),
        timestamp_ms: None,
        key: Some(b"n-1".to_vec()),
        value: Some(value.as_bytes().to_vec()),
        headers: Vec::new(),
        fault: None,
    }
}

fn decode(criterion: &mut Criterion) {
    let decoder = Decoder::new(&DecodeSettings::default()).expect("the defaults");
    let article = format!(
        r#"{{"id":"n-1","title":"标题","text":"{}","views":1}}"#,
        "正文内容。".repeat(200)
    );
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    for (name, value) in [
        ("title", LINE.trim_end()),
        ("1,000 characters", article.as_str()),
    ] {
        let record = record(value);
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(decoder.decode(black_box(&record))));
        });
    }
    group.finish();
}

/// Reads a file to its end; the number of its records.
fn read(file: &Path, folder: &Path) -> usize {
    let source = FilesSource::start(&FilesOptions {
        inputs: vec![file.to_owned()],
        job: "bench".to_owned(),
        fingerprint: "bench".to_owned(),
        max_value_bytes: 1_048_576,
        settings: BackfillSettings {
            timestamp_field: "/published_at".to_owned(),
            state_dir: folder.join("state"),
        },
        time_zone: jiff::tz::TimeZone::UTC,
        now: jiff::Timestamp::UNIX_EPOCH,
    })
    .expect("a job over one file");
    let events = source.events();
    let mut records = 0;
    loop {
        match events.recv().expect("an end") {
            SourceEvent::Records(more) => records += more.len(),
            SourceEvent::Ended => return records,
            _ => {}
        }
    }
}

fn files(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, bytes: &[u8]| -> PathBuf {
        let path = folder.path().join(name);
        fs::write(&path, bytes).expect("a file");
        path
    };
    let lines = LINE.repeat(LINES);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(lines.as_bytes()).expect("memory");
    let inputs = [
        write("a.jsonl", lines.as_bytes()),
        write("b.jsonl.gz", &gzip.finish().expect("memory")),
        write(
            "c.jsonl.zst",
            &zstd::encode_all(lines.as_bytes(), 3).expect("memory"),
        ),
        write(
            "d.csv",
            format!("id,title,published_at\n{}", ROW.repeat(LINES)).as_bytes(),
        ),
    ];
    let mut group = criterion.benchmark_group("files");
    group.throughput(Throughput::Elements(LINES as u64));
    for input in &inputs {
        let name = input
            .extension()
            .map(|name| name.display().to_string())
            .unwrap_or_default();
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(read(input, folder.path()), LINES));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).sample_size(10);
    targets = decode, files
}
criterion_main!(benches);
