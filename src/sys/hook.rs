//! Code of the caller's that runs in a half-born child: kept as data here, called there. Knows nothing of how the child is made.

use std::cell::UnsafeCell;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

type Code = dyn FnMut() -> io::Result<()> + Send + Sync;

/// A closure for the child. Nobody calls it in the process that made it, except one that is about to be replaced.
#[derive(Clone)]
pub(crate) struct Hook(Arc<UnsafeCell<Code>>);

// SAFETY: the closure is Send and Sync; what is behind the cell is touched by `call` alone, which its caller keeps to itself.
unsafe impl Send for Hook {}
// SAFETY: as above.
unsafe impl Sync for Hook {}

impl Hook {
    pub(crate) fn new(code: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Hook {
        Hook(Arc::new(UnsafeCell::new(code)))
    }

    /// Calls it. An error is its errno, `EINVAL` if it has none, as in std; a panic is 0.
    ///
    /// # Safety
    ///
    /// No other thread of this process calls a clone of it at the same time: in a forked copy there is no other thread.
    pub(super) unsafe fn call(&self) -> Result<(), i32> {
        // SAFETY: the caller's.
        let code = unsafe { &mut *self.0.get() };
        match catch_unwind(AssertUnwindSafe(code)) {
            Ok(result) => result.map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)),
            Err(_) => Err(0),
        }
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("closure")
    }
}
