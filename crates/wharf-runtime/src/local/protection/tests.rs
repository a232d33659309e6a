use std::{
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    process::Command,
};

use super::{table::Entry, *};

/// A directory of the host, mounted at `/workspace`.
struct Host(tempfile::TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        fs::canonicalize(self.0.path()).unwrap()
    }

    fn git(&self, directory: &str, arguments: &[&str]) {
        let identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "protocol.file.allow=always"];
        let output = Command::new("git")
            .args(identity)
            .args(arguments)
            .current_dir(self.path().join(directory))
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .expect("install git");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn repository(&self, directory: &str) {
        fs::create_dir_all(self.path().join(directory)).unwrap();
        self.git(directory, &["init", "-q", "-b", "main"]);
        self.git(directory, &["commit", "-q", "--allow-empty", "-m", "first"]);
    }

    fn mount(&self, directory: &str) -> MountSpec {
        let source = self.path().join(directory);
        MountSpec {
            source: source.display().to_string().trim_end_matches('/').to_owned(),
            target: "/workspace".into(),
            read_only: false,
        }
    }

    fn plan(&self, directory: &str, unprotected: &[&str]) -> Mounts {
        let unprotected: Vec<String> = unprotected.iter().map(|path| (*path).to_owned()).collect();
        plan_mounts(&[self.mount(directory)], &unprotected, &[], &[], &|_| true)
    }
}

fn with<'a>(plan: &'a Mounts, path: &str) -> Option<&'a With> {
    plan.planned[0].covers.iter().find(|cover| cover.path == Path::new(path)).map(|cover| &cover.with)
}

fn in_place(place: Place) -> impl Iterator<Item = &'static Entry> {
    PROTECTED.iter().filter(move |entry| entry.place == place)
}

#[test]
fn a_repository_is_pinned_and_what_it_runs_is_read_only_there_or_not() {
    let host = Host::new();
    host.repository("");
    fs::remove_dir_all(host.path().join(".git/hooks")).unwrap();
    let plan = host.plan("", &[]);
    assert_eq!(with(&plan, ".git"), Some(&With::Itself));
    for entry in in_place(Place::GitDirectory) {
        assert_eq!(with(&plan, &format!(".git/{}", entry.name)), Some(&With::ReadOnly), "{}", entry.name);
    }
    assert_eq!(with(&plan, "commondir"), None);
    assert!(plan.protected.contains(&"/workspace/.git/config".to_owned()), "{:?}", plan.protected);
    assert!(!plan.protected.contains(&"/workspace/.git".to_owned()), "{:?}", plan.protected);
    let held: Vec<&Path> = plan.placeholders.iter().map(|placeholder| placeholder.path.as_path()).collect();
    assert!(held.contains(&Path::new(".git/hooks")) && held.contains(&Path::new(".vscode")), "{held:?}");
    assert!(!held.contains(&Path::new(".git/config")), "{held:?}");
}

#[test]
fn a_directory_that_is_no_repository_cannot_become_one() {
    let host = Host::new();
    let plan = host.plan("", &[]);
    for name in [".git", "commondir", "objects"] {
        assert_eq!(with(&plan, name), Some(&With::ReadOnly), "{name}");
    }
}

#[test]
fn a_directory_with_some_of_a_bare_repository_cannot_become_one_and_what_is_in_it_can_be_written() {
    let host = Host::new();
    let held = |plan: &Mounts| -> Vec<PathBuf> {
        let held = plan.placeholders.iter().map(|placeholder| placeholder.path.clone());
        held.filter(|path| BARE_REPOSITORY.iter().any(|name| path == Path::new(name))).collect()
    };
    fs::create_dir(host.path().join("objects")).unwrap();
    let plan = host.plan("", &[]);
    assert_eq!(with(&plan, "objects"), Some(&With::Itself));
    assert_eq!(with(&plan, "refs"), Some(&With::ReadOnly));
    assert_eq!(held(&plan), [Path::new("refs")]);
    // A second sandbox finds the placeholder of the first.
    set_placeholders(&plan.placeholders).unwrap();
    assert_eq!(held(&host.plan("", &[])), [Path::new("refs")]);
    fs::write(host.path().join("refs/file"), "").unwrap();
    assert_eq!(held(&host.plan("", &[])), [Path::new("HEAD")]);
    symlink("nowhere", host.path().join("HEAD")).unwrap();
    fs::remove_dir_all(host.path().join("objects")).unwrap();
    fs::write(host.path().join("objects"), "").unwrap();
    let plan = host.plan("", &[]);
    assert_eq!(held(&plan), [] as [&Path; 0]);
    assert_eq!(with(&plan, "HEAD"), Some(&With::ReadOnly));
    assert_eq!(with(&plan, "objects"), Some(&With::Itself));
}

