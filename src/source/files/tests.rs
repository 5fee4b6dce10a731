//! Every format in, every record accounted for, and a job that goes on where it was.

mod jobs;

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use ::parquet::basic::{Compression, GzipLevel, ZstdLevel};
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};

use super::*;
use crate::source::RecordFault;

/// When every job of these tests begins.
const NOW: &str = "2026-11-28T12:00:00Z";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    fn options(&self, inputs: &[PathBuf]) -> FilesOptions {
        FilesOptions {
            inputs: inputs.to_vec(),
            job: "nightly".to_owned(),
            fingerprint: "f".to_owned(),
            max_value_bytes: 1024,
            settings: BackfillSettings {
                timestamp_field: "/at".to_owned(),
                state_dir: self.path("state"),
            },
            time_zone: TimeZone::UTC,
            now: NOW.parse().unwrap(),
        }
    }
}

/// What a whole run delivers, in order.
#[derive(Debug, Default)]
struct Delivered {
    assigned: Vec<TopicPartition>,
    records: Vec<SourceRecord>,
    failure: Option<String>,
}

impl Delivered {
    fn of(source: &FilesSource) -> Self {
        let mut delivered = Self::default();
        let events = source.events();
        loop {
            match events.recv_timeout(Duration::from_secs(20)).unwrap() {
                SourceEvent::Assigned { partitions, .. } => delivered.assigned = partitions,
                SourceEvent::Records(records) => {
                    assert!(!records.is_empty());
                    delivered.records.extend(records);
                }
                SourceEvent::Ended => return delivered,
                SourceEvent::Failed(error) => {
                    delivered.failure = Some(error.to_string());
                    return delivered;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    fn values(&self) -> Vec<String> {
        let text = |record: &SourceRecord| {
            String::from_utf8_lossy(record.value.as_deref().unwrap()).into_owned()
        };
        self.records.iter().map(text).collect()
    }

    fn json(&self) -> Vec<Value> {
        self.values()
            .iter()
            .map(|text| serde_json::from_str(text).unwrap())
            .collect()
    }

    fn offsets(&self) -> Vec<i64> {
        self.records
            .iter()
            .map(|record| record.position.offset)
            .collect()
    }
}

fn read(folder: &Folder, inputs: &[PathBuf]) -> Delivered {
    Delivered::of(&FilesSource::start(&folder.options(inputs)).unwrap())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const LINES: &str = "{\"id\":\"a\",\"at\":\"2026-01-31T08:00:00Z\"}\r\n\n{\"id\":\"b\",\"at\":1769846400500}\n  \n{\"id\":\"c\"}";

#[test]
fn lines_of_every_compression_say_the_same() {
    let folder = Folder::new();
    let two_members = [gzip(&LINES.as_bytes()[..50]), gzip(&LINES.as_bytes()[50..])].concat();
    let zstd = zstd::encode_all(LINES.as_bytes(), 1).unwrap();
    for file in [
        folder.write("a.jsonl", LINES),
        folder.write("a.ndjson.gz", two_members),
        folder.write("a.json.zst", zstd),
    ] {
        let delivered = read(&folder, std::slice::from_ref(&file));
        assert_eq!(delivered.offsets(), [0, 2, 4], "{}", file.display());
        assert_eq!(delivered.values()[2], "{\"id\":\"c\"}");
        let ages: Vec<_> = delivered
            .records
            .iter()
            .map(|record| record.timestamp_ms)
            .collect();
        assert_eq!(
            ages,
            [Some(1_769_846_400_000), Some(1_769_846_400_500), None]
        );
        let partition = &delivered.records[0].position.partition;
        assert_eq!(&*partition.topic, format!("file:{}", file.display()));
        assert_eq!(partition.partition, TopicPartition::NO_PARTITION);
        assert_eq!(delivered.assigned, std::slice::from_ref(partition));
    }
}

#[test]
fn bad_lines_are_delivered_as_they_are_and_long_ones_bounded() {
    let folder = Folder::new();
    let mut bytes = b"not json\n\xff\xfe\n".to_vec();
    bytes.extend(vec![b'x'; 5_000_000]);
    bytes.extend(b"\n{\"id\":\"after\"}\n");
    let delivered = read(&folder, &[folder.write("a.jsonl", bytes)]);
    assert_eq!(delivered.failure, None);
    assert_eq!(
        delivered.records[0].value.as_deref(),
        Some(&b"not json"[..])
    );
    assert_eq!(
        delivered.records[1].value.as_deref(),
        Some(&b"\xff\xfe"[..])
    );
    assert_eq!(
        delivered.records[2].value.as_ref().map(Vec::len),
        Some(1025)
    );
    assert_eq!(delivered.values()[3], "{\"id\":\"after\"}");
}

#[test]
fn rows_of_a_csv_are_objects() {
    let folder = Folder::new();
    let csv = "\u{feff}id,title,,at\r\n1,\"逗号,与\"\"引号\"\"\",x,2026-01-31\r\n2,\"两\n行\",,\n\n3,too,few\n4,\"\"\"\",,1769846400\n";
    let delivered = read(&folder, &[folder.write("a.csv", csv)]);
    assert_eq!(delivered.offsets(), [0, 1, 3, 4]);
    assert_eq!(
        serde_json::from_str::<Value>(&delivered.values()[0]).unwrap(),
        json!({"id": "1", "title": "逗号,与\"引号\"", "column_3": "x", "at": "2026-01-31"})
    );
    assert_eq!(
        serde_json::from_str::<Value>(&delivered.values()[1]).unwrap(),
        json!({"id": "2", "title": "两\n行"})
    );
    assert_eq!(delivered.values()[2], "3,too,few");
    let faults: Vec<_> = delivered
        .records
        .iter()
        .map(|record| record.fault.as_ref())
        .collect();
    assert!(
        matches!(faults[..], [None, None, Some(RecordFault::NotOneValue(fault)), None] if fault.contains("3 cells, its header 4")),
        "{faults:?}"
    );
    assert_eq!(delivered.records[3].timestamp_ms, Some(1_769_846_400_000));
    let tsv = read(&folder, &[folder.write("a.tsv", "id\ttitle\n1\t标,题\n")]);
    assert_eq!(tsv.json(), [json!({"id": "1", "title": "标,题"})]);
}

#[test]
fn a_quote_that_never_closes_is_one_bounded_record() {
    let folder = Folder::new();
    let csv = format!("id,title\n1,\"open\n{}", "2,row\n".repeat(10_000));
    let delivered = read(&folder, &[folder.write("a.csv", csv)]);
    assert_eq!(delivered.records.len(), 1);
    assert_eq!(
        delivered.records[0].value.as_ref().map(Vec::len),
        Some(1025)
    );
}

/// Writes `groups` row groups of two rows each; ids count up.
fn parquet_file(folder: &Folder, name: &str, groups: i64) -> PathBuf {
    parquet_file_in(folder, name, groups, Compression::UNCOMPRESSED)
}

fn parquet_file_in(folder: &Folder, name: &str, groups: i64, compression: Compression) -> PathBuf {
    let schema = "message m { required binary id (UTF8); optional binary title (UTF8);
        required int64 at (TIMESTAMP(NANOS,true)); required double score; required boolean seen; }";
    let path = folder.path(name);
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder()
        .set_compression(compression)
        .build();
    let file = File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for group in 0..groups {
        let ids: Vec<ByteArray> = (0..2)
            .map(|row| ByteArray::from(format!("p{}", group * 2 + row).as_str()))
            .collect();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<ByteArrayType>()
            .write_batch(&ids, None, None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let title = [ByteArray::from("标题")];
        column
            .typed::<ByteArrayType>()
            .write_batch(&title, Some(&[1, 0]), None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let times = [1_769_846_400_123_000_000, 0];
        column
            .typed::<Int64Type>()
            .write_batch(&times, None, None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<DoubleType>()
            .write_batch(&[0.5, f64::NAN], None, None)
            .unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<BoolType>()
            .write_batch(&[true, false], None, None)
            .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
    path
}

#[test]
fn rows_of_a_parquet_file_are_objects() {
    let folder = Folder::new();
    let delivered = read(&folder, &[parquet_file(&folder, "a.parquet", 3)]);
    assert_eq!(delivered.failure, None);
    assert_eq!(delivered.offsets(), [0, 1, 2, 3, 4, 5]);
    assert_eq!(
        delivered.json()[..2],
        [
            json!({"id": "p0", "title": "标题", "at": "2026-01-31T08:00:00.123Z", "score": 0.5, "seen": true}),
            json!({"id": "p1", "title": null, "at": "1970-01-01T00:00:00Z", "score": null, "seen": false}),
        ]
    );
    assert_eq!(delivered.records[0].timestamp_ms, Some(1_769_846_400_123));
    assert_eq!(delivered.json()[5]["id"], "p5");
}

#[test]
fn ages_without_a_zone_are_in_the_configured_one() {
    let folder = Folder::new();
    let parquet = local_times(&folder, "c.parquet");
    let inputs = [
        folder.write("a.jsonl", "{\"id\":\"a\",\"at\":\"2026-01-31 08:00:00\"}\n"),
        folder.write("b.csv", "id,at\nb,2026-01-31 08:00\n"),
        parquet,
        folder.write(
            "d.jsonl",
            "{\"id\":\"d\",\"at\":\"2026-01-31T08:00:00[Asia/Shanghai]\"}\n",
        ),
    ];
    for (offset, expected) in [(0, "2026-01-31T08:00:00Z"), (8, "2026-01-31T00:00:00Z")] {
        let options = FilesOptions {
            time_zone: TimeZone::fixed(jiff::tz::offset(offset)),
            job: format!("zone-{offset}"),
            ..folder.options(&inputs)
        };
        let delivered = Delivered::of(&FilesSource::start(&options).unwrap());
        let ages: Vec<String> = delivered
            .records
            .iter()
            .map(|record| {
                let age = record.timestamp_ms.unwrap();
                jiff::Timestamp::from_millisecond(age).unwrap().to_string()
            })
            .collect();
        let named = "2026-01-31T00:00:00Z";
        assert_eq!(ages, [expected, expected, expected, named], "+{offset}");
        assert_eq!(delivered.json()[2]["at"], "2026-01-31T08:00:00");
        assert_eq!(
            delivered.json()[2]["more"]["at"],
            "2026-01-31T08:00:00",
            "nested times have no zone either"
        );
    }
}

/// One row whose times are not adjusted to UTC.
fn local_times(folder: &Folder, name: &str) -> PathBuf {
    let schema = parse_message_type(
        "message m { required int64 at (TIMESTAMP(MILLIS,false)); required group more { \
         required int64 at (TIMESTAMP(MICROS,false)); } }",
    )
    .unwrap();
    let path = folder.path(name);
    let properties = WriterProperties::builder().build();
    let file = File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema.into(), properties.into()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for time in [1_769_846_400_000, 1_769_846_400_000_000] {
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int64Type>()
            .write_batch(&[time], None, None)
            .unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    path
}

#[test]
fn a_parquet_file_may_be_compressed() {
    let folder = Folder::new();
    let plain = read(&folder, &[parquet_file(&folder, "plain.parquet", 2)]);
    for compression in [
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ] {
        let file = parquet_file_in(&folder, "compressed.parquet", 2, compression);
        let delivered = read(&folder, &[file]);
        assert_eq!(delivered.values(), plain.values(), "{compression}");
    }
}

#[test]
fn damaged_files_fail_with_their_name_after_what_is_sound() {
    let folder = Folder::new();
    let sound = parquet_file(&folder, "a.parquet", 3);
    let bytes = fs::read(&sound).unwrap();
    let mut hits = 0;
    for at in (0..bytes.len()).step_by(31) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0xff;
        let path = folder.write("damaged.parquet", damaged);
        // Whatever was hit: records or one error that names the file, never a panic or a hang.
        if let Some(message) = read(&folder, std::slice::from_ref(&path)).failure {
            assert!(message.contains("damaged.parquet"), "{message}");
            hits += 1;
        }
    }
    assert!(hits > 0);
    let gz = gzip(&"{\"id\":1}\n".repeat(20_000).into_bytes());
    let cut = folder.write("cut.jsonl.gz", &gz[..gz.len() / 2]);
    let delivered = read(&folder, &[cut]);
    assert!(delivered.failure.unwrap().contains("cut.jsonl.gz"));
    assert!(!delivered.records.is_empty());
    let array = read(
        &folder,
        &[folder.write("array.json", "[\n{\"id\":1},\n{\"id\":2}\n]\n")],
    );
    assert!(array.failure.unwrap().contains("jq"));
    let empty = read(&folder, &[folder.write("empty.csv", "")]);
    assert!(empty.failure.unwrap().contains("header"));
}

#[test]
fn what_is_appended_later_belongs_to_a_later_job() {
    let folder = Folder::new();
    let line = "{\"id\":\"a\"}\n";
    let path = folder.write("a.jsonl", line.repeat(200_000));
    let source = FilesSource::start(&folder.options(std::slice::from_ref(&path))).unwrap();
    // The reader waits for room in the channel long before the end of the file.
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(line.repeat(1000).as_bytes()).unwrap();
    let delivered = Delivered::of(&source);
    assert_eq!(delivered.records.len(), 200_000);
    let progress = source.progress();
    assert_eq!(progress.bytes_done, progress.bytes_total);
}

#[test]
fn a_stop_ends_the_reading_although_nobody_takes_the_events() {
    let folder = Folder::new();
    let path = folder.write("a.jsonl", "{\"id\":\"a\"}\n".repeat(100_000));
    let source = FilesSource::start(&folder.options(&[path])).unwrap();
    while source.progress().records == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    source.stop();
    source.close();
    assert!(source.progress().records < 10_000);
    assert!(!source.is_finished());
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    assert_eq!(BackfillSettings::default().violations(), []);
    let wrong = BackfillSettings {
        timestamp_field: "at".to_owned(),
        state_dir: PathBuf::new(),
    };
    assert_eq!(wrong.violations().len(), 2);
}
