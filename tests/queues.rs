//! Promises 5, 10, 11, 13, of output as it comes: queues of lines and chunks, their bounds, and what becomes of a child whose consumer is slow,
//! gone, or never there.

mod common;

use std::fs;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::time::Duration;

use common::{SOON, Scratch, eventually, in_own_process, open_descriptors, rounds, sh, state, threads};
use pidloop::{
    Cause, Child, Command, Context, Driver, Ended, ErrorKind, LongLine, Queue, QueueEnd, QueueOptions, Reactor, Signal,
    Stdio, Stream, WhenDropped,
};

const MIB: usize = 1 << 20;

/// Every line once, numbered from 1, and then the end.
fn assert_counts(lines: Queue, up_to: usize) {
    let mut expected = 0;
    let mut lines = lines;
    for line in &mut lines {
        expected += 1;
        assert_eq!(line, format!("{expected}\n").into_bytes());
    }
    assert_eq!((expected, lines.end()), (up_to, Some(QueueEnd::Complete)));
    assert_eq!(lines.next(), None);
}

#[test]
fn every_line_arrives_whatever_the_bounds_are() {
    for (items, bytes) in [(1, MIB), (3, 100), (100, 1), (100_000, 8 * MIB)] {
        let (stdout, lines) = QueueOptions::lines().items_max(items).bytes_max(bytes).one();
        let child = Command::new("seq").arg("3000").stdout(stdout).spawn().unwrap();
        assert_counts(lines, 3000);
        child.wait_with_output().unwrap().exit().check().unwrap();
    }
}

#[test]
fn chunks_are_the_bytes_that_were_written() {
    let (stdout, chunks) = Stdio::chunks(100_000);
    let child = Command::new("seq").arg("200000").stdout(stdout).spawn().unwrap();
    let bytes: Vec<u8> = chunks.inspect(|chunk| assert!((1..=64 << 10).contains(&chunk.len()))).flatten().collect();
    assert!(bytes == (1..=200_000).flat_map(|n| format!("{n}\n").into_bytes()).collect::<Vec<_>>());
    child.wait().unwrap().check().unwrap();
}

#[test]
fn bytes_that_are_no_text_stay_bytes() {
    let (stdout, lines) = Stdio::lines(10);
    let child = sh(r"printf 'a\377\000\nb\200'").stdout(stdout).spawn().unwrap();
    assert_eq!(lines.collect::<Vec<_>>(), [&b"a\xff\x00\n"[..], b"b\x80"]);
    child.wait().unwrap().check().unwrap();
}

#[test]
fn lines_of_both_streams_are_marked_and_in_their_own_order() {
    let (stdout, stderr, lines) = QueueOptions::lines().items_max(7).both();
    let child = sh("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo $i; echo $i >&2; done; printf end")
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    for (stream, line) in lines {
        if stream == Stream::Stdout { out.extend(line) } else { err.extend(line) }
    }
    let mut expected: Vec<u8> = (1..=2000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    assert!(err == expected);
    expected.extend(b"end");
    assert!(out == expected);
    child.wait().unwrap().check().unwrap();
}

/// Awaits that it sleeps in write(2), because nobody reads.
fn is_held_up(child: &Child) {
    let call = format!("/proc/{}/syscall", child.id());
    let writes = || fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&format!("{} 0x1 ", libc::SYS_write)));
    eventually("it is held up", || writes() && state(child.id()) == Some('S'));
}

#[test]
fn a_slow_consumer_holds_up_its_child_and_nobody_else_and_loses_nothing() {
    let driver = Driver::new().unwrap();
    let (stdout, mut lines) = QueueOptions::lines().bytes_max(10_000).one();
    let child = driver.spawn(Command::new("seq").arg("100000").stdout(stdout)).unwrap();
    assert_eq!(lines.next().as_deref(), Some(&b"1\n"[..]));
    is_held_up(&child);
    // Others come, write, and go meanwhile, watched by the same loop.
    for _ in 0..20 {
        let other = driver.spawn(sh("head -c 200000 /dev/zero").stdout(Stdio::captured())).unwrap();
        assert_eq!(other.wait_with_output().unwrap().stdout.len(), 200_000);
    }
    assert_eq!(child.try_wait().unwrap().map(|exit| exit.code()), None);
    let rest: Vec<u8> = lines.by_ref().flatten().collect();
    assert!(rest == (2..=100_000).flat_map(|n| format!("{n}\n").into_bytes()).collect::<Vec<_>>());
    assert_eq!(lines.end(), Some(QueueEnd::Complete));
    child.wait().unwrap().check().unwrap();
}

