//! One process through its pidfd: has it ended, how, and signals to it or the group it leads. Knows no pipes, no epoll, no reasons.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use crate::exit::Usage;
use crate::scope::Scope;
use crate::signal::Signal;
use crate::sys::process as sys;
pub(crate) use crate::sys::process::{Foreign, WaitMode, look_at_foreign};

/// How the kernel says a child ended.
#[derive(Debug)]
pub(crate) enum Reaped {
    /// Not yet; or a tracer hides it.
    NotYet,
    /// With this status.
    Ended(ExitStatus, Usage),
    /// Somebody else took the status; what could be recovered of it.
    Stolen(Option<ExitStatus>),
}

/// The process group of several children, who are stopped as one: what each of them is sent goes to the group, once.
#[derive(Debug, Default)]
pub(crate) struct Job {
    /// Its pid and pidfd; the first child, once it is there.
    leader: OnceLock<(u32, OwnedFd)>,
    /// All of them run: who comes to be later would miss what is sent.
    complete: AtomicBool,
    /// How often each signal has been sent.
    sent: Mutex<HashMap<i32, u32>>,
}

impl Job {
    pub(crate) fn new() -> Job {
        Job::default()
    }

    /// 0: there is none yet.
    pub(crate) fn leader(&self) -> u32 {
        self.leader.get().map_or(0, |(pid, _)| *pid)
    }

    pub(crate) fn lead(&self, pidfd: OwnedFd, pid: u32) {
        probe_group_flag(pidfd.as_fd());
        let _ = self.leader.set((pid, pidfd));
    }

    /// All are there. Relaxed: who does not know yet is signalled by itself.
    pub(crate) fn complete(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    /// To all in it; false if only each of them by itself can be reached here.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        // By identity: the group is meant, also when its leader has been reaped.
        let Some((_, pidfd)) = self.leader.get() else {
            return false;
        };
        by_flag(pidfd.as_fd(), signal).is_some_and(|sent| sent.is_ok())
    }

    /// The same, on behalf of the member `pid` and as its `count`th such signal: once for all of them.
    fn signal_for(&self, pid: u32, signal: Signal, count: u32) -> bool {
        let leader = i32::try_from(self.leader()).ok().and_then(Pid::from_raw);
        let member = i32::try_from(pid).ok().and_then(Pid::from_raw);
        // It may have gone its own way.
        let known = leader.is_some() && member.is_some() && self.complete.load(Ordering::Relaxed);
        if !known || rustix::process::getpgid(member).ok() != leader {
            return false;
        }
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        let so_far = sent.entry(signal.as_raw()).or_default();
        if *so_far >= count {
            return true;
        }
        let reached = self.signal(signal);
        if reached {
            *so_far = count;
        }
        reached
    }
}

/// A child's place in a job.
#[derive(Debug)]
pub(crate) struct Membership {
    job: Arc<Job>,
    /// How often it was to be sent each signal.
    sent: HashMap<i32, u32>,
}

impl Membership {
    pub(crate) fn new(job: Arc<Job>) -> Membership {
        Membership { job, sent: HashMap::new() }
    }

    /// Sends it to the group, unless another member has; false if that cannot be done, and it is to be sent to the child itself.
    pub(crate) fn signal(&mut self, pid: u32, signal: Signal) -> bool {
        let count = self.sent.entry(signal.as_raw()).or_default();
        *count += 1;
        self.job.signal_for(pid, signal, *count)
    }
}

/// Waits for, and unless `mode` says otherwise reaps, the process. waitid(2).
pub(crate) fn reap(pidfd: BorrowedFd<'_>, mode: WaitMode) -> io::Result<Reaped> {
    Ok(match sys::wait(pidfd, mode)? {
        sys::Waited::NotYet => Reaped::NotYet,
        sys::Waited::Ended(status, usage) => Reaped::Ended(status, usage),
        sys::Waited::Stolen => Reaped::Stolen(sys::status_after_theft(pidfd)),
    })
}

/// Whether the process has ended, by poll(2): unlike `waitid` it also sees a zombie that a tracer hides.
pub(crate) fn has_exited(pidfd: BorrowedFd<'_>) -> bool {
    wait_readable(pidfd, Some(Timespec { tv_sec: 0, tv_nsec: 0 }))
}

/// Sleeps until the process has ended or `timeout` is over; says whether it has ended. An interrupted sleep says no.
pub(crate) fn wait_readable(pidfd: BorrowedFd<'_>, timeout: Option<Timespec>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, timeout.as_ref()), Ok(n) if n > 0)
}

/// What a descriptor names that somebody calls a pidfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Process(u32),
    /// A process that is reaped, or that has no number in our PID namespace.
    Gone,
    Thread,
    /// It is none.
    Nothing,
}

/// By the descriptor's entry in /proc. proc(5), pidfd_open(2).
pub(crate) fn named_by(pidfd: BorrowedFd<'_>) -> Named {
    // `PIDFD_THREAD` (Linux 6.9).
    let of_thread = rustix::fs::fcntl_getfl(pidfd).is_ok_and(|flags| flags.contains(rustix::fs::OFlags::EXCL));
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap_or_default();
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i64>().ok());
    match number.map(u32::try_from) {
        None => Named::Nothing,
        Some(_) if of_thread => Named::Thread,
        Some(Ok(pid)) if pid > 0 => Named::Process(pid),
        Some(_) => Named::Gone,
    }
}

/// The children of this process, zombies included, as the kernel lists them. proc(5).
pub(crate) fn children() -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// Whether a child that is not reaped is dead. proc(5).
pub(crate) fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('Z'))
}

