//! A child comes to be: its program is looked up, its script written, the clone tried in the best way this kernel allows, a failure
//! reaped and named. Knows no reactor; what the child itself does is `sys::birth`.

mod exec;

use std::cell::Cell;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};

pub(crate) use self::exec::replace;
use crate::error::{Error, ErrorKind, Result, Stage};
use crate::process::{self, WaitMode};
pub(crate) use crate::sys::birth::Strings;
use crate::sys::birth::{self, Act, Failure, Manner, Move, Outcome, Script, Shape, StatusPipe, Step, Sweep, Table};
use crate::sys::hook::Hook;
use crate::sys::idmaps::{Gate, IdMaps};
use crate::sys::process::Published;
use crate::sys::{self, PerProcess, dumpable};
use crate::tell::{Level, tell};

/// Where our long-lived descriptors go: the kernel copies a table in words of 64, so that what is below costs a spawn nothing.
const RAISED_FROM: RawFd = 64;
/// From here on it is cheaper to fetch a descriptor than to copy the table up to it.
const FAR: RawFd = 192;
/// A new time namespace is entered at the exec after an unshare(2); as a flag of a clone that shares memory it is refused.
const BY_UNSHARE: u64 = libc::CLONE_NEWTIME as u64;
/// How large an environment may be whose memory a thread keeps for the next one.
const INHERITED_MAX_BYTES: usize = 64 << 10;
/// The first pause between two tries to execute a busy program file; each is twice the one before.
pub(crate) const BUSY_PAUSE: Duration = Duration::from_micros(100);

/// Everything about the child except where its streams go.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) group: Option<Group>,
    pub(crate) cwd: Option<Dir>,
    /// Stay open in the child under their own numbers.
    pub(crate) inherit: Vec<RawFd>,
    /// Everything that is not close-on-exec stays open.
    pub(crate) inherit_fds: bool,
    pub(crate) session: bool,
    pub(crate) terminal: Option<Terminal>,
    pub(crate) foreground: Option<RawFd>,
    pub(crate) chroot: Option<PathBuf>,
    pub(crate) umask: Option<u32>,
    pub(crate) nice: Option<i32>,
    /// (resource, soft, hard) of setrlimit(2).
    pub(crate) limits: Vec<(u32, u64, u64)>,
    /// CPU numbers.
    pub(crate) affinity: Option<Vec<usize>>,
    /// The value of ioprio_set(2).
    pub(crate) io_priority: Option<i32>,
    pub(crate) oom_score_adj: Option<i32>,
    /// (policy, priority) of sched_setscheduler(2).
    pub(crate) scheduler: Option<(i32, i32)>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) no_new_privs: bool,
    pub(crate) drop_bounding: Vec<u32>,
    pub(crate) ambient: Vec<u32>,
    pub(crate) inheritable: Option<Vec<u32>>,
    pub(crate) reset_signals: bool,
    pub(crate) ignored_signals: Vec<i32>,
    /// Blocked signals as bits.
    pub(crate) signal_mask: u64,
    /// New namespaces, as flags of clone(2).
    pub(crate) namespaces: u64,
    /// The new user namespace's ids: (inside, outside, how many).
    pub(crate) uid_maps: Vec<(u32, u32, u32)>,
    pub(crate) gid_maps: Vec<(u32, u32, u32)>,
    /// There the groups may be set.
    pub(crate) keep_setgroups: bool,
    /// Of the new time namespace, in seconds: (monotonic, boot time).
    pub(crate) time_offsets: Option<(i64, i64)>,
    /// Namespaces to be entered.
    pub(crate) joined: Vec<Arc<OwnedFd>>,
    /// A directory of a cgroup v2.
    pub(crate) cgroup: Option<Arc<OwnedFd>>,
    pub(crate) trace: bool,
    /// The signal that the parent's death brings.
    pub(crate) parent_death: Option<i32>,
    /// By no other thread than the caller's.
    pub(crate) on_this_thread: bool,
    /// Called before the exec, in a copy of our memory.
    pub(crate) hooks: Vec<Hook>,
}

/// The child's process group.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Group {
    New,
    Join(i32),
}

/// The child's directory.
#[derive(Clone, Debug)]
pub(crate) enum Dir {
    Path(PathBuf),
    Fd(Arc<OwnedFd>),
}

/// What becomes of the controlling terminal; the number is the child's.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Terminal {
    Take(RawFd),
    Drop(RawFd),
}

/// Where one of the child's 0, 1, 2 comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'fd> {
    Inherit,
    Null,
    Fd(BorrowedFd<'fd>),
    /// This process's descriptor of that number, whatever it is.
    Ours(RawFd),
    /// stderr alone.
    SameAsStdout,
}

/// What is done while the program file is open for writing (`ETXTBSY`): another thread's fork may hold it for a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Busy {
    /// Tried again, sleeping in between.
    Sleep { at_most: Duration },
    /// Tried so often at once.
    Spin { tries: u32 },
}

