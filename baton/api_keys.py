"""API keys and the tenants they stand for, as a file that holds hashes only.

    - tenant: acme
      sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08

A key has 256 random bits, so that one round of SHA-256 is as good as a slow hash.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

import yaml

from baton.errors import ConfigError

logger = logging.getLogger(__name__)

ENV_API_KEY = "BATON_API_KEY"
"""The key that clients of the router send."""

KEY_PREFIX = "baton-"
OPERATOR = "operator"
"""The tenant whose keys open the console."""

MAX_TENANT_LENGTH = 64
_TENANT = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_TENANT_LENGTH}}}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """The hashes of all keys with their tenants."""

    entries: tuple[tuple[str, str], ...]

    def tenant_of(self, key: str) -> str | None:
        """Returns the tenant of a key, or None; a wrong key takes as long as a right one."""
        digest = digest_of(key)
        found = None
        for known, tenant in self.entries:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found

    def current(self) -> "ApiKeys":
        """Returns itself: these keys stay as they are, unlike a file's."""
        return self


class KeyFile:
    """A key file that is read again when it changed, so that keys come and go without a restart.

    A file that became unreadable or wrong leaves the keys as they were.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._keys = load_keys(path)

    def current(self) -> ApiKeys:
        """Returns the keys in force."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = load_keys(self._path)
            except ConfigError as error:
                logger.warning("key file kept as it was: %s", error)
        return self._keys


def _stamp(path: Path) -> tuple[int, int]:
    """Returns what changes with the file; zeros while there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def digest_of(key: str) -> str:
    """Returns what the file keeps of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def load_keys(path: Path) -> ApiKeys:
    """Reads a key file. Raises ConfigError with the entry at fault."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or []
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"the key file {path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise ConfigError(f"the key file {path} is not a list of entries; `baton key` writes one")
    return ApiKeys(tuple(_entry(path, at, item) for at, item in enumerate(content, 1)))


def add_key(path: Path, tenant: str) -> str:
    """Makes a key for a tenant, appends its hash to the file, and returns the key itself.

    It cannot be had again. Raises ConfigError for a bad name or file.
    """
    if not _TENANT.fullmatch(tenant):
        raise ConfigError(
            f"tenant {tenant!r} is not 1 to {MAX_TENANT_LENGTH} letters, digits, dots, dashes "
            "and underscores"
        )
    if path.exists():
        load_keys(path)
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "a", encoding="utf-8") as file:
            file.write(f"- tenant: {tenant}\n  sha256: {digest_of(key)}\n")
    except OSError as error:
        raise ConfigError(f"the key file {path} cannot be written: {error.strerror}") from error
    return key


def _entry(path: Path, at: int, item: object) -> tuple[str, str]:
    tenant = item.get("tenant") if isinstance(item, dict) else None
    digest = item.get("sha256") if isinstance(item, dict) else None
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise ConfigError(f"{path}, entry {at}: tenant is missing or has characters not allowed")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise ConfigError(f"{path}, entry {at}: sha256 is not 64 hexadecimal digits")
    return digest, tenant
