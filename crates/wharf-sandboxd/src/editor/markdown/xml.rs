//! A reader for the XML inside office documents: a tree of borrowed elements. Names lose their prefix.

use std::borrow::Cow;

/// Deeper elements are skipped; office documents nest about twenty deep.
const MAX_DEPTH: usize = 100;
/// What comes after so many elements and texts is not read: a node takes more memory than the few bytes it is made of.
const MAX_NODES: usize = 1_000_000;

#[derive(Debug, Default)]
pub(super) struct Element<'a> {
    pub(super) name: &'a str,
    attributes: &'a str,
    pub(super) children: Vec<Node<'a>>,
}

#[derive(Debug)]
pub(super) enum Node<'a> {
    Element(Element<'a>),
    Text(Cow<'a, str>),
}

impl<'a> Element<'a> {
    /// Reads a whole document, and of a malformed one as much as there is. The root holds the document element.
    pub(super) fn parse(source: &'a str) -> Self {
        let mut open = vec![Self::default()];
        let mut skipped = 0;
        let mut nodes = 0;
        let mut rest = source;
        while let Some((text, after)) = rest.split_once('<') {
            nodes += 2;
            if nodes > MAX_NODES {
                break;
            }
            push_text(&mut open, unescape(text));
            rest = if let Some(after) = after.strip_prefix("!--") {
                after.split_once("-->").map_or("", |(_, rest)| rest)
            } else if let Some(after) = after.strip_prefix("![CDATA[") {
                let (text, rest) = after.split_once("]]>").unwrap_or((after, ""));
                push_text(&mut open, Cow::Borrowed(text));
                rest
            } else {
                let (tag, rest) = after.split_at(tag_end(after));
                if tag.starts_with('/') {
                    if skipped > 0 {
                        skipped -= 1;
                    } else {
                        close(&mut open);
                    }
                } else if !tag.starts_with(['?', '!']) {
                    let (tag, empty) = tag.strip_suffix('/').map_or((tag, false), |tag| (tag, true));
                    let (name, attributes) = tag.split_once(|c: char| c.is_ascii_whitespace()).unwrap_or((tag, ""));
                    if open.len() <= MAX_DEPTH {
                        open.push(Self { name: local(name), attributes, children: Vec::new() });
                        if empty {
                            close(&mut open);
                        }
                    } else if !empty {
                        skipped += 1;
                    }
                }
                rest.get(1..).unwrap_or_default()
            };
        }
        while open.len() > 1 {
            close(&mut open);
        }
        open.pop().unwrap_or_default()
    }

    pub(super) fn attribute(&self, name: &str) -> Option<Cow<'a, str>> {
        self.attributes().find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// For attributes whose names differ only in their prefix.
    pub(super) fn has_attribute_value(&self, value: &str) -> bool {
        self.attributes().any(|(_, found)| found == value)
    }

    fn attributes(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        let mut rest = self.attributes;
        std::iter::from_fn(move || {
            let (key, after) = rest.split_once('=')?;
            let after = after.trim_start();
            let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''))?;
            let (value, after) = after[1..].split_once(quote)?;
            rest = after;
            Some((local(key.trim()), unescape(value)))
        })
    }

    pub(super) fn elements(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    /// The element itself at the end of a path of first children.
    pub(super) fn find(&self, path: &[&str]) -> Option<&Self> {
        path.iter().try_fold(self, |element, name| element.elements().find(|child| child.name == *name))
    }

    /// All elements of that name at any depth, in document order.
    pub(super) fn all<'b>(&'b self, name: &'b str) -> Vec<&'b Self> {
        let mut found = Vec::new();
        self.collect(name, &mut found);
        found
    }

    fn collect<'b>(&'b self, name: &str, found: &mut Vec<&'b Self>) {
        for child in self.elements() {
            if child.name == name {
                found.push(child);
            }
            child.collect(name, found);
        }
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        self.push_text_to(&mut text);
        text
    }

    fn push_text_to(&self, text: &mut String) {
        for child in &self.children {
            match child {
                Node::Text(part) => text.push_str(part),
                Node::Element(element) => element.push_text_to(text),
            }
        }
    }
}

fn push_text<'a>(open: &mut [Element<'a>], text: Cow<'a, str>) {
    if let Some(parent) = open.last_mut().filter(|_| !text.is_empty()) {
        parent.children.push(Node::Text(text));
    }
}

fn close(open: &mut Vec<Element<'_>>) {
    if open.len() > 1
        && let Some(element) = open.pop()
        && let Some(parent) = open.last_mut()
    {
        parent.children.push(Node::Element(element));
    }
}

/// Where the tag's `>` is: outside of quotes.
fn tag_end(tag: &str) -> usize {
    let mut quote = None;
    for (position, byte) in tag.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => return position,
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    tag.len()
}

fn local(name: &str) -> &str {
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        plain.push_str(before);
        let entity = after.split_once(';').and_then(|(name, rest)| Some((entity(name)?, rest)));
        rest = match entity {
            Some((character, rest)) => {
                plain.push(character);
                rest
            }
            None => {
                plain.push('&');
                after
            }
        };
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

fn entity(name: &str) -> Option<char> {
    Some(match name {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_attributes_and_text_are_read() {
        let root = Element::parse(
            r#"<?xml version="1.0"?><!-- c --><w:a x:id='1 > "0"' b="&lt;&#x41;"><w:b/>t&amp;<![CDATA[<x>]]><c>u</c></w:a>"#,
        );
        let a = root.find(&["a"]).unwrap();
        assert_eq!(a.attribute("id").as_deref(), Some("1 > \"0\""));
        assert_eq!(a.attribute("b").as_deref(), Some("<A"));
        assert_eq!(a.attribute("missing"), None);
        assert_eq!((a.text().as_str(), root.all("c").len()), ("t&<x>u", 1));
    }

    #[test]
    fn malformed_and_deep_documents_end() {
        for source in ["<a><b", "</a></b>", "<a b=", "<a b='", "a & b &#xffffffff;", "<![CDATA[", "<!--", "<", "<é/>"]
        {
            Element::parse(source);
        }
        let deep = "<a>".repeat(100_000) + "x" + &"</a>".repeat(100_000) + "<b/>";
        assert!(Element::parse(&deep).find(&["b"]).is_some());
    }
}
