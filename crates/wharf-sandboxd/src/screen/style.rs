//! Colours and attributes of cells, kept once each.

use std::collections::HashMap;

/// More different styles than this in one screen are shown plain.
const MOST_STYLES: usize = 4096;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) enum Colour {
    #[default]
    Default,
    Indexed(u8),
    Rgb(u8, u8, u8),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Style {
    foreground: Colour,
    background: Colour,
    /// A bit for each SGR number from 1 (bold) to 9 (struck out).
    attributes: u16,
}

impl Style {
    /// Applies the parameters of `CSI … m`.
    pub(super) fn apply(&mut self, parameters: &vte::Params) {
        let mut parameters = parameters.iter();
        let mut any = false;
        while let Some(parameter) = parameters.next() {
            any = true;
            match parameter {
                [0] | [] => *self = Self::default(),
                [number @ 1..=9] | [number @ 1..=9, ..] => self.attributes |= 1 << number,
                [21] => self.attributes |= 1 << 4,
                [22] => self.attributes &= !(1 << 1 | 1 << 2),
                [25] => self.attributes &= !(1 << 5 | 1 << 6),
                [number @ (23 | 24 | 27..=29)] => self.attributes &= !(1 << (number - 20)),
                [number @ 30..=37] => self.foreground = Colour::Indexed((number - 30) as u8),
                [number @ 40..=47] => self.background = Colour::Indexed((number - 40) as u8),
                [number @ 90..=97] => self.foreground = Colour::Indexed((number - 82) as u8),
                [number @ 100..=107] => self.background = Colour::Indexed((number - 92) as u8),
                [39] => self.foreground = Colour::Default,
                [49] => self.background = Colour::Default,
                [number @ (38 | 48), rest @ ..] => {
                    let colour = if rest.is_empty() {
                        let mut next = || parameters.next().and_then(|value| value.first().copied());
                        match next() {
                            Some(5) => next().map(|index| Colour::Indexed(index as u8)),
                            Some(2) => match (next(), next(), next()) {
                                (Some(r), Some(g), Some(b)) => Some(Colour::Rgb(r as u8, g as u8, b as u8)),
                                _ => None,
                            },
                            _ => None,
                        }
                    } else {
                        match rest {
                            [5, index] => Some(Colour::Indexed(*index as u8)),
                            [2, r, g, b] | [2, _, r, g, b, ..] => Some(Colour::Rgb(*r as u8, *g as u8, *b as u8)),
                            _ => None,
                        }
                    };
                    if let Some(colour) = colour {
                        *(if *number == 38 { &mut self.foreground } else { &mut self.background }) = colour;
                    }
                }
                _ => {}
            }
        }
        if !any {
            *self = Self::default();
        }
    }

    /// What sets this style on a terminal whatever was set before.
    pub(super) fn sequence(self) -> String {
        let mut out = String::from("\x1b[0");
        for number in 1..=9 {
            if self.attributes & (1 << number) != 0 {
                out.push_str(&format!(";{number}"));
            }
        }
        for (colour, base) in [(self.foreground, 30), (self.background, 40)] {
            match colour {
                Colour::Default => {}
                Colour::Indexed(index @ 0..=7) => out.push_str(&format!(";{}", base + u16::from(index))),
                Colour::Indexed(index @ 8..=15) => out.push_str(&format!(";{}", base + 52 + u16::from(index))),
                Colour::Indexed(index) => out.push_str(&format!(";{};5;{index}", base + 8)),
                Colour::Rgb(r, g, b) => out.push_str(&format!(";{};2;{r};{g};{b}", base + 8)),
            }
        }
        out.push('m');
        out
    }
}

/// Styles by number; 0 is plain.
#[derive(Debug)]
pub(super) struct Styles {
    by_id: Vec<Style>,
    ids: HashMap<Style, u16>,
    latest: (Style, u16),
}

impl Default for Styles {
    fn default() -> Self {
        Self {
            by_id: vec![Style::default()],
            ids: HashMap::from([(Style::default(), 0)]),
            latest: (Style::default(), 0),
        }
    }
}

impl Styles {
    pub(super) fn intern(&mut self, style: Style) -> u16 {
        if style == self.latest.0 {
            return self.latest.1;
        }
        let id = match self.ids.get(&style) {
            Some(id) => *id,
            None if self.by_id.len() >= MOST_STYLES => return 0,
            None => {
                let id = self.by_id.len() as u16;
                self.by_id.push(style);
                self.ids.insert(style, id);
                id
            }
        };
        self.latest = (style, id);
        id
    }

    pub(super) fn get(&self, id: u16) -> Style {
        self.by_id.get(usize::from(id)).copied().unwrap_or_default()
    }
}