/// One spawn.
pub(crate) struct Plan<'a> {
    /// A path, or a bare name to be looked up.
    pub(crate) program: &'a OsStr,
    pub(crate) argv: Arc<Strings>,
    /// `None`: this process's, as it is now.
    pub(crate) env: Option<Arc<Strings>>,
    /// `None`: this process's.
    pub(crate) search_path: Option<OsString>,
    pub(crate) stdio: [Source<'a>; 3],
    /// (the child's number, ours).
    pub(crate) extra: Vec<(RawFd, BorrowedFd<'a>)>,
    pub(crate) options: &'a Options,
    pub(crate) publish: &'a Published,
    pub(crate) retry_busy: Busy,
    /// The pidfd will live long beside many others: it leaves the low numbers.
    pub(crate) raise: bool,
}

/// A child whose program runs; or that a signal killed before it did.
#[derive(Debug)]
pub(crate) struct Born {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
}

/// Starts a child. On failure nothing is left of it.
pub(crate) fn spawn(plan: &Plan<'_>) -> Result<Born> {
    check_kernel()?;
    let null = null_of(plan)?;
    let shape = shape(plan.options);
    let mut busy = BusyClock::new(plan.retry_busy);
    let mut ways = Ways::known();
    let mut lacked = false;
    // Each turn has one way less than the one before, or uses up some of the time that a busy file has.
    loop {
        let status = birth::needs_status_pipe(shape).then(status_pipe).transpose()?;
        let script = write_script(plan, null, status.as_ref(), ways.in_shape(shape), shape)?;
        let failure = match attempt(plan, null, &script, status, ways.in_shape(shape), shape) {
            Ok(born) => {
                if !lacked {
                    ways.remember();
                }
                return Ok(born);
            }
            Err(failure) => failure,
        };
        lacked |= is_lack(failure.errno);
        match ways.without_the_refused(failure, script.sweep) {
            Some(fewer) => ways = fewer,
            // Whoever has a reason to stop meanwhile waits for no file.
            None if !plan.publish.is_unwanted() && busy.may_try_again(failure) => {}
            None => return Err(blame(plan, &script, failure)),
        }
    }
}

/// Of what there may be more of the next time: it says nothing of what this kernel allows.
fn is_lack(errno: i32) -> bool {
    matches!(errno, libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN)
}

fn null_of(plan: &Plan<'_>) -> Result<Option<RawFd>> {
    plan.stdio.iter().any(|source| matches!(source, Source::Null)).then(null_device).transpose()
}

/// The one path, but for two things that cannot be done on it.
fn shape(options: &Options) -> Shape {
    if !options.hooks.is_empty() {
        Shape::Fork
    } else if options.namespaces & libc::CLONE_NEWUSER as u64 != 0 && !maps_itself(options) {
        Shape::Gated
    } else {
        Shape::Vfork
    }
}

/// Whether the child may write its id maps: each has our own id alone. For any other it takes a right that the child, in its new
/// namespace, does not have here; and without it nobody writes a map of groups where the groups may be set.
pub(crate) fn maps_itself(options: &Options) -> bool {
    let is_own = |map: &[(u32, u32, u32)], own: fn() -> u32| match map {
        [] => true,
        [(_, outside, count)] => *count == 1 && *outside == own(),
        _ => false,
    };
    is_own(&options.uid_maps, || rustix::process::geteuid().as_raw())
        && is_own(&options.gid_maps, || rustix::process::getegid().as_raw())
        && (options.gid_maps.is_empty() || !options.keep_setgroups)
}

/// One clone. A child that failed is gone when this returns.
fn attempt(
    plan: &Plan<'_>,
    null: Option<RawFd>,
    script: &Script,
    status: Option<StatusPipe>,
    ways: Ways,
    shape: Shape,
) -> std::result::Result<Born, Failure> {
    let manner = choose_manner(plan, null, script, ways, shape);
    let changing = (shape != Shape::Fork && clears_dumpable(plan.options)).then(Changing::begin);
    match birth::clone(script, manner, plan.publish, status) {
        Ok(Outcome::Born { pid, pidfd }) => {
            if let Some(changing) = changing {
                changing.end(process::await_own_memory(pidfd.as_fd(), pid));
            }
            let out_of_the_way = plan.raise || pidfd.as_raw_fd() < 3;
            let pidfd = plan.publish.withdraw(|| if out_of_the_way { raise(pidfd) } else { pidfd });
            Ok(Born { pid, pidfd })
        }
        Ok(Outcome::Failed { failure, pidfd }) => {
            bury(pidfd, plan.publish);
            Err(failure)
        }
        Err(error) => Err(Failure { step: Step::Clone, errno: error.raw_os_error().unwrap_or(libc::ENOMEM) }),
    }
}

/// A half-made child: it has exited, or is about to.
fn bury(pidfd: OwnedFd, published: &Published) {
    if let Err(error) = process::reap(pidfd.as_fd(), WaitMode::Block) {
        tell(Level::Error, format_args!("a child that failed to start was not reaped: {error}"));
    }
    published.withdraw(|| drop(pidfd));
}

/// What nothing works without, asked for once: on success it is not asked again.
fn check_kernel() -> Result<()> {
    // Relaxed: whoever does not know yet asks once more.
    static CHECKED: AtomicBool = AtomicBool::new(false);
    if CHECKED.load(Ordering::Relaxed) {
        return Ok(());
    }
    match sys::missing() {
        Some(what) => Err(unsupported(what)),
        None => {
            CHECKED.store(true, Ordering::Relaxed);
            Ok(())
        }
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported).at(Stage::Clone).saying(format!("this kernel or sandbox lacks {what}"))
}

// ── whose fault it was ──

/// The error of a step, with what it was about.
fn blame(plan: &Plan<'_>, script: &Script, failure: Failure) -> Error {
    let source = io::Error::from_raw_os_error(failure.errno);
    let options = plan.options;
    match failure.step {
        Step::Clone => blame_clone(options, source),
        Step::Table | Step::Sweep | Step::Fetch => Error::os(Stage::DescriptorTable, source),
        Step::Descriptors(fd) => blame_descriptor(fd, source),
        Step::Signals => Error::os(Stage::Signals, source),
        Step::Act(index) => {
            let stage = script.acts.get(index).map_or(Stage::Clone, Act::stage);
            let path = match (stage, &options.cwd) {
                (Stage::Directory, Some(Dir::Path(path))) => Some(path),
                (Stage::Chroot, _) => options.chroot.as_ref(),
                _ => None,
            };
            let error = match script.acts.get(index).and_then(|act| what_act(act, script, failure.errno)) {
                Some(what) => Error::os(stage, source).saying(what),
                None => Error::os(stage, source),
            };
            match path {
                Some(path) => error.about(path),
                None => error,
            }
        }
        Step::Exec(index) => blame_exec(plan, script, index, source),
        Step::Hook(_) if failure.errno == 0 => Error::new(ErrorKind::Setup).at(Stage::PreExec).saying("it panicked"),
        Step::Hook(_) => Error::os(Stage::PreExec, source),
        Step::Relative(index) => {
            let path = script.paths.get(index).map(|path| OsStr::from_bytes(path.as_bytes()));
            relative(path.unwrap_or(plan.program))
        }
    }
}

/// The value that was refused, where the step alone does not say it.
fn what_act(act: &Act, script: &Script, errno: i32) -> Option<String> {
    Some(match act {
        Act::JoinGroup(0) => return None,
        Act::JoinGroup(group) => format!("{group}"),
        Act::TakeTerminal(fd) | Act::DropTerminal(fd) | Act::Foreground(fd) => format!("descriptor {fd}"),
        Act::WriteFile(_, path, bytes) => {
            format!("{} {}", path.to_string_lossy(), String::from_utf8_lossy(bytes).trim_end().replace('\n', ", "))
        }
        Act::AwaitIdMaps(_) => script.id_maps.to_string(),
        Act::Limit { resource, soft, hard } => {
            format!("number {resource}, soft {}, hard {}", limited(*soft), limited(*hard))
        }
        Act::Nice(by) => format!("by {by}"),
        Act::Scheduler { policy, priority } => format!("number {policy} with priority {priority}"),
        Act::DropBounding(capability) => format!("drop {capability} from the bounding set"),
        Act::RaiseAmbient(list) => format!("make {list:?} ambient"),
        Act::Inheritable(list) => format!("make {list:?} inheritable"),
        Act::Groups(groups) if errno == libc::EINVAL => format!("{} of them", groups.len()),
        Act::Gid(id) | Act::Uid(id) => format!("{id}"),
        _ => return None,
    })
}

fn limited(value: u64) -> String {
    if value == u64::MAX { "unlimited".into() } else { value.to_string() }
}

/// What a refused clone was about.
fn blame_clone(options: &Options, source: io::Error) -> Error {
    let by_itself = options.cgroup.is_none() && options.namespaces == 0;
    match source.raw_os_error() {
        Some(libc::ENOSYS | libc::EPERM | libc::EINVAL) if by_itself => {
            unsupported("clone with CLONE_PIDFD (Linux 5.2)").because(source)
        }
        Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => Error::os(Stage::Clone, source),
        Some(libc::EPERM | libc::EINVAL | libc::ENOSPC | libc::EUSERS) if options.namespaces != 0 => {
            Error::os(Stage::Namespaces, source)
        }
        _ if options.cgroup.is_some() => Error::os(Stage::Cgroup, source),
        _ => Error::os(Stage::Clone, source),
    }
}

fn blame_descriptor(fd: RawFd, source: io::Error) -> Error {
    // dup3(2) says EBADF of a number that is too high.
    let too_high = source.raw_os_error() == Some(libc::EBADF) && open_files_max().is_some_and(|max| fd as u64 >= max);
    let what = if too_high { " is not below the limit on open files" } else { "" };
    Error::os(Stage::Descriptors, source).saying(format!("descriptor {fd}{what}"))
}

/// The soft limit; `None` if there is none.
fn open_files_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

fn blame_exec(plan: &Plan<'_>, script: &Script, index: usize, source: io::Error) -> Error {
    let only_one = script.paths.len() == 1;
    let tried = script.paths.get(index).map(|path| Path::new(OsStr::from_bytes(path.as_bytes())));
    let Some(path) = tried.filter(|_| only_one || source.raw_os_error() != Some(libc::ENOENT)) else {
        return Error::os(Stage::Exec, source).about(plan.program);
    };
    let detail = what_is_wrong_with(plan.options, path, source.raw_os_error());
    let error = Error::os(Stage::Exec, source).about(path);
    match detail {
        Some(detail) => error.saying(detail),
        None => error,
    }
}

/// What the errno of an exec does not say; as far as it can be seen from here.
fn what_is_wrong_with(options: &Options, path: &Path, errno: Option<i32>) -> Option<&'static str> {
    let from_here = options.chroot.is_none() && options.namespaces == 0 && options.joined.is_empty();
    let path = match &options.cwd {
        None => path.to_owned(),
        Some(Dir::Path(dir)) => dir.join(path),
        Some(Dir::Fd(_)) if path.is_absolute() => path.to_owned(),
        Some(Dir::Fd(_)) => return None,
    };
    let stat = rustix::fs::stat(path).ok().filter(|_| from_here)?;
    match (errno?, FileType::from_raw_mode(stat.st_mode)) {
        (libc::EACCES, FileType::Directory) => Some("it is a directory"),
        (libc::ENOENT, FileType::RegularFile) => Some("the file is there, but not the interpreter or loader it names"),
        _ => None,
    }
}

