//! Frozen backbone -> features -> trained head.
