//! The loop of the program: starts jobs while there is room, waits, serves what happened. Everything runs on this one thread but reading
//! input and printing.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pidloop::{ChildId, Reactor, Signal};

use super::bar::{Bar, FRAME, Progress};
use super::groups::Groups;
use super::hub::{Hub, Token};
use super::input::{Input, Next};
use super::job::{Job, Outcome, Running, Start};
use super::joblog::{Joblog, Known, Past, Resume, known};
use super::launch::{Launched, Launcher};
use super::options::Options;
use super::printer::{Ended, Failure, Message, Printer, Stream};
use super::signals::Signals;
use super::streams::{Ends, Streams};
use super::tally::Tally;
use super::template::{Filling, Template};
use super::timers::Timers;
use super::voice::{Colors, shorten};
use super::wake::Waker;

/// How many jobs are started before it is seen what happened meanwhile.
const STARTS_TURN_MAX: usize = 32;

/// A run of jobs.
pub(crate) struct Run {
    pub(crate) options: Options,
    pub(crate) commands: Commands,
    /// `None`: it has ended, or nothing more is taken from it.
    pub(crate) input: Option<Input>,
    pub(crate) resume: Resume,
    pub(crate) past: Past,
    pub(crate) launcher: Launcher,
    pub(crate) reactor: Reactor,
    pub(crate) hub: Hub,
    pub(crate) signals: Signals,
    pub(crate) waker: Waker,
    pub(crate) printer: Printer,
    pub(crate) bar: Bar,
    pub(crate) colors: Colors,
    pub(crate) tag_colors: Colors,
    /// By their first commands.
    pub(crate) running: HashMap<ChildId, Running>,
    /// The first command of the job that a further one belongs to.
    pub(crate) further: HashMap<ChildId, ChildId>,
    /// Whose streams the hub knows by which number.
    pub(crate) streamers: HashMap<u64, ChildId>,
    /// The newest of those numbers: even, and for a job's stdout; the next one is for its stderr.
    streams_made: u64,
    pub(crate) slots: Slots,
    /// Jobs that are to be started before new ones.
    pub(crate) again: VecDeque<Job>,
    pub(crate) timers: Timers<Alarm>,
    /// Jobs among the timers.
    pub(crate) delayed: usize,
    /// The number of the newest job.
    pub(crate) seq: u64,
    /// `--delay` has not passed.
    pub(crate) too_soon: bool,
    /// The system had no room for one more; the next end of a job makes some.
    pub(crate) crowded: bool,
    pub(crate) end: Option<End>,
    pub(crate) pressure: Pressure,
    pub(crate) groups: Groups,
    /// Numbers of streams that are not read while too much waits to be printed.
    pub(crate) unread: Vec<u64>,
    pub(crate) tally: Tally,
    pub(crate) begun: Instant,
}

/// What is run for each job.
#[derive(Debug)]
pub(crate) struct Commands {
    pub(crate) template: Template,
    /// Each reads what the one before it writes.
    pub(crate) pipes: Vec<Template>,
}

impl Commands {
    fn all(&self) -> impl Iterator<Item = &Template> {
        std::iter::once(&self.template).chain(&self.pipes)
    }
}

/// What is due at a time.
#[derive(Debug)]
pub(crate) enum Alarm {
    Deadline(ChildId),
    /// A job is to be tried again.
    Again(Job),
    /// `--delay` has passed.
    MayStart,
    /// Somebody has held a dead job's streams open for long enough.
    Cut(ChildId),
    /// The progress bar moves.
    Frame,
}

/// Why nothing more is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// There was nothing more.
    Done,
    /// `--halt`, with the exit status.
    Halted(u8),
    /// The program itself failed.
    Failed,
    /// Nobody reads our standard output any more.
    Closed,
    Interrupted(Signal),
}

/// How running jobs are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    /// They may end.
    None,
    /// They were asked to stop.
    Asked,
    Killed,
}

/// Numbers from 1 on, the lowest free one first.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    free: BTreeSet<usize>,
    made: usize,
}

impl Slots {
    fn take(&mut self) -> usize {
        self.free.pop_first().unwrap_or_else(|| {
            self.made += 1;
            self.made
        })
    }

