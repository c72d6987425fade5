//! Views and their readers against a naive walk over every index; damage told of by the reader; the layout of promised tensors.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod build;

use std::io::Write;

use build::zip::Method;
use build::{archive, floats, pickle::Pickle};
use pth::{
    Archive, Backing, Checkpoint, DType, Error, OpenOptions, Profile, Source, StateDict, Storage, Tensor,
    Value, save_to_bytes,
};

/// Pseudo-random numbers, the same in every run (Knuth's MMIX generator).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn shuffled(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

fn counted(dtype: DType, shape: &[usize]) -> Tensor {
    let n = shape.iter().product::<usize>() * dtype.size();
    Tensor::from_bytes(dtype, shape, (0..n).map(|i| (i * 37 % 251) as u8).collect()).unwrap()
}

/// Obviously right: every index, by division, in row-major order.
fn naive(tensor: &Tensor) -> Vec<u8> {
    let size = tensor.dtype().size();
    let all = tensor.storage().read(0..tensor.storage().nbytes()).unwrap();
    let mut bytes = Vec::new();
    for flat in 0..tensor.numel() {
        let mut rest = flat;
        let mut element = tensor.storage_offset();
        for (&n, &step) in tensor.shape().iter().zip(tensor.stride()).rev() {
            element += rest % n * step;
            rest /= n;
        }
        bytes.extend_from_slice(&all[element * size..(element + 1) * size]);
    }
    bytes
}

/// Reads from a few places on, in parts of every size, and compares.
fn check_reader(tensor: &Tensor, expected: &[u8], random: &mut Random) {
    let size = tensor.dtype().size();
    for start in [0, random.below(tensor.numel() + 1), tensor.numel()] {
        let mut reader = tensor.reader_at(start).unwrap();
        let mut found = Vec::new();
        let mut left = tensor.numel() - start;
        let longest = 1 + random.below(left + 1);
        while left > 0 {
            let n = (1 + random.below(longest)).min(left);
            let mut part = vec![0; n * size];
            reader.read(&mut part).unwrap();
            found.extend(part);
            left -= n;
        }
        assert_eq!(found, expected[start * size..], "{tensor:?} from {start}");
        assert!(reader.read(&mut vec![0; size]).is_err(), "there is nothing more");
    }
}

#[test]
fn chopped_reads_of_any_view_equal_the_naive_walk() {
    let mut random = Random(4);
    let shapes: [&[usize]; 9] = [
        &[],
        &[7],
        &[0, 3],
        &[33, 50],
        &[2, 3, 4],
        &[17, 1, 19],
        &[5, 40, 3],
        &[3, 18, 2, 20],
        &[2, 3, 4, 5, 2],
    ];
    let dtypes = [
        DType::Uint8,
        DType::BFloat16,
        DType::Float32,
        DType::Int64,
        DType::Complex128,
    ];
    for shape in shapes {
        for dtype in dtypes {
            for _ in 0..12 {
                let mut view = counted(dtype, shape)
                    .permute(&random.shuffled(shape.len()))
                    .unwrap();
                for dim in 0..shape.len() {
                    let n = view.shape()[dim];
                    if n > 1 && random.below(3) == 0 {
                        let (start, step) = (random.below(n), 1 + random.below(3));
                        let len = 1 + (n - 1 - start) / step;
                        view = view.slice_in(dim, start, len, step).unwrap();
                    }
                }
                let expected = naive(&view);
                assert_eq!(*view.to_bytes().unwrap(), expected);
                check_reader(&view, &expected, &mut random);
            }
        }
    }
    // Windows that overlap, and elements that are repeated.
    let storage = counted(DType::Float32, &[64]).storage().clone();
    for (shape, stride) in [
        ([20, 8], [1, 1]),
        ([8, 20], [2, 1]),
        ([30, 9], [0, 1]),
        ([9, 30], [1, 0]),
        ([20, 20], [1, 2]),
    ] {
        let view = Tensor::from_storage(storage.clone(), DType::Float32, &shape, &stride, 3).unwrap();
        check_reader(&view, &naive(&view), &mut random);
    }
}

