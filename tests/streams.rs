//! Group C of the scenarios: where streams come from and go to, and who waits for them; each by its number. Knows the public API alone.

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::{SOON, children_of_ours, eventually, in_own_process, open_descriptors, pipe, rounds, sh, state, threads};
use pidloop::{
    Cancel, Cause, Child, ChildId, Command, Context, Driver, Ended, Error, ErrorKind, Limit, Reactor, Signal, Stage,
    Stdio,
};

const MOMENT: Duration = Duration::from_millis(50);
const MIB: usize = 1 << 20;

#[test]
fn c68_the_output_is_exact() {
    let output = Command::new("echo").args(["foo bar", "baz"]).output().unwrap();
    assert_eq!((&*output.stdout, &*output.stderr), (&b"foo bar baz\n"[..], &b""[..]));
}

#[test]
fn c69_what_is_fed_to_cat_comes_back() {
    for stdin in [Stdio::bytes("Input string\nLine 2"), Stdio::reader(&b"Input string\nLine 2"[..])] {
        let output = Command::new("cat").stdin(stdin).output().unwrap();
        assert_eq!(output.stdout, b"Input string\nLine 2");
    }
}

#[test]
fn c70_combined_output_keeps_the_order_of_both_streams() {
    let output = Command::new("cat").args(["/no/such/file", "/proc/self/comm"]).combined_output().unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let (first, second) = text.split_once('\n').unwrap();
    assert!(first.contains("/no/such/file") && second == "cat\n", "{text}");
    assert!(output.stderr.is_empty());
    assert_eq!(output.exit().check().unwrap_err().kind(), ErrorKind::Unsuccessful);
    let script = "for i in 1 2 3 4 5 6 7 8 9; do echo o$i; echo e$i >&2; done";
    let text = sh(script).combined_output().unwrap().stdout;
    let expected: String = (1..10).map(|i| format!("o{i}\ne{i}\n")).collect();
    assert_eq!(text, expected.as_bytes());
}

#[test]
fn c71_a_conversation_over_three_pipes() {
    let script = "while read line; do echo O:$line; echo E:$line >&2; done";
    let child = sh(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.take_stdin().unwrap();
    let mut stdout = BufReader::new(child.take_stdout().unwrap());
    let mut stderr = BufReader::new(child.take_stderr().unwrap());
    let mut line = String::new();
    for i in 0..100 {
        writeln!(stdin, "line {i}").unwrap();
        stdout.read_line(&mut line).unwrap();
        stderr.read_line(&mut line).unwrap();
        assert_eq!(line, format!("O:line {i}\nE:line {i}\n"));
        line.clear();
    }
    drop(stdin);
    assert_eq!((stdout.read_line(&mut line).unwrap(), stderr.read_line(&mut line).unwrap()), (0, 0));
    child.wait().unwrap().check().unwrap();
    assert!(child.take_stdin().is_none() && child.take_stdout().is_none() && child.take_stderr().is_none());
}

#[test]
fn c72_stdin_is_written_and_closed_by_another_thread_during_the_wait() {
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.take_stdin().unwrap();
    let mut stdout = child.take_stdout().unwrap();
    let writer = thread::spawn(move || (0..1000).try_for_each(|_| stdin.write_all(&[b'x'; 1000])));
    let reader = thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
    child.wait().unwrap().check().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(reader.join().unwrap().unwrap(), 1_000_000);
}

#[test]
fn c74_a_child_that_does_not_read_its_stdin_is_no_error() {
    for stdin in [Stdio::bytes(vec![7; 10 * MIB]), Stdio::reader(io::repeat(7).take(10 << 20))] {
        sh("exec <&-; exit 0").stdin(stdin.clone()).run().unwrap();
    }
    Command::new("true").stdin(Stdio::reader(io::repeat(7))).run().unwrap();
    let output = sh("head -c 10; exec <&-").stdin(Stdio::reader(io::repeat(b'7'))).output().unwrap();
    assert_eq!(output.stdout, b"7777777777");
    output.exit().check().unwrap();
}

#[test]
fn c76_a_socket_as_the_source_is_no_different() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let source = thread::spawn(move || {
        let mut ours = ours;
        let mut written = 0;
        while ours.write_all(&[7; 4096]).is_ok() {
            written += 4096;
        }
        written
    });
    sh("head -c 5 >/dev/null").stdin(Stdio::reader(theirs)).run().unwrap();
    // The reader is dropped when it is not needed any more: the other end sees that.
    assert!(source.join().unwrap() > 0);
}

#[test]
fn c77_a_reader_that_fails_is_blamed_last() {
    let failing = || {
        let gone = io::Error::new(io::ErrorKind::ConnectionReset, Custom("the source is gone"));
        Stdio::reader((&b"some"[..]).chain(FailsWith(Some(gone))))
    };
    let error = Command::new("cat").stdin(failing()).output().unwrap_err();
    assert_eq!((error.kind(), error.exit().unwrap().code()), (ErrorKind::Io, Some(0)), "{error}");
    assert_eq!(error.output().unwrap().stdout, b"some");
    assert!(error.to_string().contains("stdin") && error.to_string().contains("the source is gone"), "{error}");
    assert_eq!(io::Error::from(error).kind(), io::ErrorKind::ConnectionReset);

    let error = sh("cat; exit 1").stdin(failing()).stdout(Stdio::null()).run().unwrap_err();
    assert_eq!((error.kind(), error.exit().unwrap().code()), (ErrorKind::Unsuccessful, Some(1)));

    let error = Command::new("cat").stdin(failing()).stdout(Stdio::null()).run().unwrap_err();
    assert!(find_custom(&error), "the caller finds its own error: {error:?}");
    let error = Command::new("cat").stdin(failing()).stdout(Stdio::null()).status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn c79_a_writer_that_fails_closes_the_pipe_and_is_blamed_last() {
    let failing = || Stdio::writer(FailsWith(Some(io::Error::from_raw_os_error(28))));
    let stubborn = "trap '' PIPE; echo x; while echo y; do :; done 2>/dev/null; exit 0";
    let error = sh(stubborn).stdout(failing()).run().unwrap_err();
    assert_eq!((error.kind(), error.exit().unwrap().code()), (ErrorKind::Io, Some(0)), "{error}");
    assert_eq!(error.raw_os_error(), Some(28));
    assert!(error.to_string().contains("stdout"), "{error}");

    let error = Command::new("yes").stdout(failing()).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsuccessful);
    assert_eq!(error.exit().unwrap().signal(), Some(Signal::SIGPIPE));
    // Where a status is no error, this is one.
    let error = sh("exec yes >&2").stderr(failing()).output().unwrap_err();
    assert_eq!((error.kind(), error.exit().unwrap().signal()), (ErrorKind::Io, Some(Signal::SIGPIPE)));
    assert!(error.to_string().contains("stderr"), "{error}");
}

