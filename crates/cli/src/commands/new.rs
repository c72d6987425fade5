//! `graftwork new NETWORK OUT`: a network's state dict with fresh weights, as a constructor would make it.

use std::path::PathBuf;

use anyhow::Result;
use pth::Profile;
use runtime::template::{Choice, Template};

use crate::text::{plain, remark};
use crate::writing::{Job, WriteArgs, check_writable, existing, format_of};

/// Arguments of `new`.
#[derive(Debug, clap::Args)]
pub(crate) struct NewArgs {
    /// A network by its name (resnet18), or a file that describes one
    #[arg(value_name = "NAME|FILE")]
    network: String,
    /// The file to write; its extension says the format: `.pth` or `.safetensors`
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Seed of the weights
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    write: WriteArgs,
}

/// Runs the verb; returns the exit code.
pub(crate) fn run(args: &NewArgs) -> Result<u8> {
    let format = format_of(&args.output)?;
    check_writable(&args.output, existing(args.write.force))?;
    let template = Template::named(&Choice::of(&args.network))?;
    let (tensors, loose) = template.draw(args.seed)?;
    if !loose.is_empty() {
        let names: Vec<String> = loose.iter().take(3).map(|name| plain(name)).collect();
        let more = match loose.len() - names.len() {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        remark(&format!(
            "no layer says how these are drawn, and trunc_normal of std 0.02 was taken: {}{more}",
            names.join(", ")
        ));
    }
    Job {
        tensors: &tensors,
        output: &args.output,
        format,
        profile: Profile::default(),
        inputs: &[],
        steps: &[],
        args: &args.write,
    }
    .run()
}
