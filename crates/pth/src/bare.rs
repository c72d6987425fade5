//! A pickle by itself, with no storages: what other formats than `torch.save` keep beside their data.

use std::collections::HashMap;
use std::sync::Arc;

use crate::container::legacy::Stream;
use crate::container::{Container, Format, Keys, OpenOptions};
use crate::storage::{ByteOrder, Table};
use crate::{Error, Source, Value, value};

/// Reads a pickle that is all of `source`; instances of classes are [`Object`](crate::Object)s, and nothing is run.
///
/// # Errors
/// The pickle is broken, is followed by other bytes, or names what could run code, unless `options` allow that.
pub fn read_pickle(source: &Source, options: &OpenOptions) -> Result<Value, Error> {
    let mut stream = Stream::new(source, options.policy());
    let arena = stream.pickle("pickle")?;
    let n_left = source.len().saturating_sub(stream.at);
    if n_left > 0 {
        return Err(Error::container("pickle", format!("{n_left} bytes follow it")));
    }
    value::read(&Container {
        format: Format::Legacy,
        arena,
        table: Arc::new(Table::new(source.clone(), ByteOrder::Little)),
        keys: Keys::new(0),
        unreadable: HashMap::new(),
        sources: Vec::new(),
        trailing: None,
    })
}
