"""The report's words on how it was measured and what not to read into it."""

from __future__ import annotations

from lengthwise.measure.run_info import VIRTUAL


def method(engine: str, *, forward: bool = False) -> str:
    """A list in HTML for results of a kind of engine, see `RunInfo`."""
    if engine != VIRTUAL:
        return f"<ul>{_LIVE}{_BOTH}</ul>"
    return f"<ul>{_FORWARD if forward else _NO_FORWARD}{_IN_VIRTUAL_TIME}{_BOTH}</ul>"


_LIVE = """
<li><b>Same requests, same arrivals.</b> One server serves all rounds; the policy is switched
between rounds, while no request is in it. A policy's round is compared with the baseline's round
of the same load and repeat, and the factor is the median of those ratios, with the lowest and the
highest below it. Times are medians of the rounds' figures; counts are sums.</li>
<li><b>Machines drift.</b> Where requests arrive by the clock, a machine that slows down by 5 %
is under 5 % more load, and near capacity that alone can move latency by more than a policy does.
Bursts and closed loops do not depend on a clock, so they carry the comparison. For arrivals by
the clock, read the load really offered: the arriving work over the capacity that the engine showed
in that same round, from its own steps. Rounds are flagged where capacity moved by more than 10 %
against the run's median, where the load offered missed the one asked for by more than 10 %, where
the client fell behind, and where requests failed. Flagged rounds are shown and counted, not
dropped.</li>
<li><b>Latency</b> is measured at the client over streaming HTTP, from sending a request to its
last token; TTFT ends at the first. Latency per output token is a request's latency divided by its
answer's length, then averaged over requests, so short answers weigh as much as long ones. The
longest wait is the largest of all times to a first token and gaps between tokens. Percentiles and
keys follow <code>vllm bench serve</code>.</li>
"""

_NO_FORWARD = """
<li><b>What is real.</b> vLLM's own engine ran: its life cycle of requests, scheduler and KV-cache
manager, with Lengthwise's policies in it and the predictor on the real prompts. Every decision
was taken from what it would have been taken from on the GPU.</li>
<li><b>What is not.</b> There is no forward pass. A step takes as long as measured or derived costs
of the GPU say, on a clock that only steps and arrivals move; tokens have no meaning, and each
answer has the length that it was given. There is no HTTP, no front end and no network: their
constant cost is in no figure.</li>
<li><b>Exact.</b> The same command gives the same figures on any machine, so nothing is repeated
and nothing flagged.</li>
"""

_FORWARD = """
<li><b>What is real.</b> vLLM's own engine ran, with its worker: every token and hidden state was
computed by the model, and a probe, where there is one, read them. Every decision was taken from
what it would have been taken from on the GPU.</li>
<li><b>What is not.</b> The clock. A step takes as long as measured or derived costs of the GPU and
of the model named there say, not what the smaller model here would take. A probe's own time is not
in it, and neither are HTTP, the front end and the network.</li>
<li><b>Exact on one machine.</b> The same command gives the same figures there, so nothing is
repeated and nothing flagged. Another processor adds products up in another order, and an answer may
go on differently from there.</li>
"""

_IN_VIRTUAL_TIME = """
<li><b>Seeds.</b> Where several seeds ran, each is another draw of requests and arrivals; a
policy is compared with the baseline under the same seed, and the factor is the median of those
ratios, with the lowest and the highest below it.</li>
<li><b>Latency</b> is from a request's arrival to its last token; TTFT ends at the first. Latency
per output token is a request's latency divided by its answer's length, then averaged over
requests, so short answers weigh as much as long ones. The longest wait is the largest of all times
to a first token and gaps between tokens. Percentiles and keys follow
<code>vllm bench serve</code>.</li>
"""

_BOTH = """
<li><b>The oracle</b> knows every answer's true length beforehand. It cannot be deployed; it bounds
what a better predictor could add. Gap closed is (baseline − policy) / (baseline − oracle) on mean
latency, where the oracle gains more than 1 %.</li>
<li><b>Order is not speed.</b> The engine does the same work under each policy. Running short
answers first lowers the mean because fewer requests wait behind long ones; long answers may wait
longer, and p99 and the maximum show it. Without a queue there is nothing to reorder and nothing
to gain.</li>
"""
