//! Reading at a place of a file: from several threads at once, and never by a position that they share.

use std::fs::File;
use std::io;
use std::path::Path;

#[cfg(unix)]
pub(crate) fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, at)
}

#[cfg(windows)]
pub(crate) fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, at)
}

/// Reads until the buffer is full or the file ends; returns how much there was.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match read_at(file, &mut buffer[n..], at.saturating_add(n as u64)) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n)
}

/// Writes all of it at a place.
pub(crate) fn write_all_at(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_all_at(file, bytes, at);
    #[cfg(windows)]
    {
        let mut n = 0;
        while n < bytes.len() {
            n += std::os::windows::fs::FileExt::seek_write(file, &bytes[n..], at + n as u64)?;
        }
        Ok(())
    }
}

/// Opens a regular file for reading.
///
/// # Errors
/// Why that is not possible, in one sentence.
pub(crate) fn open_regular(path: &Path) -> Result<File, String> {
    let cannot = |error: io::Error| format!("it cannot be read: {error}");
    // Asked before it is opened: opening a pipe waits for a writer.
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    File::open(path).map_err(cannot)
}
