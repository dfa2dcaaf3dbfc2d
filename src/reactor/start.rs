//! From a command to a watched child: its streams are made, its slot is taken, it is cloned, it is registered; in this order, so
//! that whatever fails leaves nothing behind. Knows the engine by one call.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::admit::{self, admit};
use super::cell::{Birth, Cell, Extra, Reasons, Teller, Tree, Turn};
use super::core::{Core, fired};
use super::stop::Ladder;
use crate::admission::{Applicant, Permit};
use crate::cause::Cause;
use crate::cgroup::Cgroup;
use crate::command::{Cancel, Command, JobState, Leftovers, OnStopped};
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::events::EventKind;
use crate::helpers;
use crate::pipe::capture::Capture;
use crate::pipe::copier::{self, Copier, Standby, Work};
use crate::pipe::spool::{Made, Spooling};
use crate::pipe::{self, Feed};
use crate::process::Membership;
use crate::queue;
use crate::scope::Scope;
use crate::signal::Signal;
use crate::spawn::{self, BUSY_PAUSE, Born, Busy, Group, Options, Plan, Source};
use crate::spawner::{Job, Ticket};
use crate::stdio::{Claim, Kind, OneShot, Stdio};
use crate::stops::{StopState, Watch};
use crate::tell::{Level, tell};
use crate::terminal::Terminal;
use crate::token::Token;
use crate::trace::Span;

/// A stdin of at most this many bytes is written before the child starts: every pipe holds one page.
const FED_AT_ONCE_MAX_BYTES: usize = 4096;
/// From this many live children on, our ends of pipes leave the low numbers to the ends that children are given.
const CROWD: usize = 16;

/// Where the streams go that the command leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defaults {
    /// `spawn`, `status`, `run`: inherited, as std.
    Inherit,
    /// `output`: no stdin, the rest captured, as std.
    Capture,
    /// `combined_output`: as `output`, stderr into stdout.
    Combine,
}

impl Defaults {
    fn streams(self, command: &Command) -> [Kind; 3] {
        let defaults = match self {
            Defaults::Inherit => [Kind::Inherit, Kind::Inherit, Kind::Inherit],
            Defaults::Capture => [Kind::Null, Kind::Captured(None), Kind::Captured(None)],
            Defaults::Combine => [Kind::Null, Kind::Captured(None), Kind::SameAsStdout],
        };
        let mut set = command.stdio.each_ref().map(|stdio| stdio.as_ref().map(|s| s.0.clone())).into_iter();
        defaults.map(|default| set.next().flatten().unwrap_or(default))
    }
}

/// How a child is started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) defaults: Defaults,
    pub(crate) busy: Busy,
    /// Whether the loop watches it; if not, the caller is its reaper from birth.
    pub(crate) watched: bool,
}

/// A child's cell, entered in the tables: whatever stops it from now on finds it.
struct Place {
    cell: Arc<Cell>,
    token: Token,
    entered_at: Instant,
}

/// Whom a spawn is told of that nobody's thread waits for.
type Done = Box<dyn FnOnce(Result<(Arc<Cell>, Token)>) + Send>;

/// Starts a child and enters it in the tables of `core`.
pub(crate) fn start(core: &Arc<Core>, command: &Command, manner: Manner) -> Result<(Arc<Cell>, Token)> {
    if command.options.parent_death.is_some() && !command.options.on_this_thread {
        return start_and_wait(core, command, manner);
    }
    let started = core.check_ours().and_then(|()| {
        let place = enter(core, command)?;
        let mut began_at = place.entered_at;
        let born = bear(&place, command, manner, &mut began_at);
        note(&place.cell, &born, began_at);
        if born.is_err() {
            give_up(&place.cell, place.token);
        }
        born.map(|()| (place.cell, place.token))
    });
    started.map_err(|error| error.of(&*command.label()))
}

/// On the caller's thread; more than once, if the command would rather wait than fail where something runs out.
fn bear(place: &Place, command: &Command, manner: Manner, began_at: &mut Instant) -> Result<()> {
    let cell = &place.cell;
    loop {
        if let Some(permit) = admit(cell, command)? {
            cell.keep(permit);
            *began_at = Instant::now();
        }
        let wires = wire(place, command, manner);
        if admit::has_run_out(cell, command, &wires) {
            continue;
        }
        let wires = wires?;
        let born = clone(cell, command, &wires, manner);
        if !admit::has_run_out(cell, command, &born) {
            return settle(cell, wires, manner, born);
        }
    }
}

