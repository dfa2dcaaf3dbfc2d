//! The promise that a child has 0, 1, 2 and what it was given, each the right one, whatever their numbers here, and nothing else; told by
//! the kernel's own view of the child. Some of group C of the scenarios by number. Knows the public API and `/proc`.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::thread;

use common::{children_of_ours, eventually, in_own_process, open_descriptors, pipe, sh, state};
use pidloop::{Child, Command, ErrorKind, Limit, Stage, Stdio};

/// A descriptor's identity: (device, inode).
type Identity = (u64, u64);
/// What a child has.
type View = BTreeMap<RawFd, Identity>;

#[test]
fn c99_commands_started_at_once_get_their_own_descriptors() {
    thread::scope(|scope| {
        for i in 0..4 {
            scope.spawn(move || {
                for round in 0..50 {
                    let text = format!("{i}.{round}");
                    let mut command = Command::new("/bin/cat");
                    command.arg("/proc/self/fd/3").fd(3, memory(&text));
                    assert_eq!(command.output().unwrap().stdout, text.as_bytes());
                }
            });
        }
    });
}

#[test]
fn c102_a_hole_between_the_numbers_is_closed_in_the_child() {
    let (three, five) = (memory("three"), memory("five"));
    let expected = [(3, identity(&three)), (5, identity(&five))];
    let seen = view(quiet().fd(5, five).fd(3, three));
    assert_eq!(seen.into_iter().filter(|(number, _)| *number > 2).collect::<Vec<_>>(), expected);
}

#[test]
fn c103_what_the_child_gets_blocks() {
    let streams: [fn() -> Stdio; 4] = [Stdio::piped, Stdio::captured, || Stdio::writer(std::io::sink()), Stdio::null];
    for stream in streams {
        let child = sleep().stdin(Stdio::piped()).stdout(stream()).stderr(stream()).spawn().unwrap();
        assert_eq!(flags(&child, [0, 1, 2]).map(|flags| flags & libc::O_NONBLOCK), [0; 3]);
        end(&child);
    }
    for stdin in [Stdio::bytes(vec![0; 100_000]), Stdio::bytes("x"), Stdio::reader(std::io::repeat(0)), Stdio::null()] {
        let child = sleep().stdin(stdin).stdout(Stdio::null()).stderr(Stdio::stdout()).spawn().unwrap();
        assert_eq!(flags(&child, [0, 1, 2]).map(|flags| flags & libc::O_NONBLOCK), [0; 3]);
        end(&child);
    }
    // The ends that the caller takes block, too.
    let child = sleep().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let ends: [OwnedFd; 3] =
        [child.take_stdin().unwrap().into(), child.take_stdout().unwrap().into(), child.take_stderr().unwrap().into()];
    for end in &ends {
        assert!(!rustix::fs::fcntl_getfl(end).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
    }
    end(&child);
}

#[test]
fn c104_the_flags_of_what_the_caller_gives_are_not_changed() {
    for nonblocking in [false, true] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(nonblocking).unwrap();
        let given = || OwnedFd::from(ours.try_clone().unwrap());
        let mut command = sleep();
        command.stdin(given()).stdout(given()).stderr(given()).fd(7, given()).inherit_fd(ours.as_raw_fd());
        let look = |fd: BorrowedFd<'_>| {
            (rustix::fs::fcntl_getfl(fd).unwrap().bits(), rustix::io::fcntl_getfd(fd).unwrap().bits())
        };
        let fds = [command_fd(&ours), command_fd(&theirs)];
        let before = fds.map(look);
        let child = command.spawn().unwrap();
        let expected = if nonblocking { libc::O_NONBLOCK } else { 0 };
        let numbers = [0, 1, 2, 7, ours.as_raw_fd()];
        assert_eq!(flags(&child, numbers).map(|flags| flags & libc::O_NONBLOCK), [expected; 5]);
        assert_eq!(fds.map(look), before);
        end(&child);
        assert_eq!(fds.map(look), before);
    }
}

