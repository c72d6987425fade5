//! Weights from a URL: resumed, checked, installed whole or not at all; from a server on the loopback address.
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests, too, a panic is the answer"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::http::{Reply, Request, Server};
use harness::{Said, Scratch, binary, run};
use pth::Existing;
use runtime::fetch::{Address, Fault, Fetched, Sha256Prefix, Target, fetch};
use runtime::{Error, Monitor};
use sha2::Digest;

const ETAG: (&str, &str) = ("ETag", "\"one\"");

/// Bytes that no two places share.
fn weights(n_bytes: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    (0..n_bytes)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    let digest = sha2::Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `fetch` with nobody watching.
fn get(url: &str, target: Target<'_>, expected: Option<&str>) -> Result<Fetched, Error> {
    let expected: Option<Sha256Prefix> = expected.map(|digest| digest.parse().unwrap());
    let address: Address = url.parse().unwrap();
    fetch(&address, target, expected.as_ref(), Monitor::none())
}

fn fault(result: Result<Fetched, Error>) -> Fault {
    match result.unwrap_err() {
        Error::Fetch { fault, .. } => fault,
        other => panic!("{other}"),
    }
}

/// A path that nothing is at.
fn new_file(scratch: &Scratch) -> PathBuf {
    scratch.path("out.pth")
}

fn to(path: &Path) -> Target<'_> {
    Target::Path(path, Existing::Refuse)
}

#[test]
fn a_second_call_downloads_nothing_and_a_damaged_file_is_brought_again() {
    let (scratch, body) = (Scratch::new(), weights(300_000, 1));
    let served = body.clone();
    let server = Server::new(move |request, _| Reply::file(request, &served, Some(ETAG)));
    let cache = scratch.path("cache");
    let url = server.url("a/resnet18.pth");
    let first = get(&url, Target::Cache(&cache), None).unwrap();
    assert_eq!(fs::read(&first.path).unwrap(), body);
    assert_eq!((first.n_bytes, first.was_there), (300_000, false));
    assert_eq!(first.sha256, sha256(&body));
    assert_eq!(first.path.file_name().unwrap(), "resnet18.pth");
    let names = |path: &Path| {
        let mut names: Vec<String> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&first.path), ["resnet18.pth", "resnet18.pth.sha256"]);
    let second = get(&url, Target::Cache(&cache), Some(&sha256(&body)[..8])).unwrap();
    assert!(second.was_there);
    assert_eq!(server.seen().len(), 1);
    // The same name from elsewhere is another file.
    let other = get(&server.url("b/resnet18.pth"), Target::Cache(&cache), None).unwrap();
    assert_ne!(other.path, first.path);
    // A byte of it changes.
    let mut damaged = body.clone();
    damaged[7] ^= 1;
    fs::File::create(&first.path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, &damaged))
        .unwrap();
    let again = get(&url, Target::Cache(&cache), None).unwrap();
    assert!(!again.was_there);
    assert_eq!(fs::read(&first.path).unwrap(), body);
}

