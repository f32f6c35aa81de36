//! The pairing code, large enough to be read across a set: block digits and a QR code.
//!
//! Invariants:
//! * the code is shown exactly as received, whatever its length and characters;
//! * a QR code has its quiet zone and its own colours, so that it scans on dark and light terminals.

use qrcode::{Color, EcLevel, QrCode};

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canvas {
    /// Columns available.
    pub(crate) columns: usize,
    /// Block characters can be shown.
    pub(crate) unicode: bool,
    /// Colours can be set.
    pub(crate) color: bool,
}

/// Height of a block character in lines.
const HEIGHT: usize = 5;

/// `#` is ink. Five lines of five columns for each character.
const FONT: [(char, [&str; HEIGHT]); 37] = [
    ('0', [" ### ", "#   #", "#   #", "#   #", " ### "]),
    ('1', ["  #  ", " ##  ", "  #  ", "  #  ", " ### "]),
    ('2', ["#### ", "    #", " ### ", "#    ", "#####"]),
    ('3', ["#### ", "    #", " ### ", "    #", "#### "]),
    ('4', ["#  # ", "#  # ", "#####", "   # ", "   # "]),
    ('5', ["#####", "#    ", "#### ", "    #", "#### "]),
    ('6', [" ### ", "#    ", "#### ", "#   #", " ### "]),
    ('7', ["#####", "   # ", "  #  ", " #   ", " #   "]),
    ('8', [" ### ", "#   #", " ### ", "#   #", " ### "]),
    ('9', [" ### ", "#   #", " ####", "    #", " ### "]),
    ('-', ["     ", "     ", " ### ", "     ", "     "]),
    ('A', [" ### ", "#   #", "#####", "#   #", "#   #"]),
    ('B', ["#### ", "#   #", "#### ", "#   #", "#### "]),
    ('C', [" ####", "#    ", "#    ", "#    ", " ####"]),
    ('D', ["#### ", "#   #", "#   #", "#   #", "#### "]),
    ('E', ["#####", "#    ", "###  ", "#    ", "#####"]),
    ('F', ["#####", "#    ", "###  ", "#    ", "#    "]),
    ('G', [" ####", "#    ", "#  ##", "#   #", " ####"]),
    ('H', ["#   #", "#   #", "#####", "#   #", "#   #"]),
    ('I', [" ### ", "  #  ", "  #  ", "  #  ", " ### "]),
    ('J', ["  ###", "   # ", "   # ", "#  # ", " ##  "]),
    ('K', ["#   #", "#  # ", "###  ", "#  # ", "#   #"]),
    ('L', ["#    ", "#    ", "#    ", "#    ", "#####"]),
    ('M', ["#   #", "## ##", "# # #", "#   #", "#   #"]),
    ('N', ["#   #", "##  #", "# # #", "#  ##", "#   #"]),
    ('O', ["#####", "#   #", "#   #", "#   #", "#####"]),
    ('P', ["#### ", "#   #", "#### ", "#    ", "#    "]),
    ('Q', [" ### ", "#   #", "# # #", "#  # ", " ## #"]),
    ('R', ["#### ", "#   #", "#### ", "#  # ", "#   #"]),
    ('S', [" ####", "#    ", " ### ", "    #", "#### "]),
    ('T', ["#####", "  #  ", "  #  ", "  #  ", "  #  "]),
    ('U', ["#   #", "#   #", "#   #", "#   #", " ### "]),
    ('V', ["#   #", "#   #", "#   #", " # # ", "  #  "]),
    ('W', ["#   #", "#   #", "# # #", "## ##", "#   #"]),
    ('X', ["#   #", " # # ", "  #  ", " # # ", "#   #"]),
    ('Y', ["#   #", " # # ", "  #  ", "  #  ", "  #  "]),
    ('Z', ["#####", "   # ", "  #  ", " #   ", "#####"]),
];