#[test]
fn permutations_are_torchs_and_are_checked() {
    let tensor = counted(DType::Float32, &[2, 3, 4]).into_parameter(true);
    let view = tensor.permute(&[2, 0, 1]).unwrap();
    assert_eq!((view.shape(), view.stride()), (&[4, 2, 3][..], &[1, 12, 4][..]));
    assert!(view.storage().ptr_eq(tensor.storage()) && view.requires_grad() && !view.is_parameter());
    let refused = |dims: &[usize]| tensor.permute(dims).unwrap_err().to_string();
    assert_eq!(
        refused(&[0, 1]),
        "malformed: order [0, 1] of 3 dimensions, expected each once"
    );
    assert_eq!(
        refused(&[0, 1, 1]),
        "malformed: order [0, 1, 1] of 3 dimensions, expected each once"
    );
    assert_eq!(
        refused(&[0, 1, 3]),
        "too many indices: dimension 3 of a tensor with 3"
    );
}

/// What torch 2.15 answers to `torch.arange(24.).as_strided(...).view(...)`.
#[test]
fn views_are_torchs() {
    let storage = counted(DType::Float32, &[64]).storage().clone();
    let check = |shape: &[usize], stride: &[usize], new: &[usize], expected: Option<&[usize]>| {
        let tensor = Tensor::from_storage(storage.clone(), DType::Float32, shape, stride, 0).unwrap();
        let view = tensor.view_as(new);
        assert_eq!(
            view.as_ref().map(Tensor::stride),
            expected,
            "{shape:?} {stride:?} {new:?}"
        );
        if let Some(view) = view {
            assert_eq!(view.shape(), new);
            assert_eq!(naive(&view), naive(&tensor));
        }
    };
    check(&[4, 6], &[6, 1], &[2, 2, 3, 2], Some(&[12, 6, 2, 1]));
    check(&[4, 6], &[6, 1], &[24], Some(&[1]));
    check(&[6, 4], &[1, 6], &[24], None);
    check(&[6, 4], &[1, 6], &[2, 3, 4], Some(&[3, 1, 6]));
    check(&[6, 4], &[1, 6], &[6, 2, 2], Some(&[1, 12, 6]));
    check(&[4, 3], &[12, 2], &[12], None);
    check(&[4, 3], &[6, 2], &[12], Some(&[2]));
    check(&[4, 3], &[6, 2], &[2, 6], Some(&[12, 2]));
    check(&[3, 4], &[0, 1], &[12], None);
    check(&[3, 4], &[0, 0], &[2, 6], Some(&[0, 0]));
    check(&[4, 6], &[6, 1], &[4, 5], None);
    check(&[0, 6], &[6, 1], &[3, 0], Some(&[1, 1]));
    check(&[], &[], &[1, 1], Some(&[1, 1]));
    check(&[1, 1], &[7, 5], &[], Some(&[]));
}

fn one_tensor(method: Method, values: &[f32], shape: &[i32], stride: &[i32]) -> Vec<u8> {
    let n = i32::try_from(values.len()).unwrap();
    let object = Pickle::new()
        .op(b"}")
        .str("t")
        .tensor("0", n, 0, shape, stride)
        .op(b"s")
        .stop();
    archive(&object, &[("0", &floats(values))], method)
}

fn opened(bytes: Vec<u8>) -> Tensor {
    let checkpoint = Checkpoint::from_source(Source::from_bytes(bytes), &OpenOptions::default()).unwrap();
    checkpoint.state_dict().get("t").unwrap().clone()
}

#[test]
fn deflated_storages_are_read_part_by_part() {
    let values: Vec<f32> = (0..40_000_u16).map(|i| f32::from(i % 97)).collect();
    let mut random = Random(9);
    for (shape, stride) in [
        ([200, 200], [200, 1]),
        ([200, 200], [1, 200]),
        ([100, 50], [400, 1]),
    ] {
        let tensor = opened(one_tensor(Method::Deflated, &values, &shape, &stride));
        check_reader(&tensor, &naive(&tensor), &mut random);
    }
}

#[test]
fn a_damaged_storage_is_told_of_by_the_reader() {
    let values: Vec<f32> = (0..1000_u16).map(f32::from).collect();
    let mut bytes = one_tensor(Method::Stored, &values, &[1000], &[1]);
    let at = bytes
        .windows(4)
        .position(|window| window == 777_f32.to_le_bytes())
        .unwrap();
    bytes[at] ^= 1;
    let tensor = opened(bytes.clone());
    // On the way, with the last element.
    let mut reader = tensor.reader_at(0).unwrap();
    reader.read(&mut [0; 3996]).unwrap();
    let error = reader.read(&mut [0; 4]).unwrap_err().to_string();
    assert!(error.starts_with("record `data/0`: its CRC is "), "{error}");
    // Before, where not all of it is read.
    assert!(opened(bytes.clone()).reader_at(1).is_err());
    assert!(opened(bytes).slice_in(0, 0, 10, 2).unwrap().reader_at(0).is_err());
}

