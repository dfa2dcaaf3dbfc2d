//! Group D of the scenarios: what a child inherits, and which file a name means, each by its number. Knows the public API alone.

mod common;

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Scratch, children_of_ours, in_own_process, sh, skip};
use pidloop::{Command, ErrorKind, Stage};

fn text(command: &Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap().trim_end().to_owned()
}

/// The environment that a child of `command` sees, sorted.
fn environment(command: &mut Command) -> Vec<String> {
    let output = command.arg("/proc/self/environ").output().unwrap();
    let mut lines: Vec<String> = output
        .stdout
        .split(|byte| *byte == 0)
        .filter(|line| !line.is_empty())
        .map(|line| String::from_utf8_lossy(line).into_owned())
        .collect();
    lines.sort();
    lines
}

fn cat() -> Command {
    Command::new("/bin/cat")
}

// ── the environment ──

#[test]
fn d106_the_last_value_of_a_name_wins() {
    let mut command = cat();
    command.env_clear().env("A", "1").envs([("B", "1"), ("A", "2")]).env("A", "3");
    assert_eq!(environment(&mut command), ["A=3", "B=1"]);
    let mut inherited = cat();
    inherited.env("HOME", "/first").env("HOME", "/second");
    let homes = |vars: Vec<String>| vars.into_iter().filter(|var| var.starts_with("HOME=")).collect::<Vec<_>>();
    assert_eq!(homes(environment(&mut inherited)), ["HOME=/second"]);
}

#[test]
fn d108_a_nul_byte_starts_nothing_and_shows_no_value() {
    in_own_process("d108_a_nul_byte_starts_nothing_and_shows_no_value", || {
        for (key, value) in [("X", "hidden\0value"), ("hid\0den", "value")] {
            let error = Command::new("true").env(key, value).spawn().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(!error.to_string().contains("hid") && !format!("{error:?}").contains("hid"), "{error}");
        }
        assert_eq!(children_of_ours(), []);
    });
}

#[test]
fn d109_nothing_said_inherits_and_a_cleared_one_is_empty() {
    in_own_process("d109_nothing_said_inherits_and_a_cleared_one_is_empty", || {
        let odd = OsString::from_vec(b"not \xff text".to_vec());
        // SAFETY: this process is the test's own and has no other thread that reads the environment.
        unsafe { std::env::set_var("PIDLOOP_ODD", &odd) };
        let output = sh("printf %s \"$PIDLOOP_ODD\"").output().unwrap();
        assert_eq!(output.stdout, odd.as_bytes());
        // Read at each spawn.
        let mut command = sh("printf %s \"$PIDLOOP_ODD\"");
        // SAFETY: as above.
        unsafe { std::env::set_var("PIDLOOP_ODD", "now") };
        assert_eq!(text(&command), "now");
        assert_eq!(text(command.env_remove("PIDLOOP_ODD")), "");

        assert_eq!(environment(cat().env_clear()), [""; 0]);
        assert_eq!(environment(cat().env("A", "1").env_clear().env("B", "2")), ["B=2"]);
        assert_eq!(environment(cat().env_clear().env("C", "").env_remove("C").env("D", "")), ["D="]);
    });
}

#[test]
fn d110_pwd_is_left_alone() {
    let dir = Scratch::new("d110");
    for to in ["", ".", "..", "/", dir.0.to_str().unwrap()] {
        let mut command = cat();
        command.env("PWD", "/as/it/was");
        if !to.is_empty() {
            command.current_dir(to);
        }
        let found: Vec<String> = environment(&mut command).into_iter().filter(|var| var.starts_with("PWD=")).collect();
        assert_eq!(found, ["PWD=/as/it/was"], "{to}");
    }
    assert_eq!(environment(cat().env_clear().current_dir("/")), [""; 0]);
}

// ── what a name means ──

#[test]
fn d113_what_is_not_found_is_named() {
    for (name, stage) in [("no-such-program-here", Stage::Lookup), ("./no-such-program-here", Stage::Exec)] {
        let error = Command::new(name).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::NotFound, Some(stage)));
        assert_eq!((error.path(), error.command()), (Some(Path::new(name)), Some(name)));
    }
    for name in [".", ".."] {
        assert_eq!(Command::new(name).spawn().unwrap_err().kind(), ErrorKind::NotFound, "{name}");
    }
}

