//! A cgroup (version 2) of one command's own: made below a directory that was given to us, limited, signalled, killed, asked, removed;
//! always by descriptor. Knows no child and no reactor.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::error::{Error, ErrorKind, Result, Stage};
use crate::helpers;
use crate::scope::TreeUsage;
use crate::signal::Signal;
use crate::spawn::raise;
use crate::sys::process::{generation, signal_process};
use crate::tell::{Level, tell};

/// `statfs(2)` of a cgroup of version 2.
const CGROUP2_MAGIC: u64 = 0x6367_7270;
/// How many processes one signal is sent to, each by a pidfd; those beyond are reached by SIGKILL, which goes to the cgroup.
const SIGNALLED_MAX: usize = 1024;
/// How many of their pidfds are open at a time.
const PIDFDS_MAX: usize = 64;
/// How many cgroups made by its own processes are gone through, and removed with it.
const CGROUPS_MAX: usize = 1024;
/// How much of one of its files is read.
const FILE_MAX_BYTES: u64 = 256 << 10;
/// How often everybody who is there is killed, where the kernel does not do it by itself (before Linux 5.14).
const ROUNDS_MAX: usize = 1000;
/// How long a directory that is still in use when its command is given up is waited for.
const LINGER: Duration = Duration::from_secs(10);

/// The directory of one command's cgroup; removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Cgroup {
    parent: Arc<OwnedFd>,
    name: String,
    dir: Arc<OwnedFd>,
    /// `cgroup.events`, which says whether anybody is in there.
    events: Arc<OwnedFd>,
    /// `cgroup.kill` (Linux 5.14), held open: a stop needs no descriptor that may not be left then.
    killer: Option<OwnedFd>,
    /// `cgroup.freeze` (Linux 5.2), held open from the first pause on: to go on needs none that may not be left then.
    freezer: OnceLock<OwnedFd>,
    is_removed: bool,
    /// Which process made it: a forked copy leaves it alone.
    generation: u64,
}

impl Cgroup {
    /// Makes one below `parent` and writes `settings` (file, value) to it. On failure nothing is left of it.
    pub(crate) fn new(parent: &Arc<OwnedFd>, settings: &[(String, String)]) -> Result<Cgroup> {
        let kind = rustix::fs::fstatfs(parent).map_err(|errno| failed(errno.into()))?;
        if kind.f_type as u64 != CGROUP2_MAGIC {
            let what = "a cgroup scope: its directory is not one of the cgroups of version 2";
            return Err(Error::new(ErrorKind::Unsupported).at(Stage::Cgroup).saying(what));
        }
        let name = make_directory(parent)?;
        let opened = open(parent.as_fd(), &name, OFlags::DIRECTORY).and_then(|dir| {
            let events = open(dir.as_fd(), "cgroup.events", OFlags::empty())?;
            let killer = match open(dir.as_fd(), "cgroup.kill", OFlags::WRONLY) {
                Err(Errno::NOENT) => None,
                killer => Some(raise(killer?)),
            };
            Ok((Arc::new(raise(dir)), Arc::new(raise(events)), killer))
        });
        let (dir, events, killer) = opened.map_err(|errno| {
            let _ = rustix::fs::unlinkat(parent, &*name, AtFlags::REMOVEDIR);
            failed(errno.into())
        })?;
        let (parent, freezer, generation) = (parent.clone(), OnceLock::new(), generation());
        let cgroup = Cgroup { parent, name, dir, events, killer, freezer, is_removed: false, generation };
        if cgroup.says("frozen") {
            let what = "it is frozen: nothing would begin in there";
            return Err(Error::new(ErrorKind::Setup).at(Stage::Cgroup).saying(what));
        }
        settings.iter().try_for_each(|(file, value)| cgroup.set(file, value))?;
        Ok(cgroup)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        self.write(file, value).map_err(|error| {
            let controller = file.split('.').next().unwrap_or(file);
            let missing = error.raw_os_error() == Some(libc::ENOENT);
            if missing {
                let why = format!("{file}: the controller {controller} is not enabled in its cgroup.subtree_control");
                return Error::new(ErrorKind::Unsupported).at(Stage::Cgroup).saying(why);
            }
            Error::os(Stage::Cgroup, error).saying(format!("{value:?} to its {file}"))
        })
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        File::from(open(self.dir.as_fd(), file, OFlags::WRONLY)?).write_all(value.as_bytes())
    }

    /// For the child that is to be born in it.
    pub(crate) fn dir(&self) -> &Arc<OwnedFd> {
        &self.dir
    }

    /// Whether there is any process in it or below. One that somebody else removed is empty.
    pub(crate) fn is_populated(&self) -> bool {
        self.says("populated")
    }

    fn says(&self, key: &str) -> bool {
        let mut text = [0; 256];
        let length = rustix::io::pread(&self.events, &mut text, 0).unwrap_or(0);
        value_of(&String::from_utf8_lossy(&text[..length]), key) == Some(1)
    }

