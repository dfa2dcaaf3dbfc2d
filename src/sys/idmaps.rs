//! The id maps of a child's user namespace, written by its parent while the child waits. Knows what is written, not for whom.

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

/// What the files of a process hold; `None`: not written. user_namespaces(7).
#[derive(Clone, Debug, Default)]
pub(crate) struct IdMaps {
    pub(crate) uid: Option<String>,
    pub(crate) gid: Option<String>,
    /// Nobody in the namespace may change its groups: without that an unprivileged writer may not write a gid map.
    pub(crate) deny_setgroups: bool,
}

impl IdMaps {
    /// Writes them for a child of this thread's that is not reaped. An error is an errno.
    pub(super) fn write(&self, pid: u32) -> Result<(), i32> {
        // The number is ours; in a /proc of another PID namespace it may be anybody's.
        let us = std::fs::read_link("/proc/self").map_err(errno)?;
        if us.to_str() != Some(&std::process::id().to_string()) {
            return Err(libc::ESRCH);
        }
        let write = |file: &str, text: &str| std::fs::write(format!("/proc/{pid}/{file}"), text).map_err(errno);
        if self.deny_setgroups {
            write("setgroups", "deny")?;
        }
        self.gid.as_ref().map_or(Ok(()), |map| write("gid_map", map))?;
        self.uid.as_ref().map_or(Ok(()), |map| write("uid_map", map))
    }
}

impl fmt::Display for IdMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [uid, gid] = [("uid", &self.uid), ("gid", &self.gid)]
            .map(|(what, map)| map.iter().map(move |map| format!("{what} {}", map.trim_end().replace('\n', ", "))));
        f.write_str(&uid.chain(gid).collect::<Vec<_>>().join("; "))
    }
}

fn errno(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Where a child waits until its parent has done something for it.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicU32);

const CLOSED: u32 = 0;
const OPEN: u32 = 1;
/// Above it: an errno.
const REFUSED: u32 = 1 << 16;

impl Gate {
    pub(super) fn open(&self, result: Result<(), i32>) {
        self.0.store(result.map_or_else(|errno| REFUSED | errno as u32, |()| OPEN), Ordering::Release);
        // SAFETY: futex(2): a word of ours.
        unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAKE, 1) };
    }

    /// What it was opened with, by somebody who sleeps in `sleep(word, while)` meanwhile.
    pub(super) fn await_open(&self, sleep: impl Fn(*const u32, u32)) -> Result<(), i32> {
        loop {
            match self.0.load(Ordering::Acquire) {
                CLOSED => sleep(self.0.as_ptr(), CLOSED),
                OPEN => return Ok(()),
                refused => return Err((refused & !REFUSED) as i32),
            }
        }
    }
}

/// Sleeps until the kernel has made `word` 0 (`CLONE_CHILD_CLEARTID`): the child has exec'd or exited. futex(2).
pub(super) fn await_zero(word: &AtomicI32) {
    loop {
        let now = word.load(Ordering::Acquire);
        if now == 0 {
            return;
        }
        // SAFETY: a word of ours, no timeout. Not a private futex: the kernel's own wake is for shared ones.
        unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, now, ptr::null::<libc::timespec>()) };
    }
}
