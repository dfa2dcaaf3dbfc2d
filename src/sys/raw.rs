//! System calls without libc, for the child between clone and exec: errno and every lock there belong to the parent, whose memory it
//! shares. Knows numbers and registers.

use std::arch::asm;

/// The kernel's own `struct sigaction`, as rt_sigaction(2) takes it.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct KernelSigaction {
    pub(super) handler: usize,
    pub(super) flags: u64,
    pub(super) restorer: usize,
    pub(super) mask: u64,
}

/// A system call; a result in `-4095..0` is a negated errno.
///
/// # Safety
///
/// That of the call.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn call(number: libc::c_long, args: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the caller's; syscall(2) clobbers rcx and r11 alone.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2], in("r10") args[3], in("r8") args[4],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// As on x86_64.
///
/// # Safety
///
/// That of the call.
#[inline(always)]
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn call(number: libc::c_long, args: [usize; 5]) -> isize {
    let result: isize;
    // SAFETY: the caller's; svc clobbers x0 alone.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => result,
            in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4],
            options(nostack),
        );
    }
    result
}

/// The arguments of `clone`, whose order is the architecture's: of a stack that ends at `top`, where CLONE_PIDFD writes and where
/// CLONE_CHILD_SETTID does.
pub(super) fn clone_args(flags: usize, top: usize, pidfd: *mut i32, child_tid: *mut i32) -> [usize; 5] {
    let (pidfd, child_tid) = (pidfd as usize, child_tid as usize);
    if cfg!(target_arch = "x86_64") { [flags, top, pidfd, child_tid, 0] } else { [flags, top, pidfd, 0, child_tid] }
}

/// `clone` or `clone3` with a stack of the child's own, on which it runs `main(data)`; returns in the parent alone.
///
/// # Safety
///
/// The arguments are those of clone(2), with a stack that nobody else uses and that ends at a multiple of 16; with `CLONE_VM` the
/// parent must not go on before the child has exec'd or exited (`CLONE_VFORK`).
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn clone_running(
    number: libc::c_long,
    args: [usize; 5],
    main: unsafe extern "C" fn(*const libc::c_void) -> !,
    data: *const libc::c_void,
) -> isize {
    let result: isize;
    // SAFETY: the caller's. The child starts with the parent's registers and its own stack, and never comes back.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2], in("r10") args[3], in("r8") args[4],
            in("r12") data, in("r13") main,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// As on x86_64.
///
/// # Safety
///
/// As on x86_64.
#[cfg(target_arch = "aarch64")]
pub(super) unsafe fn clone_running(
    number: libc::c_long,
    args: [usize; 5],
    main: unsafe extern "C" fn(*const libc::c_void) -> !,
    data: *const libc::c_void,
) -> isize {
    let result: isize;
    // SAFETY: the caller's. The child starts with the parent's registers and its own stack, and never comes back.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x9",
            "blr x10",
            "brk 1",
            "2:",
            in("x8") number,
            inlateout("x0") args[0] => result,
            in("x1") args[1], in("x2") args[2], in("x3") args[3], in("x4") args[4],
            in("x9") data, in("x10") main,
        );
    }
    result
}

/// The end of a signal handler, which the kernel wants to be told on x86_64: the address of code that calls rt_sigreturn(2).
#[cfg(target_arch = "x86_64")]
pub(super) fn signal_restorer() -> (usize, u64) {
    const SA_RESTORER: u64 = 0x0400_0000;
    let address: usize;
    // SAFETY: takes an address and jumps over the code at it.
    unsafe {
        asm!(
            "lea {address}, [rip + 2f]",
            "jmp 3f",
            "2:",
            "mov eax, 15",
            "syscall",
            "3:",
            address = out(reg) address,
            options(nostack, nomem),
        );
    }
    (address, SA_RESTORER)
}

/// The kernel brings its own on aarch64.
#[cfg(target_arch = "aarch64")]
pub(super) fn signal_restorer() -> (usize, u64) {
    (0, 0)
}
