//! Sizes as people write them.

/// Bytes of `5GB` (10^9), `512MiB` (2^20), `100k`, `4096`; none for what is no size.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|char: char| !char.is_ascii_digit() && char != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor: u64 = match unit.trim_end_matches('b') {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        "t" => 1_000_000_000_000,
        "ki" => 1 << 10,
        "mi" => 1 << 20,
        "gi" => 1 << 30,
        "ti" => 1 << 40,
        _ => return None,
    };
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor)?,
        Err(_) => (number.parse::<f64>().ok()? * factor as f64).floor() as u64,
    };
    (bytes > 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_decimal_but_for_those_with_an_i() {
        for (text, bytes) in [
            ("5GB", Some(5_000_000_000)),
            ("5GiB", Some(5 << 30)),
            ("1.5 kB", Some(1_500)),
            ("4096", Some(4096)),
            ("2g", Some(2_000_000_000)),
            ("0", None),
            ("5 apples", None),
            ("", None),
            ("99999999999TB", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }
}
