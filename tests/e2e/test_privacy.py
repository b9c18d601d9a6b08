"""What people write and what the model answers stays out of logs, traces and metrics."""

import pytest

from baton.telemetry import names
from tests.e2e.conftest import Mesh
from tests.support.mesh import Client, greedy

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

_TRACE_ID = "22222222222222222222222222222222"
_SECRET = "Xylophone heptagon Zanzibar quixotic " * 3


async def test_no_log_span_or_metric_holds_a_prompt_or_an_answer(
    mesh: Mesh, client: Client
) -> None:
    parent = ("traceparent", f"00-{_TRACE_ID}-b7ad6b7169203331-01")
    answer = await client.generate(
        text=_SECRET, tenant="t1", sampling_params=greedy(24), metadata=[parent]
    )
    assert len(answer.text) > 20
    spans = await mesh.trace(bytes.fromhex(_TRACE_ID), names.SPAN_REQUEST, names.SPAN_DECODE)
    told = [str(span) for span in spans] + [str(metric) for metric in mesh.otlp.metrics]
    told += [path.read_text(errors="replace") for path in mesh.stack.run_dir.glob("*.log")]
    assert any("baton" in text for text in told)
    for text in told:
        assert "Xylophone" not in text
        assert answer.text[:20] not in text
