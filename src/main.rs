//! The program `rewindfs`; also what `mount -t rewindfs` runs under the name `mount.rewindfs`.

use std::process::ExitCode;

fn main() -> ExitCode {
    rewindfs::cli::main(std::env::args_os().collect())
}
