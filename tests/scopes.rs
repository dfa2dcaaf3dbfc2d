//! The promise about scopes: whom a stop reaches, by child, group and cgroup; a tree is gone when it is said to be; no cgroup is left behind.
//! Knows the public API, and makes one cgroup for each test below the mounted tree.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{SOON, Scratch, cgroup2, eventually, in_own_process, open_descriptors, sh, skip, spawn_ready};
use pidloop::{
    Cancel, Cause, CgroupScope, Child, Command, Context, ErrorKind, Exit, Leftovers, Reactor, Resource, Scope, Signal,
    Stage, Step,
};
use rustix::process::{Resource as RlimitOf, Rlimit, getrlimit, setrlimit};

/// A cgroup of a test's own, as a user would be delegated one; gone with all that is in it at the end.
struct Delegated(PathBuf);

impl Delegated {
    /// Says why the test is skipped where there is none to be had.
    fn new(test: &str) -> Option<Delegated> {
        let Some(root) = cgroup2() else {
            skip(test, "no cgroups of version 2");
            return None;
        };
        let path = root.join(format!("pidloop-test-{}-{test}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Some(Delegated(path)),
            Err(error) => {
                skip(test, &format!("no cgroup may be made: {error}"));
                None
            }
        }
    }

    fn open(&self) -> OwnedFd {
        File::open(&self.0).unwrap().into()
    }

    fn scope(&self) -> CgroupScope {
        CgroupScope::new(self.open())
    }

    /// The commands' own cgroups that are there now.
    fn below(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }

    fn write(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap();
    }

    /// All of them, zombies not counted.
    fn processes(&self) -> usize {
        let dirs = self.below().into_iter().chain([self.0.clone()]);
        dirs.map(|dir| fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines().count()).sum()
    }

    fn has_no_process(&self) -> bool {
        fs::read_to_string(self.0.join("cgroup.events")).unwrap().contains("populated 0")
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        fs::write(self.0.join("cgroup.kill"), "1").unwrap();
        eventually("the test's cgroup is empty", || self.has_no_process());
        for below in self.below() {
            fs::remove_dir(below).unwrap();
        }
        fs::remove_dir(&self.0).unwrap();
    }
}

/// A shell that leaves processes behind in every way: in the background, in another session, orphaned. Each holds its stdout.
const ESCAPEES: &str =
    "sleep 600 & setsid sleep 600 & (setsid sh -c 'sleep 600 & exec sleep 600' &) ; sleep 0.01; echo ready;";

fn is_cgroup(exit: &Exit) -> bool {
    exit.scope() == Scope::Cgroup
}

#[test]
fn a_cgroup_is_stopped_whole_and_removed() {
    let Some(dir) = Delegated::new("whole") else { return };
    let ctx = Context::new();
    let mut command = sh(&format!("{ESCAPEES} wait"));
    let (child, mut stdout) = spawn_ready(command.cgroup_scope(&dir.scope()).context(&ctx));
    assert_eq!(dir.below().len(), 1);
    let name = dir.below()[0].file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.starts_with(&format!("pidloop-{}-", std::process::id())), "{name}");
    let inside = fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    assert!(inside.contains(&name), "{inside}");
    assert_eq!(child.wait_tree_timeout(Duration::from_millis(1)).unwrap(), None);

    ctx.cancel();
    let exit = child.wait().unwrap();
    assert!(is_cgroup(&exit) && exit.signal() == Some(Signal::SIGKILL) && exit.cause() == Some(&Cause::Cancelled));
    let usage = child.wait_tree().unwrap();
    assert!(usage.user_time + usage.system_time >= exit.usage().unwrap().user_time);
    assert_eq!((child.wait_tree().unwrap(), child.tree_usage().unwrap()), (usage, usage));
    assert!(dir.below().is_empty() && dir.has_no_process());
    // Nobody holds the pipe any more.
    assert_eq!(common::all_writers_end(&mut stdout), b"");
}

