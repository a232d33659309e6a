"""A mount namespace of one's own, with an empty /workspace and a home that may be changed; and a sandboxd in it."""
import contextlib, os, socket, subprocess, sys, time

# What the clients change in the home, such as ~/.bashrc and ~/.gitconfig, goes into a layer over it that ends with the namespace.
SCRIPT = """
mount -t tmpfs none /workspace
mkdir /workspace/changes /workspace/work
mount -t overlay home -o "lowerdir=$HOME,upperdir=/workspace/changes,workdir=/workspace/work" "$HOME"
umount -l /workspace
mount -t tmpfs none /workspace
touch ~/.bashrc
exec "$@"
"""


def enter():
    """Starts this program again in such a namespace; returns there. Needs root and `unshare`."""
    if os.environ.get("WHARF_APART") == "yes":
        return
    os.makedirs("/workspace", exist_ok=True)
    command = ["unshare", "--mount", "sh", "-ec", SCRIPT, "sh", sys.executable, *sys.argv]
    os.execvpe(command[0], command, {**os.environ, "WHARF_APART": "yes"})


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(sandboxd, arguments, environment):
    """A sandboxd started as OpenHands starts its server; gives the port once somebody listens there."""
    port = free_port()
    inherited = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "USER")}
    process = subprocess.Popen([sandboxd, str(port), *arguments], env={**inherited, **environment}, cwd="/")
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        yield port
    finally:
        process.terminate()
        process.wait(30)