/// It came to nothing: its place and its slots are others'.
fn give_up(cell: &Cell, token: Token) {
    cell.core.withdraw(token);
    drop(cell.strip());
    drop(cell.take_permit());
}

/// Counts a spawn that has come to something, or to nothing.
fn note(cell: &Cell, result: &Result<()>, began_at: Instant) {
    match result {
        Ok(()) => cell.core.recorder.spawn.record_time(began_at.elapsed()),
        Err(error) => {
            note_failure(&cell.core, &cell.label, error);
            cell.trace_failure(error);
        }
    }
}

fn note_failure(core: &Core, label: &Arc<str>, error: &Error) {
    core.recorder.failed.increment();
    core.emit(label, || EventKind::Failed { kind: error.kind(), stage: error.stage() });
}

/// As [`start`], by a spawner thread, which lives as long as the process.
fn start_and_wait(core: &Arc<Core>, command: &Command, manner: Manner) -> Result<(Arc<Cell>, Token)> {
    let (sender, receiver) = mpsc::channel();
    // The caller waits: it cannot be gone.
    let done = move |result| drop(sender.send(result));
    start_elsewhere(core, command.clone(), manner, Box::new(done))?;
    receiver.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Io).saying("a spawner thread panicked")))
}

/// As [`start`], by a spawner thread, for whoever does not want to wait; `done` is told the result. The cell is there at once: what stops it
/// also takes it out of the queue.
pub(crate) fn start_elsewhere(core: &Arc<Core>, command: Command, manner: Manner, done: Done) -> Result<Arc<Cell>> {
    let label = command.label();
    let begun = core.check_ours().and_then(|()| {
        let place = enter(core, &command)?;
        let (cell, token) = (place.cell.clone(), place.token);
        queue(place, command, manner, done).inspect_err(|error| {
            note_failure(core, &cell.label, error);
            give_up(&cell, token);
        })?;
        Ok(cell)
    });
    begun.map_err(|error| error.of(&*label))
}

/// Has it begin when it is admitted and a thread is free. On an error nobody is told.
fn queue(place: Place, mut command: Command, manner: Manner, done: Done) -> Result<()> {
    let cell = place.cell.clone();
    command.patient &= !command.options.on_this_thread;
    let line = admit::line(&cell.core, &command);
    let (on_this_thread, priority) = (command.options.on_this_thread, command.priority);
    let waiting = Box::new(Waiting::new(place, command, manner, done));
    match line {
        // No other thread may begin it, and this one does not wait; or nobody would turn the loop.
        _ if on_this_thread || cell.core.is_turned_by_its_caller() => {
            line.map(|line| admit::admit_now(&line)).transpose()?.into_iter().for_each(|permit| cell.keep(permit));
            if !on_this_thread {
                return waiting.queue();
            }
            waiting.begin();
            Ok(())
        }
        None => waiting.queue(),
        Some(line) => admit::apply(&cell, line, priority, waiting),
    }
}

/// Gives a child its place.
fn enter(core: &Arc<Core>, command: &Command) -> Result<Place> {
    try_to_enter(core, command).inspect_err(|error| note_failure(core, &command.label(), error))
}

fn try_to_enter(core: &Arc<Core>, command: &Command) -> Result<Place> {
    let entered_at = Instant::now();
    command.validate()?;
    refuse_if_stopped(command)?;
    let birth = Birth {
        label: command.label(),
        spawned_at: entered_at,
        kill_on_drop: command.kill_on_drop,
        span: Span::begin(|| command.label()),
    };
    let cell = Cell::new(core, birth);
    let token = cell.enter(&command.contexts, deadline(command, entered_at))?;
    // Entered first, read now: whoever cancelled before has set the flag, whoever cancels later finds the place.
    refuse_if_stopped(command).inspect_err(|_| core.withdraw(token))?;
    Ok(Place { cell, token, entered_at })
}

fn deadline(command: &Command, entered_at: Instant) -> Option<Instant> {
    command.timeout.and_then(|limit| entered_at.checked_add(limit))
}