#[test]
fn what_is_protected_may_have_any_name() {
    let host = Host::new();
    let name = OsStr::from_bytes(b"caf\xe9");
    fs::create_dir_all(host.path().join(name).join(".vscode")).unwrap();
    let plan = host.plan("", &[]);
    let path = Path::new(name).join(".vscode");
    assert!(plan.planned[0].covers.iter().any(|cover| cover.path == path));
    let planned = serde_json::to_string(&plan.planned).unwrap();
    assert_eq!(serde_json::from_str::<Vec<PlannedMount>>(&planned).unwrap(), plan.planned);
    let placeholder = Placeholder { source: host.path().join(name), path, content: Content::EmptyDirectory };
    let kept = serde_json::to_string(&placeholder).unwrap();
    assert_eq!(serde_json::from_str::<Placeholder>(&kept).unwrap(), placeholder);
}

#[test]
fn what_was_protected_once_stays_so_though_it_is_not_found_again() {
    let host = Host::new();
    host.repository("deep/down/nested");
    let inside = "/workspace/deep/down/nested/.git/config";
    let before = host.plan("", &[]).protected;
    assert!(before.contains(&inside.to_owned()), "{before:?}");
    let kept_where_nothing_is_found = || {
        let planned = vec![PlannedMount { spec: host.mount(""), covers: Vec::new() }];
        let mut plan = Mounts { planned, ..Mounts::default() };
        plan.keep(&before);
        plan
    };
    let plan = kept_where_nothing_is_found();
    assert_eq!(with(&plan, "deep/down/nested/.git/config"), Some(&With::ReadOnly));
    assert!(plan.protected.contains(&inside.to_owned()), "{:?}", plan.protected);
    // Nothing is added to what is found.
    let mut found = host.plan("", &[]);
    let covers = found.planned.clone();
    found.keep(&before);
    assert_eq!(found.planned, covers);
    // Where a link leads, nothing can be mounted.
    fs::rename(host.path().join("deep"), host.path().join("other")).unwrap();
    symlink("other", host.path().join("deep")).unwrap();
    let plan = kept_where_nothing_is_found();
    assert_eq!(with(&plan, "deep/down/nested/.git/config"), None);
}

#[test]
fn repositories_are_found_among_many_directories_or_that_is_warned_of() {
    let host = Host::new();
    host.repository("vendor/a/lib");
    for directory in 0..5000 {
        fs::create_dir(host.path().join(format!("d{directory}"))).unwrap();
    }
    let plan = host.plan("", &[]);
    assert_eq!(with(&plan, "vendor/a/lib/.git/config"), Some(&With::ReadOnly));
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    let mount = host.mount("");
    let source = Path::new(&mount.source);
    let survey = |left| Survey {
        mount: &mount,
        source,
        shown: &[],
        homes: &[],
        programs: &[],
        is_inside: &|_| true,
        left,
        found: Found::default(),
    };
    let found = survey(COVERS).take(5000);
    assert!(found.warnings.iter().any(|warning| warning.contains("more than 5000")), "{:?}", found.warnings);
    // What is made in each, in a repository's own directories too, does not have more mounted than the kernel allows.
    for directory in 0..200 {
        fs::create_dir(host.path().join(format!("d{directory}/.vscode"))).unwrap();
    }
    host.git("", &["init", "-q"]);
    for directory in 0..200 {
        fs::create_dir_all(host.path().join(format!(".git/worktrees/w{directory}"))).unwrap();
    }
    let bounded = |plan: &Found| {
        plan.covers.len() < 100 + 2 * PROTECTED.len() && plan.covers.contains_key(Path::new(".mcp.json"))
    };
    let found = survey(100).take(DIRECTORIES);
    assert!(bounded(&found), "{}", found.covers.len());
    assert!(found.warnings.iter().any(|warning| warning.contains("more than 100 paths")), "{:?}", found.warnings);
    fs::remove_dir_all(host.path().join(".git")).unwrap();
    assert!(bounded(&survey(100).take(DIRECTORIES)));
}

