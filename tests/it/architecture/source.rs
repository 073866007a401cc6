//! A Rust file as the checks see it: the paths it names, resolved from the crate's root, and its length without tests.

use std::collections::BTreeSet;

/// One file, read.
#[derive(Debug)]
pub(crate) struct Source {
    path: String,
    uses: Vec<Use>,
    async_lines: Vec<usize>,
    unsafe_lines: Vec<usize>,
    test_modules: Vec<String>,
    lines_without_tests: usize,
    documented: bool,
}

/// A path that stands in the code. Paths of this crate are absolute and start with `crate`.
#[derive(Debug)]
pub(crate) struct Use {
    pub(crate) line: usize,
    pub(crate) segments: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    text: &'a str,
    line: usize,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let all = tokens(text);
        let (code, test_modules, test_lines) = split_tests(&all);
        Self {
            path: path.to_owned(),
            uses: uses(&code, &module_of(path)),
            async_lines: lines_of("async", &code),
            unsafe_lines: lines_of("unsafe", &code),
            test_modules,
            lines_without_tests: text.lines().count() - test_lines,
            documented: text.starts_with("//! "),
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The path below the crate's root, `["policy", "host"]`; the library's root is empty.
    pub(crate) fn module(&self) -> Vec<String> {
        module_of(&self.path)
    }

    pub(crate) fn uses(&self) -> &[Use] {
        &self.uses
    }

    pub(crate) fn async_lines(&self) -> &[usize] {
        &self.async_lines
    }

    pub(crate) fn unsafe_lines(&self) -> &[usize] {
        &self.unsafe_lines
    }

    pub(crate) fn lines_without_tests(&self) -> usize {
        self.lines_without_tests
    }

    pub(crate) fn documented(&self) -> bool {
        self.documented
    }
}

fn lines_of(word: &str, code: &[Token<'_>]) -> Vec<usize> {
    code.iter().filter(|token| token.text == word).map(|token| token.line).collect()
}

/// Leaves out the files that another one declares as `#[cfg(test)] mod …;`, with what lies below them.
pub(crate) fn without_tests(sources: Vec<Source>) -> Vec<Source> {
    let mut test_modules = BTreeSet::new();
    for source in &sources {
        for name in &source.test_modules {
            let mut module = source.module();
            module.push(name.clone());
            test_modules.insert(module);
        }
    }
    let in_tests = |module: &[String]| (1..=module.len()).any(|end| test_modules.contains(&module[..end]));
    sources.into_iter().filter(|source| !in_tests(&source.module())).collect()
}

fn module_of(path: &str) -> Vec<String> {
    let name = path.trim_start_matches("src/").trim_end_matches(".rs");
    if name == "lib" { Vec::new() } else { name.split('/').map(str::to_owned).collect() }
}

/// The tokens without comments; a literal is one token `"`, a lifetime its name.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (length, kept) = token_length(rest, first);
        let (text, after) = rest.split_at(length);
        match kept {
            Kept::Nothing => {}
            Kept::Text => found.push(Token { text, line }),
            Kept::Literal => found.push(Token { text: "\"", line }),
        }
        line += text.matches('\n').count();
        rest = after;
    }
    found
}

enum Kept {
    Nothing,
    Text,
    Literal,
}

fn token_length(rest: &str, first: char) -> (usize, Kept) {
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    if rest.starts_with("//") {
        (rest.find('\n').unwrap_or(rest.len()), Kept::Nothing)
    } else if rest.starts_with("/*") {
        (block_comment(rest), Kept::Nothing)
    } else if let Some(length) = literal(rest) {
        (length, Kept::Literal)
    } else if is_word(first) {
        (rest.find(|c| !is_word(c)).unwrap_or(rest.len()), Kept::Text)
    } else if rest.starts_with("::") {
        (2, Kept::Text)
    } else {
        (first.len_utf8(), if first.is_whitespace() || first == '\'' { Kept::Nothing } else { Kept::Text })
    }
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
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

/// The length of the string or character literal that `rest` starts with.
fn literal(rest: &str) -> Option<usize> {
    let prefix = ["br", "cr", "b", "c", "r", ""]
        .into_iter()
        .find(|prefix| rest.strip_prefix(prefix).is_some_and(|after| after.starts_with(['"', '\'', '#'])))?;
    let body = &rest[prefix.len()..];
    let hashes = body.len() - body.trim_start_matches('#').len();
    if prefix.ends_with('r') && body[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let start = hashes + 1;
        return Some(prefix.len() + start + body[start..].find(&end)? + end.len());
    }
    let quote = body.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    let is_lifetime = quote == '\'' && !body[1..].starts_with('\\') && body[1..].chars().nth(1) != Some('\'');
    if is_lifetime {
        return None;
    }
    let mut escaped = false;
    let end = body.char_indices().skip(1).find(|&(_, c)| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    end.map(|(at, _)| prefix.len() + at + 1)
}

/// Takes out what `#[cfg(test)]` covers: the remaining tokens, the modules declared so, the number of lines covered.
fn split_tests<'a>(all: &[Token<'a>]) -> (Vec<Token<'a>>, Vec<String>, usize) {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut code = Vec::new();
    let mut modules = Vec::new();
    let mut lines = 0;
    let mut at = 0;
    while at < all.len() {
        let marked = all[at..].iter().map(|token| token.text).take(MARK.len()).eq(MARK);
        if marked {
            let end = item_end(all, at + MARK.len());
            lines += all[end - 1].line - all[at].line + 1;
            if let [.., keyword, name, semicolon] = &all[at..end]
                && (keyword.text, semicolon.text) == ("mod", ";")
            {
                modules.push(name.text.to_owned());
            }
            at = end;
        } else {
            code.push(all[at]);
            at += 1;
        }
    }
    (code, modules, lines)
}

