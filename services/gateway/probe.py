"""Asks an HTTP address once, for health checks: exit code 0 when it answers 200.

python -m services.gateway.probe http://127.0.0.1:7480/readyz
"""

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 3.0


def main() -> None:
    """Exits with 1 and the reason when the answer is another one or none."""
    url = sys.argv[1]
    if not url.startswith("http://"):
        sys.exit(f"{url} is no http:// address")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S):  # noqa: S310 - checked above
            return
    except (urllib.error.URLError, TimeoutError) as error:
        sys.exit(f"{url}: {error}")


if __name__ == "__main__":
    main()
