//! State dicts in, state dicts out: a language of edits, averages, differences, summaries, and files of any size.
//!
//! Begin with [`open`] for any supported file, [`Plan`] for what is done to it, and [`write`] for the result.
#![forbid(unsafe_code)]

mod diff;
mod distance;
mod error;
mod format;
mod lazy;
mod marks;
mod op;
mod pattern;
mod plan;
mod size;
mod stream;
mod summary;

pub use diff::{
    CastKind, CastProof, Census, Changed, Counts, Depth, Diff, DiffOptions, FAIL_KINDS, FailKind, FailOn,
    FailOnReport, Fold, HEADS, Health, MarkChange, MetadataChange, OnDisk, OneSided, Recast, Renamed,
    Reshaped, Side, TOLERANCES, TieChange, Tolerance, Transposed, Verdict, diff, fold, percent,
};
pub use distance::edit_distance;
pub use error::Error;
pub use format::edit::{HeaderEdit, edit_header, recover_header};
pub use format::open::{Format, Opened, is_safetensors, open, open_with};
pub use format::pieces::{Piece, Pieces};
pub use format::safetensors::{open_safetensors, open_safetensors_with, save_safetensors};
pub use lazy::{Distribution, Draw, Group, LazyEntry, LazyReader, LazyStateDict, LazyTensor, LazyValue};
pub use marks::{can_train, is_buffer_name};
pub use op::deep_copy::deep_copy;
pub use op::merge::{
    INTEGER_POLICIES, IntegerPolicy, MISSING_POLICIES, MergeInput, MergeMethod, MergeOptions, MergeReport,
    OddPolicy, merge, split_weight,
};
pub use pattern::{Captures, Pattern, PatternError, Target, Template};
pub use plan::{Effect, OutputSpec, Plan, PlanError, StepReport, VERBS, Verb, open_whole};
pub use size::parse_size;
pub use stream::{Cost, Layout, OutputFormat, WriteOptions, WriteReport, write};
pub use summary::{
    DtypeSum, Kind, Largest, Param, Row, Summary, SummaryText, Tie, Totals, Trainable, grouped,
};
