"""Loading a causal LM from a local directory and finding out whether it can be served here.

Nothing is assumed from a model's name: a probe pass shows which layers call the attention function
with what, and a second one compares the paged pass with the library's own attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from baton.engine.torch.attention import ATTENTION_NAME, AttentionStep, paged_attention
from baton.errors import StartupError
from baton.models import model_dir, model_name, tokenizer_digest

_UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "sinks", "position_bias", "attention_bias")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
_REFUSALS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ImportError,
    AssertionError,
)
"""What foreign model code raises when it is asked for something that it does not know."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to compute, and what the engine must know of it."""

    name: str
    module: Any
    tokenizer: Tokenizer
    tokenizer_digest: str
    device: torch.device
    dtype: torch.dtype
    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    eos_ids: frozenset[int]

    def use_attention(self, name: str) -> None:
        """Switches all layers to another attention function of the library."""
        self.module.set_attn_implementation(name)

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        sampled_rows: torch.Tensor,
        step: AttentionStep,
    ) -> torch.Tensor:
        """Returns the logits [sampled rows, vocabulary] of a flat batch of tokens."""
        return _forward(self.module, input_ids, positions, sampled_rows, step)


@dataclass(slots=True)
class _Probe:
    """Records how each layer calls attention, and answers with zeros."""

    shapes: dict[int, tuple[int, int]] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        window: int | None,
        extras: Mapping[str, object],
    ) -> torch.Tensor:
        unsupported = [n for n in _UNSUPPORTED_ARGUMENTS if extras.get(n) is not None]
        if unsupported:
            raise StartupError(f"its attention needs {', '.join(unsupported)}")
        if extras.get("is_causal") is False:
            raise StartupError("its attention is not causal")
        if key.shape != value.shape or key.shape[-1] != query.shape[-1]:
            raise StartupError("its keys and values differ in size (latent attention)")
        if layer in self.shapes:
            raise StartupError("a layer attends twice")
        self.shapes[layer] = (key.shape[1], key.shape[3])
        return torch.zeros_like(query[0].transpose(0, 1))


def load_model(model: str, device: str, dtype: str) -> LoadedModel:
    """Loads the model in a directory. `device` and `dtype` may be "auto".

    Raises StartupError naming what is missing or why the model cannot be served.
    """
    directory = model_dir(model)
    if not any(directory.glob("*.safetensors")):
        raise StartupError(f"model {model!r}: no *.safetensors in {directory}")
    place = _device(device)
    kind = _dtype(dtype, place)
    try:
        return _load(directory, model_name(str(directory)), place, kind)
    except StartupError as error:
        raise StartupError(f"model {model!r} cannot be served: {error}") from error
    except _REFUSALS as error:
        summary = f"{type(error).__name__}: {error}".splitlines()[0]
        raise StartupError(f"model {model!r} cannot be served: {summary}") from error


def _load(directory: Path, name: str, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    _check_config(config)
    # No mask function is registered under this name, so the library builds no mask at all.
    AttentionInterface.register(ATTENTION_NAME, paged_attention)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # the library's own omission
    # What the factory returns depends on its arguments in a way that its types do not say.
    factory: Any = AutoModelForCausalLM
    module, report = factory.from_pretrained(
        directory,
        config=config,
        dtype=dtype,
        attn_implementation=ATTENTION_NAME,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if report["missing_keys"]:
        raise StartupError(f"weights are missing: {', '.join(sorted(report['missing_keys'])[:3])}")
    module = module.to(device).eval()
    kv_heads, head_dim = _probed_shape(module, config.num_hidden_layers, device)
    return LoadedModel(
        name=name,
        module=module,
        tokenizer=Tokenizer.from_file(str(directory / "tokenizer.json")),
        tokenizer_digest=tokenizer_digest(directory),
        device=device,
        dtype=dtype,
        layers=config.num_hidden_layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=config.vocab_size,
        context_length=config.max_position_embeddings,
        eos_ids=_eos_ids(module, config),
    )


# Configurations of the library have no common type that knows these attributes.
def _check_config(config: Any) -> None:
    if config.is_encoder_decoder:
        raise StartupError("it is an encoder-decoder")
    if not getattr(config, "max_position_embeddings", None):
        raise StartupError("config.json has no max_position_embeddings")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
        raise StartupError(
            f"its {rope['rope_type']} rotary embedding changes with the sequence's length, "
            "so that a cached prefix would be wrong in a longer prompt"
        )


def _probed_shape(module: Any, layers: int, device: torch.device) -> tuple[int, int]:
    """Returns the KV heads and head size that every layer has."""
    probe = _Probe()
    ids = torch.zeros(2, dtype=torch.long, device=device)
    with torch.inference_mode():
        logits = _forward(module, ids, torch.arange(2, device=device), ids[:1] + 1, probe)
    if sorted(probe.shapes) != list(range(layers)):
        raise StartupError(
            f"only {len(probe.shapes)} of its {layers} layers use standard attention"
        )
    if len(set(probe.shapes.values())) != 1:
        raise StartupError("its layers differ in KV heads or head size")
    if logits.dim() != 2 or logits.shape[0] != 1:
        raise StartupError("it cannot return the logits of selected positions")
    return probe.shapes[0]


def _forward(
    module: Any,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    sampled_rows: torch.Tensor,
    step: AttentionStep,
) -> torch.Tensor:
    output = module(
        input_ids=input_ids.unsqueeze(0),
        position_ids=positions.unsqueeze(0),
        use_cache=False,
        logits_to_keep=sampled_rows,
        baton_step=step,
    )
    logits = output.logits[0]
    assert isinstance(logits, torch.Tensor)
    return logits


def _eos_ids(module: Any, config: Any) -> frozenset[int]:
    eos = getattr(module.generation_config, "eos_token_id", None)
    if eos is None:
        eos = config.eos_token_id
    if eos is None:
        return frozenset()
    return frozenset(eos) if isinstance(eos, list | tuple) else frozenset((eos,))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise StartupError('device "cuda" is asked for but torch finds no GPU; use "cpu"')
    return torch.device(name)


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise StartupError(f"dtype {name!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]
