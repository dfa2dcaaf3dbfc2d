//! Every option, told by the kernel's own view of the child; group F of the scenarios by number. Knows the public API and `/proc`.

mod common;

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{in_own_process, sh, skip, spawn_ready};
use pidloop::{Command, ErrorKind, IoPriority, Namespace, Resource, Scheduler, Signal, Stage, Stdio};

fn text(command: &Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap().trim_end().to_owned()
}

fn status_of(command: &Command, field: &str) -> String {
    let mut command = command.clone();
    command.args(["-E", &format!("^{field}:"), "/proc/self/status"]);
    let line = text(&command);
    line.split_once(':')
        .unwrap_or_else(|| panic!("no {field}: {line}"))
        .1
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn grep() -> Command {
    Command::new("/bin/grep")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Field `n` (from 1) of `/proc/self/stat` as the child sees it.
fn stat(command: &mut Command, n: usize) -> i64 {
    let line = text(command.arg("/proc/self/stat"));
    line.rsplit_once(')').unwrap().1.split_whitespace().nth(n - 3).unwrap().parse().unwrap()
}

fn cat() -> Command {
    Command::new("/bin/cat")
}

#[test]
fn f143_by_default_nothing_changes() {
    let ours = rustix::process::getpgrp().as_raw_nonzero().get();
    assert_eq!(stat(&mut cat(), 5), i64::from(ours));
}

#[test]
fn f144_a_new_group_has_the_childs_number() {
    let (child, _stdout) = spawn_ready(sh("echo ready; exec sleep 60").process_group(0));
    let pid = rustix::process::Pid::from_raw(child.id() as i32);
    assert_eq!(rustix::process::getpgid(pid).unwrap(), pid.unwrap());
    child.kill().unwrap();
}

#[test]
fn f145_a_second_child_joins_the_first_ones_group() {
    let (child, _stdout) = spawn_ready(sh("echo ready; exec sleep 60").process_group(0));
    assert_eq!(stat(cat().process_group(child.id() as i32), 5), i64::from(child.id()));
    child.kill().unwrap();
    child.wait().unwrap();
    let error = Command::new("true").process_group(child.id() as i32).spawn().unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::ProcessGroup)));
}

#[test]
fn f146_a_session_has_the_childs_number() {
    let (child, _stdout) = spawn_ready(sh("echo ready; exec sleep 60").setsid());
    let pid = rustix::process::Pid::from_raw(child.id() as i32);
    assert_eq!(rustix::process::getsid(pid).unwrap(), pid.unwrap());
    child.kill().unwrap();
}

#[test]
fn f147_a_terminal_that_cannot_be_is_refused_before_the_fork() {
    let mut command = Command::new("true");
    command.setsid().stdin(Stdio::null()).controlling_terminal(0);
    let error = command.spawn().unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Terminal)));
    let error = Command::new("true").stdin(Stdio::null()).foreground(0).spawn().unwrap_err();
    assert_eq!(error.stage(), Some(Stage::Foreground));
    is_contradictory(command.foreground(0), "in the foreground already");
    is_contradictory(Command::new("true").setsid().controlling_terminal(7), "descriptor 7, which it does not get");
    is_contradictory(Command::new("true").setsid().controlling_terminal(-1), "descriptor -1");
    is_contradictory(Command::new("true").foreground(12), "descriptor 12");
    is_contradictory(Command::new("true").controlling_terminal(0), "needs a new session");
}

fn is_contradictory(command: &mut Command, why: &str) {
    let error = command.spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let new = || Command::new("true");
    is_contradictory(new().setsid().process_group(1), "a new session has a new process group");
    is_contradictory(new().trace_me().parent_death_signal(Signal::SIGKILL), "who traces it");
    is_contradictory(new().uid_map(0, 0), "need a new user namespace");
    is_contradictory(new().time_offsets(1, 1), "need a new time namespace");
    is_contradictory(new().process_group(-1), "there is no process group -1");
    is_contradictory(new().cpu_affinity(&[usize::MAX]), "there is no CPU 18446744073709551615");
    is_contradictory(new().ambient_capabilities(&[64]), "there is no capability 64");
    is_contradictory(new().drop_capabilities(&[u32::MAX]), "there is no capability");
    is_contradictory(new().io_priority(IoPriority::BestEffort(8)), "levels 0 to 7");
    // A new session is a new group, however it is asked for.
    for stop_as_one in [false, true] {
        let mut command = sh("echo ready; exec sleep 60");
        let command = command.setsid();
        let (child, _stdout) = spawn_ready(if stop_as_one { command.group() } else { command.process_group(0) });
        let pid = rustix::process::Pid::from_raw(child.id() as i32);
        assert_eq!((rustix::process::getsid(pid), rustix::process::getpgid(pid)), (Ok(pid.unwrap()), Ok(pid.unwrap())));
        child.kill().unwrap();
    }
}

/// (master, slave).
fn pty() -> Option<(OwnedFd, OwnedFd)> {
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).ok()?;
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    Some((master, rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap()))
}

#[test]
fn f148_a_session_can_take_a_terminal() {
    let Some((_master, slave)) = pty() else { return skip("f148_a_session_can_take_a_terminal", "no pty") };
    let mut command = sh("read -r line < /proc/self/stat; echo $line; echo $$");
    command.stdin(slave).setsid().controlling_terminal(0);
    let output = text(&command);
    let (line, pid) = output.split_once('\n').unwrap();
    let fields: Vec<_> = line.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_ne!(fields[4], "0", "no terminal");
    assert_eq!(fields[5], pid, "not in the foreground");
}

