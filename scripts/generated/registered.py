"""What the code has by name: policies, counters, outcomes, layouts."""

from __future__ import annotations

import inspect
import re

from scripts.generated.markdown import table


def policies(_: str) -> str:
    """All built-in policies, one row each."""
    from lengthwise.policy import get_policy, policy_names

    rows = []
    for name in policy_names():
        policy = get_policy(name)
        anchor = name.replace("+", "-plus")
        rows.append((f"[`{name}`](#{anchor})", policy.summary, f"`{policy.preemption}`"))
    return table(("policy", "order", "preemption by default"), rows)


def policy(name: str) -> str:
    """What a policy reads and takes, from its function and its registration."""
    from lengthwise.policy import get_policy

    found = get_policy(name)
    source = inspect.getsource(found.rank.py_func)
    body = source[source.index("def ") :]
    fields = sorted(set(re.findall(r"\brequest\.(\w+)", body)))
    inputs = ", ".join(f"[`{field}`](request.md#fields)" for field in fields)
    predictor = f"`{found.predictor}`, always" if found.predictor else "yours"
    parameters = ", ".join(f"`{key}` = {value:g}" for key, value in found.parameters.items())
    rows = [
        ("Inputs", inputs or "none"),
        ("Predictor", predictor if found.predicts else "not needed"),
        ("Parameters", parameters or "none"),
        ("Preemption", f"`{found.preemption}` by default"),
    ]
    return "\n".join(f"- *{name}:* {value}" for name, value in rows)


def counters(_: str) -> str:
    """The scheduler's counters, as the status file and Prometheus have them."""
    from lengthwise.counters import HELP, Counters

    rows = [
        (f"`{name}`", f"`lengthwise_{name}_total`", HELP[name]) for name in Counters().snapshot()
    ]
    return table(("status file", "Prometheus", "what is counted"), rows)


def hint_outcomes(_: str) -> str:
    """What the middleware that writes hints counts."""
    from lengthwise.hints.service import OUTCOMES

    rows = [(f"`{name}`", says) for name, says in OUTCOMES.items()]
    return table(("outcome", "what became of the request"), rows)


def gateway_outcomes(_: str) -> str:
    """What a gateway counts of requests."""
    from lengthwise.gateway.prometheus import OUTCOMES

    rows = [(f"`{name}`", says) for name, says in OUTCOMES.items()]
    return table(("outcome", "what became of the request"), rows)


def reference_flags(_: str) -> str:
    """What the built-in model is served with."""
    from lengthwise.serve.command import REFERENCE_FLAGS

    flags = (f"{name} {value}" if value else name for name, value in REFERENCE_FLAGS.items())
    return "\n".join(("```text", *flags, "```"))


def layouts(_: str) -> str:
    """The layouts of traces, in the order in which they are tried."""
    from lengthwise.workload import layouts as known
    from lengthwise.workload.layouts import NESTED
    from lengthwise.workload.servegen import LAYOUT

    units = {1.0: "s", 1e-3: "ms", 1e-9: "ns"}
    rows = [
        (
            f"`{each.name}`",
            each.source,
            f"`{each.arrival}` ({units[each.unit_s]})",
            f"`{each.prompt}`",
            f"`{each.output}`",
            ", ".join(
                [f"`{mark}`" for mark in each.marks]
                + [f"`{each.blocks}` (optional, {each.block_tokens} tokens)"] * bool(each.blocks)
            ),
        )
        for each in (LAYOUT, *(nested.layout for nested in NESTED), *known.LAYOUTS)
    ]
    guesses = (known.ARRIVAL_COLUMNS, known.PROMPT_COLUMNS, known.OUTPUT_COLUMNS)
    arrival, prompt, output = (" or ".join(f"`{name}`" for name in each) for each in guesses)
    rows.append((f"`{known.PLAIN}`", "any other table", f"{arrival} (s)", prompt, output, ""))
    return table(("layout", "from", "arrival", "prompt", "answer", "further columns"), rows)


def prompt_layouts(_: str) -> str:
    """The layouts of prompts with answers, in the order in which they are tried."""
    from lengthwise.workload import prompt_layouts as known

    rows = [
        (f"`{each.name}`", each.source, each.prompt or "none", each.answer)
        for each in known.LAYOUTS
    ]
    rows.append(("`columns`", "any other table", "a column of prompts", "a column of answers"))
    return table(("layout", "from", "prompt", "answer"), rows)


def guessed_columns(_: str) -> str:
    """The columns that a table of no published layout is searched for."""
    from lengthwise.workload.prompt_layouts import named_columns as known

    found = {
        "prompts": known.PROMPT_COLUMNS,
        "lengths of answers, in tokens": known.LENGTH_COLUMNS,
        "answers, whose tokens are counted": known.ANSWER_COLUMNS,
    }
    rows = [(what, ", ".join(f"`{name}`" for name in names)) for what, names in found.items()]
    return table(("column of", "the first of these that is there"), rows)
