//! Showing how far a long command is: a bar on a terminal, else a plain line now and then.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;
use crate::daemon::protocol::{Progress, one_line};

/// Seconds between plain lines.
const PLAIN_PERIOD: Duration = Duration::from_secs(5);
/// What is done sooner needs no line.
const PLAIN_PATIENCE: Duration = Duration::from_secs(2);

/// Shows progress on standard error until it is dropped.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    terminal: bool,
    what: String,
    started: Instant,
    said: Option<Instant>,
}

impl Display {
    /// Shows nothing until the first news.
    pub(super) fn new() -> Display {
        Display {
            bar: None,
            terminal: io::stderr().is_terminal(),
            what: String::new(),
            started: Instant::now(),
            said: None,
        }
    }

    /// Shows the news.
    pub(super) fn show(&mut self, news: &Progress) {
        if self.terminal && news.total > 0 {
            self.draw(news);
            return;
        }
        if self.started.elapsed() < PLAIN_PATIENCE {
            return;
        }
        // A new activity is worth a line at once.
        let due = self.said.is_none_or(|said| said.elapsed() >= PLAIN_PERIOD) || self.what != news.what;
        if due {
            self.said = Some(Instant::now());
            self.what.clone_from(&news.what);
            output::warn(&plain(news));
        }
    }

    fn draw(&mut self, news: &Progress) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(Some(news.total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{msg} [{wide_bar}] {percent:>3} % {eta}");
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        if self.what != news.what {
            self.what.clone_from(&news.what);
            bar.set_message(one_line(&news.what));
            bar.reset_eta();
        }
        bar.set_length(news.total);
        bar.set_position(news.done.min(news.total));
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn plain(news: &Progress) -> String {
    let Progress { what, done, total, unit } = news;
    if *total > 0 {
        let percent = u128::from(*done.min(total)) * 100 / u128::from(*total);
        return format!("{what}: {percent} %");
    }
    match (unit.as_str(), *done) {
        ("", _) => what.clone(),
        (unit, done) => format!("{what}: {done} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines() {
        let news =
            |done, total, unit: &str| Progress { what: "reading".into(), done, total, unit: unit.into() };
        assert_eq!(plain(&news(42, 100, "records")), "reading: 42 %");
        assert_eq!(plain(&news(u64::MAX, 7, "records")), "reading: 100 %");
        assert_eq!(plain(&news(7, 0, "records")), "reading: 7 records");
        assert_eq!(plain(&news(0, 0, "")), "reading");
    }
}
