"""The model a router serves: its tokenizer, its chat template and its limits.

Read from the model's directory without `transformers`, which would bring torch into the router.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from baton.errors import InvalidRequestError, StartupError
from baton.models import model_dir, model_name, tokenizer_digest

_LONG_TEXT = 8_192
"""Texts from this many characters on are encoded beside the event loop."""

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model's front end. `context_length` is in tokens; `eos_ids` end an answer."""

    name: str
    tokenizer: Tokenizer
    tokenizer_digest: str
    context_length: int
    vocab_size: int
    eos_ids: frozenset[int]
    template: "ChatTemplate | None"

    async def encode(self, text: str) -> list[int]:
        """Returns the tokens of a plain text, with the special tokens the model puts around one."""
        return await _encode(self.tokenizer, text, add_special_tokens=True)

    async def encode_chat(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the tokens of a conversation up to where the answer begins.

        Raises InvalidRequestError when the model has no chat template or it refuses the turns.
        """
        if self.template is None:
            raise InvalidRequestError(
                f"model {self.name!r} has no chat template; send the prompt as `text`",
                field="messages",
            )
        text = self.template.render(turns)
        # The template spells out the special tokens itself.
        return await _encode(self.tokenizer, text, add_special_tokens=False)


class ChatTemplate:
    """A model's Jinja template, run in a sandbox: templates are code from strangers."""

    def __init__(self, template: Template, special_tokens: dict[str, str]) -> None:
        self._template = template
        self._special_tokens = special_tokens

    def render(self, turns: Sequence[Turn]) -> str:
        """Returns the conversation as the model was trained to read it."""
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **self._special_tokens
            )
        except TemplateError as error:
            raise InvalidRequestError(
                f"the model's chat template refuses the conversation: {error.message}",
                field="messages",
            ) from error


def load_served_model(model: str) -> ServedModel:
    """Reads tokenizer, template and limits of a model. Raises StartupError naming what is wrong."""
    directory = model_dir(model)
    config = _read_json(directory / "config.json")
    text_config = config.get("text_config", config)
    try:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower for a broken file
        raise StartupError(f"{directory / 'tokenizer.json'}: {error}") from error
    return ServedModel(
        name=model_name(str(directory)),
        tokenizer=tokenizer,
        tokenizer_digest=tokenizer_digest(directory),
        context_length=_positive(directory, text_config, "max_position_embeddings"),
        vocab_size=_positive(directory, text_config, "vocab_size"),
        eos_ids=_eos_ids(directory, text_config),
        template=_chat_template(directory),
    )


async def _encode(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    if len(text) < _LONG_TEXT:
        return _encode_now(tokenizer, text, add_special_tokens)
    # The library computes without the GIL, so other requests go on meanwhile.
    return await asyncio.to_thread(_encode_now, tokenizer, text, add_special_tokens)


def _encode_now(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    return ids


def _chat_template(directory: Path) -> ChatTemplate | None:
    path = directory / "tokenizer_config.json"
    config = _read_json(path) if path.is_file() else {}
    source = _template_source(directory, config.get("chat_template"))
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    try:
        template = environment.from_string(source)
    except TemplateError as error:
        raise StartupError(f"{directory}: its chat template is broken: {error}") from error
    return ChatTemplate(template, _special_tokens(config))


def _template_source(directory: Path, configured: Any) -> str | None:
    """Returns the template from its own file, the configuration, or a list of named ones there."""
    own_file = directory / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text()
    if isinstance(configured, list):
        named = {entry["name"]: entry["template"] for entry in configured}
        return named.get("default")
    return configured if isinstance(configured, str) else None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    found = {name: config.get(name) for name in _SPECIAL_TOKENS}
    texts = {name: it.get("content") if isinstance(it, dict) else it for name, it in found.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _refuse(message: str) -> str:
    raise TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Replaces Jinja's own filter, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _eos_ids(directory: Path, config: dict[str, Any]) -> frozenset[int]:
    path = directory / "generation_config.json"
    generation = _read_json(path) if path.is_file() else {}
    eos = generation.get("eos_token_id")
    if eos is None:
        eos = config.get("eos_token_id")
    if eos is None:
        return frozenset()
    return frozenset(eos) if isinstance(eos, list) else frozenset((eos,))


def _positive(directory: Path, config: dict[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value <= 0:
        raise StartupError(f"{directory / 'config.json'}: {name} is missing or not positive")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StartupError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise StartupError(f"{path}: must hold a JSON object")
    return value
