//! Tokens, batches, configurations, and everything about texts that can be wrong, on the tokenizer of `fixtures/text`.
#![expect(clippy::disallowed_methods, reason = "a test's input needs no durability")]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::engine::Input;
use crate::onnx::Model;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/text")
}

fn expected() -> Value {
    serde_json::from_slice(&fs::read(fixture().join("expected.json")).unwrap()).unwrap()
}

fn encoder() -> TextEncoder {
    TextEncoder::new(&fixture(), &TextOptions::default()).unwrap()
}

/// The fixture's files in a folder of its own, `change` made to them.
fn changed(change: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "config.json",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ] {
        fs::copy(fixture().join(name), folder.path().join(name)).unwrap();
    }
    change(folder.path());
    folder
}

fn open(folder: &tempfile::TempDir) -> Result<TextEncoder, String> {
    let root = folder.path().display().to_string();
    TextEncoder::new(folder.path(), &TextOptions::default())
        .map_err(|error| error.to_string().replace(&root, "M"))
}

#[track_caller]
fn check_rejects(change: impl FnOnce(&Path), message: &str) {
    let error = open(&changed(change)).unwrap_err();
    assert!(error.starts_with(message), "{error}");
}

fn put(folder: &Path, name: &str, value: &Value) {
    fs::write(folder.join(name), value.to_string()).unwrap();
}

fn graph(inputs: &[(&str, [Option<usize>; 2])]) -> TextGraph {
    TextGraph::new(&model(inputs)).unwrap()
}

/// A model with these inputs and one node.
fn model(inputs: &[(&str, [Option<usize>; 2])]) -> Model {
    let field = |number: u8, bytes: &[u8]| {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend_from_slice(bytes);
        out
    };
    let mut graph = field(
        1,
        &[
            field(1, inputs[0].0.as_bytes()),
            field(2, b"y"),
            field(4, b"Identity"),
        ]
        .concat(),
    );
    for (name, shape) in inputs {
        let dims: Vec<u8> = shape
            .iter()
            .flat_map(|size| {
                let dim = match size {
                    Some(size) => vec![1 << 3, u8::try_from(*size).unwrap()],
                    None => field(2, b"n"),
                };
                field(1, &dim)
            })
            .collect();
        let tensor = [vec![1 << 3, 7], field(2, &dims)].concat();
        graph.extend(field(
            11,
            &[field(1, name.as_bytes()), field(2, &field(1, &tensor))].concat(),
        ));
    }
    graph.extend(field(12, &field(1, b"y")));
    let mut bytes = vec![1 << 3, 8, 7 << 3 | 2];
    let mut len = graph.len();
    while len >= 0x80 {
        bytes.push(u8::try_from(len & 0x7f).unwrap() | 0x80);
        len >>= 7;
    }
    bytes.push(u8::try_from(len).unwrap());
    bytes.extend(graph);
    bytes.extend(field(8, &[2 << 3, 17]));
    Model::parse(Path::new("m.onnx"), bytes).unwrap()
}

const FREE: [Option<usize>; 2] = [None, None];

#[test]
fn tokens_are_those_of_transformers() {
    let (encoder, expected) = (encoder(), expected());
    for (text, tokens) in expected["texts"]
        .as_array()
        .unwrap()
        .iter()
        .zip(expected["tokens"].as_array().unwrap())
    {
        let text = text.as_str().unwrap();
        assert_eq!(json!(encoder.encode(text).unwrap().ids), *tokens, "{text}");
    }
    assert_eq!(encoder.recipe().max_length(), 48);
    assert_eq!(encoder.recipe().pooling(), [Pooling::Mean]);
    assert!(encoder.recipe().normalize());
    assert_eq!((encoder.pad_id(), encoder.notes().len()), (0, 0));
}

