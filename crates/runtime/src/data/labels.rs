//! Class names from labels, as scikit-learn's `LabelEncoder` makes them: distinct ones, sorted; numbers by their value.

use std::collections::HashMap;

/// More classes than a head is fitted on; so many distinct labels are no classes.
const MAX_CLASSES: usize = 1 << 16;

/// Numbers for labels in the order they are first seen.
#[derive(Debug, Default)]
pub(super) struct Labels {
    numbers: HashMap<Box<str>, u32>,
    names: Vec<String>,
    /// The source names its classes in their order.
    is_fixed: bool,
}

impl Labels {
    /// Classes that the source names itself, in its order.
    pub(super) fn fixed(names: Vec<String>) -> Labels {
        let numbers = (0u32..).zip(&names).map(|(n, name)| (name.as_str().into(), n));
        Labels {
            numbers: numbers.collect(),
            names,
            is_fixed: true,
        }
    }

    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether the source names its classes, those without samples too.
    pub(super) fn is_fixed(&self) -> bool {
        self.is_fixed
    }

    /// The label's number.
    ///
    /// # Errors
    /// More distinct labels than a head has classes.
    pub(super) fn number(&mut self, label: &str) -> Result<u32, String> {
        if let Some(&number) = self.numbers.get(label) {
            return Ok(number);
        }
        if self.names.len() >= MAX_CLASSES {
            return Err(format!(
                "there are more than {MAX_CLASSES} different labels; is this the column of the labels?"
            ));
        }
        let number = u32::try_from(self.names.len()).expect("at most MAX_CLASSES");
        self.numbers.insert(label.into(), number);
        self.names.push(label.to_owned());
        Ok(number)
    }

    /// Those of the labels that `is_used` says, as classes in order, and the new number of each old one.
    pub(super) fn classes(self, is_used: impl Fn(usize) -> bool) -> (Vec<String>, Vec<u32>) {
        if self.is_fixed {
            let numbers = (0u32..).take(self.names.len()).collect();
            return (self.names, numbers);
        }
        let mut order: Vec<usize> = (0..self.names.len()).filter(|&n| is_used(n)).collect();
        let value = |n: usize| {
            self.names[n]
                .parse::<f64>()
                .ok()
                .filter(|value| value.is_finite())
        };
        let whole = |n: usize| self.names[n].parse::<i128>().ok();
        if order.iter().all(|&n| value(n).is_some()) {
            // Whole numbers beyond 2^53 are told apart by themselves.
            order.sort_by(|&a, &b| {
                let by_value = match (whole(a), whole(b)) {
                    (Some(a), Some(b)) => a.cmp(&b),
                    _ => value(a).partial_cmp(&value(b)).expect("finite"),
                };
                by_value.then_with(|| self.names[a].cmp(&self.names[b]))
            });
        } else {
            // Bytes of UTF-8 sort as code points do, which is Python's order.
            order.sort_by(|&a, &b| self.names[a].cmp(&self.names[b]));
        }
        let mut numbers = vec![u32::MAX; self.names.len()];
        let mut names: Vec<Option<String>> = self.names.into_iter().map(Some).collect();
        let mut classes = Vec::with_capacity(order.len());
        for (new, old) in (0u32..).zip(order) {
            numbers[old] = new;
            classes.extend(names[old].take());
        }
        (classes, numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(labels: &[&str], classes: &[&str]) {
        let mut seen = Labels::default();
        let numbers: Vec<u32> = labels.iter().map(|label| seen.number(label).unwrap()).collect();
        let (names, new) = seen.classes(|_| true);
        assert_eq!(names, classes);
        for (label, number) in labels.iter().zip(numbers) {
            assert_eq!(names[new[number as usize] as usize], *label);
        }
    }

    #[test]
    fn classes_are_sorted_as_label_encoder_sorts_them() {
        check(&["b", "a", "b", "C"], &["C", "a", "b"]);
        check(&["10", "9", "-1", "9"], &["-1", "9", "10"]);
        check(&["10.0", "9", "1e1"], &["9", "10.0", "1e1"]);
        check(&["10", "9", "x"], &["10", "9", "x"]);
        check(
            &["9007199254740993", "9007199254740992"],
            &["9007199254740992", "9007199254740993"],
        );
        check(&["nan", "2", "10"], &["10", "2", "nan"]);
    }

    #[test]
    fn classes_without_samples_are_dropped_unless_the_source_names_them() {
        let mut seen = Labels::default();
        for label in ["a", "b", "c"] {
            seen.number(label).unwrap();
        }
        assert_eq!(
            seen.classes(|n| n != 1),
            (vec!["a".into(), "c".into()], vec![0, u32::MAX, 1])
        );
        let fixed = Labels::fixed(vec!["z".into(), "a".into()]);
        assert_eq!(fixed.classes(|_| false).0, ["z", "a"]);
    }

    #[test]
    fn a_column_of_names_is_not_one_of_labels() {
        let mut seen = Labels::default();
        for n in 0..MAX_CLASSES {
            seen.number(&n.to_string()).unwrap();
        }
        assert!(seen.number("7").is_ok());
        assert!(
            seen.number("one more")
                .unwrap_err()
                .starts_with("there are more than 65536")
        );
    }
}
