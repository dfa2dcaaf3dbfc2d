//! Promises 5, 10, 11 of output that is captured and passed on, or that the child itself keeps: whole, limited, marked, on a full disk, behind a
//! writer that fails or never returns.

mod common;

use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::{SOON, Scratch, in_own_process, rounds, sh, skip};
use pidloop::{
    Cause, Command, Context, Driver, ErrorKind, Limit, Output, QueueOptions, Reactor, Result, Spool, Stdio, Stream,
};

const MIB: usize = 1 << 20;

/// `seq` up to here: 588,895 bytes.
const MANY: &str = "100000";

fn numbers() -> Vec<u8> {
    (1..=100_000).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

/// What was written to it, for somebody who holds a clone.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Blocks at its first write until the sender is dropped, and then goes on as [`Shared`].
struct Blocked(mpsc::Receiver<()>, Shared);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_is_captured_is_passed_on_too() {
    let scratch = Scratch::new("tee");
    let path = scratch.0.join("stdout");
    let stderr = Shared::default();
    let output = sh(&format!("seq {MANY}; seq {MANY} >&2"))
        .stdout(Stdio::tee(File::create(&path).unwrap()))
        .stderr(Stdio::tee_limited(Limit::head_tail(2, 7), stderr.clone()))
        .output()
        .unwrap();
    assert!(output.stdout == numbers() && fs::read(&path).unwrap() == numbers());
    assert!(*stderr.0.lock().unwrap() == numbers());
    assert_eq!((output.stderr, output.stderr_omitted_bytes), (b"1\n100000\n".to_vec(), numbers().len() as u64 - 9));
}

#[test]
fn a_caller_turned_loop_passes_on_as_well() {
    let (mut reactor, copy) = (Reactor::new().unwrap(), Shared::default());
    reactor.spawn(Command::new("seq").arg(MANY).stdout(Stdio::tee(copy.clone()))).unwrap();
    let ended = loop {
        reactor.turn(Some(SOON)).unwrap();
        if let Some(ended) = reactor.next_exit() {
            break ended;
        }
    };
    ended.exit().check().unwrap();
    assert!(ended.into_output().stdout == numbers() && *copy.0.lock().unwrap() == numbers());
}

#[test]
fn a_copy_that_fails_costs_neither_the_capture_nor_the_child_and_is_named() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = sh(&format!("seq {MANY}; exit 0")).stdout(Stdio::tee(full)).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(error.to_string().contains("the writer for its stdout"), "{error}");
    assert!(error.command().unwrap().contains("seq"));
    assert!(error.exit().unwrap().success());
    assert!(error.output().unwrap().stdout == numbers());

    struct Panics;
    impl Write for Panics {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            panic!("a panic of the test's own")
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let error = Command::new("seq").arg(MANY).stdout(Stdio::tee(Panics)).output().unwrap_err();
    assert!(error.output().unwrap().stdout == numbers() && error.to_string().contains("panicked"), "{error}");
}

#[test]
fn a_copy_that_blocks_holds_up_its_child_alone_and_loses_nothing() {
    let driver = Driver::new().unwrap();
    let (let_go, gate) = mpsc::channel();
    let (ctx, copy) = (Context::new(), Shared::default());
    let mut command = Command::new("seq");
    command.arg("10000000").context(&ctx).stdout(Stdio::tee(Blocked(gate, copy.clone())));
    let child = driver.spawn(&command).unwrap();
    for _ in 0..10 {
        let other = driver.spawn(sh("head -c 200000 /dev/zero").stdout(Stdio::captured())).unwrap();
        assert_eq!(other.wait_with_output().unwrap().stdout.len(), 200_000);
    }
    assert!(child.try_wait().unwrap().is_none(), "it was not held up");
    ctx.cancel();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.exit().cause(), Some(&Cause::Cancelled));
    assert!(output.exit().held_open().stdout);
    let text: Vec<u8> = (1..).flat_map(|n| format!("{n}\n").into_bytes()).take(output.stdout.len()).collect();
    assert!(output.stdout == text && text.len() < 4 * MIB, "{}", text.len());
    // It takes the rest in its own time.
    drop(let_go);
    common::eventually("the copy is whole", || copy.0.lock().unwrap().len() == text.len());
    assert!(*copy.0.lock().unwrap() == text);
}