#[test]
fn the_soft_steps_of_a_ladder_reach_everybody() {
    let Some(dir) = Delegated::new("ladder") else { return };
    let scratch = Scratch::new("ladder");
    let note = "trap 'echo got >> notes; exit 0' TERM; echo in >> notes; while :; do sleep 0.01; done";
    let script = scratch.file("note", &format!("#!/bin/sh\n{note}\n"), 0o755);
    let script = script.display();
    let mut command = sh(&format!("{script} & setsid {script} & {note}"));
    let ask = (Step::Signal(Signal::SIGTERM), SOON);
    let mut command = command.cgroup_scope(&dir.scope()).current_dir(&scratch.0).cancel(Cancel::Steps(vec![ask]));
    let ctx = Context::new();
    command = command.context(&ctx);
    let child = command.spawn().unwrap();
    let notes = || fs::read_to_string(scratch.0.join("notes")).unwrap_or_default();
    eventually("all are ready", || notes().matches("in").count() == 3);
    ctx.cancel();
    let exit = child.wait().unwrap();
    assert_eq!((exit.code(), exit.cause()), (Some(0), Some(&Cause::Cancelled)));
    child.wait_tree().unwrap();
    assert_eq!(notes().matches("got").count(), 3);
}

/// On a busy machine a shell may not have ended when its step is over, which is another story: then with more time.
fn with_enough_time(tells: impl Fn(Duration) -> bool) {
    let times = [50, 500, 5_000, 15_000].map(Duration::from_millis);
    assert!(times.into_iter().any(tells), "it was never in time");
}

#[test]
fn what_a_ladder_does_not_end_is_killed_when_the_leader_is_long_dead() {
    let Some(dir) = Delegated::new("stubborn") else { return };
    with_enough_time(|time| {
        let mut command =
            sh("(trap '' TERM; setsid sleep 600) & trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done");
        let ask = (Step::Signal(Signal::SIGTERM), time);
        let ctx = Context::new();
        let command = command.cgroup_scope(&dir.scope()).cancel(Cancel::Steps(vec![ask])).context(&ctx);
        let (child, _stdout) = spawn_ready(command);
        ctx.cancel();
        let code = child.wait().unwrap().code();
        child.wait_tree_timeout(SOON).unwrap().expect("the sleep outlived the ladder");
        code == Some(7)
    });
}

#[test]
fn what_a_child_left_stays_its_own() {
    let Some(dir) = Delegated::new("left") else { return };
    let start = |change: &dyn Fn(&mut Command)| {
        let mut command = sh(&format!("{ESCAPEES} exit 3"));
        command.cgroup_scope(&dir.scope());
        change(&mut command);
        let (child, _stdout) = spawn_ready(&mut command);
        let exit = child.wait().unwrap();
        assert_eq!((exit.code(), exit.cause()), (Some(3), None));
        child
    };
    // A context that ends later.
    let ctx = Context::new();
    let child = start(&|command| {
        command.context(&ctx);
    });
    assert_eq!(child.wait_tree_timeout(Duration::from_millis(20)).unwrap(), None, "it should run on");
    ctx.cancel();
    child.wait_tree_timeout(SOON).unwrap().unwrap();
    assert_eq!(child.wait().unwrap().cause(), None, "it ended by itself");
    // The command's own deadline.
    with_enough_time(|time| {
        let mut command = sh(&format!("{ESCAPEES} exit 3"));
        let child = command.cgroup_scope(&dir.scope()).timeout(10 * time).spawn().unwrap();
        let exit = child.wait().unwrap();
        child.wait_tree_timeout(11 * time + SOON).unwrap().expect("it outlived the deadline");
        exit.cause().is_none()
    });
    // A signal.
    let child = start(&|_| {});
    assert_eq!(child.wait_tree_timeout(Duration::from_millis(20)).unwrap(), None);
    child.signal(Signal::SIGTERM).unwrap();
    child.wait_tree_timeout(SOON).unwrap().unwrap();
    // Its handle.
    let child = start(&|command| {
        command.kill_on_drop(true);
    });
    drop(child);
    eventually("the dropped one is gone", || dir.below().is_empty());
    // Or it was not to be left at all.
    let child = start(&|command| {
        command.group_leftovers(Leftovers::Kill);
    });
    child.wait_tree_timeout(SOON).unwrap().unwrap();
    assert!(dir.below().is_empty() && dir.has_no_process());
}

