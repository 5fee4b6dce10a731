//! Dead letters as JSON lines in a file, for bounded runs that have no topic to send them to.
//! A letter counts as kept once the file is synced; letters that come together share one sync.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crossbeam_channel::{Receiver, Sender, bounded};
use futures::future::BoxFuture;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::{DeadLetter, DeadLetterError, DeadLetterSink};
use crate::durable;

/// Letters that wait for the thread that writes.
const WAITING: usize = 256;
/// Pause between two attempts while the disk takes nothing.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

type Kept = oneshot::Sender<()>;

/// Appends letters to a file.
#[derive(Debug)]
pub struct FileDeadLetters {
    path: PathBuf,
    waiting: Sender<(Vec<u8>, Kept)>,
}

impl FileDeadLetters {
    /// Opens the file. With `resume` it is gone on with; otherwise one that holds letters is moved
    /// aside to the same name with the first free number behind it: the file holds the letters of
    /// one run, and no letter is ever removed.
    ///
    /// # Errors
    /// When the file cannot be made or opened.
    pub fn open(path: &Path, resume: bool) -> io::Result<Self> {
        if !resume && fs::metadata(path).is_ok_and(|file| file.len() > 0) {
            move_aside(path)?;
        }
        let mut file = open(path)?;
        end_last_line(&mut file, path)?;
        file.sync_all()?;
        let (sender, waiting) = bounded(WAITING);
        let path = path.to_owned();
        let written = path.clone();
        std::thread::Builder::new()
            .name("dead-letters".to_owned())
            .spawn(move || write_all(&mut file, &written, &waiting))?;
        Ok(Self {
            path,
            waiting: sender,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl DeadLetterSink for FileDeadLetters {
    fn send(&self, letter: DeadLetter) -> BoxFuture<'_, Result<(), DeadLetterError>> {
        Box::pin(async move {
            let gone = || DeadLetterError("the file of dead letters is closed".to_owned());
            let mut line = line_of(&letter).to_string().into_bytes();
            line.push(b'\n');
            let (kept, outcome) = oneshot::channel();
            let waiting = self.waiting.clone();
            tokio::task::spawn_blocking(move || waiting.send((line, kept)))
                .await
                .map_err(|_| gone())?
                .map_err(|_| gone())?;
            outcome.await.map_err(|_| gone())
        })
    }
}

/// Opens the file for lines at its end. A synced line is lost all the same where the file's name is.
fn open(path: &Path) -> io::Result<File> {
    let folder = path.parent().unwrap_or(Path::new(""));
    durable::create_folder(folder)?;
    let mut options = OpenOptions::new();
    let file = options.read(true).append(true).create(true).open(path)?;
    durable::sync_folder(folder)?;
    Ok(file)
}

/// Renames the file to the same name with the first free number behind it.
fn move_aside(path: &Path) -> io::Result<()> {
    let mut number = 1_u32;
    loop {
        let mut aside = path.as_os_str().to_owned();
        aside.push(format!(".{number}"));
        let aside = PathBuf::from(aside);
        if !aside.try_exists()? {
            return fs::rename(path, aside);
        }
        number += 1;
    }
}

/// A crash may have left half a line: what follows must not be glued to it.
fn end_last_line(file: &mut File, path: &Path) -> io::Result<()> {
    let content_ends = |bytes: &[u8]| bytes.last().is_none_or(|last| *last == b'\n');
    let length = fs::metadata(path)?.len();
    if length > 0 {
        use std::io::{Read, Seek, SeekFrom};
        let mut reader = File::open(path)?;
        reader.seek(SeekFrom::Start(length - 1))?;
        let mut last = [0];
        reader.read_exact(&mut last)?;
        if !content_ends(&last) {
            file.write_all(b"\n")?;
        }
    }
    Ok(())
}

/// Writes what waits, syncs once, and tells everybody; a full disk is waited for.
fn write_all(file: &mut File, path: &Path, waiting: &Receiver<(Vec<u8>, Kept)>) {
    while let Ok(first) = waiting.recv() {
        let batch: Vec<_> = std::iter::once(first).chain(waiting.try_iter()).collect();
        let bytes: Vec<u8> = batch.iter().flat_map(|(line, _)| line.clone()).collect();
        let mut said = false;
        while let Err(error) = restore(file, path).and_then(|()| append(file, &bytes)) {
            if !std::mem::replace(&mut said, true) {
                tracing::warn!(%error, "dead letters cannot be written; trying again");
            }
            std::thread::sleep(RETRY_PAUSE);
        }
        for (_, kept) in batch {
            // Whoever asked may have given up.
            let _ = kept.send(());
        }
    }
}

/// A file that somebody has removed still holds its dead letters: they go to a new one of its name.
fn restore(file: &mut File, path: &Path) -> io::Result<()> {
    if file.metadata()?.nlink() > 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), "the file of dead letters was removed; they are written again");
    let mut new = open(path)?;
    file.rewind()?;
    io::copy(file, &mut new)?;
    new.sync_all()?;
    *file = new;
    Ok(())
}

/// All of it or nothing: what a failed attempt left is cut off again.
fn append(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    let written = file.write_all(bytes).and_then(|()| file.sync_data());
    if written.is_err() {
        file.set_len(before)?;
    }
    written
}

fn line_of(letter: &DeadLetter) -> Value {
    let record = &letter.record;
    let partition = &record.position.partition;
    let mut line = Map::new();
    line.insert("origin".to_owned(), json!(&*partition.topic));
    if partition.partition >= 0 {
        line.insert("partition".to_owned(), json!(partition.partition));
    }
    line.insert("index".to_owned(), json!(record.position.offset));
    line.insert("stage".to_owned(), json!(letter.stage));
    line.insert("class".to_owned(), json!(letter.class));
    line.insert("message".to_owned(), json!(letter.message));
    line.insert("timestamp_ms".to_owned(), json!(record.timestamp_ms));
    add_bytes(&mut line, "key", record.key.as_deref());
    add_bytes(&mut line, "value", record.value.as_deref());
    if !record.headers.is_empty() {
        let headers = record.headers.iter().map(|header| {
            let mut entry = Map::new();
            entry.insert("name".to_owned(), json!(header.name));
            add_bytes(&mut entry, "value", header.value.as_deref());
            Value::Object(entry)
        });
        line.insert("headers".to_owned(), headers.collect());
    }
    Value::Object(line)
}

/// Text as it is; other bytes as base64 under the name with `_base64` behind it.
fn add_bytes(line: &mut Map<String, Value>, name: &str, bytes: Option<&[u8]>) {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => {}
        Some((Ok(text), _)) => {
            line.insert(name.to_owned(), json!(text));
        }
        Some((Err(_), bytes)) => {
            line.insert(format!("{name}_base64"), json!(STANDARD.encode(bytes)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::{Generation, RecordPosition, TopicPartition};
    use crate::source::SourceRecord;

    fn letter(index: i64, value: &[u8]) -> DeadLetter {
        DeadLetter {
            record: SourceRecord {
                position: RecordPosition {
                    partition: TopicPartition::new("file:a.jsonl", TopicPartition::NO_PARTITION),
                    offset: index,
                },
                generation: Generation(1),
                timestamp_ms: None,
                key: None,
                value: Some(value.to_vec()),
                headers: Vec::new(),
                fault: None,
            },
            stage: "decode".to_owned(),
            class: "invalid_json".to_owned(),
            message: "不是 JSON".to_owned(),
        }
    }

    fn lines(path: &Path) -> Vec<Value> {
        let text = fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap_or(Value::Null))
            .collect()
    }

    #[tokio::test]
    async fn letters_are_in_the_file_once_they_count_as_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("below/letters.jsonl");
        let sink = FileDeadLetters::open(&path, false).unwrap();
        let sent = (0..40).map(|n| sink.send(letter(n, if n == 3 { b"\xff" } else { b"{x" })));
        for outcome in futures::future::join_all(sent).await {
            outcome.unwrap();
        }
        let mut found = lines(&path);
        found.sort_by_key(|line| line["index"].as_i64());
        assert_eq!(found.len(), 40);
        assert_eq!(found[0]["value"], "{x");
        assert_eq!(found[0]["message"], "不是 JSON");
        assert_eq!(found[0]["origin"], "file:a.jsonl");
        assert_eq!(found[3]["value_base64"], STANDARD.encode(b"\xff"));
    }

    #[tokio::test]
    async fn a_run_goes_on_behind_half_a_line_and_a_new_one_begins_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letters.jsonl");
        fs::write(&path, "{\"index\":0}\n{\"ind").unwrap();
        let sink = FileDeadLetters::open(&path, true).unwrap();
        sink.send(letter(1, b"x")).await.unwrap();
        let found = lines(&path);
        assert_eq!(found.len(), 3);
        assert_eq!(found[2]["index"], 1);
        drop(sink);
        let sink = FileDeadLetters::open(&path, false).unwrap();
        sink.send(letter(7, b"x")).await.unwrap();
        assert_eq!(lines(&path).len(), 1);
        assert_eq!(lines(&folder.path().join("letters.jsonl.1")).len(), 3);
    }

    #[tokio::test]
    async fn dead_letters_outlive_the_name_of_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/dead.jsonl");
        let sink = FileDeadLetters::open(&path, false).unwrap();
        sink.send(letter(0, b"{x")).await.unwrap();
        fs::remove_dir_all(folder.path().join("state")).unwrap();
        sink.send(letter(1, b"{x")).await.unwrap();
        let found: Vec<_> = lines(&path)
            .iter()
            .map(|line| line["index"].clone())
            .collect();
        assert_eq!(found, [0, 1]);
    }

    #[tokio::test]
    async fn no_later_run_removes_a_letter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("letters.jsonl");
        for index in [1, 2] {
            let sink = FileDeadLetters::open(&path, false).unwrap();
            sink.send(letter(index, b"x")).await.unwrap();
        }
        // Runs without letters move nothing.
        drop(FileDeadLetters::open(&path, false).unwrap());
        drop(FileDeadLetters::open(&path, false).unwrap());
        let of_run = |name: &str| lines(&folder.path().join(name))[0]["index"].clone();
        assert_eq!(of_run("letters.jsonl.1"), 1);
        assert_eq!(of_run("letters.jsonl.2"), 2);
        assert!(lines(&path).is_empty());
    }
}
