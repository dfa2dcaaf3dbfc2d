//! The promises once more where newer system calls are refused, by a kernel that does not know them and by a sandbox: the core tests under
//! a filter. Knows which calls those are.
#![allow(clippy::duplicate_mod, reason = "each of these files has its own `mod common`")]

mod common;

#[path = "cancel.rs"]
mod cancel;
#[path = "descriptors.rs"]
mod descriptors;
#[path = "founding.rs"]
mod founding;
#[path = "start_wait.rs"]
mod start_wait;
#[path = "status_signals.rs"]
mod status_signals;

use std::os::unix::process::CommandExt;

use pidloop::{Command, Context, ErrorKind, Signal};

/// Set in the processes that run under a filter.
const VARIABLE: &str = "PIDLOOP_TEST_RESTRICTED";

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

/// A filter that answers `errno` to close_range, pidfd_send_signal with flags, the ioctl of pidfds and faccessat2, and an errno of its own
/// to clone3: libc itself starts threads by that, and gets over ENOSYS alone.
fn filter(errno: u32, clone3_errno: u32) -> Vec<libc::sock_filter> {
    const PIDFD_IOCTL: u32 = 0xFF;
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let load = |offset: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let allow = statement(libc::BPF_RET, libc::SECCOMP_RET_ALLOW);
    let refuse = statement(libc::BPF_RET, libc::SECCOMP_RET_ERRNO | errno);
    let (number, arch, args) = (0, 4, 16);
    vec![
        load(arch),
        jump(ARCH, 1, 0),
        allow,
        load(number),
        jump(libc::SYS_clone3 as u32, 11, 0),
        jump(libc::SYS_close_range as u32, 9, 0),
        jump(libc::SYS_faccessat2 as u32, 8, 0),
        jump(libc::SYS_pidfd_send_signal as u32, 0, 2),
        load(args + 3 * 8),
        jump(0, 4, 5),
        jump(libc::SYS_ioctl as u32, 0, 3),
        // The type of the ioctl's number: its second byte.
        load(args + 8),
        statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0xFF00),
        jump(PIDFD_IOCTL << 8, 1, 0),
        allow,
        refuse,
        statement(libc::BPF_RET, libc::SECCOMP_RET_ERRNO | clone3_errno),
    ]
}

/// For this thread, and what it starts. seccomp(2).
fn install(filter: &[libc::sock_filter]) -> std::io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the program lives through the call, which copies it.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn run_all_under(errno: i32) {
    if std::env::var(VARIABLE).is_ok() {
        return;
    }
    let filter = filter(errno as u32, libc::ENOSYS as u32);
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["::", "--test-threads=4"]).env(VARIABLE, "1");
    // SAFETY: two system calls, between fork and exec.
    unsafe {
        command.pre_exec(move || install(&filter));
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return common::skip("restricted", &format!("no seccomp here: {error}")),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains(" passed"), "{text}");
}

#[test]
fn under_a_kernel_that_does_not_know_the_newer_calls() {
    run_all_under(libc::ENOSYS);
}

#[test]
fn under_a_sandbox_that_forbids_the_newer_calls() {
    run_all_under(libc::EPERM);
}

/// By a thread that alone is filtered: the others were started before.
#[test]
fn a_thread_that_may_not_use_clone3() {
    common::in_own_process("a_thread_that_may_not_use_clone3", || {
        Command::new("true").group().spawn().unwrap().wait().unwrap();
        let before = common::open_descriptors();
        if let Err(error) = install(&filter(libc::EPERM as u32, libc::EPERM as u32)) {
            return common::skip("a_thread_that_may_not_use_clone3", &error.to_string());
        }
        for _ in 0..3 {
            assert_eq!(Command::new("echo").arg("x").output().unwrap().stdout, b"x\n");
            assert!(Command::new("true").status().unwrap().success());
            assert_eq!(Command::new("/no/such").spawn().unwrap_err().kind(), ErrorKind::NotFound);
            let ctx = Context::new();
            let child = Command::new("sleep").arg("60").group().context(&ctx).spawn().unwrap();
            ctx.cancel();
            assert_eq!(child.wait().unwrap().signal(), Some(Signal::SIGKILL));
        }
        assert!(!pidloop::capabilities().clone3);
        assert_eq!(common::open_descriptors(), before);
        assert_eq!(common::children_of_ours(), []);
    });
}

mod inside {
    /// The filter is what it says.
    #[test]
    fn the_newer_calls_are_refused() {
        if std::env::var(super::VARIABLE).is_err() {
            return;
        }
        pidloop::Command::new("true").group().run().unwrap();
        let capabilities = pidloop::capabilities();
        assert!(!capabilities.clone3 && !capabilities.close_range && !capabilities.group_signals, "{capabilities}");
    }
}
