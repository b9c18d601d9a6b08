"""Documents that the default model trains on: plain text and chats made from the corpus."""

from collections.abc import Iterator, Sequence
from random import Random

from model_corpus import Entry, Kind
from tokenizers import Tokenizer

END = "<|endoftext|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (END, SYSTEM, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|endoftext|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

_QUESTIONS = {
    Kind.TOPIC: (
        "What is {}?",
        "Explain {}.",
        "Tell me about {}.",
        "How does {} work?",
        "What is {} in Python?",
    ),
    Kind.MODULE: (
        "Explain the module {}.",
        "What is the {} module?",
        "What does the module {} do?",
        "Tell me about the module {}.",
        "Explain {}.",
    ),
    Kind.CLASS: (
        "What is {}?",
        "Explain the class {}.",
        "What is the class {} for?",
        "Tell me about {}.",
    ),
    Kind.FUNCTION: (
        "What does {} do?",
        "Explain {}.",
        "How does the function {} work?",
        "Tell me about {}.",
    ),
}
_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer questions about Python.",
    "Answer in a few sentences.",
)
_SYSTEM_SHARE = 0.3
_SECOND_TURN_SHARE = 0.3
_ANSWER_CHARS = 700


def token_stream(entries: Sequence[Entry], tokenizer: Tokenizer, seed: int) -> Iterator[list[int]]:
    """Yields the token ids of one document after the other, for ever.

    Each pass over the corpus has an order and questions of its own, fixed by `seed`.
    """
    rng = Random(seed)  # noqa: S311 - shuffling, not secrets
    while True:
        for encoding in tokenizer.encode_batch(_documents(entries, rng)):
            yield encoding.ids


def plain_document(entry: Entry) -> str:
    """Returns an entry as running text."""
    return "\n\n".join(entry.paragraphs) + END


def _documents(entries: Sequence[Entry], rng: Random) -> list[str]:
    """Returns one pass: a chat about each entry, and as text what is longer than an answer."""
    documents = [plain_document(entry) for entry in entries if _is_long(entry)]
    documents += [_chat_document(entry, entries, rng) for entry in entries]
    rng.shuffle(documents)
    return documents


def _chat_document(entry: Entry, entries: Sequence[Entry], rng: Random) -> str:
    """Returns one or two turns of question and answer, the first about `entry`."""
    chat = ""
    if rng.random() < _SYSTEM_SHARE:
        chat += SYSTEM + rng.choice(_SYSTEM_PROMPTS) + END
    chat += _exchange(entry, rng)
    if rng.random() < _SECOND_TURN_SHARE:
        chat += _exchange(rng.choice(entries), rng)
    return chat


def _exchange(entry: Entry, rng: Random) -> str:
    # Nobody types a full dotted path, so the model hears short names about as often.
    name = entry.name if rng.random() < 0.5 else entry.name.rpartition(".")[2]
    question = rng.choice(_QUESTIONS[entry.kind]).format(name)
    return USER + question + END + ASSISTANT + _answer(entry) + END


def _is_long(entry: Entry) -> bool:
    return sum(map(len, entry.paragraphs)) > _ANSWER_CHARS


def _answer(entry: Entry) -> str:
    answer = entry.paragraphs[0]
    for paragraph in entry.paragraphs[1:]:
        if len(answer) + len(paragraph) > _ANSWER_CHARS:
            break
        answer += "\n\n" + paragraph
    return answer
