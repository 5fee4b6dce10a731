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

/// The orders of a job's files; the job is finished then.
fn orders(source: &FilesSource) -> Vec<i64> {
    let delivered = Delivered::of(source);
    commit_all(source, &delivered);
    let orders = delivered
        .assigned
        .iter()
        .map(|partition| source.version_order(partition));
    orders.collect()
}

/// Commits the first record of the first file, so that the job is unfinished and has a state.
fn commit_one(source: &FilesSource) {
    let delivered = Delivered::of(source);
    let offset = CommitOffset {
        partition: delivered.assigned[0].clone(),
        next_offset: 1,
        generation: GENERATION,
    };
    source.commit(&[offset], CommitMode::Wait).unwrap();
}

#[test]
fn a_later_file_and_a_later_job_are_newer() {
    let folder = Folder::new();
    let inputs = [
        folder.write("a.jsonl", LINES),
        folder.write("b.jsonl", LINES),
    ];
    let options = folder.options(&inputs);
    let first = orders(&FilesSource::start(&options).unwrap());
    assert!(first[0] < first[1], "{first:?}");
    assert_eq!(first[0], options.now.as_second() << 20);
    assert!(first[1] < 1 << 53);
    // A second job in the same second, and one after the clock was set back.
    let second = orders(&FilesSource::start(&options).unwrap());
    assert!(first[1] < second[0], "{first:?} {second:?}");
    let earlier = FilesOptions {
        now: options.now - jiff::SignedDuration::from_hours(1),
        ..options
    };
    let third = orders(&FilesSource::start(&earlier).unwrap());
    assert!(second[1] < third[0], "{second:?} {third:?}");
}

#[test]
fn a_resumed_job_keeps_its_start() {
    let folder = Folder::new();
    let options = folder.options(&[folder.write("a.jsonl", LINES)]);
    let source = FilesSource::start(&options).unwrap();
    let partition = TopicPartition::clone(&source.shared.job.lock().unfinished()[0].1);
    let first = source.version_order(&partition);
    commit_one(&source);
    drop(source);
    let later = FilesOptions {
        now: options.now + jiff::SignedDuration::from_hours(9),
        ..options
    };
    let resumed = FilesSource::start(&later).unwrap();
    assert!(resumed.progress().resumed_records > 0);
    assert_eq!(resumed.version_order(&partition), first);
}

/// As commit 0425910 wrote it: without the job's start.
#[test]
fn a_state_of_an_earlier_version_is_resumed() {
    let folder = Folder::new();
    let options = folder.options(&[folder.write("a.jsonl", LINES)]);
    commit_one(&FilesSource::start(&options).unwrap());
    let state = fs::read_dir(folder.path("state"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|found| found == "json"))
        .unwrap();
    let path = folder.path("a.jsonl").display().to_string();
    let before = json!({
        "version": 1, "job": "nightly", "files": [{"path": path, "next": 2, "done": false}],
    });
    fs::write(&state, before.to_string()).unwrap();
    let later = FilesOptions {
        now: options.now + jiff::SignedDuration::from_hours(9),
        ..options
    };
    let source = FilesSource::start(&later).unwrap();
    let delivered = Delivered::of(&source);
    assert_eq!(delivered.offsets(), [2, 4]);
    let order = source.version_order(&delivered.assigned[0]);
    assert_eq!(order, later.now.as_second() << 20);
    // From now on the start is kept.
    let offset = CommitOffset {
        partition: delivered.assigned[0].clone(),
        next_offset: 3,
        generation: GENERATION,
    };
    source.commit(&[offset], CommitMode::Wait).unwrap();
    let after: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    assert_eq!(after["started"], later.now.as_second());
    assert_eq!(after["files"][0]["next"], 3);
}
