"""The files of the default model: its tokenizer and the directory that a server loads."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from model_corpus import Entry
from model_samples import CHAT_TEMPLATE, END, SPECIAL_TOKENS, plain_document
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaForCausalLM

VOCAB_SIZE = 4096
END_ID = 0


def train_tokenizer(entries: Sequence[Entry]) -> Tokenizer:
    """Returns a byte-level BPE tokenizer; any text encodes, and the first id is the end of text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (plain_document(entry).removesuffix(END) for entry in entries)
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(END) == END_ID
    return tokenizer


def save_model(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path) -> None:
    """Writes everything to a directory beside `out`, then puts it in the place of `out`.

    Weights are rounded to bfloat16, in place, which halves the file.
    """
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    context = model.config.max_position_embeddings
    model.generation_config = GenerationConfig(eos_token_id=END_ID, pad_token_id=END_ID)
    model.to(torch.bfloat16).save_pretrained(fresh)
    tokenizer.save(str(fresh / "tokenizer.json"))
    (fresh / "model.safetensors").chmod(0o644)  # written as readable by its owner only
    text = json.dumps(_tokenizer_config(context), indent=2)
    (fresh / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
    _put_in_place(fresh, out)


def _tokenizer_config(context: int) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _put_in_place(fresh: Path, out: Path) -> None:
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    fresh.rename(out)
    shutil.rmtree(old, ignore_errors=True)
