//! One job in parts: which part of it this process is.
//!
//! There is no scheduler here: an array job, an indexed job or a loop starts the parts.

use std::ops::Range;

/// Part `index` of `count`, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    pub(super) index: usize,
    pub(super) count: usize,
}

impl Shard {
    /// Checks that there is such a part.
    ///
    /// # Errors
    /// A sentence for the caller.
    pub fn new(index: usize, count: usize) -> Result<Shard, String> {
        match count {
            0 => Err("a job has at least one shard".to_owned()),
            _ if index >= count => Err(format!(
                "there is no shard {index} of {count}: shards are counted from 0 to {}",
                count - 1
            )),
            _ => Ok(Shard { index, count }),
        }
    }

    /// Which part, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Its samples of `n`: a contiguous part, sizes differing by one at most.
    pub fn range(&self, n: usize) -> Range<usize> {
        let bound = |index: usize| (index as u128 * n as u128 / self.count as u128) as usize;
        bound(self.index)..bound(self.index + 1)
    }

    /// The part that a scheduler's variables name, and which variable that was; none where none is set.
    ///
    /// In this order: `GRAFTWORK_SHARD_INDEX` with `GRAFTWORK_NUM_SHARDS`; Slurm's array (`SLURM_ARRAY_TASK_ID` less
    /// `SLURM_ARRAY_TASK_MIN` of `SLURM_ARRAY_TASK_COUNT`); Kubernetes' indexed job (`JOB_COMPLETION_INDEX` with
    /// `GRAFTWORK_NUM_SHARDS`); Open MPI, PMI, and torchrun's `RANK` of `WORLD_SIZE`.
    ///
    /// # Errors
    /// A sentence for the caller, where variables are set and make no sense.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<(Shard, &'static str)>, String> {
        // A job of one process is no job in parts: its label manifest is wanted at once.
        let found = Shard::in_environment(variable)?;
        Ok(found.filter(|(shard, _)| shard.count > 1))
    }

    fn in_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<(Shard, &'static str)>, String> {
        let number = |name: &str| -> Result<Option<usize>, String> {
            let Some(text) = variable(name).filter(|text| !text.is_empty()) else {
                return Ok(None);
            };
            text.trim()
                .parse()
                .map(Some)
                .map_err(|_| format!("{name} is `{text}`, which is no number"))
        };
        let ours = number("GRAFTWORK_NUM_SHARDS")?;
        if let Some(index) = number("GRAFTWORK_SHARD_INDEX")? {
            let count = ours.ok_or("GRAFTWORK_SHARD_INDEX is set, and GRAFTWORK_NUM_SHARDS is not")?;
            return Ok(Some((Shard::new(index, count)?, "GRAFTWORK_SHARD_INDEX")));
        }
        if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
            let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
            // A resubmission of the missing parts, as `--array=3,17`, has a count of its own: ours decides then.
            let (index, count) = match ours {
                Some(count) => (id, count),
                None => {
                    let count = number("SLURM_ARRAY_TASK_COUNT")?
                        .ok_or("SLURM_ARRAY_TASK_ID is set, and SLURM_ARRAY_TASK_COUNT is not")?;
                    let last = number("SLURM_ARRAY_TASK_MAX")?;
                    if last.is_some_and(|last| last.checked_sub(first) != count.checked_sub(1)) {
                        let text = "Slurm's array has gaps: GRAFTWORK_NUM_SHARDS must say how many shards the job has";
                        return Err(text.to_owned());
                    }
                    let index = id
                        .checked_sub(first)
                        .ok_or("SLURM_ARRAY_TASK_ID is below SLURM_ARRAY_TASK_MIN")?;
                    (index, count)
                }
            };
            return Ok(Some((Shard::new(index, count)?, "SLURM_ARRAY_TASK_ID")));
        }
        if let Some(index) = number("JOB_COMPLETION_INDEX")? {
            let count = ours.ok_or(
                "JOB_COMPLETION_INDEX is set: GRAFTWORK_NUM_SHARDS must say how many completions there are",
            )?;
            return Ok(Some((Shard::new(index, count)?, "JOB_COMPLETION_INDEX")));
        }
        for (rank, size) in [
            ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
            ("PMI_RANK", "PMI_SIZE"),
            ("RANK", "WORLD_SIZE"),
        ] {
            if let (Some(index), Some(count)) = (number(rank)?, number(size)?) {
                return Ok(Some((Shard::new(index, count)?, rank)));
            }
        }
        Ok(None)
    }
}

