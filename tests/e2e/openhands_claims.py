"""What the real, unmodified client of OpenHands 0.62 does with a sandbox, wherever that is, as claims about it.

Importing this takes the client, so it needs the interpreter that scripts/openhands-venv prints.
"""
import asyncio, logging, os, pathlib, tempfile, traceback, zipfile

os.environ.setdefault("LOG_LEVEL", "ERROR")
logging.disable(logging.CRITICAL)

from openhands.core.config import OpenHandsConfig
from openhands.events import EventStream
from openhands.events.action import (
    ActionConfirmationStatus, AgentThinkAction, BrowseInteractiveAction, BrowseURLAction, CmdRunAction, FileEditAction,
    FileReadAction, FileWriteAction, IPythonRunCellAction,
)
from openhands.events.event import FileEditSource, FileReadSource
from openhands.events.observation import (
    CmdOutputObservation, ErrorObservation, FileEditObservation, FileReadObservation, FileWriteObservation,
    NullObservation, UserRejectObservation,
)
from openhands.llm.llm_registry import LLMRegistry
from openhands.runtime.impl.action_execution.action_execution_client import ActionExecutionClient
from openhands.runtime.utils.request import RequestHTTPError
from openhands.storage.memory import InMemoryFileStore

class Client(ActionExecutionClient):
    def __init__(self, url, key, username, env_vars=None, **more):
        self.url, self.key, self.username = url, key, username
        config = OpenHandsConfig()
        config.sandbox.runtime_startup_env_vars = {"FROM_CONFIG": "yes"}
        store = InMemoryFileStore()
        super().__init__(config, EventStream("real", store), LLMRegistry(config), sid="real", env_vars=env_vars, **more)
        self.session.headers["X-Session-API-Key"] = key

    @property
    def action_execution_server_url(self):
        return self.url

    async def connect(self):
        self.check_if_alive()
        self.setup_initial_env()
        self._runtime_initialized = True

    def close(self):
        self.session.close()


def refused(call, *kinds):
    try:
        call()
    except kinds as error:
        return error
    raise AssertionError(f"expected {kinds}")


def connects(client):
    asyncio.run(client.connect())
    obs = client.run(CmdRunAction("echo $TOKEN; echo $FROM_CONFIG; git config user.name"))
    assert obs.content.split("\n")[:2] == ["a b-c", "yes"], obs.content
    assert obs.content.split("\n")[2] == "openhands", obs.content


def runs(client):
    obs = client.run(CmdRunAction("cd /tmp && echo out && echo err >&2; false"))
    assert isinstance(obs, CmdOutputObservation) and obs.exit_code == 1 and obs.content == "out\nerr", obs
    assert obs.metadata.working_dir == "/tmp" and obs.metadata.username == client.username, obs.metadata
    assert client.run(CmdRunAction("pwd")).content == "/tmp"
    obs = client.run(CmdRunAction("pwd", is_static=True, cwd="/usr"))
    assert obs.content == "/usr" and obs.exit_code == 0, obs
    obs = client.run(CmdRunAction("echo a\necho b"))
    assert isinstance(obs, ErrorObservation) and "Cannot execute multiple commands at once" in obs.content, obs
    assert client.run(CmdRunAction("cd /workspace")).exit_code == 0


def interacts(client):
    action = CmdRunAction("read -p 'name? ' name; echo \"hi $name\"")
    action.set_hard_timeout(2, blocking=False)
    obs = client.run(action)
    assert obs.exit_code == -1 and "timed out after 2" in obs.metadata.suffix, obs
    assert "NOT executed" in client.run(CmdRunAction("echo x")).metadata.suffix
    obs = client.run(CmdRunAction("Bob", is_input=True))
    assert obs.exit_code == 0 and obs.content.endswith("hi Bob"), obs
    action = CmdRunAction("sleep 100")
    action.set_hard_timeout(1, blocking=True)
    assert client.run(action).exit_code == -1
    obs = client.run(CmdRunAction("C-c", is_input=True))
    assert obs.exit_code == 130, obs
    obs = client.run(CmdRunAction("exit 3"))
    assert obs.exit_code == 3, obs
    assert client.run(CmdRunAction("echo alive")).content == "alive"


