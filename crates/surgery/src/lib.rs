//! State dicts in, state dicts out.
