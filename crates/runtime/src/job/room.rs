//! Whether features had better be cached or computed again: what there is room for, and what a row costs.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::Error;

/// Features, and what there is for them, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) all: u64,
    /// Not yet in the cache.
    pub(super) missing: u64,
    /// How much more the cache may hold, where that is known.
    pub(super) room: Option<u64>,
    /// Free memory, where that is known.
    pub(super) memory: Option<u64>,
}

impl Size {
    /// Why such features are better computed again; `probe` says so where it is a question of time.
    pub(super) fn reason(
        &self,
        probe: &mut dyn FnMut() -> Result<Option<String>, Error>,
    ) -> Result<Option<String>, Error> {
        let megabytes = |n: u64| n as f64 / 1e6;
        if self.missing == 0 {
            return Ok(None);
        }
        if let Some(room) = self.room.filter(|room| *room < self.missing) {
            return Ok(Some(format!(
                "{:.1} MB of them are missing, and the cache has room for {:.1} MB",
                megabytes(self.missing),
                megabytes(room)
            )));
        }
        // What memory holds is read from the disk once at most; half of it is left to everything else.
        if self.memory.is_none_or(|memory| self.all <= memory / 2) {
            return Ok(None);
        }
        probe()
    }
}

/// What a row costs, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    pub(super) compute: f64,
    pub(super) write: f64,
    pub(super) read: f64,
}

impl Costs {
    /// Why computing is cheaper, where it is: each epoch reads or computes a row once, and a row is written once.
    pub(super) fn reason(&self, epochs: usize) -> Option<String> {
        let epochs = epochs as f64;
        (epochs * self.compute < self.write + epochs * self.read).then(|| {
            format!(
                "a row takes {:.2} ms to compute and {:.2} ms to read",
                self.compute * 1e3,
                self.read * 1e3
            )
        })
    }
}

/// Bytes that a folder's disk has left, but for a little.
pub(super) fn free_space(folder: &Path) -> Option<u64> {
    const LEFT_ALONE: u64 = 1 << 30;
    #[cfg(unix)]
    {
        // The folder may not be there yet.
        let folder = std::path::absolute(folder).ok()?;
        let folder = folder.ancestors().find(|folder| folder.exists())?;
        let found = rustix::fs::statvfs(folder).ok()?;
        Some((found.f_bavail * found.f_frsize).saturating_sub(LEFT_ALONE))
    }
    #[cfg(not(unix))]
    {
        let _ = (folder, LEFT_ALONE);
        None
    }
}

/// The greatest common divisor.
#[cfg(target_os = "linux")]
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Bytes of memory that nobody needs, by the kernel, and by what the group of processes may have where it is the root that is
/// seen, as in a container.
pub(super) fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let free = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10;
    let of_group = |name: &str| std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok();
    let number = |name: &str| of_group(name)?.trim().parse::<u64>().ok();
    // What files were read into is given back when it is asked for.
    let kept = of_group("memory.stat").and_then(|text| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("inactive_file "))?;
        line.parse::<u64>().ok()
    });
    let of_group = number("memory.max").map(|most| {
        let used = number("memory.current")
            .unwrap_or(0)
            .saturating_sub(kept.unwrap_or(0));
        most.saturating_sub(used)
    });
    Some(of_group.map_or(free, |of_group| of_group.min(free)))
}

/// Seconds that writing and reading a row take on a folder's disk, past the memory that keeps what was read lately. None
/// where that cannot be told apart.
pub(super) fn probe_disk(folder: &Path, row_bytes: usize, time: Duration) -> Option<(f64, f64)> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::FileExt;
        const MOST_BYTES: usize = 64 << 20;
        let n = (MOST_BYTES / row_bytes.max(1)).clamp(4, 1024);
        // Without a name: whatever happens, nothing is left of it.
        let mut file = tempfile::tempfile_in(folder).ok()?;
        // Not zeros, which some disks do not write.
        let mut row: Vec<u8> = (0..row_bytes as u64)
            .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
            .collect();
        let start = Instant::now();
        let mut n_written = 0;
        while n_written < n && (start.elapsed() < time / 2 || n_written < 4) {
            file.write_all(&row).ok()?;
            n_written += 1;
        }
        file.sync_all().ok()?;
        let write = start.elapsed().as_secs_f64() / n_written as f64;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).ok()?;
        let start = Instant::now();
        let mut n_read = 0;
        // Far from each other, as a shuffled order asks for them.
        let mut stride = n_written * 5 / 8 + 1;
        while gcd(stride, n_written) > 1 {
            stride += 1;
        }
        while n_read < n_written && (start.elapsed() < time / 2 || n_read < 4) {
            let at = (n_read * stride % n_written) * row_bytes;
            file.read_exact_at(&mut row, at as u64).ok()?;
            n_read += 1;
        }
        Some((write, start.elapsed().as_secs_f64() / n_read as f64))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (folder, row_bytes, time);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1_000_000_000;

    fn reason(size: Size, costs: Option<Costs>) -> Option<String> {
        size.reason(&mut || Ok(costs.expect("nothing is probed").reason(10)))
            .unwrap()
    }

    #[test]
    fn what_has_no_room_is_computed_again_and_what_memory_holds_is_not_probed() {
        let size = Size {
            all: 30 * GB,
            missing: 25 * GB,
            room: Some(10 * GB),
            memory: Some(100 * GB),
        };
        assert_eq!(
            reason(size, None).as_deref(),
            Some("25000.0 MB of them are missing, and the cache has room for 10000.0 MB")
        );
        assert_eq!(reason(Size { missing: 0, ..size }, None), None);
        assert_eq!(reason(Size { room: None, ..size }, None), None);
        let known = Size {
            room: Some(40 * GB),
            ..size
        };
        assert_eq!(reason(known, None), None);
        assert_eq!(
            reason(
                Size {
                    memory: None,
                    ..known
                },
                None
            ),
            None
        );
    }

    #[test]
    fn time_decides_where_memory_is_short() {
        let size = Size {
            all: 30 * GB,
            missing: 30 * GB,
            room: None,
            memory: Some(59 * GB),
        };
        let costs = |compute: f64, write: f64, read: f64| {
            Some(Costs {
                compute: compute * 1e-3,
                write: write * 1e-3,
                read: read * 1e-3,
            })
        };
        assert_eq!(reason(size, costs(5.0, 2.0, 1.0)), None);
        assert_eq!(
            reason(size, costs(1.0, 2.0, 3.0)).as_deref(),
            Some("a row takes 1.00 ms to compute and 3.00 ms to read")
        );
        // Ten epochs of equal cost: what is written has to be made up for.
        assert!(reason(size, costs(1.0, 0.1, 1.0)).is_some());
        assert_eq!(reason(size, costs(1.0, 0.1, 0.9)), None);
    }

    #[test]
    fn a_disk_is_measured_and_a_folder_that_is_not_there_is_not() {
        let folder = tempfile::tempdir().unwrap();
        if let Some((write, read)) = probe_disk(folder.path(), 100_000, Duration::from_millis(50)) {
            assert!(write > 0.0 && read > 0.0, "{write} {read}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert_eq!(probe_disk(&folder.path().join("none"), 10, Duration::ZERO), None);
        if cfg!(unix) {
            assert!(free_space(&folder.path().join("not/there")).is_some());
            assert!(free_space(Path::new("not-there-either")).is_some());
        }
    }
}
