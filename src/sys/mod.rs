//! The only unsafe code: what rustix does not offer, each call with its reason and its man page. Knows the
//! crate's plain data alone.

pub(crate) mod birth;
pub(crate) mod hook;
pub(crate) mod idmaps;
pub(crate) mod process;
mod raw;
pub(crate) mod sigwatch;
pub(crate) mod undo;

use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use self::process::{PIDFD_SIGNAL_PROCESS_GROUP, generation};

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

/// A value that each process makes for itself. What a forked copy finds there is its parent's, whose locks may be held by threads that
/// the copy does not have: it makes one of its own.
#[derive(Debug)]
pub(crate) struct PerProcess<T>(Leaked<(u64, T)>);

impl<T: Default + Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new() -> PerProcess<T> {
        PerProcess(Leaked::new())
    }

    pub(crate) fn get(&self) -> &'static T {
        loop {
            let known = self.0.get();
            match known {
                Some((owner, value)) if *owner == generation() => return value,
                _ => {}
            }
            self.0.replace(known, Box::new((generation(), T::default())));
        }
    }
}

/// Reads at most `most` bytes behind what `bytes` holds, into spare memory that nobody has zeroed; never more than is spare. read(2).
pub(crate) fn read_behind(fd: BorrowedFd<'_>, bytes: &mut Vec<u8>, most: usize) -> rustix::io::Result<usize> {
    let spare = bytes.spare_capacity_mut();
    let most = most.min(spare.len());
    let (new, _) = rustix::io::read(fd, &mut spare[..most])?;
    let n = new.len();
    // SAFETY: the kernel has written the first `n` bytes of what was spare.
    unsafe { bytes.set_len(bytes.len() + n) };
    Ok(n)
}

/// Keeps a descriptor open for as long as the process runs.
pub(crate) fn keep_open(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}

/// Whether this number is a null device of ours, open for reading and writing. fcntl(2), fstat(2).
pub(crate) fn is_null_device(fd: RawFd) -> bool {
    // SAFETY: any number may be asked; at worst the answer is EBADF. It is not kept beyond the calls.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    if owner(fd) == Some(MARK) {
        return true;
    }
    // Where it cannot be marked, or somebody has taken the mark away.
    let is_null = rustix::fs::fstat(fd).is_ok_and(|stat| {
        let is_device = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device();
        is_device && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3)
    });
    let both_ways = |flags: rustix::fs::OFlags| flags & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::RDWR;
    is_null && rustix::fs::fcntl_getfl(fd).is_ok_and(both_ways)
}

/// Marks a null device so that one call tells whether a number still is what was opened here, for reading and writing: as the receiver of
/// SIGIO, of which it sends none, it names somebody whom nobody else would name. fcntl(2).
pub(crate) fn mark_null_device(fd: BorrowedFd<'_>) {
    // SAFETY: F_SETOWN_EX reads one structure. Refused: the longer question is asked at each use.
    unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &MARK) };
}

const F_SETOWN_EX: libc::c_int = 15;
const F_GETOWN_EX: libc::c_int = 16;

/// `struct f_owner_ex`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Owner {
    kind: libc::c_int,
    pid: libc::pid_t,
}

/// The first thread (`F_OWNER_TID`) of process 1, which is always there.
const MARK: Owner = Owner { kind: 0, pid: 1 };

fn owner(fd: BorrowedFd<'_>) -> Option<Owner> {
    let mut owner = Owner { kind: 0, pid: 0 };
    // SAFETY: F_GETOWN_EX writes one structure.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &mut owner) };
    (result == 0).then_some(owner)
}

/// What nothing works without, if it is missing: asked by calls about a descriptor that nobody can have. They imply `CLONE_PIDFD`, which
/// is older. waitid(2), pidfd_send_signal(2).
pub(crate) fn missing() -> Option<&'static str> {
    let knows =
        |result: libc::c_long| result == -1 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EBADF);
    // SAFETY: integers and null pointers.
    unsafe {
        let (nobodys, null) = (libc::c_int::MAX, ptr::null::<u8>());
        if !knows(libc::syscall(libc::SYS_waitid, libc::P_PIDFD, nobodys, null, libc::WEXITED, null)) {
            return Some("waitid with P_PIDFD (Linux 5.4)");
        }
        if !knows(libc::syscall(libc::SYS_pidfd_send_signal, nobodys, 0, null, 0)) {
            return Some("pidfd_send_signal (Linux 5.1)");
        }
    }
    None
}

/// Whether this number is open. fcntl(2).
pub(crate) fn is_open(fd: RawFd) -> bool {
    // SAFETY: any number but -1 may be asked; at worst the answer is EBADF. It is not kept beyond the call.
    fd >= 0 && rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(fd) }).is_ok()
}

/// Which calls are there.
pub(crate) struct Probed {
    pub(crate) clone3: bool,
    pub(crate) close_range: bool,
    pub(crate) group_signals: bool,
}

/// By calls whose arguments cannot be meant: a kernel that knows them says EINVAL or EBADF.
pub(crate) fn probe() -> Probed {
    let knows = |result: libc::c_long| {
        result == -1 && matches!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINVAL | libc::EBADF))
    };
    // SAFETY: clone3(2) with an empty structure, close_range(2) from above to below, pidfd_send_signal(2) to no descriptor.
    unsafe {
        Probed {
            clone3: knows(libc::syscall(libc::SYS_clone3, ptr::null::<u8>(), 0usize)),
            close_range: knows(libc::syscall(libc::SYS_close_range, 2u32, 1u32, 4u32)),
            group_signals: libc::syscall(
                libc::SYS_pidfd_send_signal,
                -1,
                0,
                ptr::null::<u8>(),
                PIDFD_SIGNAL_PROCESS_GROUP,
            ) == -1
                && std::io::Error::last_os_error().raw_os_error() == Some(libc::EBADF),
        }
    }
}

/// The flag that keeps others of the same user from reading this process's memory.
pub(crate) mod dumpable {
    /// Whether it is 1. prctl(2).
    pub(crate) fn get() -> bool {
        // SAFETY: a question.
        unsafe { libc::prctl(libc::PR_GET_DUMPABLE) == 1 }
    }

    /// Makes it 1.
    pub(crate) fn set() {
        // SAFETY: an integer.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
    }
}
