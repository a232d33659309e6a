#!/usr/bin/env python3
"""Runs the same random edits through OpenHands' own editor and ours, and shows what differs.

    $(scripts/openhands-venv) scripts/compare-editor/compare.py [SEED [ROUNDS [SECONDS]]]

ROUNDS files (300), or as many as SECONDS are enough for (no limit). Needs a Python that has openhands-ai 0.62.0, and cargo. Texts have LF line ends and what we repair on purpose (an insertion after a
last line without newline) is left out. Ends with status 0 if nothing
differs, 1 if anything does, 2 if it could not compare.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    from openhands_aci.editor.editor import OHEditor
    from openhands_aci.editor.exceptions import ToolError
    from openhands_aci.utils.diff import get_diff
except ImportError as missing:
    print(f"error: {missing}; run this with the interpreter that scripts/openhands-venv prints", file=sys.stderr)
    sys.exit(2)

ROOT = Path(__file__).resolve().parents[2]
LINES = ["", "a", "b", "  b", "c ", "\tx", "é", "世界", "a b", "}", "long " * 40, "\x0c", "f\x0bg", "x\u2028y"]


def text(rng, longest=12):
    lines = [rng.choice(LINES) for _ in range(rng.choice([0, 1, 2, 3, longest, longest]))]
    return "\n".join(lines) + rng.choice(["", "\n"])


def action(rng, path, content):
    """An edit that more often than not makes sense for `content`."""
    args = {"path": str(path), "command": rng.choice(["view", "str_replace", "str_replace", "insert", "insert", "undo_edit"])}
    if args["command"] == "view":
        bound = lambda: rng.choice([-5, -1, 0, 1, 2, 3, 5, 9, 400, "1"])
        args["view_range"] = rng.choice([None, [], [bound(), bound()], [bound(), bound()], [bound()]])
        return "read", args | {"impl_source": "oh_aci"}
    if args["command"] == "str_replace":
        start = rng.randrange(len(content) + 1)
        args["old_str"] = content[start : start + rng.choice([0, 1, 4, 30, 90])]
        if rng.random() < 0.2:
            args["old_str"] = rng.choice([" ", "\n"]) + args["old_str"] + rng.choice(["  ", "zz"])
        args["new_str"] = rng.choice([None, text(rng, 5), args["old_str"]])
    if args["command"] == "insert":
        lines = len(content.split("\n"))
        # Where a last line has no newline, an insertion after it differs on purpose.
        last = lines - 1 if content.endswith("\n") else max(lines - 2, 0)
        args["insert_line"] = rng.choice([rng.randint(0, last), rng.randint(0, last), str(last), -1, lines + 9, "1x"])
        args["new_str"] = rng.choice([None, text(rng, 5), text(rng, 5)])
    return "edit", args


def original(editor, kind, args):
    keys = ("command", "path", "file_text", "view_range", "old_str", "new_str", "insert_line")
    call = {key: args.get(key) for key in keys}
    if isinstance(call["insert_line"], str):
        try:
            call["insert_line"] = int(call["insert_line"])
        except ValueError:
            shown = f"ERROR:\nInvalid insert_line value: '{call['insert_line']}'. Expected an integer."
            return {"content": shown, "diff": ""}
    try:
        result = editor(**call)
    except ToolError as error:
        return {"content": f"ERROR:\n{error.message}", "diff": "" if kind == "edit" else None}
    diff = get_diff(result.old_content or "", result.new_content or "", args["path"])
    return {"content": result.output, "diff": diff if kind == "edit" else None}


def main():
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    rng = random.Random(seed)
    build = ["cargo", "build", "-q", "-p", "wharf-sandboxd", "--example", "editor_calls"]
    if subprocess.run(build, cwd=ROOT).returncode:
        sys.exit(2)
    binary = ROOT / "target/debug/examples/editor_calls"
    ours = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    different = calls = 0
    until = time.monotonic() + (int(sys.argv[3]) if len(sys.argv) > 3 else 1e9)
    with tempfile.TemporaryDirectory() as folder:
        theirs = OHEditor(workspace_root=folder)
        # Its guess is wrong for many short texts, also for valid UTF-8.
        theirs._encoding_manager.detect_encoding = lambda path: "utf-8"
        for number in range(rounds):
            if time.monotonic() >= until:
                break
            path = Path(folder) / "file.txt"
            path.unlink(missing_ok=True)
            content = text(rng, rng.choice([12, 300, 2000]) if number % 10 == 0 else 12)
            path.write_text(content, newline="")
            current = content
            for _ in range(rng.choice([1, 4, 14])):
                kind, args = action(rng, path, current)
                if args["command"] == "undo_edit" and rng.random() < 0.5:
                    # Undoing over somebody else's change compares two unrelated texts.
                    path.write_text(text(rng, rng.choice([12, 300])), newline="")
                before = path.read_bytes()
                expected = original(theirs, kind, args)
                after = path.read_bytes()
                path.write_bytes(before)
                ours.stdin.write(json.dumps({"action": kind, "args": args}) + "\n")
                ours.stdin.flush()
                answer = json.loads(ours.stdout.readline())
                calls += 1
                if answer != expected or path.read_bytes() != after:
                    different += 1
                    print("CALL    ", kind, args, "ON", repr(current[:300]))
                    print("EXPECTED", expected, after[:300])
                    print("ANSWER  ", answer, path.read_bytes()[:300])
                path.write_bytes(after)
                current = after.decode()
    print(f"{calls} calls, {different} different (seed {seed})")
    sys.exit(different > 0)


main()
