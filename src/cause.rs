//! Why a child is stopped, as data. Knows nothing of who says so.

use std::fmt;
use std::sync::Arc;

use crate::signal::Signal;

/// Why a child was stopped, or a context cancelled; what Go's `context.Cause` returns.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Cause {
    /// [`Context::cancel`](crate::Context::cancel), or a write to [`Context::cancel_fd`](crate::Context::cancel_fd).
    Cancelled,
    /// The deadline of a context or the timeout of a command passed.
    DeadlineExceeded,
    /// [`Child::terminate`](crate::Child::terminate).
    Terminated,
    /// More output than [`Limit::stop_at`](crate::Limit::stop_at) allows.
    OutputLimit,
    /// The handle (or its driver or reactor) was dropped, with [`kill_on_drop`](crate::Command::kill_on_drop).
    Dropped,
    /// The driver or reactor was shut down.
    ShutDown,
    /// A signal of [`Context::on_signal`](crate::Context::on_signal).
    Signal(Signal),
    /// The descriptor of [`Context::from_fd`](crate::Context::from_fd) became readable.
    Readable,
    /// The other end of the descriptor of [`Context::from_fd`](crate::Context::from_fd) was closed.
    PeerClosed,
    /// What was given to [`Context::cancel_with`](crate::Context::cancel_with).
    Other(Reason),
}

/// A cause of the caller's own; made with `From`.
#[derive(Clone)]
pub struct Reason {
    error: Arc<dyn std::error::Error + Send + Sync>,
    at_deadline: bool,
}

impl Reason {
    /// The error it was made from.
    pub fn get_ref(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.error
    }
}

/// As its words.
#[cfg(feature = "serde")]
impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.error)
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl PartialEq for Reason {
    /// The same, or the same words.
    fn eq(&self, other: &Reason) -> bool {
        Arc::ptr_eq(&self.error, &other.error) || self.to_string() == other.to_string()
    }
}

impl Cause {
    /// Whether it is a deadline, with whatever words: what Go's `ctx.Err()` tells beside `context.Cause`.
    pub fn is_timeout(&self) -> bool {
        match self {
            Cause::DeadlineExceeded => true,
            Cause::Other(reason) => reason.at_deadline,
            _ => false,
        }
    }

    /// Whether it holds a value of the caller's, whose drop is the caller's code.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self, Cause::Other(_))
    }

    /// The same, as the cause of a deadline.
    pub(crate) fn at_deadline(self) -> Cause {
        match self {
            Cause::Other(reason) => Cause::Other(Reason { at_deadline: true, ..reason }),
            other => other,
        }
    }

    /// The error of the caller's own behind it.
    pub fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Cause::Other(reason) => Some(&*reason.error),
            _ => None,
        }
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Cause) -> bool {
        match (self, other) {
            (Cause::Other(a), Cause::Other(b)) => a == b,
            (Cause::Signal(a), Cause::Signal(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Cancelled => "context cancelled",
            Cause::DeadlineExceeded => "deadline exceeded",
            Cause::Terminated => "terminated",
            Cause::OutputLimit => "output limit exceeded",
            Cause::Dropped => "handle dropped",
            Cause::ShutDown => "shutting down",
            Cause::Readable => "descriptor became readable",
            Cause::PeerClosed => "peer closed the connection",
            Cause::Signal(signal) => return write!(f, "received {signal}"),
            Cause::Other(reason) => return fmt::Display::fmt(reason, f),
        })
    }
}

impl From<Box<dyn std::error::Error + Send + Sync>> for Cause {
    fn from(error: Box<dyn std::error::Error + Send + Sync>) -> Cause {
        Cause::Other(Reason { error: error.into(), at_deadline: false })
    }
}

impl From<&str> for Cause {
    fn from(text: &str) -> Cause {
        Box::<dyn std::error::Error + Send + Sync>::from(text).into()
    }
}

impl From<String> for Cause {
    fn from(text: String) -> Cause {
        Box::<dyn std::error::Error + Send + Sync>::from(text).into()
    }
}