/// Every kind of overlap between the numbers that the files have here and those the child gets them under, by a fixed sequence of chances.
#[test]
fn any_numbers_here_become_any_numbers_there() {
    in_own_process("any_numbers_here_become_any_numbers_there", || {
        let files: Vec<OwnedFd> = (0..4).map(|i| raised(memory(&format!("file {i}")))).collect();
        let pool = [3, 4, 5, 6, 7, 8, 9, 100, 203, 204, 205, 206, 1000];
        let mut chance = Chance(7);
        for round in 0..400 {
            let mut command = sleep();
            let mut expected = View::new();
            let streams = (0..3).map(|_| chance.below(4)).collect::<Vec<_>>();
            for (number, choice) in streams.into_iter().enumerate() {
                let stdio = match choice {
                    0 => {
                        expected.insert(number as RawFd, identity(&standard(number as RawFd)));
                        Stdio::inherit()
                    }
                    1 => {
                        expected.insert(number as RawFd, identity(&File::open("/dev/null").unwrap()));
                        Stdio::null()
                    }
                    _ => {
                        let file = chance.pick(&files);
                        expected.insert(number as RawFd, identity(file));
                        Stdio::from(somewhere(file, &mut chance, &pool))
                    }
                };
                match number {
                    0 => command.stdin(stdio),
                    1 => command.stdout(stdio),
                    _ => command.stderr(stdio),
                };
            }
            for _ in 0..chance.below(6) {
                let (to, file) = (*chance.pick(&pool), chance.pick(&files));
                expected.insert(to, identity(file));
                command.fd(to, somewhere(file, &mut chance, &pool));
            }
            assert_eq!(view(&mut command), expected, "round {round}");
        }
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn swaps_and_cycles_under_the_very_same_numbers() {
    in_own_process("swaps_and_cycles_under_the_very_same_numbers", || {
        let files: Vec<OwnedFd> = (0..3).map(|i| raised(memory(&format!("file {i}")))).collect();
        let numbers = [203, 204, 205];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut command = quiet();
            let mut expected = View::new();
            for (i, to) in order.into_iter().enumerate() {
                command.fd(numbers[to], at(&files[i], numbers[i]));
                expected.insert(numbers[to], identity(&files[i]));
            }
            let mut seen = view(&mut command);
            seen.retain(|number, _| *number > 2);
            assert_eq!(seen, expected, "{order:?}");
        }
        // What is put aside meanwhile is not put where another one goes, though that is free.
        let free = files[0].try_clone().unwrap().as_raw_fd();
        let mut command = quiet();
        for number in free..free + 8 {
            command.fd(number, raised(files[0].try_clone().unwrap()));
        }
        command.fd(204, at(&files[1], 205)).fd(205, at(&files[2], 204));
        let seen = view(&mut command);
        assert_eq!((seen[&204], seen[&205]), (identity(&files[1]), identity(&files[2])));
        assert!((free..free + 8).all(|number| seen[&number] == identity(&files[0])));
    });
}

#[test]
fn standard_streams_that_are_given_crosswise() {
    in_own_process("standard_streams_that_are_given_crosswise", || {
        let files: Vec<OwnedFd> = (0..3).map(|i| raised(memory(&format!("file {i}")))).collect();
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let saved: Vec<OwnedFd> = (0..3).map(|n| raised(standard(n))).collect();
            // Our 0, 1 and 2 are the files, and the command owns them.
            let mut given = (0..3).map(|n| Some(at(&files[n as usize], n))).collect::<Vec<_>>();
            let mut command = sleep();
            let mut expected = View::new();
            for (to, from) in order.into_iter().enumerate() {
                let stdio = Stdio::from(given[from].take().unwrap());
                match to {
                    0 => command.stdin(stdio),
                    1 => command.stdout(stdio),
                    _ => command.stderr(stdio),
                };
                expected.insert(to as RawFd, identity(&files[from]));
            }
            let seen = view(&mut command);
            // It closes our 0, 1 and 2, which come back.
            drop(command);
            for (n, fd) in saved.iter().enumerate() {
                std::mem::forget(at(fd, n as RawFd));
            }
            assert_eq!(seen, expected, "{order:?}");
        }
    });
}

#[test]
fn in_a_host_without_standard_streams_nothing_of_ours_takes_their_places() {
    in_own_process("in_a_host_without_standard_streams_nothing_of_ours_takes_their_places", || {
        let saved: Vec<OwnedFd> = (0..3).map(|n| raised(standard(n))).collect();
        let file = raised(memory("file"));
        for n in 0..3 {
            // SAFETY: this process is the test's own; they are put back below.
            unsafe { libc::close(n) };
        }
        let taken = || (0..3).filter(|n| fs::symlink_metadata(format!("/proc/self/fd/{n}")).is_ok()).count();
        let look = || -> pidloop::Result<_> {
            let mut seen = Vec::new();
            for round in 0..6 {
                let mut command = sleep();
                match round {
                    0 => command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()),
                    1 => command.stdin(Stdio::reader(std::io::repeat(0))).stdout(Stdio::writer(std::io::sink())),
                    2 => command.stdin(Stdio::bytes(vec![0; 1 << 20])).stderr(Stdio::captured()),
                    3 => command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::stdout()),
                    4 => command.fd(3, rustix::io::fcntl_dupfd_cloexec(&file, 3).unwrap()),
                    _ => command.inherit_fd(file.as_raw_fd()),
                };
                let child = command.spawn()?;
                let during = taken();
                let numbers: Vec<RawFd> = view_of(child.id()).into_keys().collect();
                child.kill()?;
                child.wait()?;
                seen.push((during, numbers));
            }
            Ok((seen, taken()))
        };
        let result = std::panic::catch_unwind(look);
        for (n, fd) in saved.iter().enumerate() {
            std::mem::forget(at(fd, n as RawFd));
        }
        let (seen, after) = result.unwrap().unwrap();
        let expected = [vec![0, 1, 2], vec![0, 1], vec![0, 2], vec![0, 1, 2], vec![3], vec![file.as_raw_fd()]];
        assert_eq!(seen, expected.map(|numbers| (0, numbers)));
        assert_eq!(after, 0);
    });
}

