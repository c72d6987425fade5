//! What `edit` and `merge` refuse: one `error: ` line, the contract's exit code, and nothing written.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use harness::checkpoints::{floats, tensors};
use harness::{Said, Scratch, fixture};
use pth::{DType, Tensor};

const NAN: [f32; 3] = [1.0, f32::NAN, 2.0];

fn of(values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes());
    Tensor::from_bytes(DType::Float32, &[values.len()], bytes.collect()).unwrap()
}

/// Inputs that differ in one thing each from `a.pth`.
fn inputs() -> Scratch {
    let scratch = Scratch::new();
    let (weight, bias) = (|| floats(&[2, 3], 1.0), || floats(&[3], 5.0));
    scratch.save("a.pth", &[("fc.weight", weight()), ("fc.bias", bias())]);
    scratch.save(
        "b.pth",
        &[
            ("fc.weight", floats(&[2, 3], 9.0)),
            ("fc.bias", floats(&[3], 7.0)),
        ],
    );
    scratch.save(
        "wide.pth",
        &[("fc.weight", floats(&[4, 3], 1.0)), ("fc.bias", bias())],
    );
    scratch.save("less.pth", &[("fc.weight", weight())]);
    scratch.save(
        "more.pth",
        &[("fc.weight", weight()), ("fc.bias", bias()), ("fc.extra", bias())],
    );
    scratch.save("nan.pth", &[("fc.weight", weight()), ("fc.bias", of(&NAN))]);
    scratch.write("text.pth", b"no checkpoint at all");
    scratch.write("page.safetensors", b"<!DOCTYPE html><html></html>");
    scratch
}

/// Fails as the contract says, and leaves the folder as it was.
#[track_caller]
fn check_refuses(scratch: &Scratch, args: &[&str], code: i32, messages: &[&str]) -> Said {
    let before = scratch.names("");
    let mut said = scratch.graftwork(args);
    for message in messages {
        said = said.fails(code, message);
    }
    assert_eq!(said.stdout, "", "results of a command that failed");
    assert_eq!(scratch.names(""), before, "something was written");
    said
}

#[track_caller]
fn check_edit(steps: &str, code: i32, messages: &[&str]) {
    let scratch = inputs();
    check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth", "-e", steps],
        code,
        messages,
    );
    // Whatever headers tell is told by a dry run as well.
    if !messages.iter().any(|message| message.contains("NaN")) {
        check_refuses(
            &scratch,
            &["edit", "a.pth", "out.pth", "-e", steps, "--dry-run"],
            code,
            messages,
        );
    }
}

#[test]
fn words_that_are_not_understood() {
    check_edit(
        "renam a -> b",
        2,
        &["error: unknown verb `renam`", "did you mean `rename`?"],
    );
    check_edit(
        "strip!",
        2,
        &["a prefix is missing", "the form is `strip PREFIX…`"],
    );
    check_edit("drop! fc.bias", 2, &["`!` belongs to `strip!` only"]);
    check_edit(
        "cast ** flaot16",
        2,
        &["`flaot16` is not a type of torch", "did you mean `float16`?"],
    );
    check_edit("init fc.weight kaimin_uniform", 2, &["kaiming_uniform"]);
    check_edit(
        "rename fc.{i -> x",
        2,
        &["`{` without its `}`", "line 1, column 11"],
    );
    check_edit(
        "rename fc.* -> a.{j}",
        2,
        &["`fc.*` has no `{j}`", "line 1, column 18"],
    );
    check_edit("drop \"fc.bias", 2, &["line 1, column 6"]);
    check_edit("drop fc.bias; on x drop y", 2, &["no input is called `x`"]);
    check_edit("slice fc.weight 5 0:1", 2, &["line 1, column"]);
    check_edit("reshape fc.weight 4,4", 2, &["line 1, column"]);
}

