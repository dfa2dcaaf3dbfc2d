//! How a child comes to be: the clone, and what it does between clone and exec, in memory it shares with its suspended parent. Knows
//! a script of plain data; decides nothing.
//!
//! In the child: raw system calls only, no allocation, no lock, no panic, no libc.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::PerProcess;
use super::hook::Hook;
use super::idmaps::{Gate, IdMaps, await_zero};
use super::process::Published;
use super::raw::{KernelSigaction, call, clone_args, clone_running, signal_restorer};
use crate::error::Stage;

/// A child's stack with its guard page (64 KiB on some kernels), aligned to its own size. Enough: it runs a few functions of this file.
const STACK_BYTES: usize = 128 << 10;
const SIGNALS_END: i32 = 65;
/// Kernel constants that `libc` has as an `int`, where they are 0.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What is shared with the child by the clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// The descriptor table is shared until the child's first act, which copies what is below `end` and closes the rest.
    Shared {
        end: u32,
        /// There is nothing below `end` but 0, 1, 2 and what is known to be close-on-exec: it need not be swept.
        is_clean: bool,
    },
    /// The kernel copies the whole table.
    Copied,
}

/// What of its parent a child is, until it has exec'd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// In the memory of its suspended parent.
    Vfork,
    /// In the memory of its parent, which is not suspended: it opens the gate that the child comes to, and waits then.
    Gated,
    /// In a copy of the memory of its suspended parent: a real fork, which may run any code.
    Fork,
    /// A thread of this process, with descriptors, directory and ids of its own: its exec makes it the whole process.
    Thread,
}

/// How the clone is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) shape: Shape,
    pub(crate) table: Table,
    /// By clone3, else by clone.
    pub(crate) clone3: bool,
    /// Handlers are reset by the clone, else one by one by the child.
    pub(crate) clear_handlers: bool,
    /// More clone flags: namespaces.
    pub(crate) flags: u64,
    /// The cgroup to be born in (clone3 alone).
    pub(crate) cgroup: Option<RawFd>,
}

/// What the child closes before the program runs, of what it was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sweep {
    Nothing,
    /// All of them, by one call.
    Range,
    /// Each number up to this one, where `close_range` is refused.
    UpTo(RawFd),
}

/// A step of the child, in the order of the list.
#[derive(Debug)]
pub(crate) enum Act {
    NewSession,
    /// `setpgid(0, n)`.
    JoinGroup(i32),
    /// `ioctl(n, TIOCSCTTY)`.
    TakeTerminal(RawFd),
    /// `ioctl(n, TIOCNOTTY)`.
    DropTerminal(RawFd),
    /// `ioctl(n, TIOCSPGRP)` with the child's own group.
    Foreground(RawFd),
    Unshare(u64),
    /// Into the namespace that this move brings.
    JoinNamespace(usize),
    /// Writes these bytes to this file: `/proc/self/…`.
    WriteFile(Stage, CString, Vec<u8>),
    /// Writes to `cgroup.procs` in the directory that this move brings.
    EnterCgroup(usize),
    Chroot(CString),
    Chdir(CString),
    /// Into the directory that this move brings.
    ChdirMove(usize),
    Umask(u32),
    /// By so much, as nice(2).
    Nice(i32),
    Limit {
        resource: u32,
        soft: u64,
        hard: u64,
    },
    Affinity(Vec<u64>),
    IoPriority(i32),
    Scheduler {
        policy: i32,
        priority: i32,
    },
    DropBounding(u32),
    /// These, and no others, are inheritable.
    Inheritable(Vec<u32>),
    /// Makes them inheritable, and ambient.
    RaiseAmbient(Vec<u32>),
    KeepCapabilities,
    NoNewPrivileges,
    /// No supplementary groups, for this new user id; whoever stays who he is may have to keep them.
    ClearGroups(u32),
    Groups(Vec<u32>),
    Gid(u32),
    Uid(u32),
    /// The signal, and the parent that must still be there (0: not asked).
    ParentDeath(i32, u32),
    Trace,
    /// Waits at the gate, as long as this parent lives (0: not asked).
    AwaitIdMaps(u32),
}

impl Act {
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Act::NewSession => Stage::Session,
            Act::JoinGroup(_) => Stage::ProcessGroup,
            Act::TakeTerminal(_) | Act::DropTerminal(_) => Stage::Terminal,
            Act::Foreground(_) => Stage::Foreground,
            Act::Unshare(_) | Act::JoinNamespace(_) => Stage::Namespaces,
            Act::WriteFile(stage, ..) => *stage,
            Act::EnterCgroup(_) => Stage::Cgroup,
            Act::Chroot(_) => Stage::Chroot,
            Act::Chdir(_) | Act::ChdirMove(_) => Stage::Directory,
            Act::Umask(_) => Stage::Umask,
            Act::Nice(_) => Stage::Nice,
            Act::Limit { .. } => Stage::ResourceLimit,
            Act::Affinity(_) => Stage::Affinity,
            Act::IoPriority(_) => Stage::IoPriority,
            Act::Scheduler { .. } => Stage::Scheduler,
            Act::DropBounding(_) | Act::Inheritable(_) | Act::RaiseAmbient(_) | Act::KeepCapabilities => {
                Stage::Capabilities
            }
            Act::NoNewPrivileges => Stage::NoNewPrivileges,
            Act::ClearGroups(_) | Act::Groups(_) => Stage::Groups,
            Act::Gid(_) => Stage::Gid,
            Act::Uid(_) => Stage::Uid,
            Act::ParentDeath(..) => Stage::ParentDeathSignal,
            Act::Trace => Stage::Trace,
            Act::AwaitIdMaps(_) => Stage::IdMaps,
        }
    }
}

/// A descriptor of the parent's that the child gets under a number of its own, or that one of its acts needs.
#[derive(Debug)]
pub(crate) struct Move {
    pub(crate) from: RawFd,
    /// `None`: for an act alone.
    pub(crate) to: Option<RawFd>,
    /// `from` is where another one goes.
    pub(crate) lift: bool,
    /// `from` is above what the child copies of the parent's table.
    pub(crate) fetch: bool,
    /// The child's note of where it lifted or fetched it to.
    pub(crate) lifted: AtomicI32,
}

