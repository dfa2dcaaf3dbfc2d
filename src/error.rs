//! What went wrong, with which command, in which step. Knows the vocabulary of the crate; knows nothing of how a child is started or watched.

use std::error::Error as StdError;
use std::fmt::{self, Write};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cause::Cause;
use crate::exit::{Captured, Exit};
use crate::shell::Word;

/// How many bytes of a child's captured stderr an error shows.
pub(crate) const STDERR_SHOWN_BYTES: usize = 1024;

/// A `Result` whose error is pidloop's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of thing went wrong.
///
/// Where more than one thing did, [`Exit::check`] says which of them is blamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum ErrorKind {
    /// Something in the command cannot be used: an empty name, a NUL byte, two contradicting options.
    InvalidInput,
    /// The program does not exist, or no directory of `PATH` has it.
    NotFound,
    /// The lookup found the program only relative to the current directory (Go's `ErrDot`).
    RelativeLookup,
    /// The program, or a directory on the way to it, may not be executed or entered.
    PermissionDenied,
    /// A step before the program began failed: [`Error::stage`] names it.
    Setup,
    /// `execve` refused the program for another reason: its format, its size, a busy file.
    Exec,
    /// No descriptor was left, in this process (`EMFILE`) or on the system (`ENFILE`).
    NoDescriptors,
    /// No process or thread could be made: `RLIMIT_NPROC`, `pids.max` or the system's table (`EAGAIN`); or too many threads serve streams.
    NoProcessSlots,
    /// As many children live as a limit allows, and whoever asks cannot be kept waiting: a [`Reactor`](crate::Reactor) that its caller turns.
    NoRoom,
    /// As many spawns wait for a limit as may.
    QueueFull,
    /// The kernel had no memory (`ENOMEM`).
    NoMemory,
    /// A context was cancelled: before the spawn (then there is no [`Error::exit`]), or it stopped the child.
    Cancelled,
    /// A context's deadline or the command's timeout passed: before the spawn, or it stopped the child.
    DeadlineExceeded,
    /// The child was stopped for another reason: [`Error::cause`] tells it.
    Stopped,
    /// The child ended by itself, but not with exit status 0.
    Unsuccessful,
    /// The child is gone, and somebody else took its exit status.
    StatusLost,
    /// The child is gone, but somebody still held its output open when reading was ended: what was captured may be incomplete.
    OutputCut,
    /// More output than the limit that was set.
    OutputLimit,
    /// The closure of [`Cancel::call`](crate::Cancel::call) failed.
    CancelFailed,
    /// A stream that serves one spawn was used for a second one.
    StreamUsed,
    /// The handle was made before this process was forked; it belongs to the parent.
    Forked,
    /// The thread that turned the reactor panicked, and so did its successor.
    ReactorDied,
    /// The driver or reactor is shutting down.
    ShutDown,
    /// This kernel or sandbox lacks what is needed; the message names it.
    Unsupported,
    /// There is no such child (any more).
    NoSuchChild,
    /// Another operation failed: one of ours, or a reader or writer that served a stream.
    Io,
}

