//! A thread that prints, so that a reader who does not read keeps nobody from minding the jobs. Keeps the order if asked, writes the
//! joblog behind the output it speaks of. Knows jobs as numbers.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::bar::Bar;
use super::joblog::Joblog;
use super::wake::Waker;

/// From so much output that waits to be printed on no job is started.
const QUEUED_MAX_BYTES: usize = 64 << 20;

/// Something to be printed.
#[derive(Debug)]
pub(crate) enum Message {
    /// A part of a job's output, in whole lines.
    Piece { seq: u64, to: Stream, tag: Option<Arc<[u8]>>, bytes: Vec<u8> },
    /// The rest of a job.
    Ended(Box<Ended>),
    /// A word of our own, on standard error.
    Note(Vec<u8>),
}

/// The end of a job: what is printed, kept and recorded of it, in this order.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    pub(crate) seq: u64,
    pub(crate) tag: Option<Arc<[u8]>>,
    /// stdout and stderr.
    pub(crate) output: [Vec<u8>; 2],
    /// Files to be written first.
    pub(crate) files: Vec<(PathBuf, Vec<u8>)>,
    pub(crate) record: Option<Vec<u8>>,
}

/// One of our own streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(crate) const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    pub(crate) fn fd(self) -> BorrowedFd<'static> {
        match self {
            Stream::Stdout => rustix::stdio::stdout(),
            Stream::Stderr => rustix::stdio::stderr(),
        }
    }
}

impl Message {
    /// What it takes in memory: jobs without output have an end, too.
    fn bytes(&self) -> usize {
        let content = match self {
            Message::Piece { bytes, .. } | Message::Note(bytes) => bytes.len(),
            Message::Ended(ended) => {
                let files = ended.files.iter().map(|(_, bytes)| bytes);
                let parts = ended.output.iter().chain(files).chain(&ended.record);
                parts.map(Vec::len).sum::<usize>() + size_of::<Ended>()
            }
        };
        content + size_of::<Message>()
    }
}

/// What could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody reads our standard output any more.
    Closed,
    /// Our standard output, for another reason: the message.
    Stdout(String),
    /// The joblog, or results: the message.
    File(String),
}

impl Failure {
    fn is_of_stdout(&self) -> bool {
        matches!(self, Failure::Closed | Failure::Stdout(_))
    }
}

/// What both threads count. Sequentially consistent: the loop adds and then looks whose turn it is, the thread passes the turn on and then
/// looks whether that is too much, and one of them must see the other.
#[derive(Debug, Default)]
struct Shared {
    /// What waits to be written.
    ready_bytes: AtomicUsize,
    /// What waits for the turn of its job.
    held_bytes: AtomicUsize,
    /// The job whose turn it is; 0: there are no turns.
    turn: AtomicU64,
    failure: Mutex<Option<Failure>>,
    done: AtomicBool,
}

impl Shared {
    fn queued_bytes(&self) -> usize {
        self.ready_bytes.load(Ordering::SeqCst) + self.held_bytes.load(Ordering::Relaxed)
    }

    /// Takes some from what is ready; whether that makes room for somebody who looked before.
    fn take(&self, bytes: usize) -> bool {
        let before = self.ready_bytes.fetch_sub(bytes, Ordering::SeqCst);
        let crosses = |held: usize| before + held >= QUEUED_MAX_BYTES && before + held - bytes < QUEUED_MAX_BYTES;
        crosses(0) || crosses(self.held_bytes.load(Ordering::SeqCst))
    }
}

/// The thread, as the loop sees it.
#[derive(Debug)]
pub(crate) struct Printer {
    messages: Option<Sender<Message>>,
    shared: Arc<Shared>,
}

impl Printer {
    /// `keeps_order`: jobs are printed by their numbers, from 1 on.
    ///
    /// # Errors
    ///
    /// The message: no thread is to be had.
    pub(crate) fn new(keeps_order: bool, joblog: Option<Joblog>, bar: Bar, waker: Waker) -> Result<Printer, String> {
        let (sender, messages) = channel();
        let shared = Arc::new(Shared { turn: AtomicU64::new(keeps_order.into()), ..Shared::default() });
        let order = keeps_order.then(|| Order { next: 1, held: BTreeMap::new() });
        let press = Press { order, joblog, bar, waker, shared: shared.clone(), lost_stdout: false };
        let main = move || press.run(&messages);
        thread::Builder::new().spawn(main).map_err(|error| format!("no thread to print the output: {error}"))?;
        Ok(Printer { messages: Some(sender), shared })
    }

    pub(crate) fn send(&self, message: Message) {
        self.shared.ready_bytes.fetch_add(message.bytes(), Ordering::SeqCst);
        match (&self.messages, message) {
            // The thread ends when this sender is gone, not before.
            (Some(messages), message) => drop(messages.send(message)),
            // Only we ourselves may still have something to say.
            (None, Message::Note(text)) => drop(write_all(Stream::Stderr, &text)),
            (None, _) => {}
        }
    }

    /// Whether so much waits to be printed that no more should be made.
    pub(crate) fn is_full(&self) -> bool {
        self.shared.queued_bytes() >= QUEUED_MAX_BYTES
    }

    /// The same for the output of one job. What the others hold back does not stop the one whose turn it is: they wait for its end.
    pub(crate) fn is_full_for(&self, seq: u64) -> bool {
        if self.shared.turn.load(Ordering::SeqCst) == seq {
            return self.shared.ready_bytes.load(Ordering::SeqCst) >= QUEUED_MAX_BYTES;
        }
        self.is_full()
    }

