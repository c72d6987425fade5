//! The `graftwork` binary.
#![forbid(unsafe_code)]

mod commands;
mod text;
mod torch_print;
mod usage;

use std::process::ExitCode;

use clap::Parser;

/// Graft a new head onto a trained network, without Python.
#[derive(Parser)]
#[command(name = "graftwork", version)]
enum Verb {
    /// What is in a file of tensors.
    Inspect(commands::inspect::InspectArgs),
    /// The values of one tensor, as PyTorch prints them.
    Show(commands::show::ShowArgs),
    /// Any readable checkpoint to another format.
    Convert(commands::convert::ConvertArgs),
}

fn main() -> ExitCode {
    let result = match Verb::parse() {
        Verb::Inspect(args) => commands::inspect::run(&args),
        Verb::Show(args) => commands::show::run(&args),
        Verb::Convert(args) => commands::convert::run(&args),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            report(&error);
            ExitCode::from(code_of(&error))
        }
    }
}

#[expect(clippy::print_stderr, reason = "this is where errors are said")]
fn report(error: &anyhow::Error) {
    eprintln!("error: {error}");
    for cause in error.chain().skip(1) {
        eprintln!("  {cause}");
    }
    if let Some(hint) = error
        .downcast_ref::<usage::UsageError>()
        .and_then(|usage| usage.hint.as_ref())
    {
        eprintln!("hint: {hint}");
    }
}

fn code_of(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(pth::Error::Unsafe { .. }) = cause.downcast_ref() {
            return 4;
        }
        if cause.is::<usage::UsageError>() {
            return 2;
        }
        if let Some(surgery::Error::NoMatch { .. } | surgery::Error::Collision { .. }) = cause.downcast_ref()
        {
            return 2;
        }
        if file_error(cause).is_some_and(|error| error.source.kind() == std::io::ErrorKind::AlreadyExists) {
            return 2;
        }
    }
    3
}

/// The file error that `cause` is or stands for: the libraries' own enums are transparent, so that it is not in the chain itself.
fn file_error<'e>(cause: &'e (dyn std::error::Error + 'static)) -> Option<&'e pth::FileError> {
    if let Some(pth::Error::File(error)) = cause.downcast_ref() {
        return Some(error);
    }
    if let Some(surgery::Error::File(error)) = cause.downcast_ref() {
        return Some(error);
    }
    cause.downcast_ref()
}
