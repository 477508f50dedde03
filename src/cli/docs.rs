//! `completions` and `man`: made from the same definitions that parse the commands.

use std::fs;
use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::{Outcome, io_error, output};

/// Print a completion script for a shell.
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Which shell.
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self, mut command: clap::Command) -> Outcome {
        // Into memory first: the generator panics when its writer fails, as a closed pipe does.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "rewindfs", &mut script);
        output::raw(&script)?;
        output::done()
    }
}

/// Write the manual pages into a directory.
#[derive(Debug, Args)]
pub(super) struct Man {
    /// The directory; made if it is missing.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Man {
    pub(super) fn run(self, command: clap::Command) -> Outcome {
        fs::create_dir_all(&self.dir).map_err(|e| io_error("making", &self.dir, &e))?;
        clap_mangen::generate_to(command, &self.dir).map_err(|e| io_error("writing to", &self.dir, &e))?;
        output::done()
    }
}
