//! A spawn at the gate: whether it may go on, and how a thread or a task waits for that. Knows limits by the line of a command.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{self, Poll, Waker};
use std::time::Duration;

use super::cell::{Cell, Turn};
use super::core::Core;
use super::turn::is_turned_here;
use crate::admission::{self, Applicant, Application, Key, Line, Number, Permit};
use crate::command::Command;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::events::EventKind;
use crate::tell::wake;

/// How often a thread that sleeps makes sure that somebody sees to those who wait for what has run out: a thread for that may be what is missing.
const LOOK: Duration = Duration::from_secs(1);

/// Whose limits count for the command; `None`: nobody's.
pub(super) fn line(core: &Core, command: &Command) -> Option<Line> {
    let patient = is_patient(core, command);
    // Who would wait for a slot with the commands before it alive would wait for those, who wait for it.
    if command.follows || !patient && !admission::is_used() {
        return None;
    }
    Line::of(core.key, command.contexts.iter().flat_map(Context::tenants), patient)
}

fn is_patient(core: &Core, command: &Command) -> bool {
    command.patient && !command.follows && !core.is_turned_by_its_caller()
}

/// Whether that has run out which the command would rather wait for. Then it is to give back what it has, and to ask again.
pub(super) fn has_run_out<T>(cell: &Cell, command: &Command, result: &Result<T>) -> bool {
    use ErrorKind::{NoDescriptors, NoMemory, NoProcessSlots};
    let is_short = |error: &Error| matches!(error.kind(), NoDescriptors | NoProcessSlots | NoMemory);
    let waits = is_patient(&cell.core, command) && result.as_ref().is_err_and(is_short);
    if waits {
        admission::has_run_out();
        drop(cell.strip());
        drop(cell.take_permit());
    }
    waits
}

/// For a thread that can wait: a permit, if one is needed.
pub(super) fn admit(cell: &Arc<Cell>, command: &Command) -> Result<Option<Permit>> {
    let Some(line) = line(&cell.core, command) else { return Ok(None) };
    match admission::try_admit(&line) {
        Ok(permit) => Ok(Some(permit)),
        // On the loop's own thread, in a waker, it would wait for itself.
        Err(full) if cell.core.is_turned_by_its_caller() || is_turned_here(&cell.core) => Err(no_room(full)),
        Err(_) => wait(cell, line, command.priority).map(Some),
    }
}

/// For what must begin now or not at all.
pub(super) fn admit_now(line: &Line) -> Result<Permit> {
    admission::try_admit(line).map_err(no_room)
}

fn no_room(full: Key) -> Error {
    let whose = match full {
        Key::Driver(_) => "its driver",
        Key::Context(_) => "its context",
        Key::Resources => return Error::new(ErrorKind::NoRoom).saying("no descriptors are left but the reserve"),
    };
    Error::new(ErrorKind::NoRoom).saying(format!("{whose} has as many children as it may have"))
}

/// Puts it in the queue. On an error it is not there.
pub(super) fn apply(cell: &Arc<Cell>, line: Line, priority: i32, applicant: Box<dyn Applicant>) -> Result<()> {
    let number = Number::next();
    cell.waits_for(Turn::Admission(number));
    let core = &cell.core;
    core.recorder.queued.increment();
    core.emit(&cell.label, || EventKind::Queued);
    let applied = admission::apply(Application { number, line, priority }, applicant);
    if applied.is_err() {
        core.recorder.queued.decrement();
    } else if core.check_open().is_err() {
        // Closed in between: whoever closed it did not find it.
        cell.leave_queue();
    }
    applied
}

/// Sleeps until it is admitted or stopped: by its contexts, its deadline, the end of its driver, all of which the loop sees to.
fn wait(cell: &Arc<Cell>, line: Line, priority: i32) -> Result<Permit> {
    let gate = Arc::new(Gate::default());
    apply(cell, line, priority, Box::new(Sleeper { gate: gate.clone(), cell: cell.clone() }))?;
    let permit = gate.pass()?;
    cell.takes_its_turn().map(|()| permit)
}

