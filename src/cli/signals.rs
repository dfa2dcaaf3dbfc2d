//! The signals that steer the program. Knows which ones it takes, not what they lead to.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use pidloop::Signal;
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use signal_hook::low_level::emulate_default_handler;

const TAKEN: [Signal; 8] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGTSTP,
    Signal::SIGCONT,
    Signal::SIGUSR1,
    Signal::SIGWINCH,
];

/// Signals that have come, behind a descriptor.
#[derive(Debug)]
pub(crate) struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// From now on they do not act by themselves. Those that were ignored when the program was started (nohup, a shell's background
    /// jobs) stay ignored.
    pub(crate) fn new() -> io::Result<Signals> {
        let ignored = ignored();
        let taken = TAKEN.iter().map(|signal| signal.as_raw()).filter(|number| ignored & (1 << (number - 1)) == 0);
        let (read, write) = UnixStream::pair()?;
        Ok(Signals(SignalDelivery::with_pipe(read, write, SignalOnly, taken)?))
    }

    /// Those that came since the last call; several of one kind may be one.
    pub(crate) fn take(&mut self) -> Vec<Signal> {
        self.0.pending().filter_map(Signal::from_raw).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}

/// The ignored signals as bits; of this process, by the kernel's own account. None if there is no `/proc`.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Does what the signal does to a program that does not take it: ends this one, or stops it until it is continued.
pub(crate) fn act_by_default(signal: Signal) {
    let _ = emulate_default_handler(signal.as_raw());
}