#[test]
fn a_child_that_is_held_up_can_be_stopped_and_what_it_wrote_is_there() {
    let ctx = Context::new();
    let (stdout, lines) = QueueOptions::lines().bytes_max(10_000).one();
    let child = Command::new("seq").arg("1000000").stdout(stdout).context(&ctx).spawn().unwrap();
    is_held_up(&child);
    ctx.cancel();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.exit().cause(), Some(&Cause::Cancelled));
    // At least a full pipe: all of it numbers without a gap, but for the last one, which it was writing.
    let bytes: Vec<u8> = lines.flatten().collect();
    assert!(bytes.len() >= 64 << 10, "{}", bytes.len());
    let expected: Vec<u8> = (1..=1_000_000).flat_map(|n| format!("{n}\n").into_bytes()).take(bytes.len()).collect();
    assert!(bytes == expected);
}

#[test]
fn a_consumer_that_never_reads_bounds_memory_and_holds_up_no_wait_for_a_dead_child() {
    // What it left in its pipe is taken whatever the bound: `status` ends.
    let (stdout, lines) = QueueOptions::lines().bytes_max(1000).items_max(1).one();
    let mut command = Command::new("seq");
    let status = command.arg("10000").stdout(stdout).status().unwrap();
    assert!(status.success());
    assert_counts(lines, 10_000);

    // One that writes without end waits, and so does who waits for it: until somebody ends that.
    let (stdout, mut lines) = QueueOptions::lines().bytes_max(1000).one();
    let mut command = Command::new("yes");
    let error = command.stdout(stdout).timeout(Duration::from_millis(100)).status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let bytes: usize = lines.by_ref().map(|line| line.len()).sum();
    assert!((1000..1000 + (64 << 10) + 4096).contains(&bytes), "{bytes}");
}

#[test]
fn a_consumer_that_is_dropped_closes_the_pipe_or_drains_it() {
    let (stdout, lines) = QueueOptions::lines().bytes_max(1000).one();
    let child = Command::new("yes").stdout(stdout).spawn().unwrap();
    is_held_up(&child);
    drop(lines);
    let exit = child.wait().unwrap();
    assert_eq!(exit.signal(), Some(Signal::SIGPIPE));

    // Told of a child that does not mind.
    let (stdout, chunks) = Stdio::chunks(1);
    drop(chunks);
    let error = sh("trap '' PIPE; echo x; exit 0").stdout(stdout).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("the queue of its stdout: nobody receives the chunks"), "{error}");
    assert!(error.command().unwrap().contains("trap"), "{error}");

    // Who had nothing to say is not blamed, nor is anybody who holds its stdout waited for.
    let (stdout, lines) = Stdio::lines(1);
    drop(lines);
    sh("sleep 60 2>&- & echo $! >&2").stdout(stdout).stderr(Stdio::captured()).output().map_or_else(
        |error| panic!("{error}"),
        |output| {
            let holder = String::from_utf8(output.stderr.clone()).unwrap();
            Command::new("kill").arg(holder.trim()).run().unwrap();
        },
    );

    for before in [true, false] {
        let drained = QueueOptions::lines().bytes_max(1000).when_dropped(WhenDropped::Drain).clone();
        let (stdout, mut lines) = drained.one();
        let mut command = sh("seq 100000; echo done >&2");
        command.stdout(stdout).stderr(Stdio::captured());
        if before {
            drop(lines);
            assert_eq!(command.output().unwrap().stderr, b"done\n");
        } else {
            let child = command.spawn().unwrap();
            assert_eq!(lines.next().as_deref(), Some(&b"1\n"[..]));
            drop(lines);
            let output = child.wait_with_output().unwrap();
            output.exit().check().unwrap();
            assert_eq!(output.stderr, b"done\n");
        }
    }
}

