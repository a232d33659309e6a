//! Which top-level commands a text has: section 6.5 of the specification. Pure.
//!
//! The original asks the Python package `bashlex` 0.18 and takes a text that it cannot parse for one command. So does
//! this recogniser: what `bashlex` does not know (`case`, `select`, `coproc`, `time`, `[[`, arithmetic, arrays) makes the
//! whole text one command here too. It is our own, written from the package's outcomes.

/// Blocks may be nested so deep; a deeper text is one command.
const DEEPEST: usize = 100;

/// The text does not parse.
#[derive(Debug)]
struct Unparsable;

type Parsed<T> = Result<T, Unparsable>;

/// The top-level commands of `text`, each as it was written. More than one is refused by the dialect.
pub fn split(text: &str) -> Vec<String> {
    let whole = || vec![text.to_owned()];
    if text.trim().is_empty() {
        return vec![String::new()];
    }
    let Ok(commands) = Parser::new(text).commands() else { return whole() };
    let mut pieces: Vec<String> = Vec::new();
    let mut end_of_last = 0;
    for (start, end) in commands {
        let between = text[end_of_last..start].trim_end();
        match pieces.last_mut() {
            Some(last) => last.push_str(between),
            None if !between.trim().is_empty() => pieces.push(between.to_owned()),
            None => {}
        }
        pieces.push(text[start..end].trim_end().to_owned());
        end_of_last = end;
    }
    match pieces.last_mut() {
        Some(last) => last.push_str(text[end_of_last..].trim_end()),
        None => return whole(),
    }
    pieces
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// `;`, `&`, `&&`, `||`, `|`, `|&`, `(`, `)`, `;;`
    Operator(&'a str),
    Newline,
    End,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// Where the latest token that was taken ends.
    end: usize,
    /// Delimiters of here-documents that begin after this line, and whether tabs before them do not count.
    pending: Vec<(String, bool)>,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0, end: 0, pending: Vec::new(), depth: 0 }
    }

    fn commands(mut self) -> Parsed<Vec<(usize, usize)>> {
        let mut commands = Vec::new();
        loop {
            self.skip_newlines()?;
            if self.peek()? == Token::End {
                return Ok(commands);
            }
            let start = self.at;
            self.list(&[])?;
            commands.push((start, self.end));
            match self.peek()? {
                Token::Newline | Token::End => {}
                Token::Word(_) | Token::Operator(_) => return Err(Unparsable),
            }
        }
    }

    fn bytes(&self) -> &'a [u8] {
        self.text.as_bytes()
    }

    fn skip_blanks(&mut self) {
        loop {
            match self.bytes()[self.at..] {
                [b' ' | b'\t' | b'\r', ..] => self.at += 1,
                [b'\\', b'\n', ..] => self.at += 2,
                [b'#', ..] => {
                    let rest = &self.bytes()[self.at..];
                    self.at += memchr::memchr(b'\n', rest).unwrap_or(rest.len());
                }
                _ => return,
            }
        }
    }

    fn peek(&mut self) -> Parsed<Token<'a>> {
        self.skip_blanks();
        let start = self.at;
        let (token, _) = self.token_at(start)?;
        Ok(token)
    }

    fn take(&mut self) -> Parsed<Token<'a>> {
        self.skip_blanks();
        let (token, end) = self.token_at(self.at)?;
        self.at = end;
        if token == Token::Newline {
            self.skip_documents()?;
        } else {
            self.end = end;
        }
        Ok(token)
    }

    fn token_at(&self, start: usize) -> Parsed<(Token<'a>, usize)> {
        let rest = &self.text[start..];
        if rest.is_empty() {
            return Ok((Token::End, start));
        }
        if rest.starts_with('\n') {
            return Ok((Token::Newline, start + 1));
        }
        for operator in ["&&", "||", ";;", "|&", ";", "&", "|", "(", ")"] {
            let redirection = operator == "&" && rest.starts_with("&>");
            if rest.starts_with(operator) && !redirection {
                return Ok((Token::Operator(&rest[..operator.len()]), start + operator.len()));
            }
        }
        let end = self.word_end(start)?;
        Ok((Token::Word(&self.text[start..end]), end))
    }

    /// The end of a word, through quotes and substitutions. A redirection operator is a word of its own.
    fn word_end(&self, start: usize) -> Parsed<usize> {
        let bytes = self.bytes();
        let mut at = start;
        if let Some(end) = redirection_end(bytes, at) {
            return Ok(end);
        }
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b' ' | b'\t' | b'\n' | b';' | b'&' | b'|' | b')' => break,
                b'<' | b'>' if bytes.get(at + 1) == Some(&b'(') => at = self.balanced(at + 1, b'(', b')')?,
                b'<' | b'>' => break,
                // An array, or a pattern that only extended globbing knows.
                b'(' if bytes.get(at.wrapping_sub(1)) == Some(&b'=') => return Err(Unparsable),
                b'(' => break,
                b'\\' => at = (at + 2).min(bytes.len()),
                b'\'' => at = self.quote_end(at, b'\'', false)?,
                b'"' => at = self.double_quote_end(at)?,
                b'`' => at = self.quote_end(at, b'`', true)?,
                b'$' => at = self.dollar_end(at)?,
                _ => at += 1,
            }
        }
        while !self.text.is_char_boundary(at.min(bytes.len())) {
            at += 1;
        }
        Ok(at)
    }

    fn quote_end(&self, start: usize, quote: u8, escapes: bool) -> Parsed<usize> {
        let bytes = self.bytes();
        let mut at = start + 1;
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b'\\' if escapes => at += 2,
                byte if byte == quote => return Ok(at + 1),
                _ => at += 1,
            }
        }
        Err(Unparsable)
    }

    fn double_quote_end(&self, start: usize) -> Parsed<usize> {
        let bytes = self.bytes();
        let mut at = start + 1;
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b'\\' => at += 2,
                b'"' => return Ok(at + 1),
                b'`' => at = self.quote_end(at, b'`', true)?,
                b'$' => at = self.dollar_end(at)?,
                _ => at += 1,
            }
        }
        Err(Unparsable)
    }

    fn dollar_end(&self, at: usize) -> Parsed<usize> {
        match self.bytes()[at + 1..] {
            [b'(', b'(', ..] => Err(Unparsable),
            [b'(', ..] => self.balanced(at + 1, b'(', b')'),
            [b'{', ..] => self.balanced(at + 1, b'{', b'}'),
            [b'\'', ..] => self.quote_end(at + 1, b'\'', true),
            _ => Ok(at + 1),
        }
    }

    /// The end of a bracketed part, through quotes.
    fn balanced(&self, start: usize, open: u8, close: u8) -> Parsed<usize> {
        let bytes = self.bytes();
        let mut depth = 0_usize;
        let mut at = start;
        while let Some(&byte) = bytes.get(at) {
            match byte {
                b'\\' => at += 2,
                b'\'' => at = self.quote_end(at, b'\'', false)?,
                b'"' => {
                    // Without descending again: the inside of quotes inside a substitution only has to end.
                    at = self.quote_end(at, b'"', true)?;
                }
                byte => {
                    at += 1;
                    if byte == open {
                        depth += 1;
                        if depth > DEEPEST {
                            return Err(Unparsable);
                        }
                    } else if byte == close {
                        depth -= 1;
                        if depth == 0 {
                            return Ok(at);
                        }
                    }
                }
            }
        }
        Err(Unparsable)
    }

    fn skip_newlines(&mut self) -> Parsed<()> {
        while self.peek()? == Token::Newline {
            self.take()?;
        }
        Ok(())
    }

    /// Passes over the here-documents that begin on the line that has just ended.
    fn skip_documents(&mut self) -> Parsed<()> {
        for (delimiter, tabs) in std::mem::take(&mut self.pending) {
            loop {
                let rest = &self.text[self.at..];
                let Some(line) = rest.split_inclusive('\n').next() else { return Ok(()) };
                self.at += line.len();
                let line = line.strip_suffix('\n').unwrap_or(line);
                let line = if tabs { line.trim_start_matches('\t') } else { line };
                if line == delimiter {
                    self.end = self.at;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Commands joined by `;`, `&`, `&&`, `||` up to a newline, an end, or one of `stops`.
    fn list(&mut self, stops: &[&str]) -> Parsed<()> {
        loop {
            self.pipeline()?;
            match self.peek()? {
                Token::Operator("&&" | "||") => {
                    self.take()?;
                    self.skip_newlines()?;
                }
                Token::Operator(";" | "&") => {
                    self.take()?;
                    match self.peek()? {
                        Token::Newline | Token::End | Token::Operator(")") => return Ok(()),
                        Token::Word(word) if stops.contains(&word) => return Ok(()),
                        Token::Word(_) | Token::Operator(_) => {}
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn pipeline(&mut self) -> Parsed<()> {
        while self.peek()? == Token::Word("!") {
            self.take()?;
        }
        loop {
            self.command()?;
            match self.peek()? {
                Token::Operator("|" | "|&") => {
                    self.take()?;
                    self.skip_newlines()?;
                }
                _ => return Ok(()),
            }
        }
    }

    fn command(&mut self) -> Parsed<()> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(Unparsable);
        }
        match self.peek()? {
            Token::Word("if") => {
                self.take()?;
                self.block(&["then"])?;
                while self.block(&["elif", "else", "fi"])? == "elif" {
                    self.block(&["then"])?;
                }
                // After `else` one more block is due.
                if self.text[..self.end].ends_with("else") {
                    self.block(&["fi"])?;
                }
            }
            Token::Word("while" | "until") => {
                self.take()?;
                self.block(&["do"])?;
                self.block(&["done"])?;
            }
            Token::Word("for") => self.for_loop()?,
            Token::Word("{") => {
                self.take()?;
                self.block(&["}"])?;
            }
            Token::Operator("(") => {
                self.take()?;
                self.subshell()?;
            }
            Token::Word("function") => {
                self.take()?;
                let Token::Word(_) = self.take()? else { return Err(Unparsable) };
                if self.peek()? == Token::Operator("(") {
                    self.take()?;
                    self.expect(Token::Operator(")"))?;
                }
                self.skip_newlines()?;
                return self.body();
            }
            Token::Word("case" | "select" | "coproc" | "time" | "[[") => return Err(Unparsable),
            Token::Word("then" | "do" | "done" | "fi" | "elif" | "else" | "esac" | "}" | "in") => {
                return Err(Unparsable);
            }
            Token::Word(_) => return self.simple(),
            Token::Operator(_) | Token::Newline | Token::End => return Err(Unparsable),
        }
        self.depth -= 1;
        self.redirections()
    }

    /// A function's body: one compound command.
    fn body(&mut self) -> Parsed<()> {
        match self.peek()? {
            Token::Word("{" | "if" | "while" | "until" | "for") | Token::Operator("(") => {
                self.depth -= 1;
                self.command()
            }
            Token::Word(_) | Token::Operator(_) | Token::Newline | Token::End => Err(Unparsable),
        }
    }

    fn for_loop(&mut self) -> Parsed<()> {
        self.take()?;
        let Token::Word(_) = self.take()? else { return Err(Unparsable) };
        self.skip_newlines()?;
        if self.peek()? == Token::Word("in") {
            self.take()?;
            while matches!(self.peek()?, Token::Word(_)) {
                self.take()?;
            }
        }
        if self.peek()? == Token::Operator(";") {
            self.take()?;
        }
        self.skip_newlines()?;
        match self.take()? {
            Token::Word("do") => self.block(&["done"]).map(drop),
            Token::Word("{") => self.block(&["}"]).map(drop),
            Token::Word(_) | Token::Operator(_) | Token::Newline | Token::End => Err(Unparsable),
        }
    }

    /// At least one command, up to and with one of the words that end the block; says which.
    fn block(&mut self, ends: &[&'static str]) -> Parsed<&'static str> {
        let mut any = false;
        loop {
            self.skip_newlines()?;
            if let Token::Word(word) = self.peek()?
                && let Some(end) = ends.iter().find(|end| **end == word)
            {
                self.take()?;
                return if any { Ok(end) } else { Err(Unparsable) };
            }
            self.list(ends)?;
            any = true;
        }
    }

    fn subshell(&mut self) -> Parsed<()> {
        loop {
            self.skip_newlines()?;
            if self.peek()? == Token::Operator(")") {
                self.take()?;
                return Ok(());
            }
            self.list(&[])?;
        }
    }

    fn simple(&mut self) -> Parsed<()> {
        let mut first = true;
        loop {
            match self.peek()? {
                Token::Word(word) if is_redirection(word) => self.redirection()?,
                Token::Word(_) => {
                    self.take()?;
                }
                Token::Operator("(") if first => return Err(Unparsable),
                Token::Operator("(") => {
                    // `name()` begins a function; anything else with a bracket is wrong.
                    self.take()?;
                    self.expect(Token::Operator(")"))?;
                    self.skip_newlines()?;
                    return self.body();
                }
                Token::Operator(_) | Token::Newline | Token::End => break,
            }
            first = false;
        }
        self.depth -= 1;
        Ok(())
    }

    fn redirections(&mut self) -> Parsed<()> {
        while let Token::Word(word) = self.peek()? {
            if !is_redirection(word) {
                return Err(Unparsable);
            }
            self.redirection()?;
        }
        Ok(())
    }

    fn redirection(&mut self) -> Parsed<()> {
        let Token::Word(operator) = self.take()? else { return Err(Unparsable) };
        let Token::Word(target) = self.take()? else { return Err(Unparsable) };
        let kind = operator.trim_start_matches(|character: char| character.is_ascii_digit());
        if kind == "<<" || kind == "<<-" {
            let delimiter = target.chars().filter(|character| !matches!(character, '\'' | '"' | '\\')).collect();
            self.pending.push((delimiter, kind == "<<-"));
        }
        Ok(())
    }

    fn expect(&mut self, wanted: Token<'_>) -> Parsed<()> {
        if self.take()? == wanted { Ok(()) } else { Err(Unparsable) }
    }
}

const REDIRECTIONS: [&str; 12] = ["<<<", "<<-", "&>>", "<<", ">>", "<&", ">&", ">|", "<>", "&>", "<", ">"];

/// The end of a redirection operator with its number, if one stands at `at`.
fn redirection_end(bytes: &[u8], at: usize) -> Option<usize> {
    let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = &bytes[at + digits..];
    let operator = REDIRECTIONS.iter().find(|operator| rest.starts_with(operator.as_bytes()))?;
    let substitution = matches!(*operator, "<" | ">") && rest.get(1) == Some(&b'(');
    (!substitution).then_some(at + digits + operator.len())
}

fn is_redirection(word: &str) -> bool {
    redirection_end(word.as_bytes(), 0) == Some(word.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        assert_eq!(split(text), expected, "{text:?}");
    }

    #[test]
    fn several_lines_are_several_commands() {
        check("echo a\necho b", &["echo a", "echo b"]);
        check("echo a\n\nls /tmp\npwd", &["echo a", "ls /tmp", "pwd"]);
        check("# a comment\necho after", &["# a comment", "echo after"]);
        check("f() {\n  echo in f\n}\nf", &["f() {\n  echo in f\n}", "f"]);
        check("if true; then\necho 1\nfi\necho 2", &["if true; then\necho 1\nfi", "echo 2"]);
        check("while read x; do echo $x; done < f\nls", &["while read x; do echo $x; done < f", "ls"]);
        check("for i in 1 2; do echo $i; done\nls", &["for i in 1 2; do echo $i; done", "ls"]);
        check("{ echo a; }\n(echo b)\n! true", &["{ echo a; }", "(echo b)", "! true"]);
        check("sleep 1 &\nls", &["sleep 1 &", "ls"]);
        check("cat <<EOF\na\nEOF\nls", &["cat <<EOF\na\nEOF", "ls"]);
    }

    #[test]
    fn one_command_may_have_several_lines() {
        for text in [
            "echo a; echo b && echo c || echo d | cat",
            "cat <<EOF\nline1\n  line2 $HOME\nEOF",
            "cat > /tmp/h.txt <<'EOF'\nx=$HOME \\; \\|\nEOF",
            "for i in 1 2 3; do\n  echo $i\ndone",
            "echo a \\\n  b \\\n  c",
            "echo \"a\nb\"",
            "echo a |\ncat",
            "echo a &&\necho b",
            "(\necho 1\necho 2\n)",
            "python3 - <<'E'\nprint('x')\nif 1:\n  pass\nE",
            "echo x # trailing",
            "echo $(date) `ls`",
            "if true; then echo a; elif false; then echo b; else echo c; fi",
        ] {
            check(text, &[text]);
        }
    }

    #[test]
    fn what_does_not_parse_is_one_command() {
        for text in [
            "case x in x) echo 1;; esac\necho b",
            "[[ -f x ]]\necho b",
            "echo $((1+2))\necho b",
            "x=(1 2)\necho b",
            "echo \"abc\necho b",
            "if true; then echo x\necho b",
            "for ((i=0;i<3;i++)); do echo $i; done\necho b",
            "time ls\necho b",
            "echo )\necho b",
            &format!("{}echo{}\nls", "(".repeat(5000), ")".repeat(5000)),
        ] {
            check(text, &[text]);
        }
    }

    /// The file holds what `split_bash_commands` of openhands-ai 0.62.0 with bashlex 0.18 gave.
    #[test]
    fn the_original_gives_the_same_commands() {
        #[derive(serde::Deserialize)]
        struct Case {
            text: String,
            commands: Vec<String>,
        }
        let cases: Vec<Case> = serde_json::from_str(include_str!("multi_command_cases.json")).unwrap();
        let wrong: Vec<String> = cases
            .iter()
            .filter(|case| split(&case.text) != case.commands)
            .map(|case| format!("{:?}: {:?}, not {:?}", case.text, split(&case.text), case.commands))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    proptest! {
        #[test]
        fn splitting_loses_nothing_but_white_space(text in "[a-z \\n;&|()<>'\"$`{}#\\\\=é]{0,60}") {
            let visible = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
            prop_assert_eq!(visible(&split(&text).concat()), visible(&text));
        }
    }
}
