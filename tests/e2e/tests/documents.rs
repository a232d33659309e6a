//! What the documents name is there, and the tests among it are tests that run.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    wharf_e2e::file("../..")
}

/// One test that cargo builds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Test {
    package: String,
    /// The integration test that it is in; `None` for those beside the code.
    target: Option<String>,
    /// With its modules, as cargo prints it.
    name: String,
}

impl Test {
    fn is_called(&self, name: &str) -> bool {
        self.name.rsplit("::").next() == Some(name)
    }
}

/// The tests of all packages. A file that no module names is in no build, so its tests are none.
fn tests() -> Vec<Test> {
    let mut found = Vec::new();
    for package in ["crates", "tests"].iter().flat_map(|name| directories(&root().join(name))) {
        let name = package_of(&package);
        for library in ["lib.rs", "main.rs"] {
            let file = package.join("src").join(library);
            tests_from(&file, "", &mut |test| found.push(Test { package: name.clone(), target: None, name: test }));
        }
        for entry in fs::read_dir(package.join("tests")).into_iter().flatten().flatten() {
            let path = entry.path();
            let target = path.file_stem().unwrap().to_string_lossy().into_owned();
            let file = if path.is_dir() { path.join("main.rs") } else { path };
            tests_from(&file, "", &mut |test| {
                found.push(Test { package: name.clone(), target: Some(target.clone()), name: test });
            });
        }
    }
    found
}

/// The packages in a directory.
fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap().flatten().map(|entry| entry.path());
    entries.filter(|path| path.join("Cargo.toml").exists()).collect()
}

fn package_of(directory: &Path) -> String {
    let manifest = fs::read_to_string(directory.join("Cargo.toml")).unwrap();
    manifest.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"').to_owned()
}

/// The tests of a file and of the files that its modules are in.
fn tests_from(file: &Path, path: &str, found: &mut dyn FnMut(String)) {
    let Ok(text) = fs::read_to_string(file) else { return };
    for name in tests_in(&text) {
        found(format!("{path}{name}"));
    }
    let directory = file.parent().unwrap();
    let stem = file.file_stem().unwrap().to_str().unwrap();
    let is_root = path.is_empty() || stem == "mod";
    let below = if is_root { directory.to_owned() } else { directory.join(stem) };
    for name in modules_in(&text) {
        let (one, other) = (below.join(format!("{name}.rs")), below.join(name).join("mod.rs"));
        tests_from(if one.exists() { &one } else { &other }, &format!("{path}{name}::"), found);
    }
}

fn modules_in(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let name = line.strip_suffix(';')?;
        let (before, name) = name.rsplit_once("mod ")?;
        (before.is_empty() || before.starts_with("pub")).then_some(name)
    })
}

/// The functions with the attribute of a test, but for those that are not run unless asked for.
fn tests_in(text: &str) -> Vec<&str> {
    let (mut names, mut is_test, mut is_ignored) = (Vec::new(), false, false);
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.starts_with("#[ignore") {
            is_ignored = true;
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            let name = line.split_once("fn ").and_then(|(_, rest)| rest.split_once('('));
            names.extend(name.filter(|_| is_test && !is_ignored).map(|(name, _)| name));
            (is_test, is_ignored) = (false, false);
        }
    }
    names
}

/// What stands in backticks in the last column of a page's tables of promises.
fn named_tests(page: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut in_table = false;
    for line in page.lines() {
        if line.starts_with('|') {
            if line.starts_with("| promise | attacked by |") {
                in_table = true;
            } else if in_table && !line.starts_with("|---") {
                let last = line.trim_end_matches('|').rsplit('|').next().unwrap();
                let found = quoted(last);
                assert!(!found.is_empty(), "a promise without a test: {line}");
                names.extend(found);
            }
        } else {
            in_table = false;
        }
    }
    names
}

/// What stands in backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_promise_of_the_threat_model_names_a_test_that_runs() {
    let tests = tests();
    let page = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let names = named_tests(&page);
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let exists =
            if name.contains('/') { root().join(name).exists() } else { tests.iter().any(|test| test.is_called(name)) };
        assert!(exists, "SECURITY.md names a test that does not run: {name}");
    }
}

