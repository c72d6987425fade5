//! The readers, each used as its own documentation shows, on one thread.

use std::any::Any;
use std::fs::File;
use std::io::{self, Cursor};
use std::path::Path;

use anyhow::{Context, bail};
use candle_core::Storage;
use candle_core::pickle::PthTensors;
use clap::ValueEnum;
use memmap2::Mmap;
use pth::Checkpoint;
use pytorch_reader::PytorchReader;
use zip::ZipArchive;

/// Who reads.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Side {
    /// `pth` on a memory map.
    Graftwork,
    /// `pth` on positional reads.
    GraftworkPread,
    /// `candle_core::pickle`.
    Candle,
    /// burn's reader.
    PytorchReader,
    /// No checkpoint reader: what listing the archive's members with the `zip` crate costs by itself.
    ZipCrate,
}

/// What is done.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(crate) enum Task {
    /// Open, and look at every tensor's name, shape and dtype.
    List,
    /// The same, and look at every byte of every tensor.
    Read,
}

/// What a reader found; every reader that reads the file right finds the same.
#[derive(Default)]
pub(crate) struct Tally {
    /// Number of tensors, or of members for the `zip` crate.
    pub(crate) n_tensors: usize,
    /// Sum of the lengths of the names, of all extents and of the elements' sizes in bytes.
    pub(crate) looked_at: u64,
    /// All tensors' bytes as little-endian words, combined by exclusive or.
    pub(crate) xor: u64,
}

impl Tally {
    fn note(&mut self, name: &str, shape: &[usize], n_bytes_per_element: usize) {
        self.n_tensors += 1;
        self.looked_at += (name.len() + shape.iter().sum::<usize>() + n_bytes_per_element) as u64;
    }
}

/// Takes one tensor's bytes in pieces and keeps the exclusive or of their words.
#[derive(Default)]
struct Fold {
    xor: u64,
    n_bytes: usize,
}

impl io::Write for Fold {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let piece = words.iter().fold(u64::from_le_bytes(last), |xor, word| {
            xor ^ u64::from_le_bytes(*word)
        });
        // A piece may begin inside a word: turn its lanes to where they belong.
        self.xor ^= piece.rotate_left(8 * (self.n_bytes % 8) as u32);
        self.n_bytes += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn fold(bytes: &[u8]) -> u64 {
    let mut fold = Fold::default();
    io::Write::write_all(&mut fold, bytes).expect("a fold takes every write");
    fold.xor
}

/// Does `task`. What was opened is returned, so that freeing it is neither timed nor hides from the memory's peak.
pub(crate) fn run(side: Side, task: Task, path: &Path, tally: &mut Tally) -> anyhow::Result<Box<dyn Any>> {
    match side {
        Side::Graftwork => graftwork(Checkpoint::open(path)?, task, tally),
        Side::GraftworkPread => graftwork(open_with_pread(path)?, task, tally),
        Side::Candle => candle(path, task, tally),
        Side::PytorchReader => pytorch_reader(path, task, tally),
        Side::ZipCrate => zip_crate(path, task, tally),
    }
}

/// Bytes are streamed: `pth` lends them from the map or passes them through one bounded buffer.
fn graftwork(checkpoint: Checkpoint, task: Task, tally: &mut Tally) -> anyhow::Result<Box<dyn Any>> {
    for (name, tensor) in checkpoint.state_dict().iter() {
        tally.note(name, tensor.shape(), tensor.dtype().size());
        if task == Task::Read {
            let mut fold = Fold::default();
            tensor
                .write_to(&mut fold)
                .with_context(|| format!("cannot read `{name}`"))?;
            tally.xor ^= fold.xor;
        }
    }
    Ok(Box::new(checkpoint))
}

fn open_with_pread(path: &Path) -> anyhow::Result<Checkpoint> {
    let options = pth::OpenOptions {
        backing: pth::Backing::Read,
        ..pth::OpenOptions::default()
    };
    Ok(Checkpoint::open_with(path, &options)?)
}

/// `PthTensors` is candle's lazy reader, also behind its `VarBuilder::from_pth` and `read_all`.
fn candle(path: &Path, task: Task, tally: &mut Tally) -> anyhow::Result<Box<dyn Any>> {
    let checkpoint = PthTensors::new(path, None)?;
    for (name, info) in checkpoint.tensor_infos() {
        tally.note(name, info.layout.dims(), info.dtype.size_in_bytes());
        if task == Task::Read {
            let tensor = checkpoint.get(name)?.context("a listed tensor is missing")?;
            let (storage, _) = tensor.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else {
                bail!("`{name}` is not on the CPU")
            };
            tally.xor ^= fold(bytemuck::cast_slice(storage.as_slice::<f32>()?));
        }
    }
    Ok(Box::new(checkpoint))
}

fn pytorch_reader(path: &Path, task: Task, tally: &mut Tally) -> anyhow::Result<Box<dyn Any>> {
    let checkpoint = PytorchReader::new(path)?;
    for (name, tensor) in checkpoint.tensors() {
        tally.note(name, tensor.shape(), tensor.dtype().size());
        if task == Task::Read {
            tally.xor ^= fold(&tensor.read()?);
        }
    }
    Ok(Box::new(checkpoint))
}

/// What a checkpoint reader on this crate cannot avoid: the central directory, the check for equal names, every member's entry.
fn zip_crate(path: &Path, task: Task, tally: &mut Tally) -> anyhow::Result<Box<dyn Any>> {
    if task == Task::Read {
        bail!("the archive alone says nothing of tensors");
    }
    // SAFETY: the driver made the file and nobody changes it while we look.
    let map = unsafe { Mmap::map(&File::open(path)?)? };
    let archive = ZipArchive::new(Cursor::new(map))?;
    if archive.has_duplicate_names() {
        bail!("two members of one name");
    }
    for index in 0..archive.len() {
        let member = archive.by_index_data(index)?;
        tally.n_tensors += 1;
        tally.looked_at += member.name_raw().len() as u64 + member.size();
    }
    Ok(Box::new(archive))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::{Fold, fold};

    #[test]
    fn pieces_fold_to_what_the_whole_does() {
        let bytes: Vec<u8> = (0..=99).collect();
        for n_bytes in 1..20 {
            let mut pieces = Fold::default();
            for piece in bytes.chunks(n_bytes) {
                pieces.write_all(piece).unwrap();
            }
            assert_eq!(pieces.xor, fold(&bytes), "pieces of {n_bytes} bytes");
        }
    }
}
