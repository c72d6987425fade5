//! `edit` through the binary: the ways to say a plan, and what survives from one format to the next.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;
use std::path::Path;
use std::process::Stdio;

use harness::checkpoints::{floats, tensors};
use harness::{Scratch, run};
use serde_json::Value;
use surgery::LazyStateDict;

/// A small model as one finds it: in a wrapper's names, with a head.
fn save_model(scratch: &Scratch, name: &str) {
    let tensors = [
        ("module.conv1.weight", floats(&[4, 3, 2, 2], 0.0)),
        ("module.layer.0.weight", floats(&[4, 4], 10.0)),
        ("module.layer.1.weight", floats(&[4, 4], 20.0)),
        ("module.fc.weight", floats(&[2, 4], 30.0)),
        ("module.fc.bias", floats(&[2], 40.0)),
    ];
    scratch.save(name, &tensors);
}

fn names(path: &Path) -> Vec<String> {
    tensors(path).into_iter().map(|(name, ..)| name).collect()
}

/// `__metadata__` as it stands in the file.
fn raw_header(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    serde_json::from_slice(&bytes[8..8 + length]).unwrap()
}

const STEPS: [&str; 5] = [
    "strip module.",
    "rename layer.{i}.** -> blocks.{i+1}.**",
    "drop fc.bias",
    "cast blocks.** float16",
    "head fc classes=3 init=zeros",
];

#[test]
fn however_a_plan_is_said_the_bytes_are_the_same() {
    for extension in ["safetensors", "pth"] {
        let scratch = Scratch::new();
        save_model(&scratch, "in.pth");
        let out = |way: &str| format!("{way}.{extension}");
        scratch
            .graftwork(&["edit", "in.pth", &out("one"), "-e", &STEPS.join("; ")])
            .ok();
        let one = fs::read(scratch.path(&out("one"))).unwrap();
        let found = names(&scratch.path(&out("one")));
        assert!(found.contains(&"blocks.2.weight".to_owned()), "{found:?}");

        let several = out("several");
        let mut args = vec!["edit", "in.pth", &several];
        args.extend(STEPS.iter().flat_map(|step| ["-e", step]));
        scratch.graftwork(&args).ok();

        let plan = format!("# a comment\n\n  {}   # and another\n", STEPS.join("\n"));
        scratch.write("plan.txt", plan.as_bytes());
        scratch
            .graftwork(&["edit", "in.pth", &out("file"), "--plan", "plan.txt"])
            .ok();

        let mut stdin = scratch.command_without_runtime(["edit", "in.pth", &out("stdin"), "--plan", "-"]);
        stdin.stdin(Stdio::from(fs::File::open(scratch.path("plan.txt")).unwrap()));
        run(stdin).ok();

        // The steps of a file come before those of the command.
        scratch.write("half.txt", STEPS[..2].join("\n").as_bytes());
        let rest = STEPS[2..].join(";");
        scratch
            .graftwork(&["edit", "in.pth", &out("both"), "-e", &rest, "--plan", "half.txt"])
            .ok();

        let whole = format!("in m = in.pth\nout {}\n{plan}", out("whole"));
        scratch.write("whole.txt", whole.as_bytes());
        scratch.graftwork(&["edit", "--plan", "whole.txt"]).ok();

        for way in ["several", "file", "stdin", "both", "whole"] {
            assert_eq!(
                fs::read(scratch.path(&out(way))).unwrap(),
                one,
                "{way} {extension}"
            );
        }
    }
}

#[test]
fn steps_on_a_named_input_leave_the_state_dict_at_hand_alone() {
    let scratch = Scratch::new();
    save_model(&scratch, "a.pth");
    scratch.save(
        "b.pth",
        &[
            ("net.fc.weight", floats(&[7, 4], 100.0)),
            ("net.x", floats(&[1], 0.0)),
        ],
    );
    let plan = "in a = a.pth\nin b = b.pth\non b strip net.\non b drop x\nstrip module.\nfrom b take fc.weight\nout c.pth";
    scratch.write("plan.txt", plan.as_bytes());
    scratch.graftwork(&["edit", "--plan", "plan.txt"]).ok();
    let found = tensors(&scratch.path("c.pth"));
    let shapes: Vec<(&str, &[usize])> = found
        .iter()
        .map(|(name, _, shape, _)| (name.as_str(), &shape[..]))
        .collect();
    let want: [(&str, &[usize]); 5] = [
        ("conv1.weight", &[4, 3, 2, 2]),
        ("layer.0.weight", &[4, 4]),
        ("layer.1.weight", &[4, 4]),
        ("fc.weight", &[7, 4]),
        ("fc.bias", &[2]),
    ];
    assert_eq!(shapes, want);
    assert_eq!(found[3].3, *floats(&[7, 4], 100.0).to_bytes().unwrap());
    scratch
        .graftwork(&["edit", "a.pth", "d.pth", "-e", "in base = b.pth; on bas drop x"])
        .fails(2, "no input is called `bas`");
}