#[test]
fn a_line_that_is_too_long_is_split_cut_or_an_error() {
    let long = rounds(4) * MIB;
    let script = format!(
        "trap '' PIPE; exec 2>/dev/null; echo first; head -c {long} /dev/zero | tr '\\0' x; echo; echo last; exit 0"
    );
    let run = |what| {
        let (stdout, lines) = QueueOptions::lines().bytes_max(200_000).line_max(100_000, what).one();
        (sh(&script).stdout(stdout).spawn().unwrap(), lines)
    };
    let (child, lines) = run(LongLine::Split);
    let sizes: Vec<usize> = lines.map(|line| line.len()).collect();
    assert_eq!((sizes[0], *sizes.last().unwrap()), (6, 5));
    assert!(sizes[1..sizes.len() - 2].iter().all(|size| *size == 100_000));
    assert_eq!(sizes.iter().sum::<usize>(), 6 + long + 1 + 5);
    child.wait().unwrap().check().unwrap();

    let (child, lines) = run(LongLine::Truncate);
    let lines: Vec<Vec<u8>> = lines.collect();
    assert_eq!((&lines[0][..], &lines[2..]), (&b"first\n"[..], &[b"last\n".to_vec()][..]));
    assert!(lines[1] == [b'x'; 100_000]);
    child.wait().unwrap().check().unwrap();

    let (child, mut lines) = run(LongLine::Fail);
    assert_eq!(lines.next().as_deref(), Some(&b"first\n"[..]));
    assert!(lines.next().is_none() && lines.end() == Some(QueueEnd::LineTooLong));
    let error = child.wait_with_output().unwrap().exit().check().unwrap_err();
    assert!(error.to_string().contains("the queue of its stdout: a line of more than 100000 bytes"), "{error}");

    // Exactly as long as it may be.
    let (stdout, mut lines) = QueueOptions::lines().line_max(4, LongLine::Fail).one();
    sh("echo abc; echo def; printf ghij").stdout(stdout).run().unwrap();
    assert_eq!(lines.by_ref().collect::<Vec<_>>(), [&b"abc\n"[..], b"def\n", b"ghij"]);
    assert_eq!(lines.end(), Some(QueueEnd::Complete));
}

#[test]
fn a_cut_ends_the_queue_and_says_so() {
    let (stdout, mut lines) = Stdio::lines(100);
    let mut command = sh("echo said; (while echo later; do sleep 0.01; done) & exit 0");
    let child = command.stdout(stdout).group().wait_delay(Duration::from_millis(50)).spawn().unwrap();
    let all: Vec<Vec<u8>> = lines.by_ref().collect();
    assert_eq!(all[0], b"said\n");
    assert_eq!(lines.end(), Some(QueueEnd::HeldOpen));
    let output = child.wait_with_output().unwrap();
    assert!(output.exit().held_open().stdout);
}