#[test]
fn nothing_is_left_of_what_did_not_start_or_was_dropped() {
    const NAME: &str = "nothing_is_left_of_what_did_not_start_or_was_dropped";
    in_own_process(NAME, || {
        let Some(dir) = Delegated::new("nothing") else { return };
        let scope = dir.scope();
        Command::new("true").cgroup_scope(&scope).status().unwrap();
        eventually("the first one is gone", || dir.below().is_empty());
        let before = open_descriptors();
        let error = Command::new("/no/such/program").cgroup_scope(&scope).spawn().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(dir.below().is_empty());
        let error = Command::new("true").cgroup_scope(&scope).uid(1).chroot("/proc").spawn().unwrap_err();
        assert!(dir.below().is_empty(), "{error}");
        let ctx = Context::new();
        ctx.cancel();
        Command::new("true").cgroup_scope(&scope).context(&ctx).spawn().unwrap_err();
        assert!(dir.below().is_empty());
        drop(Command::new("true").cgroup_scope(&scope).spawn().unwrap());
        drop(Command::new("sleep").arg("600").cgroup_scope(&scope).kill_on_drop(true).spawn().unwrap());
        assert!(
            sh(&format!("{ESCAPEES} exit 0"))
                .cgroup_scope(&scope)
                .timeout(SOON)
                .group_leftovers(Leftovers::Kill)
                .run()
                .is_ok()
        );
        eventually("all are gone", || dir.below().is_empty());
        eventually("their descriptors, too", || open_descriptors().len() == before.len());
    });
}

#[test]
fn a_loop_of_ones_own_tells_of_trees() {
    let Some(dir) = Delegated::new("reactor") else { return };
    let mut jobs = Reactor::new().unwrap();
    let id = jobs.spawn(sh("setsid sleep 600 & exit 5").cgroup_scope(&dir.scope())).unwrap();
    while jobs.next_exit().is_none_or(|ended| ended.exit().code() != Some(5)) {
        jobs.turn(Some(SOON)).unwrap();
    }
    assert!(jobs.is_empty() && jobs.next_tree().is_none());
    jobs.tree_usage(id).unwrap();
    jobs.remote().kill(id).unwrap();
    let (whose, _) = loop {
        jobs.turn(Some(SOON)).unwrap();
        if let Some(tree) = jobs.next_tree() {
            break tree;
        }
    };
    assert_eq!(whose, id);
    assert!(dir.below().is_empty());
    assert_eq!(jobs.tree_usage(id).unwrap_err().kind(), ErrorKind::NoSuchChild);
    // One that is left when the loop goes is the default one's; what a shutdown finds is ended.
    jobs.spawn(sh("setsid sleep 600 & exit 5").cgroup_scope(&dir.scope())).unwrap();
    while jobs.next_exit().is_none() {
        jobs.turn(Some(SOON)).unwrap();
    }
    assert!(jobs.shutdown(Duration::ZERO, SOON).is_empty());
    assert!(dir.below().is_empty());
}

#[test]
fn a_future_awaits_a_tree() {
    let Some(dir) = Delegated::new("future") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let child = sh("setsid sleep 0.1 & exit 5").cgroup_scope(&dir.scope()).spawn_async().await.unwrap();
        assert_eq!(child.wait_async().await.unwrap().code(), Some(5));
        child.wait_tree_async().await.unwrap();
        assert!(dir.below().is_empty());
        let other = Command::new("true").spawn_async().await.unwrap();
        assert_eq!(other.wait_tree_async().await.unwrap_err().kind(), ErrorKind::Unsupported);
    });
}

