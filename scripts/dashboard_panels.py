"""What to watch: the panels of the dashboard, with their queries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

OURS: Final = '{engine=~"$engine"}'


class Panel(NamedTuple):
    """Curves over time."""

    title: str
    says: str  #: what to read from it
    unit: str  #: Grafana's name of one
    queries: Mapping[str, str]  #: legend → PromQL


def per_second(name: str) -> str:
    """The rate of a counter of the scheduler, by engine."""
    return f"sum by (engine) (rate(lengthwise_{name}_total{OURS}[$__rate_interval]))"


def share(part: str, *whole: str) -> str:
    """One counter's part of the sum of some."""
    return f"{per_second(part)} / ({' + '.join(map(per_second, whole))})"


def gauge(name: str) -> str:
    """A present value of the scheduler, by engine."""
    return f"max by (engine) (lengthwise_{name}{OURS})"


def quantiles(histogram: str) -> dict[str, str]:
    """The median and the 99 % quantile of a histogram, over all engines."""
    rates = f"sum by (le) (rate({histogram}_bucket[$__rate_interval]))"
    return {
        f"{round(100 * part)} %": f"histogram_quantile({part}, {rates})" for part in (0.5, 0.99)
    }


def waits_by(label: str, legend: str) -> dict[str, str]:
    """The median and the 99 % quantile of the time in the queue, for each value of a label."""
    histogram = f"lengthwise_queue_time_seconds_bucket{OURS}"
    rates = f"sum by (le, {label}) (rate({histogram}[$__rate_interval]))"
    return {
        f"{legend}, {round(100 * part)} %": f"histogram_quantile({part}, {rates})"
        for part in (0.5, 0.99)
    }