const PAGES: [&str; 5] = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "SPECIFICATION.md"];

/// A test that a command names no longer passes without having run.
#[test]
fn every_command_of_the_documents_that_runs_tests_runs_some() {
    let tests = tests();
    let mut commands = 0;
    for page in PAGES {
        let text = fs::read_to_string(root().join(page)).unwrap();
        for command in quoted(&text) {
            let words: Vec<&str> = command.split_whitespace().skip_while(|word| word.contains('=')).collect();
            if !words.starts_with(&["cargo", "test"]) {
                continue;
            }
            commands += 1;
            let after = |flag| words.iter().position(|word| *word == flag).map(|at| words[at + 1]);
            let (package, target) = (after("-p").unwrap(), after("--test"));
            let last = *words.last().unwrap();
            let filter = if last == package || Some(last) == target { "" } else { last };
            let runs = |test: &&Test| {
                test.package == package && target.is_none_or(|target| test.target.as_deref() == Some(target))
            };
            assert!(
                tests.iter().filter(runs).any(|test| test.name.contains(filter)),
                "{page}: `{command}` runs nothing"
            );
        }
    }
    assert!(commands > 8, "{commands}");
}

#[test]
fn every_file_that_the_documents_name_is_there() {
    let mut files = 0;
    for page in PAGES {
        let text = fs::read_to_string(root().join(page)).unwrap();
        for name in quoted(&text).into_iter().filter_map(|quoted| quoted.split_whitespace().next()) {
            if !["crates/", "tests/", "scripts/", "fuzz/"].iter().any(|top| name.starts_with(top)) {
                continue;
            }
            for name in alternatives(name) {
                files += 1;
                assert!(root().join(&name).exists(), "{page} names `{name}`");
            }
        }
    }
    assert!(files > 30, "{files}");
}

/// What a shell makes of `a{b,c}d`.
fn alternatives(name: &str) -> Vec<String> {
    let braces = name.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    let Some((before, (within, after))) = braces else { return vec![name.to_owned()] };
    within.split(',').map(|one| format!("{before}{one}{after}")).collect()
}

#[test]
fn a_promise_whose_test_is_missing_is_found() {
    let page = "| promise | attacked by |\n|---|---|\n| a | `b`, `c` |\n\n| x | `y` |\n";
    assert_eq!(named_tests(page), ["b", "c"]);
    assert!(
        std::panic::catch_unwind(|| named_tests("| promise | attacked by |\n|---|---|\n| a | by eye |\n")).is_err()
    );
}

#[test]
fn what_is_not_run_is_no_test() {
    let text = "#[test]\nfn runs() {}\n    #[tokio::test(start_paused = true)]\n    async fn waits() {}\nfn helps() {}\n\
                #[test]\n#[ignore = \"slow\"]\nfn rests() {}\n// #[test]\nfn out() {}\n/// Words.\n#[test]\n/// More.\n\
                #[cfg(unix)]\nfn also() {}\n";
    assert_eq!(tests_in(text), ["runs", "waits", "also"]);
    assert_eq!(
        modules_in("mod a;\npub(crate) mod b;\n// mod c;\nmod d {\nuse mod_e;\n").collect::<Vec<_>>(),
        ["a", "b"]
    );
    let tests = tests();
    let is_there = |package: &str, target: Option<&str>, name: &str| {
        let wanted = Test { package: package.to_owned(), target: target.map(str::to_owned), name: name.to_owned() };
        tests.contains(&wanted)
    };
    assert!(is_there("wharf-e2e", Some("documents"), "what_is_not_run_is_no_test"));
    assert!(is_there("wharf-e2e", Some("cli"), "escapes::a_fork_bomb_is_bounded"));
    assert!(is_there("wharf-runtime", None, "local::lock::one_holds_it_and_a_free_one_leaves_no_file"));
    assert_eq!(alternatives("a/{b,c}.rs"), ["a/b.rs", "a/c.rs"]);
}
