//! One request and its answer, in this module's own words.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use pth::FileError;
use ureq::http::{HeaderMap, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy};

use super::{Address, Fault};
use crate::error::Error;

/// To find a host, to connect, and to get an answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Without a single byte.
const SILENCE: Duration = Duration::from_secs(60);

/// The rest of a file, of the version that `validator` names.
pub(super) struct Rest<'r> {
    pub(super) from: u64,
    pub(super) validator: Option<&'r str>,
}

/// What a server gives.
pub(super) enum Answer {
    /// The file from its first byte on.
    Whole(Given),
    /// What was asked for.
    Rest(Given),
    /// There is nothing behind what was asked for.
    NoRest,
}

pub(super) struct Given {
    pub(super) body: Box<dyn Read + Send>,
    /// Bytes of the whole file, where the server says it.
    pub(super) n_bytes: Option<u64>,
    pub(super) validator: Option<String>,
}

/// Asks for a file or for the rest of one.
///
/// # Errors
/// [`Error::Fetch`]; [`Error::Usage`] for a proxy that is none; the file system's for certificates.
pub(super) fn ask(address: &Address, rest: Option<&Rest<'_>>) -> Result<Answer, Error> {
    let mut request = agent(address)?.get(address.url());
    if let Some(rest) = rest {
        request = request.header("Range", format!("bytes={}-", rest.from));
        if let Some(validator) = rest.validator {
            request = request.header("If-Range", validator);
        }
    }
    let response = request.call().map_err(|error| address.error(fault_of(&error)))?;
    let (parts, body) = response.into_parts();
    let nonsense = |what: &str| address.error(Fault::Protocol(what.to_owned()));
    let text = |name: &str| header(&parts.headers, name);
    if text("content-encoding").is_some_and(|coding| coding != "identity") {
        return Err(nonsense("the file is compressed, which nobody asked for"));
    }
    let given = |n_bytes| Given {
        n_bytes,
        validator: validator(&parts.headers),
        body: Box::new(body.into_reader()),
    };
    match (parts.status, rest) {
        (StatusCode::OK, _) => {
            let n_bytes = text("content-length").and_then(|length| length.parse().ok());
            Ok(Answer::Whole(given(n_bytes)))
        }
        (StatusCode::PARTIAL_CONTENT, Some(rest)) => {
            let range = text("content-range").unwrap_or_default();
            let (first, n_bytes) =
                content_range(range).ok_or_else(|| nonsense("it does not say which part it gives"))?;
            match first == rest.from {
                true => Ok(Answer::Rest(given(n_bytes))),
                false => Err(nonsense("it gives another part than was asked for")),
            }
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => Ok(Answer::NoRest),
        (status, _) => {
            let is_passing = status.is_server_error()
                || matches!(
                    status,
                    StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT
                );
            Err(address.error(match is_passing {
                true => Fault::NotNow(status.to_string()),
                false => Fault::Status(status.to_string()),
            }))
        }
    }
}

fn agent(address: &Address) -> Result<Agent, Error> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(address.is_https())
        .user_agent(concat!("graftwork/", env!("CARGO_PKG_VERSION")))
        .accept_encoding("identity")
        .timeout_resolve(Some(ANSWER))
        .timeout_connect(Some(ANSWER))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(SILENCE))
        .proxy(proxy(address)?)
        .tls_config(TlsConfig::builder().root_certs(certificates()?).build())
        .build();
    Ok(Agent::new_with_config(config))
}

/// The proxy that the environment names for this URL.
fn proxy(address: &Address) -> Result<Option<Proxy>, Error> {
    let named: &[&str] = match address.is_https() {
        true => &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"],
        false => &["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"],
    };
    let found = named
        .iter()
        .find_map(|name| Some((name, std::env::var(name).ok().filter(|value| !value.is_empty())?)));
    let Some((name, url)) = found else { return Ok(None) };
    // What NO_PROXY means is read there only together with a proxy.
    let is_excepted = Proxy::try_from_env()
        .zip(address.url().parse().ok())
        .is_some_and(|(any, uri)| any.is_no_proxy(&uri));
    if is_excepted {
        return Ok(None);
    }
    Proxy::new(&url)
        .map(Some)
        .map_err(|_| Error::Usage(format!("{name} names no proxy that is known here")))
}

/// Mozilla's, or those of the file in `SSL_CERT_FILE`, as OpenSSL and curl have it.
fn certificates() -> Result<RootCerts, Error> {
    let Some(path) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) else {
        return Ok(RootCerts::WebPki);
    };
    let path = std::path::PathBuf::from(path);
    let bytes = std::fs::read(&path).map_err(FileError::at("read", &path))?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Error::BadFile {
            path,
            reason: "there is no certificate in it, and SSL_CERT_FILE names it".to_owned(),
        });
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// What tells this version of the file from others: a strong `ETag`, else when it was changed.
fn validator(headers: &HeaderMap) -> Option<String> {
    let strong = header(headers, "etag").filter(|tag| !tag.starts_with("W/"));
    strong
        .or_else(|| header(headers, "last-modified"))
        .map(str::to_owned)
}

/// First byte and the whole's size of `bytes 500-999/1000`; the size may be a star.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let n_bytes: Option<u64> = match whole.trim() {
        "*" => None,
        whole => Some(whole.parse().ok()?),
    };
    let is_rest = first <= last && n_bytes.is_none_or(|n_bytes| last.checked_add(1) == Some(n_bytes));
    is_rest.then_some((first, n_bytes))
}

pub(super) fn fault_of(error: &ureq::Error) -> Fault {
    use ureq::Error as E;
    match error {
        E::HostNotFound => Fault::Unreachable("its host is not found".to_owned()),
        E::Timeout(_) => Fault::NotNow(format!("nothing for {} seconds", SILENCE.as_secs())),
        // rustls' own errors come wrapped.
        E::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => Fault::Tls(error.to_string()),
        E::Io(error) => Fault::Unreachable(format!("no connection: {error}")),
        E::Tls(text) => Fault::Tls((*text).to_owned()),
        E::Rustls(error) => Fault::Tls(error.to_string()),
        E::ConnectProxyFailed(text) => Fault::Unreachable(format!("the proxy makes no connection: {text}")),
        E::InvalidProxyUrl => Fault::Unreachable("the proxy's URL is none".to_owned()),
        E::TooManyRedirects => Fault::Protocol("it redirects more than ten times".to_owned()),
        E::RequireHttpsOnly(_) => Fault::Protocol("it redirects from https to http".to_owned()),
        other => Fault::Protocol(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_that_is_given_is_read_from_its_header() {
        assert_eq!(content_range("bytes 500-999/1000"), Some((500, Some(1000))));
        assert_eq!(content_range("bytes 500-999/*"), Some((500, None)));
        for text in [
            "",
            "500-999/1000",
            "bytes 500-998/1000",
            "bytes 999-500/1000",
            "bytes */1000",
            "bytes 0-18446744073709551615/18446744073709551615",
            "items 1-2/3",
        ] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