/// Whether it is a child of this process that nobody has reaped.
pub(crate) fn is_our_child(pidfd: BorrowedFd<'_>) -> bool {
    !matches!(sys::wait(pidfd, WaitMode::PollAndLeave), Ok(sys::Waited::Stolen) | Err(_))
}

/// Whether the process of this number is the leader of a process group.
pub(crate) fn leads_group(pid: u32) -> bool {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    number.is_some_and(|number| rustix::process::getpgid(Some(number)) == Ok(number))
}

/// Whether a child that is not reaped has executed its program, by the kernel's flag of one that has not. Where that cannot be seen: no.
pub(crate) fn has_begun(pid: u32) -> bool {
    seen_to_begin(pid) == Some(true)
}

/// proc(5).
fn seen_to_begin(pid: u32) -> Option<bool> {
    const PF_FORKNOEXEC: u64 = 0x40;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let flags = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(6)?.parse::<u64>().ok())?;
    Some(flags & PF_FORKNOEXEC == 0)
}

/// Waits until a child, not reaped, that is about to give up our memory has done so; says no where that cannot be seen.
///
/// The race: the kernel lets us go on (the end of a vfork) in the midst of the exec or exit, while the child still has our memory. It
/// may be put to sleep just there, with its new user's ids, and whoever may look into it then looks into us.
pub(crate) fn await_own_memory(pidfd: BorrowedFd<'_>, pid: u32) -> bool {
    loop {
        match answers_as_begun(pid).or_else(|| seen_to_begin(pid)) {
            Some(true) => return true,
            _ if has_exited(pidfd) => return true,
            Some(false) => std::thread::yield_now(),
            None => return false,
        }
    }
}

/// By putting it into the group that it is in: a parent may not do even that when the child has exec'd. Who leads a session may never be
/// moved, and has to be looked at. setpgid(2).
fn answers_as_begun(pid: u32) -> Option<bool> {
    let pid = Pid::from_raw(pid.try_into().ok()?)?;
    let group = rustix::process::getpgid(Some(pid)).ok()?;
    match rustix::process::setpgid(Some(pid), Some(group)) {
        Ok(()) => Some(false),
        Err(rustix::io::Errno::ACCESS) => Some(true),
        Err(_) => None,
    }
}

/// Sends `signal` to the child or its group; the rest of a cgroup is not reached through it. A process or group that is gone already is not
/// an error: the signal came too late.
///
/// Once the leader is reaped its pid is no longer ours: then only the group flag of the pidfd may reach the group, and
/// where the kernel lacks it nothing is sent, rather than to a recycled number.
pub(crate) fn send(pidfd: BorrowedFd<'_>, pid: u32, scope: Scope, signal: Signal) -> io::Result<()> {
    let result = match scope {
        Scope::Child | Scope::Cgroup => sys::signal_process(pidfd, signal.as_raw()),
        Scope::Group => send_to_group(pidfd, pid, signal),
    };
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// Whether the group still has members.
pub(crate) fn group_is_alive(pidfd: BorrowedFd<'_>) -> bool {
    !matches!(sys::signal_group(pidfd, 0), Err(error) if error.raw_os_error() == Some(libc::ESRCH))
}

/// Whether a pidfd can signal a group (Linux 6.9). Until that is known to be refused it is taken to work.
pub(crate) fn group_flag_works() -> bool {
    !GROUP_FLAG_REFUSED.load(Ordering::Relaxed)
}

/// Relaxed: once true it stays so, and whoever still reads false asks the kernel and is told.
static GROUP_FLAG_REFUSED: AtomicBool = AtomicBool::new(false);

fn send_to_group(pidfd: BorrowedFd<'_>, pid: u32, signal: Signal) -> io::Result<()> {
    let leader = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let result = match by_flag(pidfd, signal) {
        Some(result) => result,
        None => by_number(pidfd, leader, signal),
    };
    // It may have moved to another group since, or to a session of its own: it is still what is to be stopped. Should it be reaped, the
    // number that is asked for is somebody else's, and the pidfd reaches nobody.
    if leader.is_some_and(|leader| rustix::process::getpgid(Some(leader)) != Ok(leader)) {
        return sys::signal_process(pidfd, signal.as_raw());
    }
    result
}

/// Through the pidfd; `None` if that cannot be done here.
fn by_flag(pidfd: BorrowedFd<'_>, signal: Signal) -> Option<io::Result<()>> {
    if !group_flag_works() {
        return None;
    }
    match sys::signal_group(pidfd, signal.as_raw()) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            GROUP_FLAG_REFUSED.store(true, Ordering::Relaxed);
            None
        }
        result => Some(result),
    }
}

/// By the leader's number, which is the group's and nobody else's while the leader is not reaped: looked at now, since somebody else may
/// reap it at any time.
fn by_number(pidfd: BorrowedFd<'_>, leader: Option<Pid>, signal: Signal) -> io::Result<()> {
    match (sys::wait(pidfd, WaitMode::PollAndLeave)?, leader) {
        (sys::Waited::Stolen, _) | (_, None) => Ok(()),
        (_, Some(leader)) => sys::signal_group_by_number(leader, signal.as_raw()),
    }
}

/// Learns whether a pidfd can signal a group, unless that is known to be refused: asked with signal 0 before the answer is needed, and
/// of each group anew, since a sandbox may have been put up meanwhile.
pub(crate) fn probe_group_flag(pidfd: BorrowedFd<'_>) {
    let refusals = [libc::EINVAL, libc::ENOSYS, libc::EPERM];
    if group_flag_works()
        && sys::signal_group(pidfd, 0).is_err_and(|e| e.raw_os_error().is_some_and(|errno| refusals.contains(&errno)))
    {
        GROUP_FLAG_REFUSED.store(true, Ordering::Relaxed);
    }
}