#[test]
fn a_typing_mistake_in_a_plan_file_is_pointed_at() {
    let scratch = inputs();
    scratch.write(
        "plan.txt",
        b"# grafting\nscale fc.weight 2\n\n  drpo fc.bias  # not needed\n",
    );
    let said = check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth", "--plan", "plan.txt"],
        2,
        &["error: unknown verb `drpo`", "hint: did you mean `drop`?"],
    );
    let excerpt = " --> line 4, column 3\n  |\n4 |   drpo fc.bias  # not needed\n  |   ^^^^\n";
    assert!(said.stderr.contains(excerpt), "{}", said.stderr);
    // A step that is understood and cannot be done is pointed at as well, in the characters of the line and not its bytes.
    scratch.write(
        "plan.txt",
        "drop fc.bias; rename? \"ä\" -> b; drop fc.bais".as_bytes(),
    );
    let said = check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth", "--plan", "plan.txt"],
        2,
        &["error: no tensor name matches `fc.bais`", "line 1, column 38"],
    );
    let marked = said.stderr.lines().find(|line| line.contains('^')).unwrap();
    assert_eq!(marked, format!("  | {}^^^^^^^", " ".repeat(37)));
    check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth", "--plan", "absent.txt"],
        3,
        &["absent.txt"],
    );
    check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth"],
        2,
        &["there are no steps", "--plan FILE"],
    );
    check_refuses(
        &scratch,
        &["edit", "a.pth", "-e", "drop fc.bias"],
        2,
        &["there is no output"],
    );
    check_refuses(
        &scratch,
        &["edit", "-e", "drop fc.bias; out x.pth"],
        2,
        &["there is no input"],
    );
}

#[test]
fn a_rule_that_matches_nothing_is_a_mistake_unless_it_may() {
    for (step, message) in [
        ("strip module.", "no tensor name starts with `module.`"),
        ("drop nothing.**", "no tensor name matches `nothing.**`"),
        ("drop fc.weight nothing", "no tensor name matches `nothing`"),
        ("keep fc.** except nothing", "no tensor name matches `nothing`"),
        ("rename nothing.** -> x.**", "no tensor name matches `nothing.**`"),
        ("replace nothing=x", "`nothing`"),
        ("cast nothing float16", "no tensor name matches `nothing`"),
        ("freeze nothing", "no tensor name matches `nothing`"),
        ("group nothing fc.**", "no tensor name matches `nothing`"),
        ("scale nothing 2", "no tensor name matches `nothing`"),
        ("from b.pth take nothing", "no tensor name matches `nothing`"),
        ("from b.pth take nothing -> x", "no tensor name matches `nothing`"),
    ] {
        check_edit(step, 2, &[message, "hint: "]);
        let scratch = inputs();
        let (verb, rest) = step.split_once(' ').unwrap();
        let optional = format!("{verb}? {rest}");
        let said = scratch
            .graftwork(&["edit", "a.pth", "out.pth", "-e", &optional])
            .ok();
        assert!(!said.stderr.contains("error"), "{optional}: {}", said.stderr);
        assert!(!tensors(&scratch.path("out.pth")).is_empty(), "{optional}");
    }
}

#[test]
fn a_collision_names_both_sources() {
    let both = ["`fc.weight`", "`fc.bias`", "error: ", "both be called `x`"];
    check_edit("rename fc.* -> x", 2, &both);
    check_edit(
        "rename fc.weight -> fc.bias",
        2,
        &["`fc.weight` and `fc.bias` would both be called `fc.bias`"],
    );
    check_edit("copy fc.weight -> fc.bias", 2, &["`fc.weight`", "`fc.bias`"]);
    check_edit("tie fc.weight -> fc.bias", 2, &["`fc.weight`", "`fc.bias`"]);
    check_edit("replace fc.weight=x fc.bias=x", 2, &both);
}

