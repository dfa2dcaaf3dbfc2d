//! Where arguments come from: the command line, files, standard input read by a thread of its own. Knows no jobs.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;
use std::vec::IntoIter;

use super::voice;
use super::wake::Waker;

/// How much is read of an input at once.
const READ_BYTES: usize = 64 << 10;
/// How many read batches wait for the jobs that use them: an endless input is read no further.
const BATCHES_MAX: usize = 2;
/// The longest line that is kept; no command line takes as much.
const LINE_MAX_BYTES: usize = 4 << 20;

/// A line of input: its text, or how long it was if that was too much.
pub(crate) type Line = Result<OsString, u64>;

/// What an input has to give.
#[derive(Debug)]
pub(crate) enum Next {
    /// The arguments of one job.
    Arguments(Vec<OsString>),
    /// A line of so many bytes, more than anything can be run with.
    TooLong(u64),
    /// Nothing yet; the waker will tell.
    Pending,
    End,
}

/// The arguments of all jobs, one job at a time.
#[derive(Debug)]
pub(crate) struct Input {
    source: Source,
    /// How many arguments a job takes; those of several sources count as one.
    batch: usize,
    skips_blank: bool,
    gathered: Vec<OsString>,
    too_long: Option<u64>,
    ended: bool,
}

#[derive(Debug)]
enum Source {
    Product(Product),
    Lines(Lines),
}

impl Input {
    pub(crate) fn new(source: Sources, batch: usize, skips_blank: bool) -> Input {
        let source = match source {
            Sources::Groups(groups) => Source::Product(Product::new(groups)),
            Sources::Lines(lines) => Source::Lines(lines),
        };
        Input { source, batch: batch.max(1), skips_blank, gathered: Vec::new(), too_long: None, ended: false }
    }

    /// The next job's arguments.
    ///
    /// # Errors
    ///
    /// The input could not be read any further.
    pub(crate) fn next(&mut self) -> io::Result<Next> {
        if let Some(bytes) = self.too_long.take() {
            return Ok(Next::TooLong(bytes));
        }
        // Only lines, which are one argument each, are ever gathered over several calls.
        let mut rows = self.gathered.len();
        while rows < self.batch && !self.ended {
            match self.source.next()? {
                Row::Some(row) if self.skips_blank && row.iter().all(is_blank) => {}
                Row::Some(row) => {
                    self.gathered.extend(row);
                    rows += 1;
                }
                Row::TooLong(bytes) if self.gathered.is_empty() => return Ok(Next::TooLong(bytes)),
                Row::TooLong(bytes) => {
                    self.too_long = Some(bytes);
                    break;
                }
                Row::Pending => return Ok(Next::Pending),
                Row::End => self.ended = true,
            }
        }
        if self.gathered.is_empty() { Ok(Next::End) } else { Ok(Next::Arguments(std::mem::take(&mut self.gathered))) }
    }

    /// How many jobs there will be, if that is known before they are read.
    pub(crate) fn total(&self) -> Option<u64> {
        match &self.source {
            Source::Product(product) => Some(product.total().div_ceil(self.batch as u64)),
            _ => None,
        }
    }
}

fn is_blank(argument: &OsString) -> bool {
    argument.as_encoded_bytes().trim_ascii().is_empty()
}

enum Row {
    Some(Vec<OsString>),
    TooLong(u64),
    Pending,
    End,
}

impl Source {
    fn next(&mut self) -> io::Result<Row> {
        match self {
            Source::Product(product) => Ok(product.next().map_or(Row::End, Row::Some)),
            Source::Lines(lines) => lines.next(),
        }
    }
}

// ── several sources ──

/// The rows of one source; linked sources make rows of several columns.
type Group = Vec<Vec<OsString>>;

/// Every combination of the rows of some groups, the last one changing fastest.
#[derive(Debug)]
struct Product {
    groups: Vec<Group>,
    /// Which row of each group is next; `None`: no combination is left.
    at: Option<Vec<usize>>,
}

impl Product {
    fn new(groups: Vec<Group>) -> Product {
        let at = groups.iter().all(|group| !group.is_empty()).then(|| vec![0; groups.len()]);
        Product { groups, at }
    }

    fn total(&self) -> u64 {
        self.groups.iter().fold(1, |total: u64, group| total.saturating_mul(group.len() as u64))
    }

    fn next(&mut self) -> Option<Vec<OsString>> {
        let at = self.at.as_mut()?;
        let row = self.groups.iter().zip(&*at).flat_map(|(group, row)| group[*row].clone()).collect();
        for (place, group) in at.iter_mut().zip(&self.groups).rev() {
            *place += 1;
            if *place < group.len() {
                return Some(row);
            }
            *place = 0;
        }
        self.at = None;
        Some(row)
    }
}

// ── one source, read as it is needed ──

