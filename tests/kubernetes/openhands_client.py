"""The real, unmodified client of OpenHands 0.62 drives a sandbox in a pod, and nobody does without its key.

    WHARF_SANDBOX_KEY=KEY openhands_client.py URL USERNAME        with the interpreter that scripts/openhands-venv prints

USERNAME is what commands run as there; URL leads to sandboxd itself.
"""
import http.client, os, pathlib, sys, urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from openhands_claims import CLAIMS, Client, check, ends_with, refused

from openhands.events.action import CmdRunAction
from openhands.runtime.utils.request import RequestHTTPError

#: What the original answers anybody: whether it lives, how long, with how much memory.
HEALTH = ("/alive", "/server_info", "/v1/health")
#: Of every area one; all that the client uses.
REQUESTS = (
    ("POST", "/execute_action"), ("POST", "/upload_file"), ("GET", "/download_files?path=/"),
    ("POST", "/list_files"), ("GET", "/vscode/connection_token"), ("POST", "/update_mcp_server"), ("GET", "/"),
    ("GET", "/view?path=/etc/hostname"), ("GET", "/v1/info"), ("GET", "/v1/openapi.json"),
    ("POST", "/v1/sessions"), ("POST", "/v1/execs"), ("GET", "/v1/files/content?path=/etc/hostname"),
    ("PUT", "/v1/files/content?path=/workspace/intruder"), ("GET", "/nothing"),
)


def answers_nobody_without_the_key(client):
    place = urllib.parse.urlsplit(client.url)

    def ask(method, path, headers):
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
        connection.request(method, path, b"{}", {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()

    for path in HEALTH:
        assert ask("GET", path, {})[0] == 200, path
    for key in (None, "", "wrong", client.key[:-1], client.key + "0"):
        headers = {} if key is None else {"X-Session-API-Key": key}
        # Which says no more than health does: it is bound.
        assert ask("POST", "/v1/bind", headers)[0] == 409
        for method, path in REQUESTS:
            status, body = ask(method, path, headers)
            assert status in (401, 403), (method, path, status, body)
            assert client.key.encode() not in body and b"hostname" not in body, (method, path)
    assert "intruder" not in client.list_files("/workspace")


def fails_with_a_wrong_key(client):
    client.session.headers["X-Session-API-Key"] = "wrong"
    for call in (client.list_files, lambda: client.run(CmdRunAction("id"))):
        error = refused(call, RequestHTTPError)
        assert error.response.status_code == 403, error
    client.session.headers["X-Session-API-Key"] = client.key
    assert client.run(CmdRunAction("echo well")).content == "well"


def main():
    url, username = sys.argv[1:]
    client = Client(url, os.environ.pop("WHARF_SANDBOX_KEY"), username, env_vars={"TOKEN": "a b-c"})
    check(client, (*CLAIMS, answers_nobody_without_the_key, fails_with_a_wrong_key))


ends_with(main)
