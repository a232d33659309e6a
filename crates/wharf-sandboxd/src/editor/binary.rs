//! Whether the beginning of a file looks binary: the decision of the Python package `binaryornot` 0.4.4. Pure.

use chardetng::{EncodingDetector, Iso2022JpDetection, Utf8Detection};
use encoding_rs::{BIG5, EUC_JP, EUC_KR, Encoding, GBK, IBM866, ISO_8859_5, KOI8_R, KOI8_U, SHIFT_JIS};
use encoding_rs::{WINDOWS_1251, WINDOWS_1253, WINDOWS_1255};

/// How much of a file is looked at.
pub const SAMPLE_BYTES: usize = 1024;

/// With fewer characters beyond ASCII UTF-8 is not certain enough to excuse a NUL.
const CERTAIN_UTF8_CHARS: usize = 4;

/// Encodings that the original's detector (`chardet`) reports with a confidence above 0.9 for an ordinary text; for
/// Western Latin ones it never does.
const DISTINCT: [&Encoding; 13] = [
    BIG5,
    EUC_JP,
    EUC_KR,
    GBK,
    SHIFT_JIS,
    IBM866,
    ISO_8859_5,
    KOI8_R,
    KOI8_U,
    WINDOWS_1251,
    WINDOWS_1253,
    WINDOWS_1255,
    encoding_rs::ISO_8859_7,
];

/// Decides by the first [`SAMPLE_BYTES`] bytes: a text in a certainly known encoding is not binary; else NUL, 0xFF or
/// mostly unprintable bytes are.
///
/// Two things are forgiven that the original takes for binary: a character that the end of the sample cuts in two, and
/// few characters of UTF-8 that are nearly the whole text.
pub fn is_binary(sample: &[u8]) -> bool {
    let sample = &sample[..sample.len().min(SAMPLE_BYTES)];
    if sample.is_empty() {
        return false;
    }
    let share = |count: usize| count as f64 / sample.len() as f64;
    let unprintable = share(sample.iter().filter(|&&byte| !is_printable_ascii(byte)).count());
    let ascii = share(sample.iter().filter(|&&byte| byte < 127).count());
    let mostly_unprintable = (unprintable > 0.3 && ascii < 0.05) || (unprintable > 0.8 && ascii > 0.8);
    let suspect = mostly_unprintable || sample.contains(&0) || sample.contains(&0xff);
    suspect && !is_certain_text(sample)
}

fn is_printable_ascii(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | b'\t' | 0x0c | 0x08 | 32..=126)
}

fn is_certain_text(sample: &[u8]) -> bool {
    if let Some(marked) = super::encoding::Encoding::from_bom(sample) {
        return (0..4)
            .any(|cut| sample.len().checked_sub(cut).is_some_and(|end| marked.decode(&sample[..end]).is_some()));
    }
    let valid_utf8 = match std::str::from_utf8(sample) {
        Ok(text) => Some(text),
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&sample[..error.valid_up_to()]).ok(),
        Err(_) => None,
    };
    if let Some(text) = valid_utf8 {
        let enough = if sample.contains(&0) { CERTAIN_UTF8_CHARS } else { 1 };
        return text.chars().filter(|character| !character.is_ascii()).nth(enough - 1).is_some();
    }
    if sample.contains(&0) {
        return false;
    }
    let mut detector = EncodingDetector::new(Iso2022JpDetection::Deny);
    detector.feed(sample, false);
    let guess = detector.guess(None, Utf8Detection::Deny);
    let decodes = |bytes| guess.decode_without_bom_handling_and_without_replacement(bytes).is_some();
    DISTINCT.contains(&guess) && (decodes(sample) || decodes(&sample[..sample.len() - 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(sample: &[u8], binary: bool) {
        assert_eq!(is_binary(sample), binary, "{}", sample.escape_ascii());
    }

    #[test]
    fn texts_are_not_binary() {
        check(b"", false);
        check("世界".as_bytes(), false);
        check(b"plain\ttext\r\n", false);
        check("世界".repeat(400).as_bytes(), false);
        check(&GBK.encode(&"你好，世界。这是一个测试文件。".repeat(40)).0, false);
        check(&WINDOWS_1251.encode(&"Моя дорогая семья, я пишу вам письмо. ".repeat(9)).0, false);
        check(b"caf\xe9 na\xefve\n", false);
        check(b"\xff\xfeh\0e\0l\0l\0o\0", false);
    }

    #[test]
    fn other_bytes_are() {
        check(b"a\0b", true);
        check(b"caf\xe9 \xff", true);
        check(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", true);
        check(&(0..=255).collect::<Vec<u8>>(), true);
        check(b"\x01\x02\x03\x04\x05\x06\x0e\x0f\x10", true);
        check(b"h\0e\0l\0l\0o\0", true);
    }

    #[test]
    fn only_the_beginning_counts() {
        let mut late = vec![b'a'; SAMPLE_BYTES];
        late.push(0);
        check(&late, false);
    }
}
