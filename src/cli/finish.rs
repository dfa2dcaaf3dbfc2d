//! The end of a job: its last output, whether it is tried again, what is told of it, whether the run goes on.

use pidloop::{Captured, ChildId, Ended, Pipefail, PipelineExit};

use super::halt::{Counts, Urgency};
use super::hub::Token;
use super::job::{Job, Outcome, Reason, Running, Start, Stop};
use super::printer::{Ended as Printed, Message, Stream};
use super::report::{Report, mark_omitted, results_dir};
use super::run::{Alarm, End, Run};
use super::streams::{Read, Streams};
use super::values::Half;
use super::voice::shorten;

impl Run {
    /// The reactor reports a child.
    pub(crate) fn on_exit(&mut self, ended: Ended) {
        self.crowded = false;
        let done = ended.id();
        let id = self.further.remove(&done).unwrap_or(done);
        let Some(running) = self.running.get_mut(&id) else {
            return;
        };
        let Some((_, end)) = running.ends.iter_mut().find(|(id, _)| *id == done) else {
            return;
        };
        *end = Some((ended.exit().clone(), ended.into_output()));
        if running.left().next().is_some() {
            return;
        }
        let ends = std::mem::take(&mut running.ends).into_iter().filter_map(|(_, end)| end);
        let (exits, captured): (Vec<_>, Vec<_>) = ends.unzip();
        let exit = PipelineExit::new(exits, Pipefail::ExceptSigpipe);
        if let Some(deadline) = running.deadline.take() {
            self.timers.disarm(deadline);
        }
        match &running.streams {
            Some(streams) if !streams.are_done() => {
                running.exit = Some(exit);
                // Nobody asked to wait for the output of what was stopped.
                if running.stopped.is_some() {
                    self.cut_streams(id);
                } else {
                    self.timers.arm(self.options.kill_after, Alarm::Cut(id));
                }
            }
            _ => self.end(id, &exit, captured),
        }
    }

    /// `captured`: of each of its commands.
    fn end(&mut self, id: ChildId, exit: &PipelineExit, captured: Vec<Captured>) {
        let Some(running) = self.running.remove(&id) else {
            return;
        };
        let mut outcome = Outcome::of(exit, running.stopped);
        let Running { job, slot, started, streams, .. } = running;
        self.slots.give_back(slot);
        if exit.cause().is_some() {
            self.groups.note(exit.exits()[0].pid());
        }
        let output_bytes = match &streams {
            Some(streams) => streams.bytes,
            None => captured.last().map_or(0, |last| last.stdout.len() as u64 + last.stdout_omitted_bytes),
        };
        if let Some(streams) = streams {
            self.streamers.remove(&streams.number);
            outcome.held_open |= streams.held_open;
        }
        let captured = join(captured, self.launcher.halves());
        self.conclude(job, outcome, started, captured, output_bytes);
    }

    /// A job has come to an end, with or without a process.
    pub(crate) fn conclude(
        &mut self,
        job: Job,
        outcome: Outcome,
        started: Start,
        captured: Captured,
        output_bytes: u64,
    ) {
        let abandoned = outcome.is_abandoned();
        if !outcome.is_success() && !abandoned && self.end.is_none() && job.tries < self.options.retries {
            return self.try_again(job);
        }
        let command = self.line(&job, 1);
        self.complain(&job, &outcome, &command);
        self.tally.count(&outcome, || format!("job {}: {}: {}", job.seq, shorten(&command), in_words(&outcome)));
        let report = Report { job: &job, outcome: &outcome, started, command: &command, output_bytes };
        let mut printed = Printed { seq: job.seq, ..Printed::default() };
        // What was abandoned is run again by a later run.
        if !abandoned && self.options.joblog.is_some() {
            printed.record = Some(report.record());
        }
        if self.options.json {
            printed.output[0] = report.json(&captured);
        }
        if let Some(dir) = &self.options.results {
            let dir = results_dir(dir, &job);
            let number = job.seq.to_string().into_bytes();
            let (stdout, stderr) = (captured.stdout.clone(), captured.stderr.clone());
            printed.files = vec![(dir.join("stdout"), stdout), (dir.join("stderr"), stderr), (dir.join("seq"), number)];
        }
        if !self.options.json {
            printed.tag = self.tag(&job);
            printed.output = [captured.stdout, captured.stderr];
        }
        self.printer.send(Message::Ended(Box::new(printed)));
        self.show_progress();
        if !abandoned {
            self.judge(&job, &outcome, &command);
        }
    }

    fn try_again(&mut self, job: Job) {
        if self.options.retry_delay.is_zero() {
            self.again.push_back(job);
        } else if self.timers.arm(self.options.retry_delay, Alarm::Again(job)).is_some() {
            self.delayed += 1;
        }
    }

    /// What the job itself cannot say.
    fn complain(&self, job: &Job, outcome: &Outcome, command: &[u8]) {
        let what = match &outcome.reason {
            Reason::Ended if outcome.held_open => "somebody still held its output open after its end".to_owned(),
            Reason::Ended | Reason::Stopped(Stop::Abandoned) => return,
            _ => in_words(outcome),
        };
        self.say(&format!("job {}: {}: {what}", job.seq, shorten(command)));
    }

