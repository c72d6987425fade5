//! Shared by the measurements: nothing yet but the place they live in.
