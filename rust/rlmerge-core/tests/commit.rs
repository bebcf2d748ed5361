//! Outputs appear whole or not at all, replace nothing unasked, and never touch an input.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rlmerge_core::error::Error;
use rlmerge_core::plan::recipe::Durability;
use rlmerge_core::writer::{Input, OutputKind, Stage, Target, preflight};
use tempfile::TempDir;

const SHARD: &str = "model.safetensors";

fn folder(path: impl AsRef<Path>) -> Target {
    Target {
        path: path.as_ref().to_path_buf(),
        kind: OutputKind::Folder,
        force: false,
        durability: Durability::Full,
    }
}

fn file(path: impl AsRef<Path>) -> Target {
    Target { kind: OutputKind::File, ..folder(path) }
}

fn forced(target: Target) -> Target {
    Target { force: true, ..target }
}

fn input(path: impl AsRef<Path>) -> Input {
    let meta = fs::metadata(&path).unwrap();
    Input { path: path.as_ref().to_path_buf(), dev: meta.dev(), ino: meta.ino() }
}

/// A stage with one finished file.
fn staged(target: &Target, contents: &[u8]) -> Stage {
    let stage = Stage::create(target).unwrap();
    stage.write_file(SHARD, contents).unwrap();
    stage
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The code of an error, or the bare success.
fn code(result: rlmerge_core::error::Result<()>) -> &'static str {
    result.map_or_else(|e| e.code(), |()| "ok")
}

/// Runs one test of this file again in a process of its own, started by `launcher`; false when the
/// launcher cannot do its work here.
fn rerun(test: &str, place: &Path, launcher: &mut Command) -> bool {
    let launcher = launcher.args(["--exact", test]).env("RLMERGE_TEST_PLACE", place);
    let Ok(output) = launcher.output() else { return false };
    let said = String::from_utf8_lossy(&output.stdout);
    assert_ne!(output.status.code(), Some(101), "{test} failed in its own process:\n{said}");
    output.status.success() && said.contains("1 passed")
}

fn place_of_rerun() -> Option<PathBuf> {
    std::env::var_os("RLMERGE_TEST_PLACE").map(PathBuf::from)
}

#[test]
fn a_folder_appears_whole() {
    let tmp = TempDir::new().unwrap();
    let out = tmp.path().join("out");
    let donor = tmp.path().join("tokenizer.json");
    let big: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    fs::write(&donor, &big).unwrap();
    let target = folder(&out);
    preflight(&target, &[input(&donor)], 3_000_100, 3_000_000).unwrap();
    let stage = Stage::create(&target).unwrap();
    let shard = stage.file(SHARD, 8).unwrap();
    shard.write_all_at(b"5678", 4).unwrap();
    shard.start_writeback(4, 4);
    shard.write_all_at(b"1234", 0).unwrap();
    shard.finish().unwrap();
    shard.finish().unwrap();
    stage.write_file("config.json", b"{}").unwrap();
    stage.write_file("empty", b"").unwrap();
    stage.copy_file("tokenizer.json", &donor).unwrap();
    assert!(!out.exists());
    stage.commit().unwrap();
    assert_eq!(names(tmp.path()), ["out", "tokenizer.json"]);
    assert_eq!(names(&out), ["config.json", "empty", SHARD, "tokenizer.json"]);
    assert_eq!(fs::read(out.join(SHARD)).unwrap(), b"12345678");
    assert_eq!(fs::read(out.join("tokenizer.json")).unwrap(), big);
}

#[test]
fn a_single_file_appears_whole() {
    let tmp = TempDir::new().unwrap();
    let target = file(tmp.path().join("merged.safetensors"));
    staged(&target, b"weights").commit().unwrap();
    assert_eq!(names(tmp.path()), ["merged.safetensors"]);
    assert_eq!(fs::read(&target.path).unwrap(), b"weights");

    let two = staged(&file(tmp.path().join("two")), b"weights");
    two.write_file("second", b"").unwrap();
    assert_eq!(code(two.commit()), "internal");
    assert_eq!(code(Stage::create(&file(tmp.path().join("none"))).unwrap().commit()), "internal");
    assert_eq!(names(tmp.path()), ["merged.safetensors"]);
}

