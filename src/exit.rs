//! How a child ended: its status, why it was stopped, what it used. Plain data; knows nothing of how any of it was learnt.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cause::Cause;
use crate::error::{Error, ErrorKind, Result};
use crate::scope::Scope;
use crate::signal::Signal;

/// How a child ended. Cheap to clone; what Go calls `ProcessState`.
///
/// It reports and does not judge: [`Exit::check`] does.
#[derive(Clone)]
pub struct Exit(Arc<Ending>);

/// What is known of an ended child.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    /// The command as a shell line, for [`Exit::check`].
    pub(crate) command: Arc<str>,
    pub(crate) pid: u32,
    pub(crate) scope: Scope,
    pub(crate) status: Option<ExitStatus>,
    pub(crate) cause: Option<Cause>,
    pub(crate) usage: Option<Usage>,
    pub(crate) spawned_at: Instant,
    pub(crate) exited_at: Instant,
    pub(crate) reaped_at: Option<Instant>,
    pub(crate) held_open: HeldOpen,
    /// A captured stream was longer than its `Limit::StopAt` allows.
    pub(crate) over_limit: bool,
    /// Why the closure of `Cancel::call` failed.
    pub(crate) cancel_failed: Option<Arc<io::Error>>,
    /// The first stream that the caller's own code did not serve to the end.
    pub(crate) stream_failed: Option<Unserved>,
}

/// One of a child's three streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Stream {
    /// Descriptor 0.
    Stdin,
    /// Descriptor 1.
    Stdout,
    /// Descriptor 2.
    Stderr,
}

impl Stream {
    pub(crate) const ALL: [Stream; 3] = [Stream::Stdin, Stream::Stdout, Stream::Stderr];
}

impl fmt::Display for Stream {
    /// `stdin`, `stdout`, `stderr`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stream::Stdin => "stdin",
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        })
    }
}

/// What served a stream and did not do so to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    /// The caller's reader or writer.
    Code,
    /// A queue whose consumer wanted no more.
    Queue,
}

impl Server {
    fn of(self, stream: Stream) -> String {
        match (self, stream) {
            (Server::Code, Stream::Stdin) => format!("the reader for its {stream}"),
            (Server::Code, _) => format!("the writer for its {stream}"),
            (Server::Queue, _) => format!("the queue of its {stream}"),
        }
    }
}

/// Which stream was not served to the end, by what, and why.
#[derive(Clone, Debug)]
pub(crate) struct Unserved {
    pub(crate) stream: Stream,
    pub(crate) by: Server,
    pub(crate) why: Arc<io::Error>,
}

/// Which streams that we read somebody still held when reading was ended, or a [writer](crate::Stdio::writer) had not taken whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HeldOpen {
    /// stdout was cut.
    pub stdout: bool,
    /// stderr was cut.
    pub stderr: bool,
}

impl HeldOpen {
    /// Whether any stream was cut.
    pub fn any(self) -> bool {
        self.stdout || self.stderr
    }

    /// Of stdout (0) or stderr (1).
    pub(crate) fn flag(&mut self, which: usize) -> &mut bool {
        if which == 0 { &mut self.stdout } else { &mut self.stderr }
    }
}

/// What a child, and the descendants it waited for, used (`rusage` of `waitid`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Usage {
    /// CPU time in user mode.
    pub user_time: Duration,
    /// CPU time in the kernel.
    pub system_time: Duration,
    /// The largest resident set, in bytes.
    pub max_rss_bytes: u64,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// Page faults that needed I/O.
    pub major_faults: u64,
    /// Blocks of 512 bytes read from disk.
    pub blocks_in: u64,
    /// Blocks of 512 bytes written to disk.
    pub blocks_out: u64,
    /// Times it gave up the CPU to wait for something.
    pub voluntary_switches: u64,
    /// Times the CPU was taken from it.
    pub involuntary_switches: u64,
}

impl Exit {
    pub(crate) fn new(ending: Ending) -> Exit {
        Exit(Arc::new(ending))
    }

    pub(crate) fn ending(&self) -> &Ending {
        &self.0
    }