#[test]
fn inputs_that_cannot_be_merged() {
    let shapes = [
        "`fc.weight` of `a.pth` is [2, 3]",
        "`fc.weight` of `wide.pth` is [4, 3]",
    ];
    let missing = ["tensor `fc.bias` of `a.pth` is missing in `less.pth`"];
    let extra = ["tensor `fc.extra` of `more.pth` is missing in `a.pth`"];
    for (other, code, messages) in [
        ("wide.pth", 3, &shapes[..]),
        ("less.pth", 3, &missing),
        ("more.pth", 3, &extra),
        (
            "nan.pth",
            3,
            &["tensor `fc.bias` of `nan.pth` holds NaN", "allow"],
        ),
        ("b.pth:-1", 2, &["the weights add up to 0"]),
        ("b.pth:inf", 2, &["the weight of `b.pth` is no number"]),
        ("absent.pth", 3, &["absent.pth", "No such file"]),
        ("text.pth", 3, &["cannot read `text.pth`"]),
        ("page.safetensors", 3, &["page.safetensors", "HTML"]),
    ] {
        let scratch = inputs();
        for out in ["out.pth", "out.safetensors", "out"] {
            check_refuses(
                &scratch,
                &["merge", "linear", "-o", out, "a.pth", other],
                code,
                messages,
            );
            // The step says the same.
            let step = format!("merge linear a.pth {other}");
            check_refuses(
                &scratch,
                &["edit", "b.pth", out, "-e", &step],
                code,
                &messages[..1],
            );
        }
    }
    let scratch = inputs();
    check_refuses(
        &scratch,
        &["merge", "uniform", "-o", "out.pth", "a.pth:2", "b.pth"],
        2,
        &["only linear takes weights"],
    );
    check_refuses(
        &scratch,
        &[
            "merge", "ema", "--decay", "1.5", "-o", "out.pth", "a.pth", "b.pth",
        ],
        2,
        &["1.5 is not between 0 and 1"],
    );
    scratch
        .graftwork(&[
            "merge",
            "linear",
            "-o",
            "nan.safetensors",
            "a.pth",
            "nan.pth",
            "--allow-nan",
        ])
        .ok();
    let merged = tensors(&scratch.path("nan.safetensors"));
    let bias: Vec<f32> = merged[1]
        .3
        .chunks(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert!(bias[0] == 3.0 && bias[1].is_nan() && bias[2] == 3.625, "{bias:?}");
}

#[test]
fn outputs_that_cannot_be_and_inputs_that_are_none() {
    let scratch = inputs();
    let steps = ["-e", "drop fc.bias"];
    let edit = |input: &'static str, output: &'static str| [&["edit", input, output][..], &steps].concat();
    check_refuses(
        &scratch,
        &edit("a.pth", "out.onnx"),
        2,
        &["cannot write `out.onnx`", "`.safetensors`"],
    );
    check_refuses(&scratch, &edit("a.pth", "absent/out.pth"), 3, &["absent/out.pth"]);
    check_refuses(
        &scratch,
        &edit("absent.pth", "out.pth"),
        3,
        &["absent.pth", "No such file"],
    );
    check_refuses(
        &scratch,
        &edit("text.pth", "out.pth"),
        3,
        &["cannot read `text.pth`"],
    );
    check_refuses(&scratch, &edit("page.safetensors", "out.pth"), 3, &["HTML"]);
    check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth", "-e", "from absent.pth take fc.**"],
        3,
        &["absent.pth", "No such file"],
    );
    check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth", "-e", "from text.pth take fc.**"],
        3,
        &["text.pth"],
    );
    check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth", "-e", "in x = absent.pth"],
        3,
        &["absent.pth"],
    );
    std::fs::create_dir(scratch.path("empty")).unwrap();
    check_refuses(&scratch, &edit("empty", "out.pth"), 3, &["empty"]);
    check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth", "-e", "from empty take fc.**"],
        3,
        &["empty"],
    );
    for output in ["there.pth", "there.safetensors"] {
        scratch.write(output, b"mine");
        check_refuses(
            &scratch,
            &edit("a.pth", output),
            2,
            &["hint: --force replaces it"],
        );
        check_refuses(
            &scratch,
            &["merge", "uniform", "-o", output, "a.pth", "b.pth"],
            2,
            &["--force"],
        );
        assert_eq!(std::fs::read(scratch.path(output)).unwrap(), b"mine");
        scratch
            .graftwork(&[&edit("a.pth", output)[..], &["--force"]].concat())
            .ok();
        assert_eq!(tensors(&scratch.path(output)).len(), 1);
    }
    // Onto itself, which is read while it is written.
    scratch
        .graftwork(&["edit", "b.pth", "b.pth", "-e", "scale fc.bias 2", "--force"])
        .ok();
    assert_eq!(tensors(&scratch.path("b.pth"))[1].3[..4], 14_f32.to_le_bytes());
}