#[test]
fn files_are_read_where_they_lie_and_changes_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.pth");
    let values: Vec<f32> = (0..60_000_u16).map(f32::from).collect();
    let mut random = Random(1);
    for (shape, stride) in [([300, 200], [200, 1]), ([200, 300], [1, 200])] {
        let bytes = one_tensor(Method::Stored, &values, &shape, &stride);
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&bytes).unwrap();
        drop(file);
        for backing in [Backing::Map, Backing::Read] {
            let options = OpenOptions {
                backing,
                ..OpenOptions::default()
            };
            let checkpoint = Checkpoint::open_with(&path, &options).unwrap();
            let tensor = checkpoint.state_dict().get("t").unwrap();
            check_reader(tensor, &naive(tensor), &mut random);
        }
        let tensor = Checkpoint::open(&path)
            .unwrap()
            .state_dict()
            .get("t")
            .unwrap()
            .clone();
        let mut reader = tensor.reader_at(0).unwrap();
        reader.read(&mut vec![0; 239_996]).unwrap();
        let longer = [bytes.as_slice(), b"more"].concat();
        // In place: a mapped file must not be truncated.
        let mut file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all(&longer).unwrap();
        assert!(matches!(
            reader.read(&mut [0; 4]).unwrap_err(),
            Error::Changed { .. }
        ));
    }
}

#[test]
fn promised_bytes_are_refused_until_they_are_there() {
    let (a, b) = (Storage::promised(16), Storage::promised(16));
    assert!(
        a.is_promised() && !a.ptr_eq(&b) && a.ptr_eq(&a.clone()) && !Storage::owned(vec![]).is_promised()
    );
    let tensor = Tensor::contiguous(a, DType::Float32, &[4]).unwrap();
    let text = "a storage of 16 bytes that are still to be computed cannot be read";
    assert_eq!(tensor.to_bytes().unwrap_err().to_string(), text);
    assert_eq!(tensor.reader_at(0).unwrap_err().to_string(), text);
    assert_eq!(tensor.write_to(&mut Vec::new()).unwrap_err().to_string(), text);
    let value = Value::Tensor(tensor);
    assert_eq!(
        save_to_bytes(&value, Profile::Torch).unwrap_err().to_string(),
        text
    );
}

/// The file that is put together from the layout of promises is the file that `save` writes of the tensors.
#[test]
fn the_layout_is_that_of_save() {
    let shapes: [&[usize]; 4] = [&[3, 5], &[], &[0, 2], &[400, 1000]];
    let (mut made, mut promised) = (StateDict::new(), StateDict::new());
    for (i, shape) in shapes.iter().enumerate() {
        let tensor = counted(DType::Float32, shape);
        let promise = Storage::promised(tensor.nbytes());
        let promise = Tensor::contiguous(promise, DType::Float32, shape).unwrap();
        for name in [format!("{i}.weight"), format!("{i}.tied")] {
            made.insert(name.clone(), tensor.clone());
            promised.insert(name, promise.clone());
        }
    }
    let expected = save_to_bytes(&Value::from(made.clone()), Profile::Torch).unwrap();
    let archive = Archive::plan(&Value::from(promised), Profile::Torch).unwrap();
    assert_eq!(archive.n_bytes(), expected.len() as u64);
    assert_eq!(archive.slots().len(), shapes.len());
    let mut file = vec![0; expected.len()];
    let mut crcs = Vec::new();
    let mut n_bytes = 0;
    for (slot, (_, tensor)) in archive.slots().iter().zip(made.iter().step_by(2)) {
        let bytes = tensor.to_bytes().unwrap();
        let at = usize::try_from(slot.offset).unwrap();
        assert!(slot.component == 1 && slot.storage.nbytes() == bytes.len() && at.is_multiple_of(64));
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        crcs.push(crc32fast::hash(&bytes));
        n_bytes += bytes.len();
    }
    archive
        .write_rest(&crcs, &mut |at, bytes| {
            let at = usize::try_from(at).unwrap();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            n_bytes += bytes.len();
            Ok(())
        })
        .unwrap();
    assert!(file == expected && n_bytes == expected.len());
}
