//! A job that is stopped in its middle: killed, interrupted, out of room. The old file stays whole, and the same command succeeds later.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use harness::checkpoints::{floats, tensors};
use harness::{Scratch, binary};

/// A result of more than 200 MB.
const LARGE: &str = "zeros large 50000000; init drawn 2000x2000 normal; expect ** count=3";
const N_LARGE: u64 = 4 * 50_000_000;

fn scratch() -> Scratch {
    binary();
    let scratch = Scratch::new();
    scratch.save("in.pth", &[("w", floats(&[8], 1.0))]);
    scratch
}

fn start(scratch: &Scratch, args: &[&str]) -> Child {
    let mut command = scratch.command_without_runtime(args);
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn temporary(scratch: &Scratch, folder: &str) -> Vec<String> {
    scratch
        .names(folder)
        .into_iter()
        .filter(|name| name.ends_with(".tmp"))
        .collect()
}

/// Whether it is the new result, of which nothing may lack.
fn is_new(path: &Path) -> bool {
    let found = tensors(path);
    match found.len() {
        1 => assert_eq!(found[0].3, *floats(&[8], 1.0).to_bytes().unwrap()),
        3 => {
            assert!(found.iter().any(|(_, _, _, bytes)| bytes.len() as u64 == N_LARGE));
            let drawn = &found.iter().find(|(name, ..)| name == "drawn").unwrap().3;
            let is_filled = |chunk: &[u8]| chunk.iter().any(|byte| *byte != 0);
            assert!(
                drawn.chunks(4096).all(is_filled),
                "a part of the result was never written"
            );
        }
        n => panic!("{n} tensors, which is neither the old nor the new"),
    }
    found.len() == 3
}

#[test]
fn killed_at_any_moment_the_old_file_is_whole_or_the_new_one_is() {
    for (output, delays_ms) in [("out.safetensors", [5, 60, 200]), ("out.pth", [30, 120, 300])] {
        let scratch = scratch();
        scratch
            .graftwork(&["edit", "in.pth", output, "-e", "scale w 1"])
            .ok();
        let edit = ["edit", "in.pth", output, "-e", LARGE, "--force"];
        let mut n_killed = 0;
        for delay_ms in delays_ms {
            let mut child = start(&scratch, &edit);
            std::thread::sleep(Duration::from_millis(delay_ms));
            child.kill().unwrap();
            let status = child.wait().unwrap();
            n_killed += usize::from(status.code().is_none());
            // Whatever it is, it is whole.
            is_new(&scratch.path(output));
        }
        assert!(n_killed > 0, "no moment was early enough");
        // What the kill has left is in nobody's way.
        scratch.graftwork(&edit).ok();
        assert!(is_new(&scratch.path(output)));
    }
}

/// Between an old set and a new one lies at most a folder that is visibly no set.
#[test]
fn a_set_that_is_killed_is_never_a_mixture() {
    let scratch = scratch();
    scratch
        .graftwork(&[
            "edit",
            "in.pth",
            "old.safetensors",
            "-e",
            "init a 500000 constant:1; init b 500000 constant:1; init c 500000 constant:1",
        ])
        .ok();
    let write = |scale: &str, size: &str| {
        [
            "edit",
            "old.safetensors",
            "set",
            "-e",
            scale,
            "--max-shard-size",
            size,
            "--force",
        ]
        .map(str::to_owned)
    };
    let as_str = |args: &[String; 8]| scratch.graftwork(&args.each_ref().map(String::as_str));
    as_str(&write("scale a b c 1", "2MB")).ok();
    let mut scales = std::collections::BTreeSet::new();
    for delay_ms in [2, 5, 8, 11, 14, 17, 20, 25, 30, 40, 60, 100] {
        let args = write("scale a b c 2", "4MB");
        let mut child = start(&scratch, &args.each_ref().map(String::as_str));
        std::thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
        match surgery::open(&scratch.path("set")) {
            Ok(_) => {
                let found = tensors(&scratch.path("set"));
                let firsts = found
                    .iter()
                    .filter(|(name, ..)| name != "w")
                    .map(|(.., bytes)| bytes[..4].to_vec());
                let firsts: std::collections::BTreeSet<Vec<u8>> = firsts.collect();
                assert_eq!(
                    (found.len(), firsts.len()),
                    (4, 1),
                    "a mixture after {delay_ms} ms"
                );
                scales.extend(firsts);
            }
            Err(error) => assert!(
                !scratch.path("set/model.safetensors.index.json").exists(),
                "{error}"
            ),
        }
        as_str(&write("scale a b c 1", "2MB")).ok();
    }
    assert!(!scales.is_empty());
}

#[test]
fn interrupted_it_tidies_up() {
    let mut n_interrupted = 0;
    // Where in the job the signal falls depends on the machine: moments are tried until some are in the middle.
    for (output, delay_ms) in [
        ("out.safetensors", 60),
        ("out.pth", 120),
        ("set", 200),
        ("out.pth", 30),
        ("out.safetensors", 300),
    ] {
        let scratch = scratch();
        let args = ["edit", "in.pth", output, "-e", LARGE, "--max-shard-size", "100MB"];
        let args = if output == "set" { &args[..] } else { &args[..5] };
        let child = start(&scratch, args);
        std::thread::sleep(Duration::from_millis(delay_ms));
        let killed = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap();
        let said = child.wait_with_output().unwrap();
        if !killed.success() || said.status.code() != Some(75) {
            continue;
        }
        n_interrupted += 1;
        let stderr = String::from_utf8(said.stderr).unwrap();
        assert!(
            stderr.contains("error: interrupted\n") && stderr.contains("hint: nothing was written"),
            "{stderr}"
        );
        assert_eq!(scratch.names(""), ["in.pth"]);
        if n_interrupted == 3 {
            break;
        }
    }
    assert!(n_interrupted > 0, "no moment was in the middle of the job");
}

/// Needs leave to mount; says so and passes where there is none.
#[test]
#[cfg(target_os = "linux")]
#[expect(clippy::print_stderr, reason = "a test that skips says so aloud")]
fn a_full_disk() {
    let scratch = scratch();
    let small = scratch.path("small");
    fs::create_dir(&small).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(&small)
        .output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED a_full_disk: this user may not mount a tmpfs");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        for output in ["small/out.safetensors", "small/out.pth", "small/set"] {
            let args = |n: &str, more: &[&'static str]| {
                let steps = format!("ones x {n}; ones y {n}");
                let mut args = vec![
                    "edit".to_owned(),
                    "in.pth".to_owned(),
                    output.to_owned(),
                    "-e".to_owned(),
                    steps,
                ];
                args.extend(more.iter().map(|word| (*word).to_owned()));
                if output == "small/set" {
                    args.extend(["--max-shard-size".to_owned(), "300kB".to_owned()]);
                }
                args
            };
            let edit = |n: &str, more: &[&'static str]| {
                let args = args(n, more);
                scratch.graftwork(&args.iter().map(String::as_str).collect::<Vec<_>>())
            };
            edit("50000", &[]).ok();
            let old = tensors(&scratch.path(output));
            // 1.6 MB never fit; 800 kB do not beside the 400 kB that they would replace.
            for n in ["200000", "100000"] {
                edit(n, &["--force"]).fails(75, "hint: make room and run the same command again");
                assert_eq!(tensors(&scratch.path(output)), old, "{output}");
                assert!(
                    temporary(&scratch, "small").is_empty() && temporary(&scratch, "small/set").is_empty()
                );
            }
            edit("60000", &["--force"]).ok();
            assert_eq!(tensors(&scratch.path(output))[1].3.len(), 240_000, "{output}");
            let path = scratch.path(output);
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.unwrap();
        }
    });
    assert!(Command::new("umount").arg(&small).status().unwrap().success());
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn threads_do_not_change_a_byte() {
    let scratch = scratch();
    // More than a chunk each, and one more than what threads share: 16 and 68 MB.
    let steps = "init big 4000000 normal:.02; init wide 1000x600 kaiming_uniform seed=3; ones long 17000000; scale long 1.5; \
        init small 7x5 orthogonal; tie wide -> tied; cast big bf16";
    scratch
        .graftwork(&[
            "edit",
            "in.pth",
            "a.pth",
            "-e",
            "init w uniform; init x 3000x1000 normal",
        ])
        .ok();
    scratch
        .graftwork(&["edit", "a.pth", "b.safetensors", "-e", "scale ** 3"])
        .ok();
    for extension in ["safetensors", "pth"] {
        let made = |threads: &str| {
            let names = ["e", "m"].map(|stem| format!("{stem}{threads}.{extension}"));
            scratch
                .graftwork(&["edit", "a.pth", &names[0], "-e", steps, "-j", threads])
                .ok();
            let merge = [
                "merge",
                "linear",
                "-o",
                &names[1],
                "a.pth:.3",
                "b.safetensors:.7",
                "-j",
                threads,
            ];
            scratch.graftwork(&merge).ok();
            names.map(|name| {
                let bytes = fs::read(scratch.path(&name)).unwrap();
                fs::remove_file(scratch.path(&name)).unwrap();
                bytes
            })
        };
        let (one, four) = (made("1"), made("4"));
        assert!(one == four, "{extension}");
    }
}
