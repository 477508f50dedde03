//! Policies on a real mount, through the command line.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::harness::sys::NOBODY;
use crate::harness::{Mount, Store, args, eventually};

fn show(mount: &Mount) -> Value {
    mount.store().json(&args!["policy", "show", mount.path()]).remove(0)
}

fn set(mount: &Mount, settings: &[&str]) {
    let settings: Vec<_> = settings.iter().map(|s| (*s).into()).collect();
    mount.store().ok(&[&args!["policy", "set", mount.path()][..], &settings].concat());
}

fn snapshots(mount: &Mount) -> Vec<Value> {
    mount.store().json(&args!["snapshot", "list", mount.path()])
}

#[test]
fn a_policy_is_shown_changed_and_kept() {
    let store = Store::encrypted();
    let mount = store.mount();
    assert_eq!(show(&mount)["daily"], 14, "the default");
    set(
        &mount,
        &["every=15m", "continuous=2d", "daily=3", "history-max=1G", "on-close=a/*.pt", "on-close=b/**"],
    );
    let shown = show(&mount);
    assert_eq!(
        (&shown["every"], &shown["continuous"], &shown["daily"]),
        (&"15m".into(), &"2d".into(), &3.into())
    );
    assert_eq!((&shown["history-max"], &shown["weekly"]), (&"1G".into(), &8.into()));
    assert_eq!(shown["on-close"], serde_json::json!(["a/*.pt", "b/**"]));
    let tried = mount.store().ok(&args!["policy", "set", mount.path(), "every=off", "--dry-run"]);
    assert!(tried.contains("not changed") && tried.contains("every        off"), "{tried}");
    let mount = mount.remount();
    assert_eq!(show(&mount), shown);
    let store = mount.umount();
    let offline = store.ok(&args!["policy", "show", store.path()]);
    assert!(offline.contains("every        15m"), "{offline}");
    for (settings, reason) in [
        (vec!["every=5x"], "a period"),
        (vec!["nonsense=1"], "no such setting"),
        (vec!["every=1m", "every=2m"], "set before"),
        (vec!["on-close=/abs"], "below the volume"),
    ] {
        let settings: Vec<_> = settings.into_iter().map(Into::into).collect();
        let line = store.refused(2, &[&args!["policy", "set", store.path()][..], &settings].concat());
        assert!(line.contains(reason), "{line}");
    }
}

#[test]
fn a_schedule_takes_snapshots_where_something_changed() {
    let store = Store::encrypted();
    let mount = store.mount();
    set(&mount, &["every=1s"]);
    eventually("two scheduled snapshots", || {
        fs::write(mount.path().join("f"), snapshots(&mount).len().to_string()).expect("writing");
        snapshots(&mount).len() >= 2
    });
    set(&mount, &["every=off"]);
    let made = snapshots(&mount);
    for snapshot in &made {
        let name = snapshot["name"].as_str().expect("a name");
        assert!(name.starts_with("auto-") && snapshot["made_by"] == "schedule", "{snapshot}");
        assert!(mount.path().join(".snapshots").join(name).join("f").exists() || snapshot == &made[0]);
    }
    let shown = mount.store().ok(&args!["status", mount.path()]);
    assert!(shown.contains("every minute since"), "{shown}");
}

#[test]
fn each_finished_checkpoint_becomes_a_version_of_its_model() {
    let store = Store::encrypted();
    let mount = store.mount();
    set(&mount, &["on-close=models/{model}/*.safetensors"]);
    let mut versions = BTreeMap::new();
    for (model, step) in [("resnet", 1), ("bert", 1), ("resnet", 2)] {
        let dir = mount.path().join("models").join(model);
        fs::create_dir_all(&dir).expect("a directory");
        let weights = format!("{model} after step {step}").into_bytes();
        fs::write(dir.join("partial"), &weights).expect("writing");
        fs::rename(dir.join("partial"), dir.join("weights.safetensors")).expect("renaming");
        versions.entry(model).or_insert_with(Vec::new).push(weights);
        let count = versions.values().map(Vec::len).sum::<usize>();
        eventually("a snapshot of the finished file", || snapshots(&mount).len() == count);
    }
    for (model, contents) in versions {
        let tag = format!("model={model}");
        let listed = mount.store().json(&args!["snapshot", "list", mount.path(), "--tag", tag]);
        let found: Vec<Vec<u8>> = listed
            .iter()
            .map(|s| {
                let at = mount.path().join(".snapshots").join(s["name"].as_str().expect("a name"));
                fs::read(at.join("models").join(model).join("weights.safetensors")).expect("the version")
            })
            .collect();
        assert_eq!(found, contents, "{model}");
    }
    let none = mount.store().json(&args!["snapshot", "list", mount.path(), "--tag", "model=gpt"]);
    assert_eq!(none, Vec::<Value>::new());
}

#[test]
fn what_is_immutable_outlives_root_and_the_policy() {
    let store = Store::encrypted();
    let mount = store.mount();
    mount.snapshot("kept");
    set(&mount, &["immutable=1d"]);
    let line = store.refused(1, &args!["snapshot", "delete", mount.path(), "kept"]);
    assert!(line.contains("immutable until"), "{line}");
    let tried = store.refused(1, &args!["snapshot", "delete", mount.path(), "kept", "--dry-run"]);
    assert!(tried.contains("immutable until"), "{tried}");
    set(&mount, &["immutable=off"]);
    store.refused(1, &args!["snapshot", "delete", mount.path(), "kept"]);
    assert!(fs::remove_dir(mount.path().join(".snapshots/kept")).is_err());
    mount.snapshot("later");
    mount.store().ok(&args!["snapshot", "delete", mount.path(), "later"]);
    let listed = store.ok(&args!["snapshot", "list", mount.path()]);
    assert!(listed.contains("until "), "{listed}");
    let store = mount.umount();
    store.refused(1, &args!["volume", "delete", store.path(), "main"]);
}

/// The address of a hook is as good as a password.
#[test]
fn only_root_and_the_owner_see_the_address_of_the_web_hook() {
    let mount = Store::encrypted().mount();
    std::os::unix::fs::chown(mount.path(), Some(NOBODY), Some(NOBODY)).expect("chown");
    set(&mount, &["webhook=http://user:pw@127.0.0.1:9/T0/KEY?x=y"]);
    let address = "http://user:pw@127.0.0.1:9/T0/KEY?x=y";
    assert_eq!(show(&mount)["webhook"], address);
    for json in [&[][..], &["--json".into()]] {
        let shown = args!["policy", "show", mount.path()];
        let text = mount.store().as_nobody(&[&shown[..], json].concat()).expect_ok();
        assert!(
            text.contains("http://127.0.0.1:9/…") && !text.contains("KEY") && !text.contains("pw"),
            "{text}"
        );
        let shown = args!["status", mount.path()];
        let text = mount.store().as_nobody(&[&shown[..], json].concat()).expect_ok();
        assert!(!text.contains("KEY"), "{text}");
    }
}

#[test]
fn the_window_of_a_new_volume_begins_with_the_volume() {
    let mount = Store::encrypted().mount();
    fs::write(mount.path().join("f"), b"x").expect("writing");
    mount.snapshot("a");
    let kept = show(&mount)["kept"].clone();
    assert_eq!((&kept["oldest"], &kept["minutes"]), (&kept["continuous"], &kept["continuous"]), "{kept}");
}
