"""Who a process is to its fleet: the certificate it shows and the authority that it trusts.

BATON_TLS_DIR names a folder with `ca.pem` (the fleet's authority), `cert.pem` and `key.pem`. Where
it is set, every gRPC connection of the process is TLS, and servers inside the mesh take calls only
from holders of a certificate that this authority signed: a worker that registers without one gets
no traffic, and its transfer metadata goes nowhere. Where it is not set nothing is encrypted, which
is meant for one machine. `baton certs` makes such a folder.

Files are read at each handshake and each new connection, so replacing them needs no restart. The
certificate's subject alternative names must hold FLEET_NAME: addresses inside a fleet come and go,
so peers are known by the authority's signature and not by where they are.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from baton.errors import StartupError

ENV_TLS_DIR = "BATON_TLS_DIR"
FLEET_NAME = "baton.mesh"

CA_FILE, CERT_FILE, KEY_FILE = "ca.pem", "cert.pem", "key.pem"

TARGET_NAME = ("grpc.ssl_target_name_override", FLEET_NAME)
"""Channel option: the name that a server's certificate has to hold."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A folder with certificates. A client may lack `cert.pem` and `key.pem`."""

    directory: Path

    @classmethod
    def of(cls, environ: Mapping[str, str] | None = None) -> "Identity | None":
        """Returns this process's identity, or None where BATON_TLS_DIR is not set."""
        directory = (os.environ if environ is None else environ).get(ENV_TLS_DIR, "")
        return cls(Path(directory)) if directory else None

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Returns what a client shows and trusts. Raises StartupError for a missing file."""
        has_own = (self.directory / CERT_FILE).exists()
        return grpc.ssl_channel_credentials(
            self._read(CA_FILE),
            self._read(KEY_FILE) if has_own else None,
            self._read(CERT_FILE) if has_own else None,
        )

    def server_credentials(self, admits_strangers: bool) -> grpc.ServerCredentials:
        """Returns what a server shows; without strangers it asks each client for a certificate.

        Raises StartupError for a missing file.
        """
        return grpc.dynamic_ssl_server_credentials(
            self._server_configuration(),
            self._server_configuration,
            require_client_authentication=not admits_strangers,
        )

    def _server_configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = (self._read(KEY_FILE), self._read(CERT_FILE))
        return grpc.ssl_server_certificate_configuration([pair], self._read(CA_FILE))

    def _read(self, name: str) -> bytes:
        path = self.directory / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise StartupError(
                f"{ENV_TLS_DIR}: {path} cannot be read ({error.strerror}); `baton certs "
                f"{self.directory}` makes the files, unset {ENV_TLS_DIR} to go without TLS"
            ) from error