#[test]
fn start_up_files_are_covered_where_they_are_or_would_run() {
    let host = Host::new();
    fs::create_dir_all(host.path().join("home/ann")).unwrap();
    fs::create_dir(host.path().join("dotfiles")).unwrap();
    fs::write(host.path().join("dotfiles/.bashrc"), "").unwrap();
    let homes = [host.path().join("home/ann")];
    let plan = plan_mounts(&[host.mount("")], &[], &homes, &[], &|_| true);
    for entry in in_place(Place::Home).filter(|entry| entry.absent != Absent::Nothing) {
        let name = entry.name;
        assert_eq!(with(&plan, &format!("home/ann/{name}")), Some(&With::ReadOnly), "{name}");
        let there = (name == ".bashrc").then_some(&With::ReadOnly);
        assert_eq!(with(&plan, &format!("dotfiles/{name}")), there, "{name}");
    }
}

#[test]
fn where_programs_are_looked_for_is_read_only_and_stays_and_other_directories_of_that_name_are_not() {
    let host = Host::new();
    for name in ["home/bin", "work/.venv/bin", "work/vendor/bin", "work/bin", "dotfiles/bin"] {
        fs::create_dir_all(host.path().join(name)).unwrap();
    }
    host.repository("work/.venv/src");
    let homes = [host.path().join("home")];
    let programs = [host.path().join("work/.venv/bin"), host.path().join("nowhere"), "bin".into(), "/usr/bin".into()];
    let plan = plan_mounts(&[host.mount("")], &[], &homes, &programs, &|_| true);
    for (path, expected) in [
        ("home/bin", Some(&With::ReadOnly)),
        ("work", Some(&With::Itself)),
        ("work/.venv", Some(&With::Itself)),
        ("work/.venv/bin", Some(&With::ReadOnly)),
        ("work/.venv/src/.git/config", Some(&With::ReadOnly)),
        ("work/bin", None),
        ("work/vendor/bin", None),
    ] {
        assert_eq!(with(&plan, path), expected, "{path}");
    }
    // Where somebody works in it, a relative one is there, and a home's may be a link.
    symlink(host.path().join("dotfiles/bin"), homes[0].join("link")).unwrap();
    let programs = ["bin".into(), homes[0].join("link")];
    assert_eq!(with(&plan_mounts(&[host.mount("work")], &[], &[], &programs, &|_| true), "bin"), Some(&With::ReadOnly));
    assert_eq!(
        with(&plan_mounts(&[host.mount("dotfiles")], &[], &[], &programs, &|_| true), "bin"),
        Some(&With::ReadOnly)
    );
}

#[test]
fn what_packages_bring_along_is_not_covered_but_repositories_are() {
    let host = Host::new();
    host.repository("node_modules/linked");
    for name in ["node_modules/package", "node_modules/a/node_modules/b", "packages/own"] {
        fs::create_dir_all(host.path().join(name).join(".vscode")).unwrap();
    }
    let plan = host.plan("", &[]);
    for (path, expected) in [
        ("node_modules/package/.vscode", None),
        ("node_modules/a/node_modules/b/.vscode", None),
        ("packages/own/.vscode", Some(&With::ReadOnly)),
        ("node_modules/linked/.git/config", Some(&With::ReadOnly)),
        (".vscode", Some(&With::ReadOnly)),
    ] {
        assert_eq!(with(&plan, path), expected, "{path}");
    }
}

#[test]
fn what_a_config_names_is_read_only_too_and_so_is_what_a_link_leads_to() {
    let host = Host::new();
    host.repository("");
    let config =
        "[core]\n\thooksPath = scripts\n\tfsmonitor = ./watch\n[include]\n\tpath = ../more\n[core]\n\tpager = .\n";
    fs::write(host.path().join(".git/config"), config).unwrap();
    fs::create_dir(host.path().join("scripts")).unwrap();
    for name in ["watch", "more", "real"] {
        fs::write(host.path().join(name), "").unwrap();
    }
    symlink("real", host.path().join(".envrc")).unwrap();
    symlink("/etc/passwd", host.path().join(".mcp.json")).unwrap();
    let plan = host.plan("", &[]);
    for path in ["scripts", "watch", "more", ".envrc", "real", ".mcp.json"] {
        assert_eq!(with(&plan, path), Some(&With::ReadOnly), "{path}");
    }
    assert_eq!(with(&plan, ""), None);
}

