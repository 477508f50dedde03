//! Printing. A reader that goes away (`| head`) ends the program quietly; other failures are errors.

use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::Outcome;
use crate::daemon::protocol::{ControlError, one_line};
pub(super) use crate::types::text::bytes_text as bytes;

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

/// As [`json`], into memory.
pub(super) fn json_into<T: Serialize>(value: &T, text: &mut Vec<u8>) -> Result<(), ControlError> {
    serde_json::to_writer(&mut *text, value)
        .map_err(|e| ControlError::failed(format!("writing JSON: {e}")))?;
    text.push(b'\n');
    Ok(())
}

/// A line without control characters.
pub(super) fn clean(text: &str) -> String {
    one_line(text)
}

/// A path such that no name can drive a terminal, break a line or look like another: a backslash, control
/// characters, those that turn the direction of writing, and bytes that are no UTF-8 are written as in a string
/// of C.
pub(super) fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    text.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                c if c.is_control() => text.push_str(&format!("\\x{:02x}", u32::from(c))),
                c => text.push(c),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_breaks_a_line_or_looks_like_another() {
        let shown = |name: &[u8]| escaped(Path::new(std::ffi::OsStr::from_bytes(name)));
        assert_eq!(shown("naïve 名".as_bytes()), "naïve 名");
        assert_eq!(shown(b"a\nb\x1b[31m\\n\xffc"), "a\\nb\\x1b[31m\\\\n\\xffc");
        assert_eq!(shown("x\u{202e}y\u{85}".as_bytes()), "x\\u202ey\\x85");
    }

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
