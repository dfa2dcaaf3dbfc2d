//! From a process that other code started to a watched child: looked at, entered, registered, and stopped at once if there is a reason.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::cell::{Birth, Cell, Extra, Kin};
use super::core::{Core, fired, is_awaited};
use super::stop::Ladder;
use crate::adopt::Adopt;
use crate::command::Cancel;
use crate::context::Context;
use crate::error::{Error, ErrorKind, Result};
use crate::process::{self, Named};
use crate::scope::Scope;
use crate::spawn;
use crate::token::Token;
use crate::trace::Span;

/// Takes a process into the tables of `core`. On failure nothing has happened to it.
pub(crate) fn adopt(core: &Arc<Core>, adopt: &Adopt) -> Result<(Arc<Cell>, Token)> {
    core.check_ours()?;
    let called_at = Instant::now();
    let refused = |why: &str| Error::new(ErrorKind::InvalidInput).saying(why);
    let pid = match process::named_by(adopt.as_fd()) {
        Named::Process(pid) if pid == std::process::id() => return Err(refused("a process does not adopt itself")),
        Named::Process(pid) => pid,
        // It is gone, and its number is nobody's.
        Named::Gone => 0,
        Named::Thread => return Err(refused("the pidfd names a thread")),
        Named::Nothing => return Err(refused("the descriptor is no pidfd")),
    };
    let label: Arc<str> = label(pid).into();
    let kin = if process::is_our_child(adopt.as_fd()) { Kin::Adopted } else { Kin::Foreign };
    let entered = || {
        if kin == Kin::Adopted && is_awaited(pid) {
            // Of two reapers one would lose the status.
            return Err(refused("it is watched already"));
        }
        check_group(adopt, pid, kin)?;
        if adopt.contexts.iter().any(Context::is_inherited) {
            return Err(Error::new(ErrorKind::Forked).saying("a context"));
        }
        let pidfd = duplicate(adopt)?;
        let deadline = adopt.timeout.and_then(|limit| called_at.checked_add(limit));
        let span = Span::begin(|| label.clone());
        let birth = Birth { label: label.clone(), spawned_at: called_at, kill_on_drop: adopt.kill_on_drop, span };
        let cell = Cell::new(core, birth);
        cell.equip(if adopt.group { Scope::Group } else { Scope::Child }, extra(adopt));
        let token = cell.enter(&adopt.contexts, deadline)?;
        // Before the loop has it, which ends it with the process.
        cell.trace_birth(pid);
        cell.adopted(pid, pidfd, kin).inspect_err(|_| core.withdraw(token))?;
        // Entered first, read now: whoever cancelled before has set the flag, whoever cancels later finds the slot.
        if let Some(cause) = fired(&adopt.contexts) {
            cell.stop(cause);
        }
        Ok((cell, token))
    };
    entered().map_err(|error| error.of(&*label))
}

/// What it is called in errors and logs: its arguments may be anybody's secrets.
fn label(pid: u32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("[{pid} {}]", name.trim_end()),
        Err(_) => format!("[{pid}]"),
    }
}

fn check_group(adopt: &Adopt, pid: u32, kin: Kin) -> Result<()> {
    if !adopt.group {
        return Ok(());
    }
    if !process::leads_group(pid) {
        return Err(Error::new(ErrorKind::InvalidInput).saying("it leads no process group"));
    }
    process::probe_group_flag(adopt.as_fd());
    // By number that would need a zombie of ours.
    if kin == Kin::Foreign && !process::group_flag_works() {
        return Err(Error::new(ErrorKind::Unsupported).saying("signals to a group by its pidfd (Linux 6.9)"));
    }
    Ok(())
}

/// Ours to register and to close; the flags of the caller's, which it shares, stay as they are.
fn duplicate(adopt: &Adopt) -> Result<OwnedFd> {
    let pidfd = adopt.pidfd.try_clone().map_err(|e| Error::new(ErrorKind::NoDescriptors).because(e))?;
    Ok(if pidfd.as_raw_fd() < 3 { spawn::raise(pidfd) } else { pidfd })
}

fn extra(adopt: &Adopt) -> Option<Box<Extra>> {
    if matches!(adopt.cancel, Cancel::Kill) && adopt.wait_delay.is_none() {
        return None;
    }
    let ladder = Ladder::from(&adopt.cancel);
    Some(Box::new(Extra { ladder, wait_delay: adopt.wait_delay, ..Extra::default() }))
}
