//! Members of a tar by its headers alone: what lies between them is passed over, and nothing is believed that the file is
//! too short for.
//!
//! Sources: POSIX.1-2017 pax, GNU tar's manual ("Basic Tar Format"); what is ambiguous is done as Python's `tarfile` does.

use std::fs::File;
use std::io;

use super::super::positional;

const BLOCK: u64 = 512;
/// A long name or a pax header that is larger is no name.
const MAX_EXTENDED: u64 = 1 << 20;

/// A file within a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: String,
    /// Offset of its data.
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) kind: MemberKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberKind {
    Regular,
    /// Its data is not stored one byte after another.
    Sparse,
    /// A folder, a link or a device.
    Other,
    /// A file whose data ends beyond the end of the tar.
    Cut,
}

/// Why the listing ends before the tar's end mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken(pub(super) String);

/// Walks from header to header.
#[derive(Debug)]
pub(super) struct Members<'f> {
    window: Window<'f>,
    at: u64,
    global: Pax,
    is_over: bool,
}

/// What pax headers say of members.
#[derive(Debug, Clone, Default)]
struct Pax {
    path: Option<String>,
    size: Option<u64>,
    is_sparse: bool,
}

impl<'f> Members<'f> {
    /// `len` is the file's.
    pub(super) fn new(file: &'f File, len: u64) -> Members<'f> {
        Members {
            window: Window::new(file, len),
            at: 0,
            global: Pax::default(),
            is_over: false,
        }
    }

    /// Bytes of a member, for the small ones that are needed while listing.
    pub(super) fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        self.window.bytes(at, len)
    }

    /// The next member.
    ///
    /// # Errors
    /// Where and why the tar cannot be followed any further.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Broken> {
        let (mut pax, mut long_name) = (self.global.clone(), None::<String>);
        loop {
            if self.is_over {
                return Ok(None);
            }
            let header_at = self.at;
            let len = self.window.len;
            if header_at >= len {
                self.is_over = true;
                return match header_at {
                    0 => Err(Broken("the file is empty".to_owned())),
                    _ => Err(Broken("it ends without an end mark: it was cut short".to_owned())),
                };
            }
            if len - header_at < BLOCK {
                self.is_over = true;
                let start = self.window.bytes(header_at, (len - header_at) as usize);
                let compressed = start.ok().and_then(compressed);
                return Err(Broken(match header_at {
                    0 => compressed.unwrap_or("this is no tar").to_owned(),
                    _ => format!("it is cut short at byte {len}, in a header"),
                }));
            }
            let block: [u8; BLOCK as usize] = match self.window.bytes(header_at, BLOCK as usize) {
                Ok(bytes) => bytes.try_into().unwrap_or([0; BLOCK as usize]),
                Err(error) => {
                    self.is_over = true;
                    return Err(Broken(format!("it cannot be read at byte {header_at}: {error}")));
                }
            };
            if block.iter().all(|byte| *byte == 0) {
                self.is_over = true;
                return Ok(None);
            }
            let Some(header) = Header::parse(&block) else {
                self.is_over = true;
                return Err(Broken(match header_at {
                    0 => compressed(&block).unwrap_or("this is no tar").to_owned(),
                    _ => format!("its header at byte {header_at} is damaged"),
                }));
            };
            let is_extended = matches!(header.flag, b'L' | b'K' | b'x' | b'X' | b'g');
            let size = match pax.size {
                Some(size) if !is_extended => size,
                _ => header.size,
            };
            let data = self.data_of(header_at, &block, header.flag);
            let end = data.checked_add(size);
            // Links and devices have no data, whatever their size says.
            let has_data = !matches!(header.flag, b'1'..=b'6');
            let next = match (has_data, end.and_then(|end| end.checked_next_multiple_of(BLOCK))) {
                (false, _) => Some(data),
                (true, next) => next,
            };
            let is_cut = has_data && end.is_none_or(|end| end > len);
            if is_extended {
                if size > MAX_EXTENDED {
                    self.is_over = true;
                    return Err(Broken(format!(
                        "its name at byte {header_at} claims {size} bytes"
                    )));
                }
                if is_cut {
                    self.is_over = true;
                    return Err(Broken(format!("it is cut short at byte {len}, in a name")));
                }
                let bytes = self
                    .window
                    .bytes(data, size as usize)
                    .map_err(|error| Broken(format!("it cannot be read at byte {data}: {error}")))?;
                match header.flag {
                    b'L' => long_name = Some(text(bytes)),
                    b'x' | b'X' => pax.read(bytes),
                    b'g' => {
                        self.global.read(bytes);
                        pax = self.global.clone();
                    }
                    _ => {}
                }
                self.at = next.unwrap_or(len);
                continue;
            }
            let name = long_name.or(pax.path).unwrap_or(header.name);
            let kind = match header.flag {
                b'S' => MemberKind::Sparse,
                b'0' | 0 | b'7' if name.ends_with('/') => MemberKind::Other,
                b'0' | 0 | b'7' if pax.is_sparse => MemberKind::Sparse,
                b'0' | 0 | b'7' if is_cut => MemberKind::Cut,
                b'0' | 0 | b'7' => MemberKind::Regular,
                _ => MemberKind::Other,
            };
            self.at = next.filter(|_| !is_cut).unwrap_or(len);
            return Ok(Some(Member {
                name,
                at: data,
                len: size,
                kind,
            }));
        }
    }
}

