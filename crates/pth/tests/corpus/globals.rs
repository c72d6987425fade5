//! Names of code, in every way in which a pickle can mention or call them.

use super::base::{before, beside};
use super::{Case, Expect, With, both, case};
use crate::build::Pickle;

/// Families that a file is refused for, one or two names of each.
const WORST: &[(&str, &str)] = &[
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "compile"),
    ("builtins", "__import__"),
    ("builtins", "open"),
    ("__builtin__", "eval"),
    ("__builtin__", "execfile"),
    ("runpy", "_run_code"),
    ("pty", "spawn"),
    ("ctypes", "CDLL"),
    ("importlib", "import_module"),
    ("socket", "socket"),
    ("shutil", "rmtree"),
    ("sys", "exit"),
    // CVE-2025-1716: a package manager is enough.
    ("pip", "main"),
    // GHSA-vvpj-8cmc-gx39: one name that finds every other.
    ("pkgutil", "resolve_name"),
    ("pickle", "loads"),
    ("operator", "attrgetter"),
    ("webbrowser", "open"),
    ("code", "InteractiveInterpreter"),
];

/// Functions inside of torch and elsewhere that run what they are given. [CVE-2025-71350 and its kin; GHSA-g38g-8gr9-h9xp]
const GADGETS: &[(&str, &str)] = &[
    ("torch.utils.collect_env", "run"),
    ("torch._dynamo.guards", "GuardBuilder.get"),
    (
        "torch.fx.experimental.symbolic_shapes",
        "ShapeEnv.evaluate_guards_expression",
    ),
    ("torch.jit.unsupported_tensor_ops", "execWrapper"),
    ("torch.utils._config_module", "ConfigModule.load_config"),
    ("torch.utils.bottleneck.__main__", "run_cprofile"),
    ("torch._inductor.codecache", "compile_file"),
    ("torch.hub", "load"),
    ("torch", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("idlelib.calltip", "get_entity"),
    ("lib2to3.pgen2.grammar", "Grammar.loads"),
    ("_pyrepl.pager", "pipe_pager"),
    ("ensurepip", "_run_pip"),
    ("cProfile", "run"),
    ("timeit", "timeit"),
    ("bdb", "Bdb.run"),
    ("functools", "partial"),
    ("builtins", "getattr"),
];

/// How a pickle calls; `{}` in the id.
const FORMS: &[&str] = &[
    "reduce",
    "inst",
    "obj",
    "newobj",
    "newobj-ex",
    "build",
    "stack-global",
    "memoised",
];

/// A fragment that calls `module.name` with one text.
pub(super) fn call(form: &str, module: &str, name: &str) -> Pickle {
    let p = Pickle::bare();
    match form {
        "reduce" => p.global(module, name).str("x").op(b"\x85R"),
        "inst" => p.op(b"(").str("x").op(format!("i{module}\n{name}\n").as_bytes()),
        "obj" => p.op(b"(").global(module, name).str("x").op(b"o"),
        "newobj" => p.global(module, name).str("x").op(b"\x85\x81"),
        "newobj-ex" => p.global(module, name).str("x").op(b"\x85}\x92"),
        "build" => p.global(module, name).op(b")\x81}").str("a").int(1).op(b"sb"),
        "stack-global" => p.str(module).str(name).op(b"\x93").str("x").op(b"\x85R"),
        // Both names and the global itself come out of the memo.
        "memoised" => p
            .str(module)
            .op(b"q\x010")
            .str(name)
            .op(b"q\x020h\x01h\x02\x93q\x030h\x03")
            .str("x")
            .op(b"\x85R"),
        other => panic!("no form `{other}`"),
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    worst(&mut cases);
    unknown(&mut cases);
    for (module, name) in GADGETS {
        let pickle = beside(&call("reduce", module, name));
        cases.extend(both(
            &format!("R2-gadget-{module}.{name}"),
            &["P6", "R2"],
            &pickle,
            &Expect::OpaqueOrUnsafe,
            &["global.unknown|global.unsafe"],
        ));
    }
    cases
}

fn worst(cases: &mut Vec<Case>) {
    for (module, name) in WORST {
        let expect = Expect::Unsafe(format!("{module}.{name}"));
        for form in FORMS {
            let pickle = beside(&call(form, module, name));
            let [zip, legacy] = both(
                &format!("R3-{module}.{name}-{form}"),
                &["P6", "R3"],
                &pickle,
                &expect,
                &["global.unsafe"],
            );
            cases.push(zip);
            // The machine is one; a few of each suffice to see that both containers ask it.
            if *form == "reduce" || *module == "os" {
                cases.push(legacy);
            }
        }
        // Mentioned first, and called never.
        let mentioned = before(&Pickle::bare().global(module, name));
        cases.extend(both(
            &format!("R3-{module}.{name}-mentioned"),
            &["R3"],
            &mentioned,
            &expect,
            &["global.unsafe"],
        ));
    }
    // The caller may still want the tensors beside it.
    for form in FORMS {
        let pickle = before(&call(form, "os", "system"));
        let [zip, legacy] = both(
            &format!("R3-allowed-{form}"),
            &["P6", "R3"],
            &pickle,
            &Expect::Unsafe("os.system".to_owned()),
            &["global.unsafe"],
        );
        cases.extend([zip, legacy].map(|case| case.also(With::AllowOpaque, Expect::Opaque)));
    }
}

fn unknown(cases: &mut Vec<Case>) {
    for form in FORMS {
        let pickle = beside(&call(form, "some.where", "Thing"));
        cases.extend(both(
            &format!("R2-unknown-{form}"),
            &["P6", "R2"],
            &pickle,
            &Expect::Opaque,
            &["global.unknown"],
        ));
        // A tensor that hangs on an unknown call cannot be had.
        let wrapped = Pickle::bare()
            .global("torch._utils", "_rebuild_parameter")
            .op(b"(")
            .then(&call(form, "some.where", "Thing"))
            .op(b"\x88")
            .global("collections", "OrderedDict")
            .op(b")RtR");
        cases.push(
            case(
                format!("R2-parameter-of-unknown-{form}"),
                &["P6", "R2"],
                super::base::zip(&beside(&wrapped)),
                Expect::Refused("t"),
            )
            .scan(&["global.unknown"]),
        );
    }
    for (id, value) in [
        ("value", Pickle::bare().global("some.where", "Thing")),
        (
            "in-list",
            Pickle::bare().op(b"]").global("some.where", "Thing").op(b"a"),
        ),
        (
            "in-tuple",
            Pickle::bare().global("some.where", "Thing").op(b"\x85"),
        ),
        (
            "as-key",
            Pickle::bare().op(b"}").global("some.where", "Thing").op(b"Ns"),
        ),
        ("dtype", Pickle::bare().global("torch", "float31")),
    ] {
        cases.extend(both(
            &format!("R1-mentioned-{id}"),
            &["R1"],
            &beside(&value),
            &Expect::Opaque,
            &["global.unknown"],
        ));
    }
}
