//! The cache of features: what misses and what does not, damage, writers that are killed, jobs in shards.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::{Said, Scratch, fixture, run};
use runtime::features::{Manifest, Store, verify_cache};

/// `extract` of `data` into the scratch's cache, as a command; pictures keep their size unless `more` says otherwise.
fn command(scratch: &Scratch, data: &Path, more: &[&str]) -> Command {
    let mut command = scratch.command(["extract", "--json", "--crop", "32"]);
    command.arg("--cache").arg(scratch.path("cache"));
    command.arg("--backbone").arg(fixture("digits/backbone.onnx"));
    command.arg("--data").arg(data).args(more);
    if !more.contains(&"--resize") {
        command.args(["--resize", "32"]);
    }
    command
}

fn extract(scratch: &Scratch, data: &Path, more: &[&str]) -> serde_json::Value {
    run(command(scratch, data, more)).ok().json()
}

/// A data set of a few pictures.
fn few(scratch: &Scratch, n_per_class: usize) -> PathBuf {
    for split in ["train", "val"] {
        for class in ["5", "6"] {
            let from = fixture("digits/pictures").join(split).join(class);
            let mut names: Vec<PathBuf> = fs::read_dir(from).unwrap().map(|e| e.unwrap().path()).collect();
            names.sort();
            for path in names.into_iter().take(n_per_class) {
                let name = path.file_name().unwrap().to_str().unwrap();
                scratch.write(&format!("data/{split}/{class}/{name}"), &fs::read(&path).unwrap());
            }
        }
    }
    scratch.path("data")
}

/// Every row of an entry by its id.
fn rows(entry: &Path) -> BTreeMap<[u8; 32], Vec<u32>> {
    let store = Store::open_entry(entry).unwrap();
    let manifest = Manifest::open(&Manifest::list(entry).unwrap()[0]).unwrap();
    let ids: Vec<_> = manifest.lines().filter_map(|line| line.id).collect();
    let features = store.features(&ids, |row| row.to_string()).unwrap();
    let row = |at: usize| {
        features
            .rows(at..at + 1, &mut Vec::new())
            .iter()
            .map(|v| v.to_bits())
            .collect()
    };
    ids.iter().enumerate().map(|(at, id)| (*id, row(at))).collect()
}

fn entry_of(answer: &serde_json::Value) -> PathBuf {
    PathBuf::from(answer["entry"].as_str().unwrap())
}

#[test]
fn each_setting_misses_alone_and_is_named() {
    let scratch = Scratch::new();
    let data = few(&scratch, 2);
    let first = extract(&scratch, &data, &[]);
    assert_eq!(first["cache"], serde_json::json!({ "hits": 0, "misses": 8 }));
    let explain = |more: &[&str]| {
        let mut explain = scratch.command(["cache", "explain", "--json", "--cache", "cache", "--crop", "32"]);
        if !more.contains(&"--resize") {
            explain.args(["--resize", "32"]);
        }
        explain
            .arg("--backbone")
            .arg(fixture("digits/backbone.onnx"))
            .args(more);
        run(explain)
    };
    let settings: [(&[&str], &str); 7] = [
        (&["--dtype", "float32"], "dtype"),
        (&["--pool", "avg"], "pool"),
        (&["--interpolation", "bicubic"], "input.picture.interpolation"),
        (&["--mean", "0.485,0.456,0.5"], "input.picture.mean"),
        (&["--std", "0.229,0.224,0.3"], "input.picture.std"),
        (&["--resize", "33"], "input.picture.resize"),
        (&["--cut", "logits"], "prefix"),
    ];
    for (more, field) in settings {
        let said = explain(more);
        assert_eq!(said.code, 1, "{more:?}: {}", said.stdout);
        let answer = &said.json()[0];
        let differences = answer["nearest"][0]["differences"].as_array().unwrap().clone();
        let fields: Vec<&str> = differences.iter().map(|d| d["field"].as_str().unwrap()).collect();
        assert_eq!(fields, [field], "{more:?}");
        let computed = extract(&scratch, &data, more);
        assert_eq!(computed["cache"]["misses"], 8, "{more:?}");
        assert_eq!(extract(&scratch, &data, more)["cache"]["misses"], 0, "{more:?}");
        // Only that: what was there is there, and the next one is compared with the first again.
        assert_eq!(extract(&scratch, &data, &[])["cache"]["misses"], 0, "{more:?}");
        fs::remove_dir_all(entry_of(&computed)).unwrap();
    }
    let hit = explain(&["--data", data.to_str().unwrap()]).ok().json();
    assert_eq!(hit[0]["samples"], serde_json::json!({ "n": 8, "hits": 8 }));
}

