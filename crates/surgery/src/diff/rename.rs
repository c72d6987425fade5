//! Which tensor of A stands under another name in B.

use std::collections::HashMap;

/// A tensor that one side has only; `key` is equal for equal tensors.
pub(super) struct Lone<'n, K> {
    pub(super) name: &'n str,
    pub(super) key: K,
}

/// More pairs than this of equal tensors are not compared by name, but matched in order.
const MAX_PAIRS: usize = 1 << 20;

/// Pairs of indices into `a` and `b` with equal keys, each index once, in the order of `a`.
///
/// Of several equal tensors (biases that are all zero) those are paired whose names end alike for longest.
pub(super) fn pair<K: Eq + std::hash::Hash>(a: &[Lone<'_, K>], b: &[Lone<'_, K>]) -> Vec<(usize, usize)> {
    let mut by_key: HashMap<&K, (Vec<usize>, Vec<usize>)> = HashMap::new();
    for (i, lone) in a.iter().enumerate() {
        by_key.entry(&lone.key).or_default().0.push(i);
    }
    for (i, lone) in b.iter().enumerate() {
        by_key.entry(&lone.key).or_default().1.push(i);
    }
    let mut pairs = Vec::new();
    let (mut used_a, mut used_b) = (vec![false; a.len()], vec![false; b.len()]);
    for (of_a, of_b) in by_key.into_values() {
        if of_a.len() * of_b.len() > MAX_PAIRS {
            pairs.extend(of_a.into_iter().zip(of_b));
            continue;
        }
        let mut scored: Vec<(usize, usize, usize)> = Vec::new();
        for &i in &of_a {
            scored.extend(of_b.iter().map(|&j| (common_end(a[i].name, b[j].name), i, j)));
        }
        // The longest first, then in the order of both files.
        scored.sort_by_key(|&(length, i, j)| (std::cmp::Reverse(length), i, j));
        for (_, i, j) in scored {
            if !used_a[i] && !used_b[j] {
                (used_a[i], used_b[j]) = (true, true);
                pairs.push((i, j));
            }
        }
    }
    pairs.sort_unstable();
    pairs
}

fn common_end(a: &str, b: &str) -> usize {
    let pairs = a.bytes().rev().zip(b.bytes().rev());
    pairs.take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_tensors_are_paired_by_the_ends_of_their_names() {
        let lones = |pairs: &[(&'static str, u8)]| -> Vec<Lone<'static, u8>> {
            pairs.iter().map(|&(name, key)| Lone { name, key }).collect()
        };
        let a = lones(&[("m.1.bias", 0), ("m.2.bias", 0), ("m.1.weight", 1), ("gone", 2)]);
        let b = lones(&[("2.bias", 0), ("1.bias", 0), ("weight", 1), ("new", 0)]);
        assert_eq!(pair(&a, &b), [(0, 1), (1, 0), (2, 2)]);
    }
}
