//! Checksums of files that carry none of their own, or none that covers every byte. `fsck` and `scrub` compare
//! whole files. The format is in docs/FORMAT.md.
//!
//! The index: RocksDB verifies the blocks that it reads; its Bloom filters and statistics, and what it takes for
//! the torn end of a list, it believes or ignores. A table (`*.sst`) never changes, so its sum holds for as
//! long as the file exists. Lists (`CURRENT`, `MANIFEST-*`) change while the index is open: their sums are there
//! while it is closed, and in checkpoints.
//!
//! The settings and ids of a store: text, which people may edit, so a change is told and not refused. Their sums
//! are those of the last opening for writing.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::types::disk::{read_file, replace_file};
use crate::types::error::IoContext;
use crate::types::ids::{hex, unhex};
use crate::types::{Error, OsDisk, Result};

/// The file, in the directory of the files that it is about.
const FILE: &str = "sums";
const MAGIC: &str = "rewindfs-sums 1";
/// Bytes of the file: some 500,000 tables.
const FILE_BYTES_MAX: usize = 64 << 20;
/// Bytes read at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// Told of every piece that was read, in bytes; an error ends the reading.
pub type Advance<'a> = &'a dyn Fn(u64) -> Result<()>;

/// Files that were found well already, by device and inode: checkpoints share their tables with the index.
pub type Seen = HashSet<(u64, u64)>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum {
    bytes: u64,
    hash: [u8; 32],
}

/// Sums by file name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums(BTreeMap<String, Sum>);

fn is_table(name: &str) -> bool {
    name.ends_with(".sst")
}

/// Text in the store's directory.
const SETTINGS: [&str; 3] = ["config.toml", "node", "store"];

/// The rest are logs, a lock, and what RocksDB writes down for people (`OPTIONS-*`, `IDENTITY`).
fn is_list(name: &str) -> bool {
    name == "CURRENT" || name.starts_with("MANIFEST-")
}

