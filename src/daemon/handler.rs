//! What the control socket's requests do: the same code with a server and without one.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::control::{Caller, ControlHandler};
use super::history;
use super::keys;
use super::mounts::Mounts;
use super::news::Listener;
use super::protocol::{
    ControlError, FsckReport, Health, MadeBy, Progress, Request, Response, SNAPSHOT_PAGE, ScrubAction,
    ScrubState, SnapshotCreate, SnapshotCreated, SnapshotFailure, SnapshotInfo, SnapshotsDeleted,
    StatusReport, Target, VolumeInfo,
};
use super::report::GcInfo;
use super::rights::{control_error, volume_for};
use super::scrub::{self, Scrubber};
use super::troubles::Troubles;
use super::watched::watched;
use super::{policy, status, upgrade};
use crate::store::control::Control;
use crate::store::model::SnapshotKind;
use crate::types::Lsn;
use crate::volume::{self, READ, SnapshotRow, Volume, Volumes, WRITE};

/// Carries out requests on an open store.
pub struct Handler {
    pub(super) volumes: Arc<Volumes>,
    pub(super) mounts: Option<Arc<dyn Mounts>>,
    pub(super) key_file: Option<PathBuf>,
    pub(super) owner: u32,
    pub(super) scrubber: Scrubber,
    pub(super) turns: history::Turns,
    pub(super) troubles: Arc<Troubles>,
}

type Outcome = Result<Response, ControlError>;

impl Handler {
    /// A handler for `volumes`.
    ///
    /// # Errors
    /// When the store's directory cannot be read.
    pub fn new(
        volumes: Arc<Volumes>,
        mounts: Option<Arc<dyn Mounts>>,
        key_file: Option<PathBuf>,
    ) -> Result<Handler, ControlError> {
        let path = volumes.store().path().to_owned();
        let owner = std::fs::metadata(&path)
            .map_err(|e| ControlError::failed(format!("reading {}: {e}", path.display())))?
            .uid();
        let (scrubber, turns) = (Scrubber::new(), history::Turns::default());
        let troubles = Arc::default();
        Ok(Handler { volumes, mounts, key_file, owner, scrubber, turns, troubles })
    }