    /// The exit status, as std has it; `None` only if somebody else took it (`waitpid(-1)`, an ignored
    /// `SIGCHLD`) and the kernel could not give it back.
    pub fn status(&self) -> Option<ExitStatus> {
        self.0.status
    }

    /// Whether the child exited with status 0, stopped or not.
    pub fn success(&self) -> bool {
        self.0.status.is_some_and(|s| s.success())
    }

    /// The exit code, if it exited; `None` if a signal killed it.
    pub fn code(&self) -> Option<i32> {
        self.0.status.and_then(|s| s.code())
    }

    /// The signal that killed it.
    pub fn signal(&self) -> Option<Signal> {
        self.0.status.and_then(|s| s.signal()).and_then(Signal::from_raw)
    }

    /// Whether it dumped core.
    pub fn core_dumped(&self) -> bool {
        self.0.status.is_some_and(|s| s.core_dumped())
    }

    /// Why it was stopped: a stop was sent before its exit was seen. `None` if it ended by itself.
    ///
    /// A child that only SIGKILL was sent to and that did not die of it was not stopped: then this is `None`.
    /// After any other signal the cause stays whatever the status is.
    pub fn cause(&self) -> Option<&Cause> {
        self.0.cause.as_ref()
    }

    /// What it used; `None` if the status was taken by somebody else.
    pub fn usage(&self) -> Option<&Usage> {
        self.0.usage.as_ref()
    }

    /// Its process id, for display: the number may already be somebody else's.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Whom its stops reached: what the command asked for, or the group that a [`CgroupScope`](crate::CgroupScope::or_group) allowed instead.
    pub fn scope(&self) -> Scope {
        self.0.scope
    }

    /// When `spawn` was called.
    pub fn spawned_at(&self) -> Instant {
        self.0.spawned_at
    }

    /// When its exit was seen.
    pub fn exited_at(&self) -> Instant {
        self.0.exited_at
    }

    /// When its status was taken from the kernel and its process id became free; `None` if somebody else took it, or if it was kept as a
    /// zombie while the rest of its group was still being stopped (before Linux 6.9).
    pub fn reaped_at(&self) -> Option<Instant> {
        self.0.reaped_at
    }

    /// From the call of `spawn` to the moment its exit was seen.
    pub fn elapsed(&self) -> Duration {
        self.0.exited_at.saturating_duration_since(self.0.spawned_at)
    }

    /// Whether somebody (a grandchild, usually) still held a stream that we read when reading was ended, or a
    /// [writer](crate::Stdio::writer) had not taken it whole.
    ///
    /// Known when the streams are done: `wait` returns at death and says `false`; `wait_with_output`, `output`
    /// and `next_exit` know.
    pub fn output_held_open(&self) -> bool {
        self.0.held_open.any()
    }

    /// Which streams [`output_held_open`](Exit::output_held_open) speaks of.
    pub fn held_open(&self) -> HeldOpen {
        self.0.held_open
    }

    /// Ok if it ended by itself with status 0.
    ///
    /// # Errors
    ///
    /// In this order of blame: it was stopped ([`ErrorKind::Cancelled`], [`ErrorKind::DeadlineExceeded`],
    /// [`ErrorKind::Stopped`], [`ErrorKind::OutputLimit`], also if it then exited with 0); it was not successful
    /// ([`ErrorKind::Unsuccessful`]); its status is lost ([`ErrorKind::StatusLost`]); its output was
    /// more than its limit, as was found after its end ([`ErrorKind::OutputLimit`]), or was cut ([`ErrorKind::OutputCut`]); the closure that should have cancelled it failed ([`ErrorKind::CancelFailed`]); a reader or writer that
    /// served one of its streams failed ([`ErrorKind::Io`]).
    pub fn check(&self) -> Result<()> {
        self.judge(Verdict { non_success: true, cut: true })
    }