#[test]
fn what_ends_early_is_not_installed_and_is_continued() {
    let (scratch, body) = (Scratch::new(), weights(400_000, 2));
    for validator in [ETAG, ("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")] {
        let served = body.clone();
        let server = Server::new(move |request, before| {
            let reply = Reply::file(request, &served, Some(validator));
            match before {
                0 => reply.cut_after(100_000),
                1 => reply.cut_after(50_000),
                _ => reply,
            }
        });
        let path = new_file(&scratch);
        let url = server.url("w.pth");
        for received in [100_000, 150_000] {
            match fault(get(&url, to(&path), None)) {
                Fault::Cut {
                    received: found,
                    promised,
                    ..
                } => {
                    assert_eq!((found, promised.as_str()), (received, "400000"));
                }
                other => panic!("{other}"),
            }
            assert_eq!(scratch.names("."), ["out.pth.part", "out.pth.part.json"]);
        }
        let done = get(&url, to(&path), Some(&sha256(&body))).unwrap();
        assert_eq!((done.resumed_from, done.sha256), (150_000, sha256(&body)));
        assert_eq!(fs::read(&path).unwrap(), body);
        assert_eq!(scratch.names("."), ["out.pth"]);
        let asked: Vec<_> = server
            .seen()
            .iter()
            .map(|r| (r.from(), r.header("if-range").map(str::to_owned)))
            .collect();
        let known = Some(validator.1.to_owned());
        assert_eq!(
            asked,
            [
                (None, None),
                (Some(100_000), known.clone()),
                (Some(150_000), known)
            ]
        );
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_has_changed_since_is_begun_anew() {
    let (old, new) = (weights(300_000, 3), weights(250_000, 4));
    // A server that heeds If-Range, one that ignores Range, one that gives the rest of the wrong version, one that has
    // nothing behind, and one that never said which version it was.
    type Answer = fn(&Request, &[u8]) -> Reply;
    let servers: [(&str, Answer); 4] = [
        ("heeds", |request, new| {
            Reply::file(request, new, Some(("ETag", "\"two\"")))
        }),
        ("ignores", |_, new| Reply {
            body: new.to_vec(),
            ..Reply::status("200 OK")
        }),
        ("confuses", |request, new| match request.from() {
            Some(from) => Reply {
                body: new[from..].to_vec(),
                ..Reply::status("206 Partial Content")
            }
            .with(
                "Content-Range",
                &format!("bytes {from}-{}/{}", new.len() - 1, new.len()),
            )
            .with("ETag", "\"two\""),
            None => Reply {
                body: new.to_vec(),
                ..Reply::status("200 OK")
            },
        }),
        ("lacks", |request, new| match request.from() {
            Some(_) => Reply::status("416 Range Not Satisfiable"),
            None => Reply {
                body: new.to_vec(),
                ..Reply::status("200 OK")
            },
        }),
    ];
    for (name, answer) in servers {
        let scratch = Scratch::new();
        let (before, after) = (old.clone(), new.clone());
        let server = Server::new(move |request, n| match n {
            0 => Reply::file(request, &before, Some(ETAG)).cut_after(200_000),
            _ => answer(request, &after),
        });
        let path = new_file(&scratch);
        assert!(matches!(
            fault(get(&server.url("w.pth"), to(&path), None)),
            Fault::Cut { .. }
        ));
        let done = get(&server.url("w.pth"), to(&path), None).unwrap();
        assert_eq!(done.resumed_from, 0, "{name}");
        assert_eq!(fs::read(&path).unwrap(), new, "{name}");
    }
    // Without a mark of the version nothing is continued.
    for mark in [None, Some(("ETag", "W/\"weak\""))] {
        let scratch = Scratch::new();
        let served = old.clone();
        let server = Server::new(move |request, n| {
            let reply = Reply::file(request, &served, mark);
            if n == 0 { reply.cut_after(200_000) } else { reply }
        });
        let path = new_file(&scratch);
        assert!(matches!(
            fault(get(&server.url("w.pth"), to(&path), None)),
            Fault::Cut { .. }
        ));
        assert_eq!(
            get(&server.url("w.pth"), to(&path), None).unwrap().resumed_from,
            0
        );
        assert_eq!(server.seen()[1].from(), None);
    }
    // The beginning of another URL's file is not this one's.
    let scratch = Scratch::new();
    let (one, two) = (old.clone(), new.clone());
    let server = Server::new(move |request, n| match n {
        0 => Reply::file(request, &one, Some(ETAG)).cut_after(200_000),
        _ => Reply::file(request, &two, Some(ETAG)),
    });
    let path = new_file(&scratch);
    assert!(matches!(
        fault(get(&server.url("one.pth"), to(&path), None)),
        Fault::Cut { .. }
    ));
    assert_eq!(
        get(&server.url("two.pth"), to(&path), None).unwrap().resumed_from,
        0
    );
    assert_eq!(fs::read(&path).unwrap(), new);
}

#[test]
fn a_file_with_another_digest_is_not_installed() {
    let (scratch, body) = (Scratch::new(), weights(10_000, 5));
    let served = body.clone();
    let server = Server::new(move |request, _| Reply::file(request, &served, Some(ETAG)));
    let path = new_file(&scratch);
    let wrong = "0123456789abcdef";
    match fault(get(&server.url("w.pth"), to(&path), Some(wrong))) {
        Fault::Digest { expected, found } => assert_eq!((expected.as_str(), found), (wrong, sha256(&body))),
        other => panic!("{other}"),
    }
    assert!(scratch.names(".").is_empty());
    // A file in the cache stays where the new one is wrong.
    let cache = scratch.path("cache");
    let there = get(&server.url("w.pth"), Target::Cache(&cache), None).unwrap();
    fault(get(&server.url("w.pth"), Target::Cache(&cache), Some(wrong)));
    assert_eq!(fs::read(there.path).unwrap(), body);
}

#[test]
fn a_file_that_is_there_is_replaced_only_on_demand() {
    let (scratch, body) = (Scratch::new(), weights(10_000, 6));
    let served = body.clone();
    let server = Server::new(move |request, _| Reply::file(request, &served, Some(ETAG)));
    let path = scratch.write("out.pth", b"mine");
    let url = server.url("w.pth");
    for expected in [None, Some(sha256(&body))] {
        let error = get(&url, to(&path), expected.as_deref()).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
    }
    assert_eq!(
        (fs::read(&path).unwrap().as_slice(), server.seen().len()),
        (b"mine".as_slice(), 0)
    );
    get(&url, Target::Path(&path, Existing::Replace), None).unwrap();
    assert_eq!(fs::read(&path).unwrap(), body);
    // What is wanted is there: nothing is asked.
    assert!(get(&url, to(&path), Some(&sha256(&body))).unwrap().was_there);
    assert_eq!(server.seen().len(), 1);
    // A folder gets the file under its own name.
    let folder = scratch.path("folder");
    fs::create_dir(&folder).unwrap();
    assert_eq!(get(&url, to(&folder), None).unwrap().path, folder.join("w.pth"));
}

#[test]
fn answers_that_are_no_file() {
    let (scratch, body) = (Scratch::new(), weights(1000, 7));
    let server = Server::new(move |request, _| match request.path.as_str() {
        "/gone" => Reply::status("404 Not Found"),
        "/busy" => Reply::status("503 Service Unavailable"),
        "/moved" => Reply::status("302 Found").with("Location", "/file"),
        "/round" => Reply::status("302 Found").with("Location", "/round"),
        "/zipped" => Reply {
            body: body.clone(),
            ..Reply::status("200 OK").with("Content-Encoding", "gzip")
        },
        "/part" => Reply {
            body: body.clone(),
            ..Reply::status("206 Partial Content")
        },
        "/chunks" => Reply {
            body: [b"3e8\r\n".as_slice(), &body, b"\r\n0\r\n\r\n"].concat(),
            ..Reply::status("200 OK").with("Transfer-Encoding", "chunked")
        },
        "/no-end" => Reply {
            body: [b"3e8\r\n".as_slice(), &body, b"\r\n"].concat(),
            ..Reply::status("200 OK").with("Transfer-Encoding", "chunked")
        },
        _ => Reply::file(request, &body, None),
    });
    let path = new_file(&scratch);
    let check = |name: &str, message: &str| {
        let error = get(&server.url(name), to(&path), None).unwrap_err().to_string();
        assert!(error.contains(message), "{name}: {error}");
        assert!(!path.exists(), "{name}");
    };
    let part = path.with_file_name(format!("{}.part", path.file_name().unwrap().to_string_lossy()));
    check("gone", "the server answers 404 Not Found");
    check("busy", "the server answers 503 Service Unavailable");
    check("round", "redirects more than ten times");
    check("zipped", "compressed");
    check("part", "206");
    assert!(!part.exists(), "nothing arrived");
    check("no-end", "the file ends after 1000 of an unknown number of bytes");
    for name in ["moved", "chunks"] {
        assert_eq!(
            get(&server.url(name), to(&path), None).unwrap().n_bytes,
            1000,
            "{name}"
        );
        fs::remove_file(&path).unwrap();
    }
    // Nobody listens, and no such host.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    for url in [
        format!("http://{closed}/w.pth"),
        "http://no-such-host.invalid/w.pth".to_owned(),
    ] {
        let fault = fault(get(&url, to(&path), None));
        assert!(matches!(fault, Fault::Unreachable(_)), "{fault:?}");
        assert!(!part.exists(), "{url}");
    }
    // A server that speaks no TLS.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let plain = format!("https://{}/w.pth", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = std::io::Read::read(&mut stream, &mut [0; 4096]);
        let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let fault = fault(get(&plain, to(&path), None));
    assert!(matches!(fault, Fault::Tls(_)), "{fault:?}");
}

#[test]
fn two_at_once_download_once() {
    let (scratch, body) = (Scratch::new(), weights(400_000, 8));
    let served = body.clone();
    let server = Server::new(move |request, _| {
        Reply::file(request, &served, Some(ETAG)).slow(Duration::from_millis(60))
    });
    let cache = scratch.path("cache");
    let url = server.url("w.pth");
    let both: Vec<Fetched> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| scope.spawn(|| get(&url, Target::Cache(&cache), None).unwrap()))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(both.iter().filter(|fetched| fetched.was_there).count(), 1);
    assert_eq!((fs::read(&both[0].path).unwrap(), server.seen().len()), (body, 1));
}