impl Move {
    /// Where it is when all that had to be lifted is.
    fn source(&self) -> RawFd {
        if self.lift || self.fetch { self.lifted.load(Ordering::Relaxed) } else { self.from }
    }
}

/// Everything the child has to do. Plain data, ready before the clone.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) sweep: Sweep,
    /// In any order: what one would overwrite that another still needs is lifted first.
    pub(crate) moves: Vec<Move>,
    /// Whose descriptors are fetched, if any are: this process, by this thread.
    pub(crate) parent: Option<(u32, u32)>,
    /// The one of the moves by which the child reports in writing, too.
    pub(crate) report: Option<usize>,
    /// Closed at once: first and last of each range.
    pub(crate) strangers: Vec<(RawFd, RawFd)>,
    /// stderr is what stdout has become.
    pub(crate) stderr_is_stdout: bool,
    /// Stay open under their own numbers.
    pub(crate) kept: Vec<RawFd>,
    /// All ignored signals become default, too.
    pub(crate) reset_ignored: bool,
    pub(crate) ignored: Vec<i32>,
    /// The signals that the program starts with blocked, as bits.
    pub(crate) mask: u64,
    pub(crate) acts: Vec<Act>,
    /// Written by the parent of a gated child.
    pub(crate) id_maps: IdMaps,
    pub(crate) gate: Gate,
    /// Called last, where they may be.
    pub(crate) hooks: Vec<Hook>,
    /// Tried one after the other, as execvp(3) does.
    pub(crate) paths: Vec<CString>,
    /// They come from a list of directories: a relative one is not run, if it could be.
    pub(crate) searched: bool,
    pub(crate) argv: Arc<Strings>,
    pub(crate) envp: Arc<Strings>,
}

/// Strings with the array of pointers to them that execve(2) takes.
#[derive(Default)]
pub(crate) struct Strings {
    /// What `pointers` points into, each with its NUL.
    bytes: Vec<u8>,
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers point into the bytes beside them, which do not change.
unsafe impl Send for Strings {}
// SAFETY: as above.
unsafe impl Sync for Strings {}

impl Strings {
    /// Of `strings`, each written by `write` at the end of what it is given, without a NUL.
    pub(crate) fn new<T>(strings: impl IntoIterator<Item = T>, write: impl FnMut(&mut Vec<u8>, T)) -> Strings {
        let mut new = Strings::default();
        new.fill(strings, write);
        new
    }

    /// As [`Strings::new`], in the place of what was there, and in its memory.
    pub(crate) fn fill<T>(&mut self, strings: impl IntoIterator<Item = T>, mut write: impl FnMut(&mut Vec<u8>, T)) {
        self.bytes.clear();
        self.pointers.clear();
        for string in strings {
            // Where it starts, until the bytes do not move any more.
            self.pointers.push(ptr::without_provenance(self.bytes.len()));
            write(&mut self.bytes, string);
            self.bytes.push(0);
        }
        let base = self.bytes.as_ptr().cast::<c_char>();
        for pointer in &mut self.pointers {
            *pointer = base.wrapping_add(pointer.addr());
        }
        self.pointers.push(ptr::null());
    }

    /// How much memory it keeps.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }
}

impl std::fmt::Debug for Strings {
    /// Values of the environment are not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} strings", self.pointers.len().saturating_sub(1))
    }
}

/// What the child writes for its parent: memory that both have, whatever else they share.
#[derive(Debug, Default)]
struct Shared {
    report: Report,
    /// The stop signals that it took in the program's place, as bits.
    swallowed: AtomicU64,
    /// Not 0 while there is a child, where [`Published`] cannot be told.
    child: AtomicI32,
}

/// What the child says of itself.
#[derive(Debug, Default)]
struct Report {
    /// What failed, by its code; 0: nothing.
    failed: AtomicU32,
    errno: AtomicI32,
    /// Which descriptor, or which path.
    which: AtomicI32,
}

impl Report {
    fn set(&self, (failed, errno, which): Mishap) {
        self.errno.store(errno, Ordering::Release);
        self.which.store(which, Ordering::Release);
        self.failed.store(failed, Ordering::Release);
    }
}

/// The codes of the steps that are not in the list of acts.
const AT_TABLE: u32 = 1;
const AT_SWEEP: u32 = 2;
const AT_DESCRIPTORS: u32 = 3;
const AT_SIGNALS: u32 = 4;
const AT_EXEC: u32 = 5;
const AT_FETCH: u32 = 6;
const AT_RELATIVE: u32 = 7;
const AT_HOOK: u32 = 8;
const AT_ACTS: u32 = 16;

/// A step of the child's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The clone itself: there is no child.
    Clone,
    Table,
    Sweep,
    Fetch,
    /// Of the descriptor that has this number, here or in the child.
    Descriptors(RawFd),
    Signals,
    /// The act at this place of the list.
    Act(usize),
    /// Of the path at this place of the list.
    Exec(usize),
    /// The path at this place of the list could be executed, but is relative.
    Relative(usize),
    /// Of the hook at this place of the list.
    Hook(usize),
}

impl Step {
    fn of(report: &Report) -> Option<Step> {
        let which = report.which.load(Ordering::Acquire);
        Some(match report.failed.load(Ordering::Acquire) {
            0 => return None,
            AT_TABLE => Step::Table,
            AT_SWEEP => Step::Sweep,
            AT_DESCRIPTORS => Step::Descriptors(which),
            AT_SIGNALS => Step::Signals,
            AT_FETCH => Step::Fetch,
            AT_EXEC => Step::Exec(which as usize),
            AT_RELATIVE => Step::Relative(which as usize),
            AT_HOOK => Step::Hook(which as usize),
            act => Step::Act((act - AT_ACTS) as usize),
        })
    }
}

/// What failed, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    pub(crate) errno: i32,
}

