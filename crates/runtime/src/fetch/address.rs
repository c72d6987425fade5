//! What a URL says of its file.

use std::fmt;
use std::str::FromStr;

use super::Fault;
use super::digest::Sha256Prefix;
use crate::error::Error;

/// An `http` or `https` URL. Shown without what may be secret in it: a user's name and password, and the query.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// Without a fragment, which is never sent.
    url: String,
    shown: String,
}

impl Address {
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn is_https(&self) -> bool {
        self.shown.starts_with("https:")
    }

    /// Names its folder in a cache.
    pub(super) fn key(&self) -> String {
        blake3::hash(self.url.as_bytes()).to_hex()[..16].to_owned()
    }

    /// The last part of the path, where it can name a file.
    pub fn file_name(&self) -> Option<&str> {
        let (_, rest) = self.shown.split_once("://")?;
        let (_, name) = rest.rsplit_once('/')?;
        let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains(['\\', ':', '\0']);
        // A file system's limit, with room for what is put behind it.
        (is_name && name.len() <= 200).then_some(name)
    }

    /// The digest that the file's name tells, as `torch.hub.load_state_dict_from_url(check_hash=True)` reads it: the
    /// hexadecimal digits between the last dash and a dot; eight or more.
    pub fn digest_in_name(&self) -> Option<Sha256Prefix> {
        let (_, behind) = self.file_name()?.rsplit_once('-')?;
        let (digits, _) = behind.split_once('.')?;
        if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return None;
        }
        digits.parse().ok()
    }

    pub(super) fn error(&self, fault: Fault) -> Error {
        Error::Fetch {
            url: self.shown.clone(),
            fault,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.shown)
    }
}

impl FromStr for Address {
    type Err = String;

    /// # Errors
    /// A sentence for the caller.
    fn from_str(text: &str) -> Result<Address, String> {
        let wrong = |why: &str| format!("this is no URL of a file: {why}");
        let url = text.split('#').next().unwrap_or_default();
        if url.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
            return Err(wrong(
                "blanks and letters beyond ASCII are written as %20 and the like",
            ));
        }
        let (scheme, rest) = url
            .split_once("://")
            .ok_or_else(|| wrong("it begins with https://"))?;
        let scheme = scheme.to_ascii_lowercase();
        if scheme != "http" && scheme != "https" {
            return Err(wrong(&format!("{scheme} is not spoken here, http and https are")));
        }
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let host = authority.rsplit('@').next().unwrap_or_default();
        if host.is_empty() || host.starts_with(':') {
            return Err(wrong("it names no host"));
        }
        let path = path.split('?').next().unwrap_or_default();
        Ok(Address {
            url: format!("{scheme}://{rest}"),
            shown: format!("{scheme}://{host}{path}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_digests_are_those_of_the_path() {
        let check = |url: &str, name: Option<&str>, digest: Option<&str>| {
            let address: Address = url.parse().unwrap();
            assert_eq!(address.file_name(), name, "{url}");
            let found = address.digest_in_name().map(|digest| digest.to_string());
            assert_eq!(found.as_deref(), digest, "{url}");
        };
        check(
            "https://download.example/models/resnet18-f37072fd.pth",
            Some("resnet18-f37072fd.pth"),
            Some("f37072fd"),
        );
        check(
            "HTTPS://h/a-b-0123456789abcdef.tar.gz?x=/y-aaaaaaaa.pth",
            Some("a-b-0123456789abcdef.tar.gz"),
            Some("0123456789abcdef"),
        );
        check("http://h/vgg16-397923a.pth", Some("vgg16-397923a.pth"), None);
        check("http://h/model-F37072FD.pth", Some("model-F37072FD.pth"), None);
        check("http://h/model-f37072fd", Some("model-f37072fd"), None);
        check("http://h/f37072fd.pth", Some("f37072fd.pth"), None);
        check("http://h/a/..", None, None);
        check("http://h/", None, None);
        check("http://h", None, None);
        check("http://h?file=a.pth", None, None);
        check("http://[::1]:80/a.pth#f", Some("a.pth"), None);
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        let address: Address = "https://user:word@h:8080/a.pth?token=1#part".parse().unwrap();
        assert_eq!(address.to_string(), "https://h:8080/a.pth");
        assert_eq!(address.url(), "https://user:word@h:8080/a.pth?token=1");
        assert_ne!(
            address.key(),
            "https://h:8080/a.pth".parse::<Address>().unwrap().key()
        );
    }

    #[test]
    fn what_is_no_url_is_refused() {
        let check = |text: &str, message: &str| {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.contains(message), "{text}: {error}");
        };
        check("model.pth", "it begins with https://");
        check("ftp://h/a", "ftp is not spoken here");
        check("https:///a", "it names no host");
        check("https://user@/a", "it names no host");
        check("https://h/a b", "%20");
        check("https://h/a\nHost: x", "%20");
    }
}
