//! The progress bar. Knows numbers to show, not jobs.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the elapsed time moves on.
pub(crate) const FRAME: Duration = Duration::from_millis(250);

/// A progress bar on standard error, or none; clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Bar(Option<ProgressBar>);

/// What it shows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) ended: u64,
    pub(crate) failed: u64,
    pub(crate) running: usize,
    /// How many jobs there are, once that is known.
    pub(crate) total: Option<u64>,
}

impl Bar {
    pub(crate) fn new(shown: bool) -> Bar {
        let bar = || ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
        let bar = Bar(shown.then(bar));
        // Also while nothing has come yet.
        bar.update(Progress { ended: 0, failed: 0, running: 0, total: None });
        bar
    }

    pub(crate) fn is_shown(&self) -> bool {
        self.0.is_some()
    }

    pub(crate) fn update(&self, progress: Progress) {
        let Some(bar) = &self.0 else { return };
        if bar.length() != progress.total || bar.position() == 0 {
            bar.set_style(style(progress.total.is_some(), progress.ended > 0));
            if let Some(total) = progress.total {
                bar.set_length(total);
            }
        }
        let failed = if progress.failed > 0 { format!(", {} failed", progress.failed) } else { String::new() };
        bar.set_message(format!("{} running{failed}", progress.running));
        bar.set_position(progress.ended);
    }

    /// Shows the time that has passed.
    pub(crate) fn tick(&self) {
        if let Some(bar) = &self.0 {
            bar.tick();
        }
    }

    /// Does something to the terminal without the bar in its way.
    pub(crate) fn aside<T>(&self, f: impl FnOnce() -> T) -> T {
        match &self.0 {
            Some(bar) => bar.suspend(f),
            None => f(),
        }
    }

    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn style(has_total: bool, has_ended: bool) -> ProgressStyle {
    let template = match (has_total, has_ended) {
        (true, true) => "{elapsed} {bar:30} {pos}/{len} {msg} ({eta} left)",
        (true, false) => "{elapsed} {bar:30} {pos}/{len} {msg}",
        (false, _) => "{elapsed} {spinner} {pos} done, {msg}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