/// What became of a clone.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It has exec'd; or a signal killed it before, which its status will tell.
    Born { pid: u32, pidfd: OwnedFd },
    /// It exited in this step; it must be reaped through the pidfd.
    Failed { failure: Failure, pidfd: OwnedFd },
}

/// A pipe that a child holds until its exec and reports into, for where its memory is a copy of ours: emulators make a fork of a vfork.
/// The first spawn has one and learns whether that is so.
#[derive(Debug)]
pub(crate) struct StatusPipe {
    pub(crate) ours: OwnedFd,
    pub(crate) theirs: OwnedFd,
}

/// Whether a child shares our memory until its exec. Relaxed: whoever does not know yet makes a pipe.
static MEMORY: AtomicU32 = AtomicU32::new(MEMORY_UNKNOWN);
const MEMORY_UNKNOWN: u32 = 0;
const MEMORY_SHARED: u32 = 1;
const MEMORY_COPIED: u32 = 2;

/// Until it is known: yes.
pub(crate) fn memory_is_shared() -> bool {
    MEMORY.load(Ordering::Relaxed) != MEMORY_COPIED
}

pub(crate) fn needs_status_pipe(shape: Shape) -> bool {
    match (shape, MEMORY.load(Ordering::Relaxed)) {
        (Shape::Vfork, memory) => memory != MEMORY_SHARED,
        // Where a vfork copies nobody is suspended either.
        (Shape::Fork, memory) => memory == MEMORY_COPIED,
        (Shape::Gated | Shape::Thread, _) => false,
    }
}

impl StatusPipe {
    /// There is a child: learns whether it shares our memory, and reads what it has written if not.
    fn settle(self, shape: Shape, pid: u32, published: &Published, report: &Report) {
        if shape == Shape::Vfork && published.claim(pid) {
            MEMORY.store(MEMORY_SHARED, Ordering::Relaxed);
        } else {
            MEMORY.store(MEMORY_COPIED, Ordering::Relaxed);
            self.read(report);
        }
    }

    /// Waits until the child has exec'd or exited, and takes over what it has written. read(2).
    fn read(self, report: &Report) {
        // Ours, too: it would keep the pipe open.
        drop(self.theirs);
        let mut bytes = [0; size_of::<[i32; 3]>()];
        let mut len = 0;
        while let Ok(n @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(&self.ours, &mut bytes[len..])) {
            len += n;
        }
        let word = |i: usize| i32::from_ne_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
        report.set((word(0) as u32, word(4), word(8)));
    }
}

/// Clones a child that follows `script`; returns when it has exec'd or exited. The kernel writes the pidfd's number into `published`
/// before the child runs. clone(2).
///
/// An error is the clone's own.
pub(crate) fn clone(
    script: &Script,
    manner: Manner,
    published: &Published,
    status: Option<StatusPipe>,
) -> io::Result<Outcome> {
    let (pid, failure, swallowed) = match manner.shape {
        Shape::Fork => {
            let page = SharedPage::new()?;
            // SAFETY: the page is there until the witness is dismissed.
            unsafe { published.call_witness(&page.get().child) };
            let result = clone_sharing(script, manner, published, page.get(), status);
            published.dismiss_witness(result.as_ref().map_or(0, |(pid, ..)| *pid));
            result?
        }
        _ => clone_sharing(script, manner, published, &Shared::default(), status)?,
    };
    let raw = published.number();
    // SAFETY: the kernel opened it for us by CLONE_PIDFD, and nobody closes it but us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(raw) };
    if let Some(failure) = failure {
        return Ok(Outcome::Failed { failure, pidfd });
    }
    send_on_stops(raw, swallowed);
    Ok(Outcome::Born { pid, pidfd })
}

/// (pid, what failed, what it swallowed).
fn clone_sharing(
    script: &Script,
    manner: Manner,
    published: &Published,
    shared: &Shared,
    status: Option<StatusPipe>,
) -> io::Result<(u32, Option<Failure>, u64)> {
    let order = Order { script, manner, shared };
    let pid = with_stack(|stack| {
        stack.note_stops_in(&shared.swallowed);
        let before = block_all_signals();
        let result = clone_on(stack, &order, published);
        if let (Shape::Gated, Ok(pid)) = (manner.shape, &result) {
            published.found(*pid);
            script.gate.open(script.id_maps.write(*pid));
            // Not sooner: the child uses this stack.
            await_zero(&shared.child);
        }
        restore_signals(before);
        result
    })?;
    if let Some(status) = status {
        status.settle(manner.shape, pid, published, &shared.report);
    }
    let errno = shared.report.errno.load(Ordering::Acquire);
    let failure = Step::of(&shared.report).map(|step| Failure { step, errno });
    Ok((pid, failure, shared.swallowed.load(Ordering::Acquire)))
}

/// Replaces this process by the program of `script`; returns when that has failed, with nothing changed but what belongs to a whole
/// process. clone(2), execve(2).
pub(crate) fn replace(script: &Script, manner: Manner) -> Failure {
    // A hook is called by one at a time.
    static ONE: PerProcess<Mutex<()>> = PerProcess::new();
    let _one = ONE.get().lock().unwrap_or_else(PoisonError::into_inner);
    match clone_sharing(script, manner, &Published::new(), &Shared::default(), None) {
        Ok((thread, failure, _)) => {
            // Its ids may be somebody else's, its memory is ours.
            while is_thread_of_ours(thread) {
                std::thread::yield_now();
            }
            failure.unwrap_or(Failure { step: Step::Clone, errno: libc::EINTR })
        }
        Err(error) => Failure { step: Step::Clone, errno: error.raw_os_error().unwrap_or(libc::ENOMEM) },
    }
}

/// tgkill(2).
fn is_thread_of_ours(thread: u32) -> bool {
    // SAFETY: integers, and no signal.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, 0) == 0 }
}

/// A page that a forked copy shares with us.
struct SharedPage(*mut c_void);

impl SharedPage {
    const BYTES: usize = size_of::<Shared>();

    /// mmap(2).
    fn new() -> io::Result<SharedPage> {
        // SAFETY: fresh anonymous memory.
        let page = unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
            libc::mmap(ptr::null_mut(), Self::BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(SharedPage(page)) }
    }

