//! Bytes of a program as UTF-8, whatever they are and wherever a read has cut them, by tmux's rules. Pure.
//!
//! `input.c` of tmux: a byte that starts no character is dropped; one that starts a character of n bytes takes the next
//! n - 1 with the top bit set; what they make is that character, or U+FFFD if it is none; so is a character that ends early.

const LONGEST: usize = 4;

/// What has been read of a character that is not whole yet.
#[derive(Debug, Default)]
pub(super) struct Utf8 {
    held: [u8; LONGEST],
    have: usize,
    want: usize,
}

impl Utf8 {
    /// Gives what can be shown now to `show`, as valid UTF-8.
    pub(super) fn feed(&mut self, bytes: &[u8], mut show: impl FnMut(&[u8])) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.want == 0 {
                let valid = match std::str::from_utf8(rest) {
                    Ok(_) => rest.len(),
                    Err(error) => error.valid_up_to(),
                };
                let (good, odd) = rest.split_at(valid);
                if !good.is_empty() {
                    show(good);
                }
                let Some((first, tail)) = odd.split_first() else { return };
                self.want = match first {
                    0xc2..=0xdf => 2,
                    0xe0..=0xef => 3,
                    0xf0..=0xf4 => 4,
                    _ => 0,
                };
                self.held[0] = *first;
                self.have = 1;
                rest = tail;
                continue;
            }
            let byte = rest[0];
            if byte < 0x80 {
                self.want = 0;
                show("\u{fffd}".as_bytes());
                continue;
            }
            self.held[self.have] = byte;
            self.have += 1;
            rest = &rest[1..];
            if self.have == self.want {
                self.want = 0;
                let held = &self.held[..self.have];
                show(if std::str::from_utf8(held).is_ok() { held } else { "\u{fffd}".as_bytes() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shown(parts: &[&[u8]]) -> String {
        let (mut utf8, mut out) = (Utf8::default(), Vec::new());
        for part in parts {
            utf8.feed(part, |bytes| out.extend_from_slice(bytes));
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_no_utf8_is_dropped_or_replaced_as_by_tmux() {
        for (bytes, expected) in [
            (&b"a\xffb\x80c\xc0"[..], "abc"),
            (b"\xc3\xa9\xc3x", "é\u{fffd}x"),
            (b"\xd8\xd8\xd8\x98\r", "\u{fffd}\u{618}\r"),
            (b"\xed\xa0\x80!", "\u{fffd}!"),
            (b"\xf0\x9f\x98\x80\xe2\x82", "😀"),
        ] {
            assert_eq!(shown(&[bytes]), expected, "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn any_split_shows_the_same(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 0_usize..40) {
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            prop_assert_eq!(shown(&[first, second]), shown(&[&bytes]));
        }
    }
}
