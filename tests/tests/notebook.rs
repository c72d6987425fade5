//! `docs/notebook.md`, cell by cell: every command in it, in its order, in one folder.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use harness::http::{Reply, Server};
use harness::{Said, Scratch, binary, fixture, onnx_runtime, root, run};
use sha2::{Digest, Sha256};

/// Where the notebook's weights come from.
const URL: &str = "https://download.pytorch.org/models/resnet18-f37072fd.pth";

/// A fenced block: its language, its text, and the line it begins at.
struct Block {
    language: String,
    text: String,
    line: usize,
}

fn blocks(document: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut is_open = false;
    for (number, line) in document.lines().enumerate() {
        match line.strip_prefix("```") {
            Some(language) if !is_open => {
                is_open = true;
                blocks.push(Block {
                    language: language.to_owned(),
                    text: String::new(),
                    line: number + 2,
                });
            }
            Some(_) => is_open = false,
            None if is_open => {
                let block = blocks.last_mut().expect("one is open");
                block.text.push_str(line);
                block.text.push('\n');
            }
            None => {}
        }
    }
    assert!(!is_open, "a block without an end");
    blocks
}

/// The scratch folder's shell, with the binary on its path.
fn shell(scratch: &Scratch, commands: &str) -> Said {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-e", "-c", commands])
        .current_dir(scratch.path(""))
        .stdin(Stdio::null())
        .env("PATH", scratch.path("bin"))
        .env("HOME", scratch.path("home"))
        .env("XDG_CACHE_HOME", scratch.path("home/cache"))
        .env("XDG_DATA_HOME", scratch.path("home/data"))
        .env("NO_COLOR", "1")
        .env("ORT_DYLIB_PATH", onnx_runtime())
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("ALL_PROXY")
        .env_remove("all_proxy");
    run(command)
}

/// Ten classes, as the notebook has them: each of the five digits that the fixtures hold, dealt out to two folders.
fn pictures(scratch: &Scratch) {
    for split in ["train", "val"] {
        for digit in 5..10 {
            let folder = fixture("digits/pictures").join(split).join(digit.to_string());
            let mut pictures: Vec<_> = fs::read_dir(folder)
                .expect("a folder of pictures")
                .map(|entry| entry.expect("a picture").path())
                .collect();
            pictures.sort();
            for (at, path) in pictures.iter().take(16).enumerate() {
                let half = ["even", "odd"][at % 2];
                let bytes = fs::read(path).expect("a picture");
                scratch.write(&format!("D/{split}/{digit}-{half}/{at}.png"), &bytes);
            }
        }
    }
    let one = fs::read(scratch.path("D/val/7-odd/1.png")).expect("a picture");
    scratch.write("photo.png", &one);
}

#[test]
fn every_cell_works() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("bin")).expect("a folder");
    symlink(binary(), scratch.path("bin/graftwork")).expect("a link");
    pictures(&scratch);
    let whole_model = fs::read(fixture("digits/backbone_model.pth")).expect("a whole pickled model");
    scratch.write("model.pth", &whole_model);
    let template = fs::read(root().join("docs/templates/notebook.template")).expect("the notebook's module");
    scratch.write("net.template", &template);

    // What the URL gives: a ResNet18 under torch's convention for names.
    shell(&scratch, "graftwork new resnet18 served.pth --seed 1").ok();
    let served = fs::read(scratch.path("served.pth")).expect("weights");
    let digest: String = Sha256::digest(&served)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let server = Server::new(move |request, _| Reply::file(request, &served, None));
    let url = server.url(&format!("resnet18-{}.pth", &digest[..8]));

    let document = fs::read_to_string(root().join("docs/notebook.md")).expect("the document");
    let (mut n_run, mut n_compared) = (0, 0);
    let mut last = String::new();
    for block in blocks(&document) {
        match block.language.as_str() {
            "sh" => {
                let said = shell(&scratch, &block.text.replace(URL, &url));
                let (at, text) = (block.line, &block.text);
                assert_eq!(
                    said.code, 0,
                    "docs/notebook.md:{at}\n{text}\n{}\n{}",
                    said.stdout, said.stderr
                );
                last = said.stdout;
                n_run += 1;
            }
            "text" => {
                assert_eq!(last, block.text, "docs/notebook.md:{}", block.line);
                n_compared += 1;
            }
            "python" => {}
            other => panic!("docs/notebook.md:{}: a block of {other}", block.line),
        }
    }
    assert!(
        n_run > 15 && n_compared == 2,
        "{n_run} run, {n_compared} compared"
    );

    // What the document says of the files.
    let proof = |commands: &str, code: i32| {
        let said = shell(&scratch, commands);
        assert_eq!(said.code, code, "{commands}\n{}\n{}", said.stdout, said.stderr);
    };
    proof("graftwork diff rs18pt.pth resnet18_.pth", 1);
    proof("graftwork diff rs18pt.pth again.pth", 0);
    // The best weights may be those before the first step; the last ones are not.
    proof(
        "last=first/last.safetensors; test -e $last || last=first/model.pth\n\
         graftwork diff net.pth $last --fail-on 'changed:train_.**'",
        1,
    );
    proof(
        "last=second/last.safetensors; test -e $last || last=second/model.pth\n\
         graftwork diff first/model.pth $last --fail-on 'changed:pretrained.5.1.**'",
        1,
    );
}
