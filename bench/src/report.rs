//! The report.

use crate::Directories;

pub(crate) fn write(directories: &Directories) {
    println!("{}", directories.report.display());
}
