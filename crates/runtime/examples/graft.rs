//! Puts a head behind a backbone, for comparison with torch (`tools/check_export.py`):
//!
//! - `graft onnx BACKBONE.onnx HEAD.safetensors OUT.onnx`, at the backbone's own boundary, with probabilities;
//! - `graft checkpoint BACKBONE HEAD.safetensors OUT [MODULE]`, of any format that is read;
//! - `graft head HEAD.safetensors OUT`.

#![expect(clippy::print_stdout, reason = "an example for the terminal")]

use std::error::Error;
use std::path::Path;

use pth::Existing;
use runtime::Monitor;
use runtime::export::{CheckpointOptions, Outputs, assemble, save_checkpoint, save_head};
use runtime::head::Head;
use runtime::image::Preprocess;
use runtime::onnx::{Model, Reduction};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["onnx", backbone, head, out] => {
            let model = Model::open(Path::new(backbone))?;
            let boundary = model.default_boundary()?;
            let head = Head::open(Path::new(head))?;
            let (outputs, preprocess) = (Outputs::LogitsAndProbabilities, Preprocess::imagenet());
            let spliced = assemble(&model, &boundary, Reduction::None, &head, outputs, &preprocess)?;
            spliced.save(Path::new(out), Existing::Replace)?;
            println!("{boundary}");
        }
        ["checkpoint", backbone, head, out, module @ ..] => {
            let head = Head::open(Path::new(head))?;
            let options = CheckpointOptions {
                module: module.first().copied(),
                existing: Existing::Replace,
            };
            let report = save_checkpoint(
                Path::new(backbone),
                &head,
                Path::new(out),
                &options,
                Monitor::none(),
            )?;
            println!("{}", report.module);
        }
        ["head", head, out] => save_head(&Head::open(Path::new(head))?, Path::new(out), Existing::Replace)?,
        _ => return Err("see the beginning of this file for what it takes".into()),
    }
    Ok(())
}
