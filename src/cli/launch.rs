//! From the words of a job to a command of the library, and from its errors to messages. Knows no queue.

use std::ffi::{OsStr, OsString};
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use pidloop::{ChildId, Command, Error, ErrorKind, Limit, Pipeline, Reactor, Resource, Signal, Stdio, Terminal};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Resource as Kernel, Rlimit, getrlimit, setrlimit};
use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};

use super::options::Options;
use super::streams::Ends;
use super::values::Half;

/// A running command takes a pidfd and two pipes, or a pidfd and a terminal three times.
const DESCRIPTORS_PER_COMMAND: u64 = 3;
/// What arguments and environment may take is a quarter of the stack's limit, of at most 24 MiB, but never less than 128 KiB. execve(2).
const STACK_MAX_BYTES: u64 = 24 << 20;
const ARGUMENTS_MIN_BYTES: u64 = 128 << 10;
/// What the program itself has open, generously.
const DESCRIPTORS_OF_OURS: u64 = 64;
/// The longest argument that Linux takes (`MAX_ARG_STRLEN`), its final NUL byte not counted.
const ARGUMENT_MAX_BYTES: usize = (128 << 10) - 1;

/// What the program itself was started with, beside its three streams, for its jobs.
///
/// A list: it lets a job have these alone, and a start cost the same however many descriptors of running jobs are open.
#[derive(Debug)]
pub(crate) enum Heirlooms {
    These(Vec<RawFd>),
    /// There is no `/proc` to tell.
    Unknown,
}

impl Heirlooms {
    /// Before anything of ours is open.
    pub(crate) fn look() -> Heirlooms {
        let Ok(infos) = std::fs::read_dir("/proc/self/fdinfo") else {
            return Heirlooms::Unknown;
        };
        let kept = infos.filter_map(|info| {
            let info = info.ok()?;
            let number: RawFd = info.file_name().to_str()?.parse().ok()?;
            let text = std::fs::read_to_string(info.path()).ok()?;
            (number > 2 && !closes_on_exec(&text)).then_some(number)
        });
        Heirlooms::These(kept.collect())
    }
}

/// `info`: proc_pid_fdinfo(5).
fn closes_on_exec(info: &str) -> bool {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).unwrap_or(0);
    flags & OFlags::CLOEXEC.bits() != 0
}

/// How jobs are started.
#[derive(Debug)]
pub(crate) struct Launcher {
    heirlooms: Heirlooms,
    output: Output,
    kill_after: Duration,
    tty: bool,
    /// A run that goes on with this one's record must not meet its jobs, should we be killed. It costs a thread's help at each start.
    die_with_us: bool,
    /// The limit of open descriptors that jobs get, if we have raised our own.
    open_files: Option<(u64, u64)>,
}

/// Where a job's output goes.
#[derive(Clone, Copy, Debug)]
enum Output {
    /// To memory; only the ends of more than so many bytes.
    Captured(Option<Half>),
    /// Line by line, as it comes.
    Streamed,
    /// Where ours goes.
    Inherited,
}

impl Launcher {
    pub(crate) fn new(options: &Options, heirlooms: Heirlooms) -> Launcher {
        let output = match (options.ungroup, options.line_buffer) {
            (true, _) => Output::Inherited,
            (_, true) => Output::Streamed,
            _ => Output::Captured(options.max_output.map(Half::of)),
        };
        Launcher {
            heirlooms,
            output,
            kill_after: options.kill_after,
            tty: options.tty,
            die_with_us: options.joblog.is_some(),
            open_files: raise_open_files(options.jobs.0, descriptors_per_job(options)),
        }
    }

    pub(crate) fn streams(&self) -> bool {
        matches!(self.output, Output::Streamed)
    }

    /// Which parts are kept of output that is too long.
    pub(crate) fn halves(&self) -> Option<Half> {
        match self.output {
            Output::Captured(halves) => halves,
            Output::Streamed | Output::Inherited => None,
        }
    }

    /// Starts a job, one command into the next.
    pub(crate) fn launch(&self, reactor: &mut Reactor, commands: &[Vec<OsString>]) -> Result<Launched, Refused> {
        match commands {
            [words] => self.launch_one(reactor, words).map_err(|error| Refused::of(&error, commands)),
            _ => self.launch_line(reactor, commands),
        }
    }

