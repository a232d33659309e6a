use proptest::prelude::*;

use super::*;

const SMALL: ScreenSize = ScreenSize { rows: 5, columns: 10 };

fn shown(bytes: &[u8]) -> Screen {
    let mut screen = Screen::new(SMALL, 100);
    screen.feed(bytes);
    screen
}

#[track_caller]
fn check(bytes: &str, expected: &str) {
    assert_eq!(shown(bytes.as_bytes()).text().trim_end_matches('\n'), expected, "{bytes:?}");
}

#[test]
fn text_is_what_a_person_sees() {
    for (bytes, expected) in [
        ("one\rtwo\r\n", "two"),
        ("a\tb", "a       b"),
        ("a\0b\x07c", "abc"),
        ("\x1b[31mred\x1b[0m plain", "red plain"),
        ("abcdefghijklmno", "abcdefghijklmno"),
        ("abc   \r\nd", "abc\nd"),
        ("h\u{e9}llo \u{4e16}\u{754c}", "h\u{e9}llo \u{4e16}\u{754c}"),
        ("e\u{301}x", "e\u{301}x"),
        ("abc\x1b[2DX", "aXc"),
        ("abc\x08\x08X", "aXc"),
        ("\u{4e16}\x1b[DX", " X"),
        ("abc\x1b[1G\x1b[2Pz", "z"),
        ("abc\x1b[1G\x1b[2@z", "z abc"),
        ("abcdef\x1b[3G\x1b[2Xz", "abz ef"),
        ("abc\x1b[1K", ""),
        ("ab\r\ncd\x1b[1;1H\x1b[Lx", "x\nab\ncd"),
        ("ab\r\ncd\r\nef\x1b[2;1H\x1b[M", "ab\nef"),
        ("x\x1b[3b", "xxxx"),
        ("\x1b(0qqx\x1b(Bq", "──│q"),
        ("\x1b[2;4r\x1b[4;1Ha\r\nb\r\nc", "\n\n\na\nb\nc"),
        ("0123456789ab\r\x1b[Kcd", "0123456789\ncd"),
        ("0123456789ab\x1b[1;5H\x1b[K", "0123      ab"),
        ("0123456789\x1b[K\x1b[X\x1b[P", "0123456789"),
        ("0123456789\tx", "0123456789x"),
        ("0123456789ab\r\x08X", "012345678Xab"),
        ("\x1b[?7l0123456789ab", "012345678b"),
        ("0123456789ab\x1b[?1049h\x1b[?1049l\x1b8x", "x123456789ab"),
        ("\x1b7ab\x1b8c", "cb"),
        ("\x1b]0;title\x07x", "x"),
    ] {
        check(bytes, expected);
    }
}

#[test]
fn the_alternate_screen_is_shown_alone_and_leaves_no_trace() {
    check("main\r\n\x1b[?1049h\x1b[Hfull", "full");
    check("main\r\n\x1b[?1049h\x1b[Hfull\x1b[?1049lafter", "main\nafter");
}

#[test]
fn clearing_scrolls_into_history_and_3j_forgets_it() {
    check("a\r\nb\r\n\x1b[H\x1b[2Jc", "a\nb\nc");
    check("a\r\nb\r\n\x1b[H\x1b[2J\x1b[3Jc", "c");
}

#[test]
fn a_full_history_loses_a_tenth_at_once() {
    let mut screen = Screen::new(SMALL, 100);
    for line in 0..106 {
        screen.feed(format!("{line}\r\n").as_bytes());
    }
    // 107 rows were used, of which 5 are on the screen: the 101st line that scrolled away pushed out ten.
    assert_eq!(screen.lines_dropped(), 10);
    assert!(screen.text().starts_with("10\n11\n"));
}

#[test]
fn queries_are_answered() {
    let mut screen = shown(b"ab\x1b[6n\x1b[5n");
    assert_eq!(screen.take_replies(), b"\x1b[1;3R\x1b[0n");
    assert_eq!(screen.take_replies(), b"");
    for _ in 0..10_000 {
        screen.feed(b"\x1b[c");
    }
    assert!(screen.take_replies().len() <= LONGEST_REPLIES);
}

/// Only the main screen's saved cursor leads below the scroll region in origin mode: every movement stops at its edge.
#[test]
fn a_redraw_finds_a_cursor_below_the_region_in_origin_mode() {
    let screen = shown(b"\x1b[5;4H\x1b[?1049h\x1b[2;4r\x1b[?6h\x1b[?1049l");
    assert_eq!(screen.cursor(), (4, 3));
    assert_eq!(shown(&screen.redraw()).cursor(), (4, 3));
}