#[test]
fn c81_two_writers_are_two_pipes() {
    let (out, err) = (Collected::default(), Collected::default());
    let mut command = sh("echo out; echo err >&2; test /proc/self/fd/1 -ef /proc/self/fd/2 && echo same");
    command.stdout(Stdio::writer(out.clone())).stderr(Stdio::writer(err.clone())).run().unwrap_err();
    assert_eq!((out.text(), err.text()), ("out\n".to_owned(), "err\n".to_owned()));
    // One writer cannot serve two pipes.
    let writer = Stdio::writer(out);
    let error = Command::new("true").stdout(writer.clone()).stderr(writer).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StreamUsed);
}

#[test]
fn c82_stderr_goes_where_stdout_goes() {
    let script = "echo a; echo b >&2; echo c";
    let child = sh(script).stdout(Stdio::piped()).stderr(Stdio::stdout()).spawn().unwrap();
    let mut text = String::new();
    child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    assert!(child.take_stderr().is_none());
    assert_eq!(text, "a\nb\nc\n");
    let collected = Collected::default();
    sh(script).stdout(Stdio::writer(collected.clone())).stderr(Stdio::stdout()).run().unwrap();
    assert_eq!(collected.text(), "a\nb\nc\n");
    let captured = sh(script).stderr(Stdio::stdout()).output().unwrap();
    assert_eq!((&*captured.stdout, &*captured.stderr), (&b"a\nb\nc\n"[..], &b""[..]));
    let path = scratch("c82");
    sh(script).stdout(File::create(&path).unwrap()).stderr(Stdio::stdout()).run().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\nc\n");
    fs::remove_file(path).unwrap();
}

#[test]
fn c83_null_streams_are_dev_null_and_give_eof() {
    let null = fs::metadata("/dev/null").unwrap().rdev();
    let mut command = Command::new("sleep");
    let child = command.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let devices = [0, 1, 2].map(|n| fs::metadata(format!("/proc/{}/fd/{n}", child.id())).unwrap().rdev());
    child.kill().unwrap();
    assert_eq!(devices, [null; 3]);
    let given = Command::new("cat").stdin(Stdio::null()).stdout(Stdio::captured()).output().unwrap();
    assert!(given.status.success() && given.stdout.is_empty());
    // `output` without a stdin: null, as in std.
    assert_eq!(Command::new("cat").output().unwrap().stdout, b"");
}

#[test]
fn c84_a_file_is_the_childs_own_and_nobody_waits_for_who_holds_it() {
    let path = scratch("c84");
    let file = File::create(&path).unwrap();
    let inode = file.metadata().unwrap().ino();
    let mut command = sh("stat -L -c %i /proc/self/fd/1; sleep 60 & echo $!");
    let start = Instant::now();
    let output = command.stdout(file).stderr(Stdio::null()).output().unwrap();
    assert!(start.elapsed() < SOON && output.stdout.is_empty() && !output.exit().output_held_open());
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(path).unwrap();
    let (first, holder) = text.split_once('\n').unwrap();
    assert_eq!(first, inode.to_string());
    kill_holder(holder.as_bytes());
}

#[test]
fn c85_the_callers_files_stay_open() {
    let path = scratch("c85");
    let mut file = File::options().append(true).create(true).open(&path).unwrap();
    let mut command = sh("echo child");
    command.stdout(file.try_clone().unwrap());
    command.run().unwrap();
    // The command keeps its own, and can be spawned again.
    command.run().unwrap();
    writeln!(file, "parent").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "child\nchild\nparent\n");
    fs::remove_file(path).unwrap();
}

#[test]
fn c86_a_pipe_is_read_after_the_wait() {
    let child = sh("echo out; echo err >&2").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.take_stdout().unwrap();
    child.wait().unwrap().check().unwrap();
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    // One that was not taken before is there, too.
    child.take_stderr().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "out\nerr\n");
    let child = sh("echo out; echo err >&2").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.wait().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((&*output.stdout, &*output.stderr), (&b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn output_that_is_asked_for_after_the_death_is_read_as_before_it() {
    let late = || {
        let mut command = sh("(sleep 0.3; echo late; echo late >&2) & echo early");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let whole = |child: Child| {
        let output = child.wait_with_output().unwrap();
        output.exit().check().unwrap();
        assert_eq!((&*output.stdout, &*output.stderr), (&b"early\nlate\n"[..], &b"late\n"[..]));
    };
    whole(late().spawn().unwrap());
    let child = late().spawn().unwrap();
    assert!(child.wait().unwrap().success());
    whole(child);
    // By then its slot is somebody else's, and nobody waits for its one captured stream any more.
    let child = late().stderr(Stdio::captured()).spawn().unwrap();
    child.wait().unwrap();
    whole(child);

    let held = |command: &mut Command| {
        let child = command.stdout(Stdio::captured()).stderr(Stdio::piped()).spawn().unwrap();
        child.wait().unwrap();
        child
    };
    let cut = |child: Child| {
        let output = child.wait_with_output().unwrap();
        assert!(output.exit().success() && output.exit().cause().is_none());
        assert!(output.exit().held_open().stderr);
        kill_holder(&output.stdout);
    };
    // What ends the reading is the same, too: a delay from the death, a context, a deadline.
    cut(held(holding("exit 0").wait_delay(MOMENT * 4)));
    cut(held(holding("exit 0").timeout(MOMENT * 4)));
    let ctx = Context::new();
    let child = held(holding("exit 0").context(&ctx));
    ctx.cancel();
    cut(child);
    let ctx = Context::new();
    let child = held(holding("exit 0").context(&ctx));
    let rival = thread::spawn(move || ctx.cancel());
    cut(child);
    rival.join().unwrap();
    // A loop that takes no more children does not wait for this one: what is there is read.
    let driver = Driver::new().unwrap();
    let child = driver.spawn(holding("exit 0").stdout(Stdio::piped()).stderr(Stdio::piped())).unwrap();
    child.wait().unwrap();
    assert!(driver.shutdown(SOON, SOON).is_empty());
    cut(child);
}

#[test]
fn c88_a_wait_closes_an_untaken_stdin() {
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    child.wait().unwrap().check().unwrap();
    let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.wait_with_output().unwrap().exit().check().unwrap();
    Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).run().unwrap();
}

#[test]
fn c91_an_error_carries_the_end_of_stderr() {
    let script = "echo some stderr text >&2; exit 1";
    let error = sh(script).stderr(Stdio::captured()).run().unwrap_err();
    assert!(error.to_string().ends_with("stderr: some stderr text"), "{error}");
    assert_eq!(error.output().unwrap().stderr, b"some stderr text\n");
    // As in std a status is no error of `output`, which has the text.
    let output = sh(script).output().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(1), &b"some stderr text\n"[..]));
    let error = sh("echo why >&2; exec sleep 60").timeout(MOMENT * 4).output().unwrap_err();
    assert!(error.to_string().ends_with("stderr: why"), "{error}");
}

