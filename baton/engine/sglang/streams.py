"""SGLang's outputs grow from one to the next; streams want what is new. Pure."""

from collections.abc import Mapping
from typing import Any


class Increments:
    """Turns the cumulative outputs of one request into increments."""

    def __init__(self) -> None:
        self._tokens = 0
        self._logprobs = 0

    def take(self, output: Mapping[str, Any]) -> tuple[list[int], list[float]]:
        """Returns the token ids and log probabilities that earlier outputs did not have."""
        token_ids = list(output.get("output_ids") or ())
        entries = output.get("meta_info", {}).get("output_token_logprobs") or ()
        new_ids = token_ids[self._tokens :]
        new_logprobs = [float(entry[0]) for entry in entries[self._logprobs :]]
        self._tokens = max(self._tokens, len(token_ids))
        self._logprobs = max(self._logprobs, len(entries))
        return new_ids, new_logprobs
