//! One file per verb.

pub(crate) mod convert;
pub(crate) mod inspect;
pub(crate) mod show;