#[test]
fn a_directory_that_will_not_do_is_told_by_its_kind() {
    let Some(dir) = Delegated::new("unfit") else { return };
    let fails = |scope: &CgroupScope| {
        let error = Command::new("true").cgroup_scope(scope).spawn().unwrap_err();
        assert_eq!(error.stage(), Some(Stage::Cgroup), "{error}");
        (error.kind(), error.to_string())
    };
    let scratch = Scratch::new("unfit");
    let (kind, text) = fails(&CgroupScope::new(File::open(&scratch.0).unwrap()));
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("not one of the cgroups of version 2"), "{text}");

    let (kind, text) = fails(dir.scope().memory_max(1 << 20));
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("memory.max: the controller memory is not enabled"), "{text}");
    let (kind, text) = fails(dir.scope().set("cgroup.max.depth", "many"));
    assert_eq!(kind, ErrorKind::Setup);
    assert!(text.contains("\"many\" to its cgroup.max.depth"), "{text}");

    dir.write("cgroup.max.descendants", "0");
    let (kind, text) = fails(&dir.scope());
    assert_eq!(kind, ErrorKind::NoProcessSlots);
    assert!(text.contains("cgroup.max.descendants"), "{text}");
    dir.write("cgroup.max.descendants", "max");

    dir.write("cgroup.freeze", "1");
    let (kind, text) = fails(&dir.scope());
    assert_eq!(kind, ErrorKind::Setup);
    assert!(text.contains("frozen"), "{text}");
    dir.write("cgroup.freeze", "0");
    assert!(dir.below().is_empty());

    let gone = dir.0.join("gone");
    fs::create_dir(&gone).unwrap();
    let scope = CgroupScope::new(File::open(&gone).unwrap());
    fs::remove_dir(&gone).unwrap();
    let (kind, text) = fails(&scope);
    assert_eq!(kind, ErrorKind::Setup);
    assert!(text.contains("gone"), "{text}");

    let mut both = Command::new("true");
    let error = both.cgroup_scope(&dir.scope()).cgroup(dir.open()).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let error = Command::new("true").cgroup_scope(dir.scope().set("../cgroup.procs", "0")).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_is_not_delegated_is_not_used() {
    const NAME: &str = "what_is_not_delegated_is_not_used";
    in_own_process(NAME, || {
        let Some(dir) = Delegated::new("nobodys") else { return };
        let scope = dir.scope();
        let become_nobody = || {
            // SAFETY: setresuid(2) of this thread alone, by the raw call, with ids and no pointers.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 0) }, 0);
        };
        if !rustix::process::geteuid().is_root() {
            return skip(NAME, "only root can become somebody else");
        }
        let child = std::thread::scope(|threads| {
            let thread = threads.spawn(|| {
                become_nobody();
                let error = Command::new("true").cgroup_scope(&scope).spawn().unwrap_err();
                assert_eq!((error.kind(), error.stage()), (ErrorKind::PermissionDenied, Some(Stage::Cgroup)));
                assert!(error.to_string().contains("not delegated"), "{error}");
                let mut instead = scope.clone();
                sh("sleep 600 & echo ready; wait")
                    .cgroup_scope(instead.or_group())
                    .stdout(pidloop::Stdio::piped())
                    .spawn()
                    .unwrap()
            });
            thread.join().unwrap()
        });
        let mut stdout = child.take_stdout().unwrap();
        stdout.read_exact(&mut [0; 6]).unwrap();
        child.kill().unwrap();
        let exit = child.wait().unwrap();
        assert_eq!((exit.scope(), exit.signal()), (Scope::Group, Some(Signal::SIGKILL)));
        common::all_writers_end(&mut stdout);
        assert_eq!(child.wait_tree().unwrap_err().kind(), ErrorKind::Unsupported);
    });
}

