//! The house rules of `src/`: layers import only downward and without cycles, files stay small, and lints are
//! neither silenced with `allow` nor sidestepped with `unwrap`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

mod lexer;
mod promises;
mod rules;

use rules::{Source, broken_rules, table};

/// Every `.rs` file below `dir`, by path below it.
fn sources(dir: &Path) -> Vec<Source> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let below = path.strip_prefix(dir).expect("found below dir");
                found.push(Source::new(&below.to_string_lossy(), &text));
            }
        }
    }
    found
}

#[test]
fn the_sources_keep_the_rules_of_the_house() {
    let found = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let layers: BTreeSet<&str> = found.iter().filter_map(|s| s.module.first().map(String::as_str)).collect();
    for layer in ["types", "store", "volume", "mount", "daemon", "cli"] {
        assert!(layers.contains(layer), "src/{layer} was not found, only {layers:?}");
    }
    let broken = broken_rules(&found);
    assert!(broken.is_empty(), "{} rules broken:\n  {}", broken.len(), broken.join("\n  "));
}

#[test]
fn the_layer_table_is_the_one_that_was_agreed() {
    let lib =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).expect("src/lib.rs");
    let table = table(&lib);
    let agreed: [(&str, &[&str]); 6] = [
        ("types", &[]),
        ("store", &["types"]),
        ("volume", &["store", "types"]),
        ("mount", &["store", "types", "volume"]),
        ("daemon", &["mount", "store", "types", "volume"]),
        ("cli", &["daemon", "types"]),
    ];
    for (layer, below) in agreed {
        let listed: Vec<&str> = table.get(layer).into_iter().flatten().map(String::as_str).collect();
        let core: Vec<&str> = listed.iter().copied().filter(|l| agreed.iter().any(|a| a.0 == *l)).collect();
        assert_eq!(core, below, "what {layer} may import, by the table in src/lib.rs");
    }
}

const LIB: &str = "
//! | layer | may import |
//! |---|---|
//! | `types` | nothing |
//! | `store` | `types` |
//! | `volume` | `store`, `types` |
//! | `daemon` | all of these |
//! | `cli` | `daemon`, `types` |
pub mod types;
";

/// What is found in a crate of these files beside a good `lib.rs`.
fn found_in(files: &[(&str, &str)]) -> Vec<String> {
    let mut sources = vec![Source::new("lib.rs", LIB)];
    sources.extend(files.iter().map(|(path, text)| Source::new(path, text)));
    broken_rules(&sources)
}

#[test]
fn the_checker_catches_planted_violations() {
    let long = "// a line\n".repeat(501);
    let planted: [(&str, &[(&str, &str)]); 20] = [
        ("types may not import store", &[("types/a.rs", "use crate::store::Store;")]),
        ("store may not import volume", &[("store/mod.rs", "fn f() { crate::volume::open() }")]),
        ("store may not import volume", &[("store/a/b.rs", "use super::super::super::volume::X;")]),
        ("store may not import volume", &[("store/mod.rs", "use crate::{types::A, volume::{B, C}};")]),
        ("store may not import volume", &[("store/mod.rs", "use crate::{\n  types,\n  volume as v,\n};")]),
        (
            "store may not import volume",
            &[("store/m.rs", "macro_rules! m { () => { $crate::volume::f() } }")],
        ),
        (
            "store may not import volume",
            &[("store/m.rs", "mod tests { use super::super::super::volume::X; }")],
        ),
        ("volume may not import cli", &[("volume/mod.rs", "#[cfg(test)] mod tests { use crate::cli::X; }")]),
        ("cli may not import store", &[("cli/key.rs", "use crate::store::keys::Ring;")]),
        ("store may not import the whole crate by a glob", &[("store/mod.rs", "use crate::*;")]),
        ("is not in the table", &[("strange/mod.rs", "")]),
        ("main.rs may not import daemon", &[("main.rs", "use rewindfs::daemon::run;")]),
        ("cycle", &[("store/a.rs", "use super::b::B;"), ("store/b.rs", "use crate::store::a::A;")]),
        (
            "cycle",
            &[
                ("store/a/x.rs", "use crate::store::b::B;"),
                ("store/b/mod.rs", "use super::c::C;"),
                ("store/c.rs", "fn f(a: super::a::x::X) {}"),
            ],
        ),
        ("501 lines", &[("store/long.rs", &long)]),
        ("#[allow(", &[("store/a.rs", "#[allow(dead_code)]\nfn f() {}")]),
        ("#[allow(", &[("store/a.rs", "#![cfg_attr(not(test), allow(dead_code))]")]),
        (".unwrap()", &[("store/a.rs", "fn f() { g()\n    .unwrap(); }")]),
        (".unwrap()", &[("store/a.rs", "#[cfg(not(test))] fn f() { g().unwrap() }")]),
        (".unwrap()", &[("store/a.rs", "#[cfg(test)] use x;\nfn f() { g().unwrap() }")]),
    ];
    for (sentence, files) in planted {
        let found = found_in(files);
        let hits: Vec<&String> = found.iter().filter(|line| line.contains(sentence)).collect();
        assert!(!hits.is_empty() && found.len() == hits.len(), "{sentence:?} in {files:?}: {found:?}");
    }
}

