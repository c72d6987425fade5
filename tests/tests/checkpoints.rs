//! Checkpoints through the binary, against digests that PyTorch made (`tools/make_fixtures.py`).
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;

use harness::{Scratch, fixture, run};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn expected() -> Value {
    serde_json::from_slice(&fs::read(fixture("checkpoints/expected.json")).unwrap()).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The entries of one checkpoint that are in its state dict, under the names they have there.
fn state_dict_entries(file: &Value) -> Vec<(String, &Value)> {
    let tensors = file["tensors"].as_array().unwrap();
    let wrapped = tensors
        .iter()
        .any(|tensor| tensor["name"].as_str().unwrap().starts_with("state_dict."));
    tensors
        .iter()
        .filter_map(|tensor| {
            let name = tensor["name"].as_str().unwrap();
            let name = if wrapped {
                name.strip_prefix("state_dict.")?
            } else {
                name
            };
            Some((name.to_owned(), tensor))
        })
        .collect()
}

#[test]
fn names_order_shapes_strides_and_marks_are_torchs() {
    let scratch = Scratch::new();
    for (name, file) in expected().as_object().unwrap() {
        let mut command = scratch.command_without_runtime(["inspect", "--json"]);
        command.arg(fixture("checkpoints").join(name));
        let got = run(command).ok().json();
        assert_eq!(got["problems"], Value::Array(Vec::new()), "{name}");
        let want = state_dict_entries(file);
        let got: Vec<(&str, &Value)> = got["tensors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| (t["name"].as_str().unwrap(), t))
            .collect();
        let names = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let (got_names, want_names) = (
            names(got.iter().map(|(n, _)| *n).collect()),
            names(want.iter().map(|(n, _)| n.as_str()).collect()),
        );
        assert_eq!(got_names, want_names, "{name}");
        for ((tensor_name, got), (_, want)) in got.iter().zip(&want) {
            for key in ["dtype", "shape", "stride", "requires_grad"] {
                assert_eq!(got[key], want[key], "{name}: {key} of {tensor_name}");
            }
        }
    }
}

#[test]
fn converted_tensors_are_torchs_bit_for_bit() {
    let scratch = Scratch::new();
    let mut n_compared = 0;
    for (name, file) in expected().as_object().unwrap() {
        let out = format!("{name}.safetensors");
        let mut command = scratch.command_without_runtime(["convert"]);
        command.arg(fixture("checkpoints").join(name)).arg(&out);
        let want = state_dict_entries(file);
        // safetensors has no complex128: the whole conversion is refused, and the tensor named.
        let inexpressible = want.iter().find(|(_, tensor)| tensor["dtype"] == "complex128");
        if let Some((tensor, _)) = inexpressible {
            run(command).fails(3, tensor);
            assert!(!scratch.path(&out).exists());
            continue;
        }
        run(command).ok();
        let (tensors, metadata) = surgery::open_safetensors(&scratch.path(&out)).unwrap();
        assert_eq!(metadata.get("format").map(String::as_str), Some("pt"));
        assert_eq!(tensors.len(), want.len(), "{name}");
        for (tensor_name, want) in want {
            let bytes = tensors.get(&tensor_name).expect(&tensor_name).to_bytes().unwrap();
            assert_eq!(
                sha256(&bytes),
                want["sha256"].as_str().unwrap(),
                "{name}: {tensor_name}"
            );
            n_compared += 1;
        }
    }
    assert!(n_compared > 20, "only {n_compared} tensors were compared");
}

#[test]
fn prefixes_are_stripped_and_marks_survive_the_file() {
    let scratch = Scratch::new();
    let mut command = scratch.command_without_runtime(["convert", "--strip-prefix", "module."]);
    command
        .args(["--freeze", "conv.**"])
        .arg(fixture("checkpoints/training-legacy.pth.tar"))
        .arg("out.safetensors");
    run(command).ok();
    let got = run(scratch.command_without_runtime(["inspect", "--json", "out.safetensors"]))
        .ok()
        .json();
    let tensors = got["tensors"].as_array().unwrap();
    assert!(
        tensors
            .iter()
            .all(|tensor| !tensor["name"].as_str().unwrap().starts_with("module."))
    );
    let frozen = |name: &str| {
        tensors
            .iter()
            .find(|t| t["name"] == name)
            .map(|t| t["requires_grad"] == false)
    };
    assert_eq!(frozen("conv.weight"), Some(true));
    assert!(
        tensors.iter().any(|tensor| tensor["requires_grad"] == true),
        "everything is frozen"
    );
}

#[test]
fn a_tensor_is_shown_as_pytorch_shows_it() {
    let scratch = Scratch::new();
    let mut command = scratch.command_without_runtime(["show"]);
    command
        .arg(fixture("digits/backbone.pth"))
        .arg("conv1.conv.weight[0][0]");
    let text = run(command).ok().stdout;
    // print(torch.load('backbone.pth')['conv1.conv.weight'][0][0])
    let want = "tensor([[-0.2036,  0.1200,  0.0378],\n        [ 0.0378,  0.0728, -0.0308],\n        [ 0.0103,  0.0188,  0.0382]])\n";
    assert_eq!(text, want);
    let mut command = scratch.command_without_runtime(["show"]);
    command.arg(fixture("digits/backbone.pth")).arg("fc.wieght");
    run(command).fails(2, "fc.weight");
}

#[test]
fn what_is_no_checkpoint_is_named() {
    let scratch = Scratch::new();
    let zip = fs::read(fixture("checkpoints/dtypes.pth")).unwrap();
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    for (name, bytes, message) in [
        ("lfs.pth", lfs.as_slice(), "Git LFS"),
        ("page.pth", b"<!DOCTYPE html><html></html>", "HTML"),
        ("cut.pth", &zip[..zip.len() * 2 / 3], "cut off"),
        ("empty.pth", b"", "empty"),
    ] {
        scratch.write(name, bytes);
        run(scratch.command_without_runtime(["inspect", name])).fails(3, message);
        run(scratch.command_without_runtime(["convert", name, "out.safetensors"])).fails(3, message);
    }
    run(scratch.command_without_runtime(["inspect", "absent.pth"])).fails(3, "No such file");
    assert_eq!(
        scratch
            .names("")
            .iter()
            .filter(|name| name.starts_with("out") || name.ends_with(".tmp"))
            .count(),
        0
    );
}

#[test]
fn nothing_is_overwritten_unasked() {
    let scratch = Scratch::new();
    scratch.write("out.safetensors", b"mine");
    let convert = |more: &[&str]| {
        let mut command = scratch.command_without_runtime(["convert"]);
        command
            .args(more)
            .arg(fixture("digits/backbone.pth"))
            .arg("out.safetensors");
        run(command)
    };
    convert(&[]).fails(2, "--force");
    assert_eq!(fs::read(scratch.path("out.safetensors")).unwrap(), b"mine");
    convert(&["--force"]).ok();
    let (tensors, _) = surgery::open_safetensors(&scratch.path("out.safetensors")).unwrap();
    assert_eq!(tensors.len(), 26);
}
