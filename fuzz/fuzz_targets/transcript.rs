//! Any split of what a terminal says gives the same events, and what is no mark comes through whole.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wharf_sandboxd::transcript::{Event, Transcript};

fuzz_target!(|input: (Vec<u8>, Vec<u8>)| {
    let (bytes, cuts) = input;
    // The fuzzer need not guess the nonce: 0xff stands for the start of a mark.
    let mut said = Vec::new();
    for byte in &bytes {
        match byte {
            0xff => said.extend_from_slice(b"\x1b]7777;0123456789abcdef0123456789abcdef;"),
            other => said.push(*other),
        }
    }
    let whole = joined(transcript().feed(&said));
    let mut transcript = transcript();
    let mut parts = Vec::new();
    let mut rest = said.as_slice();
    for cut in cuts {
        let (part, tail) = rest.split_at(usize::from(cut).min(rest.len()));
        parts.extend(transcript.feed(part));
        rest = tail;
    }
    parts.extend(transcript.feed(rest));
    assert_eq!(whole, joined(parts));
});

fn transcript() -> Transcript {
    let mut transcript = Transcript::default();
    transcript.add("0123456789abcdef0123456789abcdef".to_owned());
    transcript
}

/// Output that follows output is one.
fn joined(events: Vec<Event>) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    for event in events {
        match (all.last_mut(), event) {
            (Some(Event::Output(before)), Event::Output(more)) => before.extend(more),
            (_, event) => all.push(event),
        }
    }
    all
}