#[test]
fn who_cancels_does_not_wait_for_the_server() {
    let (scratch, body) = (Scratch::new(), weights(1 << 20, 9));
    let server =
        Server::new(move |request, _| Reply::file(request, &body, Some(ETAG)).slow(Duration::from_secs(5)));
    let (path, cancel) = (new_file(&scratch), AtomicBool::new(false));
    let since = Instant::now();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(500));
            cancel.store(true, Ordering::Relaxed);
        });
        let monitor = Monitor {
            cancel: &cancel,
            report: &|_| {},
        };
        fetch(&server.url("w.pth").parse().unwrap(), to(&path), None, monitor).unwrap_err()
    });
    assert!(matches!(error, Error::Stopped { n_bytes: 1.. }), "{error}");
    assert!(since.elapsed() < Duration::from_secs(4));
    assert_eq!(scratch.names("."), ["out.pth.part", "out.pth.part.json"]);
}

/// The binary, without a proxy that the tests' own environment may have.
fn command(scratch: &Scratch, args: &[&str]) -> std::process::Command {
    let mut command = scratch.command_without_runtime([&["get"], args].concat());
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
    ] {
        command.env_remove(name).env_remove(name.to_ascii_lowercase());
    }
    command
}

fn graftwork(scratch: &Scratch, args: &[&str]) -> Said {
    run(command(scratch, args))
}

