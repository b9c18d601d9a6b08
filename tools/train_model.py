"""Trains Baton's default model from the documentation that ships with Python.

One command, no network, minutes on two cores: `python tools/train_model.py --out DIR`. The same
Python, libraries, machine and number of threads give the same bytes: seeds are fixed and the run
ends after a number of steps, never after a time.
"""

import hashlib
import itertools
import platform
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from model_corpus import load_corpus
from model_files import END_ID, save_model, train_tokenizer
from model_samples import plain_document, token_stream
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

SEED = 20
STEP_TOKENS = 2048
SHORT_CONTEXT, MEDIUM_CONTEXT, LONG_CONTEXT = 256, 2048, 8192
MEDIUM_EVERY, LONG_EVERY = 8, 64
PEAK_LEARNING_RATE = 8e-3
WARM_UP_STEPS = 30
WEIGHT_DECAY = 0.1
ANSWER_TOKENS = 80
PROMPTS = (
    "What is json?",
    "Explain the module threading.",
    "What does os.path.join do?",
    "Tell me about classes.",
)

console = Console()


def main(
    out: Annotated[Path, typer.Option(help="Directory to write; replaced as a whole.")],
    steps: Annotated[int, typer.Option(min=1, help=f"Steps of {STEP_TOKENS} tokens.")] = 800,
    threads: Annotated[int, typer.Option(help="CPU threads; part of what fixes the result.")] = 2,
) -> None:
    """Trains the tokenizer and the model and writes both to OUT."""
    torch.manual_seed(SEED)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(mode=True)
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    started = time.perf_counter()
    corpus = load_corpus()
    tokenizer = train_tokenizer(corpus.train)
    model = LlamaForCausalLM(_config(tokenizer))
    documents = token_stream(corpus.train, tokenizer, SEED)
    train_loss = _train(model, _batches(documents), steps)
    trained_s = time.perf_counter() - started
    save_model(model, tokenizer, out)

    held_out = [plain_document(entry) for entry in corpus.held_out]
    saved = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    _report(saved, tokenizer, held_out, train_loss)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    console.print(f"{steps} steps in {trained_s:.0f} s on {threads} threads, {_versions()}")
    console.print(f"{model.num_parameters():,} parameters, model.safetensors sha256 {digest}")


def _config(tokenizer: Tokenizer) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=LONG_CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
    )


def _batches(documents: Iterator[list[int]]) -> Iterator[torch.Tensor]:
    """Yields [rows, context] token ids, a step's worth at a time, cut from the packed documents."""
    tokens: list[int] = []
    for step in itertools.count(1):
        context = _context(step)
        wanted = max(STEP_TOKENS, context)
        while len(tokens) < wanted:
            tokens += next(documents)
        yield torch.tensor(tokens[:wanted]).view(-1, context)
        del tokens[:wanted]


def _context(step: int) -> int:
    """Mostly short, for speed; now and then long, so that every position has been seen."""
    if step % LONG_EVERY == 0:
        return LONG_CONTEXT
    return MEDIUM_CONTEXT if step % MEDIUM_EVERY == 0 else SHORT_CONTEXT


def _train(model: LlamaForCausalLM, batches: Iterator[torch.Tensor], steps: int) -> float:
    """Returns the training loss in nats per token, smoothed over about the last 20 steps."""
    optimizers = _optimizers(model)
    schedules = [LambdaLR(each, partial(_learning_rate_share, steps=steps)) for each in optimizers]
    smoothed_loss: float | None = None
    model.train()
    with _progress() as progress:
        task = progress.add_task("training", total=steps, loss=float("nan"))
        for _ in range(steps):
            loss = _train_step(model, next(batches), optimizers)
            for schedule in schedules:
                schedule.step()
            smoothed_loss = loss if smoothed_loss is None else 0.95 * smoothed_loss + 0.05 * loss
            progress.update(task, advance=1, loss=smoothed_loss)
    assert smoothed_loss is not None
    return smoothed_loss


def _optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms.

    At this size and budget Muon reaches a clearly lower loss than AdamW alone.
    """
    matrices: list[torch.Tensor] = []
    rest: list[torch.Tensor] = []
    for name, weight in model.named_parameters():
        is_matrix = weight.dim() == 2 and "embed_tokens" not in name
        (matrices if is_matrix else rest).append(weight)
    return [
        torch.optim.Muon(
            matrices,
            lr=PEAK_LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(rest, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _learning_rate_share(step: int, steps: int) -> float:
    """Warms up linearly, then falls linearly to zero at the last step."""
    return min((step + 1) / WARM_UP_STEPS, (steps - step) / max(1, steps - WARM_UP_STEPS))


def _train_step(
    model: LlamaForCausalLM,
    input_ids: torch.Tensor,
    optimizers: Sequence[torch.optim.Optimizer],
) -> float:
    loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=console,
    )


@torch.inference_mode()
def _report(
    model: LlamaForCausalLM, tokenizer: Tokenizer, held_out: Sequence[str], train_loss: float
) -> None:
    """Prints the losses of the saved, rounded weights and what the model says."""
    model.train(mode=False)
    encodings = tokenizer.encode_batch(list(held_out))
    tokens = torch.tensor([token for encoding in encodings for token in encoding.ids])
    for context in (SHORT_CONTEXT, MEDIUM_CONTEXT, LONG_CONTEXT):
        rows = tokens[: len(tokens) // context * context].view(-1, context)
        if len(rows):
            losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in rows]
            console.print(f"held-out loss at {context}: {sum(losses) / len(losses):.3f}")
    console.print(f"training loss: {train_loss:.3f}")
    generator = torch.Generator().manual_seed(SEED)
    for prompt in PROMPTS:
        for temperature in (0.0, 0.7):
            answer = _answer(model, tokenizer, prompt, temperature, generator)
            console.print(f"[{temperature}] {prompt} -> {answer!r}", markup=False)


def _answer(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    prompt: str,
    temperature: float,
    generator: torch.Generator,
) -> str:
    """Returns what the model says to a chat of one turn; temperature 0 is greedy."""
    prompt_ids = tokenizer.encode(f"<|user|>{prompt}<|endoftext|><|assistant|>").ids
    token_ids = list(prompt_ids)
    while len(token_ids) < len(prompt_ids) + ANSWER_TOKENS:
        logits = model(input_ids=torch.tensor([token_ids])).logits[0, -1]
        token_ids.append(_pick(logits, temperature, generator))
        if token_ids[-1] == END_ID:
            break
    return tokenizer.decode(token_ids[len(prompt_ids) :])


def _pick(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    shares = torch.softmax(logits / temperature, dim=-1)
    return int(torch.multinomial(shares, 1, generator=generator))


def _versions() -> str:
    return f"Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    typer.run(main)