    /// The user who owns the store.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    fn open(&self) -> history::Open<'_> {
        history::Open { volumes: &self.volumes, owner: self.owner, turns: &self.turns }
    }

    pub(super) fn admin(&self, caller: &Caller, what: &str) -> Result<(), ControlError> {
        if caller.is_root_or(self.owner) { Ok(()) } else { Err(ControlError::denied(what)) }
    }

    pub(super) fn volume(
        &self,
        caller: &Caller,
        target: &Target,
        wanted: u16,
    ) -> Result<Arc<Volume>, ControlError> {
        volume_for(&self.volumes, self.owner, caller, target, wanted)
    }

    fn mounts(&self) -> Result<&dyn Mounts, ControlError> {
        self.mounts.as_deref().ok_or_else(|| ControlError::failed("no server runs for this store"))
    }

    fn mounted_at(&self, volume: &str) -> Option<PathBuf> {
        let list = self.mounts.as_ref().map(|m| m.list()).unwrap_or_default();
        list.into_iter().find(|m| m.volume == volume).map(|m| m.mountpoint)
    }

    fn volume_info(&self, name: &str) -> Result<VolumeInfo, ControlError> {
        let volume = self.volumes.open(name).map_err(|e| control_error(&format!("volume {name}"), e))?;
        let what = format!("volume {name}");
        let root = volume.getattr(None, crate::types::Ino::ROOT).map_err(|e| control_error(&what, e))?;
        let snapshots = volume.snapshots(Lsn::ZERO, usize::MAX).map_err(|e| control_error(&what, e))?;
        Ok(VolumeInfo {
            name: name.to_owned(),
            created: root.attrs.btime,
            snapshots: snapshots.len() as u64,
            mountpoint: self.mounted_at(name).map(|p| p.display().to_string()),
        })
    }

    fn volume_delete(&self, name: &str, dry_run: bool) -> Outcome {
        let info = self.volume_info(name)?;
        if let Some(at) = &info.mountpoint {
            return Err(ControlError::in_use(format!("volume {name} is mounted at {at}; unmount it first")));
        }
        if !dry_run {
            self.volumes.delete(name).map_err(|e| control_error(&format!("volume {name}"), e))?;
        }
        Ok(Response::VolumeDeleted(info))
    }

    fn snapshot_create(&self, caller: &Caller, create: SnapshotCreate) -> Outcome {
        let mut names = vec![self.volume(caller, &create.target, WRITE)?.name().to_owned()];
        if create.all_volumes {
            names = self.volumes.names();
            for volume in &names {
                self.volume(caller, &Target::Volume { volume: volume.clone() }, WRITE)?;
            }
        }
        let ids = names
            .iter()
            .map(|n| self.volumes.open(n).map(|v| v.id()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| control_error("volume", e))?;
        let what = format!("snapshot {}", create.name.as_deref().unwrap_or("of now"));
        let (name, all_volumes) = (create.name.clone(), create.all_volumes);
        let create = volume::SnapshotCreate {
            name: create.name,
            tags: create.tags.into_iter().collect(),
            hold: create.hold,
            kind: SnapshotKind::Manual,
            request: None,
        };
        let row = self.volumes.snapshot(&ids, &create).map_err(|e| match (e, &name) {
            (volume::FsError::Exists, Some(name)) if all_volumes => {
                let has = |volume: &&String| {
                    self.volumes.open(volume).is_ok_and(|volume| volume.snapshot_named(name).is_ok())
                };
                let volumes: Vec<&str> = names.iter().filter(has).map(String::as_str).collect();
                ControlError::failed(format!("{what} exists already, in volume {}", volumes.join(", ")))
            }
            (e, _) => control_error(&what, e),
        })?;
        Ok(Response::SnapshotCreated(SnapshotCreated {
            name: row.spec.name,
            time: row.time,
            lsn: row.lsn.0,
            volumes: names,
        }))
    }

    fn snapshot_list(&self, caller: &Caller, target: &Target, after: Option<u64>) -> Outcome {
        let volume = self.volume(caller, target, READ)?;
        let rows = volume
            .snapshots(Lsn(after.unwrap_or(0)), SNAPSHOT_PAGE + 1)
            .map_err(|e| control_error("snapshots", e))?;
        let more = rows.len() > SNAPSHOT_PAGE;
        let snapshots = rows
            .into_iter()
            .take(SNAPSHOT_PAGE)
            .map(|row| snapshot_info(&volume, row))
            .collect::<Result<_, _>>()?;
        Ok(Response::Snapshots { snapshots, more })
    }

    fn snapshot_delete(&self, target: &Target, caller: &Caller, names: &[String], dry_run: bool) -> Outcome {
        let volume = self.volume(caller, target, READ)?;
        let mut report = SnapshotsDeleted { dry_run, ..SnapshotsDeleted::default() };
        let points: Vec<_> = names.iter().map(|name| volume.check_deletable(&[name])).collect();
        let known = points.iter().flatten().flatten().map(|row| row.lsn).collect();
        let kept = volume.only_kept(&known).map_err(|e| control_error("snapshots", e))?;
        (report.bytes_freed, report.data_bytes) = (kept.stored_bytes, kept.data_bytes);
        report.at_most = kept.at_most;
        for (name, point) in names.iter().zip(points) {
            let delete = |_| if dry_run { Ok(()) } else { volume.delete_snapshots(&[name], None) };
            match point.and_then(delete) {
                Ok(()) => report.deleted.push(name.clone()),
                Err(e) => {
                    let reason = match e {
                        volume::FsError::NotFound => "there is no snapshot of that name".to_owned(),
                        e => e.to_string(),
                    };
                    report.failed.push(SnapshotFailure { name: name.clone(), reason });
                }
            }
        }
        Ok(Response::SnapshotsDeleted(report))
    }

    fn status(&self, caller: &Caller, target: &Target) -> Outcome {
        let names = match target {
            Target::File { volume, .. } | Target::Volume { volume } => vec![volume.clone()],
            Target::Store => {
                let mounted = self.mounts.as_ref().map(|m| m.list()).unwrap_or_default();
                let names: Vec<String> = mounted.into_iter().map(|m| m.volume).collect();
                if names.is_empty() { self.volumes.names().into_iter().take(1).collect() } else { names }
            }
        };
        let mut reports = Vec::new();
        for name in names {
            let of = match target {
                Target::Store => Target::Volume { volume: name.clone() },
                other => other.clone(),
            };
            self.volume(caller, &of, READ)?;
            reports.push(self.report_of(&name)?);
        }
        Ok(Response::Status(reports))
    }

    /// How a volume fares.
    pub(super) fn report_of(&self, name: &str) -> Result<StatusReport, ControlError> {
        let volume = self.volumes.open(name).map_err(|e| control_error(&format!("volume {name}"), e))?;
        let mountpoint = self.mounted_at(name);
        let holder = self.mounts.as_ref().and_then(|mounts| mounts.holder());
        let mut report = status::report(&volume, mountpoint.clone(), self.mounts.is_some(), holder)?;
        report.counters.dirty_bytes = self.volumes.dirty_bytes();
        let problems = [self.volumes.problems(), self.troubles.all()].concat();
        if !problems.is_empty() && report.health == Health::Ok {
            report.health = Health::Attention;
        }
        report.problems.extend(problems);
        report.read_only |=
            self.mounts.as_ref().zip(mountpoint).is_some_and(|(mounts, at)| mounts.is_read_only(&at));
        Ok(report)
    }

    fn fsck(&self, progress: &mut dyn FnMut(Progress)) -> Outcome {
        let store = self.volumes.store().path().display().to_string();
        let findings = self.volumes.store().check(&mut |what, done| {
            progress(Progress { what: what.to_owned(), done, total: 100, unit: "%".to_owned() });
        })?;
        Ok(Response::Fsck(FsckReport::of(store, &findings)))
    }

    fn gc(&self, dry_run: bool, progress: &mut dyn FnMut(Progress)) -> Outcome {
        let store = self.volumes.store();
        let control = Control::new(0);
        let report = watched(&control, progress, || store.gc(&control, dry_run))??;
        Ok(Response::Gc(GcInfo {
            store: store.path().display().to_string(),
            dry_run,
            packs: report.packs,
            copied_bytes: report.copied_bytes,
            before_bytes: report.before_bytes,
            after_bytes: report.after_bytes,
            freed_bytes: report.before_bytes.saturating_sub(report.after_bytes),
        }))
    }

    fn scrub(&self, action: ScrubAction, progress: &mut dyn FnMut(Progress)) -> Outcome {
        let store = self.volumes.store();
        let state = match (&self.mounts, action) {
            (Some(_), action) => self.scrubber.act(store, action)?,
            (None, ScrubAction::Start) => scrub::here(store, progress)?,
            (None, _) => ScrubState::default(),
        };
        Ok(Response::Scrub(Box::new(state)))
    }
}

