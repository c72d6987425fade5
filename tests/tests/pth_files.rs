//! Writing, scanning and verifying checkpoints through the binary.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;
use std::path::Path;

use harness::{Scratch, fixture, run};
use serde_json::Value;

const CHECKPOINTS: [&str; 9] = [
    "conj-neg.pth",
    "dtypes-legacy.pth",
    "dtypes-v3.pth",
    "dtypes.pth",
    "layouts-legacy.pth",
    "layouts.pth",
    "parameters.pth",
    "training-legacy.pth.tar",
    "training.pth",
];

fn inspect(scratch: &Scratch, path: &Path) -> Value {
    let mut command = scratch.command_without_runtime(["inspect", "--json"]);
    command.arg(path);
    run(command).ok().json()
}

/// What of a listing a conversion must not change.
fn lasting(listing: &Value) -> Vec<Value> {
    let tensors = listing["tensors"].as_array().unwrap();
    let keys = ["name", "dtype", "shape", "stride", "offset", "requires_grad"];
    tensors
        .iter()
        .map(|tensor| keys.iter().map(|key| tensor[*key].clone()).collect())
        .collect()
}

#[test]
fn a_converted_checkpoint_is_the_same_clean_and_whole() {
    let scratch = Scratch::new();
    for name in CHECKPOINTS {
        let mut command = scratch.command_without_runtime(["convert", "--force"]);
        command.arg(fixture("checkpoints").join(name)).arg("out.pth");
        run(command).ok();
        let (before, after) = (
            inspect(&scratch, &fixture("checkpoints").join(name)),
            inspect(&scratch, &scratch.path("out.pth")),
        );
        assert_eq!(after["format"], "pytorch zip");
        assert_eq!(lasting(&before), lasting(&after), "{name}");
        let open = |path: &Path| pth::Checkpoint::open(path).unwrap().into_state_dict();
        let (source, copy) = (
            open(&fixture("checkpoints").join(name)),
            open(&scratch.path("out.pth")),
        );
        for ((name, tensor), (_, copied)) in source.iter().zip(copy.iter()) {
            assert_eq!(tensor.to_bytes().unwrap(), copied.to_bytes().unwrap(), "{name}");
        }
        let verified = run(scratch.command_without_runtime(["verify", "--json", "out.pth"]))
            .ok()
            .json();
        assert_eq!(
            (&verified["ok"], &verified["without_crc"]),
            (&Value::from(true), &Value::from(0))
        );
        let scanned = run(scratch.command_without_runtime(["scan", "--json", "out.pth"]))
            .ok()
            .json();
        assert_eq!(scanned["weights_only"]["loads"], true, "{name}");
        assert_eq!(scanned["complete"], true);
    }
}

#[test]
fn all_of_a_training_checkpoint_is_kept_as_plain_values() {
    let scratch = Scratch::new();
    let mut command = scratch.command_without_runtime(["convert", "--all"]);
    command
        .arg(fixture("checkpoints/training-legacy.pth.tar"))
        .arg("out.pth");
    run(command).ok();
    let (before, after) = (
        inspect(&scratch, &fixture("checkpoints/training-legacy.pth.tar")),
        inspect(&scratch, &scratch.path("out.pth")),
    );
    assert_eq!(after["wrapper"], "state_dict");
    let others = |listing: &Value| -> Vec<(Value, Value, Value)> {
        let others = listing["other"].as_array().unwrap().iter();
        others
            .map(|other| {
                (
                    other["name"].clone(),
                    other["value"].clone(),
                    other["shape"].clone(),
                )
            })
            .collect()
    };
    assert_eq!(others(&before), others(&after));
    assert!(
        others(&after)
            .iter()
            .any(|(name, value, _)| name == "epoch" && value == "18")
    );
    for (flags, message) in [
        (&["--all", "--freeze", "**"][..], "cannot be used with"),
        (&["--all", "--dtype", "float16"], "cannot be used with"),
    ] {
        let mut command = scratch.command_without_runtime(["convert", "in.pth", "b.pth"]);
        command.args(flags);
        let said = run(command);
        assert_eq!(said.code, 2);
        assert!(said.stderr.contains(message), "{}", said.stderr);
    }
    run(scratch.command_without_runtime(["convert", "in.pth", "b.safetensors", "--all"]))
        .fails(2, "tensors only");
    run(scratch.command_without_runtime(["convert", "in.pth", "b.txt"])).fails(2, ".safetensors");
}

