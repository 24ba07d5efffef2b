"""Prompts of questions, as the served model will see them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import lengthwise.reference
from lengthwise.hints.estimate import PromptEncoder
from lengthwise.hints.question import read_request

TEMPLATE = (
    "{% for tool in tools or [] %}Tool {{ tool.function.name }}: "
    "{{ tool.function.description }}\n{% endfor %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
)


def test_tools_are_rendered_as_the_server_renders_them(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(Path(lengthwise.reference.__file__).parent / "model", model)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    messages = [{"role": "user", "content": "Name one river"}]
    tool = {"name": "weather", "description": "the weather of a town", "parameters": {}}
    tools = [{"type": "function", "function": tool}]
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    encoder = PromptEncoder(str(model))
    lengths = []
    for request in ({"messages": messages}, {"messages": messages, "tools": tools}):
        (ids,) = encoder.encode(read_request(request))
        expected = tokenizer.apply_chat_template(
            messages, request.get("tools"), add_generation_prompt=True, return_dict=True
        )
        assert list(ids) == expected["input_ids"]
        lengths.append(len(ids))
    assert lengths[0] < lengths[1]
