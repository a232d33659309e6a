"""Replays a recording of the original against a built sandboxd and compares every answer.

    replay.py SANDBOXD RECORDING[,RECORDING...] [--accept]

Recordings that share files run one after another on one server (golden/README.md). The script starts itself again in a
mount namespace of its own with an empty /workspace and a ~/.bashrc that may be changed. Every deliberate difference stands in golden/differences.json with
its reason and what is expected instead; `--accept` writes what is new there, for a person to look at and give a reason.
"""
import base64, difflib, http.client, io, json, os, pathlib, re, sys, urllib.parse, zipfile

import apart

GOLDEN = pathlib.Path(__file__).parent / "golden"
DIFFERENCES = GOLDEN / "differences.json"
PLUGIN_ENTRIES = (".vscode/", ".downloads/", ".browser_screenshots/", "file_1", "rec/", "rec2/")
CLOCKS = ("hostname", "py_interpreter_path", "uptime", "idle_time", "resources", "token")


def place(file):
    path = file["path"]
    if file.get("directory"):
        os.makedirs(path, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if "symlink" in file:
        os.symlink(file["symlink"], path)
        return
    if "text" in file:
        data = file["text"].encode()
    elif "base64" in file:
        data = base64.b64decode(file["base64"])
    else:
        data = (file["repeat"][0] * file["repeat"][1]).encode()
    pathlib.Path(path).write_bytes(data)


def normal(value, key=None):
    """Takes out what must differ: host, interpreter, process ids, clock, and what plugins of the original leave."""
    if key in CLOCKS and value is not None:
        return "*"
    if key == "pid" and value != -1:
        return "*"
    if isinstance(value, dict):
        return {k: normal(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [normal(v) for v in value if v not in PLUGIN_ENTRIES]
    if key == "content" and isinstance(value, str):
        value = re.sub(r"^\[(\d+)\] \d+", r"[\1] *", value, flags=re.M)
        value = re.sub(r"^ *\d+  (?=\S.*\n|.*$)", "* ", value, flags=re.M) if "history | tail" in value else value
        return value
    return value


def exchanges_of(recording):
    """client_wire has another form: what the real client sent, in its own order, named by step here."""
    content = json.loads((GOLDEN / f"{recording}.json").read_text())
    if "exchanges" in content:
        return content["exchanges"]
    samples = iter(content["multipart_samples"])
    exchanges = []
    for number, sent in enumerate(content["http"]):
        request = {"method": sent["method"], "path": sent["path"] + ("?" + sent["query"] if sent["query"] else "")}
        if sent["body"] == "<multipart>":
            request["body"] = next(samples)
            boundary = request["body"].split("\r\n", 1)[0][2:]
            request["headers"] = {"content-type": f"multipart/form-data; boundary={boundary}"}
        elif sent["body"] is not None:
            request["json"] = sent["body"]
        response = sent["response"]
        if "bytes" in response:
            response = {"status": response["status"], "content_type": response["content_type"]}
        exchanges.append({"name": f"{number:02} {sent['step']}", "request": request, "response": response})
    return exchanges


def body_of(recording, exchange, fixtures):
    request = exchange["request"]
    headers, body = dict(request.get("headers") or {}), None
    if request.get("json") is not None:
        body, headers["content-type"] = json.dumps(request["json"]).encode(), "application/json"
    if "body" in request:
        # The sample of a zip file stands there byte by byte.
        body = request["body"].encode("latin-1" if "PK\x03\x04" in request["body"] else "utf-8")
    if "multipart" in request:
        name = request["multipart"]["file"]["filename"]
        data = base64.b64decode(fixtures[recording]["multipart"][exchange["name"]])
        head = f'--X\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        body, headers["content-type"] = head.encode() + data + b"\r\n--X--\r\n", "multipart/form-data; boundary=X"
    return headers, body


def ask(port, recording, exchange, fixtures):
    request = exchange["request"]
    path = request["path"]
    if request.get("query"):
        path += "?" + urllib.parse.urlencode(request["query"])
    headers, body = body_of(recording, exchange, fixtures)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=140)
    connection.request(request["method"], path, body, headers)
    answer = connection.getresponse()
    raw = answer.read()
    expected = exchange.get("response") or {"json": None}
    got = {"status": answer.status}
    if set(expected) == {"status", "content_type"}:
        got["content_type"] = answer.getheader("content-type")
    elif "zip_entries" in expected or answer.getheader("content-type") == "application/zip":
        entries = zipfile.ZipFile(io.BytesIO(raw)).infolist()
        got["content_disposition"] = answer.getheader("content-disposition")
        got["zip_entries"] = [
            {"name": e.filename, "size": e.file_size, "compress_type": e.compress_type} for e in entries
        ]
    elif "json" in expected:
        got["content_type"] = answer.getheader("content-type")
        got["json"] = normal(json.loads(raw))
    else:
        got["content_type"] = answer.getheader("content-type")
        got["text"] = raw.decode()
    return got


def wanted(exchange):
    response = {k: v for k, v in exchange["response"].items() if k != "content_type" or "zip_entries" not in exchange["response"]}
    if "json" in response:
        response["json"] = normal(response["json"])
    return response


def replay(sandboxd, recordings, accept):
    fixtures = json.loads((GOLDEN / "fixtures.json").read_text())["recordings"]
    differences = json.loads(DIFFERENCES.read_text()) if DIFFERENCES.exists() else {}
    start = fixtures["action_server_auth" if recordings[0] == "action_server_auth" else "action_server_bash_1"]["server"]
    failures, passed, found = [], 0, {}
    with apart.server(sandboxd, start["arguments"][1:], start["environment"]) as port:
        for recording in recordings:
            viewer = recording == "file_viewer"
            at = int(pathlib.Path("/tmp/oh-server-url").read_text().rsplit(":", 1)[1]) if viewer else port
            here = fixtures[recording]
            # The file viewer's are said in words: those of the recording before it.
            for file in [] if viewer else here["files"]:
                place(file)
            known = differences.get(recording, {})
            for exchange in exchanges_of(recording):
                name = exchange["name"]
                for file in here.get("between", []):
                    if file["before"] == name:
                        place(file)
                got = ask(at, recording, exchange, fixtures)
                expected = wanted(exchange) if "response" in exchange else None
                if name in known:
                    expected = known[name]["instead"]
                if expected == "any" and got["status"] == 200:
                    passed += 1
                    continue
                if expected is None or expected != got:
                    found.setdefault(recording, {})[name] = {"reason": known.get(name, {}).get("reason", "?"), "instead": got}
                    lines = difflib.unified_diff(
                        json.dumps(expected, indent=1, ensure_ascii=False).split("\n"),
                        json.dumps(got, indent=1, ensure_ascii=False).split("\n"), "recorded", "got", lineterm="", n=1)
                    failures.append(f"{recording}#{name}\n" + "\n".join(line[:400] for line in list(lines)[:30]))
                else:
                    passed += 1
                if name in known and "response" in exchange and known[name]["instead"] == wanted(exchange):
                    failures.append(f"{recording}#{name}: the difference that is listed is none")
    if accept:
        for recording, names in found.items():
            differences.setdefault(recording, {}).update(names)
        DIFFERENCES.write_text(json.dumps(differences, indent=1, ensure_ascii=False) + "\n")
    print("\n\n".join(failures))
    print(f"{', '.join(recordings)}: {passed} equal, {len(failures)} not")
    return 1 if failures and not accept else 0


if __name__ == "__main__":
    apart.enter()
    sys.exit(replay(sys.argv[1], sys.argv[2].split(","), "--accept" in sys.argv))
