//! Which globals exist to run code. A list like this can never be complete, and need not be: nothing is ever run.
//!
//! It is here because a checkpoint that names one of these was made to attack someone, and its tensors deserve no trust.

/// Top-level modules that no checkpoint needs.
const MODULES: &[&str] = &[
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "runpy",
    "socket",
    "shutil",
    "pty",
    "ctypes",
    "_ctypes",
    "importlib",
    "imp",
    "pkgutil",
    "commands",
    "popen2",
    "webbrowser",
    "urllib",
    "urllib2",
    "http",
    "httplib",
    "ftplib",
    "smtplib",
    "telnetlib",
    "requests",
    "aiohttp",
    "asyncio",
    "multiprocessing",
    "signal",
    "code",
    "codeop",
    "pdb",
    "bdb",
    "cProfile",
    "profile",
    "timeit",
    "trace",
    "doctest",
    "idlelib",
    "pip",
    "venv",
    "ensurepip",
    "distutils",
    "cffi",
    "dill",
    "cloudpickle",
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "platform",
    "site",
    "sitecustomize",
    "pydoc",
    "ssl",
    "tempfile",
    "fileinput",
    "linecache",
    "builtin",
    "nturl2path",
    "uuid",
    "getpass",
    "glob",
];

/// Functions of `builtins` (`__builtin__` in Python 2) that reach everything else.
const BUILTINS: &[&str] = &[
    "eval",
    "exec",
    "execfile",
    "compile",
    "open",
    "file",
    "__import__",
    "input",
    "raw_input",
    "setattr",
    "delattr",
    "globals",
    "locals",
    "vars",
    "breakpoint",
    "exit",
    "quit",
    "apply",
    "memoryview",
    "help",
];

/// Names that are an attack in whatever module they are looked up.
const ANYWHERE: &[&str] = &[
    "system",
    "popen",
    "eval",
    "exec",
    "execfile",
    "__import__",
    "__globals__",
    "__builtins__",
    "__subclasses__",
];

/// Whether a pickle that merely mentions `module.name` is refused.
pub(crate) fn is_unsafe(module: &str, name: &str) -> bool {
    let top = module.split('.').next().unwrap_or(module);
    if MODULES.contains(&top) {
        // torch 0.4 and Lightning pickle plain data classes from here.
        return !matches!((module, name), ("uuid", "UUID"));
    }
    if matches!(top, "builtins" | "__builtin__" | "__builtins__") && BUILTINS.contains(&name) {
        return true;
    }
    if (top == "operator" || top == "_operator") && matches!(name, "attrgetter" | "methodcaller") {
        return true;
    }
    // A dotted name walks attributes: `os.system` of some module that imports `os`.
    name.contains('.')
        && name
            .split('.')
            .any(|part| MODULES.contains(&part) || BUILTINS.contains(&part) || ANYWHERE.contains(&part))
        || name == "system"
        || name == "popen"
}

/// Whether a pickle that calls `module.name` is refused, though it may mention it.
pub(crate) fn is_unsafe_call(module: &str, name: &str) -> bool {
    matches!(module, "builtins" | "__builtin__") && name == "getattr"
}