/// Lines that a thread reads ahead, a little.
#[derive(Debug)]
pub(crate) struct Lines {
    batches: Receiver<io::Result<Vec<Line>>>,
    batch: IntoIter<Line>,
}

impl Lines {
    fn new(reader: impl Read + Send + 'static, delimiter: u8, waker: Waker) -> Result<Lines, String> {
        let (sender, batches) = sync_channel(BATCHES_MAX);
        let main = move || {
            let result = read_lines(reader, delimiter, &sender, &waker);
            if let Err(error) = result {
                let _ = sender.send(Err(error));
            }
            drop(sender);
            waker.wake();
        };
        thread::Builder::new().spawn(main).map_err(|error| format!("no thread to read the input: {error}"))?;
        Ok(Lines { batches, batch: Vec::new().into_iter() })
    }

    fn next(&mut self) -> io::Result<Row> {
        loop {
            match self.batch.next() {
                Some(Ok(line)) => return Ok(Row::Some(vec![line])),
                Some(Err(bytes)) => return Ok(Row::TooLong(bytes)),
                None => {}
            }
            match self.batches.try_recv() {
                Ok(batch) => self.batch = batch?.into_iter(),
                Err(TryRecvError::Empty) => return Ok(Row::Pending),
                Err(TryRecvError::Disconnected) => return Ok(Row::End),
            }
        }
    }
}

/// Sends what each read completes, at once: an input that trickles is served as it comes.
fn read_lines(
    reader: impl Read,
    delimiter: u8,
    batches: &SyncSender<io::Result<Vec<Line>>>,
    waker: &Waker,
) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(READ_BYTES, reader);
    let mut splitter = Splitter { delimiter, line: Vec::new(), length: 0 };
    loop {
        let chunk = match reader.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let length = chunk.len();
        let lines = if length == 0 { splitter.finish() } else { splitter.split(chunk) };
        reader.consume(length);
        // The other side is gone when the run ends early.
        if !lines.is_empty() && batches.send(Ok(lines)).is_err() || length == 0 {
            return Ok(());
        }
        waker.wake();
    }
}

/// Cuts chunks into lines; keeps the part of one whose end has not come.
struct Splitter {
    delimiter: u8,
    line: Vec<u8>,
    length: u64,
}

impl Splitter {
    fn split(&mut self, mut chunk: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some(end) = chunk.iter().position(|byte| *byte == self.delimiter) {
            self.add(&chunk[..end]);
            lines.push(self.take());
            chunk = &chunk[end + 1..];
        }
        self.add(chunk);
        lines
    }

    fn add(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if self.length <= LINE_MAX_BYTES as u64 {
            self.line.extend_from_slice(bytes);
        }
    }

    fn take(&mut self) -> Line {
        let (line, length) = (std::mem::take(&mut self.line), std::mem::take(&mut self.length));
        if length <= LINE_MAX_BYTES as u64 { Ok(OsString::from_vec(line)) } else { Err(length) }
    }

    /// The last line may lack its end.
    fn finish(&mut self) -> Vec<Line> {
        if self.length == 0 { Vec::new() } else { vec![self.take()] }
    }
}

// ── what the command line asks for ──

/// Where all arguments come from.
#[derive(Debug)]
pub(crate) enum Sources {
    Groups(Vec<Group>),
    Lines(Lines),
}

/// A source as it is named on the command line.
#[derive(Debug, PartialEq, Eq)]
enum Named {
    Values(Vec<OsString>),
    Files(Vec<PathBuf>),
}

/// The command, and the sources with whether each is linked to the one before it.
type Split = (Vec<OsString>, Vec<(Named, bool)>);

/// Splits what the command line has at `:::`, `:::+`, `::::` and `::::+`.
fn split_words(words: Vec<OsString>) -> Split {
    let mut command = Vec::new();
    let mut sources: Vec<(Named, bool)> = Vec::new();
    for word in words {
        match word.as_encoded_bytes() {
            b":::" => sources.push((Named::Values(Vec::new()), false)),
            b":::+" => sources.push((Named::Values(Vec::new()), true)),
            b"::::" => sources.push((Named::Files(Vec::new()), false)),
            b"::::+" => sources.push((Named::Files(Vec::new()), true)),
            _ => match sources.last_mut() {
                Some((Named::Values(values), _)) => values.push(word),
                Some((Named::Files(files), _)) => files.push(word.into()),
                None => command.push(word),
            },
        }
    }
    (command, sources)
}

