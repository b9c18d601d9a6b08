"""What was measured so far, kept in a file after every part."""

import json
from pathlib import Path
from typing import Any


class State:
    """Measured parts by name."""

    def __init__(self, file: Path, keep: bool) -> None:
        self._file = file
        self.values: dict[str, Any] = {}
        if keep and file.is_file():
            self.values = json.loads(file.read_text())

    def has(self, name: str) -> bool:
        """Tells whether a part was measured."""
        return name in self.values

    def put(self, name: str, value: Any) -> None:
        """Keeps a part."""
        self.values[name] = value
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self.values, indent=1))