#[test]
fn d114_an_empty_or_missing_path_finds_nothing() {
    in_own_process("d114_an_empty_or_missing_path_finds_nothing", || {
        let refused = |command: &mut Command| {
            let error = command.spawn().unwrap_err();
            assert_eq!((error.kind(), error.stage()), (ErrorKind::NotFound, Some(Stage::Lookup)), "{error}");
        };
        refused(Command::new("true").env("PATH", ""));
        refused(Command::new("true").env_remove("PATH"));
        refused(Command::new("true").env_clear());
        Command::new("/bin/true").env_clear().run().unwrap();
        let path = std::env::var_os("PATH").unwrap();
        // SAFETY: this process is the test's own and has no other thread that reads the environment.
        unsafe { std::env::remove_var("PATH") };
        refused(&mut Command::new("true"));
        // SAFETY: as above.
        unsafe { std::env::set_var("PATH", "") };
        refused(&mut Command::new("true"));
        Command::new("true").env("PATH", path).run().unwrap();
    });
}

#[test]
fn d115_d118_a_hit_relative_to_the_current_directory_is_refused() {
    in_own_process("d115_d118_a_hit_relative_to_the_current_directory_is_refused", || {
        let dir = Scratch::new("d115");
        dir.dir("sub");
        dir.script("here", "found", 0o755);
        std::env::set_current_dir(dir.0.join("sub")).unwrap();
        dir.script("sub/near", "found", 0o755);
        for (path, name, hit) in [
            (".", "near", "./near"),
            ("..", "here", "../here"),
            ("", "near", ""),
            (":/bin", "near", "./near"),
            ("/bin:", "near", "./near"),
            ("/bin::/usr/bin", "near", "./near"),
            ("../sub", "near", "../sub/near"),
        ] {
            let error = Command::new(name).env("PATH", path).spawn().unwrap_err();
            if hit.is_empty() {
                assert_eq!(error.kind(), ErrorKind::NotFound, "an empty PATH has no elements");
                continue;
            }
            assert_eq!((error.kind(), error.stage()), (ErrorKind::RelativeLookup, Some(Stage::Lookup)), "{path}");
            assert_eq!(error.path(), Some(Path::new(hit)));
            // Who means it says so.
            assert_eq!(text(&Command::new(error.path().unwrap())), "found");
        }
        // What comes before it is not relative to anything.
        assert_eq!(text(Command::new("echo").arg("x").env("PATH", "/bin:.")), "x");
        assert_eq!(text(&Command::new("./near")), "found");
    });
}

#[test]
fn d116_the_current_directory_by_its_full_name_is_fine() {
    in_own_process("d116_the_current_directory_by_its_full_name_is_fine", || {
        let dir = Scratch::new("d116");
        dir.script("here", "found", 0o755);
        std::env::set_current_dir(&dir.0).unwrap();
        assert_eq!(text(Command::new("here").env("PATH", &dir.0)), "found");
    });
}

#[test]
fn d120_what_a_mount_forbids_is_not_found() {
    const NAME: &str = "d120_what_a_mount_forbids_is_not_found";
    in_own_process(NAME, || {
        let dir = Scratch::new("d120");
        let Some(_mount) = Mount::new(&dir.0) else {
            return skip(NAME, "needs the right to mount");
        };
        let path = dir.script("forbidden", "never", 0o755);
        let error = Command::new("forbidden").env("PATH", &dir.0).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::PermissionDenied, Some(Stage::Lookup)), "{error}");
        let error = Command::new(&path).spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::PermissionDenied, Some(Stage::Exec)), "{error}");
        // A later directory has it.
        let other = Scratch::new("d120-other");
        other.script("forbidden", "found", 0o755);
        let both = format!("{}:{}", dir.0.display(), other.0.display());
        assert_eq!(text(Command::new("forbidden").env("PATH", both)), "found");
    });
}

/// A file system of this process's own that forbids execution.
struct Mount(std::ffi::CString);

