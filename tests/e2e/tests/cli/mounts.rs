//! What is mounted: what of it the host would run, whose its files are, and git in it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::{ORDINARY, Wharf};

/// Somebody who works on this machine, with a directory that is mounted.
struct Owner {
    wharf: Wharf,
    uid: u32,
    directory: tempfile::TempDir,
}

impl Owner {
    fn root() -> Self {
        Self::of(Wharf::new(), 0)
    }

    fn ordinary() -> Self {
        Self::of(Wharf::as_ordinary_user(), ORDINARY)
    }

    fn both() -> [Self; 2] {
        [Self::root(), Self::ordinary()]
    }

    fn of(wharf: Wharf, uid: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(directory.path(), Some(uid), Some(uid)).expect("run the tests as root");
        let owner = Self { wharf, uid, directory };
        owner.host("mkdir work home");
        owner
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn work(&self) -> String {
        self.path("work").display().to_string()
    }

    /// Runs a script on the host as the owner; gives what it printed.
    #[track_caller]
    fn host(&self, script: &str) -> String {
        let output = self.host_output("", script);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn host_output(&self, directory: &str, script: &str) -> Output {
        let mut command = Command::new("setpriv");
        let id = self.uid.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "bash", "-c", script]);
        self.set_up(command.current_dir(self.path(directory))).output().unwrap()
    }