/// What a sleeping thread and who wakes it share: the answer, once there is one.
#[derive(Default)]
struct Gate {
    answer: Mutex<Option<Result<Permit>>>,
    opened: Condvar,
}

impl Gate {
    fn answer(&self) -> MutexGuard<'_, Option<Result<Permit>>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) -> Result<Permit> {
        let mut answer = self.answer();
        loop {
            if let Some(answer) = answer.take() {
                return answer;
            }
            answer = self.opened.wait_timeout(answer, LOOK).unwrap_or_else(PoisonError::into_inner).0;
            if answer.is_none() {
                drop(answer);
                admission::pulse_if_nobody_does();
                answer = self.answer();
            }
        }
    }

    fn open(&self, answer: Result<Permit>) {
        *self.answer() = Some(answer);
        self.opened.notify_one();
    }
}

struct Sleeper {
    gate: Arc<Gate>,
    cell: Arc<Cell>,
}

impl Applicant for Sleeper {
    fn admitted(self: Box<Self>, permit: Permit) {
        self.cell.core.recorder.queued.decrement();
        self.gate.open(Ok(permit));
    }

    fn left(self: Box<Self>) {
        self.cell.core.recorder.queued.decrement();
        let why = self.cell.unborn().map_or_else(|| self.cell.core.refusal(), Error::stopped);
        self.gate.open(Err(why));
    }
}

/// A task that waits until a command has room. It takes its turn as everybody else who waits, and passes it on.
pub(crate) struct Room {
    core: Arc<Core>,
    command: Command,
    waiting: Option<(Number, Arc<Bell>)>,
}

/// Rung when its turn comes, or never will.
#[derive(Default)]
struct Bell(Mutex<(bool, Option<Waker>)>);

struct Visitor(Arc<Bell>);

impl Room {
    pub(crate) fn new(core: &Arc<Core>, command: &Command) -> Room {
        Room { core: core.clone(), command: command.clone(), waiting: None }
    }

    fn begin(&mut self) -> Result<Arc<Bell>> {
        self.core.check_open()?;
        let (number, bell) = (Number::next(), Arc::new(Bell::default()));
        match line(&self.core, &self.command) {
            None => bell.ring(),
            Some(line) => self.wait(Application { number, line, priority: self.command.priority }, &bell)?,
        }
        self.waiting = Some((number, bell.clone()));
        Ok(bell)
    }

    fn wait(&self, application: Application, bell: &Arc<Bell>) -> Result<()> {
        let number = application.number;
        self.core.visits(number);
        let applied = admission::apply(application, Box::new(Visitor(bell.clone())));
        if applied.is_err() {
            self.core.visits_no_more(number);
        } else if self.core.check_open().is_err() {
            // Closed in between: whoever closed it did not find it.
            number.leave().into_iter().for_each(|visitor| visitor.left());
        }
        applied
    }
}

impl Future for Room {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Result<()>> {
        self.core.check_ours()?;
        let bell = match &self.waiting {
            Some((_, bell)) => bell.clone(),
            None => self.begin().map_err(|error| error.of(&*self.command.label()))?,
        };
        // Cloned and dropped outside the lock: a waker is somebody else's code.
        let waker = cx.waker().clone();
        let mut state = bell.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 {
            drop(state);
            return Poll::Ready(self.core.check_open().map_err(|error| error.of(&*self.command.label())));
        }
        let former = state.1.replace(waker);
        drop(state);
        drop(former);
        Poll::Pending
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let (Some((number, _)), true) = (&self.waiting, self.core.is_ours()) {
            self.core.visits_no_more(*number);
            drop(number.leave());
        }
    }
}

impl Bell {
    fn ring(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = true;
        let waker = state.1.take();
        drop(state);
        waker.into_iter().for_each(wake);
    }
}

impl Applicant for Visitor {
    fn admitted(self: Box<Self>, permit: Permit) {
        // Whoever is woken finds the slot free, unless somebody else was waiting for it.
        drop(permit);
        self.0.ring();
    }

    fn left(self: Box<Self>) {
        // The loop takes no more: whoever is woken finds that.
        self.0.ring();
    }
}
