//! From the words of a job to a command of the library, and from its errors to messages. Knows no queue.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::time::Duration;

use pidloop::{Command, Error, ErrorKind, Limit, Resource, Signal, Stdio};
use rustix::fs::OFlags;
use rustix::process::{Resource as Kernel, Rlimit, getrlimit, setrlimit};

use super::options::Options;
use super::values::Half;

/// A running job takes a pidfd and two pipes.
const DESCRIPTORS_PER_JOB: u64 = 3;
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
            die_with_us: options.joblog.is_some(),
            open_files: raise_open_files(options.jobs.0),
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

    pub(crate) fn command(&self, words: &[OsString]) -> Command {
        let stdio = || match self.output {
            Output::Captured(None) => Stdio::captured(),
            Output::Captured(Some(half)) => Stdio::captured_limited(Limit::head_tail(half.head, half.tail)),
            Output::Streamed => Stdio::piped(),
            Output::Inherited => Stdio::inherit(),
        };
        let mut command = Command::new(words.first().map_or("".as_ref(), OsString::as_os_str));
        command.args(&words[1.min(words.len())..]);
        // Stops reach the whole tree; what somebody else still holds open is awaited no longer than a stop takes.
        command.group().wait_delay(self.kill_after);
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
        command.stdin(Stdio::null()).stdout(stdio()).stderr(stdio());
        if self.die_with_us {
            command.parent_death_signal(Signal::SIGKILL);
        }
        if let Some((soft, hard)) = self.open_files {
            command.rlimit(Resource::OpenFiles, soft, hard);
        }
        command
    }
}

/// Makes room for the descriptors of so many jobs, as far as we may; the limit that was there, if it was raised.
fn raise_open_files(jobs: usize) -> Option<(u64, u64)> {
    let Rlimit { current, maximum } = getrlimit(Kernel::Nofile);
    let (soft, hard) = (current.unwrap_or(u64::MAX), maximum.unwrap_or(u64::MAX));
    let wanted = (jobs as u64).saturating_mul(DESCRIPTORS_PER_JOB).saturating_add(DESCRIPTORS_OF_OURS);
    let raised = Rlimit { current: maximum, maximum };
    (wanted > soft && soft < hard && setrlimit(Kernel::Nofile, raised).is_ok()).then_some((soft, hard))
}

/// Why a job could not be started, and the exit status that a shell gives for it.
pub(crate) fn explain(error: &Error, words: &[OsString]) -> (String, i32) {
    let message = error.to_string();
    // The command may be long, and is shown anyway.
    let prefix = error.command().map_or(0, |command| command.len() + ": ".len());
    let mut why = message.get(prefix..).unwrap_or(&message).to_owned();
    if let Some(longest) = words.iter().map(|word| word.len()).max().filter(|bytes| *bytes > ARGUMENT_MAX_BYTES) {
        why = format!("{why}: an argument has {longest} bytes, and Linux takes {ARGUMENT_MAX_BYTES}");
    }
    if error.kind() != ErrorKind::NotFound {
        return (why, 126);
    }
    if words.first().is_some_and(|program| is_for_a_shell(program)) {
        why.push_str(" (no shell reads the command unless you say --shell)");
    }
    (why, 127)
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
