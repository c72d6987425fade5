//! From the network into a partial file, and what must be so for a part to be continued.

use std::io::Read;
use std::sync::mpsc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::digest::{CHUNK, hex};
use super::http::{Answer, Given, Rest, ask, fault_of};
use super::partial::{Origin, Partial};
use super::{Address, Fault};
use crate::error::Error;
use crate::monitor::{Monitor, Stage};

/// A whole file in its partial's place.
pub(super) struct Done {
    pub(super) n_bytes: u64,
    pub(super) sha256: String,
    pub(super) resumed_from: u64,
}

/// Between two looks at the monitor.
const LOOK: Duration = Duration::from_millis(100);

/// Makes `partial` the whole file.
///
/// # Errors
/// As [`fetch`](super::fetch); what has arrived is in `partial`.
pub(super) fn download(
    address: &Address,
    partial: &mut Partial,
    monitor: Monitor<'_>,
) -> Result<Done, Error> {
    let origin = partial.origin().filter(|origin| {
        // Without a mark of the version, or of where the file ends, nobody knows what the rest belongs to.
        origin.url_key == address.key() && origin.validator.is_some() && origin.n_bytes.is_some()
    });
    let there = partial.len()?;
    let mut sha256 = Sha256::new();
    if let Some(Origin {
        validator,
        n_bytes: Some(n_bytes),
        ..
    }) = origin
        && (1..=n_bytes).contains(&there)
    {
        partial.hash(&mut sha256, monitor)?;
        if there == n_bytes {
            return Ok(done(sha256, there, there));
        }
        let rest = Rest {
            from: there,
            validator: validator.as_deref(),
        };
        let answer = answer(address, Some(rest), monitor)?;
        match answer {
            Answer::Rest(given)
                if given.n_bytes.is_none_or(|now| now == n_bytes)
                    && (given.validator.is_none() || given.validator == validator) =>
            {
                let given = Given {
                    n_bytes: Some(n_bytes),
                    ..given
                };
                return receive(address, partial, given, sha256, there, monitor);
            }
            Answer::Whole(given) => return restart(address, partial, given, monitor),
            // A server that gives the rest of another version than was asked for, or says that there is none.
            Answer::Rest(_) | Answer::NoRest => {}
        }
    }
    match answer(address, None, monitor)? {
        Answer::Whole(given) => restart(address, partial, given, monitor),
        Answer::Rest(_) | Answer::NoRest => {
            let text = "it gives a part where the whole was asked for";
            Err(address.error(Fault::Protocol(text.to_owned())))
        }
    }
}

fn done(sha256: Sha256, n_bytes: u64, resumed_from: u64) -> Done {
    Done {
        n_bytes,
        sha256: hex(sha256),
        resumed_from,
    }
}

/// Asks on a thread of its own: whoever cancels does not wait for a server that is silent.
fn answer(address: &Address, rest: Option<Rest<'_>>, monitor: Monitor<'_>) -> Result<Answer, Error> {
    let (sender, receiver) = mpsc::channel();
    let (address, from) = (address.clone(), rest.as_ref().map(|rest| rest.from));
    let validator = rest.and_then(|rest| rest.validator.map(str::to_owned));
    std::thread::spawn(move || {
        let rest = from.map(|from| Rest {
            from,
            validator: validator.as_deref(),
        });
        let _ = sender.send(ask(&address, rest.as_ref()));
    });
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(answer) => return answer,
            Err(mpsc::RecvTimeoutError::Timeout) if !monitor.is_cancelled() => {}
            Err(_) => return Err(Error::Stopped { n_bytes: 0 }),
        }
    }
}

fn restart(
    address: &Address,
    partial: &mut Partial,
    given: Given,
    monitor: Monitor<'_>,
) -> Result<Done, Error> {
    partial.restart(&Origin {
        url_key: address.key(),
        validator: given.validator.clone(),
        n_bytes: given.n_bytes,
    })?;
    receive(address, partial, given, Sha256::new(), 0, monitor)
}

/// Appends a body to what is there.
fn receive(
    address: &Address,
    partial: &mut Partial,
    given: Given,
    mut sha256: Sha256,
    resumed_from: u64,
    monitor: Monitor<'_>,
) -> Result<Done, Error> {
    let total = given.n_bytes;
    let mut received = resumed_from;
    let report = |received: u64| {
        let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        monitor.at(Stage::Fetch, bytes(received), bytes(total.unwrap_or(0)));
    };
    report(received);
    let chunks = read_ahead(given.body);
    let cause = loop {
        match chunks.recv_timeout(LOOK) {
            _ if monitor.is_cancelled() => {
                partial.sync()?;
                return Err(Error::Stopped { n_bytes: received });
            }
            Ok(Ok(chunk)) if chunk.is_empty() => {
                if total.is_none_or(|total| total == received) {
                    return Ok(done(sha256, received, resumed_from));
                }
                break "the connection was closed".to_owned();
            }
            Ok(Ok(chunk)) => {
                if total.is_some_and(|total| received + chunk.len() as u64 > total) {
                    let text = "it sends more than it promised".to_owned();
                    return Err(address.error(Fault::Protocol(text)));
                }
                partial.write(&chunk)?;
                sha256.update(&chunk);
                received += chunk.len() as u64;
                report(received);
            }
            Ok(Err(error)) => {
                break match ureq::Error::from(error) {
                    ureq::Error::Io(error) => error.to_string(),
                    ureq::Error::Timeout(_) => "the server fell silent".to_owned(),
                    other => match fault_of(&other) {
                        Fault::Protocol(text) | Fault::Tls(text) => text,
                        other => other.to_string(),
                    },
                };
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break "the connection was lost".to_owned(),
        }
    };
    partial.sync()?;
    Err(address.error(Fault::Cut {
        received,
        promised: total.map_or("an unknown number of".to_owned(), |total| total.to_string()),
        cause,
    }))
}

/// Reads on a thread of its own, a few chunks ahead; the last is empty or an error.
fn read_ahead(mut body: Box<dyn Read + Send>) -> mpsc::Receiver<std::io::Result<Vec<u8>>> {
    const AHEAD: usize = 4;
    let (sender, receiver) = mpsc::sync_channel(AHEAD);
    std::thread::spawn(move || {
        loop {
            let mut chunk = vec![0; CHUNK / 4];
            let read = match body.read(&mut chunk) {
                Ok(n_bytes) => {
                    chunk.truncate(n_bytes);
                    Ok(chunk)
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let is_last = read.as_ref().map_or(true, Vec::is_empty);
            if sender.send(read).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}
