//! Contexts from tokio-util's `CancellationToken`s and the other way round (feature `tokio`). Knows tokens and contexts; takes no task and
//! no thread: each is the other's waker.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{self, Wake, Waker};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::context::{Context, Tell, WeakContext};
use crate::driver::listen;

/// Ends a context when its token is cancelled. It does not keep the context alive.
struct Ends(WeakContext);

impl Wake for Ends {
    fn wake(self: Arc<Self>) {
        if let Some(context) = self.0.upgrade() {
            context.cancel();
        }
    }
}

/// Cancels a token when its context ends.
struct Cancels(CancellationToken);

impl Wake for Cancels {
    fn wake(self: Arc<Self>) {
        self.0.cancel();
    }
}

/// What a context was made from. The future is what holds the waker's place in the token: with the context it is dropped.
struct From {
    token: CancellationToken,
    _waiting: Mutex<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl Context {
    /// A context that ends when `token` is cancelled, with [`Cause::Cancelled`](crate::Cause::Cancelled): before
    /// `CancellationToken::cancel` returns, and without a task. Not the other way round. (Feature `tokio`.)
    ///
    /// When the last clone is dropped the token forgets it.
    ///
    /// ```
    /// use pidloop::{Command, Context, ErrorKind};
    /// use tokio_util::sync::CancellationToken;
    ///
    /// let token = CancellationToken::new();
    /// let child = Command::new("sleep").arg("60").context(&Context::from_token(&token)).spawn()?;
    /// token.cancel();
    /// assert_eq!(child.wait()?.check().unwrap_err().kind(), ErrorKind::Cancelled);
    /// # Ok::<(), pidloop::Error>(())
    /// ```
    pub fn from_token(token: &CancellationToken) -> Context {
        let context = Context::new();
        let mut waiting = Box::pin(token.clone().cancelled_owned());
        let waker = Waker::from(Arc::new(Ends(context.downgrade())));
        if waiting.as_mut().poll(&mut task::Context::from_waker(&waker)).is_ready() {
            context.cancel();
        }
        context.bind(|| Box::new(From { token: token.clone(), _waiting: Mutex::new(waiting) }));
        context
    }

    /// A token that is cancelled when this context ends, for code that takes one: by the thread that cancels the context, or by the
    /// default driver's for a deadline, a signal or a descriptor; without a task. (Feature `tokio`.)
    ///
    /// Each call gives a token of its own: to cancel it ends neither the context nor the other tokens. Of a context that was made
    /// [from a token](Context::from_token) it is a child of that one. When the context's last handle is dropped what ends its parent
    /// still cancels it; a deadline is watched until it has passed.
    ///
    /// ```
    /// use pidloop::Context;
    ///
    /// let request = Context::new();
    /// let token = request.to_token();
    /// request.cancel();
    /// assert!(token.is_cancelled());
    /// ```
    pub fn to_token(&self) -> CancellationToken {
        let mut is_new = false;
        let bond: &(dyn Any + Send + Sync) = self.bind(|| {
            is_new = true;
            Box::new(CancellationToken::new())
        });
        if let Some(from) = bond.downcast_ref::<From>() {
            return self.told(from.token.child_token());
        }
        let token = bond.downcast_ref::<CancellationToken>().expect("one of the two");
        if is_new {
            // One listener, whatever the number of tokens.
            let waker = Waker::from(Arc::new(Cancels(token.clone())));
            let _ = listen(self, Tell::Wake(waker));
        }
        self.told(token.child_token())
    }

    /// Who asks after the end is told at once; in a forked copy there is nobody else to tell.
    fn told(&self, token: CancellationToken) -> CancellationToken {
        if self.is_cancelled() {
            token.cancel();
        }
        token
    }
}
