//! Files that claim, or hold, far more pixels than bytes: refused or decoded in bounded memory.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::io::Write;
use std::time::{Duration, Instant};

use peak_alloc::PeakAlloc;
use runtime::image::{DecodeError, Preprocess};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Prepares the picture; the answer, and the megabytes that it took beyond what was there.
fn prepare(bytes: &[u8]) -> (Result<(), DecodeError>, f32) {
    let preprocess = Preprocess::imagenet();
    let mut out = vec![0.0; preprocess.numel()];
    ALLOCATOR.reset_peak_usage();
    let before = ALLOCATOR.current_usage_as_mb();
    let start = Instant::now();
    let answer = preprocess.prepare(bytes, None, &mut out);
    assert!(start.elapsed() < Duration::from_secs(60));
    (answer, ALLOCATOR.peak_usage_as_mb() - before)
}

fn check_refused(what: &str, bytes: &[u8], message: &str) {
    let (answer, megabytes) = prepare(bytes);
    let error = answer.unwrap_err().to_string();
    assert!(error.contains(message), "{what}: {error}");
    assert!(megabytes < 4.0, "{what}: {megabytes} MB");
}

fn png(width: u32, height: u32, compressed: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut ihdr = width.to_be_bytes().to_vec();
    ihdr.extend(height.to_be_bytes());
    ihdr.extend([8, 2, 0, 0, 0]);
    for (kind, data) in [(b"IHDR", ihdr.as_slice()), (b"IDAT", compressed), (b"IEND", &[])] {
        bytes.extend((data.len() as u32).to_be_bytes());
        let start = bytes.len();
        bytes.extend(kind);
        bytes.extend(data);
        let checksum = crc32fast::hash(&bytes[start..]);
        bytes.extend(checksum.to_be_bytes());
    }
    bytes
}

fn deflated_zeros(n_bytes: usize) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    let zeros = vec![0; 1 << 20];
    let mut left = n_bytes;
    while left > 0 {
        let count = left.min(zeros.len());
        encoder.write_all(&zeros[..count]).unwrap();
        left -= count;
    }
    encoder.finish().unwrap()
}

fn jpeg(progressive: bool, width: u16, height: u16) -> Vec<u8> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/pictures/");
    let name = if progressive {
        "jpeg-progressive.jpg"
    } else {
        "jpeg-420.jpg"
    };
    let mut bytes = std::fs::read(format!("{folder}{name}")).unwrap();
    let marker = if progressive { [0xff, 0xc2] } else { [0xff, 0xc0] };
    let frame = bytes.windows(2).position(|window| window == marker).unwrap();
    bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    bytes
}

/// One test, since the peak is the process's.
#[test]
fn claims_are_checked_before_room_is_taken() {
    let limit = "60000 x 60000 pixels are over the limit of 178956970";
    check_refused("png header", &png(60_000, 60_000, &deflated_zeros(100)), limit);
    check_refused("jpeg header", &jpeg(false, 60_000, 60_000), limit);
    check_refused("progressive jpeg header", &jpeg(true, 60_000, 60_000), limit);
    check_refused(
        "gif header",
        b"GIF89a\x60\xea\x60\xea\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02\x4c\x01\0;",
        limit,
    );
    let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    bmp.extend([60_000u32.to_le_bytes(), 60_000u32.to_le_bytes()].concat());
    bmp.extend([1, 0, 24, 0]);
    bmp.extend([0; 24]);
    check_refused("bmp header", &bmp, limit);
    check_refused("ppm header", b"P6 60000 60000 255\n", limit);
    // Under the limit, but not what these few bytes can hold.
    check_refused(
        "short png",
        &png(13_000, 13_000, &deflated_zeros(1000)),
        "truncated",
    );
    check_refused("short progressive jpeg", &jpeg(true, 13_000, 13_000), "truncated");
    // Its end marker comes early, and libjpeg then makes up grey, as it does under Pillow; without any room for it.
    let (answer, megabytes) = prepare(&jpeg(false, 13_000, 13_000));
    assert_eq!(answer, Ok(()));
    assert!(
        megabytes < 4.0,
        "{megabytes} MB for a picture that is read row by row"
    );
    check_refused("short ppm", b"P6 13000 13000 255\n12345678", "truncated");
    let mut gif = b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0".to_vec();
    gif.extend([13_000u16.to_le_bytes(), 13_000u16.to_le_bytes()].concat());
    gif.extend(b"\0\x02\x02\x4c\x01\0;");
    check_refused("short gif", &gif, "truncated");

    // A true bomb: 430 kB that hold 432 MB of pixels. It is a picture, so that it is read, row by row.
    let bomb = png(12_000, 12_000, &deflated_zeros(12_000 * (12_000 * 3 + 1)));
    assert!(bomb.len() < 500_000);
    let (answer, megabytes) = prepare(&bomb);
    assert_eq!(answer, Ok(()));
    assert!(
        megabytes < 8.0,
        "{megabytes} MB for a picture that is read row by row"
    );
    // What is no pixels is not inflated at all.
    let mut profile = b"icc\0\0".to_vec();
    profile.extend(deflated_zeros(400 << 20));
    let mut stuffed = png(4, 4, &deflated_zeros(4 * 13));
    let mut chunk = b"iCCP".to_vec();
    chunk.extend(&profile);
    let checksum = crc32fast::hash(&chunk);
    let mut whole = (profile.len() as u32).to_be_bytes().to_vec();
    whole.extend(chunk);
    whole.extend(checksum.to_be_bytes());
    // Behind the header chunk: 8 bytes of signature, 25 of header.
    stuffed.splice(33..33, whole);
    let (answer, megabytes) = prepare(&stuffed);
    assert_eq!(answer, Ok(()));
    assert!(megabytes < 8.0, "{megabytes} MB for a picture of 16 pixels");
}