ROWS: Final[dict[str, list[Panel]]] = {
    "Is there a queue?": [
        Panel(
            "Requests",
            "Without waiting requests no order can help.",
            "short",
            {
                "waiting, engine {{engine}}": gauge("waiting_requests"),
                "running, engine {{engine}}": gauge("running_requests"),
            },
        ),
        Panel(
            "Time in the queue",
            "Of requests that were given their first step, vLLM's own histogram.",
            "s",
            quantiles("vllm:request_queue_time_seconds"),
        ),
        Panel(
            "Time to the first token",
            "As clients see it.",
            "s",
            quantiles("vllm:time_to_first_token_seconds"),
        ),
        Panel(
            "Time to the last token",
            "As clients see it.",
            "s",
            quantiles("vllm:e2e_request_latency_seconds"),
        ),
        Panel(
            "Steps",
            "Of each engine. None while requests wait is a stuck engine.",
            "ops",
            {"engine {{engine}}": per_second("steps")},
        ),
        Panel(
            "Requests ended",
            "Finished or aborted.",
            "ops",
            {"engine {{engine}}": per_second("finished")},
        ),
    ],
    "What the order does": [
        Panel(
            "Overtakes per admission",
            "How far the order is from first come, first served: 0 is fcfs.",
            "short",
            {"engine {{engine}}": share("overtakes", "admissions")},
        ),
        Panel(
            "Preemptions",
            "Of the policy, and of vLLM because KV memory ran out: many of the second kind call "
            "for more memory or fewer slots.",
            "ops",
            {
                "by the policy, engine {{engine}}": per_second("preemptions"),
                "for memory, engine {{engine}}": per_second("memory_preemptions"),
            },
        ),
        Panel(
            "Tokens computed again",
            "What preemption costs, per second.",
            "short",
            {"engine {{engine}}": per_second("recomputed_tokens")},
        ),
        Panel(
            "Promotions",
            "Requests that the starvation guard brought to the front.",
            "ops",
            {"engine {{engine}}": per_second("promotions")},
        ),
        Panel(
            "Pauses and peeks",
            "Requests that made way and kept their KV, and prompts read early; both only where "
            "they are switched on.",
            "ops",
            {
                "pauses, engine {{engine}}": per_second("pauses"),
                "peeks, engine {{engine}}": per_second("peeks"),
            },
        ),
        Panel(
            "Paused now",
            "They hold KV and wait for a slot.",
            "short",
            {"engine {{engine}}": gauge("paused_requests")},
        ),
        Panel(
            "A step that decodes",
            "The price that preemption is decided with.",
            "s",
            {"engine {{engine}}": gauge("step_decode_seconds")},
        ),
        Panel(
            "A token of a prompt",
            "The other price.",
            "s",
            {"engine {{engine}}": gauge("prefill_token_seconds")},
        ),
    ],
    "Who waits": [
        Panel(
            "Time in the queue by predicted length",
            "To the first step. Short answers should wait less; how much longer long ones do is "
            "the price.",
            "s",
            waits_by("predicted_tokens", "{{predicted_tokens}} tokens"),
        ),
        Panel(
            "Time in the queue by class",
            "To the first step, by the request's own priority.",
            "s",
            waits_by("class", "class {{class}}"),
        ),
        Panel(
            "Requests begun",
            "By predicted length: how the traffic is made up.",
            "ops",
            {
                "{{predicted_tokens}} tokens": "sum by (predicted_tokens) "
                f"(rate(lengthwise_queue_time_seconds_count{OURS}[$__rate_interval]))"
            },
        ),
    ],
    "Before the switch, and back": [
        Panel(
            "What the policy would gain",
            "In shadow mode: what fcfs takes, over what the policy would. 1 is no difference.",
            "short",
            {
                "mean latency, engine {{engine}}": gauge("shadow_gain_mean"),
                "first token, engine {{engine}}": gauge("shadow_gain_ttft"),
                "99 % quantile, engine {{engine}}": gauge("shadow_gain_p99"),
            },
        ),
        Panel(
            "Shadow and off",
            "1 while an engine serves in vLLM's own order, be it in shadow or switched off.",
            "short",
            {
                "shadow, engine {{engine}}": gauge("shadow"),
                "off, engine {{engine}}": gauge("off"),
            },
        ),
    ],
    "Predictions": [
        Panel(
            "Without a usable prediction",
            "Their part of all: these rank as the running median. Near zero, unless the predictor "
            "fails or does not fit the model.",
            "percentunit",
            {"engine {{engine}}": share("fallbacks", "fallbacks", "predictions")},
        ),
        Panel(
            "Rolling tau",
            "How well predictions order the newest answers; nothing while it is not known.",
            "short",
            {
                "engine {{engine}}": gauge("rolling_tau"),
                "below its floor, engine {{engine}}": gauge("below_tau_floor"),
            },
        ),
        Panel(
            "A slow predictor's worker",
            "Whether it keeps up.",
            "ops",
            {
                "late, engine {{engine}}": per_second("late_predictions"),
                "given up, engine {{engine}}": per_second("shed_predictions"),
                "ended first, engine {{engine}}": per_second("unpredicted"),
                "restarts, engine {{engine}}": per_second("worker_restarts"),
            },
        ),
    ],
    "What should stay at zero": [
        Panel(
            "Switched off",
            "Parts that raised an exception, since the engine started; the status file says which.",
            "short",
            {"engine {{engine}}": f"max by (engine) (lengthwise_switched_off_total{OURS})"},
        ),
        Panel(
            "Settings",
            "Taken up and refused, since the engine started.",
            "short",
            {
                "taken up, engine {{engine}}": "max by (engine) "
                f"(lengthwise_settings_changes_total{OURS})",
                "refused, engine {{engine}}": "max by (engine) "
                f"(lengthwise_settings_refused_total{OURS})",
            },
        ),
        Panel(
            "Lost",
            "Lines of the length log and the record that were not written; failures of the probe.",
            "ops",
            {
                "log, engine {{engine}}": per_second("log_lost"),
                "record, engine {{engine}}": per_second("record_lost"),
                "probe, engine {{engine}}": per_second("probe_failures"),
            },
        ),
    ],
    "Hints for other stacks": [
        Panel(
            "Requests through the middleware",
            "By what became of their hints.",
            "ops",
            {
                "{{outcome}}": "sum by (outcome) "
                "(rate(lengthwise_hint_requests_total[$__rate_interval]))"
            },
        ),
        Panel(
            "Predict-server: time to answer",
            "From a request's body to its answer.",
            "s",
            quantiles("lengthwise_predict_seconds"),
        ),
        Panel(
            "Predict-server: load",
            "Prompts a second, and answers by status.",
            "ops",
            {
                "prompts": "sum(rate(lengthwise_predict_prompts_total[$__rate_interval]))",
                "status {{status}}": "sum by (status) "
                "(rate(lengthwise_predict_requests_total[$__rate_interval]))",
                "waiting prompts": "sum(lengthwise_predict_waiting_prompts)",
            },
        ),
    ],
    "Gateway": [
        Panel(
            "Requests in the gateway",
            "Those that wait there, and those that each upstream answers.",
            "short",
            {
                "waiting": "sum(lengthwise_gateway_waiting)",
                "in flight, {{upstream}}": "sum by (upstream) (lengthwise_gateway_in_flight)",
                "limit, {{upstream}}": "sum by (upstream) (lengthwise_gateway_limit)",
            },
        ),
        Panel(
            "Time in the gateway's queue",
            "From a request's body to its turn.",
            "s",
            quantiles("lengthwise_gateway_wait_seconds"),
        ),
        Panel(
            "What became of requests",
            "By outcome; `sent again` are those that an upstream did not take.",
            "ops",
            {
                "{{outcome}}": "sum by (outcome) "
                "(rate(lengthwise_gateway_requests_total[$__rate_interval]))",
                "sent again": "sum(rate(lengthwise_gateway_sent_again_total[$__rate_interval]))",
            },
        ),
        Panel(
            "Upstreams",
            "1 while an upstream takes connections.",
            "short",
            {"{{upstream}}": "min by (upstream) (lengthwise_gateway_reachable)"},
        ),
    ],
}