#[test]
fn limits_are_set_before_it_begins() {
    const NAME: &str = "limits_are_set_before_it_begins";
    let Some(dir) = Delegated::new("limits") else { return };
    // Whatever controller this machine has for version 2.
    let there = fs::read_to_string(dir.0.join("cgroup.controllers")).unwrap();
    let settings =
        [("pids", "pids.max", "7"), ("memory", "memory.max", "67108864"), ("hugetlb", "hugetlb.2MB.max", "0")];
    let Some((name, file, value)) =
        settings.into_iter().find(|(name, ..)| there.split_whitespace().any(|is| is == *name))
    else {
        return skip(NAME, "no controller for version 2");
    };
    dir.write("cgroup.subtree_control", &format!("+{name}"));
    let child = Command::new("sleep").arg("600").cgroup_scope(dir.scope().set(file, value)).spawn().unwrap();
    assert_eq!(fs::read_to_string(dir.below()[0].join(file)).unwrap().trim(), value);
    child.kill().unwrap();
    child.wait_tree().unwrap();
}

/// One that every cgroup has, whatever controllers are elsewhere: by its file, and by what it does to the first command in it.
#[test]
fn limits_that_need_no_controller_hold_from_the_first_command_on() {
    let Some(dir) = Delegated::new("depth") else { return };
    let make = "d=$1/$(sed -n 's/^0::.*\\///p' /proc/self/cgroup); cat $d/$2; mkdir $d/a && mkdir $d/a/b";
    let outcome = |file: &str, value: &str| {
        let mut command = sh(make);
        command.arg("sh").arg(&dir.0).arg(file).cgroup_scope(dir.scope().set(file, value));
        let child = command.stdout(pidloop::Stdio::captured()).stderr(pidloop::Stdio::null()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        (String::from_utf8_lossy(&output.stdout).trim().to_owned(), output.status.success())
    };
    for file in ["cgroup.max.depth", "cgroup.max.descendants"] {
        assert_eq!(outcome(file, "1"), ("1".to_owned(), false), "{file}");
        assert_eq!(outcome(file, "2"), ("2".to_owned(), true), "{file}");
    }
    eventually("all are removed", || dir.below().is_empty());
}

#[test]
fn a_cgroup_that_its_own_processes_made_goes_with_it() {
    let Some(dir) = Delegated::new("nested") else { return };
    let mut command = sh("d=$1/$(sed -n 's/^0::.*\\///p' /proc/self/cgroup)
        mkdir $d/a $d/a/b && echo $$ > $d/a/b/cgroup.procs && echo ready && exec sleep 600");
    let (child, _stdout) = spawn_ready(command.arg("sh").arg(&dir.0).cgroup_scope(&dir.scope()));
    child.signal(Signal::SIGTERM).unwrap();
    child.wait_tree_timeout(SOON).unwrap().unwrap();
    assert!(dir.below().is_empty());
}

#[test]
fn many_threads_share_one_directory() {
    let Some(dir) = Delegated::new("threads") else { return };
    let scope = Arc::new(dir.scope());
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                for _ in 0..10 {
                    let child = sh("setsid sleep 600 & exit 0").cgroup_scope(&scope).spawn().unwrap();
                    child.wait().unwrap();
                    child.kill().unwrap();
                    child.wait_tree_timeout(SOON).unwrap().unwrap();
                }
            });
        }
    });
    assert!(dir.below().is_empty());
}

/// A script that forks without end, each copy by `how`: bounded by the processes that its user may have.
struct Bomb {
    scratch: Scratch,
    user: u32,
}

const BOMB_TASKS: u64 = 30;

impl Bomb {
    /// With a user whom nobody else is, in these tests.
    fn new(number: u32, how: &str) -> Bomb {
        let user = 100_000 + 8 * std::process::id() + number;
        let scratch = Scratch::new(&format!("bomb-{user}"));
        // A shell that cannot fork ends, unless it is told so within an `eval` that is no special one.
        let copy = format!("exec 2>/dev/null; while :; do command eval '{how} \"$0\" &'; done");
        scratch.file("bomb", &format!("#!/bin/sh\n{copy}\n"), 0o755);
        Bomb { scratch, user }
    }

