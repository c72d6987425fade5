//! Text on its way to a terminal.

use std::io::{self, IsTerminal, Write};

pub(crate) use surgery::grouped;

/// Writes a verb's results. A reader that has gone away (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Writes a result as indented JSON.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Whether a person watches stderr.
pub(crate) fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Writes a remark.
pub(crate) fn remark(text: &str) {
    // Where nobody listens nothing is lost.
    let lines: Vec<String> = text.split('\n').map(plain).collect();
    let _ = writeln!(io::stderr(), "{}", lines.join("\n"));
}

/// A name from a file, without what would steer the terminal.
pub(crate) fn plain(name: &str) -> String {
    name.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

/// The names nearest to a mistyped one, the nearest first.
pub(crate) fn nearest<'n>(wanted: &str, names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    const N_SHOWN: usize = 3;
    let wanted = wanted.to_lowercase();
    let mut scored: Vec<(usize, &str)> = names
        .filter_map(|name| {
            let lower = name.to_lowercase();
            let distance = if lower.ends_with(&wanted) || wanted.ends_with(&lower) {
                1
            } else {
                surgery::edit_distance(&wanted, &lower)
            };
            // Further away than a third of it is another name.
            (distance <= 1 + wanted.len() / 3).then_some((distance, name))
        })
        .collect();
    scored.sort_by_key(|&(distance, _)| distance);
    scored.into_iter().take(N_SHOWN).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_nearby_are_found() {
        let names = ["layer1.0.conv1.weight", "fc.weight", "fc.bias", "conv1.weight"];
        assert_eq!(nearest("fc.wieght", names.into_iter())[0], "fc.weight");
        assert_eq!(nearest("module.fc.bias", names.into_iter())[0], "fc.bias");
        assert!(nearest("zzzzzzzz", names.into_iter()).is_empty());
    }

    #[test]
    fn numbers_are_grouped_and_names_defused() {
        assert_eq!(
            [0, 999, 1000, 1234567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(plain("a\u{1b}[2Jb"), "a\\u{1b}[2Jb");
    }
}
