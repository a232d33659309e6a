//! Spreadsheets: one table for each sheet, its first row as header, numbers and empty cells as pandas shows them.

use std::collections::HashSet;

use super::docx::escape;
use super::package::Package;
use super::table;
use super::xml::Element;

/// More than this is clipped anyway.
const MAX_SHEETS: usize = 1_000;
const MAX_ROWS: usize = 4_000;
const MAX_CELLS: usize = 200_000;
const ENOUGH_CHARS: usize = 16_000;

#[derive(Clone, Debug, Default, PartialEq)]
enum Cell {
    #[default]
    Empty,
    Number(f64),
    /// Seconds since the day 0 of spreadsheets.
    Date(i64),
    Text(String),
}

pub(super) fn convert(bytes: &[u8]) -> Result<String, String> {
    const WORKBOOK: &str = "xl/workbook.xml";
    let mut package = Package::open(bytes)?;
    let source = package.read(WORKBOOK)?;
    let parts = package.relationships(WORKBOOK);
    let strings = package.read("xl/sharedStrings.xml").unwrap_or_default();
    let strings = Element::parse(&strings);
    let strings: Vec<String> = strings.all("si").into_iter().map(rich_text).collect();
    let styles = package.read("xl/styles.xml").unwrap_or_default();
    let dates = date_styles(&styles);
    let workbook = Element::parse(&source);
    let mut markdown = String::new();
    for sheet in workbook.all("sheet").into_iter().take(MAX_SHEETS) {
        let Some(part) = parts.iter().find(|part| sheet.has_attribute_value(&part.id)) else { continue };
        let source = package.read(&part.target)?;
        let rows = read_rows(&Element::parse(&source), &strings, &dates);
        let name = sheet.attribute("name").unwrap_or_default();
        markdown += &format!("## {name}\n{}\n\n", table::markdown(&shown(&rows)).trim());
        if markdown.len() > 4 * ENOUGH_CHARS {
            break;
        }
    }
    Ok(markdown.trim().to_owned())
}

fn rich_text(item: &Element<'_>) -> String {
    // Phonetic hints are not part of the text.
    let runs = item.elements().filter(|child| child.name == "r").filter_map(|run| run.find(&["t"]));
    item.elements().filter(|child| child.name == "t").chain(runs).map(Element::text).collect()
}

/// For each cell style whether it shows a date or a time.
fn date_styles(source: &str) -> Vec<bool> {
    let root = Element::parse(source);
    let custom: HashSet<String> = root
        .all("numFmt")
        .into_iter()
        .filter_map(|format| {
            let code = format.attribute("formatCode")?.to_lowercase();
            let code: String = code.split('"').step_by(2).collect();
            let is_date = !code.contains("general") && code.contains(['y', 'd', 'h', 's']);
            format.attribute("numFmtId").filter(|_| is_date).map(|id| id.into_owned())
        })
        .collect();
    let is_date = |style: &Element<'_>| {
        let id = style.attribute("numFmtId").unwrap_or_default();
        let built_in = id.parse().is_ok_and(|id: u32| matches!(id, 14..=22 | 45..=47));
        built_in || custom.contains(id.as_ref())
    };
    let styles = root.find(&["styleSheet", "cellXfs"]);
    styles.map(|styles| styles.elements().map(is_date).collect()).unwrap_or_default()
}

fn read_rows(sheet: &Element<'_>, strings: &[String], dates: &[bool]) -> Vec<Vec<Cell>> {
    let mut rows: Vec<Vec<Cell>> = Vec::new();
    let mut cells = 0;
    for row in sheet.all("row") {
        let number = row.attribute("r").and_then(|number| number.parse::<usize>().ok()).unwrap_or(rows.len() + 1);
        if number > MAX_ROWS || number <= rows.len() {
            continue;
        }
        rows.resize(number - 1, Vec::new());
        let mut values = Vec::new();
        for cell in row.elements().filter(|cell| cell.name == "c") {
            let column = cell.attribute("r").and_then(|reference| column(&reference)).unwrap_or(values.len());
            if column < values.len() || cells + column > MAX_CELLS {
                continue;
            }
            values.resize(column, Cell::Empty);
            values.push(read_cell(cell, strings, dates));
        }
        cells += values.len();
        rows.push(values);
    }
    rows
}

