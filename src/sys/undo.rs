//! What belongs to the whole process and not to one thread of it, noted before an exec that may fail, and put back after it. Knows
//! nothing of what was done in between.

use std::ptr;

use super::raw::{KernelSigaction, call};

const SIGNALS: usize = 64;

/// As it was. What has no way back is not here: a session, its terminal, a cgroup.
pub(crate) struct Undo {
    actions: [KernelSigaction; SIGNALS],
    limits: Vec<(u32, libc::rlimit)>,
    /// `None`: not to be changed.
    oom_score_adj: Option<String>,
    group: Option<rustix::process::Pid>,
}

impl Undo {
    /// Of all dispositions, and of what is asked for. rt_sigaction(2), getrlimit(2), getpgrp(2).
    pub(crate) fn note(resources: impl Iterator<Item = u32>, oom_score_adj: bool, group: bool) -> Undo {
        let limit = |resource: u32| {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: getrlimit(2) writes the structure. The resource is an int in some C libraries.
            let got = unsafe { libc::getrlimit(resource as _, &mut limit) };
            (got == 0).then_some((resource, limit))
        };
        Undo {
            actions: std::array::from_fn(|at| action(at + 1)),
            limits: resources.filter_map(limit).collect(),
            oom_score_adj: oom_score_adj.then(|| std::fs::read_to_string(OOM).ok()).flatten(),
            group: group.then(rustix::process::getpgrp),
        }
    }

    /// Puts back what is not as it was, as far as this process still may. An error would help nobody: there is one to tell already.
    pub(crate) fn undo(&self) {
        for (at, before) in self.actions.iter().enumerate() {
            if action(at + 1) != *before {
                // SAFETY: rt_sigaction(2): a disposition that the kernel gave us for this signal.
                unsafe { call(libc::SYS_rt_sigaction, [at + 1, ptr::from_ref(before) as usize, 0, 8, 0]) };
            }
        }
        for (resource, before) in &self.limits {
            // SAFETY: setrlimit(2) reads the structure.
            unsafe { libc::setrlimit(*resource as _, before) };
        }
        if let Some(before) = &self.oom_score_adj {
            let _ = std::fs::write(OOM, before);
        }
        if self.group.is_some_and(|before| before != rustix::process::getpgrp()) {
            let _ = rustix::process::setpgid(None, self.group);
        }
    }
}

const OOM: &str = "/proc/self/oom_score_adj";

fn action(signal: usize) -> KernelSigaction {
    let mut action = KernelSigaction::default();
    // SAFETY: rt_sigaction(2) writes the structure, or says that there is no such signal.
    unsafe { call(libc::SYS_rt_sigaction, [signal, 0, ptr::from_mut(&mut action) as usize, 8, 0]) };
    action
}
