//! The command-line program, from its arguments to its exit status. Uses the public API of the library alone.

mod bar;
mod finish;
mod groups;
mod halt;
mod hub;
mod input;
mod job;
mod joblog;
mod launch;
mod options;
mod printer;
mod report;
mod run;
mod signals;
mod steer;
mod streams;
mod tally;
mod template;
mod timers;
mod values;
mod voice;
mod wake;

use std::io::{ErrorKind, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::input::{Input, Sources};
use self::joblog::Joblog;
use self::launch::{Heirlooms, Launcher};
use self::options::Options;
use self::run::{Commands, Run, resume};
use self::template::Template;
use self::voice::complain;
use self::wake::Waker;

/// The exit status when the program itself fails; no number of failed jobs.
const FAILED: u8 = 255;

pub(crate) fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { FAILED } else { 0 });
        }
    };
    if let Some(document) = document(&options) {
        return match std::io::stdout().write_all(&document).and_then(|()| std::io::stdout().flush()) {
            // A reader that went away has read enough.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                complain(&format!("standard output: {error}"));
                ExitCode::from(FAILED)
            }
            _ => ExitCode::SUCCESS,
        };
    }
    match prepare(options) {
        // A panic's own exit status is that of more than 100 failed jobs.
        Ok(run) => ExitCode::from(catch_unwind(AssertUnwindSafe(|| run.run())).unwrap_or(FAILED)),
        Err(why) => {
            complain(&why);
            ExitCode::from(FAILED)
        }
    }
}

/// What is printed instead of running anything.
fn document(options: &Options) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    if let Some(shell) = options.completions {
        clap_complete::generate(shell, &mut Options::command(), "pidloop", &mut text);
    } else if options.man {
        clap_mangen::Man::new(Options::command()).render(&mut text).ok()?;
    } else {
        return None;
    }
    Some(text)
}

/// Opens everything, before anything is started.
fn prepare(mut options: Options) -> Result<Run, String> {
    let heirlooms = Heirlooms::look();
    let waker = Waker::new().map_err(|error| format!("eventfd: {error}"))?;
    let delimiter = if options.null { 0 } else { b'\n' };
    let words = std::mem::take(&mut options.words);
    let (command, mut sources) = input::open(words, &options.arg_file, delimiter, waker.clone())?;
    if options.halt.0.is_some_and(|condition| condition.needs_total()) {
        sources = Sources::Groups(sources.load(options.no_run_if_empty)?);
    }
    if command.is_empty() && options.max_args == 0 {
        return Err("without a command and without arguments there is nothing to run".to_owned());
    }
    let template = Template::new(&command, options.shell, options.max_args != 0, options.replace.as_bytes());
    let of_line = |line: &String| {
        let template = Template::of_line(line, options.shell, options.replace.as_bytes());
        template.map_err(|why| format!("--pipe-to: {why}: {line}"))
    };
    let pipes = options.pipe_to.iter().map(of_line).collect::<Result<_, _>>()?;
    let input = Input::new(sources, options.max_args, options.no_run_if_empty);
    let joblog = match &options.joblog {
        Some(path) if !options.dry_run => Some(Joblog::open(path, resume(&options))?),
        _ => None,
    };
    let launcher = Launcher::new(&options, heirlooms);
    Run::new(options, Commands { template, pipes }, input, joblog, launcher, waker)
}