    pub(crate) fn give_back(&mut self, slot: usize) {
        self.free.insert(slot);
    }
}

/// What the next step of starting jobs came to.
enum Step {
    Start(Job),
    /// A job was dealt with without being started.
    Skipped,
    /// None is there.
    Nothing,
}

impl Run {
    /// # Errors
    ///
    /// The message: the system refuses what the program stands on.
    pub(crate) fn new(
        options: Options,
        commands: Commands,
        input: Input,
        joblog: Option<(Joblog, Past)>,
        launcher: Launcher,
        waker: Waker,
    ) -> Result<Run, String> {
        let resume = resume(&options);
        let (joblog, past) = joblog.map_or((None, Past::new()), |(joblog, past)| (Some(joblog), past));
        let on_terminal = io::stderr().is_terminal();
        let shows_bar = !options.no_bar && !options.dry_run && (options.bar || on_terminal && !options.ungroup);
        let bar = Bar::new(shows_bar && on_terminal);
        let hub = Hub::new().map_err(|error| format!("epoll: {error}"))?;
        let signals = Signals::new().map_err(|error| format!("signals: {error}"))?;
        let mut run = Run {
            printer: Printer::new(options.keep_order, joblog, bar.clone(), waker.clone())?,
            reactor: Reactor::new().map_err(|error| error.to_string())?,
            colors: Colors::new(options.color, on_terminal),
            tag_colors: Colors::new(options.color, io::stdout().is_terminal()),
            running: HashMap::new(),
            further: HashMap::new(),
            streamers: HashMap::new(),
            streams_made: 0,
            slots: Slots::default(),
            again: VecDeque::new(),
            timers: Timers::new(),
            delayed: 0,
            seq: 0,
            too_soon: false,
            crowded: false,
            end: None,
            pressure: Pressure::None,
            groups: Groups::default(),
            unread: Vec::new(),
            tally: Tally::default(),
            begun: Instant::now(),
            input: Some(input),
            options,
            commands,
            resume,
            past,
            launcher,
            hub,
            signals,
            waker,
            bar,
        };
        run.watch().map_err(|error| format!("epoll: {error}"))?;
        Ok(run)
    }

    fn watch(&mut self) -> io::Result<()> {
        self.hub.watch(self.reactor.as_fd(), Token::Reactor)?;
        self.hub.watch(self.signals.as_fd(), Token::Signals)?;
        self.hub.watch(self.waker.as_fd(), Token::Waker)?;
        self.hub.watch_for_hangup(Stream::Stdout.fd(), Token::Stdout)?;
        if self.bar.is_shown() {
            self.timers.arm(FRAME, Alarm::Frame);
        }
        Ok(())
    }

    /// Runs all jobs; the exit status.
    pub(crate) fn run(mut self) -> u8 {
        loop {
            let more = self.start_jobs();
            if self.is_over() {
                return self.wind_down();
            }
            let wait = if more { Some(Duration::ZERO) } else { self.timers.next() };
            if let Err(error) = self.serve(wait) {
                self.fail(&error);
            }
        }
    }

    fn is_over(&self) -> bool {
        let queued = self.input.is_some() || !self.again.is_empty() || self.delayed > 0;
        self.running.is_empty() && (self.end.is_some() || !queued)
    }

    // ── starting ──

    /// Starts as many as there is room for; says whether there was room for more than one turn starts.
    fn start_jobs(&mut self) -> bool {
        for _ in 0..STARTS_TURN_MAX {
            if !self.has_room() {
                return false;
            }
            match self.next_job() {
                Step::Start(job) => self.start(job),
                Step::Skipped => {}
                Step::Nothing => return false,
            }
        }
        true
    }

    fn has_room(&self) -> bool {
        self.end.is_none()
            && !self.too_soon
            && !self.crowded
            && self.running.len() < self.options.jobs.0
            // Jobs that are tried again are not held up: it may be their output that the rest waits for.
            && (!self.again.is_empty() || !self.printer.is_full())
    }