#[test]
fn streams_of_ours_beside_given_numbers() {
    // Our own pipe ends lie on the numbers that the child's descriptors get.
    for _ in 0..20 {
        let mut command = sh("cat <&3 >&4; cat <&5; cat <&6 >&2; cat");
        let (mut read, write) = pipe();
        command.fd(3, memory("three ")).fd(4, write).fd(5, memory("five ")).fd(6, memory("six "));
        for number in 7..20 {
            command.fd(number, memory("more"));
        }
        let output = command.stdin(Stdio::bytes("stdin")).output().unwrap();
        drop(command);
        let mut through_four = String::new();
        read.read_to_string(&mut through_four).unwrap();
        let texts = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert_eq!((&*through_four, &*texts[0], &*texts[1]), ("three ", "five stdin", "six "));
    }
}

#[test]
fn the_last_word_on_a_number_counts() {
    let (one, two, ours) = (memory("one"), memory("two"), raised(memory("ours")));
    let number = ours.as_raw_fd();
    let (first, second) = (identity(&one), identity(&two));
    let copy = || one.try_clone().unwrap();
    assert_eq!(view(quiet().fd(5, copy()).fd(5, two))[&5], second);
    assert_eq!(view(quiet().inherit_fd(number).fd(number, copy()))[&number], first);
    assert_eq!(view(quiet().fd(number, copy()).inherit_fd(number))[&number], identity(&ours));
    // Then it need not be open here.
    assert_eq!(view(quiet().inherit_fd(999).fd(999, copy()))[&999], first);
    // The same file twice, and once more under the number that it has here.
    let seen = view(quiet().fd(3, copy()).fd(9, copy()).inherit_fd(number).inherit_fd(number));
    assert_eq!((seen[&3], seen[&9], seen[&number], seen.len()), (first, first, identity(&ours), 6));
}

#[test]
fn an_inherited_number_must_be_open_and_is_named_if_not() {
    // The first one is high: another test of this process may have hundreds of children.
    for number in [999_999, -1, RawFd::MAX] {
        let error = Command::new("true").inherit_fd(number).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Descriptors)));
        assert!(error.to_string().contains(&format!("descriptor {number} is not open")), "{error}");
    }
    for number in [-1, 0, 1, 2] {
        let error = Command::new("true").fd(number, memory("")).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains(&format!("descriptor {number} ")), "{error}");
    }
    // What is open when it is spawned counts, not what is when it is said.
    let ours = raised(memory("ours"));
    let mut command = quiet();
    command.inherit_fd(ours.as_raw_fd());
    assert_eq!(view(&mut command)[&ours.as_raw_fd()], identity(&ours));
    drop(ours);
}

