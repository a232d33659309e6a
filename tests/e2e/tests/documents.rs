//! What the documents name is there.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, path::Path};

/// All the source of tests, as one text.
fn sources(directory: &Path, into: &mut String) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            if !entry.file_name().to_str().is_some_and(|name| name.starts_with('.') || name == "target") {
                sources(&path, into);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
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
                let found: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
                assert!(!found.is_empty(), "a promise without a test: {line}");
                names.extend(found);
            }
        } else {
            in_table = false;
        }
    }
    names
}

#[test]
fn every_promise_of_the_threat_model_names_a_test_that_exists() {
    let root = wharf_e2e::file("../..");
    let mut all = String::new();
    for directory in ["crates", "tests"] {
        sources(&root.join(directory), &mut all);
    }
    let page = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let names = named_tests(&page);
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        let exists = if name.contains('/') { root.join(name).exists() } else { all.contains(&format!("fn {name}()")) };
        assert!(exists, "SECURITY.md names a test that does not exist: {name}");
    }
}

#[test]
fn a_promise_whose_test_is_missing_is_found() {
    let page = "| promise | attacked by |\n|---|---|\n| a | `b`, `c` |\n\n| x | `y` |\n";
    assert_eq!(named_tests(page), ["b", "c"]);
    assert!(
        std::panic::catch_unwind(|| named_tests("| promise | attacked by |\n|---|---|\n| a | by eye |\n")).is_err()
    );
}