#[test]
fn views_are_entries_of_their_own_and_can_be_added_to() {
    let scratch = Scratch::new();
    let data = few(&scratch, 2);
    extract(&scratch, &data, &[]);
    // Four of the eight are for training.
    let one = extract(&scratch, &data, &["--views", "1"]);
    assert_eq!(one["cache"], serde_json::json!({ "hits": 4, "misses": 4 }));
    let first = PathBuf::from(one["views"][0].as_str().unwrap());
    let before: Vec<_> = blocks(&first);
    let two = extract(&scratch, &data, &["--views", "2"]);
    assert_eq!(two["cache"]["misses"], 4);
    assert_eq!(two["views"][0], one["views"][0]);
    assert_eq!(blocks(&first), before, "the first view was computed again");
    let store = |at: usize| Store::open_entry(Path::new(two["views"][at].as_str().unwrap())).unwrap();
    assert_eq!((store(0).n_rows(), store(1).n_rows()), (4, 4));
    let manifest = Manifest::open(&Manifest::list(&entry_of(&two)).unwrap()[0]).unwrap();
    let plain = Store::open_entry(&entry_of(&two)).unwrap();
    let train = manifest
        .labelled(&plain, &[store(0), store(1)], runtime::data::Split::Train)
        .unwrap();
    assert_eq!(train.targets.len(), 12);
    let row = |at: usize| train.features.rows(at..at + 1, &mut Vec::new()).to_vec();
    assert!(row(0) != row(1) && row(1) != row(2), "a view is another picture");
    assert_eq!(
        extract(&scratch, &data, &["--views", "2", "--view-seed", "1"])["cache"]["misses"],
        4
    );
}

fn blocks(entry: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = fs::read_dir(entry)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "safetensors"))
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                fs::read(path).unwrap(),
            )
        })
        .collect();
    found.sort();
    found
}

#[test]
fn several_boundaries_are_computed_in_one_pass() {
    let scratch = Scratch::new();
    let data = few(&scratch, 2);
    let cuts = run(scratch.command([
        "cuts",
        "--json",
        fixture("digits/backbone.onnx").to_str().unwrap(),
    ]))
    .ok()
    .json();
    let names: Vec<&str> = cuts
        .as_array()
        .unwrap()
        .iter()
        .map(|cut| cut["name"].as_str().unwrap())
        .collect();
    let (deep, last) = (names[names.len() / 2], names[names.len() - 1]);
    let both = extract(
        &scratch,
        &data,
        &["--cut", &format!("{deep},{last}"), "--dtype", "float32"],
    );
    assert_eq!(both["entries"].as_array().unwrap().len(), 2);
    for (at, cut) in [deep, last].into_iter().enumerate() {
        let alone = extract(&scratch, &data, &["--cut", cut, "--dtype", "float32"]);
        assert_eq!(alone["cache"]["misses"], 0, "{cut}");
        assert_eq!(alone["entry"], both["entries"][at]["entry"]);
        let computed = rows(&entry_of(&alone));
        fs::remove_dir_all(entry_of(&alone)).unwrap();
        extract(&scratch, &data, &["--cut", cut, "--dtype", "float32"]);
        assert_eq!(
            rows(&entry_of(&alone)),
            computed,
            "one pass and two give the same numbers"
        );
    }
    // Spatial features keep their shape, and pooling takes their mean.
    let spatial = both["entries"][0]["shape"].as_array().unwrap().clone();
    assert_eq!(spatial.len(), 3, "{deep}");
    let pooled = extract(
        &scratch,
        &data,
        &["--cut", deep, "--pool", "avg", "--dtype", "float32"],
    );
    assert_eq!(pooled["entries"][0]["shape"], serde_json::json!([spatial[0]]));
    let whole = rows(&entry_of(&extract(
        &scratch,
        &data,
        &["--cut", deep, "--dtype", "float32"],
    )));
    for (id, row) in rows(&entry_of(&pooled)) {
        let plane = whole[&id].len() / row.len();
        for (mean, values) in row.iter().zip(whole[&id].chunks(plane)) {
            let sum: f64 = values.iter().map(|&bits| f64::from(f32::from_bits(bits))).sum();
            assert_eq!(f32::from_bits(*mean), (sum / plane as f64) as f32);
        }
    }
}

