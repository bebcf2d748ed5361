//! Which files of a folder are the model.

use std::path::{Path, PathBuf};

use super::index::read_index;
use crate::error::{Error, Result, escape};

/// File name of a model in one shard.
const SINGLE: &str = "model.safetensors";
/// File name of the index of a model in several.
const INDEX: &str = "model.safetensors.index.json";

/// The weights of a folder.
pub(super) enum Weights {
    /// One file.
    Single(PathBuf),
    /// Several, listed in this index.
    Sharded(PathBuf),
}

/// Finds the weights in a folder.
pub(super) fn weights(folder: &Path) -> Result<Weights> {
    let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
    match (is_there(&single), is_there(&index)) {
        (true, false) => Ok(Weights::Single(single)),
        (false, true) => Ok(Weights::Sharded(index)),
        (true, true) => {
            if read_index(&index)?.weight_map.iter().all(|(_, shard)| shard == SINGLE) {
                return Ok(Weights::Sharded(index));
            }
            Err(refuse(
                folder,
                format!(
                    "holds both `{SINGLE}` and `{INDEX}` with other shards; give the path of that file, or remove the one that is not meant"
                ),
            ))
        }
        (false, false) => sole_file(folder).map(Weights::Single),
    }
}

/// Whether a folder has an entry of this path, be it a dangling link: opening will tell.
pub(super) fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The one safetensors file of a folder that has neither of the usual names, or what it has instead.
fn sole_file(folder: &Path) -> Result<PathBuf> {
    if is_there(&folder.join("adapter_config.json")) {
        return Err(Error::AdapterWithoutBase { path: folder.to_path_buf() });
    }
    let names = listing(folder)?;
    let with = |endings: &[&str]| -> Vec<&PathBuf> {
        let ends = |name: &str| endings.iter().any(|e| name.ends_with(e));
        names.iter().filter(|name| ends(&name.to_string_lossy())).collect()
    };
    match with(&[".safetensors"])[..] {
        [] => {}
        [name] => {
            if let Some(parts) = parts_of(&name.to_string_lossy()).filter(|parts| *parts > 1) {
                return Err(refuse(
                    folder,
                    format!("holds {} of {parts} shards and no `{INDEX}`; download the rest", shown(&[name])),
                ));
            }
            return Ok(folder.join(name));
        }
        ref several => {
            let message = format!(
                "holds {} and no `{INDEX}`; give the path of one file, or add the index",
                shown(several)
            );
            return Err(refuse(folder, message));
        }
    }
    let pickles = with(&[".bin", ".pt", ".pth", ".ckpt", ".pkl"]);
    let ggufs = with(&[".gguf"]);
    Err(refuse(
        folder,
        match () {
            () if !pickles.is_empty() => {
                format!(
                    "holds only {}: pickles, which rlmerge never reads; convert them to safetensors",
                    shown(&pickles)
                )
            }
            () if !ggufs.is_empty() => {
                format!("holds only {}: GGUF; merge the safetensors it was made of", shown(&ggufs))
            }
            () if is_there(&folder.join("snapshots")) => {
                "a folder of the Hugging Face cache; give one of the folders in its `snapshots`".into()
            }
            () if names.is_empty() => "an empty folder".into(),
            () => "holds no safetensors".into(),
        },
    ))
}

/// Names in a folder, sorted, without hidden ones: stages and partial downloads hide.
fn listing(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io(folder, "listing", e);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(PathBuf::from(name));
        }
    }
    names.sort();
    Ok(names)
}

/// How many shards a model has by the name of one: 3 for `model-00001-of-00003.safetensors`.
fn parts_of(name: &str) -> Option<u64> {
    let (front, parts) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = front.rsplit_once('-')?.1;
    (digits(number) && digits(parts)).then(|| parts.parse().ok())?
}

fn shown(names: &[&PathBuf]) -> String {
    const SHOWN: usize = 5;
    let mut text: Vec<String> =
        names.iter().take(SHOWN).map(|n| format!("`{}`", escape(&n.to_string_lossy()))).collect();
    if names.len() > SHOWN {
        text.push(format!("{} more", names.len() - SHOWN));
    }
    text.join(", ")
}

fn refuse(folder: &Path, message: impl Into<String>) -> Error {
    Error::NotACheckpoint { path: folder.to_path_buf(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::parts_of;

    #[test]
    fn shard_names_tell_the_number_of_shards() {
        assert_eq!(parts_of("model-00001-of-00003.safetensors"), Some(3));
        assert_eq!(parts_of("model.safetensors"), None);
        assert_eq!(parts_of("one-of-a-kind.safetensors"), None);
    }
}