    fn get(&self) -> &Shared {
        // SAFETY: mapped, aligned, as large as that, and zeros are its default; it consists of atomics.
        unsafe { &*self.0.cast() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: munmap(2) of our own mapping; the child has exec'd or exited, or has one of its own.
        unsafe { libc::munmap(self.0, Self::BYTES) };
    }
}

/// `struct clone_args`, to `cgroup` (Linux 5.7); a kernel that does not know the end of it takes zeros there.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn clone_on(stack: &Stack, order: &Order<'_>, published: &Published) -> io::Result<u32> {
    let manner = order.manner;
    let thread = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_THREAD | libc::CLONE_SIGHAND;
    let by_shape = match manner.shape {
        Shape::Vfork => libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::CLONE_CHILD_SETTID,
        Shape::Gated => libc::CLONE_VM | libc::CLONE_PIDFD | libc::CLONE_CHILD_CLEARTID,
        Shape::Fork => libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::CLONE_CHILD_SETTID,
        Shape::Thread => thread,
    };
    let mut flags = by_shape as u64 | manner.flags;
    if matches!(manner.table, Table::Shared { .. }) {
        flags |= libc::CLONE_FILES as u64;
    }
    let exit_signal = if manner.shape == Shape::Thread { 0 } else { libc::SIGCHLD };
    let data = ptr::from_ref(order).cast();
    let (pidfd, mut child) = published.as_ptrs();
    match manner.shape {
        Shape::Vfork | Shape::Thread => {}
        // It is our memory that the kernel clears, and the child's that it sets.
        Shape::Gated => {
            child = order.shared.child.as_ptr();
            order.shared.child.store(1, Ordering::Release);
        }
        Shape::Fork => child = order.shared.child.as_ptr(),
    }
    let result = if manner.clone3 {
        if manner.clear_handlers {
            flags |= CLONE_CLEAR_SIGHAND;
        }
        if manner.cgroup.is_some() {
            flags |= CLONE_INTO_CGROUP;
        }
        let args = CloneArgs {
            flags,
            pidfd: pidfd as u64,
            child_tid: child as u64,
            exit_signal: exit_signal as u64,
            stack: stack.bottom() as u64,
            stack_size: (stack.top() - stack.bottom()) as u64,
            cgroup: manner.cgroup.unwrap_or(0) as u64,
            ..CloneArgs::default()
        };
        // SAFETY: clone3(2) with a stack that is this thread's alone: VFORK, or the caller, waits until the child needs neither it nor
        // `order`.
        unsafe {
            let args = [ptr::from_ref(&args) as usize, size_of::<CloneArgs>(), 0, 0, 0];
            clone_running(libc::SYS_clone3, args, child_main, data)
        }
    } else {
        let args = clone_args(flags as usize | exit_signal as usize, stack.top(), pidfd, child);
        // SAFETY: clone(2); as above.
        unsafe { clone_running(libc::SYS_clone, args, child_main, data) }
    };
    check(result).map(|pid| pid as u32).map_err(io::Error::from_raw_os_error)
}

/// A result of a raw system call; an error is the errno.
fn check(result: isize) -> Result<usize, i32> {
    if result < 0 { Err((-result) as i32) } else { Ok(result as usize) }
}

// ── stacks and signals, in the parent ──

/// From below: a guard page, the stack, a word for [`note_stop`].
struct Stack(*mut c_void);

impl Stack {
    /// mmap(2).
    fn new() -> io::Result<Stack> {
        const RESERVED_BYTES: usize = 2 * STACK_BYTES;
        // SAFETY: fresh anonymous memory.
        let reserved = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
            libc::mmap(ptr::null_mut(), RESERVED_BYTES, libc::PROT_NONE, flags, -1, 0)
        };
        if reserved == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // As much of it as is aligned; both ends go back.
        let before = reserved.align_offset(STACK_BYTES);
        let stack = Stack(reserved.wrapping_byte_add(before));
        let end = stack.0.wrapping_byte_add(STACK_BYTES);
        let (guard, after) = (rustix::param::page_size(), STACK_BYTES - before);
        // SAFETY: munmap(2) and mprotect(2) of parts of that mapping, which nobody uses yet.
        unsafe {
            if before > 0 {
                libc::munmap(reserved, before);
            }
            if after > 0 {
                libc::munmap(end, after);
            }
            let usable = stack.0.wrapping_byte_add(guard);
            if libc::mprotect(usable, STACK_BYTES - guard, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(stack)
    }

    fn bottom(&self) -> usize {
        self.0 as usize + rustix::param::page_size()
    }

    /// A multiple of 16.
    fn top(&self) -> usize {
        self.0 as usize + STACK_BYTES - 16
    }

    fn note_stops_in(&self, swallowed: &AtomicU64) {
        // SAFETY: the word is in the stack's mapping, above the stack itself, and only ever used as this atomic.
        unsafe { word_above(self.0) }.store(ptr::from_ref(swallowed).cast_mut(), Ordering::Relaxed);
    }
}

/// The word above the stack that this is an address in: where the half-born child notes the stop signals that it took in the program's
/// place. No thread-local variable: in a library that was loaded later libc would have to be asked for its address.
///
/// # Safety
///
/// The stack is mapped for as long as the reference is used.
unsafe fn word_above<'a, T>(inside: *const T) -> &'a AtomicPtr<AtomicU64> {
    let top = (inside as usize & !(STACK_BYTES - 1)) + STACK_BYTES - 16;
    // SAFETY: the caller's; the address is a multiple of 16, and `Stack::new` has given its provenance away by casting it to a number.
    unsafe { &*ptr::with_exposed_provenance(top) }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: munmap(2) of our own mapping; no child runs on it: we slept until it did not.
        unsafe { libc::munmap(self.0, STACK_BYTES) };
    }
}

thread_local! {
    /// Kept from one spawn to the next.
    static STACK: Cell<Option<Stack>> = const { Cell::new(None) };
}

