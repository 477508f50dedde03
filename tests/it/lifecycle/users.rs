//! A user without privilege: own store, own mount by `fusermount3`, own server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::harness::mounting::REWINDFS;
use crate::harness::sys::{NOBODY, chown};
use crate::harness::{Store, run};

/// Run by user nobody in his home, with a device that is open to all, as distributions have it. Every line
/// must succeed.
const SCRIPT: &str = r#"
set -eu
rw=./rewindfs
refused() { want=$1; shift; code=0; "$@" 2> said || code=$?
  [ "$code" = "$want" ] || { echo "exit code $code, not $want: $*: $(cat said)"; exit 1; }
  [ "$(wc -l < said)" = 1 ] || { echo "not one line: $*: $(cat said)"; exit 1; }; }
$rw init store > /dev/null
mkdir mnt other
$rw mount store mnt
echo hello > mnt/f
[ "$(stat -c %u:%g mnt mnt/f | sort -u)" = "$(id -u):$(id -g)" ]
mkdir mnt/.snapshots/one
rm mnt/f
cp -a mnt/.snapshots/one/f mnt/f
[ "$(cat mnt/f)" = hello ]
$rw snapshot create mnt two > /dev/null
$rw snapshot delete mnt two
rmdir mnt/.snapshots/one
$rw volume create store second
$rw mount store other --volume second
refused 11 $rw mount store mnt
$rw umount other
(cd mnt && refused 11 ../rewindfs umount .) 2> /dev/null || (cd mnt; cd ..; true)
$rw umount mnt
refused 1 $rw mount store mnt -o allow_other
refused 1 $rw mount store /usr
$rw mount store mnt -o ro,subtype=,fsname=x
[ "$(cat mnt/f)" = hello ]
$rw umount mnt
# A killed server; then holder and server at once, and a mount that is still in use when it is taken away.
$rw mount store mnt
pid_of() { $rw status mnt --json | sed "s/.*\"$1\":\([0-9]*\).*/\1/"; }
exec 5< mnt
exec 6< mnt/f
pid=$(pid_of server_pid)
kill -9 "$pid"
[ "$(cat <&6)" = hello ]
[ "$(pid_of server_pid)" != "$pid" ]
exec 6<&-
pid=$(pid_of server_pid)
holder=$(pid_of holder_pid)
kill -STOP "$holder" "$pid"
kill -9 "$holder" "$pid"
while kill -0 "$pid" 2> /dev/null || kill -0 "$holder" 2> /dev/null; do sleep 0.05; done
refused 1 $rw status mnt
refused 1 $rw mount store mnt
$rw umount mnt
exec 5<&-
$rw mount store mnt
[ "$(cat mnt/f)" = hello ]
fusermount3 -u mnt
$rw mount store mnt
$rw umount mnt
! grep -q " $PWD/mnt " /proc/self/mountinfo
"#;

#[test]
fn a_user_mounts_writes_snapshots_and_unmounts() {
    if fs::read_to_string("/etc/fuse.conf").is_ok_and(|c| c.lines().any(|l| l.trim() == "user_allow_other")) {
        eprintln!("skipped: /etc/fuse.conf has user_allow_other, whose refusal this looks for");
        return;
    }
    let store = Store::uninitialised();
    let home = store.directory("home");
    fs::copy(REWINDFS, home.join("rewindfs")).expect("a program that the user can reach");
    fs::write(home.join("script"), SCRIPT).expect("writing the script");
    let device = store.home().join("fuse");
    mknod(&device, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(10, 229)).expect("a device");
    fs::set_permissions(&device, fs::Permissions::from_mode(0o666)).expect("opening the device");
    chown(&home, NOBODY, NOBODY).expect("chown");
    // In a mount namespace of its own, so that the machine's device stays as it is. Copies of other tests'
    // mounts in there would keep those in use.
    let setup = format!(
        "findmnt --noheadings --list --types fuse.rewindfs --output TARGET | xargs --no-run-if-empty \
         umount --lazy && mount --bind {} /dev/fuse && exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups sh script",
        shown(&device)
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &setup]).current_dir(&home).env("HOME", &home);
    for variable in ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "REWINDFS_KEY_DIR"] {
        command.env_remove(variable);
    }
    run(&mut command).expect_ok();
    let log = fs::read_dir(home.join(".local/state/rewindfs")).expect("the log directory").count();
    assert_eq!(log, 2, "the logs of server and holder are in the user's state directory");
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("test paths are text")
}
