//! Says what `up` and `down` are doing: a moving line on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// The steps of one command.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    step: String,
    since: Instant,
}

impl Progress {
    /// `steps` is how often [`Progress::step`] will be called.
    pub(super) fn new(steps: u64) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(steps);
            if let Ok(style) = ProgressStyle::with_template("[{pos}/{len}] {bar:24} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self { bar, step: String::new(), since: Instant::now() }
    }

    /// The next step begins; the one before is done.
    pub(super) fn step(&mut self, what: &str) {
        self.finish_step();
        self.step = what.to_owned();
        self.since = Instant::now();
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    /// More about the present step.
    pub(super) fn detail(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {what}", self.step));
        }
    }

    /// Something to be kept on the screen.
    pub(super) fn note(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.println(what),
            None => eprintln!("{what}"),
        }
    }

    /// All done.
    pub(super) fn finish(mut self) {
        self.finish_step();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn finish_step(&mut self) {
        if self.step.is_empty() {
            return;
        }
        let line = format!("  {} ({:.1} s)", self.step, self.since.elapsed().as_secs_f32());
        self.note(&line);
        self.step.clear();
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }
}
