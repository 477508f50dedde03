//! A store and its mounts, made through the command line and taken down again whatever happens.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use tempfile::TempDir;

use super::process::Process;
use super::sys::NOBODY;
use super::{Run, args, run, setting, test_root, within};

/// The program under test.
pub const REWINDFS: &str = env!("CARGO_BIN_EXE_rewindfs");

/// The exit code for a mount in which files are open.
const IN_USE: i32 = 11;

/// A store in a directory of its own, with its keys beside it.
pub struct Store {
    home: TempDir,
    /// Set for every program that is started.
    environment: Mutex<Vec<(&'static str, OsString)>>,
    /// Servers and holders seen behind this store's mounts.
    processes: Mutex<Vec<Process>>,
    /// Whether its policy was set.
    still: AtomicBool,
}

impl Store {
    /// A new store as `init` makes it by default.
    pub fn encrypted() -> Arc<Store> {
        Store::init(&[])
    }

    /// A new store made with further arguments to `init`.
    pub fn init(more: &[OsString]) -> Arc<Store> {
        let store = Store::uninitialised();
        store.ok(&[&args!["init", store.path()], more].concat());
        store
    }

    /// The place for a store, with none made yet.
    pub fn uninitialised() -> Arc<Store> {
        let mut builder = tempfile::Builder::new();
        let keep = std::env::var_os("REWINDFS_TEST_KEEP").is_some();
        let home = builder.prefix("rewindfs-it-").disable_cleanup(keep).tempdir_in(test_root());
        let home = home.expect("a directory for the test");
        // Tests act as user nobody too.
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("opening the directory");
        fs::create_dir(home.path().join("keys")).expect("a key directory");
        let (environment, processes) = (Mutex::default(), Mutex::default());
        Arc::new(Store { home, environment, processes, still: AtomicBool::new(false) })
    }

    /// The store directory.
    pub fn path(&self) -> PathBuf {
        self.home().join("store")
    }

    /// The test's own directory, around store, keys and mountpoints.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// A new empty directory in [`Store::home`], open to all.
    pub fn directory(&self, name: &str) -> PathBuf {
        let dir = self.home().join(name);
        fs::create_dir(&dir).unwrap_or_else(|e| panic!("making {}: {e}", dir.display()));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("opening a directory");
        dir
    }

    /// The store's key file: the only one in the key directory.
    pub fn key_file(&self) -> PathBuf {
        let keys = fs::read_dir(self.home().join("keys")).expect("the key directory");
        let mut keys: Vec<PathBuf> = keys.map(|e| e.expect("a key file").path()).collect();
        assert_eq!(keys.len(), 1, "init leaves one key file: {keys:?}");
        keys.remove(0)
    }

