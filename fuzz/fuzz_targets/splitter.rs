//! Any text is split into pieces of itself, in order.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wharf_sandboxd::dialect::openhands::multi_command;

fuzz_target!(|text: &str| {
    let mut rest = text;
    for piece in multi_command::split(text) {
        let at = rest.find(&piece).unwrap_or_else(|| panic!("{piece:?} is no piece of {text:?}"));
        rest = &rest[at + piece.len()..];
    }
});
