//! What a page's operators show, and where: chunks of text put into reading order.

use std::collections::HashMap;
use std::rc::Rc;

use super::object::{File, Object, Parser};

const MAX_OPERATORS: usize = 1_000_000;
const MAX_MAP_ENTRIES: usize = 70_000;

/// How the codes of a font become text.
#[derive(Debug, Default)]
struct Font {
    two_bytes: bool,
    map: HashMap<u32, String>,
    /// In thousandths of the font size, by code.
    widths: HashMap<u32, f64>,
}

#[derive(Debug)]
struct Chunk {
    x: f64,
    end: f64,
    y: f64,
    size: f64,
    text: String,
}

#[derive(Debug, Default)]
pub(super) struct Page {
    chunks: Vec<Chunk>,
}

/// Offset and scale are enough of a matrix: turned text is read as if it were not.
#[derive(Clone, Copy)]
struct Frame {
    x: f64,
    y: f64,
    scale: f64,
}

impl Page {
    pub(super) fn read(file: &mut File<'_>, page: &Object, resources: Option<&Object>) -> Self {
        let resources = resources.map(|resources| file.resolve(resources)).unwrap_or(Object::Null);
        let fonts = read_fonts(file, &resources);
        let contents = match page.get("Contents") {
            Some(reference) => match file.resolve(&reference) {
                Object::Array(parts) => parts,
                _ => vec![reference],
            },
            None => Vec::new(),
        };
        let streams: Vec<_> = contents.iter().filter_map(|part| file.stream(part)).collect();
        let mut page = Self::default();
        page.run(&streams.join(&b'\n'), &fonts);
        page
    }