/// The command and its sources, opened.
///
/// # Errors
///
/// The message: which file cannot be read, and why; no thread is to be had.
pub(crate) fn open(
    words: Vec<OsString>,
    arg_files: &[PathBuf],
    delimiter: u8,
    waker: Waker,
) -> Result<(Vec<OsString>, Sources), String> {
    let (command, mut named) = split_words(words);
    let files = arg_files.iter().map(|file| (Named::Files(vec![file.clone()]), false));
    named.splice(0..0, files);
    let lone_file = match &named[..] {
        [] => Some(Path::new("-").to_owned()),
        [(Named::Files(files), _)] if files.len() == 1 => Some(files[0].clone()),
        _ => None,
    };
    if let Some(file) = lone_file {
        return Ok((command, Sources::Lines(open_lines(&file, delimiter, waker)?)));
    }
    let mut groups: Vec<Group> = Vec::new();
    for (source, linked) in named {
        for column in load(source, delimiter)? {
            match groups.last_mut().filter(|_| linked) {
                // The shorter one decides.
                Some(group) => {
                    group.truncate(column.len());
                    group.iter_mut().zip(column).for_each(|(row, value)| row.push(value));
                }
                None => groups.push(column.into_iter().map(|value| vec![value]).collect()),
            }
        }
    }
    Ok((command, Sources::Groups(groups)))
}

impl Sources {
    /// Reads everything, so that it can be counted.
    ///
    /// # Errors
    ///
    /// The message: what could not be read.
    pub(crate) fn load(self, skips_blank: bool) -> Result<Vec<Group>, String> {
        let lines = match self {
            Sources::Groups(groups) => return Ok(groups),
            Sources::Lines(lines) => lines,
        };
        let mut group = Group::new();
        for batch in lines.batches {
            for line in batch.map_err(|error| format!("input: {error}"))? {
                let line = line.map_err(|bytes| format!("an input line has {bytes} bytes"))?;
                if !(skips_blank && is_blank(&line)) {
                    group.push(vec![line]);
                }
            }
        }
        Ok(vec![group])
    }
}

fn open_lines(path: &Path, delimiter: u8, waker: Waker) -> Result<Lines, String> {
    if path.as_os_str() == "-" {
        if io::stdin().is_terminal() {
            voice::complain("arguments are read from the terminal, one a line; Ctrl-D ends them");
        }
        return Lines::new(io::stdin(), delimiter, waker);
    }
    let file = File::open(path).map_err(|error| complain(path, &error))?;
    Lines::new(file, delimiter, waker)
}

fn complain(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// The columns of a source: its values, or the lines of each of its files.
fn load(source: Named, delimiter: u8) -> Result<Vec<Vec<OsString>>, String> {
    let files = match source {
        Named::Values(values) => return Ok(vec![values]),
        Named::Files(files) => files,
    };
    let load = |path: PathBuf| {
        let mut bytes = Vec::new();
        let read = if path.as_os_str() == "-" {
            io::stdin().read_to_end(&mut bytes)
        } else {
            File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes))
        };
        read.map_err(|error| complain(&path, &error))?;
        if bytes.last() == Some(&delimiter) {
            bytes.pop();
        } else if bytes.is_empty() {
            return Ok(Vec::new());
        }
        Ok(bytes.split(|byte| *byte == delimiter).map(|line| OsString::from_vec(line.to_vec())).collect())
    };
    files.into_iter().map(load).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    fn jobs(text: &str, batch: usize) -> Vec<String> {
        let (_, sources) = open(words(text), &[], b'\n', Waker::new().unwrap()).unwrap();
        let mut input = Input::new(sources, batch, false);
        let total = input.total();
        let mut jobs = Vec::new();
        while let Next::Arguments(row) = input.next().unwrap() {
            jobs.push(row.join(" ".as_ref()).into_string().unwrap());
        }
        assert_eq!(total, Some(jobs.len() as u64));
        jobs
    }

    #[test]
    fn sources_are_combined_and_linked_ones_go_together() {
        assert_eq!(jobs("echo ::: a b ::: 1 2", 1), ["a 1", "a 2", "b 1", "b 2"]);
        assert_eq!(jobs("echo ::: a b :::+ 1 2 3 ::: x", 1), ["a 1 x", "b 2 x"]);
        assert_eq!(jobs("echo ::: a b :::", 1), [""; 0]);
        assert_eq!(jobs("echo ::: a b c", 2), ["a b", "c"]);
    }

    #[test]
    fn lines_are_cut_wherever_the_chunks_end() {
        for size in 1..12 {
            let mut splitter = Splitter { delimiter: b'\n', line: Vec::new(), length: 0 };
            let mut lines: Vec<Line> =
                b"one\n\ntwo\nend".chunks(size).flat_map(|chunk| splitter.split(chunk)).collect();
            lines.extend(splitter.finish());
            assert_eq!(lines, ["one", "", "two", "end"].map(|line| Ok(line.into())), "{size}");
        }
    }

    #[test]
    fn a_line_without_end_is_counted_and_not_kept() {
        let mut splitter = Splitter { delimiter: b'\n', line: Vec::new(), length: 0 };
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..8 {
            assert!(splitter.split(&chunk).is_empty());
            assert!(splitter.line.len() <= LINE_MAX_BYTES);
        }
        assert_eq!(splitter.split(b"\nnext\n"), [Err(8 << 20), Ok("next".into())]);
    }
}
