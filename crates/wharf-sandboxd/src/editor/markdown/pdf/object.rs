//! The objects of a PDF. They are found by scanning, so that a broken index does no harm.

use std::cell::Cell;
use std::collections::HashMap;
use std::io::Read as _;

const MAX_DEPTH: usize = 32;
const MAX_OBJECTS: usize = 200_000;
/// Of one object; each takes more memory than the few bytes it is made of.
const MAX_PARTS: usize = 500_000;
/// For all streams of a file together, each time that one is read.
const MAX_UNPACKED_BYTES: u64 = 64 * 1024 * 1024;
/// For all objects of a file together: against many that overlap.
const MAX_PARSED_BYTES: usize = 128 * 1024 * 1024;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Null,
    Number(f64),
    Name(String),
    String(Vec<u8>),
    Array(Vec<Object>),
    Dictionary(HashMap<String, Object>),
    Reference(u32),
    /// An operator of a content stream, or a word that means nothing here.
    Word(String),
}

impl Object {
    /// The entry of a dictionary.
    pub(super) fn get(&self, key: &str) -> Option<Self> {
        match self {
            Self::Dictionary(entries) => entries.get(key).cloned(),
            _ => None,
        }
    }

    pub(super) fn reference(&self) -> Option<u32> {
        match self {
            Self::Reference(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self, Self::Name(own) if own == name)
    }
}

/// Where an object stands: in the file, or in an unpacked object stream.
#[derive(Clone, Copy)]
enum Place {
    File(usize),
    Unpacked(usize, usize),
}

pub(super) struct File<'a> {
    bytes: &'a [u8],
    places: HashMap<u32, Place>,
    unpacked: Vec<Vec<u8>>,
    bytes_left: u64,
    parsed_left: Cell<usize>,
}

impl<'a> File<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Self {
        let mut file = Self {
            bytes,
            places: HashMap::new(),
            unpacked: Vec::new(),
            bytes_left: MAX_UNPACKED_BYTES,
            parsed_left: Cell::new(MAX_PARSED_BYTES),
        };
        let mut at = 0;
        while let Some(found) = find(&bytes[at..], b" obj").filter(|_| file.places.len() < MAX_OBJECTS) {
            let end = at + found;
            // The number and the generation stand before the word; a later object replaces an earlier one.
            let before = &bytes[end.saturating_sub(24)..end];
            let mut words = before.rsplit(|byte| !byte.is_ascii_digit()).filter(|word| !word.is_empty());
            if let (Some(_), Some(number)) = (words.next(), words.next())
                && let Some(number) = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok())
            {
                file.places.insert(number, Place::File(end + 4));
            }
            at = end + 4;
        }
        file.read_object_streams();
        file
    }

    fn read_object_streams(&mut self) {
        let mut numbers: Vec<u32> = self.places.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            let object = self.resolve(&Object::Reference(number));
            if !object.get("Type").is_some_and(|kind| kind.is_name("ObjStm")) {
                continue;
            }
            let Some(stream) = self.stream(&Object::Reference(number)) else { continue };
            let first = object.get("First").and_then(|first| first.number()).unwrap_or(0.0) as usize;
            let index = self.unpacked.len();
            let mut parser = Parser::new(&stream, 0);
            let mut numbers = std::iter::from_fn(|| parser.next()?.number());
            while let (Some(number), Some(offset)) = (numbers.next(), numbers.next()) {
                if self.places.len() >= MAX_OBJECTS {
                    break;
                }
                let place = Place::Unpacked(index, first.saturating_add(offset as usize));
                self.places.entry(number as u32).or_insert(place);
            }
            self.unpacked.push(stream);
        }
    }

    /// The object that a reference means; anything else is itself.
    pub(super) fn resolve(&self, object: &Object) -> Object {
        let mut object = object.clone();
        for _ in 0..MAX_DEPTH {
            let Object::Reference(number) = object else { return object };
            object = match self.places.get(&number) {
                Some(&Place::File(at)) => self.parse(self.bytes, at),
                Some(&Place::Unpacked(index, at)) => self.parse(&self.unpacked[index], at),
                None => Object::Null,
            };
        }
        Object::Null
    }

    fn parse(&self, bytes: &[u8], at: usize) -> Object {
        let left = self.parsed_left.get();
        if left == 0 {
            return Object::Null;
        }
        let mut parser = Parser::new(bytes, at);
        let object = parser.next();
        let taken = parser.at.saturating_sub(at) + 1;
        self.parsed_left.set(left.saturating_sub(taken));
        object.unwrap_or(Object::Null)
    }

    /// The unpacked content of a stream; `None` if it is none, or packed in a way that is not known here.
    pub(super) fn stream(&mut self, object: &Object) -> Option<Vec<u8>> {
        let Some(&Place::File(at)) = self.places.get(&object.reference()?) else { return None };
        if self.parsed_left.get() == 0 || self.bytes_left == 0 {
            return None;
        }
        let mut parser = Parser::new(self.bytes, at);
        let dictionary = parser.next()?;
        self.parsed_left.set(self.parsed_left.get().saturating_sub(parser.at - at));
        let body = &self.bytes[parser.at..];
        let start = find(body.get(..64.min(body.len()))?, b"stream")? + 6;
        let body = &body[start..];
        let body = body.strip_prefix(b"\r\n").or_else(|| body.strip_prefix(b"\n")).unwrap_or(body);
        let length = dictionary.get("Length").and_then(|length| self.resolve(&length).number());
        let length = length
            .map(|length| length as usize)
            .filter(|&length| body.get(length..).is_some_and(|rest| rest.trim_ascii_start().starts_with(b"endstream")));
        // Looking for the end is charged too, even where there is none.
        let length = length.or_else(|| find(body, b"endstream"));
        self.bytes_left = self.bytes_left.saturating_sub(length.unwrap_or(body.len()) as u64);
        let body = &body[..length?];
        let filters = match dictionary.get("Filter").map(|filter| self.resolve(&filter)) {
            None | Some(Object::Null) => Vec::new(),
            Some(Object::Array(filters)) => filters,
            Some(filter) => vec![filter],
        };
        filters.iter().try_fold(body.to_vec(), |body, filter| match filter {
            Object::Name(name) if matches!(name.as_str(), "FlateDecode" | "Fl") => self.inflate(&body),
            Object::Name(name) if matches!(name.as_str(), "ASCII85Decode" | "A85") => Some(ascii85(&body)),
            Object::Name(name) if matches!(name.as_str(), "ASCIIHexDecode" | "AHx") => Some(hex(&body)),
            _ => None,
        })
    }

    /// What there is of a damaged stream counts.
    fn inflate(&mut self, packed: &[u8]) -> Option<Vec<u8>> {
        let mut plain = Vec::new();
        let result = flate2::read::ZlibDecoder::new(packed).take(self.bytes_left).read_to_end(&mut plain);
        self.bytes_left -= plain.len() as u64;
        (result.is_ok() || !plain.is_empty()).then_some(plain)
    }

    pub(super) fn is_encrypted(&self) -> bool {
        let trailer = find(self.bytes, b"trailer").map(|at| Parser::new(self.bytes, at + 7).next());
        let streams = self.places.keys().map(|&number| Some(self.resolve(&Object::Reference(number))));
        let is_trailer = |object: &Object| object.get("Root").is_some() && object.get("Encrypt").is_some();
        [trailer.flatten()].into_iter().chain(streams).flatten().any(|object| is_trailer(&object))
    }

    pub(super) fn catalog(&self) -> Option<Object> {
        let mut numbers: Vec<u32> = self.places.keys().copied().collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        let objects = numbers.into_iter().map(|number| self.resolve(&Object::Reference(number)));
        objects.into_iter().find(|object| object.get("Type").is_some_and(|kind| kind.is_name("Catalog")))
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    let first = pattern[0];
    let mut at = 0;
    loop {
        at += bytes.get(at..)?.iter().position(|&byte| byte == first)?;
        if bytes[at..].starts_with(pattern) {
            return Some(at);
        }
        at += 1;
    }
}

