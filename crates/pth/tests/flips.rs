//! Every cut and every flipped bit of a few sound files. Nothing panics; and where an archive has CRCs, what is read is what was written.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod build;

use std::collections::BTreeMap;
use std::path::Path;

use build::zip::End64;
use build::{Archive, Entry, Pickle, floats, stacked};
use pth::{Checkpoint, OpenOptions, Source};

/// What a tensor is: element type, shape and bytes.
type Value = (String, Vec<usize>, Vec<u8>);

/// A flipped size may claim gigabytes over a stride of zero, honestly as far as anyone can tell; nobody need wait for them.
const MAX_ELEMENTS: usize = 1 << 20;

/// A sound file, and what is in it.
struct Golden {
    bytes: Vec<u8>,
    tensors: BTreeMap<String, Value>,
    /// Whether each record has a CRC, so that no change in one can go unseen.
    has_crcs: bool,
}

fn open(bytes: &[u8]) -> Result<Checkpoint, pth::Error> {
    Checkpoint::from_source(Source::from_bytes(bytes.to_vec()), &OpenOptions::default())
}

impl Golden {
    fn new(bytes: Vec<u8>, has_crcs: bool) -> Golden {
        let checkpoint = open(&bytes).unwrap();
        assert!(
            checkpoint.problems().is_empty(),
            "the golden file itself is sound"
        );
        let tensors: BTreeMap<String, Value> = checkpoint
            .all_tensors()
            .map(|(name, tensor)| {
                let bytes = tensor.to_bytes().unwrap().into_owned();
                (
                    name.to_owned(),
                    (tensor.dtype().to_string(), tensor.shape().to_vec(), bytes),
                )
            })
            .collect();
        assert!(!tensors.is_empty(), "the golden file has tensors");
        Golden {
            bytes,
            tensors,
            has_crcs,
        }
    }

    /// Opens a damaged copy. Says what is wrong with what came of it, or whether it was accepted.
    fn check(&self, bytes: &[u8]) -> Result<bool, String> {
        // The scan must come to an end as well, whatever it finds.
        let scan = pth::scan(&Source::from_bytes(bytes.to_vec()));
        let Ok(checkpoint) = open(bytes) else {
            let is_clean =
                scan.is_complete && scan.findings.iter().all(|f| f.severity == pth::Severity::Note);
            return if is_clean {
                Err("the scan calls clean what the reader refuses".to_owned())
            } else {
                Ok(false)
            };
        };
        let mut seen = Vec::new();
        for (name, tensor) in checkpoint.all_tensors() {
            let n_elements = tensor
                .shape()
                .iter()
                .try_fold(1_usize, |n, &size| n.checked_mul(size));
            let bytes = match n_elements {
                Some(n) if n <= MAX_ELEMENTS => tensor.to_bytes(),
                _ => continue,
            };
            seen.push(name.to_owned());
            let Ok(bytes) = bytes else { continue };
            if !self.has_crcs {
                continue;
            }
            let found = (
                tensor.dtype().to_string(),
                tensor.shape().to_vec(),
                bytes.into_owned(),
            );
            match self.tensors.get(name) {
                Some(value) if *value == found => {}
                Some(_) => return Err(format!("`{name}` is another tensor")),
                None => return Err(format!("`{name}` was never written")),
            }
        }
        for name in self.tensors.keys() {
            let told = checkpoint.problems().iter().any(|problem| problem.name == *name);
            if self.has_crcs && !told && !seen.contains(name) {
                return Err(format!("`{name}` is missing in silence"));
            }
        }
        Ok(true)
    }

