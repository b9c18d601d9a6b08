"""The small parts of the router: credits, suspects, timing, tokens."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from baton.errors import InvalidRequestError, StartupError
from baton.models import model_dir
from baton.state.background import running
from baton.state.connect import connect
from baton.state.shared_credits import CreditExchange
from services.router.credits import FleetCredits, InFlightCredits, Suspects
from services.router.model import Turn, load_served_model
from services.router.timing import LAST_PART, MEASURED_PARTS, breakdown, tpot_s, ttft_parts_ns
from tests.support.waiting import eventually


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.sampled_from("abc"), st.integers(0, 99)),
        st.tuples(st.just("give"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("pass"), st.floats(0, 2), st.just(0)),
    )
)


@given(steps=STEPS)
def test_credits_return_to_zero_and_count_what_figures_cannot_show(
    steps: list[tuple[str, object, int]],
) -> None:
    clock = ManualClock()
    credits = InFlightCredits(clock)
    held = []
    for kind, value, tokens in steps:
        if kind == "take":
            held.append(credits.take(str(value), tokens))
        elif kind == "pass":
            clock.now_s += float(value)  # type: ignore[arg-type]
        elif held:
            credits.give_back(held.pop(int(value) % len(held)))  # type: ignore[call-overload]
        assert credits.total == len(held)
        for name in "abc":
            own = [it for it in held if it.incarnation == name]
            assert credits.unseen(name, float("-inf")) == (len(own), sum(it.tokens for it in own))
            assert credits.unseen(name, clock.now_s + 1).requests == 0
    for credit in held:
        credits.give_back(credit)
        credits.give_back(credit)
    assert credits.total == 0


def test_credit_counts_only_until_figures_can_show_it() -> None:
    clock = ManualClock()
    credits = InFlightCredits(clock)
    with credits.hold("w", tokens=40):
        assert credits.unseen("w", stats_at_s=-1.0) == (1, 40)
        assert credits.unseen("w", stats_at_s=0.01) == (1, 40)
        assert credits.unseen("w", stats_at_s=0.5) == (0, 0)
    assert credits.total == 0


def test_suspicion_fades() -> None:
    clock = ManualClock()
    suspects = Suspects(3.0, clock)
    suspects.add("w")
    assert "w" in suspects
    assert "v" not in suspects
    clock.now_s = 3.0
    assert "w" not in suspects


@given(
    measured=st.dictionaries(st.sampled_from(MEASURED_PARTS), st.floats(-1, 10)),
    ttft_s=st.floats(0, 20),
)
def test_ttft_parts_add_up_exactly(measured: dict[str, float], ttft_s: float) -> None:
    parts = ttft_parts_ns(measured, ttft_s)
    assert list(parts) == [*MEASURED_PARTS, LAST_PART]
    assert all(part >= 0 for part in parts.values())
    message = breakdown(parts, None, 1.0)
    assert message.ttft.ToNanoseconds() == sum(parts.values()) == round(ttft_s * 1e9)


def test_tpot_is_undefined_below_two_tokens() -> None:
    assert tpot_s(1.0, 2.0, 1) is None
    assert tpot_s(1.0, 2.0, 5) == 0.25


def copy_of_model(target: Path, **config: object) -> Path:
    """Copies the default model's tokenizer and changes tokenizer_config.json."""
    source = model_dir("baton-tiny")
    target.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (target / name).write_bytes((source / name).read_bytes())
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


async def test_text_is_encoded_alike_on_and_beside_the_event_loop() -> None:
    model = load_served_model("baton-tiny")
    tokenizer = Tokenizer.from_file(str(model_dir("baton-tiny") / "tokenizer.json"))
    for text in ("The import statement", "for item in items: print(item)\n" * 600):
        assert await model.encode(text) == tokenizer.encode(text).ids


async def test_chat_is_rendered_by_the_models_template() -> None:
    model = load_served_model("baton-tiny")
    ids = await model.encode_chat([Turn("system", "Be brief."), Turn("user", "Hi")])
    text = model.tokenizer.decode(ids, skip_special_tokens=False)
    assert text == ("<|system|>Be brief.<|endoftext|><|user|>Hi<|endoftext|><|assistant|>")


async def test_template_refuses_in_the_clients_words(tmp_path: Path) -> None:
    template = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}x"
    model = load_served_model(str(copy_of_model(tmp_path / "m", chat_template=template)))
    assert await model.encode_chat([Turn("user", "a")])
    with pytest.raises(InvalidRequestError, match="one turn only") as caught:
        await model.encode_chat([Turn("user", "a"), Turn("user", "b")])
    assert caught.value.field == "messages"


async def test_template_runs_in_a_sandbox(tmp_path: Path) -> None:
    template = "{{ messages.__class__.__mro__ }}"
    model = load_served_model(str(copy_of_model(tmp_path / "m", chat_template=template)))
    with pytest.raises(InvalidRequestError):
        await model.encode_chat([Turn("user", "a")])


async def test_model_without_template_refuses_messages(tmp_path: Path) -> None:
    model = load_served_model(str(copy_of_model(tmp_path / "m")))
    with pytest.raises(InvalidRequestError, match="no chat template") as caught:
        await model.encode_chat([Turn("user", "a")])
    assert caught.value.field == "messages"


def test_broken_tokenizer_is_a_startup_error(tmp_path: Path) -> None:
    directory = copy_of_model(tmp_path / "m")
    (directory / "tokenizer.json").write_text("{}")
    with pytest.raises(StartupError, match=r"tokenizer\.json"):
        load_served_model(str(directory))


async def test_routers_count_each_others_dispatches(redis_url: str) -> None:
    """Two routers behave as one: a burst through one is load for the other, at once."""
    clock = ManualClock()
    async with connect(redis_url) as redis:
        own, fellow = InFlightCredits(clock), InFlightCredits(clock)
        mine = CreditExchange(redis, "a", own.recent, clock, clock)
        other = CreditExchange(redis, "b", fellow.recent, clock, clock)
        both = FleetCredits(own, mine)
        async with running(mine.run()), running(other.run()):
            with own.hold("w1", 100), fellow.hold("w1", 30), fellow.hold("w2", 7):
                await eventually(lambda: both.unseen("w1", clock()) == (2, 130))
                assert both.unseen("w2", clock()) == (1, 7)
                assert set(both.holders) == {"w1", "w2"}
                assert both.unseen("w1", clock() + 1) == (0, 0)
            await eventually(lambda: both.unseen("w1", clock()) == (0, 0))
            await eventually(lambda: not both.holders)
