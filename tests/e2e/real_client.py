"""The real, unmodified client of OpenHands 0.62 drives a built sandboxd: connect, every action, files, errors, retries.

    real_client.py SANDBOXD        with the interpreter that scripts/openhands-venv prints
"""
import http.client, http.server, sys, threading

import apart

apart.enter()

# First: it silences OpenHands' log.
from openhands_claims import CLAIMS, Client, check, ends_with, refused

from openhands.core.exceptions import AgentRuntimeTimeoutError
from openhands.events.action import CmdRunAction
from openhands.runtime.utils.request import RequestHTTPError

KEY = "the-key-of-this-test"


class Way(http.server.BaseHTTPRequestHandler):
    """What stands between client and server in a cluster: passes everything on, and fails when told to."""

    protocol_version = "HTTP/1.1"
    target, troubles, seen, patience = 0, [], [], threading.Event()

    def handle_any(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.append(self.path.split("?")[0])
        trouble = self.troubles.pop(0) if self.troubles else None
        if trouble == "cut":
            self.close_connection = True
            self.connection.close()
            return
        if trouble == "silence":
            self.patience.wait(60)
            self.close_connection = True
            return
        if trouble == "busy":
            self.answer(429, [], b'{"detail":"slow down"}')
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.target, timeout=100)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        self.answer(answer.status, answer.getheaders(), answer.read())

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = handle_any

    def log_message(self, *_):
        pass


def retries_and_fails(client):
    Way.troubles, Way.seen = ["cut"], []
    assert client.run(CmdRunAction("echo once more")).content == "once more"
    assert Way.seen == ["/execute_action"] * 2, Way.seen
    Way.troubles, Way.seen = ["busy"], []
    client.check_if_alive()
    assert Way.seen == ["/alive"] * 2, Way.seen
    Way.troubles = ["silence"]
    action = CmdRunAction("echo never asked")
    action.set_hard_timeout(1, blocking=False)  # the client itself waits 5 s longer
    refused(lambda: client.run(action), AgentRuntimeTimeoutError)
    Way.patience.set()
    assert client.run(CmdRunAction("echo well")).content == "well"
    client.session.headers["X-Session-API-Key"] = "wrong"
    error = refused(client.list_files, RequestHTTPError)
    assert error.response.status_code == 403 and "Invalid API Key" in str(error), error
    client.session.headers["X-Session-API-Key"] = client.key


def main():
    arguments = ["--working-dir", "/workspace", "--username", "root"]
    with apart.server(sys.argv[1], arguments, {"SESSION_API_KEY": KEY, "NO_CHANGE_TIMEOUT_SECONDS": "10"}) as port:
        Way.target = port
        way = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Way)
        threading.Thread(target=way.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{way.server_address[1]}"
        check(Client(url, KEY, "root", env_vars={"TOKEN": "a b-c"}), (*CLAIMS, retries_and_fails))


ends_with(main)
