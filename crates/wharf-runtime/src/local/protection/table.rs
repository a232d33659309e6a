//! What runs on the host without its owner asking for it by name: what git, a shell, an editor or an agent takes from a
//! directory merely because a command was given, or it was opened, there. Pure.
//!
//! `make`, `npm test` and `./run` are asked for by name, so what they read is no entry.

use std::path::Path;

/// Where an entry stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a git directory: `.git`, that of a submodule, a bare repository.
    GitDirectory,
    /// In what a git directory has about one linked worktree: `worktrees/NAME`.
    LinkedWorktree,
    /// At the top of a mount that is no repository, where it would make one.
    NoRepository,
    /// In a directory that somebody works in: the mount's own; below it only what is there already.
    Project,
    /// In a home directory of this machine; elsewhere only what is there already, for a link may lead to it.
    Home,
    /// In a home directory of this machine alone: elsewhere many things are called so.
    HomeAlone,
}

/// What keeps an entry from being made that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    /// An empty directory, in what git itself never looks at as content.
    Empty,
    /// A directory that ignores itself, so that git neither shows nor commits it, and neither `clean` nor `stash` removes it.
    Ignored,
    /// A file with a text that means the same as no file, for what git cannot do without reading.
    File(&'static str),
    /// Nothing: it takes effect only by something that is protected itself, or once its program has asked.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) name: &'static str,
    pub(crate) absent: Absent,
    /// When it runs; the word of a test, or of the program's own documentation.
    #[cfg_attr(not(test), expect(dead_code, reason = "for who reads the table, and its tests"))]
    pub(crate) runs: &'static str,
}

/// Git reads nothing in it, and nobody else writes just that.
const EMPTY_CONFIG: Absent = Absent::File("# wharf keeps this file while a sandbox has the repository mounted\n");

const fn entry(place: Place, name: &'static str, absent: Absent, runs: &'static str) -> Entry {
    Entry { place, name, absent, runs }
}

/// Without any of these git takes a directory for no bare repository. The last is kept from being made only where nothing else
/// is left: where it stands in a directory of a repository, `git log HEAD` is ambiguous.
pub(crate) const BARE_REPOSITORY: [&str; 3] = ["objects", "refs", HEAD];
pub(crate) const HEAD: &str = "HEAD";

