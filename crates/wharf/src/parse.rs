//! Texts of the command line as values. Pure.

use std::time::Duration;

use wharf_protocol::MountSpec;

/// `512`, `512K`, `1.5G`, `2GiB`: bytes, in powers of 1024.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let upper = unit.to_ascii_uppercase();
    let shift = match upper.strip_suffix("IB").or(upper.strip_suffix('B')).unwrap_or(&upper) {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err("expected a size such as 512M or 2G".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "expected a size such as 512M or 2G".to_owned())?;
    let bytes = number * (1_u64 << shift) as f64;
    if bytes >= 1.0 && bytes < u64::MAX as f64 {
        Ok(bytes as u64)
    } else {
        Err("a size is at least one byte".to_owned())
    }
}

/// `30s`, `5m`, `2h`, `500ms`; a number alone is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "" | "s" => 1.0,
        "ms" => 0.001,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("expected a time such as 500ms, 30s, 5m or 2h".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| "expected a time such as 500ms, 30s, 5m or 2h".to_owned())?;
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|duration| duration.as_millis() > 0)
        .ok_or_else(|| "a time is at least one millisecond".to_owned())
}

/// `1.5` CPUs as thousandths.
pub(crate) fn cpus(text: &str) -> Result<u32, String> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.01..=4096.0).contains(&cpus) => Ok((cpus * 1000.0) as u32),
        _ => Err("expected a number of CPUs such as 1.5".to_owned()),
    }
}

/// `SOURCE[:TARGET[:ro|rw]]`, or `src=SOURCE[,dst=TARGET][,ro]` for paths with colons; a relative source is taken from the
/// current directory.
pub(crate) fn mount(text: &str, workdir: &str) -> Result<MountSpec, String> {
    let is_long = ["src=", "source=", "dst=", "target=", "type="].iter().any(|key| text.starts_with(key));
    if is_long && !std::path::Path::new(text).exists() {
        return long_mount(text, workdir);
    }
    let (text_without_mode, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text.strip_suffix(":rw").unwrap_or(text), false),
    };
    let (source, target) = text_without_mode.split_once(':').unwrap_or((text_without_mode, workdir));
    if let Some((_, mode)) = target.split_once(':') {
        return Err(format!(
            "--mount `{text}`: `{mode}` is neither ro nor rw; with colons in a path: `src=SOURCE,dst=TARGET,ro`"
        ));
    }
    mount_of(text, source, target, workdir, read_only)
}

fn long_mount(text: &str, workdir: &str) -> Result<MountSpec, String> {
    let (mut source, mut target, mut read_only) = (None, workdir, false);
    for option in text.split(',') {
        match option.split_once('=').unwrap_or((option, "")) {
            ("src" | "source", value) => source = Some(value),
            ("dst" | "target" | "destination", value) => target = value,
            ("ro" | "readonly", "" | "true") => read_only = true,
            ("ro" | "readonly", "false") | ("rw", "") | ("type", "bind") => {}
            _ => return Err(format!("--mount `{text}`: `{option}` is none of src=, dst=, ro, rw and type=bind")),
        }
    }
    let source = source.ok_or_else(|| format!("--mount `{text}`: src= is missing"))?;
    mount_of(text, source, target, workdir, read_only)
}

fn mount_of(text: &str, source: &str, target: &str, workdir: &str, read_only: bool) -> Result<MountSpec, String> {
    let absolute = std::fs::canonicalize(source).map_err(|error| format!("--mount `{text}`: `{source}`: {error}"))?;
    if !target.starts_with('/') {
        return Err(format!("--mount `{text}`: the target `{target}` must be absolute"));
    }
    if target == workdir && !absolute.is_dir() {
        return Err(format!("--mount `{text}`: `{source}` is no directory; `{source}:TARGET` shows it elsewhere"));
    }
    Ok(MountSpec { source: absolute.display().to_string(), target: target.to_owned(), read_only })
}