struct BusyClock {
    until: Option<Instant>,
    pause: Duration,
    tries: u32,
}

impl BusyClock {
    fn new(busy: Busy) -> BusyClock {
        let (until, tries) = match busy {
            Busy::Sleep { at_most } => (Instant::now().checked_add(at_most), 0),
            Busy::Spin { tries } => (None, tries),
        };
        BusyClock { until, pause: BUSY_PAUSE, tries }
    }

    fn may_try_again(&mut self, failure: Failure) -> bool {
        if !matches!(failure, Failure { step: Step::Exec(_), errno: libc::ETXTBSY }) {
            return false;
        }
        if let Some(until) = self.until {
            let left = until.saturating_duration_since(Instant::now());
            std::thread::sleep(self.pause.min(left));
            self.pause *= 2;
            return !left.is_zero();
        }
        self.tries = self.tries.saturating_sub(1);
        self.tries > 0
    }
}

// ── what this kernel allows ──

/// The newer calls: whether each may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ways {
    clone3: bool,
    clear_handlers: bool,
    shared_table: bool,
    close_range: bool,
    fetch: bool,
}

/// What was refused, by an older kernel or a sandbox, and not missed: it is not tried again. Relaxed: a thread that does not know yet
/// tries, and learns it.
struct Refused {
    clone3: AtomicBool,
    clear_handlers: AtomicBool,
    shared_table: AtomicBool,
    close_range: AtomicBool,
    fetch: AtomicBool,
}

