//! What became of a file: opened, compared with what is owed to it, and put into words.

use pth::{Checkpoint, Error, OpenOptions, Scan, Severity, Source, Tensor};

use super::{Expect, With, base};

/// All that a caller can see of a file; two ways of opening one must not differ in any of it.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    error: Option<Refusal>,
    tensors: Vec<Read>,
    /// Names and what is said of them.
    problems: Vec<(String, String)>,
    others: Vec<(String, String)>,
    records: Vec<(String, String)>,
    facts: String,
}

#[derive(Debug, PartialEq)]
struct Refusal {
    message: String,
    is_not_a_checkpoint: bool,
    unsafe_global: Option<String>,
}

#[derive(Debug, PartialEq)]
struct Read {
    name: String,
    facts: String,
    bytes: Result<Vec<u8>, String>,
}

/// Runs something within the memory that is due to the file.
pub(crate) trait Budget {
    fn spend<T>(&mut self, what: &str, work: impl FnOnce() -> T) -> T;
}

pub(crate) fn options(with: Option<With>) -> OpenOptions {
    let mut options = OpenOptions::default();
    match with {
        None => {}
        Some(With::AllowOpaque) => options.allow_opaque = true,
        Some(With::LastWins) => options.last_wins = true,
        Some(With::AllowPrefix) => options.allow_prefix = true,
    }
    options
}

/// Opens `source` and looks at everything in it.
pub(crate) fn open(source: Source, options: &OpenOptions, budget: &mut impl Budget) -> Outcome {
    let opened = budget.spend("opening", || Checkpoint::from_source(source, options));
    let mut outcome = Outcome {
        error: None,
        tensors: Vec::new(),
        problems: Vec::new(),
        others: Vec::new(),
        records: Vec::new(),
        facts: String::new(),
    };
    let checkpoint = match opened {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            outcome.error = Some(Refusal {
                message: error.to_string(),
                is_not_a_checkpoint: matches!(error, Error::NotACheckpoint { .. }),
                unsafe_global: match error {
                    Error::Unsafe { global, .. } => Some(global),
                    _ => None,
                },
            });
            return outcome;
        }
    };
    for (name, tensor) in checkpoint.all_tensors() {
        outcome.tensors.push(read(name, tensor, budget));
    }
    for problem in checkpoint.problems() {
        outcome
            .problems
            .push((problem.name.clone(), problem.fault.to_string()));
    }
    for other in checkpoint.others() {
        outcome.others.push((other.name.clone(), other.value.clone()));
    }
    for (name, record) in checkpoint.records() {
        let mut text = format!(
            "{:?} {} {:?} {:?}",
            record.kind,
            record.dtype,
            record.shape,
            record.kind.facts()
        );
        for (part, tensor) in &record.parts {
            let read = read(part, tensor, budget);
            text.push_str(&format!(", {part}: {} {:?}", read.facts, read.bytes));
        }
        outcome.records.push((name.to_owned(), text));
    }
    outcome.facts = format!("{} `{}`", checkpoint.format(), checkpoint.wrapper());
    outcome
}

fn read(name: &str, tensor: &Tensor, budget: &mut impl Budget) -> Read {
    let bytes = budget.spend(&format!("the bytes of `{name}`"), || {
        tensor
            .to_bytes()
            .map(std::borrow::Cow::into_owned)
            .map_err(|error| error.to_string())
    });
    Read {
        name: name.to_owned(),
        facts: format!(
            "{} {:?} {:?} {} {}",
            tensor.dtype(),
            tensor.shape(),
            tensor.stride(),
            tensor.storage_offset(),
            tensor.requires_grad()
        ),
        bytes,
    }
}

/// Whether `text` has one of the alternatives in `fragment`, in any case.
fn has(text: &str, fragment: &str) -> bool {
    let text = text.to_lowercase();
    fragment
        .split('|')
        .any(|fragment| text.contains(&fragment.to_lowercase()))
}