/// The list. Longer paths in a home stand beside the shorter ones that they need not.
pub(crate) const PROTECTED: &[Entry] = &[
    entry(Place::GitDirectory, "config", EMPTY_CONFIG, "core.fsmonitor: every git status"),
    entry(Place::GitDirectory, "hooks", Absent::Empty, "post-checkout: every git checkout"),
    entry(Place::GitDirectory, "commondir", Absent::File(".\n"), "another directory's config: every git command"),
    entry(Place::GitDirectory, "config.worktree", EMPTY_CONFIG, "as config, once extensions.worktreeConfig is set"),
    entry(Place::LinkedWorktree, "commondir", Absent::Nothing, "another directory's config: every git command"),
    entry(Place::LinkedWorktree, "config.worktree", EMPTY_CONFIG, "as config"),
    entry(Place::LinkedWorktree, "gitdir", Absent::Nothing, "where git looks for the worktree"),
    entry(Place::NoRepository, ".git", Absent::Empty, "a repository with a config and hooks of its own"),
    // Git gives up at a `commondir` that it cannot read, while it is there.
    entry(Place::NoRepository, "commondir", Absent::Ignored, "a bare repository with a config and hooks of its own"),
    entry(Place::Project, ".husky", Absent::Ignored, "git commit, by core.hooksPath"),
    entry(Place::Project, ".githooks", Absent::Nothing, "git commit, by core.hooksPath"),
    entry(Place::Project, ".pre-commit-config.yaml", Absent::Nothing, "git commit, by the hook of pre-commit"),
    entry(Place::Project, "lefthook.yml", Absent::Nothing, "git commit, by the hook of lefthook"),
    entry(Place::Project, ".lefthook.yml", Absent::Nothing, "git commit, by the hook of lefthook"),
    entry(Place::Project, "lefthook-local.yml", Absent::Nothing, "git commit, by the hook of lefthook"),
    entry(Place::Project, ".lefthook-local.yml", Absent::Nothing, "git commit, by the hook of lefthook"),
    entry(Place::Project, ".lefthook", Absent::Nothing, "git commit, by the hook of lefthook"),
    entry(Place::Project, ".overcommit.yml", Absent::Nothing, "git commit, by the hook of overcommit"),
    entry(Place::Project, ".envrc", Absent::Ignored, "cd, by direnv"),
    entry(Place::Project, ".mise.toml", Absent::Nothing, "cd, by mise"),
    entry(Place::Project, "mise.toml", Absent::Nothing, "cd, by mise"),
    entry(Place::Project, ".exrc", Absent::Ignored, "vi with the option exrc"),
    entry(Place::Project, ".vimrc", Absent::Ignored, "vim with the option exrc"),
    entry(Place::Project, ".gvimrc", Absent::Ignored, "gvim with the option exrc"),
    entry(Place::Project, ".nvimrc", Absent::Ignored, "nvim with the option exrc"),
    entry(Place::Project, ".nvim.lua", Absent::Ignored, "nvim with the option exrc"),
    entry(Place::Project, ".dir-locals.el", Absent::Ignored, "opening a file in Emacs: eval"),
    entry(Place::Project, ".dir-locals-2.el", Absent::Ignored, "opening a file in Emacs: eval"),
    entry(Place::Project, ".helix", Absent::Ignored, "opening a file in Helix: paths of language servers"),
    entry(Place::Project, ".vscode", Absent::Ignored, "opening the folder: tasks with runOn, paths of programs"),
    entry(Place::Project, ".devcontainer", Absent::Ignored, "opening the folder: initializeCommand"),
    entry(Place::Project, ".devcontainer.json", Absent::Ignored, "opening the folder: initializeCommand"),
    entry(Place::Project, ".idea", Absent::Ignored, "opening the project: startup tasks"),
    entry(Place::Project, ".zed", Absent::Ignored, "opening the folder: paths of language servers"),
    entry(Place::Project, ".cursor", Absent::Ignored, "opening the folder: hooks and MCP servers"),
    entry(Place::Project, ".windsurf", Absent::Ignored, "opening the folder: workflows and MCP servers"),
    entry(Place::Project, ".kiro", Absent::Ignored, "opening the folder: hooks and MCP servers"),
    entry(Place::Project, ".roo", Absent::Ignored, "opening the folder: MCP servers"),
    entry(Place::Project, ".continue", Absent::Ignored, "opening the folder: MCP servers"),
    entry(Place::Project, ".claude", Absent::Ignored, "starting claude: hooks"),
    entry(Place::Project, ".mcp.json", Absent::Ignored, "starting claude: MCP servers"),
    entry(Place::Project, ".codex", Absent::Ignored, "starting codex: MCP servers and notify"),
    entry(Place::Project, ".gemini", Absent::Ignored, "starting gemini: MCP servers and tools"),
    entry(Place::Project, ".qwen", Absent::Ignored, "starting qwen: MCP servers and tools"),
    entry(Place::Project, ".opencode", Absent::Ignored, "starting opencode: plugins"),
    entry(Place::Project, "opencode.json", Absent::Ignored, "starting opencode: MCP servers"),
    entry(Place::Project, "opencode.jsonc", Absent::Ignored, "starting opencode: MCP servers"),
    entry(Place::Home, ".bashrc", Absent::Ignored, "a shell"),
    entry(Place::Home, ".bash_profile", Absent::Ignored, "a login"),
    entry(Place::Home, ".bash_login", Absent::Ignored, "a login"),
    entry(Place::Home, ".bash_logout", Absent::Ignored, "a logout"),
    entry(Place::Home, ".bash_aliases", Absent::Ignored, "a shell, by .bashrc"),
    entry(Place::Home, ".profile", Absent::Ignored, "a login"),
    entry(Place::Home, ".zshenv", Absent::Ignored, "a shell"),
    entry(Place::Home, ".zprofile", Absent::Ignored, "a login"),
    entry(Place::Home, ".zshrc", Absent::Ignored, "a shell"),
    entry(Place::Home, ".zlogin", Absent::Ignored, "a login"),
    entry(Place::Home, ".zlogout", Absent::Ignored, "a logout"),
    entry(Place::Home, ".kshrc", Absent::Ignored, "a shell"),
    entry(Place::Home, ".cshrc", Absent::Ignored, "a shell"),
    entry(Place::Home, ".tcshrc", Absent::Ignored, "a shell"),
    entry(Place::Home, ".login", Absent::Ignored, "a login"),
    entry(Place::Home, ".inputrc", Absent::Ignored, "a shell: keys that type commands"),
    entry(Place::Home, ".xprofile", Absent::Ignored, "a login on a screen"),
    entry(Place::Home, ".xsessionrc", Absent::Ignored, "a login on a screen"),
    entry(Place::Home, ".xsession", Absent::Ignored, "a login on a screen"),
    entry(Place::Home, ".xinitrc", Absent::Ignored, "startx"),
    entry(Place::Home, ".gitconfig", Absent::Ignored, "every git command"),
    entry(Place::Home, ".ssh", Absent::Ignored, "ssh: ProxyCommand; a login: authorized_keys"),
    entry(Place::Home, ".gnupg", Absent::Ignored, "gpg: its agent's programs"),
    entry(Place::Home, ".tmux.conf", Absent::Ignored, "tmux"),
    entry(Place::Home, ".screenrc", Absent::Ignored, "screen"),
    entry(Place::Home, ".vim", Absent::Ignored, "vim"),
    entry(Place::Home, ".emacs", Absent::Ignored, "Emacs"),
    entry(Place::Home, ".emacs.d", Absent::Ignored, "Emacs"),
    entry(Place::Home, ".gdbinit", Absent::Ignored, "gdb"),
    entry(Place::Home, ".config", Absent::Ignored, "a login: autostart, systemd; git, fish, nvim, direnv and others"),
    entry(Place::Home, ".claude.json", Absent::Ignored, "starting claude: MCP servers"),
    entry(Place::Home, ".local", Absent::Nothing, "programs in .local/bin come before the system's"),
    entry(Place::Home, ".cargo", Absent::Nothing, "programs in .cargo/bin; config.toml: rustc-wrapper"),
    entry(Place::HomeAlone, "bin", Absent::Nothing, "programs that come before the system's"),
];