static REFUSED: Refused = Refused {
    clone3: AtomicBool::new(false),
    clear_handlers: AtomicBool::new(false),
    shared_table: AtomicBool::new(false),
    close_range: AtomicBool::new(false),
    fetch: AtomicBool::new(false),
};

impl Ways {
    /// Whoever has a copy of the table from the kernel shares none.
    fn in_shape(self, shape: Shape) -> Ways {
        match shape {
            Shape::Vfork | Shape::Gated => self,
            Shape::Fork => Ways { shared_table: false, ..self },
            // The handlers are this process's, too.
            Shape::Thread => Ways { shared_table: false, clear_handlers: false, ..self },
        }
    }

    fn known() -> Ways {
        let allowed = |refused: &AtomicBool| !refused.load(Ordering::Relaxed);
        let clone3 = allowed(&REFUSED.clone3);
        Ways {
            clone3,
            clear_handlers: clone3 && allowed(&REFUSED.clear_handlers),
            shared_table: allowed(&REFUSED.shared_table),
            close_range: allowed(&REFUSED.close_range),
            fetch: allowed(&REFUSED.fetch),
        }
    }

    /// A spawn succeeded in these. Only that says that what is missing was refused for its own sake: `EPERM` and `EINVAL` may as well be
    /// about a namespace.
    fn remember(self) {
        for (allowed, refused) in [
            (self.clone3, &REFUSED.clone3),
            (self.clear_handlers || !self.clone3, &REFUSED.clear_handlers),
            (self.shared_table, &REFUSED.shared_table),
            (self.close_range, &REFUSED.close_range),
            (self.fetch, &REFUSED.fetch),
        ] {
            if !allowed {
                refused.store(true, Ordering::Relaxed);
            }
        }
    }

    /// What is left to try after a refusal; `None` if that was none, or nothing is left.
    fn without_the_refused(self, failure: Failure, sweep: Sweep) -> Option<Ways> {
        use libc::{E2BIG, EINVAL, ENOSYS, EPERM};
        match (failure.step, failure.errno) {
            // Before Linux 5.5.
            (Step::Clone, EINVAL) if self.clear_handlers => Some(Ways { clear_handlers: false, ..self }),
            // Hidden by an older kernel or a sandbox; or a `struct clone_args` of before 5.7. Plain clone cannot be hidden.
            (Step::Clone, ENOSYS | EPERM | E2BIG) if self.clone3 => {
                Some(Ways { clone3: false, clear_handlers: false, ..self })
            }
            // An emulator that makes a fork of it.
            (Step::Clone, EINVAL) if self.shared_table => Some(Ways { shared_table: false, ..self }),
            (Step::Table, ENOSYS | EPERM | EINVAL) if self.shared_table => Some(Ways { shared_table: false, ..self }),
            // Before 6.9; or what may not be traced may not be asked for descriptors either.
            (Step::Fetch, _) if self.fetch => Some(Ways { fetch: false, ..self }),
            // Before 5.11 one of its flags; else all of it, and with it the other way to make a private table.
            (Step::Sweep, EINVAL) if sweep == Sweep::Range => Some(Ways { close_range: false, ..self }),
            (Step::Sweep, ENOSYS | EPERM) if sweep == Sweep::Range => {
                Some(Ways { close_range: false, shared_table: false, ..self })
            }
            _ => None,
        }
    }
}

fn choose_manner(plan: &Plan<'_>, null: Option<RawFd>, script: &Script, ways: Ways, shape: Shape) -> Manner {
    let end = table_end(plan, script).filter(|_| ways.shared_table);
    // A thread is where its process is, and enters them by itself.
    let elsewhere = shape != Shape::Thread;
    Manner {
        shape,
        table: end.map_or(Table::Copied, |end| Table::Shared { end, is_clean: is_clean(end, null) }),
        clone3: ways.clone3,
        clear_handlers: ways.clear_handlers,
        flags: if elsewhere { plan.options.namespaces & !BY_UNSHARE } else { 0 },
        cgroup: plan.options.cgroup.as_ref().filter(|_| ways.clone3 && elsewhere).map(|fd| fd.as_raw_fd()),
    }
}

fn changes_ids(options: &Options) -> bool {
    options.groups.is_some() || clears_dumpable(options)
}

/// A credential change in shared memory clears the parent's dumpable flag for good. It is put back, if it was set, when no child that
/// changes its ids shares our memory any more: the flag is all that keeps their new user from reading it.
///
/// Supplementary groups do not count; a user namespace that is entered does.
fn clears_dumpable(options: &Options) -> bool {
    options.uid.is_some() || options.gid.is_some() || !options.joined.is_empty()
}

/// The children that change their ids between clone and exec.
///
/// No lock is held while a child is born: one that hangs there must not hold up the others.
#[derive(Default)]
struct Births {
    number: usize,
    /// Before the first of them.
    was_dumpable: bool,
    /// One of them may have our memory yet, and nobody can see it: then nothing is put back.
    unseen: bool,
}

static BIRTHS: PerProcess<Mutex<Births>> = PerProcess::new();

/// One of them, from before its clone until it has memory of its own, or is gone.
struct Changing {
    /// Whether it was seen to leave our memory.
    seen: bool,
}