/// A step on the way from the call of `spawn` to the first instruction of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Stage {
    /// Looking the program up in `PATH`.
    Lookup,
    /// Making the pipes and opening `/dev/null`.
    Streams,
    /// Entering the child in the reactor's tables and the epoll set.
    Register,
    /// `clone3` or `clone`.
    Clone,
    /// A private copy of the descriptor table (`close_range`, `unshare`).
    DescriptorTable,
    /// Putting the descriptors where the child expects them (`dup3`).
    Descriptors,
    /// `setsid`.
    Session,
    /// `setpgid`.
    ProcessGroup,
    /// The controlling terminal (`TIOCSCTTY`, `TIOCNOTTY`).
    Terminal,
    /// `open` of `/dev/ptmx`, and what makes a terminal of it.
    PseudoTerminal,
    /// `tcsetpgrp`.
    Foreground,
    /// Making and entering namespaces (`clone`, `unshare`, `setns`, `timens_offsets`).
    Namespaces,
    /// Writing the maps of a user namespace.
    IdMaps,
    /// Entering the cgroup.
    Cgroup,
    /// `chroot`.
    Chroot,
    /// `chdir` or `fchdir`.
    Directory,
    /// `umask`.
    Umask,
    /// `setpriority`.
    Nice,
    /// `prlimit`.
    ResourceLimit,
    /// `sched_setaffinity`.
    Affinity,
    /// `ioprio_set`.
    IoPriority,
    /// Writing `oom_score_adj`.
    OomScore,
    /// `sched_setscheduler`.
    Scheduler,
    /// `prctl(PR_CAPBSET_DROP)`, `capset`, `prctl(PR_CAP_AMBIENT)`.
    Capabilities,
    /// `prctl(PR_SET_NO_NEW_PRIVS)`.
    NoNewPrivileges,
    /// `setgroups`.
    Groups,
    /// `setresgid`.
    Gid,
    /// `setresuid`.
    Uid,
    /// `prctl(PR_SET_PDEATHSIG)` and the check that the parent still lives.
    ParentDeathSignal,
    /// Signal dispositions (`rt_sigaction`).
    Signals,
    /// `ptrace(PTRACE_TRACEME)`.
    Trace,
    /// A closure of [`Command::pre_exec`](crate::Command::pre_exec).
    PreExec,
    /// `execve`.
    Exec,
}