    fn set_up<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("HOME", self.path("home"))
            .env("MARK", self.path("mark"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_AUTHOR_NAME", "n")
            .env("GIT_AUTHOR_EMAIL", "e")
            .env("GIT_COMMITTER_NAME", "n")
            .env("GIT_COMMITTER_EMAIL", "e")
    }

    /// Runs a script in a throw-away sandbox with a mount, in it.
    fn inside(&self, mount: &str, flags: &[&str], script: &str) -> Output {
        let mount =
            if Path::new(mount).is_absolute() { mount.to_owned() } else { self.path(mount).display().to_string() };
        let identity = ["GIT_AUTHOR_NAME=n", "GIT_AUTHOR_EMAIL=e", "GIT_COMMITTER_NAME=n", "GIT_COMMITTER_EMAIL=e"];
        let mark = format!("MARK={}", self.path("mark").display());
        let mut arguments = vec!["run", "--mount", &mount, "-e", &mark];
        for variable in &identity {
            arguments.extend(["-e", variable]);
        }
        arguments.extend(flags);
        arguments.extend(["--", "bash", "-c", script]);
        let mut command = self.wharf.command(&arguments);
        command.env("HOME", self.path("home")).output().unwrap()
    }

    #[track_caller]
    fn works_inside(&self, mount: &str, flags: &[&str], script: &str) -> String {
        let output = self.inside(mount, flags, script);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{script}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Whether what the attempt does inside makes the host run something, at the owner's next command there.
    fn runs_on_the_host(&self, attempt: &Attempt, flags: &[&str]) -> bool {
        self.host("chmod -R u+w . && rm -rf work home mark && mkdir work home && git init -q -b main work");
        self.host(&format!("cd work && git commit -q --allow-empty -m first && {}", attempt.before));
        self.inside(attempt.mount, flags, attempt.inside);
        self.host_output(attempt.at, attempt.then);
        self.path("mark").exists()
    }
}

/// Something that is written inside, and the command of the owner that makes it run.
struct Attempt {
    what: &'static str,
    /// On the host, in the repository.
    before: &'static str,
    mount: &'static str,
    inside: &'static str,
    /// Where the owner gives the command.
    at: &'static str,
    then: &'static str,
}

const IN_THE_REPOSITORY: Attempt =
    Attempt { what: "", before: "true", mount: "work", inside: "", at: "work", then: "git status" };
const IN_THE_HOME: Attempt = Attempt { mount: "home", at: "home", then: "bash -i -c true", ..IN_THE_REPOSITORY };

const BARE: &str = "echo 'ref: refs/heads/main' >HEAD; mkdir -p objects refs/heads; printf '[core]\\nbare = true\\n[alias]\\n\
                    look = !touch %s\\n' $MARK >config";

const ATTEMPTS: &[Attempt] = &[
    Attempt { what: "config", inside: "git config core.fsmonitor \"touch $MARK; false\"", ..IN_THE_REPOSITORY },
    Attempt {
        what: "config in another .git",
        inside: "mv .git old; cp -r old .git; git config core.fsmonitor \"touch $MARK; false\"",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "config by a hard link",
        inside: "ln .git/config link && printf '[core]\\nfsmonitor = \"touch %s; false\"\\n' $MARK >>link",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "hooks",
        inside: "printf '#!/bin/sh\\ntouch %s' $MARK >.git/hooks/post-checkout; chmod +x .git/hooks/post-checkout",
        then: "git checkout -q -b next",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "hooks that are not there",
        before: "rm -r .git/hooks",
        inside: "mkdir .git/hooks; printf '#!/bin/sh\\ntouch %s' $MARK >.git/hooks/post-checkout; chmod +x \
                 .git/hooks/post-checkout",
        then: "git checkout -q -b next",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "commondir",
        inside: "cp -r .git evil; printf '[core]\\nfsmonitor = \"touch %s; false\"\\n' $MARK >>evil/config; echo \
                 ../evil >.git/commondir",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "config.worktree",
        before: "git config extensions.worktreeConfig true",
        inside: "printf '[core]\\nfsmonitor = \"touch %s; false\"\\n' $MARK >.git/config.worktree",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "the hooks that config names",
        before: "mkdir tools; touch tools/post-checkout; git config core.hooksPath tools",
        inside: "rm -f tools/post-checkout; mv tools t; mkdir -p tools; printf '#!/bin/sh\\ntouch %s' $MARK \
                 >tools/post-checkout; chmod +x tools/post-checkout",
        then: "git checkout -q -b next",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "the config that config includes",
        before: "touch more; git config include.path ../more",
        inside: "printf '[core]\\nfsmonitor = \"touch %s; false\"\\n' $MARK >more",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a nested repository's config",
        before: "git init -q a/nested",
        inside: "cd a/nested && git config core.fsmonitor \"touch $MARK; false\"",
        at: "work/a/nested",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a submodule's config",
        before: "git init -q ../lib && git -C ../lib commit -q --allow-empty -m first && git -c \
                 protocol.file.allow=always submodule --quiet add $PWD/../lib lib",
        inside: "cd lib && git config core.fsmonitor \"touch $MARK; false\"",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a submodule's git directory in the place of another",
        before: "git init -q ../lib && git -C ../lib commit -q --allow-empty -m first && git -c \
                 protocol.file.allow=always submodule --quiet add $PWD/../lib lib",
        inside: "mv .git/modules old; cp -r old .git/modules; cd lib && git config core.fsmonitor \"touch $MARK; false\"",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "the file .git of a submodule",
        before: "git init -q ../lib && git -C ../lib commit -q --allow-empty -m first && git -c \
                 protocol.file.allow=always submodule --quiet add $PWD/../lib lib",
        inside: "git init -q lib2; git -C lib2 config core.fsmonitor \"touch $MARK; false\"; rm -f lib/.git; mv lib2/.git \
                 lib/.git",
        at: "work/lib",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a linked worktree's commondir",
        before: "git worktree add -q ../linked",
        inside: "cp -r .git evil; printf '[core]\\nfsmonitor = \"touch %s; false\"\\n' $MARK >>evil/config; echo \
                 ../../../evil >.git/worktrees/linked/commondir",
        at: "linked",
        then: "git status; cd ..; rm -rf linked",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a linked worktree's git directory in the place of another",
        before: "git worktree add -q ../linked",
        inside: "cp -r .git evil; printf '[core]\\nfsmonitor = \"touch %s; false\"\\n' $MARK >>evil/config; mv \
                 .git/worktrees old; cp -r old .git/worktrees; echo ../../../evil >.git/worktrees/linked/commondir",
        at: "linked",
        then: "git status; cd ..; rm -rf linked",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a repository where there is none",
        before: "rm -rf .git",
        inside: "git init -q; git config core.fsmonitor \"touch $MARK; false\"",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a bare repository where there is none",
        before: "rm -rf .git",
        inside: "git init -q --bare .; git config core.bare false; git config core.worktree .; git config \
                 core.fsmonitor \"touch $MARK; false\"",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a bare repository around somebody's objects",
        before: "rm -rf .git; mkdir objects; touch objects/file",
        inside: BARE,
        then: "git look; git status",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a bare repository around somebody's empty objects and refs",
        before: "rm -rf .git; mkdir objects refs",
        inside: BARE,
        then: "git look; git status",
        ..IN_THE_REPOSITORY
    },
    Attempt {
        what: "a mounted git directory's config",
        mount: "work/.git",
        inside: "git config -f config core.fsmonitor \"touch $MARK; false\"",
        ..IN_THE_REPOSITORY
    },
    Attempt { what: ".bashrc", inside: "echo \"touch $MARK\" >.bashrc", ..IN_THE_HOME },
    Attempt {
        what: ".bashrc that is there",
        before: "touch ../home/.bashrc",
        inside: "echo \"touch $MARK\" >.bashrc",
        ..IN_THE_HOME
    },
    Attempt {
        what: ".bashrc that is a link",
        before: "touch ../home/real; ln -s real ../home/.bashrc",
        inside: "echo \"touch $MARK\" >real; mv .bashrc old; echo \"touch $MARK\" >.bashrc",
        ..IN_THE_HOME
    },
    Attempt { what: ".profile", inside: "echo \"touch $MARK\" >.profile", then: "sh -l -c true", ..IN_THE_HOME },
    Attempt {
        what: ".bash_profile",
        inside: "echo \"touch $MARK\" >.bash_profile",
        then: "bash -l -c true",
        ..IN_THE_HOME
    },
    Attempt {
        what: ".bash_login",
        inside: "echo \"touch $MARK\" >.bash_login",
        then: "bash -l -c true",
        ..IN_THE_HOME
    },
    Attempt {
        what: ".bash_logout",
        inside: "echo \"touch $MARK\" >.bash_logout",
        then: "bash -l -c exit",
        ..IN_THE_HOME
    },
    Attempt {
        what: ".gitconfig",
        inside: "git config -f .gitconfig core.fsmonitor \"touch $MARK; false\"",
        then: "cd ../work; git status",
        ..IN_THE_HOME
    },
    Attempt {
        what: ".config/git/config",
        inside: "mkdir -p .config/git; git config -f .config/git/config core.fsmonitor \"touch $MARK; false\"",
        then: "cd ../work; git status",
        ..IN_THE_HOME
    },
    Attempt {
        what: ".local/bin",
        before: "mkdir -p ../home/.local/bin",
        inside: "printf '#!/bin/sh\\ntouch %s' $MARK >.local/bin/ls; chmod +x .local/bin/ls",
        then: "PATH=$HOME/.local/bin:$PATH; ls",
        ..IN_THE_HOME
    },
];

#[test]
fn what_is_written_inside_runs_on_the_host_only_if_it_is_unprotected() {
    for owner in Owner::both() {
        for attempt in ATTEMPTS {
            let what = attempt.what;
            assert!(owner.runs_on_the_host(attempt, &["--unprotect", "all"]), "{what} does not run at all");
            assert!(!owner.runs_on_the_host(attempt, &[]), "{what} runs as {}", owner.uid);
        }
    }
}

#[test]
fn a_directory_of_programs_can_be_written_unless_this_machine_looks_for_them_there() {
    let owner = Owner::root();
    owner.host("mkdir -p work/bin work/vendor/bin work/.venv/bin");
    let path = format!("{}:{}", owner.path("work/.venv/bin").display(), std::env::var("PATH").unwrap());
    let script = "touch bin/x && rm -r vendor && ! touch .venv/bin/x && ! mv .venv other";
    let mut command = owner.wharf.command(&["run", "--mount", &owner.work(), "--", "sh", "-c", script]);
    let output = command.env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(owner.host("cd work && ls -A . bin"), ".:\n.venv\nbin\n\nbin:\nx\n");
}

#[test]
fn a_mount_within_another_is_seen_in_whatever_order_they_are_given() {
    let owner = Owner::root();
    owner.host("mkdir -p work/sub other && touch other/file");
    let (work, other) = (owner.work(), format!("{}:/workspace/sub", owner.path("other").display()));
    for mounts in [["--mount", &work, "--mount", &other], ["--mount", &other, "--mount", &work]] {
        owner.wharf.check(&[&["run"], &mounts[..], &["--", "ls", "sub/file"]].concat(), 0, "sub/file\n");
    }
    let output = owner.wharf.run(&["run", "--mount", &work, "--mount", "/:/workspace", "--", "true"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && error.contains("another mount is there"), "{error}");
}

#[test]
fn what_is_made_inside_takes_no_wall_from_a_later_start() {
    for owner in Owner::both() {
        owner.host("mkdir -p work/x/sub other");
        let other = format!("{}:/workspace/x/sub", owner.path("other").display());
        let (work, mounted) = (owner.work(), ["--isolation", "best-effort", "--mount", &other, "--mount"]);
        owner.wharf.check(&[&["create", "box"], &mounted[..], &[&work]].concat(), 0, "box\n");
        let script = "mv x y && ln -s /nowhere x";
        owner.wharf.check(&["exec", "box", "--", "sh", "-c", script], 0, "");
        owner.wharf.check(&["suspend", "box"], 0, "box\n");
        let again = [&["run"], &mounted[..], &[&work, "--", "true"]].concat();
        for refused in [&["resume", "box"][..], &again] {
            let output = owner.wharf.run(refused);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(125), "{refused:?}: {said}");
            assert!(said.contains("`mount at /workspace/x/sub`: a link in the way leads nowhere"), "{said}");
        }
        owner.host("rm work/x && mv work/y work/x");
        owner.wharf.check(&["resume", "box"], 0, "box\n");
    }
}

#[test]
fn what_is_made_inside_under_any_name_keeps_no_sandbox_from_starting() {
    let owner = Owner::root();
    owner.wharf.check(&["create", "box", "--mount", &owner.work()], 0, "box\n");
    let make = "name=$(printf 'caf\\351') && mkdir $name && git init -q $name";
    owner.wharf.check(&["exec", "box", "--", "sh", "-c", make], 0, "");
    owner.wharf.check(&["suspend", "box"], 0, "box\n");
    owner.wharf.check(&["resume", "box"], 0, "box\n");
    let output = owner.wharf.run(&["exec", "box", "--", "sh", "-c", "echo x | tee -a caf*/.git/config"]);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(error.contains("Read-only file system"), "{error}");
}

#[test]
fn what_editors_and_agents_run_cannot_be_written_there_or_not_and_nothing_of_it_is_left() {
    let names = [
        ".husky",
        ".githooks",
        ".pre-commit-config.yaml",
        "lefthook.yml",
        ".lefthook.yml",
        "lefthook-local.yml",
        ".lefthook-local.yml",
        ".lefthook",
        ".overcommit.yml",
        ".envrc",
        ".mise.toml",
        "mise.toml",
        ".exrc",
        ".vimrc",
        ".gvimrc",
        ".nvimrc",
        ".nvim.lua",
        ".dir-locals.el",
        ".dir-locals-2.el",
        ".helix",
        ".vscode",
        ".devcontainer",
        ".devcontainer.json",
        ".idea",
        ".zed",
        ".cursor",
        ".windsurf",
        ".kiro",
        ".roo",
        ".continue",
        ".claude",
        ".mcp.json",
        ".codex",
        ".gemini",
        ".qwen",
        ".opencode",
        "opencode.json",
        "opencode.jsonc",
    ];
    // These do nothing where they are not, until something else is written that is protected.
    let harmless = [
        ".githooks",
        ".pre-commit-config.yaml",
        "lefthook.yml",
        ".lefthook.yml",
        "lefthook-local.yml",
        ".lefthook-local.yml",
        ".lefthook",
        ".overcommit.yml",
        ".mise.toml",
        "mise.toml",
    ];
    for owner in Owner::both() {
        owner.host("git init -q work");
        for name in names {
            let script =
                format!("rm -rf {name} 2>/dev/null; mv {name} old 2>/dev/null; echo evil >{name} || mkdir {name}/x");
            if !harmless.contains(&name) {
                let output = owner.inside("work", &[], &script);
                assert!(!output.status.success(), "{name} can be made");
                assert!(!owner.path("work").join(name).exists(), "{name} stays on the host");
            }
            owner.host(&format!("echo mine >work/{name}"));
            assert!(!owner.inside("work", &[], &script).status.success(), "{name} can be written");
            assert_eq!(owner.host(&format!("cat work/{name}")), "mine\n", "{name}");
            owner.works_inside("work", &["--unprotect", name], &script);
            assert_eq!(owner.host(&format!("cat work/{name}")), "evil\n", "{name}");
            owner.host(&format!("rm work/{name}"));
        }
        assert_eq!(owner.host("cd work && find . -name .git -prune -o -print"), ".\n");
    }
}

#[test]
fn what_a_shell_a_login_or_a_program_reads_cannot_be_written_in_a_home_there_or_not() {
    // These do nothing where they are not.
    let harmless = [".local", ".cargo", "bin"];
    let read = [
        ".bashrc",
        ".bash_profile",
        ".bash_login",
        ".bash_logout",
        ".bash_aliases",
        ".profile",
        ".zshenv",
        ".zprofile",
        ".zshrc",
        ".zlogin",
        ".zlogout",
        ".kshrc",
        ".cshrc",
        ".tcshrc",
        ".login",
        ".inputrc",
        ".xprofile",
        ".xsessionrc",
        ".xsession",
        ".xinitrc",
        ".gitconfig",
        ".ssh",
        ".gnupg",
        ".tmux.conf",
        ".screenrc",
        ".vim",
        ".emacs",
        ".emacs.d",
        ".gdbinit",
        ".claude.json",
        ".config",
    ];
    let names = [&harmless[..], &read].concat();
    let script = format!(
        "for name in {}; do rm -rf $name; mv $name old; (echo evil >$name) || mkdir $name/x && echo $name; done 2>/dev/null",
        names.join(" ")
    );
    let lines = |names: &[&str]| names.iter().map(|name| format!("{name}\n")).collect::<String>();
    for owner in Owner::both() {
        let written = |flags: &[&str]| String::from_utf8(owner.inside("home", flags, &script).stdout).unwrap();
        assert_eq!(written(&[]), lines(&harmless));
        owner.host(&format!("cd home; rm -rf {0}; for name in {0}; do echo mine >$name; done", names.join(" ")));
        assert_eq!(written(&[]), "");
        assert_eq!(
            owner.host(&format!("cd home && cat {} | sort | uniq -c", names.join(" "))).trim(),
            format!("{} mine", names.len())
        );
        assert_eq!(written(&["--unprotect", "all"]), lines(&names));
    }
}

#[test]
fn git_works_in_a_mounted_repository() {
    for owner in Owner::both() {
        owner.host(
            "git init -q -b main work && cd work && git commit -q --allow-empty -m first && git clone -q . ../far",
        );
        owner.host("cd far && git checkout -q -b theirs && git commit -q --allow-empty -m theirs");
        owner.host("cp -r far work/far && cd work && echo far >.git/info/exclude && git remote add far /workspace/far");
        let script = "set -e; echo one >file; git add -A; git commit -q -m one; git checkout -q -b next; echo two >file
            git commit -q -a -m two; git fetch -q far; git merge -q -m merge far/theirs; git tag t; git stash list
            echo three >file; git stash -q; git stash pop -q; git gc -q; git worktree add -q /tmp/other -b other
            git worktree remove /tmp/other; git branch -q renamed; git add -A; git commit -q -m three
            git rebase -q main; echo four >file; git status --porcelain";
        assert_eq!(owner.works_inside("work", &[], script), " M file\n");
        let log = owner.host(
            "cd work && git fsck --strict >/dev/null && git checkout -q -f main && git log --format=%s && git status --porcelain",
        );
        assert_eq!(log, "one\nfirst\n");
        assert_eq!(owner.host("cd work && git show --format=%s -s renamed"), "merge\n");
        let left = owner.host("cd work/.git && ls commondir config.worktree 2>/dev/null; true");
        assert_eq!(left, "");
    }
}

#[test]
fn git_of_the_owner_and_of_the_sandbox_sees_and_removes_nothing_of_what_protects() {
    for owner in Owner::both() {
        owner.host("git init -q -b main work && mkdir work/part && touch work/part/file && cd work && git add -A && git commit -q -m first");
        let created = owner.wharf.run(&[
            "create",
            "box",
            "--mount",
            &format!("{}:/workspace", owner.path("work/part").display()),
        ]);
        assert!(created.status.success(), "{created:?}");
        for directory in ["work", "work/part"] {
            let seen = owner.host_output(
                directory,
                "git status --porcelain; git log --format=%s HEAD; git diff HEAD; git clean -nd; git clean -q -fd; git stash -u",
            );
            let printed = [seen.stdout.as_slice(), &seen.stderr].concat();
            assert_eq!(String::from_utf8_lossy(&printed), "first\nNo local changes to save\n", "{directory}");
        }
        let bare = format!(
            "mkdir .vscode/x; echo 'ref: refs/heads/main' >HEAD; mkdir objects refs; echo ../../work/.git >commondir
            printf '[core]\\nbare = false\\nworktree = .\\nfsmonitor = \"touch %s; false\"\\n' {} >config
            ls -d HEAD commondir config file objects refs",
            owner.path("mark").display()
        );
        let made = owner.wharf.run(&["exec", "box", "--", "bash", "-c", &bare]);
        assert_eq!(String::from_utf8_lossy(&made.stdout), "HEAD\ncommondir\nconfig\nfile\nobjects\nrefs\n");
        owner.host_output("work/part", "git status");
        let removed = owner.wharf.run(&["rm", "box"]);
        assert!(removed.status.success(), "{removed:?}");
        owner.host_output("work/part", "git status");
        assert!(!owner.path("mark").exists());
        assert_eq!(owner.host("ls -A work/part"), "HEAD\nconfig\nfile\nrefs\n");
    }
}

#[test]
fn where_a_placeholder_stands_for_a_repository_go_does_not_ask_git_of_it() {
    let owner = Owner::ordinary();
    let flags = "echo $GOFLAGS";
    assert_eq!(owner.works_inside("work", &[], flags), "-buildvcs=false\n");
    assert_eq!(owner.works_inside("work", &["-e", "GOFLAGS=-v"], flags), "-v\n");
    owner.host("git init -q work");
    assert_eq!(owner.works_inside("work", &[], flags), "\n");
}

#[test]
fn a_sandbox_cleans_and_stashes_a_mounted_repository() {
    for owner in Owner::both() {
        owner.host("git init -q -b main work && cd work && git commit -q --allow-empty -m first");
        let script = "set -e; echo one >file; git clean -q -fd; test ! -e file
            echo two >file; git stash -q -u; test ! -e file; git stash pop -q >/dev/null; cat file";
        assert_eq!(owner.works_inside("work", &[], script), "two\n");
    }
}

#[test]
fn a_linked_worktree_and_a_submodule_work_alone() {
    for owner in Owner::both() {
        owner.host("git init -q -b main work && cd work && git commit -q --allow-empty -m first && git worktree add -q ../linked");
        owner.host("git init -q -b main lib && git -C lib commit -q --allow-empty -m first");
        owner.host("cd work && git -c protocol.file.allow=always submodule --quiet add $PWD/../lib lib && git commit -q -m lib");
        let script = "set -e; echo a >file; git add -A; git commit -q -m inside; git worktree prune; git gc -q
            mkdir -p deep; cd deep; echo b >b; git add b; git commit -q -m deep; git status --porcelain";
        for place in ["linked", "work/lib"] {
            assert_eq!(owner.works_inside(place, &[], script), "", "{place}");
            let log = owner.host(&format!("cd {place} && git status --porcelain && git log --format=%s"));
            assert_eq!(log, "deep\ninside\nfirst\n", "{place}");
        }
        assert_eq!(owner.host("cd work && git worktree list | wc -l"), "2\n");
        assert_eq!(owner.host("cd work && git status --porcelain"), " M lib\n");
        // The repository that is shown with it is protected as it is.
        let script = "git config core.fsmonitor true; echo x >$(git rev-parse --git-common-dir)/hooks/post-checkout";
        assert!(!owner.inside("linked", &[], script).status.success());
        let script = "set -e; git -C lib status --porcelain; git status --porcelain; git commit -q -a -m moved";
        assert_eq!(owner.works_inside("work", &[], script), " M lib\n");
    }
}

#[test]
fn a_worktree_whose_repository_does_not_name_it_says_what_to_mount() {
    let owner = Owner::ordinary();
    owner.host("git init -q main && echo \"gitdir: $PWD/main/.git\" >work/.git");
    let output = owner.inside("work", &[], "git status");
    let error = String::from_utf8_lossy(&output.stderr);
    let wanted = format!("--mount {0}:{0}", owner.path("main/.git").display());
    assert!(error.contains(&wanted), "{error}");
}

#[test]
fn what_is_protected_is_named_by_inspect_and_two_sandboxes_share_a_mount() {
    let owner = Owner::ordinary();
    owner.host("git init -q work");
    for name in ["a", "b"] {
        owner.wharf.check(&["create", name, "--mount", &owner.work()], 0, &format!("{name}\n"));
    }
    let shown = owner.wharf.run(&["inspect", "a"]).stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).unwrap();
    let protected = shown["protected"].as_array().unwrap();
    for path in ["/workspace/.git/config", "/workspace/.git/hooks", "/workspace/.vscode"] {
        assert!(protected.iter().any(|named| named == path), "{protected:?}");
    }
    assert_eq!(owner.host("git -C work status --porcelain"), "");
    owner.wharf.check(&["rm", "a"], 0, "a\n");
    let try_it = ["exec", "b", "--", "sh", "-c", "mkdir -p .vscode && touch .vscode/tasks.json"];
    assert!(!owner.wharf.run(&try_it).status.success());
    owner.wharf.check(&["suspend", "b"], 0, "b\n");
    assert!(!owner.path("work/.vscode").exists());
    owner.wharf.check(&["resume", "b"], 0, "b\n");
    assert!(!owner.wharf.run(&try_it).status.success());
    owner.wharf.check(&["rm", "b"], 0, "b\n");
    assert!(!owner.path("work/.vscode").exists());
}

#[test]
fn commands_run_as_the_user_that_was_asked_for_with_a_name_and_a_home() {
    let script =
        "id -un; id -u; id -g; cd && pwd && touch kept && stat -c %U . kept; getent passwd $(id -u) | cut -d: -f1";
    let as_user = |flags: &[&str]| {
        let owner = Owner::root();
        owner.works_inside("work", flags, script)
    };
    assert_eq!(as_user(&["-u", "agent-x"]).lines().next(), Some("agent-x"));
    assert_eq!(as_user(&["-u", "4321:5"]), "user4321\n4321\n5\n/home/user4321\nuser4321\nuser4321\nuser4321\n");
    assert_eq!(
        as_user(&["-u", "70000"]),
        "user70000\n70000\n70000\n/home/user70000\nuser70000\nuser70000\nuser70000\n"
    );
    assert_eq!(as_user(&[]), "root\n0\n0\n/root\nroot\nroot\nroot\n");
    let owner = Owner::ordinary();
    let itself = owner.works_inside("work", &[], script);
    assert_eq!(itself, format!("user{0}\n{0}\n{0}\n/home/user{0}\nuser{0}\nuser{0}\nuser{0}\n", ORDINARY));
    assert_eq!(owner.works_inside("work", &["-u", "root"], script), "root\n0\n0\n/root\nroot\nroot\nroot\n");
    let output = owner.inside("work", &["-u", "1234"], "true");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("`--user`") && error.contains("maps one id"), "{error}");
}

