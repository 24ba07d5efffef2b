"""Rows of prompts and answers, made up, in layouts as published, and what is to be read of them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

Row = dict[str, Any]


class Case(NamedTuple):
    """Rows of a layout, and what is to be read of them."""

    layout: str
    rows: list[Row]
    prompts: list[str]  #: what is asked last
    lengths: list[int]
    said: tuple[str, ...] = ()  #: everything in the first prompt, message by message
    left_out: int = 0


WILDCHAT_TURN = {
    "language": "English",
    "redacted": False,
    "toxic": False,
    "turn_identifier": 1,
    "country": "Chile",
    "hashed_ip": "ab",
    "header": {"accept-language": "en", "user-agent": "x"},
}

CASES = [
    Case(
        "sharegpt",
        [
            {
                "id": "a_0",
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Why?"},
                    {"from": "gpt", "value": "Because of it."},
                    {"from": "user", "value": "And?"},
                    {"from": "assistant", "value": "Nothing."},
                ],
            },
            {"id": "b_0", "conversations": [{"from": "gpt", "value": "begins with an answer"}]},
            {"id": "c_0", "conversations": []},
            {"id": "d_0", "conversations": [{"from": "human", "value": "nobody answers"}]},
            {
                "id": "e_0",
                "conversations": [
                    {"from": "human", "value": "How many?"},
                    {"from": "gpt", "value": ""},
                ],
            },
        ],
        ["Why?", "And?"],
        [3, 1],
        ("Be brief.", "Why?"),
        left_out=4,
    ),
    Case(
        "lmsys",
        [
            {
                "conversation_id": "a",
                "model": "vicuna-13b",
                "conversation": [
                    {"content": "how can i", "role": "user"},
                    {"content": "You can do this", "role": "assistant"},
                ],
                "turn": 1,
                "language": "English",
                "openai_moderation": [{"flagged": False}],
                "redacted": False,
            }
        ],
        ["how can i"],
        [4],
        ("how can i",),
    ),
    Case(
        "wildchat",
        [
            {
                "conversation_hash": "ff",
                "model": "gpt-4-0314",
                "timestamp": "2023-04-09T00:00:00",
                "conversation": [
                    {"content": "Hi", "role": "user", "timestamp": None, **WILDCHAT_TURN},
                    {"content": "Hello to you", "role": "assistant", **WILDCHAT_TURN},
                    {"content": "Bye", "role": "user", "timestamp": None, **WILDCHAT_TURN},
                    {"content": "So long", "role": "assistant", **WILDCHAT_TURN},
                ],
                "turn": 2,
                "toxic": False,
            }
        ],
        ["Hi", "Bye"],
        [3, 2],
        ("Hi",),
    ),
    Case(
        "openai fine-tuning",
        [
            {
                "messages": [
                    {"role": "system", "content": "Be brief"},
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "SECRET ANSWER"},
                ]
            }
        ],
        ["hi"],
        [2],
        ("Be brief", "hi"),
    ),
    Case(
        "openai log",
        [
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "what is in the picture"},
                            {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
                        ],
                    }
                ],
                "response": "a cat",
            },
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "sum", "arguments": '{"of": [40, 2]}'},
                            }
                        ],
                    },
                    {"role": "tool", "content": "42", "tool_call_id": "1"},
                ],
                "response": "the answer is 42",
            },
        ],
        ["what is in the picture", "42"],
        [2, 4],
        ("what is in the picture",),
    ),
    Case(
        "openai log",
        [
            {
                "request": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
                "response": {
                    "choices": [{"message": {"role": "assistant", "content": "x y"}}],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 7},
                },
            }
        ],
        ["hi"],
        [7],
        ("hi",),
    ),
    Case(
        "openai log",
        [
            {
                "request": json.dumps(
                    {
                        "body": {
                            "model": "m",
                            "instructions": "Be brief",
                            "input": [
                                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
                            ],
                        }
                    }
                ),
                "response": {
                    "output": [
                        {"type": "reasoning", "summary": []},
                        {
                            "type": "message",
                            "role": "assistant",
                            "content": [{"type": "output_text", "text": "x y"}],
                        },
                    ],
                    "usage": {"input_tokens": 3, "output_tokens": 9},
                },
            },
            {
                "request": {"model": "m", "prompt": "Say"},
                "response": {"choices": [{"text": "a b"}], "usage": {"completion_tokens": "2"}},
            },
        ],
        ["hi", "Say"],
        [9, 2],
        ("Be brief", "hi"),
    ),
    Case(
        "openai log",
        [
            {
                "request_body": {"messages": [{"role": "user", "content": "hi"}]},
                "response_body": {
                    "choices": [{"message": {"role": "assistant", "content": None}}],
                    "usage": {"completion_tokens": 4},
                },
            }
        ],
        ["hi"],
        [4],
        ("hi",),
    ),
    Case(
        "alpaca",
        [{"instruction": "Classify", "input": "apple", "output": "a fruit"}],
        ["Classify\n\napple"],
        [2],
    ),
    Case(
        "dolly",
        [
            {
                "instruction": "Summarise",
                "context": "A long text.",
                "response": "short",
                "category": "summarization",
            },
            {"instruction": "Why", "context": "", "response": "no reason", "category": "open_qa"},
        ],
        ["Summarise\n\nA long text.", "Why"],
        [1, 2],
    ),
    Case(
        "vllm-ltr",
        [{"prompt": "tell me", "generated": "long text of words", "generated_len": 4}],
        ["tell me"],
        [4],
    ),
    Case(
        "guidellm",
        [
            {
                "request_id": "r1",
                "request_args": json.dumps(
                    {
                        "method": "POST",
                        "body": {
                            "model": "m",
                            "messages": [
                                {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
                            ],
                            "max_completion_tokens": 64,
                        },
                    }
                ),
                "output": "Because of that",
                "info": {"status": "completed", "timings": {"request_start": 10.5}},
                "input_metrics": {"text_tokens": 5, "total_tokens": 5},
                "output_metrics": {"text_tokens": 9, "total_tokens": 9},
            }
        ],
        ["Why?"],
        [9],
        ("Why?",),
    ),
    Case(
        "guidellm",
        [
            {
                "type_": "generative_text",
                "request_id": "a",
                "prompt": "hi there",
                "output": "x y z",
                "prompt_tokens": 3,
                "output_tokens": 4,
                "start_time": 1.0,
                "end_time": 2.0,
                "status": status,
            }
            for status in ("successful", "incomplete")
        ],
        ["hi there"],
        [4],
        left_out=1,
    ),
    Case(
        "lm-eval samples",
        [
            {
                "doc_id": 0,
                "doc": {"question": "q"},
                "target": "42",
                "arguments": {
                    "gen_args_0": {"arg_0": "Question: q\nAnswer:", "arg_1": {"until": ["\n"]}}
                },
                "resps": [["42 is it"]],
                "filtered_resps": ["42"],
                "exact_match": 1.0,
            },
            {
                "doc_id": 1,
                "doc": {"question": "p"},
                "target": "x",
                "arguments": {"gen_args_0": {"arg_0": "Question: p\nAnswer:", "arg_1": " yes"}},
                "resps": [["-1.5"]],
                "filtered_resps": ["x"],
                "exact_match": 0.0,
            },
        ],
        ["Question: q\nAnswer:"],
        [3],
        left_out=1,
    ),
    Case(
        "litellm",
        [
            {
                "request_id": "chatcmpl-1",
                "startTime": "2026-11-01T10:00:00.123Z",
                "endTime": "2026-11-01T10:00:02.5Z",
                "model": "m",
                "prompt_tokens": 120,
                "completion_tokens": 40,
                "messages": json.dumps([{"role": "user", "content": "hi"}]),
                "status": "success",
            },
            {
                "request_id": "chatcmpl-2",
                "startTime": "2026-11-01T10:00:01.123Z",
                "endTime": "2026-11-01T10:00:01.5Z",
                "model": "m",
                "prompt_tokens": 0,
                "completion_tokens": 0,
                "messages": "{}",
                "status": "failure",
            },
        ],
        ["hi"],
        [40],
        ("hi",),
        left_out=1,
    ),
    Case(
        "mooncake",
        [
            {"timestamp": 0, "text_input": "Hello world", "output_length": 4},
            {"timestamp": 9, "text_input": "Once more", "output_length": None},
        ],
        ["Hello world"],
        [4],
        left_out=1,
    ),
    Case(
        "mooncake",
        [{"session_id": "a", "messages": [{"role": "user", "content": "Hi"}], "output_length": 4}],
        ["Hi"],
        [4],
        ("Hi",),
    ),
]