#[test]
fn the_verb_says_what_it_did_and_ends_with_the_contracts_codes() {
    let (scratch, body) = (Scratch::new(), weights(200_000, 10));
    let digest = sha256(&body);
    let served = body.clone();
    let server = Server::new(move |request, _| {
        let reply = Reply::file(request, &served, Some(ETAG));
        match request.path.split('?').next().unwrap() {
            "/gone.pth" => Reply::status("404 Not Found"),
            "/cut.pth" if request.from().is_none() => reply.cut_after(1000),
            _ => reply,
        }
    });
    let named = server.url(&format!("net-{}.pth", &digest[..8]));
    let said = graftwork(&scratch, &[&named, "--json"]).ok().json();
    let path = PathBuf::from(said["path"].as_str().unwrap());
    assert!(
        path.starts_with(scratch.path("home/cache/graftwork/weights")),
        "{}",
        path.display()
    );
    assert_eq!(fs::read(&path).unwrap(), body);
    assert_eq!(
        (
            said["sha256"].as_str().unwrap(),
            &said["checked_by"],
            &said["was_there"]
        ),
        (digest.as_str(), &"name".into(), &false.into())
    );
    let again = graftwork(&scratch, &[&named]).ok();
    assert_eq!(again.stdout, format!("{}\n", path.display()));
    assert!(
        again.stderr.contains("200,000 bytes, was there"),
        "{}",
        again.stderr
    );
    assert_eq!(server.seen().len(), 1);

    // Its name tells another digest, unless that is no digest.
    let wrong = server.url("net-00000000.pth");
    let said = graftwork(&scratch, &[&wrong]).fails(3, &digest);
    assert!(said.stderr.contains("00000000 was expected"), "{}", said.stderr);
    graftwork(&scratch, &[&wrong, "--ignore-name", "-o", "a.pth"]).ok();
    graftwork(&scratch, &[&wrong, "--sha256", &digest, "-o", "b.pth"]).ok();
    graftwork(&scratch, &[&server.url("w.pth"), "-o", "a.pth"]).fails(2, "already holds another file");
    graftwork(&scratch, &[&server.url("w.pth"), "-o", "a.pth", "--force"]).ok();
    graftwork(&scratch, &[&server.url("gone.pth")]).fails(3, "404 Not Found");
    graftwork(&scratch, &[&server.url("")]).fails(2, "names no file");
    assert_eq!(graftwork(&scratch, &["ftp://h/a.pth"]).code, 2);
    assert_eq!(
        graftwork(&scratch, &["http://h/a.pth", "--sha256", "xyz"]).code,
        2
    );
    // What may be secret in a URL is not told.
    let secret = server.url("gone.pth?token=hush").replace("127", "user:hush@127");
    let said = graftwork(&scratch, &[&secret]).fails(3, "404");
    assert!(!said.stderr.contains("hush"), "{}", said.stderr);

    graftwork(&scratch, &[&server.url("cut.pth"), "-o", "c.pth"])
        .fails(75, "ends after 1000 of 200000 bytes");
    let resumed = graftwork(&scratch, &[&server.url("cut.pth"), "-o", "c.pth"]).ok();
    assert!(
        resumed.stderr.contains("resumed after 1,000"),
        "{}",
        resumed.stderr
    );
    assert_eq!(fs::read(scratch.path("c.pth")).unwrap(), body);
}

