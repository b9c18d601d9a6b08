"""A client's request as the router works with it."""

import secrets
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from baton.requests import Priority, SamplingParams
from services.router.model import ServedModel, Turn


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in the one form the client chose; the others are empty."""

    text: str = ""
    turns: tuple[Turn, ...] = ()
    input_ids: Sequence[int] = ()

    @property
    def field(self) -> str:
        """The request field it came in."""
        if self.turns:
            return "messages"
        return "input_ids" if self.input_ids else "text"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A checked request. Targets are in seconds; None takes the fleet's."""

    request_id: str
    prompt: Prompt
    sampling: SamplingParams
    priority: Priority = Priority.NORMAL
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    tenant: str = ""
    session_id: str = ""
    cache_salt: str = ""

    @property
    def operation(self) -> str:
        """What telemetry calls this kind of request."""
        return "chat" if self.prompt.turns else "text_completion"


def new_request_id() -> str:
    """Returns a name for a request whose client gave none."""
    return f"req-{secrets.token_hex(8)}"


async def tokenize(incoming: Incoming, model: ServedModel) -> Sequence[int]:
    """Returns the prompt's tokens. Raises InvalidRequestError when the chat template refuses it.

    They are packed once here, as those that came as ids are: they are checked, hashed and sent so.
    """
    prompt = incoming.prompt
    if prompt.turns:
        return array("I", await model.encode_chat(prompt.turns))
    return prompt.input_ids or array("I", await model.encode(prompt.text))


def fitted(sampling: SamplingParams, room_tokens: int, vocab_size: int) -> SamplingParams:
    """Returns the parameters capped by the context's room and the vocabulary."""
    top_k = None if (sampling.top_k or 0) >= vocab_size else sampling.top_k
    if sampling.max_tokens <= room_tokens and top_k == sampling.top_k:
        return sampling
    return replace(sampling, max_tokens=min(sampling.max_tokens, room_tokens), top_k=top_k)