#[test]
fn a_dry_run_tells_every_step_and_writes_nothing() {
    let scratch = Scratch::new();
    save_model(&scratch, "in.pth");
    let plan = STEPS.join(";");
    let dry = ["edit", "in.pth", "out.safetensors", "-e", &plan, "--dry-run"];
    let said = scratch.graftwork(&dry).ok();
    let lines: Vec<&str> = said.stdout.lines().collect();
    for (step, effect, is_lossy) in [
        (STEPS[0], "5 of 5 renamed", false),
        (STEPS[1], "2 of 5 renamed", false),
        (STEPS[2], "1 ", true),
        (STEPS[3], "2 cast to float16", true),
    ] {
        let line = lines.iter().find(|line| line.contains(step)).expect(step);
        assert!(line.contains(effect), "{line}");
        assert_eq!(line.ends_with("(lossy)"), is_lossy, "{line}");
    }
    assert!(
        lines
            .last()
            .unwrap()
            .starts_with("would write out.safetensors: 4 tensors, "),
        "{}",
        said.stdout
    );
    assert_eq!(scratch.names(""), ["in.pth"]);

    let json = scratch.graftwork(&[&dry[..], &["--json"]].concat()).ok().json();
    let steps = json["steps"].as_array().unwrap();
    assert_eq!(steps.len(), STEPS.len());
    assert_eq!(steps[1]["step"], STEPS[1]);
    assert_eq!(steps[1]["effect"], "2 of 5 renamed");
    assert_eq!(
        (&steps[1]["lossy"], &steps[3]["lossy"]),
        (&false.into(), &true.into())
    );
    assert_eq!(scratch.names(""), ["in.pth"]);

    let written = scratch
        .graftwork(&["edit", "in.pth", "out.safetensors", "-e", &plan, "--json"])
        .ok()
        .json();
    assert_eq!(written["steps"], json["steps"]);
    assert_eq!(written["tensors"], json["tensors"]);
    let n_bytes = fs::metadata(scratch.path("out.safetensors")).unwrap().len();
    assert_eq!(written["bytes"], n_bytes);
    assert_eq!(json["write_bytes"], n_bytes);
}

/// (name, requires_grad) as `inspect` tells them.
fn marks(scratch: &Scratch, path: &str) -> Vec<(String, bool)> {
    let json = scratch.graftwork(&["inspect", "--json", path]).ok().json();
    let tensors = json["tensors"].as_array().unwrap();
    let mark = |t: &Value| (t["name"].as_str().unwrap().to_owned(), t["requires_grad"] == true);
    let mut marks: Vec<_> = tensors.iter().map(mark).collect();
    marks.sort();
    marks
}

#[test]
fn marks_and_groups_survive_formats_and_sets() {
    let scratch = Scratch::new();
    save_model(&scratch, "in.pth");
    let edit = |more: &[&str]| scratch.graftwork(&[&["edit"], more].concat()).ok();
    edit(&[
        "in.pth",
        "a.pth",
        "-e",
        "strip module.; freeze ** except fc.** layer.1.**",
    ]);
    let want = marks(&scratch, "a.pth");
    let trained: Vec<&str> = want
        .iter()
        .filter(|(_, mark)| *mark)
        .map(|(name, _)| &name[..])
        .collect();
    assert_eq!(trained, ["fc.bias", "fc.weight", "layer.1.weight"]);
    edit(&[
        "a.pth",
        "b.safetensors",
        "-e",
        "group conv1.** layer.{i}.** fc.** decay=.5",
    ]);
    edit(&[
        "b.safetensors",
        "set",
        "-e",
        "expect ** count=5",
        "--max-shard-size",
        "64",
    ]);
    edit(&["set", "c.safetensors", "-e", "rename conv1.** -> stem.**"]);
    edit(&["c.safetensors", "d.pth", "-e", "rename stem.** -> conv1.**"]);
    for path in [
        "b.safetensors",
        "set",
        "set/model.safetensors.index.json",
        "d.pth",
    ] {
        assert_eq!(marks(&scratch, path), want, "{path}");
    }
    // Groups go with the tensors, under their new names.
    let groups = |path: &str, name: &str| {
        let tensors = LazyStateDict::of(surgery::open(&scratch.path(path)).unwrap());
        let scales: Vec<f64> = tensors.groups.iter().map(|group| group.lr_scale).collect();
        let group = tensors.get(name).and_then(|entry| entry.group);
        let layer = tensors.get("layer.1.weight").and_then(|entry| entry.group);
        (scales, group, layer)
    };
    let all = (vec![0.125, 0.25, 0.5, 1.0], Some(0), Some(2));
    assert_eq!(groups("b.safetensors", "conv1.weight"), all);
    assert_eq!(groups("set", "conv1.weight"), all);
    assert_eq!(groups("c.safetensors", "stem.weight"), all);
    let metadata = &raw_header(&scratch.path("c.safetensors"))["__metadata__"];
    let written: Value = serde_json::from_str(metadata["groups"].as_str().unwrap()).unwrap();
    assert_eq!(written[0]["patterns"][0], "stem.**");
    assert_eq!(written[0]["lr_scale"], 0.125);
    // A `.pth` is a plain state dict, which is said where it matters and nowhere else.
    let lost = "note: a `.pth` has no place for metadata, so these are left out: groups";
    let said = edit(&["c.safetensors", "f.pth", "-e", "keep **"]);
    assert!(said.stderr.contains(lost), "{}", said.stderr);
    assert_eq!(edit(&["in.pth", "g.pth", "-e", "keep **"]).stderr, "");
    // What steps on groups need is there again after all these files.
    edit(&["c.safetensors", "e.safetensors", "-e", "freeze-to 3"]);
    let trained: Vec<String> = marks(&scratch, "e.safetensors")
        .into_iter()
        .filter(|(_, mark)| *mark)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(trained, ["fc.bias", "fc.weight"]);
}