    /// The one place that decides which outcomes are errors.
    pub(crate) fn judge(&self, verdict: Verdict) -> Result<()> {
        let e = &*self.0;
        let error = if let Some(cause) = &e.cause {
            Error::stopped(cause.clone())
        } else if verdict.non_success && e.status.is_some_and(|s| !s.success()) {
            Error::new(ErrorKind::Unsuccessful)
        } else if e.status.is_none() {
            Error::new(ErrorKind::StatusLost)
        } else if verdict.cut && e.over_limit {
            Error::new(ErrorKind::OutputLimit)
        } else if verdict.cut && e.held_open.any() {
            Error::new(ErrorKind::OutputCut)
        } else if let Some(why) = &e.cancel_failed {
            Error::new(ErrorKind::CancelFailed).because_of(why)
        } else if let Some(Unserved { stream, by, why }) = &e.stream_failed {
            Error::new(ErrorKind::Io).saying(by.of(*stream)).because_of(why)
        } else {
            return Ok(());
        };
        Err(error.of(&*e.command).with_exit(self.clone()))
    }
}

/// Which outcomes, beside a stop and a lost status, are errors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    /// An exit status other than 0, or a death by signal.
    pub(crate) non_success: bool,
    /// Captured output that somebody held open.
    pub(crate) cut: bool,
}

impl fmt::Display for Exit {
    /// As Go prints a `ProcessState`: `exit status 1`, `signal: killed`, with ` (core dumped)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0.status, self.code(), self.signal()) {
            (None, ..) => f.write_str("exit status lost"),
            (_, Some(code), _) => write!(f, "exit status {code}"),
            (_, _, Some(signal)) => {
                write!(f, "signal: {}", signal.description())?;
                f.write_str(if self.core_dumped() { " (core dumped)" } else { "" })
            }
            (Some(status), ..) => write!(f, "{status}"),
        }
    }
}

impl fmt::Debug for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exit")
            .field("status", &self.0.status)
            .field("cause", &self.0.cause)
            .field("pid", &self.0.pid)
            .field("elapsed", &self.elapsed())
            .field("held_open", &self.0.held_open)
            .finish_non_exhaustive()
    }
}

/// What can be said without the clock of this process: times as spans, the status as `code` or `signal`.
#[cfg(feature = "serde")]
impl serde::Serialize for Exit {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct;
        let mut exit = serializer.serialize_struct("Exit", 10)?;
        exit.serialize_field("command", &*self.0.command)?;
        exit.serialize_field("pid", &self.0.pid)?;
        exit.serialize_field("code", &self.code())?;
        exit.serialize_field("signal", &self.signal())?;
        exit.serialize_field("core_dumped", &self.core_dumped())?;
        exit.serialize_field("status_lost", &self.0.status.is_none())?;
        exit.serialize_field("cause", &self.0.cause)?;
        exit.serialize_field("usage", &self.0.usage)?;
        exit.serialize_field("elapsed", &self.elapsed())?;
        exit.serialize_field("held_open", &self.0.held_open)?;
        exit.end()
    }
}

/// What was captured of a child's output.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Captured {
    /// What it wrote to stdout (to both streams, for `combined_output`).
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: Vec<u8>,
    /// Bytes of stdout that a limit left out between the head and the tail.
    pub stdout_omitted_bytes: u64,
    /// Bytes of stderr that a limit left out between the head and the tail.
    pub stderr_omitted_bytes: u64,
    /// What it wrote to a [spooled](crate::Stdio::spooled) stdout.
    pub stdout_spool: Option<Spool>,
    /// What it wrote to a [spooled](crate::Stdio::spooled) stderr.
    pub stderr_spool: Option<Spool>,
}

impl Captured {
    /// This stdout, and that stderr.
    pub(crate) fn with_stderr_of(mut self, other: Captured) -> Captured {
        self.stderr = other.stderr;
        self.stderr_omitted_bytes = other.stderr_omitted_bytes;
        self.stderr_spool = other.stderr_spool;
        self
    }
}

impl fmt::Debug for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Captured")
            .field("stdout", &String::from_utf8_lossy(&self.stdout))
            .field("stderr", &String::from_utf8_lossy(&self.stderr))
            .field("stdout_omitted_bytes", &self.stdout_omitted_bytes)
            .field("stderr_omitted_bytes", &self.stderr_omitted_bytes)
            .field("stdout_spool", &self.stdout_spool)
            .field("stderr_spool", &self.stderr_spool)
            .finish()
    }
}