#[test]
fn what_is_written_after_a_redraw_shows_as_it_would_have() {
    for (before, after, expected) in [
        ("\x1b(0", "qx", "─│"),
        ("\x1b)0a\x0eq", "q\x0fq", "a──q"),
        ("\x1b[20h", "a\nb", "a\nb"),
        ("\x1b[2;4r\x1b[?6h", "\x1b[1;1Ha", "\na"),
        ("\x1b[2;4r\x1b[?6h\x1b[1;5H", "a\x1b[9;1Hb", "\n    a\n\nb"),
    ] {
        let mut again = shown(&shown(before.as_bytes()).redraw());
        again.feed(after.as_bytes());
        assert_eq!(again.text().trim_end_matches('\n'), expected, "{before:?} {after:?}");
    }
}

#[test]
fn a_cell_does_not_grow_without_end() {
    let mut screen = shown(b"e");
    for _ in 0..100_000 {
        screen.feed("\u{301}".as_bytes());
    }
    assert!(screen.text().len() < 100);
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..6),
        "[a-zA-Z0-9 \r\n\t]{0,12}".prop_map(String::into_bytes),
        Just("\u{4e16}e\u{301}\u{1f600}".as_bytes().to_vec()),
        ("[?>!]{0,1}", proptest::collection::vec(0u16..2100, 0..3), "[@A-Za-z`]").prop_map(
            |(private, numbers, letter)| {
                let numbers: Vec<String> = numbers.iter().map(u16::to_string).collect();
                format!("\x1b[{private}{}{letter}", numbers.join(";")).into_bytes()
            }
        ),
        ("[?]{0,1}", 0u16..8, "[ABCDGHJKLMPSTXbdr@hlm]")
            .prop_map(|(private, number, letter)| { format!("\x1b[{private}{number}{letter}").into_bytes() }),
        prop_oneof![
            Just("\x1b[?1049h"),
            Just("\x1b[?1049l"),
            Just("\x1b7"),
            Just("\x1b8"),
            Just("\x1bM"),
            Just("\x1b[2;4r"),
            Just("\x1b]0;title\x07"),
            Just("\x1b]0;title\x1b\\"),
            Just("\x1bPstring"),
            Just("\x1b(0"),
            Just("\x1bc"),
            Just("\x0e"),
            Just("\x18"),
            Just("\x7f"),
        ]
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_split_gives_the_same_screen(bytes in any_bytes(), cut in any::<prop::sample::Index>()) {
        let whole = shown(&bytes);
        let cut = cut.index(bytes.len() + 1);
        let mut split = shown(&bytes[..cut]);
        split.feed(&bytes[cut..]);
        prop_assert_eq!(split.text(), whole.text());
        prop_assert_eq!(split.redraw(), whole.redraw());
    }

    #[test]
    fn what_goes_past_the_parser_looks_as_if_it_had_gone_through_it(bytes in any_bytes()) {
        let shortly = shown(&bytes);
        let mut wholly = Screen::new(SMALL, 100);
        let Screen { utf8, parser, state } = &mut wholly;
        utf8.feed(&bytes, |valid| parser.advance(state, valid));
        prop_assert_eq!(shortly.text(), wholly.text());
        prop_assert_eq!(shortly.redraw(), wholly.redraw());
        prop_assert_eq!(shortly.state.last_printed, wholly.state.last_printed);
    }

    #[test]
    fn a_redraw_paints_the_same_screen(bytes in any_bytes()) {
        let screen = shown(&bytes);
        let again = shown(&screen.redraw());
        prop_assert_eq!(again.visible_text(), screen.visible_text());
        prop_assert_eq!(again.cursor(), screen.cursor());
        prop_assert_eq!(again.is_alternate(), screen.is_alternate());
    }

    #[test]
    fn any_bytes_and_sizes_are_survived(bytes in any_bytes(), rows in 1u16..8, columns in 1u16..12, more in any_bytes()) {
        let mut screen = shown(&bytes);
        screen.resize(rows, columns);
        screen.feed(&more);
        let _ = screen.text();
    }
}

