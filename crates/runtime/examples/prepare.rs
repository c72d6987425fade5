//! Prepares pictures as asked on stdin, a JSON object a line, and answers on stdout: for `tools/parity_pictures.py`.
//!
//! A question names a `path` and may name a `preprocess` (its JSON), a `config` (a file to read it from, or
//! `torchvision:NAME`) and a `view`. Without a preprocessing the answer is about the decoded pixels. An answer holds the
//! `shape`, the BLAKE3 of the bytes (u8 pixels [H, W, 3], or f32 numbers [3, H, W]), or an `error`; `dump` names a `.npy` file to write.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::PathBuf;

use runtime::image::{Augment, Preprocess, View, decode};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    path: PathBuf,
    preprocess: Option<Preprocess>,
    config: Option<String>,
    view: Option<View>,
    /// A random view: the augmentation and the view's number; the picture's id is the BLAKE3 of its bytes.
    augment: Option<(Augment, u32)>,
    dump: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let question: Question = serde_json::from_str(&line?)?;
        let answer = answer(&question).unwrap_or_else(|error| json!({ "error": error.to_string() }));
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(question: &Question) -> Result<Value, Box<dyn Error>> {
    let bytes = std::fs::read(&question.path)?;
    let preprocess = match (&question.preprocess, &question.config) {
        (Some(preprocess), _) => Some(preprocess.clone()),
        (None, Some(name)) => Some(Preprocess::from_source(name)?),
        (None, None) => None,
    };
    let Some(preprocess) = preprocess else {
        let pixels = decode(&bytes)?;
        let shape = [pixels.height(), pixels.width(), 3];
        return reply(question, "|u1", &shape, &pixels.to_rgb(), None, None);
    };
    preprocess.check()?;
    let view = if let Some((augment, index)) = &question.augment {
        augment.check()?;
        Some(augment.view(
            blake3::hash(&bytes).as_bytes(),
            *index,
            preprocess.source_size(&bytes)?,
        ))
    } else {
        question.view
    };
    let mut numbers = vec![0f32; preprocess.numel()];
    preprocess.prepare(&bytes, view.as_ref(), &mut numbers)?;
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    reply(
        question,
        "<f4",
        &preprocess.shape(),
        &bytes,
        view,
        Some(&preprocess),
    )
}

fn reply(
    question: &Question,
    dtype: &str,
    shape: &[usize],
    data: &[u8],
    view: Option<View>,
    preprocess: Option<&Preprocess>,
) -> Result<Value, Box<dyn Error>> {
    if let Some(path) = &question.dump {
        let shape_text: Vec<String> = shape.iter().map(usize::to_string).collect();
        let mut header = format!(
            "{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({}), }}",
            shape_text.join(", ")
        );
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend(u16::try_from(header.len())?.to_le_bytes());
        file.extend(header.as_bytes());
        file.extend(data);
        std::fs::File::create(path)?.write_all(&file)?;
    }
    Ok(
        json!({ "shape": shape, "blake3": blake3::hash(data).to_hex().as_str(), "view": view, "preprocess": preprocess }),
    )
}