/// Makes what connects the child with us, and whom its stops reach.
fn wire(place: &Place, command: &Command, manner: Manner) -> Result<Wires> {
    let cell = &place.cell;
    let mut wires = Wires::new(command, manner.defaults, cell.core.live() > CROWD)?;
    let mut extra = extra(command, &mut wires, deadline(command, place.entered_at));
    let territory = Territory::new(command)?;
    let scope = territory.scope;
    wires.options = territory.settle(command, &mut extra);
    wires.stops = command.on_stopped.as_ref().map(watch_stops).transpose()?;
    if let Some(number) = wires.controlling_terminal() {
        let options = wires.options.get_or_insert_with(|| command.options.clone());
        options.session = true;
        options.terminal = Some(spawn::Terminal::Take(number));
    }
    if extra.is_some() || scope != Scope::Child {
        cell.equip(scope, extra);
        cell.attach_queues();
    }
    Ok(wires)
}

fn clone(cell: &Arc<Cell>, command: &Command, wires: &Wires, manner: Manner) -> Result<Born> {
    spawn::spawn(&Plan {
        program: command.get_program(),
        argv: command.argv()?,
        env: command.envp()?,
        search_path: command.search_path(),
        stdio: wires.sources(),
        extra: command.extra.iter().map(|(number, fd)| (*number, fd.as_fd())).collect(),
        options: wires.options.as_ref().unwrap_or(&command.options),
        publish: &cell.published,
        retry_busy: manner.busy,
        raise: manner.watched && wires.crowded,
    })
}

/// What becomes of it after the clone, up to its first registration.
fn settle(cell: &Arc<Cell>, mut wires: Wires, manner: Manner, born: Result<Born>) -> Result<()> {
    // The child has its ends, and we give ours of them up before its death can be seen: they would pass for somebody who holds the streams.
    let stops = wires.stops.take();
    let standbys = wires.close_theirs();
    match born {
        Ok(born) => {
            cell.trace_birth(born.pid);
            cell.born(born.pid, born.pidfd, manner.watched)?;
        }
        Err(error) => return Err(cell.unborn().map_or(error, Error::stopped)),
    }
    // Lent to those alone who ask for it: each lent pidfd takes memory of its own.
    if let Some((watch, pidfd)) = stops.and_then(|watch| Some((watch, cell.lend()?))) {
        watch.begin(pidfd);
    }
    for (which, standby) in standbys.into_iter().enumerate() {
        if let Some(standby) = standby {
            standby.begin(Teller::new(cell, which));
        }
    }
    Ok(())
}

/// A spawn in the queue, or on its spawner thread.
struct Waiting {
    place: Place,
    command: Command,
    manner: Manner,
    /// Made when its turn comes, and kept while its program file is busy.
    wires: Option<Wires>,
    busy: BusyTimer,
    done: Done,
}

impl Waiting {
    fn new(place: Place, command: Command, manner: Manner, done: Done) -> Waiting {
        let (busy, manner) = BusyTimer::new(manner, command.options.on_this_thread);
        Waiting { place, command, manner, wires: None, busy, done }
    }

    fn queue(self: Box<Self>) -> Result<()> {
        let ticket = Ticket::new(self.place.entered_at);
        self.place.cell.waits_for(Turn::Spawner(ticket));
        ticket.queue(self)
    }

    fn attempt(&mut self) -> Attempt {
        let prepared = self.prepare();
        let cell = &self.place.cell;
        if admit::has_run_out(cell, &self.command, &prepared) {
            return Attempt::Short;
        }
        let wires = match prepared {
            Ok(wires) => wires,
            Err(error) => return Attempt::Over(Err(error)),
        };
        let born = clone(cell, &self.command, &wires, self.manner);
        if admit::has_run_out(cell, &self.command, &born) {
            return Attempt::Short;
        }
        match self.busy.next_try(&born) {
            Some(due) if !cell.published.is_unwanted() => {
                self.wires = Some(wires);
                Attempt::Again(due)
            }
            _ => Attempt::Over(settle(cell, wires, self.manner, born)),
        }
    }

    /// It has given back what it had.
    fn apply_again(self: Box<Self>) {
        let (cell, token) = (self.place.cell.clone(), self.place.token);
        let Some(line) = admit::line(&cell.core, &self.command) else { return self.begin() };
        let priority = self.command.priority;
        // Who asked for it is told by what is dropped then.
        if let Err(error) = admit::apply(&cell, line, priority, self) {
            note_failure(&cell.core, &cell.label, &error);
            give_up(&cell, token);
        }
    }