/// The largest screen there is for an agent, as a program may draw on it: each piece costs some rows' time, not some
/// screens'.
#[test]
fn no_few_bytes_cost_much_time() {
    let tab_stops = "\x1b[3g".to_owned() + &"\x1b[C\x1bH".repeat(900) + "\r";
    for (before, bomb) in [
        ("", "\x1b[65535b"),
        ("a", "\r\x1b[65535b"),
        ("\x1b[4ha", "\ra\x1b[65535b"),
        (&tab_stops, "\r\x1b[65535I"),
        (&tab_stops, "\x1b[999G\x1b[65535Z"),
        ("\x1b[2;999r", "\x1b[65535S"),
        ("\x1b[2;999r", "\x1b[65535T"),
        ("", "\x1b[65535L"),
        ("", "\x1b[65535M"),
        ("", "\x1b#8\x1b[2J"),
        ("", "\x1bc"),
        ("", "\x1b[?1049h\x1b[?1049l"),
        ("", "a\u{301}\u{302}\x1b[@"),
        ("\x1b]2;", "title without end "),
        ("\x1bP", "string without end "),
    ] {
        let mut screen = Screen::new(ScreenSize { rows: 1000, columns: 1000 }, 10_000);
        screen.feed(before.as_bytes());
        let started = std::time::Instant::now();
        screen.feed(bomb.repeat(20_000 / bomb.len()).as_bytes());
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{bomb:?}: {:?}", started.elapsed());
    }
}

#[test]
fn a_history_of_lines_full_of_combining_characters_is_bounded() {
    let mut screen = Screen::new(ScreenSize { rows: 10, columns: 1000 }, 10_000);
    let line = "a\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}".repeat(1000);
    for _ in 0..10_000 {
        screen.feed(line.as_bytes());
    }
    assert!(screen.text().len() < 24 << 20, "{}", screen.text().len());
}

#[test]
fn blank_rows_that_scroll_away_cost_no_memory_and_no_time_for_each() {
    let size = ScreenSize { rows: 4096, columns: 256 };
    let bytes = b"\x1b[4096S".repeat(10_000);
    let mut screen = Screen::for_output(size, bytes.len());
    screen.feed(&bytes);
    screen.feed(b"end");
    assert!(screen.lines_dropped() > 0);
    let text = screen.text();
    assert!(text.trim_end().ends_with("end") && text.len() <= bytes.len() + 2 * 4100, "{}", text.len());
}

#[test]
fn a_row_that_is_full_by_a_few_bytes_is_not_kept_without_end() {
    let size = ScreenSize { rows: 24, columns: 4096 };
    let bytes = b"x\x1b[4095b\r\n".repeat(10_000);
    let mut screen = Screen::for_output(size, bytes.len());
    screen.feed(&bytes);
    assert!(screen.lines_dropped() > 0 && screen.text().len() < 20 << 20);
}

#[test]
fn rows_below_what_was_written_are_blank_whatever_moves_them() {
    let size = ScreenSize { rows: 5, columns: 4 };
    for (moves, shown) in [
        ("a\r\x1b[2Lb", "b\n\na\n\n"),
        ("\x1b[4;1Ha\x1b[1;1H\x1b[2Mb", "b\na\n\n\n"),
        ("\x1b[2;1Ha\x1b[2;4r\x1b[Sb", "b\n\n\n\n"),
        ("\x1b[2;1Ha\x1b[2;4r\x1b[T\x1b[3;1Hb", "\n\nb\n\n"),
        ("\x1b[3;1Ha\x1b[2T\x1b[Hb\x1b[2S", "\n\na\n\n"),
        ("\x1b[3;1Ha\x1b[2;1H\x1b[J\x1b[5;1Hc\x1b[2S", "\n\nc\n\n"),
    ] {
        let mut screen = Screen::new(size, 100);
        screen.feed(moves.as_bytes());
        assert_eq!(screen.visible_text(), shown, "{moves:?}");
        screen.feed(b"\x1b[r\x1b[5S");
        assert_eq!(screen.visible_text(), "\n\n\n\n", "{moves:?}");
    }
}

#[test]
fn what_tmux_shows_of_rare_sequences_is_shown() {
    for (bytes, expected) in [
        // Another row leaves a cursor past the end there: the next character wraps.
        ("0123456789\x1b[4dx", "0123456789\n\n\nx"),
        // More blanks than there is room for push nothing away.
        ("0123456789\x1b[1;9H\x1b[3@", "0123456789"),
        ("\x1b[2@\x1b[2Jx", "\nx"),
        // Without wrapping, a blank behind the end of a row writes nothing.
        ("\x1b[?7l \x1b[2Jx", " x"),
        // The last line of a full screen that is cleared goes on in the first one of the next.
        ("\x1b[1;2r\x1b[5;1H0123456789ab\x1b[2Jc", "\n\n\n\nab23456789\n\n\n\n  c"),
    ] {
        check(bytes, expected);
    }
}
