//! What the kernel tells of a directory, in time and never before a file is whole.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::super::{Touched, Watcher};
use super::*;

fn watch(bed: &Bed) -> (Watcher, Receiver<Touched>) {
    let (sender, events) = channel();
    let watcher = Watcher::start(bed.root.path(), move |touched| sender.send(touched).is_ok()).unwrap();
    (watcher, events)
}

fn files(events: &Receiver<Touched>) -> BTreeSet<PathBuf> {
    match events.recv_timeout(Duration::from_secs(3)) {
        Ok(Touched::Files(files)) => files,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_is_written_renamed_or_removed_is_told() {
    let bed = Bed::new();
    let (_watcher, events) = watch(&bed);
    let (one, two) = (bed.path("one.yaml"), bed.path("two.yaml"));
    let start = Instant::now();
    std::fs::write(&one, pod("one", "")).unwrap();
    assert_eq!(files(&events), BTreeSet::from([one.clone()]));
    assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
    std::fs::rename(&one, &two).unwrap();
    assert_eq!(files(&events), BTreeSet::from([one, two.clone()]));
    std::fs::remove_file(&two).unwrap();
    assert_eq!(files(&events), BTreeSet::from([two]));
    std::fs::write(bed.path("notes.txt"), "x").unwrap();
    assert!(events.recv_timeout(Duration::from_millis(100)).is_err(), "nobody's business");
}

#[test]
fn a_file_that_is_being_written_is_not_told_before_it_is_closed() {
    let bed = Bed::new();
    let (_watcher, events) = watch(&bed);
    let path = bed.path("one.yaml");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(b"kind: ").unwrap();
    assert!(events.recv_timeout(Duration::from_millis(100)).is_err());
    drop(file);
    assert_eq!(files(&events), BTreeSet::from([path.clone()]));
    // Who never closes is looked at all the same.
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"x").unwrap();
    assert_eq!(files(&events), BTreeSet::from([path]));
}

#[test]
fn a_directory_that_comes_is_scanned_and_watched() {
    let mut bed = Bed::new();
    let (_watcher, events) = watch(&bed);
    std::fs::create_dir(bed.path("sub")).unwrap();
    std::fs::write(bed.path("sub/one.yaml"), pod("one", "")).unwrap();
    let mut seen = false;
    while let Ok(touched) = events.recv_timeout(Duration::from_millis(300)) {
        let batch = bed.directory.refresh(&touched);
        bed.take(batch);
        seen |= touched == Touched::Everything;
    }
    assert!(seen);
    assert_eq!(bed.pods(), ["a/one"]);
    std::fs::write(bed.path("sub/two.yaml"), pod("two", "")).unwrap();
    let batch = bed.directory.refresh(&events.recv_timeout(Duration::from_secs(3)).unwrap());
    bed.take(batch);
    assert_eq!(bed.pods(), ["a/one", "a/two"]);
}

#[test]
fn a_mounted_config_map_is_followed_through_its_link() {
    use std::os::unix::fs::symlink;
    let mut bed = Bed::new();
    for (version, name) in [("..1", "one"), ("..2", "two")] {
        std::fs::create_dir(bed.path(version)).unwrap();
        std::fs::write(bed.path(version).join("x.yaml"), pod(name, "")).unwrap();
    }
    symlink("..1", bed.path("..data")).unwrap();
    symlink("..data/x.yaml", bed.path("x.yaml")).unwrap();
    bed.scan();
    assert_eq!(bed.pods(), ["a/one"]);
    let (_watcher, events) = watch(&bed);
    symlink("..2", bed.path("..data_tmp")).unwrap();
    std::fs::rename(bed.path("..data_tmp"), bed.path("..data")).unwrap();
    while let Ok(touched) = events.recv_timeout(Duration::from_millis(300)) {
        let batch = bed.directory.refresh(&touched);
        bed.take(batch);
    }
    assert_eq!(bed.pods(), ["a/two"]);
}

#[test]
fn a_directory_that_is_not_there_is_an_error_that_says_so() {
    let error = Watcher::start(std::path::Path::new("/nowhere/at/all"), |_| true).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all"), "{error}");
}
