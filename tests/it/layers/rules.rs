//! The rules themselves, over the tokens of a set of source files.

use std::collections::{BTreeMap, BTreeSet};

use super::cycles;
use super::lexer::{Token, tokens};

/// Longest file without a reason in its header.
const LINES_MAX: usize = 500;

/// One file of `src/`.
pub struct Source {
    path: String,
    text: String,
    tokens: Vec<Token>,
    /// Its module path below the crate root; empty for `lib.rs` and `main.rs`.
    pub module: Vec<String>,
}

impl Source {
    /// A file with its path below `src/`.
    pub fn new(path: &str, text: &str) -> Source {
        let stem = path.trim_end_matches(".rs");
        let mut module: Vec<String> = stem.split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        Source { path: path.to_owned(), text: text.to_owned(), tokens: tokens(text), module }
    }

    fn at(&self, line: usize) -> String {
        format!("src/{}:{line}", self.path)
    }
}

/// Who may import whom, out of the table in the doc comment of `lib.rs`.
pub fn table(lib: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut table: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in lib.lines().filter_map(|line| line.strip_prefix("//! | `")) {
        let Some((layer, below)) = line.split_once("` |") else { continue };
        let below = match below.contains("all of these") {
            true => table.keys().cloned().collect(),
            false => below.split('`').skip(1).step_by(2).map(str::to_owned).collect::<BTreeSet<_>>(),
        };
        let unknown = below.iter().find(|name| !table.contains_key(*name));
        assert!(unknown.is_none(), "the table lists {layer} before {unknown:?}: it must go upward");
        table.insert(layer.to_owned(), below);
    }
    assert!(!table.is_empty(), "src/lib.rs has no table of layers");
    table
}

/// One sentence for each broken rule.
pub fn broken_rules(sources: &[Source]) -> Vec<String> {
    let lib = sources.iter().find(|s| s.path == "lib.rs").expect("src/lib.rs");
    let table = table(&lib.text);
    let modules: BTreeSet<&[String]> =
        sources.iter().flat_map(|s| (1..=s.module.len()).map(|n| &s.module[..n])).collect();
    let test_modules: BTreeSet<Vec<String>> = sources.iter().flat_map(test_modules).collect();
    let mut broken = Vec::new();
    let mut siblings: BTreeMap<Vec<String>, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for source in sources {
        for import in imports(source) {
            broken.extend(upward(source, &import, &table));
            if let Some((parent, from, to)) = sibling_edge(&import, &modules) {
                siblings.entry(parent).or_default().entry(from).or_default().insert(to);
            }
        }
        match source.module.first() {
            Some(layer) if !table.contains_key(layer) => {
                broken.push(format!("{}: {layer} is not in the table of src/lib.rs", source.at(1)));
            }
            _ => {}
        }
        broken.extend(too_long(source));
        let in_tests = (1..=source.module.len()).any(|n| test_modules.contains(&source.module[..n]));
        if !in_tests {
            broken.extend(banned(source));
        }
    }
    for (parent, edges) in siblings {
        broken.extend(cycles(&edges).into_iter().map(|c| format!("crate::{}: {c}", parent.join("::"))));
    }
    broken
}

/// A path that the code names, from the crate root.
struct Import {
    line: usize,
    /// The module that names it.
    from: Vec<String>,
    to: Vec<String>,
}

/// All paths through `crate`, `$crate`, `rewindfs` (in `main.rs`) or enough `super`s.
fn imports(source: &Source) -> Vec<Import> {
    let tokens = &source.tokens;
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let mut found = Vec::new();
    // The braces that are open, with the inline module each belongs to, if any.
    let mut open: Vec<Option<String>> = Vec::new();
    for i in 0..tokens.len() {
        match text(i) {
            "{" if i >= 2 && text(i - 2) == "mod" => open.push(Some(text(i - 1).to_owned())),
            "{" => open.push(None),
            "}" => drop(open.pop()),
            first @ ("crate" | "super" | "rewindfs")
                if text(i + 1) == "::" && (i == 0 || text(i - 1) != "::") =>
            {
                if first == "rewindfs" && source.path != "main.rs" {
                    continue;
                }
                let mut from = source.module.clone();
                from.extend(open.iter().flatten().cloned());
                let mut base = if first == "super" { from.clone() } else { Vec::new() };
                let mut next = i;
                while text(next) == "super" && text(next + 1) == "::" {
                    base.pop();
                    next += 2;
                }
                if first != "super" {
                    next = i + 2;
                }
                let line = tokens[i].line;
                let (paths, _) = use_tree(tokens, next, &base);
                found.extend(paths.into_iter().map(|to| Import { line, from: from.clone(), to }));
            }
            _ => {}
        }
    }
    found
}

/// The paths of a use tree (or a plain path) at `at`, and where it ends. Globs end in `*`.
fn use_tree(tokens: &[Token], mut at: usize, base: &[String]) -> (Vec<Vec<String>>, usize) {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let mut path = base.to_vec();
    loop {
        match text(at) {
            "{" => {
                let mut all = Vec::new();
                at += 1;
                while !matches!(text(at), "}" | "") {
                    let (paths, end) = use_tree(tokens, at, &path);
                    all.extend(paths);
                    // To the comma after this branch, past `as NAME`.
                    at = end;
                    while !matches!(text(at), "," | "}" | "") {
                        at += 1;
                    }
                    at += usize::from(text(at) == ",");
                }
                return (all, at + 1);
            }
            "self" => return (vec![path], at + 1),
            "super" => {
                path.pop();
                at += 1;
            }
            segment => {
                path.push(segment.to_owned());
                at += 1;
            }
        }
        if text(at) != "::"
            || !text(at + 1).starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '{' | '*'))
        {
            return (vec![path], at);
        }
        at += 1;
    }
}

