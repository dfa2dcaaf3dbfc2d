//! System calls on running children that rustix does not offer, and what a fork does to us. Knows nothing of how a child was started.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::Pid;

use crate::exit::Usage;

/// `PIDFD_SIGNAL_PROCESS_GROUP` (Linux 6.9).
pub(super) const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// What `waitid` says of a pidfd.
#[derive(Debug)]
pub(crate) enum Waited {
    /// Still running, or hidden by a tracer.
    NotYet,
    /// It ended like this, and (unless only looked at) is reaped.
    Ended(ExitStatus, Usage),
    /// `ECHILD`: somebody else reaped it.
    Stolen,
}

/// How to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitMode {
    /// Sleep until it has ended, and reap it.
    Block,
    /// Sleep until it has ended, and leave the zombie.
    BlockAndLeave,
    /// Reap it if it has ended.
    Poll,
    /// Look whether it has ended, and leave the zombie.
    PollAndLeave,
}

/// `waitid(P_PIDFD, …)` with the fifth argument of the raw call, which gives the child's own rusage. waitid(2).
pub(crate) fn wait(pidfd: BorrowedFd<'_>, mode: WaitMode) -> io::Result<Waited> {
    let options = libc::WEXITED
        | match mode {
            WaitMode::Block => 0,
            WaitMode::BlockAndLeave => libc::WNOWAIT,
            WaitMode::Poll => libc::WNOHANG,
            WaitMode::PollAndLeave => libc::WNOHANG | libc::WNOWAIT,
        };
    loop {
        // SAFETY: both structs are plain data for which all zeros is a value; the kernel writes them and keeps no pointer.
        let (mut info, mut rusage): (libc::siginfo_t, libc::rusage) = unsafe { std::mem::zeroed() };
        // SAFETY: waitid(2): the pointers are valid for the length of the call, the descriptor is borrowed for it.
        let result = unsafe {
            libc::syscall(
                libc::SYS_waitid,
                libc::P_PIDFD,
                pidfd.as_raw_fd(),
                ptr::from_mut(&mut info),
                options,
                ptr::from_mut(&mut rusage),
            )
        };
        if result == 0 {
            return Ok(waited(&info, &rusage));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return Ok(Waited::Stolen),
            _ => return Err(error),
        }
    }
}

/// A stop of a child, by this signal, or its continuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopState {
    Stopped(i32),
    Continued,
}

/// Sleeps until the child is stopped or continued, and takes that report; `None` when it is dead or somebody has reaped it.
///
/// The death is looked at and left: without it in the question the sleep would outlast the child. waitid(2).
pub(crate) fn await_stop(pidfd: BorrowedFd<'_>) -> io::Result<Option<StopState>> {
    loop {
        let Some(info) = wait_info(pidfd, libc::WSTOPPED | libc::WCONTINUED | libc::WEXITED | libc::WNOWAIT)? else {
            return Ok(None);
        };
        // SAFETY: waitid fills the SIGCHLD members.
        let signal = unsafe { info.si_status() };
        let (taken, state) = match info.si_code {
            libc::CLD_STOPPED | libc::CLD_TRAPPED => (libc::WSTOPPED, StopState::Stopped(signal)),
            libc::CLD_CONTINUED => (libc::WCONTINUED, StopState::Continued),
            _ => return Ok(None),
        };
        // SAFETY: as above, or all zeros.
        let took = wait_info(pidfd, taken | libc::WNOHANG)?.is_some_and(|info| unsafe { info.si_pid() } != 0);
        // Else it is over already, and another one may be there.
        if took {
            return Ok(Some(state));
        }
    }
}

/// `None`: it is no child of ours (any more).
fn wait_info(pidfd: BorrowedFd<'_>, options: libc::c_int) -> io::Result<Option<libc::siginfo_t>> {
    loop {
        // SAFETY: plain data for which all zeros is a value.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: waitid(2): the pointer is valid for the length of the call, the descriptor is borrowed for it.
        let result = unsafe {
            let null = ptr::null_mut::<libc::rusage>();
            libc::syscall(libc::SYS_waitid, libc::P_PIDFD, pidfd.as_raw_fd(), ptr::from_mut(&mut info), options, null)
        };
        if result == 0 {
            return Ok(Some(info));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::ECHILD) => return Ok(None),
            _ => return Err(error),
        }
    }
}

