//! Just enough of Rust's tokens to find paths and attributes without being fooled by comments and strings.

/// An identifier or one character of punctuation, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Counted from 1.
    pub line: usize,
    /// `::` is one token; literals are an empty one.
    pub text: String,
}

/// The tokens of a source file, comments left out and literals emptied.
pub fn tokens(source: &str) -> Vec<Token> {
    let bytes = source.as_bytes();
    let (mut at, mut line, mut out) = (0, 1, Vec::new());
    while at < bytes.len() {
        let start = at;
        let rest = &source[at..];
        let text = if rest.starts_with("//") {
            at += rest.find('\n').unwrap_or(rest.len());
            None
        } else if rest.starts_with("/*") {
            at += comment_len(rest);
            None
        } else if let Some(len) = string_len(rest).or_else(|| char_len(rest)) {
            at += len;
            Some(String::new())
        } else if rest.starts_with("::") {
            at += 2;
            Some("::".to_owned())
        } else {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let len = if len == 0 { rest.chars().next().map_or(1, char::len_utf8) } else { len };
            at += len;
            Some(rest[..len].to_owned()).filter(|text| !text.trim().is_empty())
        };
        out.extend(text.map(|text| Token { line, text }));
        line += source[start..at].matches('\n').count();
    }
    out
}

fn comment_len(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string literal of any kind at the start of `rest`.
fn string_len(rest: &str) -> Option<usize> {
    let prefix = rest.len() - rest.trim_start_matches(['b', 'c', 'r']).len();
    let (prefix, body) = (prefix.min(2), &rest[prefix.min(2)..]);
    if rest[..prefix].ends_with('r') {
        let hashes = body.len() - body.trim_start_matches('#').len();
        let text = body[hashes..].strip_prefix('"')?;
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(prefix + hashes + 1 + text.find(&end)? + end.len());
    }
    let text = body.strip_prefix('"')?;
    let mut escaped = false;
    let end = text.bytes().position(|b| {
        let ends = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        ends
    });
    Some(prefix + 1 + end.map_or(text.len(), |end| end + 1))
}

/// The length of a character literal; a lifetime is none.
fn char_len(rest: &str) -> Option<usize> {
    let prefix = usize::from(rest.starts_with("b'"));
    let text = rest[prefix..].strip_prefix('\'')?;
    let first = text.chars().next()?;
    let len = if first == '\\' { 2 + text[2..].find('\'')? } else { first.len_utf8() };
    text[len..].starts_with('\'').then_some(prefix + 1 + len + 1)
}