#[test]
fn submodules_and_nested_repositories_are_found() {
    let host = Host::new();
    host.repository("sub");
    host.repository("top");
    host.repository("top/vendor/nested");
    host.git("top", &["submodule", "--quiet", "add", "--name", "a/b", &host.mount("sub").source, "lib"]);
    let plan = host.plan("top", &[]);
    for path in [".git/modules", ".git/modules/a", ".git/modules/a/b", "vendor/nested/.git"] {
        assert_eq!(with(&plan, path), Some(&With::Itself), "{path}");
    }
    for path in [".git/modules/a/b/config", ".git/modules/a/b/hooks", "vendor/nested/.git/config", "lib/.git"] {
        assert_eq!(with(&plan, path), Some(&With::ReadOnly), "{path}");
    }
    assert_eq!(with(&plan, "vendor"), None, "directories of the worktree can be renamed");
    assert_eq!(plan.warnings, Vec::<String>::new());
}

#[test]
fn a_linked_worktree_brings_its_repository_and_names_places_of_the_sandbox() {
    let host = Host::new();
    host.repository("main");
    host.git("main", &["worktree", "add", "-q", "../linked"]);
    host.git("main", &["worktree", "add", "-q", "../other"]);
    let plan = host.plan("linked", &[]);
    let repository = host.path().join("main/.git").display().to_string();
    assert_eq!(plan.planned.len(), 2);
    let MountSpec { source, target, read_only } = &plan.planned[1].spec;
    assert_eq!((source, target, *read_only), (&repository, &repository, false));
    assert_eq!(with(&plan, ".git"), Some(&With::ReadOnly), "it is right as it is");
    let covers: BTreeMap<&Path, &With> =
        plan.planned[1].covers.iter().map(|cover| (cover.path.as_path(), &cover.with)).collect();
    assert_eq!(covers[Path::new("config")], &With::ReadOnly);
    assert_eq!(covers[Path::new("worktrees/linked")], &With::Itself);
    assert_eq!(covers[Path::new("worktrees/linked/gitdir")], &With::Text("/workspace/.git\n".into()));
    let kept = format!("{repository}/worktrees/other/gitdir\n");
    assert_eq!(covers[Path::new("worktrees/other/gitdir")], &With::Text(kept));
}

#[test]
fn a_worktree_that_was_made_in_a_sandbox_works_in_the_next_one_as_it_is() {
    let host = Host::new();
    host.repository("");
    host.git("", &["worktree", "add", "-q", "in/a"]);
    for (path, inside) in
        [("in/a/.git", "gitdir: /workspace/.git/worktrees/a\n"), (".git/worktrees/a/gitdir", "/workspace/in/a/.git\n")]
    {
        fs::write(host.path().join(path), inside).unwrap();
    }
    let plan = host.plan("", &[]);
    assert_eq!(plan.warnings, Vec::<String>::new());
    for path in ["in/a/.git", ".git/worktrees/a/gitdir"] {
        assert_eq!(with(&plan, path), Some(&With::ReadOnly), "{path}");
    }
}

#[test]
fn a_submodule_alone_brings_its_git_directory() {
    let host = Host::new();
    host.repository("sub");
    host.repository("top");
    host.git("top", &["submodule", "--quiet", "add", &host.mount("sub").source, "lib"]);
    let plan = host.plan("top/lib", &[]);
    let directory = host.path().join("top/.git/modules/lib");
    assert_eq!(plan.planned[1].spec.source, directory.display().to_string());
    assert_eq!(with(&plan, ".git"), Some(&With::Text(format!("gitdir: {}\n", directory.display()))));
    let config = plan.planned[1].covers.iter().find(|cover| cover.path == Path::new("config")).unwrap();
    let With::Text(text) = &config.with else { panic!("{config:?}") };
    assert!(text.ends_with("[core]\n\tworktree = \"/workspace\"\n"), "{text}");
}

