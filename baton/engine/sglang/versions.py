"""Which SGLang releases this adapter was written for and tested with."""

from importlib import metadata

from baton.errors import StartupError

SUPPORTED = {
    "0.5.23": "the current one; what the CPU tests run",
    "0.5.17": "the newest for torch 2.11",
}
"""Release and why it is here. Others are refused: the adapter speaks to internals."""


def check_version() -> str:
    """Returns the installed release. Raises StartupError when it is missing or not supported."""
    known = ", ".join(f"{version} ({why})" for version, why in SUPPORTED.items())
    try:
        found = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        raise StartupError(
            f"engine.kind is sglang but SGLang is not installed; supported: {known}. "
            "pip install 'baton[sglang]', or `make setup-sglang-cpu` without a GPU"
        ) from None
    if found not in SUPPORTED:
        raise StartupError(f"SGLang {found} is not supported; install one of: {known}")
    return found
