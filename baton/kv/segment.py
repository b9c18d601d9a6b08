"""Memory that other processes of this host can map too: where a CPU pool lives, and finding it.

A segment is an anonymous file (memfd). Nothing of it has a name in a file system, so nothing is
left behind by a killed process, and /dev/shm's size does not bound it. A peer opens it by
/proc/PID/fd, which takes the same user and the same process ids, and nothing else: no capability,
no shared network or IPC namespace. What was opened is compared with what was announced, because
process ids are used again.
"""

import ctypes
import mmap
import os
import stat
import struct
import weakref
from dataclasses import dataclass
from pathlib import Path

from baton.errors import PreconditionError

_PLACE = struct.Struct("<16sIQIQ")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_TICKS = 19
"""Index of a process's start time in /proc/PID/stat, counted behind its name."""

POPULATE_BYTES = 16 << 30
"""Largest segment that is mapped with all its pages at once, which takes about 0.1 s a GiB."""


class Segment:
    """A zeroed file of `size_bytes` in memory, mapped here at `address` as long as it is in use.

    Whatever is made from `buffer` keeps the mapping; the file goes with this object and with the
    mappings of peers. Raises OSError when there is no room.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.descriptor = os.memfd_create("baton-kv", os.MFD_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        os.ftruncate(self.descriptor, size_bytes)
        self.buffer = mmap.mmap(self.descriptor, size_bytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.buffer))


@dataclass(frozen=True, slots=True)
class Place:
    """An open file of a process, as another process can find it again."""

    boot_id: bytes
    process_id: int
    started_ticks: int
    descriptor: int
    inode: int

    def encode(self) -> bytes:
        """Returns the place as bytes of a fixed length."""
        return _PLACE.pack(
            self.boot_id, self.process_id, self.started_ticks, self.descriptor, self.inode
        )

    @classmethod
    def decode(cls, raw: bytes) -> "Place":
        """Returns the place. Raises PreconditionError (MALFORMED_METADATA)."""
        if len(raw) != PLACE_BYTES:
            raise PreconditionError("a place has another length", reason="MALFORMED_METADATA")
        boot_id, process_id, started_ticks, descriptor, inode = _PLACE.unpack(raw)
        return cls(boot_id, process_id, started_ticks, descriptor, inode)


PLACE_BYTES = _PLACE.size


def here(descriptor: int) -> Place:
    """Returns where other processes find an open file of this one."""
    return Place(
        _boot_id(),
        os.getpid(),
        _started_ticks(os.getpid()),
        descriptor,
        os.fstat(descriptor).st_ino,
    )


def open_place(place: Place, flags: int) -> int:
    """Returns a descriptor of another process's file.

    Raises PreconditionError (OTHER_HOST) when this process cannot reach it or it is another file.
    """
    if place.boot_id != _boot_id():
        raise _unreachable("it runs on another host")
    try:
        descriptor = os.open(f"/proc/{place.process_id}/fd/{place.descriptor}", flags)
    except OSError as error:
        raise _unreachable(f"its memory cannot be opened ({error.strerror})") from error
    try:
        # Compared after opening: the process cannot have been replaced in between.
        is_it = os.fstat(descriptor).st_ino == place.inode
        if not is_it or _started_ticks(place.process_id) != place.started_ticks:
            raise _unreachable("another process has its number")
    except OSError as error:
        os.close(descriptor)
        raise _unreachable("it ended") from error
    except PreconditionError:
        os.close(descriptor)
        raise
    return descriptor


def map_file(descriptor: int, size_bytes: int) -> int:
    """Returns the address of a shared, writable mapping. Raises OSError."""
    flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if size_bytes <= POPULATE_BYTES else 0)
    address = _libc.mmap(None, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0)
    if address in (None, _MAP_FAILED):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int(address)


def unmap(address: int, size_bytes: int) -> None:
    """Ends a mapping. Nothing may use it any more."""
    _libc.munmap(address, size_bytes)


def is_pipe(descriptor: int) -> bool:
    """Tells whether an open file is a pipe."""
    return stat.S_ISFIFO(os.fstat(descriptor).st_mode)


def _boot_id() -> bytes:
    return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))


def _started_ticks(process_id: int) -> int:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return int(fields[_START_TICKS])


def _unreachable(why: str) -> PreconditionError:
    return PreconditionError(f"the peer's pool is not shared: {why}", reason="OTHER_HOST")


# The C library's own calls and not the module `mmap`, whose objects keep the GIL while they map.
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_MAP_FAILED = ctypes.c_void_p(-1).value
