//! A Rust file as the rules see it: code without comments and literals, and comments without code.
//!
//! A small scanner instead of a parser: the rules need words, braces and lines, and a full parser costs
//! more to compile than all of xtask. Both views have the byte offsets of the original.

use std::ops::Range;

/// A Rust source file, split into code and comments of equal length.
pub struct Source {
    /// Path below the workspace root.
    pub path: String,
    /// The text as it stands in the file.
    pub text: String,
    /// The text with comments and the insides of string and character literals blanked.
    pub code: String,
    /// The text with everything but comments blanked.
    pub comments: String,
    tests: Vec<Range<usize>>,
}

impl Source {
    /// Scans `text`; `path` only serves messages and rules that depend on the place.
    pub fn new(path: &str, text: &str) -> Self {
        let (code, comments) = split(text);
        let tests = test_ranges(&code);
        Source { path: path.to_owned(), text: text.to_owned(), code, comments, tests }
    }

    /// The crate whose folder this file lies in.
    pub fn crate_name(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split('/').next()
    }

    /// The line, counted from 1, that holds byte `offset`.
    pub fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes()[..offset].iter().filter(|&&byte| byte == b'\n').count()
    }

    /// Whether the code at `offset` is part of a test, a bench or an example.
    pub fn is_test(&self, offset: usize) -> bool {
        let whole_file =
            ["/tests/", "/benches/", "/examples/", "/tests.rs"].iter().any(|part| self.path.contains(part));
        whole_file || self.tests.iter().any(|range| range.contains(&offset))
    }
}

/// Offsets at which `word` stands in `text` and is not a part of a longer identifier.
pub fn words<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = text.as_bytes();
    let extends = |at: Option<&u8>| at.is_some_and(|&byte| is_identifier(byte));
    text.match_indices(word).filter_map(move |(offset, _)| {
        let before = offset.checked_sub(1).and_then(|at| bytes.get(at));
        let after = bytes.get(offset + word.len());
        let open_ended = !word.ends_with(|last: char| last.is_alphanumeric());
        (!extends(before) && (open_ended || !extends(after))).then_some(offset)
    })
}

/// The offset just behind the brace that closes the one at `open`.
pub fn closing_brace(code: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(offset + 1),
            b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

/// Whether `byte` can stand in an identifier.
pub fn is_identifier(byte: u8) -> bool {
    byte == b'_' || byte.is_ascii_alphanumeric() || !byte.is_ascii()
}

/// The items behind `#[cfg(test)]`.
fn test_ranges(code: &str) -> Vec<Range<usize>> {
    code.match_indices("#[cfg(")
        .filter(|(begin, attribute)| {
            let condition = &code[begin + attribute.len()..];
            let condition = &condition[..condition.find(']').unwrap_or(condition.len())];
            words(condition, "test").next().is_some() && words(condition, "not").next().is_none()
        })
        .filter_map(|(begin, _)| {
            let open = begin + code[begin..].find(['{', ';'])?;
            Some(begin..closing_brace(code, open).unwrap_or(open))
        })
        .collect()
}

/// Splits a source text into its code and its comments; what is left out becomes spaces.
fn split(text: &str) -> (String, String) {
    let mut code = text.as_bytes().to_vec();
    let mut comments = text.as_bytes().to_vec();
    let mut at = 0;
    let mut code_from = 0;
    while at < text.len() {
        let (end, kind) = token(text, at);
        match kind {
            Token::Code => {}
            Token::Comment => {
                blank(&mut code[at..end]);
                blank(&mut comments[code_from..at]);
                code_from = end;
            }
            Token::Literal => blank(&mut code[at + 1..end - 1]),
        }
        at = end;
    }
    blank(&mut comments[code_from..]);
    let text = |bytes| String::from_utf8(bytes).expect("whole characters are blanked");
    (text(code), text(comments))
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
        *byte = b' ';
    }
}

enum Token {
    Code,
    Comment,
    /// At least two bytes long, delimiters included.
    Literal,
}