#[test]
fn a_tee_serves_one_spawn_and_a_failed_one_leaves_it() {
    let copy = Shared::default();
    let mut command = Command::new("/does/not/exist");
    command.stdout(Stdio::tee(copy.clone()));
    command.spawn().unwrap_err();
    let mut other = Command::new("echo");
    other.arg("x").stdout(Stdio::tee(copy.clone()));
    assert_eq!(other.output().unwrap().stdout, b"x\n");
    assert_eq!(other.spawn().unwrap_err().kind(), ErrorKind::StreamUsed);
    assert_eq!(*copy.0.lock().unwrap(), b"x\n");
    let error = Command::new("true").stdin(Stdio::tee(io::sink())).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn chunks_of_both_streams_are_kept_and_marked() {
    let (stdout, stderr, chunks) = QueueOptions::chunks().unbounded().both();
    sh(&format!("seq {MANY}; seq {MANY} >&2")).stdout(stdout).stderr(stderr).run().unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for (stream, chunk) in chunks {
        if stream == Stream::Stdout { out.extend(chunk) } else { err.extend(chunk) }
    }
    assert!(out == numbers() && err == numbers());
}

/// FNV-1a, of what may be too much to keep twice.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// A way to take a stream: what it is set to, and what there is when the child is done.
type Way = fn(&str) -> (Stdio, Box<dyn FnOnce(Vec<u8>) -> Vec<u8> + Send>);

/// Each of them whole and in order, on both streams at once: the megabytes of `seq`, with the hash of what it writes into a file.
#[test]
fn c96_every_way_takes_all_of_both_streams_at_once() {
    let ways: [(&str, Way); 8] = [
        ("captured", |_| (Stdio::captured(), Box::new(|captured| captured))),
        ("piped", |_| (Stdio::piped(), Box::new(|captured| captured))),
        ("spooled", |_| (Stdio::spooled(), Box::new(|read_from_it| read_from_it))),
        ("head and tail", |_| (Stdio::captured_limited(Limit::head_tail(usize::MAX / 4, 1)), Box::new(|all| all))),
        ("tee", |_| {
            let copy = Shared::default();
            let then = copy.clone();
            (Stdio::tee(copy), Box::new(move |all| if *then.0.lock().unwrap() == all { all } else { Vec::new() }))
        }),
        ("writer", |_| {
            let copy = Shared::default();
            let then = copy.clone();
            (Stdio::writer(copy), Box::new(move |_| std::mem::take(&mut then.0.lock().unwrap())))
        }),
        ("lines", |_| {
            let (stdout, lines) = QueueOptions::lines().bytes_max(100_000).one();
            let consumer = std::thread::spawn(|| lines.flatten().collect::<Vec<u8>>());
            (stdout, Box::new(move |_| consumer.join().unwrap()))
        }),
        ("chunks", |_| {
            let (stdout, chunks) = Stdio::chunks(100_000);
            let consumer = std::thread::spawn(|| chunks.flatten().collect::<Vec<u8>>());
            (stdout, Box::new(move |_| consumer.join().unwrap()))
        }),
    ];
    let bytes = (rounds(4) * MIB).min(100 * MIB);
    let script = format!(
        "seq 1 99999999 2>/dev/null | head -c {bytes} >&2 & seq 1 99999999 2>/dev/null | head -c {bytes}; wait"
    );
    let expected: Vec<u8> = (1..).flat_map(|n| format!("{n}\n").into_bytes()).take(bytes).collect();
    let expected = (bytes, hash(&expected));
    for (name, way) in ways {
        let ((stdout, out), (stderr, err)) = (way(name), way(name));
        let output: Result<Output> = sh(&script).stdout(stdout).stderr(stderr).output();
        let output = output.unwrap_or_else(|error| panic!("{name}: {error}"));
        let whole = |bytes: Vec<u8>, spool: Option<Spool>| spool.map_or(bytes, |spool| spool.read().unwrap());
        let stdout = out(whole(output.stdout, output.stdout_spool));
        let stderr = err(whole(output.stderr, output.stderr_spool));
        for (stream, bytes) in [("stdout", stdout), ("stderr", stderr)] {
            assert_eq!((bytes.len(), hash(&bytes)), expected, "{name}, {stream}");
        }
    }
}

/// Peak memory of this process, which counts.
fn peak_bytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

#[test]
fn h176_an_endless_child_takes_its_limit_and_a_mebibyte_at_most() {
    in_own_process("h176_an_endless_child_takes_its_limit_and_a_mebibyte_at_most", || {
        Command::new("true").stdout(Stdio::captured()).output().unwrap();
        let limit = 8 * MIB;
        for way in [Limit::stop_at(limit), Limit::head_tail(limit / 2, limit / 2)] {
            // Resets the peak. proc_pid_clear_refs(5).
            fs::write("/proc/self/clear_refs", "5").unwrap();
            let before = peak_bytes();
            let stdout = Stdio::captured_limited(way);
            let timeout = Duration::from_millis(500);
            let error = Command::new("yes").stdout(stdout).timeout(timeout).output().unwrap_err();
            assert_eq!(error.output().unwrap().stdout.len(), limit, "{way:?}");
            let taken = peak_bytes() - before;
            assert!(taken <= limit + MIB, "{way:?}: {taken}");
            drop(error);
        }
    });
}

#[test]
fn a_full_disk_is_named_and_nothing_hangs() {
    const NAME: &str = "a_full_disk_is_named_and_nothing_hangs";
    in_own_process(NAME, || {
        // SAFETY: constants; this process has one thread but the harness's, and the mount is seen by it alone.
        let mounted = unsafe {
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) == 0
                && libc::mount(c"none".as_ptr(), c"/mnt".as_ptr(), c"tmpfs".as_ptr(), 0, c"size=64k".as_ptr().cast())
                    == 0
        };
        if !mounted {
            return skip(NAME, "no mount of one's own");
        }
        // The child's own write fails: it says so, and so does its status.
        let file = File::create("/mnt/own").unwrap();
        let error = Command::new("seq").arg(MANY).stdout(file).stderr(Stdio::captured()).run().unwrap_err();
        assert!(error.kind() == ErrorKind::Unsuccessful && error.to_string().contains("No space left"), "{error}");
        fs::remove_file("/mnt/own").unwrap();
        // The copy fails: the capture goes on.
        let file = File::create("/mnt/copy").unwrap();
        let error = Command::new("seq").arg(MANY).stdout(Stdio::tee(file)).output().unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Io, Some(libc::ENOSPC)));
        assert!(error.output().unwrap().stdout == numbers());
        fs::remove_file("/mnt/copy").unwrap();
        // The writer fails: the pipe is closed, and the child is told.
        let file = File::create("/mnt/copy").unwrap();
        let error = sh("trap '' PIPE; seq 100000 2>/dev/null; exit 0").stdout(Stdio::writer(file)).run().unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Io, Some(libc::ENOSPC)));
        assert!(error.to_string().contains("the writer for its stdout"), "{error}");
    });
}