impl Members<'_> {
    /// Where a member's data begins: behind its header, and behind what GNU's sparse header goes on in.
    fn data_of(&mut self, header_at: u64, block: &[u8; BLOCK as usize], flag: u8) -> u64 {
        let mut data = header_at + BLOCK;
        let mut goes_on = flag == b'S' && block[482] != 0;
        while goes_on && data < self.window.len {
            let more = self.window.bytes(data, BLOCK as usize);
            goes_on = more.is_ok_and(|more| more[504] != 0);
            data += BLOCK;
        }
        data
    }
}

/// What a compressed file begins with.
fn compressed(start: &[u8]) -> Option<&'static str> {
    let is_compressed = [
        &[0x1f, 0x8b][..],
        &[0x28, 0xb5, 0x2f, 0xfd],
        b"BZh",
        &[0xfd, b'7', b'z', b'X', b'Z', 0],
    ]
    .iter()
    .any(|magic| start.starts_with(magic));
    is_compressed
        .then_some("it is compressed, and samples are read at their places: unpack it to a plain .tar first")
}

struct Header {
    name: String,
    size: u64,
    flag: u8,
}

impl Header {
    /// A header whose checksum is right.
    fn parse(block: &[u8; BLOCK as usize]) -> Option<Header> {
        let claimed = number(&block[148..156])?;
        let is_sum = |byte: fn(u8) -> i64| {
            let outside = block[..148].iter().chain(&block[156..]);
            let sum = outside.map(|value| byte(*value)).sum::<i64>() + 8 * i64::from(b' ');
            i64::try_from(claimed) == Ok(sum)
        };
        // Some old writers summed signed bytes.
        if !is_sum(i64::from) && !is_sum(|byte| i64::from(byte.cast_signed())) {
            return None;
        }
        let name = text(&block[..100]);
        let prefix = text(&block[345..500]);
        let is_ustar = &block[257..263] == b"ustar\0";
        Some(Header {
            name: match is_ustar && !prefix.is_empty() {
                true => format!("{prefix}/{name}"),
                false => name,
            },
            size: number(&block[124..136])?,
            flag: block[156],
        })
    }
}

/// Octal digits, or GNU's big-endian bytes behind a first one of 0x80.
fn number(field: &[u8]) -> Option<u64> {
    match field {
        [0x80, rest @ ..] => rest.iter().try_fold(0u64, |value, byte| {
            Some(value.checked_mul(256)? + u64::from(*byte))
        }),
        [0xff, ..] => None,
        _ => {
            let digits = field
                .split(|byte| *byte == 0)
                .next()
                .unwrap_or_default()
                .trim_ascii();
            digits.iter().try_fold(0u64, |value, byte| match byte {
                b'0'..=b'7' => Some(value.checked_mul(8)? + u64::from(byte - b'0')),
                _ => None,
            })
        }
    }
}

/// A name up to its NUL; what is not UTF-8 stands as a replacement character.
fn text(field: &[u8]) -> String {
    let name = field.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

impl Pax {
    /// Reads records `LENGTH KEY=VALUE\n`; what is no record ends them.
    fn read(&mut self, mut bytes: &[u8]) {
        while let Some((record, rest)) = pax_record(bytes) {
            bytes = rest;
            let Some(at) = record.iter().position(|byte| *byte == b'=') else {
                return;
            };
            let (key, value) = (&record[..at], &record[at + 1..]);
            match key {
                b"path" | b"GNU.sparse.name" => self.path = Some(String::from_utf8_lossy(value).into_owned()),
                b"size" => self.size = std::str::from_utf8(value).ok().and_then(|size| size.parse().ok()),
                _ if key.starts_with(b"GNU.sparse.") => self.is_sparse = true,
                _ => {}
            }
        }
    }
}

fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let record = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    Some((record, &bytes[len..]))
}

/// A stretch of the file in memory: headers, small members and the next headers come in one read.
#[derive(Debug)]
struct Window<'f> {
    file: &'f File,
    len: u64,
    bytes: Vec<u8>,
    at: u64,
}

/// What is read ahead at once.
const WINDOW_BYTES: usize = 16 << 10;

impl<'f> Window<'f> {
    fn new(file: &'f File, len: u64) -> Window<'f> {
        Window {
            file,
            len,
            bytes: Vec::new(),
            at: 0,
        }
    }

    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let offset = |at: u64| {
            at.checked_sub(self.at)
                .and_then(|offset| usize::try_from(offset).ok())
        };
        let is_there =
            offset(at).is_some_and(|start| start.checked_add(len).is_some_and(|end| end <= self.bytes.len()));
        if !is_there {
            self.bytes.resize(len.max(WINDOW_BYTES), 0);
            let n = positional::read_up_to(self.file, &mut self.bytes, at)?;
            self.bytes.truncate(n);
            self.at = at;
        }
        let start = usize::try_from(at - self.at).unwrap_or(usize::MAX);
        start
            .checked_add(len)
            .and_then(|end| self.bytes.get(start..end))
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