    /// Its leader only waits. All of it is in `cage`, which ends what the scope leaves.
    fn command(&self) -> Command {
        let mut command = sh(&format!("'{}/bomb' & exec sleep 600", self.scratch.0.display()));
        command.uid(self.user).gid(self.user).rlimit(Resource::Processes, BOMB_TASKS, BOMB_TASKS);
        command
    }
}

/// Until it has been at its bound: the first copies are long gone then.
fn has_gone_off(cage: &Delegated) {
    eventually("the bomb goes off", || cage.processes() as u64 > BOMB_TASKS - 10);
}

fn stop(child: &Child) -> Exit {
    child.kill().unwrap();
    child.wait().unwrap()
}

#[test]
fn a_fork_bomb_outlives_a_child_and_escapes_from_a_group_and_nobody_gets_out_of_a_cgroup() {
    const NAME: &str = "a_fork_bomb_outlives_a_child_and_escapes_from_a_group_and_nobody_gets_out_of_a_cgroup";
    if !rustix::process::geteuid().is_root() {
        return skip(NAME, "only root can bound a bomb by a user of its own");
    }
    // Child: the leader alone is stopped.
    let Some(cage) = Delegated::new("bomb-child") else { return };
    let bomb = Bomb::new(1, "");
    let child = bomb.command().cgroup(cage.open()).spawn().unwrap();
    has_gone_off(&cage);
    assert_eq!(stop(&child).scope(), Scope::Child);
    eventually("it goes on", || cage.processes() > 5);
    println!("Child: {} processes go on", cage.processes());
    drop(cage);

    // Group: those that stay in it are stopped, whatever they fork meanwhile; those in a session of their own are not.
    let Some(cage) = Delegated::new("bomb-group") else { return };
    let bomb = Bomb::new(2, "");
    let child = bomb.command().cgroup(cage.open()).group().spawn().unwrap();
    has_gone_off(&cage);
    assert_eq!(stop(&child).scope(), Scope::Group);
    eventually("nobody is left of the group", || cage.has_no_process());
    println!("Group: none of those that stay in it");
    let bomb = Bomb::new(3, "setsid");
    let child = bomb.command().cgroup(cage.open()).group().spawn().unwrap();
    has_gone_off(&cage);
    stop(&child);
    eventually("the escaped go on", || cage.processes() > 5);
    println!("Group: {} of those with sessions of their own go on", cage.processes());
    drop(cage);

    // Cgroup: nobody is left.
    let Some(cage) = Delegated::new("bomb-cgroup") else { return };
    let bomb = Bomb::new(4, "setsid");
    let child = bomb.command().cgroup_scope(&cage.scope()).spawn().unwrap();
    has_gone_off(&cage);
    assert_eq!(stop(&child).scope(), Scope::Cgroup);
    let usage = child.wait_tree_timeout(SOON).unwrap().expect("somebody is left");
    assert!(cage.has_no_process() && cage.below().is_empty());
    println!("Cgroup: nobody is left; {usage:?}");
}

#[test]
fn a_stop_needs_no_descriptor_that_is_not_there() {
    const NAME: &str = "a_stop_needs_no_descriptor_that_is_not_there";
    in_own_process(NAME, || {
        let Some(dir) = Delegated::new("emfile") else { return };
        let scope = dir.scope();
        let mut command = sh(&format!("{ESCAPEES} wait"));
        let (child, _stdout) = spawn_ready(command.cgroup_scope(&scope));
        let limit = getrlimit(RlimitOf::Nofile);
        let lowered = Rlimit { current: Some(0), ..limit };
        setrlimit(RlimitOf::Nofile, lowered).unwrap();
        // One that cannot even be made leaves nothing.
        let error = command.spawn().unwrap_err();
        let missing = child.tree_usage().unwrap_err();
        child.kill().unwrap();
        let exit = child.wait().unwrap();
        let gone = child.wait_tree_timeout(SOON).unwrap();
        setrlimit(RlimitOf::Nofile, limit).unwrap();
        assert_eq!((error.kind(), missing.kind()), (ErrorKind::NoDescriptors, ErrorKind::NoDescriptors));
        assert_eq!((exit.scope(), exit.signal()), (Scope::Cgroup, Some(Signal::SIGKILL)));
        assert!(gone.is_some() && dir.below().is_empty() && dir.has_no_process());
    });
}