#[test]
fn a_queue_of_a_command_that_is_never_started_ends() {
    let (stdout, mut lines) = Stdio::lines(1);
    let mut command = Command::new("/does/not/exist");
    command.stdout(stdout);
    command.spawn().unwrap_err();
    // A failed spawn leaves it for the next one.
    assert_eq!((lines.try_next(), lines.end()), (None, None));
    command.spawn().unwrap_err();
    assert_eq!(command.get_program(), "/does/not/exist");
    drop(command);
    assert_eq!((lines.next(), lines.end()), (None, Some(QueueEnd::Abandoned)));

    let (stdout, _lines) = Stdio::lines(1);
    let mut command = Command::new("true");
    command.stdout(stdout).run().unwrap();
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::StreamUsed);
    let (stdin, _lines) = Stdio::lines(1);
    assert_eq!(Command::new("true").stdin(stdin).spawn().unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_limited_wait_for_the_next_line_is_over_in_time() {
    let (stdout, mut lines) = Stdio::lines(1);
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(stdout).spawn().unwrap();
    assert_eq!(lines.next_timeout(Duration::from_millis(20)), None);
    assert_eq!(lines.end(), None);
    std::io::Write::write_all(&mut child.take_stdin().unwrap(), b"x\n").unwrap();
    assert_eq!(lines.next_timeout(SOON).as_deref(), Some(&b"x\n"[..]));
    assert_eq!((lines.next_timeout(SOON), lines.end()), (None, Some(QueueEnd::Complete)));
    child.wait().unwrap().check().unwrap();
}

/// Turns until the child is reported; what its queue has is taken between the turns.
fn turn_to_the_end(reactor: &mut Reactor, lines: &mut Queue, taken: &mut Vec<u8>) -> Ended {
    loop {
        taken.extend(std::iter::from_fn(|| lines.try_next()).flatten());
        if let Some(ended) = reactor.next_exit() {
            return ended;
        }
        reactor.turn(Some(SOON)).unwrap();
    }
}

#[test]
fn a_caller_turned_loop_consumes_between_its_turns() {
    for bytes_max in [1, 5000, MIB] {
        let mut reactor = Reactor::new().unwrap();
        let (stdout, mut lines) = QueueOptions::lines().bytes_max(bytes_max).one();
        reactor.spawn(Command::new("seq").arg("3000").stdout(stdout)).unwrap();
        let mut taken = Vec::new();
        let ended = turn_to_the_end(&mut reactor, &mut lines, &mut taken);
        ended.exit().check().unwrap();
        taken.extend(lines.flatten());
        assert!(taken == (1..=3000).flat_map(|n| format!("{n}\n").into_bytes()).collect::<Vec<_>>());
    }
}

#[test]
fn an_outer_loop_hears_that_a_consumer_has_made_room() {
    let mut reactor = Reactor::new().unwrap();
    let (stdout, mut lines) = QueueOptions::lines().bytes_max(1000).one();
    reactor.spawn(Command::new("yes").stdout(stdout)).unwrap();
    // Until it is full, and nothing is left to be done.
    loop {
        let mut fds = [rustix::event::PollFd::new(&reactor, rustix::event::PollFlags::IN)];
        let quiet = rustix::event::Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
        if rustix::event::poll(&mut fds, Some(&quiet)).unwrap() == 0 {
            break;
        }
        reactor.turn(Some(Duration::ZERO)).unwrap();
    }
    let taken = std::iter::from_fn(|| lines.try_next()).count();
    assert!(taken >= 500, "{taken}");
    let mut fds = [rustix::event::PollFd::new(&reactor, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 })).unwrap(), 1);
    drop(lines);
    let ended = loop {
        reactor.turn(Some(SOON)).unwrap();
        if let Some(ended) = reactor.next_exit() {
            break ended;
        }
    };
    assert_eq!(ended.exit().signal(), Some(Signal::SIGPIPE));
}

/// Counts how often it is woken.
struct Counted(AtomicUsize);