impl std::str::FromStr for Shard {
    type Err = String;

    /// `I/N`.
    fn from_str(text: &str) -> Result<Shard, String> {
        let parsed = text
            .split_once('/')
            .and_then(|(index, count)| Some((index.trim().parse().ok()?, count.trim().parse().ok()?)));
        let (index, count) = parsed.ok_or("a shard is written I/N, as in 0/8 for the first of eight")?;
        Shard::new(index, count)
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// Indices as Slurm's `--array` takes them: `3,17-20`.
pub fn to_array_expression(indices: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &index in indices {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => runs.push((index, index)),
        }
    }
    let texts: Vec<String> = runs
        .into_iter()
        .map(|(first, last)| {
            if first == last {
                first.to_string()
            } else {
                format!("{first}-{last}")
            }
        })
        .collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_tile_the_samples() {
        for n in [0, 1, 7, 100] {
            for count in [1, 2, 3, 8] {
                let mut next = 0;
                for index in 0..count {
                    let range = Shard::new(index, count).unwrap().range(n);
                    assert_eq!(range.start, next);
                    assert!(range.len() <= n.div_ceil(count));
                    next = range.end;
                }
                assert_eq!(next, n);
            }
        }
    }

    fn from(variables: &[(&str, &str)]) -> Result<Option<(Shard, &'static str)>, String> {
        Shard::from_environment(|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn schedulers_name_the_part() {
        let shard = |index, count| Shard::new(index, count).unwrap();
        assert_eq!(from(&[]), Ok(None));
        let array = [
            ("SLURM_ARRAY_TASK_ID", "5"),
            ("SLURM_ARRAY_TASK_MIN", "2"),
            ("SLURM_ARRAY_TASK_COUNT", "8"),
        ];
        assert_eq!(from(&array), Ok(Some((shard(3, 8), "SLURM_ARRAY_TASK_ID"))));
        let resubmitted = [
            ("SLURM_ARRAY_TASK_ID", "17"),
            ("SLURM_ARRAY_TASK_MIN", "3"),
            ("SLURM_ARRAY_TASK_COUNT", "2"),
            ("GRAFTWORK_NUM_SHARDS", "20"),
        ];
        assert_eq!(
            from(&resubmitted),
            Ok(Some((shard(17, 20), "SLURM_ARRAY_TASK_ID")))
        );
        let ours = [
            ("GRAFTWORK_SHARD_INDEX", "1"),
            ("GRAFTWORK_NUM_SHARDS", "4"),
            ("RANK", "0"),
            ("WORLD_SIZE", "2"),
        ];
        assert_eq!(from(&ours), Ok(Some((shard(1, 4), "GRAFTWORK_SHARD_INDEX"))));
        assert_eq!(from(&ours[2..]), Ok(Some((shard(0, 2), "RANK"))));
        assert!(from(&[("RANK", "0")]).unwrap().is_none());
        let indexed = [("JOB_COMPLETION_INDEX", "2"), ("GRAFTWORK_NUM_SHARDS", "3")];
        assert_eq!(from(&indexed), Ok(Some((shard(2, 3), "JOB_COMPLETION_INDEX"))));
        let gaps = [
            ("SLURM_ARRAY_TASK_ID", "17"),
            ("SLURM_ARRAY_TASK_MIN", "3"),
            ("SLURM_ARRAY_TASK_MAX", "17"),
            ("SLURM_ARRAY_TASK_COUNT", "2"),
        ];
        assert!(from(&gaps).unwrap_err().contains("gaps"));
        assert!(from(&indexed[..1]).unwrap_err().contains("GRAFTWORK_NUM_SHARDS"));
        assert!(
            from(&[("RANK", "2"), ("WORLD_SIZE", "2")])
                .unwrap_err()
                .contains("no shard 2 of 2")
        );
        assert!(
            from(&[("PMI_RANK", "x"), ("PMI_SIZE", "2")])
                .unwrap_err()
                .contains("no number")
        );
    }

    #[test]
    fn a_shard_is_written_as_a_fraction() {
        assert_eq!("3/8".parse(), Shard::new(3, 8));
        assert!("8/8".parse::<Shard>().unwrap_err().contains("0 to 7"));
        assert!(
            "1".parse::<Shard>().is_err()
                && "a/2".parse::<Shard>().is_err()
                && "0/0".parse::<Shard>().is_err()
        );
        assert_eq!(to_array_expression(&[3, 17, 18, 19, 20, 22]), "3,17-20,22");
    }
}
