//! Text of PDFs: plain and compressed streams, object streams, simple and two-byte fonts with a Unicode map.
//!
//! Encrypted files, other compressions than Flate and fonts without any map to Unicode are beyond it. Work is bounded by
//! the number of objects, pages and operators and by what is unpacked.

mod content;
mod object;

use std::collections::HashSet;
use std::rc::Rc;

use content::Page;
use object::{File, Object};

const MAX_PAGES: usize = 500;
const MAX_DEPTH: usize = 32;
/// More text than this is clipped anyway.
const ENOUGH_BYTES: usize = 100_000;

pub(super) fn convert(bytes: &[u8]) -> Result<String, String> {
    let start = bytes.windows(5).take(1024).position(|window| window == b"%PDF-");
    start.ok_or("this is not a PDF")?;
    let mut file = File::read(bytes);
    if file.is_encrypted() {
        return Err("the PDF is encrypted".to_owned());
    }
    let root =
        file.catalog().and_then(|catalog| catalog.get("Pages")).ok_or("the PDF has no pages that can be found")?;
    let mut pages = Vec::new();
    collect_pages(&mut file, &root, None, &mut HashSet::new(), 0, &mut pages);
    if pages.is_empty() {
        return Err("the PDF has no pages that can be found".to_owned());
    }
    let mut text = String::new();
    for (page, resources) in pages {
        text += &Page::read(&mut file, &page, resources.as_deref()).text();
        text.push('\u{c}');
        if text.len() > ENOUGH_BYTES {
            break;
        }
    }
    if text.chars().all(|character| character.is_whitespace()) {
        return Err("the PDF holds no text that can be extracted (a scan, or fonts without a Unicode map)".to_owned());
    }
    Ok(text)
}

/// Every page with the resources that it has or inherits.
fn collect_pages(
    file: &mut File<'_>,
    node: &Object,
    inherited: Option<&Rc<Object>>,
    seen: &mut HashSet<u32>,
    depth: usize,
    pages: &mut Vec<(Object, Option<Rc<Object>>)>,
) {
    let fresh = node.reference().is_none_or(|number| seen.insert(number));
    if !fresh || depth > MAX_DEPTH || pages.len() >= MAX_PAGES {
        return;
    }
    let node = file.resolve(node);
    let resources = node.get("Resources").map(Rc::new).or_else(|| inherited.cloned());
    match node.get("Kids").map(|kids| file.resolve(&kids)) {
        Some(Object::Array(kids)) => {
            for kid in &kids {
                collect_pages(file, kid, resources.as_ref(), seen, depth + 1, pages);
            }
        }
        _ => pages.push((node, resources)),
    }
}