#[test]
fn a_proxy_of_the_environment_is_used_but_for_its_exceptions() {
    let (scratch, body) = (Scratch::new(), weights(1000, 11));
    let served = body.clone();
    // It answers as a proxy, to whatever name.
    let proxy = Server::new(move |_, _| Reply {
        body: served.clone(),
        ..Reply::status("200 OK")
    });
    let proxied = |no_proxy: &str| {
        let mut command = command(
            &scratch,
            &["http://weights.invalid/w.pth", "-o", "w.pth", "--force"],
        );
        command.env("HTTP_PROXY", proxy.url("")).env("NO_PROXY", no_proxy);
        run(command)
    };
    proxied("elsewhere.invalid").ok();
    assert_eq!(fs::read(scratch.path("w.pth")).unwrap(), body);
    let asked: Vec<_> = proxy
        .seen()
        .into_iter()
        .map(|request| (request.method, request.path))
        .collect();
    let pair = |method: &str, path: &str| (method.to_owned(), path.to_owned());
    assert_eq!(
        asked,
        [pair("CONNECT", "weights.invalid:80"), pair("GET", "/w.pth")]
    );
    proxied("weights.invalid").fails(3, "hint: HTTPS_PROXY");
    assert_eq!(proxy.seen().len(), 2);
}

#[test]
fn killed_in_the_middle_it_goes_on_from_there() {
    binary();
    let (scratch, body) = (Scratch::new(), weights(3 << 20, 12));
    let served = body.clone();
    let server = Server::new(move |request, _| {
        Reply::file(request, &served, Some(ETAG)).slow(Duration::from_millis(20))
    });
    let url = server.url("w.pth");
    let part = scratch.path("w.pth.part");
    let mut before = 0;
    for _ in 0..3 {
        let mut child = command(&scratch, &[&url, "-o", "w.pth"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let since = Instant::now();
        while fs::metadata(&part).map_or(0, |part| part.len()) < before + 300_000 {
            assert!(since.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None);
        before = fs::metadata(&part).unwrap().len();
        assert!(!scratch.path("w.pth").exists());
    }
    let said = graftwork(
        &scratch,
        &[&url, "-o", "w.pth", "--sha256", &sha256(&body), "--json"],
    )
    .ok()
    .json();
    assert_eq!(said["resumed_from"], before);
    assert_eq!(fs::read(scratch.path("w.pth")).unwrap(), body);
    let starts: Vec<usize> = server
        .seen()
        .iter()
        .map(|request| request.from().unwrap_or(0))
        .collect();
    assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "{starts:?}");
}

/// SIGINT, as Ctrl-C sends it.
#[cfg(unix)]
#[test]
fn interrupted_it_says_so_and_keeps_what_has_arrived() {
    binary();
    let (scratch, body) = (Scratch::new(), weights(2 << 20, 13));
    let served = body.clone();
    let server = Server::new(move |request, n| {
        let pause = if n == 0 { 200 } else { 0 };
        Reply::file(request, &served, Some(ETAG)).slow(Duration::from_millis(pause))
    });
    let url = server.url("w.pth");
    let child = command(&scratch, &[&url, "-o", "w.pth"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while fs::metadata(scratch.path("w.pth.part")).map_or(0, |part| part.len()) == 0 {
        assert!(since.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut signal = std::process::Command::new("/bin/kill");
    assert!(
        signal
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(75), "{stderr}");
    assert!(stderr.contains("what has arrived is kept"), "{stderr}");
    let resumed = graftwork(&scratch, &[&url, "-o", "w.pth"]).ok();
    assert!(resumed.stderr.contains("resumed after"), "{}", resumed.stderr);
    assert_eq!(fs::read(scratch.path("w.pth")).unwrap(), body);
}