    fn launch_one(&self, reactor: &mut Reactor, words: &[OsString]) -> Result<Launched, Error> {
        let mut command = self.command(words);
        command.group().stdin(Stdio::null());
        if self.tty {
            command.terminal(&self.terminal());
        } else {
            command.stdout(self.stdio()).stderr(self.stdio());
        }
        let id = reactor.spawn(&command)?;
        let ends = self.streams().then(|| match reactor.take_terminal(id) {
            Some(terminal) => {
                // Nobody else will type; if it fails somebody waits for that.
                let _ = terminal.type_end();
                [Some(terminal.into()), None]
            }
            None => [reactor.take_stdout(id).map(Into::into), reactor.take_stderr(id).map(Into::into)],
        });
        Ok(Launched { ids: vec![id], ends })
    }

    fn launch_line(&self, reactor: &mut Reactor, commands: &[Vec<OsString>]) -> Result<Launched, Refused> {
        let mut line = Pipeline::new(commands.iter().map(|words| self.command(words)));
        line.group().stdin(Stdio::null()).stdout(self.stdio());
        // Lines that come at once are of one stream, whose they are.
        let errors = if self.streams() { Some(pipe()?) } else { None };
        let errors = errors.map(|(read, write)| {
            line.stderr(write);
            read
        });
        if errors.is_none() {
            line.stderr(self.stdio());
        }
        let ids = reactor.spawn_pipeline(&line).map_err(|error| Refused::of(&error, commands))?;
        let last = ids[ids.len() - 1];
        let ends = errors.map(|errors| [reactor.take_stdout(last).map(Into::into), Some(errors)]);
        Ok(Launched { ids, ends })
    }

    fn stdio(&self) -> Stdio {
        match self.output {
            Output::Captured(None) => Stdio::captured(),
            Output::Captured(Some(half)) => Stdio::captured_limited(Limit::head_tail(half.head, half.tail)),
            Output::Streamed => Stdio::piped(),
            Output::Inherited => Stdio::inherit(),
        }
    }

    /// As large as ours; its output is printed elsewhere, where a carriage return is none of its business.
    fn terminal(&self) -> Terminal {
        let (rows, columns) = terminal_size();
        let mut terminal = Terminal::new();
        terminal.size(rows, columns).echo(false).carriage_returns(false).output(self.stdio());
        if !self.streams() {
            terminal.typed("");
        }
        terminal
    }

    fn command(&self, words: &[OsString]) -> Command {
        let mut command = Command::new(words.first().map_or("".as_ref(), OsString::as_os_str));
        command.args(&words[1.min(words.len())..]);
        // Stops reach the whole tree; what somebody else still holds open is awaited no longer than a stop takes.
        command.wait_delay(self.kill_after);
        match &self.heirlooms {
            Heirlooms::These(numbers) => {
                for number in numbers {
                    command.inherit_fd(*number);
                }
            }
            Heirlooms::Unknown => {
                command.inherit_fds();
            }
        }
        if self.die_with_us {
            command.parent_death_signal(Signal::SIGKILL);
        }
        if let Some((soft, hard)) = self.open_files {
            command.rlimit(Resource::OpenFiles, soft, hard);
        }
        command
    }
}

/// A job that runs.
pub(crate) struct Launched {
    /// Of its commands, first to last.
    pub(crate) ids: Vec<ChildId>,
    /// Our ends of what it writes, if that is printed as it comes.
    pub(crate) ends: Option<Ends>,
}

/// A job that could not be started.
pub(crate) struct Refused {
    pub(crate) why: String,
    /// What a shell gives for it.
    pub(crate) status: i32,
    /// The end of another job may make room.
    pub(crate) is_transient: bool,
}

impl Refused {
    fn of(error: &Error, commands: &[Vec<OsString>]) -> Refused {
        let (why, status) = explain(error, commands);
        Refused { why, status, is_transient: error.is_transient() }
    }
}