    /// The program with this store's environment.
    pub fn command(&self, args: &[OsString]) -> Command {
        let mut command = Command::new(REWINDFS);
        command.args(args).current_dir(self.home());
        command.env("REWINDFS_KEY_DIR", self.home().join("keys")).env_remove("REWINDFS_LOG");
        command.env("REWINDFS_METRICS", "off");
        let environment = self.environment.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Sets a variable for every program that is started from now on.
    pub fn set_env(&self, name: &'static str, value: impl Into<OsString>) {
        let mut environment = self.environment.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        environment.push((name, value.into()));
    }

    /// Runs the program to its end.
    pub fn cli(&self, args: &[OsString]) -> Run {
        run(&mut self.command(args))
    }

    /// Runs the program as user nobody, out of a copy that he can reach wherever cargo put it.
    pub fn as_nobody(&self, args: &[OsString]) -> Run {
        let program = self.home().join("rewindfs");
        if !program.exists() {
            fs::copy(REWINDFS, &program).expect("copying the program");
        }
        let mut command = Command::new(&program);
        run(command
            .args(args)
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/")
            .env("HOME", "/nonexistent")
            .env("REWINDFS_METRICS", "off"))
    }

    /// Runs the program, which must succeed; its standard output.
    pub fn ok(&self, args: &[OsString]) -> String {
        self.cli(args).expect_ok()
    }

    /// Runs the program, which must refuse with that exit code and one line; that line.
    pub fn refused(&self, code: i32, args: &[OsString]) -> String {
        self.cli(args).expect_refusal(code)
    }

    /// Runs a reporting command with `--json`: the objects it prints, one a line, or those of the list that
    /// the one object it prints holds.
    pub fn json(&self, args: &[OsString]) -> Vec<Value> {
        let run = self.cli(&[args, &args!["--json"]].concat());
        let line = run.line.clone();
        let out = run.expect_ok();
        let values = serde_json::Deserializer::from_str(&out).into_iter::<Value>();
        let values: Vec<Value> =
            values.map(|v| v.unwrap_or_else(|e| panic!("`{line}` printed {out:?}: {e}"))).collect();
        match values.as_slice() {
            [Value::Array(items)] => items.clone(),
            [Value::Object(only)] if only.len() == 1 => match only.values().next() {
                Some(Value::Array(items)) => items.clone(),
                _ => values,
            },
            _ => values,
        }
    }

    /// Mounts the main volume at `home/mnt`, in the background as by default.
    pub fn mount(self: &Arc<Self>) -> Mount {
        self.mount_with("mnt", &[])
    }

    /// Mounts at `home/NAME` with further arguments.
    pub fn mount_with(self: &Arc<Self>, name: &str, more: &[OsString]) -> Mount {
        self.try_mount(name, more).unwrap_or_else(|refusal| panic!("mounting was refused: {refusal:?}"))
    }

    /// As [`Store::mount_with`]; how the program ended if it refused.
    pub fn try_mount(self: &Arc<Self>, name: &str, more: &[OsString]) -> Result<Mount, Run> {
        require_fuse();
        let dir = self.home().join(name);
        if !dir.exists() {
            self.directory(name);
        }
        let run = self.cli(&[&args!["mount", self.path(), dir], more].concat());
        if run.code != 0 {
            return Err(run);
        }
        assert!(is_mounted(&dir), "`rewindfs mount` returned before {} was mounted", dir.display());
        self.keep_still(&dir);
        let mut mount = Mount { store: Arc::clone(self), dir, more: more.to_vec(), watchdog: None };
        self.remember(&mount.status());
        mount.watchdog = Some(mount.watch());
        Ok(mount)
    }

    /// Has no schedule, no long window and no fullness of the machine's disk do anything by itself in a test.
    fn keep_still(&self, dir: &Path) {
        if self.still.load(Ordering::Relaxed) {
            return;
        }
        let config = fs::read_to_string(self.path().join("config.toml")).unwrap_or_default();
        let window = if config.contains("window_seconds = 0") { "off" } else { "15m" };
        let settings = args!["every=off", format!("continuous={window}"), "free-min=0", "history-max=100%"];
        // A mount may be read-only, or its disk about to fail.
        let done = self.cli(&[&args!["policy", "set", dir][..], &settings].concat());
        self.still.store(done.code == 0, Ordering::Relaxed);
    }

    fn processes(&self) -> MutexGuard<'_, Vec<Process>> {
        self.processes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn remember(&self, status: &Value) {
        let pids = ["holder_pid", "server_pid"].iter().filter_map(|key| status.get(key)?.as_i64());
        let found: Vec<Process> = pids.filter_map(|pid| Process::of(i32::try_from(pid).ok()?)).collect();
        assert!(!found.is_empty(), "status must name a living server_pid: {status}");
        let mut known = self.processes();
        for process in found {
            if !known.contains(&process) {
                known.push(process);
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let left = self.processes().clone();
        let gone = within(Duration::from_secs(30), || left.iter().all(|p| !p.alive()));
        left.iter().for_each(|p| p.kill());
        // What a crashed server left in memory for a mount that this test never made.
        if let Ok(node) = fs::read_to_string(self.path().join("node")) {
            for suffix in ["", ".stale"] {
                let _ = fs::remove_file(format!("/dev/shm/rewindfs-{}{suffix}", node.trim()));
            }
        }
        if !gone && !std::thread::panicking() {
            panic!("a server was still running 30 s after the last umount had returned: {left:?}");
        }
    }
}

/// A mounted volume; unmounted when dropped.
pub struct Mount {
    store: Arc<Store>,
    dir: PathBuf,
    more: Vec<OsString>,
    /// Dropping it calls the watchdog off.
    watchdog: Option<Sender<()>>,
}

impl Mount {
    /// The mountpoint.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The `--json` status object.
    pub fn status(&self) -> Value {
        let mut objects = self.store.json(&args!["status", self.dir]);
        assert_eq!(objects.len(), 1, "status --json prints one object: {objects:?}");
        objects.remove(0)
    }

    /// A number of the status.
    pub fn status_number(&self, pointer: &str) -> u64 {
        let status = self.status();
        let number = status.pointer(pointer).and_then(Value::as_u64);
        number.unwrap_or_else(|| panic!("status lacks the number {pointer}: {status}"))
    }

    /// Unmounts with `rewindfs umount`, which must succeed.
    pub fn umount(self) -> Arc<Store> {
        let umount = || self.store.cli(&args!["umount", self.dir]);
        let mut run = umount();
        // Between its fork and its exec, another test's child holds what this process had open.
        within(Duration::from_secs(10), || {
            let busy = run.code == IN_USE;
            if busy {
                run = umount();
            }
            !busy
        });
        run.expect_ok();
        assert!(!is_mounted(&self.dir), "`rewindfs umount` returned before {} was gone", self.dir.display());
        Arc::clone(&self.store)
    }

    /// Unmounts and mounts again at the same place.
    pub fn remount(self) -> Mount {
        let (name, more) = (self.name(), self.more.clone());
        self.umount().mount_with(&name, &more)
    }

    /// Kills server and holder with SIGKILL at the same moment, and clears the mountpoint.
    pub fn crash(self) -> Arc<Store> {
        self.kill_both();
        detach(&self.dir);
        Arc::clone(&self.store)
    }

    /// Kills server and holder with SIGKILL at the same moment; the mount is dead then.
    pub fn kill_both(&self) {
        let victims = [self.holder(), self.server()];
        // Each would start the other again.
        victims.iter().for_each(|process| process.stop());
        victims.iter().for_each(|process| process.kill());
        let gone = || victims.iter().all(|process| !process.alive());
        assert!(within(Duration::from_secs(30), gone), "holder or server survived SIGKILL");
    }

    /// The server's process.
    pub fn server(&self) -> Process {
        self.process("server_pid")
    }

    /// The holder's process.
    pub fn holder(&self) -> Process {
        self.process("holder_pid")
    }

    fn process(&self, key: &str) -> Process {
        let status = self.status();
        self.store.remember(&status);
        let pid = status.get(key).and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Process::of).unwrap_or_else(|| panic!("no living {key}: {status}"))
    }

    /// Kills every process behind the store without asking them anything, and clears the mountpoint: their
    /// disk is gone.
    pub fn kill(self) -> Arc<Store> {
        let processes = self.store.processes().clone();
        // Each would start the other again.
        processes.iter().for_each(|p| p.stop());
        processes.iter().for_each(|p| p.kill());
        let gone = within(Duration::from_secs(30), || processes.iter().all(|p| !p.alive()));
        assert!(gone, "some of {processes:?} survived SIGKILL");
        detach(&self.dir);
        Arc::clone(&self.store)
    }

    /// Takes a snapshot.
    pub fn snapshot(&self, name: &str) {
        let printed = self.store.ok(&args!["snapshot", "create", self.dir, name]);
        assert_eq!(printed.trim_end(), name, "snapshot create prints the name");
    }

    /// The root of a snapshot.
    pub fn at(&self, point: &str) -> PathBuf {
        self.dir.join(".snapshots").join(point)
    }

    /// What `snapshot list --json` tells, by name.
    pub fn snapshots(&self) -> Vec<(String, Value)> {
        let named = |item: Value| {
            let name = item.get("name").and_then(Value::as_str).map(str::to_owned);
            (name.unwrap_or_else(|| panic!("a snapshot without name: {item}")), item)
        };
        self.store.json(&args!["snapshot", "list", self.dir]).into_iter().map(named).collect()
    }

    /// The names that `snapshot list` knows.
    pub fn snapshot_names(&self) -> BTreeSet<String> {
        self.snapshots().into_iter().map(|(name, _)| name).collect()
    }

    fn name(&self) -> String {
        self.dir.file_name().map(|n| n.to_string_lossy().into_owned()).expect("mountpoints have names")
    }

    /// Tears the mount down when it is too old, so that calls that hang in it return and the test fails.
    fn watch(&self) -> Sender<()> {
        let limit = Duration::from_secs(setting("REWINDFS_TEST_WATCHDOG_SECS", 1200));
        let (dir, processes) = (self.dir.clone(), self.store.processes().clone());
        let (off, alarm) = mpsc::channel();
        std::thread::spawn(move || {
            if alarm.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{} is still mounted after {limit:?}; tearing it down", dir.display());
                processes.iter().for_each(|p| p.kill());
                detach(&dir);
            }
        });
        off
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !is_mounted(&self.dir) {
            return;
        }
        let limit = Duration::from_secs(60);
        // More than once for the sake of other tests' children, as in `umount`.
        for _ in 0..10 {
            // No deadline of `run` is short enough for a test that already failed.
            let mut command = self.store.command(&args!["umount", self.dir]);
            let Ok(mut child) = command.stdout(std::process::Stdio::null()).spawn() else { break };
            if !within(limit, || !matches!(child.try_wait(), Ok(None))) {
                let _ = child.kill();
                let _ = child.wait();
                break;
            }
            if !is_mounted(&self.dir) || std::thread::panicking() {
                break;
            }
        }
        if is_mounted(&self.dir) {
            eprintln!("{} did not unmount in {limit:?}; detaching it", self.dir.display());
            self.store.processes().iter().for_each(|p| p.kill());
            detach(&self.dir);
            assert!(std::thread::panicking(), "`rewindfs umount {}` did not work", self.dir.display());
        }
    }
}

/// Whether a filesystem is mounted at exactly that path.
pub fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc must be mounted");
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == dir))
}

fn detach(dir: &Path) {
    let _ = umount2(dir, MntFlags::MNT_FORCE);
    while is_mounted(dir) && umount2(dir, MntFlags::MNT_DETACH).is_ok() {}
}

/// Fails the test, with what to do, where it cannot run.
fn require_fuse() {
    assert!(nix::unistd::geteuid().is_root(), "these tests mount filesystems: run them as root");
    assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse: load the kernel module fuse");
}
