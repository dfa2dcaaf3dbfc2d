//! A span of `tracing` for each child, with the feature of that name; without it nothing. A subscriber is somebody else's code: called by the
//! thread that spawns, before there is a lock, and by helper threads; a panic in it ends here.

#[cfg(feature = "tracing")]
pub(crate) use with::Span;
#[cfg(not(feature = "tracing"))]
pub(crate) use without::Span;

#[cfg(feature = "tracing")]
mod with {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    use tracing::field::{Empty, display};

    use crate::error::Error;
    use crate::exit::Exit;
    use crate::helpers;

    /// The span of a child, as long as it lives; `None`: nobody listens.
    #[derive(Debug)]
    pub(crate) struct Span(Option<Box<tracing::Span>>);

    impl Span {
        #[cfg(test)]
        pub(crate) fn none() -> Span {
            Span(None)
        }

        /// Below the one that is current on this thread.
        pub(crate) fn begin(command: impl FnOnce() -> Arc<str>) -> Span {
            let made = catch_unwind(AssertUnwindSafe(|| {
                if !tracing::span_enabled!(target: "pidloop", tracing::Level::DEBUG) {
                    return tracing::Span::none();
                }
                tracing::debug_span!(
                    target: "pidloop",
                    "child",
                    command = &*command(),
                    pid = Empty,
                    exit = Empty,
                    cause = Empty,
                    error = Empty
                )
            }));
            Span(made.ok().filter(|span| !span.is_disabled()).map(Box::new))
        }

        pub(crate) fn take(&mut self) -> Option<Span> {
            self.0.take().map(|span| Span(Some(span)))
        }

        pub(crate) fn born(&self, pid: u32) {
            if let Some(span) = &self.0 {
                let _ = catch_unwind(AssertUnwindSafe(|| span.record("pid", pid)));
            }
        }

        /// Of a child that did not come to be.
        pub(crate) fn fail(mut self, error: &Error) {
            let (span, error) = (self.0.take(), error.to_string());
            helpers::run(Box::new(move || {
                if let Some(span) = span {
                    span.record("error", error);
                }
            }));
        }

        pub(crate) fn close(mut self, exit: Exit) {
            let span = self.0.take();
            helpers::run(Box::new(move || {
                if let Some(span) = span {
                    span.record("exit", display(&exit));
                    if let Some(cause) = exit.cause() {
                        span.record("cause", display(cause));
                    }
                }
            }));
        }
    }

    impl Drop for Span {
        /// Of a child that came to nothing, by whatever thread.
        fn drop(&mut self) {
            if let Some(span) = self.0.take() {
                helpers::run(Box::new(move || drop(span)));
            }
        }
    }
}

#[cfg(not(feature = "tracing"))]
mod without {
    use std::sync::Arc;

    use crate::error::Error;
    use crate::exit::Exit;

    #[derive(Debug)]
    pub(crate) struct Span;

    impl Span {
        #[cfg(test)]
        pub(crate) fn none() -> Span {
            Span
        }

        pub(crate) fn begin(_command: impl FnOnce() -> Arc<str>) -> Span {
            Span
        }

        pub(crate) fn take(&mut self) -> Option<Span> {
            None
        }

        pub(crate) fn born(&self, _pid: u32) {}

        pub(crate) fn fail(self, _error: &Error) {}

        pub(crate) fn close(self, _exit: Exit) {}
    }
}