fn waited(info: &libc::siginfo_t, rusage: &libc::rusage) -> Waited {
    // SAFETY: waitid fills the SIGCHLD members, or leaves the zeros.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Waited::NotYet;
    }
    let raw = match info.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_DUMPED => status | 0x80,
        _ => status,
    };
    Waited::Ended(ExitStatus::from_raw(raw), usage(rusage))
}

fn usage(r: &libc::rusage) -> Usage {
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_micros(t.tv_usec.unsigned_abs())
    };
    Usage {
        user_time: time(r.ru_utime),
        system_time: time(r.ru_stime),
        max_rss_bytes: r.ru_maxrss.unsigned_abs() * 1024,
        minor_faults: r.ru_minflt.unsigned_abs(),
        major_faults: r.ru_majflt.unsigned_abs(),
        blocks_in: r.ru_inblock.unsigned_abs(),
        blocks_out: r.ru_oublock.unsigned_abs(),
        voluntary_switches: r.ru_nvcsw.unsigned_abs(),
        involuntary_switches: r.ru_nivcsw.unsigned_abs(),
    }
}

/// The status of a process that somebody else reaped, from `PIDFD_GET_INFO` (Linux 6.15); `None` where the kernel does not keep it.
pub(crate) fn status_after_theft(pidfd: BorrowedFd<'_>) -> Option<ExitStatus> {
    exit_info(pidfd).ok().flatten()
}

fn exit_info(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    // SAFETY: plain data for which all zeros is a value.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    info.mask = libc::PIDFD_INFO_EXIT.into();
    // SAFETY: ioctl(2), PIDFD_GET_INFO writes at most the size that is part of its number into `info`.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO as _, ptr::from_mut(&mut info)) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let is_known = info.mask & u64::from(libc::PIDFD_INFO_EXIT) != 0;
    Ok(is_known.then(|| ExitStatus::from_raw(info.exit_code)))
}

/// What is known of a process that is somebody else's child, and dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// Its parent has reaped it.
    Reaped(Option<ExitStatus>),
    /// A zombie, of which the kernel does not tell yet.
    Zombie,
}

/// By `PIDFD_GET_INFO`: the status is there when the parent has reaped it (Linux 6.15). ioctl(2).
pub(crate) fn look_at_foreign(pidfd: BorrowedFd<'_>) -> Foreign {
    match exit_info(pidfd) {
        Ok(None) => Foreign::Zombie,
        Ok(status) => Foreign::Reaped(status),
        // Before 6.13 there is no such call, before 6.15 it knows nobody who is gone.
        Err(_) => Foreign::Reaped(None),
    }
}

/// `pidfd_send_signal(2)`, to the process. `ESRCH` if it is reaped.
pub(crate) fn signal_process(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    send(pidfd, signal, 0)
}

/// `pidfd_send_signal(2)` with `PIDFD_SIGNAL_PROCESS_GROUP`, to the group the process leads; works by the group's identity,
/// also after the leader was reaped. `EINVAL` before Linux 6.9, `ESRCH` if nobody is left.
pub(crate) fn signal_group(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    send(pidfd, signal, PIDFD_SIGNAL_PROCESS_GROUP)
}

