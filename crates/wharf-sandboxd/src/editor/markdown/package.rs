//! The zip package around an office document.

use std::io::{Cursor, Read as _};

use zip::ZipArchive;

use super::xml::Element;

/// All parts of a document that are read, unpacked: against archives that unpack to more than memory holds.
const MAX_UNPACKED_BYTES: u64 = 64 * 1024 * 1024;

/// Looked through for each slide or sheet.
const MAX_RELATIONSHIPS: usize = 10_000;

pub(super) struct Package<'a> {
    archive: ZipArchive<Cursor<&'a [u8]>>,
    bytes_left: u64,
}

/// Where a relationship of a part leads to.
pub(super) struct Relationship {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) target: String,
}

impl<'a> Package<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let archive =
            ZipArchive::new(Cursor::new(bytes)).map_err(|error| format!("File is not a zip file ({error})"))?;
        Ok(Self { archive, bytes_left: MAX_UNPACKED_BYTES })
    }

    /// The text of a part; a part that is missing is an error.
    pub(super) fn read(&mut self, name: &str) -> Result<String, String> {
        let file = self.archive.by_name(name).map_err(|error| format!("{name}: {error}"))?;
        let mut bytes = Vec::new();
        file.take(self.bytes_left + 1).read_to_end(&mut bytes).map_err(|error| format!("{name}: {error}"))?;
        self.bytes_left = self
            .bytes_left
            .checked_sub(bytes.len() as u64)
            .ok_or("The document unpacks to more than 64MB".to_owned())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The relationships of a part, none if it has no list of them.
    pub(super) fn relationships(&mut self, part: &str) -> Vec<Relationship> {
        let (folder, file) = part.rsplit_once('/').unwrap_or(("", part));
        let Ok(source) = self.read(&format!("{folder}/_rels/{file}.rels")) else {
            return Vec::new();
        };
        let root = Element::parse(&source);
        let relationship = |element: &Element<'_>| {
            let target = element.attribute("Target")?.into_owned();
            let external = element.attribute("TargetMode").is_some_and(|mode| mode == "External");
            Some(Relationship {
                id: element.attribute("Id")?.into_owned(),
                kind: element.attribute("Type")?.rsplit('/').next()?.to_owned(),
                target: if external { target } else { join(folder, &target) },
            })
        };
        root.all("Relationship").into_iter().take(MAX_RELATIONSHIPS).filter_map(relationship).collect()
    }
}

/// The name of the part that `target` means in a part of `folder`.
fn join(folder: &str, target: &str) -> String {
    if let Some(absolute) = target.strip_prefix('/') {
        return absolute.to_owned();
    }
    let mut segments: Vec<&str> = folder.split('/').collect();
    for segment in target.split('/') {
        match segment {
            ".." => {
                segments.pop();
            }
            "." => {}
            name => segments.push(name),
        }
    }
    segments.join("/")
}
