//! X5, X6: backends that stand in files.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::prelude::*;

pub(super) const CASES: &[Case] = &[
    case!(files_are_ours_alone, "X5").files(),
    case!(files_stay_where_they_were_told, "X5").files(),
    case!(looking_makes_no_file, "X5").files(),
    case!(a_directory_that_is_none_is_refused, "X6", "S1").files(),
    case!(garbage_is_refused_and_left_alone, "X2", "X6").files(),
];

fn everything_in(directory: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            everything_in(&path, found)?;
        }
        found.push(path);
    }
    Ok(())
}

async fn used(h: &Harness) -> Outcome<Coordinator> {
    let a = h.coordinator("a").await?;
    a.group("g")?.join_or_create(caps("mine")?).await?;
    let _lead = a.election("g")?.campaign().await?;
    taken(&a, "../escape").await?.release().await?;
    a.group("/etc/passwd")?.create().await?;
    Ok(a)
}

/// X5: files 0600, directories 0700.
async fn files_are_ours_alone(h: Harness) -> Outcome {
    let _a = used(&h).await?;
    let mut found = Vec::new();
    everything_in(h.directory()?, &mut found)?;
    ensure(!found.is_empty(), "there are no files")?;
    for path in found {
        let metadata = match std::fs::symlink_metadata(&path) {
            // The release of the leadership that was dropped may be under way.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            answer => answer?,
        };
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        let mode = metadata.permissions().mode() & 0o777;
        ensure(mode & !expected == 0, format!("{} has mode {mode:o}", path.display()))?;
    }
    Ok(())
}

/// X5: whatever names say, nothing is written outside of the backend's own directory.
async fn files_stay_where_they_were_told(h: Harness) -> Outcome {
    let directory = h.directory()?.join("inner");
    std::fs::create_dir(&directory)?;
    let url = h.url().replace(&*h.directory()?.to_string_lossy(), &directory.to_string_lossy());
    let mut before = Vec::new();
    everything_in(h.directory()?, &mut before)?;
    let a = h.keep(h.builder_at(&url, "../../a")).await?;
    for name in ["../x", "../../x", "/x", "..", "a/../../x"] {
        a.group(name)?.join_or_create(Capabilities::none()).await?;
        taken(&a, name).await?.release().await?;
    }
    let mut after = Vec::new();
    everything_in(h.directory()?, &mut after)?;
    let outside: Vec<_> = after.iter().filter(|path| !path.starts_with(&directory)).collect();
    ensure(
        outside.len() <= before.len() && after.len() > before.len(),
        format!("written outside: {outside:?}"),
    )
}

/// X5: what looking makes would belong to whoever looked, perhaps to root, and be in the way of all others.
async fn looking_makes_no_file(h: Harness) -> Outcome {
    let a = h.coordinator("a").await?;
    let mut before = Vec::new();
    everything_in(h.directory()?, &mut before)?;
    for name in ["x", "deep/er/x", "/x"] {
        ensure(a.lock(name)?.holders().await?.holders.is_empty(), "somebody holds it")?;
        ensure(a.lock(name)?.break_lock("stuck").await?.is_empty(), "something was broken")?;
        ensure(a.election(name)?.leader().await?.is_none(), "somebody leads")?;
        ensure(a.group(name)?.members().await.is_err(), "there is a group")?;
        ensure(a.group(name)?.watch().await.is_err(), "a group that is not there is watched")?;
        let _observed = a.election(name)?.observe().await?;
    }
    ensure(a.groups().await?.is_empty(), "there are groups")?;
    let mut after = Vec::new();
    everything_in(h.directory()?, &mut after)?;
    after.retain(|path| !before.contains(path));
    ensure(after.is_empty(), format!("looking made {after:?}"))
}

/// X6, S1: clear words, and no panic.
async fn a_directory_that_is_none_is_refused(h: Harness) -> Outcome {
    let file = h.directory()?.join("a-file");
    std::fs::write(&file, b"")?;
    let url = h.url().replace(&*h.directory()?.to_string_lossy(), &file.to_string_lossy());
    let error = h.builder_at(&url, "a").connect_timeout(secs(5)).connect().await.err();
    let error = error.ok_or("it connected to a directory that is a file")?;
    ensure(!error.context().is_empty(), format!("it says nothing: {error:?}"))?;
    ensure(std::fs::metadata(&file)?.len() == 0, "the file was written to")
}

/// X2, X6: a file of somebody else's is not taken for ours, and not destroyed.
async fn garbage_is_refused_and_left_alone(h: Harness) -> Outcome {
    let Some(path) =
        h.url().split("://").nth(1).map(|rest| PathBuf::from(rest.split('?').next().unwrap_or(rest)))
    else {
        return Err("the URL names no path".into());
    };
    let garbage = b"this is somebody's diary, and no backend of ours\n".repeat(200);
    let mut diaries = Vec::new();
    if path.is_dir() {
        // The directory may be shared; what stands where our files would stand is somebody's.
        used(&h).await?.close().await?;
        everything_in(&path, &mut diaries)?;
        diaries.retain(|path| path.is_file());
    } else {
        diaries.push(path);
    }
    for path in &diaries {
        std::fs::write(path, &garbage)?;
    }
    let error = h.builder("a").connect_timeout(secs(5)).connect().await.err();
    let error = error.ok_or("it connected to somebody's diary")?;
    ensure(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Incompatible), format!("{error}"))?;
    for path in &diaries {
        ensure(std::fs::read(path)? == garbage, format!("{} was written to", path.display()))?;
    }
    Ok(())
}