impl Changing {
    fn begin() -> Changing {
        let mut births = BIRTHS.get().lock().unwrap_or_else(PoisonError::into_inner);
        if births.number == 0 {
            *births = Births { number: 0, was_dumpable: dumpable::get(), unseen: false };
        }
        births.number += 1;
        Changing { seen: true }
    }

    fn end(mut self, seen: bool) {
        self.seen = seen;
    }
}

impl Drop for Changing {
    fn drop(&mut self) {
        let mut births = BIRTHS.get().lock().unwrap_or_else(PoisonError::into_inner);
        births.number -= 1;
        births.unseen |= !self.seen;
        // Under the lock: the next one could begin before the flag is set.
        if births.number == 0 && births.was_dumpable && !births.unseen {
            dumpable::set();
        }
    }
}

/// What the child needs of our table sits below this; `None` if it needs all of it.
fn table_end(plan: &Plan<'_>, script: &Script) -> Option<u32> {
    if plan.options.inherit_fds {
        return None;
    }
    let highest = needed(plan, &script.moves).max().unwrap_or(0);
    Some(highest.max(2) as u32 + 1)
}

/// The numbers of ours that the child needs.
fn needed(plan: &Plan<'_>, moves: &[Move]) -> impl Iterator<Item = RawFd> {
    let from = moves.iter().filter(|this| !this.fetch).map(|this| this.from);
    from.chain(plan.options.inherit.iter().copied()).chain(descriptor_of(plan.program))
}

/// The pipe for its report may lie above anything that is open: a child that hangs before its exec would hold all that is below.
fn strangers(plan: &Plan<'_>, moves: &[Move]) -> Vec<(RawFd, RawFd)> {
    if plan.options.inherit_fds {
        return Vec::new();
    }
    let mut needed: Vec<RawFd> = needed(plan, moves).filter(|fd| *fd > 2).collect();
    needed.sort_unstable();
    let before = std::iter::once(2).chain(needed.iter().copied());
    before.zip(&needed).map(|(before, fd)| (before + 1, fd - 1)).filter(|(first, last)| first <= last).collect()
}

/// Whether nothing but 0, 1, 2 and our own null device sits below: no stranger can.
fn is_clean(end: u32, null: Option<RawFd>) -> bool {
    end == 3 || end == 4 && null == Some(3)
}

/// A program that is named by a descriptor of ours, as one in a memfd: the exec looks it up in the child.
fn descriptor_of(program: &OsStr) -> Option<RawFd> {
    let program = program.to_str()?;
    let number = program.strip_prefix("/proc/self/fd/").or_else(|| program.strip_prefix("/dev/fd/"))?;
    number.parse().ok().filter(|number| *number >= 0)
}

// ── the script ──

fn write_script(
    plan: &Plan<'_>,
    null: Option<RawFd>,
    status: Option<&StatusPipe>,
    ways: Ways,
    shape: Shape,
) -> Result<Script> {
    let options = plan.options;
    let moves = Moves::new(plan, null, status, ways, shape);
    Ok(Script {
        strangers: if status.is_some() { strangers(plan, &moves.list) } else { Vec::new() },
        sweep: sweep(options, ways),
        acts: acts(options, &moves, shape)?,
        id_maps: if shape == Shape::Gated { id_maps(options) } else { IdMaps::default() },
        gate: Gate::default(),
        hooks: options.hooks.clone(),
        parent: moves.list.iter().any(|this| this.fetch).then(this_thread),
        report: moves.report,
        moves: moves.list,
        stderr_is_stdout: matches!(plan.stdio[2], Source::SameAsStdout),
        kept: options.inherit.clone(),
        reset_ignored: options.reset_signals,
        ignored: options.ignored_signals.clone(),
        mask: options.signal_mask,
        searched: !plan.program.as_bytes().contains(&b'/'),
        paths: paths(plan)?,
        argv: plan.argv.clone(),
        envp: plan.env.clone().unwrap_or_else(inherited_env),
    })
}

/// As std reads it, under std's lock, at every spawn; what is kept from one to the next is the memory that it is written into.
fn inherited_env() -> Arc<Strings> {
    let kept = INHERITED.try_with(Cell::take).ok().flatten();
    let mut strings = kept.and_then(Arc::into_inner).unwrap_or_default();
    // What std reads from C strings holds no NUL.
    strings.fill(std::env::vars_os(), variable);
    let is_small = strings.capacity() <= INHERITED_MAX_BYTES;
    let strings = Arc::new(strings);
    if is_small {
        let _ = INHERITED.try_with(|kept| kept.set(Some(strings.clone())));
    }
    strings
}

/// As the environment has it.
pub(crate) fn variable(bytes: &mut Vec<u8>, (key, value): (impl AsRef<OsStr>, impl AsRef<OsStr>)) {
    bytes.extend_from_slice(key.as_ref().as_bytes());
    bytes.push(b'=');
    bytes.extend_from_slice(value.as_ref().as_bytes());
}

thread_local! {
    /// The memory of the last environment that was read, for the next one.
    static INHERITED: Cell<Option<Arc<Strings>>> = const { Cell::new(None) };
}

fn sweep(options: &Options, ways: Ways) -> Sweep {
    if options.inherit_fds {
        Sweep::Nothing
    } else if ways.close_range {
        Sweep::Range
    } else {
        Sweep::UpTo(highest_descriptor())
    }
}

/// Of this process, now; where it cannot be seen, the limit.
fn highest_descriptor() -> RawFd {
    let seen = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok())
        .max();
    // Another thread may open some more meanwhile.
    const MARGIN: RawFd = 64;
    seen.map_or_else(|| open_files_max().and_then(|n| RawFd::try_from(n).ok()).unwrap_or(1 << 20), |fd| fd + MARGIN)
}

/// (process, thread).
fn this_thread() -> (u32, u32) {
    (std::process::id(), rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())
}