/// Frozen by a pause, with whoever has got away; a resume and a stop need no descriptor that is not there.
#[test]
fn a_pause_freezes_all_of_a_cgroup() {
    const NAME: &str = "a_pause_freezes_all_of_a_cgroup";
    in_own_process(NAME, || {
        let Some(dir) = Delegated::new("paused") else { return };
        let ctx = Context::new();
        let count = "i=0; while :; do i=$((i+1)); done";
        let mut command = sh(&format!("setsid sh -c '{count}' & trap 'exit 9' TERM; echo ready; {count}"));
        let ask = (Step::Signal(Signal::SIGTERM), SOON);
        let command = command.cgroup_scope(&dir.scope()).context(&ctx).cancel(Cancel::Steps(vec![ask]));
        let (child, _stdout) = spawn_ready(command);
        let own = dir.below()[0].join("cgroup.events");
        let is_frozen = || fs::read_to_string(&own).unwrap().contains("frozen 1");
        ctx.pause();
        eventually("it is frozen", is_frozen);
        let used = child.tree_usage().unwrap();
        assert_eq!(child.wait_timeout(Duration::from_millis(50)).unwrap().map(|exit| exit.code()), None);
        assert_eq!(child.tree_usage().unwrap().user_time, used.user_time);
        let without_descriptors = |then: &mut dyn FnMut()| {
            let limit = getrlimit(RlimitOf::Nofile);
            // With 0 poll(2) of a single one would be refused.
            setrlimit(RlimitOf::Nofile, Rlimit { current: Some(1), ..limit }).unwrap();
            then();
            setrlimit(RlimitOf::Nofile, limit).unwrap();
        };
        without_descriptors(&mut || ctx.resume());
        eventually("it goes on", || !is_frozen());
        eventually("it counts on", || child.tree_usage().unwrap().user_time > used.user_time);
        // A stop that asks is heard by who was paused.
        ctx.pause();
        eventually("it is frozen again", is_frozen);
        let mut exit = None;
        without_descriptors(&mut || {
            ctx.cancel();
            exit = child.wait_timeout(SOON).unwrap();
        });
        assert_eq!(exit.and_then(|exit| exit.code()), Some(9));
        child.kill().unwrap();
        child.wait_tree_timeout(SOON).unwrap().unwrap();
        assert!(dir.below().is_empty());
    });
}

/// In a forked copy the child, and its cgroup, are the original's.
#[test]
fn a_forked_copy_leaves_it_alone() {
    const NAME: &str = "a_forked_copy_leaves_it_alone";
    in_own_process(NAME, || {
        let Some(dir) = Delegated::new("forked") else { return };
        let child = Command::new("sleep").arg("600").cgroup_scope(&dir.scope()).kill_on_drop(true).spawn().unwrap();
        // SAFETY: fork(2); the copy makes a few calls and leaves by `_exit`.
        let copy = unsafe { libc::fork() };
        if copy == 0 {
            let refused = child.tree_usage().is_err_and(|error| error.kind() == ErrorKind::Forked);
            drop(child);
            // SAFETY: _exit(2).
            unsafe { libc::_exit(i32::from(!refused)) };
        }
        let mut status = -1;
        // SAFETY: waitpid(2) for the copy alone.
        assert_eq!(unsafe { libc::waitpid(copy, &mut status, 0) }, copy);
        assert_eq!(status, 0, "it is not told that it is a copy");
        assert!(dir.below().len() == 1 && !dir.has_no_process());
        child.kill().unwrap();
        child.wait_tree_timeout(SOON).unwrap().unwrap();
        assert!(dir.below().is_empty());
    });
}