#[test]
fn a_broken_tensor_is_named_and_can_be_left_out() {
    let scratch = inputs();
    let whole = std::fs::read(fixture("digits/backbone.pth")).unwrap();
    let at = whole
        .windows(4)
        .rposition(|window| window == [0x50, 0x4b, 1, 2])
        .unwrap();
    assert!(at > 0);
    scratch.write("cut.pth", &whole[..at / 2]);
    check_refuses(
        &scratch,
        &["edit", "cut.pth", "out.pth", "-e", "drop fc.**"],
        3,
        &["cut"],
    );
    check_refuses(
        &scratch,
        &["edit", "a.pth", "out.pth", "-e", "from cut.pth take fc.**"],
        3,
        &["cut"],
    );
}

#[test]
fn a_state_dict_that_does_not_fit_a_model_is_reported_in_torchs_words() {
    let scratch = inputs();
    let load = [
        "edit",
        "more.pth",
        "out.pth",
        "-e",
        "drop fc.bias; rename fc.weight -> fc.w2; load like wide.pth class=Net",
    ];
    let said = check_refuses(&scratch, &load, 3, &["hint: strict=false"]);
    let report = "error: Error(s) in loading state_dict for Net:\n\
        \tMissing key(s) in state_dict: \"fc.weight\", \"fc.bias\". \n\
        \tUnexpected key(s) in state_dict: \"fc.extra\", \"fc.w2\". \n";
    // torch tells unexpected keys in the order of the state dict that is loaded.
    let other = report.replace("\"fc.extra\", \"fc.w2\"", "\"fc.w2\", \"fc.extra\"");
    assert!(said.stderr.contains(&other), "{}", said.stderr);
    let load = ["edit", "a.pth", "out.pth", "-e", "load like wide.pth"];
    let mismatch = "\n\tsize mismatch for fc.weight: copying a param with shape torch.Size([2, 3]) from checkpoint, \
        the shape in current model is torch.Size([4, 3]).\n";
    check_refuses(&scratch, &load, 3, &[mismatch]);
    scratch
        .graftwork(&[
            "edit",
            "a.pth",
            "out.pth",
            "-e",
            "load like wide.pth pad=fc.weight",
        ])
        .ok();
    assert_eq!(tensors(&scratch.path("out.pth"))[0].2, [4, 3]);
}

#[test]
fn what_a_plan_expects_must_be_so() {
    check_edit("expect fc.* count=3", 3, &["2 tensors match, expected are 3"]);
    check_edit(
        "expect keys=like more.pth",
        3,
        &["1 names of `more.pth` are missing, the first is `fc.extra`"],
    );
    check_edit(
        "expect keys=like less.pth",
        3,
        &["1 names are not in `less.pth`, the first is `fc.bias`"],
    );
    check_edit(
        "expect shapes=like wide.pth",
        3,
        &["`fc.weight` is [2, 3], expected is [4, 3]"],
    );
    check_edit(
        "from nan.pth take fc.bias; expect no nan",
        3,
        &["tensor `fc.bias` holds NaN"],
    );
    let scratch = inputs();
    let said = scratch
        .graftwork(&["edit", "nan.pth", "out.safetensors", "-e", "expect no nan"])
        .fails(3, "holds NaN");
    // `--allow-nan` is no flag of `edit`.
    assert!(!said.stderr.contains("--allow-nan"), "{}", said.stderr);
    let met = "expect fc.* count=2; expect keys=like b.pth; expect shapes=like b.pth; expect no nan";
    scratch.graftwork(&["edit", "a.pth", "out.pth", "-e", met]).ok();
    assert_eq!(tensors(&scratch.path("out.pth")), tensors(&scratch.path("a.pth")));
}