impl Mount {
    fn new(at: &Path) -> Option<Mount> {
        let at = std::ffi::CString::new(at.as_os_str().as_bytes()).unwrap();
        // SAFETY: unshare(2) and mount(2) with C strings, in a process of the test's own, which alone sees the mount.
        let mounted = unsafe {
            let none = std::ptr::null();
            libc::unshare(libc::CLONE_NEWNS) == 0
                && libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()) == 0
                && libc::mount(c"tmpfs".as_ptr(), at.as_ptr(), c"tmpfs".as_ptr(), libc::MS_NOEXEC, none.cast()) == 0
        };
        mounted.then_some(Mount(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // SAFETY: umount2(2) of what was mounted above.
        unsafe { libc::umount2(self.0.as_ptr(), libc::MNT_DETACH) };
    }
}

#[test]
fn d121_access_is_judged_by_the_effective_ids() {
    const NAME: &str = "d121_access_is_judged_by_the_effective_ids";
    in_own_process(NAME, || {
        if !rustix::process::geteuid().is_root() {
            return skip(NAME, "needs root");
        }
        let dir = Scratch::new("d121");
        let roots = dir.0.join("roots");
        fs::copy("/bin/true", &roots).unwrap();
        fs::set_permissions(&roots, fs::Permissions::from_mode(0o700)).unwrap();
        let mut command = Command::new("roots");
        command.env("PATH", &dir.0);
        const NOBODY: libc::uid_t = 65534;
        let become_user = |real, effective| {
            // SAFETY: setresuid(2) in a process of the test's own.
            assert_eq!(unsafe { libc::setresuid(real, effective, 0) }, 0);
        };
        become_user(NOBODY, 0);
        command.run().unwrap();
        become_user(0, NOBODY);
        let error = command.spawn().unwrap_err();
        assert_eq!((error.kind(), error.stage()), (ErrorKind::PermissionDenied, Some(Stage::Lookup)), "{error}");
        become_user(0, 0);
    });
}

#[test]
fn d122_the_childs_own_path_is_searched() {
    let dir = Scratch::new("d122");
    dir.script("only-here", "found", 0o755);
    let mut command = Command::new("only-here");
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(text(command.env("PATH", &dir.0)), "found");
    assert_eq!(text(Command::new("only-here").env_clear().env("PATH", &dir.0)), "found");
}

#[test]
fn a_name_is_looked_up_anew_at_each_spawn() {
    let dir = Scratch::new("anew");
    let [first, second] = [dir.dir("first"), dir.dir("second")];
    let mut command = Command::new("moves");
    command.env("PATH", format!("{}:{}", first.display(), second.display()));
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::NotFound);
    let script = dir.script("second/moves", "second", 0o755);
    assert_eq!(text(&command), "second");
    dir.script("first/moves", "first", 0o755);
    assert_eq!(text(&command), "first");
    fs::remove_file(first.join("moves")).unwrap();
    assert_eq!(text(&command), "second");
    fs::set_permissions(script, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(command.spawn().unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[test]
fn what_cannot_be_executed_is_passed_over() {
    let dir = Scratch::new("passed");
    let [plain, folder, real] = [dir.dir("plain"), dir.dir("folder"), dir.dir("real")];
    dir.script("plain/prog", "never", 0o644);
    dir.dir("folder/prog");
    dir.script("real/prog", "found", 0o755);
    let path = |dirs: &[&Path]| dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":");
    let all = path(&[Path::new("/no/such/directory"), Path::new("/dev/null"), &plain, &folder, &real]);
    assert_eq!(text(Command::new("prog").env("PATH", all)), "found");
    let error = Command::new("prog").env("PATH", path(&[&plain, &folder])).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
}

#[test]
fn a_file_without_an_interpreter_is_not_given_to_a_shell() {
    let dir = Scratch::new("noshell");
    let path = dir.0.join("bare");
    fs::write(&path, "echo never\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut by_name = Command::new("bare");
    by_name.env("PATH", &dir.0);
    for command in [by_name, Command::new(path)] {
        let error = command.spawn().unwrap_err();
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Exec, Some(libc::ENOEXEC)), "{error}");
    }
}

#[test]
fn another_users_child_looks_for_itself() {
    const NAME: &str = "another_users_child_looks_for_itself";
    if !rustix::process::geteuid().is_root() {
        return skip(NAME, "needs root");
    }
    let dir = Scratch::new("another");
    let [mine, everybodys] = [dir.dir("mine"), dir.dir("everybodys")];
    dir.script("mine/prog", "mine", 0o700);
    dir.script("everybodys/prog", "everybodys", 0o755);
    let mut command = Command::new("prog");
    command.env("PATH", format!("{}:{}", mine.display(), everybodys.display()));
    assert_eq!(text(&command), "mine");
    assert_eq!(text(command.uid(65534).gid(65534)), "everybodys");
    let error = command.env("PATH", &mine).spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    let error = command.env("PATH", "/no/such/directory").spawn().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("prog"), "{error}");
}
