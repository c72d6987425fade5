//! What torch 2.15 says of pickles written opcode by opcode.

use super::{GlobalRule, Place, is_allowed, refusal};

const OD: &str = "ccollections\nOrderedDict\n";
const HOOKS: &str = "ccollections\nOrderedDict\n)R";
const EMPTY_LIST_IN_LIST: &str = "]]a";

/// A pickle from pieces: bytes as they are, texts, ints.
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Pickle {
        Pickle(vec![0x80, 2])
    }

    fn raw(mut self, bytes: impl AsRef<[u8]>) -> Pickle {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    fn text(mut self, text: &str) -> Pickle {
        self.0.push(b'X');
        self.0.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
        self.raw(text)
    }

    fn int(self, value: i32) -> Pickle {
        self.raw("J").raw(value.to_le_bytes())
    }

    /// Four elements of the class, which is a name of `torch`.
    fn storage(self, class: &str) -> Pickle {
        self.storage_of(&format!("ctorch\n{class}\n"), 4, "cpu")
    }

    fn storage_of(self, class: &str, numel: i32, location: &str) -> Pickle {
        let begun = self.raw("(").text("storage").raw(class).text("0").text(location);
        begun.int(numel).raw("tQ")
    }

    /// A call of `_rebuild_tensor_v2`, with the opcodes of `requires_grad` and of what follows the hooks.
    fn tensor(self, class: &str, [offset, size, stride]: [i32; 3], grad: &[u8], metadata: &str) -> Pickle {
        let begun = self.raw("ctorch._utils\n_rebuild_tensor_v2\n(").storage(class);
        let viewed = begun.int(offset).int(size).raw([0x85]).int(stride).raw([0x85]);
        viewed.raw(grad).raw(HOOKS).raw(metadata).raw("tR")
    }

    fn call(self, module: &str, name: &str, text: &str) -> Pickle {
        self.raw(format!("c{module}\n{name}\n"))
            .text(text)
            .raw([0x85])
            .raw("R")
    }

    fn stop(self) -> Vec<u8> {
        self.raw(".").0
    }
}

const TRUE: &[u8] = &[0x88];
const FALSE: &[u8] = &[0x89];

fn check_loads(name: &str, pickle: Pickle) {
    assert_eq!(refusal(&pickle.stop(), Place::Zip), None, "{name}");
}

fn check_refused(name: &str, pickle: Pickle, reason: &str) {
    let found = refusal(&pickle.stop(), Place::Zip).map(|refusal| refusal.reason);
    assert_eq!(found.as_deref(), Some(reason), "{name}");
}

#[test]
fn opcodes_that_torch_lacks() {
    for (code, reason) in [
        ("]2", "opcode DUP (50) is not one it knows"),
        ("I5\n", "opcode INT (73) is not one it knows"),
        ("(l", "opcode LIST (108) is not one it knows"),
        ("S'a'\n", "opcode STRING (83) is not one it knows"),
        ("NN0", "opcode POP (48) is not one it knows"),
    ] {
        check_refused(code, Pickle::new().raw(code), reason);
    }
    let frame = Pickle::new().raw([0x95, 1, 0, 0, 0, 0, 0, 0, 0]).raw("N");
    check_refused("FRAME", frame, "opcode FRAME (149) is not one it knows");
    check_refused(
        "none",
        Pickle::new().raw([0xf0]),
        "opcode an unknown opcode (240) is not one it knows",
    );
}

#[test]
fn stack_and_memo() {
    check_loads("an unclosed mark", Pickle::new().raw("(N"));
    check_loads("memo", Pickle::new().raw("]q\x00h\x00").raw([0x86]));
    check_refused(
        "unset memo",
        Pickle::new().raw("h\x07"),
        "memo 7 was never stored",
    );
    check_refused(
        "a mark hides the stack",
        Pickle::new().raw("N("),
        "the stack is empty",
    );
    check_refused("no mark", Pickle::new().raw("t"), "no mark is on the stack");
    check_refused(
        "underflow",
        Pickle::new().raw("N").raw([0x86]),
        "the stack is empty",
    );
    assert_eq!(
        refusal(b"\x80\x4dN.more", Place::Zip),
        None,
        "any protocol, bytes after STOP"
    );
    for cut in [
        &b"\x80\x02N"[..],
        b"",
        b"\x80",
        b"X\xff\xff\0\0a.",
        b"ccollections\nOrderedDic",
    ] {
        let found = refusal(cut, Place::Zip).unwrap();
        assert_eq!(found.reason, "the pickle ends before STOP", "{cut:?}");
    }
    let found = refusal(b"\x80\x02]q\x00h\x09.", Place::Zip).unwrap();
    assert_eq!(found.offset, 5, "of the opcode");
}