#[test]
fn f148_a_child_moves_to_the_foreground_and_we_get_no_signal() {
    const NAME: &str = "f148_a_child_moves_to_the_foreground_and_we_get_no_signal";
    static STOPS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn count(_: i32) {
        STOPS.fetch_add(1, Ordering::SeqCst);
    }
    in_own_process(NAME, || {
        let Some((_master, slave)) = pty() else { return skip(NAME, "no pty") };
        // SAFETY: this process is the test's own; the handler touches an atomic.
        unsafe {
            assert!(libc::setsid() > 0);
            assert_eq!(libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0), 0);
            for signal in [libc::SIGTTIN, libc::SIGTTOU] {
                libc::signal(signal, count as *const () as usize);
            }
            // The end of the terminal.
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
        }
        let ours = rustix::process::getpgrp();
        assert_eq!(rustix::termios::tcgetpgrp(&slave).unwrap(), ours);
        let mut command = Command::new("cat");
        command.stdin(slave.try_clone().unwrap()).process_group(0).foreground(0);
        let child = command.spawn().unwrap();
        let foreground = rustix::termios::tcgetpgrp(&slave).unwrap();
        assert_eq!(foreground.as_raw_nonzero().get(), child.id() as i32);
        assert_eq!(STOPS.load(Ordering::SeqCst), 0);
        child.kill().unwrap();
        child.wait().unwrap();
    });
}

#[test]
fn f149_our_own_ids_may_be_set() {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut command = grep();
    command.uid(uid).gid(gid);
    assert_eq!(status_of(&command, "Uid"), format!("{uid} {uid} {uid} {uid}"));
    assert_eq!(status_of(&command, "Gid"), format!("{gid} {gid} {gid} {gid}"));
}

/// Runs `body` as user 1000, in a process of its own, which keeps these capabilities (as bits).
fn as_a_user(name: &str, groups: &[u32], capabilities: u64, body: impl FnOnce()) {
    in_own_process(name, || {
        if !is_root() {
            return skip(name, "not root");
        }
        // SAFETY: this process is the test's own. Raw calls: they are for this thread, which is all there is.
        unsafe {
            assert_eq!(libc::setgroups(groups.len(), groups.as_ptr()), 0);
            libc::prctl(libc::PR_SET_KEEPCAPS, 1);
            assert_eq!(libc::setresgid(1000, 1000, 1000), 0);
            assert_eq!(libc::setresuid(1000, 1000, 1000), 0);
            let (low, high) = (capabilities as u32, (capabilities >> 32) as u32);
            let (header, sets) = ([0x2008_0522u32, 0], [low, low, 0, high, high, 0]);
            assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()), 0);
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
        body();
    });
}

#[test]
fn f149_a_user_may_set_the_ids_it_has() {
    as_a_user("f149_a_user_may_set_the_ids_it_has", &[7], 0, || {
        let mut command = grep();
        command.uid(1000).gid(1000);
        assert_eq!(status_of(&command, "Uid"), "1000 1000 1000 1000");
        assert_eq!(status_of(&command, "Groups"), "7");
        let error = Command::new("true").uid(1001).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Groups)), "{error}");
    });
}

#[test]
fn f150_other_ids_are_all_three_and_without_our_groups() {
    if !is_root() {
        return skip("f150_other_ids_are_all_three_and_without_our_groups", "not root");
    }
    let mut command = grep();
    command.uid(65534).gid(65533);
    assert_eq!(status_of(&command, "Uid"), "65534 65534 65534 65534");
    assert_eq!(status_of(&command, "Gid"), "65533 65533 65533 65533");
    assert_eq!(status_of(&command, "Groups"), "");
    assert_eq!(status_of(&command, "CapEff"), "0000000000000000");
    command.groups(&[7, 8]);
    assert_eq!(status_of(&command, "Groups"), "7 8");
    let error = Command::new("true").groups(&vec![1; 100_000]).spawn().unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Groups)));
}

#[test]
fn f150_our_own_ids_do_not_keep_our_groups_either() {
    in_own_process("f150_our_own_ids_do_not_keep_our_groups_either", || {
        if !is_root() {
            return skip("f150_our_own_ids_do_not_keep_our_groups_either", "not root");
        }
        // SAFETY: this process is the test's own.
        assert_eq!(unsafe { libc::setgroups(2, [5, 6].as_ptr()) }, 0);
        assert_eq!(status_of(&grep(), "Groups"), "5 6");
        let mut command = grep();
        assert_eq!(status_of(command.uid(0).gid(0), "Groups"), "");
        // In a user namespace they are nobody's, and cannot be dropped.
        command.unshare(&[Namespace::User]).uid_map(0, 0).gid_map(0, 0);
        if user_namespaces_are_allowed() {
            assert_eq!(status_of(&command, "Uid"), "0 0 0 0");
        }
    });
}

/// Not root, but allowed to become anybody.
#[test]
fn another_user_does_not_keep_our_groups_whoever_we_are() {
    const SETGID_AND_SETUID: u64 = 1 << 6 | 1 << 7;
    as_a_user("another_user_does_not_keep_our_groups_whoever_we_are", &[5, 6], SETGID_AND_SETUID, || {
        let mut command = grep();
        assert_eq!(status_of(command.uid(65534).gid(65534), "Groups"), "");
    });
}

fn user_namespaces_are_allowed() -> bool {
    Command::new("true").unshare(&[Namespace::User]).status().is_ok()
}

