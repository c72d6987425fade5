#![expect(
    clippy::disallowed_methods,
    reason = "tests write the files that are then read"
)]

use std::fs;
use std::path::PathBuf;

use super::*;

fn epoch(epoch: u64) -> EpochScalars {
    EpochScalars {
        epoch,
        scalars: vec![
            ("loss/train".into(), 1.0 / epoch as f64),
            ("accuracy/val".into(), 0.5 + epoch as f64 / 100.0),
            ("lr".into(), 1e-3),
        ],
    }
}

fn events(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<PathBuf> = files
        .filter(|path| path.to_string_lossy().contains("tfevents"))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

/// What both files hold, without the times in the events.
fn contents(folder: &Path) -> (String, Vec<u8>) {
    let mut events = fs::read(events(folder)).unwrap();
    let mut start = 0;
    while start < events.len() {
        let n = u64::from_le_bytes(events[start..start + 8].try_into().unwrap()) as usize;
        // The tag of the time, then its eight bytes; the sum of the message follows it.
        events[start + 13..start + 21].fill(0);
        events[start + 12 + n..start + 16 + n].fill(0);
        start += n + 16;
    }
    (fs::read_to_string(folder.join(METRICS_FILE)).unwrap(), events)
}

#[test]
fn sums_are_the_published_ones() {
    // RFC 3720, B.4.
    assert_eq!(tensorboard::crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(tensorboard::crc32c(&[0xff; 32]), 0x62a8_ab43);
    let rising: Vec<u8> = (0..32).collect();
    assert_eq!(tensorboard::crc32c(&rising), 0x46dd_794e);
}

#[test]
fn a_resumed_run_has_each_epoch_once() {
    let (whole, resumed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut history = History::open(whole.path(), 1).unwrap();
    (1..=5).for_each(|n| history.append(epoch(n)).unwrap());
    let expected = contents(whole.path());
    assert_eq!(expected.0.lines().count(), 5);
    assert_eq!(
        expected.0.lines().next().unwrap(),
        r#"{"epoch":1,"loss/train":1.0,"accuracy/val":0.51,"lr":0.001}"#
    );

    // Three epochs, the checkpoint is of the second, and a kill left half an epoch behind.
    let mut history = History::open(resumed.path(), 1).unwrap();
    (1..=3).for_each(|n| history.append(epoch(n)).unwrap());
    drop(history);
    for (path, torn) in [
        (resumed.path().join(METRICS_FILE), &b"{\"epoch\":4,\"lo"[..]),
        (events(resumed.path()), &[7, 0, 0, 0, 0][..]),
    ] {
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend(torn);
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!(read_history(resumed.path()).unwrap().len(), 3);
    let mut history = History::open(resumed.path(), 3).unwrap();
    assert_eq!(history.epochs(), [epoch(1), epoch(2)]);
    (3..=5).for_each(|n| history.append(epoch(n)).unwrap());
    assert_eq!(history.epochs().len(), 5);
    assert_eq!(contents(resumed.path()), expected);
    assert_eq!(
        read_history(resumed.path()).unwrap(),
        (1..=5).map(epoch).collect::<Vec<_>>()
    );

    // Begun anew, nothing of it is left.
    History::open(resumed.path(), 1).unwrap();
    let (lines, events) = contents(resumed.path());
    assert!(lines.is_empty() && events.len() < 60, "{}", events.len());
}

#[test]
fn every_torn_end_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::open(folder.path(), 1).unwrap();
    (1..=2).for_each(|n| history.append(epoch(n)).unwrap());
    let (lines, events) = (folder.path().join(METRICS_FILE), events(folder.path()));
    let (all_lines, all_events) = (fs::read(&lines).unwrap(), fs::read(&events).unwrap());
    let expected = contents(folder.path());
    for n_cut in 1..all_lines.len().min(all_events.len()) / 2 {
        fs::write(&lines, &all_lines[..all_lines.len() - n_cut]).unwrap();
        fs::write(&events, &all_events[..all_events.len() - n_cut]).unwrap();
        let mut history = History::open(folder.path(), 2).unwrap();
        assert_eq!(history.epochs(), [epoch(1)]);
        history.append(epoch(2)).unwrap();
        assert_eq!(contents(folder.path()), expected, "{n_cut} bytes cut");
    }
}

#[test]
fn a_first_event_that_was_cut_short_is_begun_again() {
    let folder = tempfile::tempdir().unwrap();
    History::open(folder.path(), 1).unwrap();
    let events = events(folder.path());
    let first = fs::read(&events).unwrap();
    for n in 0..first.len() {
        fs::write(&events, &first[..n]).unwrap();
        History::open(folder.path(), 1).unwrap();
        assert_eq!(fs::read(&events).unwrap().len(), first.len(), "{n} bytes left");
    }
}

#[test]
fn what_is_not_finite_is_null_and_comes_back_as_not_a_number() {
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::open(folder.path(), 1).unwrap();
    let scalars = vec![("loss/train".to_owned(), f64::INFINITY)];
    history.append(EpochScalars { epoch: 1, scalars }).unwrap();
    assert_eq!(contents(folder.path()).0, "{\"epoch\":1,\"loss/train\":null}\n");
    assert!(read_history(folder.path()).unwrap()[0].scalars[0].1.is_nan());
}

#[test]
fn what_is_not_ours_is_refused() {
    let message = |lines: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(METRICS_FILE), lines).unwrap();
        History::open(folder.path(), 9).unwrap_err().to_string()
    };
    assert!(message("{\"epoch\":1}\nhello\n").contains("line 2: expected"));
    assert!(message("{\"loss\":1}\n").contains("line 1 does not say which epoch"));
    assert!(
        message("{\"epoch\":2}\n{\"epoch\":2}\n").contains("line 2 is of an epoch that is there already")
    );
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("events.out.tfevents.1.h"), vec![b'x'; 99]).unwrap();
    let error = History::open(folder.path(), 1).unwrap_err().to_string();
    assert!(error.contains("no event file of TensorBoard"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let mut history = History::open(folder.path(), 1).unwrap();
    history.append(epoch(3)).unwrap();
    let error = history.append(epoch(3)).unwrap_err().to_string();
    assert!(error.contains("epoch 3 cannot follow epoch 3"), "{error}");
}