impl Sums {
    /// The sums in a directory; none where there is no such file.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Io`].
    pub fn load(dir: &Path) -> Result<Sums> {
        let path = dir.join(FILE);
        let bytes = match read_file(&OsDisk, &path, FILE_BYTES_MAX) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Sums::default()),
            read => read.at("reading", &path)?,
        };
        Sums::decode(&bytes)
            .ok_or_else(|| Error::corrupt("checksums", path.display().to_string(), "they do not read"))
    }

    /// Sums of all files in a directory; those of tables that are `known` are believed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn of(dir: &Path, known: &Sums) -> Result<Sums> {
        let mut sums = Sums::default();
        for entry in fs::read_dir(dir).at("listing", dir)? {
            let Ok(name) = entry.at("listing", dir)?.file_name().into_string() else { continue };
            let path = dir.join(&name);
            let sum = match known.0.get(&name).filter(|_| is_table(&name)) {
                Some(sum) => *sum,
                None if is_table(&name) || is_list(&name) => sum_of(&path, &|_| Ok(()))?,
                None => continue,
            };
            sums.0.insert(name, sum);
        }
        Ok(sums)
    }

    /// Puts them into a directory, durably.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::NoSpace`].
    pub fn store(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        replace_file(&OsDisk, &path, &self.encode()).at("writing", &path)
    }

    /// Takes over the tables of `other`.
    pub(super) fn learn(&mut self, other: &Sums) {
        self.0.extend(other.tables().0);
    }

    /// Those of tables alone.
    fn tables(&self) -> Sums {
        Sums(self.0.iter().filter(|(name, _)| is_table(name)).map(|(n, s)| (n.clone(), *s)).collect())
    }

    fn lists(&self) -> Sums {
        Sums(self.0.iter().filter(|(name, _)| is_list(name)).map(|(n, s)| (n.clone(), *s)).collect())
    }

    /// Compares the files in a directory. A table that is not there is no problem: RocksDB knows which ones
    /// it needs.
    ///
    /// # Errors
    /// What `advance` said.
    pub fn compare(&self, dir: &Path, seen: &mut Seen, advance: Advance<'_>) -> Result<Vec<Error>> {
        let mut problems = Vec::new();
        for (name, expected) in &self.0 {
            let path = dir.join(name);
            let what = if SETTINGS.contains(&&**name) { "settings" } else { "index file" };
            let wrong = |detail: &str| Error::corrupt(what, path.display().to_string(), detail);
            let place = fs::metadata(&path).map(|meta| (meta.dev(), meta.ino())).ok();
            match place {
                Some(place) if seen.contains(&place) => continue,
                None if !is_table(name) => {
                    problems.push(wrong("it is missing"));
                    continue;
                }
                None => continue,
                Some(_) => {}
            }
            let stopped = std::cell::Cell::new(false);
            let watch = |bytes| advance(bytes).inspect_err(|_| stopped.set(true));
            match sum_of(&path, &watch) {
                Ok(found) if found == *expected => seen.extend(place),
                Ok(_) => problems.push(wrong("its checksum does not match")),
                Err(e) if stopped.get() => return Err(e),
                // A table that was compacted away meanwhile.
                Err(_) if !path.exists() => {}
                Err(e) => problems.push(e),
            }
        }
        Ok(problems)
    }

    fn encode(&self) -> Vec<u8> {
        let mut text = format!("{MAGIC}\n");
        for (name, sum) in &self.0 {
            text += &format!("{} {} {name}\n", hex(&sum.hash), sum.bytes);
        }
        let end = blake3::hash(text.as_bytes());
        text += &format!("end {}\n", hex(end.as_bytes()));
        text.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Sums> {
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let (body, end) = text.rsplit_once('\n')?;
        let summed = blake3::Hasher::new().update(body.as_bytes()).update(b"\n").finalize();
        if end.strip_prefix("end ")? != hex(summed.as_bytes()) {
            return None;
        }
        let mut lines = body.split('\n');
        if lines.next()? != MAGIC {
            return None;
        }
        let sums = lines.map(|line| {
            let mut words = line.splitn(3, ' ');
            let (hash, bytes, name) = (unhex(words.next()?)?, words.next()?.parse().ok()?, words.next()?);
            let plain = !name.contains('/') && (is_table(name) || is_list(name) || SETTINGS.contains(&name));
            plain.then(|| (name.to_owned(), Sum { bytes, hash }))
        });
        sums.collect::<Option<_>>().map(Sums)
    }
}

fn sum_of(path: &Path, advance: Advance<'_>) -> Result<Sum> {
    let mut file = File::open(path).at("opening", path)?;
    let (mut hasher, mut bytes, mut buffer) = (blake3::Hasher::new(), 0, vec![0; BUFFER_BYTES]);
    loop {
        let n = file.read(&mut buffer).at("reading", path)?;
        let Some(piece) = buffer.get(..n).filter(|p| !p.is_empty()) else { break };
        hasher.update(piece);
        bytes += n as u64;
        advance(n as u64)?;
    }
    Ok(Sum { bytes, hash: *hasher.finalize().as_bytes() })
}

/// What changed in a store's settings and ids since it was last opened for writing, one sentence each.
pub(super) fn edited_settings(root: &Path) -> Vec<String> {
    let compared = Sums::load(root).and_then(|sums| sums.compare(root, &mut Seen::new(), &|_| Ok(())));
    let told = |e: Error| match e {
        Error::Corrupt { place, .. } => {
            format!("{place} has changed since the store was last opened for writing; was it you?")
        }
        e => e.to_string(),
    };
    compared.unwrap_or_else(|e| vec![e]).into_iter().map(told).collect()
}

/// Remembers them as they are.
///
/// # Errors
/// [`Error::Io`], [`Error::NoSpace`].
pub(super) fn remember_settings(root: &Path) -> Result<()> {
    let mut sums = Sums::default();
    for name in SETTINGS {
        sums.0.insert(name.to_owned(), sum_of(&root.join(name), &|_| Ok(()))?);
    }
    // Most openings find nothing new.
    match Sums::load(root) {
        Ok(known) if known == sums => Ok(()),
        _ => sums.store(root),
    }
}