#[test]
fn globals() {
    for (path, rule) in [
        ("collections OrderedDict", GlobalRule::Allowed),
        ("UserDict OrderedDict", GlobalRule::Allowed),
        ("__builtin__ set", GlobalRule::Allowed),
        ("torch.nn parameter.Parameter", GlobalRule::Allowed),
        ("torch.nn Parameter", GlobalRule::Unknown),
        ("torch FloatStorage", GlobalRule::Allowed),
        ("torch.cuda QInt8Storage", GlobalRule::Unknown),
        ("torch float8_e5m2", GlobalRule::Allowed),
        ("torch float", GlobalRule::Unknown),
        ("numpy.core.multiarray scalar", GlobalRule::Unknown),
        ("os system", GlobalRule::Blocked),
        ("__builtin__ intern", GlobalRule::Blocked),
        ("os.path join", GlobalRule::Unknown),
    ] {
        let (module, name) = path.split_once(' ').unwrap();
        assert_eq!(is_allowed(module, name), rule, "{path}");
    }
    check_refused(
        "carriage returns stay",
        Pickle::new().raw("ccollections\r\nOrderedDict\r\n"),
        "global `collections\r.OrderedDict\r` is not on torch's list",
    );
    check_refused(
        "renamed",
        Pickle::new().raw("c__builtin__\nlong\n"),
        "global `builtins.int` is not on torch's list",
    );
    check_refused(
        "not UTF-8",
        Pickle::new().raw(b"ctorch\n\xff\n"),
        "the name of a global is not UTF-8",
    );
    assert!(
        super::allowed::ALLOWED.is_sorted_by_key(|(path, _)| path),
        "for the search"
    );
}

#[test]
fn containers() {
    for (code, reason) in [
        (")Na", "APPEND on a tuple"),
        ("}(Ne", "APPENDS on a dict"),
        ("]K\x00Ns", "SETITEM on a list"),
        ("}(NNNu", "a key without a value"),
        ("}]Ns", "a list is not hashable"),
        ("}}b", "BUILD of a dict"),
        ("N)R", "None is called"),
    ] {
        check_refused(code, Pickle::new().raw(code), reason);
    }
    check_refused(
        "in a tuple",
        Pickle::new().raw("}]").raw([0x85]).raw("Ns"),
        "a tuple is not hashable",
    );
    check_loads(
        "state",
        Pickle::new().raw(OD).raw(")R}").text("_metadata").raw("}sb"),
    );
    check_refused(
        "no state",
        Pickle::new().raw(OD).raw(")RNb"),
        "None cannot be unpacked",
    );
    check_refused(
        "called twice",
        Pickle::new().raw(OD).raw(")R)R"),
        "an OrderedDict is called",
    );
    let set = "c__builtin__\nset\n";
    check_loads(
        "a set",
        Pickle::new().raw(set).raw("]K\x01a").raw([0x85]).raw("R"),
    );
    let lists = Pickle::new()
        .raw(set)
        .raw(EMPTY_LIST_IN_LIST)
        .raw([0x85])
        .raw("R");
    check_refused("a set of lists", lists, "a list is not hashable");
    let kept = Pickle::new().raw([0x8f]).raw("}").text("a").raw("Nsb");
    check_refused("a set with attributes", kept, "a set has no attributes");
    check_refused(
        "a dtype",
        Pickle::new().raw("ctorch\nfloat32\n)R"),
        "a torch.dtype is called",
    );
    let new = Pickle::new().raw("ctorch\nfloat32\n)").raw([0x81]);
    check_refused("an object of a dtype", new, "NEWOBJ of a torch.dtype");
}

#[test]
fn persistent_ids() {
    check_loads("typed", Pickle::new().storage("FloatStorage"));
    let untyped = "ctorch.storage\nUntypedStorage\n";
    check_loads("untyped", Pickle::new().storage_of(untyped, 16, "cpu"));
    check_loads(
        "cuda",
        Pickle::new().storage_of("ctorch\nIntStorage\n", 4, "cuda:0"),
    );
    check_refused(
        "location",
        Pickle::new().storage_of(untyped, 16, "warp:0"),
        "the location `warp:0` of a storage is unknown",
    );
    check_refused(
        "negative",
        Pickle::new().storage_of(untyped, -1, "cpu"),
        "a storage of -1 elements",
    );
    let class = Pickle::new().storage_of(OD, 4, "cpu");
    check_refused(
        "class",
        class,
        "the class of a storage is a class without a dtype",
    );
    check_refused(
        "text",
        Pickle::new().text("0").raw("Q"),
        "a persistent id is a str, expected a tuple",
    );
    let module = Pickle::new().raw("(").text("module").raw("NNNtQ");
    check_refused("module", module, "a persistent id does not begin with `storage`");
    let both = Pickle::new()
        .raw("(")
        .storage("FloatStorage")
        .storage("HalfStorage");
    check_refused(
        "shrinks",
        both,
        "two references to a storage disagree on its size",
    );

    let five = Pickle::new().storage("FloatStorage").stop();
    assert_eq!(
        refusal(&five, Place::Legacy).unwrap().reason,
        "a persistent id has 5 fields, expected 6"
    );
    assert!(
        refusal(&five, Place::Bare).is_some(),
        "there is nothing to refer to"
    );
}

