//! The record of ended jobs, in the columns of GNU parallel: what is written, and what an earlier run has left. Knows lines of a file, no
//! processes.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

const HEADER: &[u8] = b"Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n";

/// Which jobs of an earlier run are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resume {
    /// None: a new record replaces the old one.
    No,
    /// Those that ended.
    All,
    /// Those that succeeded.
    Succeeded,
}

/// The jobs that an earlier run has ended, by their numbers.
pub(crate) type Past = HashMap<u64, Ended>;

/// What is left of a job of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    succeeded: bool,
    command: u64,
}

/// What the joblog says of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It is to be run.
    New,
    /// It need not be run again.
    Done,
    /// The joblog has another command under this number: it belongs to another run.
    Other,
}

/// Whether the job of this number and command is to be run. `command`: `None` if it cannot be compared.
pub(crate) fn known(past: &Past, resume: Resume, seq: u64, command: Option<&[u8]>) -> Known {
    match past.get(&seq) {
        None => Known::New,
        Some(ended) if command.is_some_and(|command| hash(&flat(command)) != ended.command) => Known::Other,
        Some(ended) if ended.succeeded || resume == Resume::All => Known::Done,
        Some(_) => Known::New,
    }
}

/// One ended job.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) seq: u64,
    /// Seconds since 1970.
    pub(crate) started: f64,
    pub(crate) runtime: f64,
    pub(crate) output_bytes: u64,
    pub(crate) exitval: i32,
    pub(crate) signal: i32,
    pub(crate) command: &'a [u8],
}

impl Record<'_> {
    pub(crate) fn to_line(&self) -> Vec<u8> {
        let Record { seq, started, runtime, output_bytes, exitval, signal, command } = self;
        let mut line =
            format!("{seq}\t:\t{started:.3}\t{runtime:10.3}\t0\t{output_bytes}\t{exitval}\t{signal}\t").into_bytes();
        line.extend(flat(command));
        line.push(b'\n');
        line
    }
}

/// A command on one line, as GNU parallel does it.
fn flat(command: &[u8]) -> Vec<u8> {
    command.iter().map(|byte| if *byte == b'\n' { 0 } else { *byte }).collect()
}

fn hash(command: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    command.hash(&mut hasher);
    hasher.finish()
}

/// The file, to be written to.
#[derive(Debug)]
pub(crate) struct Joblog {
    path: PathBuf,
    file: File,
    /// A write failed, perhaps in the middle of a line: one more would make that line one that cannot be read.
    broken: bool,
}

impl Joblog {
    /// Opens it, locked against other runs, and says what it has of an earlier one.
    ///
    /// # Errors
    ///
    /// The message: it cannot be written, another run writes to it, it is no joblog.
    pub(crate) fn open(path: &Path, resume: Resume) -> Result<(Joblog, Past), String> {
        let complain = |why: &dyn std::fmt::Display| format!("joblog {}: {why}", path.display());
        let to_stdout = path.as_os_str() == "-";
        let file = if to_stdout {
            rustix::stdio::stdout().try_clone_to_owned().map(File::from)
        } else {
            OpenOptions::new().read(true).append(true).create(true).open(path)
        };
        let mut joblog = Joblog { path: path.to_owned(), file: file.map_err(|e| complain(&e))?, broken: false };
        // A pipe or a terminal cannot be locked, nor read back.
        let is_file = !to_stdout && joblog.file.metadata().map_err(|e| complain(&e))?.is_file();
        if is_file {
            flock(&joblog.file, FlockOperation::NonBlockingLockExclusive)
                .map_err(|_| complain(&"another run is writing to it"))?;
        }
        let mut past = Past::new();
        let length =
            if is_file && resume != Resume::No { joblog.read(&mut past).map_err(|e| complain(&e))? } else { 0 };
        if is_file {
            // What an interrupted write has left of a line: its job is run again.
            joblog.file.set_len(length).map_err(|e| complain(&e))?;
        }
        if length == 0 {
            joblog.file.write_all(HEADER).map_err(|e| complain(&e))?;
        }
        Ok((joblog, past))
    }

    /// Reads the earlier jobs; the length of all whole lines.
    fn read(&mut self, past: &mut Past) -> io::Result<u64> {
        let mut text = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut text)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        // Even the header may have been cut short.
        if whole == 0 && HEADER.starts_with(&text) {
            return Ok(0);
        }
        let mut lines = text[..whole].split_inclusive(|byte| *byte == b'\n');
        if lines.next() != Some(HEADER) {
            return Err(io::Error::other("this is not a joblog"));
        }
        for (index, line) in lines.enumerate() {
            let (seq, ended) =
                parse(line).ok_or_else(|| io::Error::other(format!("line {} is not a job's", index + 2)))?;
            past.insert(seq, ended);
        }
        Ok(whole as u64)
    }

    /// Adds a line, by one write.
    ///
    /// # Errors
    ///
    /// The message, once: from then on nothing is written any more.
    pub(crate) fn write(&mut self, line: &[u8]) -> Result<(), String> {
        if self.broken {
            return Ok(());
        }
        self.file.write_all(line).map_err(|error| {
            self.broken = true;
            format!("joblog {}: {error}", self.path.display())
        })
    }
}

/// A job's number and what became of it.
fn parse(line: &[u8]) -> Option<(u64, Ended)> {
    let mut columns = line.strip_suffix(b"\n")?.splitn(9, |byte| *byte == b'\t');
    let seq = number(columns.next()?)?;
    let exitval: i64 = number(columns.nth(5)?)?;
    let signal: i64 = number(columns.next()?)?;
    let command = columns.next()?;
    Some((seq, Ended { succeeded: exitval == 0 && signal == 0, command: hash(command) }))
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(seq: u64, exitval: i32, command: &[u8]) -> Vec<u8> {
        Record { seq, started: 1.5, runtime: 0.25, output_bytes: 3, exitval, signal: 0, command }.to_line()
    }

    #[test]
    fn a_record_has_the_columns_of_gnu_parallel() {
        assert_eq!(record(7, 1, b"echo 'a\nb'"), b"7\t:\t1.500\t     0.250\t0\t3\t1\t0\techo 'a\0b'\n");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let past: Past =
            [record(1, 0, b"a\tb\nc"), record(2, 3, b"x")].iter().map(|line| parse(line).unwrap()).collect();
        assert_eq!(known(&past, Resume::All, 1, Some(b"a\tb\nc")), Known::Done);
        assert_eq!(known(&past, Resume::All, 1, Some(b"a")), Known::Other);
        assert_eq!(known(&past, Resume::All, 2, None), Known::Done);
        assert_eq!(known(&past, Resume::Succeeded, 2, Some(b"x")), Known::New);
        assert_eq!(known(&past, Resume::All, 3, Some(b"y")), Known::New);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for line in
            ["", "\n", "1\t:\t1\t1\t0\t0\t0\t0\n", "x\t:\t1\t1\t0\t0\t0\t0\tcmd\n", "1\t:\t1\t1\t0\t0\t0\t0\tcmd"]
        {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
    }
}