impl Wake for Counted {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_future_has_the_next_line_and_dropping_it_loses_none() {
    let counted = Arc::new(Counted(AtomicUsize::new(0)));
    let waker = Waker::from(counted.clone());
    let mut context = TaskContext::from_waker(&waker);
    let (stdout, mut lines) = QueueOptions::lines().bytes_max(500).one();
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(stdout).spawn().unwrap();
    assert_eq!(pin!(lines.next_async()).poll(&mut context), Poll::Pending);
    let stdin = child.take_stdin().unwrap();
    std::io::Write::write_all(&mut &stdin, b"one\n").unwrap();
    eventually("it is woken", || counted.0.load(Ordering::SeqCst) == 1);
    assert_eq!(pin!(lines.next_async()).poll(&mut context), Poll::Ready(Some(b"one\n".to_vec())));
    std::io::Write::write_all(&mut &stdin, b"two\nthree").unwrap();
    drop(stdin);
    let mut rest = Vec::new();
    loop {
        let woken = counted.0.load(Ordering::SeqCst);
        match pin!(lines.next_async()).poll(&mut context) {
            Poll::Ready(Some(line)) => rest.push(line),
            Poll::Ready(None) => break,
            Poll::Pending => eventually("it is woken again", || counted.0.load(Ordering::SeqCst) > woken),
        }
    }
    assert_eq!(rest, [&b"two\n"[..], b"three"]);
    child.wait().unwrap().check().unwrap();
}

#[test]
fn queues_take_no_thread_and_leave_nothing_behind() {
    in_own_process("queues_take_no_thread_and_leave_nothing_behind", || {
        Command::new("true").stdout(Stdio::captured()).output().unwrap();
        let (fds, running) = (open_descriptors(), threads());
        let children: Vec<_> = (0..50)
            .map(|n| {
                let (stdout, stderr, lines) = QueueOptions::lines().bytes_max(100).both();
                let command = format!("seq {}; seq 100 >&2", 100 * n);
                (sh(&command).stdout(stdout).stderr(stderr).spawn().unwrap(), lines)
            })
            .collect();
        assert!(threads() <= running, "more than {running}");
        for (n, (child, lines)) in children.into_iter().enumerate() {
            // Some are read to the end, some left at once, some in the middle.
            match n % 3 {
                0 => assert_eq!(lines.count(), 100 * n + 100),
                1 => drop(lines),
                _ => assert_eq!(lines.take(10).count(), 10),
            }
            child.wait_with_output().unwrap();
        }
        assert_eq!(open_descriptors(), fds);
    });
}

#[test]
fn a_forked_copy_of_a_queue_is_inert() {
    in_own_process("a_forked_copy_of_a_queue_is_inert", || {
        let (stdout, mut lines) = Stdio::lines(1);
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(stdout).spawn().unwrap();
        // SAFETY: the copy calls nothing that another thread's lock could hold up, and leaves by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let inert = lines.next().is_none() && lines.end() == Some(QueueEnd::Forked);
            drop(lines);
            // SAFETY: as above.
            unsafe { libc::_exit(if inert { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: our own child and a local.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        assert_eq!(status, 0);
        std::io::Write::write_all(&mut child.take_stdin().unwrap(), b"still here\n").unwrap();
        assert_eq!(lines.next().as_deref(), Some(&b"still here\n"[..]));
        child.wait().unwrap().check().unwrap();
    });
}

#[test]
fn consumers_that_race_the_loop_miss_nothing() {
    let scratch = Scratch::new("queues");
    let text: String = (0..2000).map(|n| format!("{:1$}\n", n, n % 90)).collect();
    let file = scratch.file("text", &text, 0o644);
    for round in 0..rounds(15) {
        let (stdout, lines) = QueueOptions::lines().items_max(1 + round % 7).bytes_max(1 + round * 37 % 5000).one();
        let child = Command::new("cat").arg(&file).stdout(stdout).spawn().unwrap();
        let whole: Vec<u8> = lines.flatten().collect();
        assert!(whole == text.as_bytes(), "round {round}: {} of {}", whole.len(), text.len());
        child.wait().unwrap().check().unwrap();
    }
}

/// A cancel, a consumer that leaves, a child that ends: whichever comes first, what was taken is a beginning, and the end comes.
#[test]
fn queues_that_are_raced_by_cancels_and_drops_are_whole_or_a_beginning() {
    for round in 0..rounds(25) {
        let (ctx, taken_max) = (Context::new(), [0, 1, 100, 10_000, usize::MAX][round % 5]);
        let then = if round % 2 == 0 { WhenDropped::Close } else { WhenDropped::Drain };
        let mut options = QueueOptions::lines();
        options.bytes_max(1 + round * 97 % 70_000).items_max(1 + round * 31 % 3000).when_dropped(then);
        let (stdout, mut lines) = options.one();
        let child = Command::new("seq").arg("20000").stdout(stdout).context(&ctx).spawn().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (0..round * 1777 % 300_000).for_each(|_| std::hint::spin_loop());
                if round % 3 > 0 {
                    ctx.cancel();
                }
            });
            scope.spawn(move || {
                let taken: Vec<u8> = lines.by_ref().take(taken_max).flatten().collect();
                let expected = (1..=20_000).flat_map(|n| format!("{n}\n").into_bytes());
                assert!(taken.iter().copied().eq(expected.take(taken.len())), "round {round}");
            });
            let output = child.wait_with_output().unwrap();
            let cause = output.exit().cause();
            assert!(cause.is_none() || cause == Some(&Cause::Cancelled), "round {round}: {cause:?}");
        });
    }
}
