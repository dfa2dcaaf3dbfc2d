//! What steers a run from outside: signals, deadlines, a reader that went away, failures; and how it ends. Stops go through the library, to
//! whole groups.

use std::time::{Duration, Instant};

use pidloop::{ChildId, Signal};

use super::job::{Running, Stop};
use super::launch::{resize, terminal_size};
use super::printer::Stream;
use super::run::{End, Pressure, Run};
use super::signals::act_by_default;
use super::voice::shorten;

/// How soon, and later how often, it is looked whether the last processes of stopped groups are gone: the kernel has no event for that.
const LOOK_FIRST: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(100);
/// How much longer than its grace a group may take.
const GROUP_SLACK: Duration = Duration::from_secs(1);
impl Run {
    // ── signals ──

    pub(crate) fn heed_signals(&mut self) {
        for signal in self.signals.take() {
            match signal {
                Signal::SIGTSTP => self.suspend(),
                Signal::SIGCONT => self.signal_all(Signal::SIGCONT),
                Signal::SIGWINCH => self.resize(),
                Signal::SIGUSR1 => self.show(),
                _ => self.interrupt(signal),
            }
        }
    }

    /// The first time jobs are asked to stop, the second time they are killed; SIGQUIT kills at once.
    fn interrupt(&mut self, signal: Signal) {
        let again = self.pressure >= Pressure::Asked;
        self.stop_starting(End::Interrupted(signal));
        if again || signal == Signal::SIGQUIT {
            return self.kill_all();
        }
        if !self.running.is_empty() {
            let jobs = count(self.running.len(), "job");
            self.say(&format!("received {signal}: stopping {jobs}; once more to kill"));
        }
        self.stop_all();
    }

    /// Ctrl-Z: the jobs are stopped with us and continued with us, and their time does not pass meanwhile.
    fn suspend(&mut self) {
        // On a terminal of its own it is an orphan to the kernel, which spares it the gentle one.
        self.signal_all(if self.options.tty { Signal::SIGSTOP } else { Signal::SIGTSTP });
        let stopped = Instant::now();
        // Comes back when somebody continues us.
        self.bar.aside(|| act_by_default(Signal::SIGTSTP));
        self.timers.stood_still(stopped.elapsed());
        self.signal_all(Signal::SIGCONT);
    }

    fn signal_all(&self, signal: Signal) {
        for id in self.running.values().flat_map(Running::left) {
            // It fails for what has just ended.
            let _ = self.reactor.signal(id, signal);
        }
    }

    /// Our terminal has another size: so have the jobs'.
    fn resize(&self) {
        if !self.options.tty {
            return;
        }
        let (rows, columns) = terminal_size();
        for (id, running) in &self.running {
            match running.streams.as_ref().and_then(|streams| streams.end(0)) {
                Some(end) => resize(end, rows, columns),
                // It fails for what has just ended.
                None => drop(self.reactor.resize_terminal(*id, rows, columns)),
            }
        }
    }

    /// SIGUSR1: what runs.
    fn show(&self) {
        let mut running: Vec<_> = self.running.values().collect();
        running.sort_by_key(|running| running.job.seq);
        let mut text = format!(
            "{} running, {} succeeded, {} failed",
            count(running.len(), "job"),
            self.tally.succeeded,
            self.tally.failed
        );
        for running in running {
            let line = shorten(&self.line(&running.job, running.slot));
            let seconds = running.started.instant.elapsed().as_secs_f64();
            text.push_str(&format!("\n  job {}, pid {}, {seconds:.1} s: {line}", running.job.seq, running.pid));
        }
        self.say(&text);
    }

    // ── stopping ──

    /// From now on nothing is started. An interruption outranks what came before it.
    pub(crate) fn stop_starting(&mut self, end: End) {
        if matches!(self.end, None | Some(End::Done)) || matches!(end, End::Interrupted(_)) {
            self.end = Some(end);
        }
        self.again.clear();
    }

    /// Asks every running job to stop: SIGTERM to its group, after the grace SIGKILL.
    pub(crate) fn stop_all(&mut self) {
        self.pressure = self.pressure.max(Pressure::Asked);
        self.press_all(Stop::Abandoned, self.options.kill_after);
    }

    pub(crate) fn kill_all(&mut self) {
        self.pressure = Pressure::Killed;
        self.press_all(Stop::Abandoned, Duration::ZERO);
    }

    fn press_all(&mut self, stop: Stop, grace: Duration) {
        let ids: Vec<ChildId> = self.running.keys().copied().collect();
        for id in ids {
            self.press(id, stop, grace);
        }
    }

    fn press(&mut self, id: ChildId, stop: Stop, grace: Duration) {
        let Some(running) = self.running.get_mut(&id) else {
            return;
        };
        running.stopped.get_or_insert(stop);
        if running.exit.is_some() {
            // Dead; only its output was awaited.
            return self.cut_streams(id);
        }
        let left: Vec<ChildId> = running.left().collect();
        for id in left {
            if let Err(error) = self.reactor.terminate(id, grace) {
                self.say(&error.to_string());
            }
        }
    }

    pub(crate) fn time_out(&mut self, id: ChildId) {
        if let Some(running) = self.running.get_mut(&id) {
            running.deadline = None;
            self.press(id, Stop::TimedOut, self.options.kill_after);
        }
    }

    /// Nobody reads our standard output any more: as a program that SIGPIPE ends, but not without the jobs.
    pub(crate) fn close(&mut self) {
        if self.end != Some(End::Closed) {
            self.stop_starting(End::Closed);
            self.stop_all();
        }
    }

    /// The program itself failed: running jobs may end.
    pub(crate) fn fail(&mut self, why: &str) {
        if self.end != Some(End::Failed) {
            self.say(why);
        }
        self.stop_starting(End::Failed);
    }

    // ── the end ──

    /// All jobs have ended: waits for what is left of stopped groups, and until everything is printed.
    pub(crate) fn wind_down(mut self) -> u8 {
        self.end.get_or_insert(End::Done);
        let until = Instant::now() + self.options.kill_after + GROUP_SLACK;
        let mut look = LOOK_FIRST;
        while self.groups.live() && self.pressure != Pressure::Killed && Instant::now() < until {
            self.serve_the_end(Some(look));
            look = (look * 2).min(LOOK_MAX);
        }
        // Ends the stops whose groups are gone, and whatever has outlived its grace.
        self.reactor.shutdown(Duration::ZERO, Duration::ZERO);
        self.printer.close();
        let pressure = self.pressure;
        // Who does not read may keep us waiting until somebody says that it is enough.
        while !self.printer.is_done() && self.pressure == pressure {
            self.serve_the_end(None);
        }
        self.hear();
        self.bar.clear();
        if self.options.summary || self.bar.is_shown() {
            let summary = self.tally.summary(self.begun.elapsed(), self.colors);
            let _ = rustix::io::write(Stream::Stderr.fd(), summary.as_bytes());
        }
        self.status()
    }

    fn serve_the_end(&mut self, wait: Option<Duration>) {
        if self.serve(wait).is_err() {
            self.pressure = Pressure::Killed;
        }
    }

    fn status(&self) -> u8 {
        match self.end {
            Some(End::Interrupted(signal)) => 128 + signal.as_raw() as u8,
            Some(End::Closed) => {
                act_by_default(Signal::SIGPIPE);
                128 + Signal::SIGPIPE.as_raw() as u8
            }
            Some(End::Failed) => super::FAILED,
            Some(End::Halted(status)) => status,
            Some(End::Done) | None => self.tally.status(),
        }
    }
}

fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
