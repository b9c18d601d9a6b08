"""The router's answer as OpenAI's objects, whole or in chunks."""

from dataclasses import dataclass
from typing import Any

from baton.client import Completion, Timing

_PARTS = (
    "tokenize", "admission", "route", "decode_admit",
    "prefill_queue", "prefill_compute", "kv_transfer", "first_step",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """How one kind of answer looks; `created` is in seconds since 1970."""

    request_id: str
    model: str
    created: int
    is_chat: bool

    def whole(self, text: str, done: Completion) -> dict[str, Any]:
        """Returns the answer to a request that does not stream."""
        content = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = self._choice(content if self.is_chat else {"text": text}, reason_of(done))
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self._object(kind, [choice], done.model) | {"usage": usage(done)}

    def opening(self) -> dict[str, Any] | None:
        """Returns the chunk that begins a stream, where there is one."""
        if not self.is_chat:
            return None
        return self._chunk([self._choice({"delta": {"role": "assistant", "content": ""}}, None)])

    def piece(self, text: str) -> dict[str, Any]:
        """Returns a chunk with some text."""
        return self._chunk([self._choice(self._delta(text), None)])

    def closing(self, done: Completion) -> dict[str, Any]:
        """Returns the chunk that says why the answer ended."""
        content: dict[str, Any] = {"delta": {}} if self.is_chat else {"text": ""}
        return self._chunk([self._choice(content, reason_of(done))])

    def accounting(self, done: Completion) -> dict[str, Any]:
        """Returns the chunk with the usage."""
        return self._chunk([]) | {"usage": usage(done)}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}} if self.is_chat else {"text": text}

    def _choice(self, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return self._object(kind, choices, self.model)

    def _object(self, kind: str, choices: list[dict[str, Any]], model: str) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": kind,
            "created": self.created,
            "model": model,
            "choices": choices,
        }


def reason_of(done: Completion) -> str:
    """Returns "stop" or "length"."""
    return done.finish_reason.name.lower()


def usage(done: Completion) -> dict[str, Any]:
    """Returns the tokens that the request took."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
    }


def server_timing(timing: Timing) -> str:
    """Returns the parts of the TTFT as a Server-Timing header, in milliseconds."""
    parts = [(name, getattr(timing, f"{name}_s")) for name in _PARTS]
    whole = [("ttft", timing.ttft_s), ("total", timing.total_s)]
    return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in (*parts, *whole))