/// All umasks in one test: the umask belongs to the process.
#[test]
fn modes_follow_the_umask() {
    let tmp = TempDir::new().unwrap();
    let donor = tmp.path().join("donor");
    fs::write(&donor, "x").unwrap();
    fs::set_permissions(&donor, fs::Permissions::from_mode(0o400)).unwrap();
    let before = rustix::process::umask(rustix::fs::Mode::empty());
    for umask in [0o022, 0o077, 0] {
        let out = tmp.path().join(format!("out-{umask:o}"));
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(umask));
        let stage = staged(&folder(&out), b"x");
        stage.copy_file("copy", &donor).unwrap();
        stage.commit().unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().mode() & 0o7777;
        assert_eq!(mode(&out), 0o777 & !umask);
        assert_eq!(mode(&out.join(SHARD)), 0o666 & !umask);
        assert_eq!(mode(&out.join("copy")), 0o666 & !umask);
    }
    rustix::process::umask(before);
}

#[test]
fn a_dropped_stage_leaves_nothing() {
    let tmp = TempDir::new().unwrap();
    for target in [folder(tmp.path().join("out")), file(tmp.path().join("out"))] {
        let stage = staged(&target, b"x");
        let open = stage.file("unfinished", 1 << 20).unwrap();
        assert_eq!(names(tmp.path()).len(), 1);
        assert!(names(tmp.path())[0].starts_with(".out.rlmerge-"));
        drop(stage);
        drop(open);
        assert!(names(tmp.path()).is_empty());
    }
}

#[test]
fn a_dropped_stage_spares_what_it_did_not_make() {
    let tmp = TempDir::new().unwrap();
    let stage = staged(&folder(tmp.path().join("out")), b"x");
    let place = tmp.path().join(&names(tmp.path())[0]);
    fs::write(place.join("foreign"), "mine").unwrap();
    drop(stage);
    assert_eq!(names(&place), ["foreign"]);
    assert_eq!(fs::read(place.join("foreign")).unwrap(), b"mine");
}

#[test]
fn only_finished_files_are_published() {
    let tmp = TempDir::new().unwrap();
    let target = folder(tmp.path().join("out"));
    let stage = Stage::create(&target).unwrap();
    let part = stage.file(SHARD, 4).unwrap();
    part.write_all_at(b"12", 0).unwrap();
    assert_eq!(code(part.finish()), "internal", "a hole");
    assert_eq!(code(part.write_all_at(b"345", 2)), "internal", "beyond the length");
    assert_eq!(code(part.write_all_at(b"3", u64::MAX)), "internal", "overflow");
    part.write_all_at(b"34", 2).unwrap();
    part.finish().unwrap();
    assert_eq!(code(part.write_all_at(b"1", 0)), "internal", "after the fsync");
    let _open = stage.file("open", 0).unwrap();
    assert_eq!(code(stage.commit()), "internal");
    assert!(names(tmp.path()).is_empty());
}

#[test]
fn file_names_are_one_plain_component() {
    let tmp = TempDir::new().unwrap();
    let stage = Stage::create(&folder(tmp.path().join("out"))).unwrap();
    for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", &"x".repeat(256)] {
        assert_eq!(code(stage.write_file(name, b"x")), "internal", "{name:?}");
    }
    stage.write_file("once", b"x").unwrap();
    assert_eq!(code(stage.write_file("once", b"y")), "io");
}

#[test]
fn only_regular_files_are_copied_and_nothing_blocks() {
    let tmp = TempDir::new().unwrap();
    let stage = Stage::create(&folder(tmp.path().join("out"))).unwrap();
    let fifo = tmp.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(tmp.path().join("socket")).unwrap();
    for bad in [fifo, tmp.path().join("socket"), tmp.path().to_path_buf(), "/dev/null".into()] {
        let error = stage.copy_file("config.json", &bad).unwrap_err();
        assert_eq!((error.code(), error.path()), ("bad_config", Some(bad.as_path())));
    }
    let missing = tmp.path().join("missing");
    let error = stage.copy_file("config.json", &missing).unwrap_err();
    assert_eq!((error.code(), error.path()), ("io", Some(missing.as_path())));
}

#[test]
fn an_existing_output_is_refused_and_untouched() {
    let tmp = TempDir::new().unwrap();
    let at = |name: &str| tmp.path().join(name);
    fs::write(at("file"), "old").unwrap();
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("folder").join(SHARD), "old").unwrap();
    fs::create_dir(at("empty")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("folder", at("link")).unwrap();
    let before = names(tmp.path());
    for name in ["file", "folder", "folder/", "empty", "dangling", "link", "folder/.", "folder/.."] {
        for target in [folder(at(name)), file(at(name))] {
            assert_eq!(code(preflight(&target, &[], 1, 1)), "output_exists", "{target:?}");
            assert_eq!(code(staged(&target, b"new").commit()), "output_exists", "{target:?}");
        }
    }
    assert_eq!(names(tmp.path()), before);
    assert_eq!(fs::read(at("file")).unwrap(), b"old");
    assert_eq!(fs::read(at("folder").join(SHARD)).unwrap(), b"old");
    assert!(names(&at("empty")).is_empty());
    assert_eq!(fs::read_link(at("dangling")).unwrap(), Path::new("nowhere"));
}