#[test]
fn f154_a_user_may_have_namespaces_of_its_own() {
    const NAME: &str = "f154_a_user_may_have_namespaces_of_its_own";
    as_a_user(NAME, &[], 0, || {
        if !user_namespaces_are_allowed() {
            return skip(NAME, "user namespaces are refused");
        }
        let mut command = grep();
        command.unshare(&[Namespace::User, Namespace::Mount]).uid_map(0, 1000).gid_map(0, 1000);
        assert_eq!(status_of(&command, "Uid"), "0 0 0 0");
        assert_eq!(status_of(&command, "Gid"), "0 0 0 0");
        let error = command.clone().uid_map(0, 1001).spawn().unwrap_err();
        assert_eq!(error.stage(), Some(Stage::IdMaps), "{error}");
        let error = command.groups(&[1]).spawn().unwrap_err();
        assert_eq!(error.stage(), Some(Stage::Groups), "{error}");
    });
}

/// `EPERM` from a clone may be about what was asked for: that says nothing about the way it was asked.
#[test]
fn a_refused_namespace_does_not_cost_later_spawns_the_better_way() {
    const NAME: &str = "a_refused_namespace_does_not_cost_later_spawns_the_better_way";
    as_a_user(NAME, &[], 0, || {
        let before = pidloop::capabilities();
        let error = Command::new("true").unshare(&[Namespace::Network]).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Namespaces)), "{error}");
        Command::new("true").run().unwrap();
        assert_eq!(pidloop::capabilities(), before);
    });
}

#[test]
fn a_change_of_ids_leaves_our_dumpable_flag_as_it_was() {
    in_own_process("a_change_of_ids_leaves_our_dumpable_flag_as_it_was", || {
        if !is_root() {
            return skip("a_change_of_ids_leaves_our_dumpable_flag_as_it_was", "not root");
        }
        // SAFETY: prctl(2) with integers.
        let dumpable = || unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
        for before in [1, 0] {
            // SAFETY: as above.
            unsafe { libc::prctl(libc::PR_SET_DUMPABLE, before) };
            Command::new("true").uid(65534).gid(65534).run().unwrap();
            assert_eq!(dumpable(), before);
        }
    });
}

