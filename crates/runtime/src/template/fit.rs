//! Which template a state dict is of.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pth::FileError;
use surgery::{LazyStateDict, LazyValue};

use super::fault::Fault;
use super::interpreter::Interpreter;
use super::shipped;
use super::value::{ModuleId, Role};
use crate::error::Error;

/// A template file is text that people write.
const MAX_FILE_BYTES: u64 = 1 << 22;

/// Which templates may fit.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Choice {
    /// Any that is shipped.
    #[default]
    Shipped,
    /// The one of this name: `resnet18`.
    Named(String),
    /// One of those in a file.
    File(PathBuf),
}

impl Choice {
    /// A file where the text is the path of one, else a name.
    pub fn of(text: &str) -> Choice {
        if text.contains(['/', '\\', '.']) || Path::new(text).is_file() {
            Choice::File(text.into())
        } else {
            Choice::Named(text.to_owned())
        }
    }
}

/// A network that a checkpoint's names and shapes fit.
#[derive(Debug, Clone)]
pub struct Template {
    /// What it is called: `resnet18`, `MyNet_pretrained`.
    pub(super) name: String,
    /// The checkpoint, for messages.
    pub(super) path: PathBuf,
    /// Names and texts of template files, those that are shipped first.
    pub(super) files: Arc<[(String, String)]>,
    /// Which of the files it is in.
    pub(super) file: usize,
    /// Sizes of the checkpoint's tensors.
    pub(super) sizes: Arc<HashMap<String, Vec<usize>>>,
}

/// In what a state dict differs from the template that it comes nearest to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoTemplate {
    /// The checkpoint.
    pub path: PathBuf,
    /// What the nearest template is called.
    pub nearest: String,
    /// Whether it was asked for, and no other was looked at.
    pub is_asked_for: bool,
    /// How many names both have.
    pub n_common: usize,
    /// Names that the template has and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Names that the checkpoint has and the template lacks.
    pub unexpected: Vec<String>,
    /// Names that both have, with the checkpoint's sizes and the template's.
    pub mismatched: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// What stands in front of all names, where without it they fit a template, and that template.
    pub prefix: Option<(String, String)>,
}

impl std::fmt::Display for NoTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MAX_NAMED: usize = 4;
        let some = |names: Vec<String>, n: usize| {
            let more = match n.saturating_sub(MAX_NAMED) {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            format!("{}{more}", names.join(", "))
        };
        let quoted = |names: &[String]| {
            let shown = names.iter().take(MAX_NAMED).map(|name| format!("`{name}`"));
            some(shown.collect(), names.len())
        };
        let path = self.path.display();
        if let Some((prefix, template)) = &self.prefix {
            return write!(
                f,
                "`{path}` fits the template `{template}` but for `{prefix}` in front of all its names"
            );
        }
        if self.n_common == 0 && !self.is_asked_for {
            return write!(
                f,
                "`{path}` fits no template: none has a tensor called like one of its {} ({})",
                self.unexpected.len(),
                quoted(&self.unexpected)
            );
        }
        match self.is_asked_for {
            true => write!(f, "`{path}` does not fit the template `{}`", self.nearest)?,
            false => write!(
                f,
                "`{path}` fits no template, and `{}` is the nearest",
                self.nearest
            )?,
        }
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!(
                "{} missing ({})",
                self.missing.len(),
                quoted(&self.missing)
            ));
        }
        if !self.unexpected.is_empty() {
            parts.push(format!(
                "{} unexpected ({})",
                self.unexpected.len(),
                quoted(&self.unexpected)
            ));
        }
        if !self.mismatched.is_empty() {
            let shown = self.mismatched.iter().take(MAX_NAMED);
            let shown = shown.map(|(name, found, wanted)| format!("`{name}` {found:?} for {wanted:?}"));
            parts.push(format!(
                "{} of another shape ({})",
                self.mismatched.len(),
                some(shown.collect(), self.mismatched.len())
            ));
        }
        write!(f, ": {}", parts.join(", "))
    }
}

/// What a template asks of one tensor.
struct Wanted {
    shape: Vec<usize>,
    role: Role,
}

impl Template {
    /// The template that fits the names and shapes of a state dict exactly. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::NoTemplate`] where none fits, with what the nearest lacks; [`Error::Template`] for a file that is no template;
    /// [`Error::Usage`] for a name that no template has.
    pub fn recognise(path: &Path, tensors: &LazyStateDict, choice: &Choice) -> Result<Template, Error> {
        let sizes = tensors.iter().map(|(name, entry)| {
            let shape = match &entry.value {
                LazyValue::Tensor(tensor) => tensor.shape().to_vec(),
                LazyValue::Record(record) => record.shape.clone(),
            };
            (name.to_owned(), shape)
        });
        Template::recognise_sizes(path, sizes.collect(), choice)
    }

