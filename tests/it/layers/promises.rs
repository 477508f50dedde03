//! The documents of what is promised name the tests that show it; every one of them must exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The documents that name tests.
const DOCUMENTS: [&str; 2] = ["docs/SEMANTICS.md", "docs/GUARANTEES.md"];

/// Words in backticks that look like the name of a test: a sentence of at least four words.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split('`').skip(1).step_by(2);
    words.filter(|word| is_sentence(word)).collect()
}

fn is_sentence(word: &str) -> bool {
    let letters =
        |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    word.split('_').all(letters) && word.split('_').count() >= 4
}

/// The functions marked as tests, by name.
fn tests_in(text: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("fn ") {
            let name = rest.split(['(', '<']).next().unwrap_or_default();
            if marked {
                found.insert(name);
            }
            marked = false;
        } else if line == "#[test]" {
            marked = true;
        }
    }
    found
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let paths = entries.map(|entry| entry.expect("a directory entry").path());
    let each = paths.map(|path| if path.is_dir() { rust_files(&path) } else { vec![path] });
    each.flatten().filter(|path| path.extension().is_some_and(|ext| ext == "rs")).collect()
}

#[test]
fn every_test_that_the_promises_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = ["src", "tests"].iter().flat_map(|dir| rust_files(&root.join(dir)));
    let sources: Vec<String> = files.map(|file| fs::read_to_string(file).expect("a source file")).collect();
    let tests: BTreeSet<&str> = sources.iter().flat_map(|text| tests_in(text)).collect();
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root.join(document)).expect(document);
        let named = named(&text);
        assert!(named.len() > 20, "{document} names only {} tests: are they still looked for?", named.len());
        missing
            .extend(named.iter().filter(|name| !tests.contains(**name)).map(|n| format!("{document}: {n}")));
    }
    assert!(missing.is_empty(), "tests that do not exist:\n  {}", missing.join("\n  "));
}

#[test]
fn names_of_tests_are_told_from_other_words() {
    let text =
        "`a_test_by_name`, `commit_interval_ms`, `st_blocks`,\n`another_test_of_1970` and `RENAME_A_B_C`.";
    assert_eq!(named(text), BTreeSet::from(["a_test_by_name", "another_test_of_1970"]));
    let source = "#[test]\nfn one() {}\nfn helper() {}\n#[test]\n#[expect(x)]\nfn two<T>() {}\n// fn three";
    assert_eq!(tests_in(source), BTreeSet::from(["one", "two"]));
}
