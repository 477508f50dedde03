//! What a server tells a monitoring system, and what it says by itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use serde_json::Value;

use crate::harness::http::{ask, free_address, listener};
use crate::harness::{Mount, Rng, Store, args, eventually};

fn mounted(store: &std::sync::Arc<Store>, address: SocketAddr) -> Mount {
    store.mount_with("mnt", &args!["--metrics", address.to_string()])
}

/// The values, by name and labels.
fn scrape(address: SocketAddr) -> BTreeMap<String, f64> {
    let (status, page) = ask(address, "GET", "/metrics").expect("an answer");
    assert_eq!(status, 200, "{page}");
    let mut values = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("name and value");
        let twice = values.insert(name.to_owned(), value.parse().expect("a number"));
        assert!(twice.is_none(), "{name} twice");
    }
    for name in values.keys() {
        let family = name.split('{').next().expect("a name");
        assert!(page.contains(&format!("# TYPE {family} ")), "{family} has no type");
    }
    values
}

fn problems(mount: &Mount) -> String {
    mount.status()["problems"].to_string()
}

#[test]
fn metrics_say_what_status_says_and_outlive_a_server() {
    let (store, address) = (Store::encrypted(), free_address());
    let mount = mounted(&store, address);
    fs::write(mount.path().join("a"), vec![b'x'; 100_000]).expect("writing");
    mount.snapshot("one");
    fs::remove_file(mount.path().join("a")).expect("removing");
    // Records are committed in the background as well.
    let lsn = || mount.status()["lsn"].as_f64().expect("a number");
    let (before, values, after) = (lsn(), scrape(address), lsn());
    let of_main = "{volume=\"main\"}";
    assert!((before..=after).contains(&values["rewindfs_lsn"]), "{before} {after} {values:?}");
    assert_eq!(values[&format!("rewindfs_snapshots{of_main}")], 1.0);
    assert_eq!(values[&format!("rewindfs_mounted{of_main}")], 1.0);
    assert_eq!(values[&format!("rewindfs_removed_files_total{of_main}")], 1.0);
    assert_eq!(values[&format!("rewindfs_removed_bytes_total{of_main}")], 100_000.0);
    assert!(values[&format!("rewindfs_last_snapshot_timestamp_seconds{of_main}")] > 1.7e9);
    assert_eq!(ask(address, "GET", "/healthz").map(|(code, _)| code), Some(200));
    assert_eq!(ask(address, "GET", "/readyz").map(|(code, _)| code), Some(200));
    assert_eq!(ask(address, "GET", "/other").map(|(code, _)| code), Some(404));
    assert_eq!(ask(address, "POST", "/metrics").map(|(code, _)| code), Some(405));
    mount.server().kill();
    eventually("the next server to answer", || {
        ask(address, "GET", "/readyz").is_some_and(|(code, _)| code == 200)
    });
    let store = mount.umount();
    assert_eq!(ask(address, "GET", "/metrics"), None);
    let mount = store.mount_with("mnt", &args!["--metrics", "off"]);
    assert_eq!(ask(address, "GET", "/metrics"), None);
    drop(mount);
    let line = store.refused(2, &args!["mount", store.path(), store.directory("m"), "--metrics", "9671"]);
    assert!(line.contains("127.0.0.1:9671"), "{line}");
}

#[test]
fn whoever_keeps_connections_open_does_not_stop_others_for_long() {
    let (store, address) = (Store::encrypted(), free_address());
    let mount = mounted(&store, address);
    eventually("an answer", || ask(address, "GET", "/healthz").is_some());
    let idle: Vec<TcpStream> = (0..100).filter_map(|_| TcpStream::connect(address).ok()).collect();
    assert!(idle.len() > 50, "{}", idle.len());
    eventually("an answer beside idle connections", || ask(address, "GET", "/healthz").is_some());
    drop(mount);
}

#[test]
fn an_address_that_is_taken_is_a_problem_and_no_failed_mount() {
    let (first, second, address) = (Store::encrypted(), Store::encrypted(), free_address());
    let holder = mounted(&first, address);
    eventually("an answer", || ask(address, "GET", "/healthz").is_some());
    let mount = mounted(&second, address);
    fs::write(mount.path().join("a"), b"works").expect("writing");
    eventually("word of it", || problems(&mount).contains("no metrics"));
    assert_eq!(mount.status()["health"], "attention");
    drop(holder.umount());
    eventually("metrics", || !problems(&mount).contains("no metrics"));
    assert_eq!(scrape(address)["rewindfs_mounted{volume=\"main\"}"], 1.0);
}

fn told(heard: &std::sync::mpsc::Receiver<String>) -> Value {
    let body = heard.recv_timeout(Duration::from_secs(60)).expect("an alert");
    serde_json::from_str(&body).expect("JSON")
}

#[test]
fn a_burst_of_removals_and_one_of_encryption_are_told_everywhere() {
    let (store, address) = (Store::encrypted(), free_address());
    let mount = mounted(&store, address);
    let (hook, heard) = listener(1);
    let webhook = format!("webhook=http://user:secret@{hook}/services/key");
    mount.store().ok(&args!["policy", "set", mount.path(), webhook]);
    let (data, large) = (mount.path().join("data"), mount.path().join("large"));
    fs::create_dir(&data).expect("mkdir");
    (0..1400).for_each(|n| fs::write(data.join(format!("f{n}")), b"precious").expect("writing"));
    let file = File::create_new(&large).expect("creating");
    let text = b"compressible data, as a table or a log is\n".repeat(1 << 14);
    let bytes = 300 << 20;
    (0..bytes / text.len()).for_each(|n| file.write_all_at(&text, (n * text.len()) as u64).expect("writing"));
    file.sync_all().expect("fsync");
    std::thread::sleep(Duration::from_secs(2));
    assert!(!problems(&mount).contains("rewindfs diff"), "{}", problems(&mount));

    (0..1300).for_each(|n| fs::remove_file(data.join(format!("f{n}"))).expect("removing"));
    let alert = told(&heard);
    assert_eq!((&alert["event"], &alert["kind"]), (&"burst".into(), &"removed_files".into()));
    assert!(alert["count"].as_u64() > Some(1000) && alert["limit"] == 1000, "{alert}");
    assert!(alert["text"].as_str().is_some_and(|text| text.contains("files were removed")), "{alert}");
    assert_eq!(alert["volume"], "main");
    eventually("no trouble with sending", || !problems(&mount).contains("cannot be sent"));

    let mut rng = Rng::printed();
    (0..bytes >> 20).for_each(|n| file.write_all_at(&rng.bytes(1 << 20), (n as u64) << 20).expect("writing"));
    file.sync_all().expect("fsync");
    let kinds = [told(&heard), told(&heard)].map(|alert| alert["kind"].to_string());
    assert!(kinds.contains(&"\"scrambled_bytes\"".to_owned()), "{kinds:?}");

    let text = problems(&mount);
    assert!(text.contains("look encrypted") && text.contains("files were removed"), "{text}");
    assert!(text.contains("rewindfs diff PATH @20") && !text.contains("secret"), "{text}");
    let values = scrape(address);
    assert_eq!(values["rewindfs_burst{volume=\"main\",kind=\"removed_files\"}"], 1.0);
    assert_eq!(values["rewindfs_burst{volume=\"main\",kind=\"removed_bytes\"}"], 0.0);
    assert_eq!(mount.store().cli(&args!["status", mount.path(), "--check"]).code, 3);
    drop(file);
    let mount = mount.remount();
    eventually("word of it after another start", || problems(&mount).contains("look encrypted"));
}
