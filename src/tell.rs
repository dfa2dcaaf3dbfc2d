//! What is said through the `log` facade, and to wakers. Both are somebody else's code: never called with a lock held, and a panic in it
//! ends here. Knows nothing of what is said.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

pub(crate) use log::Level;

/// Says it, if anybody listens.
pub(crate) fn tell(level: Level, what: fmt::Arguments<'_>) {
    if level <= log::max_level() {
        // Where a logger panics there is nobody left to tell.
        let _ = catch_unwind(AssertUnwindSafe(|| log::log!(target: "pidloop", level, "pidloop: {what}")));
    }
}

/// Wakes a task. A waker is somebody else's code, too.
pub(crate) fn wake(waker: Waker) {
    if catch_unwind(AssertUnwindSafe(|| waker.wake())).is_err() {
        tell(Level::Warn, format_args!("a waker panicked"));
    }
}
