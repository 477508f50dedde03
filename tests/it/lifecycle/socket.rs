//! The control socket: open to everyone, so everyone is asked who he is, and everything may be garbage.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::sys::{NOBODY, as_user, chown, get_xattr};
use crate::harness::{Mount, Store, args};

/// The socket that a mount names.
fn socket(mount: &Mount) -> PathBuf {
    let value = get_xattr(mount.path(), b"user.rewindfs.mount").expect("the mount names its server");
    let value: Value = serde_json::from_slice(&value).expect("the attribute is JSON");
    PathBuf::from(value.get("socket").and_then(Value::as_str).expect("a socket"))
}

/// The last line that answers `line`; None when the server only closes the connection.
fn talk(socket: &Path, line: &[u8]) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).expect("everyone may connect");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a deadline");
    // A server that has read enough may close while the rest is written.
    let _ = stream.write_all(line);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let last = answer.split(|&b| b == b'\n').rfind(|l| !l.is_empty())?;
    Some(serde_json::from_slice(last).expect("an answer is JSON"))
}

/// Asks as a user; the message of a refusal.
fn ask(uid: u32, socket: &Path, request: &Value) -> Result<Value, String> {
    let line = format!("{}\n", json!({ "v": 1, "m": request }));
    let answer = as_user(uid, uid, || talk(socket, line.as_bytes())).expect("an answer");
    match answer.pointer("/m/error/message").and_then(Value::as_str) {
        Some(message) => Err(message.to_owned()),
        None => Ok(answer.pointer("/m/ok").cloned().expect("ok or error")),
    }
}

fn mount_request(volume: &str, at: &Path) -> Value {
    let options = json!({
        "allow_other": true, "allow_root": false, "default_permissions": true, "ro": false, "dev": true,
        "suid": true, "exec": true, "atime": "relatime", "nodiratime": false, "sync": false,
        "dirsync": false, "fsname": null, "subtype": null, "snapdir_visible": false,
        "snapdir_name": ".snapshots",
    });
    json!({ "mount": { "volume": volume, "mountpoint": at, "options": options } })
}

/// Requests that are for root and the store's owner.
fn administration(mount: &Mount) -> Vec<Value> {
    vec![
        json!({ "stop": {} }),
        json!({ "unmount": { "mountpoint": mount.path() } }),
        json!({ "volume_create": { "name": "x" } }),
        json!({ "volume_list": {} }),
        json!({ "volume_delete": { "name": "main", "dry_run": true } }),
        json!({ "snapshot_delete": { "target": "store", "names": ["s"], "dry_run": true } }),
        json!({ "snapshot_hold": { "target": "store", "name": "s", "hold": true } }),
        json!({ "fsck": {} }),
        json!({ "scrub": { "action": "start" } }),
        json!({ "gc": { "dry_run": false } }),
        json!({ "key_list": {} }),
        json!({ "key_export": {} }),
        json!({ "key_add": { "key": "x" } }),
        json!({ "key_remove": { "slot": 0, "dry_run": true } }),
        json!({ "key_rotate": {} }),
    ]
}

#[test]
fn a_stranger_may_ask_for_nothing_that_changes_anything() {
    let mount = Store::encrypted().mount();
    mount.snapshot("s");
    let (socket, place) = (socket(&mount), mount.store().directory("place"));
    let mut requests = administration(&mount);
    requests.push(mount_request("main", &place));
    for target in [json!("store"), json!({ "volume": { "volume": "main" } })] {
        requests.push(create(&target));
    }
    // Inode numbers are only a claim.
    for ino in [0, 1, 2, 1 << 40, u64::MAX] {
        requests.push(create(&json!({ "file": { "volume": "main", "ino": ino } })));
    }
    for request in &requests {
        let said = ask(NOBODY, &socket, request).expect_err("a stranger is refused");
        assert!(said.starts_with("permission denied"), "{request}: {said}");
    }
    fs::set_permissions(mount.path(), fs::Permissions::from_mode(0o700)).expect("chmod");
    for request in [json!({ "snapshot_list": { "target": "store", "after": null } }), status()] {
        let said = ask(NOBODY, &socket, &request).expect_err("nor may he look where he cannot read");
        assert!(said.starts_with("permission denied"), "{request}: {said}");
    }
    assert!(ask(NOBODY, &socket, &json!({ "ping": {} })).is_ok());
    assert_eq!(mount.snapshot_names(), ["s".into()].into());
}

