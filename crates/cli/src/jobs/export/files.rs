//! The files of an export.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufWriter, ErrorKind, IsTerminal as _, Seek as _, SeekFrom, Write},
    path::Path,
};

use fleet_job::{export::ExportFormat, view::JobView};

use super::{Place, has_failed, resume, submitted_at};
use crate::error::CliError;

/// Where a job was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sink {
    Jobs,
    Errors,
}

/// The files of an export, and how far it has come.
pub(super) struct Output {
    format: ExportFormat,
    jobs: Target,
    errors: Option<Target>,
    /// How far the stream of jobs has come.
    place: Place,
}

/// A file, and how far it has come. A process that dies can leave one file behind the other.
struct Target {
    file: Box<dyn Write + Send>,
    place: Place,
}

impl Output {
    /// Opens the files: standard output and no file of errors by default.
    ///
    /// # Errors
    ///
    /// Returns an error that names the file, also if it exists and is not to be continued.
    pub(super) fn open(
        format: ExportFormat,
        (jobs, errors): (Option<&Path>, Option<&Path>),
        is_resumed: bool,
    ) -> Result<Self, CliError> {
        let failed = |path: &Path, error| {
            CliError::Io("could not open the file of an export", error_of(path, error))
        };
        // Before any is made.
        let existing = [jobs, errors].into_iter().flatten().find(|path| path.exists());
        if let Some(path) = existing.filter(|_| !is_resumed) {
            return Err(failed(path, ErrorKind::AlreadyExists.into()));
        }

        let open = |path: &Path| {
            Target::open(format, path, is_resumed).map_err(|error| failed(path, error))
        };
        let errors = errors.map(open).transpose()?;
        let jobs = match jobs {
            Some(path) => open(path)?,
            None => Target::stdout(format)?,
        };
        let place = match &errors {
            Some(errors) => jobs.place.shared_with(&errors.place),
            None => jobs.place.clone(),
        };
        Ok(Self { format, jobs, errors, place })
    }

    /// How far the export has come.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// Writes the next job, unless its file has it.
    ///
    /// # Errors
    ///
    /// Returns the error of the file.
    pub(super) fn write(&mut self, job: &JobView) -> Result<Option<Sink>, CliError> {
        let (sink, target) = match &mut self.errors {
            Some(errors) if has_failed(job) => (Sink::Errors, errors),
            _ => (Sink::Jobs, &mut self.jobs),
        };
        let (id, at) = (&job.event.job_id, submitted_at(job));
        let is_new = target.place.is_new(job);
        if is_new {
            write(&mut target.file, &self.format.line(job))?;
            target.place.pass(id, at);
        }

        self.place.pass(id, at);
        Ok(is_new.then_some(sink))
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    ///
    /// Returns the error of the file.
    pub(super) fn flush(&mut self) -> Result<(), CliError> {
        let targets = [Some(&mut self.jobs), self.errors.as_mut()];
        let flushed = targets.into_iter().flatten().try_for_each(|target| target.file.flush());
        flushed.map_err(|error| CliError::Io(WRITING, error))
    }
}

impl Target {
    fn stdout(format: ExportFormat) -> Result<Self, CliError> {
        let mut file: Box<dyn Write + Send> = match io::stdout().is_terminal() {
            true => Box::new(io::stdout()),
            false => Box::new(BufWriter::new(io::stdout())),
        };
        write(&mut file, &format.header())?;
        Ok(Self { file, place: Place::default() })
    }

    /// Opens a new file, or one that an earlier export has begun.
    fn open(format: ExportFormat, path: &Path, is_resumed: bool) -> io::Result<Self> {
        let found = match is_resumed {
            true => match fs::read(path) {
                Ok(bytes) => resume::read(format, &bytes)?,
                Err(error) if error.kind() == ErrorKind::NotFound => resume::Found::default(),
                Err(error) => return Err(error),
            },
            false => resume::Found::default(),
        };

        let mut options = OpenOptions::new();
        match is_resumed {
            true => options.create(true).truncate(false),
            // An earlier export is not overwritten by mistake.
            false => options.create_new(true),
        };
        let mut file = options.write(true).open(path)?;
        file.set_len(found.length)?;
        file.seek(SeekFrom::End(0))?;
        let mut file = BufWriter::new(file);
        if found.length == 0 {
            file.write_all(&format.header())?;
        }

        let mut place = Place::default();
        found.jobs.iter().for_each(|(id, submitted_at)| place.pass(id, *submitted_at));
        Ok(Self { file: Box::new(file), place })
    }
}

const WRITING: &str = "could not write the export";

fn write(file: &mut Box<dyn Write + Send>, bytes: &[u8]) -> Result<(), CliError> {
    file.write_all(bytes).map_err(|error| CliError::Io(WRITING, error))
}

fn error_of(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
