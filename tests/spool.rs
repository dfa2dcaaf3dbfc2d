//! Promise 5 of output that the child itself writes into a file: nobody is waited for but the child, nothing is lost, and when it is dead nothing
//! changes any more.

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;

use common::{SOON, Scratch, in_own_process, open_descriptors, rounds, sh};
use pidloop::{Command, ErrorKind, Reactor, Spool, Stage, Stdio};
use rustix::fs::{OFlags, fcntl_getfl};

const MIB: usize = 1 << 20;

fn spool_of(script: &str) -> Spool {
    sh(script).stdout(Stdio::spooled()).output().unwrap().stdout_spool.unwrap()
}

#[test]
fn it_has_all_that_was_written_and_is_sealed() {
    let spool = spool_of("seq 100000");
    let expected: Vec<u8> = (1..=100_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    assert!(spool.is_sealed() && !spool.is_empty());
    assert_eq!((spool.len_bytes(), spool.start()), (expected.len() as u64, 0));
    assert!(spool.read().unwrap() == expected);
    let mut text = Vec::new();
    let mut file = spool.file();
    file.read_to_end(&mut text).unwrap();
    assert!(text == expected);
    assert!(file.write_all(b"x").is_err() && file.set_len(0).is_err());
    let mut some = [0; 4];
    assert_eq!((spool.read_at(&mut some, 588_893).unwrap(), &some[..2]), (2, &b"0\n"[..]));
    assert_eq!(spool.read_at(&mut some, 600_000).unwrap(), 0);
    assert!(spool_of("").is_empty());
}

#[test]
fn writers_at_once_lose_no_line_and_tear_none() {
    let spool = sh("for w in a b c; do (i=0; while [ $i -lt 1000 ]; do echo $w$i; i=$((i+1)); done) & done; wait")
        .stdout(Stdio::spooled())
        .stderr(Stdio::stdout())
        .output()
        .unwrap()
        .stdout_spool
        .unwrap();
    let text = String::from_utf8(spool.read().unwrap()).unwrap();
    for writer in ["a", "b", "c"] {
        let of: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(writer)).collect();
        assert!(of.iter().enumerate().all(|(n, line)| *line == n.to_string()) && of.len() == 1000, "{writer}");
    }
}

#[test]
fn nobody_who_still_holds_it_is_waited_for_or_heard() {
    let script = "printf mine; (read go; echo later || echo refused >&2) 2>&3 <&4 & exit 0";
    let (go, stdin) = {
        let (read, write) = common::pipe();
        (write, read)
    };
    let (mut said, stderr) = common::pipe();
    let mut command = sh(script);
    command.stdout(Stdio::spooled()).fd(3, stderr).fd(4, stdin);
    let output = command.output().unwrap();
    assert!(!output.exit().output_held_open());
    drop(command);
    drop(go);
    // Whoever comes later fails, and knows it.
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    assert!(text.contains("refused"), "{text}");
    assert_eq!(output.stdout_spool.unwrap().read().unwrap(), b"mine");
}

#[test]
fn both_streams_apart_or_in_one() {
    let mut command = sh("echo out; echo err >&2; echo out");
    let output = command.stdout(Stdio::spooled()).stderr(Stdio::spooled()).output().unwrap();
    assert_eq!(output.stdout_spool.as_ref().unwrap().read().unwrap(), b"out\nout\n");
    assert_eq!(output.stderr_spool.as_ref().unwrap().read().unwrap(), b"err\n");
    assert_ne!(output.stdout_spool, output.stderr_spool);
    let output = command.stderr(Stdio::stdout()).output().unwrap();
    assert_eq!(output.stdout_spool.unwrap().read().unwrap(), b"out\nerr\nout\n");
    assert_eq!((output.stdout, output.stderr_spool), (vec![], None));
}

