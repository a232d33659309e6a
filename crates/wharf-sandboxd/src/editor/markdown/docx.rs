//! Word documents: headings, lists, tables, links, bold and italic.

use std::collections::HashMap;

use super::package::Package;
use super::table;
use super::xml::Element;

const MAX_LIST_LEVELS: usize = 9;

pub(super) fn convert(bytes: &[u8]) -> Result<String, String> {
    let mut package = Package::open(bytes)?;
    let document = package.read("word/document.xml")?;
    let styles = package.read("word/styles.xml").unwrap_or_default();
    let numbering = package.read("word/numbering.xml").unwrap_or_default();
    let links = package.relationships("word/document.xml");
    let links = links.into_iter().map(|link| (link.id, link.target)).collect();
    let reader = Reader { styles: read_styles(&styles), ordered: read_numbering(&numbering), links };
    let document = Element::parse(&document);
    let body = document.find(&["document", "body"]).ok_or("word/document.xml has no body")?;
    Ok(reader.blocks(body).trim().to_owned())
}

struct Reader {
    styles: HashMap<String, Style>,
    /// By list and level: whether its items are counted.
    ordered: HashMap<(String, usize), bool>,
    links: HashMap<String, String>,
}

struct Style {
    name: String,
    list: Option<(String, usize)>,
}

fn read_styles(source: &str) -> HashMap<String, Style> {
    let root = Element::parse(source);
    let style = |style: &Element<'_>| {
        let name = value(style.find(&["name"])?)?.to_lowercase();
        let list = style.find(&["pPr", "numPr"]).and_then(list_and_level);
        Some((style.attribute("styleId")?.into_owned(), Style { name, list }))
    };
    root.all("style").into_iter().filter_map(style).collect()
}

fn read_numbering(source: &str) -> HashMap<(String, usize), bool> {
    let root = Element::parse(source);
    let mut ordered = HashMap::new();
    let formats: HashMap<_, _> = root
        .all("abstractNum")
        .into_iter()
        .filter_map(|list| Some((list.attribute("abstractNumId")?.into_owned(), list.all("lvl"))))
        .collect();
    for list in root.all("num") {
        let levels = list.find(&["abstractNumId"]).and_then(value).and_then(|id| formats.get(&id));
        let Some((id, levels)) = list.attribute("numId").zip(levels) else { continue };
        for level in levels.iter().take(MAX_LIST_LEVELS) {
            let number = level.attribute("ilvl").and_then(|level| level.parse().ok()).unwrap_or(0);
            let format = level.find(&["numFmt"]).and_then(value);
            ordered.insert((id.clone().into_owned(), number), format.is_some_and(|format| format != "bullet"));
        }
    }
    ordered
}

fn list_and_level(properties: &Element<'_>) -> Option<(String, usize)> {
    let level = properties.find(&["ilvl"]).and_then(value).and_then(|level| level.parse().ok()).unwrap_or(0);
    Some((value(properties.find(&["numId"])?)?, level))
}

fn value(element: &Element<'_>) -> Option<String> {
    element.attribute("val").map(|value| value.into_owned())
}

impl Reader {
    fn blocks(&self, parent: &Element<'_>) -> String {
        let mut markdown = String::new();
        let mut list_before: Option<String> = None;
        let mut numbers = [0; MAX_LIST_LEVELS];
        for block in parent.elements() {
            match block.name {
                "p" => {
                    let text = self.inline(block);
                    if text.trim().is_empty() {
                        continue;
                    }
                    let list = self.list(block);
                    let id = list.as_ref().map(|(id, _)| id.clone());
                    if id != list_before {
                        markdown += if list_before.is_some() { "\n" } else { "" };
                        numbers = [0; MAX_LIST_LEVELS];
                    }
                    list_before = id;
                    let mark = match (list, self.heading(block)) {
                        (Some((id, level)), _) => {
                            let level = level.min(MAX_LIST_LEVELS - 1);
                            numbers[level] += 1;
                            numbers[level + 1..].fill(0);
                            let ordered = self.ordered.get(&(id, level)).copied().unwrap_or(false);
                            let mark = if ordered { format!("{}.", numbers[level]) } else { "*".to_owned() };
                            format!("{}{mark} ", "   ".repeat(level))
                        }
                        (None, 0) => String::new(),
                        (None, level) => format!("{} ", "#".repeat(level)),
                    };
                    let end = if list_before.is_some() { "\n" } else { "\n\n" };
                    markdown += &format!("{mark}{}{end}", text.trim());
                }
                "tbl" => {
                    let cell = |cell: &Element<'_>| self.blocks(cell).split_whitespace().collect::<Vec<_>>().join(" ");
                    let row = |row: &Element<'_>| row.elements().filter(|c| c.name == "tc").map(cell).collect();
                    let rows = block.elements().filter(|row| row.name == "tr").map(row);
                    let rows: Vec<Vec<String>> = [Vec::new()].into_iter().chain(rows).collect();
                    markdown += &format!("\n{}\n", table::markdown(&rows));
                }
                "sdt" | "sdtContent" => markdown += &self.blocks(block),
                _ => {}
            }
        }
        markdown
    }

    fn style(&self, paragraph: &Element<'_>) -> Option<&Style> {
        self.styles.get(&paragraph.find(&["pPr", "pStyle"]).and_then(value)?)
    }

    /// 0 for a paragraph that is none.
    fn heading(&self, paragraph: &Element<'_>) -> usize {
        let level = self.style(paragraph).and_then(|style| style.name.strip_prefix("heading ")?.parse().ok());
        level.filter(|level| (1..=6).contains(level)).unwrap_or(0)
    }

    fn list(&self, paragraph: &Element<'_>) -> Option<(String, usize)> {
        let own = paragraph.find(&["pPr", "numPr"]).and_then(list_and_level);
        own.or_else(|| self.style(paragraph)?.list.clone()).filter(|(list, _)| list != "0")
    }

    fn inline(&self, parent: &Element<'_>) -> String {
        let mut text = String::new();
        for child in parent.elements() {
            match child.name {
                "r" => text += &run(child),
                "hyperlink" => {
                    let shown = self.inline(child);
                    text += &match child.attribute("id").and_then(|id| self.links.get(id.as_ref())) {
                        Some(target) => format!("[{shown}]({target})"),
                        None => shown,
                    };
                }
                "ins" | "smartTag" | "sdt" | "sdtContent" => text += &self.inline(child),
                _ => {}
            }
        }
        // What two runs share is marked once.
        text.replace("****", "")
    }
}

fn run(run: &Element<'_>) -> String {
    let mut text = String::new();
    for child in run.elements() {
        match child.name {
            "t" => text += &escape(&child.text()),
            "tab" => text.push('\t'),
            "br" | "cr" => text.push('\n'),
            "noBreakHyphen" => text.push('-'),
            _ => {}
        }
    }
    let is = |name| {
        let property = run.find(&["rPr", name]);
        property.is_some_and(|property| !matches!(value(property).as_deref(), Some("0" | "false" | "none")))
    };
    for (name, mark) in [("i", "*"), ("b", "**")] {
        let inner = text.trim();
        if is(name) && !inner.is_empty() {
            text = text.replacen(inner, &format!("{mark}{inner}{mark}"), 1);
        }
    }
    text
}

/// Stars and underscores would become emphasis.
pub(super) fn escape(text: &str) -> String {
    text.replace('*', "\\*").replace('_', "\\_")
}