#[test]
fn c92_a_limit_keeps_the_ends_and_counts_the_rest() {
    let cases = [
        ("", "", 0),
        ("printf a", "a", 0),
        ("printf abc; printf d", "abcd", 0),
        ("printf abc; printf d; printf e", "abde", 1),
        ("printf abcdefghijklmnopqrstuvwxyz", "abyz", 22),
        ("printf abcdefghijklm; sleep 0.02; printf nopqrstuvwxyz", "abyz", 22),
        ("printf a; printf bcdefghijklmnopqrstuvwxyz; sleep 0.02; printf 0", "abz0", 23),
    ];
    for (script, kept, omitted) in cases {
        let both = format!("exec 2>&1; {script}");
        let limit = || Stdio::captured_limited(Limit::head_tail(2, 2));
        let output = sh(script).stdout(limit()).output().unwrap();
        assert_eq!((&*output.stdout, output.stdout_omitted_bytes), (kept.as_bytes(), omitted), "{script}");
        let output = sh(&both).stdout(limit()).stderr(Stdio::stdout()).output().unwrap();
        assert_eq!((&*output.stdout, output.stdout_omitted_bytes), (kept.as_bytes(), omitted), "{script}");
        let output = sh(&format!("exec >&2; {script}")).stderr(limit()).output().unwrap();
        assert_eq!((&*output.stderr, output.stderr_omitted_bytes), (kept.as_bytes(), omitted), "{script}");
    }
}

#[test]
fn c94_a_stderr_of_the_callers_own_is_not_in_the_error() {
    let collected = Collected::default();
    let script = "echo text >&2; exit 1";
    let error = sh(script).stderr(Stdio::writer(collected.clone())).run().unwrap_err();
    assert_eq!(collected.text(), "text\n");
    assert!(!error.to_string().contains("stderr: ") && error.output().is_none_or(|o| o.stderr.is_empty()), "{error}");
    let output = sh(script).stderr(Stdio::null()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(1), 0));
}

#[test]
fn c95_a_failure_still_gives_what_was_written() {
    let output = sh("echo so far; exit 3").output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(3), &b"so far\n"[..]));
    let error = sh("echo so far; exec sleep 60").timeout(MOMENT * 4).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert_eq!(error.output().unwrap().stdout, b"so far\n");
}

#[test]
fn c96_a_hundred_mebibytes_on_both_at_once() {
    let script = "head -c 104857600 /dev/zero & head -c 104857600 /dev/zero >&2; wait";
    let output = sh(script).output().unwrap();
    assert_eq!((output.stdout.len(), output.stderr.len()), (100 * MIB, 100 * MIB));
    let (out, err) = (Counted::default(), Counted::default());
    sh(script).stdout(Stdio::writer(out.clone())).stderr(Stdio::writer(err.clone())).run().unwrap();
    assert_eq!((out.bytes(), err.bytes()), (100 * MIB, 100 * MIB));
}

#[test]
fn c97_a_writer_is_flushed_and_dropped_not_closed() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut kept = theirs.try_clone().unwrap();
    Command::new("echo").arg("from the child").stdout(Stdio::writer(theirs)).run().unwrap();
    // What the caller still has of it works.
    kept.write_all(b"and from us").unwrap();
    drop(kept);
    let mut text = String::new();
    ours.read_to_string(&mut text).unwrap();
    assert_eq!(text, "from the child\nand from us");
    let collected = Collected::default();
    let buffered = io::BufWriter::new(collected.clone());
    Command::new("echo").arg("buffered").stdout(Stdio::writer(buffered)).run().unwrap();
    assert_eq!(collected.text(), "buffered\n");
    assert_eq!(Arc::strong_count(&collected.0), 1, "it is dropped by then");
}

#[test]
fn c105_a_source_that_blocks_holds_nobody_up_when_the_child_is_dead() {
    let (source, gate) = UnixStream::pair().unwrap();
    let start = Instant::now();
    let output = sh("echo done").stdin(Stdio::reader(source.try_clone().unwrap())).output().unwrap();
    assert_eq!(output.stdout, b"done\n");
    let child = sh("exit 4").stdin(Stdio::reader(source)).spawn().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
    assert!(start.elapsed() < SOON);
    drop(gate);
}

// ── a caller's own readers and writers ──

#[test]
fn a35_a_writer_that_blocks_is_left_behind_and_takes_the_rest_later() {
    let (release, gate) = mpsc::channel();
    let collected = Collected::default();
    let writer = Gated { gate, collected: collected.clone() };
    let start = Instant::now();
    let mut command = sh("printf first; sleep 0.05; printf second");
    let error = command.stdout(Stdio::writer(writer)).wait_delay(Duration::from_millis(10)).output().unwrap_err();
    assert!(start.elapsed() < SOON);
    assert_eq!(error.kind(), ErrorKind::OutputCut);
    assert!(error.exit().unwrap().success() && error.exit().unwrap().held_open().stdout);
    assert_eq!(collected.text(), "");
    release.send(()).unwrap();
    // Not needed if both came in one piece.
    let _ = release.send(());
    eventually("it took what was left for it", || collected.text() == "firstsecond");
    drop(command);
    eventually("it is dropped", || Arc::strong_count(&collected.0) == 1);
}

#[test]
fn a_cancel_leaves_a_writer_behind_that_blocks_and_not_one_that_works() {
    let ctx = Context::new();
    let (release, gate) = mpsc::channel();
    let blocked = Collected::default();
    let prompt = Collected::default();
    let child = sh("echo out; echo err >&2; exec sleep 60")
        .stdout(Stdio::writer(Gated { gate, collected: blocked.clone() }))
        .stderr(Stdio::writer(prompt.clone()))
        .context(&ctx)
        .spawn()
        .unwrap();
    eventually("it has written", || prompt.text() == "err\n");
    ctx.cancel();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.exit().cause(), Some(&Cause::Cancelled));
    assert_eq!((output.exit().held_open().stdout, output.exit().held_open().stderr), (true, false));
    assert_eq!(Arc::strong_count(&prompt.0), 1, "the prompt one is done");
    drop(release);
    eventually("the other one ends", || Arc::strong_count(&blocked.0) == 1);
}