/// The index behind the item that starts at `start`: behind its `;`, or behind its closing brace.
fn item_end(all: &[Token<'_>], start: usize) -> usize {
    let mut depth = 0_usize;
    for (at, token) in all.iter().enumerate().skip(start) {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && matches!(token.text, ";" | "}") {
            return at + 1;
        }
    }
    all.len()
}

/// Every path of the code, in the order of its lines.
fn uses(code: &[Token<'_>], file_module: &[String]) -> Vec<Use> {
    let mut found = Vec::new();
    let mut module = file_module.to_vec();
    let mut inline: Vec<usize> = Vec::new();
    let mut depth = 0_usize;
    let mut at = 0;
    while at < code.len() {
        let text = |offset: usize| code.get(at + offset).map_or("", |token| token.text);
        let mut raw: Vec<Use> = Vec::new();
        match (text(0), text(1), text(2)) {
            ("mod", name, "{") => {
                module.push(name.to_owned());
                inline.push(depth);
                depth += 1;
                at += 3;
            }
            ("use", next, _) if next != "<" => at = use_tree(code, at + 1, &[], &mut raw),
            ("extern", "crate", name) => {
                raw.push(Use { line: code[at].line, segments: vec![name.to_owned()] });
                at += 3;
            }
            (first, "::", _) if is_name(first) => at = plain_path(code, at, &mut raw),
            (first, _, _) => {
                match first {
                    "{" => depth += 1,
                    "}" => depth = depth.saturating_sub(1),
                    _ => {}
                }
                if first == "}" && inline.last() == Some(&depth) {
                    inline.pop();
                    module.pop();
                }
                at += 1;
            }
        }
        found.extend(raw.into_iter().map(|path| absolute(path, &module)));
    }
    found
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c == '_' || c.is_alphabetic())
}

/// A path outside of a `use`: `crate::proxy::dial`.
fn plain_path(code: &[Token<'_>], start: usize, found: &mut Vec<Use>) -> usize {
    let mut segments = vec![code[start].text.to_owned()];
    let mut at = start + 1;
    while let [colons, name, ..] = &code[at..]
        && colons.text == "::"
        && is_name(name.text)
    {
        segments.push(name.text.to_owned());
        at += 2;
    }
    found.push(Use { line: code[start].line, segments });
    at.max(start + 1)
}

/// The leaves of a `use` tree, each as a whole path; gives the index of the token that ends the tree.
fn use_tree(code: &[Token<'_>], start: usize, prefix: &[String], found: &mut Vec<Use>) -> usize {
    let mut segments = prefix.to_vec();
    let mut at = start;
    let line = code.get(start).map_or(0, |token| token.line);
    while let Some(token) = code.get(at) {
        match token.text {
            "::" => at += 1,
            "{" => {
                at += 1;
                while code.get(at).is_some_and(|token| token.text != "}") {
                    at = use_tree(code, at, &segments, found);
                    at += usize::from(code.get(at).is_some_and(|token| token.text == ","));
                }
                return at + 1;
            }
            "as" => at += 2,
            "," | "}" | ";" => break,
            name => {
                segments.push(name.to_owned());
                at += 1;
            }
        }
    }
    found.push(Use { line, segments });
    at
}

/// Resolves `self`, `super` and the binary's name for the library.
fn absolute(path: Use, module: &[String]) -> Use {
    let own = usize::from(path.segments.first().is_some_and(|first| first == "self"));
    let up = path.segments[own..].iter().take_while(|segment| *segment == "super").count();
    let from_binary = module.first().is_some_and(|first| first == "main");
    let (base, rest) = match path.segments[0].as_str() {
        "self" | "super" => (&module[..module.len().saturating_sub(up)], &path.segments[own + up..]),
        "cloister" if from_binary => (&[][..], &path.segments[1..]),
        _ => return path,
    };
    let segments = ["crate".to_owned()].iter().chain(base).chain(rest).cloned().collect();
    Use { line: path.line, segments }
}
