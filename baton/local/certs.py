"""Makes a fleet's certificates: an authority of its own and one certificate for its processes."""

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

from baton.errors import StartupError
from baton.rpc.identity import CA_FILE, CERT_FILE, FLEET_NAME, KEY_FILE

CA_KEY_FILE = "ca-key.pem"
"""Signs the next certificates; processes do not need it, so keep it elsewhere."""

_CA_DAYS = 3650
_SKEW = datetime.timedelta(minutes=5)
_PRIVATE = 0o600


@dataclass(frozen=True, slots=True)
class _Signed:
    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes


def write_certificates(directory: Path, hosts: Sequence[str] = (), days: int = 90) -> bool:
    """Writes a certificate for the fleet's processes into `directory`; returns True if it is new.

    Makes an authority where the folder has none and else signs with the one there, which renews
    what running processes show. `hosts` are names and addresses that clients of the router use
    beside localhost. Raises StartupError when the folder cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        is_new = not (directory / CA_FILE).exists()
        authority = _make_authority(directory) if is_new else _load_authority(directory)
        own = _sign(FLEET_NAME, authority, ("localhost", "127.0.0.1", "::1", *hosts), days)
        # The key first: a pair that does not fit would break handshakes for a moment longer.
        _write(directory / KEY_FILE, _key_bytes(own.key), _PRIVATE)
        _write(directory / CERT_FILE, _certificate_bytes(own.certificate), 0o644)
    except (OSError, ValueError) as error:
        raise StartupError(f"{directory}: certificates cannot be made there: {error}") from error
    return is_new


def _make_authority(directory: Path) -> _Signed:
    authority = _sign("Baton fleet authority", None, (), _CA_DAYS)
    _write(directory / CA_KEY_FILE, _key_bytes(authority.key), _PRIVATE)
    _write(directory / CA_FILE, _certificate_bytes(authority.certificate), 0o644)
    return authority


def _load_authority(directory: Path) -> _Signed:
    key = serialization.load_pem_private_key((directory / CA_KEY_FILE).read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{CA_KEY_FILE} is no key that `baton certs` made")  # noqa: TRY004
    return _Signed(x509.load_pem_x509_certificate((directory / CA_FILE).read_bytes()), key)


def _sign(name: str, issuer: _Signed | None, hosts: Sequence[str], days: int) -> _Signed:
    """Returns a key and its certificate; one without an issuer is an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
    )
    if issuer is not None:
        names = [x509.DNSName(FLEET_NAME), *map(_general_name, hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _Signed(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_bytes(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _certificate_bytes(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replaces a file in one step, so that a process that reads it meanwhile reads a whole one."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    fresh.replace(path)