/// `kill(2)` of a group; real-time signals, too, which rustix does not name.
pub(crate) fn signal_group_by_number(leader: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2): integers; the number is positive, and that of a child: not 1.
    let result = unsafe { libc::kill(-leader.as_raw_nonzero().get(), signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn send(pidfd: BorrowedFd<'_>, signal: i32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: pidfd_send_signal(2): integers and a null siginfo.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, ptr::null::<libc::siginfo_t>(), flags)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where the kernel writes the number of a child's pidfd before the child runs, so that another thread can end a child whose creator
/// is still suspended in the clone.
///
/// A clone that fails may have written the number already: then it is free again, and may be anybody's. So it counts only when there
/// is a child: that one writes its own id, in its very first instant (`CLONE_CHILD_SETTID`), when the pidfd is installed.
#[derive(Debug)]
pub(crate) struct Published {
    raw: AtomicI32,
    /// 0: no child.
    child: AtomicI32,
    /// The last one whose number was taken back.
    last: AtomicI32,
    /// The same of a child that has a memory of its own, where it can be told.
    witness: AtomicPtr<AtomicI32>,
    /// Somebody wants no child: one that is not there yet is not tried for again.
    unwanted: AtomicBool,
    /// Held while the number is used, and while it is taken back: it is never closed under a signal, nor used by somebody else.
    closing: Mutex<()>,
}

impl Published {
    pub(crate) fn new() -> Published {
        Published {
            raw: AtomicI32::new(-1),
            child: AtomicI32::new(0),
            last: AtomicI32::new(0),
            witness: AtomicPtr::new(ptr::null_mut()),
            unwanted: AtomicBool::new(false),
            closing: Mutex::new(()),
        }
    }

    /// SIGKILL, if there is a child; says whether it was sent. Not there yet: nothing; the caller comes again.
    pub(crate) fn kill(&self) -> bool {
        let _held = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        self.unwanted.store(true, Ordering::Release);
        // SAFETY: it is dismissed, under the lock, before it is gone.
        let witness = unsafe { self.witness.load(Ordering::Acquire).as_ref() };
        let is_there = |child: &AtomicI32| child.load(Ordering::Acquire) != 0;
        let there = is_there(&self.child) || witness.is_some_and(is_there);
        there && signal_unborn(self.number(), libc::SIGKILL).is_ok()
    }

    /// Takes the number back, then does what ends its validity.
    pub(crate) fn withdraw<T>(&self, f: impl FnOnce() -> T) -> T {
        let _held = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        // Never none of the two: whoever looks for strangers among our children asks in between.
        self.last.store(self.child.load(Ordering::Acquire), Ordering::Release);
        self.child.store(0, Ordering::Release);
        f()
    }

    /// The children that it was about; those that are 0 were none.
    pub(crate) fn children(&self) -> [u32; 3] {
        let _held = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: it is dismissed, under the lock, before it is gone.
        let witness = unsafe { self.witness.load(Ordering::Acquire).as_ref() };
        let pid = |child: &AtomicI32| child.load(Ordering::Acquire).unsigned_abs();
        [pid(&self.child), pid(&self.last), witness.map_or(0, pid)]
    }

    /// Its creator found that there is a child.
    pub(super) fn found(&self, pid: u32) {
        self.child.store(pid as i32, Ordering::Release);
    }

    /// The child will say here that it is there.
    ///
    /// # Safety
    ///
    /// The witness is there until it is dismissed.
    pub(super) unsafe fn call_witness(&self, witness: &AtomicI32) {
        self.witness.store(ptr::from_ref(witness).cast_mut(), Ordering::Release);
    }

    /// The creator knows now: there is a child, or none (0).
    pub(super) fn dismiss_witness(&self, pid: u32) {
        let _held = self.closing.lock().unwrap_or_else(PoisonError::into_inner);
        self.found(pid);
        self.witness.store(ptr::null_mut(), Ordering::Release);
    }

    /// Whether [`Published::kill`] was called.
    pub(crate) fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Acquire)
    }

    /// Whether the child has written its id: it has, in memory that it shares with its suspended creator. In a copy of that the creator does
    /// it in its place.
    pub(super) fn claim(&self, pid: u32) -> bool {
        self.child.compare_exchange(0, pid as i32, Ordering::AcqRel, Ordering::Acquire).is_err()
    }

    pub(super) fn number(&self) -> i32 {
        self.raw.load(Ordering::Acquire)
    }

    /// For `CLONE_PIDFD` and `CLONE_CHILD_SETTID`.
    pub(super) fn as_ptrs(&self) -> (*mut i32, *mut i32) {
        (self.raw.as_ptr(), self.child.as_ptr())
    }
}

/// As [`signal_process`], by the bare number of a descriptor that its owner has not been able to close yet.
pub(super) fn signal_unborn(raw_pidfd: i32, signal: i32) -> io::Result<()> {
    // SAFETY: the callers hold it open (see `Published`).
    let pidfd = unsafe { BorrowedFd::borrow_raw(raw_pidfd) };
    send(pidfd, signal, 0)
}

/// The number of this process in the line of forks: a handle made under another number belongs to an ancestor.
///
/// A page that the kernel empties in a forked copy (`MADV_WIPEONFORK`, Linux 4.14) holds it, so that asking costs no system call
/// and a raw fork is seen, too. A vfork child shares the page and is never asked.
pub(crate) fn generation() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let page = wiped_on_fork();
    // Relaxed throughout: a number and nothing behind it. A fork is seen by the copy's only thread, which made it.
    let seen = page.load(Ordering::Relaxed);
    if seen != 0 {
        return seen;
    }
    // The first call in this process. Two threads may race here: the first exchange wins, both return its number.
    let fresh = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    match page.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => fresh,
        Err(other) => other,
    }
}

