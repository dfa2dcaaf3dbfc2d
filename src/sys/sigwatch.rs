//! Signal handlers that write to eventfds: which signals are watched, by whom, and what was installed before. Knows no contexts.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::process::generation;

/// How many watches there may be at once: the handler looks at each.
const WATCHES_MAX: usize = 64;
const SIGNALS: usize = 65;

/// What the handler reads: atomics alone.
struct Slot {
    /// The watched signals as bits; 0: the slot is free.
    signals: AtomicU64,
    eventfd: AtomicI32,
    /// The signal that came first.
    fired: AtomicI32,
}

static SLOTS: [Slot; WATCHES_MAX] =
    [const { Slot { signals: AtomicU64::new(0), eventfd: AtomicI32::new(-1), fired: AtomicI32::new(0) } }; WATCHES_MAX];
/// How many handlers are running: an eventfd is closed when none is that might still write to it.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// The process whose eventfds these are.
static OWNER: AtomicU64 = AtomicU64::new(0);
/// The handlers to go on with: the function and its flags; 0 is none.
static NEXT: [(AtomicUsize, AtomicI32); SIGNALS] = [const { (AtomicUsize::new(0), AtomicI32::new(0)) }; SIGNALS];
/// What was installed before, while we are. Serializes everything but the handler.
static BEFORE: Mutex<[Option<Installed>; SIGNALS]> = Mutex::new([const { None }; SIGNALS]);

struct Installed {
    before: libc::sigaction,
    users: usize,
}

/// A watch for some signals, until it is dropped.
pub(crate) struct Watch {
    slot: usize,
    signals: u64,
    eventfd: OwnedFd,
    generation: u64,
}

impl Watch {
    /// Has `eventfd` written to when one of `signals` comes. An error without errno: too many watches.
    pub(crate) fn new(eventfd: OwnedFd, signals: &[i32]) -> io::Result<Watch> {
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        if OWNER.swap(generation(), Ordering::SeqCst) != generation() {
            // A forked copy: what it inherited is the parent's.
            SLOTS.iter().for_each(|slot| slot.signals.store(0, Ordering::SeqCst));
        }
        let free = SLOTS.iter().position(|slot| slot.signals.load(Ordering::SeqCst) == 0);
        let slot = free.ok_or_else(|| io::Error::other("too many"))?;
        let bits = signals.iter().fold(0, |bits, signal| bits | bit(*signal));
        SLOTS[slot].fired.store(0, Ordering::SeqCst);
        SLOTS[slot].eventfd.store(eventfd.as_raw_fd(), Ordering::SeqCst);
        SLOTS[slot].signals.store(bits, Ordering::SeqCst);
        for signal in watched(bits) {
            if let Err(error) = install(&mut before, signal) {
                watched(bits).take_while(|other| *other != signal).for_each(|other| uninstall(&mut before, other));
                free_slot(slot);
                return Err(error);
            }
        }
        Ok(Watch { slot, signals: bits, eventfd, generation: generation() })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }

    /// The signal that came first, if one has come.
    pub(crate) fn fired(&self) -> Option<i32> {
        match SLOTS[self.slot].fired.load(Ordering::SeqCst) {
            0 => None,
            signal => Some(signal),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.generation != generation() {
            return;
        }
        let mut before = BEFORE.lock().unwrap_or_else(PoisonError::into_inner);
        watched(self.signals).for_each(|signal| uninstall(&mut before, signal));
        free_slot(self.slot);
    }
}

/// A handler that has read the eventfd's number may be about to write to it: it may be closed when none runs any more.
fn free_slot(slot: usize) {
    SLOTS[slot].eventfd.store(-1, Ordering::SeqCst);
    while RUNNING.load(Ordering::SeqCst) > 0 {
        std::thread::yield_now();
    }
    SLOTS[slot].signals.store(0, Ordering::SeqCst);
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

fn watched(bits: u64) -> impl Iterator<Item = i32> {
    (1..SIGNALS as i32).filter(move |signal| bits & bit(*signal) != 0)
}

fn install(before: &mut [Option<Installed>; SIGNALS], signal: i32) -> io::Result<()> {
    let entry = &mut before[signal as usize];
    if let Some(installed) = entry {
        installed.users += 1;
        return Ok(());
    }
    let old = action(signal, None)?;
    let function = match old.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => 0,
        function => function,
    };
    NEXT[signal as usize].1.store(old.sa_flags, Ordering::SeqCst);
    NEXT[signal as usize].0.store(function, Ordering::SeqCst);
    let mut ours = old;
    ours.sa_sigaction = handle as *const () as usize;
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    action(signal, Some(&ours))?;
    *entry = Some(Installed { before: old, users: 1 });
    Ok(())
}

fn uninstall(before: &mut [Option<Installed>; SIGNALS], signal: i32) {
    let entry = &mut before[signal as usize];
    let Some(installed) = entry else { return };
    installed.users -= 1;
    if installed.users > 0 {
        return;
    }
    // Somebody has put a handler over ours: it may call ours, which goes on with the one before.
    let is_ours = action(signal, None).is_ok_and(|now| now.sa_sigaction == handle as *const () as usize);
    if is_ours && action(signal, Some(&installed.before)).is_ok() {
        *entry = None;
    }
}

/// sigaction(2).
fn action(signal: i32, new: Option<&libc::sigaction>) -> io::Result<libc::sigaction> {
    // SAFETY: sigaction is plain data; the handler given in `new` is `handle`, or what the kernel returned for this signal.
    let (result, old) = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        (libc::sigaction(signal, new.map_or(ptr::null(), ptr::from_ref), &mut old), old)
    };
    if result == 0 { Ok(old) } else { Err(io::Error::last_os_error()) }
}

/// Async-signal-safe: atomics, `write(2)`, and what was installed before.
extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    RUNNING.fetch_add(1, Ordering::SeqCst);
    if OWNER.load(Ordering::SeqCst) == generation() {
        // SAFETY: errno of the interrupted code is put back below.
        let errno = unsafe { *libc::__errno_location() };
        for slot in &SLOTS {
            tell(slot, signal);
        }
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
    }
    // Before the next handler, which may never return.
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    let (function, flags) = &NEXT[signal as usize];
    let function = function.load(Ordering::SeqCst);
    if function == 0 {
        return;
    }
    // SAFETY: the kernel had this function installed for this signal, with these flags, which say what it takes.
    unsafe {
        if flags.load(Ordering::SeqCst) & libc::SA_SIGINFO != 0 {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void)>(function)(
                signal, info, context,
            );
        } else {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(function)(signal);
        }
    }
}

fn tell(slot: &Slot, signal: i32) {
    if slot.signals.load(Ordering::SeqCst) & bit(signal) == 0 {
        return;
    }
    let eventfd = slot.eventfd.load(Ordering::SeqCst);
    if eventfd < 0 {
        return;
    }
    // Which signal first, then the write: who sees the eventfd readable finds the signal.
    let _ = slot.fired.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
    // SAFETY: write(2) of eight bytes to an eventfd that stays open while a handler runs.
    unsafe { libc::write(eventfd, ptr::from_ref(&1u64).cast(), 8) };
}
