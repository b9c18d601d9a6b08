"""Workers on hosts of their own: a network namespace and a boot id for each, joined by a bridge.

With another boot id and no shared network, workers do not map each other's memory: KV moves by
NIXL over TCP, through a link that a fault can cut or narrow. Needs root and Linux.
"""

import asyncio
import os
import shutil
import subprocess
import uuid
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_ON_HOST = f'mount --bind "$0" {_BOOT_ID} && exec "$@"'
_PREFIX_BITS = 24


@dataclass(frozen=True, slots=True)
class Host:
    """One namespace. `link` is the bridge's end of its only cable."""

    name: str
    address: str
    link: str
    boot_id: Path

    def command(self, *program: str) -> tuple[str, ...]:
        """Returns how a program starts there; the process stays the one that is started."""
        enter = ("/usr/sbin/ip", "netns", "exec", self.name)
        return (*enter, "/bin/sh", "-c", _ON_HOST, str(self.boot_id), *program)

    async def cut(self) -> None:
        """Takes the cable out."""
        await _run("ip", "link", "set", self.link, "down")

    async def join(self) -> None:
        """Puts it back."""
        await _run("ip", "link", "set", self.link, "up")

    async def narrow(self, kbit_per_s: int) -> None:
        """Lets little through to the host."""
        shape = ("rate", f"{kbit_per_s}kbit", "burst", "16kb", "latency", "400ms")
        await _run("tc", "qdisc", "replace", "dev", self.link, "root", "tbf", *shape)

    async def widen(self) -> None:
        """Lets everything through again."""
        await _run("tc", "qdisc", "del", "dev", self.link, "root")


class Hosts:
    """A bridge and the hosts on it, until `close`. `here` is this process's address on it."""

    def __init__(self, directory: Path) -> None:
        self._tag = f"bt{os.getpid() % 100_000}"
        self._net = f"10.{231 + os.getpid() % 20}.{os.getpid() // 20 % 250}"
        self._directory = directory
        self._made: list[Host] = []
        self.here = f"{self._net}.1"

    async def open(self) -> None:
        """Makes the bridge. Raises CalledProcessError without the rights to."""
        await _run("ip", "link", "add", self._tag, "type", "bridge")
        await _run("ip", "addr", "add", f"{self.here}/{_PREFIX_BITS}", "dev", self._tag)
        await _run("ip", "link", "set", self._tag, "up")
        await self._let_through("--insert")

    async def add(self) -> Host:
        """Makes one more host."""
        number = len(self._made)
        name = f"{self._tag}-{number}"
        boot_id = self._directory / f"{name}.boot-id"
        boot_id.write_text(f"{uuid.uuid4()}\n")
        host = Host(name, f"{self._net}.{10 + number}", f"{self._tag}v{number}", boot_id)
        self._made.append(host)
        await _run("ip", "netns", "add", name)
        far = ("peer", "name", "eth0", "netns", name)
        await _run("ip", "link", "add", host.link, "type", "veth", *far)
        await _run("ip", "link", "set", host.link, "master", self._tag, "up")
        inside = ("ip", "-n", name)
        await _run(*inside, "addr", "add", f"{host.address}/{_PREFIX_BITS}", "dev", "eth0")
        await _run(*inside, "link", "set", "eth0", "up")
        await _run(*inside, "link", "set", "lo", "up")
        return host

    async def close(self) -> None:
        """Takes everything away again."""
        for host in self._made:
            await _run("ip", "netns", "del", host.name)
            host.boot_id.unlink()
        await _run("ip", "link", "del", self._tag)
        await self._let_through("--delete")

    async def _let_through(self, action: str) -> None:
        # Where a container engine runs, bridged packets are dropped unless a rule lets them pass.
        if shutil.which("iptables"):
            rule = ("-i", self._tag, "-o", self._tag, "-j", "ACCEPT")
            await _run("iptables", "--wait", action, "FORWARD", *rule)


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, errors = await process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=errors)