#[test]
fn an_output_that_came_meanwhile_wins() {
    let tmp = TempDir::new().unwrap();
    for kind in [OutputKind::File, OutputKind::Folder] {
        for rival in ["file", "folder"] {
            let target = Target { kind, ..folder(tmp.path().join(format!("{kind:?}-{rival}"))) };
            preflight(&target, &[], 1, 1).unwrap();
            let stage = staged(&target, b"ours");
            if rival == "file" {
                fs::write(&target.path, "theirs").unwrap();
            } else {
                fs::create_dir(&target.path).unwrap();
            }
            let error = stage.commit().unwrap_err();
            assert!(matches!(&error, Error::OutputExists { path } if *path == target.path), "{error}");
            assert_eq!(error.exit_code(), 6);
            if rival == "file" {
                assert_eq!(fs::read(&target.path).unwrap(), b"theirs");
            } else {
                assert!(names(&target.path).is_empty());
            }
        }
    }
    assert!(names(tmp.path()).iter().all(|n| !n.starts_with('.')), "stages are gone");
}

#[test]
fn of_two_merges_to_one_output_one_wins() {
    let tmp = TempDir::new().unwrap();
    for round in 0..20 {
        let target = folder(tmp.path().join(round.to_string()));
        let results: Vec<_> = std::thread::scope(|scope| {
            let one = |contents: &'static [u8]| {
                let target = target.clone();
                move || code(staged(&target, contents).commit())
            };
            let threads = [scope.spawn(one(b"first")), scope.spawn(one(b"other"))];
            threads.map(|t| t.join().unwrap()).into()
        });
        assert!(results.contains(&"ok") && results.contains(&"output_exists"), "{results:?}");
        assert_eq!(fs::read(target.path.join(SHARD)).unwrap().len(), 5);
    }
    assert!(names(tmp.path()).iter().all(|n| !n.starts_with('.')));
}

#[test]
fn force_replaces_the_same_kind() {
    let tmp = TempDir::new().unwrap();
    let (out, single) = (tmp.path().join("out"), tmp.path().join("single"));
    fs::create_dir(&out).unwrap();
    for round in ["an empty folder", "a checkpoint", "a checkpoint again"] {
        let target = forced(folder(&out));
        preflight(&target, &[], 1, 1).unwrap();
        staged(&target, round.as_bytes()).commit().unwrap();
        assert_eq!(names(&out), [SHARD]);
        assert_eq!(fs::read(out.join(SHARD)).unwrap(), round.as_bytes());
        // All of an old checkpoint goes; links in it go without what they lead to.
        fs::write(out.join("extra"), "").unwrap();
        symlink("/etc", out.join("link")).unwrap();
    }
    for round in ["new", "old", "older"] {
        let target = forced(file(&single));
        preflight(&target, &[], 1, 1).unwrap();
        staged(&target, round.as_bytes()).commit().unwrap();
        assert_eq!(fs::read(&single).unwrap(), round.as_bytes());
    }
    assert_eq!(names(tmp.path()), ["out", "single"]);
}

#[test]
fn force_replaces_nothing_else() {
    let tmp = TempDir::new().unwrap();
    let at = |name: &str| tmp.path().join(name);
    fs::write(at("file"), "old").unwrap();
    fs::create_dir(at("home")).unwrap();
    fs::write(at("home/letter.txt"), "old").unwrap();
    fs::create_dir_all(at("tree/sub")).unwrap();
    fs::write(at("tree/model.safetensors"), "old").unwrap();
    fs::create_dir(at("checkpoint")).unwrap();
    fs::write(at("checkpoint/rlmerge.json"), "{}").unwrap();
    symlink("checkpoint", at("link")).unwrap();
    symlink("file", at("file-link")).unwrap();
    let refused = [
        folder(at("file")),
        folder(at("home")),
        folder(at("tree")),
        folder(at("link")),
        file(at("checkpoint")),
        file(at("file-link")),
    ];
    let before = names(tmp.path());
    for target in refused.map(forced) {
        assert_eq!(code(preflight(&target, &[], 1, 1)), "output_not_replaceable", "{target:?}");
        let error = staged(&target, b"new").commit().unwrap_err();
        assert_eq!((error.code(), error.exit_code()), ("output_not_replaceable", 6), "{target:?}");
    }
    assert_eq!(names(tmp.path()), before);
    assert_eq!(fs::read(at("file")).unwrap(), b"old");
    assert_eq!(names(&at("home")), ["letter.txt"]);
    assert_eq!(names(&at("tree")), [SHARD, "sub"]);
}