#[test]
fn what_a_cancelled_child_wrote_reaches_its_writer() {
    for _ in 0..20 {
        let ctx = Context::new();
        let collected = Collected::default();
        let trigger = ctx.clone();
        let mut first = true;
        let writer = FromFn(move |chunk: &[u8]| {
            if std::mem::take(&mut first) {
                trigger.cancel();
            }
            collected.clone().write(chunk)
        });
        let child =
            sh("i=0; while :; do echo $i; i=$((i+1)); done").stdout(Stdio::writer(writer)).context(&ctx).spawn();
        let output = match child {
            Ok(child) => child.wait_with_output().unwrap(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(output.exit().signal(), Some(Signal::SIGKILL));
        assert!(!output.exit().output_held_open());
    }
}

#[test]
fn a_callers_code_runs_on_threads_of_its_own() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = |seen: &Arc<Mutex<Vec<String>>>| {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).unwrap().to_owned();
        seen.lock().unwrap().push(format!("{} {blocked}", thread::current().name().unwrap_or_default()));
    };
    struct OnDrop(Box<dyn Fn() + Send>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    let (for_read, for_write, for_drop) = (seen.clone(), seen.clone(), seen.clone());
    let on_drop = OnDrop(Box::new(move || note(&for_drop)));
    let mut texts = vec![&b""[..], b"text"];
    let reader = FromFn(move |_: &[u8]| {
        note(&for_read);
        Ok(texts.pop().unwrap().len())
    });
    let writer = FromFn(move |chunk: &[u8]| {
        let _held = &on_drop;
        note(&for_write);
        Ok(chunk.len())
    });
    Command::new("cat").stdin(Stdio::reader(reader)).stdout(Stdio::writer(writer)).run().unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.len() >= 4, "{seen:?}");
    for line in &*seen {
        let (name, blocked) = line.split_once(' ').unwrap();
        let blocked = u64::from_str_radix(blocked, 16).unwrap();
        assert_eq!(name, "pidloop-stream");
        // Signals of the host (here SIGTERM and SIGINT) are not for it.
        assert_eq!(blocked & 0x4002, 0x4002);
    }
}

#[test]
fn a_panic_in_a_callers_code_is_an_error_of_it() {
    let panics = || FromFn(|_: &[u8]| -> io::Result<usize> { panic!("as asked") });
    let error = Command::new("cat").stdin(Stdio::reader(panics())).output().unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("panicked"), "{error}");
    let error = sh("echo x; exit 0").stdout(Stdio::writer(panics())).run().unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("panicked"), "{error}");
    struct PanicsWhenDropped;
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("as asked");
        }
    }
    let held = PanicsWhenDropped;
    let writer = FromFn(move |chunk: &[u8]| {
        let _held = &held;
        Ok(chunk.len())
    });
    Command::new("echo").stdout(Stdio::writer(writer)).run().unwrap();
    // A reader that lies about what it has read.
    let error = Command::new("cat").stdin(Stdio::reader(FromFn(|_: &[u8]| Ok(usize::MAX)))).output().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn a_reader_serves_one_spawn_and_a_failed_one_leaves_it() {
    let mut command = Command::new("/no/such/program");
    command.stdin(Stdio::reader(&b"once"[..])).stdout(Stdio::captured());
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NotFound);
    let mut command = {
        let mut again = Command::new("cat");
        again.stdin(Stdio::reader(&b"once"[..]));
        let ctx = Context::new();
        ctx.cancel();
        assert_eq!(again.clone().context(&ctx).spawn().unwrap_err().kind(), ErrorKind::Cancelled);
        assert_eq!(again.clone().current_dir("/no/such").spawn().unwrap_err().stage(), Some(Stage::Directory));
        again
    };
    let clone = command.clone();
    assert_eq!(command.output().unwrap().stdout, b"once");
    for again in [&command, &clone] {
        let error = again.output().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::StreamUsed, Some(Stage::Streams)));
        assert!(error.to_string().starts_with("cat: "), "{error}");
    }
    assert_eq!(command.stdin(Stdio::bytes("more")).output().unwrap().stdout, b"more");
}

#[test]
fn a_spawn_by_another_thread_of_ours_is_no_different() {
    let collected = Collected::default();
    let mut command = Command::new("cat");
    command.stdin(Stdio::reader(&b"text"[..])).stdout(Stdio::writer(collected.clone()));
    command.parent_death_signal(Signal::SIGKILL).run().unwrap();
    assert_eq!(collected.text(), "text");
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::StreamUsed);
}

#[test]
fn a_thread_that_cannot_be_had_is_an_error_and_nothing_is_lost() {
    in_own_process("a_thread_that_cannot_be_had_is_an_error_and_nothing_is_lost", || {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        Command::new("true").run().unwrap();
        let (fds, usual) = (open_descriptors(), getrlimit(Resource::As));
        let mut command = Command::new("cat");
        command.stdin(Stdio::reader(&b"text"[..]));
        // No room for another thread's stack.
        let pages: u64 = fs::read_to_string("/proc/self/statm").unwrap().split(' ').next().unwrap().parse().unwrap();
        setrlimit(Resource::As, Rlimit { current: Some((pages << 12) + (1 << 20)), maximum: usual.maximum }).unwrap();
        let result = command.spawn();
        setrlimit(Resource::As, usual).unwrap();
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoProcessSlots, "{error}");
        assert_eq!((open_descriptors(), children_of_ours()), (fds, vec![]));
        assert_eq!(command.output().unwrap().stdout, b"text");
    });
}

#[test]
fn lines_arrive_in_a_queue_and_hold_the_child_up_when_it_is_full() {
    let (stdout, lines) = Stdio::lines(2);
    let child = sh("printf 'one\\n\\nthree\\nno end'").stdout(stdout).spawn().unwrap();
    let lines: Vec<String> = lines.into_iter().map(|line| String::from_utf8(line).unwrap()).collect();
    assert_eq!(lines, ["one\n", "\n", "three\n", "no end"]);
    child.wait().unwrap().check().unwrap();

    let (stdout, mut lines) = Stdio::lines(3);
    let child = Command::new("yes").stdout(stdout).spawn().unwrap();
    assert!(lines.by_ref().take(100_000).all(|line| line == b"y\n"));
    // Nobody takes more: the pipe fills up and the child waits.
    eventually("it sleeps", || state(child.id()) == Some('S'));
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.exit().signal(), Some(Signal::SIGPIPE));

    let (stdout, lines) = Stdio::lines(100);
    sh("head -c 2500000 /dev/zero; echo").stdout(stdout).run().unwrap();
    let pieces: Vec<usize> = lines.into_iter().map(|line| line.len()).collect();
    assert_eq!(pieces.iter().sum::<usize>(), 2_500_001);
    assert!(pieces.len() == 3 && pieces.iter().all(|bytes| *bytes < 2 * MIB), "{pieces:?}");

    let (stdout, lines) = Stdio::lines(1);
    drop(lines);
    let error = sh("trap '' PIPE; echo x; exit 0").stdout(stdout).run().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("nobody receives"), "{error}");
}