#[test]
fn texts_share_a_batch_with_others_of_their_length_only() {
    let encoder = encoder();
    let graph = graph(&[
        ("input_ids", FREE),
        ("attention_mask", FREE),
        ("token_type_ids", FREE),
    ]);
    let mut buckets = Buckets::new(&encoder, &graph, 2).unwrap();
    let tokens = |n: usize| encoder.encode(&"a ".repeat(n - 2)).unwrap();
    assert!(buckets.push("three", tokens(3)).is_none());
    assert!(buckets.push("seventeen", tokens(17)).is_none());
    let batch = buckets.push("sixteen", tokens(16)).unwrap();
    assert_eq!(
        (batch.keys.as_slice(), batch.shape()),
        (["three", "sixteen"].as_slice(), [2, 16])
    );
    let [ids, mask, types] = graph.inputs(&batch)[..] else {
        panic!("three inputs")
    };
    let values = |input: Input<'_>| match input {
        Input::I64 { shape, values } => {
            assert_eq!(shape, [2, 16]);
            values.to_vec()
        }
        Input::F32 { .. } => panic!("whole numbers"),
    };
    let mut first: Vec<i64> = tokens(3).ids.iter().map(|&id| id.into()).collect();
    first.resize(16, 0);
    assert_eq!(values(ids)[..16], first);
    assert_eq!(values(mask), [[1, 1, 1].as_slice(), &[0; 13], &[1; 16]].concat());
    assert_eq!(values(types), [0; 32]);
    // What is left is filled up to the same shape.
    let rest = buckets.drain().unwrap();
    assert_eq!(
        (rest.keys.as_slice(), rest.shape()),
        (["seventeen"].as_slice(), [2, 32])
    );
    assert_eq!(rest.n_tokens().collect::<Vec<_>>(), [17]);
    assert!(buckets.drain().is_none());
    // The longest are not padded beyond what the model takes: 48 is the next multiple anyway, and 40 is none.
    let options = TextOptions {
        max_length: Some(40),
        ..TextOptions::default()
    };
    let encoder = TextEncoder::new(&fixture(), &options).unwrap();
    let mut buckets = Buckets::new(&encoder, &graph, 1).unwrap();
    let long = encoder.encode(&"a ".repeat(99)).unwrap();
    assert_eq!(buckets.push((), long).unwrap().shape(), [1, 40]);
}

#[test]
fn graphs_of_other_shapes() {
    let encoder = encoder();
    let tokens = || encoder.encode("a frozen network").unwrap();
    // Without a mask nothing is padded.
    let bare = graph(&[("input_ids", FREE)]);
    assert!(!bare.has_mask());
    let mut buckets = Buckets::new(&encoder, &bare, 1).unwrap();
    assert_eq!(buckets.push((), tokens()).unwrap().shape(), [1, 5]);
    // Both sizes fixed, and positions asked for.
    let sizes = [Some(3), Some(64)];
    let fixed = graph(&[
        ("input_ids", sizes),
        ("input_mask", sizes),
        ("position_ids", sizes),
    ]);
    let mut buckets = Buckets::new(&encoder, &fixed, 8).unwrap();
    assert!(buckets.push((), tokens()).is_none());
    let batch = buckets.drain().unwrap();
    assert_eq!(batch.shape(), [3, 64]);
    let Input::I64 { values, .. } = fixed.inputs(&batch)[2] else {
        panic!("whole numbers")
    };
    assert_eq!(values[62..67], [62, 63, 0, 1, 2]);
    let short = graph(&[("input_ids", [None, Some(32)]), ("attention_mask", FREE)]);
    assert_eq!(
        Buckets::<()>::new(&encoder, &short, 8).unwrap_err().to_string(),
        "the network takes texts of 32 tokens, and 48 are allowed"
    );
    let rejects = |inputs: &[(&str, [Option<usize>; 2])], message: &str| {
        let error = TextGraph::new(&model(inputs)).unwrap_err().to_string();
        assert_eq!(error, format!("`m.onnx` cannot serve as a backbone: {message}"));
    };
    rejects(
        &[("pixels", FREE)],
        "its input `pixels` is none of a text's (input_ids, attention_mask, token_type_ids, position_ids)",
    );
    rejects(
        &[("attention_mask", FREE)],
        "it takes no `input_ids`, so that it is no text encoder",
    );
    rejects(
        &[("input_ids", [None, Some(32)])],
        "it takes texts of one length and no `attention_mask`, so that padding could not be told from text",
    );
}

