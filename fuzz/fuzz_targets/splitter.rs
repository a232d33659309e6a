//! Splitting a text loses nothing but white space between and at the ends of lines.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wharf_sandboxd::dialect::openhands::multi_command;

fuzz_target!(|text: &str| {
    let visible = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
    assert_eq!(visible(&multi_command::split(text).concat()), visible(text));
});