    /// Whether the run ends early.
    fn judge(&mut self, job: &Job, outcome: &Outcome, command: &[u8]) {
        let (Some(condition), None) = (self.options.halt.0, self.end) else {
            return;
        };
        let counts = Counts {
            failed: self.tally.failed,
            succeeded: self.tally.succeeded,
            total: self.total().unwrap_or(u64::MAX),
        };
        let Some(status) = condition.met(counts, outcome.shell_status()) else {
            return;
        };
        let how = if outcome.is_success() { "succeeded".to_owned() } else { in_words(outcome) };
        let halted = match condition.urgency {
            Urgency::Now => "stopping",
            Urgency::Soon => "starting no more",
        };
        self.say(&format!("job {}: {}: {how}: {halted}", job.seq, shorten(command)));
        self.stop_starting(End::Halted(status));
        if condition.urgency == Urgency::Now {
            self.stop_all();
        }
    }

    // ── output as it comes ──

    pub(crate) fn watch_stream(&self, streams: &Streams, which: usize) -> Result<(), String> {
        let Some(end) = streams.end(which) else {
            return Ok(());
        };
        let token = Token::Stream(streams.number + which as u64);
        self.hub.watch(end, token).map_err(|error| format!("epoll: {error}"))
    }

    /// There is something to read, or the end.
    pub(crate) fn on_stream(&mut self, number: u64) {
        let which = (number % 2) as usize;
        let Some(id) = self.streamers.get(&(number - which as u64)).copied() else {
            return;
        };
        let Some(Running { job, streams: Some(streams), .. }) = self.running.get_mut(&id) else {
            return;
        };
        let seq = job.seq;
        if self.printer.is_full_for(seq) {
            return self.leave_unread(id, number);
        }
        match streams.read(which) {
            Read::Lines(lines) => self.print_piece(id, seq, which, lines),
            Read::End(rest) => {
                self.print_piece(id, seq, which, rest);
                self.end_if_done(id);
            }
        }
    }

    /// The epoll set would go on telling; the printer wakes us when it has caught up.
    fn leave_unread(&mut self, id: ChildId, number: u64) {
        let streams = self.running.get(&id).and_then(|running| running.streams.as_ref());
        if let Some(end) = streams.and_then(|streams| streams.end((number % 2) as usize)) {
            self.hub.forget(end);
            self.unread.push(number);
        }
    }

    /// The printer may have caught up.
    pub(crate) fn read_again(&mut self) {
        for number in std::mem::take(&mut self.unread) {
            let which = number % 2;
            let running = self.streamers.get(&(number - which)).and_then(|id| self.running.get(id));
            let Some(Running { job, streams: Some(streams), .. }) = running else {
                continue;
            };
            if self.printer.is_full_for(job.seq) {
                self.unread.push(number);
            } else if let Err(error) = self.watch_stream(streams, which as usize) {
                self.fail(&error);
            }
        }
    }

    fn print_piece(&self, id: ChildId, seq: u64, which: usize, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let tag = self.running.get(&id).and_then(|running| self.tag(&running.job));
        self.printer.send(Message::Piece { seq, to: Stream::BOTH[which], tag, bytes });
    }

    fn end_if_done(&mut self, id: ChildId) {
        let Some(running) = self.running.get(&id) else {
            return;
        };
        let done = running.streams.as_ref().is_none_or(Streams::are_done);
        if let (true, Some(exit)) = (done, running.exit.clone()) {
            self.end(id, &exit, Vec::new());
        }
    }

    /// The job is dead and its output is awaited no longer.
    pub(crate) fn cut_streams(&mut self, id: ChildId) {
        for which in 0..2 {
            let Some(Running { job, streams: Some(streams), .. }) = self.running.get_mut(&id) else {
                return;
            };
            let seq = job.seq;
            let lines = streams.cut(which);
            self.print_piece(id, seq, which, lines);
        }
        self.end_if_done(id);
    }
}

/// What the commands of a job wrote, the errors one behind the other.
fn join(captured: Vec<Captured>, halves: Option<Half>) -> Captured {
    let mut all = Captured::default();
    for mut one in captured {
        if let Some(halves) = halves {
            mark_omitted(&mut one, halves);
        }
        all.stdout.append(&mut one.stdout);
        all.stderr.append(&mut one.stderr);
        all.stdout_omitted_bytes += one.stdout_omitted_bytes;
        all.stderr_omitted_bytes += one.stderr_omitted_bytes;
    }
    all
}

/// How a job ended.
fn in_words(outcome: &Outcome) -> String {
    match &outcome.reason {
        Reason::NotStarted(why) => why.clone(),
        Reason::Stopped(Stop::TimedOut) => format!("timed out after {:.1} s", outcome.runtime.as_secs_f64()),
        Reason::Stopped(Stop::Abandoned) => "stopped".to_owned(),
        Reason::Lost => "somebody else took its exit status".to_owned(),
        Reason::Ended => match pidloop::Signal::from_raw(outcome.signal) {
            Some(signal) => format!("killed by {signal}"),
            None => format!("exit status {}", outcome.exitval),
        },
    }
}
