//! Signal handlers that write to eventfds: which signals are watched, by whom, and what was installed before. Knows no contexts.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::PerProcess;
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
/// How many handlers are at work: an eventfd is closed when none is that might still write to it.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// The process whose eventfds these are.
static OWNER: AtomicU64 = AtomicU64::new(0);
/// What the handler goes on with: a function (or `SIG_DFL`, `SIG_IGN`) and its flags.
static NEXT: [(AtomicUsize, AtomicI32); SIGNALS] = [const { (AtomicUsize::new(0), AtomicI32::new(0)) }; SIGNALS];

/// What was installed before, while we are. Its lock serializes everything but the handler.
struct Table(Mutex<[Option<Installed>; SIGNALS]>);

impl Default for Table {
    fn default() -> Table {
        Table(Mutex::new([const { None }; SIGNALS]))
    }
}

static TABLE: PerProcess<Table> = PerProcess::new();

struct Installed {
    before: libc::sigaction,
    users: usize,
}

fn installed() -> MutexGuard<'static, [Option<Installed>; SIGNALS]> {
    TABLE.get().0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut before = installed();
        if OWNER.load(Ordering::SeqCst) != generation() {
            // A forked copy: what it inherited is the parent's, threads in the midst of the handler included.
            SLOTS.iter().for_each(|slot| slot.signals.store(0, Ordering::SeqCst));
            RUNNING.store(0, Ordering::SeqCst);
            OWNER.store(generation(), Ordering::SeqCst);
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
        if self.generation != generation() {
            return None;
        }
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
        let mut before = installed();
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
    let mut old = action(signal, None)?;
    let (function, flags) = &NEXT[signal as usize];
    if old.sa_sigaction == handle as *const () as usize {
        // Inherited by a forked copy, as is the note of what was there before.
        old.sa_sigaction = function.load(Ordering::SeqCst);
        old.sa_flags = flags.load(Ordering::SeqCst);
    } else {
        flags.store(old.sa_flags, Ordering::SeqCst);
        function.store(old.sa_sigaction, Ordering::SeqCst);
    }
    let mut ours = old;
    ours.sa_sigaction = handle as *const () as usize;
    // Who had a handler goes on to see his system calls interrupted, or not, as he chose.
    let chosen = if is_function(old.sa_sigaction) { old.sa_flags } else { libc::SA_RESTART };
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | chosen & (libc::SA_RESTART | libc::SA_NODEFER);
    // A host that ignores SIGCHLD counts on its children's being reaped for it.
    let ignored = signal == libc::SIGCHLD && old.sa_sigaction == libc::SIG_IGN;
    let reaps = if ignored { libc::SA_NOCLDWAIT } else { 0 };
    ours.sa_flags |= old.sa_flags & (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT) | reaps;
    action(signal, Some(&ours))?;
    *entry = Some(Installed { before: old, users: 1 });
    Ok(())
}

fn is_function(handler: usize) -> bool {
    ![libc::SIG_DFL, libc::SIG_IGN].contains(&handler)
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
    let is_ours = OWNER.load(Ordering::SeqCst) == generation();
    if is_ours {
        // SAFETY: errno of the interrupted code is put back below.
        let errno = unsafe { *libc::__errno_location() };
        for slot in &SLOTS {
            tell(slot, signal);
        }
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
    }
    let (function, flags) = &NEXT[signal as usize];
    let (function, flags) = (function.load(Ordering::SeqCst), flags.load(Ordering::SeqCst));
    // Before the next handler, which may never return.
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    if function == libc::SIG_DFL && !is_ours {
        return act_as_by_default(signal);
    }
    if !is_function(function) {
        return;
    }
    // SAFETY: the kernel had this function installed for this signal, with these flags, which say what it takes.
    unsafe {
        if flags & libc::SA_SIGINFO != 0 {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void)>(function)(
                signal, info, context,
            );
        } else {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(function)(signal);
        }
    }
}

/// In a forked copy, for which nobody watches: the handler goes, and the signal comes again when it has returned.
fn act_as_by_default(signal: i32) {
    // SAFETY: sigaction(2) and raise(3) are async-signal-safe; no handler is installed.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &default, ptr::null_mut());
        libc::raise(signal);
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