#[test]
fn what_belongs_to_the_exit_and_what_came_after_it_are_told_apart() {
    let ctx = Context::new();
    let (release, gate) = mpsc::channel::<()>();
    let (enter, entered) = mpsc::channel();
    let ((wait_here, mut go_on), (mut told, tell)) = (pipe(), pipe());
    let writer = FromFn(move |chunk: &[u8]| {
        enter.send(String::from_utf8(chunk.to_vec()).unwrap()).map_err(io::Error::other)?;
        gate.recv().map(|()| chunk.len()).map_err(io::Error::other)
    });
    let script = "(read _ <&3; printf third; echo done >&4; read _ <&3) & printf first; read _; printf second";
    let mut command = sh(script);
    command.fd(3, wait_here).fd(4, tell).context(&ctx).stdin(Stdio::piped());
    let child = command.stdout(Stdio::writer(writer)).spawn().unwrap();
    drop(command);
    assert_eq!(entered.recv_timeout(SOON).unwrap(), "first");
    // The writer is busy with that: what comes now stays in the pipe.
    child.take_stdin().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    go_on.write_all(b"\n").unwrap();
    told.read_exact(&mut [0; 5]).unwrap();
    ctx.cancel();
    let output = child.wait_with_output().unwrap();
    assert!(output.exit().success() && output.exit().held_open().stdout);
    // The writer takes the rest, later; somebody else's part is not in it.
    release.send(()).unwrap();
    assert_eq!(entered.recv_timeout(SOON).unwrap(), "second");
    release.send(()).unwrap();
    assert_eq!(entered.recv_timeout(SOON), Err(mpsc::RecvTimeoutError::Disconnected));
}

#[test]
fn a_stream_outlives_the_reactor_that_it_was_started_by() {
    let mut reactor = Reactor::new().unwrap();
    let collected = Collected::default();
    let (gate, mut go_on) = pipe();
    let mut command = sh("read _; echo late");
    command.stdin(OwnedFd::from(gate)).stdout(Stdio::writer(collected.clone()));
    let id = reactor.spawn(&command).unwrap();
    let pid = reactor.pid(id).unwrap();
    drop((reactor, command));
    go_on.write_all(b"\n").unwrap();
    eventually("it is written down", || collected.text() == "late\n");
    eventually("it is reaped", || !common::exists(pid));
    eventually("its writer is dropped", || Arc::strong_count(&collected.0) == 1);
}

#[test]
fn the_pipe_of_a_blocked_reader_is_closed_when_its_child_is_dead() {
    in_own_process("the_pipe_of_a_blocked_reader_is_closed_when_its_child_is_dead", || {
        Command::new("true").run().unwrap();
        let (source, gate) = UnixStream::pair().unwrap();
        let pipes = || open_descriptors().iter().filter(|(_, what)| what.starts_with("pipe")).count();
        let before = pipes();
        for _ in 0..5 {
            Command::new("true").stdin(Stdio::reader(source.try_clone().unwrap())).run().unwrap();
            assert_eq!(pipes(), before);
        }
        drop(gate);
    });
}