impl Outcome {
    pub(crate) fn is_rejected(&self) -> bool {
        self.error.is_some()
    }

    fn tensor(&self, name: &str) -> Option<&Read> {
        self.tensors.iter().find(|read| read.name == name)
    }

    fn is_readable(&self, name: &str) -> bool {
        self.tensor(name).is_some_and(|read| read.bytes.is_ok())
    }

    /// Whether `name`, or something inside of it, is mentioned anywhere.
    fn is_told(&self, name: &str) -> bool {
        let within = |other: &str| {
            other
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let listed = [&self.problems, &self.others, &self.records];
        self.tensors.iter().any(|read| within(&read.name))
            || listed.into_iter().flatten().any(|(name, _)| within(name))
    }

    /// The honest tensor is what it was, or it is refused, or a problem names it.
    fn check_honest(&self) -> Result<(), String> {
        match self.tensor("w").map(|read| &read.bytes) {
            Some(Ok(bytes)) if *bytes != base::w() => Err(format!("`w` is {bytes:?}")),
            _ => Ok(()),
        }
    }

    /// The file opened and the honest tensor can be had.
    fn check_loaded(&self) -> Result<(), String> {
        if let Some(error) = &self.error {
            return Err(format!("it is refused: {}", error.message));
        }
        if !self.is_readable("w") {
            return Err("`w` cannot be read".to_owned());
        }
        Ok(())
    }

    /// Whether what is owed was given.
    pub(crate) fn meets(&self, expect: &Expect) -> Result<(), String> {
        self.check_honest()?;
        match expect {
            Expect::Rejects(fragment) => match &self.error {
                None => Err("it is accepted".to_owned()),
                Some(error) if has(&error.message, fragment) => Ok(()),
                Some(_) => Err("it is refused in other words".to_owned()),
            },
            Expect::Unsafe(global) => match &self.error {
                None => Err("it is accepted".to_owned()),
                Some(error) if error.unsafe_global.as_ref() == Some(global) => Ok(()),
                Some(_) => Err("it is refused for another reason".to_owned()),
            },
            Expect::NotACheckpoint(fragment) => match &self.error {
                None => Err("it is accepted".to_owned()),
                Some(error) if error.is_not_a_checkpoint && has(&error.message, fragment) => Ok(()),
                Some(_) => Err("it is refused as something else".to_owned()),
            },
            Expect::Loads(names) => {
                self.check_loaded()?;
                let mut found: Vec<&str> = self.tensors.iter().map(|read| read.name.as_str()).collect();
                let mut expected = names.to_vec();
                found.sort_unstable();
                expected.sort_unstable();
                if found != expected {
                    return Err(format!("its tensors are {found:?}"));
                }
                if let Some(read) = self.tensors.iter().find(|read| read.bytes.is_err()) {
                    return Err(format!("`{}` cannot be read", read.name));
                }
                match self.problems.is_empty() {
                    true => Ok(()),
                    false => Err("it has problems".to_owned()),
                }
            }
            Expect::Opaque => {
                self.check_loaded()?;
                match (self.tensor("t"), self.is_told("t")) {
                    (Some(_), _) => Err("`t` is a tensor".to_owned()),
                    (None, false) => Err("`t` is left out in silence".to_owned()),
                    (None, true) => Ok(()),
                }
            }
            Expect::OpaqueOrUnsafe => match &self.error {
                Some(error) if error.unsafe_global.is_some() => Ok(()),
                _ => self.meets(&Expect::Opaque),
            },
            Expect::Problem(name, fragment) => {
                self.check_loaded()?;
                if !name.is_empty() && self.tensor(name).is_some() {
                    return Err(format!("`{name}` is a tensor"));
                }
                let is_it =
                    |(of, text): &(String, String)| (name.is_empty() || of == name) && has(text, fragment);
                match self.problems.iter().any(is_it) {
                    true => Ok(()),
                    false => Err("no problem says so".to_owned()),
                }
            }
            Expect::Unreadable(name, fragment) => {
                if let Some(error) = &self.error {
                    return Err(format!("it is refused: {}", error.message));
                }
                for read in &self.tensors {
                    match &read.bytes {
                        Err(message) if read.name == *name && has(message, fragment) => {}
                        Err(_) => return Err(format!("`{}` cannot be read, in other words", read.name)),
                        Ok(_) if read.name == *name => return Err(format!("`{name}` is read")),
                        Ok(_) => {}
                    }
                }
                match self.tensor(name) {
                    Some(_) => Ok(()),
                    None => Err(format!("`{name}` is no tensor")),
                }
            }
            Expect::Refused(name) => {
                if self.is_rejected() {
                    return Ok(());
                }
                if self.is_readable(name) {
                    return Err(format!("`{name}` is read"));
                }
                match self.is_told(name) {
                    true => Ok(()),
                    false => Err(format!("`{name}` is left out in silence")),
                }
            }
            Expect::NotClean => match self.is_rejected() || !self.problems.is_empty() {
                true => Ok(()),
                false => Err("it is accepted without a word".to_owned()),
            },
            Expect::Survives => Ok(()),
        }
    }

    /// One line of text.
    pub(crate) fn line(&self) -> String {
        if let Some(error) = &self.error {
            return one_line(&format!("error: {}", error.message));
        }
        let names: Vec<&str> = self.tensors.iter().map(|read| read.name.as_str()).collect();
        let mut line = format!("{}: tensors [{}]", self.facts, names.join(", "));
        for read in &self.tensors {
            if let Err(message) = &read.bytes {
                line.push_str(&format!("; `{}` unreadable: {message}", read.name));
            }
        }
        let lists = [
            ("problem", &self.problems),
            ("other", &self.others),
            ("record", &self.records),
        ];
        for (kind, list) in lists {
            for (name, text) in list.iter().take(3) {
                line.push_str(&format!("; {kind} `{name}`: {text}"));
            }
        }
        one_line(&line)
    }
}

/// Printable, and cut where it gets long.
pub(crate) fn one_line(text: &str) -> String {
    const MAX_CHARS: usize = 320;
    let mut line = String::new();
    for (i, char) in text.chars().enumerate() {
        if i == MAX_CHARS {
            line.push_str("...");
            break;
        }
        match char {
            ' '..='~' if char != '|' => line.push(char),
            _ => line.extend(char.escape_default()),
        }
    }
    line
}

/// All that a scan says, to be compared.
pub(crate) fn scan_text(scan: &Scan) -> String {
    let mut text = format!("{} {} {:?}\n", scan.format, scan.is_complete, scan.weights_only);
    for global in &scan.globals {
        text.push_str(&format!(
            "{}.{} {} {} {} {:?}\n",
            global.module, global.name, global.record, global.offset, global.is_called, global.verdict
        ));
    }
    for finding in &scan.findings {
        text.push_str(&format!(
            "{} {:?} {} {}\n",
            finding.id, finding.severity, finding.record, finding.detail
        ));
    }
    text
}

/// Which of the wanted findings are missing.
pub(crate) fn missing(scan: &Scan, wanted: &[&str]) -> Vec<String> {
    let found = |id: &str| scan.findings.iter().any(|finding| finding.id == id);
    wanted
        .iter()
        .filter(|ids| !ids.split('|').any(found))
        .map(|ids| (*ids).to_owned())
        .collect()
}

/// Whether the scan calls the file clean: all of it was seen and nothing was found.
pub(crate) fn is_clean(scan: &Scan) -> bool {
    scan.is_complete
        && !scan
            .findings
            .iter()
            .any(|finding| finding.severity > Severity::Note)
}

/// The ids of the findings, each once.
pub(crate) fn ids(scan: &Scan) -> String {
    let mut ids: Vec<&str> = scan.findings.iter().map(|finding| finding.id).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.join(" ")
}