#[test]
fn an_input_is_never_the_output() {
    let tmp = TempDir::new().unwrap();
    let at = |name: &str| tmp.path().join(name);
    fs::create_dir_all(at("model/sub")).unwrap();
    fs::write(at("model/model.safetensors"), "weights").unwrap();
    symlink("model", at("link")).unwrap();
    symlink("model/model.safetensors", at("file-link")).unwrap();
    fs::hard_link(at("model/model.safetensors"), at("hard-link")).unwrap();
    fs::create_dir(at("linked")).unwrap();
    fs::hard_link(at("model/model.safetensors"), at("linked/model.safetensors")).unwrap();
    fs::create_dir(at("cache")).unwrap();
    fs::write(at("cache/blob.safetensors"), "weights").unwrap();
    fs::create_dir(at("snapshot")).unwrap();
    symlink("../cache/blob.safetensors", at("snapshot/model.safetensors")).unwrap();
    let inputs = ["model", "model/model.safetensors", "snapshot", "snapshot/model.safetensors"];
    let inputs: Vec<_> = inputs.into_iter().map(|name| input(at(name))).collect();
    let cases = [
        (folder(at("model")), "is"),
        (folder(at("model/")), "is"),
        (folder(at("model/../model")), "is"),
        (folder(at("model/sub/..")), "is"),
        (folder(at("link")), "is"),
        (file(at("model/model.safetensors")), "is"),
        (file(at("file-link")), "is"),
        (file(at("hard-link")), "is"),
        (folder(at("model/merged")), "is inside"),
        (folder(at("link/merged")), "is inside"),
        (file(at("model/sub/merged.safetensors")), "is inside"),
        (folder(tmp.path()), "is around"),
        (folder(at("cache")), "is around"),
    ];
    for (target, expected) in cases {
        for target in [forced(target.clone()), target] {
            let error = preflight(&target, &inputs, 1, 1).unwrap_err();
            let Error::OutputIsInput { path, relation, .. } = &error else { panic!("{target:?}: {error}") };
            assert_eq!((path, *relation, error.exit_code()), (&target.path, expected, 6), "{target:?}");
        }
    }
    assert_eq!(code(preflight(&forced(folder(at("linked"))), &inputs, 1, 1)), "output_is_input");
    // Beside an input is the usual place.
    preflight(&file(at("merged.safetensors")), &inputs, 1, 1).unwrap();
    preflight(&folder(at("merged")), &inputs, 1, 1).unwrap();
}

#[test]
fn a_missing_parent_is_named() {
    let tmp = TempDir::new().unwrap();
    let parent = tmp.path().join("missing");
    let error = preflight(&folder(parent.join("out")), &[], 1, 1).unwrap_err();
    let Error::Io { path, source, .. } = &error else { panic!("{error}") };
    assert_eq!((path, source.raw_os_error()), (&parent, Some(2)));
    assert!(error.hint().unwrap().contains("create"), "{error}");
    assert!(Stage::create(&folder(parent.join("out"))).is_err());
    fs::write(tmp.path().join("file"), "").unwrap();
    assert_eq!(code(preflight(&folder(tmp.path().join("file/out")), &[], 1, 1)), "io");
    assert_eq!(code(preflight(&forced(folder("/")), &[], 1, 1)), "io");
    assert_eq!(names(tmp.path()), ["file"]);
}

#[test]
fn long_names_and_odd_bytes_work() {
    use std::os::unix::ffi::OsStrExt as _;
    let tmp = TempDir::new().unwrap();
    for name in [OsStr::new(&"x".repeat(255)), OsStr::from_bytes(b"\xff\x1b"), OsStr::new("sp ace")] {
        let target = folder(tmp.path().join(name));
        preflight(&target, &[], 1, 1).unwrap();
        staged(&target, b"x").commit().unwrap();
        assert_eq!(fs::read(target.path.join(SHARD)).unwrap(), b"x");
    }
}

#[test]
fn too_little_space_shows_before_anything_is_written() {
    let tmp = TempDir::new().unwrap();
    for needed in [u64::MAX / 2, u64::MAX] {
        let error = preflight(&folder(tmp.path().join("out")), &[], needed, 1).unwrap_err();
        assert!(
            matches!(error, Error::NoSpace { needed: n, free, .. } if n >= needed && free > 0),
            "{error}"
        );
    }
    assert!(names(tmp.path()).is_empty());
}

