//! No function is longer than seventy lines: near that it is two thoughts, or a story that wants chapters.

use super::Problem;
use super::exceptions::Exceptions;
use super::source::{Source, closing_brace, is_identifier, words};

const LINES_MAX: usize = 70;

/// Finds functions with more than seventy lines, signature and closing brace included.
pub fn check(source: &Source, exceptions: &mut Exceptions) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, line, lines) in functions(source) {
        if lines > LINES_MAX && !exceptions.allow_long_function(&source.path, name) {
            let message = format!("`{name}` has {lines} lines; split it so that each part is one thought");
            problems.push(Problem::new(&source.path, line, message));
        }
    }
    problems
}

/// Name, first line and number of lines of each function that has a body.
fn functions(source: &Source) -> Vec<(&str, usize, usize)> {
    let code = source.code.as_str();
    words(code, "fn")
        .filter_map(|begin| {
            let after = &code[begin + 2..];
            let signature = after.trim_start();
            let end = signature.bytes().position(|byte| !is_identifier(byte))?;
            let name = &signature[..end];
            // A function pointer type has no name, a macro's function only a placeholder.
            if name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit()) {
                return None;
            }
            let open = begin + body(&code[begin..])?;
            let close = closing_brace(code, open)?;
            let lines = code[begin..close].lines().count();
            Some((name, source.line(begin), lines))
        })
        .collect()
}

/// Where the body opens: the first brace outside parentheses and brackets, unless `;` comes before.
fn body(code: &str) -> Option<usize> {
    let mut depth = 0i32;
    for (offset, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b';' if depth == 0 => return None,
            b'{' if depth == 0 => return Some(offset),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(lines: usize) -> String {
        let body = "    let brace = '}'; // {\n".repeat(lines - 2);
        format!("fn story(a: [u8; 2]) -> u8\n{{\n{}}}\n", &body[26..])
    }

    #[test]
    fn seventy_lines_pass() {
        let source = Source::new("a.rs", &function(70));
        assert_eq!(functions(&source), [("story", 1, 70)]);
        assert_eq!(check(&source, &mut Exceptions::default()), []);
    }

    #[test]
    fn seventy_one_lines_fail() {
        let source = Source::new("a.rs", &format!("\n{}", function(71)));
        let problems = check(&source, &mut Exceptions::default());
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].line, 2);
        assert!(problems[0].message.contains("`story` has 71 lines"));
    }

    #[test]
    fn an_exception_with_a_reason_passes() {
        let listed = "[[long_function]]\nfile = 'a.rs'\nfunction = 'story'\nreason = 'A kernel.'";
        let mut exceptions = Exceptions::parse(listed).unwrap();
        assert_eq!(check(&Source::new("a.rs", &function(99)), &mut exceptions), []);
        assert_eq!(exceptions.unused(), []);
    }

    #[test]
    fn declarations_and_pointers_have_no_body() {
        let text = "trait A { fn a(&self); fn b() { } }\ntype F = fn(u8) -> u8;\nstruct S {\n}\n";
        assert_eq!(functions(&Source::new("a.rs", text)), [("b", 1, 1)]);
    }
}