#[test]
fn f151_a_user_namespace_makes_us_its_root() {
    let mut command = Command::new("id");
    command.arg("-u").unshare(&[Namespace::User]);
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    command.uid_map(0, uid).gid_map(0, gid);
    match command.output() {
        Ok(output) => assert_eq!(output.stdout, b"0\n"),
        Err(error) if matches!(error.stage(), Some(Stage::Namespaces | Stage::IdMaps)) => {
            skip("f151_a_user_namespace_makes_us_its_root", "user namespaces are refused");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn f152_a_network_namespace_has_the_loopback_alone() {
    let mut command = cat();
    command.arg("/proc/net/dev").unshare(&[Namespace::Network]);
    match command.output() {
        Ok(output) => {
            let text = String::from_utf8(output.stdout).unwrap();
            let names: Vec<_> = text.lines().skip(2).map(|line| line.split(':').next().unwrap().trim()).collect();
            // The kernel may add those that its drivers of tunnels begin with.
            let tunnels = ["tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip6tnl0", "ip6gre0", "ip_vti0", "ip6_vti0"];
            assert!(names.contains(&"lo"), "{text}");
            assert!(names.iter().all(|name| *name == "lo" || tunnels.contains(name)), "{text}");
        }
        Err(error) if error.stage() == Some(Stage::Namespaces) => {
            skip("f152_a_network_namespace_has_the_loopback_alone", "network namespaces are refused");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn f156_every_other_namespace_is_a_new_one() {
    for (namespace, file) in [
        (Namespace::Cgroup, "cgroup"),
        (Namespace::Ipc, "ipc"),
        (Namespace::Mount, "mnt"),
        // It is entered by an exec; before Linux 6.3, only by its children.
        (Namespace::Time, "time_for_children"),
        (Namespace::Uts, "uts"),
        (Namespace::Pid, "pid"),
    ] {
        let ours = fs::read_link(format!("/proc/self/ns/{file}")).unwrap();
        let mut command = sh("echo ready; exec sleep 60");
        command.unshare(&[namespace]).stdout(Stdio::piped());
        match command.spawn() {
            Ok(child) => {
                let mut ready = [0; 6];
                std::io::Read::read_exact(&mut child.take_stdout().unwrap(), &mut ready).unwrap();
                let theirs = fs::read_link(format!("/proc/{}/ns/{file}", child.id())).unwrap();
                child.kill().unwrap();
                assert_ne!(ours, theirs, "{file}");
            }
            Err(error) if error.stage() == Some(Stage::Namespaces) => {
                skip("f156_every_other_namespace_is_a_new_one", &format!("{file} is refused"));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn f158_an_ambient_capability_survives_the_change_of_user() {
    if !is_root() {
        return skip("f158_an_ambient_capability_survives_the_change_of_user", "not root");
    }
    const CAP_NET_BIND_SERVICE: u32 = 10;
    let mut command = grep();
    command.uid(65534).gid(65534).ambient_capabilities(&[CAP_NET_BIND_SERVICE]);
    match command.clone().arg("x").arg("/dev/null").spawn() {
        Err(error) if error.stage() == Some(Stage::Capabilities) => {
            return skip("f158_an_ambient_capability_survives_the_change_of_user", "the capability is not ours");
        }
        other => drop(other.unwrap().wait()),
    }
    assert_eq!(status_of(&command, "CapAmb"), "0000000000000400");
    assert_eq!(status_of(&command, "CapEff"), "0000000000000400");
}

#[test]
fn capabilities_can_be_dropped_for_good() {
    if !is_root() {
        return skip("capabilities_can_be_dropped_for_good", "not root");
    }
    let mut command = grep();
    command.drop_capabilities(&[0, 1]);
    let bounding = u64::from_str_radix(&status_of(&command, "CapBnd"), 16).unwrap();
    assert_eq!(bounding & 3, 0);
}

#[test]
fn f159_the_parents_death_brings_the_signal_also_after_a_change_of_user() {
    const NAME: &str = "f159_the_parents_death_brings_the_signal_also_after_a_change_of_user";
    if std::env::var("PIDLOOP_TEST_DIE").is_ok() {
        let mut command = sh("echo $$; exec sleep 60");
        if is_root() {
            command.uid(65534).gid(65534);
        }
        // Spawned by a thread that ends: that alone must not kill it.
        let child = std::thread::spawn(move || {
            command.parent_death_signal(Signal::SIGKILL).stdout(Stdio::inherit()).spawn().unwrap()
        });
        let child = child.join().unwrap();
        assert!(child.wait_timeout(std::time::Duration::from_millis(50)).unwrap().is_none());
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        unreachable!();
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args([NAME, "--nocapture"]).env("PIDLOOP_TEST_DIE", "1").stdout(std::process::Stdio::piped());
    let mut parent = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    // Not to its end: the child would hold it for a minute.
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(parent.stdout.take().unwrap()));
    let pid = |line: String| line.split_whitespace().last()?.parse::<u32>().ok();
    let pid = lines.find_map(|line| pid(line.unwrap())).expect("a pid");
    parent.wait().unwrap();
    common::eventually("it dies with its parent", || matches!(common::state(pid), None | Some('Z')));
}

#[test]
fn what_belongs_to_the_calling_thread_is_inherited_unless_another_one_spawns() {
    let policy = |command: &mut Command| stat(command, 41);
    // What the first spawner thread has of its own it has from here.
    assert_eq!(policy(cat().parent_death_signal(Signal::SIGKILL)), i64::from(libc::SCHED_OTHER));
    let thread = std::thread::spawn(move || {
        let parameters = libc::sched_param { sched_priority: 0 };
        // SAFETY: sched_setscheduler(2) of this thread.
        assert_eq!(unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &parameters) }, 0);
        let batch = i64::from(libc::SCHED_BATCH);
        assert_eq!(policy(&mut cat()), batch);
        assert_eq!(policy(cat().parent_death_signal(Signal::SIGKILL)), i64::from(libc::SCHED_OTHER));
        assert_eq!(policy(cat().parent_death_signal(Signal::SIGKILL).on_this_thread()), batch);
        // It ends with this thread.
        Command::new("sleep").arg("60").parent_death_signal(Signal::SIGKILL).on_this_thread().spawn().unwrap()
    });
    let child = thread.join().unwrap();
    assert_eq!(child.wait_timeout(common::SOON).unwrap().unwrap().signal(), Some(Signal::SIGKILL));
}

#[test]
fn a_raised_limit_on_open_files_is_not_passed_on() {
    use rustix::process::{Resource as Kind, Rlimit, getrlimit, setrlimit};
    in_own_process("a_raised_limit_on_open_files_is_not_passed_on", || {
        let limits = |command: &mut Command| text(command);
        let set = |current| setrlimit(Kind::Nofile, Rlimit { current: Some(current), maximum: Some(400) }).unwrap();
        set(300);
        assert_eq!(pidloop::raise_nofile().unwrap(), 400);
        assert_eq!(getrlimit(Kind::Nofile).current, Some(400));
        assert_eq!(limits(&mut sh("ulimit -Sn; ulimit -Hn")), "300\n400");
        assert_eq!(pidloop::raise_nofile().unwrap(), 400);
        assert_eq!(limits(&mut sh("ulimit -Sn; ulimit -Hn")), "300\n400");
        assert_eq!(limits(sh("ulimit -Sn; ulimit -Hn").rlimit(Resource::OpenFiles, 50, 350)), "50\n350");
        // A number above the old limit is given all the same.
        let file = scratch_file("high");
        assert_eq!(text(cat().fd(350, file).arg("/proc/self/fd/350")), "high");
        set(200);
        assert_eq!(limits(&mut sh("ulimit -Sn; ulimit -Hn")), "200\n400");
    });
}

#[test]
fn directory_by_descriptor_root_and_umask() {
    let dir: OwnedFd = fs::File::open("/usr").unwrap().into();
    assert_eq!(text(Command::new("/bin/pwd").current_dir_fd(dir)), "/usr");
    assert_eq!(text(sh("umask").umask(0o027)), "0027");
    let error = Command::new("/bin/true").chroot("/no/such/root").spawn().unwrap_err();
    assert_eq!((error.stage(), error.path()), (Some(Stage::Chroot), Some(std::path::Path::new("/no/such/root"))));
    if is_root() {
        let error = Command::new("/bin/true").chroot("/proc").spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::NotFound, Some(Stage::Exec)));
        // A bare name is looked up in the new root.
        let error = Command::new("sh").chroot("/proc").spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(text(Command::new("sh").args(["-c", "echo in"]).chroot("/")), "in");
        // A directory outside would be a way out.
        assert_eq!(text(Command::new("/bin/pwd").chroot("/")), "/");
        assert_eq!(text(Command::new("/bin/pwd").chroot("/").current_dir("/usr")), "/usr");
    }
}

/// Where the child looks by itself a relative entry of PATH is as little run from as where we do.
#[test]
fn a_relative_entry_of_path_is_refused_in_a_new_root_and_for_a_new_user() {
    const NAME: &str = "a_relative_entry_of_path_is_refused_in_a_new_root_and_for_a_new_user";
    if !is_root() {
        return skip(NAME, "not root");
    }
    let root = common::Scratch::new("relative");
    root.dir("tools");
    root.script("tools/true", "never", 0o755);
    let in_root = |path: &str| {
        let mut command = Command::new("true");
        command.env("PATH", path).chroot(&root.0);
        command.spawn().unwrap_err()
    };
    for (path, hit) in [("tools", "tools/true"), ("/none:tools", "tools/true"), ("", ""), ("/none", ""), ("none", "")] {
        let error = in_root(path);
        if hit.is_empty() {
            assert_eq!(error.kind(), ErrorKind::NotFound, "{path}: {error}");
        } else {
            assert_eq!((error.kind(), error.stage()), (ErrorKind::RelativeLookup, Some(Stage::Lookup)), "{error}");
            assert_eq!(error.path(), Some(std::path::Path::new(hit)));
        }
    }
    let mut command = Command::new("true");
    command.env("PATH", "tools:/usr/bin:/bin").uid(65534).current_dir(&root.0);
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::RelativeLookup);
    // What the new user may not execute is not found, and a directory is no program.
    fs::set_permissions(root.0.join("tools/true"), fs::Permissions::from_mode(0o700)).unwrap();
    command.run().unwrap();
    fs::remove_file(root.0.join("tools/true")).unwrap();
    root.dir("tools/true");
    command.run().unwrap();
}

/// As std and Go: the directory is the new user's to enter, the root directory ours to change.
#[test]
fn a_directory_is_entered_by_the_new_user() {
    const NAME: &str = "a_directory_is_entered_by_the_new_user";
    if !is_root() {
        return skip(NAME, "not root");
    }
    let scratch = common::Scratch::new(NAME);
    let closed = scratch.dir("closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let error = Command::new("/bin/pwd").current_dir(&closed).uid(65534).spawn().unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Directory)), "{error}");
    assert_eq!((error.path(), error.raw_os_error()), (Some(&*closed), Some(libc::EACCES)));
    let dir: OwnedFd = fs::File::open(&closed).unwrap().into();
    let error = Command::new("/bin/pwd").current_dir_fd(dir).uid(65534).spawn().unwrap_err();
    assert_eq!((error.stage(), error.raw_os_error()), (Some(Stage::Directory), Some(libc::EACCES)), "{error}");
    assert_eq!(text(Command::new("/bin/pwd").current_dir(&closed)), closed.to_str().unwrap());
    assert_eq!(text(Command::new("/bin/pwd").current_dir(&scratch.0).uid(65534)), scratch.0.to_str().unwrap());
    assert_eq!(text(Command::new("/bin/pwd").chroot("/").current_dir("/usr").uid(65534)), "/usr");
}

#[test]
fn priorities_limits_and_affinity() {
    assert_eq!(stat(cat().nice(5), 19), 5);
    let limits = text(sh("ulimit -Sn; ulimit -Hn").rlimit(Resource::OpenFiles, 100, 200));
    assert_eq!(limits, "100\n200");
    let error = Command::new("true").rlimit(Resource::OpenFiles, u64::MAX, u64::MAX).spawn();
    assert!(error.is_ok() || error.is_err_and(|e| e.stage() == Some(Stage::ResourceLimit)));
    let mut command = grep();
    command.cpu_affinity(&[0]);
    assert_eq!(status_of(&command, "Cpus_allowed_list"), "0");
    let error = Command::new("true").cpu_affinity(&[1000]).spawn().unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Affinity)));
    assert_eq!(stat(cat().scheduler(Scheduler::Batch), 41), i64::from(libc::SCHED_BATCH));
    Command::new("true").io_priority(IoPriority::BestEffort(7)).run().unwrap();
    assert_eq!(text(cat().oom_score_adj(500).arg("/proc/self/oom_score_adj")), "500");
    assert_eq!(fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim(), "0");
}

#[test]
fn privileges_and_signals() {
    let mut command = grep();
    command.no_new_privs();
    assert_eq!(status_of(&command, "NoNewPrivs"), "1");
    let mut command = grep();
    command.signal_mask(&[Signal::SIGHUP, Signal::SIGUSR1]).ignore_signals(&[Signal::SIGQUIT]);
    let bits = |field| u64::from_str_radix(&status_of(&command, field), 16).unwrap();
    assert_eq!(bits("SigBlk"), 1 << (libc::SIGHUP - 1) | 1 << (libc::SIGUSR1 - 1));
    assert_ne!(bits("SigIgn") & 1 << (libc::SIGQUIT - 1), 0);
    in_own_process("privileges_and_signals", || {
        // SAFETY: this process is the test's own, and SIG_IGN is no handler.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
        let mut command = grep();
        let bits = u64::from_str_radix(&status_of(&command, "SigIgn"), 16).unwrap();
        assert_eq!(bits & 1, 1);
        command.reset_signals();
        assert_eq!(status_of(&command, "SigIgn"), "0000000000000000");
    });
}

#[test]
fn f155_a_child_is_born_in_its_cgroup() {
    const NAME: &str = "f155_a_child_is_born_in_its_cgroup";
    let Some(base) = common::cgroup2() else { return skip(NAME, "no cgroup v2") };
    let dir = base.join(format!("pidloop-test-{}", std::process::id()));
    if fs::create_dir(&dir).is_err() {
        return skip(NAME, "cgroups are not delegated");
    }
    let result = cat().cgroup(OwnedFd::from(fs::File::open(&dir).unwrap())).arg("/proc/self/cgroup").output();
    common::eventually("the cgroup is empty", || fs::remove_dir(&dir).is_ok());
    let output = String::from_utf8(result.unwrap().stdout).unwrap();
    assert!(output.contains("pidloop-test-"), "{output}");
}

#[test]
fn a_cgroup_that_is_none_is_refused() {
    let dir = OwnedFd::from(fs::File::open("/").unwrap());
    let error = Command::new("true").cgroup(dir).spawn().unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Cgroup)), "{error}");
}