#[test]
fn a_child_inherits_as_stds_does_when_asked() {
    in_own_process("a_child_inherits_as_stds_does_when_asked", || {
        // One that is close-on-exec, two that are not.
        let _closed = raised(memory("closed"));
        let open = [raised(memory("open")), raised(memory("also"))];
        for fd in &open {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
        }
        let mut theirs = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let as_std = view_of(theirs.id());
        theirs.kill().unwrap();
        theirs.wait().unwrap();
        assert!(open.iter().all(|fd| as_std.get(&fd.as_raw_fd()) == Some(&identity(fd))));
        assert_eq!(view(sleep().inherit_fds()), as_std);
        // And nothing of it when it is not asked for.
        assert_eq!(view(&mut sleep()).len(), 3);
        // Given ones go on top, also onto a number that would be inherited.
        let number = open[0].as_raw_fd();
        let (file, other) = (memory("given"), memory("other"));
        let mut expected = as_std;
        expected.insert(number, identity(&file));
        expected.insert(9, identity(&other));
        assert_eq!(view(sleep().inherit_fds().fd(number, file).fd(9, other)), expected);
    });
}

#[test]
fn thousands_of_open_descriptors_change_nothing() {
    in_own_process("thousands_of_open_descriptors_change_nothing", || {
        let file = memory("file");
        let many: Vec<OwnedFd> = (0..5000).map(|_| file.try_clone().unwrap()).collect();
        for fd in many.iter().step_by(2) {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
        }
        let high = memory("high");
        assert!(high.as_raw_fd() > 5000);
        let (number, high_identity) = (high.as_raw_fd(), identity(&high));
        let seen = view(quiet().inherit_fd(number).fd(3, high.try_clone().unwrap()).fd(4, file));
        assert_eq!((seen.len(), seen[&3], seen[&number]), (6, high_identity, high_identity));
        let output = sh("cat <&3").fd(3, memory("text")).stdin(Stdio::bytes("x")).output().unwrap();
        assert_eq!(output.stdout, b"text");
    });
}