#[test]
fn every_flipped_byte_of_every_file_is_noticed() {
    let scratch = Scratch::new();
    let data = few(&scratch, 1);
    for shard in ["0/2", "1/2"] {
        extract(&scratch, &data, &["--shard", shard]);
    }
    run(scratch.command(["finalize", "--cache", "cache"])).ok();
    let cache = scratch.path("cache");
    assert_eq!(verify_cache(&cache).unwrap().problems, []);
    let mut files = Vec::new();
    let mut pending = vec![cache.clone()];
    while let Some(folder) = pending.pop() {
        for path in fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()) {
            if path.is_dir() {
                pending.push(path);
            } else if fs::metadata(&path).unwrap().len() > 0 {
                files.push(path);
            }
        }
    }
    // A key, two blocks, a job, two markers, a manifest.
    assert_eq!(files.len(), 7, "{files:?}");
    for path in &files {
        let good = fs::read(path).unwrap();
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            #[expect(clippy::disallowed_methods, reason = "damage needs no durability")]
            fs::write(path, &bytes).unwrap();
            let seen = verify_cache(&cache).unwrap();
            assert!(!seen.problems.is_empty(), "byte {at} of {}", path.display());
        }
        // The next job that reads it says so, too.
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let said = match name.split(['-', '.']).next().unwrap() {
            "job" => run(command(&scratch, &data, &["--shard", "0/2"])),
            "done" => run(scratch.command(["status", "--cache", "cache"])),
            "labels" => {
                let mut train = scratch.command(["train", "-o", "run", "--features"]);
                train.arg(path.parent().unwrap());
                run(train)
            }
            _ => run(command(&scratch, &data, &[])),
        };
        said.fails(3, &name);
        #[expect(clippy::disallowed_methods, reason = "the test's own repair")]
        fs::write(path, &good).unwrap();
    }
    // What is damaged can be taken away, and is computed again.
    let block = files
        .iter()
        .find(|path| path.to_str().unwrap().contains("block-"))
        .unwrap();
    #[expect(clippy::disallowed_methods, reason = "damage needs no durability")]
    fs::write(block, b"short").unwrap();
    run(command(&scratch, &data, &[])).fails(3, "hint: graftwork cache verify --repair");
    let said = run(scratch.command(["cache", "verify", "--repair", "--cache", "cache"]));
    assert_eq!(said.code, 1, "{}", said.stderr);
    run(scratch.command(["cache", "verify", "--cache", "cache"])).ok();
    assert_eq!(extract(&scratch, &data, &[])["cache"]["misses"], 2);
}