    /// As [`recognise`](Template::recognise), of names and shapes alone.
    ///
    /// # Errors
    /// As [`recognise`](Template::recognise).
    pub fn recognise_sizes(
        path: &Path,
        sizes: HashMap<String, Vec<usize>>,
        choice: &Choice,
    ) -> Result<Template, Error> {
        let files = files(choice)?;
        let sizes = Arc::new(sizes);
        let found = search(&files, &sizes, choice)?;
        let (file, name) = match found {
            Found::Exact(file, name) => (file, name),
            Found::Nearest(mut nearest) => {
                nearest.path = path.to_owned();
                nearest.prefix = fits_without_prefix(&files, &sizes, choice)?;
                return Err(Error::NoTemplate(Box::new(nearest)));
            }
        };
        Ok(Template {
            name,
            path: path.to_owned(),
            files: files.into(),
            file,
            sizes,
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the templates that are shipped.
    ///
    /// # Errors
    /// None that the shipped texts have.
    pub fn shipped() -> Result<Vec<String>, Error> {
        let files = files(&Choice::Shipped)?;
        let nothing = |_: &str| None;
        let mut interpreter = Interpreter::new(&nothing);
        let numbers = load(&mut interpreter, &files)?;
        let models = numbers
            .into_iter()
            .skip(1)
            .flat_map(|file| interpreter.models(file).to_vec());
        Ok(models.map(|name| name.to_string()).collect())
    }

    /// Reads the template's files and makes its modules; the network's number with them.
    pub(super) fn build(&self, interpreter: &mut Interpreter<'_>) -> Result<ModuleId, Error> {
        load(interpreter, &self.files)?;
        let root = interpreter
            .build(self.file, &self.name)
            .map_err(|fault| located(interpreter, fault))?;
        interpreter.name_paths(root);
        Ok(root)
    }
}

pub(super) fn located(interpreter: &Interpreter<'_>, fault: Fault) -> Error {
    Error::Template(Box::new(interpreter.located(fault)))
}

/// Texts that are shipped, and the one that is asked for.
pub(super) fn files(choice: &Choice) -> Result<Vec<(String, String)>, Error> {
    let mut files: Vec<(String, String)> = shipped::FILES
        .iter()
        .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
        .collect();
    if let Choice::File(path) = choice {
        let n_bytes = std::fs::metadata(path)
            .map_err(FileError::at("read", path))?
            .len();
        let odd = |reason: String| Error::BadFile {
            path: path.clone(),
            reason,
        };
        if n_bytes > MAX_FILE_BYTES {
            return Err(odd(format!("it has {n_bytes} bytes, which no template has")));
        }
        let bytes = std::fs::read(path).map_err(FileError::at("read", path))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            odd(format!(
                "it is no text: byte {} is not UTF-8",
                error.utf8_error().valid_up_to()
            ))
        })?;
        files.push((path.display().to_string(), text));
    }
    Ok(files)
}

fn load(interpreter: &mut Interpreter<'_>, files: &[(String, String)]) -> Result<Vec<usize>, Error> {
    files
        .iter()
        .map(|(name, text)| {
            interpreter
                .load(name, text)
                .map_err(|fault| located(interpreter, fault))
        })
        .collect()
}

enum Found {
    Exact(usize, String),
    Nearest(NoTemplate),
}

fn search(
    files: &[(String, String)],
    sizes: &HashMap<String, Vec<usize>>,
    choice: &Choice,
) -> Result<Found, Error> {
    let lookup = |name: &str| sizes.get(name).cloned();
    let mut interpreter = Interpreter::new(&lookup);
    let candidates = candidates(&mut interpreter, files, choice)?;
    let chosen: Vec<&(usize, String)> = match choice {
        Choice::Named(name) => candidates.iter().filter(|(_, found)| found == name).collect(),
        _ => candidates.iter().collect(),
    };
    if chosen.is_empty() {
        return Err(no_such(choice, &candidates));
    }
    let is_asked_for = chosen.len() == 1 && *choice != Choice::Shipped;
    let n_loaded = interpreter.modules.len();
    let mut best: Option<NoTemplate> = None;
    for (file, name) in chosen {
        // What one network leaves behind is no part of the next.
        interpreter.modules.truncate(n_loaded);
        let wanted = interpreter
            .build(*file, name)
            .map(|root| wanted(&interpreter, root));
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(fault) if *choice != Choice::Shipped => return Err(located(&interpreter, fault)),
            // A shipped template that such sizes make no sense to.
            Err(_) => continue,
        };
        let found = compare(name, &wanted, sizes);
        if found.distance() == 0 {
            return Ok(Found::Exact(*file, name.clone()));
        }
        if best.as_ref().is_none_or(|best| found.rank() < best.rank()) {
            best = Some(found);
        }
    }
    let mut nearest = best.ok_or_else(|| no_such(choice, &candidates))?;
    nearest.is_asked_for = is_asked_for;
    Ok(Found::Nearest(nearest))
}