/// The code in large characters, or spaced out on one line where they do not fit or do not exist.
pub(crate) fn large(code: &str, canvas: Canvas) -> Vec<String> {
    let glyphs: Option<Vec<&[&str; HEIGHT]>> = code
        .chars()
        .map(|wanted| {
            FONT.iter()
                .find(|(known, _)| *known == wanted)
                .map(|(_, glyph)| glyph)
        })
        .collect();
    let letters = code.chars().count();
    let ink = if canvas.unicode { '█' } else { '#' };
    // A dot of two columns is about square; one column still reads.
    let dot = [2, 1]
        .into_iter()
        .find(|dot| letters > 0 && letters * (5 * dot + 2) - 2 <= canvas.columns);
    let (Some(glyphs), Some(dot)) = (glyphs, dot) else {
        let spaced: Vec<String> = code.chars().map(String::from).collect();
        return vec![spaced.join(" ")];
    };
    (0..HEIGHT)
        .map(|line| {
            let cells: Vec<String> = glyphs
                .iter()
                .map(|glyph| {
                    glyph[line]
                        .chars()
                        .flat_map(|c| std::iter::repeat_n(if c == '#' { ink } else { ' ' }, dot))
                        .collect()
                })
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

/// Light modules around the code that a scanner needs.
const QUIET: usize = 4;

/// `text` as a QR code, two rows per line. `None` if it does not fit the canvas or cannot be encoded.
pub(crate) fn qr(text: &str, canvas: Canvas) -> Option<Vec<String>> {
    let code = QrCode::with_error_correction_level(text, EcLevel::L).ok()?;
    let side = code.width();
    let full = side + 2 * QUIET;
    if !canvas.unicode || full > canvas.columns {
        return None;
    }
    let colors = code.to_colors();
    let dark = |x: usize, y: usize| {
        let inside = (QUIET..QUIET + side).contains(&x) && (QUIET..QUIET + side).contains(&y);
        inside && colors[(y - QUIET) * side + (x - QUIET)] == Color::Dark
    };
    let lines = (0..full)
        .step_by(2)
        .map(|y| {
            // Ink is light: with colours it is white on black, without it stands out on the usual dark terminal.
            let line: String = (0..full)
                .map(|x| match (dark(x, y), y + 1 >= full || dark(x, y + 1)) {
                    (false, false) => '█',
                    (false, true) => '▀',
                    (true, false) => '▄',
                    (true, true) => ' ',
                })
                .collect();
            if canvas.color {
                format!("\x1b[38;5;231;48;5;16m{line}\x1b[0m")
            } else {
                line
            }
        })
        .collect();
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicode_width::UnicodeWidthStr;

    const WIDE: Canvas = Canvas {
        columns: 100,
        unicode: true,
        color: false,
    };

    #[test]
    fn every_glyph_is_five_by_five_and_unique() {
        for (index, (name, glyph)) in FONT.iter().enumerate() {
            assert!(glyph.iter().all(|line| line.len() == 5), "{name}");
            assert!(
                FONT[..index].iter().all(|(_, other)| other != glyph),
                "{name} looks like another one"
            );
        }
        assert!(('0'..='9').all(|digit| FONT.iter().any(|(known, _)| *known == digit)));
    }

    #[test]
    fn six_digits_fit_eighty_columns_and_shrink_for_forty() {
        let wide = large(
            "482913",
            Canvas {
                columns: 80,
                ..WIDE
            },
        );
        assert_eq!(wide.len(), HEIGHT);
        assert!(wide.iter().all(|line| line.width() <= 80));
        assert!(wide.iter().any(|line| line.width() > 60));
        let narrow = large(
            "482913",
            Canvas {
                columns: 40,
                ..WIDE
            },
        );
        assert_eq!(narrow.len(), HEIGHT);
        assert!(narrow.iter().all(|line| line.width() <= 40));
        assert_eq!(
            large(
                "482913",
                Canvas {
                    columns: 20,
                    ..WIDE
                }
            ),
            ["4 8 2 9 1 3"]
        );
    }

    #[test]
    fn codes_of_any_kind_are_shown_exactly() {
        assert_eq!(large("aé?", WIDE), ["a é ?"]);
        assert_eq!(large("", WIDE), [""]);
        assert_eq!(large("WDJB-MJHT", WIDE).len(), HEIGHT);
        assert_eq!(
            large("12345678901234567890", WIDE),
            ["1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0"]
        );
        let ascii = large(
            "0",
            Canvas {
                unicode: false,
                ..WIDE
            },
        );
        assert!(ascii.concat().chars().all(|c| c == '#' || c == ' '));
        // Leading zeros are digits like others.
        assert_ne!(large("007", WIDE), large("7", WIDE));
    }

    /// Turns the half blocks back into modules and checks them against the encoder.
    #[test]
    fn the_drawing_is_the_code_with_its_quiet_zone() {
        let text = "https://next.frame.io/c2c-pair?code=482913";
        let code = QrCode::with_error_correction_level(text, EcLevel::L).unwrap();
        let (side, colors) = (code.width(), code.to_colors());
        let full = side + 2 * QUIET;
        let lines = qr(text, WIDE).unwrap();
        assert_eq!(lines.len(), full.div_ceil(2));
        for (row, line) in lines.iter().enumerate() {
            assert_eq!(line.chars().count(), full);
            for (x, c) in line.chars().enumerate() {
                let light = match c {
                    '█' => [true, true],
                    '▀' => [true, false],
                    '▄' => [false, true],
                    ' ' => [false, false],
                    other => panic!("{other:?} in the drawing"),
                };
                for (half, light) in light.into_iter().enumerate() {
                    let y = row * 2 + half;
                    if y >= full {
                        continue;
                    }
                    let inside =
                        (QUIET..QUIET + side).contains(&x) && (QUIET..QUIET + side).contains(&y);
                    let dark = inside && colors[(y - QUIET) * side + x - QUIET] == Color::Dark;
                    assert_eq!(light, !dark, "module {x},{y}");
                }
            }
        }
        let colored = qr(
            text,
            Canvas {
                color: true,
                ..WIDE
            },
        )
        .unwrap();
        assert!(colored.iter().all(|line| line.starts_with("\x1b[38;5;231;48;5;16m") && line.ends_with("\x1b[0m")));
        assert!(
            qr(
                text,
                Canvas {
                    columns: 20,
                    ..WIDE
                }
            )
            .is_none()
        );
        assert!(
            qr(
                text,
                Canvas {
                    unicode: false,
                    ..WIDE
                }
            )
            .is_none()
        );
    }
}