    fn next_job(&mut self) -> Step {
        if let Some(job) = self.again.pop_front() {
            return Step::Start(job);
        }
        let Some(input) = &mut self.input else {
            return Step::Nothing;
        };
        let next = match input.next() {
            Ok(next) => next,
            Err(error) => {
                self.fail(&format!("input: {error}"));
                return Step::Nothing;
            }
        };
        match next {
            Next::Arguments(arguments) => self.new_job(arguments),
            Next::TooLong(bytes) => {
                self.seq += 1;
                let job = Job { seq: self.seq, arguments: Vec::new(), tries: 1 };
                let outcome = Outcome::not_started(format!("the input line has {bytes} bytes"), 126);
                self.conclude(job, outcome, Start::now(), pidloop::Captured::default(), 0);
                Step::Skipped
            }
            Next::Pending => Step::Nothing,
            Next::End => {
                self.input = None;
                self.show_progress();
                Step::Nothing
            }
        }
    }

    fn new_job(&mut self, arguments: Vec<std::ffi::OsString>) -> Step {
        self.seq += 1;
        let arguments = if self.options.max_args == 0 { Vec::new() } else { arguments };
        let job = Job { seq: self.seq, arguments, tries: 0 };
        if self.past.is_empty() {
            return Step::Start(job);
        }
        let uses_slot = self.commands.all().any(|template| template.uses_slot);
        let line = (!uses_slot).then(|| self.line(&job, 1));
        match known(&self.past, self.resume, job.seq, line.as_deref()) {
            Known::New => Step::Start(job),
            Known::Done => {
                self.tally.skipped += 1;
                self.printer.send(Message::Ended(Box::new(Ended { seq: job.seq, ..Ended::default() })));
                Step::Skipped
            }
            Known::Other => {
                let here = line.as_deref().map(shorten).unwrap_or_default();
                self.fail(&format!("the joblog belongs to another run: its job {} is not {here}", job.seq));
                Step::Nothing
            }
        }
    }

    /// The command of a job as a shell line.
    pub(crate) fn line(&self, job: &Job, slot: usize) -> Vec<u8> {
        let filling = Filling { arguments: &job.arguments, sequence: job.seq, slot };
        let lines: Vec<Vec<u8>> = self.commands.all().map(|template| template.line(filling)).collect();
        lines.join(&b" | "[..])
    }

    fn start(&mut self, mut job: Job) {
        job.tries += 1;
        let slot = self.slots.take();
        let started = Start::now();
        if self.options.dry_run {
            return self.pretend(job, slot);
        }
        let filling = Filling { arguments: &job.arguments, sequence: job.seq, slot };
        let filled = self.commands.all().map(|template| template.fill(filling)).collect::<Result<Vec<_>, _>>();
        let commands = match filled {
            Ok(commands) => commands,
            Err(why) => return self.not_started(job, slot, started, (why, 126)),
        };
        if self.options.verbose {
            let mut line = self.line(&job, slot);
            line.push(b'\n');
            self.printer.send(Message::Note(line));
        }
        match self.launcher.launch(&mut self.reactor, &commands) {
            Ok(launched) => self.started(launched, job, slot, started),
            // The end of another job makes room.
            Err(refused) if refused.is_transient && !self.running.is_empty() => {
                self.slots.give_back(slot);
                job.tries -= 1;
                self.again.push_front(job);
                self.crowded = true;
            }
            Err(refused) => self.not_started(job, slot, started, (refused.why, refused.status)),
        }
        if !self.options.delay.is_zero() {
            self.too_soon = self.timers.arm(self.options.delay, Alarm::MayStart).is_some();
        }
    }

    fn pretend(&mut self, job: Job, slot: usize) {
        let mut line = self.line(&job, slot);
        line.push(b'\n');
        self.slots.give_back(slot);
        self.tally.succeeded += 1;
        let ended = Ended { seq: job.seq, output: [line, Vec::new()], ..Ended::default() };
        self.printer.send(Message::Ended(Box::new(ended)));
    }

    fn not_started(&mut self, job: Job, slot: usize, started: Start, (why, status): (String, i32)) {
        self.slots.give_back(slot);
        self.conclude(job, Outcome::not_started(why, status), started, pidloop::Captured::default(), 0);
    }

