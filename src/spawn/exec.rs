//! This process becomes the program. Knows how a spawn is prepared, and that here there is no child: a thread does what one would, so that
//! little has changed if it fails.

use std::io;

use super::{
    Changing, Options, Plan, Shape, Ways, blame, check_kernel, choose_manner, clears_dumpable,
    limit_before_it_was_raised, null_of, write_script,
};
use crate::error::{Error, ErrorKind};
use crate::sys::birth::{self, Act};
use crate::sys::undo::Undo;

/// Returns only if it fails.
pub(crate) fn replace(plan: &Plan<'_>) -> Error {
    if let Some(why) = impossible(plan.options) {
        return Error::new(ErrorKind::InvalidInput).saying(why);
    }
    let undo = undo(plan.options);
    let error = try_to(plan);
    undo.undo();
    error
}

/// What the kernel gives to new processes alone.
fn impossible(options: &Options) -> Option<&'static str> {
    let namespaces = (libc::CLONE_NEWUSER | libc::CLONE_NEWPID) as u64;
    (options.namespaces & namespaces != 0).then_some("a new user or PID namespace is for a new process")
}

fn undo(options: &Options) -> Undo {
    let raised = match limit_before_it_was_raised() {
        Some(Act::Limit { resource, .. }) => Some(resource),
        _ => None,
    };
    let resources = options.limits.iter().map(|(resource, ..)| *resource).chain(raised);
    Undo::note(resources, options.oom_score_adj.is_some(), options.group.is_some())
}

fn try_to(plan: &Plan<'_>) -> Error {
    let prepared = check_kernel().and_then(|()| null_of(plan));
    let null = match prepared {
        Ok(null) => null,
        Err(error) => return error,
    };
    let mut ways = Ways::known().in_shape(Shape::Thread);
    loop {
        let script = match write_script(plan, null, None, ways, Shape::Thread) {
            Ok(script) => script,
            Err(error) => return error,
        };
        let changing = clears_dumpable(plan.options).then(Changing::begin);
        let failure = birth::replace(&script, choose_manner(plan, null, &script, ways, Shape::Thread));
        drop(changing);
        match ways.without_the_refused(failure, script.sweep) {
            Some(fewer) => ways = fewer,
            None if failure.step == birth::Step::Clone => {
                return super::blame_clone(plan.options, io::Error::from_raw_os_error(failure.errno));
            }
            None => return blame(plan, &script, failure),
        }
    }
}