#[test]
fn killed_writers_leave_what_one_clean_run_leaves() {
    let scratch = Scratch::new();
    let data = fixture("digits/pictures");
    let clean = Scratch::new();
    let expected = rows(&entry_of(&extract(&clean, &data, &[])));
    assert_eq!(expected.len(), 700);
    let mut random: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut n_killed = 0;
    for round in 0..5 {
        let mut writers: Vec<_> = (0..4)
            .map(|_| {
                let mut command = command(&scratch, &data, &["--block-rows", "16", "-j", "1"]);
                command
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for writer in &mut writers {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            std::thread::sleep(Duration::from_millis((random >> 33) % (30 + 20 * round)));
            writer.kill().unwrap();
            n_killed += usize::from(writer.wait().unwrap().code().is_none());
        }
    }
    assert!(n_killed >= 4, "{n_killed} were killed in time");
    let last = extract(&scratch, &data, &[]);
    assert_eq!(rows(&entry_of(&last)), expected);
    run(scratch.command(["cache", "verify", "--cache", "cache"])).ok();
    run(scratch.command(["cache", "gc", "--cache", "cache"])).ok();
    assert_eq!(extract(&scratch, &data, &[])["cache"]["misses"], 0);
    assert_eq!(rows(&entry_of(&last)), expected);
}

/// `extract` as a task of a Slurm array.
fn task(scratch: &Scratch, data: &Path, id: usize, n: usize) -> Said {
    let mut task = command(scratch, data, &[]);
    task.env("SLURM_ARRAY_TASK_ID", (id + 1).to_string())
        .env("SLURM_ARRAY_TASK_MIN", "1")
        .env("SLURM_ARRAY_TASK_MAX", n.to_string())
        .env("SLURM_ARRAY_TASK_COUNT", n.to_string());
    run(task)
}

#[test]
fn shards_put_together_are_the_whole() {
    let whole = Scratch::new();
    let data = few(&whole, 7);
    let single = extract(&whole, &data, &[]);
    let scratch = Scratch::new();
    let status = |more: &[&str]| run(scratch.command(["status", "--cache", "cache"].iter().chain(more)));
    task(&scratch, &data, 1, 3).ok();
    assert_eq!(status(&["--missing", "--format", "slurm"]).stdout, "0,2\n");
    run(scratch.command(["finalize", "--cache", "cache"])).fails(1, "hint: missing are 0,2");
    let said = task(&scratch, &data, 0, 3).ok();
    assert!(
        said.stderr.contains("shard 0/3, by SLURM_ARRAY_TASK_ID"),
        "{}",
        said.stderr
    );
    run(command(&scratch, &data, &["--shard", "2/4"])).fails(2, "begun with 3 shards");
    run(command(&scratch, &data, &["--shard", "3/3"])).fails(2, "counted from 0 to 2");
    task(&scratch, &data, 2, 3).ok();
    status(&["--missing"]).ok();
    let done = run(scratch.command(["finalize", "--json", "--cache", "cache"]))
        .ok()
        .json();
    assert_eq!((&done["n"], &done["n_left_out"]), (&28.into(), &0.into()));
    let entry = scratch.path("cache").join(entry_of(&single).file_name().unwrap());
    assert_eq!(rows(&entry), rows(&entry_of(&single)));
    let labels = |entry: &Path| Manifest::list(entry).unwrap()[0].file_name().unwrap().to_owned();
    assert_eq!(
        labels(&entry),
        labels(&entry_of(&single)),
        "the same manifest, byte for byte"
    );
    // An entry that is gone has taken the rows of all shards with it.
    let name = entry.file_name().unwrap().to_str().unwrap();
    let aside = scratch.path("aside");
    fs::rename(&entry, &aside).unwrap();
    let said = status(&["--missing", "--format", "slurm"]);
    assert_eq!((said.code, said.stdout.as_str()), (1, "0-2\n"));
    let said = status(&["--json"]).ok().json();
    assert_eq!(said[0]["absent_entries"], serde_json::json!([name]));
    assert_eq!(said[0]["done"], 0);
    let said = status(&[]).ok().stdout;
    assert!(
        said.contains(&format!("not in the cache any more: {name}")),
        "{said}"
    );
    fs::rename(&aside, &entry).unwrap();
    assert_eq!(status(&["--missing"]).ok().stdout, "");
    // A source that has changed is not mixed in.
    fs::rename(data.join("train/5"), data.join("train/7")).unwrap();
    fs::rename(data.join("val/5"), data.join("val/7")).unwrap();
    run(command(&scratch, &data, &["--shard", "0/3"])).fails(2, "other names");
}

#[test]
fn the_cache_has_a_limit_and_is_tidied() {
    let scratch = Scratch::new();
    let data = few(&scratch, 4);
    run(command(&scratch, &data, &["--max-cache-size", "1kB"])).fails(75, "hint: graftwork cache gc");
    let plain = extract(&scratch, &data, &[]);
    let other = extract(&scratch, &data, &["--resize", "36"]);
    let ls = |scratch: &Scratch| {
        run(scratch.command(["cache", "ls", "--json", "--cache", "cache"]))
            .ok()
            .json()
    };
    let entries = ls(&scratch);
    assert_eq!(entries.as_array().unwrap().len(), 2);
    assert_eq!(entries[0]["n_rows"], 16);
    // The least recently used goes.
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    let used = fs::File::options()
        .write(true)
        .open(entry_of(&plain).join("used"))
        .unwrap();
    used.set_modified(old).unwrap();
    let size = entries[0]["n_bytes"].as_u64().unwrap() + 100;
    let gc = |more: &[&str]| {
        let base = ["cache", "gc", "--json", "--cache", "cache"];
        run(scratch.command(base.iter().chain(more))).ok().json()
    };
    let dry = gc(&["--max-size", &size.to_string(), "--dry-run"]);
    assert_eq!(ls(&scratch).as_array().unwrap().len(), 2);
    assert_eq!(gc(&["--max-size", &size.to_string()]), dry);
    assert_eq!(
        ls(&scratch)[0]["name"].as_str(),
        entry_of(&other).file_name().unwrap().to_str()
    );
    assert_eq!(gc(&["--unused-for", "1h"]), serde_json::json!([]));
    run(scratch.command(["cache", "ls", "--cache", "nowhere"])).fails(2, "there is no cache");
}

/// Bytes of all files below a folder.
fn n_bytes(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files
        .map(|path| match path.is_dir() {
            true => n_bytes(&path),
            false => fs::metadata(&path).unwrap().len(),
        })
        .sum()
}

#[test]
fn racing_writers_blocks_count_once_and_a_dry_run_tells_what_goes() {
    let (scratch, other) = (Scratch::new(), Scratch::new());
    let data = few(&scratch, 4);
    let whole = entry_of(&extract(&scratch, &data, &[]));
    extract(&scratch, &data, &["--resize", "36"]);
    // What another writer of the same rows would have left beside them.
    let parts = blocks(&entry_of(&extract(&other, &data, &["--block-rows", "4"])));
    assert!(parts.len() > 1);
    let name = whole.file_name().unwrap().to_str().unwrap();
    for (block, bytes) in &parts {
        scratch.write(&format!("cache/{name}/{block}"), bytes);
    }
    let seen = verify_cache(&scratch.path("cache")).unwrap();
    assert_eq!((seen.n_rows, seen.n_duplicates, seen.n_disagreeing), (32, 16, 0));
    assert_eq!(Store::open_entry(&whole).unwrap().n_rows(), 16);
    // With room for all but one of the two, the two, and so many that nothing but what is twice must go.
    let before = n_bytes(&scratch.path("cache"));
    let twice: u64 = parts.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let kept: Vec<usize> = [before - twice, before - twice - 1, 1]
        .into_iter()
        .enumerate()
        .map(|(at, limit)| {
            let cache = format!("cache-{at}");
            scratch.copy(&scratch.path("cache"), &cache);
            let limit = limit.to_string();
            let gc = |more: &[&str]| {
                let base = ["cache", "gc", "--json", "--cache", &cache, "--max-size", &limit];
                run(scratch.command(base.iter().chain(more))).ok().json()
            };
            let dry = gc(&["--dry-run"]);
            assert_eq!(n_bytes(&scratch.path(&cache)), before);
            assert_eq!(gc(&[]), dry);
            let sizes = dry
                .as_array()
                .unwrap()
                .iter()
                .map(|gone| gone["n_bytes"].as_u64().unwrap());
            assert_eq!(n_bytes(&scratch.path(&cache)), before - sizes.sum::<u64>());
            fs::read_dir(scratch.path(&cache)).unwrap().count()
        })
        .collect();
    assert_eq!(kept, [2, 1, 0]);
}

#[test]
fn a_number_that_float16_cannot_hold_is_named() {
    let scratch = Scratch::new();
    let data = few(&scratch, 1);
    // Deviations this small make pixels of millions.
    let said = run(command(
        &scratch,
        &data,
        &["--std", "1e-9,1e-9,1e-9", "--cut", "logits"],
    ));
    said.fails(2, "hint: --dtype float32");
}

#[test]
fn texts_are_embedded_once_each_whatever_their_neighbours() {
    let scratch = Scratch::new();
    let texts: Vec<String> = (0..60)
        .map(|n| format!("the {} dog runs {}", n % 7, "and again ".repeat(n % 30)))
        .collect();
    let lines = |texts: &[String]| {
        let rows = texts.iter().enumerate();
        let rows = rows.map(|(n, text)| {
            serde_json::json!({ "text": text, "label": if n % 2 == 0 { "even" } else { "odd" } }).to_string()
        });
        rows.collect::<Vec<_>>().join("\n")
    };
    scratch.write("all.jsonl", lines(&texts).as_bytes());
    scratch.write("few.jsonl", lines(&texts[20..25]).as_bytes());
    let embed = |data: &str, cache: &str, more: &[&str]| {
        let mut extract = scratch.command([
            "extract",
            "--json",
            "--data",
            data,
            "--dtype",
            "float32",
            "--val-fraction",
            "0.2",
        ]);
        extract.arg("--cache").arg(scratch.path(cache));
        extract
            .arg("--backbone")
            .arg(fixture("text/model.onnx"))
            .args(more);
        run(extract).ok().json()
    };
    let all = embed("all.jsonl", "cache", &[]);
    assert_eq!(all["n"], 60);
    // The same texts twice are one row each.
    let distinct: std::collections::BTreeSet<&String> = texts.iter().collect();
    assert_eq!(
        Store::open_entry(&entry_of(&all)).unwrap().n_rows(),
        distinct.len()
    );
    assert_eq!(embed("few.jsonl", "cache", &[])["cache"]["misses"], 0);
    let few = rows(&entry_of(&embed("few.jsonl", "other", &[])));
    let whole = rows(&entry_of(&all));
    assert!(
        few.iter().all(|(id, row)| whole[id] == *row),
        "a text's row depends on its neighbours"
    );
    assert_eq!(
        embed("few.jsonl", "cache", &["--max-length", "8"])["cache"]["misses"],
        5
    );
    let mut pool = scratch.command(["extract", "--data", "few.jsonl", "--pool", "avg"]);
    pool.arg("--cache")
        .arg(scratch.path("cache"))
        .arg("--backbone")
        .arg(fixture("text/model.onnx"));
    run(pool).fails(2, "--text-pool");
}