#[test]
fn the_checker_lets_good_code_pass() {
    let long = format!("//! A table.\n//!\n//! Long because it is one table.\n{}", "// a line\n".repeat(600));
    let good = [
        ("types/mod.rs", "pub(crate) struct A; // crate::store is only a remark"),
        ("types/limits.rs", "/// See [`crate::store::config`].\nconst A: &str = \"crate::store\";"),
        ("store/mod.rs", "mod a; pub use a::X; use crate::types::{self, A}; fn f() { crate::types::g() }"),
        ("store/a.rs", "use super::Y; const Q: char = '\"'; fn f<'a>(x: &'a str) { x.unwrap_or(1) }"),
        ("store/b.rs", "use super::a::X; #[cfg(test)]\nmod tests { fn f() { a().unwrap() } }"),
        ("store/e.rs", "#[cfg(test)]\npub(crate) mod shared;"),
        ("store/e/shared.rs", "pub fn f() { a().unwrap() }"),
        ("store/c_tests.rs", "fn f() { a().unwrap() }"),
        ("store/c.rs", "#[cfg(test)]\n#[path = \"c_tests.rs\"]\nmod tests;\nfn f() {}"),
        ("store/d/mod.rs", "#[cfg(test)]\nmod checks;\n#[expect(dead_code, reason = \"later\")]\nfn f() {}"),
        ("store/d/checks.rs", "fn f() { r#\"\"#; a().unwrap() }"),
        ("store/e.rs", &long),
        ("daemon/mod.rs", "use crate::{store::S, types::T, volume::V};"),
        ("volume/mod.rs", "/* crate::cli /* nested */ */ use crate::store;"),
        ("main.rs", "fn main() { rewindfs::cli::main() }"),
    ];
    assert_eq!(found_in(&good), Vec::<String>::new());
}

/// The edges of a graph that lie on a cycle, as one sentence per strongly connected group.
fn cycles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let reach = |from: &String| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(next) = todo.pop().and_then(|node| edges.get(node)) {
            todo.extend(next.iter().filter(|n| seen.insert((*n).clone())));
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = edges.keys().map(|n| (n, reach(n))).collect();
    let mutual =
        |a: &String, b: &String| reached[a].contains(b) && reached.get(b).is_some_and(|r| r.contains(a));
    let mut groups: BTreeSet<Vec<&String>> = BTreeSet::new();
    for node in edges.keys().filter(|n| mutual(n, n)) {
        groups.insert(edges.keys().filter(|other| mutual(node, other)).collect());
    }
    groups.iter().map(|group| format!("cycle between {group:?}")).collect()
}