#[test]
fn tensors() {
    let floats = "FloatStorage";
    check_loads("plain", Pickle::new().tensor(floats, [0, 4, 1], FALSE, ""));
    check_loads("gradients", Pickle::new().tensor(floats, [0, 4, 1], TRUE, ""));
    check_loads("metadata", Pickle::new().tensor(floats, [0, 4, 1], FALSE, "}"));
    check_loads(
        "empty, wherever it is",
        Pickle::new().tensor(floats, [9, 0, 1], FALSE, ""),
    );
    check_loads(
        "repeated",
        Pickle::new().tensor(floats, [0, 1_000_000, 0], FALSE, ""),
    );
    for (class, view, grad, metadata, reason) in [
        (
            "IntStorage",
            [0, 4, 1],
            TRUE,
            "",
            "a tensor of torch.int32 cannot require gradients",
        ),
        (
            floats,
            [0, 4, 1],
            b"N",
            "",
            "requires_grad is None, expected a bool",
        ),
        (
            floats,
            [0, 4, 1],
            FALSE,
            "]Na",
            "the metadata of a tensor is a list, expected a dict",
        ),
        (
            floats,
            [0, 5, 1],
            FALSE,
            "",
            "a tensor needs 20 bytes of a storage of 16",
        ),
        (
            floats,
            [4, 1, 1],
            FALSE,
            "",
            "a tensor needs 20 bytes of a storage of 16",
        ),
        (
            floats,
            [-1, 1, 1],
            FALSE,
            "",
            "the offset of a tensor is negative",
        ),
        (floats, [0, 4, -1], FALSE, "", "a stride of a tensor is negative"),
        (floats, [0, -1, 1], FALSE, "", "a tensor of a size that none has"),
    ] {
        check_refused(reason, Pickle::new().tensor(class, view, grad, metadata), reason);
    }
}

#[test]
fn names_within_values() {
    let layout = "_get_layout";
    check_loads(
        "layout",
        Pickle::new().call("torch.serialization", layout, "torch.sparse_coo"),
    );
    check_refused(
        "no layout",
        Pickle::new().call("torch.serialization", layout, "torch.none"),
        "a layout is unknown",
    );
    check_loads("device", Pickle::new().call("torch", "device", "cuda:1"));
    for name in ["warp", "cuda:01", "cuda:", ""] {
        let reason = format!("the device `{name}` is unknown");
        check_refused(name, Pickle::new().call("torch", "device", name), &reason);
    }
    let encode = |text: &str, codec: &str| {
        let begun = Pickle::new().raw("c_codecs\nencode\n").text(text).text(codec);
        begun.raw([0x86]).raw("R")
    };
    check_loads("bytes", encode("a\u{ff}", "latin1"));
    check_refused(
        "too wide",
        encode("\u{400}", "latin1"),
        "a text has characters that latin1 lacks",
    );
    check_refused("no codec", encode("a", "mine"), "the encoding `mine` is unknown");
    check_loads("complex", Pickle::new().call("__builtin__", "complex", "1+2j"));
    check_refused(
        "no number",
        Pickle::new().call("__builtin__", "complex", "one"),
        "complex of a text that is not a number",
    );
}

/// One list, memoised once and unpacked for three bytes each time, would cost the square of the file's size.
#[test]
fn repetition_is_bounded() {
    let n = 20_000;
    let mut pickle = Pickle::new().raw("](");
    pickle.0.resize(pickle.0.len() + n, b'N');
    pickle = pickle.raw("eq\x00(");
    for _ in 0..n {
        pickle = pickle.raw("c__builtin__\nset\nh\x00").raw([0x85]).raw("R");
    }
    check_refused(
        "a memo bomb",
        pickle.raw("t"),
        "it repeats more than its size warrants",
    );

    // A function that calls itself with its own arguments.
    let own = Pickle::new().raw("ctorch._tensor\n_rebuild_from_type_v2\nq\x00](h\x00NNNe");
    check_refused("ends", own.raw("R"), "None cannot be unpacked");
    let own = Pickle::new().raw("ctorch._tensor\n_rebuild_from_type_v2\nq\x00]q\x01(h\x00Nh\x01NeR");
    check_refused("endless", own, "calls are nested deeper than Python allows");
}

/// No byte makes it panic, whatever it stands in for.
#[test]
fn survives_any_byte() {
    let pickle = Pickle::new()
        .raw("}")
        .text("w")
        .tensor("FloatStorage", [0, 4, 1], TRUE, "}")
        .raw("s")
        .stop();
    for place in [Place::Zip, Place::Legacy, Place::Bare] {
        for at in 0..pickle.len() {
            for byte in 0..=255 {
                let mut changed = pickle.clone();
                changed[at] = byte;
                refusal(&changed, place);
            }
            assert!(refusal(&pickle[..at], place).is_some(), "cut at {at}");
        }
    }
}