    fn prepare(&mut self) -> Result<Wires> {
        let cell = &self.place.cell;
        // While it waited everything may have changed.
        cell.core.check_open()?;
        refuse_if_stopped(&self.command)?;
        cell.takes_its_turn()?;
        self.wires.take().map_or_else(|| wire(&self.place, &self.command, self.manner), Ok)
    }
}

impl Job for Waiting {
    fn begin(mut self: Box<Self>) {
        let began_at = Instant::now();
        let result = match self.attempt() {
            Attempt::Over(result) => result,
            Attempt::Again(due) => {
                let ticket = Ticket::new(due);
                self.place.cell.waits_for(Turn::Spawner(ticket));
                return ticket.queue_again(self);
            }
            Attempt::Short => return self.apply_again(),
        };
        let Place { cell, token, .. } = self.place;
        note(&cell, &result, began_at);
        if result.is_err() {
            give_up(&cell, token);
        }
        let label = cell.label.clone();
        (self.done)(result.map(|()| (cell, token)).map_err(|error| error.of(&*label)));
    }

    fn left(self: Box<Self>) {
        let Waiting { place, command, wires, done, .. } = *self;
        let cell = place.cell;
        cell.core.withdraw(place.token);
        drop(cell.take_permit());
        let why = cell.unborn().map_or_else(|| cell.core.refusal(), Error::stopped);
        note_failure(&cell.core, &cell.label, &why);
        cell.trace_failure(&why);
        let extra = cell.strip();
        done(Err(why.of(&*cell.label)));
        // This may be the loop, and what the command holds is its caller's.
        helpers::run(Box::new(move || drop((command, wires, extra))));
    }
}

impl Applicant for Waiting {
    fn admitted(self: Box<Self>, permit: Permit) {
        let (cell, token) = (self.place.cell.clone(), self.place.token);
        cell.core.recorder.queued.decrement();
        cell.keep(permit);
        // Who asked for it is told by what is dropped then.
        if let Err(error) = self.queue() {
            note_failure(&cell.core, &cell.label, &error);
            give_up(&cell, token);
        }
    }

    fn left(self: Box<Self>) {
        self.place.cell.core.recorder.queued.decrement();
        Job::left(self);
    }
}

enum Attempt {
    Over(Result<()>),
    /// The program file is busy: not before then.
    Again(Instant),
    /// Something has run out that it would rather wait for.
    Short,
}

/// How a busy program file is tried again without holding a spawner thread up meanwhile.
struct BusyTimer {
    /// `None`: not by us.
    until: Option<Instant>,
    pause: Duration,
}

impl BusyTimer {
    /// With how the rest is done: on the caller's own thread there is no queue to wait in.
    fn new(manner: Manner, on_this_thread: bool) -> (BusyTimer, Manner) {
        let (until, busy) = match manner.busy {
            Busy::Sleep { at_most } if !on_this_thread => {
                (Instant::now().checked_add(at_most), Busy::Spin { tries: 1 })
            }
            busy => (None, busy),
        };
        (BusyTimer { until, pause: BUSY_PAUSE }, Manner { busy, ..manner })
    }

    /// When to try again, if that is what went wrong and there is time left.
    fn next_try(&mut self, born: &Result<Born>) -> Option<Instant> {
        let (until, Err(error)) = (self.until?, born) else {
            return None;
        };
        let is_busy = error.stage() == Some(Stage::Exec) && error.raw_os_error() == Some(libc::ETXTBSY);
        let now = Instant::now();
        if !is_busy || now >= until {
            return None;
        }
        let due = until.min(now + self.pause);
        self.pause *= 2;
        Some(due)
    }
}

fn watch_stops(told: &OnStopped) -> Result<Watch> {
    let told = told.clone();
    Watch::new(move |state| {
        match state {
            StopState::Stopped(signal) => Signal::from_raw(signal).map(JobState::Stopped),
            StopState::Continued => Some(JobState::Continued),
        }
        .into_iter()
        .for_each(|state| told(state));
    })
}

/// Whom the child's stops reach.
struct Territory {
    scope: Scope,
    cgroup: Option<Cgroup>,
}

