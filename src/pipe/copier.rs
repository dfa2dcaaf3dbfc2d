//! Streams that a caller's own code serves: a thread for each, between our end of a pipe and a `Read` or a `Write`. Knows no child; tells
//! its [`Told`] how it went.
//!
//! The caller's code may block for ever, and nothing can be done about it. So nobody waits for the thread itself: whoever wants no
//! more of it takes the pipe away, and it ends when the caller's code returns.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::Source;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::queue::Queue;
use crate::stdio::Claim;
use crate::sys::process::{with_signals_blocked, write_without_sigpipe};
use crate::sys::{PerProcess, read_behind};
use crate::tell::{Level, tell};

/// How many of these threads there are at most, those included that were left behind.
const COPIERS_MAX: usize = 1024;
/// How much is copied at once.
const CHUNK_BYTES: usize = 64 << 10;

type Job = Box<dyn FnOnce() + Send>;

/// Who is told how the copying goes, on its thread.
pub(crate) trait Told: Send {
    /// The caller's code failed. Our end of the pipe is still open: whoever sees it closed finds this told.
    fn failed(&self, error: io::Error);
    /// Our end is closed and the caller's value dropped.
    fn ended(&self);
}

/// A copier as others see it.
#[derive(Clone, Debug)]
pub(crate) struct Copier(Arc<Control>);

#[derive(Debug)]
struct Control {
    /// Readable once the pipe was taken away: it ends the thread's sleep. Never read. None where there is no pipe.
    taken_away: Option<OwnedFd>,
    /// The thread reads from the pipe under this lock, so that what the exit left there can be counted.
    ours: Mutex<Ours>,
}

#[derive(Debug)]
struct Ours {
    /// Shared with the thread while it sleeps on it.
    end: Option<Source<Arc<OwnedFd>>>,
    /// What a cut has read in the thread's place.
    rest: Vec<u8>,
}

/// A copier whose thread is there, so that nothing can fail any more when the child is, and which has not touched the caller's value.
pub(crate) struct Standby {
    copier: Copier,
    thread: Sender<Job>,
    work: Work,
}

/// The caller's value.
pub(crate) enum Work {
    /// What it gives goes to our end.
    Read(Claim<dyn Read + Send>),
    /// What comes from our end goes there.
    Write(Claim<dyn Write + Send>),
    /// What the loop hands on goes there.
    Tee(Claim<dyn Write + Send>, Queue),
}

/// The descriptor that a [`Standby`] needs beside the pipe.
pub(crate) fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

impl Standby {
    /// `pipe`: our end, which does not block, and an event; of what the loop itself reads there is none.
    pub(crate) fn new(work: Work, pipe: Option<(OwnedFd, OwnedFd)>) -> Result<Standby> {
        let (end, taken_away) = pipe.unzip();
        let ours = Ours { end: end.map(|end| Source::new(Arc::new(end))), rest: Vec::new() };
        let copier = Copier(Arc::new(Control { taken_away, ours: Mutex::new(ours) }));
        Ok(Standby { copier, thread: start_thread()?, work })
    }

    pub(crate) fn copier(&self) -> Copier {
        self.copier.clone()
    }

    /// The child runs.
    pub(crate) fn begin(self, told: impl Told + 'static) {
        let Standby { copier, thread, work } = self;
        let job: Job = match work {
            Work::Read(claim) => {
                let reader = claim.redeem();
                Box::new(move || copier.copy_in(reader, &told))
            }
            Work::Write(claim) => {
                let writer = claim.redeem();
                Box::new(move || copier.copy_out(writer, &told))
            }
            Work::Tee(claim, queue) => {
                let writer = claim.redeem();
                Box::new(move || copier.pass_on(queue, writer, &told))
            }
        };
        // The thread waits for this and for nothing else.
        let _ = thread.send(job);
    }
}

/// A thread that does one job, or none if the sender is dropped.
fn start_thread() -> Result<Sender<Job>> {
    let permit = Permit::take().ok_or_else(|| {
        let why = format!("{COPIERS_MAX} streams are served by readers and writers already");
        Error::new(ErrorKind::NoProcessSlots).at(Stage::Streams).saying(why)
    })?;
    let (sender, jobs) = mpsc::channel::<Job>();
    let main = move || {
        let _permit = permit;
        if let Ok(job) = jobs.recv() {
            job();
        }
    };
    with_signals_blocked(|| thread::Builder::new().name("pidloop-stream".into()).spawn(main))
        .map_err(|e| Error::os(Stage::Clone, e).saying("a thread for a stream"))?;
    Ok(sender)
}

/// How many threads there are. A forked copy has none of them, and counts anew.
static RUNNING: PerProcess<AtomicUsize> = PerProcess::new();

