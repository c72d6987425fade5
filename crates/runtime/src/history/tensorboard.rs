//! TensorBoard's event files: TFRecords of `Event` messages with scalars.
//!
//! Sources: `tensorflow/core/lib/io/record_writer.h` for the framing, `tensorflow/core/util/event.proto` and
//! `framework/summary.proto` for the messages. A record is its length as eight bytes, the masked CRC-32C of these, the
//! message, and the masked CRC-32C of that.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use pth::FileError;

use super::EpochScalars;
use crate::error::Error;
use crate::onnx::wire::{self, Value};

const PREFIX: &str = "events.out.tfevents.";
/// What the first event of a file says.
const VERSION: &[u8] = b"brain.Event:2";

/// Field numbers of `Event`, `Summary` and `Summary.Value`.
mod number {
    pub(super) const WALL_TIME: u32 = 1;
    pub(super) const STEP: u32 = 2;
    pub(super) const FILE_VERSION: u32 = 3;
    pub(super) const SUMMARY: u32 = 5;
    pub(super) const VALUE: u32 = 1;
    pub(super) const TAG: u32 = 1;
    pub(super) const SIMPLE_VALUE: u32 = 2;
}

#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Opens the folder's event file behind its last event before `next_epoch`, or begins one,
    /// `events.out.tfevents.<seconds>.<host>`.
    pub(super) fn open(folder: &Path, next_epoch: u64) -> Result<EventFile, Error> {
        match newest(folder)? {
            Some(path) => EventFile::resume(&path, next_epoch),
            None => {
                let path = folder.join(format!("{PREFIX}{:010}.{}", wall_time() as u64, host()));
                EventFile::begin(&path)
            }
        }
    }

    fn begin(path: &Path) -> Result<EventFile, Error> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(FileError::at("create", path))?;
        let mut events = EventFile {
            path: path.to_owned(),
            file,
        };
        let mut event = Vec::new();
        wire::put_fixed64(&mut event, number::WALL_TIME, wall_time().to_bits());
        wire::put_bytes(&mut event, number::FILE_VERSION, VERSION);
        events.write(&record(&event))?;
        Ok(events)
    }

    fn resume(path: &Path, next_epoch: u64) -> Result<EventFile, Error> {
        let bytes = fs::read(path).map_err(FileError::at("read", path))?;
        let mut end = 0;
        while let Some((event, next)) = next_record(&bytes, end) {
            if end == 0 && !event.windows(VERSION.len()).any(|window| window == VERSION) {
                break;
            }
            if step(event).is_some_and(|step| step >= next_epoch) {
                break;
            }
            end = next;
        }
        // A first event that was cut short is begun again; it has 27 bytes beside the version.
        if end == 0 && bytes.len() >= VERSION.len() + 27 {
            let reason = "it is no event file of TensorBoard".to_owned();
            return Err(Error::BadFile {
                path: path.to_owned(),
                reason,
            });
        }
        let file = OpenOptions::new()
            .append(true)
            .open(path)
            .map_err(FileError::at("open", path))?;
        file.set_len(end as u64).map_err(FileError::at("write", path))?;
        if end == 0 {
            return EventFile::begin(path);
        }
        Ok(EventFile {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends the scalars of an epoch as one event, whose step is the epoch.
    pub(super) fn append(&mut self, epoch: &EpochScalars) -> Result<(), Error> {
        let mut summary = Vec::new();
        for (tag, scalar) in &epoch.scalars {
            let mut value = Vec::new();
            wire::put_bytes(&mut value, number::TAG, tag.as_bytes());
            wire::put_fixed32(&mut value, number::SIMPLE_VALUE, (*scalar as f32).to_bits());
            wire::put_bytes(&mut summary, number::VALUE, &value);
        }
        let mut event = Vec::new();
        wire::put_fixed64(&mut event, number::WALL_TIME, wall_time().to_bits());
        wire::put_varint(&mut event, number::STEP, epoch.epoch);
        wire::put_bytes(&mut event, number::SUMMARY, &summary);
        self.write(&record(&event))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        Ok(written.map_err(FileError::at("write", &self.path))?)
    }
}

/// The event file with the highest name, where there is one.
fn newest(folder: &Path) -> Result<Option<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(FileError::at("read", folder))?;
    let mut newest: Option<PathBuf> = None;
    for entry in entries {
        let path = entry.map_err(FileError::at("read", folder))?.path();
        let is_ours = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if is_ours && newest.as_ref().is_none_or(|newest| path > *newest) {
            newest = Some(path);
        }
    }
    Ok(newest)
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}

/// The machine's name as part of a file name.
fn host() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let variable = || {
        ["HOSTNAME", "COMPUTERNAME"]
            .iter()
            .find_map(|name| std::env::var(name).ok())
    };
    let host = kernel.or_else(variable).unwrap_or_default();
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let host: String = host.trim().chars().filter(is_plain).take(64).collect();
    if host.is_empty() {
        "localhost".to_owned()
    } else {
        host
    }
}

fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(event.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(event);
    record.extend(masked_crc(event).to_le_bytes());
    record
}

/// The message of the record at `start`, and where the next begins; none where it is cut short or its sums are wrong.
fn next_record(bytes: &[u8], start: usize) -> Option<(&[u8], usize)> {
    let header = bytes.get(start..start.checked_add(12)?)?;
    let (length, sum) = header.split_at(8);
    let n = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
    let end = (start + 12).checked_add(n)?;
    let event = bytes.get(start + 12..end)?;
    let sum_of_event = bytes.get(end..end.checked_add(4)?)?;
    let is_sound = masked_crc(length).to_le_bytes() == sum && masked_crc(event).to_le_bytes() == sum_of_event;
    is_sound.then_some((event, end + 4))
}

/// The step of an event.
fn step(event: &[u8]) -> Option<u64> {
    wire::each(event, 0..event.len())
        .flatten()
        .find_map(|field| match field.value {
            Value::Varint(step) if field.number == number::STEP => Some(step),
            _ => None,
        })
}

/// TFRecord's: rotated and offset, so that the sum of data that holds sums is not fooled by them.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), which `crc32fast` does not know.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut crc = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 {
                    (crc >> 1) ^ 0x82f6_3b78
                } else {
                    crc >> 1
                };
                bit += 1;
            }
            table[byte] = crc;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, byte| {
        (crc >> 8) ^ TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize]
    })
}
