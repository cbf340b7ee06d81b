//! The file of the audit log: one line of JSON per record.
//!
//! A thread of its own writes, many lines at a time. It opens the file anew when another one has
//! taken its name, so that tools that rotate logs need no signal.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use fleet_access::AuditRecord;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use crate::{AuditError, KEEP_LIMIT, state::SinkState};

/// The most records that wait to be written. Later ones are gaps.
const MAX_WAITING: usize = 10_000;
/// The most lines that are written at once.
const MAX_BATCH: usize = 1_000;
/// How often to try again to hand over a record that must be kept.
const RETRY_INTERVAL: std::time::Duration = std::time::Duration::from_millis(10);

/// Appends records to a file.
#[derive(Debug)]
pub(crate) struct FileSink {
    path: PathBuf,
    lines: SyncSender<Line>,
    state: Arc<SinkState>,
}

/// Something for the thread that writes.
#[derive(Debug)]
struct Line {
    /// The record with its line's end; empty to learn that all before it are written.
    text: String,
    /// Whom to tell once it is on the disk, or why it is not.
    kept: Option<oneshot::Sender<Result<(), String>>>,
}

impl FileSink {
    pub(crate) fn open(path: &Path) -> Result<Self, AuditError> {
        let file = |error| AuditError::File { path: path.to_owned(), error };
        let state = Arc::new(SinkState::new("file"));
        let mut writer = Writer::open(path, Arc::clone(&state)).map_err(file)?;

        let (lines, received) = sync_channel(MAX_WAITING);
        let run = move || writer.run(&received);
        let thread = thread::Builder::new().name("audit".to_owned());
        thread.spawn(run).map_err(AuditError::Thread)?;
        Ok(Self { path: path.to_owned(), lines, state })
    }

    pub(crate) fn record(&self, record: &AuditRecord) {
        let line = Line { text: line_of(record), kept: None };
        if self.lines.try_send(line).is_err() {
            self.state.note_gaps(1, "too many records wait to be written");
        }
    }

    pub(crate) async fn keep(&self, record: &AuditRecord) -> Result<(), String> {
        self.hand_over(line_of(record)).await.map_err(|(reason, is_counted)| {
            if !is_counted {
                self.state.note_gaps(1, &reason);
            }
            format!("{}: {reason}", self.path.display())
        })
    }

    /// Waits until the records so far are written.
    pub(crate) async fn flush(&self) {
        // There is no record that could be missing.
        _ = self.hand_over(String::new()).await;
    }

    /// Waits until a line is on the disk. An error says whether the thread that writes has counted
    /// it as a gap.
    async fn hand_over(&self, text: String) -> Result<(), (String, bool)> {
        let deadline = Instant::now() + KEEP_LIMIT;
        let (kept, is_kept) = oneshot::channel();
        let mut line = Line { text, kept: Some(kept) };
        while let Err(error) = self.lines.try_send(line) {
            line = match error {
                TrySendError::Full(line) if Instant::now() < deadline => line,
                TrySendError::Full(_) => {
                    return Err(("too many records wait to be written".to_owned(), false));
                }
                TrySendError::Disconnected(_) => {
                    return Err(("the thread that writes it has ended".to_owned(), false));
                }
            };
            sleep(RETRY_INTERVAL).await;
        }

        match timeout_at(deadline, is_kept).await {
            Ok(Ok(result)) => result.map_err(|reason| (reason, true)),
            Ok(Err(_)) => Err(("the thread that writes it has ended".to_owned(), false)),
            // The thread counts it when it comes to it.
            Err(_) => Err((format!("it was not written within {KEEP_LIMIT:?}"), true)),
        }
    }
}

fn line_of(record: &AuditRecord) -> String {
    let mut text = record.to_line();
    text.push('\n');
    text
}

/// Writes lines to the file of this name.
#[derive(Debug)]
struct Writer {
    path: PathBuf,
    file: File,
    /// Whether the last line may be incomplete.
    is_torn: bool,
    state: Arc<SinkState>,
}

impl Writer {
    fn open(path: &Path, state: Arc<SinkState>) -> io::Result<Self> {
        let (file, is_torn) = open(path)?;
        Ok(Self { path: path.to_owned(), file, is_torn, state })
    }

    /// Writes what is received until the sink is dropped.
    fn run(&mut self, lines: &Receiver<Line>) {
        while let Ok(first) = lines.recv() {
            let mut batch = vec![first];
            batch.extend(lines.try_iter().take(MAX_BATCH - 1));
            self.write(batch);
        }
    }

    fn write(&mut self, batch: Vec<Line>) {
        let records = batch.iter().filter(|line| !line.text.is_empty()).count() as u64;
        let must_last = batch.iter().any(|line| line.kept.is_some());
        let result = self.append(&batch, must_last).map_err(|error| error.to_string());
        match &result {
            Ok(()) => self.state.note_kept(records),
            Err(reason) => self.state.note_gaps(records, reason),
        }
        for kept in batch.into_iter().filter_map(|line| line.kept) {
            // Whoever waited may have gone away.
            _ = kept.send(result.clone());
        }
    }