/// `[magic number, protocol, system, object, storage keys]`: a dict of one float tensor and what calling `os.system` would return.
fn attack() -> Vec<u8> {
    let mut file =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.".to_vec();
    file.extend(b"\x80\x02}(X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n");
    file.extend(b"X\x01\0\0\x000X\x03\0\0\0cpuK\x02NtQK\0K\x02\x85K\x01\x85\x89NtR");
    file.extend(b"X\x01\0\0\0xcos\nsystem\nX\x04\0\0\0true\x85Ru.");
    file.extend(b"\x80\x02](X\x01\0\0\x000e.");
    file.extend(2_u64.to_le_bytes());
    file.extend([1.5_f32, -2.0].map(f32::to_le_bytes).concat());
    file
}

#[test]
fn an_attack_is_refused_named_and_only_on_request_read_around() {
    let scratch = Scratch::new();
    scratch.write("attack.pth", &attack());
    for verb in [
        &["inspect", "attack.pth"][..],
        &["show", "attack.pth", "w"],
        &["convert", "attack.pth", "o.pth"],
    ] {
        run(scratch.command_without_runtime(verb)).fails(4, "os.system");
    }
    assert!(!scratch.path("o.pth").exists());
    let said = run(scratch.command_without_runtime(["scan", "attack.pth"]));
    assert_eq!(said.code, 1);
    assert!(said.stdout.contains("made to run code"), "{}", said.stdout);
    assert!(
        said.stdout
            .contains("critical  global.unsafe  object: os.system at byte"),
        "{}",
        said.stdout
    );
    let shown = run(scratch.command_without_runtime(["show", "attack.pth", "w", "--allow-opaque"])).ok();
    assert_eq!(shown.stdout, "tensor([ 1.5000, -2.0000])\n");
    let scanned = run(scratch.command_without_runtime(["scan", "attack.pth", "--json"])).json();
    assert_eq!(scanned["weights_only"]["loads"], false);
    let globals = scanned["globals"].as_array().unwrap();
    assert!(
        globals
            .iter()
            .any(|g| g["name"] == "system" && g["called"] == true && g["verdict"] == "unsafe")
    );
}

#[test]
fn damage_is_found_by_verify_and_stops_every_copy() {
    let scratch = Scratch::new();
    let mut bytes = fs::read(fixture("checkpoints/layouts.pth")).unwrap();
    // The last values of an int16 storage.
    let needle: Vec<u8> = [250_i16, 251, 252]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle)
        .unwrap();
    bytes[at] ^= 4;
    scratch.write("damaged.pth", &bytes);
    let said = run(scratch.command_without_runtime(["verify", "damaged.pth"]));
    assert_eq!(said.code, 1);
    assert!(
        said.stdout.starts_with("damaged.pth: damaged\n"),
        "{}",
        said.stdout
    );
    assert!(said.stdout.contains("its CRC is "), "{}", said.stdout);
    for out in ["o.pth", "o.safetensors"] {
        run(scratch.command_without_runtime(["convert", "damaged.pth", out])).fails(3, "its CRC is ");
        assert!(!scratch.path(out).exists());
    }
    let mut command = scratch.command_without_runtime(["verify"]);
    command.arg(fixture("checkpoints/dtypes-legacy.pth"));
    let legacy = run(command).ok();
    assert!(
        legacy.stdout.contains("not every record has a CRC"),
        "{}",
        legacy.stdout
    );
    run(scratch.command_without_runtime(["verify", "absent.pth"])).fails(3, "No such file");
    run(scratch.command_without_runtime(["scan", "absent.pth"])).fails(3, "No such file");
}

#[test]
fn a_whole_model_becomes_a_state_dict_with_versions() {
    let scratch = Scratch::new();
    let mut command = scratch.command_without_runtime(["convert"]);
    command.arg(fixture("digits/backbone_model.pth")).arg("out.pth");
    run(command).ok();
    let model = pth::Checkpoint::open(&scratch.path("out.pth")).unwrap();
    let plain = pth::Checkpoint::open(&fixture("digits/backbone.pth")).unwrap();
    assert!(model.state_dict().names().eq(plain.state_dict().names()));
    // torch wrote these for the state dict; for the model they follow from its classes.
    assert_eq!(model.state_dict().metadata(), plain.state_dict().metadata());
    assert!(
        model
            .state_dict()
            .metadata()
            .iter()
            .any(|entry| entry.version == Some(2))
    );
    let said = run(scratch.command_without_runtime(["convert", "out.pth", "plain.pth", "--plain"])).ok();
    assert!(
        said.stdout.starts_with("wrote plain.pth: 26 tensors"),
        "{}",
        said.stdout
    );
}