#[test]
fn what_belongs_to_the_process_is_as_before() {
    in_own_process("what_belongs_to_the_process_is_as_before", || {
        let picture = || {
            // This thread: the first one may be starting another, all its signals blocked.
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let wanted = ["Umask", "Uid", "Gid", "Groups", "Sig", "Shd", "Cap", "NoNewPrivs", "Cpus_allowed:"];
            let lines: Vec<_> = status
                .lines()
                .filter(|line| wanted.iter().any(|w| line.starts_with(w)) && !line.starts_with("SigQ"))
                .map(String::from)
                .collect();
            (lines, std::env::current_dir().unwrap(), fs::metadata("/").unwrap().ino())
        };
        Command::new("true").run().unwrap();
        let before = picture();
        let mut command = Command::new("true");
        command.setsid().umask(0o777).nice(1).current_dir("/usr").no_new_privs().signal_mask(&[Signal::SIGHUP]);
        command.rlimit(Resource::Core, 0, 0).cpu_affinity(&[0]).ignore_signals(&[Signal::SIGINT]);
        if is_root() {
            command.uid(65534).gid(65534).groups(&[1]).drop_capabilities(&[0]);
        }
        command.run().unwrap();
        assert_eq!(picture(), before);
    });
}

/// What the child needs on the way has a number, too, which it may be given for something else.
#[test]
fn a_directory_by_descriptor_is_not_overwritten() {
    let dir: OwnedFd = fs::File::open("/usr").unwrap().into();
    let other: OwnedFd = fs::File::open("/").unwrap().into();
    let number = dir.as_raw_fd();
    assert_eq!(text(Command::new("/bin/pwd").current_dir_fd(dir).fd(number, other)), "/usr");
    let dir: OwnedFd = fs::File::open("/usr").unwrap().into();
    let number = dir.as_raw_fd();
    let mut command = Command::new("/bin/readlink");
    command.arg(format!("/proc/self/fd/{number}")).fd(number, dir.try_clone().unwrap()).current_dir_fd(dir);
    assert_eq!(text(&command), "/usr");
}