fn create(target: &Value) -> Value {
    json!({ "snapshot_create": {
        "target": target, "name": null, "tags": {}, "hold": false, "all_volumes": false } })
}

fn status() -> Value {
    json!({ "status": { "target": "store" } })
}

#[test]
fn the_owner_of_a_store_manages_it_but_is_not_lent_roots_mounts() {
    let store = Store::encrypted();
    chown(&store.path(), NOBODY, NOBODY).expect("chown");
    let mount = store.mount();
    let (socket, place) = (socket(&mount), store.directory("place"));
    ask(NOBODY, &socket, &json!({ "volume_create": { "name": "his" } })).expect("the owner may");
    ask(NOBODY, &socket, &create(&json!("store"))).expect("the owner may");
    ask(NOBODY, &socket, &json!({ "key_list": {} })).expect("the owner may");
    let said = ask(NOBODY, &socket, &mount_request("his", &place)).expect_err("a mount with suid anywhere");
    assert!(said.starts_with("permission denied"), "{said}");
    ask(0, &socket, &mount_request("his", &place)).expect("root may");
    store.ok(&args!["umount", place]);
}

#[test]
fn garbage_is_answered_or_dropped_and_harms_nobody() {
    let mount = Store::encrypted().mount();
    let socket = socket(&mount);
    let long_name = json!({ "v": 1, "m": { "volume_create": { "name": "n".repeat(200) } } });
    let lines: Vec<Vec<u8>> = vec![
        b"\n".to_vec(),
        b"{}\n".to_vec(),
        b"null\n".to_vec(),
        b"\xff\xfe\0\n".to_vec(),
        b"{\"v\":2,\"m\":{\"ping\":{}}}\n".to_vec(),
        b"{\"v\":1e400}\n".to_vec(),
        b"{\"v\":1,\"m\":{\"ping\":{\"more\":1}}}\n".to_vec(),
        b"{\"v\":1,\"m\":{\"unknown\":{}}}\n".to_vec(),
        [vec![b'['; 60_000], b"\n".to_vec()].concat(),
        vec![b'x'; 1 << 20],
        format!("{long_name}\n").into_bytes(),
    ];
    for line in lines {
        let start = String::from_utf8_lossy(line.get(..line.len().min(40)).unwrap_or_default()).into_owned();
        if let Some(answer) = talk(&socket, &line) {
            let message = answer.pointer("/m/error/message").and_then(Value::as_str);
            assert!(message.is_some_and(|m| !m.contains('\n')), "{start:?}: {answer}");
        }
    }
    talk(&socket, b"no line end");
    // Lists that begin behind the last possible record.
    let list = json!({ "snapshot_list": { "target": "store", "after": u64::MAX } });
    assert_eq!(
        ask(0, &socket, &list).expect("an empty list").pointer("/snapshots/more"),
        Some(&json!(false))
    );
    mount.snapshot("after");
}

#[test]
fn the_runtime_directory_lets_others_find_the_server_and_nothing_more() {
    let mount = Store::encrypted().mount();
    let socket = socket(&mount);
    let kind = fs::symlink_metadata(&socket).expect("the socket").file_type();
    assert!(kind.is_socket());
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o666);
    assert_eq!(mode(socket.parent().expect("a directory")), 0o755);
    assert_eq!(mode(&socket.with_extension("json")), 0o644);
    assert_eq!(mode(&socket.with_extension("lock")), 0o600);
    mount.umount();
    assert!(!socket.exists() && !socket.with_extension("json").exists(), "an end in order leaves no traces");
}
