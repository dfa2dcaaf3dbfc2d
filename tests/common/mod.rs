//! What several test files need: a test that runs again as a process of its own, what a process has open, visible skips. Knows no
//! promise.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pidloop::{Child, ChildStdout, Command, Stdio};

/// Long enough for anything that should happen at once, on a busy machine.
pub const SOON: Duration = Duration::from_secs(20);

/// Runs `body` in a process of its own, which has nothing open and no child but what `body` makes: for tests that count
/// descriptors, steal statuses, or change what belongs to the whole process. `name` is the test's own.
pub fn in_own_process(name: &str, body: impl FnOnce()) {
    const VARIABLE: &str = "PIDLOOP_TEST_ALONE";
    if std::env::var(VARIABLE).as_deref() == Ok(name) {
        return body();
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("1 passed"), "not exactly one test is called {name}");
}

/// Says visibly that a test cannot run here.
pub fn skip(test: &str, why: &str) {
    println!("skipped: {test}: {why}");
    if let Ok(list) = std::env::var("PIDLOOP_SKIPS") {
        let line = format!("{test}: {why}\n");
        std::fs::File::options().append(true).create(true).open(list).unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// How many rounds a race or soak takes: `usual`, or as many times more as `PIDLOOP_SOAK` says.
pub fn rounds(usual: usize) -> usize {
    let factor = std::env::var("PIDLOOP_SOAK").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    usual * factor
}

/// The descriptors this process has open, with what they are.
pub fn open_descriptors() -> Vec<(i32, String)> {
    let mut list: Vec<(i32, String)> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let number = entry.file_name().to_str()?.parse().ok()?;
            // The directory that is being read is no longer there when its link is.
            let target = std::fs::read_link(entry.path()).ok()?;
            (!target.starts_with("/proc")).then(|| (number, target.display().to_string()))
        })
        .collect();
    list.sort();
    list
}

/// How many threads this process has.
pub fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// The state letter of a process, `None` if it is gone.
pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

pub fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Our children, zombies included, by the kernel's own account.
pub fn children_of_ours() -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect()
}

/// Where the tree of cgroups version 2 is mounted.
pub fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4).unwrap().into())
    })
}

/// Awaits what the kernel has no event for.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "not in time: {what}");
        std::thread::yield_now();
    }
}

/// A shell command. A shell cannot trap what is ignored when it starts, and a script's background job ignores SIGINT.
pub fn sh(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).reset_signals();
    command
}

/// A pipe: (read end, write end).
pub fn pipe() -> (File, File) {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    (read.into(), write.into())
}

/// Spawns a shell that prints `ready` when it has come to that point of its script, and awaits that. Its stdout is piped.
pub fn spawn_ready(command: &mut Command) -> (Child, ChildStdout) {
    let child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.take_stdout().unwrap();
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"ready\n") {
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "it ended before it was ready: {seen:?}");
        seen.push(byte[0]);
    }
    (child, stdout)
}

/// That all who could write to it are gone, long before the minute that they would have stayed by themselves. What they had written.
pub fn all_writers_end(stream: &mut impl Read) -> Vec<u8> {
    let (start, mut rest) = (Instant::now(), Vec::new());
    stream.read_to_end(&mut rest).unwrap();
    assert!(start.elapsed() < SOON, "they ended by themselves");
    rest
}

/// Whoever executes this file is suspended in `execve` until the file returned is closed: a write lease, which opening it has to break.
/// fcntl(2). In a process of its own: the kernel sends SIGIO.
pub fn suspend_exec(program: &Path) -> File {
    let file = File::open(program).unwrap();
    // SAFETY: SIG_IGN is no handler; a descriptor of ours and integers.
    let leased = unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
        libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_SETLEASE, libc::F_WRLCK)
    };
    assert_eq!(leased, 0, "{}", std::io::Error::last_os_error());
    file
}

/// Whether the thread of this process with that name sleeps.
pub fn thread_sleeps(name: &str) -> bool {
    std::fs::read_dir("/proc/self/task").unwrap().any(|task| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
        stat.contains(&format!("({name}) S "))
    })
}

/// Runs `f` on a thread with this name, while `meanwhile` runs here.
pub fn beside<T: Send>(name: &str, f: impl FnOnce() -> T + Send, meanwhile: impl FnOnce()) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.into()).spawn_scoped(scope, f).unwrap();
        meanwhile();
        thread.join().unwrap()
    })
}

/// Whether a process is stopped; under a tracer (strace) that is another letter.
pub fn is_stopped(pid: u32) -> bool {
    matches!(state(pid), Some('T' | 't'))
}

/// A directory of a test's own, which anybody may enter, removed at its end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("pidloop-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Scratch(path)
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    pub fn file(&self, name: &str, content: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// A script that prints `says`.
    pub fn script(&self, name: &str, says: &str, mode: u32) -> PathBuf {
        self.file(name, &format!("#!/bin/sh\necho {says}\n"), mode)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