#[test]
fn a_low_limit_is_enough_or_says_so_and_loses_nothing() {
    in_own_process("a_low_limit_is_enough_or_says_so_and_loses_nothing", || {
        Command::new("true").output().unwrap();
        let top = open_descriptors().iter().map(|(number, _)| *number).filter(|n| *n < 40).max().unwrap();
        limit_descriptors(top as u64 + 12);
        let run = || sh("cat <&9; cat").fd(9, memory("nine")).stdin(Stdio::bytes("in")).output();
        assert_eq!(run().unwrap().stdout, b"ninein");
        // Numbers that are not to be had are named.
        let error = Command::new("true").fd(500, memory("")).spawn().unwrap_err();
        assert_eq!(error.stage(), Some(Stage::Descriptors));
        assert!(error.to_string().contains("descriptor 500 is not below the limit"), "{error}");
        // The last number there is, crosswise with another one: nothing above it is needed.
        let last = top + 11;
        let (a, b) = (memory("a"), memory("b"));
        let expected = [(last, identity(&a)), (last - 1, identity(&b))];
        let mut command = quiet();
        command.fd(last, at(&a, last - 1)).fd(last - 1, at(&b, last));
        drop((a, b));
        let seen = view(&mut command);
        assert_eq!(expected.map(|(number, _)| (number, seen[&number])), expected);
        drop(command);

        let before = open_descriptors();
        let mut hoard = Vec::new();
        let mut failures = 0;
        while let Ok(file) = File::open("/dev/null") {
            hoard.push(file);
            let served = Stdio::captured_limited(Limit::head_tail(10, 10));
            let result = Command::new("echo").stdin(Stdio::reader(std::io::empty())).stdout(served).output();
            match result {
                Ok(output) => assert_eq!(output.stdout, b"\n"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NoDescriptors, "{error}");
                    failures += 1;
                }
            }
        }
        assert!(failures > 2 && hoard.len() > failures, "{failures} of {}", hoard.len());
        drop(hoard);
        assert_eq!(run().unwrap().stdout, b"ninein");
        eventually("nothing is lost", || open_descriptors() == before);
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn a_directory_by_descriptor_under_a_number_that_the_child_gets() {
    in_own_process("a_directory_by_descriptor_under_a_number_that_the_child_gets", || {
        let dir = OwnedFd::from(File::open("/usr").unwrap());
        let mut command = Command::new("/bin/pwd");
        command.arg("-P").fd(203, memory("given")).current_dir_fd(at(&dir, 203));
        assert_eq!(command.output().unwrap().stdout, b"/usr\n");
        drop(command);
        let mut command = quiet();
        command.fd(203, memory("given")).current_dir_fd(at(&dir, 203));
        assert_eq!(view(&mut command).len(), 4);
        // A host without a stdin: the directory has its number.
        let saved = raised(standard(0));
        let mut command = Command::new("/bin/pwd");
        command.arg("-P").current_dir_fd(at(&dir, 0)).stdin(Stdio::null());
        let output = command.output();
        drop(command);
        std::mem::forget(at(&saved, 0));
        assert_eq!(output.unwrap().stdout, b"/usr\n");
    });
}

#[test]
fn a_program_that_is_only_a_descriptor_can_be_run() {
    let program = memory("");
    let image = fs::read("/bin/echo").unwrap();
    File::from(program.try_clone().unwrap()).write_all_at(&image, 0).unwrap();
    // Close-on-exec, as everything of ours; open for writing it cannot be executed.
    let path = format!("/proc/self/fd/{}", program.as_raw_fd());
    let program = raised(File::open(path).unwrap().into());
    for dir in ["/proc/self/fd", "/dev/fd"] {
        let path = format!("{dir}/{}", program.as_raw_fd());
        let output = Command::new(path).arg("from memory").fd(3, memory("x")).output().unwrap();
        assert_eq!(output.stdout, b"from memory\n");
    }
}

// ── helpers ──

fn sleep() -> Command {
    let mut command = Command::new("/bin/sleep");
    command.arg("60");
    command
}

/// As [`sleep`], with null streams.
fn quiet() -> Command {
    let mut command = sleep();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn end(child: &Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// What a child of this command has, by number.
fn view(command: &mut Command) -> View {
    let child = command.spawn().unwrap();
    let seen = view_of(child.id());
    end(&child);
    seen
}

fn view_of(pid: u32) -> View {
    await_exec(pid);
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            let of = fs::metadata(entry.path()).unwrap();
            (entry.file_name().to_str().unwrap().parse().unwrap(), (of.dev(), of.ino()))
        })
        .collect()
}

/// The kernel wakes us in the midst of the exec, and closes then.
fn await_exec(pid: u32) {
    eventually("the exec is over", || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains("(sleep)"));
    eventually("it sleeps", || state(pid) == Some('S'));
}

/// The status flags of a child's descriptors.
fn flags<const N: usize>(child: &Child, numbers: [RawFd; N]) -> [i32; N] {
    await_exec(child.id());
    numbers.map(|number| {
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", child.id())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
        i32::from_str_radix(flags.trim(), 8).unwrap()
    })
}

/// A file of its own, read from its beginning.
fn memory(text: &str) -> OwnedFd {
    let fd = rustix::fs::memfd_create("pidloop-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    File::from(fd.try_clone().unwrap()).write_all_at(text.as_bytes(), 0).unwrap();
    fd
}

fn identity(fd: &impl std::os::fd::AsFd) -> Identity {
    let stat = rustix::fs::fstat(fd).unwrap();
    (stat.st_dev, stat.st_ino)
}

fn command_fd(stream: &UnixStream) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(stream)
}

/// A duplicate out of the way of the numbers that are played with.
fn raised(fd: OwnedFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(fd, 2000).unwrap()
}

/// A duplicate under this very number, whatever was there. In a process of the test's own.
fn at(fd: &OwnedFd, number: RawFd) -> OwnedFd {
    // SAFETY: dup3(2); the number is the test's own, or a standard stream that it has saved.
    unsafe {
        assert_eq!(libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC), number);
        OwnedFd::from_raw_fd(number)
    }
}

/// A duplicate at a number of the pool that is free, or at the lowest free one.
fn somewhere(file: &OwnedFd, chance: &mut Chance, pool: &[RawFd]) -> OwnedFd {
    let number = *chance.pick(pool);
    let is_free = fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_err();
    if is_free && chance.below(3) > 0 { at(file, number) } else { file.try_clone().unwrap() }
}

fn standard(number: RawFd) -> OwnedFd {
    // SAFETY: the standard streams are open.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned().unwrap()
}

fn limit_descriptors(soft: u64) {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let new = rustix::process::Rlimit { current: Some(soft), maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, new).unwrap();
}

/// Numbers without a pattern, the same in every run. Knuth's MMIX generator.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}