impl Territory {
    fn new(command: &Command) -> Result<Territory> {
        let simple = if command.group { Scope::Group } else { Scope::Child };
        let Some(wanted) = &command.cgroup_scope else {
            return Ok(Territory { scope: simple, cgroup: None });
        };
        match Cgroup::new(&wanted.dir, &wanted.settings) {
            Ok(cgroup) => Ok(Territory { scope: Scope::Cgroup, cgroup: Some(cgroup) }),
            Err(error) if wanted.or_group && is_not_offered(&error) => {
                tell(Level::Debug, format_args!("a group in place of a cgroup: {error}"));
                Ok(Territory { scope: Scope::Group, cgroup: None })
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the child its cgroup; returns its options, if they differ from the command's.
    fn settle(self, command: &Command, extra: &mut Option<Box<Extra>>) -> Option<Options> {
        let has_group = command.group || self.scope != Scope::Group;
        if has_group && self.cgroup.is_none() {
            return None;
        }
        let mut options = command.options.clone();
        if !has_group {
            options.group = Some(Group::New);
        }
        if let Some(cgroup) = self.cgroup {
            options.cgroup = Some(cgroup.dir().clone());
            extra.get_or_insert_default().tree = Some(Box::new(Tree::There(cgroup)));
        }
        Some(options)
    }
}

/// Whether a group may do in place of a cgroup: where there is none to be had, and not where one is full, frozen, or refuses a value.
fn is_not_offered(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied)
}

/// An already cancelled context, or no time at all, starts nothing.
fn refuse_if_stopped(command: &Command) -> Result<()> {
    if let Some(cause) = fired(&command.contexts) {
        return Err(Error::stopped(cause));
    }
    if command.timeout == Some(Duration::ZERO) {
        return Err(Error::stopped(Cause::DeadlineExceeded));
    }
    if command.contexts.iter().any(Context::is_inherited) {
        return Err(Error::new(ErrorKind::Forked).saying("a context"));
    }
    Ok(())
}

/// What most children do without, if this one needs it.
fn extra(command: &Command, wires: &mut Wires, deadline: Option<Instant>) -> Option<Box<Extra>> {
    let plain = matches!(command.cancel, Cancel::Kill)
        && command.wait_delay.is_none()
        && command.leftovers == Leftovers::Leave
        && command.job.is_none()
        && command.inspect.is_none()
        && !wires.any();
    if plain {
        return None;
    }
    Some(Box::new(Extra {
        ladder: Ladder::from(&command.cancel),
        wait_delay: command.wait_delay,
        leftovers: command.leftovers,
        inspect: command.inspect.clone(),
        membership: command.job.clone().map(Membership::new),
        reasons: wires.may_be_read_later().then(|| Reasons { contexts: command.contexts.clone(), deadline }),
        piped: std::mem::take(&mut wires.piped),
        untaken_terminal: wires.untaken_terminal.take(),
        terminal: wires.terminal.take(),
        feed: wires.feed.take(),
        captures: std::mem::take(&mut wires.captures),
        spoolings: std::mem::take(&mut wires.spools),
        copiers: wires.copiers(),
        ..Extra::default()
    }))
}

/// The descriptors behind a child's three streams: its ends, and ours.
struct Wires {
    /// Waits to be given a child that may be stopped.
    stops: Option<Watch>,
    theirs: [End; 3],
    piped: [Option<OwnedFd>; 3],
    /// Our end of its terminal: the caller's, or ours.
    untaken_terminal: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    /// The terminal's ends, to be used in place of a pipe's.
    prepared: Option<(OwnedFd, OwnedFd)>,
    feed: Option<Feed>,
    captures: [Option<Capture>; 2],
    spools: [Option<Spooling>; 2],
    standbys: [Option<Standby>; 3],
    crowded: bool,
    /// The child's, if they differ from the command's.
    options: Option<Options>,
}

/// The child's end of a stream.
enum End {
    Inherit,
    Null,
    Made(OwnedFd),
    Given(Arc<OwnedFd>),
    Ours(RawFd),
    SameAsStdout,
    /// Its terminal.
    Terminal(Arc<OwnedFd>),
}

impl Wires {
    fn new(command: &Command, defaults: Defaults, crowded: bool) -> Result<Wires> {
        let mut wires = Wires {
            theirs: [End::Inherit, End::Inherit, End::Inherit],
            piped: [None, None, None],
            untaken_terminal: None,
            terminal: None,
            prepared: None,
            feed: None,
            captures: [None, None],
            spools: [None, None],
            standbys: [None, None, None],
            crowded,
            options: None,
            stops: None,
        };
        let terminal = match &command.terminal {
            Some(terminal) => Some(Arc::new(wires.open_terminal(terminal, command, defaults)?)),
            None => None,
        };
        for (which, stream) in defaults.streams(command).into_iter().enumerate() {
            let unset = command.stdio[which].is_none();
            wires.theirs[which] = match &terminal {
                // Nobody would ever type.
                Some(_) if unset && which == 0 && wires.untaken_terminal.is_none() && wires.feed.is_none() => End::Null,
                Some(terminal) if unset => End::Terminal(terminal.clone()),
                _ => wires.connect(which, stream)?,
            };
        }
        if terminal.is_some() && wires.controlling_terminal().is_none() {
            return Err(Error::new(ErrorKind::InvalidInput).saying("none of its streams is its terminal"));
        }
        Ok(wires)
    }

    /// The child's number of it.
    fn controlling_terminal(&self) -> Option<RawFd> {
        let number = self.theirs.iter().position(|end| matches!(end, End::Terminal(_)))?;
        Some(number as RawFd)
    }

    /// Opens its terminal and connects our end; returns the child's.
    fn open_terminal(&mut self, terminal: &Terminal, command: &Command, defaults: Defaults) -> Result<OwnedFd> {
        let (ours, theirs) = terminal.open()?;
        let ours = self.out_of_the_way(ours);
        let theirs = if theirs.as_raw_fd() < 3 { spawn::raise(theirs) } else { theirs };
        let keystrokes = terminal.keystrokes();
        let output = match (&terminal.output, defaults) {
            (Some(output), _) => output.0.clone(),
            (None, Defaults::Inherit) => Kind::Piped,
            (None, Defaults::Capture | Defaults::Combine) => Kind::Captured(None),
        };
        let is_fed = matches!(command.stdio[0], Some(Stdio(Kind::Bytes(_))));
        let is_read =
            !matches!(&command.stdio[1], None | Some(Stdio(Kind::Null | Kind::Inherit | Kind::Fd(_) | Kind::Ours(_))));
        let is_callers = matches!(output, Kind::Piped);
        let why = match () {
            () if keystrokes.is_some() && is_callers => "the keyboard of its terminal is the caller's",
            () if keystrokes.is_some() && is_fed => "it is typed to, and its stdin is fed as well",
            () if is_read && !is_callers => "of its terminal and its stdout only one can be read here",
            () => "",
        };
        if !why.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput).saying(why));
        }
        if is_callers {
            self.untaken_terminal = Some(ours);
            return Ok(theirs);
        }
        let once_more = || ours.try_clone().map(|fd| self.out_of_the_way(fd)).map_err(streams);
        let (read, typed) = (once_more()?, keystrokes.is_some().then(once_more).transpose()?);
        pipe::set_nonblocking(ours.as_fd()).map_err(streams)?;
        if let (Some(typed), Some(keystrokes)) = (typed, keystrokes) {
            self.feed = Some(Feed::new(typed, keystrokes));
        }
        self.terminal = Some(ours);
        self.prepared = Some((read, theirs));
        let End::Made(theirs) = self.connect(1, output)? else {
            return Err(Error::new(ErrorKind::InvalidInput).saying("the output of its terminal"));
        };
        if let Some(capture) = &mut self.captures[0] {
            capture.is_of_terminal();
        }
        if let Some(standby) = &self.standbys[1] {
            standby.copier().is_of_terminal();
        }
        Ok(theirs)
    }

    fn connect(&mut self, which: usize, stream: Kind) -> Result<End> {
        Ok(match stream {
            Kind::Inherit => End::Inherit,
            Kind::Null => End::Null,
            Kind::SameAsStdout => End::SameAsStdout,
            Kind::Fd(fd) => End::Given(fd),
            Kind::Ours(number) => End::Ours(number),
            Kind::Piped => {
                let (ours, theirs) = self.pipe(which)?;
                self.piped[which] = Some(ours);
                End::Made(theirs)
            }
            Kind::Captured(limit) => {
                let (ours, theirs) = self.pipe(which)?;
                pipe::set_nonblocking(ours.as_fd()).map_err(streams)?;
                self.captures[which - 1] = Some(Capture::new(ours, limit));
                End::Made(theirs)
            }
            Kind::Bytes(bytes) => {
                let (ours, theirs) = self.pipe(which)?;
                pipe::set_nonblocking(ours.as_fd()).map_err(streams)?;
                if bytes.len() <= FED_AT_ONCE_MAX_BYTES {
                    // The pipe is ours alone and empty: it takes a page whole. The read end is open, so nothing can break.
                    rustix::io::write(&ours, &bytes).map_err(|e| streams(e.into()))?;
                } else {
                    self.feed = Some(Feed::new(ours, bytes));
                }
                End::Made(theirs)
            }
            Kind::Spool(file) => {
                let made = file.as_ref().map_or_else(Made::in_memory, |file| Made::in_file(file.as_fd()));
                let mut made = made.map_err(streams)?;
                made.ours = self.out_of_the_way(made.ours);
                if made.theirs.as_raw_fd() < 3 {
                    made.theirs = spawn::raise(made.theirs);
                }
                let (spooling, theirs) = Spooling::new(made);
                self.spools[which - 1] = Some(spooling);
                End::Given(theirs)
            }
            Kind::Queue(tap) => {
                let tap = claim(&tap)?;
                let (ours, theirs) = self.pipe(which)?;
                pipe::set_nonblocking(ours.as_fd()).map_err(streams)?;
                self.captures[which - 1] = Some(Capture::queued(ours, tap));
                End::Made(theirs)
            }
            Kind::Tee(limit, writer) => {
                let (tap, queue) = queue::of_tee();
                self.standbys[which] = Some(Standby::new(Work::Tee(claim(&writer)?, queue), None)?);
                let (ours, theirs) = self.pipe(which)?;
                pipe::set_nonblocking(ours.as_fd()).map_err(streams)?;
                self.captures[which - 1] = Some(Capture::with_tee(ours, limit, tap));
                End::Made(theirs)
            }
            Kind::Reader(reader) => self.stand_by(which, Work::Read(claim(&reader)?))?,
            Kind::Writer(writer) => self.stand_by(which, Work::Write(claim(&writer)?))?,
        })
    }

    /// A stream that the caller's own code serves.
    fn stand_by(&mut self, which: usize, work: Work) -> Result<End> {
        let (ours, theirs) = self.pipe(which)?;
        pipe::set_nonblocking(ours.as_fd()).map_err(streams)?;
        let event = self.out_of_the_way(copier::event().map_err(streams)?);
        self.standbys[which] = Some(Standby::new(work, Some((ours, event)))?);
        Ok(End::Made(theirs))
    }

    /// (our end, the child's end).
    fn pipe(&mut self, which: usize) -> Result<(OwnedFd, OwnedFd)> {
        if let Some(ends) = self.prepared.take() {
            return Ok(ends);
        }
        let (read, write) = pipe::pipe().map_err(streams)?;
        let (ours, theirs) = if which == 0 { (write, read) } else { (read, write) };
        Ok((self.out_of_the_way(ours), if theirs.as_raw_fd() < 3 { spawn::raise(theirs) } else { theirs }))
    }

    fn out_of_the_way(&self, fd: OwnedFd) -> OwnedFd {
        if self.crowded || fd.as_raw_fd() < 3 { spawn::raise(fd) } else { fd }
    }

    /// Whether output that is the caller's may be asked for after the end.
    fn may_be_read_later(&self) -> bool {
        self.untaken_terminal.is_some() || self.piped[1..].iter().any(Option::is_some)
    }

    fn any(&self) -> bool {
        self.feed.is_some()
            || self.untaken_terminal.is_some()
            || self.terminal.is_some()
            || self.piped.iter().any(Option::is_some)
            || self.captures.iter().any(Option::is_some)
            || self.spools.iter().any(Option::is_some)
            || self.standbys.iter().any(Option::is_some)
    }

    fn copiers(&self) -> [Option<Copier>; 3] {
        self.standbys.each_ref().map(|standby| standby.as_ref().map(Standby::copier))
    }

    fn close_theirs(self) -> [Option<Standby>; 3] {
        self.standbys
    }

    fn sources(&self) -> [Source<'_>; 3] {
        self.theirs.each_ref().map(|end| match end {
            End::Inherit => Source::Inherit,
            End::Null => Source::Null,
            End::Made(fd) => Source::Fd(fd.as_fd()),
            End::Given(fd) | End::Terminal(fd) => Source::Fd(fd.as_fd()),
            End::Ours(number) => Source::Ours(*number),
            End::SameAsStdout => Source::SameAsStdout,
        })
    }
}

fn streams(error: std::io::Error) -> Error {
    Error::os(Stage::Streams, error)
}

fn claim<T: ?Sized>(value: &OneShot<T>) -> Result<Claim<T>> {
    value.claim().ok_or_else(|| Error::new(ErrorKind::StreamUsed).at(Stage::Streams))
}
