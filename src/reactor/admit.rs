//! A spawn at the gate: whether it may go on, and how a thread waits for that. Knows limits by the line of a command.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::cell::{Cell, Turn};
use super::core::Core;
use crate::admission::{self, Applicant, Application, Key, Line, Number, Permit};
use crate::command::Command;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::events::EventKind;

/// Whose limits count for the command; `None`: nobody's.
pub(super) fn line(core: &Core, command: &Command) -> Option<Line> {
    // Who would wait for a slot with the commands before it alive would wait for those, who wait for it.
    if !admission::is_used() || command.follows {
        return None;
    }
    Line::of(core.key, command.contexts.iter().flat_map(Context::tenants))
}

/// For a thread that can wait: a permit, if one is needed.
pub(super) fn admit(cell: &Arc<Cell>, command: &Command) -> Result<Option<Permit>> {
    let Some(line) = line(&cell.core, command) else { return Ok(None) };
    match admission::try_admit(&line) {
        Ok(permit) => Ok(Some(permit)),
        Err(full) if cell.core.is_turned_by_its_caller() => Err(no_room(full)),
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
    fn pass(&self) -> Result<Permit> {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(answer) = answer.take() {
                return answer;
            }
            answer = self.opened.wait(answer).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn open(&self, answer: Result<Permit>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
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
