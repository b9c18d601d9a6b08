"""The OpenAI requests that the gateway takes, and what it refuses by name.

Fields that Baton does not carry out are refused rather than ignored, unless their value asks for
nothing. Beyond OpenAI's fields there are Baton's own, given by `extra_body` in OpenAI's client.
"""

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from baton.errors import InvalidRequestError

UNSUPPORTED = "UNSUPPORTED_FIELD"

_NEUTRAL_EVERYWHERE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}
_NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = _NEUTRAL_EVERYWHERE | {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "store": (False,),
    "metadata": ({},),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
}
_NEUTRAL_TEXT: dict[str, tuple[Any, ...]] = _NEUTRAL_EVERYWHERE | {
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (),
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StreamOptions(_Part):
    """What a stream carries besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextPart(_Part):
    """A piece of a message; other kinds than text are not understood."""

    type: Literal["text"]
    text: str


class Message(_Part):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class Common(_Part):
    """What both kinds of request have."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**64)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    prompt_cache_key: str | None = None
    # Baton's own.
    priority: Literal["low", "normal", "high"] | None = None
    top_k: int | None = None
    min_p: float | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    session_id: str | None = None
    cache_salt: str | None = None
    ttft_slo_ms: float | None = Field(default=None, gt=0)
    tpot_slo_ms: float | None = Field(default=None, gt=0)

    @property
    def limit(self) -> int | None:
        """Most tokens of the answer."""
        return self.max_tokens

    @property
    def wants_usage(self) -> bool:
        """Tells whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(Common):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None

    @property
    def limit(self) -> int | None:
        """The newer name wins."""
        newer = self.max_completion_tokens
        return self.max_tokens if newer is None else newer


class TextRequest(Common):
    """POST /v1/completions. One prompt, as text or token ids."""

    prompt: str | list[str] | list[int] | list[list[int]]


R = TypeVar("R", bound=Common)


def parse_chat(body: dict[str, Any]) -> ChatRequest:
    """Returns a checked chat request. Raises InvalidRequestError with the field at fault."""
    return _parse(ChatRequest, body, _NEUTRAL_CHAT)


def parse_text(body: dict[str, Any]) -> TextRequest:
    """Returns a checked text request. Raises InvalidRequestError with the field at fault."""
    return _parse(TextRequest, body, _NEUTRAL_TEXT)


def _parse(kind: type[R], body: dict[str, Any], neutral: dict[str, tuple[Any, ...]]) -> R:
    given = {name: value for name, value in body.items() if value is not None}
    for name, harmless in neutral.items():
        if name not in given:
            continue
        value = given.pop(name)
        if not any(type(value) is type(each) and value == each for each in harmless):
            raise _unsupported(name, value)
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise _invalid(error) from None


def _unsupported(name: str, value: Any) -> InvalidRequestError:
    shown = f"{name}={value!r}" if isinstance(value, str | int | float | bool) else name
    return InvalidRequestError(
        f"{shown[:80]} is not supported by this server; leave it out",
        reason=UNSUPPORTED,
        field=name,
    )


def _invalid(error: ValidationError) -> InvalidRequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    field = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        return InvalidRequestError(
            f"{field} is not a field that this server knows; leave it out",
            reason=UNSUPPORTED,
            field=field,
        )
    return InvalidRequestError(f"{field}: {first['msg']}", field=field)


def _path(location: tuple[int | str, ...]) -> str:
    """Returns "messages[0].content"; names of a union's branches, which follow, are left out."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step.isidentifier() and step not in ("str", "int"):
            path += f".{step}" if path else step
        else:
            break
    return path
