//! `wharf cp`, by the rules of `docker cp`.
//!
//! ```text
//!   SOURCE          TARGET is missing       TARGET is a file     TARGET is a directory
//!   file, link      becomes TARGET          replaces it          goes into it by its name
//!   directory       becomes TARGET          refused              goes into it by its name; `SOURCE/.`: its content does
//! ```
//!
//! Modes (without set-user-id and set-group-id) and times come along; the owner is whoever owns new files there. A link
//! is copied as a link, wherever it points, and what is copied never goes through one: only a link that is itself named as the
//! TARGET is followed, and one that stands in a TARGET under the SOURCE's name is replaced or, in the way of a directory,
//! refused. Special files are left out, named at the end, and make the exit code 3. A file is replaced once it is whole; a
//! signal before that leaves the old one, and one after that waits until the new one is in its place. What comes from a
//! sandbox is hostile.

use std::{
    cell::Cell,
    fs::{File, FileType, Metadata},
    io::{self, IsTerminal, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    task::Poll,
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::fs::OFlags;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{self, SignalKind},
};
use tokio_util::io::SyncIoBridge;
use wharf_client::{ClientError, ErrorKind, Files, Like, Sandbox};
use wharf_files::{Bounds, NewFile, ReplaceError, Root, Tree, Wanted};
use wharf_protocol::{FileKind, FileStat, FileTime, ProblemKind, Skipped, SkippedFile};
use wharf_runtime::Runtime;

use crate::{
    cli::{Cp, OutputForm},
    commands::ready,
    error::{PartlyCopied, SIGNALLED, WrongUsage},
    out::{CouldNotWrite, printable},
    parse::{self, Place},
    progress::Progress,
    show,
};

const PIPE_BYTES: usize = 1 << 20;

/// Copies into or out of a sandbox.
pub(crate) async fn copy(runtime: &Runtime, arguments: Cp, form: OutputForm) -> anyhow::Result<ExitCode> {
    let progress = Progress::bytes(format!("copying {} to {}", arguments.source, arguments.target));
    let [source, target] = [&arguments.source, &arguments.target].map(|text| parse::place(text));
    let (source, target) = (source.map_err(WrongUsage)?, target.map_err(WrongUsage)?);
    let to_stream = target == Place::Stream;
    let mut signals = Signals::install().context("could not handle signals")?;
    let committing = Cell::new(false);
    let skipped = {
        let mut work = pin!(carry(runtime, source, target, arguments.follow_link, &progress, &committing));
        let signal = tokio::select! {
            biased;
            done = &mut work => Ok(done),
            signal = signals.next() => Err(signal),
        };
        match signal {
            Ok(done) => done?,
            Err(_) if committing.get() => {
                crate::out::note!("`{}` has arrived and is put in its place first", arguments.target);
                work.await?
            }
            // The dropped work gives up what it was writing; `main` waits for that.
            Err(signal) => return Ok(ExitCode::from(SIGNALLED + signal)),
        }
    };
    // Where the files themselves go to standard output, nothing else does.
    if form == OutputForm::Json && !to_stream {
        show::json(&serde_json::json!({ "bytes": progress.count(), "skipped": skipped }))?;
    }
    drop(progress);
    if skipped.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for file in &skipped.files {
        crate::out::note!("not copied: `{}`: {}", printable(&file.path), printable(&file.reason));
    }
    Err(PartlyCopied { count: skipped.count }.into())
}

/// The signals that end a program, but for those that whoever started it made it ignore, as nohup(1) does.
struct Signals(Vec<(u8, unix::Signal)>);

impl Signals {
    fn install() -> io::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
        let kinds = [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate()];
        let heard = kinds.into_iter().filter(|kind| ignored >> (kind.as_raw_value() - 1) & 1 == 0);
        heard.map(|kind| Ok((kind.as_raw_value() as u8, unix::signal(kind)?))).collect::<io::Result<_>>().map(Self)
    }

    /// The next one, by its number.
    async fn next(&mut self) -> u8 {
        std::future::poll_fn(|context| {
            let come =
                self.0.iter_mut().find_map(|(number, signal)| signal.poll_recv(context).is_ready().then_some(*number));
            come.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

async fn carry(
    runtime: &Runtime,
    source: Place,
    target: Place,
    follow: bool,
    progress: &Progress,
    committing: &Cell<bool>,
) -> anyhow::Result<Skipped> {
    match (source, target) {
        (Place::Sandbox { name, path }, target) => {
            let (sandbox, path) = find(runtime, &name, &path).await?;
            copy_out(&sandbox, &path, target, follow, progress, committing).await
        }
        (source, Place::Sandbox { name, path }) => {
            let (sandbox, path) = find(runtime, &name, &path).await?;
            copy_in(&sandbox, source, &path, follow, progress).await
        }
        _ => Err(WrongUsage("one side must be in a sandbox: SANDBOX:PATH".to_owned()).into()),
    }
}

fn between_sandboxes() -> anyhow::Error {
    let way = "copying between two sandboxes goes through a pipe: `wharf cp A:PATH - | wharf cp - B:DIRECTORY`";
    WrongUsage(way.to_owned()).into()
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

/// `DIR/.` is what is in DIR.
fn means_content(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// Whether the path itself says that it is a directory, and so that a link at its end is followed.
fn says_directory(path: &str) -> bool {
    path.ends_with('/') || means_content(path) || path.ends_with("/..") || path == ".."
}

async fn copy_out(
    sandbox: &Sandbox,
    path: &str,
    target: Place,
    follow: bool,
    progress: &Progress,
    committing: &Cell<bool>,
) -> anyhow::Result<Skipped> {
    let files = sandbox.files();
    let text = match target {
        Place::Stream if io::stdout().is_terminal() => bail!("a tar stream is not for a terminal: redirect it"),
        Place::Stream => {
            return files.read_tar(path, progress.write(tokio::io::stdout())).await.map_err(|error| match error {
                ClientError::Local(source) => CouldNotWrite::output(source).into(),
                error => error.into(),
            });
        }
        Place::Local(target) => target,
        Place::Sandbox { .. } => return Err(between_sandboxes()),
    };
    let target = PathBuf::from(&text);
    let stat = if follow || says_directory(path) { files.stat_target(path).await? } else { files.stat(path).await? };
    let existing = std::fs::metadata(&target).ok();
    let into = existing.as_ref().is_some_and(Metadata::is_dir);
    if existing.is_none() && says_directory(&text) && stat.kind != FileKind::Directory {
        bail!("could not write `{text}`: there is no such directory");
    }
    // What stands in a directory under that name was not named by the caller: a sandbox may have made it.
    let name = Path::new(path).file_name().filter(|_| into && !means_content(path));
    let place = name.map_or_else(|| target.clone(), |name| target.join(name));
    match stat.kind {
        FileKind::Directory => {
            if existing.is_some_and(|existing| !existing.is_dir()) {
                bail!("could not copy the directory `{path}` to `{text}`: it is a file");
            }
            copy_tree_out(files, path, target, name.map(PathBuf::from).unwrap_or_default(), progress).await
        }
        FileKind::File => {
            let wanted = Wanted {
                mode: Some(stat.mode & 0o777),
                modified: modified(&stat),
                replace_special: name.is_some(),
                ..Wanted::default()
            };
            copy_file_out(files, path, wanted, &place, progress, committing).await.map(|()| Skipped::default())
        }
        FileKind::Symlink => {
            let link = stat.target.as_deref().context("the sandbox did not say where the symlink points to")?;
            if link.contains(char::REPLACEMENT_CHARACTER) {
                bail!("could not copy the symlink `{path}`: its target is no UTF-8 text; its directory can be copied");
            }
            make_link(&place, Path::new(link), modified(&stat))?;
            Ok(Skipped::default())
        }
        FileKind::Other => bail!("could not copy `{path}`: it is neither a file, a directory nor a symlink"),
    }
}

/// Fills `name` in the directory `target`, or `target` itself.
async fn copy_tree_out(
    files: Files<'_>,
    path: &str,
    target: PathBuf,
    name: PathBuf,
    progress: &Progress,
) -> anyhow::Result<Skipped> {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let shown = target.join(&name).display().to_string();
    let reader = SyncIoBridge::new(far);
    let unpacking =
        tokio::task::spawn_blocking(move || wharf_files::unpack_under(reader, &target, &name, Bounds::NONE));
    let read = async {
        let mut near = progress.write(near);
        files.read_tar(path, &mut near).await
    };
    let (read, unpacked) = tokio::join!(read, unpacking);
    let unpacked = unpacked.context("unpacking ended by itself")?;
    // Whoever failed first made the other fail: a reader that is gone, or a stream that ends.
    let unpacked = match (&read, unpacked) {
        (Err(ClientError::Local(_)) | Ok(_), Err(error)) => {
            return Err(error).with_context(|| format!("could not unpack below `{shown}`"));
        }
        (_, unpacked) => unpacked,
    };
    let mut skipped = read?;
    if let Ok(unpacked) = unpacked {
        skipped.count += unpacked.skipped_count;
        skipped.files.extend(unpacked.skipped.into_iter().map(described));
    }
    Ok(skipped)
}

async fn copy_file_out(
    files: Files<'_>,
    path: &str,
    wanted: Wanted,
    place: &Path,
    progress: &Progress,
    committing: &Cell<bool>,
) -> anyhow::Result<()> {
    let shown = place.display().to_string();
    let failed = || format!("could not write `{shown}`");
    let mut file = match NewFile::create(place, wanted) {
        Ok(file) => file,
        // A pipe or a device, or what we have open: what is there stays, and the content follows on it.
        Err(ReplaceError::Special) => {
            let special = match own_stream(place) {
                Some(stream) => tokio::fs::File::from_std(stream.with_context(failed)?.into()),
                None => tokio::fs::OpenOptions::new().append(true).open(place).await.with_context(failed)?,
            };
            return files.read(path, progress.write(special)).await.map(drop).map_err(|error| match error {
                ClientError::Local(source) => anyhow::Error::new(source).context(failed()),
                error => error.into(),
            });
        }
        Err(error) => return Err(error).with_context(failed),
    };
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let mut reader = SyncIoBridge::new(far);
    let writing = tokio::task::spawn_blocking(move || {
        let mut writer = io::BufWriter::with_capacity(PIPE_BYTES / 4, &mut file);
        io::copy(&mut reader, &mut writer)?;
        writer.flush()?;
        drop(writer);
        Ok::<_, io::Error>(file)
    });
    let read = async {
        let mut near = progress.write(near);
        files.read(path, &mut near).await
    };
    let (read, written) = tokio::join!(read, writing);
    let written = written.context("writing ended by itself")?;
    if let (Err(ClientError::Local(_)) | Ok(_), Err(error)) = (&read, &written) {
        return Err(io::Error::new(error.kind(), error.to_string())).with_context(failed);
    }
    // Only what has arrived whole takes the old file's place.
    read?;
    let file = written.with_context(failed)?;
    committing.set(true);
    let committed = tokio::task::spawn_blocking(move || file.commit()).await.context("writing ended by itself")?;
    committed.with_context(failed)
}

/// Our own standard output or error if it is named: opened anew, a file would be written from its beginning.
fn own_stream(path: &Path) -> Option<io::Result<OwnedFd>> {
    let stream = match path.to_str()? {
        "/dev/stdout" | "/dev/fd/1" | "/proc/self/fd/1" => rustix::stdio::stdout(),
        "/dev/stderr" | "/dev/fd/2" | "/proc/self/fd/2" => rustix::stdio::stderr(),
        _ => return None,
    };
    Some(rustix::io::dup(stream).map_err(Into::into))
}

/// An older sandboxd tells the time less exactly.
fn modified(stat: &FileStat) -> Option<(i64, u32)> {
    let rounded = || {
        let since = Duration::try_from_secs_f64(stat.modified_at).ok()?;
        Some((since.as_secs().cast_signed(), since.subsec_nanos()))
    };
    stat.modified.map(|time| (time.seconds, time.nanoseconds)).or_else(rounded)
}

fn make_link(place: &Path, target: &Path, modified: Option<(i64, u32)>) -> anyhow::Result<()> {
    let failed = || format!("could not make the symlink `{}`", place.display());
    let directory = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = Path::new(place.file_name().with_context(failed)?);
    let made = Tree::below(directory, Bounds::NONE).and_then(|mut tree| tree.symlink(name, target, modified));
    made.with_context(failed)
}

async fn copy_in(
    sandbox: &Sandbox,
    source: Place,
    path: &str,
    follow: bool,
    progress: &Progress,
) -> anyhow::Result<Skipped> {
    let files = sandbox.files();
    let text = match source {
        Place::Stream => {
            let written = files.write_tar(path, progress.read(tokio::io::stdin())).await;
            return Ok(written.map_err(|error| unreadable(error, "standard input"))?.skipped);
        }
        Place::Local(source) => source,
        Place::Sandbox { .. } => return Err(between_sandboxes()),
    };
    let source = PathBuf::from(&text);
    let follow = follow || says_directory(&text);
    let metadata = if follow { std::fs::metadata(&source) } else { std::fs::symlink_metadata(&source) };
    let metadata = metadata.with_context(|| format!("could not read `{text}`"))?;
    let existing = match files.stat_target(path).await {
        Ok(stat) => Some(stat.kind),
        Err(error) if error.kind() == ErrorKind::Refused(ProblemKind::NotFound) => None,
        Err(error) => return Err(error.into()),
    };
    if existing.is_none() && says_directory(path) && !metadata.is_dir() {
        bail!("could not write `{path}` in the sandbox: there is no such directory");
    }
    let name = match source.file_name() {
        Some(name) => Some(name.to_owned()),
        // `..` has a name all the same.
        None => std::fs::canonicalize(&source)?.file_name().map(ToOwned::to_owned),
    };
    let into = existing == Some(FileKind::Directory) && !(metadata.is_dir() && means_content(&text));
    if metadata.is_dir() {
        if existing.is_some_and(|kind| kind != FileKind::Directory) {
            bail!("could not copy the directory `{text}` to `{path}`: it is a file");
        }
        let name = name.filter(|_| into).map(PathBuf::from).unwrap_or_default();
        return pack_in(files, source, if follow { Root::Target } else { Root::Link }, name, path, progress).await;
    }
    let name = name.with_context(|| format!("`{text}` has no name"))?;
    let target =
        if into { format!("{}/{}", path.trim_end_matches('/'), name.to_string_lossy()) } else { path.to_owned() };
    if metadata.is_symlink() {
        // A tar member is the one way to make a link in a sandbox.
        let (directory, name) = target.rsplit_once('/').unwrap_or(("", &target));
        let directory = if directory.is_empty() { "/" } else { directory };
        return pack_in(files, source, Root::Link, PathBuf::from(name), directory, progress).await;
    }
    let (file, metadata) = open_file(&source, follow)?;
    let like = Like { mode: Some(metadata.mode() & 0o777), modified: Some(modified_at(&metadata)) };
    // Of a file that grows, what was there; a file of /proc says it has no bytes, and has some.
    let length = if metadata.len() == 0 { u64::MAX } else { metadata.len() };
    let file = tokio::fs::File::from_std(file).take(length);
    let written = files.write(&target, like, progress.read(file)).await;
    written.map_err(|error| unreadable(error, &format!("`{text}`")))?;
    Ok(Skipped::default())
}

/// Names what could not be read, if it was that.
fn unreadable(error: ClientError, what: &str) -> anyhow::Error {
    match error {
        ClientError::Local(source) => anyhow::Error::new(source).context(format!("could not read {what}")),
        error => error.into(),
    }
}

/// Opens a file, and nothing that has come in its place since it was looked at: a sandbox may write where it is.
fn open_file(path: &Path, follow: bool) -> anyhow::Result<(File, Metadata)> {
    let text = path.display();
    let flags = OFlags::NONBLOCK | if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
    let kind_of = |kind: FileType| match kind {
        _ if kind.is_fifo() => "a named pipe",
        _ if kind.is_socket() => "a socket",
        _ if kind.is_dir() => "a directory by now",
        _ => "a device",
    };
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let opened = opened.and_then(|file| file.metadata().map(|metadata| (file, metadata)));
    let found = match opened {
        Ok((file, metadata)) if metadata.is_file() => return Ok((file, metadata)),
        Ok((_, metadata)) => metadata,
        // A socket cannot be opened at all.
        Err(error) => match std::fs::metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => metadata,
            _ => return Err(error).with_context(|| format!("could not read `{text}`")),
        },
    };
    bail!("could not copy `{text}`: it is {}", kind_of(found.file_type()))
}

fn modified_at(metadata: &Metadata) -> FileTime {
    FileTime { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 }
}

async fn pack_in(
    files: Files<'_>,
    source: PathBuf,
    root: Root,
    name: PathBuf,
    path: &str,
    progress: &Progress,
) -> anyhow::Result<Skipped> {
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let shown = source.display().to_string();
    let writer = SyncIoBridge::new(near);
    let packing = tokio::task::spawn_blocking(move || wharf_files::pack(&source, root, &name, writer));
    let (packed, written) = tokio::join!(packing, files.write_tar(path, progress.read(far)));
    let packed = packed.context("packing ended by itself")?;
    let packed = match packed {
        // A sandbox that refuses ends the stream, which is then no fault of the source.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe || written.is_ok() => {
            return Err(error).with_context(|| format!("could not read `{shown}`"));
        }
        packed => packed,
    };
    let written = written?;
    let packed = packed?;
    let mut skipped = written.skipped;
    skipped.count += packed.skipped_count;
    skipped.files.extend(packed.skipped.into_iter().map(described));
    Ok(skipped)
}

fn described(file: wharf_files::Skipped) -> SkippedFile {
    SkippedFile { path: file.path.display().to_string(), reason: file.reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_ends_in_a_dot_means_the_content() {
        for (path, content, directory) in [
            ("dir", false, false),
            ("dir/", false, true),
            ("dir/.", true, true),
            (".", true, true),
            ("/.", true, true),
            ("..", false, true),
            ("a/..", false, true),
            ("hidden/.x", false, false),
            ("x.", false, false),
        ] {
            assert_eq!((means_content(path), says_directory(path)), (content, directory), "{path}");
        }
    }

    #[test]
    fn what_has_come_in_the_place_of_a_file_is_not_read() {
        let directory = std::env::temp_dir().join(format!("wharf-copy-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let at = |name: &str| directory.join(name);
        std::fs::write(at("secret"), "of the host").unwrap();
        std::os::unix::fs::symlink("secret", at("link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        for name in ["link", "pipe", "."] {
            assert!(open_file(&at(name), false).is_err(), "{name}");
        }
        open_file(&at("secret"), false).unwrap();
        open_file(&at("link"), true).unwrap();
        std::fs::remove_dir_all(directory).unwrap();
    }
}