impl Stage {
    /// The words for it in a message.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Lookup => "look up the program",
            Stage::Streams => "set up the streams",
            Stage::Register => "register the child",
            Stage::Clone => "create the process",
            Stage::DescriptorTable => "make a private descriptor table",
            Stage::Descriptors => "install the descriptors",
            Stage::Session => "start a session",
            Stage::ProcessGroup => "set the process group",
            Stage::Terminal => "set the controlling terminal",
            Stage::PseudoTerminal => "open a pseudo-terminal",
            Stage::Foreground => "move to the foreground",
            Stage::Namespaces => "enter namespaces",
            Stage::IdMaps => "write the id maps",
            Stage::Cgroup => "enter the cgroup",
            Stage::Chroot => "change the root directory",
            Stage::Directory => "change the directory",
            Stage::Umask => "set the umask",
            Stage::Nice => "set the nice value",
            Stage::ResourceLimit => "set a resource limit",
            Stage::Affinity => "set the CPU affinity",
            Stage::IoPriority => "set the I/O priority",
            Stage::OomScore => "set the OOM score",
            Stage::Scheduler => "set the scheduling policy",
            Stage::Capabilities => "set capabilities",
            Stage::NoNewPrivileges => "set no_new_privs",
            Stage::Groups => "set the supplementary groups",
            Stage::Gid => "set the group id",
            Stage::Uid => "set the user id",
            Stage::ParentDeathSignal => "set the parent-death signal",
            Stage::Signals => "set signal dispositions",
            Stage::Trace => "ask to be traced",
            Stage::PreExec => "run a pre_exec closure",
            Stage::Exec => "execute the program",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error of pidloop: what happened, to which command, in which step, and what there is of a result.
///
/// It converts into [`io::Error`] with `?`, keeping itself as the source; [`io::Error::downcast`] gives it back.
///
/// ```
/// use pidloop::{Command, ErrorKind, Stage};
///
/// let error = Command::new("ls").current_dir("/nowhere").spawn().unwrap_err();
/// assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Directory)));
/// assert_eq!(
///     error.to_string(),
///     "ls: could not change the directory /nowhere: No such file or directory (os error 2)"
/// );
/// ```
///
/// The message never holds a value of the environment, a byte of stdin or a
/// [`secret_arg`](crate::Command::secret_arg).
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    /// The command as a shell line, secrets hidden.
    command: Option<String>,
    /// Its place among the commands of a pipeline, from 1, and how many they are.
    place: Option<(usize, usize)>,
    stage: Option<Stage>,
    /// The path the step was about: the program, the directory.
    path: Option<PathBuf>,
    detail: Option<String>,
    cause: Option<Cause>,
    exit: Option<Exit>,
    captured: Option<Captured>,
    source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind) -> Error {
        Error(Box::new(Inner {
            kind,
            command: None,
            place: None,
            stage: None,
            path: None,
            detail: None,
            cause: None,
            exit: None,
            captured: None,
            source: None,
        }))
    }

    /// The error of a system call in `stage`: the kind follows from errno where errno is a kind of its own.
    pub(crate) fn os(stage: Stage, source: io::Error) -> Error {
        Error::new(kind_of_errno(stage, &source)).at(stage).because(source)
    }

    pub(crate) fn at(mut self, stage: Stage) -> Error {
        self.0.stage = Some(stage);
        self
    }

    pub(crate) fn because(mut self, source: impl Into<io::Error>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// As [`Error::because`], of an error that several tell of.
    pub(crate) fn because_of(self, source: &Arc<io::Error>) -> Error {
        self.because(match source.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(source.kind(), Shared(source.clone())),
        })
    }

    pub(crate) fn of(mut self, command: impl Into<String>) -> Error {
        self.0.command.get_or_insert_with(|| command.into());
        self
    }

    pub(crate) fn at_place(mut self, place: usize, count: usize) -> Error {
        // One alone needs no number.
        self.0.place = (count > 1).then_some((place, count));
        self
    }

    pub(crate) fn about(mut self, path: impl Into<PathBuf>) -> Error {
        self.0.path = Some(path.into());
        self
    }

    pub(crate) fn saying(mut self, detail: impl Into<String>) -> Error {
        self.0.detail = Some(detail.into());
        self
    }

    pub(crate) fn with_exit(mut self, exit: Exit) -> Error {
        self.0.exit = Some(exit);
        self
    }

    pub(crate) fn with_captured(mut self, captured: Captured) -> Error {
        self.0.captured = Some(captured);
        self
    }

    /// The error for a stop: its kind is the cause's.
    pub(crate) fn stopped(cause: Cause) -> Error {
        let kind = match &cause {
            cause if cause.is_timeout() => ErrorKind::DeadlineExceeded,
            Cause::OutputLimit => ErrorKind::OutputLimit,
            Cause::Terminated | Cause::Dropped | Cause::ShutDown => ErrorKind::Stopped,
            _ => ErrorKind::Cancelled,
        };
        let mut error = Error::new(kind);
        error.0.cause = Some(cause);
        error
    }

    /// What kind of thing went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The command, as a shell would be given it, on one line; secret arguments read `***`. Cut after 1,024 bytes.
    pub fn command(&self) -> Option<&str> {
        self.0.command.as_deref()
    }

    /// Which command of a [`Pipeline`](crate::Pipeline) it is about, from 0.
    pub fn pipeline_index(&self) -> Option<usize> {
        self.0.place.map(|(place, _)| place - 1)
    }

    /// The step that failed, for an error of `spawn`.
    pub fn stage(&self) -> Option<Stage> {
        self.0.stage
    }

    /// The path that the failed step was about.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Why the child was stopped, or why it was never started.
    pub fn cause(&self) -> Option<&Cause> {
        self.0.cause.as_ref()
    }

    /// How the child ended, if there was one.
    pub fn exit(&self) -> Option<&Exit> {
        self.0.exit.as_ref()
    }

    /// What was captured of the child's output.
    pub fn output(&self) -> Option<&Captured> {
        self.0.captured.as_ref()
    }

    /// As [`Error::output`], by value.
    pub fn into_output(self) -> Option<Captured> {
        self.0.captured
    }

    /// The errno behind the error, if a system call failed.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.0.source.as_ref().and_then(io::Error::raw_os_error)
    }

    /// Whether a retry may succeed without any change: no descriptors, no process slots, no memory, no pseudo-terminals, no room below a
    /// limit, a busy program file.
    pub fn is_transient(&self) -> bool {
        use ErrorKind::{NoDescriptors, NoMemory, NoProcessSlots, NoRoom, QueueFull};
        matches!(self.0.kind, NoDescriptors | NoProcessSlots | NoMemory | NoRoom | QueueFull)
            || self.raw_os_error() == Some(libc::ETXTBSY)
            || (self.0.stage, self.raw_os_error()) == (Some(Stage::PseudoTerminal), Some(libc::ENOSPC))
    }

    fn io_kind(&self) -> io::ErrorKind {
        match self.0.kind {
            ErrorKind::InvalidInput | ErrorKind::StreamUsed => io::ErrorKind::InvalidInput,
            ErrorKind::NotFound | ErrorKind::RelativeLookup | ErrorKind::NoSuchChild => io::ErrorKind::NotFound,
            ErrorKind::PermissionDenied => io::ErrorKind::PermissionDenied,
            ErrorKind::DeadlineExceeded => io::ErrorKind::TimedOut,
            ErrorKind::Unsupported => io::ErrorKind::Unsupported,
            ErrorKind::NoMemory => io::ErrorKind::OutOfMemory,
            ErrorKind::NoProcessSlots | ErrorKind::NoRoom | ErrorKind::QueueFull => io::ErrorKind::WouldBlock,
            _ => self.0.source.as_ref().map_or(io::ErrorKind::Other, io::Error::kind),
        }
    }
}