#[test]
fn a_low_limit_of_descriptors_is_for_the_program_alone() {
    let mut command = cat();
    command.rlimit(Resource::OpenFiles, 4, 4).oom_score_adj(7);
    let text = text(command.args(["/proc/self/oom_score_adj", "/proc/self/limits"]));
    assert!(text.starts_with("7\n"), "{text}");
    let limits = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    assert_eq!(limits.split_whitespace().collect::<Vec<_>>(), ["4", "4", "files"]);
}

#[test]
fn extra_descriptors_in_every_permutation() {
    // Three files whose numbers the child gets in all orders, on and beside the numbers they have here.
    let files: Vec<_> = (0..3).map(|i| scratch_file(&format!("file {i}"))).collect();
    let numbers: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let targets: Vec<Vec<i32>> = vec![vec![3, 4, 5], numbers.clone(), vec![100, 10, 1000]];
    for targets in targets {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut command = Command::new("/bin/cat");
            for (i, to) in order.into_iter().zip(&targets) {
                command.fd(*to, reopen(&files[i]));
                command.arg(format!("/proc/self/fd/{to}"));
            }
            let expected: String = order.into_iter().map(|i| format!("file {i}")).collect();
            assert_eq!(text(&command), expected, "{targets:?} {order:?}");
        }
    }
}

#[test]
fn a_child_has_what_it_was_given_and_nothing_else() {
    in_own_process("a_child_has_what_it_was_given_and_nothing_else", || {
        // Open, and not close-on-exec.
        let stray = rustix::io::dup(fs::File::open("/dev/zero").unwrap()).unwrap();
        let list = |command: &mut Command| {
            let child = command.arg("60").spawn().unwrap();
            // The kernel wakes us in the midst of the exec, and closes then.
            common::eventually("the exec is over", || {
                fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap().contains("(sleep)")
            });
            common::eventually("it sleeps", || common::state(child.id()) == Some('S'));
            let numbers = descriptors_of(child.id());
            child.kill().unwrap();
            numbers
        };
        let sleep = || Command::new("sleep");
        assert_eq!(list(&mut sleep()), [0, 1, 2]);
        let number = stray.as_raw_fd();
        assert_eq!(list(sleep().inherit_fd(number)), [0, 1, 2, number]);
        assert!(list(sleep().inherit_fds()).contains(&number));
        let file: OwnedFd = fs::File::open("/dev/zero").unwrap().into();
        assert_eq!(list(sleep().fd(7, file)), [0, 1, 2, 7]);
        let error = Command::new("true").inherit_fd(999).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Descriptors)));
        let error = Command::new("true").fd(2, fs::File::open("/dev/null").unwrap()).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_host_without_standard_streams_can_spawn() {
    in_own_process("a_host_without_standard_streams_can_spawn", || {
        let saved: Vec<_> = [0, 1, 2].map(|n| rustix::io::fcntl_dupfd_cloexec(borrow(n), 100).unwrap()).into();
        for n in [0, 1, 2] {
            // SAFETY: this process is the test's own; the numbers are put back below.
            unsafe { libc::close(n) };
        }
        let results: Vec<_> = (0..4)
            .map(|i| {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", "cat; echo out; echo err >&2"]);
                command.stdin(if i % 2 == 0 { Stdio::null() } else { Stdio::bytes("in ") });
                command.stdout(Stdio::captured()).stderr(Stdio::captured());
                let child = command.spawn()?;
                let output = child.wait_with_output()?;
                Ok::<_, pidloop::Error>((output.stdout, output.stderr))
            })
            .collect();
        let taken: Vec<_> = [0, 1, 2].map(|n| fs::read_link(format!("/proc/self/fd/{n}")).ok()).into();
        for (n, fd) in saved.iter().enumerate() {
            // SAFETY: dup2(2) puts the streams back.
            unsafe { libc::dup2(fd.as_raw_fd(), n as i32) };
        }
        assert_eq!(taken, [None, None, None], "a descriptor of ours took a standard number");
        for (i, result) in results.into_iter().enumerate() {
            let (stdout, stderr) = result.unwrap();
            assert_eq!(stdout, if i % 2 == 0 { &b"out\n"[..] } else { b"in out\n" });
            assert_eq!(stderr, b"err\n");
        }
    });
}