fn with_stack<T>(f: impl FnOnce(&Stack) -> io::Result<T>) -> io::Result<T> {
    // Where the thread's storage is gone already a stack is made for this once.
    let stack = match STACK.try_with(Cell::take).ok().flatten() {
        Some(stack) => stack,
        None => Stack::new()?,
    };
    let result = f(&stack);
    let _ = STACK.try_with(|kept| kept.set(Some(stack)));
    result
}

/// All of them, also those libc keeps for itself. rt_sigprocmask(2).
fn block_all_signals() -> u64 {
    let (all, mut before) = (!0u64, 0u64);
    // SAFETY: two sets of eight bytes.
    unsafe {
        let args =
            [libc::SIG_SETMASK as usize, ptr::from_ref(&all) as usize, ptr::from_mut(&mut before) as usize, 8, 0];
        call(libc::SYS_rt_sigprocmask, args);
    }
    before
}

fn restore_signals(mask: u64) {
    // SAFETY: as above.
    unsafe { call(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, ptr::from_ref(&mask) as usize, 0, 8, 0]) };
}

/// What the child's handler took in place of the program is sent to it again.
fn send_on_stops(raw_pidfd: RawFd, swallowed: u64) {
    for signal in STOPS.into_iter().filter(|signal| swallowed & bit(*signal) != 0) {
        let _ = super::process::signal_unborn(raw_pidfd, signal);
    }
}

fn bit(signal: i32) -> u64 {
    1u64.wrapping_shl(signal as u32 - 1)
}

// ── the child ──

/// Signals whose default action would stop the child while its parent is suspended.
const STOPS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

struct Order<'a> {
    script: &'a Script,
    manner: Manner,
    shared: &'a Shared,
}

/// (code, errno, which): see [`Report`].
type Mishap = (u32, i32, i32);