/// An error that is told of more than once.
#[derive(Debug)]
struct Shared(Arc<io::Error>);

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for Shared {
    /// The error that was wrapped in it, so that a caller finds its own.
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.get_ref().map(|e| e as _)
    }
}

/// Which errnos are kinds of their own, and in which step.
fn kind_of_errno(stage: Stage, source: &io::Error) -> ErrorKind {
    match (stage, source.raw_os_error()) {
        (_, Some(libc::EMFILE | libc::ENFILE)) => ErrorKind::NoDescriptors,
        (_, Some(libc::ENOMEM)) => ErrorKind::NoMemory,
        (Stage::Clone | Stage::Exec | Stage::Uid, Some(libc::EAGAIN)) => ErrorKind::NoProcessSlots,
        (Stage::Clone, Some(libc::ENOSYS)) => ErrorKind::Unsupported,
        (Stage::Exec | Stage::Lookup, Some(libc::ENOENT | libc::ENOTDIR)) => ErrorKind::NotFound,
        (Stage::Exec | Stage::Lookup, Some(libc::EACCES | libc::EISDIR | libc::EPERM)) => ErrorKind::PermissionDenied,
        (Stage::Exec | Stage::Lookup, _) => ErrorKind::Exec,
        (Stage::Register, _) => ErrorKind::Io,
        _ => ErrorKind::Setup,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        if let Some(command) = &e.command {
            match &e.place {
                Some((place, count)) => write!(f, "{command} (command {place} of {count}): ")?,
                None => write!(f, "{command}: ")?,
            }
        }
        self.write_what(f)?;
        if let Some(path) = &e.path {
            write!(f, " {}", Word(path.as_os_str()))?;
        }
        match &e.detail {
            // Then it is the whole of what there is to say.
            Some(detail) if self.is_told_by_detail() => f.write_str(detail)?,
            Some(detail) => write!(f, ": {detail}")?,
            None => {}
        }
        match &e.source {
            // The words say it better than ENOENT.
            Some(source) if !self.is_missing_in_path() => write!(f, ": {source}")?,
            _ => {}
        }
        self.write_stderr(f)
    }
}

impl Error {
    fn is_told_by_detail(&self) -> bool {
        let e = &*self.0;
        e.kind == ErrorKind::Io && e.stage.is_none() && e.cause.is_none() && e.detail.is_some()
    }

