//! Office documents, PDFs and sound files as Markdown. Pure, and made for hostile files: depth, sizes and work are
//! bounded, and what cannot be read is an error, never a panic.

mod docx;
mod package;
mod pdf;
mod pptx;
mod table;
mod xlsx;
mod xml;

use super::python::is_space;

/// The content of a file whose lower-case suffix is `suffix`, as Markdown.
///
/// # Errors
///
/// A sentence that says what could not be read.
pub fn convert(suffix: &str, bytes: &[u8]) -> Result<String, String> {
    if bytes.is_empty() {
        // The original's words, of every suffix: it guesses the kind from the content first.
        return Err("Input was empty".to_owned());
    }
    let converted = match suffix {
        "docx" => docx::convert(bytes),
        "xlsx" => xlsx::convert(bytes),
        "pptx" => pptx::convert(bytes),
        "pdf" => pdf::convert(bytes),
        "wav" => Ok("### Audio Transcript:\nError. Could not transcribe this audio.".to_owned()),
        _ => Ok("\n\n### Audio Transcript:\nTranscription unavailable - ffmpeg/avconv not installed.".to_owned()),
    };
    match converted {
        Ok(markdown) => Ok(tidy(&markdown)),
        // A text that only has the suffix is shown as it is.
        Err(error) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Ok(tidy(text)),
            _ => Err(error),
        },
    }
}