/// Before RocksDB opens a directory for writing: compares its lists, and takes their sums away, since they
/// change from now on. Returns the sums of the tables, and what does not hold: RocksDB, which verifies what
/// it needs of a list, writes new ones.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn begin(dir: &Path) -> Result<(Sums, Vec<Error>)> {
    let (sums, mut changed) = match Sums::load(dir) {
        Ok(sums) => (sums, Vec::new()),
        Err(e) => (Sums::default(), vec![e]),
    };
    let (tables, lists) = (sums.tables(), sums.lists());
    changed.extend(lists.compare(dir, &mut Seen::new(), &|_| Ok(()))?);
    if !lists.0.is_empty() && tables.store(dir).is_err() {
        // On a full disk: without sums nothing is compared.
        let path = dir.join(FILE);
        fs::remove_file(&path).at("removing", &path)?;
    }
    Ok((tables, changed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("000007.sst", "table"), ("CURRENT", "list"), ("LOG", "log"), ("x", "else")] {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    fn problems(sums: &Sums, dir: &Path) -> Vec<String> {
        let found = sums.compare(dir, &mut Seen::new(), &|_| Ok(())).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_change_of_a_table_or_list_is_found_and_logs_may_change() {
        let dir = directory();
        let sums = Sums::of(dir.path(), &Sums::default()).unwrap();
        sums.store(dir.path()).unwrap();
        assert_eq!(Sums::load(dir.path()).unwrap(), sums);
        fs::write(dir.path().join("LOG"), "more").unwrap();
        assert!(problems(&sums, dir.path()).is_empty());
        fs::write(dir.path().join("000007.sst"), "tablf").unwrap();
        fs::write(dir.path().join("CURRENT"), "list ").unwrap();
        let found = problems(&sums, dir.path());
        assert!(
            found.len() == 2 && found[0].contains("000007.sst") && found[1].contains("CURRENT"),
            "{found:?}"
        );
        assert_eq!(Sums::of(dir.path(), &sums).unwrap().tables(), sums.tables(), "what is known is believed");
        fs::remove_file(dir.path().join("000007.sst")).unwrap();
        fs::remove_file(dir.path().join("CURRENT")).unwrap();
        let found = problems(&sums, dir.path());
        assert!(found.len() == 1 && found[0].contains("missing"), "{found:?}");
    }

    #[test]
    fn an_opening_compares_the_lists_and_forgets_their_sums() {
        let dir = directory();
        let sums = Sums::of(dir.path(), &Sums::default()).unwrap();
        sums.store(dir.path()).unwrap();
        let begun = || begin(dir.path()).map(|(tables, changed)| (tables, changed.len())).unwrap();
        assert_eq!(begun(), (sums.tables(), 0));
        fs::write(dir.path().join("CURRENT"), "another").unwrap();
        assert_eq!(begun(), (sums.tables(), 0), "it may have changed since");
        sums.store(dir.path()).unwrap();
        assert_eq!(begun(), (sums.tables(), 1));
    }

    #[test]
    fn damaged_sums_are_told_from_none() {
        let dir = directory();
        assert_eq!(Sums::load(dir.path()).unwrap(), Sums::default());
        let sums = Sums::of(dir.path(), &Sums::default()).unwrap();
        let text = sums.encode();
        for at in 0..text.len() {
            let mut changed = text.clone();
            changed[at] ^= 4;
            assert_eq!(Sums::decode(&changed), None, "byte {at}");
        }
        fs::write(dir.path().join(FILE), "text").unwrap();
        assert!(matches!(Sums::load(dir.path()), Err(Error::Corrupt { .. })));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused(bytes: Vec<u8>) {
            prop_assert_eq!(Sums::decode(&bytes), None);
        }
    }
}