    fn is_missing_in_path(&self) -> bool {
        (self.0.kind, self.0.stage) == (ErrorKind::NotFound, Some(Stage::Lookup))
    }

    fn write_what(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        match (e.kind, &e.exit, &e.cause, e.stage) {
            (ErrorKind::Unsuccessful, Some(exit), ..) => write!(f, "{exit}"),
            (ErrorKind::StatusLost, ..) => f.write_str("the exit status was taken by somebody else"),
            (ErrorKind::OutputLimit, _, None, _) => f.write_str("more output than its limit allows"),
            (ErrorKind::OutputCut, ..) => f.write_str("somebody still held its output open when reading was ended"),
            (ErrorKind::CancelFailed, ..) => f.write_str("canceling the command failed"),
            (ErrorKind::StreamUsed, ..) => f.write_str("a stream that serves one spawn was already used"),
            (ErrorKind::Forked, ..) => f.write_str("this handle was made before the process forked"),
            (ErrorKind::ReactorDied, ..) => f.write_str("the reactor thread died"),
            (ErrorKind::ShutDown, ..) => f.write_str("shutting down: nothing is started any more"),
            (ErrorKind::NoSuchChild, ..) => f.write_str("no such child"),
            (ErrorKind::RelativeLookup, ..) => f.write_str("cannot run executable found relative to current directory"),
            (ErrorKind::InvalidInput, ..) if e.command.is_none() => f.write_str("invalid input"),
            (ErrorKind::InvalidInput, ..) => f.write_str("invalid command"),
            (ErrorKind::NotFound, .., Some(Stage::Lookup)) => f.write_str("no directory of PATH has the program"),
            (ErrorKind::Unsupported, ..) => f.write_str("not supported here"),
            (_, Some(exit), Some(cause), _) => write!(f, "stopped ({cause}), {exit}"),
            (_, None, Some(cause), _) => write!(f, "not started: {cause}"),
            (ErrorKind::NoProcessSlots, _, _, Some(stage)) => write!(f, "no process slots left: could not {stage}"),
            (_, _, _, Some(stage)) => write!(f, "could not {stage}"),
            (ErrorKind::NoDescriptors, ..) => f.write_str("no descriptors left"),
            (ErrorKind::NoRoom, ..) => f.write_str("no room"),
            (ErrorKind::QueueFull, ..) => f.write_str("the queue is full"),
            (ErrorKind::NoMemory, ..) => f.write_str("no memory left"),
            _ if self.is_told_by_detail() => Ok(()),
            _ => f.write_str("operation failed"),
        }
    }

    /// The end of the captured stderr, on a line of its own.
    fn write_stderr(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(captured) = &self.0.captured else {
            return Ok(());
        };
        let stderr = captured.stderr.trim_ascii();
        if stderr.is_empty() || self.0.exit.is_none() {
            return Ok(());
        }
        let mut shown = &stderr[stderr.len().saturating_sub(STDERR_SHOWN_BYTES)..];
        if shown.len() < stderr.len() {
            // Not in the midst of a character.
            let within = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
            shown = &shown[shown.iter().take(3).take_while(|byte| within(byte)).count()..];
        }
        let dots = if shown.len() < stderr.len() { "…" } else { "" };
        write!(f, "\nstderr: {dots}")?;
        // What a program writes must not steer the terminal that shows our message.
        String::from_utf8_lossy(shown).chars().try_for_each(|c| match c {
            '\n' | '\t' => f.write_char(c),
            c if c.is_control() => write!(f, "{}", c.escape_default()),
            c => f.write_char(c),
        })
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &*self.0;
        f.debug_struct("Error")
            .field("kind", &e.kind)
            .field("stage", &e.stage)
            .field("errno", &self.raw_os_error())
            .field("message", &self.to_string())
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let e = &*self.0;
        e.source.as_ref().map(|s| s as _).or_else(|| e.cause.as_ref().and_then(Cause::source))
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::new(error.io_kind(), error)
    }
}
