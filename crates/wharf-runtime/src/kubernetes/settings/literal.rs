//! Python literals, as OpenHands reads dicts and lists out of environment variables: `{'A': 'b', 'N': [1, None]}`.
//!
//! A strict part of what Python's `literal_eval` takes: dicts with text keys, lists, plain strings, whole numbers,
//! `True`, `False` and `None`. Nothing is evaluated. Deliberately absent: tuples, sets, floats, bytes, prefixed,
//! triple-quoted and joined strings, comments. No setting has a use for them.

use serde_json::{Map, Value};

/// Far beyond any environment that Linux passes to a program.
const LONGEST: usize = 256 * 1024;
const DEEPEST: usize = 32;

/// Why a text is no literal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LiteralError {
    /// In bytes from the start of the text.
    offset: usize,
    expected: &'static str,
}

impl std::fmt::Display for LiteralError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not a Python literal: {} at byte {}", self.expected, self.offset)
    }
}

/// Reads one literal; a key that a dict has twice keeps its first place and its last value, as in Python.
pub(super) fn parse(text: &str) -> Result<Value, LiteralError> {
    let mut parser = Parser { text, at: 0 };
    if text.len() > LONGEST {
        return Err(parser.error("at most 256 KiB are read"));
    }
    let value = parser.value(0)?;
    parser.skip_blanks();
    if parser.at == text.len() { Ok(value) } else { Err(parser.error("the end was expected")) }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn error(&self, expected: &'static str) -> LiteralError {
        LiteralError { offset: self.at, expected }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.at += character.len_utf8();
        Some(character)
    }

    fn take(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(' ' | '\t' | '\n' | '\r' | '\x0c')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, LiteralError> {
        if depth > DEEPEST {
            return Err(self.error("fewer levels were expected"));
        }
        self.skip_blanks();
        match self.peek() {
            Some('{') => self.dict(depth),
            Some('[') => self.list(depth),
            Some('\'' | '"') => Ok(Value::String(self.string()?)),
            Some('0'..='9' | '-' | '+') => self.integer(),
            _ => self.word(),
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Value, LiteralError> {
        self.at += 1;
        let mut entries = Map::new();
        loop {
            self.skip_blanks();
            if self.take('}') {
                return Ok(Value::Object(entries));
            }
            if !matches!(self.peek(), Some('\'' | '"')) {
                return Err(self.error("a quoted key or `}` was expected"));
            }
            let key = self.string()?;
            self.skip_blanks();
            if !self.take(':') {
                return Err(self.error("`:` was expected"));
            }
            let value = self.value(depth + 1)?;
            entries.insert(key, value);
            self.end_of_entry('}', "`,` or `}` was expected")?;
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, LiteralError> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.skip_blanks();
            if self.take(']') {
                return Ok(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.end_of_entry(']', "`,` or `]` was expected")?;
        }
    }

    /// Passes a comma; `close` stays for the caller's next round.
    fn end_of_entry(&mut self, close: char, expected: &'static str) -> Result<(), LiteralError> {
        self.skip_blanks();
        if self.take(',') || self.peek() == Some(close) { Ok(()) } else { Err(self.error(expected)) }
    }

    fn word(&mut self) -> Result<Value, LiteralError> {
        let rest = self.rest();
        let length = rest.find(|character: char| !character.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let value = match &rest[..length] {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            _ => return Err(self.error("a dict, list, string, number, `True`, `False` or `None` was expected")),
        };
        self.at += length;
        Ok(value)
    }

    fn integer(&mut self) -> Result<Value, LiteralError> {
        let rest = self.rest();
        let length = rest
            .find(|character: char| !(character.is_ascii_alphanumeric() || "+-_.".contains(character)))
            .unwrap_or(rest.len());
        let number = whole_number(&rest[..length]).ok_or_else(|| self.error("a whole number was expected"))?;
        self.at += length;
        Ok(number.into())
    }

    fn string(&mut self) -> Result<String, LiteralError> {
        let quote = self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some(character) if Some(character) == quote => return Ok(text),
                Some('\\') => self.escape(&mut text)?,
                None | Some('\n' | '\r') => return Err(self.error("the closing quote was expected")),
                Some(character) => text.push(character),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Result<(), LiteralError> {
        let character = match self.next() {
            Some('\n') => return Ok(()),
            Some(same @ ('\\' | '\'' | '"')) => same,
            Some('a') => '\x07',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\x0b',
            Some('x') => self.coded(16, 2, 2)?,
            Some('u') => self.coded(16, 4, 4)?,
            Some('U') => self.coded(16, 8, 8)?,
            Some('0'..='7') => {
                self.at -= 1;
                self.coded(8, 1, 3)?
            }
            None | Some('N') => return Err(self.error("another escape was expected")),
            // Python leaves what it does not know as it is.
            Some(other) => {
                text.push('\\');
                other
            }
        };
        text.push(character);
        Ok(())
    }

    /// A character by its number, of `least` to `most` digits.
    fn coded(&mut self, radix: u32, least: usize, most: usize) -> Result<char, LiteralError> {
        let length = self.rest().chars().take(most).take_while(|digit| digit.is_digit(radix)).count();
        let code = u32::from_str_radix(&self.rest()[..length], radix).ok();
        match code.and_then(char::from_u32).filter(|_| length >= least) {
            Some(character) => {
                self.at += length;
                Ok(character)
            }
            None => Err(self.error("the number of a character was expected")),
        }
    }
}

/// A whole number as Python writes it: signs, and `_` between digits.
pub(super) fn whole_number(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let grouped = digits.split('_').all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()));
    if !grouped {
        return None;
    }
    text.replace('_', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Expect) {
        expected.assert_eq(&match parse(text) {
            Ok(value) => value.to_string(),
            Err(error) => format!("error: {error}"),
        });
    }

    #[test]
    fn a_dict_keeps_the_order_in_which_it_was_written() {
        check("{'Z': 'last', \"A\": 'it\\'s', }", expect![[r#"{"Z":"last","A":"it's"}"#]]);
        check(" { 'a' : [ 1 , -2 , True , None ] } ", expect![[r#"{"a":[1,-2,true,null]}"#]]);
    }

    #[test]
    fn a_key_given_twice_has_its_last_value() {
        check("{'a': '1', 'b': '2', 'a': '3'}", expect![[r#"{"a":"3","b":"2"}"#]]);
    }

    #[test]
    fn escapes_mean_what_they_mean_to_python() {
        check(r"'\x41\101\u00e9\U0001F600\n\q\0'", expect![[r#""AAé😀\n\\q\u0000""#]]);
    }

    #[test]
    fn numbers_are_whole_and_fit() {
        check("[1_000, +3]", expect!["[1000,3]"]);
        check("1.5", expect!["error: not a Python literal: a whole number was expected at byte 0"]);
        check("99999999999999999999", expect!["error: not a Python literal: a whole number was expected at byte 0"]);
    }

    #[test]
    fn nothing_is_evaluated_and_no_rest_is_passed_over() {
        let expected = "error: not a Python literal: a dict, list, string, number, `True`, `False` or `None` was expected at byte 0";
        for text in ["", "__import__('os')", "dict(a=1)", "(1,)", "b'x'", "true", "null"] {
            assert_eq!(parse(text).map_err(|error| format!("error: {error}")), Err(expected.to_owned()), "{text}");
        }
        check("{'a': 'b'} + {}", expect!["error: not a Python literal: the end was expected at byte 11"]);
        check("{'a': 'b' 'c'}", expect!["error: not a Python literal: `,` or `}` was expected at byte 10"]);
        check("{1: 'b'}", expect!["error: not a Python literal: a quoted key or `}` was expected at byte 1"]);
        check("'a", expect!["error: not a Python literal: the closing quote was expected at byte 2"]);
        check(r"'\ud800'", expect!["error: not a Python literal: the number of a character was expected at byte 3"]);
    }

    #[test]
    fn depth_is_bounded() {
        check(&"[".repeat(100_000), expect!["error: not a Python literal: fewer levels were expected at byte 33"]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[\\[\\]{}:,'\"\\\\ a-zA-Z0-9_+\\-é\n]{0,60}") {
            let _ = parse(&text);
        }

        #[test]
        fn text_in_single_quotes_is_read_back(text in "[^'\\\\\n\r]{0,40}") {
            prop_assert_eq!(parse(&format!("'{text}'")), Ok(Value::String(text)));
        }
    }
}
