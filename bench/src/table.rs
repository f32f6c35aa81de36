//! Medians with ranges, as tables, into a document.

use std::fmt::Write as _;

/// The median of what was seen, with the smallest and the largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Summary {
    pub(crate) fn of(values: &[f64]) -> Option<Summary> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Summary {
            median,
            least,
            most,
        })
    }

    /// `0.41 (0.39–0.44)`.
    pub(crate) fn text(&self, decimals: usize) -> String {
        format!(
            "{:.decimals$} ({:.decimals$}–{:.decimals$})",
            self.median, self.least, self.most
        )
    }
}

/// A table of Markdown.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    text.push_str(&line(
        &head.iter().map(ToString::to_string).collect::<Vec<_>>(),
    ));
    let _ = writeln!(text, "|{}", " --- |".repeat(head.len()));
    for row in rows {
        let mut row = row.clone();
        row.resize(head.len().max(row.len()), String::new());
        text.push_str(&line(&row));
    }
    text
}

/// Puts a text between the markers of its name; at the end of the document, with markers, where there are none yet.
pub(crate) fn replace(document: &str, name: &str, text: &str) -> String {
    let (begin, end) = (
        format!("<!-- bench:begin {name} -->"),
        format!("<!-- bench:end {name} -->"),
    );
    match (document.find(&begin), document.find(&end)) {
        (Some(from), Some(to)) if from < to => format!(
            "{}\n{text}{}",
            &document[..from + begin.len()],
            &document[to..]
        ),
        _ => format!("{}\n\n{begin}\n{text}{end}\n", document.trim_end()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(odd.text(1), "2.0 (1.0–3.0)");
        assert_eq!(Summary::of(&[4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[]), None);
    }

    #[test]
    fn a_table_takes_the_place_of_the_one_before() {
        let first = replace("# Title\n", "big", "one\n");
        assert_eq!(
            first,
            "# Title\n\n<!-- bench:begin big -->\none\n<!-- bench:end big -->\n"
        );
        let second = replace(&format!("{first}after\n"), "big", "two\n");
        assert_eq!(
            second,
            "# Title\n\n<!-- bench:begin big -->\ntwo\n<!-- bench:end big -->\nafter\n"
        );
        assert_eq!(
            table(&["a"], &[vec!["1".into()]]),
            "| a |\n| --- |\n| 1 |\n"
        );
    }
}