/// Reads objects one after another; what is malformed ends it.
pub(super) struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
    parts_left: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()), parts_left: MAX_PARTS }
    }

    pub(super) fn next(&mut self) -> Option<Object> {
        self.parts_left = MAX_PARTS;
        self.object(0)
    }

    /// Skips the data of an inline image, which is not made of objects.
    pub(super) fn skip_image(&mut self) {
        let end = find(&self.bytes[self.at..], b"EI").map_or(self.bytes.len(), |end| self.at + end + 2);
        self.at = end;
    }

    fn object(&mut self, depth: usize) -> Option<Object> {
        self.skip_space();
        let byte = *self.bytes.get(self.at)?;
        let rest = &self.bytes[self.at..];
        self.parts_left = self.parts_left.checked_sub(1)?;
        if depth > MAX_DEPTH {
            return None;
        }
        match byte {
            b'/' => {
                self.at += 1;
                Some(Object::Name(self.name()))
            }
            b'(' => Some(Object::String(self.literal())),
            b'<' if rest.starts_with(b"<<") => {
                self.at += 2;
                let mut entries = HashMap::new();
                while !self.closes(b">>") {
                    let Object::Name(key) = self.object(depth + 1)? else { continue };
                    entries.insert(key, self.object(depth + 1)?);
                }
                Some(Object::Dictionary(entries))
            }
            b'<' => {
                let end = rest.iter().position(|&byte| byte == b'>').unwrap_or(rest.len() - 1);
                self.at += end + 1;
                Some(Object::String(hex(&rest[1..end.max(1)])))
            }
            b'[' => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.closes(b"]") {
                    items.push(self.object(depth + 1)?);
                }
                Some(Object::Array(items))
            }
            b')' | b'>' | b']' | b'{' | b'}' => {
                self.at += 1;
                Some(Object::Word(char::from(byte).to_string()))
            }
            _ => Some(self.word()),
        }
    }

    fn closes(&mut self, mark: &[u8]) -> bool {
        self.skip_space();
        let closes = self.bytes[self.at..].starts_with(mark);
        self.at += if closes { mark.len() } else { 0 };
        closes
    }

    fn skip_space(&mut self) {
        while let Some(&byte) = self.bytes.get(self.at) {
            match byte {
                0 | b'\t' | b'\n' | 0x0c | b'\r' | b' ' => self.at += 1,
                b'%' => {
                    let rest = &self.bytes[self.at..];
                    self.at += rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')).unwrap_or(rest.len());
                }
                _ => return,
            }
        }
    }

    fn regular(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| b"\0\t\n\x0c\r ()<>[]{}/%".contains(byte)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn name(&mut self) -> String {
        let raw = self.regular();
        let mut name = Vec::with_capacity(raw.len());
        let mut at = 0;
        while let Some(&byte) = raw.get(at) {
            let escaped =
                raw.get(at + 1..at + 3).filter(|digits| byte == b'#' && digits.iter().all(u8::is_ascii_hexdigit));
            match escaped {
                Some(digits) => name.extend(hex(digits)),
                None => name.push(byte),
            }
            at += if escaped.is_some() { 3 } else { 1 };
        }
        String::from_utf8_lossy(&name).into_owned()
    }

    /// A number, a reference like `7 0 R`, or a word.
    fn word(&mut self) -> Object {
        let word = String::from_utf8_lossy(self.regular()).into_owned();
        let Ok(number) = word.parse::<f64>() else {
            return if word == "null" { Object::Null } else { Object::Word(word) };
        };
        let after = self.at;
        if let Ok(number) = word.parse() {
            self.skip_space();
            let generation = self.regular();
            if !generation.is_empty() && generation.iter().all(u8::is_ascii_digit) {
                self.skip_space();
                if self.regular() == b"R" {
                    return Object::Reference(number);
                }
            }
        }
        self.at = after;
        Object::Number(number)
    }

    fn literal(&mut self) -> Vec<u8> {
        let mut text = Vec::new();
        let mut depth = 0;
        while let Some(&byte) = self.bytes.get(self.at) {
            self.at += 1;
            match byte {
                b'(' => {
                    depth += 1;
                    if depth == 1 {
                        continue;
                    }
                }
                b')' => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                b'\\' => {
                    text.extend(self.escaped());
                    continue;
                }
                _ => {}
            }
            text.push(byte);
        }
        text
    }

    fn escaped(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(match byte {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'b' => 8,
            b'f' => 12,
            b'0'..=b'7' => {
                let mut code = u32::from(byte - b'0');
                for _ in 0..2 {
                    let Some(&digit @ b'0'..=b'7') = self.bytes.get(self.at) else { break };
                    code = code * 8 + u32::from(digit - b'0');
                    self.at += 1;
                }
                code as u8
            }
            b'\r' if self.bytes.get(self.at) == Some(&b'\n') => {
                self.at += 1;
                return None;
            }
            b'\r' | b'\n' => return None,
            other => other,
        })
    }
}