fn upward(source: &Source, import: &Import, table: &BTreeMap<String, BTreeSet<String>>) -> Option<String> {
    let to = import.to.first()?;
    let place = source.at(import.line);
    if source.path == "main.rs" {
        return (to != "cli").then(|| format!("{place}: main.rs may not import {to}, only cli"));
    }
    let layer = source.module.first()?;
    if to == "*" {
        return Some(format!("{place}: {layer} may not import the whole crate by a glob"));
    }
    let below = table.get(layer)?;
    let wrong = table.contains_key(to) && to != layer && !below.contains(to);
    wrong.then(|| format!("{place}: {layer} may not import {to}"))
}

/// The import as an edge between two children of one module; none between a module and its own parts.
fn sibling_edge(import: &Import, modules: &BTreeSet<&[String]>) -> Option<(Vec<String>, String, String)> {
    let shared = import.from.iter().zip(&import.to).take_while(|(a, b)| a == b).count();
    let (from, to) = (import.from.get(shared)?, import.to.get(shared)?);
    let known =
        |name: &String| modules.contains(&[&import.from[..shared], std::slice::from_ref(name)].concat()[..]);
    // Between layers the table decides.
    (shared > 0 && known(from) && known(to))
        .then(|| (import.from[..shared].to_vec(), from.clone(), to.clone()))
}

fn too_long(source: &Source) -> Option<String> {
    let lines = source.text.lines().count();
    let header = source.text.lines().take_while(|line| line.starts_with("//!"));
    let reason = header.into_iter().any(|line| line.starts_with("//! Long because"));
    (lines > LINES_MAX && !reason).then(|| {
        format!("{}: {lines} lines, over {LINES_MAX}; split it or add `//! Long because …`", source.at(1))
    })
}

/// `allow` attributes and `.unwrap()` outside `#[cfg(test)]` items.
fn banned(source: &Source) -> Vec<String> {
    let tokens = &source.tokens;
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if let Some(end) = attribute_end(tokens, i) {
            if is_cfg_test(&tokens[i..end]) {
                i = item_end(tokens, end);
                continue;
            }
            if (i..end).any(|k| text(k) == "allow" && text(k + 1) == "(") {
                found.push(format!(
                    "{}: #[allow( hides a lint; use #[expect(…, reason = …)]",
                    source.at(tokens[i].line)
                ));
            }
            i = end;
        } else {
            if [".", "unwrap", "(", ")"].iter().enumerate().all(|(k, want)| text(i + k) == *want) {
                found.push(format!("{}: .unwrap() outside tests", source.at(tokens[i].line)));
            }
            i += 1;
        }
    }
    found
}

/// Modules in files of their own that are declared for tests only.
fn test_modules(source: &Source) -> Vec<Vec<String>> {
    let tokens = &source.tokens;
    let mut found = Vec::new();
    for i in 0..tokens.len() {
        let Some(end) = attribute_end(tokens, i).filter(|&end| is_cfg_test(&tokens[i..end])) else {
            continue;
        };
        let mut at = end;
        let mut path = None;
        while let Some(next) = attribute_end(tokens, at) {
            // `#[path = "x.rs"]`: literals are not kept, so the file is looked up in the text of that line.
            if tokens.get(at + 2).is_some_and(|t| t.text == "path") {
                let line = source.text.lines().nth(tokens[at].line - 1).unwrap_or_default();
                path = line.split('"').nth(1).map(|file| file.trim_end_matches(".rs").to_owned());
            }
            at = next;
        }
        if tokens.get(at).is_some_and(|t| t.text == "pub") {
            at += 1;
            if tokens.get(at).is_some_and(|t| t.text == "(") {
                at = group_end(tokens, at);
            }
        }
        if let [word, name, semicolon, ..] = &tokens[at.min(tokens.len())..]
            && (word.text.as_str(), semicolon.text.as_str()) == ("mod", ";")
        {
            let mut module = source.module.clone();
            if path.is_some() && !source.path.ends_with("mod.rs") {
                module.pop();
            }
            module.push(path.unwrap_or_else(|| name.text.clone()));
            found.push(module);
        }
    }
    found
}

/// Where the attribute that starts at `at` ends, if one does.
fn attribute_end(tokens: &[Token], at: usize) -> Option<usize> {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let open = at + 1 + usize::from(text(at + 1) == "!");
    (text(at) == "#" && text(open) == "[").then(|| group_end(tokens, open))
}

fn is_cfg_test(attribute: &[Token]) -> bool {
    let words: Vec<&str> = attribute.iter().map(|t| t.text.as_str()).collect();
    words.get(2) == Some(&"cfg")
        && words.contains(&"test")
        && !words.contains(&"not")
        && !words.contains(&"any")
}

/// Where the bracketed group that opens at `open` ends.
fn group_end(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

/// Where the item at `at` ends: its `;` or its closing brace, further attributes included.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            ";" => return at + 1,
            "{" => return group_end(tokens, at),
            "(" | "[" => at = group_end(tokens, at),
            _ => at += 1,
        }
    }
    at
}