    /// SIGKILL to all of it, at once, also to those that are just being forked: `cgroup.kill` (Linux 5.14).
    pub(crate) fn kill(&self) -> io::Result<()> {
        let Some(killer) = &self.killer else {
            return self.kill_one_by_one();
        };
        match rustix::io::write(killer, b"1") {
            // It is gone.
            Ok(_) | Err(Errno::NODEV) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Frozen first, so that nobody forks on: whoever a fork that was under way adds is born frozen, and found in the next round.
    fn kill_one_by_one(&self) -> io::Result<()> {
        let _ = self.freeze(true);
        for _ in 0..ROUNDS_MAX {
            if !self.is_populated() {
                break;
            }
            self.signal(Signal::SIGKILL, 0)?;
            std::thread::yield_now();
        }
        let _ = self.freeze(false);
        Ok(())
    }

    /// Stops or continues all of it without a signal: `cgroup.freeze` (Linux 5.2).
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        let freezer = match self.freezer.get() {
            Some(freezer) => freezer,
            None => {
                let opened = raise(open(self.dir.as_fd(), "cgroup.freeze", OFlags::WRONLY)?);
                self.freezer.get_or_init(|| opened)
            }
        };
        rustix::io::write(freezer, if frozen { b"1" } else { b"0" })?;
        Ok(())
    }

    /// Sends `signal` to every process in it and below, except to this one.
    pub(crate) fn signal(&self, signal: Signal, except: u32) -> io::Result<()> {
        let spared = [0, except, std::process::id()];
        let mut left = SIGNALLED_MAX;
        self.each(|dir| {
            let mut pids: Vec<u32> = processes(dir)?.into_iter().filter(|pid| !spared.contains(pid)).collect();
            pids.truncate(left);
            left -= pids.len();
            pids.chunks(PIDFDS_MAX).try_for_each(|some| signal_some(dir, some, signal))
        })
    }

    /// Calls `f` with its directory and with those that its processes have made below.
    fn each(&self, mut f: impl FnMut(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
        f(self.dir.as_fd())?;
        let mut left = CGROUPS_MAX;
        descend(self.dir.as_fd(), &mut left, &mut |dir, _, _| f(dir))
    }

    /// What its processes used, by its files as they are now.
    ///
    /// An error if not even `cpu.stat` can be read: no descriptor is left for that.
    pub(crate) fn usage(&self) -> io::Result<TreeUsage> {
        let cpu = read(self.dir.as_fd(), "cpu.stat")?;
        let read = |file: &str| read(self.dir.as_fd(), file).ok();
        let number = |file: &str| read(file).and_then(|text| text.trim().parse().ok());
        let entry = |file: &str, key: &str| read(file).and_then(|text| value_of(&text, key));
        let time = |key: &str| Duration::from_micros(value_of(&cpu, key).unwrap_or(0));
        let io = |key: &str| read("io.stat").map(|text| sum_of(&text, key));
        Ok(TreeUsage {
            user_time: time("user_usec"),
            system_time: time("system_usec"),
            memory_peak_bytes: number("memory.peak"),
            oom_kills: entry("memory.events", "oom_kill"),
            tasks_peak: number("pids.peak"),
            forks_refused: entry("pids.events", "max"),
            read_bytes: io("rbytes"),
            written_bytes: io("wbytes"),
        })
    }

    /// The same at its end, when the descriptor that could have killed it makes place for that.
    pub(crate) fn final_usage(&mut self) -> TreeUsage {
        self.killer = None;
        self.usage().unwrap_or_else(|error| {
            tell(Level::Warn, format_args!("what the cgroup {} used is not known: {error}", self.name));
            TreeUsage::default()
        })
    }

    /// Removes the directory, with those that its processes made in it. `EBUSY` if one of them is still there.
    fn remove(&mut self) -> io::Result<()> {
        let mut result = self.unlink();
        if matches!(result, Err(Errno::BUSY | Errno::NOTEMPTY)) && !self.is_populated() {
            let mut left = CGROUPS_MAX;
            let unlink = &mut |_: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &std::ffi::CStr| {
                Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
            };
            descend(self.dir.as_fd(), &mut left, unlink)?;
            result = self.unlink();
        }
        match result {
            Ok(()) | Err(Errno::NOENT) => {
                self.is_removed = true;
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    fn unlink(&self) -> rustix::io::Result<()> {
        rustix::fs::unlinkat(&self.parent, &*self.name, AtFlags::REMOVEDIR)
    }

    /// On a helper thread: its processes were killed and are about to be gone.
    fn linger(mut self) {
        let until = Instant::now() + LINGER;
        while let Err(error) = self.remove() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || error.raw_os_error() != Some(libc::EBUSY) {
                tell(Level::Warn, format_args!("the cgroup {} was not removed: {error}", self.name));
                break;
            }
            // Changes are told late, if there was another one a moment ago.
            const PAUSE_MS: i64 = 20;
            let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE_MS * 1_000_000 };
            let _ = poll(&mut [PollFd::new(&*self.events, PollFlags::PRI)], Some(&pause));
        }
        self.is_removed = true;
    }
}

impl AsFd for Cgroup {
    /// `cgroup.events`: a priority event (`EPOLLPRI`) when the first process enters or the last one is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.is_removed || self.generation != generation() || self.remove().is_ok() {
            return;
        }
        let (parent, dir, events) = (self.parent.clone(), self.dir.clone(), self.events.clone());
        let name = std::mem::take(&mut self.name);
        let (freezer, generation) = (OnceLock::new(), self.generation);
        let heir = Cgroup { parent, name, dir, events, killer: None, freezer, is_removed: false, generation };
        helpers::run(Box::new(move || heir.linger()));
    }
}

/// One that is nobody else's: a name that is taken is passed over, and no other process guesses the next one.
fn make_directory(parent: &OwnedFd) -> Result<String> {
    const TRIES: usize = 8;
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut errno = Errno::EXIST;
    for _ in 0..TRIES {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}{:016x}", prefix(), RandomState::new().hash_one(count));
        match rustix::fs::mkdirat(parent, &*name, Mode::from(0o755)) {
            Ok(()) => return Ok(name),
            Err(Errno::EXIST) => {}
            Err(other) => {
                errno = other;
                break;
            }
        }
    }
    Err(failed(errno.into()))
}