#[test]
fn a_file_written_inside_shows_no_other_directory_of_the_host() {
    let host = Host::new();
    host.repository("main");
    fs::create_dir(host.path().join("evil")).unwrap();
    let wanted = host.path().join("main/.git");
    // Which names it in turn, but belongs to no repository; what it is in is the host's.
    let made = host.path().join("worktrees/made");
    fs::create_dir_all(&made).unwrap();
    fs::write(made.join("gitdir"), format!("{}\n", host.path().join("evil/.git").display())).unwrap();
    let named = |directory: &Path| format!("gitdir: {}\n", directory.display());
    for text in [named(&wanted), named(&made), "gitdir: /root\n".into(), "gitdir: /nonexistent\n".into()] {
        fs::write(host.path().join("evil/.git"), text).unwrap();
        let plan = host.plan("evil", &[]);
        assert_eq!((plan.planned.len(), plan.warnings.len()), (1, 1), "{:?}", plan.warnings);
        assert!(plan.warnings[0].starts_with("git does not work in `"), "{:?}", plan.warnings);
    }
}

#[test]
fn a_repository_that_borrows_objects_says_what_to_mount() {
    let host = Host::new();
    host.repository("lender");
    host.git("", &["clone", "-q", "--shared", "lender", "borrower"]);
    let objects = host.path().join("lender/.git/objects").display().to_string();
    let warnings = host.plan("borrower", &[]).warnings;
    assert!(warnings.len() == 1 && warnings[0].contains(&format!("--mount {objects}:{objects}:ro")), "{warnings:?}");
    let lender = MountSpec { source: objects.clone(), target: objects, read_only: true };
    assert_eq!(plan_mounts(&[host.mount("borrower"), lender], &[], &[], &[], &|_| true).warnings, [] as [&str; 0]);
}

#[test]
fn what_is_unprotected_has_no_cover_and_no_placeholder() {
    let host = Host::new();
    host.repository("");
    let plan = host.plan("", &[".git/hooks", "/workspace/.vscode/"]);
    assert_eq!((with(&plan, ".git/hooks"), with(&plan, ".vscode")), (None, None));
    assert_eq!(with(&plan, ".git/config"), Some(&With::ReadOnly));
    assert!(!plan.placeholders.iter().any(|placeholder| placeholder.path == Path::new(".vscode")));
    let all = host.plan("", &["all"]);
    assert_eq!((&all.planned[0].covers, &all.placeholders), (&vec![], &vec![]));
    let mut read_only = host.mount("");
    read_only.read_only = true;
    let plan = plan_mounts(&[read_only], &[], &[], &[], &|_| true);
    assert_eq!((&plan.planned[0].covers, &plan.placeholders), (&vec![], &vec![]));
}

#[test]
fn hostile_files_do_not_hold_up_or_lead_out() {
    let host = Host::new();
    host.repository("");
    fs::remove_file(host.path().join(".git/config")).unwrap();
    let pipe = host.path().join(".git/config");
    rustix::fs::mknodat(rustix::fs::CWD, pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    symlink("/", host.path().join("loop")).unwrap();
    let plan = host.plan("", &[]);
    assert_eq!(with(&plan, ".git/config"), Some(&With::ReadOnly));
}

#[test]
fn placeholders_come_and_go_and_what_others_put_there_stays() {
    let host = Host::new();
    host.repository("");
    let before = listing(&host.path());
    let plan = host.plan("", &[]);
    set_placeholders(&plan.placeholders).unwrap();
    assert!(listing(&host.path()).len() > before.len());
    // Git shows none of them, and works.
    let status = Command::new("git").args(["status", "--porcelain"]).current_dir(host.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&status.stdout), "", "{}", String::from_utf8_lossy(&status.stderr));
    assert!(status.status.success());
    // A second sandbox holds the same, and making them again changes nothing.
    assert_eq!(host.plan("", &[]).placeholders.len(), plan.placeholders.len());
    set_placeholders(&plan.placeholders).unwrap();
    fs::write(host.path().join(".vscode/tasks.json"), "mine").unwrap();
    fs::write(host.path().join(".git/config.worktree"), "mine").unwrap();
    remove_placeholders(plan.placeholders.iter().rev());
    let mut after = before;
    after.extend([".vscode", ".vscode/tasks.json", ".git/config.worktree"].map(PathBuf::from));
    after.sort();
    assert_eq!(listing(&host.path()), after);
}

fn listing(path: &Path) -> Vec<PathBuf> {
    let output = Command::new("find").arg(".").current_dir(path).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let mut found: Vec<PathBuf> = lines.lines().filter_map(|line| line.strip_prefix("./")).map(PathBuf::from).collect();
    found.sort();
    found
}