#[test]
fn streams_that_are_raced_by_cancels_are_whole_or_a_beginning() {
    in_own_process("streams_that_are_raced_by_cancels_are_whole_or_a_beginning", || {
        // The loop's thread is there from now on.
        Command::new("true").output().unwrap();
        let (fds, count) = (open_descriptors(), threads());
        let sent: Arc<[u8]> = (0..3 * MIB).map(|i| (i / 3 % 251) as u8).collect();
        let (whole, cancelled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for lane in 0..4 {
                let (sent, whole, cancelled) = (&sent, &whole, &cancelled);
                scope.spawn(move || {
                    for round in 0..rounds(50) {
                        let bytes = [0, 1, 4096, 70_000, MIB, 3 * MIB][(round + lane) % 6];
                        let text = sent.clone();
                        let collected = Collected::default();
                        let ctx = Context::new();
                        let mut command = Command::new("cat");
                        command.stdin(match round % 2 {
                            0 => Stdio::reader(io::Cursor::new(text).take(bytes as u64)),
                            _ => Stdio::bytes(&sent[..bytes]),
                        });
                        command.stdout(Stdio::writer(collected.clone())).stderr(Stdio::captured()).context(&ctx);
                        let child = command.spawn().unwrap();
                        let rival = thread::spawn(move || {
                            // From at once to never.
                            for _ in 0..(round * 37 % 50) * 40 {
                                thread::yield_now();
                            }
                            ctx.cancel();
                        });
                        let output = child.wait_with_output().unwrap();
                        rival.join().unwrap();
                        let got = collected.0.lock().unwrap();
                        assert!(sent.starts_with(&got), "{} of {bytes}", got.len());
                        if output.exit().check().is_ok() {
                            assert_eq!(got.len(), bytes);
                            whole.fetch_add(1, Ordering::Relaxed);
                        } else {
                            cancelled.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let (whole, cancelled) = (whole.into_inner(), cancelled.into_inner());
        assert!(whole > 0 && cancelled > 0, "{whole} whole, {cancelled} cancelled: no race");
        eventually("the threads have ended", || threads() == count);
        assert_eq!(open_descriptors(), fds);
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn whom_the_child_leaves_behind_has_all_of_its_input() {
    let sent = vec![b'x'; 3 * MIB];
    for stdin in [Stdio::bytes(sent.clone()), Stdio::reader(io::Cursor::new(sent.clone()))] {
        let output = sh("exec 3<&0; cat <&3 & exit 0").stdin(stdin).output().unwrap();
        output.exit().check().unwrap();
        assert_eq!(output.stdout.len(), sent.len());
    }
}

#[test]
fn a_deadline_after_the_death_ends_the_capture() {
    for served in [false, true] {
        let mut command = holding("exit 0");
        command.stderr(if served { Stdio::writer(io::sink()) } else { Stdio::captured() });
        let start = Instant::now();
        let error = command.timeout(MOMENT * 4).output().unwrap_err();
        assert!(start.elapsed() >= MOMENT * 4 && start.elapsed() < SOON);
        assert_eq!(error.kind(), ErrorKind::OutputCut);
        assert!(error.exit().unwrap().success() && error.exit().unwrap().cause().is_none());
        kill_holder(&error.output().unwrap().stdout);
    }
}

// ── streams between processes ──

#[test]
fn a_pipeline_of_two() {
    let first = sh("echo b; echo a").stdout(Stdio::piped()).spawn().unwrap();
    let output = Command::new("sort").stdin(first.take_stdout().unwrap()).output().unwrap();
    assert_eq!(output.stdout, b"a\nb\n");
    first.wait().unwrap().check().unwrap();
    // The end that `head` has is closed with the command that was given it: `yes` is told.
    let first = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    let output = Command::new("head").arg("-1").stdin(first.take_stdout().unwrap()).output().unwrap();
    assert_eq!(output.stdout, b"y\n");
    assert_eq!(first.wait().unwrap().signal(), Some(Signal::SIGPIPE));
    // From std's children, too.
    let mut theirs =
        std::process::Command::new("echo").arg("std").stdout(std::process::Stdio::piped()).spawn().unwrap();
    let output = Command::new("cat").stdin(theirs.stdout.take().unwrap()).output().unwrap();
    assert_eq!(output.stdout, b"std\n");
    theirs.wait().unwrap();
}

#[test]
fn our_own_streams_are_given_by_name() {
    in_own_process("our_own_streams_are_given_by_name", || {
        let links = |stdout: Stdio, stderr: Stdio| {
            let mut command = Command::new("/bin/sleep");
            let child = command.arg("60").stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
            let seen = [1, 2].map(|n| fs::read_link(format!("/proc/{}/fd/{n}", child.id())).unwrap());
            child.kill().unwrap();
            child.wait().unwrap();
            seen
        };
        // Two files that are not the same.
        let ours = [1, 2].map(|n| fs::read_link(format!("/proc/self/fd/{n}")).unwrap());
        assert_ne!(ours[0], ours[1], "the harness gives each a pipe of its own");
        let [stdout, stderr] = ours;
        let all = |a: &PathBuf, b: &PathBuf| [a.clone(), b.clone()];
        assert_eq!(links(Stdio::inherit(), Stdio::inherit()), all(&stdout, &stderr));
        assert_eq!(links(io::stderr().into(), io::stdout().into()), all(&stderr, &stdout));
        assert_eq!(links(io::stderr().into(), Stdio::stdout()), all(&stderr, &stderr));
        assert_eq!(links(Stdio::inherit(), io::stdout().into()), all(&stdout, &stdout));
    });
}

#[test]
fn a_command_that_is_never_spawned_drops_what_it_was_given() {
    let (read, mut write) = UnixStream::pair().unwrap();
    let collected = Collected::default();
    let mut command = Command::new("cat");
    command.stdin(Stdio::reader(read)).stdout(Stdio::writer(collected.clone()));
    let clone = command.clone();
    drop(command);
    write.write_all(b"x").unwrap();
    drop(clone);
    assert_eq!(write.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(Arc::strong_count(&collected.0), 1);
}

#[test]
fn readers_and_writers_are_for_their_own_directions() {
    let reader = || Stdio::reader(io::empty());
    let writer = || Stdio::writer(io::sink());
    let mut wrong = [(); 4].map(|()| Command::new("true"));
    wrong[0].stdin(writer());
    wrong[1].stdout(reader());
    wrong[2].stderr(reader());
    wrong[3].stdin(Stdio::captured());
    for command in wrong {
        assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_caller_turned_loop_is_woken_when_a_writer_is_done() {
    let mut reactor = Reactor::new().unwrap();
    let (release, gate) = mpsc::channel();
    let collected = Collected::default();
    let writer = Gated { gate, collected: collected.clone() };
    let id = reactor.spawn(sh("printf text").stdout(Stdio::writer(writer))).unwrap();
    let pid = reactor.pid(id).unwrap();
    // It is reaped; its stream is not done.
    while common::exists(pid) {
        reactor.turn(Some(MOMENT)).unwrap();
    }
    assert!(reactor.next_exit().is_none() && reactor.len() == 1);
    thread::spawn(move || release.send(()));
    let ended = loop {
        if let Some(ended) = reactor.next_exit() {
            break ended;
        }
        // For ever: nothing but the writer's end can wake it.
        reactor.turn(None).unwrap();
    };
    assert!(ended.exit().success() && !ended.exit().output_held_open());
    assert_eq!(collected.text(), "text");
}

#[test]
fn a_dropped_child_is_still_written_down() {
    let collected = Collected::default();
    let child = sh("sleep 0.1; echo late").stdout(Stdio::writer(collected.clone())).spawn().unwrap();
    drop(child);
    eventually("it has written", || collected.text() == "late\n");
    eventually("its writer is dropped", || Arc::strong_count(&collected.0) == 1);
}

#[test]
fn closing_stdin_as_a_stop_closes_what_a_reader_serves() {
    let ctx = Context::new();
    let (source, _gate) = UnixStream::pair().unwrap();
    let child = Command::new("cat")
        .stdin(Stdio::reader(source))
        .stdout(Stdio::null())
        .context(&ctx)
        .cancel(Cancel::CloseStdin)
        .spawn()
        .unwrap();
    ctx.cancel();
    let exit = child.wait_timeout(SOON).unwrap().expect("cat ends at EOF");
    assert_eq!((exit.code(), exit.cause()), (Some(0), Some(&Cause::Cancelled)));
}

#[test]
fn nothing_is_left_of_streams_that_were_served() {
    in_own_process("nothing_is_left_of_streams_that_were_served", || {
        // The loop's thread is there from now on.
        Command::new("true").output().unwrap();
        let (fds, count) = (open_descriptors(), threads());
        for _ in 0..50 {
            let input = Stdio::reader(&b"text"[..]);
            let output = Command::new("cat").stdin(input).stderr(Stdio::writer(io::sink())).output().unwrap();
            assert_eq!(output.stdout, b"text");
            Command::new("/no/such").stdin(Stdio::reader(io::empty())).spawn().unwrap_err();
            Command::new("yes").stdout(Stdio::writer(FailsWith(Some(io::Error::other("no"))))).run().unwrap_err();
        }
        eventually("the threads have ended", || threads() == count);
        assert_eq!(open_descriptors(), fds);
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn too_many_at_once_is_an_error_and_those_that_end_make_room() {
    in_own_process("too_many_at_once_is_an_error_and_those_that_end_make_room", || {
        // Nobody gives them anything, and their children are gone: all of them are left behind.
        let (source, gate) = UnixStream::pair().unwrap();
        let mut refused: Option<Error> = None;
        for _ in 0..2000 {
            let reader = source.try_clone().unwrap();
            if let Err(error) = Command::new("true").stdin(Stdio::reader(reader)).run() {
                refused = Some(error);
                break;
            }
        }
        let error = refused.expect("there is a bound");
        assert_eq!((error.kind(), error.stage()), (ErrorKind::NoProcessSlots, Some(Stage::Streams)));
        assert!(error.to_string().contains("1024"), "{error}");
        assert!(threads() <= 1024 + 8);
        Command::new("true").run().unwrap();
        drop((gate, source));
        eventually("they have ended", || {
            let output = Command::new("cat").stdin(Stdio::reader(&b"room"[..])).output();
            output.is_ok_and(|output| output.stdout == b"room")
        });
    });
}

#[test]
fn a_forked_copy_leaves_the_streams_alone() {
    in_own_process("a_forked_copy_leaves_the_streams_alone", || {
        let collected = Collected::default();
        let (source, mut gate) = UnixStream::pair().unwrap();
        let mut command = Command::new("cat");
        command.stdin(Stdio::reader(source)).stdout(Stdio::writer(collected.clone()));
        let child = command.spawn().unwrap();
        gate.write_all(b"before ").unwrap();
        eventually("it flows", || collected.text() == "before ");
        // SAFETY: the copy drops what it has and leaves.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            let refused = child.kill().is_err();
            drop((child, command));
            // SAFETY: ends the copy without running what belongs to the test harness.
            unsafe { libc::_exit(i32::from(!refused)) };
        }
        let mut status = 0;
        // SAFETY: waitpid(2) for the process forked above.
        assert_eq!(unsafe { libc::waitpid(copy, &mut status, 0) }, copy);
        assert_eq!(status, 0);
        gate.write_all(b"after").unwrap();
        drop(gate);
        child.wait_with_output().unwrap().exit().check().unwrap();
        assert_eq!(collected.text(), "before after");
    });
}

// ── large and limited ──

#[test]
fn large_both_ways_without_a_deadlock() {
    let sent: Vec<u8> = (0..32 * MIB).map(|i| (i / 7 % 251) as u8).collect();
    let output = Command::new("cat").stdin(Stdio::bytes(sent.clone())).output().unwrap();
    assert!(output.stdout == sent);
    let reader = Stdio::reader(io::Cursor::new(sent.clone()));
    let collected = Collected::default();
    Command::new("cat").stdin(reader).stdout(Stdio::writer(collected.clone())).run().unwrap();
    assert!(*collected.0.lock().unwrap() == sent);
    let output = Command::new("tee").arg("/dev/stderr").stdin(Stdio::bytes(sent.clone())).output().unwrap();
    assert!(output.stdout == sent && output.stderr == sent);
}

#[test]
fn h176_a_limit_that_is_exceeded_stops_the_child() {
    for mut command in [sh("exec yes"), sh("exec yes >&2")] {
        let limit = || Stdio::captured_limited(Limit::stop_at(1000));
        let error = command.stdout(limit()).stderr(limit()).output().unwrap_err();
        assert_eq!((error.kind(), error.cause()), (ErrorKind::OutputLimit, Some(&Cause::OutputLimit)));
        let captured = error.output().unwrap();
        assert_eq!(captured.stdout.len() + captured.stderr.len(), 1000);
    }
    let error = sh("yes & exec yes >&2")
        .stdout(Stdio::captured_limited(Limit::stop_at(7)))
        .group()
        .combined_output()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutputLimit);
    assert_eq!(error.output().unwrap().stdout, b"y\ny\ny\ny");
    // Exactly as much as is allowed is not too much.
    let output = sh("printf 1234567").stdout(Stdio::captured_limited(Limit::stop_at(7))).output().unwrap();
    assert_eq!((&*output.stdout, output.stdout_omitted_bytes), (&b"1234567"[..], 0));
}

#[test]
fn a_limit_that_is_found_exceeded_after_the_exit_is_an_error_too() {
    let limited = |script: &str| {
        let mut command = sh(script);
        command.stdout(Stdio::captured_limited(Limit::stop_at(7)));
        command
    };
    // It is dead before its output is looked at: nobody has stopped it.
    let mut reactor = Reactor::new().unwrap();
    let id = reactor.spawn(&limited("printf 12345678")).unwrap();
    let pid = reactor.pid(id).unwrap();
    eventually("it is dead", || state(pid) == Some('Z'));
    let ended = next_ended(&mut reactor, id);
    assert_eq!((ended.exit().code(), ended.exit().cause()), (Some(0), None));
    let error = ended.exit().check().unwrap_err();
    assert_eq!((error.kind(), error.cause()), (ErrorKind::OutputLimit, None));
    assert!(error.to_string().contains("more output than"), "{error}");
    let captured = ended.into_output();
    assert_eq!((&*captured.stdout, captured.stdout_omitted_bytes), (&b"1234567"[..], 1));
    // Nor is one that is not to be stopped.
    let error = limited("printf 12345678; sleep 0.1; exit 0").cancel(Cancel::Nothing).output().unwrap_err();
    assert_eq!((error.kind(), error.exit().unwrap().code()), (ErrorKind::OutputLimit, Some(0)));
    // A non-success is blamed first.
    let error = limited("printf 12345678; exit 3").cancel(Cancel::Nothing).run().unwrap_err();
    assert_eq!((error.kind(), error.exit().unwrap().code()), (ErrorKind::Unsuccessful, Some(3)));
    let nothing = sh("exit 0").stdout(Stdio::captured_limited(Limit::stop_at(0))).output().unwrap();
    nothing.exit().check().unwrap();
}

#[test]
fn h176_a_limited_capture_of_a_flood_takes_little_memory() {
    in_own_process("h176_a_limited_capture_of_a_flood_takes_little_memory", || {
        let peak = || {
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            line.trim_end_matches("kB").trim().parse::<usize>().unwrap()
        };
        Command::new("true").output().unwrap();
        let before = peak();
        let limit = Limit::head_tail(1000, 1000);
        let output = sh("yes | head -c 104857600").stdout(Stdio::captured_limited(limit)).output().unwrap();
        assert_eq!((output.stdout.len(), output.stdout_omitted_bytes), (2000, 100 * MIB as u64 - 2000));
        assert!(peak() - before < 8 << 10, "{} KiB more", peak() - before);
    });
}

#[test]
fn a_cut_takes_what_the_child_left_however_much_another_goes_on_writing() {
    // The flood is another process's: what comes after the child's own end is none of ours.
    let script = "(while :; do echo flood; done) & echo $! >&2; echo own; exit 0";
    for served in [false, true] {
        let collected = Collected::default();
        let mut command = sh(script);
        command.stdout(if served { Stdio::writer(collected.clone()) } else { Stdio::captured() });
        let start = Instant::now();
        let error = command.stderr(Stdio::captured()).wait_delay(MOMENT).output().unwrap_err();
        assert!(start.elapsed() < SOON);
        let captured = error.output().unwrap();
        assert_eq!(error.kind(), ErrorKind::OutputCut);
        assert!(error.exit().unwrap().held_open().stdout);
        let text = if served { collected.text().into_bytes() } else { captured.stdout.clone() };
        assert!(text.windows(4).any(|w| w == b"own\n"));
        // It dies of the closed pipe.
        let pid: u32 = String::from_utf8_lossy(&captured.stderr).lines().next().unwrap().parse().unwrap();
        eventually("nobody reads it any more", || matches!(state(pid), None | Some('Z')));
    }
}

#[test]
fn a_flood_delays_neither_another_exit_nor_a_cancel() {
    let mut reactor = Reactor::new().unwrap();
    let ctx = Context::new();
    let small = || Stdio::captured_limited(Limit::head_tail(10, 10));
    let floods: Vec<ChildId> = (0..4)
        .map(|_| reactor.spawn(Command::new("yes").stdout(small()).stderr(Stdio::null()).context(&ctx)).unwrap())
        .collect();
    for _ in 0..20 {
        let id = reactor.spawn(Command::new("true").stdout(Stdio::captured())).unwrap();
        let pid = reactor.pid(id).unwrap();
        eventually("it is dead", || state(pid) == Some('Z'));
        // Its exit and its EOF are served in the turn that hears of them, whatever the floods have ready. The kernel calls it dead a moment
        // before it tells the loop.
        let mut turns = (0..2).map(|_| reactor.turn(Some(Duration::ZERO)).map(|()| reactor.next_exit()).unwrap());
        let ended = turns.find_map(|ended| ended).expect("at once");
        assert_eq!((ended.id(), ended.exit().code()), (id, Some(0)));
    }
    ctx.cancel();
    let mut left = floods.len();
    while left > 0 {
        reactor.turn(Some(SOON)).unwrap();
        while let Some(ended) = reactor.next_exit() {
            assert_eq!(ended.exit().signal(), Some(Signal::SIGKILL));
            assert_eq!(ended.exit().cause(), Some(&Cause::Cancelled));
            left -= 1;
        }
    }
}

// ── a stop and those who hold the output ──

#[test]
fn a_stop_that_comes_between_the_death_and_its_discovery_ends_the_capture() {
    let mut reactor = Reactor::new().unwrap();
    let id = reactor.spawn(holding("exit 7").stdout(Stdio::captured()).stderr(Stdio::captured())).unwrap();
    let pid = reactor.pid(id).unwrap();
    // Nobody turns the loop: it does not know of the death.
    eventually("it is dead", || state(pid) == Some('Z'));
    reactor.terminate(id, SOON).unwrap();
    let ended = next_ended(&mut reactor, id);
    assert_eq!((ended.exit().code(), ended.exit().cause()), (Some(7), None));
    assert!(ended.exit().held_open().stderr);
    kill_holder(&ended.into_output().stdout);
}

#[test]
fn a_context_that_is_noticed_before_the_exit_ends_the_capture() {
    in_own_process("a_context_that_is_noticed_before_the_exit_ends_the_capture", || {
        let mut reactor = Reactor::new().unwrap();
        let ctx = Context::new();
        let (stdin, gate) = pipe();
        let mut command = holding("read _; exit 7");
        command.stdin(OwnedFd::from(stdin)).context(&ctx);
        let id = reactor.spawn(command.stdout(Stdio::captured()).stderr(Stdio::captured())).unwrap();
        drop(command);
        // More than one turn takes from the kernel, and the context before the exit: a turn deals with exits first.
        let mut crowd = Command::new("sleep");
        crowd.arg("60").kill_on_drop(true);
        let others: Vec<Context> = (0..1100).map(|_| Context::new()).collect();
        others.iter().for_each(|other| {
            crowd.context(other);
        });
        reactor.spawn(&crowd).unwrap();
        reactor.turn(Some(Duration::ZERO)).unwrap();
        let pid = reactor.pid(id).unwrap();
        ctx.cancel();
        others.iter().for_each(Context::cancel);
        drop(gate);
        eventually("it is dead", || state(pid) == Some('Z'));
        let ended = next_ended(&mut reactor, id);
        assert_eq!((ended.exit().code(), ended.exit().cause()), (Some(7), None));
        assert!(ended.exit().held_open().stderr);
        kill_holder(&ended.into_output().stdout);
    });
}

#[test]
fn a_stop_that_sends_nothing_still_ends_the_capture_at_the_exit() {
    let ctx = Context::new();
    let mut command = holding("read _; exit 7");
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::captured())
        .stderr(Stdio::captured())
        .context(&ctx)
        .cancel(Cancel::Nothing)
        .spawn()
        .unwrap();
    let stdin = child.take_stdin();
    ctx.cancel();
    assert!(child.wait_timeout(MOMENT).unwrap().is_none());
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.exit().code(), output.exit().cause()), (Some(7), None));
    assert!(output.exit().held_open().stderr);
    kill_holder(&output.stdout);
}

// ── helpers ──

/// A writer whose bytes the test sees.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<u8>>>);

impl Collected {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Collected {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(chunk)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that counts.
#[derive(Clone, Default)]
struct Counted(Arc<Mutex<usize>>);

impl Counted {
    fn bytes(&self) -> usize {
        *self.0.lock().unwrap()
    }
}

impl Write for Counted {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        *self.0.lock().unwrap() += chunk.len();
        Ok(chunk.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A writer that takes a chunk when the test says so.
struct Gated {
    gate: mpsc::Receiver<()>,
    collected: Collected,
}

impl Write for Gated {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        self.gate.recv().map_err(io::Error::other)?;
        self.collected.write(chunk)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader and writer that is a function.
struct FromFn<F>(F);

impl<F: FnMut(&[u8]) -> io::Result<usize>> Read for FromFn<F> {
    fn read(&mut self, chunk: &mut [u8]) -> io::Result<usize> {
        (self.0)(chunk)
    }
}

impl<F: FnMut(&[u8]) -> io::Result<usize>> Write for FromFn<F> {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        (self.0)(chunk)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader and writer that fails at once.
struct FailsWith(Option<io::Error>);

impl Read for FailsWith {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

impl Write for FailsWith {
    fn write(&mut self, chunk: &[u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(chunk.len()), Err)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An error of the caller's own.
#[derive(Debug)]
struct Custom(&'static str);

impl std::fmt::Display for Custom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Custom {}

fn find_custom(error: &Error) -> bool {
    let mut next: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = next {
        if error.is::<Custom>() {
            return true;
        }
        next = error.source();
    }
    false
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("pidloop-{}-{name}", std::process::id()))
}

/// A shell that leaves a grandchild on its stderr and prints the grandchild's pid.
fn holding(end: &str) -> Command {
    sh(&format!("sleep 60 >/dev/null & echo $!; {end}"))
}

fn kill_holder(stdout: &[u8]) {
    let pid: i32 = String::from_utf8_lossy(stdout).trim().parse().unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Turns until this child is reported.
fn next_ended(reactor: &mut Reactor, id: ChildId) -> Ended {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < SOON, "not in time");
        reactor.turn(Some(MOMENT)).unwrap();
        while let Some(ended) = reactor.next_exit() {
            if ended.id() == id {
                return ended;
            }
        }
    }
}