/// The token that begins at `at`, and its end.
fn token(text: &str, at: usize) -> (usize, Token) {
    let rest = &text[at..];
    let first = rest.chars().next().expect("a token begins before the end");
    let identifier_before = at > 0 && is_identifier(text.as_bytes()[at - 1]);
    if rest.starts_with("//") {
        return (at + rest.find('\n').unwrap_or(rest.len()), Token::Comment);
    }
    if rest.starts_with("/*") {
        return (at + block_comment_length(rest), Token::Comment);
    }
    if first == '"' {
        return (at + quoted_length(rest, '"'), Token::Literal);
    }
    if !identifier_before && let Some(length) = raw_string_length(rest) {
        return (at + length, Token::Literal);
    }
    // A quote begins a character only if another follows after one (escaped) character; else a lifetime.
    let mut after = rest.chars().skip(1);
    if first == '\'' && (after.next() == Some('\\') || after.next() == Some('\'')) {
        return (at + quoted_length(rest, '\''), Token::Literal);
    }
    (at + first.len_utf8(), Token::Code)
}

fn block_comment_length(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while let Some(step) = rest[at..].find(['/', '*']) {
        at += step;
        match rest.as_bytes().get(at..at + 2) {
            Some(b"/*") => (depth, at) = (depth + 1, at + 2),
            Some(b"*/") if depth == 1 => return at + 2,
            Some(b"*/") => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    rest.len()
}

/// Length of the literal that `rest` begins with, up to the next `quote` that is not escaped. Where there
/// is none (it will not compile), the length is as if it followed at the end.
fn quoted_length(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (offset, char) in rest.char_indices().skip(1) {
        if !escaped && char == quote {
            return offset + 1;
        }
        escaped = !escaped && char == '\\';
    }
    rest.len() + 1
}

/// Length of `r"…"`, `br#"…"#` and their like, if `rest` begins with one.
fn raw_string_length(rest: &str) -> Option<usize> {
    let after_r = rest.trim_start_matches(['b', 'c']).strip_prefix('r')?;
    let body = after_r.trim_start_matches('#');
    let hashes = after_r.len() - body.len();
    let inside = body.strip_prefix('"')?;
    let terminator = format!("\"{}", "#".repeat(hashes));
    let end = inside.find(&terminator).map(|at| at + terminator.len());
    Some(rest.len() - inside.len() + end.unwrap_or(inside.len() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, code: &str, comments: &str) {
        let source = Source::new("a.rs", text);
        assert_eq!(source.code.trim_end(), code, "code");
        assert_eq!(source.comments.trim(), comments, "comments");
        assert_eq!(source.code.len(), text.len());
    }

    #[test]
    fn code_and_comments_part() {
        check("let a = 1; // one {", "let a = 1;", "// one {");
        check("a /* b /* c */ d */ e", "a                   e", "/* b /* c */ d */");
        check(r#"f("}\"{ // no")"#, r#"f("          ")"#, "");
        check("g(r#\"a \" {\"#, 1)", "g(r        #, 1)", "");
        check("var\"x\"", "var\" \"", "");
        check(r"h('{', '\'', '\\', 'ß')", r"h(' ', '  ', '  ', '  ')", "");
        check("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}", "");
        check("x // ünï\ny", "x         \ny", "// ünï");
        check("unfinished(\"ünï", "unfinished(\"", "");
        check("unfinished(\"", "unfinished(\"", "");
        check("unfinished(r\"", "unfinished(r", "");
    }

    #[test]
    fn test_code_is_known() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\nfn c() {}\n";
        let source = Source::new("crates/model/src/a.rs", text);
        let at = |name: &str| source.is_test(text.find(name).unwrap());
        assert_eq!((at("a()"), at("b()"), at("c()")), (false, true, false));
        assert!(!Source::new("a.rs", "#[cfg(not(test))]\nfn a() {}").is_test(20));
        assert!(Source::new("crates/model/tests/a.rs", "fn a() {}").is_test(3));
        assert_eq!(source.crate_name(), Some("model"));
    }

    #[test]
    fn a_word_is_no_part_of_another() {
        assert_eq!(words("unsafe my_unsafe unsafely (unsafe)", "unsafe").count(), 2);
        assert_eq!(words("a Instant::now() b", "Instant::now").count(), 1);
        assert_eq!(words("println!() eprintln!()", "println!").count(), 1);
    }

    #[test]
    fn braces_match() {
        assert_eq!(closing_brace("a { b { } } c", 2), Some(11));
        assert_eq!(closing_brace("a { b", 2), None);
    }
}