    /// What has gone wrong; once.
    pub(crate) fn take_failure(&self) -> Option<Failure> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Nothing more will come; the waker tells when everything is printed.
    pub(crate) fn close(&mut self) {
        self.messages = None;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.shared.done.load(Ordering::Acquire)
    }
}

/// Jobs whose turn has not come.
struct Order {
    next: u64,
    held: BTreeMap<u64, Vec<Message>>,
}

/// What the thread works with.
struct Press {
    order: Option<Order>,
    joblog: Option<Joblog>,
    bar: Bar,
    waker: Waker,
    shared: Arc<Shared>,
    /// It cannot be written any more.
    lost_stdout: bool,
}

/// Tells that the thread has ended, however that happens.
struct Done(Arc<Shared>, Waker);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.done.store(true, Ordering::Release);
        self.1.wake();
    }
}

impl Press {
    fn run(mut self, messages: &Receiver<Message>) {
        let _done = Done(self.shared.clone(), self.waker.clone());
        while let Ok(message) = messages.recv() {
            self.take(message);
        }
        let held = self.order.as_mut().map(|order| std::mem::take(&mut order.held)).unwrap_or_default();
        held.into_values().flatten().for_each(|message| self.print(message));
    }

    /// Prints a message, or holds it until its job's turn has come.
    fn take(&mut self, message: Message) {
        let seq = match &message {
            Message::Note(_) => return self.print(message),
            Message::Piece { seq, .. } => *seq,
            Message::Ended(ended) => ended.seq,
        };
        let Some(order) = &mut self.order else {
            return self.print(message);
        };
        if seq != order.next {
            let bytes = message.bytes();
            order.held.entry(seq).or_default().push(message);
            // In this order: who looks meanwhile finds too much room rather than too little, of which nobody would tell it.
            let makes_room = self.shared.take(bytes);
            self.shared.held_bytes.fetch_add(bytes, Ordering::SeqCst);
            if makes_room {
                self.waker.wake();
            }
            return;
        }
        let mut ended = matches!(message, Message::Ended(_));
        self.print(message);
        while ended {
            ended = false;
            for message in self.next_in_order() {
                ended |= matches!(message, Message::Ended(_));
                self.print(message);
            }
        }
    }

    fn next_in_order(&mut self) -> Vec<Message> {
        let Some(order) = &mut self.order else {
            return Vec::new();
        };
        order.next += 1;
        let messages = order.held.remove(&order.next).unwrap_or_default();
        let bytes = messages.iter().map(Message::bytes).sum();
        self.shared.held_bytes.fetch_sub(bytes, Ordering::SeqCst);
        self.shared.ready_bytes.fetch_add(bytes, Ordering::SeqCst);
        self.shared.turn.store(order.next, Ordering::SeqCst);
        if self.shared.queued_bytes() >= QUEUED_MAX_BYTES {
            // Its turn is room for a job that is not read.
            self.waker.wake();
        }
        messages
    }

    fn print(&mut self, message: Message) {
        let bytes = message.bytes();
        let bar = self.bar.clone();
        let result = match message {
            Message::Note(text) => {
                // Where else could one complain?
                let _ = bar.aside(|| write_all(Stream::Stderr, &text));
                Ok(())
            }
            // What was not printed is not recorded either.
            _ if self.lost_stdout => Ok(()),
            Message::Piece { to, tag, bytes, .. } => bar.aside(|| print_tagged(to, tag.as_deref(), &bytes)),
            Message::Ended(ended) => self.print_ended(*ended),
        };
        if let Err(failure) = result {
            self.lost_stdout |= failure.is_of_stdout();
            // The first one says most.
            self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
            self.waker.wake();
        }
        if self.shared.take(bytes) {
            self.waker.wake();
        }
    }

    fn print_ended(&mut self, ended: Ended) -> Result<(), Failure> {
        for (path, bytes) in &ended.files {
            write_file(path, bytes).map_err(|error| Failure::File(format!("results {}: {error}", path.display())))?;
        }
        if ended.output.iter().any(|bytes| !bytes.is_empty()) {
            let tag = ended.tag.as_deref();
            self.bar.aside(|| {
                let [stdout, stderr] = &ended.output;
                print_tagged(Stream::Stdout, tag, stdout)?;
                print_tagged(Stream::Stderr, tag, stderr)
            })?;
        }
        // Last: what the record says is done need not be done again.
        match (&ended.record, &mut self.joblog) {
            (Some(record), Some(joblog)) => joblog.write(record).map_err(Failure::File),
            _ => Ok(()),
        }
    }
}

fn write_file(path: &PathBuf, bytes: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::File::create(path)?.write_all(bytes)
}

/// Prints lines, each behind the tag if there is one.
fn print_tagged(to: Stream, tag: Option<&[u8]>, bytes: &[u8]) -> Result<(), Failure> {
    let Some(tag) = tag else {
        return print(to, bytes);
    };
    let mut tagged = Vec::with_capacity(bytes.len() + tag.len() + 1);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        tagged.extend_from_slice(tag);
        tagged.push(b'\t');
        tagged.extend_from_slice(line);
    }
    print(to, &tagged)
}

fn print(to: Stream, bytes: &[u8]) -> Result<(), Failure> {
    match write_all(to, bytes) {
        Ok(()) => Ok(()),
        Err(_) if to == Stream::Stderr => Ok(()),
        Err(Errno::PIPE) => Err(Failure::Closed),
        Err(error) => Err(Failure::Stdout(format!("standard output: {}", io::Error::from(error)))),
    }
}

/// Writes everything, also to what somebody else has made non-blocking.
fn write_all(to: Stream, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(to.fd(), bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(to.fd(), PollFlags::OUT)], None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