/// The child's first and last function.
///
/// # Safety
///
/// `data` is an [`Order`] that lives until the child has exec'd or exited.
unsafe extern "C" fn child_main(data: *const c_void) -> ! {
    // SAFETY: the caller's.
    let order = unsafe { &*data.cast::<Order<'_>>() };
    let mishap = match prepare(order) {
        Ok(()) => execute(order),
        Err(mishap) => mishap,
    };
    order.shared.report.set(mishap);
    write_down(order.script, mishap);
    let exit = if order.manner.shape == Shape::Thread { libc::SYS_exit } else { libc::SYS_exit_group };
    loop {
        // SAFETY: exit(2), exit_group(2) do not return.
        unsafe { call(exit, [127, 0, 0, 0, 0]) };
    }
}

/// Into the pipe, if there is one.
fn write_down(script: &Script, (failed, errno, which): Mishap) {
    let Some(this) = script.report.and_then(|index| script.moves.get(index)) else {
        return;
    };
    let words = [failed as i32, errno, which];
    let lifted = this.lifted.load(Ordering::Relaxed);
    // The step that failed may be the one that lifts it.
    let fd = if lifted < 0 { this.from } else { lifted };
    let _ = sys(libc::SYS_write, [fd as usize, words.as_ptr() as usize, size_of_val(&words), 0, 0]);
}

fn prepare(order: &Order<'_>) -> Result<(), Mishap> {
    let Order { script, manner, .. } = order;
    // Before anything else that touches a descriptor: until then the table is the parent's.
    let is_clean = own_table(manner.table).map_err(|errno| (AT_TABLE, errno, 0))?;
    close_strangers(script);
    // Before anything is unblocked: a handler of the host would run here, in its memory.
    if manner.shape != Shape::Thread {
        set_dispositions(script, *manner).map_err(|errno| (AT_SIGNALS, errno, 0))?;
    }
    if !is_clean {
        sweep(script.sweep).map_err(|errno| (AT_SWEEP, errno, 0))?;
    }
    fetch(script).map_err(|errno| (AT_FETCH, errno, 0))?;
    install(script).map_err(|(errno, fd)| (AT_DESCRIPTORS, errno, fd))?;
    for (i, act) in script.acts.iter().enumerate() {
        perform(act, script).map_err(|errno| (AT_ACTS.wrapping_add(i as u32), errno, 0))?;
    }
    Ok(())
}

/// Raw and checked.
fn sys(number: libc::c_long, args: [usize; 5]) -> Result<usize, i32> {
    // SAFETY: every pointer among the arguments comes from the script, which outlives the child's use of it, or from a local.
    check(unsafe { call(number, args) })
}

/// Says whether it is clean.
fn own_table(table: Table) -> Result<bool, i32> {
    let Table::Shared { end, is_clean } = table else {
        return Ok(false);
    };
    const CLOSE_RANGE_UNSHARE: usize = 2;
    match sys(libc::SYS_close_range, [end as usize, u32::MAX as usize, CLOSE_RANGE_UNSHARE, 0, 0]) {
        Ok(_) => Ok(is_clean),
        // All of it is copied, then.
        Err(_) => sys(libc::SYS_unshare, [libc::CLONE_FILES as usize, 0, 0, 0, 0]).map(|_| false),
    }
}

/// Refused, they stay open until the exec, as they do where nobody asks for this.
fn close_strangers(script: &Script) {
    for (first, last) in &script.strangers {
        let _ = sys(libc::SYS_close_range, [*first as usize, *last as usize, 0, 0, 0]);
    }
}

/// Of a child.
fn set_dispositions(script: &Script, manner: Manner) -> Result<(), i32> {
    if !(manner.clone3 && manner.clear_handlers) || script.reset_ignored {
        reset_handlers(script.reset_ignored)?;
    }
    set_program_dispositions(script)?;
    // A stop now would suspend our parent with us, for as long as nobody continues us.
    STOPS.into_iter().try_for_each(swallow)
}

fn set_program_dispositions(script: &Script) -> Result<(), i32> {
    // Rust programs ignore SIGPIPE; the programs they start do not expect that.
    set_action(libc::SIGPIPE, libc::SIG_DFL)?;
    script.ignored.iter().try_for_each(|signal| set_action(*signal, libc::SIG_IGN))
}

/// Of this process, which the exec replaces: it resets the handlers by itself, and until then they are in use.
fn set_dispositions_of_ours(script: &Script) -> Result<(), i32> {
    if script.reset_ignored {
        reset(|handler| handler == libc::SIG_IGN)?;
    }
    set_program_dispositions(script)
}

fn reset_handlers(also_ignored: bool) -> Result<(), i32> {
    reset(|handler| handler != libc::SIG_DFL && (also_ignored || handler != libc::SIG_IGN))
}

fn reset(is_meant: impl Fn(usize) -> bool) -> Result<(), i32> {
    let mut signal = 1;
    while signal < SIGNALS_END {
        let mut old = KernelSigaction { handler: 0, flags: 0, restorer: 0, mask: 0 };
        let known = sys(libc::SYS_rt_sigaction, [signal as usize, 0, ptr::from_mut(&mut old) as usize, 8, 0]).is_ok();
        if known && is_meant(old.handler) {
            set_action(signal, libc::SIG_DFL)?;
        }
        signal = signal.wrapping_add(1);
    }
    Ok(())
}

fn set_action(signal: i32, handler: usize) -> Result<(), i32> {
    let new = KernelSigaction { handler, flags: 0, restorer: 0, mask: 0 };
    sys(libc::SYS_rt_sigaction, [signal as usize, ptr::from_ref(&new) as usize, 0, 8, 0]).map(drop)
}

fn swallow(signal: i32) -> Result<(), i32> {
    let (restorer, flag) = signal_restorer();
    let new = KernelSigaction { handler: note_stop as *const () as usize, flags: flag, restorer, mask: !0 };
    let mut old = KernelSigaction { handler: 0, flags: 0, restorer: 0, mask: 0 };
    let args = [signal as usize, ptr::from_ref(&new) as usize, ptr::from_mut(&mut old) as usize, 8, 0];
    sys(libc::SYS_rt_sigaction, args)?;
    // Ignored by the host, and so by the program: an ignored stop stops nobody.
    if old.handler == libc::SIG_IGN { set_action(signal, libc::SIG_IGN) } else { Ok(()) }
}

extern "C" fn note_stop(signal: i32) {
    // SAFETY: it runs on the child's stack, and the address of an argument is in there; what it points to lives as long as the child
    // runs on it.
    unsafe { &*word_above(&raw const signal).load(Ordering::Relaxed) }.fetch_or(bit(signal), Ordering::AcqRel);
}

fn sweep(sweep: Sweep) -> Result<(), i32> {
    const CLOSE_RANGE_CLOEXEC: usize = 4;
    match sweep {
        Sweep::Nothing => Ok(()),
        Sweep::Range => sys(libc::SYS_close_range, [3, u32::MAX as usize, CLOSE_RANGE_CLOEXEC, 0, 0]).map(drop),
        Sweep::UpTo(last) => {
            let mut fd = 3;
            while fd <= last {
                // EBADF: not open.
                let _ = set_cloexec(fd, true);
                fd = fd.wrapping_add(1);
            }
            Ok(())
        }
    }
}

fn set_cloexec(fd: RawFd, on: bool) -> Result<usize, i32> {
    let flag = if on { libc::FD_CLOEXEC as usize } else { 0 };
    sys(libc::SYS_fcntl, [fd as usize, libc::F_SETFD as usize, flag, 0, 0])
}

/// What is too far up in the parent's table to be copied is fetched from there. pidfd_open(2), pidfd_getfd(2).
fn fetch(script: &Script) -> Result<(), i32> {
    const PIDFD_THREAD: usize = libc::O_EXCL as usize;
    let Some((pid, tid)) = script.parent else {
        return Ok(());
    };
    // In another PID namespace the numbers are somebody else's.
    if sys(libc::SYS_getppid, [0; 5])? != pid as usize {
        return Err(libc::ESRCH);
    }
    // The thread's own table: it may have one. Linux 6.9.
    let parent = sys(libc::SYS_pidfd_open, [tid as usize, PIDFD_THREAD, 0, 0, 0])?;
    for this in script.moves.iter().filter(|this| this.fetch) {
        let fetched = sys(libc::SYS_pidfd_getfd, [parent, this.from as usize, 0, 0, 0])? as RawFd;
        let clear = if is_target(script, fetched) { lift(script, fetched)? } else { fetched };
        this.lifted.store(clear, Ordering::Relaxed);
    }
    Ok(())
}

fn is_target(script: &Script, fd: RawFd) -> bool {
    script.moves.iter().any(|this| this.to == Some(fd))
}

/// Puts the descriptors where the program expects them; never onto one that is still needed. An error comes with the number it is about.
fn install(script: &Script) -> Result<(), (i32, RawFd)> {
    for fd in &script.kept {
        set_cloexec(*fd, false).map_err(|errno| (errno, *fd))?;
    }
    for this in script.moves.iter().filter(|this| this.lift && !this.fetch) {
        let lifted = lift(script, this.from).map_err(|errno| (errno, this.from))?;
        this.lifted.store(lifted, Ordering::Relaxed);
    }
    for this in &script.moves {
        let Some(to) = this.to else { continue };
        let from = this.source();
        let moved = if from == to {
            set_cloexec(from, false)
        } else {
            sys(libc::SYS_dup3, [from as usize, to as usize, 0, 0, 0])
        };
        moved.map_err(|errno| (errno, to))?;
    }
    if script.stderr_is_stdout {
        sys(libc::SYS_dup3, [1, 2, 0, 0, 0]).map_err(|errno| (errno, 1))?;
    }
    Ok(())
}

/// Duplicates it to where nothing goes. A free number that is a target is left as it is: what goes there overwrites it.
fn lift(script: &Script, from: RawFd) -> Result<RawFd, i32> {
    let mut low = 3;
    loop {
        let lifted =
            sys(libc::SYS_fcntl, [from as usize, libc::F_DUPFD_CLOEXEC as usize, low as usize, 0, 0])? as RawFd;
        if !is_target(script, lifted) {
            return Ok(lifted);
        }
        low = lifted.wrapping_add(1);
    }
}

fn perform(act: &Act, script: &Script) -> Result<(), i32> {
    match act {
        Act::NewSession => sys(libc::SYS_setsid, [0; 5]),
        Act::JoinGroup(group) => sys(libc::SYS_setpgid, [0, *group as usize, 0, 0, 0]),
        Act::TakeTerminal(fd) => sys(libc::SYS_ioctl, [*fd as usize, libc::TIOCSCTTY as usize, 0, 0, 0]),
        Act::DropTerminal(fd) => sys(libc::SYS_ioctl, [*fd as usize, libc::TIOCNOTTY as usize, 0, 0, 0]),
        Act::Foreground(fd) => foreground(*fd),
        Act::Unshare(flags) => sys(libc::SYS_unshare, [*flags as usize, 0, 0, 0, 0]),
        Act::JoinNamespace(fd) => join_namespace(moved(script, *fd)),
        Act::WriteFile(_, path, bytes) => write_file(libc::AT_FDCWD, path, bytes),
        Act::EnterCgroup(dir) => write_file(moved(script, *dir), c"cgroup.procs", b"0"),
        Act::Chroot(path) => sys(libc::SYS_chroot, [path.as_ptr() as usize, 0, 0, 0, 0]),
        Act::Chdir(path) => sys(libc::SYS_chdir, [path.as_ptr() as usize, 0, 0, 0, 0]),
        Act::ChdirMove(dir) => sys(libc::SYS_fchdir, [moved(script, *dir) as usize, 0, 0, 0, 0]),
        Act::Umask(mask) => sys(libc::SYS_umask, [*mask as usize, 0, 0, 0, 0]),
        Act::Nice(by) => nice(*by),
        Act::Limit { resource, soft, hard } => limit(*resource, *soft, *hard),
        Act::Affinity(cpus) => {
            sys(libc::SYS_sched_setaffinity, [0, cpus.len().wrapping_mul(8), cpus.as_ptr() as usize, 0, 0])
        }
        Act::IoPriority(value) => sys(libc::SYS_ioprio_set, [1, 0, *value as usize, 0, 0]),
        Act::Scheduler { policy, priority } => {
            sys(libc::SYS_sched_setscheduler, [0, *policy as usize, ptr::from_ref(priority) as usize, 0, 0])
        }
        Act::DropBounding(capability) => prctl(libc::PR_CAPBSET_DROP, *capability as usize),
        Act::Inheritable(capabilities) => set_inheritable(capabilities),
        Act::RaiseAmbient(capabilities) => raise_ambient(capabilities),
        Act::KeepCapabilities => prctl(libc::PR_SET_KEEPCAPS, 1),
        Act::NoNewPrivileges => prctl(libc::PR_SET_NO_NEW_PRIVS, 1),
        Act::ClearGroups(uid) => clear_groups(*uid),
        Act::Groups(groups) => sys(libc::SYS_setgroups, [groups.len(), groups.as_ptr() as usize, 0, 0, 0]),
        Act::Gid(gid) => sys(libc::SYS_setresgid, [*gid as usize, *gid as usize, *gid as usize, 0, 0]),
        Act::Uid(uid) => sys(libc::SYS_setresuid, [*uid as usize, *uid as usize, *uid as usize, 0, 0]),
        Act::ParentDeath(signal, parent) => parent_death(*signal, *parent),
        Act::Trace => sys(libc::SYS_ptrace, [libc::PTRACE_TRACEME as usize, 0, 0, 0, 0]),
        Act::AwaitIdMaps(parent) => await_id_maps(&script.gate, *parent),
    }
    .map(drop)
}

/// The descriptor that this move brings.
fn moved(script: &Script, index: usize) -> RawFd {
    script.moves.get(index).map_or(-1, Move::source)
}

/// Not a privilege to take, but to give up: refused, it fails for whoever would become somebody else.
fn clear_groups(uid: u32) -> Result<usize, i32> {
    let cleared = sys(libc::SYS_setgroups, [0; 5]);
    let (mut real, mut effective, mut saved) = (0u32, 0u32, 0u32);
    let ids =
        [ptr::from_mut(&mut real), ptr::from_mut(&mut effective), ptr::from_mut(&mut saved)].map(|id| id as usize);
    match cleared {
        Err(libc::EPERM) => {
            sys(libc::SYS_getresuid, [ids[0], ids[1], ids[2], 0, 0])?;
            if real == uid && effective == uid && saved == uid { Ok(0) } else { cleared }
        }
        other => other,
    }
}

fn prctl(option: i32, value: usize) -> Result<usize, i32> {
    sys(libc::SYS_prctl, [option as usize, value, 0, 0, 0])
}

fn foreground(terminal: RawFd) -> Result<usize, i32> {
    // A background group that does this is sent SIGTTOU; all signals are blocked here.
    let group = sys(libc::SYS_getpgid, [0; 5])? as i32;
    sys(libc::SYS_ioctl, [terminal as usize, libc::TIOCSPGRP as usize, ptr::from_ref(&group) as usize, 0, 0])
}

fn write_file(dir: RawFd, path: &CStr, bytes: &[u8]) -> Result<usize, i32> {
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as usize;
    let fd = sys(libc::SYS_openat, [dir as usize, path.as_ptr() as usize, flags, 0, 0])?;
    let written = sys(libc::SYS_write, [fd, bytes.as_ptr() as usize, bytes.len(), 0, 0]);
    let _ = sys(libc::SYS_close, [fd, 0, 0, 0, 0]);
    written
}

fn nice(by: i32) -> Result<usize, i32> {
    // The raw call answers 20 - nice.
    let now = 20i32.wrapping_sub(sys(libc::SYS_getpriority, [0; 5])? as i32);
    let wanted = now.saturating_add(by).clamp(-20, 19);
    sys(libc::SYS_setpriority, [0, 0, wanted as usize, 0, 0])
}

fn limit(resource: u32, soft: u64, hard: u64) -> Result<usize, i32> {
    let new = [soft, hard];
    sys(libc::SYS_prlimit64, [0, resource as usize, new.as_ptr() as usize, 0, 0])
}

/// setns(2). A PID namespace would be its children's, not its own.
fn join_namespace(namespace: RawFd) -> Result<usize, i32> {
    const NS_GET_NSTYPE: usize = 0xb703;
    let kind = sys(libc::SYS_ioctl, [namespace as usize, NS_GET_NSTYPE, 0, 0, 0]).map_err(|_| libc::EINVAL)?;
    if kind == libc::CLONE_NEWPID as usize {
        return Err(libc::EINVAL);
    }
    sys(libc::SYS_setns, [namespace as usize, kind, 0, 0, 0])
}

/// (effective, permitted, inheritable) of capget(2), twice 32 bits of each.
type CapabilitySets = [u32; 6];
const CAPABILITY_VERSION_3: [u32; 2] = [0x2008_0522, 0];

/// capget(2), capset(2).
fn change_capabilities(change: impl Fn(&mut CapabilitySets)) -> Result<usize, i32> {
    let mut sets: CapabilitySets = [0; 6];
    let header = CAPABILITY_VERSION_3.as_ptr() as usize;
    sys(libc::SYS_capget, [header, sets.as_mut_ptr() as usize, 0, 0, 0])?;
    change(&mut sets);
    sys(libc::SYS_capset, [header, sets.as_ptr() as usize, 0, 0, 0])
}

/// The words of (permitted, inheritable) that have this capability's bit, and the bit.
fn words_of(sets: &mut CapabilitySets, capability: u32) -> (&mut u32, &mut u32, u32) {
    let [_, low_permitted, low_inheritable, _, high_permitted, high_inheritable] = sets;
    let (permitted, inheritable) =
        if capability < 32 { (low_permitted, low_inheritable) } else { (high_permitted, high_inheritable) };
    (permitted, inheritable, 1u32.wrapping_shl(capability % 32))
}

fn set_inheritable(capabilities: &[u32]) -> Result<usize, i32> {
    change_capabilities(|sets| {
        let [_, _, low, _, _, high] = sets;
        (*low, *high) = (0, 0);
        for capability in capabilities {
            let (_, inheritable, bit) = words_of(sets, *capability);
            *inheritable |= bit;
        }
    })
}

/// Those that are not permitted are refused by the first step. prctl(PR_CAP_AMBIENT).
fn raise_ambient(capabilities: &[u32]) -> Result<usize, i32> {
    change_capabilities(|sets| {
        for capability in capabilities {
            let (permitted, inheritable, bit) = words_of(sets, *capability);
            *permitted |= bit;
            *inheritable |= bit;
        }
    })?;
    for capability in capabilities {
        let raise = libc::PR_CAP_AMBIENT_RAISE as usize;
        sys(libc::SYS_prctl, [libc::PR_CAP_AMBIENT as usize, raise, *capability as usize, 0, 0])?;
    }
    Ok(0)
}

fn parent_death(signal: i32, parent: u32) -> Result<usize, i32> {
    prctl(libc::PR_SET_PDEATHSIG, signal as usize)?;
    // It may have died before we asked.
    if parent != 0 && sys(libc::SYS_getppid, [0; 5])? != parent as usize {
        return Err(libc::ESRCH);
    }
    Ok(0)
}

fn await_id_maps(gate: &Gate, parent: u32) -> Result<usize, i32> {
    // Nobody else would open it.
    parent_death(libc::SIGKILL, parent)?;
    gate.await_open(|word, value| {
        let _ = sys(libc::SYS_futex, [word as usize, libc::FUTEX_WAIT as usize, value as usize, 0, 0]);
    })?;
    prctl(libc::PR_SET_PDEATHSIG, 0)
}

/// Only returns when no path could be executed.
fn execute(order: &Order<'_>) -> Mishap {
    let Order { script, manner, .. } = order;
    if manner.shape == Shape::Thread {
        // As late as can be: the other threads have them, too.
        if let Err(errno) = set_dispositions_of_ours(script) {
            return (AT_SIGNALS, errno, 0);
        }
    }
    let mask = script.mask;
    // The last call before the exec: from here on a signal may kill the child, and its status will tell.
    let _ = sys(libc::SYS_rt_sigprocmask, [libc::SIG_SETMASK as usize, ptr::from_ref(&mask) as usize, 0, 8, 0]);
    // After the mask, which they may change, as in std.
    for (i, hook) in script.hooks.iter().enumerate() {
        // SAFETY: a hook is called in a forked copy, which has one thread, or under the lock of `replace`.
        if let Err(errno) = unsafe { hook.call() } {
            return (AT_HOOK, errno, i as i32);
        }
    }
    let many = script.paths.len() > 1;
    let mut mishap = (AT_EXEC, libc::ENOENT, 0);
    for (i, path) in script.paths.iter().enumerate() {
        if script.searched && path.to_bytes().first() != Some(&b'/') {
            if is_executable(path) {
                return (AT_RELATIVE, libc::EINVAL, i as i32);
            }
            continue;
        }
        let args = [
            path.as_ptr() as usize,
            script.argv.pointers.as_ptr() as usize,
            script.envp.pointers.as_ptr() as usize,
            0,
            0,
        ];
        match sys(libc::SYS_execve, args) {
            // As execvp(3): not there, or on a filesystem that is not.
            Err(libc::ENOENT | libc::ENOTDIR | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT) if many => {}
            Err(libc::EACCES) => mishap = (AT_EXEC, libc::EACCES, i as i32),
            Err(other) => return (AT_EXEC, other, i as i32),
            Ok(_) => {}
        }
    }
    mishap
}

/// access(2), by the real ids, which are the effective ones of whoever has new ones; a directory is none.
fn is_executable(path: &CStr) -> bool {
    let (at, path) = (libc::AT_FDCWD as usize, path.as_ptr() as usize);
    let flags = (libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) as usize;
    if let Ok(dir) = sys(libc::SYS_openat, [at, path, flags, 0, 0]) {
        let _ = sys(libc::SYS_close, [dir, 0, 0, 0, 0]);
        return false;
    }
    sys(libc::SYS_faccessat, [at, path, libc::X_OK as usize, 0, 0]).is_ok()
}
