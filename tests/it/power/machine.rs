//! A machine whose power can be cut: a disk in memory, a loop device on it, ext4, a store that is all of it,
//! and a mount of that by the real program.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::process::DiskProcess;
use crate::harness::{Mount, Store, args, tool, within};

/// Flushes, checkpoints and commits as often as the settings allow, so that cuts fall among them.
const CONFIG: &str = "index_flush_records = 300\nindex_flush_bytes = 1048576\n\
                      checkpoint_journal_bytes = 3000000\ncommit_interval_ms = 40\nseal_run_bytes = 1048576\n";

/// The machine. Everything is taken down when it is dropped.
pub struct Machine {
    /// Dropped before the directory in which it is mounted.
    pub disk: DiskProcess,
    pub store: Arc<Store>,
    device: Option<PathBuf>,
}

impl Machine {
    /// A machine that is off, with an empty store on its disk.
    pub fn new() -> Machine {
        assert!(nix::unistd::geteuid().is_root(), "these tests make loop devices: run them as root");
        let store = Store::uninitialised();
        let disk = DiskProcess::start(&store.directory("disk"));
        let mut machine = Machine { disk, store, device: None };
        fs::create_dir(machine.store.path()).expect("a mountpoint for ext4");
        machine.attach();
        let device = machine.device.clone().expect("just attached");
        let options = "lazy_itable_init=0,lazy_journal_init=0";
        machine.tool("mkfs.ext4", &args!["-q", "-m", "0", "-N", "8192", "-E", options, device]);
        machine.mount_ext4("data=ordered");
        machine.store.ok(&args!["init", machine.store.path()]);
        fs::write(machine.store.path().join("config.toml"), CONFIG).expect("settings");
        machine.take_down();
        machine.disk.save();
        machine
    }

    /// Makes the disk what it was when it was new.
    pub fn renew(&mut self) {
        self.take_down();
        self.disk.load();
    }

    /// Attaches the disk and lets ext4 recover. In the mode `data=writeback` a file's length may reach the
    /// disk before its bytes.
    pub fn power_on(&mut self, mode: &str) {
        self.attach();
        self.mount_ext4(mode);
    }

    /// Behind a cut: the processes die, and the next disk is what the cut left.
    pub fn power_off(&mut self, mount: Option<Mount>) {
        drop(mount.map(Mount::kill));
        self.forget_memory();
        self.take_down();
        self.disk.next();
    }

    fn tool(&self, program: &str, arguments: &[std::ffi::OsString]) -> String {
        tool(self.store.home(), program, arguments)
    }

    fn attach(&mut self) {
        let printed = self.tool("losetup", &args!["--find", "--show", self.disk.file()]);
        self.device = Some(PathBuf::from(printed.trim()));
    }

    fn mount_ext4(&self, mode: &str) {
        let device = self.device.as_ref().expect("attached before");
        self.tool("mount", &args!["-t", "ext4", "-o", mode, device, self.store.path()]);
    }

    /// Unmounts ext4 and detaches the disk.
    fn take_down(&mut self) {
        let dir = self.store.path();
        let unmounted = within(Duration::from_secs(20), || match umount2(&dir, MntFlags::empty()) {
            Err(Errno::EBUSY) => false,
            Ok(()) | Err(Errno::EINVAL) => true,
            Err(e) => panic!("unmounting {}: {e}", dir.display()),
        });
        if !unmounted {
            let _ = umount2(&dir, MntFlags::MNT_DETACH);
        }
        if let Some(device) = self.device.take() {
            self.tool("losetup", &args!["--detach", device]);
        }
        assert!(unmounted, "{} is still in use though all processes are dead", dir.display());
    }

    /// Memory does not survive a power cut, and a file in tmpfs that outlives a server is memory.
    fn forget_memory(&self) {
        let node = fs::read_to_string(self.store.path().join("node")).unwrap_or_default();
        if node.trim().is_empty() {
            return;
        }
        let name = format!("rewindfs-{}", node.trim());
        for entry in ["/dev/shm", "/run"].into_iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten() {
            let entry = entry.expect("a name in tmpfs");
            if entry.file_name().to_string_lossy().starts_with(&name) {
                fs::remove_file(entry.path()).expect("removing the server's memory");
            }
        }
    }

    /// Whether less than a third of the disk is free.
    pub fn is_filling(&self) -> bool {
        let below = nix::sys::statvfs::statvfs(&self.store.path()).expect("statfs of ext4");
        below.blocks_available() < below.blocks() / 3
    }

    /// Where ext4 is mounted.
    pub fn ext4(&self) -> PathBuf {
        self.store.path()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // As far as it goes; a panic in here would hide the first one.
            let _ = umount2(&self.store.path(), MntFlags::MNT_DETACH);
            if let Some(device) = self.device.take() {
                let _ = std::process::Command::new("losetup").arg("--detach").arg(device).status();
            }
        } else {
            self.take_down();
        }
    }
}

/// A file's bytes, or that it is not there.
pub fn read_if_any(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(format!("{}: {e}", path.display())),
    }
}
