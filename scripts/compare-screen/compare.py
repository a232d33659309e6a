#!/usr/bin/env python3
"""Shows the same random byte streams to a real tmux and to our screen, and tells what they render differently.

    scripts/compare-screen/compare.py [SEED [ROUNDS [SECONDS]]]

ROUNDS streams (200), or as many as SECONDS are enough for (no limit). Needs tmux (apt-get install tmux) and cargo. A stream that differs is made as short as it can be. Lines are drawn as lines by ours
and as letters by tmux, on purpose, so none are. Not compared either is where tmux 3.3 itself goes wrong: half a wide
character that is overwritten, repeated or pushed away. Ends with status 0 if all look the same,
1 if anything differs, 2 if it could not compare.
"""
import base64, json, os, random, shutil, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["a", "word", " ", "  ", "x" * 30, "é", "e\u0301", "\t", "wrap " * 12, "0123456789" * 4]
WIDE = ["世界", "한", "🙂", "a界", "한글" * 15]
CONTROLS = ["\r", "\n", "\r\n", "\r\n", "\b", "\t", "\x07", "\x0b", "\x0c"]


def sequence(rng):
    """One control sequence that programs send; parameters often beyond the screen."""
    n = lambda: rng.choice(["", "0", "1", "2", "3", "5", "12", "300"])
    return rng.choice([
        lambda: f"\x1b[{n()}{rng.choice('ABCDEFGdZLMPSXT')}",
        lambda: f"\x1b[{n()};{n()}H",
        lambda: f"\x1b[{rng.choice('123')}@",
        lambda: f"x\x1b[{n()}b",
        lambda: f"\x1b[{rng.choice(['', '0', '1', '2', '3'])}J",
        lambda: f"\x1b[{rng.choice(['', '0', '1', '2'])}K",
        lambda: f"\x1b[{rng.choice(['0', '1', '7', '31', '38;5;9', '48;2;1;2;3'])}m",
        lambda: f"\x1b[{rng.choice(['2;6', '3;4', '1;24', '', '5;3'])}r",
        lambda: f"\x1b[?{rng.choice(['7', '6', '25', '1'])}{rng.choice('hl')}",
        lambda: f"\x1b{rng.choice(['7', '8', 'D', 'E', 'M', 'H'])}",
        lambda: f"\x1b[{rng.choice(['', '0', '3'])}g",
        lambda: f"\x1b[?1049{rng.choice('hl')}",
        lambda: "\x1b]0;title\x07",
    ])()


def stream(rng):
    wide = rng.random() < 0.3
    parts = []
    for _ in range(rng.choice([3, 10, 30, 80])):
        kind = rng.random()
        if kind < 0.5:
            parts.append(rng.choice(WORDS + WIDE if wide else WORDS))
        elif wide:
            parts.append(rng.choice(["\r\n", "\n", "\t", "\x1b[K", "\x1b[J", "\x1b[H\x1b[2J", "\x1b[1m"]))
        else:
            parts.append(rng.choice(CONTROLS) if kind < 0.7 else sequence(rng))
    return parts


class Tmux:
    def __init__(self):
        self.home = tempfile.TemporaryDirectory()
        self.base = ["tmux", "-u", "-f", "/dev/null", "-S", f"{self.home.name}/socket"]

    def call(self, *arguments):
        return subprocess.run([*self.base, *arguments], check=True, capture_output=True, text=True).stdout

    def render(self, rows, columns, data):
        path = Path(self.home.name) / "stream"
        path.write_bytes(data)
        done = Path(self.home.name) / "done"
        done.unlink(missing_ok=True)
        # Without a conversion of line ends; the answer to the last query says that all before it was rendered.
        show = f"stty raw -echo; cat {path}; printf '\\033[5n'; dd bs=1 count=4 of=/dev/null 2>/dev/null; : > {done}; sleep 100"
        self.call("new-session", "-d", "-s", "s", "-x", str(columns), "-y", str(rows), show,
                  ";", "set", "-g", "status", "off", ";", "set", "-g", "history-limit", "10000")
        while not done.exists():
            time.sleep(0.005)
        text = self.call("capture-pane", "-p", "-J", "-S", "-", "-t", "s")
        visible = self.call("capture-pane", "-p", "-t", "s")
        state = self.call("display", "-p", "-t", "s", "#{cursor_y} #{cursor_x} #{alternate_on}").split()
        self.call("kill-session", "-t", "s")
        cursor = [int(state[0]), min(int(state[1]), columns - 1)]
        return {"text": text, "visible": visible, "cursor": cursor, "alternate": state[2] == "1"}

    def close(self):
        subprocess.run([*self.base, "kill-server"], capture_output=True)
        self.home.cleanup()


def trimmed(text):
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def render(ours, rows, columns, data):
    call = {"rows": rows, "columns": columns, "bytes": base64.b64encode(data).decode()}
    ours.stdin.write(json.dumps(call) + "\n")
    ours.stdin.flush()
    return json.loads(ours.stdout.readline())


def differences(ours, tmux, rows, columns, parts):
    data = "".join(parts).encode()
    mine, theirs = render(ours, rows, columns, data), tmux.render(rows, columns, data)
    pairs = [(name, trimmed(mine[name]), trimmed(theirs[name])) for name in ("text", "visible")]
    pairs += [(name, mine[name], theirs[name]) for name in ("cursor", "alternate")]
    if mine["alternate"]:
        # Ours shows the alternate screen alone, without history.
        pairs = pairs[1:]
    return [(name, a, b) for name, a, b in pairs if a != b]


def shortest(parts, differs):
    """Leaves out what can be left out, in ever smaller pieces."""
    size = len(parts) // 2
    while size:
        at = 0
        while at < len(parts):
            fewer = parts[:at] + parts[at + size:]
            if differs(fewer):
                parts = fewer
            else:
                at += size
        size //= 2
    return parts


def main(seed, rounds, seconds):
    if not shutil.which("tmux"):
        print("error: tmux is missing; apt-get install tmux", file=sys.stderr)
        return 2
    built = subprocess.run(["cargo", "build", "-q", "-p", "wharf-sandboxd", "--example", "screen_calls"], cwd=ROOT)
    if built.returncode:
        return 2
    ours = subprocess.Popen([ROOT / "target/debug/examples/screen_calls"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    tmux = Tmux()
    # A server without a session ends.
    tmux.call("new-session", "-d", "-s", "stay", "-x", "40", "-y", "8", "sleep 100000", ";", "set", "-g", "status", "off")
    rng, differ = random.Random(seed), 0
    done, until = 0, time.monotonic() + seconds
    for number in range(rounds):
        if time.monotonic() >= until:
            break
        done += 1
        parts = stream(rng)
        rows, columns = rng.choice([(8, 40), (3, 10), (24, 80)])
        differs = lambda parts: differences(ours, tmux, rows, columns, parts)
        if differs(parts):
            differ += 1
            parts = shortest(parts, differs)
            print(f"round {number} ({rows} x {columns}): {''.join(parts)!r}")
            for name, a, b in differs(parts):
                print(f"  {name}: ours {a!r}\n  {' ' * len(name)}  tmux {b!r}")
    ours.stdin.close()
    tmux.close()
    print(f"seed {seed}: {done - differ} of {done} streams look the same")
    return 1 if differ else 0


if __name__ == "__main__":
    defaults = [1, 200, 1e9]
    arguments = [int(argument) for argument in sys.argv[1:4]]
    sys.exit(main(*(arguments + defaults[len(arguments):])))