#[test]
fn rows_are_pooled_or_taken_as_they_are() {
    let options = TextOptions {
        pooling: Some(vec![Pooling::Cls, Pooling::Mean]),
        normalize: Some(false),
        ..TextOptions::default()
    };
    let encoder = TextEncoder::new(&fixture(), &options).unwrap();
    let graph = graph(&[("input_ids", FREE), ("attention_mask", FREE)]);
    let mut buckets = Buckets::new(&encoder, &graph, 2).unwrap();
    buckets.push((), encoder.encode("x").unwrap());
    let batch = buckets.drain().unwrap();
    assert_eq!(batch.shape(), [2, 16]);
    // Of [2, 16, 1] only the first text's three tokens count.
    let values: Vec<f32> = (0..32)
        .map(|n| if n < 3 { n as f32 + 1.0 } else { 1e9 })
        .collect();
    assert_eq!(encoder.pool(&[2, 16, 1], &values, &batch).unwrap(), [1.0, 2.0]);
    assert_eq!(encoder.pool(&[2, 4], &values[..8], &batch).unwrap(), values[..4]);
    for shape in [[2, 15, 1].as_slice(), &[3, 4], &[2], &[2, 0]] {
        let error = encoder.pool(shape, &values, &batch).unwrap_err();
        assert!(
            error.ends_with("are neither a row per text nor per token of 2 texts of 16 tokens"),
            "{error}"
        );
    }
}

#[test]
fn texts_that_cannot_be_encoded() {
    let encoder = encoder();
    for text in ["", " \n\t\u{a0}"] {
        assert_eq!(encoder.encode(text).unwrap_err(), "the text is empty");
    }
    let long = "a".repeat((16 << 20) + 1);
    assert_eq!(
        encoder.encode(&long).unwrap_err(),
        "the text has 16777217 bytes, and 16777216 are the most"
    );
    assert_eq!(
        utf8(b"caf\xe9").unwrap_err(),
        "the text is not UTF-8: byte 3 fits nothing"
    );
    assert_eq!(utf8("café".as_bytes()), Ok("café"));
    // Control characters and unknown scripts have tokens, if only the unknown one.
    assert_eq!(encoder.encode("\u{1f642}\u{0}").unwrap().ids.len(), 3);
}

#[test]
fn damaged_and_unknown_tokenizers() {
    let whole = fs::read_to_string(fixture().join("tokenizer.json")).unwrap();
    check_rejects(
        |folder| fs::write(folder.join("tokenizer.json"), &whole[..whole.len() / 2]).unwrap(),
        "`M/tokenizer.json`: it is not JSON: ",
    );
    check_rejects(
        |folder| fs::write(folder.join("tokenizer.json"), b"\xff\xfe\x00").unwrap(),
        "`M/tokenizer.json`: it is not JSON: ",
    );
    check_rejects(
        |folder| put(folder, "tokenizer.json", &json!({"version": "1.0"})),
        "`M/tokenizer.json`: it is no tokenizer that is known here: ",
    );
    check_rejects(
        |folder| {
            let text = whole
                .replace("\"WordPiece\"", "\"Oracle\"")
                .replace("BertPreTokenizer", "Oracle");
            fs::write(folder.join("tokenizer.json"), text).unwrap();
        },
        "`M/tokenizer.json`: it is no tokenizer that is known here: ",
    );
    check_rejects(
        |folder| fs::remove_file(folder.join("tokenizer.json")).unwrap(),
        "`M`: there is no `tokenizer.json` in it",
    );
    check_rejects(
        |folder| {
            fs::rename(folder.join("tokenizer.json"), folder.join("vocab.txt")).unwrap();
        },
        "`M`: there is a `vocab.txt` in it and no `tokenizer.json`, which alone is read",
    );
    let none = TextEncoder::new(Path::new("/no/such/tokenizer.json"), &TextOptions::default());
    assert!(none.unwrap_err().to_string().contains("/no/such/tokenizer.json"));
    let options = TextOptions {
        max_length: Some(2),
        ..TextOptions::default()
    };
    assert_eq!(
        TextEncoder::new(&fixture(), &options).unwrap_err().to_string(),
        "texts of at most 2 tokens hold no word, for the tokenizer adds 2 of its own"
    );
}