/// An odd last digit is followed by a zero.
fn hex(text: &[u8]) -> Vec<u8> {
    let digits: Vec<u8> =
        text.iter().filter_map(|&byte| char::from(byte).to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0)).collect()
}

fn ascii85(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut group = Vec::with_capacity(5);
    for &byte in text {
        match byte {
            b'~' => break,
            b'z' if group.is_empty() => plain.extend([0; 4]),
            b'!'..=b'u' => group.push(u32::from(byte - b'!')),
            _ => continue,
        }
        if group.len() == 5 {
            plain.extend(decode_group(&group));
            group.clear();
        }
    }
    if group.len() > 1 {
        let length = group.len() - 1;
        group.resize(5, 84);
        plain.extend(&decode_group(&group)[..length]);
    }
    plain
}

fn decode_group(group: &[u32]) -> [u8; 4] {
    group.iter().fold(0_u32, |value, &digit| value.wrapping_mul(85).wrapping_add(digit)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_of_every_kind_are_read() {
        let mut parser = Parser::new(b"<</A [1 -2.5 7 0 R]/B#20C (a(b)\\)\\101\\n)>> <48 6> % c\n Tj", 0);
        let dictionary = parser.next().unwrap();
        let items = vec![Object::Number(1.0), Object::Number(-2.5), Object::Reference(7)];
        assert_eq!(dictionary.get("A"), Some(Object::Array(items)));
        assert_eq!(dictionary.get("B C"), Some(Object::String(b"a(b))A\n".to_vec())));
        assert_eq!(parser.next(), Some(Object::String(b"H`".to_vec())));
        assert_eq!(parser.next(), Some(Object::Word("Tj".to_owned())));
        assert_eq!(parser.next(), None);
    }

    #[test]
    fn malformed_objects_end() {
        for source in ["<<", "[", "(", "<", "<</A", "[[[[", "\\", "(\\", "/#", "<4", "1 0"] {
            let mut parser = Parser::new(source.as_bytes(), 0);
            while parser.next().is_some() {}
        }
        let deep = b"[".repeat(1_000_000);
        assert_eq!(Parser::new(&deep, 0).next(), None);
    }

    #[test]
    fn ascii85_is_decoded() {
        assert_eq!(ascii85(b"87cURD]i,\"Ebo80~>"), b"Hello World!");
    }
}