struct Permit(&'static AtomicUsize);

impl Permit {
    fn take() -> Option<Permit> {
        let running = RUNNING.get();
        let more = |n| (n < COPIERS_MAX).then_some(n + 1);
        // Relaxed: a number, and nothing behind it.
        running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Permit(running))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Copier {
    // ── for the child's cell ──

    /// Before anything is copied.
    pub(crate) fn is_of_terminal(&self) {
        if let Some(end) = &mut self.0.ours().end {
            end.terminal = true;
        }
    }

    /// The exit was seen: everything the child wrote is in the pipe by now, or with the thread.
    pub(crate) fn note_owed(&self) {
        if let Some(end) = &mut self.0.ours().end {
            end.note_owed();
        }
    }

    /// Takes the pipe away, with what the child itself left in it and no more: the thread hands that on. Says whether somebody else
    /// still held the pipe.
    pub(crate) fn cut(&self) -> bool {
        let mut ours = self.0.ours();
        let Some(mut end) = ours.end.take() else {
            return false;
        };
        while let owed @ 1.. = end.owed() {
            match end.read(|fd| {
                ours.rest.reserve(owed);
                read_behind(fd, &mut ours.rest, owed)
            }) {
                Ok(1..) | Err(Errno::INTR) => {}
                Ok(0) | Err(_) => break,
            }
        }
        drop(ours);
        self.0.wake();
        !end.is_hung_up()
    }

    /// Takes the pipe away.
    pub(crate) fn close(&self) {
        self.0.ours().end = None;
        self.0.wake();
    }

    // ── on the thread ──

    fn copy_in(&self, mut reader: Box<dyn Read + Send>, told: &dyn Told) {
        let mut chunk = vec![0; CHUNK_BYTES];
        let result = guarded(|| {
            while self.0.is_open() {
                match reader.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(n) if self.0.put(&chunk[..n]) => {}
                    // A child that does not read is no error.
                    Ok(_) => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        });
        self.conclude(result, reader, told);
    }

    fn copy_out(&self, mut writer: Box<dyn Write + Send>, told: &dyn Told) {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let result = guarded(|| {
            while self.0.take(&mut chunk) {
                writer.write_all(&chunk)?;
            }
            writer.flush()
        });
        self.conclude(result, writer, told);
    }

    fn pass_on(&self, queue: Queue, mut writer: Box<dyn Write + Send>, told: &dyn Told) {
        let result = guarded(|| {
            for chunk in queue {
                writer.write_all(&chunk)?;
            }
            writer.flush()
        });
        self.conclude(result, writer, told);
    }

    /// Told first, then closed: a child that ends because of that ends later. Dropped before the end is told: who waits for it finds the
    /// value gone.
    fn conclude<T: ?Sized>(&self, result: io::Result<()>, value: Box<T>, told: &dyn Told) {
        if let Err(error) = result {
            told.failed(error);
        }
        self.close();
        if let Err(error) = guarded(|| {
            drop(value);
            Ok(())
        }) {
            tell(Level::Warn, format_args!("{error} while it was dropped"));
        }
        told.ended();
    }
}

/// A panic of the caller's code is an error of it.
fn guarded(f: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err(io::Error::other("it panicked")))
}

impl Control {
    fn ours(&self) -> MutexGuard<'_, Ours> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        if let Some(event) = &self.taken_away {
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }

    fn is_open(&self) -> bool {
        self.ours().end.is_some()
    }

    /// The next bytes of the stream; false at its end.
    fn take(&self, chunk: &mut Vec<u8>) -> bool {
        chunk.clear();
        // What a cut has read may have taken its place.
        chunk.reserve(CHUNK_BYTES);
        loop {
            let mut ours = self.ours();
            if !ours.rest.is_empty() {
                *chunk = std::mem::take(&mut ours.rest);
                return true;
            }
            let Some(end) = &mut ours.end else {
                return false;
            };
            match end.read(|fd| read_behind(fd, chunk, CHUNK_BYTES)) {
                Ok(n) => return n > 0,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let fd = end.fd.clone();
                    drop(ours);
                    self.sleep(&fd, PollFlags::IN);
                }
                Err(_) => return false,
            }
        }
    }

    /// Writes them all; false if nobody reads any more, or the pipe was taken away.
    fn put(&self, mut chunk: &[u8]) -> bool {
        while !chunk.is_empty() {
            let Some(fd) = self.ours().end.as_ref().map(|end| end.fd.clone()) else {
                return false;
            };
            match write_without_sigpipe(fd.as_fd(), chunk) {
                Ok(n) => chunk = &chunk[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.sleep(&fd, PollFlags::OUT),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Until the pipe is ready or taken away.
    fn sleep(&self, fd: &OwnedFd, flags: PollFlags) {
        let Some(taken_away) = &self.taken_away else { return };
        let mut fds = [PollFd::new(fd, flags), PollFd::new(taken_away, PollFlags::IN)];
        // Interrupted: the caller looks again.
        let _ = poll(&mut fds, None);
    }
}