/// Root may write anywhere, so this runs again as nobody; it is passed over where that is not
/// possible.
#[test]
fn a_read_only_parent_shows_before_anything_is_written() {
    if let Some(parent) = place_of_rerun() {
        let error = preflight(&folder(parent.join("out")), &[], 1, 1).unwrap_err();
        let Error::Io { path, source, .. } = &error else { panic!("{error}") };
        assert_eq!((path, source.kind()), (&parent, std::io::ErrorKind::PermissionDenied));
        return;
    }
    const NOBODY: u32 = 65534;
    let tmp = TempDir::new().unwrap();
    fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let mut own = Command::new(std::env::current_exe().unwrap());
    if rustix::process::geteuid().is_root() {
        own.uid(NOBODY).gid(NOBODY);
    }
    if !rerun("a_read_only_parent_shows_before_anything_is_written", tmp.path(), &mut own) {
        println!("passed over: this test cannot run as nobody here");
    }
    fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
}

/// On a 256 KiB tmpfs in a mount namespace of its own; passed over where mounting is not allowed.
#[test]
fn a_full_disk_names_the_file_and_leaves_the_disk_as_before() {
    const NAME: &str = "a_full_disk_names_the_file_and_leaves_the_disk_as_before";
    let Some(place) = place_of_rerun() else {
        let tmp = TempDir::new().unwrap();
        let mut own = Command::new("unshare");
        let mount = r#"mount -t tmpfs -o size=256k,nr_inodes=8 none "$RLMERGE_TEST_PLACE" || exit 77; exec "$0" "$@""#;
        own.args(["-m", "sh", "-c", mount]).arg(std::env::current_exe().unwrap());
        if !rerun(NAME, tmp.path(), &mut own) {
            println!("passed over: no tmpfs can be mounted here");
        }
        return;
    };
    let free = || {
        let fs = rustix::fs::statvfs(&place).unwrap();
        (fs.f_bfree, fs.f_ffree)
    };
    let (before, target) = (free(), folder(place.join("out")));
    assert_eq!(code(preflight(&target, &[], 256 << 10, 1)), "no_space", "the one per cent counts");

    let stage = staged(&target, &[7; 100_000]);
    let error = stage.file("second", 200_000).unwrap_err();
    let Error::NoSpace { path, needed, free: left } = &error else { panic!("{error}") };
    assert_eq!((path, *needed), (&target.path.join("second"), 200_000));
    assert!(*left < 200_000);
    drop(stage);
    assert_eq!(free(), before);

    let stage = Stage::create(&target).unwrap();
    let error = (0..8).find_map(|i| stage.write_file(&i.to_string(), b"").err()).unwrap();
    assert_eq!(error.code(), "io");
    assert!(error.to_string().contains("inodes"), "{error}");
    drop(stage);
    assert_eq!(free(), before);
}

/// The limit belongs to the process, so this runs again under `ulimit`.
#[test]
fn a_file_size_limit_shows_before_anything_is_written() {
    if let Some(place) = place_of_rerun() {
        assert_eq!(code(preflight(&folder(place.join("out")), &[], 1, 1024)), "ok");
        let error = preflight(&folder(place.join("out")), &[], 1, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("file size limit"), "{error}");
        return;
    }
    let tmp = TempDir::new().unwrap();
    let mut own = Command::new("sh");
    own.args(["-c", r#"ulimit -f 8; exec "$0" "$@""#]).arg(std::env::current_exe().unwrap());
    assert!(rerun("a_file_size_limit_shows_before_anything_is_written", tmp.path(), &mut own));
}

#[test]
fn threads_write_one_file_together() {
    const TILE: usize = 10_007;
    const TILES: usize = 200;
    let tmp = TempDir::new().unwrap();
    let target = file(tmp.path().join("out.safetensors"));
    let stage = Stage::create(&target).unwrap();
    let shard = stage.file(SHARD, (TILE * TILES) as u64).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let shard = &shard;
            scope.spawn(move || {
                for tile in (thread..TILES).step_by(4).rev().collect::<Vec<_>>() {
                    shard.write_all_at(&[tile as u8; TILE], (tile * TILE) as u64).unwrap();
                    shard.start_writeback((tile * TILE) as u64, TILE as u64);
                }
            });
        }
    });
    shard.finish().unwrap();
    stage.commit().unwrap();
    let bytes = fs::read(&target.path).unwrap();
    assert_eq!(bytes.len(), TILE * TILES);
    assert!(bytes.chunks(TILE).enumerate().all(|(i, tile)| tile.iter().all(|&b| b == i as u8)));
}