/// `B7` is column 1.
fn column(reference: &str) -> Option<usize> {
    let letters = reference.bytes().take_while(u8::is_ascii_alphabetic);
    let number =
        letters.take(4).fold(0, |number, letter| number * 26 + usize::from(letter.to_ascii_uppercase() - b'A') + 1);
    number.checked_sub(1)
}

fn read_cell(cell: &Element<'_>, strings: &[String], dates: &[bool]) -> Cell {
    let value = cell.find(&["v"]).map(Element::text).unwrap_or_default();
    let text = match cell.attribute("t").as_deref() {
        Some("s") => value.parse().ok().and_then(|index: usize| strings.get(index)).cloned().unwrap_or_default(),
        Some("inlineStr") => cell.find(&["is"]).map(rich_text).unwrap_or_default(),
        Some("b") => (if value == "1" { "True" } else { "False" }).to_owned(),
        Some("e") => String::new(),
        Some("n") | None => match value.parse::<f64>() {
            Ok(number) => {
                let style = cell.attribute("s").and_then(|style| style.parse::<usize>().ok()).unwrap_or(0);
                let is_date = dates.get(style).copied().unwrap_or(false) && (0.0..3_000_000.0).contains(&number);
                return if is_date { Cell::Date((number * 86_400.0).round() as i64) } else { Cell::Number(number) };
            }
            Err(_) => value,
        },
        Some(_) => value,
    };
    if text.is_empty() { Cell::Empty } else { Cell::Text(escape(&text)) }
}

/// The first row is the header; how a number looks depends on its whole column.
fn shown(rows: &[Vec<Cell>]) -> Vec<Vec<String>> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let columns = columns.min(MAX_CELLS / rows.len().max(1));
    let mut shown = vec![Vec::with_capacity(columns); rows.len()];
    for column in 0..columns {
        let cells: Vec<&Cell> = rows.iter().map(|row| row.get(column).unwrap_or(&Cell::Empty)).collect();
        let show = formatter(cells.get(1..).unwrap_or_default());
        for (row, cell) in cells.into_iter().enumerate() {
            shown[row].push(match cell {
                Cell::Empty if row == 0 => format!("Unnamed: {column}"),
                cell => show(cell),
            });
        }
    }
    shown
}

fn formatter(cells: &[&Cell]) -> impl Fn(&Cell) -> String + use<> {
    let mixed = cells.iter().any(|cell| matches!(cell, Cell::Text(_)));
    let whole = cells.iter().all(|cell| matches!(cell, Cell::Number(number) if number.fract() == 0.0));
    let days_only = cells.iter().all(|cell| !matches!(cell, Cell::Date(seconds) if seconds % 86_400 != 0));
    let decimals = cells.iter().map(|cell| match cell {
        Cell::Number(number) => format!("{number:.6}").trim_end_matches('0').rsplit('.').next().map_or(0, str::len),
        _ => 0,
    });
    let decimals = decimals.max().unwrap_or(0).max(1);
    move |cell| match cell {
        Cell::Empty => "NaN".to_owned(),
        Cell::Text(text) => text.clone(),
        Cell::Number(number) if mixed || whole => number.to_string(),
        Cell::Number(number) => format!("{number:.decimals$}"),
        Cell::Date(seconds) => date(*seconds, days_only),
    }
}

fn date(seconds: i64, day_only: bool) -> String {
    let (days, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Day 1 is 1900-01-01, and day 60 is a 29 February that 1900 did not have.
    let start = jiff::civil::date(1899, 12, if days < 60 { 31 } else { 30 });
    let Ok(day) = start.checked_add(jiff::Span::new().days(days)) else { return String::new() };
    if day_only {
        return day.to_string();
    }
    format!("{day} {:02}:{:02}:{:02}", time / 3600, time / 60 % 60, time % 60)
}
