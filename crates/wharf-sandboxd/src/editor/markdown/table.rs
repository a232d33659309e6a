//! A Markdown table.

/// The first row is the header; shorter rows are filled up.
pub(super) fn markdown(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut table = String::new();
    for (index, row) in rows.iter().enumerate() {
        table += &line((0..columns).map(|column| row.get(column).map_or("", String::as_str)).collect());
        if index == 0 {
            table += &line(vec!["---"; columns]);
        }
    }
    table
}
