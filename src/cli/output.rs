//! Printing. A reader that goes away (`| head`) ends the program quietly; other failures are errors.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::Outcome;
use crate::daemon::protocol::{ControlError, one_line};

/// The one line of a failure.
pub(super) fn error(error: &ControlError) {
    warn(&error.to_string());
}

/// A line on standard error.
pub(super) fn warn(text: &str) {
    // There is nowhere left to say that this failed.
    let _ = writeln!(io::stderr().lock(), "rewindfs: {}", one_line(text));
}

/// One line on standard output; control characters, which names may have, do not reach the terminal.
pub(super) fn line(text: &str) -> Result<(), ControlError> {
    raw(format!("{}\n", one_line(text)).as_bytes())
}

/// Bytes on standard output.
pub(super) fn raw(bytes: &[u8]) -> Result<(), ControlError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|e| ControlError::failed(format!("writing the output: {e}"))),
    }
}

/// One JSON object on one line.
pub(super) fn json<T: Serialize>(value: &T) -> Result<(), ControlError> {
    let text =
        serde_json::to_string(value).map_err(|e| ControlError::failed(format!("writing JSON: {e}")))?;
    raw(format!("{text}\n").as_bytes())
}

/// Done, with nothing more to say.
pub(super) fn done() -> Outcome {
    Ok(ExitCode::SUCCESS)
}

/// Aligned columns with a heading; columns named in `right` are aligned to the right.
pub(super) fn table<const N: usize>(
    heading: [&str; N],
    right: &[&str],
    rows: &[[String; N]],
) -> Result<(), ControlError> {
    let rows: Vec<[String; N]> = std::iter::once(heading.map(str::to_owned))
        .chain(rows.iter().map(|row| row.clone().map(|cell| one_line(&cell))))
        .collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).zip(heading).map(|((cell, width), name)| {
            if right.contains(&name) { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        let joined = cells.collect::<Vec<_>>().join("  ");
        text.push_str(joined.trim_end());
        text.push('\n');
    }
    raw(text.as_bytes())
}

/// A number of bytes in binary units, with three digits.
pub(super) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1000.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    match value {
        _ if unit == "B" => format!("{n} B"),
        v if v < 10.0 => format!("{v:.2} {unit}"),
        v if v < 100.0 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits() {
        let pairs = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1 << 20, "1.00 MiB"),
            (123 << 20, "123 MiB"),
            (u64::MAX, "16384 PiB"),
        ];
        for (n, text) in pairs {
            assert_eq!(bytes(n), text);
        }
    }
}