/// No white space at line ends and at most one empty line in a row.
fn tidy(markdown: &str) -> String {
    let mut tidy = String::with_capacity(markdown.len());
    let mut newlines = 0;
    for (index, line) in markdown.split('\n').enumerate() {
        if index > 0 {
            newlines += 1;
        }
        let line = line.trim_end_matches(is_space);
        if !line.is_empty() {
            tidy.push_str(&"\n\n"[..newlines.min(2)]);
            tidy.push_str(line);
            newlines = 0;
        }
    }
    tidy.push_str(&"\n\n"[..newlines.min(2)]);
    tidy
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write as _};

    use expect_test::{Expect, expect};
    use zip::ZipWriter;
    use zip::write::SimpleFileOptions;

    use super::*;

    fn package(parts: &[(&str, &str)]) -> Vec<u8> {
        let mut package = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, content) in parts {
            package.start_file(*name, SimpleFileOptions::default()).unwrap();
            package.write_all(content.as_bytes()).unwrap();
        }
        package.finish().unwrap().into_inner()
    }

    #[track_caller]
    fn check(suffix: &str, parts: &[(&str, &str)], expected: &Expect) {
        expected.assert_eq(&convert(suffix, &package(parts)).unwrap());
    }

    #[test]
    fn an_empty_file_is_refused_in_the_words_of_the_original() {
        for suffix in ["docx", "xlsx", "pptx", "pdf", "mp3", "wav", "m4a", "flac"] {
            assert_eq!(convert(suffix, b""), Err("Input was empty".to_owned()), "{suffix}");
        }
    }

    #[test]
    fn a_word_document_keeps_headings_lists_tables_links_and_emphasis() {
        check(
            "docx",
            &[
                (
                    "word/document.xml",
                    r#"<w:document><w:body>
                    <w:p><w:pPr><w:pStyle w:val="H2"/></w:pPr><w:r><w:t>Head</w:t></w:r></w:p>
                    <w:p><w:r><w:t xml:space="preserve">a_b </w:t></w:r><w:r><w:rPr><w:b/></w:rPr><w:t>bold</w:t></w:r>
                    <w:r><w:rPr><w:b w:val="0"/><w:i/></w:rPr><w:t>it</w:t></w:r>
                    <w:hyperlink r:id="l1"><w:r><w:t>link</w:t></w:r></w:hyperlink></w:p>
                    <w:p><w:pPr><w:numPr><w:ilvl w:val="0"/><w:numId w:val="1"/></w:numPr></w:pPr><w:r><w:t>x</w:t></w:r></w:p>
                    <w:p><w:pPr><w:numPr><w:ilvl w:val="0"/><w:numId w:val="2"/></w:numPr></w:pPr><w:r><w:t>y</w:t></w:r></w:p>
                    <w:tbl><w:tr><w:tc><w:p><w:r><w:t>1</w:t></w:r></w:p></w:tc><w:tc/></w:tr></w:tbl>
                    </w:body></w:document>"#,
                ),
                ("word/styles.xml", r#"<s><w:style w:styleId="H2"><w:name w:val="heading 2"/></w:style></s>"#),
                (
                    "word/numbering.xml",
                    r#"<n><abstractNum abstractNumId="0"><lvl ilvl="0"><numFmt val="decimal"/></lvl></abstractNum>
                    <num numId="1"><abstractNumId val="0"/></num></n>"#,
                ),
                (
                    "word/_rels/document.xml.rels",
                    r#"<r><Relationship Id="l1" Type="t" Target="http://x/" TargetMode="External"/></r>"#,
                ),
            ],
            &expect![[r#"
                ## Head

                a\_b **bold***it*[link](http://x/)

                1. x

                * y

                |  |  |
                | --- | --- |
                | 1 |  |"#]],
        );
    }

    #[test]
    fn a_spreadsheet_shows_each_sheet_as_pandas_would() {
        check(
            "xlsx",
            &[
                ("xl/workbook.xml", r#"<w><sheets><sheet name="A &amp; B" sheetId="1" r:id="r1"/></sheets></w>"#),
                ("xl/_rels/workbook.xml.rels", r#"<r><Relationship Id="r1" Type="t" Target="worksheets/s.xml"/></r>"#),
                ("xl/sharedStrings.xml", "<sst><si><t>n</t></si><si><r><t>ric</t></r><r><t>h</t></r></si></sst>"),
                (
                    "xl/styles.xml",
                    r#"<styleSheet><cellXfs><xf numFmtId="0"/><xf numFmtId="14"/></cellXfs></styleSheet>"#,
                ),
                (
                    "xl/worksheets/s.xml",
                    r#"<worksheet><sheetData>
                    <row r="1"><c r="A1" t="s"><v>0</v></c><c r="C1" t="s"><v>1</v></c><c r="D1" t="inlineStr"><is><t>d</t></is></c></row>
                    <row r="2"><c r="A2"><v>3</v></c><c r="C2"><v>1.25</v></c><c r="D2" s="1"><v>45418</v></c></row>
                    <row r="3"><c r="A3"><v>4</v></c><c r="B3" t="b"><v>1</v></c></row>
                    </sheetData></worksheet>"#,
                ),
            ],
            &expect![[r#"
                ## A & B
                | n | Unnamed: 1 | rich | d |
                | --- | --- | --- | --- |
                | 3 | NaN | 1.25 | 2024-05-06 |
                | 4 | True | NaN | NaN |"#]],
        );
    }

    #[test]
    fn a_presentation_shows_its_slides_in_order_with_tables_pictures_and_notes() {
        check(
            "pptx",
            &[
                ("ppt/presentation.xml", r#"<p><sldIdLst><sldId id="256" r:id="r7"/></sldIdLst></p>"#),
                ("ppt/_rels/presentation.xml.rels", r#"<r><Relationship Id="r7" Type="t" Target="slides/s.xml"/></r>"#),
                (
                    "ppt/slides/s.xml",
                    r#"<sld><cSld><spTree>
                    <sp><nvSpPr><nvPr><ph type="title"/></nvPr></nvSpPr><txBody><p><r><t>Title</t></r></p></txBody></sp>
                    <sp><txBody><p><r><t>one</t></r><br/><r><t>two</t></r></p><p/></txBody></sp>
                    <pic><nvPicPr><cNvPr name="Pic 1" descr="a cat"/></nvPicPr></pic>
                    <graphicFrame><tbl><tr><tc><txBody><p><r><t>c</t></r></p></txBody></tc></tr></tbl></graphicFrame>
                    </spTree></cSld></sld>"#,
                ),
                (
                    "ppt/slides/_rels/s.xml.rels",
                    r#"<r><Relationship Id="n" Type="x/notesSlide" Target="../n.xml"/></r>"#,
                ),
                (
                    "ppt/n.xml",
                    "<notes><sp><nvSpPr><nvPr><ph/></nvPr></nvSpPr><txBody><p><r><t>note</t></r></p></txBody></sp></notes>",
                ),
            ],
            &expect![[r#"
                <!-- Slide number: 1 -->
                # Title
                one
                two

                ![a cat](Pic1.jpg)

                | c |
                | --- |

                ### Notes:
                note"#]],
        );
    }

    #[test]
    fn a_part_that_unpacks_to_more_than_memory_should_hold_is_refused() {
        let bomb = package(&[("word/document.xml", &" ".repeat(65 << 20))]);
        assert!(bomb.len() < 1 << 20);
        assert_eq!(convert("docx", &bomb).unwrap_err(), "The document unpacks to more than 64MB");
    }

    #[test]
    fn a_spreadsheet_that_claims_to_be_huge_stays_small() {
        let cells: String =
            (1..4000).map(|row| format!(r#"<row r="{row}"><c r="ZZZ{row}"><v>1</v></c></row>"#)).collect();
        let sheet = format!("<worksheet><sheetData>{cells}</sheetData></worksheet>");
        let bytes = package(&[
            ("xl/workbook.xml", r#"<w><sheet name="S" r:id="r1"/></w>"#),
            ("xl/_rels/workbook.xml.rels", r#"<r><Relationship Id="r1" Type="t" Target="s.xml"/></r>"#),
            ("xl/s.xml", &sheet),
        ]);
        assert!(convert("xlsx", &bytes).unwrap().len() < 10_000_000);
    }

    #[test]
    fn a_pdf_shows_its_lines() {
        let pdf = b"%PDF-1.4\n1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj\n2 0 obj <</Kids[3 0 R 3 0 R]>> endobj\n\
            3 0 obj <</Contents 4 0 R/Resources<</Font<</F 5 0 R>>>>>> endobj\n4 0 obj <</Length 99999>> stream\n\
            BT /F 10 Tf 12 TL 0 500 Td [(Hel) -20 (lo) -900 (you)] TJ (\x01) ' 0 -50 Td <80> Tj ET\nendstream endobj\n\
            5 0 obj <</ToUnicode 6 0 R>> endobj\n6 0 obj <<>> stream\n1 beginbfchar <01> <4e16> endbfchar\nendstream endobj";
        assert_eq!(convert("pdf", pdf).as_deref(), Ok("Hello you\n\u{4e16}\n\n\u{20ac}\n\n"));
    }

    #[test]
    fn a_pdf_whose_objects_overlap_without_end_is_given_up() {
        let objects: String = (1..200_000).map(|number| format!("{number} 0 obj [(\n")).collect();
        assert!(convert("pdf", &[b"%PDF-1.4\xff", objects.as_bytes()].concat()).is_err());
        let streams: String = (1..50_000).map(|number| format!("{number} 0 obj <</Type/ObjStm>> stream\n")).collect();
        assert!(convert("pdf", &[b"%PDF-1.4\xff", streams.as_bytes()].concat()).is_err());
    }

    #[test]
    fn an_encrypted_or_scanned_pdf_says_so() {
        let scan = b"%PDF-1.4\xff\n1 0 obj <</Type/Catalog/Pages 2 0 R>> endobj 2 0 obj <</Type/Page>> endobj".to_vec();
        assert!(convert("pdf", &scan).unwrap_err().contains("no text that can be extracted"));
        let encrypted = [&scan[..], b" trailer <</Root 1 0 R/Encrypt 9 0 R>>"].concat();
        assert_eq!(convert("pdf", &encrypted).unwrap_err(), "the PDF is encrypted");
        assert!(convert("pdf", b"%PDF-1.4\xff").unwrap_err().contains("no pages"));
    }

    #[test]
    fn a_text_with_the_suffix_of_a_document_is_shown_as_it_is() {
        assert_eq!(convert("pdf", b"%PDF-1.4 not real text only").as_deref(), Ok("%PDF-1.4 not real text only"));
        assert!(convert("docx", b"PK\x03\x04\0\0").is_err());
    }

    #[test]
    fn empty_lines_and_trailing_spaces_are_tidied() {
        assert_eq!(tidy("a \n\n\n\nb\r\n"), "a\n\nb\n");
        assert_eq!(tidy("\n\n\nx"), "\n\nx");
    }
}
