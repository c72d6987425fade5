//! Members to samples.

use std::fs::File;
use std::path::Path;

use serde_json::{Map, Value};

use super::super::columns::{LABEL, TEXT};
use super::super::positional;
use super::super::table::json;
use super::header::{Broken, Member, MemberKind, Members};
use super::{Fields, IN_JSON};

/// Fields that hold a picture, the first that a sample has is taken.
const PICTURES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];
/// A class is a short word; a JSON object about a sample is a page.
const MAX_CLASS_BYTES: u64 = 4 << 10;
const MAX_JSON_BYTES: u64 = 1 << 20;

/// What a tar holds.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) samples: Vec<Sample>,
    /// Why the listing ended before the tar's end mark.
    pub(super) broken: Option<String>,
    /// The file's length.
    pub(super) len: u64,
}

impl Listed {
    pub(super) fn is_nothing(&self) -> bool {
        self.samples.is_empty()
    }
}

/// A sample, or one that is refused.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) key: String,
    pub(super) at: u64,
    /// With [`IN_JSON`] where it is the object around a text.
    pub(super) len: u64,
    pub(super) label: Option<String>,
    pub(super) split: Option<String>,
    pub(super) id: Option<String>,
    pub(super) refused: Option<String>,
}

/// The part of a name in front of its first dot and the part behind, lower-case; `None` for names that are no sample's.
///
/// It is `^((?:.*/|)[^.]+)[.]([^/]*)$` with its backtracking: a hidden file in a folder belongs to a sample of the
/// folder's name.
pub(super) fn key_and_field(name: &str) -> Option<(&str, String)> {
    let base_at = name.rfind('/').map_or(0, |at| at + 1);
    let dot = base_at + name[base_at..].find('.')?;
    let is_hidden = dot == base_at;
    let parent = &name[..base_at.saturating_sub(1)];
    let parent = &parent[parent.rfind('/').map_or(0, |at| at + 1)..];
    if is_hidden && (base_at == 0 || parent.contains('.')) {
        return None;
    }
    Some((&name[..dot], name[dot + 1..].to_lowercase()))
}

/// Names `__x__` hold data about the tar and no samples.
fn is_meta(name: &str) -> bool {
    let first = name.split('/').next().unwrap_or_default();
    first.len() >= 4 && first.starts_with("__") && first.ends_with("__")
}

/// The members of a sample.
#[derive(Debug, Default)]
struct Group {
    key: String,
    fields: Vec<(String, Member)>,
    duplicate: Option<String>,
}

/// Lists the samples of a tar.
pub(super) fn list_tar(path: &Path, fields: &Fields) -> Listed {
    let mut listed = Listed::default();
    let opened = positional::open_regular(path).and_then(|file| {
        let metadata = file
            .metadata()
            .map_err(|error| format!("it cannot be read: {error}"))?;
        Ok((file, metadata.len()))
    });
    let (file, len): (File, u64) = match opened {
        Ok(opened) => opened,
        Err(reason) => {
            listed.broken = Some(reason);
            return listed;
        }
    };
    listed.len = len;
    let mut members = Members::new(&file, len);
    let mut group: Option<Group> = None;
    loop {
        match members.next() {
            Ok(Some(member)) => {
                if member.kind == MemberKind::Cut {
                    listed.broken = Some(format!("it is cut short at byte {len}, in `{}`", member.name));
                }
                if member.kind == MemberKind::Other || is_meta(&member.name) {
                    continue;
                }
                let Some((key, field)) = key_and_field(&member.name) else {
                    continue;
                };
                if group.as_ref().is_none_or(|group| group.key != key) {
                    close(group.take(), &mut members, fields, &mut listed);
                }
                let group = group.get_or_insert_with(|| Group {
                    key: key.to_owned(),
                    ..Group::default()
                });
                group.add(field, member);
            }
            Ok(None) => break,
            Err(Broken(reason)) => {
                listed.broken.get_or_insert(reason);
                break;
            }
        }
    }
    close(group, &mut members, fields, &mut listed);
    listed
}

/// Whether the first sample of a tar has a text and no picture.
pub(super) fn begins_with_text(path: &Path, fields: &Fields) -> bool {
    let Ok(file) = positional::open_regular(path) else {
        return false;
    };
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let mut members = Members::new(&file, len);
    let mut group: Option<Group> = None;
    while let Ok(Some(member)) = members.next() {
        if member.kind != MemberKind::Regular || is_meta(&member.name) {
            continue;
        }
        let Some((key, field)) = key_and_field(&member.name) else {
            continue;
        };
        if group.as_ref().is_some_and(|group| group.key != key) {
            break;
        }
        let group = group.get_or_insert_with(|| Group {
            key: key.to_owned(),
            ..Group::default()
        });
        group.add(field, member);
    }
    let has_text = |group: &Group| {
        group.find("txt").is_some()
            || fields
                .text
                .as_deref()
                .is_some_and(|text| group.find(text).is_some())
    };
    group.is_some_and(|group| has_text(&group) && group.picture(fields).is_err())
}

impl Group {
    fn add(&mut self, field: String, member: Member) {
        /// No sample has more parts; the members of one name may go on for ever.
        const MAX_FIELDS: usize = 256;
        if self.find(&field).is_some() {
            self.duplicate.get_or_insert(field);
        } else if self.fields.len() < MAX_FIELDS {
            self.fields.push((field, member));
        }
    }

    fn find(&self, field: &str) -> Option<&Member> {
        self.fields
            .iter()
            .find(|(known, _)| known == field)
            .map(|(_, member)| member)
    }

