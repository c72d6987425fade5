//! Every file of the corpus, opened in three ways and scanned in two: nothing panics, hangs or swells, all ways agree, and each file gets
//! what it is owed.
//!
//! `corpus/manifest.txt` keeps every message as it is today; `GRAFTWORK_BLESS=1 cargo test -p graftwork-pth --test corpus` renews it.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod build;
#[path = "corpus/mod.rs"]
mod corpus;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use corpus::outcome::{self, Budget};
use corpus::{Case, Expect};
use peak_alloc::PeakAlloc;
use pth::{Backing, Source};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// No file of the corpus is worth more than this.
const MAX_TIME: Duration = Duration::from_secs(10);
/// The whole of it must stay quick enough to be run by everybody.
const MAX_TOTAL_TIME: Duration = Duration::from_secs(60);

/// The allocator counts what all threads do: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Memory that a file of so many bytes may cost, beyond what was there before.
struct Bounded {
    n_bytes: usize,
    excess: Vec<String>,
}

impl Bounded {
    fn new(n_file_bytes: usize) -> Bounded {
        Bounded {
            n_bytes: 64 * n_file_bytes + (4 << 20),
            excess: Vec::new(),
        }
    }
}

impl Budget for Bounded {
    fn spend<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> T {
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let value = work();
        let spent = MEMORY.peak_usage().saturating_sub(before);
        if spent > self.n_bytes {
            self.excess.push(format!(
                "{what} takes {spent} bytes of memory, due are {}",
                self.n_bytes
            ));
        }
        value
    }
}

/// What came of one file.
struct Report {
    failures: Vec<String>,
    line: String,
}

fn run(case: &Case, path: &Path) -> Report {
    let mut failures = Vec::new();
    let mut budget = Bounded::new(case.bytes.len());
    let file = |backing| Source::open(path, backing).unwrap();

    let mut lines = Vec::new();
    let mut is_rejected = false;
    let ways =
        std::iter::once((None, &case.expect)).chain(case.also.iter().map(|(with, e)| (Some(*with), e)));
    for (with, expect) in ways {
        let options = outcome::options(with);
        let mut open = |source| outcome::open(source, &options, &mut budget);
        let mapped = open(file(Backing::Map));
        let read = open(file(Backing::Read));
        let owned = open(Source::from_bytes(case.bytes.clone()));
        for (way, other) in [("read", &read), ("from memory", &owned)] {
            if *other != mapped {
                failures.push(format!("mapped: {}\n    {way}: {}", mapped.line(), other.line()));
            }
        }
        if let Err(why) = mapped.meets(expect) {
            failures.push(format!(
                "{with:?} expected {expect:?}: {why}\n    {}",
                mapped.line()
            ));
        }
        if with.is_none() {
            is_rejected = mapped.is_rejected();
        }
        lines.push(match with {
            None => format!(
                "{} | {}",
                outcome::one_line(&format!("{expect:?}")),
                mapped.line()
            ),
            Some(with) => format!("{with:?}: {}", mapped.line()),
        });
    }

    let source = file(Backing::Map);
    let mapped = budget.spend("scanning", || pth::scan(&source));
    let source = Source::from_bytes(case.bytes.clone());
    let owned = budget.spend("scanning from memory", || pth::scan(&source));
    let texts = [&mapped, &owned].map(outcome::scan_text);
    if texts[0] != texts[1] {
        failures.push(format!(
            "scan mapped: {}\n    from memory: {}",
            texts[0], texts[1]
        ));
    }
    let missing = outcome::missing(&mapped, case.scan);
    if !missing.is_empty() {
        failures.push(format!(
            "the scan lacks {missing:?}, it has [{}]",
            outcome::ids(&mapped)
        ));
    }
    if is_rejected && outcome::is_clean(&mapped) {
        failures.push("the scan calls clean what the reader refuses".to_owned());
    }
    failures.append(&mut budget.excess);
    Report {
        failures,
        line: format!(
            "{} | {} | {} | {}",
            outcome::one_line(&case.id),
            case.classes.join(" "),
            lines.join(" | "),
            outcome::ids(&mapped)
        ),
    }
}

