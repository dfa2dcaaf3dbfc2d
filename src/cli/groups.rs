//! Process groups that were stopped: a leader's end is not its group's. Looks at them and signals nothing.

use std::collections::HashSet;

use rustix::process::{Pid, test_kill_process_group};

/// After how many more groups it is looked which of them are gone.
const LOOK_EVERY: usize = 256;

/// The groups of stopped jobs, by the pids of their leaders.
#[derive(Debug, Default)]
pub(crate) struct Groups(Vec<u32>);

impl Groups {
    /// The leader of a group that was stopped is dead.
    pub(crate) fn note(&mut self, leader: u32) {
        self.0.push(leader);
        if self.0.len() % LOOK_EVERY == 0 {
            self.forget_empty();
        }
    }

    /// Whether a group has a member left that is not dead. A number that is somebody else's by now costs some time and no more.
    pub(crate) fn live(&mut self) -> bool {
        self.forget_empty();
        if !self.0.is_empty() {
            self.forget_zombies();
        }
        !self.0.is_empty()
    }

    /// `kill(2)` with no signal.
    fn forget_empty(&mut self) {
        let exists =
            |leader: &u32| Pid::from_raw(*leader as i32).is_some_and(|pid| test_kill_process_group(pid).is_ok());
        self.0.retain(exists);
    }

    /// An orphan is a zombie until process 1 reaps it, which takes its time in a container.
    fn forget_zombies(&mut self) {
        let Ok(processes) = std::fs::read_dir("/proc") else {
            return;
        };
        let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path().join("stat")).ok());
        let living: HashSet<u32> = stats.filter_map(|stat| living_group(&stat)).collect();
        self.0.retain(|leader| living.contains(leader));
    }
}

/// The group of a process, unless it is dead; `stat`: proc_pid_stat(5).
fn living_group(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?;
    let group = fields.nth(1)?;
    (!matches!(state, "Z" | "X")).then(|| group.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_have_no_group() {
        assert_eq!(living_group("7 (a b) c) S 1 42 42 0"), Some(42));
        assert_eq!(living_group("7 (x) Z 1 42 42 0"), None);
        assert_eq!(living_group(""), None);
    }
}
