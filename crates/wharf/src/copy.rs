//! `wharf cp`.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use anyhow::{Context, Error, bail};
use tokio::io::AsyncWriteExt;
use wharf_client::{ClientError, Sandbox};
use wharf_protocol::FileKind;
use wharf_runtime::Runtime;

use crate::{
    cli::{Cp, OutputForm},
    commands::ready,
    parse::{self, Place},
    progress::Progress,
    show,
};

/// Copies into or out of a sandbox.
pub(crate) async fn copy(runtime: &Runtime, arguments: Cp, form: OutputForm) -> anyhow::Result<()> {
    let progress = Progress::bytes(format!("copying {} to {}", arguments.source, arguments.target));
    let [source, target] = [&arguments.source, &arguments.target].map(|text| parse::place(text));
    let (source, target) = (source.map_err(Error::msg)?, target.map_err(Error::msg)?);
    let to_stream = target == Place::Stream;
    carry(runtime, source, target, &progress).await?;
    // Where the files themselves go to standard output, nothing else does.
    if form == OutputForm::Json && !to_stream {
        show::json(&serde_json::json!({ "bytes": progress.count() }))?;
    }
    Ok(())
}

async fn carry(runtime: &Runtime, source: Place, target: Place, progress: &Progress) -> anyhow::Result<()> {
    match (source, target) {
        (Place::Sandbox { name, path }, target) => {
            let (sandbox, path) = find(runtime, &name, &path).await?;
            copy_out(&sandbox, &path, target, progress).await
        }
        (source, Place::Sandbox { name, path }) => {
            let (sandbox, path) = find(runtime, &name, &path).await?;
            copy_in(&sandbox, source, &path, progress).await
        }
        _ => bail!("one side must be in a sandbox: SANDBOX:PATH"),
    }
}

/// The sandbox, and the path as a command that runs in it would take it.
async fn find(runtime: &Runtime, name: &str, path: &str) -> anyhow::Result<(Sandbox, String)> {
    let sandbox = ready(runtime, &name.parse()?).await?.client()?;
    if path.starts_with('/') {
        return Ok((sandbox, path.to_owned()));
    }
    let working_dir = sandbox.info().await?.working_dir;
    Ok((sandbox, format!("{}/{path}", working_dir.trim_end_matches('/'))))
}

async fn copy_out(sandbox: &Sandbox, path: &str, target: Place, progress: &Progress) -> anyhow::Result<()> {
    let files = sandbox.files();
    let target = match target {
        Place::Stream if std::io::stdout().is_terminal() => bail!("a tar stream is not for a terminal: redirect it"),
        Place::Stream => {
            files.read_tar(path, progress.write(tokio::io::stdout())).await?;
            return Ok(());
        }
        Place::Local(target) => PathBuf::from(target),
        Place::Sandbox { .. } => bail!("copying between two sandboxes goes through `-`"),
    };
    let stat = files.stat(path).await?;
    let name = Path::new(path).file_name().map(PathBuf::from).unwrap_or_default();
    // As `cp` does: into an existing directory under its own name, else as the target.
    let target = if target.is_dir() { target.join(name) } else { target };
    if stat.kind == FileKind::Directory {
        tokio::fs::create_dir_all(&target).await?;
        let (near, far) = tokio::io::duplex(256 << 10);
        // The library refuses members that lead out of the target; what comes from a sandbox is hostile.
        let unpacked =
            async { tokio_tar::Archive::new(far).unpack(&target).await.map(drop).map_err(anyhow::Error::from) };
        let (read, unpacked) = tokio::join!(files.read_tar(path, progress.write(near)), unpacked);
        read?;
        return unpacked.with_context(|| format!("could not unpack below `{}`", target.display()));
    }
    let file =
        tokio::fs::File::create(&target).await.with_context(|| format!("could not write `{}`", target.display()))?;
    files.read(path, progress.write(file)).await?;
    Ok(())
}

async fn copy_in(sandbox: &Sandbox, source: Place, path: &str, progress: &Progress) -> anyhow::Result<()> {
    let files = sandbox.files();
    let source = match source {
        Place::Stream => {
            files.write_tar(path, progress.read(tokio::io::stdin())).await?;
            return Ok(());
        }
        Place::Local(source) => PathBuf::from(source),
        Place::Sandbox { .. } => bail!("copying between two sandboxes goes through `-`"),
    };
    let metadata = std::fs::metadata(&source).with_context(|| format!("could not read `{}`", source.display()))?;
    let name = std::fs::canonicalize(&source)?.file_name().map(|name| name.to_string_lossy().into_owned());
    let is_directory =
        |stat: Result<wharf_protocol::FileStat, ClientError>| stat.is_ok_and(|stat| stat.kind == FileKind::Directory);
    let into = path.ends_with('/') || is_directory(files.stat(path).await);
    let target = match name {
        Some(name) if into => format!("{}/{name}", path.trim_end_matches('/')),
        _ => path.to_owned(),
    };
    if metadata.is_dir() {
        let (near, far) = tokio::io::duplex(256 << 10);
        let pack = async move {
            let mut builder = tokio_tar::Builder::new(near);
            builder.follow_symlinks(false);
            builder.append_dir_all("", &source).await?;
            builder.into_inner().await?.shutdown().await
        };
        let (packed, written) = tokio::join!(pack, files.write_tar(&target, progress.read(far)));
        written?;
        return packed.context("could not read the directory");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
    files.write(&target, Some(mode), progress.read(tokio::fs::File::open(&source).await?)).await?;
    Ok(())
}
