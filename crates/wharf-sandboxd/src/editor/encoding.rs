//! How a file's bytes become text and go back. Pure.
//!
//! What an edit does not touch keeps its bytes: an encoding is used only if it gives back exactly the bytes that it
//! read.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{EncoderResult, GB18030, GBK, UTF_8, UTF_16BE, UTF_16LE};

const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";
/// A guess that needs more than this much text does not get better with it.
const SAMPLE_BYTES: usize = 1024 * 1024;

/// The encoding of one file, with or without a byte order mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    codec: &'static encoding_rs::Encoding,
    bom: bool,
}

impl Encoding {
    /// What a new file gets.
    pub const UTF_8: Self = Self { codec: UTF_8, bom: false };

    /// The byte order mark decides, then UTF-8 if the bytes are valid, then a guess by letter frequency. Always answers.
    pub fn detect(bytes: &[u8]) -> Self {
        if let Some(marked) = Self::from_bom(bytes) {
            return marked;
        }
        if std::str::from_utf8(bytes).is_ok() {
            return Self::UTF_8;
        }
        let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
        let sample = &bytes[..bytes.len().min(SAMPLE_BYTES)];
        detector.feed(sample, sample.len() == bytes.len());
        let guess = detector.guess(None, Utf8Detection::Deny);
        // The superset can also write what GBK has no code for.
        Self { codec: if guess == GBK { GB18030 } else { guess }, bom: false }
    }

    /// UTF-32, whose little-endian mark begins like UTF-16's, is not supported and not mistaken for it.
    pub fn from_bom(bytes: &[u8]) -> Option<Self> {
        let codec = match bytes {
            [0xff, 0xfe, 0, 0, ..] => return None,
            [0xef, 0xbb, 0xbf, ..] => UTF_8,
            [0xff, 0xfe, ..] => UTF_16LE,
            [0xfe, 0xff, ..] => UTF_16BE,
            _ => return None,
        };
        Some(Self { codec, bom: true })
    }

    pub fn name(self) -> String {
        self.codec.name().to_ascii_lowercase()
    }

    /// The text without its byte order mark; `None` if the bytes would not survive the way back.
    pub fn decode(self, bytes: &[u8]) -> Option<String> {
        let body = match (self.bom, self.codec) {
            (false, _) => bytes,
            (true, codec) => bytes.get(if codec == UTF_8 { UTF8_BOM.len() } else { 2 }..)?,
        };
        let text = self.codec.decode_without_bom_handling_and_without_replacement(body)?.into_owned();
        let exact = self.codec == UTF_8 || self.encode(&text).is_ok_and(|again| again == bytes);
        exact.then_some(text)
    }

    /// # Errors
    ///
    /// The first character that the encoding has no code for.
    pub fn encode(self, text: &str) -> Result<Vec<u8>, char> {
        let marked = self.bom.then_some('\u{feff}').into_iter();
        if self.codec == UTF_16LE {
            return Ok(marked.chain(text.chars()).flat_map(|c| utf16(c, u16::to_le_bytes)).collect());
        }
        if self.codec == UTF_16BE {
            return Ok(marked.chain(text.chars()).flat_map(|c| utf16(c, u16::to_be_bytes)).collect());
        }
        if self.codec == UTF_8 {
            let bom = if self.bom { UTF8_BOM } else { &[] };
            return Ok([bom, text.as_bytes()].concat());
        }
        let mut encoder = self.codec.new_encoder();
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text;
        loop {
            let room = encoder.max_buffer_length_from_utf8_without_replacement(rest.len()).unwrap_or(rest.len()) + 16;
            bytes.reserve(room);
            let (result, read) = encoder.encode_from_utf8_to_vec_without_replacement(rest, &mut bytes, true);
            rest = &rest[read..];
            match result {
                EncoderResult::InputEmpty => return Ok(bytes),
                EncoderResult::OutputFull => {}
                EncoderResult::Unmappable(character) => return Err(character),
            }
        }
    }
}

fn utf16(character: char, to_bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    character.encode_utf16(&mut [0; 2]).iter().flat_map(|&unit| to_bytes(unit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], name: &str, text: &str) {
        let encoding = Encoding::detect(bytes);
        assert_eq!((encoding.name().as_str(), encoding.decode(bytes).as_deref()), (name, Some(text)));
        assert_eq!(encoding.encode(text).as_deref(), Ok(bytes));
    }

    #[test]
    fn a_byte_order_mark_decides_and_survives() {
        check(b"\xef\xbb\xbfhi\n", "utf-8", "hi\n");
        check(b"\xff\xfeh\0i\0\n\0", "utf-16le", "hi\n");
        check(b"\xfe\xff\0h\0i\xd8\x3d\xde\x00", "utf-16be", "hi\u{1f600}");
    }

    #[test]
    fn valid_utf8_is_utf8() {
        check(b"plain", "utf-8", "plain");
        check("żółć 世界".as_bytes(), "utf-8", "żółć 世界");
        check(b"", "utf-8", "");
    }

    #[test]
    fn other_bytes_are_guessed_by_their_letters() {
        check(&GBK.encode("你好，世界。这是一个测试文件。\n").0, "gb18030", "你好，世界。这是一个测试文件。\n");
        check(b"caf\xe9 d\xe9j\xe0 vu na\xefve\n", "windows-1252", "café déjà vu naïve\n");
        let russian = "Привет, мир. Это тестовый файл.\n";
        check(&encoding_rs::WINDOWS_1251.encode(russian).0, "windows-1251", russian);
        let japanese = "これはテストファイルです。日本語のテキスト。\n";
        check(&encoding_rs::SHIFT_JIS.encode(japanese).0, "shift_jis", japanese);
    }

    #[test]
    fn bytes_that_would_not_come_back_are_not_text() {
        for bytes in [&b"\xff\xfeh\0i"[..], b"\xff\xfe\x00\xd8", b"\xfe\xff\xdc\x00\0a"] {
            assert_eq!(Encoding::detect(bytes).decode(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn a_character_without_a_code_is_named() {
        let latin = Encoding::detect(b"caf\xe9 d\xe9j\xe0 vu na\xefve\n");
        assert_eq!(latin.encode("a\u{1f600}b"), Err('\u{1f600}'));
    }
}