def reads_writes_and_edits(client):
    obs = client.write(FileWriteAction(path="/workspace/w.txt", content="one\ntwo"))
    assert isinstance(obs, FileWriteObservation), obs
    obs = client.read(FileReadAction(path="/workspace/w.txt"))
    assert isinstance(obs, FileReadObservation) and obs.content == "one\ntwo\n", obs
    obs = client.read(FileReadAction(path="/workspace/w.txt", impl_source=FileReadSource.OH_ACI, view_range=[2, 2]))
    assert "     2\ttwo" in obs.content and "one" not in obs.content, obs
    edit = lambda **more: client.edit(FileEditAction(impl_source=FileEditSource.OH_ACI, **more))
    obs = edit(path="/workspace/e.py", command="create", file_text="a = 1\n")
    assert isinstance(obs, FileEditObservation), obs
    obs = edit(path="/workspace/e.py", command="str_replace", old_str="1", new_str="2")
    assert isinstance(obs, FileEditObservation) and "-a = 1" in obs.diff, obs
    assert client.read(FileReadAction(path="/workspace/e.py")).content == "a = 2\n"
    edit(path="/workspace/e.py", command="insert", insert_line=1, new_str="b = 3")
    edit(path="/workspace/e.py", command="undo_edit")
    assert client.read(FileReadAction(path="/workspace/e.py")).content == "a = 2\n"
    obs = client.read(FileReadAction(path="/workspace/none"))
    assert isinstance(obs, ErrorObservation) and "File not found" in obs.content, obs
    obs = edit(path="/workspace/e.py", command="str_replace", old_str="nowhere", new_str="x")
    assert isinstance(obs, FileEditObservation) or isinstance(obs, ErrorObservation), obs
    assert "did not appear verbatim" in obs.content, obs


def copies_and_lists(client):
    with tempfile.TemporaryDirectory() as here:
        here = pathlib.Path(here)
        (here / "d" / "sub").mkdir(parents=True)
        (here / "d" / "sub" / "x.bin").write_bytes(bytes(range(256)) * 999)
        (here / "one.txt").write_text("1")
        client.copy_to(str(here / "one.txt"), "/workspace/up")
        client.copy_to(str(here / "d"), "/workspace/up", recursive=True)
        assert client.list_files("/workspace/up") == ["d/", "one.txt"]
        assert "up/" in client.list_files()
        assert client.list_files("/nowhere") == []
        back = client.copy_from("/workspace/up")
        with zipfile.ZipFile(back) as archive:
            assert archive.read("d/sub/x.bin") == bytes(range(256)) * 999
            assert archive.read("one.txt") == b"1"
        back.unlink()
        refused(lambda: client.copy_to(str(here / "none"), "/workspace"), FileNotFoundError)
    assert client.get_vscode_token() == ""
    assert client.get_mcp_config() is not None


def says_what_is_not_there(client):
    for call in (
        lambda: client.run_ipython(IPythonRunCellAction("print(1)")),
    ):
        error = refused(call, RequestHTTPError)
        assert error.response.status_code == 500 and "JupyterRequirement not found" in str(error), error
    for action, call in (
        (BrowseURLAction("http://localhost:1/"), client.browse),
        (BrowseInteractiveAction("noop()"), client.browse_interactive),
    ):
        obs = call(action)
        assert isinstance(obs, ErrorObservation) and "Browser functionality" in obs.content, obs
    rejected = CmdRunAction("echo x", confirmation_state=ActionConfirmationStatus.REJECTED)
    assert isinstance(client.run(rejected), UserRejectObservation)
    waiting = CmdRunAction("echo x", confirmation_state=ActionConfirmationStatus.AWAITING_CONFIRMATION)
    assert isinstance(client.run(waiting), NullObservation)
    assert "thought" in client.send_action_for_execution(AgentThinkAction("hm")).content


#: All of the above; the first one connects.
CLAIMS = (connects, runs, interacts, reads_writes_and_edits, copies_and_lists, says_what_is_not_there)


def check(client, claims):
    for claim in claims:
        claim(client)
        print(f"ok: {claim.__name__}", flush=True)
    client.close()


def ends_with(main):
    """Runs `main` and ends this process with what came of it; the event stream's threads would linger."""
    try:
        main()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