fn descriptors_of(pid: u32) -> Vec<i32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut numbers: Vec<i32> =
        entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

fn borrow(number: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: the standard streams are open.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }
}

fn scratch_file(content: &str) -> fs::File {
    let path = std::env::temp_dir().join(format!("pidloop-{}-{}", std::process::id(), content.replace(' ', "-")));
    fs::write(&path, content).unwrap();
    let file = fs::File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    file
}

/// Another description of the same file, read from its beginning.
fn reopen(file: &fs::File) -> fs::File {
    fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap()
}

/// What is not seen from the outside in another test: a child that sleeps, asked about by number.
#[test]
fn the_kernel_tells_of_a_running_child_what_was_asked_for() {
    const NAME: &str = "the_kernel_tells_of_a_running_child_what_was_asked_for";
    if !is_root() {
        return skip(NAME, "not root");
    }
    let mut command = Command::new("/bin/sleep");
    command.arg("60").arg0("-zzz").env_clear().env("A", "b").current_dir("/usr").umask(0o123).kill_on_drop(true);
    command.io_priority(IoPriority::BestEffort(6)).scheduler(Scheduler::Idle).oom_score_adj(300).nice(3);
    command.inheritable_capabilities(&[0, 40]).drop_capabilities(&[1]);
    // What leaves it enough to live, and may be had without a right to more.
    let limits = [
        (Resource::Core, "Max core file size", 101),
        (Resource::Cpu, "Max cpu time", 102),
        (Resource::FileSize, "Max file size", 103),
        (Resource::LockedMemory, "Max locked memory", 104),
        (Resource::MessageQueues, "Max msgqueue size", 105),
        (Resource::OpenFiles, "Max open files", 106),
        (Resource::Processes, "Max processes", 107),
        (Resource::PendingSignals, "Max pending signals", 108),
        (Resource::RealtimeTime, "Max realtime timeout", 109),
        (Resource::AddressSpace, "Max address space", 1 << 32),
        (Resource::Data, "Max data size", 1 << 31),
        (Resource::Stack, "Max stack size", 1 << 22),
        (Resource::Nice, "Max nice priority", 0),
        (Resource::RealtimePriority, "Max realtime priority", 0),
    ];
    for (resource, _, value) in limits {
        command.rlimit(resource, value, value);
    }
    let child = command.spawn().unwrap();
    common::eventually("it sleeps", || common::state(child.id()) == Some('S'));
    let read = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", child.id())).unwrap();
    assert_eq!((read("cmdline").as_str(), read("environ").as_str()), ("-zzz\x0060\0", "A=b\0"));
    assert_eq!(fs::read_link(format!("/proc/{}/cwd", child.id())).unwrap(), std::path::Path::new("/usr"));
    let status = read("status");
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    assert_eq!((field("Umask:"), field("CapInh:")), ("0123", "0000010000000001"));
    assert_eq!(u64::from_str_radix(field("CapBnd:"), 16).unwrap() & 2, 0);
    assert_eq!(read("oom_score_adj"), "300\n");
    let stat = read("stat");
    let stat: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    assert_eq!((stat[16], stat[38]), ("3", libc::SCHED_IDLE.to_string().as_str()));
    // SAFETY: ioprio_get(2) of a process by number.
    assert_eq!(unsafe { libc::syscall(libc::SYS_ioprio_get, 1, child.id()) }, 2 << 13 | 6);
    let seen = read("limits");
    for (_, name, value) in limits {
        let line = seen.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        let words: Vec<&str> = line.split_whitespace().take(2).collect();
        assert_eq!(words, [value.to_string(), value.to_string()], "{name} in {seen}");
    }
    child.kill().unwrap();
}

