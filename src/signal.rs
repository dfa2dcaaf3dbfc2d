//! Signals by their POSIX names. Knows numbers and names; sends nothing.

use std::fmt;
use std::num::NonZeroU8;

/// A signal, by number; the POSIX names are constants.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Signal(NonZeroU8);

/// The largest signal number of Linux (`SIGRTMAX`).
const SIGNAL_MAX: i32 = 64;

macro_rules! signals {
    ($($name:ident $description:literal,)*) => {
        /// The POSIX names, with Linux's numbers for this architecture.
        impl Signal {
            $(#[doc = concat!("“", $description, "”")]
            pub const $name: Signal = Signal::known(libc::$name);)*
        }

        const NAMES: &[(Signal, &str, &str)] = &[$((Signal::$name, stringify!($name), $description),)*];
    };
}

signals! {
    SIGHUP "hangup",
    SIGINT "interrupt",
    SIGQUIT "quit",
    SIGILL "illegal instruction",
    SIGTRAP "trace/breakpoint trap",
    SIGABRT "aborted",
    SIGBUS "bus error",
    SIGFPE "floating point exception",
    SIGKILL "killed",
    SIGUSR1 "user defined signal 1",
    SIGSEGV "segmentation fault",
    SIGUSR2 "user defined signal 2",
    SIGPIPE "broken pipe",
    SIGALRM "alarm clock",
    SIGTERM "terminated",
    SIGSTKFLT "stack fault",
    SIGCHLD "child exited",
    SIGCONT "continued",
    SIGSTOP "stopped (signal)",
    SIGTSTP "stopped",
    SIGTTIN "stopped (tty input)",
    SIGTTOU "stopped (tty output)",
    SIGURG "urgent I/O condition",
    SIGXCPU "CPU time limit exceeded",
    SIGXFSZ "file size limit exceeded",
    SIGVTALRM "virtual timer expired",
    SIGPROF "profiling timer expired",
    SIGWINCH "window changed",
    SIGIO "I/O possible",
    SIGPWR "power failure",
    SIGSYS "bad system call",
}

impl Signal {
    const fn known(number: i32) -> Signal {
        match NonZeroU8::new(number as u8) {
            Some(n) => Signal(n),
            None => panic!("no signal has the number 0"),
        }
    }

    /// The signal with this number, real-time signals included; `None` outside 1 to 64.
    pub fn from_raw(number: i32) -> Option<Signal> {
        let number = u8::try_from(number).ok().filter(|n| i32::from(*n) <= SIGNAL_MAX)?;
        NonZeroU8::new(number).map(Signal)
    }

    /// The signal with this name, with or without `SIG`, in any case; or a number.
    pub fn from_name(name: &str) -> Option<Signal> {
        if let Ok(number) = name.parse() {
            return Signal::from_raw(number);
        }
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        NAMES.iter().find(|(_, n, _)| &n[3..] == bare).map(|(s, ..)| *s)
    }

    /// Its number.
    pub fn as_raw(self) -> i32 {
        i32::from(self.0.get())
    }

    /// Its POSIX name; `None` for real-time signals.
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(s, ..)| *s == self).map(|(_, name, _)| *name)
    }

    /// What Go and the shells call it: `killed`, `terminated`; `signal 34` for those without a name.
    pub(crate) fn description(self) -> impl fmt::Display {
        Description(self)
    }
}

struct Description(Signal);

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(s, ..)| *s == self.0) {
            Some((_, _, description)) => f.write_str(description),
            None => write!(f, "signal {}", self.0.as_raw()),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "signal {}", self.as_raw()),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// As its name; as its number, if it has none.
#[cfg(feature = "serde")]
impl serde::Serialize for Signal {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.name() {
            Some(name) => serializer.serialize_str(name),
            None => serializer.collect_str(&self.as_raw()),
        }
    }
}

/// From what [`Signal::from_name`] understands.
#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Signal {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Signal, D::Error> {
        let name = String::deserialize(deserializer)?;
        Signal::from_name(&name).ok_or_else(|| serde::de::Error::custom(format_args!("no signal is called {name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_round_trip() {
        for number in 1..=SIGNAL_MAX {
            let signal = Signal::from_raw(number).unwrap();
            assert_eq!(signal.as_raw(), number);
            if let Some(name) = signal.name() {
                assert_eq!(Signal::from_name(name), Some(signal));
                assert_eq!(Signal::from_name(&name[3..].to_lowercase()), Some(signal));
            }
        }
        assert_eq!(Signal::from_raw(0), None);
        assert_eq!(Signal::from_raw(65), None);
        assert_eq!(Signal::from_raw(-1), None);
        assert_eq!(Signal::from_name("SIGNOPE"), None);
        assert_eq!(Signal::from_name("9"), Some(Signal::SIGKILL));
    }

    #[test]
    fn descriptions_are_gos() {
        assert_eq!(Signal::SIGTERM.description().to_string(), "terminated");
        assert_eq!(Signal::from_raw(34).unwrap().description().to_string(), "signal 34");
    }
}
