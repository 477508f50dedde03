//! `volume …`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Outcome, output, resolve, unexpected};
use crate::daemon::protocol::{Request, Response, Target, VolumeInfo};
use crate::types::point::{check_name, rfc3339};

/// Make, list and delete the volumes of a store.
#[derive(Debug, Subcommand)]
pub(super) enum Volume {
    /// Make an empty volume.
    Create(Named),
    /// List the volumes of a store.
    List(List),
    /// Delete a volume with all of its snapshots.
    Delete(Delete),
}

#[derive(Debug, Args)]
pub(super) struct Store {
    /// The store's directory.
    #[arg(value_name = "STORE")]
    store: PathBuf,
    /// The key file, if it is not in its default place and no server runs.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl Store {
    fn ask(&self, request: Request) -> Result<Response, crate::daemon::protocol::ControlError> {
        resolve::store(&self.store, Target::Store, self.key_file.as_deref())?.ask(request)
    }
}

#[derive(Debug, Args)]
pub(super) struct Named {
    #[command(flatten)]
    store: Store,
    /// The volume's name.
    #[arg(value_parser = name)]
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    store: Store,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    #[command(flatten)]
    named: Named,
    /// Only say what would be deleted.
    #[arg(long)]
    dry_run: bool,
    /// Report as one JSON object.
    #[arg(long)]
    json: bool,
}

/// Parses a snapshot's or volume's name.
pub(super) fn name(text: &str) -> Result<String, String> {
    check_name(text).map(|()| text.to_owned()).map_err(|e| format!("the name {e}"))
}

impl Volume {
    pub(super) fn run(self) -> Outcome {
        match self {
            Volume::Create(Named { store, name }) => match store.ask(Request::VolumeCreate { name })? {
                Response::Done {} => output::done(),
                _ => Err(unexpected()),
            },
            Volume::List(list) => {
                let Response::Volumes(volumes) = list.store.ask(Request::VolumeList {})? else {
                    return Err(unexpected());
                };
                print(&volumes, list.json)
            }
            Volume::Delete(Delete { named, dry_run, json }) => {
                let request = Request::VolumeDelete { name: named.name, dry_run };
                let Response::VolumeDeleted(volume) = named.store.ask(request)? else {
                    return Err(unexpected());
                };
                if json {
                    output::json(&volume)?;
                } else if dry_run {
                    let VolumeInfo { name, snapshots, .. } = volume;
                    output::line(&format!("would delete {name} with {snapshots} snapshots"))?;
                }
                output::done()
            }
        }
    }
}

fn print(volumes: &[VolumeInfo], json: bool) -> Outcome {
    if json {
        volumes.iter().try_for_each(output::json)?;
        return output::done();
    }
    let row = |volume: &VolumeInfo| {
        let mounted = volume.mountpoint.clone().unwrap_or_default();
        [volume.name.clone(), rfc3339(volume.created), volume.snapshots.to_string(), mounted]
    };
    let rows: Vec<[String; 4]> = volumes.iter().map(row).collect();
    output::table(["NAME", "CREATED", "SNAPSHOTS", "MOUNTED AT"], &["SNAPSHOTS"], &rows)?;
    output::done()
}