/// Runs a case in a thread that is called like it, so that even a stack overflow says whose it was.
fn run_guarded(case: Case, path: PathBuf) -> Report {
    let id = outcome::one_line(&case.id);
    let (done, report) = mpsc::channel();
    std::thread::Builder::new()
        .name(id.clone())
        .spawn(move || {
            let case = Arc::new(case);
            // The receiver is gone when this took too long, and then the report is no longer wanted.
            let _ = done.send(run(&case, &path));
        })
        .unwrap();
    report.recv_timeout(MAX_TIME).unwrap_or_else(|error| Report {
        failures: vec![match error {
            mpsc::RecvTimeoutError::Timeout => format!("no end after {MAX_TIME:?}"),
            mpsc::RecvTimeoutError::Disconnected => "it panics, see above".to_owned(),
        }],
        line: format!("{id} | none"),
    })
}

#[test]
fn every_file_gets_what_it_is_owed() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let mut failures = Vec::new();
    let mut manifest = String::new();
    for case in corpus::all() {
        let path = dir.path().join(case.file_name);
        // Not an `AtomicFile`: none of these needs to survive a crash.
        File::create(&path).unwrap().write_all(&case.bytes).unwrap();
        let id = case.id.clone();
        let report = run_guarded(case, path);
        failures.extend(
            report
                .failures
                .into_iter()
                .map(|failure| format!("{id}: {failure}")),
        );
        manifest.push_str(&report.line);
        manifest.push('\n');
    }
    let elapsed = start.elapsed();
    let n_failures = failures.len();
    assert!(
        failures.is_empty(),
        "{n_failures} failures:\n  {}",
        failures.join("\n  ")
    );
    assert!(elapsed < MAX_TOTAL_TIME, "the corpus took {elapsed:?}");
    check_manifest(&manifest);
}

/// Compares with the manifest that is kept, line by line.
fn check_manifest(found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/manifest.txt");
    if std::env::var_os("GRAFTWORK_BLESS").is_some() {
        File::create(&path).unwrap().write_all(found.as_bytes()).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; make it with GRAFTWORK_BLESS=1", path.display()));
    let by_id = |text: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.split_once(" | "));
        lines.map(|(id, rest)| (id.to_owned(), rest.to_owned())).collect()
    };
    let (kept, found) = (by_id(&kept), by_id(found));
    let ids: BTreeSet<&String> = kept.keys().chain(found.keys()).collect();
    let none = String::new();
    let changes: Vec<String> = ids
        .into_iter()
        .filter(|id| kept.get(*id) != found.get(*id))
        .map(|id| {
            let [kept, found] = [&kept, &found].map(|lines| lines.get(id).unwrap_or(&none));
            format!("{id}\n    kept:  {kept}\n    found: {found}")
        })
        .collect();
    assert!(
        changes.is_empty(),
        "{} lines of the manifest change; if that is meant, renew it with GRAFTWORK_BLESS=1:\n  {}",
        changes.len(),
        changes.join("\n  ")
    );
}

/// The corpus is as large and as wide as it claims to be.
#[test]
fn every_class_has_its_files_and_none_is_there_twice() {
    let _alone = alone();
    let cases = corpus::all();
    assert!(cases.len() >= 300, "{} files", cases.len());
    let mut ids = BTreeSet::new();
    let mut bytes: HashMap<&[u8], &str> = HashMap::new();
    let mut classes: BTreeMap<&str, usize> = BTreeMap::new();
    for case in &cases {
        assert!(ids.insert(&case.id), "two files are called `{}`", case.id);
        if let Some(other) = bytes.insert(&case.bytes, &case.id) {
            panic!("`{other}` and `{}` are the same bytes", case.id);
        }
        for class in case.classes {
            *classes.entry(class).or_default() += 1;
        }
    }
    let families = [("C", 11), ("P", 14), ("T", 8), ("R", 29)];
    let expected: BTreeSet<String> = families
        .into_iter()
        .flat_map(|(family, n)| (1..=n).map(move |i| format!("{family}{i}")))
        .collect();
    let found: BTreeSet<String> = classes.keys().map(|class| (*class).to_owned()).collect();
    assert_eq!(
        found, expected,
        "classes without a file, or files without a class"
    );
    // What the table is silent about is no more than a small part.
    let n_silent = cases
        .iter()
        .filter(|case| matches!(case.expect, Expect::Survives))
        .count();
    assert!(
        n_silent * 5 < cases.len(),
        "{n_silent} of {} expect nothing",
        cases.len()
    );
}
