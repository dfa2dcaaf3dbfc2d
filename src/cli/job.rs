//! A job: its arguments, its tries, what became of it. Knows no processes and no output.

use std::ffi::OsString;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pidloop::{Captured, ChildId, Exit, PipelineExit, Usage};

use super::streams::Streams;
use super::timers::Key;

/// Something to run.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// Counted from 1, in the order of the input.
    pub(crate) seq: u64,
    pub(crate) arguments: Vec<OsString>,
    /// How often it was started.
    pub(crate) tries: u32,
}

/// A job that has a process.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) job: Job,
    pub(crate) slot: usize,
    pub(crate) pid: u32,
    pub(crate) started: Start,
    pub(crate) deadline: Option<Key>,
    /// Why it was asked to stop.
    pub(crate) stopped: Option<Stop>,
    /// What it writes, if that is printed as it comes.
    pub(crate) streams: Option<Streams>,
    /// Its commands, one into the next, and how each that is done ended.
    pub(crate) ends: Vec<(ChildId, Option<(Exit, Captured)>)>,
    /// Its end, while the rest of its streams is awaited.
    pub(crate) exit: Option<PipelineExit>,
}

impl Running {
    /// The commands that are not done.
    pub(crate) fn left(&self) -> impl Iterator<Item = ChildId> {
        self.ends.iter().filter(|(_, end)| end.is_none()).map(|(id, _)| *id)
    }
}

/// When something started, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    pub(crate) instant: Instant,
    wall: SystemTime,
}

impl Start {
    pub(crate) fn now() -> Start {
        Start { instant: Instant::now(), wall: SystemTime::now() }
    }

    /// Seconds since 1970.
    pub(crate) fn epoch(&self) -> f64 {
        self.wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }
}

/// Why we stop a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    TimedOut,
    /// Ctrl-C and its kin, `--halt now`, a closed standard output: the job is not to blame, and not done.
    Abandoned,
}

/// What became of a job.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) reason: Reason,
    /// In the words of GNU parallel: its exit code; 126, 127 if it could not be run; -1 if it was stopped; 0 with a signal.
    pub(crate) exitval: i32,
    pub(crate) signal: i32,
    pub(crate) runtime: Duration,
    pub(crate) usage: Option<Usage>,
    pub(crate) pid: Option<u32>,
    pub(crate) held_open: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// By itself: with an exit code or by a signal.
    Ended,
    Stopped(Stop),
    /// Somebody else took its status.
    Lost,
    /// Why it could not be run.
    NotStarted(String),
}

impl Outcome {
    /// Of a process; `stopped`: why we stopped it, if we did. Exit wins: one that had ended before was not stopped.
    pub(crate) fn of(exit: &PipelineExit, stopped: Option<Stop>) -> Outcome {
        let exits = exit.exits();
        let signal = exit.exit().signal().map_or(0, |signal| signal.as_raw());
        let (reason, exitval, signal) = match (exit.cause(), stopped) {
            (Some(_), Some(stop)) => (Reason::Stopped(stop), -1, pidloop::Signal::SIGTERM.as_raw().max(signal)),
            _ if exits.iter().any(|exit| exit.status().is_none()) => (Reason::Lost, -1, 0),
            _ => (Reason::Ended, exit.code().unwrap_or(0), signal),
        };
        Outcome {
            reason,
            exitval,
            signal,
            runtime: runtime(exits),
            usage: usage(exits),
            pid: exits.first().map(Exit::pid),
            held_open: exits.iter().any(Exit::output_held_open),
        }
    }

    pub(crate) fn not_started(why: String, exitval: i32) -> Outcome {
        Outcome {
            reason: Reason::NotStarted(why),
            exitval,
            signal: 0,
            runtime: Duration::ZERO,
            usage: None,
            pid: None,
            held_open: false,
        }
    }

    pub(crate) fn is_success(&self) -> bool {
        self.exitval == 0 && self.signal == 0
    }

    /// Whether it is to be run again by a later run, and counts neither as a success nor as a failure.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.reason == Reason::Stopped(Stop::Abandoned)
    }

    /// As a shell has it in `$?`.
    pub(crate) fn shell_status(&self) -> i32 {
        match self.signal {
            0 => self.exitval,
            signal => 128 + signal,
        }
    }
}

/// From the first start to the last end.
fn runtime(exits: &[Exit]) -> Duration {
    let begun = exits.iter().map(Exit::spawned_at).min();
    let ended = exits.iter().map(Exit::exited_at).max();
    ended.zip(begun).map_or(Duration::ZERO, |(ended, begun)| ended.saturating_duration_since(begun))
}

/// Of all together; the largest resident set is that of one of them.
fn usage(exits: &[Exit]) -> Option<Usage> {
    exits.iter().map(|exit| exit.usage().copied()).reduce(|sum, other| {
        let (mut sum, other) = (sum?, other?);
        sum.user_time += other.user_time;
        sum.system_time += other.system_time;
        sum.max_rss_bytes = sum.max_rss_bytes.max(other.max_rss_bytes);
        sum.minor_faults += other.minor_faults;
        sum.major_faults += other.major_faults;
        sum.blocks_in += other.blocks_in;
        sum.blocks_out += other.blocks_out;
        sum.voluntary_switches += other.voluntary_switches;
        sum.involuntary_switches += other.involuntary_switches;
        Some(sum)
    })?
}