#[test]
fn a_time_namespace_has_offsets_and_a_namespace_can_be_joined() {
    const NAME: &str = "a_time_namespace_has_offsets_and_a_namespace_can_be_joined";
    let mut command = cat();
    command.arg("/proc/self/timens_offsets").unshare(&[Namespace::Time]).time_offsets(1000, -5);
    match command.output() {
        Ok(output) => {
            let words = String::from_utf8(output.stdout).unwrap();
            let words: Vec<&str> = words.split_whitespace().collect();
            assert_eq!(words, ["monotonic", "1000", "0", "boottime", "-5", "0"]);
        }
        Err(error) if error.stage() == Some(Stage::Namespaces) => return skip(NAME, &error.to_string()),
        Err(error) => panic!("{error}"),
    }
    let (first, _stdout) = spawn_ready(sh("echo ready; exec sleep 60").unshare(&[Namespace::Uts, Namespace::Mount]));
    let link = |file: &str| fs::read_link(format!("/proc/{}/ns/{file}", first.id())).unwrap();
    let open = |file: &str| fs::File::open(format!("/proc/{}/ns/{file}", first.id())).unwrap();
    let mut second = Command::new("readlink");
    second.args(["/proc/self/ns/uts", "/proc/self/ns/mnt"]);
    second.join_namespace(open("uts")).join_namespace(open("mnt"));
    assert_eq!(text(&second), format!("{}\n{}", link("uts").display(), link("mnt").display()));
    // Its children's, and nobody's: neither is joined.
    for file in [open("pid"), fs::File::open("/dev/null").unwrap()] {
        let error = Command::new("true").join_namespace(file).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Namespaces)), "{error}");
    }
    first.kill().unwrap();
}

/// Each is an error that says the step and the value; nothing of it is left, and the next spawn works.
#[test]
fn bad_input_is_named_and_leaves_nothing() {
    const NAME: &str = "bad_input_is_named_and_leaves_nothing";
    as_a_user(NAME, &[], 0, || {
        Command::new("true").run().unwrap();
        let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap();
        let before = common::open_descriptors();
        let refused = |command: &mut Command, stage: Stage, says: &str| {
            let error = command.spawn().unwrap_err();
            assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(stage)), "{error}");
            assert!(error.to_string().starts_with("true: could not ") && error.to_string().contains(says), "{error}");
            assert_eq!((common::open_descriptors(), common::children_of_ours()), (before.clone(), vec![]), "{error}");
            Command::new("true").run().unwrap();
        };
        let new = || Command::new("true");
        refused(new().groups(&[]).uid(0), Stage::Groups, "Operation not permitted");
        refused(new().gid(0), Stage::Gid, "set the group id: 0: Operation not permitted");
        refused(new().rlimit(Resource::OpenFiles, 5, hard + 1), Stage::ResourceLimit, &format!("hard {}", hard + 1));
        refused(new().rlimit(Resource::OpenFiles, 9, 5), Stage::ResourceLimit, "soft 9, hard 5: Invalid argument");
        refused(new().chroot("/"), Stage::Chroot, "change the root directory /: Operation not permitted");
        refused(new().nice(-9), Stage::Nice, "by -9: Permission denied");
        refused(new().oom_score_adj(-999), Stage::OomScore, "-999: Permission denied");
        refused(new().scheduler(Scheduler::Fifo(7)), Stage::Scheduler, "priority 7: Operation not permitted");
        refused(new().unshare(&[Namespace::Mount]), Stage::Namespaces, "Operation not permitted");
        refused(new().drop_capabilities(&[3]), Stage::Capabilities, "drop 3 from the bounding set");
        refused(new().ambient_capabilities(&[3]), Stage::Capabilities, "make [3] ambient");
        refused(new().inheritable_capabilities(&[3]), Stage::Capabilities, "make [3] inheritable");
        refused(new().process_group(1), Stage::ProcessGroup, "set the process group: 1: ");
        let error = new().join_namespace(fs::File::open("/proc/self/ns/uts").unwrap()).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Namespaces)), "{error}");
    });
}

/// Gone, not ours, frozen.
#[test]
fn a_cgroup_that_cannot_be_entered_is_an_error_and_a_frozen_one_can_be_cancelled() {
    const NAME: &str = "a_cgroup_that_cannot_be_entered_is_an_error_and_a_frozen_one_can_be_cancelled";
    let Some(base) = common::cgroup2() else { return skip(NAME, "no cgroup v2") };
    let dir = base.join(format!("pidloop-test-bad-{}", std::process::id()));
    if fs::create_dir(&dir).is_err() {
        return skip(NAME, "cgroups are not delegated");
    }
    let open = || OwnedFd::from(fs::File::open(&dir).unwrap());
    let mut command = Command::new("true");
    command.cgroup(open());
    fs::write(dir.join("cgroup.freeze"), "1").unwrap();
    let context = pidloop::Context::new();
    let mut frozen = command.clone();
    let spawned = common::beside(
        "frozen",
        || frozen.context(&context).spawn().map(drop),
        || {
            common::eventually("it is born there", || {
                !fs::read_to_string(dir.join("cgroup.procs")).unwrap().is_empty()
            });
            context.cancel();
        },
    );
    assert_eq!(spawned.unwrap_err().kind(), ErrorKind::Cancelled);
    fs::write(dir.join("cgroup.freeze"), "0").unwrap();
    // One limit of processes is in every cgroup that has the controller.
    if fs::write(dir.join("pids.max"), "0").is_ok() {
        assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NoProcessSlots);
    }
    common::eventually("the cgroup is empty", || fs::remove_dir(&dir).is_ok());
    let error = command.spawn().unwrap_err();
    assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Cgroup)), "{error}");
    Command::new("true").run().unwrap();
}

#[test]
fn a_cgroup_of_somebody_else_is_refused() {
    const NAME: &str = "a_cgroup_of_somebody_else_is_refused";
    let Some(base) = common::cgroup2() else { return skip(NAME, "no cgroup v2") };
    as_a_user(NAME, &[], 0, || {
        let error = Command::new("true").cgroup(fs::File::open(&base).unwrap()).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::Setup, Some(Stage::Cgroup)), "{error}");
        Command::new("true").run().unwrap();
    });
}