#[test]
fn an_exec_may_have_another_user_or_says_why_not() {
    let owner = Owner::root();
    owner.wharf.check(&["create", "a", "-u", "4321", "--mount", &owner.work()], 0, "a\n");
    owner.wharf.check(&["exec", "a", "--", "id", "-u"], 0, "4321\n");
    owner.wharf.check(&["exec", "-u", "root", "a", "--", "id", "-u"], 0, "0\n");
    owner.wharf.check(&["exec", "-u", "1000", "a", "--", "id", "-u"], 0, "1000\n");
    owner.wharf.check(&["suspend", "a"], 0, "a\n");
    owner.wharf.check(&["resume", "a"], 0, "a\n");
    owner.wharf.check(&["exec", "a", "--", "id", "-un"], 0, "user4321\n");
    let refused = |owner: &Owner, arguments: &[&str]| {
        let output = owner.wharf.run(arguments);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = refused(&owner, &["exec", "-u", "99999", "a", "--", "id"]);
    assert!(error.contains("its namespace has only 0 to 65535"), "{error}");
    let owner = Owner::ordinary();
    owner.wharf.check(&["create", "a"], 0, "a\n");
    owner.wharf.check(&["exec", "-u", &ORDINARY.to_string(), "a", "--", "id", "-u"], 0, &format!("{ORDINARY}\n"));
    for user in ["1000", "root"] {
        let error = refused(&owner, &["exec", "-u", user, "a", "--", "id"]);
        assert!(error.contains(&format!("its namespace has only {ORDINARY}")), "{error}");
    }
}

#[test]
fn files_in_a_mount_are_the_owners_and_those_of_other_users_inside_are_nobodys() {
    let owner = Owner::of(Wharf::new(), ORDINARY);
    owner.wharf.check(&["create", "a", "-u", "4321", "--mount", &owner.work()], 0, "a\n");
    let exec = |user: &str, script: &str| {
        let output = owner.wharf.run(&["exec", "-u", user, "a", "--", "sh", "-c", script]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{script}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    exec("4321", "touch mine && mkdir open && chmod 1777 open");
    exec("5555", "touch open/other");
    exec("root", "touch roots given && chown 33:44 given && chown 5555 open/other && install -d -o 5555 -g 7 theirs");
    assert_eq!(
        exec("4321", "stat -c '%n %u %g' mine given open/other"),
        "mine 4321 4321\ngiven 33 44\nopen/other 5555 0\n"
    );
    let of = |name: &str| {
        let metadata = fs::metadata(owner.path("work").join(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    assert_eq!(of("mine"), (ORDINARY, ORDINARY));
    let (root, group) = of("roots");
    assert_eq!((root, root % 65_536), (group, 0), "the first of a range");
    assert!(root >= 1 << 20, "{root}");
    assert_eq!(
        (of("given"), of("open/other"), of("theirs")),
        ((root + 33, root + 44), (root + 5555, root), (root + 5555, root + 7))
    );
    // They are the same users' after a restart.
    owner.wharf.check(&["suspend", "a"], 0, "a\n");
    owner.wharf.check(&["resume", "a"], 0, "a\n");
    assert_eq!(exec("5555", "echo x >open/other; stat -c %u open/other"), "5555\n");
}

#[test]
fn parents_of_a_mount_belong_to_the_user() {
    let owner = Owner::root();
    let mount = format!("{}:/home/agent/.cache/pip", owner.work());
    let script = "touch ~/.cache/x ~/.cache/pip/y && stat -c %U ~/.cache";
    assert_eq!(owner.works_inside(&mount, &["-u", "agent"], script), "agent\n");
}

#[test]
fn a_mount_shows_nothing_of_what_wharf_keeps_of_sandboxes() {
    for mut owner in Owner::both() {
        owner.host("mkdir -p above/home");
        owner.wharf.state = tempfile::tempdir_in(owner.path("above/home")).unwrap();
        let state = owner.wharf.state.path().to_owned();
        std::os::unix::fs::chown(&state, Some(owner.uid), Some(owner.uid)).unwrap();
        owner.wharf.check(&["create", "victim", "-e", "TOKEN=hunter2"], 0, "victim\n");
        let inside = format!("/h/home/{}", state.file_name().unwrap().display());
        let script = format!(
            "cat {inside}/sandboxes/victim/* | grep -c .; ls -A {inside}; mkdir {inside}/x; mv {inside} /h/home/away; \
             mv /h/home /h/away; touch /h/home/beside; true"
        );
        for mode in ["", ":ro"] {
            let mount = format!("{}:/h{mode}", owner.path("above").display());
            let seen = owner.wharf.run(&["run", "--mount", &mount, "--", "sh", "-c", &script]);
            assert_eq!(String::from_utf8_lossy(&seen.stdout), "0\n", "{mount}: {seen:?}");
            assert!(state.join("sandboxes/victim/key").exists() && !state.join("x").exists(), "{mount}");
        }
        assert!(owner.path("above/home/beside").exists(), "what is beside it can be written");
        let refused = owner.wharf.run(&["create", "box", "--mount", state.to_str().unwrap()]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("`--mount`"), "{refused:?}");
        let workspace = state.join("sandboxes/victim/workspace");
        owner.wharf.check(&["run", "--mount", workspace.to_str().unwrap(), "--", "true"], 0, "");
        // Another state directory of the owner's is as little to be seen, neither now nor by what is done to its mark.
        let mine = tempfile::tempdir_in(owner.directory.path()).unwrap();
        std::os::unix::fs::chown(mine.path(), Some(owner.uid), Some(owner.uid)).unwrap();
        let theirs = std::mem::replace(&mut owner.wharf.state, mine);
        for mode in ["", "", ":ro"] {
            for (directory, inside) in [("above", inside.as_str()), ("above/home", &inside.replace("/home", ""))] {
                let mount = format!("{}:/h{mode}", owner.path(directory).display());
                let script =
                    format!("cat {inside}/*/victim/* {inside}/r/*/*; rm -rf {inside}/wharf-state {inside}/sandboxes");
                let seen =
                    owner.wharf.run(&["run", "--mount", &mount, "--unprotect", "all", "--", "sh", "-c", &script]);
                assert_eq!(String::from_utf8_lossy(&seen.stdout), "", "{mount}: {seen:?}");
            }
        }
        owner.wharf.state = theirs;
        owner.wharf.check(&["exec", "victim", "--", "true"], 0, "");
        owner.wharf.check(&["rm", "victim"], 0, "victim\n");
    }
}

#[test]
fn a_mount_that_became_a_link_is_not_followed_at_the_next_start() {
    for owner in Owner::both() {
        owner.host("mkdir work/sub secret; echo secret > secret/file");
        let outer = format!("{}:/outer", owner.work());
        let inner = format!("{}/sub:/inner", owner.work());
        owner.wharf.check(&["create", "box", "--mount", &outer, "--mount", &inner], 0, "box\n");
        let script = format!("mv /outer/sub /outer/away && ln -s {} /outer/sub", owner.path("secret").display());
        owner.wharf.check(&["exec", "box", "--", "sh", "-c", &script], 0, "");
        owner.wharf.check(&["stop", "box"], 0, "box\n");
        let refused = owner.wharf.run(&["start", "box"]);
        assert!(String::from_utf8_lossy(&refused.stderr).contains("a link now"), "{refused:?}");
        assert_eq!(owner.host("ls -A secret"), "file\n");
        owner.host("rm work/sub && mv work/away work/sub");
        owner.wharf.check(&["start", "box"], 0, "box\n");
        owner.wharf.check(&["rm", "box"], 0, "box\n");
    }
}

#[test]
fn an_empty_directory_of_the_owners_stays() {
    let owner = Owner::ordinary();
    owner.host("mkdir work/.claude");
    owner.works_inside("work", &[], "! touch .claude/settings.json 2>/dev/null");
    assert_eq!(owner.host("ls -A work"), ".claude\n");
}

#[test]
fn links_in_a_git_directory_do_not_keep_a_sandbox_from_starting() {
    for owner in Owner::both() {
        owner.host("git init -q work; mkdir -p other/m");
        let script = format!("cd .git && ln -s {0} worktrees && ln -s {0} modules", owner.path("other").display());
        owner.works_inside("work", &[], &script);
        let inside = "echo works; ! rm .git/worktrees 2>/dev/null && ! rm .git/modules 2>/dev/null && echo kept";
        assert_eq!(owner.works_inside("work", &[], inside), "works\nkept\n");
        assert_eq!(owner.host("ls -A other other/m"), "other:\nm\n\nother/m:\n");
    }
}

#[test]
fn what_is_closed_inside_is_not_open_to_be_written_at_the_next_start() {
    const PLACES: &[(&[&str], &str, &str)] = &[
        (&["0", "500"], "", ".envrc"),
        (&["0", "500"], ".git", ".git/commondir"),
        (&["0", "300"], ".git/worktrees", ".git/worktrees/w/config.worktree"),
        (&["0", "500"], ".git/worktrees/w", ".git/worktrees/w/config.worktree"),
        (&["0", "300"], ".git/modules", ".git/modules/m/hooks/post-checkout"),
        (&["0", "500"], ".git/modules/m", ".git/modules/m/config"),
        (&["0"], "deep", "deep/.vscode/tasks.json"),
        (&["0"], "repository", "repository/.git/config"),
        (&["0", "500"], "repository/.git", "repository/.git/hooks/post-checkout"),
    ];
    let owners = [Owner::ordinary(), Owner::of(Wharf::with_subordinate_ids(), super::SUBORDINATE)];
    for owner in owners {
        owner.host(
            "git init -q work/repository && cd work && git init -q && mkdir -p deep/.vscode .git/worktrees/w \
             .git/modules/m/objects .git/modules/m/refs && touch .git/modules/m/HEAD .git/worktrees/w/gitdir",
        );
        owner.wharf.check(&["create", "box", "--mount", &owner.work()], 0, "box\n");
        let inside = |script: &str| {
            let output = owner.wharf.run(&["exec", "-w", "/", "box", "--", "sh", "-c", script]);
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let places = if owner.uid == ORDINARY { PLACES } else { &PLACES[..1] };
        // What somebody inside may do of what it owns.
        let close = |mode: &str, closed: &str| owner.host(&format!("chmod {mode} work/{closed}"));
        for (modes, closed, written) in places {
            for mode in *modes {
                close(mode, closed);
                resumed(&owner);
                let path = format!("/workspace/{written}");
                let script = format!("chmod 755 /workspace/{closed}; rm -rf {path}; echo evil >{path} && echo written");
                assert_eq!(inside(&format!("({script}) 2>/dev/null")), "", "{closed} {mode}");
                let found = fs::read_to_string(owner.path("work").join(written)).unwrap_or_default();
                assert!(!found.contains("evil"), "{closed} {mode}");
                close("755", closed);
            }
        }
        resumed(&owner);
        assert_eq!(inside("touch /workspace/file && echo works"), "works\n");
        if owner.uid == super::SUBORDINATE {
            let as_root = |script: &str| {
                let output = owner.wharf.run(&["exec", "-u", "root", "-w", "/", "box", "--", "sh", "-c", script]);
                String::from_utf8_lossy(&output.stdout).into_owned()
            };
            assert_eq!(as_root("chown 0 /workspace && echo done"), "done\n");
            resumed(&owner);
            assert_eq!(
                as_root("(rmdir /workspace/.envrc; echo evil >/workspace/.envrc) 2>/dev/null && echo written"),
                ""
            );
            std::os::unix::fs::chown(owner.path("work"), Some(owner.uid), None).unwrap();
        }
        owner.wharf.check(&["rm", "box"], 0, "box\n");
    }
}

/// Suspends `box` and tries to resume it; gives what is said if that is refused.
fn resumed(owner: &Owner) -> Option<String> {
    owner.wharf.check(&["suspend", "box"], 0, "box\n");
    resumed_again(owner)
}

fn resumed_again(owner: &Owner) -> Option<String> {
    let output = owner.wharf.run(&["resume", "box"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(if told.contains("error") { 125 } else { 0 }), "{told}");
    (!output.status.success()).then_some(told)
}

#[test]
fn what_was_put_in_the_place_of_a_mount_is_not_shown_at_a_later_start() {
    for owner in Owner::both() {
        owner.host("mkdir work/inner && echo kept > work/inner/file");
        let (outer, inner) = (format!("{}:/outer", owner.work()), format!("{}/inner:/inner", owner.work()));
        owner.wharf.check(&["create", "box", "--mount", &outer, "--mount", &inner], 0, "box\n");
        assert_eq!(resumed(&owner), None);
        let script = "mv /outer/inner /outer/away && mkdir /outer/inner";
        owner.wharf.check(&["exec", "box", "--", "sh", "-c", script], 0, "");
        let told = resumed(&owner).expect("it is another directory");
        let expected = format!("could not mount `{}/inner`: it is not what was there", owner.work());
        assert!(told.contains(&expected), "{told}");
        owner.host("rmdir work/inner && mv work/away work/inner");
        assert_eq!(resumed_again(&owner), None);
        owner.wharf.check(&["exec", "box", "--", "cat", "/inner/file"], 0, "kept\n");
    }
}

#[test]
fn another_git_directory_than_at_first_is_not_shown_at_a_later_start() {
    for owner in Owner::both() {
        owner.host("git init -q -b main main && cd main && git commit -q --allow-empty -m first && git worktree add -q ../linked");
        let linked = owner.path("linked").display().to_string();
        owner.wharf.check(&["create", "box", "--mount", &linked], 0, "box\n");
        assert_eq!(resumed(&owner), None);
        owner.wharf.check(&["exec", "box", "--", "git", "log", "--format=%s"], 0, "first\n");
        owner.host("mv main/.git main/first && cp -a main/first main/.git");
        let told = resumed(&owner).expect("it is another directory");
        assert!(told.contains(&format!("could not mount `{}`", owner.path("main/.git").display())), "{told}");
        owner.host("rm -r main/.git && mv main/first main/.git");
        assert_eq!(resumed_again(&owner), None);
        // One that a mount did not have at first.
        owner.wharf.check(&["rm", "box"], 0, "box\n");
        owner.host("mkdir plain");
        owner.wharf.check(&["create", "box", "--mount", &owner.path("plain").display().to_string()], 0, "box\n");
        owner.wharf.check(&["suspend", "box"], 0, "box\n");
        owner.host(
            "git init -q lone && git -C lone commit -q --allow-empty -m x && git -C lone worktree add -q ../plain 2>&1",
        );
        assert_eq!(resumed_again(&owner), None);
        let git_directory = owner.path("lone/.git").display().to_string();
        let shown = owner.wharf.run(&["exec", "box", "--", "ls", &git_directory]);
        assert!(!shown.status.success(), "{}", String::from_utf8_lossy(&shown.stdout));
        let inspected = owner.wharf.run(&["inspect", "box"]).stdout;
        assert!(String::from_utf8_lossy(&inspected).contains("was not its own when the sandbox was made"));
    }
}