    /// Checks all `n` damaged copies, on every core.
    fn check_all(&self, n: usize, damage: impl Fn(usize) -> Vec<u8> + Sync) -> usize {
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let results: Vec<(usize, Vec<String>)> = std::thread::scope(|scope| {
            let handles: Vec<_> = (0..n_threads)
                .map(|first| {
                    let damage = &damage;
                    scope.spawn(move || {
                        let mut n_accepted = 0;
                        let mut failures = Vec::new();
                        for i in (first..n).step_by(n_threads) {
                            match self.check(&damage(i)) {
                                Ok(accepted) => n_accepted += usize::from(accepted),
                                Err(why) => failures.push(format!("{i}: {why}")),
                            }
                        }
                        (n_accepted, failures)
                    })
                })
                .collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        let failures: Vec<String> = results
            .iter()
            .flat_map(|(_, failures)| failures.clone())
            .collect();
        assert!(
            failures.is_empty(),
            "{} of {n}: {}",
            failures.len(),
            failures[..failures.len().min(20)].join(", ")
        );
        results.iter().map(|(n, _)| n).sum()
    }

    fn check_cuts(&self) {
        let n_accepted = self.check_all(self.bytes.len(), |len| self.bytes[..len].to_vec());
        // An archive ends with what is needed to read it.
        if self.has_crcs {
            assert_eq!(n_accepted, 0, "cuts of the archive were accepted");
        }
    }

    fn check_flips(&self) {
        let n_bits = self.bytes.len() * 8;
        let n_accepted = self.check_all(n_bits, |bit| {
            let mut bytes = self.bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        // Padding, dates and attributes mean nothing: were nothing accepted, nothing would have been compared.
        assert!(0 < n_accepted && n_accepted < n_bits, "{n_accepted} of {n_bits}");
    }
}

/// A file of many kinds as torch would write it: streamed, aligned, with CRCs.
fn golden_zip(order: &str) -> Golden {
    let data_pkl = Pickle::new()
        .op(b"}(")
        .str("epoch")
        .int(7)
        .str("state_dict")
        .global("collections", "OrderedDict")
        .op(b")R(")
        .str("float")
        .tensor("0", 6, 0, &[2, 3], &[3, 1])
        .str("transposed")
        .tensor("0", 6, 0, &[3, 2], &[1, 3])
        .str("row")
        .tensor("0", 6, 3, &[3], &[1])
        .str("scalar")
        .tensor("0", 6, 5, &[], &[])
        .str("expanded")
        .tensor("0", 6, 1, &[4, 2], &[0, 1])
        .str("half")
        .typed("HalfStorage", "1", 3, 0, &[3], &[1])
        .str("long")
        .typed("LongStorage", "2", 2, 0, &[2, 1], &[1, 1])
        .str("bool")
        .typed("BoolStorage", "3", 4, 0, &[4], &[1])
        .str("complex")
        .typed("ComplexFloatStorage", "4", 2, 0, &[2], &[1])
        .str("uint16")
        .untyped("uint16", "5", 6, 0, &[3], &[1])
        .str("empty")
        .typed("FloatStorage", "6", 0, 0, &[0, 3], &[3, 1])
        .op(b"uu")
        .stop();
    let storages: [&[u8]; 7] = [
        &floats(&[1.0, -2.0, 3.5, 4.0, 5.25, -6.0]),
        b"\x00\x3c\x00\x40\x00\xc2",
        &[1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255],
        &[0, 1, 1, 0],
        &floats(&[0.5, -0.5, 8.0, 9.0]),
        &[1, 2, 3, 4, 5, 6],
        b"",
    ];
    let mut entries = vec![
        Entry::streamed("m/data.pkl", &data_pkl),
        Entry::streamed("m/.format_version", b"1"),
        Entry::streamed("m/.storage_alignment", b"64"),
        Entry::streamed("m/byteorder", order.as_bytes()),
    ];
    for (key, bytes) in storages.iter().enumerate() {
        entries.push(Entry::streamed(&format!("m/data/{key}"), bytes));
    }
    entries.push(Entry::streamed("m/version", b"3\n"));
    let archive = Archive::of(entries).with(|zip| zip.end64 = Some(End64::default()));
    Golden::new(archive.bytes(), true)
}

fn fixture(name: &str, has_crcs: bool) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fixtures/checkpoints")
        .join(name);
    Golden::new(std::fs::read(path).unwrap(), has_crcs)
}

/// A stacked file has no CRC: whatever is flipped in a storage is another number, and nobody can tell.
fn golden_legacy() -> Golden {
    let data_pkl = Pickle::new()
        .op(b"}(")
        .str("a")
        .tensor("0", 4, 0, &[2, 2], &[2, 1])
        .str("b")
        .tensor("0", 4, 2, &[2], &[1])
        .op(b"u")
        .stop();
    Golden::new(
        stacked(&data_pkl, &[("0", 4, &floats(&[1.0, 2.0, 3.0, 4.0]))]),
        false,
    )
}

#[test]
fn every_cut_and_flip_of_a_streamed_archive() {
    let golden = golden_zip("little");
    golden.check_cuts();
    golden.check_flips();
}

/// Where the record that gives the byte order is lost, the other order would be read.
#[test]
fn every_cut_and_flip_of_a_big_endian_archive() {
    let golden = golden_zip("big");
    golden.check_cuts();
    golden.check_flips();
}

#[test]
fn every_cut_and_flip_of_an_archive_that_torch_wrote() {
    let golden = fixture("layouts.pth", true);
    golden.check_cuts();
    golden.check_flips();
}

#[test]
fn every_cut_and_flip_of_stacked_pickles() {
    let golden = golden_legacy();
    golden.check_cuts();
    golden.check_flips();
}

#[test]
fn every_cut_and_flip_of_stacked_pickles_that_torch_wrote() {
    let golden = fixture("layouts-legacy.pth", false);
    golden.check_cuts();
    golden.check_flips();
}

/// What a cut stacked file still gives is what was written.
#[test]
fn cuts_of_stacked_pickles_change_nothing_that_is_left() {
    for mut golden in [golden_legacy(), fixture("layouts-legacy.pth", false)] {
        golden.has_crcs = true;
        golden.check_all(golden.bytes.len(), |len| golden.bytes[..len].to_vec());
    }
}