    fn run(&mut self, content: &[u8], fonts: &HashMap<String, Rc<Font>>) {
        let mut parser = Parser::new(content, 0);
        let mut operands: Vec<Object> = Vec::new();
        let mut font: Option<Rc<Font>> = None;
        let (mut size, mut leading) = (12.0, 0.0);
        let origin = Frame { x: 0.0, y: 0.0, scale: 1.0 };
        let (mut page, mut saved, mut line) = (origin, Vec::new(), origin);
        let mut advance = 0.0;
        for _ in 0..MAX_OPERATORS {
            let Some(object) = parser.next() else { break };
            let Object::Word(operator) = object else {
                if operands.len() < 4096 {
                    operands.push(object);
                }
                continue;
            };
            let number = |index: usize| operands.get(index).and_then(Object::number).unwrap_or(0.0);
            let mut next_line = |line: &mut Frame, x: f64, y: f64| {
                *line = Frame { x: line.x + x * line.scale, y: line.y + y * line.scale, ..*line };
                advance = 0.0;
            };
            match operator.as_str() {
                "q" if saved.len() < 1000 => saved.push(page),
                "Q" => page = saved.pop().unwrap_or(page),
                "cm" => {
                    page.x += number(4) * page.scale;
                    page.y += number(5) * page.scale;
                    page.scale *= scale(number(0), number(1));
                }
                "BT" => {
                    line = origin;
                    advance = 0.0;
                }
                "Tf" => {
                    font = match operands.first() {
                        Some(Object::Name(name)) => fonts.get(name).cloned(),
                        _ => None,
                    };
                    size = number(1);
                }
                "TL" => leading = number(0),
                "Td" => next_line(&mut line, number(0), number(1)),
                "TD" => {
                    leading = -number(1);
                    next_line(&mut line, number(0), number(1));
                }
                "T*" => next_line(&mut line, 0.0, -leading),
                "Tm" => {
                    line = Frame { x: number(4), y: number(5), scale: scale(number(0), number(1)) };
                    advance = 0.0;
                }
                "BI" => parser.skip_image(),
                "Tj" | "TJ" | "'" | "\"" => {
                    if matches!(operator.as_str(), "'" | "\"") {
                        next_line(&mut line, 0.0, -leading);
                    }
                    let parts = match operands.pop() {
                        Some(Object::Array(parts)) => parts,
                        Some(part) => vec![part],
                        None => Vec::new(),
                    };
                    for part in parts {
                        match part {
                            Object::Number(shift) => advance -= shift / 1000.0 * size,
                            Object::String(codes) => {
                                let (text, width) = show(font.as_deref(), &codes);
                                let width = width / 1000.0 * size;
                                let at = |advance: f64| page.x + (line.x + advance * line.scale) * page.scale;
                                self.chunks.push(Chunk {
                                    x: at(advance),
                                    end: at(advance + width),
                                    y: page.y + line.y * page.scale,
                                    size: (size * line.scale * page.scale).abs().max(0.1),
                                    text,
                                });
                                advance += width;
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
            operands.clear();
        }
    }

    /// Words that are apart get a space, lines a newline, paragraphs and columns an empty line.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for (index, chunk) in self.chunks.iter().enumerate() {
            if let Some(before) = index.checked_sub(1).map(|before| &self.chunks[before]) {
                let size = chunk.size.max(before.size);
                let (gap, drop) = (chunk.x - before.end, (before.y - chunk.y).abs());
                text += if drop < size / 2.0 && gap.abs() < 2.0 * size {
                    if gap > size / 6.0 && !before.text.ends_with(' ') { " " } else { "" }
                } else if drop > 0.0 && drop < 1.5 * size {
                    "\n"
                } else {
                    "\n\n"
                };
            }
            text += &chunk.text;
        }
        if !text.is_empty() {
            text += "\n\n";
        }
        text
    }
}

fn scale(a: f64, b: f64) -> f64 {
    a.hypot(b)
}

/// The text of a string and its width. A font that is not known is taken for a Western one.
fn show(font: Option<&Font>, codes: &[u8]) -> (String, f64) {
    let mut text = String::new();
    let mut width = 0.0;
    let code_length = if font.is_some_and(|font| font.two_bytes) { 2 } else { 1 };
    for code in codes.chunks(code_length) {
        let number = code.iter().fold(0, |number, &byte| number << 8 | u32::from(byte));
        width += font.and_then(|font| font.widths.get(&number)).copied().unwrap_or(500.0);
        match font.and_then(|font| font.map.get(&number)) {
            Some(mapped) => text += mapped,
            None if code_length == 1 => text += &encoding_rs::WINDOWS_1252.decode_without_bom_handling(code).0,
            None => {}
        }
    }
    text.retain(|character| !character.is_control() || character == '\t');
    (text, width)
}

fn read_fonts(file: &mut File<'_>, resources: &Object) -> HashMap<String, Rc<Font>> {
    let fonts = resources.get("Font").map(|fonts| file.resolve(&fonts));
    let Some(Object::Dictionary(fonts)) = fonts else { return HashMap::new() };
    let mut read = HashMap::new();
    for (name, font) in fonts.into_iter().take(1000) {
        let font = file.resolve(&font);
        let map = font.get("ToUnicode").and_then(|map| file.stream(&map)).map(|map| read_map(&map));
        let two_bytes = font.get("Subtype").is_some_and(|kind| kind.is_name("Type0"));
        let first = font.get("FirstChar").and_then(|first| first.number()).unwrap_or(0.0) as u32;
        let widths = match font.get("Widths").map(|widths| file.resolve(&widths)) {
            Some(Object::Array(widths)) => widths,
            _ => Vec::new(),
        };
        let widths = (first..).zip(&widths).filter_map(|(code, width)| Some((code, width.number()?))).collect();
        read.insert(name, Rc::new(Font { two_bytes, map: map.unwrap_or_default(), widths }));
    }
    read
}

/// The `bfchar` and `bfrange` entries of a map from codes to Unicode.
fn read_map(source: &[u8]) -> HashMap<u32, String> {
    let mut map = HashMap::new();
    let mut parser = Parser::new(source, 0);
    let mut operands = Vec::new();
    while let Some(object) = parser.next() {
        match object {
            Object::Word(word) if word == "endbfchar" => {
                for pair in operands.chunks(2) {
                    if let [Object::String(code), Object::String(text)] = pair {
                        map.insert(number(code), utf16(text));
                    }
                }
            }
            Object::Word(word) if word == "endbfrange" => {
                for range in operands.chunks(3) {
                    let [Object::String(first), Object::String(last), target] = range else { continue };
                    let codes = (number(first)..=number(last)).take(MAX_MAP_ENTRIES.saturating_sub(map.len()));
                    match target {
                        Object::String(text) => {
                            map.extend(codes.zip(0..).map(|(code, step)| (code, stepped(text, step))))
                        }
                        Object::Array(texts) => {
                            map.extend(codes.zip(texts).filter_map(|(code, text)| match text {
                                Object::String(text) => Some((code, utf16(text))),
                                _ => None,
                            }));
                        }
                        _ => {}
                    }
                }
            }
            Object::Word(_) => {}
            operand => {
                operands.push(operand);
                continue;
            }
        }
        operands.clear();
        if map.len() >= MAX_MAP_ENTRIES {
            break;
        }
    }
    map
}

fn number(code: &[u8]) -> u32 {
    code.iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

fn utf16(text: &[u8]) -> String {
    encoding_rs::UTF_16BE.decode_without_bom_handling(text).0.into_owned()
}

/// The text whose last unit is `step` higher.
fn stepped(text: &[u8], step: u16) -> String {
    let mut text = text.to_vec();
    if let [.., high, low] = text.as_mut_slice() {
        [*high, *low] = u16::from_be_bytes([*high, *low]).wrapping_add(step).to_be_bytes();
    }
    utf16(&text)
}
