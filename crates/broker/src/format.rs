//! The format of a data directory: directories of older brokers are brought up to date, and those
//! of newer ones are left alone.
//!
//! - Format 1 has no file that says so. Records keep the codec of the batch that they came in, and
//!   some of them can't be fetched.
//! - In format 2 every record is stored as it is read.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

use libsql::Connection;

use super::BrokerError;

/// The file with the number of the format.
const FILE: &str = "format";
const CURRENT: u32 = 2;
/// Whether there is anything to bring up to date, or the engine was stopped before it made its
/// tables.
const HAS_RECORDS: &str =
    "select count(*) from sqlite_master where type = 'table' and name in ('record', 'watermark')";
const TABLES: i64 = 2;
/// What makes records of format 1 readable: no codec and no common timestamp (of the attributes,
/// only the two bits about transactions are kept), no negative timestamps, and no records beyond
/// the end of their partition.
const HEAL: [&str; 3] = [
    "update record set attributes = attributes & 48 where attributes & ~48 <> 0",
    "update record set timestamp = 0 where timestamp < 0",
    "update watermark set high = (
        select max(offset_id) + 1 from record where record.topition = watermark.topition
     ) where high <= (
        select max(offset_id) from record where record.topition = watermark.topition
     )",
];

/// Prepares `directory` for the engine, whose file is `database`.
pub(super) async fn prepare(directory: &Path, database: &Path) -> Result<(), BrokerError> {
    let path = || directory.to_path_buf();
    let failed = |source| BrokerError::DataDir { path: path(), source };

    let file = directory.join(FILE);
    let found = match fs::read_to_string(&file) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let older = match found {
        None => true,
        Some(text) => match text.trim().parse::<u32>() {
            Ok(found) if found <= CURRENT => found < CURRENT,
            _ => {
                let found = text.trim().chars().take(20).collect();
                return Err(BrokerError::Version { path: path(), found });
            }
        },
    };

    if database.try_exists().map_err(failed)? {
        let updated = update(database, older).await;
        updated
            .map_err(|source| BrokerError::Unreadable { path: path(), source: source.into() })?;
    }
    if older {
        replace(&file, format!("{CURRENT}\n").as_bytes()).map_err(failed)?;
    }
    Ok(())
}

/// Reads the file, and brings its records up to date if they are `older`.
async fn update(database: &Path, older: bool) -> Result<(), libsql::Error> {
    let opened = libsql::Builder::new_local(database).build().await?;
    let connection = opened.connect()?;
    if !has_records(&connection).await? || !older {
        return Ok(());
    }

    let transaction = connection.transaction().await?;
    for statement in HEAL {
        transaction.execute(statement, ()).await?;
    }
    transaction.commit().await
}

async fn has_records(connection: &Connection) -> Result<bool, libsql::Error> {
    let mut rows = connection.query(HAS_RECORDS, ()).await?;
    let row = rows.next().await?;
    row.map_or(Ok(false), |row| Ok(row.get::<i64>(0)? == TABLES))
}

/// Replaces a file as a whole: after a crash or a power failure, it has either its old or its new
/// content.
pub(super) fn replace(path: &Path, content: &[u8]) -> io::Result<File> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");

    let mut file = File::create(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;

    // The new name must survive, too, where the file system can promise it.
    match File::open(directory)?.sync_all() {
        Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
        _ => Ok(file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(content: &str, expected: Result<(), &str>) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        fs::write(&file, content).unwrap();

        let prepared = prepare(directory.path(), &directory.path().join("broker.db")).await;
        match expected {
            Ok(()) => {
                prepared.unwrap();
                assert_eq!(fs::read_to_string(&file).unwrap(), "2\n");
            }
            Err(text) => {
                let error = prepared.unwrap_err().to_string();
                assert!(error.contains(text), "{error}");
                assert!(error.contains("FLEET-BROKER-VERSION"), "{error}");
                assert_eq!(fs::read_to_string(&file).unwrap(), content);
            }
        }
    }

    #[tokio::test]
    async fn only_known_formats_are_opened() {
        check("1\n", Ok(())).await;
        check("2\n", Ok(())).await;
        check("3\n", Err("\"3\"")).await;
        check("two", Err("\"two\"")).await;
        check("", Err("\"\"")).await;
    }

    #[tokio::test]
    async fn a_file_that_is_no_database_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let database = directory.path().join("broker.db");
        fs::write(&database, "not a database, although it is long enough for a header of one\n")
            .unwrap();
        let error = prepare(directory.path(), &database).await.unwrap_err().to_string();
        assert!(error.contains("FLEET-BROKER-DATA"), "{error}");
        assert!(!directory.path().join(FILE).exists());
    }

    /// A write that fails, here for want of a place for the temporary file, leaves what was there.
    #[test]
    fn a_failed_write_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(FILE);
        replace(&file, b"old").unwrap();

        fs::create_dir(file.with_extension("new")).unwrap();
        replace(&file, b"new").unwrap_err();
        assert_eq!(fs::read(&file).unwrap(), b"old");
    }
}
