//! Random numbers that are the same for ever: BLAKE3's output stream keyed by a seed and a name.

/// A stream of numbers for one purpose; independent of all other streams and of the order they are used in.
#[derive(Debug)]
pub(crate) struct Random {
    reader: blake3::OutputReader,
}

impl Random {
    pub(crate) fn new(seed: u64, name: &str) -> Random {
        let mut hasher = blake3::Hasher::new_derive_key("graftwork 2026-11 random stream");
        hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
        Random {
            reader: hasher.finalize_xof(),
        }
    }

    /// A number in `0..bound`, without bias.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u64;
        // Numbers from the last incomplete run of `bound` are thrown away.
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let mut bytes = [0; 8];
            self.reader.fill(&mut bytes);
            let number = u64::from_le_bytes(bytes);
            if number < limit {
                return (number % bound) as usize;
            }
        }
    }

    /// Fisher and Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}
