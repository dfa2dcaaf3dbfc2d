//! The command line as clap reads it. Knows what may be said, not what it leads to.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use clap::{ArgAction, Parser, ValueEnum};
use clap_complete::Shell;

use super::halt::Halt;
use super::values::{Jobs, bytes, duration};

/// Runs many commands in parallel, each one's output whole.
///
/// COMMAND is run once for each argument: those after ":::", else the lines of standard input. "{}" in it is replaced by the argument;
/// without "{}" the argument is appended. Nothing goes through a shell unless --shell is given. Without a COMMAND each argument is a
/// command line.
///
/// Ctrl-C stops it: nothing more is started, what runs gets SIGTERM and, after --kill-after, SIGKILL; a second Ctrl-C kills at once.
#[derive(Debug, Parser)]
#[command(
    name = "pidloop",
    version,
    args_override_self = true,
    override_usage = "pidloop [OPTIONS] [COMMAND [ARGUMENT]...] [::: ARGUMENT...]...",
    after_help = "Exit status: 0 if every job succeeded; 1 to 100: so many failed; 101: more than 100 did; 130, 143, 129: stopped by \
                  SIGINT, SIGTERM, SIGHUP; 255: pidloop itself failed. The manual is docs/CLI.md."
)]
pub(crate) struct Options {
    /// The command, its arguments, and what follows ":::", ":::+", "::::" or "::::+".
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) words: Vec<OsString>,

    /// Input items end with a NUL byte, not with a newline.
    #[arg(short = '0', long, help_heading = "Input")]
    pub(crate) null: bool,

    /// Reads the arguments from FILE ("-": standard input); given several times, every combination of their lines.
    #[arg(short = 'a', long, value_name = "FILE", help_heading = "Input")]
    pub(crate) arg_file: Vec<PathBuf>,

    /// Gives each command at most N arguments; "{1}", "{2}" name them. 0: one job for each argument, which it does not get.
    #[arg(short = 'n', short_alias = 'N', long, value_name = "N", default_value_t = 1, help_heading = "Input")]
    pub(crate) max_args: usize,

    /// What is written for "{}"; the other forms stay as they are.
    #[arg(
        short = 'I',
        long,
        value_name = "STR",
        value_parser = NonEmptyStringValueParser::new(),
        default_value = "{}",
        hide_default_value = true,
        help_heading = "Input"
    )]
    pub(crate) replace: String,

    /// Skips arguments that are empty or only white space.
    #[arg(short = 'r', long, help_heading = "Input")]
    pub(crate) no_run_if_empty: bool,

    /// Runs the command by /bin/sh; what replaces "{}" is quoted, the command itself is not.
    #[arg(long, help_heading = "Running")]
    pub(crate) shell: bool,

    /// Pipes each job's standard output into CMD, which is as a command after COMMAND; given several times, one into the next. The job
    /// fails if any of them does; one that SIGPIPE ends, as its reader had enough, does not count.
    #[arg(long, value_name = "CMD", value_parser = NonEmptyStringValueParser::new(), help_heading = "Running")]
    pub(crate) pipe_to: Vec<String>,

    /// Runs each job on a terminal of its own, as large as ours: programs color and page as they do there; stderr arrives with stdout.
    /// Nobody types there: who reads it finds the end of the input.
    #[arg(long, conflicts_with_all = ["ungroup", "pipe_to"], help_heading = "Running")]
    pub(crate) tty: bool,

    /// Runs N jobs at once; "N%": of the number of CPUs, "+N", "-N": so many more or fewer; 0: as many as possible [default: number of CPUs].
    #[arg(
        short,
        long,
        visible_short_alias = 'P',
        value_name = "N",
        allow_hyphen_values = true,
        default_value = "100%",
        hide_default_value = true,
        help_heading = "Running"
    )]
    pub(crate) jobs: Jobs,

    /// Stops a job that runs for longer than D (seconds, or as in "1m30s"); 0: none.
    #[arg(long, value_name = "D", value_parser = duration, help_heading = "Running")]
    pub(crate) timeout: Option<Duration>,

    /// How long a job has from SIGTERM to SIGKILL; also how long output is awaited that a job's own children hold open after its end.
    #[arg(long, value_name = "D", value_parser = duration, default_value = "2s", help_heading = "Running")]
    pub(crate) kill_after: Duration,

    /// Waits D between the starts of two jobs.
    #[arg(long, value_name = "D", value_parser = duration, default_value = "0", hide_default_value = true, help_heading = "Running")]
    pub(crate) delay: Duration,

    /// Tries a failing job N times in all.
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true, help_heading = "Running")]
    pub(crate) retries: u32,

    /// Waits D before a job is tried again.
    #[arg(long, value_name = "D", value_parser = duration, default_value = "0", hide_default_value = true, help_heading = "Running")]
    pub(crate) retry_delay: Duration,

    /// Ends early: "never", or "now" or "soon" with ",fail=", ",success=" or ",done=" and a number or a percentage of the jobs.
    #[arg(
        long,
        value_name = "WHEN,WHY=N",
        default_value = "never",
        hide_default_value = true,
        help_heading = "Running"
    )]
    pub(crate) halt: Halt,

    /// Prints the commands instead of running them.
    #[arg(long, help_heading = "Running")]
    pub(crate) dry_run: bool,

    /// Prints output in the order of the input.
    #[arg(short, long, conflicts_with = "ungroup", help_heading = "Output")]
    pub(crate) keep_order: bool,

    /// Starts each line of output with the job's arguments and a tab.
    #[arg(long, conflicts_with = "ungroup", help_heading = "Output")]
    pub(crate) tag: bool,

    /// Prints output line by line as it comes; lines of different jobs may mix.
    #[arg(long, visible_alias = "lb", conflicts_with = "ungroup", help_heading = "Output")]
    pub(crate) line_buffer: bool,

    /// Jobs write to the terminal (or wherever) themselves, as with xargs; their output may mix anyhow.
    #[arg(short, long, help_heading = "Output")]
    pub(crate) ungroup: bool,

    /// Keeps at most BYTES of each stream of a job (K, M, G: powers of 1024): the beginning and the end.
    #[arg(long, value_name = "BYTES", value_parser = bytes, conflicts_with_all = ["ungroup", "line_buffer"], help_heading = "Output")]
    pub(crate) max_output: Option<usize>,

    /// Prints one line of JSON for each job, output, usage and reason in it, and nothing else.
    #[arg(long, conflicts_with_all = ["ungroup", "line_buffer", "tag"], help_heading = "Output")]
    pub(crate) json: bool,

    /// Also keeps each job's output in files below DIR.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["ungroup", "line_buffer"], help_heading = "Output")]
    pub(crate) results: Option<PathBuf>,

    /// Prints each command to standard error when it is started.
    #[arg(short = 't', long, help_heading = "Output")]
    pub(crate) verbose: bool,

    /// Shows progress on standard error; the default if that is a terminal.
    #[arg(long, overrides_with = "no_bar", help_heading = "Output")]
    pub(crate) bar: bool,

    /// Shows no progress.
    #[arg(long, help_heading = "Output")]
    pub(crate) no_bar: bool,

    /// Ends with a summary on standard error; the default with a progress bar.
    #[arg(long, help_heading = "Output")]
    pub(crate) summary: bool,

    /// Colors tags and messages.
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_value = "auto",
        default_missing_value = "always",
        hide_default_value = true,
        help_heading = "Output"
    )]
    pub(crate) color: When,

    /// Writes a line for each ended job to FILE, in the columns of GNU parallel.
    #[arg(long, value_name = "FILE", help_heading = "Record")]
    pub(crate) joblog: Option<PathBuf>,

    /// Leaves out the jobs that the joblog has, and adds the others to it.
    #[arg(long, requires = "joblog", help_heading = "Record")]
    pub(crate) resume: bool,

    /// As --resume, but runs those again that failed.
    #[arg(long, requires = "joblog", help_heading = "Record")]
    pub(crate) resume_failed: bool,

    /// Prints the completions for a shell.
    #[arg(long, value_name = "SHELL", action = ArgAction::Set, exclusive = true, help_heading = "Documents")]
    pub(crate) completions: Option<Shell>,

    /// Prints the manual page (roff).
    #[arg(long, exclusive = true, help_heading = "Documents")]
    pub(crate) man: bool,
}

/// When something is done that depends on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    /// On a terminal.
    Auto,
    Always,
    Never,
}