    fn append(&mut self, batch: &[Line], must_last: bool) -> io::Result<()> {
        self.follow_rotation()?;
        let mut text: String = batch.iter().map(|line| line.text.as_str()).collect();
        if text.is_empty() {
            return Ok(());
        }

        if self.is_torn {
            text.insert(0, '\n');
        }
        // Until the whole text is written.
        self.is_torn = true;
        self.file.write_all(text.as_bytes())?;
        self.is_torn = false;

        // Pipes and terminals can't be synchronized.
        if must_last && self.file.metadata()?.is_file() {
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// Reopens the path if the log was rotated: another file, or none, has its name now.
    fn follow_rotation(&mut self) -> io::Result<()> {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let named = std::fs::metadata(&self.path).map(identity);
        if named.is_ok_and(|named| self.file.metadata().map(identity).is_ok_and(|own| own == named))
        {
            return Ok(());
        }
        match open(&self.path) {
            Ok((file, is_torn)) => (self.file, self.is_torn) = (file, is_torn),
            // The file that is open is better than none.
            Err(error) => tracing::debug!(%error, "could not reopen the rotated audit log"),
        }
        Ok(())
    }
}

/// Opens a file to append to it, and returns whether its last line is incomplete, as after a power
/// failure. A new one can be read by its owner only.
fn open(path: &Path) -> io::Result<(File, bool)> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok((file, false));
    }

    // Whoever may write a log need not be allowed to read it.
    let mut last = [0];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut last, metadata.len() - 1));
    Ok((file, read.is_ok() && last != *b"\n"))
}

#[cfg(test)]
mod tests {
    use fleet_access::{Action, Context, Principal, Resource, Rules};
    use fleet_job::time::Timestamp;

    use super::*;

    fn record(number: i64) -> AuditRecord {
        let (principal, resource) = (Principal::local(), Resource::default());
        let decision =
            Rules::default().decide(&principal, Action::CallTool, &resource, &Context::default());
        let time = Timestamp::from_millis_clamped(number);
        AuditRecord::of_decision(time, &principal, Action::CallTool, &resource, &decision)
    }

    fn read(path: &Path) -> Vec<AuditRecord> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn writer(path: &Path) -> Writer {
        Writer::open(path, Arc::new(SinkState::new("file"))).unwrap()
    }

    fn line(number: i64) -> Line {
        Line { text: line_of(&record(number)), kept: None }
    }

    #[tokio::test]
    async fn records_are_lines_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let sink = FileSink::open(&path).unwrap();
        for number in 0..100 {
            sink.record(&record(number));
        }
        sink.keep(&record(100)).await.unwrap();

        let expected: Vec<_> = (0..=100).map(record).collect();
        assert_eq!(read(&path), expected);
        let mode = std::fs::metadata(&path).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "others on the machine need not know who does what");
    }

    #[test]
    fn a_rotated_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("audit.jsonl"), dir.path().join("audit.jsonl.1"));
        let mut writer = writer(&path);
        writer.append(&[line(1)], false).unwrap();
        std::fs::rename(&path, &old).unwrap();
        writer.append(&[line(2)], false).unwrap();
        assert_eq!((read(&old), read(&path)), (vec![record(1)], vec![record(2)]));

        std::fs::remove_file(&path).unwrap();
        writer.append(&[line(3)], true).unwrap();
        assert_eq!(read(&path), [record(3)]);
    }

    #[test]
    fn a_line_after_a_torn_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut writer = writer(&path);
        writer.file.write_all(b"{\"time\":\"20").unwrap();
        writer.is_torn = true;
        writer.append(&[line(2)], false).unwrap();
        assert_eq!(read(&path), [record(2)]);

        // Another process has been killed while it wrote.
        writer.file.write_all(b"{\"time\":\"20").unwrap();
        let mut another = self::writer(&path);
        another.append(&[line(3)], false).unwrap();
        assert_eq!(read(&path), [record(2), record(3)]);
    }

    #[tokio::test]
    async fn a_full_disk_is_a_gap_and_not_a_wait() {
        // Opening it works; every write fails for want of space.
        let sink = FileSink::open(Path::new("/dev/full")).unwrap();
        let refusal = sink.keep(&record(1)).await.unwrap_err();
        assert!(refusal.starts_with("/dev/full: ") && refusal.contains("space"), "{refusal}");
        sink.record(&record(2));
        sink.flush().await;
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let error = FileSink::open(Path::new("/proc/none/audit")).unwrap_err();
        assert!(error.to_string().contains("/proc/none/audit"), "{error}");
    }
}