/// The keys of a repository's config whose values are programs, or files of more keys.
const NAMES_A_FILE: &[&str] = &[
    "hookspath",
    "fsmonitor",
    "sshcommand",
    "askpass",
    "editor",
    "pager",
    "gitproxy",
    "path",
    "clean",
    "smudge",
    "process",
    "textconv",
    "command",
    "cmd",
    "driver",
    "program",
    "helper",
    "packobjectshook",
    "uploadpack",
    "receivepack",
];

/// What a repository's config names that runs, or is read as more config: the first words of those values.
///
/// Reads more than git would, never less: a text in the wrong section, or one that git refuses, names a file too.
pub(crate) fn files_named_in(config: &str) -> impl Iterator<Item = &Path> {
    config.lines().filter_map(|line| {
        // `[section] key = value` may stand on one line.
        let line = line.trim().rsplit_once(']').map_or(line, |(_, rest)| rest);
        let (key, value) = line.split_once('=')?;
        if !NAMES_A_FILE.contains(&key.trim().to_ascii_lowercase().as_str()) {
            return None;
        }
        let value = value.trim().trim_matches('"').trim_start_matches('!');
        let word = value.split_ascii_whitespace().next()?.trim_matches(['"', '\'', '\\']);
        Some(Path::new(word))
    })
}

/// Where the file `.git` of a linked worktree or a submodule says that its git directory is.
pub(crate) fn git_directory_named_in(text: &str) -> Option<&Path> {
    text.strip_prefix("gitdir:").map(|path| Path::new(path.trim())).filter(|path| !path.as_os_str().is_empty())
}

/// The worktree that the config of a submodule's git directory names.
pub(crate) fn worktree_named_in(config: &str) -> Option<&Path> {
    config.lines().rev().find_map(|line| {
        let line = line.trim().rsplit_once(']').map_or(line, |(_, rest)| rest);
        let (key, value) = line.split_once('=')?;
        key.trim().eq_ignore_ascii_case("worktree").then(|| Path::new(value.trim().trim_matches('"')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_stands_once_and_is_a_plain_name() {
        for (at, entry) in PROTECTED.iter().enumerate() {
            assert!(!entry.name.contains('/') && !entry.runs.is_empty(), "{}", entry.name);
            let again = PROTECTED[at + 1..].iter().any(|other| (other.place, other.name) == (entry.place, entry.name));
            assert!(!again, "{}", entry.name);
        }
    }

    #[test]
    fn programs_and_more_config_are_found_in_a_config() {
        let config = "[core]\n\thooksPath = .hooks\n\tfsmonitor=\"./watch it\" \n[alias]\n x = !./named\n\
                      [include]path = ../more\n[filter \"a]b\"]\n\tclean = !tools/clean %f\n[core]\nworktree = ../w\n";
        let named: Vec<&Path> = files_named_in(config).collect();
        assert_eq!(named, [".hooks", "./watch", "../more", "tools/clean"].map(Path::new));
        assert_eq!(worktree_named_in(config), Some(Path::new("../w")));
        assert_eq!(worktree_named_in("[core]\n bare = true\n"), None);
    }

    #[test]
    fn the_file_of_a_linked_worktree_names_its_git_directory() {
        assert_eq!(git_directory_named_in("gitdir: /a b/.git/worktrees/w\n"), Some(Path::new("/a b/.git/worktrees/w")));
        for text in ["", "gitdir:", "gitdir: \n", "/a", "x\ngitdir: /a"] {
            assert_eq!(git_directory_named_in(text), None, "{text}");
        }
    }
}
