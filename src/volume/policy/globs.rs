//! Globs of paths, with parts that become tags: `models/{model}/**/*.safetensors`.

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// Compiled size that one list of globs may come to.
const COMPILED_BYTES_MAX: usize = 4 << 20;

/// A list of globs over paths relative to a volume's root, without a `/` in front.
///
/// `*` and `?` stand for characters of one name, `**` as a whole name for any number of directories, `[a-z]` and
/// `[!a-z]` for one character of a set, `{a,b}` for either, `{name}` for one or more characters of one name that
/// become the value of the tag `name`. A backslash takes the next character as it is.
#[derive(Clone, Debug)]
pub struct Globs {
    set: RegexSet,
    each: Vec<Regex>,
}

impl Globs {
    /// Compiles a list.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn new(globs: &[String]) -> Result<Globs, String> {
        let sources = globs.iter().map(|g| translate(g).map_err(|why| format!("glob {g:?}: {why}")));
        let sources = sources.collect::<Result<Vec<String>, String>>()?;
        let set = RegexSetBuilder::new(&sources).unicode(false).size_limit(COMPILED_BYTES_MAX).build();
        let each = sources
            .iter()
            .map(|s| RegexBuilder::new(s).unicode(false).size_limit(COMPILED_BYTES_MAX).build())
            .collect::<Result<Vec<_>, _>>();
        match (set, each) {
            (Ok(set), Ok(each)) => Ok(Globs { set, each }),
            _ => Err("the globs are too complex together".into()),
        }
    }

    /// Whether one of them matches `path`.
    pub fn is_match(&self, path: &[u8]) -> bool {
        self.set.is_match(path)
    }

    /// The tags that the first glob which matches `path` gives it; `None` when none does.
    pub fn matches(&self, path: &[u8]) -> Option<Vec<(String, String)>> {
        let first = self.set.matches(path).into_iter().next()?;
        let regex = self.each.get(first)?;
        let found = regex.captures(path)?;
        let named = regex.capture_names().flatten();
        Some(
            named
                .filter_map(|name| {
                    let value = String::from_utf8_lossy(found.name(name)?.as_bytes()).into_owned();
                    Some((name.to_owned(), value))
                })
                .collect(),
        )
    }
}

fn translate(glob: &str) -> Result<String, &'static str> {
    if glob.is_empty() || glob.starts_with('/') {
        return Err("it is a path below the volume's root, without a / in front");
    }
    let mut out = String::from("(?s-u)\\A");
    let mut rest = glob.chars().peekable();
    let mut at_start = true;
    let mut alternatives = 0;
    while let Some(c) = rest.next() {
        let starts_name = std::mem::replace(&mut at_start, c == '/');
        match c {
            '*' if rest.peek() == Some(&'*') => {
                rest.next();
                match rest.next() {
                    Some('/') if starts_name => out.push_str("(?:[^/]+/)*"),
                    None if starts_name => out.push_str(".+"),
                    _ => return Err("** stands for whole directories: **/ or at the end"),
                }
                at_start = true;
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '[' => set(&mut rest, &mut out)?,
            '{' => {
                let inside: String = rest.clone().take_while(|c| *c != '}').collect();
                let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
                if inside.contains(',') {
                    out.push_str("(?:");
                    alternatives += 1;
                } else if inside.starts_with(|c: char| c.is_ascii_alphabetic()) && inside.chars().all(is_name)
                {
                    if !rest.by_ref().any(|c| c == '}') {
                        return Err("a { without its }");
                    }
                    out.push_str(&format!("(?P<{inside}>[^/]+)"));
                } else {
                    return Err("{name} gives a tag, {a,b} stands for either");
                }
            }
            ',' if alternatives > 0 => out.push('|'),
            '}' if alternatives > 0 => {
                alternatives -= 1;
                out.push(')');
            }
            '\\' => literal(rest.next().ok_or("a backslash at its end")?, &mut out),
            c => literal(c, &mut out),
        }
    }
    if alternatives > 0 {
        return Err("a { without its }");
    }
    out.push_str("\\z");
    Ok(out)
}

fn set(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) -> Result<(), &'static str> {
    let negated = rest.next_if(|c| matches!(c, '!' | '^')).is_some();
    out.push_str(if negated { "[^/" } else { "[" });
    let mut first = true;
    loop {
        match rest.next().ok_or("a [ without its ]")? {
            ']' if !first => break,
            '/' => return Err("a set stands for one character of a name"),
            c if !c.is_ascii() => return Err("a set has ASCII characters"),
            '-' if !first && rest.peek() != Some(&']') => out.push('-'),
            c => literal(c, out),
        }
        first = false;
    }
    out.push(']');
    Ok(())
}

fn literal(c: char, out: &mut String) {
    let mut bytes = [0; 4];
    for byte in c.encode_utf8(&mut bytes).bytes() {
        out.push_str(&format!("\\x{byte:02x}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(glob: &str, path: &str) -> bool {
        Globs::new(&[glob.to_owned()]).unwrap().matches(path.as_bytes()).is_some()
    }

    #[test]
    fn globs_mean_what_shells_mean() {
        for (glob, path) in [
            ("ckpt/**/*.safetensors", "ckpt/a.safetensors"),
            ("ckpt/**/*.safetensors", "ckpt/run/7/model.safetensors"),
            ("**/*.pt", "a.pt"),
            ("**", "a/b"),
            ("a?[b-d].x", "azc.x"),
            ("[!a]", "b"),
            ("[]]", "]"),
            ("{a,b*}/c", "bcd/c"),
            ("\\*", "*"),
            ("ü*", "über"),
        ] {
            assert!(matches(glob, path), "{glob} {path}");
        }
        for (glob, path) in [
            ("ckpt/**/*.safetensors", "other/ckpt/a.safetensors"),
            ("*.pt", "a/b.pt"),
            ("**/x", "ax"),
            ("a/**", "a"),
            ("[!a]", "/"),
            ("?", ""),
            ("a.pt", "axpt"),
            ("{a,b}", "c"),
        ] {
            assert!(!matches(glob, path), "{glob} {path}");
        }
    }

    #[test]
    fn names_in_braces_become_tags() {
        let globs = ["x".to_owned(), "models/{model}/step-{step}.pt".to_owned()];
        let globs = Globs::new(&globs).unwrap();
        let tags = globs.matches(b"models/resnet/step-10.pt").unwrap();
        assert_eq!(tags, [("model".into(), "resnet".into()), ("step".into(), "10".into())]);
        assert_eq!(globs.matches(b"x"), Some(Vec::new()));
        assert_eq!(globs.matches(b"models/a/b/step-10.pt"), None);
        assert!(globs.matches(b"models/\xff\xfe/step-1.pt").is_some(), "names need not be UTF-8");
    }

    #[test]
    fn what_is_wrong_is_said() {
        for glob in ["", "/abs", "a**", "**b", "{", "{a", "{a,b", "[a", "\\", "{a b}", "{model}{model}"] {
            let error = Globs::new(&[glob.to_owned()]).unwrap_err();
            assert!(!error.contains('\n'), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_glob_panics(glob in "[a-c/*?{},\\[\\]!\\\\-]{0,20}", path in "[a-c/]{0,9}") {
            if let Ok(globs) = Globs::new(&[glob]) {
                let _ = globs.matches(path.as_bytes());
            }
        }
    }
}