/// How the names of all cgroups begin that this process makes.
pub(crate) fn prefix() -> String {
    format!("pidloop-{}-", std::process::id())
}

/// Why no cgroup could be made there.
fn failed(source: io::Error) -> Error {
    let (kind, what) = match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            (ErrorKind::PermissionDenied, "its directory is not delegated to this process")
        }
        Some(libc::EAGAIN) => (ErrorKind::NoProcessSlots, "its cgroup.max.descendants or cgroup.max.depth is reached"),
        Some(libc::ENOENT | libc::ENODEV) => (ErrorKind::Setup, "its directory is gone"),
        _ => return Error::os(Stage::Cgroup, source),
    };
    Error::new(kind).at(Stage::Cgroup).saying(what).because(source)
}

fn open(dir: BorrowedFd<'_>, name: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

fn read(dir: BorrowedFd<'_>, file: &str) -> io::Result<String> {
    let mut text = String::new();
    File::from(open(dir, file, OFlags::empty())?).take(FILE_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Those directly in a cgroup, by numbers that may be somebody else's the next moment.
fn processes(dir: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    Ok(read(dir, "cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
}

/// A number is looked at before and after it was opened: whoever has it then, alive, is in the cgroup.
fn signal_some(dir: BorrowedFd<'_>, pids: &[u32], signal: Signal) -> io::Result<()> {
    let open = |pid: &u32| {
        let number = Pid::from_raw(i32::try_from(*pid).ok()?)?;
        Some((*pid, pidfd_open(number, PidfdFlags::empty()).ok()?))
    };
    let opened: Vec<(u32, OwnedFd)> = pids.iter().filter_map(open).collect();
    let still_there: HashSet<u32> = processes(dir)?.into_iter().collect();
    let mut failed = None;
    for (_, pidfd) in opened.iter().filter(|(pid, _)| still_there.contains(pid)) {
        match signal_process(pidfd.as_fd(), signal.as_raw()) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => failed = Some(error),
            _ => {}
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Calls `f` with each cgroup below `dir`, what is below it first: with its directory, the one above, and its name there.
fn descend(dir: BorrowedFd<'_>, left: &mut usize, f: &mut Visit<'_>) -> io::Result<()> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() != FileType::Directory || name == c"." || name == c".." || *left == 0 {
            continue;
        }
        *left -= 1;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // Removed meanwhile.
        let Ok(below) = rustix::fs::openat(dir, name, flags, Mode::empty()) else { continue };
        descend(below.as_fd(), left, f)?;
        f(below.as_fd(), dir, name)?;
    }
    Ok(())
}

type Visit<'a> = dyn FnMut(BorrowedFd<'_>, BorrowedFd<'_>, &std::ffi::CStr) -> io::Result<()> + 'a;

/// Of a line `key value`.
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Of all `key=value`, whatever device they are about.
fn sum_of(text: &str, key: &str) -> u64 {
    let values = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('=')?.parse().ok());
    values.fold(0u64, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_by_key() {
        let stat = "usage_usec 9\nuser_usec 7\nuser_usec_x 1\n";
        assert_eq!((value_of(stat, "user_usec"), value_of(stat, "user"), value_of(stat, "x")), (Some(7), None, None));
        assert_eq!(sum_of("8:0 rbytes=1 wbytes=2 rios=3\n8:16 rbytes=4", "rbytes"), 5);
        assert_eq!(sum_of("", "rbytes"), 0);
    }
}