    fn started(&mut self, launched: Launched, job: Job, slot: usize, started: Start) {
        let Launched { ids, ends } = launched;
        let id = ids[0];
        let limit = self.options.timeout.filter(|limit| !limit.is_zero());
        let deadline = limit.and_then(|limit| self.timers.arm(limit, Alarm::Deadline(id)));
        let streams = ends.and_then(|ends| self.open_streams(id, ends));
        let pid = self.reactor.pid(id).unwrap_or(0);
        self.further.extend(ids[1..].iter().map(|further| (*further, id)));
        let ends = ids.into_iter().map(|id| (id, None)).collect();
        let running = Running { job, slot, pid, started, deadline, stopped: None, streams, ends, exit: None };
        self.running.insert(id, running);
        self.show_progress();
    }

    fn open_streams(&mut self, id: ChildId, ends: Ends) -> Option<Streams> {
        self.streams_made += 2;
        let streams = Streams::new(ends, self.streams_made).ok()?;
        self.streamers.insert(streams.number, id);
        for which in 0..2 {
            if let Err(error) = self.watch_stream(&streams, which) {
                self.fail(&error);
            }
        }
        Some(streams)
    }

    // ── waiting and serving ──

    /// Waits, and serves what happened.
    pub(crate) fn serve(&mut self, wait: Option<Duration>) -> Result<(), String> {
        let tokens = self.hub.wait(wait).map_err(|error| format!("epoll: {error}"))?;
        for token in tokens {
            match token {
                Token::Reactor => self.turn()?,
                Token::Signals => self.heed_signals(),
                Token::Waker => self.hear(),
                Token::Stdout => {
                    self.hub.forget(Stream::Stdout.fd());
                    // Whoever has read everything may go.
                    if self.end != Some(End::Done) {
                        self.close();
                    }
                }
                Token::Stream(number) => self.on_stream(number),
            }
        }
        while let Some(alarm) = self.timers.take_due() {
            self.on_alarm(alarm);
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<(), String> {
        self.reactor.turn(Some(Duration::ZERO)).map_err(|error| error.to_string())?;
        while let Some(ended) = self.reactor.next_exit() {
            self.on_exit(ended);
        }
        Ok(())
    }

    /// The reader has more, or the printer has failed, caught up, or ended.
    pub(crate) fn hear(&mut self) {
        self.waker.clear();
        match self.printer.take_failure() {
            Some(Failure::Closed) => self.close(),
            Some(Failure::Stdout(why) | Failure::File(why)) => self.fail(&why),
            None => {}
        }
        self.read_again();
    }

    fn on_alarm(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Deadline(id) => self.time_out(id),
            Alarm::Again(job) => {
                self.delayed -= 1;
                self.again.push_back(job);
            }
            Alarm::MayStart => self.too_soon = false,
            Alarm::Cut(id) => self.cut_streams(id),
            Alarm::Frame => {
                self.bar.tick();
                self.timers.arm(FRAME, Alarm::Frame);
            }
        }
    }

    // ── telling ──

    /// A word of our own.
    pub(crate) fn say(&self, text: &str) {
        self.printer.send(Message::Note(format!("{} {text}\n", self.colors.error("pidloop:")).into_bytes()));
    }

    pub(crate) fn show_progress(&self) {
        if !self.bar.is_shown() {
            return;
        }
        self.bar.update(Progress {
            ended: self.tally.ended(),
            failed: self.tally.failed,
            running: self.running.len(),
            total: self.total(),
        });
    }

    /// How many jobs there are, once that is known.
    pub(crate) fn total(&self) -> Option<u64> {
        self.input.as_ref().map_or(Some(self.seq), Input::total)
    }

    /// The tag of a job's lines.
    pub(crate) fn tag(&self, job: &Job) -> Option<Arc<[u8]>> {
        use std::os::unix::ffi::OsStringExt;
        let tag = || job.arguments.join(" ".as_ref()).into_vec();
        self.options.tag.then(|| self.tag_colors.tag(job.seq, tag()).into())
    }
}

pub(crate) fn resume(options: &Options) -> Resume {
    match (options.resume, options.resume_failed) {
        (_, true) => Resume::Succeeded,
        (true, _) => Resume::All,
        _ => Resume::No,
    }
}
