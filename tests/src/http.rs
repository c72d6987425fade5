//! A server of one file on the loopback address, which can be slow, cut answers short and forget its manners.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What a client asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, or `CONNECT` where the server is taken for a proxy.
    pub method: String,
    /// Path and query; host and port for a proxy.
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// A header's value, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let known = self.headers.iter().find(|(known, _)| known == name)?;
        Some(&known.1)
    }

    /// The first byte of the rest that is asked for.
    pub fn from(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?;
        range.parse().ok()
    }
}

/// What the server sends.
#[derive(Debug, Clone)]
pub struct Reply {
    /// As `200 OK`.
    pub status: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// The body, of which less may be sent.
    pub body: Vec<u8>,
    /// Bytes after which the connection is closed.
    pub cut_after: Option<usize>,
    /// A rest after each 64 KiB.
    pub pause: Duration,
}

impl Reply {
    /// A status and nothing more.
    pub fn status(status: &str) -> Reply {
        Reply {
            status: status.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            cut_after: None,
            pause: Duration::ZERO,
        }
    }

    /// The file, or the rest that was asked for where `validator` (a header and its value) is still the one that is known.
    pub fn file(request: &Request, body: &[u8], validator: Option<(&str, &str)>) -> Reply {
        let holds = match request.header("if-range") {
            Some(known) => validator.is_some_and(|(_, value)| value == known),
            None => true,
        };
        let mut reply = match request.from().filter(|_| holds) {
            None => Reply {
                body: body.to_vec(),
                ..Reply::status("200 OK")
            },
            Some(from) if from >= body.len() => Reply::status("416 Range Not Satisfiable"),
            Some(from) => Reply {
                body: body[from..].to_vec(),
                ..Reply::status("206 Partial Content").with(
                    "Content-Range",
                    &format!("bytes {from}-{}/{}", body.len() - 1, body.len()),
                )
            },
        };
        if let Some((name, value)) = validator {
            reply = reply.with(name, value);
        }
        reply
    }

    /// With a header more.
    pub fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Closed after so many bytes of the body.
    pub fn cut_after(self, n_bytes: usize) -> Reply {
        Reply {
            cut_after: Some(n_bytes),
            ..self
        }
    }

    /// With a rest after each 64 KiB.
    pub fn slow(self, pause: Duration) -> Reply {
        Reply { pause, ..self }
    }

    fn send(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        const CHUNK: usize = 1 << 16;
        let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let says_length = self.headers.iter().any(|(name, _)| name == "Transfer-Encoding");
        if !says_length {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        stream.write_all(head.as_bytes())?;
        stream.write_all(b"\r\n")?;
        let sent = &self.body[..self.cut_after.unwrap_or(self.body.len()).min(self.body.len())];
        for chunk in sent.chunks(CHUNK) {
            stream.write_all(chunk)?;
            stream.flush()?;
            std::thread::sleep(self.pause);
        }
        stream.flush()
    }
}

/// A server; its threads end with the process.
#[derive(Debug)]
pub struct Server {
    port: u16,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Answers each request by `answer`, which is told how many came before it.
    pub fn new(answer: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("it has an address").port();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &log, answer.as_ref()));
            }
        });
        Server { port, seen }
    }

    /// The URL of a path on it.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// What was asked so far.
    pub fn seen(&self) -> Vec<Request> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    answer: &(impl Fn(&Request, usize) -> Reply + ?Sized),
) {
    let Some(request) = read(&stream) else { return };
    let before = {
        let mut seen = log.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(request.clone());
        seen.len() - 1
    };
    if request.method == "CONNECT" {
        // What goes through this proxy ends here, too.
        if stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").is_ok() {
            serve(stream, log, answer);
        }
        return;
    }
    // A client may go away at any time.
    let _ = answer(&request, before).send(&mut stream);
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = Vec::new();
    loop {
        let line = lines.next()?.ok()?;
        let Some((name, value)) = line.split_once(':') else {
            return Some(Request {
                method,
                path,
                headers,
            });
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}
