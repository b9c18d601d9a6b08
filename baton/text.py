"""From token ids back to text as they come, and stop strings on the way."""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns one answer's tokens into text that may be sent at once.

    Text is held back while a character is incomplete or while it could be the beginning of a stop
    string. After a stop string was found `stopped` is true and nothing more comes out; the stop
    string itself is never part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(stop)
        self._held = ""
        self._decoded: list[int] = []
        self._undecoded: list[int] = []
        self.stopped = False

    def push(self, token_ids: Sequence[int]) -> str:
        """Returns the text that these tokens make sendable."""
        if self.stopped or not token_ids:
            return ""
        new = list(token_ids)
        self._undecoded += new
        # All at once, which takes a third of the time: where the last of them ends within a
        # character, the text of all comes with the next ones.
        text = self._stream.step(self._tokenizer, new)
        if text is not None:
            self._held += text
            self._decoded, self._undecoded = self._undecoded, []
        return self._release()

    def flush(self) -> str:
        """Returns what was held back; call once, at the end. Half a character has no text."""
        text, self._held = self._held + self._rest(), ""
        return "" if self.stopped else text

    def _rest(self) -> str:
        """Returns the whole characters of tokens that ended within one."""
        if not self._undecoded:
            return ""
        # What a token means may depend on those before it, such as whether a space comes first.
        before = self._tokenizer.decode(self._decoded)
        text: str = self._tokenizer.decode(self._decoded + self._undecoded)
        return text.rstrip(_HALF_CHARACTER)[len(before) :]

    def _release(self) -> str:
        found = [at for at in map(self._held.find, self._stop) if at >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = _possible_stop(self._held, self._stop)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _possible_stop(text: str, stops: Sequence[str]) -> int:
    """Returns the length of the longest tail of `text` that begins a stop string."""
    longest = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:size]):
                longest = size
                break
    return longest
