//! Random numbers that are the same for ever: BLAKE3's output stream keyed by a seed and a name.

/// A stream of numbers for one purpose; independent of all other streams and of the order they are used in.
#[derive(Debug)]
pub(crate) struct Random {
    reader: blake3::OutputReader,
    /// Numbers of the stream that are at hand: many blocks of it cost little more than one.
    drawn: [u8; AT_ONCE],
    used: usize,
}

/// Bytes of the stream that are made at once.
const AT_ONCE: usize = 16 * blake3::BLOCK_LEN;

impl Random {
    pub(crate) fn new(seed: u64, name: &str) -> Random {
        let mut hasher = blake3::Hasher::new_derive_key("graftwork 2026-11 random stream");
        hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
        Random {
            reader: hasher.finalize_xof(),
            drawn: [0; AT_ONCE],
            used: AT_ONCE,
        }
    }

    /// A number in `0..bound`, without bias.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = bound as u64;
        // Numbers from the last incomplete run of `bound` are thrown away.
        let limit = u64::MAX - u64::MAX % bound;
        loop {
            let number = self.next();
            if number < limit {
                return (number % bound) as usize;
            }
        }
    }

    fn next(&mut self) -> u64 {
        if self.used == AT_ONCE {
            self.reader.fill(&mut self.drawn);
            self.used = 0;
        }
        let number = self.drawn[self.used..].as_chunks().0[0];
        self.used += size_of::<u64>();
        u64::from_le_bytes(number)
    }

    /// Fisher and Yates.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last + 1);
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_stream_beyond_what_is_drawn_at_once() {
        let mut hasher = blake3::Hasher::new_derive_key("graftwork 2026-11 random stream");
        hasher.update(&7u64.to_le_bytes()).update(b"test");
        let mut stream = vec![0u8; 3 * AT_ONCE];
        hasher.finalize_xof().fill(&mut stream);
        let mut random = Random::new(7, "test");
        for bytes in stream.as_chunks().0 {
            assert_eq!(
                random.below(1 << 20),
                u64::from_le_bytes(*bytes) as usize % (1 << 20)
            );
        }
        let mut order: Vec<usize> = (0..8).collect();
        Random::new(1, "order").shuffle(&mut order);
        // What a seed has always given.
        assert_eq!(order, [3, 4, 0, 2, 1, 7, 6, 5]);
    }
}
