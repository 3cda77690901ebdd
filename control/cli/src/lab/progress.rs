//! What is being done right now, and whether the user has asked to stop.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Set once by Ctrl-C, SIGTERM or SIGHUP; looked at between steps, so that what was built can be taken down again.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Takes the signals over.
    ///
    /// # Errors
    /// The system refuses the handlers.
    pub(crate) fn watch() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("cannot watch for Ctrl-C")?;
        }
        Ok(Self(flag))
    }

    /// Whether the user has asked to stop.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails when the user has asked to stop.
    ///
    /// # Errors
    /// Interrupted.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is_set() {
            bail!("interrupted");
        }
        Ok(())
    }
}

/// Steps on standard error: a moving line on a terminal, a line each elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    interrupt: Interrupt,
}

impl Progress {
    /// Progress of what `title` names.
    pub(crate) fn new(title: impl Into<Cow<'static, str>>, interrupt: Interrupt) -> Self {
        use std::io::IsTerminal as _;
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_prefix(title);
            bar.set_style(style());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, interrupt }
    }

    /// Says what is done next.
    ///
    /// # Errors
    /// The user has interrupted.
    pub(crate) fn step(&self, what: impl Into<Cow<'static, str>>) -> Result<()> {
        self.check()?;
        let what = what.into();
        match &self.bar {
            Some(bar) => bar.set_message(what),
            None => eprintln!("  {what}"),
        }
        Ok(())
    }

    /// Says on a terminal what is done next; elsewhere the lines that stay are enough.
    ///
    /// # Errors
    /// The user has interrupted.
    pub(crate) fn step_quietly(&self, what: impl Into<Cow<'static, str>>) -> Result<()> {
        self.check()?;
        if let Some(bar) = &self.bar {
            bar.set_message(what);
        }
        Ok(())
    }

    /// A line that stays.
    pub(crate) fn line(&self, text: &str) {
        self.suspended(|| eprintln!("{text}"));
    }

    /// Prints something while the moving line is out of its way.
    pub(crate) fn suspended<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Fails when the user has interrupted.
    ///
    /// # Errors
    /// Interrupted.
    pub(crate) fn check(&self) -> Result<()> {
        self.interrupt.check()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}