#[test]
fn ties_stay_one_tensor_until_untied() {
    let scratch = Scratch::new();
    const N_BYTES: u64 = 64 * 32 * 4;
    scratch.save(
        "in.pth",
        &[
            ("wte.weight", floats(&[64, 32], 1.0)),
            ("ln.weight", floats(&[8], 2.0)),
        ],
    );
    let ties = |path: &str| {
        let tensors = LazyStateDict::of(surgery::open(&scratch.path(path)).unwrap());
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        tensors
            .ties()
            .into_iter()
            .map(|names| sorted(names.into_iter().map(str::to_owned).collect()))
            .collect::<Vec<_>>()
    };
    let size = |path: &str| fs::metadata(scratch.path(path)).unwrap().len();
    let edit = |from: &str, to: &str, steps: &str| scratch.graftwork(&["edit", from, to, "-e", steps]).ok();
    let tied = [["lm_head.weight".to_owned(), "wte.weight".to_owned()]];
    edit("in.pth", "tied.pth", "tie wte.weight -> lm_head.weight");
    let said = edit("in.pth", "tied.safetensors", "tie wte.weight -> lm_head.weight");
    assert!(
        said.stderr.contains("tied: `wte.weight` is `lm_head.weight`"),
        "{}",
        said.stderr
    );
    edit("tied.pth", "round.safetensors", "scale ln.weight 2");
    edit("round.safetensors", "round.pth", "cast ** float64");
    for path in ["tied.pth", "tied.safetensors", "round.safetensors", "round.pth"] {
        assert_eq!(ties(path), tied, "{path}");
    }
    for path in ["tied.pth", "tied.safetensors", "round.safetensors"] {
        assert!(size(path) < 2 * N_BYTES, "{path} has {} bytes", size(path));
        assert_eq!(tensors(&scratch.path(path)).len(), 3, "{path}");
    }
    let header = raw_header(&scratch.path("tied.safetensors"));
    assert_eq!(header["__metadata__"]["wte.weight"], "lm_head.weight");
    assert!(header.get("wte.weight").is_none() && header.get("lm_head.weight").is_some());

    // Both names see a step that changes the tensor, and in sets as well.
    scratch
        .graftwork(&[
            "edit",
            "tied.pth",
            "set",
            "-e",
            "scale wte.weight lm_head.weight .5",
            "--max-shard-size",
            "1kB",
        ])
        .ok();
    assert_eq!(ties("set"), tied);
    let json = scratch
        .graftwork(&[
            "edit",
            "tied.pth",
            "x.safetensors",
            "-e",
            "drop ln.**",
            "--dry-run",
            "--json",
        ])
        .ok()
        .json();
    let named: Vec<&str> = json["tied"][0]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    assert!(
        named.contains(&"wte.weight") && named.contains(&"lm_head.weight"),
        "{named:?}"
    );

    for (from, to) in [
        ("tied.pth", "untied.pth"),
        ("tied.safetensors", "untied.safetensors"),
    ] {
        edit(from, to, "untie lm_head.weight");
        assert!(ties(to).is_empty(), "{to}");
        assert!(size(to) > 2 * N_BYTES, "{to} has {} bytes", size(to));
        let found = tensors(&scratch.path(to));
        let bytes = |name: &str| &found.iter().find(|(n, ..)| n == name).unwrap().3;
        assert_eq!(bytes("lm_head.weight"), bytes("wte.weight"));
    }
    // A copy is a tensor of its own from the first.
    edit("in.pth", "copy.pth", "copy wte.weight -> lm_head.weight");
    assert!(ties("copy.pth").is_empty() && size("copy.pth") > 2 * N_BYTES);
}