/// (read end, write end).
fn pipe() -> Result<(OwnedFd, OwnedFd), Refused> {
    let refused = |errno| Refused { why: format!("pipe: {errno}"), status: 126, is_transient: true };
    pipe_with(PipeFlags::CLOEXEC).map_err(refused)
}

/// Rows and columns of our terminal, whichever of our streams it is.
pub(crate) fn terminal_size() -> (u16, u16) {
    let ours = [stdout(), stderr(), stdin()].into_iter().find_map(|stream| tcgetwinsize(stream).ok());
    ours.filter(|size| size.ws_row > 0 && size.ws_col > 0).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

/// Of a job's terminal. It fails for one that is gone.
pub(crate) fn resize(end: BorrowedFd<'_>, rows: u16, columns: u16) {
    let _ = tcsetwinsize(end, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 });
}

fn descriptors_per_job(options: &Options) -> u64 {
    (DESCRIPTORS_PER_COMMAND + u64::from(options.tty)) * (1 + options.pipe_to.len() as u64)
}

/// Makes room for the descriptors of so many jobs, as far as we may; the limit that was there, if it was raised.
fn raise_open_files(jobs: usize, per_job: u64) -> Option<(u64, u64)> {
    let Rlimit { current, maximum } = getrlimit(Kernel::Nofile);
    let (soft, hard) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    let wanted = (jobs as u64).saturating_mul(per_job).saturating_add(DESCRIPTORS_OF_OURS);
    let raised = Rlimit { current: maximum, maximum };
    (wanted > soft && soft < hard && setrlimit(Kernel::Nofile, raised).is_ok()).then_some((soft, hard))
}

/// Why a job could not be started, and the exit status that a shell gives for it.
fn explain(error: &Error, commands: &[Vec<OsString>]) -> (String, i32) {
    let message = error.to_string();
    // The command may be long, and is shown anyway; of several it has to be said which.
    let prefix = error.command().filter(|_| commands.len() == 1).map_or(0, |command| command.len() + ": ".len());
    let mut why = message.get(prefix..).unwrap_or(&message).to_owned();
    let words = &commands[error.pipeline_index().unwrap_or(0)];
    if let Some(longest) = words.iter().map(|word| word.len()).max().filter(|bytes| *bytes > ARGUMENT_MAX_BYTES) {
        why = format!("{why}: an argument has {longest} bytes, and Linux takes {ARGUMENT_MAX_BYTES}");
    } else if error.raw_os_error() == Some(Errno::TOOBIG.raw_os_error()) {
        why.push_str(&too_many(words));
    }
    if error.kind() != ErrorKind::NotFound {
        return (why, 126);
    }
    if words.first().is_some_and(|program| is_for_a_shell(program)) {
        why.push_str(" (no shell reads the command unless you say --shell)");
    }
    (why, 127)
}

/// What the kernel says too shortly.
fn too_many(words: &[OsString]) -> String {
    // Each word takes its bytes, their end, and a pointer; so does each variable of the environment.
    let cost = |bytes: usize| bytes + 1 + size_of::<usize>();
    let arguments: usize = words.iter().map(|word| cost(word.len())).sum();
    let environment: usize = std::env::vars_os().map(|(name, value)| cost(name.len() + 1 + value.len())).sum();
    let stack = getrlimit(Kernel::Stack).current.unwrap_or(STACK_MAX_BYTES).min(STACK_MAX_BYTES);
    format!(
        ": {} words take {arguments} bytes and the environment {environment}, and here Linux takes {} for both: give each \
         job fewer (-n)",
        words.len(),
        (stack / 4).max(ARGUMENTS_MIN_BYTES)
    )
}

/// Whether a program's name looks like a whole command line, or like what only a shell understands.
fn is_for_a_shell(program: &OsStr) -> bool {
    program.as_encoded_bytes().iter().any(|byte| byte.is_ascii_whitespace() || b"|&;<>()$`*?=".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_tell_what_closes_on_exec() {
        assert!(closes_on_exec("pos:\t0\nflags:\t02100002\nmnt_id:\t15\n"));
        assert!(!closes_on_exec("pos:\t0\nflags:\t0100002\nmnt_id:\t15\n"));
        assert!(!closes_on_exec(""));
    }
}
