//! Writes a run's history of some epochs, half of them after it was resumed, for TensorBoard's own reader
//! (`tools/check_history.py`): `history FOLDER EPOCHS`.

use std::error::Error;
use std::path::Path;

use runtime::history::{EpochScalars, History};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, n_epochs] = args.as_slice() else {
        return Err("which folder, and how many epochs?".into());
    };
    let n_epochs: u64 = n_epochs.parse()?;
    let scalars = |epoch: u64| EpochScalars {
        epoch,
        scalars: vec![
            ("loss/train".to_owned(), 2.0 / epoch as f64),
            ("accuracy/val".to_owned(), 1.0 - 0.5 / epoch as f64),
            ("lr".to_owned(), 0.1 * 0.5f64.powi(epoch as i32)),
        ],
    };
    // Runs beyond the half, and is killed; the checkpoint is of the half.
    let mut history = History::open(Path::new(folder), 1)?;
    for epoch in 1..=n_epochs / 2 + 1 {
        history.append(scalars(epoch))?;
    }
    let mut history = History::open(Path::new(folder), n_epochs / 2 + 1)?;
    for epoch in n_epochs / 2 + 1..=n_epochs {
        history.append(scalars(epoch))?;
    }
    Ok(())
}