#[test]
fn configurations_that_are_absent_odd_or_damaged() {
    let silent = open(&changed(|folder| {
        for name in [
            "modules.json",
            "1_Pooling/config.json",
            "sentence_bert_config.json",
            "tokenizer_config.json",
            "config.json",
        ] {
            fs::remove_file(folder.join(name)).unwrap();
        }
    }))
    .unwrap();
    assert_eq!(
        silent.notes(),
        [
            "nothing says how long a text may be: 512 tokens",
            "nothing says how tokens are pooled: the mean of them"
        ]
    );
    assert_eq!(
        (silent.recipe().pooling(), silent.recipe().normalize()),
        ([Pooling::Mean].as_slice(), false)
    );
    // No padding token is named either: the usual one is looked for.
    assert_eq!(silent.pad_id(), 0);

    for (name, content, message) in [
        ("modules.json", "[", "`M/modules.json`: it is not JSON: "),
        ("modules.json", "{}", "`M/modules.json`: it is no list of layers"),
        ("modules.json", "[{}]", "`M/modules.json`: a layer has no `type`"),
        (
            "modules.json",
            r#"[{"type": "a.Pooling", "path": "../.."}]"#,
            "`M/modules.json`: its path `../..` leads out of the model's folder",
        ),
        (
            "modules.json",
            r#"[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#,
            "`M/modules.json`: its `Dense` layer behind the network is not supported",
        ),
        (
            "1_Pooling/config.json",
            r#"{"pooling_mode": "median"}"#,
            "`M/1_Pooling/config.json`: `median` is no pooling; there are cls, ",
        ),
        (
            "sentence_bert_config.json",
            r#"{"max_seq_length": "long"}"#,
            "`M/sentence_bert_config.json`: its `max_seq_length` is no whole number",
        ),
        (
            "config_sentence_transformers.json",
            r#"{"prompts": {}, "default_prompt_name": "query"}"#,
            "`M/config_sentence_transformers.json`: it has no prompt `query`, which it says is the default",
        ),
    ] {
        check_rejects(|folder| fs::write(folder.join(name), content).unwrap(), message);
    }
    // Switches, as older versions wrote them.
    let old = open(&changed(|folder| {
        put(
            folder,
            "1_Pooling/config.json",
            &json!({"pooling_mode_lasttoken": true, "pooling_mode_cls_token": true, "pooling_mode_max_tokens": false}),
        );
    }));
    assert_eq!(
        old.unwrap().recipe().pooling(),
        [Pooling::Cls, Pooling::LastToken]
    );
    // Ten to the thirtieth is no limit; the network's positions are.
    let unlimited = open(&changed(|folder| {
        put(
            folder,
            "sentence_bert_config.json",
            &json!({"max_seq_length": null}),
        );
        put(
            folder,
            "tokenizer_config.json",
            &json!({"model_max_length": 1e30, "pad_token": {"content": "[MASK]"}}),
        );
    }))
    .unwrap();
    assert_eq!((unlimited.recipe().max_length(), unlimited.pad_id()), (48, 4));
}

#[test]
fn prompts_are_put_in_front_and_may_be_kept_out_of_the_pooling() {
    let prompted = |include: bool| {
        open(&changed(|folder| {
            put(
                folder,
                "config_sentence_transformers.json",
                &json!({"prompts": {"query": "the network "}, "default_prompt_name": "query"}),
            );
            put(
                folder,
                "1_Pooling/config.json",
                &json!({"pooling_mode": "mean", "include_prompt": include}),
            );
        }))
        .unwrap()
    };
    let plain = encoder().encode("the network fox").unwrap();
    let tokens = prompted(true).encode("fox").unwrap();
    assert_eq!((&tokens.ids, tokens.pool_from), (&plain.ids, 0));
    // [CLS] the network: what sentence-transformers counts.
    assert_eq!(prompted(false).encode("fox").unwrap().pool_from, 3);
    // A prompt that leaves no room for the text.
    let options = TextOptions {
        max_length: Some(4),
        prompt: Some("the quick brown fox ".to_owned()),
        ..TextOptions::default()
    };
    let folder = changed(|folder| {
        put(
            folder,
            "1_Pooling/config.json",
            &json!({"pooling_mode": "mean", "include_prompt": false}),
        );
    });
    let narrow = TextEncoder::new(folder.path(), &options).unwrap();
    assert_eq!(narrow.encode("dog").map(|tokens| tokens.pool_from), Ok(3));
}