fn wiped_on_fork() -> &'static AtomicU64 {
    static PAGE: OnceLock<&'static AtomicU64> = OnceLock::new();
    PAGE.get_or_init(|| {
        let bytes = rustix::param::page_size();
        // SAFETY: mmap(2) of fresh anonymous memory that is never unmapped.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert!(page != libc::MAP_FAILED, "no memory for one page");
        // SAFETY: madvise(2) on the page just mapped. Should it be refused, a fork goes unnoticed: as in every library that does not ask.
        unsafe { libc::madvise(page, bytes, libc::MADV_WIPEONFORK) };
        // SAFETY: the mapping is aligned to a page, zeroed, lives for ever, and is only ever used as this atomic.
        unsafe { &*page.cast::<AtomicU64>() }
    })
}

/// Runs `f` with every signal blocked in this thread, except those a fault of our own raises: a thread started in `f` inherits that
/// and takes no signal from the host. pthread_sigmask(3).
pub(crate) fn with_signals_blocked<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: sigset_t is plain data that sigfillset initializes; the calls touch this thread's mask alone.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS] {
            libc::sigdelset(&mut all, fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    };
    let result = f();
    // SAFETY: as above; `before` was filled by the first call.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
    result
}

/// `write(2)` to a pipe that cannot raise SIGPIPE in this process, whatever its disposition is: the signal is blocked in this thread
/// for the call and, if the call raised it, taken.
pub(crate) fn write_without_sigpipe(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the sets are plain data, initialized by sigemptyset; the calls touch this thread's mask and its own pending SIGPIPE.
    let (set, before, was_pending) = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        let mut pending: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGPIPE);
        libc::sigpending(&mut pending);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
        (set, before, libc::sigismember(&pending, libc::SIGPIPE) == 1)
    };
    let result = rustix::io::write(fd, bytes).map_err(io::Error::from);
    let broken = matches!(&result, Err(e) if e.raw_os_error() == Some(libc::EPIPE));
    // SAFETY: sigtimedwait(2) with a zero timeout takes the pending SIGPIPE, if it is there; then the mask goes back.
    unsafe {
        if broken && !was_pending {
            let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            libc::sigtimedwait(&set, ptr::null_mut(), &zero);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut());
    }
    result
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    /// As a clone that failed late leaves it, when somebody else has got the number.
    #[test]
    fn a_published_number_without_a_child_is_somebody_elses() {
        let mut stranger = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&stranger), PidfdFlags::empty()).unwrap();
        let published = Published::new();
        published.raw.store(pidfd.as_raw_fd(), Ordering::Release);
        assert!(!published.kill());
        signal_process(pidfd.as_fd(), libc::SIGTERM).unwrap();
        assert_eq!(stranger.wait().unwrap().signal(), Some(libc::SIGTERM));

        let mut ours = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&ours), PidfdFlags::empty()).unwrap();
        published.raw.store(pidfd.as_raw_fd(), Ordering::Release);
        published.child.store(1, Ordering::Release);
        assert!(published.kill());
        assert_eq!(ours.wait().unwrap().signal(), Some(libc::SIGKILL));
        published.withdraw(|| ());
        assert_eq!(published.child.load(Ordering::Acquire), 0);
    }
}