/// The descriptors that the child takes over, and where those are that its acts need.
struct Moves {
    list: Vec<Move>,
    cwd: Option<usize>,
    /// Where it cannot be born in the cgroup.
    cgroup: Option<usize>,
    joined: Vec<usize>,
    report: Option<usize>,
}

impl Moves {
    fn new(plan: &Plan<'_>, null: Option<RawFd>, status: Option<&StatusPipe>, ways: Ways, shape: Shape) -> Moves {
        let stdio = plan.stdio.iter().enumerate().filter_map(|(to, source)| match source {
            Source::Null => null.map(|from| (from, Some(to as RawFd))),
            Source::Fd(fd) => Some((fd.as_raw_fd(), Some(to as RawFd))),
            Source::Ours(number) => Some((*number, Some(to as RawFd))),
            Source::Inherit | Source::SameAsStdout => None,
        });
        let extra = plan.extra.iter().map(|(to, fd)| (fd.as_raw_fd(), Some(*to)));
        let mut pairs: Vec<(RawFd, Option<RawFd>)> = stdio.chain(extra).collect();
        let mut for_an_act = |fd: Option<&OwnedFd>| {
            fd.map(|fd| {
                pairs.push((fd.as_raw_fd(), None));
                pairs.len() - 1
            })
        };
        let cwd = for_an_act(match &plan.options.cwd {
            Some(Dir::Fd(fd)) => Some(fd),
            _ => None,
        });
        let enters = !ways.clone3 || shape == Shape::Thread;
        let cgroup = for_an_act(plan.options.cgroup.as_deref().filter(|_| enters));
        let joined = plan.options.joined.iter().filter_map(|fd| for_an_act(Some(fd))).collect();
        let report = for_an_act(status.map(|status| &status.theirs));
        let is_overwritten = |this: (RawFd, Option<RawFd>)| {
            let by_another = pairs.iter().any(|(other, to)| *to == Some(this.0) && (*other, *to) != this);
            // A stderr that is stdout overwrites, too.
            by_another || this.1.is_none() && this.0 < 3
        };
        let new_numbers = plan.options.namespaces & libc::CLONE_NEWPID as u64 != 0;
        let may_fetch = ways.fetch && ways.shared_table && !plan.options.inherit_fds && !new_numbers;
        let list = pairs.iter().map(|&(from, to)| Move {
            from,
            to,
            lift: is_overwritten((from, to)),
            fetch: may_fetch && from >= FAR,
            lifted: AtomicI32::new(-1),
        });
        Moves { list: list.collect(), cwd, cgroup, joined, report }
    }
}

fn c_path(path: &Path, stage: Stage) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::new(ErrorKind::InvalidInput).at(stage).saying("a path contains a NUL byte"))
}

/// The child's steps, in the order in which they do not undo each other: credentials late, after them the directory, which is the new
/// user's to enter, and what a change of them would undo.
fn acts(options: &Options, moves: &Moves, shape: Shape) -> Result<Vec<Act>> {
    let mut acts = Vec::new();
    acts.extend(moves.joined.iter().copied().map(Act::JoinNamespace));
    namespaces(options, shape, &mut acts);
    if options.session {
        acts.push(Act::NewSession);
    }
    match options.group {
        // Who starts a session leads its group already.
        Some(Group::New) if options.session => {}
        Some(Group::New) => acts.push(Act::JoinGroup(0)),
        Some(Group::Join(group)) => acts.push(Act::JoinGroup(group)),
        None => {}
    }
    match options.terminal {
        Some(Terminal::Take(fd)) => acts.push(Act::TakeTerminal(fd)),
        Some(Terminal::Drop(fd)) => acts.push(Act::DropTerminal(fd)),
        None => {}
    }
    acts.extend(options.foreground.map(Act::Foreground));
    resources(options, moves, &mut acts);
    // A right that the new user may not have.
    if let Some(root) = &options.chroot {
        acts.push(Act::Chroot(c_path(root, Stage::Chroot)?));
    }
    acts.extend(options.umask.map(Act::Umask));
    privileges(options, &mut acts);
    // As std and Go: by the rights of the new user.
    match &options.cwd {
        Some(Dir::Path(path)) => acts.push(Act::Chdir(c_path(path, Stage::Directory)?)),
        Some(Dir::Fd(_)) => acts.extend(moves.cwd.map(Act::ChdirMove)),
        // As std: a directory outside the new root would be a way out of it.
        None if options.chroot.is_some() => acts.push(Act::Chdir(c"/".into())),
        None => {}
    }
    if options.trace {
        acts.push(Act::Trace);
    }
    if let Some(signal) = options.parent_death {
        acts.push(Act::ParentDeath(signal, parent(options, shape)));
    }
    Ok(acts)
}

/// The parent that the child asks for, if it can.
fn parent(options: &Options, shape: Shape) -> u32 {
    // In a new PID namespace the parent has no number, and a thread has its process's.
    let asks = options.namespaces & libc::CLONE_NEWPID as u64 == 0 && shape != Shape::Thread;
    if asks { std::process::id() } else { 0 }
}

fn namespaces(options: &Options, shape: Shape, acts: &mut Vec<Act>) {
    let by_unshare = if shape == Shape::Thread { options.namespaces } else { options.namespaces & BY_UNSHARE };
    if by_unshare != 0 {
        acts.push(Act::Unshare(by_unshare));
    }
    if let Some((monotonic, boottime)) = options.time_offsets {
        let text = format!("monotonic {monotonic} 0\nboottime {boottime} 0\n");
        acts.push(Act::WriteFile(Stage::Namespaces, c"/proc/self/timens_offsets".into(), text.into_bytes()));
    }
    if shape == Shape::Gated {
        acts.push(Act::AwaitIdMaps(parent(options, shape)));
        return;
    }
    let IdMaps { uid, gid, deny_setgroups } = id_maps(options);
    let mut write = |file: &CStr, text: String| {
        acts.push(Act::WriteFile(Stage::IdMaps, file.into(), text.into_bytes()));
    };
    if deny_setgroups {
        write(c"/proc/self/setgroups", "deny".into());
    }
    if let Some(map) = gid {
        write(c"/proc/self/gid_map", map);
    }
    if let Some(map) = uid {
        write(c"/proc/self/uid_map", map);
    }
}