/// The networks that may be meant: file and name. All files are loaded.
pub(super) fn candidates(
    interpreter: &mut Interpreter<'_>,
    files: &[(String, String)],
    choice: &Choice,
) -> Result<Vec<(usize, String)>, Error> {
    let numbers = load(interpreter, files)?;
    let looked_at = match choice {
        Choice::Shipped | Choice::Named(_) => 0,
        Choice::File(_) => numbers.len() - 1,
    };
    let mut candidates: Vec<(usize, String)> = Vec::new();
    for &file in &numbers[looked_at..] {
        let mut names = interpreter.models(file).to_vec();
        if names.is_empty() && matches!(choice, Choice::File(_)) {
            names.extend(interpreter.last(file).cloned());
        }
        candidates.extend(names.into_iter().map(|name| (file, name.to_string())));
    }
    Ok(candidates)
}

pub(super) fn no_such(choice: &Choice, candidates: &[(usize, String)]) -> Error {
    let Choice::Named(name) = choice else {
        return Error::Usage("the file holds no class and no function that could be a template".to_owned());
    };
    let names: Vec<&str> = candidates.iter().map(|(_, name)| name.as_str()).collect();
    Error::Usage(format!(
        "there is no template `{name}`; there are {}",
        names.join(", ")
    ))
}

/// All tensors of a network.
fn wanted(interpreter: &Interpreter<'_>, root: ModuleId) -> HashMap<String, Wanted> {
    let mut out = HashMap::new();
    interpreter.each_tensor(root, &mut |name, stored| {
        let wanted = Wanted {
            shape: stored.shape.clone(),
            role: stored.role,
        };
        out.insert(name, wanted);
    });
    out
}

impl NoTemplate {
    /// Less is nearer: one with nothing in common is farther than any other.
    fn rank(&self) -> (bool, usize) {
        (self.n_common == 0, self.distance())
    }

    fn distance(&self) -> usize {
        self.missing.len() + self.unexpected.len() + self.mismatched.len()
    }
}

fn compare(name: &str, wanted: &HashMap<String, Wanted>, sizes: &HashMap<String, Vec<usize>>) -> NoTemplate {
    let mut found = NoTemplate {
        path: PathBuf::new(),
        nearest: name.to_owned(),
        is_asked_for: false,
        n_common: wanted.keys().filter(|name| sizes.contains_key(*name)).count(),
        missing: Vec::new(),
        unexpected: Vec::new(),
        mismatched: Vec::new(),
        prefix: None,
    };
    for (name, wanted) in wanted {
        match sizes.get(name) {
            None if wanted.role == Role::Counter => {}
            None => found.missing.push(name.clone()),
            Some(sizes) if *sizes != wanted.shape => {
                // A counter of one number may be `[]` or `[1]`.
                let is_counter = wanted.role == Role::Counter && sizes.iter().product::<usize>() == 1;
                if !is_counter {
                    let mismatch = (name.clone(), sizes.clone(), wanted.shape.clone());
                    found.mismatched.push(mismatch);
                }
            }
            Some(_) => {}
        }
    }
    let others = sizes.keys().filter(|name| !wanted.contains_key(*name));
    found.unexpected.extend(others.cloned());
    found.missing.sort();
    found.unexpected.sort();
    found.mismatched.sort();
    found
}

/// What stands in front of all names, where the rest fits a template; with that template's name.
fn fits_without_prefix(
    files: &[(String, String)],
    sizes: &HashMap<String, Vec<usize>>,
    choice: &Choice,
) -> Result<Option<(String, String)>, Error> {
    let mut names = sizes.keys();
    let Some(prefix) = names.next().and_then(|name| name.split_inclusive('.').next()) else {
        return Ok(None);
    };
    if !prefix.ends_with('.') || !names.all(|name| name.starts_with(prefix)) {
        return Ok(None);
    }
    let rest = sizes
        .iter()
        .map(|(name, sizes)| (name[prefix.len()..].to_owned(), sizes.clone()))
        .collect();
    Ok(match search(files, &rest, choice)? {
        Found::Exact(_, template) => Some((prefix.to_owned(), template)),
        Found::Nearest(_) => None,
    })
}
