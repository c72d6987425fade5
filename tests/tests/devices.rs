//! A device that is asked for is used or named as absent; nothing else steps in for it.

use harness::{Said, Scratch, fixture, run};

fn extract(scratch: &Scratch, more: &[&str]) -> Said {
    let mut command = scratch.command(["extract", "--cache", "cache", "--resize", "32", "--crop", "32"]);
    command
        .arg("--backbone")
        .arg(fixture("digits/backbone.onnx"))
        .arg("--data")
        .arg(fixture("digits/pictures"))
        .args(more);
    run(command)
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_with_a_hint() {
    let scratch = Scratch::new();
    let doctor = run(scratch.command(["doctor", "--json"])).ok().json();
    let reason = doctor["cuda"]["reason"].as_str();
    if doctor["cuda"]["devices"].is_array() {
        // The one check of a real GPU that a machine with one allows here: a number too high.
        extract(&scratch, &["--device", "cuda:999"]).fails(5, "cuda:999 cannot be used: ");
        return;
    }
    let reason = reason.expect("no devices, hence a reason");
    for device in ["cuda", "cuda:1"] {
        let said = extract(&scratch, &["--device", device]).fails(5, reason);
        assert!(
            said.stderr.contains(" cannot be used: ") && said.stderr.contains("hint: "),
            "{}",
            said.stderr
        );
        assert_eq!(said.stdout, "");
    }
    assert!(!scratch.path("cache").exists(), "something was computed");
    for verb in ["eval", "predict"] {
        let said = run(scratch.command([verb, "--help"])).ok();
        assert!(said.stdout.contains("--device <DEVICE>"), "{}", said.stdout);
    }
}

#[test]
fn devices_that_do_not_exist_and_tf32_without_a_gpu() {
    let scratch = Scratch::new();
    extract(&scratch, &["--device", "gpu"]).fails(2, "`gpu` is no device; there are cpu, cuda and cuda:N");
    extract(&scratch, &["--tf32"]).fails(
        2,
        "TF32 is a number format of CUDA devices, and the device is cpu\nhint: --device cuda",
    );
}

#[test]
fn the_device_is_said_and_doctor_lists_what_each_library_can_run_on() {
    let scratch = Scratch::new();
    let said = extract(&scratch, &["--device", "cpu"]).ok();
    assert!(
        said.stderr.contains("running on the CPU with ONNX Runtime 1."),
        "{}",
        said.stderr
    );
    let doctor = run(scratch.command(["doctor"])).ok();
    assert!(doctor.stdout.contains("CPU)\n"), "{}", doctor.stdout);
    let json = run(scratch.command(["doctor", "--json"])).ok().json();
    let providers = json["onnxruntime"]["used"]["providers"].as_array().unwrap();
    assert!(
        providers.iter().any(|name| name == "CPUExecutionProvider"),
        "{json}"
    );
}
