//! Presentations: titles, texts, tables, pictures by name, notes.

use super::docx::escape;
use super::package::Package;
use super::table;
use super::xml::Element;

/// More than this is clipped anyway.
const MAX_SLIDES: usize = 1_000;

pub(super) fn convert(bytes: &[u8]) -> Result<String, String> {
    const PRESENTATION: &str = "ppt/presentation.xml";
    let mut package = Package::open(bytes)?;
    let source = package.read(PRESENTATION)?;
    let parts = package.relationships(PRESENTATION);
    let presentation = Element::parse(&source);
    let mut markdown = String::new();
    for (index, slide) in presentation.all("sldId").into_iter().take(MAX_SLIDES).enumerate() {
        // A slide has two ids; its relationship is named like `rId2`.
        let Some(part) = parts.iter().find(|part| slide.has_attribute_value(&part.id)) else { continue };
        markdown += &format!("\n\n<!-- Slide number: {} -->\n", index + 1);
        let source = package.read(&part.target)?;
        let slide = Element::parse(&source);
        if let Some(shapes) = slide.find(&["sld", "cSld", "spTree"]) {
            add_shapes(shapes, &mut markdown);
        }
        markdown.truncate(markdown.trim_end().len());
        let notes = package.relationships(&part.target).into_iter().find(|link| link.kind == "notesSlide");
        if let Some(notes) = notes {
            let source = package.read(&notes.target)?;
            let notes = Element::parse(&source);
            let body = notes.all("sp").into_iter().find(|shape| placeholder(shape).as_deref() == Some("body"));
            markdown += &format!("\n\n### Notes:\n{}", body.map(frame_text).unwrap_or_default());
            markdown.truncate(markdown.trim_end().len());
        }
    }
    Ok(markdown.trim().to_owned())
}

fn add_shapes(shapes: &Element<'_>, markdown: &mut String) {
    for shape in shapes.elements() {
        match shape.name {
            "sp" if shape.find(&["txBody"]).is_some() => {
                let text = frame_text(shape);
                match placeholder(shape).as_deref() {
                    Some("title" | "ctrTitle") => *markdown += &format!("# {}\n", text.trim_start()),
                    _ => *markdown += &format!("{text}\n"),
                }
            }
            "pic" => {
                let properties = shape.find(&["nvPicPr", "cNvPr"]);
                let attribute = |name| properties.and_then(|properties| properties.attribute(name)).unwrap_or_default();
                let (name, description) = (attribute("name"), attribute("descr"));
                let file: String = name.chars().filter(|c| c.is_alphanumeric() || *c == '_').collect();
                let shown = if description.is_empty() { name } else { description };
                *markdown += &format!("\n![{shown}]({file}.jpg)\n");
            }
            "graphicFrame" => {
                for found in shape.all("tbl") {
                    let row =
                        |row: &Element<'_>| row.all("tc").into_iter().map(|cell| escape(&frame_text(cell))).collect();
                    let rows: Vec<Vec<String>> = found.all("tr").into_iter().map(row).collect();
                    *markdown += &format!("\n{}", table::markdown(&rows));
                }
            }
            _ => {}
        }
    }
}

/// Without a type a placeholder is a body.
fn placeholder(shape: &Element<'_>) -> Option<String> {
    let placeholder = shape.find(&["nvSpPr", "nvPr", "ph"])?;
    Some(placeholder.attribute("type").map_or_else(|| "body".to_owned(), |kind| kind.into_owned()))
}

fn frame_text(frame: &Element<'_>) -> String {
    let Some(body) = frame.find(&["txBody"]) else { return String::new() };
    let paragraph = |paragraph: &Element<'_>| {
        let part = |part: &Element<'_>| {
            if part.name == "br" { "\n".to_owned() } else { part.find(&["t"]).map(Element::text).unwrap_or_default() }
        };
        paragraph.elements().map(part).collect::<String>()
    };
    body.elements().filter(|child| child.name == "p").map(paragraph).collect::<Vec<_>>().join("\n")
}
