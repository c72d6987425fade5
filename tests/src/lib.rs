//! What the end-to-end tests share: the binary, ONNX Runtime, a scratch folder, and checks of what a command says.

pub mod checkpoints;

pub mod digits;
pub mod http;
pub mod onnx;
pub mod runs;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file below `fixtures/`.
pub fn fixture(path: &str) -> PathBuf {
    root().join("fixtures").join(path)
}

/// The binary, built once per test process in the profile of the tests.
///
/// Cargo builds a package's binary for that package's own tests only, hence the call.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--package", "graftwork"])
            .current_dir(root());
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(
            build.status().expect("cargo starts").success(),
            "the binary does not build"
        );
        let test = std::env::current_exe().expect("a test has a path");
        // target/debug/deps/story-0123 -> target/debug/graftwork
        let profile = test.ancestors().nth(2).expect("a test lies two folders deep");
        profile.join(format!("graftwork{}", std::env::consts::EXE_SUFFIX))
    })
}

/// ONNX Runtime for the tests: what is found, or else what `doctor --install` gets, once for all test processes.
pub fn onnx_runtime() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // One process installs, the others wait and find it.
        let lock = fs::File::create(std::env::temp_dir().join("graftwork-tests-onnxruntime.lock"))
            .expect("a lock file");
        lock.lock().expect("the lock");
        match runtime::engine::find(None) {
            Ok(found) => found.path,
            Err(_) => runtime::engine::install().expect("pip gets ONNX Runtime").path,
        }
    })
}

/// A scratch folder with a cache and data folder of its own, so that no test sees another's or the user's.
#[derive(Debug)]
pub struct Scratch {
    folder: tempfile::TempDir,
}

impl Default for Scratch {
    fn default() -> Scratch {
        Scratch::new()
    }
}

impl Scratch {
    /// A fresh one; removed when dropped.
    pub fn new() -> Scratch {
        Scratch {
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file into it, with the folders above.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it lies in a folder")).expect("its folder");
        #[expect(clippy::disallowed_methods, reason = "a test's input needs no durability")]
        fs::write(&path, bytes).expect("a scratch file");
        path
    }

    /// Copies a folder of fixtures into it.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        copy_folder(from, &to);
        to
    }

    /// Names in a folder of it, sorted; temporary siblings would show here.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// The binary with this folder as home and with ONNX Runtime at hand.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command_without_runtime(args);
        command.env("ORT_DYLIB_PATH", onnx_runtime());
        command
    }

    /// The binary with this folder as home, where no ONNX Runtime is to be found.
    pub fn command_without_runtime<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary());
        command
            .args(args)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .env("HOME", self.path("home"))
            .env("XDG_CACHE_HOME", self.path("home/cache"))
            .env("XDG_DATA_HOME", self.path("home/data"))
            .env("NO_COLOR", "1")
            // No Python: an onnxruntime installed for it would be found.
            .env("PATH", self.path("no-programs"))
            .env_remove("ORT_DYLIB_PATH")
            .env_remove("LD_LIBRARY_PATH");
        command
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder of fixtures").flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_folder(&from, &to);
        } else {
            fs::copy(&from, &to).expect("a copy");
        }
    }
}

/// What a command left.
#[derive(Debug)]
pub struct Said {
    /// Its exit code; -1 for a signal.
    pub code: i32,
    /// Results.
    pub stdout: String,
    /// Everything else.
    pub stderr: String,
}

/// Runs a command to its end.
pub fn run(mut command: Command) -> Said {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the binary starts");
    Said {
        code: status.code().unwrap_or(-1),
        stdout: String::from_utf8(stdout).expect("UTF-8 on stdout"),
        stderr: String::from_utf8(stderr).expect("UTF-8 on stderr"),
    }
}

impl Said {
    /// Fails unless the command succeeded.
    #[track_caller]
    pub fn ok(self) -> Said {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails unless the command ended with `code` and one line that starts with `error: ` and holds `message`.
    #[track_caller]
    pub fn fails(self, code: i32, message: &str) -> Said {
        let errors: Vec<&str> = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "))
            .collect();
        assert_eq!(self.code, code, "{}", self.stderr);
        assert!(
            errors.len() == 1 && self.stderr.contains(message),
            "wanted `{message}`:\n{}",
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }

    /// Its results as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}:\n{}", self.stdout))
    }
}