/// What a child wrote into a [spooled](crate::Stdio::spooled) stream: a file, with what was in it when the child's end was seen. Clones are
/// the same.
#[derive(Clone, Debug)]
pub struct Spool(Arc<Spooled>);

#[derive(Debug)]
struct Spooled {
    file: File,
    start: u64,
    len_bytes: u64,
    is_sealed: bool,
}

impl Spool {
    pub(crate) fn new(file: File, start: u64, len_bytes: u64, is_sealed: bool) -> Spool {
        Spool(Arc::new(Spooled { file, start, len_bytes, is_sealed }))
    }

    /// How many bytes there are.
    pub fn len_bytes(&self) -> u64 {
        self.0.len_bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.len_bytes == 0
    }

    /// All of it, read into memory.
    ///
    /// # Errors
    ///
    /// What `pread(2)` says; `UnexpectedEof` if somebody has truncated a file that is not [sealed](Spool::is_sealed).
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(self.0.len_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // Fresh pages of a large one are zero already.
        let mut bytes = vec![0; len];
        self.0.file.read_exact_at(&mut bytes, self.0.start)?;
        Ok(bytes)
    }

    /// The next bytes from this place on, counted from where the child began; as many as `bytes` has room for. 0: there are no more. pread(2).
    ///
    /// # Errors
    ///
    /// What `pread(2)` says.
    pub fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let left = usize::try_from(self.0.len_bytes.saturating_sub(at)).unwrap_or(usize::MAX);
        let n = bytes.len().min(left);
        self.0.file.read_at(&mut bytes[..n], self.0.start.saturating_add(at))
    }

    /// The file, open for reading alone: to be mapped, sent, copied (`io::copy` uses `copy_file_range(2)` or `sendfile(2)`). Its position
    /// is shared by all who have it; what the child wrote begins at [`start`](Spool::start).
    pub fn file(&self) -> &File {
        &self.0.file
    }

    /// Where in the file what the child wrote begins: 0 of one in memory.
    pub fn start(&self) -> u64 {
        self.0.start
    }

    /// Whether nobody can change it any more (`F_SEAL_WRITE`, `F_SEAL_GROW`, `F_SEAL_SHRINK`), so that a mapping of it stays what it is: who
    /// still has it open fails to write, with `EPERM`. False of a file of the caller's, and if somebody had it mapped for writing.
    pub fn is_sealed(&self) -> bool {
        self.0.is_sealed
    }
}

impl PartialEq for Spool {
    /// The same, not alike.
    fn eq(&self, other: &Spool) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Spool {}

/// How a child ended and what it wrote; std's `Output`, and more.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Output {
    /// The exit status.
    pub status: ExitStatus,
    /// What it wrote to stdout (to both streams, for `combined_output`).
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: Vec<u8>,
    /// Bytes of stdout that a limit left out between the head and the tail.
    pub stdout_omitted_bytes: u64,
    /// Bytes of stderr that a limit left out between the head and the tail.
    pub stderr_omitted_bytes: u64,
    /// What it wrote to a [spooled](crate::Stdio::spooled) stdout.
    pub stdout_spool: Option<Spool>,
    /// What it wrote to a [spooled](crate::Stdio::spooled) stderr.
    pub stderr_spool: Option<Spool>,
    exit: Exit,
}

impl Output {
    /// Joins the two; an error, with the captured bytes, if the status is lost.
    pub(crate) fn new(exit: Exit, captured: Captured) -> Result<Output> {
        let Some(status) = exit.status() else {
            let error = Error::new(ErrorKind::StatusLost).of(&*exit.ending().command);
            return Err(error.with_exit(exit).with_captured(captured));
        };
        Ok(Output {
            status,
            stdout: captured.stdout,
            stderr: captured.stderr,
            stdout_omitted_bytes: captured.stdout_omitted_bytes,
            stderr_omitted_bytes: captured.stderr_omitted_bytes,
            stdout_spool: captured.stdout_spool,
            stderr_spool: captured.stderr_spool,
            exit,
        })
    }

    /// How the child ended.
    pub fn exit(&self) -> &Exit {
        &self.exit
    }
}
