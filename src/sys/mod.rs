//! The only unsafe code: what rustix does not offer, each call with its reason and its man page. Knows no other file of the crate.

pub(crate) mod process;
pub(crate) mod sigwatch;

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A value for the whole process that can be replaced but is never freed, since somebody may be looking at it. A pointer and no
/// lock: a lock could be held by another thread when the process is forked.
#[derive(Debug)]
pub(crate) struct Leaked<T>(AtomicPtr<T>);

impl<T: Send + Sync + 'static> Leaked<T> {
    pub(crate) const fn new() -> Leaked<T> {
        Leaked(AtomicPtr::new(ptr::null_mut()))
    }

    pub(crate) fn get(&self) -> Option<&'static T> {
        // SAFETY: it is null or comes from a Box that `replace` gave up for ever.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Puts `new` there if `known` is what is there; says whether it did.
    pub(crate) fn replace(&self, known: Option<&'static T>, new: Box<T>) -> bool {
        let known = known.map_or(ptr::null_mut(), |known| ptr::from_ref(known).cast_mut());
        let new = Box::into_raw(new);
        let replaced = self.0.compare_exchange(known, new, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if !replaced {
            // SAFETY: nobody has seen it.
            drop(unsafe { Box::from_raw(new) });
        }
        replaced
    }
}
