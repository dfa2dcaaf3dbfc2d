//! The command-line program, as its users run it: what docs/CLI.md promises, of the built binary, with real commands and signals.
#![cfg(feature = "cli")]

#[path = "../common/mod.rs"]
mod common;

mod bad_input;
mod basics;
mod choices;
mod pipes;
mod record;
mod stopping;
mod terminal;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::eventually;
use rustix::process::{Pid, Signal, kill_process};

/// The program, with nothing of this environment that would color or change it.
fn pidloop() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pidloop"));
    command.env_remove("NO_COLOR").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // What a script starts in the background ignores the middle two, and under nohup the first: then so do we.
    // SAFETY: four system calls, between fork and exec.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    command
}

/// How a run ended and what it wrote.
#[derive(Debug)]
struct Ran {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Ran {
    /// The exit status, or 128 and the signal, as a shell has it.
    fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap())
    }
}

/// Runs it to its end, with this standard input.
fn run_with(input: &[u8], arguments: &[&str]) -> Ran {
    run_command(pidloop().args(arguments), input)
}

fn run_command(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // It need not read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

fn run(arguments: &[&str]) -> Ran {
    run_with(b"", arguments)
}

/// A run in progress.
struct Live {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

fn start(arguments: &[&str]) -> Live {
    let mut child = pidloop().args(arguments).stdin(Stdio::piped()).spawn().unwrap();
    Live { stdin: child.stdin.take(), stdout: BufReader::new(child.stdout.take().unwrap()), child }
}

impl Live {
    /// The next line that the run prints.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(mut self) -> Ran {
        drop(self.stdin.take());
        let mut stdout = String::new();
        std::io::Read::read_to_string(&mut self.stdout, &mut stdout).unwrap();
        let output = self.child.wait_with_output().unwrap();
        Ran { status: output.status, stdout, stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
    }
}

/// A number of seconds to sleep that no other test sleeps, by which its sleepers are found.
fn marker() -> String {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    format!("300.{}000{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// How many living processes have `marker` as an argument, the runs of pidloop itself left out.
fn sleepers(marker: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap();
    let command_lines = processes.filter_map(|entry| std::fs::read(entry.unwrap().path().join("cmdline")).ok());
    let sleeps = |line: &Vec<u8>| {
        let mut words = line.split(|byte| *byte == 0);
        words.next().is_some_and(|program| program.ends_with(b"sleep")) && words.any(|word| word == marker.as_bytes())
    };
    command_lines.filter(sleeps).count()
}

fn none_sleeps(marker: &str) {
    eventually("every process of the jobs is gone", || sleepers(marker) == 0);
}
