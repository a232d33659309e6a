//! Any JSON as an action is read or refused in words.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wharf_sandboxd::dialect::openhands::action;

fuzz_target!(|bytes: &[u8]| {
    let Ok(serde_json::Value::Object(event)) = serde_json::from_slice(bytes) else { return };
    if let Err(text) = action::parse(&event) {
        assert!(!text.is_empty());
    }
});
