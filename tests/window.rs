//! The promise that a child with another user's ids does not open this process to that user: while it still shares our memory nobody of
//! that user can trace it, or read that memory through it. Knows the public API, and how to attack it.

mod common;

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use common::{SOON, in_own_process, rounds, skip};
use pidloop::{Command, Stdio};

const NOBODY: u32 = 65534;
/// How many children there are at least, and how many of them the attacker must have met.
const CHILDREN: usize = 1500;
const MET: u64 = 200;

/// What only this process, and what shares its memory, has at this address.
static SECRET: AtomicU64 = AtomicU64::new(0);

/// What the attacker tells, in memory that we share with it.
#[derive(Default)]
struct Told {
    /// It found a process, and was let in or not.
    met: AtomicU64,
    let_in: AtomicU64,
    /// It read our memory.
    exposed: AtomicU64,
}

fn told() -> &'static Told {
    // SAFETY: fresh shared memory, zeroed and never unmapped; it consists of atomics.
    unsafe {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let page = libc::mmap(std::ptr::null_mut(), size_of::<Told>(), protection, flags, -1, 0);
        assert_ne!(page, libc::MAP_FAILED);
        &*page.cast()
    }
}

/// The number that the next process will have, or the last one has, or nearly so. proc(5).
fn last_pid(load: &File) -> i32 {
    let mut text = [0; 100];
    let n = rustix::io::pread(load, &mut text, 0).unwrap();
    let text = std::str::from_utf8(&text[..n]).unwrap();
    text.trim_end().rsplit(' ').next().unwrap().parse().unwrap()
}

/// Through `/proc/PID/mem`.
fn read_file(pid: i32, told: &Told) {
    let mut path = [0; 32];
    write!(&mut path[..], "/proc/{pid}/mem").unwrap();
    // SAFETY: system calls on values of its own.
    unsafe {
        let fd = libc::open(path.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
        if fd < 0 {
            let refused = std::io::Error::last_os_error().raw_os_error() == Some(libc::EACCES);
            told.met.fetch_add(u64::from(refused), Ordering::Relaxed);
            return;
        }
        told.met.fetch_add(1, Ordering::Relaxed);
        told.let_in.fetch_add(1, Ordering::Relaxed);
        let mut word = 0u64;
        let got = libc::pread(fd, (&raw mut word).cast(), 8, SECRET.as_ptr() as libc::off_t);
        note(got, word, told);
        libc::close(fd);
    }
}

/// By `process_vm_readv(2)`.
fn read_directly(pid: i32, told: &Told) {
    let mut word = 0u64;
    // SAFETY: a word of its own, and whatever the other process has there.
    let got = unsafe {
        let ours = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
        let theirs = libc::iovec { iov_base: SECRET.as_ptr().cast(), iov_len: 8 };
        libc::process_vm_readv(pid, &ours, 1, &theirs, 1, 0)
    };
    note(got, word, told);
}

/// By `ptrace(2)`, and then as one who may.
fn trace(pid: i32, told: &Told) {
    // SAFETY: system calls; a tracee that was seized is let go again.
    unsafe {
        if libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) != 0 {
            return;
        }
        read_directly(pid, told);
        libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0);
        if libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) == pid {
            libc::ptrace(libc::PTRACE_DETACH, pid, 0, 0);
        }
    }
}

fn note(got: isize, word: u64, told: &Told) {
    let exposed = got == 8 && word == SECRET.load(Ordering::Relaxed);
    told.exposed.fetch_add(u64::from(exposed), Ordering::Relaxed);
}

/// A process of that user that never stops trying.
fn attacker(told: &Told) -> i32 {
    // SAFETY: fork(2) in a process of the test's own; the copy allocates nothing before it is that user's.
    let pid = unsafe { libc::fork() };
    if pid != 0 {
        return pid;
    }
    // SAFETY: system calls; it dies with us.
    unsafe {
        libc::setgroups(0, std::ptr::null());
        libc::setresgid(NOBODY, NOBODY, NOBODY);
        libc::setresuid(NOBODY, NOBODY, NOBODY);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    let load = File::open("/proc/loadavg").unwrap();
    let mut turn = 0;
    loop {
        let last = last_pid(&load);
        for _ in 0..8 {
            for pid in [last + 1, last, last + 2] {
                read_file(pid, told);
                read_directly(pid, told);
            }
        }
        turn += 1;
        if turn % 16 == 0 {
            trace(last + 1, told);
        }
    }
}

/// Two threads, without a pause: what one of them does must not open the window of the other.
#[test]
fn a_tracer_of_the_new_user_never_sees_our_memory() {
    const NAME: &str = "a_tracer_of_the_new_user_never_sees_our_memory";
    in_own_process(NAME, || {
        if !rustix::process::geteuid().is_root() {
            return skip(NAME, "not root");
        }
        // SAFETY: a question.
        let dumpable = || unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
        assert_eq!(dumpable(), 1, "it must be given back, or there is nothing to be seen");
        SECRET.store(0x5ec2_e700_0000_0001 ^ u64::from(std::process::id()) << 8, Ordering::SeqCst);
        let told = told();
        let attacker = attacker(told);
        let (spawned, start, over) = (AtomicU64::new(0), Instant::now(), AtomicBool::new(false));
        let spawn = |program: &str, session: bool| {
            let mut command = Command::new(program);
            command.uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
            if session {
                command.setsid();
            }
            while !over.load(Ordering::Relaxed) {
                assert_eq!(command.status().is_ok(), program == "/bin/true");
                let n = spawned.fetch_add(1, Ordering::Relaxed) + 1;
                let enough = n as usize >= rounds(CHILDREN) && told.met.load(Ordering::Relaxed) >= MET;
                if enough || start.elapsed() > SOON.max(SOON * rounds(1) as u32) {
                    over.store(true, Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| spawn("/bin/true", false));
            scope.spawn(|| spawn("/bin/true", true));
            scope.spawn(|| spawn("/no/such/program", false));
        });
        // SAFETY: our own child.
        unsafe {
            libc::kill(attacker, libc::SIGKILL);
            libc::waitpid(attacker, std::ptr::null_mut(), 0);
        }
        let [met, let_in, exposed] = [&told.met, &told.let_in, &told.exposed].map(|n| n.load(Ordering::Relaxed));
        println!("{} children, {met} looked into, let in {let_in} times, exposed {exposed}", spawned.into_inner());
        assert_eq!(exposed, 0);
        assert!(met >= MET, "the attacker met {met}");
        assert_eq!(dumpable(), 1);
    });
}