fn id_maps(options: &Options) -> IdMaps {
    let text = |map: &[(u32, u32, u32)]| {
        let line = |(inside, outside, count): &(u32, u32, u32)| format!("{inside} {outside} {count}\n");
        (!map.is_empty()).then(|| map.iter().map(line).collect())
    };
    let gid: Option<String> = text(&options.gid_maps);
    IdMaps { uid: text(&options.uid_maps), deny_setgroups: gid.is_some() && !options.keep_setgroups, gid }
}

fn resources(options: &Options, moves: &Moves, acts: &mut Vec<Act>) {
    acts.extend(moves.cgroup.map(Act::EnterCgroup));
    acts.extend(options.oom_score_adj.map(|value| {
        Act::WriteFile(Stage::OomScore, c"/proc/self/oom_score_adj".into(), value.to_string().into_bytes())
    }));
    // After what opens files, before what may need a higher limit.
    acts.extend(limit_before_it_was_raised());
    acts.extend(options.limits.iter().map(|&(resource, soft, hard)| Act::Limit { resource, soft, hard }));
    acts.extend(options.affinity.as_ref().map(|cpus| {
        let mut words = vec![0; cpus.iter().max().map_or(1, |last| last / 64 + 1)];
        for cpu in cpus {
            words[cpu / 64] |= 1 << (cpu % 64);
        }
        Act::Affinity(words)
    }));
    acts.extend(options.scheduler.map(|(policy, priority)| Act::Scheduler { policy, priority }));
    acts.extend(options.nice.map(Act::Nice));
    acts.extend(options.io_priority.map(Act::IoPriority));
}

fn privileges(options: &Options, acts: &mut Vec<Act>) {
    acts.extend(options.drop_bounding.iter().copied().map(Act::DropBounding));
    if options.no_new_privs {
        acts.push(Act::NoNewPrivileges);
    }
    acts.extend(options.inheritable.clone().map(Act::Inheritable));
    if !options.ambient.is_empty() && options.uid.is_some() {
        acts.push(Act::KeepCapabilities);
    }
    match &options.groups {
        Some(groups) => acts.push(Act::Groups(groups.clone())),
        // As std: another user does not keep our groups. In a new user namespace they are nobody's, and cannot be dropped.
        None if options.namespaces & libc::CLONE_NEWUSER as u64 == 0 => acts.extend(options.uid.map(Act::ClearGroups)),
        None => {}
    }
    acts.extend(options.gid.map(Act::Gid));
    acts.extend(options.uid.map(Act::Uid));
    if !options.ambient.is_empty() {
        acts.push(Act::RaiseAmbient(options.ambient.clone()));
    }
}

// ── the program ──

/// What the child executes: one path, or, where only the child can look, all that its name may mean.
fn paths(plan: &Plan<'_>) -> Result<Vec<CString>> {
    let program = plan.program;
    if program.as_bytes().contains(&b'/') {
        return Ok(vec![c_path(Path::new(program), Stage::Exec)?]);
    }
    let search = plan.search_path.clone().or_else(|| std::env::var_os("PATH")).unwrap_or_default();
    let candidates = if search.is_empty() { Vec::new() } else { candidates(program, &search) };
    if is_looked_up_by_the_child(plan.options) {
        if candidates.is_empty() || is_dots(program) {
            return Err(not_found(program, libc::ENOENT));
        }
        return candidates.iter().map(|path| c_path(path, Stage::Lookup)).collect();
    }
    Ok(vec![c_path(&look_up(program, candidates)?, Stage::Lookup)?])
}

/// What is there, and who may execute it, is decided by steps of the child's.
fn is_looked_up_by_the_child(options: &Options) -> bool {
    let other_files = options.namespaces & (libc::CLONE_NEWNS | libc::CLONE_NEWUSER) as u64 != 0;
    options.chroot.is_some() || other_files || changes_ids(options)
}

fn candidates(program: &OsStr, search: &OsStr) -> Vec<PathBuf> {
    let dir = |dir: &[u8]| {
        if dir.is_empty() { Path::new(".").join(program) } else { Path::new(OsStr::from_bytes(dir)).join(program) }
    };
    search.as_bytes().split(|byte| *byte == b':').map(dir).collect()
}

fn is_dots(program: &OsStr) -> bool {
    [".", ".."].map(OsStr::new).contains(&program)
}

/// The first that may be executed; Go's `LookPath`. A hit in a directory that is relative to ours is refused.
fn look_up(program: &OsStr, candidates: Vec<PathBuf>) -> Result<PathBuf> {
    if is_dots(program) {
        return Err(not_found(program, libc::ENOENT));
    }
    let mut errno = libc::ENOENT;
    for path in candidates {
        match is_executable(&path) {
            Ok(true) if path.is_absolute() => return Ok(path),
            Ok(true) => return Err(relative(path)),
            Ok(false) => errno = libc::EACCES,
            Err(libc::EACCES) => errno = libc::EACCES,
            Err(_) => {}
        }
    }
    Err(not_found(program, errno))
}

fn relative(path: impl Into<PathBuf>) -> Error {
    Error::new(ErrorKind::RelativeLookup).at(Stage::Lookup).about(path)
}

fn not_found(program: &OsStr, errno: i32) -> Error {
    Error::os(Stage::Lookup, io::Error::from_raw_os_error(errno)).about(program)
}

