//! One file per verb.

pub(crate) mod cache;
pub(crate) mod convert;
pub(crate) mod cuts;
pub(crate) mod demo;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod edit;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod extract;
pub(crate) mod fit;
pub(crate) mod get;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod new;
pub(crate) mod predict;
pub(crate) mod scan;
pub(crate) mod show;
pub(crate) mod status;
pub(crate) mod summary;
pub(crate) mod train;
pub(crate) mod tune;
pub(crate) mod verify;