/// A user of his own, whose share of pipe memory is used up: pipes are made of two pages then, and cannot be enlarged. pipe(7).
#[test]
fn a_used_up_share_of_pipe_memory_costs_time_and_nothing_else() {
    const NAME: &str = "a_used_up_share_of_pipe_memory_costs_time_and_nothing_else";
    in_own_process(NAME, || {
        // SAFETY: integers.
        if unsafe { libc::setresuid(54_321, 54_321, 54_321) } != 0 {
            return skip(NAME, "not root");
        }
        let size = |pipe: &(File, File)| rustix::pipe::fcntl_getpipe_size(&pipe.0).unwrap();
        let mut pipes = vec![common::pipe()];
        while size(&pipes[pipes.len() - 1]) >= 64 << 10 {
            pipes.push(common::pipe());
            if pipes.len() > 5000 {
                return skip(NAME, "no limit of pipe memory");
            }
        }
        let script = format!("seq {MANY}; seq {MANY} >&2");
        let output = sh(&script).stdin(Stdio::bytes(vec![7; 100_000])).output().unwrap();
        assert!(output.stdout == numbers() && output.stderr == numbers());
        let copy = Shared::default();
        let output = sh("cat").stdin(Stdio::bytes(numbers())).stdout(Stdio::tee(copy.clone())).output().unwrap();
        assert!(output.stdout == numbers() && *copy.0.lock().unwrap() == numbers());
        let (stdout, stderr, lines) = QueueOptions::lines().items_max(10).both();
        let child = sh(&script).stdout(stdout).stderr(stderr).spawn().unwrap();
        assert_eq!(lines.count(), 200_000);
        child.wait().unwrap().check().unwrap();
    });
}