/// Judged by the effective ids. faccessat2(2), and stat(2) for directories.
fn is_executable(path: &Path) -> std::result::Result<bool, i32> {
    use rustix::io::Errno;
    let checked = match rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // Before Linux 5.8: by the real ids.
        Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
            rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::empty())
        }
        checked => checked,
    };
    checked.map_err(|errno| errno.raw_os_error())?;
    let stat = rustix::fs::stat(path).map_err(|errno| errno.raw_os_error())?;
    Ok(!FileType::from_raw_mode(stat.st_mode).is_dir())
}

// ── descriptors ──

/// `/dev/null`, opened once and kept; checked at each use, since a host may close or reuse a number that it did not open.
fn null_device() -> Result<RawFd> {
    static NULL: AtomicI32 = AtomicI32::new(-1);
    let known = NULL.load(Ordering::Acquire);
    if known >= 0 && sys::is_null_device(known) {
        return Ok(known);
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = rustix::fs::open("/dev/null", flags, Mode::empty());
    let fd = opened.map_err(|e| Error::os(Stage::Streams, e.into()).about("/dev/null"))?;
    // Low numbers cost a spawn nothing, but 0 to 2 are the host's.
    let fd = if fd.as_raw_fd() < 3 { raise_to(fd, 3) } else { fd };
    sys::mark_null_device(fd.as_fd());
    match NULL.compare_exchange(known, fd.as_raw_fd(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(sys::keep_open(fd)),
        // Another thread was first; ours is closed.
        Err(other) => Ok(other),
    }
}

/// pipe(2).
fn status_pipe() -> Result<StatusPipe> {
    let ends = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (ours, theirs) = ends.map_err(|e| Error::os(Stage::Clone, e.into()).saying("the pipe for its report"))?;
    Ok(StatusPipe { ours: raise_to(ours, 3), theirs: raise_to(theirs, 3) })
}

/// Moves a long-lived descriptor of ours out of the low numbers, which spawns copy; where that cannot be done it stays.
pub(crate) fn raise(fd: OwnedFd) -> OwnedFd {
    raise_to(fd, RAISED_FROM)
}

fn raise_to(fd: OwnedFd, low: RawFd) -> OwnedFd {
    if fd.as_raw_fd() >= low {
        return fd;
    }
    match rustix::io::fcntl_dupfd_cloexec(&fd, low) {
        Ok(raised) => raised,
        // The limit is below: at least 0 to 2 are not ours.
        Err(_) if fd.as_raw_fd() < 3 && low > 3 => raise_to(fd, 3),
        Err(_) => fd,
    }
}

/// Takes early what later spawns need: for hosts that go on to open thousands of descriptors.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] if this kernel or sandbox lacks what nothing works without; [`ErrorKind::NoDescriptors`], or what opening
/// `/dev/null` says.
pub fn init() -> Result<()> {
    check_kernel()?;
    null_device().map(drop)
}

/// The soft limits on open files, before and after [`raise_nofile`]; after is 0 if it was not called.
static NOFILE: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));

/// Raises this process's soft limit on open files to the hard one, and returns it; `u64::MAX` is no limit. `setrlimit(2)`.
///
/// Children get the old soft limit back, as in Go, since programs that use `select(2)` cannot live with more than 1,024; unless their command
/// sets another [`rlimit`](crate::Command::rlimit), or somebody has changed this process's limit meanwhile.
///
/// # Errors
///
/// What `setrlimit(2)` says.
pub fn raise_nofile() -> Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return Ok(limit.maximum.unwrap_or(u64::MAX));
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .map_err(|errno| Error::os(Stage::ResourceLimit, errno.into()))?;
    let raised = limit.maximum.unwrap_or(u64::MAX);
    NOFILE.0.store(limit.current.unwrap_or(u64::MAX), Ordering::Relaxed);
    NOFILE.1.store(raised, Ordering::Release);
    Ok(raised)
}

fn limit_before_it_was_raised() -> Option<Act> {
    let raised = NOFILE.1.load(Ordering::Acquire);
    if raised == 0 {
        return None;
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let (soft, hard) = (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX));
    let before = NOFILE.0.load(Ordering::Relaxed).min(hard);
    (soft == raised).then_some(Act::Limit { resource: libc::RLIMIT_NOFILE as _, soft: before, hard })
}

/// Which ways of starting a child this kernel and sandbox allow; the best one is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Capabilities {
    /// `clone3` (Linux 5.3), else `clone`.
    pub clone3: bool,
    /// Until its exec a child shares this process's memory, so that a spawn costs the same however large that is; in an emulator that
    /// makes a fork of a vfork it has a copy, and reports through a pipe. Known from the first spawn on, until then yes.
    pub shared_memory: bool,
    /// Handlers are reset by the clone itself (5.5), else one by one in the child.
    pub clear_handlers: bool,
    /// The descriptor table is shared until the child copies the low part of it (5.9): a spawn costs the same however many are open.
    pub shared_table: bool,
    /// What a child was not given is closed by one call (5.11), else number by number.
    pub close_range: bool,
    /// Groups are signalled through the pidfd (6.9), else by number while the leader is kept unreaped.
    pub group_signals: bool,
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, there) in [
            ("clone3", self.clone3),
            ("shared_memory", self.shared_memory),
            ("clear_handlers", self.clear_handlers),
            ("shared_table", self.shared_table),
            ("close_range", self.close_range),
            ("group_signals", self.group_signals),
        ] {
            writeln!(f, "{name:<15}{}", if there { "yes" } else { "no" })?;
        }
        Ok(())
    }
}

/// Asks the kernel, by calls that do nothing.
pub fn capabilities() -> Capabilities {
    let probed = sys::probe();
    let ways = Ways::known();
    Capabilities {
        clone3: probed.clone3 && ways.clone3,
        shared_memory: birth::memory_is_shared(),
        clear_handlers: probed.clone3 && ways.clear_handlers,
        shared_table: probed.close_range && ways.shared_table,
        close_range: probed.close_range && ways.close_range,
        group_signals: probed.group_signals && process::group_flag_works(),
    }
}