#[test]
fn the_recipe_is_the_content_and_not_the_file() {
    let recipe = |change: &dyn Fn(&Path)| open(&changed(change)).unwrap().recipe().clone();
    let base = recipe(&|_| {});
    let edit = |edit: &dyn Fn(&mut Value)| {
        recipe(&|folder: &Path| {
            let path = folder.join("tokenizer.json");
            let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            edit(&mut value);
            fs::write(path, serde_json::to_string_pretty(&value).unwrap()).unwrap();
        })
    };
    // Spacing, the order of keys, and how the file itself would pad and truncate do not count.
    assert_eq!(edit(&|_| {}), base);
    assert_eq!(
        edit(&|value| value["truncation"] = json!({"max_length": 9, "strategy": "LongestFirst", "stride": 0})),
        base
    );
    let shuffled = edit(&|value| {
        let vocab = value["model"]["vocab"].as_object().unwrap();
        let turned: serde_json::Map<String, Value> =
            vocab.iter().rev().map(|(k, v)| (k.clone(), v.clone())).collect();
        value["model"]["vocab"] = turned.into();
    });
    assert_eq!(shuffled, base);
    // Everything that changes a vector does.
    assert_ne!(
        edit(&|value| value["normalizer"]["lowercase"] = false.into()),
        base
    );
    for (name, value) in [
        ("1_Pooling/config.json", json!({"pooling_mode": "cls"})),
        ("sentence_bert_config.json", json!({"max_seq_length": 47})),
        (
            "sentence_bert_config.json",
            json!({"max_seq_length": 48, "do_lower_case": true}),
        ),
        ("tokenizer_config.json", json!({"truncation_side": "left"})),
        // Another padding token, and nothing else of these files.
        ("tokenizer_config.json", json!({"pad_token": "[MASK]"})),
        (
            "modules.json",
            json!([{"type": "x.Pooling", "path": "1_Pooling"}]),
        ),
    ] {
        assert_ne!(recipe(&|folder: &Path| put(folder, name, &value)), base, "{name}");
    }
    let text = serde_json::to_string(&base).unwrap();
    assert_eq!(serde_json::from_str::<TextRecipe>(&text).unwrap(), base);
}

#[test]
fn lower_case_and_the_side_that_is_cut_off() {
    let left = open(&changed(|folder| {
        put(
            folder,
            "tokenizer_config.json",
            &json!({"truncation_side": "left"}),
        );
        put(
            folder,
            "sentence_bert_config.json",
            &json!({"max_seq_length": 4, "do_lower_case": true}),
        );
        let path = folder.join("tokenizer.json");
        let text = fs::read_to_string(&path).unwrap();
        // A tokenizer that would take capitals for unknown.
        fs::write(
            &path,
            text.replace("\"lowercase\":true", "\"lowercase\":false")
                .replace("\"lowercase\": true", "\"lowercase\": false"),
        )
        .unwrap();
    }))
    .unwrap();
    let both = encoder().encode("lazy dog").unwrap();
    assert_eq!(left.encode("over the LAZY Dog").unwrap().ids, both.ids);
}

/// A tokenizer of which a byte was changed is refused or tokenizes. The crate below did panic on some: on a template whose
/// special tokens are not defined, for one.
#[test]
fn hostile_tokenizers_do_not_panic() {
    let whole = fs::read(fixture().join("tokenizer.json")).unwrap();
    let folder = changed(|_| {});
    let path = folder.path().join("tokenizer.json");
    let mut n_opened = 0;
    for at in (0..whole.len()).step_by(11) {
        for byte in [b'0', b'9', b'"', b'x', b'-'] {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            fs::write(&path, &bytes).unwrap();
            if let Ok(encoder) = TextEncoder::new(folder.path(), &TextOptions::default()) {
                n_opened += 1;
                let _ = encoder.encode("The quick brown fox, again! wörld \u{4f60}");
            }
        }
    }
    assert!(n_opened > 100, "{n_opened}");
}
