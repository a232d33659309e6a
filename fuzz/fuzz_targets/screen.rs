//! A screen takes any bytes and sizes, shows the same for any split, and can be drawn again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wharf_sandboxd::screen::{Screen, ScreenSize};

fuzz_target!(|input: (u8, u8, usize, u8, u8, &[u8])| {
    let (rows, columns, cut, new_rows, new_columns, bytes) = input;
    let size = ScreenSize { rows: u16::from(rows % 64), columns: u16::from(columns % 128) };
    let (mut whole, mut parts) = (Screen::new(size, 100), Screen::new(size, 100));
    whole.feed(bytes);
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    parts.feed(first);
    parts.feed(second);
    assert_eq!(whole.text(), parts.text());
    assert_eq!(whole.cursor(), parts.cursor());
    assert_eq!(whole.take_replies(), parts.take_replies());
    let _ = whole.redraw();
    whole.resize(u16::from(new_rows % 64), u16::from(new_columns % 128));
    whole.feed(second);
    let (row, column) = whole.cursor();
    assert!(row < whole.size().rows && column <= whole.size().columns, "{row} {column} {:?}", whole.size());
    let _ = (whole.text(), whole.visible_text(), whole.redraw());
});
