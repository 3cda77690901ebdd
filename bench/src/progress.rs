//! What a run is doing right now, on standard error; and the place where Ctrl-C is noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// A bar on a terminal, lines elsewhere.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    lines: bool,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    /// A progress of `steps` steps. From here on SIGINT and SIGTERM make the next step fail instead of killing.
    ///
    /// # Errors
    /// The signal handlers cannot be installed.
    pub fn new(steps: u64) -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        let theirs = Arc::clone(&interrupted);
        std::thread::Builder::new().name("signals".into()).spawn(move || watch(&mut signals, &theirs))?;
        let bar = ProgressBar::new(steps);
        if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} [{bar:30}] {pos}/{len} {wide_msg}")
        {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        let lines = bar.is_hidden();
        Ok(Self { bar, lines, interrupted })
    }

    /// Says what begins now, as part of what `headline` says.
    ///
    /// # Errors
    /// The user has interrupted.
    pub fn step(&self, headline: &str, detail: &str) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            self.bar.finish_and_clear();
            bail!("interrupted; cleaned up");
        }
        self.bar.set_message(format!("{headline}: {detail}"));
        self.bar.inc(1);
        Ok(())
    }

    /// Says something that stays on the screen.
    pub fn say(&self, text: &str) {
        if self.lines {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Begins a part of the run: a headline where there is no bar.
    pub fn part(&self, headline: &str) {
        if self.lines {
            eprintln!("{headline}");
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A second signal kills at once, should the clean-up hang; one right behind the first is the same key stroke, sent to the
/// process and to its group.
fn watch(signals: &mut Signals, interrupted: &AtomicBool) {
    let mut first: Option<Instant> = None;
    for signal in signals.forever() {
        interrupted.store(true, Ordering::Relaxed);
        if first.get_or_insert_with(Instant::now).elapsed() > Duration::from_secs(1) {
            std::process::exit(128 + signal);
        }
    }
}