    /// The picture: the field that is said, else one that is called by an ending alone, else the only one with one.
    fn picture(&self, fields: &Fields) -> Result<&Member, String> {
        if let Some(said) = &fields.picture {
            return self.find(said).ok_or_else(|| format!("it has no `{said}`"));
        }
        if let Some(member) = PICTURES.iter().find_map(|field| self.find(field)) {
            return Ok(member);
        }
        let ends_so = |field: &str| {
            field
                .rsplit('.')
                .next()
                .is_some_and(|ending| PICTURES.contains(&ending))
        };
        let mut others = self.fields.iter().filter(|(field, _)| ends_so(field));
        match (others.next(), others.next()) {
            (Some((_, member)), None) => Ok(member),
            (Some((first, _)), Some((second, _))) => Err(format!(
                "it has several pictures, `{first}` and `{second}`, and none that is called by its ending alone"
            )),
            (None, _) => Err("it has no picture".to_owned()),
        }
    }
}

/// Ends a sample: finds its picture or text and reads its label.
fn close(group: Option<Group>, members: &mut Members<'_>, fields: &Fields, listed: &mut Listed) {
    let Some(group) = group else {
        return;
    };
    let mut sample = Sample {
        key: group.key.clone(),
        ..Sample::default()
    };
    if let Err(reason) = fill(&mut sample, &group, members, fields) {
        sample.refused = Some(reason);
    }
    listed.samples.push(sample);
}

fn fill(
    sample: &mut Sample,
    group: &Group,
    members: &mut Members<'_>,
    fields: &Fields,
) -> Result<(), String> {
    if let Some(field) = &group.duplicate {
        return Err(format!("it has `{field}` twice"));
    }
    let said_field = |said: &Option<String>| said.as_deref().and_then(|said| group.find(said));
    // A name that is said is a field of the sample, or else a key of its JSON object.
    let in_json = |said: &Option<String>| said.is_some() && said_field(said).is_none();
    let class = said_field(&fields.label).or_else(|| match &fields.label {
        None => group.find("cls"),
        Some(_) => None,
    });
    let text = said_field(&fields.text).or_else(|| match &fields.text {
        None => group.find("txt"),
        Some(_) => None,
    });
    let needs_json = class.is_none()
        || (fields.is_text && text.is_none())
        || in_json(&fields.split)
        || in_json(&fields.id);
    let object = match group.find("json").filter(|_| needs_json) {
        Some(member) => Some(read_json(member, members)?),
        None => None,
    };
    let key = |said: &Option<String>, usual: &[&str]| {
        let value = object
            .as_ref()
            .and_then(|object| json::find(object, said.as_deref(), usual));
        json::text(value).map(|text| text.map(std::borrow::Cow::into_owned))
    };
    if fields.is_text {
        let (member, flag) = match text {
            Some(member) => (member, 0),
            None if key(&fields.text, TEXT)?.is_some() => {
                (group.find("json").ok_or("it has no text")?, IN_JSON)
            }
            None => return Err("it has no text".to_owned()),
        };
        whole("text", member)?;
        (sample.at, sample.len) = (member.at, member.len | flag);
    } else {
        let member = group.picture(fields)?;
        whole("picture", member)?;
        (sample.at, sample.len) = (member.at, member.len);
    }
    sample.label = match class {
        Some(member) => read_text("label", member, MAX_CLASS_BYTES, members)?,
        None => key(&fields.label, LABEL)?,
    };
    let mut value = |what: &'static str, said: &Option<String>| match said_field(said) {
        Some(member) => read_text(what, member, MAX_CLASS_BYTES, members),
        None if said.is_some() => key(said, &[]),
        None => Ok(None),
    };
    sample.split = value("split", &fields.split)?;
    sample.id = value("name", &fields.id)?;
    Ok(())
}

/// # Errors
/// A member that is not stored whole.
fn whole(what: &str, member: &Member) -> Result<(), String> {
    match member.kind {
        MemberKind::Cut => Err(format!("its {what} is cut short")),
        MemberKind::Sparse => Err(format!("its {what} is stored sparse, which is not read")),
        MemberKind::Regular | MemberKind::Other => Ok(()),
    }
}

fn read_text(
    what: &str,
    member: &Member,
    max_bytes: u64,
    members: &mut Members<'_>,
) -> Result<Option<String>, String> {
    let bytes = small(what, member, max_bytes, members)?.trim_ascii();
    match std::str::from_utf8(bytes) {
        Ok("") => Ok(None),
        Ok(text) => Ok(Some(text.to_owned())),
        Err(_) => Err(format!("its {what} is not UTF-8")),
    }
}

fn read_json(member: &Member, members: &mut Members<'_>) -> Result<Map<String, Value>, String> {
    let bytes = small("JSON", member, MAX_JSON_BYTES, members)?;
    json::object(bytes.trim_ascii()).map_err(|reason| format!("its JSON cannot be read: {reason}"))
}

fn small<'m>(
    what: &str,
    member: &Member,
    max_bytes: u64,
    members: &'m mut Members<'_>,
) -> Result<&'m [u8], String> {
    whole(what, member)?;
    if member.len > max_bytes {
        return Err(format!("its {what} has {} bytes, over {max_bytes}", member.len));
    }
    members
        .bytes(member.at, member.len as usize)
        .map_err(|error| format!("its {what} cannot be read: {error}"))
}

/// The text in a sample's JSON object.
pub(super) fn text_in(bytes: &[u8], said: Option<&str>) -> Result<String, String> {
    let object = json::object(bytes.trim_ascii())?;
    match json::text(json::find(&object, said, TEXT))? {
        Some(text) => Ok(text.into_owned()),
        None => Err("it has no text".to_owned()),
    }
}