#[test]
fn a_file_of_the_callers_is_appended_to_and_keeps_its_flags() {
    let scratch = Scratch::new("spool");
    let path = scratch.file("log", "before\n", 0o644);
    let mut file = File::options().read(true).write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(3)).unwrap();
    let output = sh("echo mine").stdout(Stdio::spooled_into(file.try_clone().unwrap())).output().unwrap();
    let spool = output.stdout_spool.unwrap();
    assert_eq!((spool.start(), spool.len_bytes(), spool.is_sealed()), (7, 5, false));
    assert_eq!(spool.read().unwrap(), b"mine\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "before\nmine\n");
    assert_eq!(file.stream_position().unwrap(), 3);
    assert!(!fcntl_getfl(file.as_fd()).unwrap().contains(OFlags::APPEND));
    // What cannot be appended to is named.
    let (read, _write) = common::pipe();
    let error = sh("echo").stdin(Stdio::spooled()).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    drop(read);
    let error = sh("echo").stdout(Stdio::spooled_into(File::open("/proc").unwrap())).spawn().unwrap_err();
    assert_eq!(error.stage(), Some(Stage::Streams), "{error}");
}

#[test]
fn a_child_that_truncates_its_stdout_does_so() {
    assert_eq!(spool_of("echo gone; : > /dev/stdout; echo kept").read().unwrap(), b"kept\n");
}

#[test]
fn reactors_and_other_verbs_have_it_too() {
    let child = sh("echo x").stdout(Stdio::spooled()).spawn().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(child.wait_with_output().unwrap().stdout_spool.unwrap().read().unwrap(), b"x\n");
    assert!(sh("echo x").stdout(Stdio::spooled()).status().unwrap().success());

    let mut reactor = Reactor::new().unwrap();
    reactor.spawn(sh("echo x").stdout(Stdio::spooled())).unwrap();
    let ended = loop {
        reactor.turn(Some(SOON)).unwrap();
        if let Some(ended) = reactor.next_exit() {
            break ended;
        }
    };
    assert_eq!(ended.into_output().stdout_spool.unwrap().read().unwrap(), b"x\n");
}

#[test]
fn nothing_is_left_of_it_and_no_descriptors_left_is_named() {
    in_own_process("nothing_is_left_of_it_and_no_descriptors_left_is_named", || {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        Command::new("true").stdout(Stdio::captured()).output().unwrap();
        let fds = open_descriptors();
        for _ in 0..50 {
            drop(spool_of("echo x"));
            drop(sh("echo x").stdout(Stdio::spooled()).spawn().unwrap());
        }
        common::eventually("all are gone", || open_descriptors() == fds);
        let usual = getrlimit(Resource::Nofile);
        let lowest = fds.iter().map(|(number, _)| *number as u64).zip(0..).find(|(fd, n)| fd != n).unwrap().1;
        for room in 0..3 {
            setrlimit(Resource::Nofile, Rlimit { current: Some(lowest + room), maximum: usual.maximum }).unwrap();
            let result = sh("echo x").stdout(Stdio::spooled()).spawn();
            setrlimit(Resource::Nofile, usual).unwrap();
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoDescriptors, "{room}: {error}");
            assert_eq!(open_descriptors(), fds);
        }
    });
}

/// CPU time of this process so far.
fn cpu_micros() -> i64 {
    // SAFETY: a local that is filled.
    let usage = unsafe {
        let mut usage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let micros = |time: libc::timeval| time.tv_sec * 1_000_000 + time.tv_usec;
    micros(usage.ru_utime) + micros(usage.ru_stime)
}

#[test]
fn its_parent_has_nothing_to_do_with_it() {
    in_own_process("its_parent_has_nothing_to_do_with_it", || {
        let bytes = (rounds(64) * MIB).min(1024 * MIB);
        let mut command = Command::new("head");
        command.args(["-c", &bytes.to_string(), "/dev/zero"]);
        let mut costs = [0; 2];
        for (cost, stdout) in costs.iter_mut().zip([Stdio::captured(), Stdio::spooled()]) {
            command.stdout(stdout);
            // What the first of all spawns costs is no matter here.
            Command::new("true").output().unwrap();
            let before = cpu_micros();
            let output = command.output().unwrap();
            *cost = cpu_micros() - before;
            let spooled = output.stdout_spool.as_ref().map_or(0, Spool::len_bytes);
            assert_eq!(output.stdout.len() as u64 + spooled, bytes as u64);
        }
        println!("{bytes} bytes: {} us of the parent's CPU captured, {} us spooled", costs[0], costs[1]);
        assert!(costs[1] * 4 < costs[0], "{costs:?}");
    });
}