/// One side of `cp`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Sandbox {
        name: String,
        path: String,
    },
    Local(String),
    /// Standard input or output, as a tar stream.
    Stream,
}

/// `SANDBOX:PATH`, a local path, or `-`. What begins with `/` or `.` is a local path, also with a colon: `./a:b`. Slashes and
/// colons may be in a sandbox's name: its path begins at the first `:/`.
pub(crate) fn place(text: &str) -> Result<Place, String> {
    if text == "-" {
        return Ok(Place::Stream);
    }
    if text.starts_with(['/', '.', ':']) {
        return Ok(Place::Local(text.to_owned()));
    }
    let Some(colon) = text.find(":/").or_else(|| text.find(':')) else {
        return Ok(Place::Local(text.to_owned()));
    };
    let (name, path) = (&text[..colon], &text[colon + 1..]);
    if !path.starts_with('/') && path.contains(':') {
        return Err(format!("`{text}` may mean several things: write SANDBOX:/PATH, or ./PATH for a file here"));
    }
    Ok(Place::Sandbox { name: name.to_owned(), path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_with_their_units() {
        for (text, bytes) in [("512", 512), ("1K", 1024), ("1.5G", 3 << 29), ("2GiB", 2 << 30), ("3mb", 3 << 20)] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1X", "0", "1..5"] {
            assert!(size(text).is_err(), "{text}");
        }
        for (text, millis) in [("30s", 30_000), ("5", 5000), ("500ms", 500), ("1.5m", 90_000), ("2h", 7_200_000)] {
            assert_eq!(duration(text).map(|time| time.as_millis()), Ok(millis), "{text}");
        }
        for text in ["", "s", "1d", "0s", "1e3s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!(cpus("1.5"), Ok(1500));
        assert!(cpus("0").is_err());
    }

    #[test]
    fn a_mount_has_a_source_and_perhaps_a_target() {
        let spec = |target: &str, read_only| Ok(MountSpec { source: "/usr".into(), target: target.into(), read_only });
        assert_eq!(mount("/usr", "/work"), spec("/work", false));
        assert_eq!(mount("/usr:ro", "/work"), spec("/work", true));
        assert_eq!(mount("/usr:/data:ro", "/work"), spec("/data", true));
        assert!(mount("/nonexistent", "/work").is_err());
        assert_eq!(mount("src=/usr", "/work"), spec("/work", false));
        assert_eq!(mount("type=bind,source=/usr,target=/a:b,readonly", "/work"), spec("/a:b", true));
        assert_eq!(mount("dst=/data,src=/usr,ro=false", "/work"), spec("/data", false));
        for wrong in ["src=/usr,dst=rel", "dst=/data", "src=/usr,nosuid", "src=/usr,type=volume", "src=/nonexistent"] {
            assert!(mount(wrong, "/work").is_err(), "{wrong}");
        }
        for wrong in ["/usr:rel", "/usr:/data:RO", "/usr:/data:z", "/usr:/data:ro,z", "/dev/null", "src=/dev/null"] {
            assert!(mount(wrong, "/work").is_err(), "{wrong}");
        }
        assert!(mount("/dev/null:/file", "/work").is_ok());
    }

    #[test]
    fn a_side_of_cp_is_in_a_sandbox_or_here() {
        let inside = |name: &str, path: &str| Ok(Place::Sandbox { name: name.into(), path: path.into() });
        assert_eq!(place("box:/a:b"), inside("box", "/a:b"));
        assert_eq!(place("a/b:/c"), inside("a/b", "/c"));
        assert_eq!(place("team:1:/c"), inside("team:1", "/c"));
        assert_eq!(place("box:c/d"), inside("box", "c/d"));
        assert_eq!(place("box:"), inside("box", ""));
        assert!(place("team:1:c").is_err_and(|reason| reason.contains("several things")));
        for local in ["./a:b", "/a:b", "../a:b", "a/b", ":a"] {
            assert_eq!(place(local), Ok(Place::Local(local.into())));
        }
        assert_eq!(place("-"), Ok(Place::Stream));
    }
}
