//! The `graftwork` binary.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod errors;
mod progress;
mod text;
mod torch_print;
mod usage;
mod writing;

use std::process::ExitCode;

use clap::Parser;

/// Graft a new head onto a trained network, without Python.
#[derive(Parser)]
#[command(
    name = "graftwork",
    version,
    after_help = "Exit codes: 0 done, 1 the answer is no, 2 usage, 3 bad input, \
    4 refused as unsafe, 5 a needed runtime is missing, 75 interrupted (run again to resume)"
)]
enum Verb {
    /// The main job: features of a folder (cached), a trained head, its marks, one deployable model
    Fit(Box<commands::fit::FitArgs>),
    /// Features of a folder into the cache
    Extract(commands::extract::ExtractArgs),
    /// The tensors that a whole network goes through, at which it can be cut
    Cuts(commands::cuts::CutsArgs),
    /// The cache of features: what is in it, whether it is sound, what can go, why something was missed
    Cache(commands::cache::CacheArgs),
    /// How far a job in shards is
    Status(commands::status::StatusArgs),
    /// Puts the shards of a job together
    Finalize(commands::status::FinalizeArgs),
    /// A head on cached features or on an array
    Train(commands::train::TrainArgs),
    /// How good a trained run is on labelled pictures or features
    Eval(commands::eval::EvalArgs),
    /// What a run says of pictures, or its head of features
    Predict(commands::predict::PredictArgs),
    /// A run's head for torch, alone or in a checkpoint, or one deployable model
    Export(commands::export::ExportArgs),
    /// The main job on what the repository ships
    Demo(commands::demo::DemoArgs),
    /// What is in a checkpoint
    Inspect(commands::inspect::InspectArgs),
    /// Modules and parameters as torchinfo prints them, frozen ones in parentheses
    Summary(commands::summary::SummaryArgs),
    /// The values of one tensor, as PyTorch prints them
    Show(commands::show::ShowArgs),
    /// A network with fresh weights, by the name of a template or a file that describes it
    New(commands::new::NewArgs),
    /// Any readable checkpoint to another format
    Convert(commands::convert::ConvertArgs),
    /// Steps on a state dict: rename, slice, cast, freeze, graft, ...
    Edit(commands::edit::EditArgs),
    /// The average of several state dicts
    Merge(commands::merge::MergeArgs),
    /// What differs between two checkpoints, and what kind of difference it is; exit code 1 where something does
    Diff(commands::diff::DiffArgs),
    /// What a checkpoint would touch if PyTorch opened it; exit code 1 where something is found
    Scan(commands::scan::ScanArgs),
    /// Whether a checkpoint is whole: CRCs, sizes, extents; exit code 1 where it is not
    Verify(commands::verify::VerifyArgs),
    /// Weights from a URL, checked by their digest, resumed where they were cut
    Get(commands::get::GetArgs),
    /// Which ONNX Runtime is found; --install gets it
    Doctor(commands::doctor::DoctorArgs),
}

fn main() -> ExitCode {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // What a decoder panics with on a damaged file is said once, as that file's error.
        if !runtime::is_contained() {
            tell(panic);
        }
    }));
    let result = match Verb::parse() {
        Verb::Fit(args) => commands::fit::run(&args),
        Verb::Extract(args) => commands::extract::run(&args),
        Verb::Cuts(args) => commands::cuts::run(&args),
        Verb::Cache(args) => commands::cache::run(&args),
        Verb::Status(args) => commands::status::status(&args),
        Verb::Finalize(args) => commands::status::finalize(&args),
        Verb::Train(args) => commands::train::run(&args),
        Verb::Eval(args) => commands::eval::run(&args),
        Verb::Predict(args) => commands::predict::run(&args),
        Verb::Export(args) => commands::export::run(&args),
        Verb::Demo(args) => commands::demo::run(&args),
        Verb::Inspect(args) => commands::inspect::run(&args),
        Verb::Summary(args) => commands::summary::run(&args),
        Verb::Show(args) => commands::show::run(&args),
        Verb::New(args) => commands::new::run(&args),
        Verb::Convert(args) => commands::convert::run(&args),
        Verb::Edit(args) => commands::edit::run(&args),
        Verb::Merge(args) => commands::merge::run(&args),
        Verb::Diff(args) => commands::diff::run(&args),
        Verb::Scan(args) => commands::scan::run(&args),
        Verb::Verify(args) => commands::verify::run(&args),
        Verb::Get(args) => commands::get::run(&args),
        Verb::Doctor(args) => commands::doctor::run(&args),
    };
    ExitCode::from(result.unwrap_or_else(|error| errors::report(&error)))
}