fn snapshot_info(volume: &Volume, row: SnapshotRow) -> Result<SnapshotInfo, ControlError> {
    let bytes_only = volume.bytes_only(row.lsn).map_err(|e| control_error("snapshots", e))?;
    Ok(SnapshotInfo {
        name: row.spec.name,
        time: row.time,
        lsn: row.lsn.0,
        tags: row.spec.tags.into_iter().collect::<BTreeMap<_, _>>(),
        hold: row.spec.hold,
        immutable_until: row.immutable_until,
        made_by: match row.spec.kind {
            SnapshotKind::Manual | SnapshotKind::Mark => MadeBy::Request,
            SnapshotKind::Scheduled => MadeBy::Schedule,
            SnapshotKind::OnClose => MadeBy::OnClose,
            SnapshotKind::BeforeRestore => MadeBy::Restore,
        },
        bytes_only,
    })
}

impl ControlHandler for Handler {
    fn handle(&self, caller: &Caller, request: Request, listener: &mut dyn Listener) -> Outcome {
        let mut progress = |news| listener.progress(news);
        match request {
            Request::Diff(request) => history::diff(self.open(), caller, &request, listener),
            Request::Log(request) => history::log(self.open(), caller, &request, listener),
            Request::Ping {} => {
                Ok(Response::Pong { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() })
            }
            Request::Stop {} => {
                self.admin(caller, "stopping the server")?;
                self.mounts()?.stop();
                Ok(Response::Done {})
            }
            Request::Mount(mount) => {
                self.admin(caller, "mounting")?;
                // A mount has this process's rights, on any directory and with any option: root's server
                // must not lend them to the owner of a store.
                if caller.uid != 0 && caller.uid != nix::unistd::geteuid().as_raw() {
                    let text =
                        "permission denied: the store's server runs as another user; let that user mount";
                    return Err(ControlError::failed(text));
                }
                self.mounts()?.mount(&mount)?;
                Ok(Response::Mounted { mountpoint: mount.mountpoint })
            }
            Request::Unmount { mountpoint } => {
                self.admin(caller, "unmounting")?;
                Ok(Response::Unmounted { stopping: self.mounts()?.unmount(&mountpoint)? })
            }
            Request::Upgrade { program } => {
                self.admin(caller, "replacing the server")?;
                upgrade::to(self.mounts()?, caller, &program)?;
                Ok(Response::Done {})
            }
            Request::VolumeCreate { name } => {
                self.admin(caller, "making a volume")?;
                let owner = (caller.uid, caller.gid);
                self.volumes.create(&name, owner).map_err(|e| control_error(&format!("volume {name}"), e))?;
                Ok(Response::Done {})
            }
            Request::VolumeList {} => {
                self.admin(caller, "listing volumes")?;
                let mut names = self.volumes.names();
                names.sort();
                let infos = names.iter().map(|n| self.volume_info(n)).collect::<Result<_, _>>()?;
                Ok(Response::Volumes(infos))
            }
            Request::VolumeDelete { name, dry_run } => {
                self.admin(caller, "deleting a volume")?;
                self.volume_delete(&name, dry_run)
            }
            Request::SnapshotCreate(create) => self.snapshot_create(caller, create),
            Request::SnapshotList { target, after } => self.snapshot_list(caller, &target, after),
            Request::SnapshotDelete { target, names, dry_run } => {
                self.admin(caller, "deleting a snapshot")?;
                self.snapshot_delete(&target, caller, &names, dry_run)
            }
            Request::SnapshotHold { target, name, hold } => {
                self.admin(caller, "holding a snapshot")?;
                let volume = self.volume(caller, &target, READ)?;
                let what = format!("snapshot {name}");
                volume.hold_snapshot(&name, hold).map_err(|e| control_error(&what, e))?;
                Ok(Response::Done {})
            }
            Request::Policy { target, settings, dry_run } => {
                if !settings.is_empty() {
                    self.admin(caller, "changing a policy")?;
                }
                let secrets = caller.is_root_or(self.owner);
                policy::policy(&*self.volume(caller, &target, READ)?, &settings, dry_run, secrets)
            }
            Request::Restore(request) => self.restore(caller, &request, &mut progress),
            Request::Purge(request) => self.purge(caller, &request, &mut progress),
            Request::PastPlace { place, at } => self.past_place(caller, &place, &at),
            Request::Status { target } => self.status(caller, &target),
            Request::Fsck {} => {
                self.admin(caller, "fsck")?;
                self.fsck(&mut progress)
            }
            Request::Repair { .. } => {
                self.admin(caller, "repairing")?;
                let store = self.volumes.store().path().display();
                Err(ControlError::in_use(format!("{store} is mounted; unmount it before it is repaired")))
            }
            Request::Scrub { action } => {
                self.admin(caller, "scrubbing")?;
                self.scrub(action, &mut progress)
            }
            Request::Gc { dry_run } => {
                self.admin(caller, "rewriting packs")?;
                self.gc(dry_run, &mut progress)
            }
            request => {
                self.admin(caller, "handling keys")?;
                keys::handle(self, request)
            }
        }
    }
}