/// The whole process's descriptors have flags that only a look at them shows.
#[test]
fn descriptors_block_in_the_child_and_those_of_the_caller_keep_their_flags() {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    use std::os::fd::AsFd;
    let says = "for fd in 0 1 2; do grep -m1 flags /proc/self/fdinfo/$fd || :; done >&3";
    let (mut said, theirs) = common::pipe();
    let (queued, lines) = Stdio::lines(1);
    let mut command = sh(says);
    command.stdin(Stdio::bytes(vec![0; 100_000])).stdout(queued).stderr(Stdio::tee(io::sink())).fd(3, theirs);
    command.spawn().unwrap().wait_with_output().unwrap();
    drop((command, lines));
    let mut flags = String::new();
    io::Read::read_to_string(&mut said, &mut flags).unwrap();
    assert_eq!(flags.lines().count(), 3, "{flags}");
    for line in flags.lines() {
        let flags = u32::from_str_radix(line.split_whitespace().nth(1).unwrap(), 8).unwrap();
        assert_eq!(flags & libc::O_NONBLOCK as u32, 0, "{line}");
    }
    // Ours that do not block go on not blocking, and ours that block go on blocking.
    let ((read, write), (held, _)) = (common::pipe(), common::pipe());
    fcntl_setfl(&write, OFlags::NONBLOCK).unwrap();
    let mut command = sh("echo x >&2");
    command.stdin(held.try_clone().unwrap()).stdout(write.try_clone().unwrap()).stderr(write.try_clone().unwrap());
    command.run().unwrap();
    assert!(fcntl_getfl(write.as_fd()).unwrap().contains(OFlags::NONBLOCK));
    assert!(!fcntl_getfl(held.as_fd()).unwrap().contains(OFlags::NONBLOCK));
    assert!(!fcntl_getfl(read.as_fd()).unwrap().contains(OFlags::NONBLOCK));
}

/// F_SETPIPE_SZ, where what is read goes into fresh memory; looked at through the child's own end.
#[test]
fn a_pipe_that_is_found_full_again_and_again_is_enlarged() {
    for (stdout, expected) in
        [(Stdio::captured(), 256 << 10), (Stdio::captured_limited(Limit::head_tail(9, 9)), 64 << 10)]
    {
        let mut reactor = Reactor::new().unwrap();
        let id = reactor.spawn(Command::new("yes").stdout(stdout).kill_on_drop(true)).unwrap();
        let pid = reactor.pid(id).unwrap();
        let theirs = File::open(format!("/proc/{pid}/fd/1")).unwrap();
        let size = || rustix::pipe::fcntl_getpipe_size(&theirs).unwrap();
        for _ in 0..10 {
            common::eventually("its pipe is full", || {
                rustix::io::ioctl_fionread(&theirs).unwrap() as usize + 4096 > size()
            });
            reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        assert_eq!(size(), expected);
    }
}

/// Promise 5: what it left is read by the loop, when its exit is known, and not by who waits for that.
#[test]
fn who_waits_for_the_death_of_a_flood_does_not_read_what_it_left() {
    let read_bytes = || {
        let io = std::fs::read_to_string("/proc/thread-self/io").unwrap_or_default();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")?.parse::<usize>().ok())
    };
    if read_bytes().is_none() {
        return skip("who_waits_for_the_death_of_a_flood_does_not_read_what_it_left", "no I/O accounting");
    }
    let ctx = Context::new();
    let mut options = QueueOptions::chunks();
    let (stdout, queue) = options.bytes_max(1).one();
    let child = Command::new("yes").stdout(stdout).context(&ctx).kill_on_drop(true).spawn().unwrap();
    let theirs = File::open(format!("/proc/{}/fd/1", child.id())).unwrap();
    common::eventually("its pipe is full", || rustix::io::ioctl_fionread(&theirs).unwrap() as usize + 4096 > 64 << 10);
    std::thread::scope(|scope| {
        let (begun, thread) = mpsc::channel();
        let child = &child;
        let waiter = scope.spawn(move || {
            begun.send(rustix::thread::gettid()).unwrap();
            let before = read_bytes().unwrap();
            child.wait().unwrap();
            read_bytes().unwrap() - before
        });
        let stat = format!("/proc/self/task/{}/stat", thread.recv().unwrap());
        common::eventually("it waits", || fs::read_to_string(&stat).unwrap().contains(") S "));
        ctx.cancel();
        let by_waiter = waiter.join().unwrap();
        assert!(by_waiter < 32 << 10, "{by_waiter} bytes");
    });
    drop(theirs);
    assert!(queue.map(|piece| piece.len()).sum::<usize>() >= 60 << 10);
}
