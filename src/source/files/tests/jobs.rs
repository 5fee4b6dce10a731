//! A job goes on where it was, and is the same job only as long as nothing about it changes.

use serde_json::json;

use super::*;

fn commit_all(source: &FilesSource, delivered: &Delivered) {
    let offsets: Vec<_> = delivered
        .records
        .iter()
        .map(|record| CommitOffset {
            partition: record.position.partition.clone(),
            next_offset: record.position.offset + 1,
            generation: record.generation,
        })
        .collect();
    source.commit(&offsets, CommitMode::Wait).unwrap();
}

#[test]
fn an_unfinished_job_goes_on_where_it_was() {
    let folder = Folder::new();
    let lines: String = (0..1000)
        .map(|i| format!("{{\"id\":\"l{i}\"}}\n"))
        .collect();
    let inputs = [
        folder.write("a.jsonl", &lines),
        folder.write("b.jsonl.gz", gzip(lines.as_bytes())),
        folder.write("c.csv", "id,title\n1,a\n2,b\n3,c\n"),
        parquet_file(&folder, "d.parquet", 4),
    ];
    let options = folder.options(&inputs);
    {
        let source = FilesSource::start(&options).unwrap();
        let delivered = Delivered::of(&source);
        assert_eq!(delivered.records.len(), 1000 + 1000 + 3 + 8);
        let next = [1000, 400, 2, 5];
        let offsets: Vec<_> = delivered
            .assigned
            .iter()
            .zip(next)
            .map(|(partition, next_offset)| CommitOffset {
                partition: partition.clone(),
                next_offset,
                generation: GENERATION,
            })
            .collect();
        source.commit(&offsets, CommitMode::Background).unwrap();
        let stale = CommitOffset {
            generation: Generation(9),
            next_offset: 999,
            ..offsets[1].clone()
        };
        source.commit(&[stale], CommitMode::Background).unwrap();
        assert!(!source.is_finished());
    }
    let source = FilesSource::start(&options).unwrap();
    let delivered = Delivered::of(&source);
    assert_eq!(delivered.assigned.len(), 3, "the first file is done");
    assert_eq!(delivered.values()[0], "{\"id\":\"l400\"}");
    assert_eq!(delivered.json()[600], json!({"id": "3", "title": "c"}));
    assert_eq!(delivered.json()[601]["id"], "p5");
    assert_eq!(delivered.records.len(), 600 + 1 + 3);
    let progress = source.progress();
    assert_eq!(progress.resumed_records, 1407);
    assert_eq!((progress.files_done, progress.files_total), (3, 3));
    assert_eq!(progress.records, 604);
    commit_all(&source, &delivered);
    source.close();
    assert!(source.is_finished());
    drop(source);
    assert_eq!(
        read(&folder, &inputs).records.len(),
        2011,
        "a finished job starts anew"
    );
}

#[test]
fn another_fingerprint_name_or_file_is_another_job() {
    let folder = Folder::new();
    let input = folder.write("a.jsonl", LINES);
    let options = folder.options(std::slice::from_ref(&input));
    let first = |options: &FilesOptions| {
        let source = FilesSource::start(options).unwrap();
        let delivered = Delivered::of(&source);
        let offset = CommitOffset {
            partition: delivered.assigned[0].clone(),
            next_offset: 1,
            generation: GENERATION,
        };
        source.commit(&[offset], CommitMode::Wait).unwrap();
        delivered.offsets()[0]
    };
    assert_eq!(first(&options), 0);
    assert_eq!(first(&options), 2);
    assert_eq!(
        first(&FilesOptions {
            fingerprint: "g".to_owned(),
            ..options.clone()
        }),
        0
    );
    assert_eq!(
        first(&FilesOptions {
            job: "other".to_owned(),
            ..options.clone()
        }),
        0
    );
    fs::write(&input, format!("{LINES}\n{{\"id\":\"d\"}}")).unwrap();
    assert_eq!(first(&options), 0, "the file has changed");
}

#[test]
fn a_job_is_worked_on_by_one_process() {
    let folder = Folder::new();
    let options = folder.options(&[folder.write("a.jsonl", LINES)]);
    let source = FilesSource::start(&options).unwrap();
    assert!(matches!(
        FilesSource::start(&options),
        Err(FilesError::Busy(_))
    ));
    drop(source);
    FilesSource::start(&options).unwrap();
}

#[test]
fn a_broken_state_is_named() {
    let folder = Folder::new();
    let options = folder.options(&[folder.write("a.jsonl", LINES)]);
    {
        let source = FilesSource::start(&options).unwrap();
        let delivered = Delivered::of(&source);
        let partition = delivered.assigned[0].clone();
        let offset = CommitOffset {
            partition,
            next_offset: 1,
            generation: GENERATION,
        };
        source.commit(&[offset], CommitMode::Wait).unwrap();
    }
    let mut states: Vec<_> = fs::read_dir(folder.path("state"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    states.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    });
    assert_eq!(states.len(), 1);
    fs::write(&states[0], "{").unwrap();
    let error = FilesSource::start(&options).unwrap_err();
    assert!(error.to_string().contains("nightly"), "{error}");
}
