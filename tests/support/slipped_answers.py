"""Rows with an answer in them, at every place from where it may slip into its own prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Made = Callable[[str, str], Row]


def user(content: Any) -> Row:
    return {"role": "user", "content": content}


def assistant(content: Any) -> Row:
    return {"role": "assistant", "content": content}


def human(value: str) -> Row:
    return {"from": "human", "value": value}


def gpt(value: str) -> Row:
    return {"from": "gpt", "value": value}


ATTEMPTS: dict[str, Made] = {
    "the last message, its length beside it": lambda q, a: {
        "messages": [user(q), assistant(a)],
        "output_tokens": 30,
    },
    "the last message, the answer beside it": lambda q, a: {
        "messages": [user(q), assistant(a)],
        "response": a,
    },
    "the last message, with a system's prompt": lambda q, a: {
        "messages": [{"role": "system", "content": "Be brief"}, user(q), assistant(a)],
        "completion_tokens": 30,
    },
    "before a last word of the system": lambda q, a: {
        "messages": [user(q), assistant(a), {"role": "system", "content": "Done."}],
        "output_tokens": 30,
    },
    "twice at the end": lambda q, a: {
        "messages": [user(q), assistant(a), assistant(a)],
        "output_tokens": 30,
    },
    "in parts": lambda q, a: {
        "messages": [user(q), assistant([{"type": "text", "text": a}])],
        "output_tokens": 30,
    },
    "under a role of another name": lambda q, a: {
        "messages": [user(q), {"role": "model", "content": a}],
        "output_tokens": 30,
    },
    "under a role that nobody knows": lambda q, a: {
        "messages": [user(q), {"role": "oracle", "content": a}],
        "output_tokens": 30,
    },
    "in the system's prompt": lambda q, a: {
        "messages": [{"role": "system", "content": f"Context: {a} Use it."}, user(q), assistant(a)]
    },
    "in the user's own words": lambda q, a: {"messages": [user(f"{q}\n{a}"), assistant(a)]},
    "as a tool's output": lambda q, a: {
        "messages": [
            user(q),
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": a},
            assistant(a),
        ]
    },
    "conversations of LMSYS": lambda q, a: {
        "conversation_id": q,
        "conversation": [user(q), assistant(a)],
        "output_tokens": 30,
    },
    "conversations of ShareGPT": lambda q, a: {"conversations": [human(q), gpt(a)]},
    "a later turn repeats it": lambda q, a: {
        "conversations": [human(q), gpt(a), human("Once more, please."), gpt(a)]
    },
    "a log that ends with another answer": lambda q, a: {
        "messages": [user(q), assistant(a)],
        "response": "Something that was said in another place, and is not in the conversation.",
    },
    "one text that holds both": lambda q, a: {"text": f"{q}\n{a}", "response": a},
    "one text that holds both, and only a length": lambda q, a: {
        "text": f"### Human: {q}\n### Assistant: {a}",
        "output_tokens": 30,
    },
    "one prompt that holds both under headings": lambda q, a: {
        "prompt": f"### Instruction:\n{q}\n\n### Response:\n{a}",
        "output_tokens": 30,
    },
    "a rendered chat": lambda q, a: {
        "prompt": f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>",
        "output_tokens": 30,
    },
    "a rendered chat of Llama 2": lambda q, a: {
        "prompt": f"<s>[INST] {q} [/INST] {a} </s>",
        "response_tokens": 30,
    },
    "a copied column": lambda q, a: {"prompt": a, "completion": a},
    "a copied column, in capitals and with other spaces": lambda q, a: {
        "prompt": f"{q}\n\n{a.upper().replace(' ', '  ')}",
        "completion": a,
    },
    "the input of an instruction": lambda q, a: {"instruction": q, "input": a, "output": a},
    "the context of an instruction": lambda q, a: {
        "instruction": q,
        "context": f"From the files: {a}",
        "response": a,
    },
    "what vLLM-LTR generated": lambda q, a: {"prompt": f"{q}\n{a}", "generated": a},
    "a request of guidellm": lambda q, a: {
        "request_args": json.dumps({"body": {"messages": [user(q), assistant(a)]}}),
        "output": a,
        "output_metrics": {"text_tokens": 30},
    },
    "a sample of lm-eval": lambda q, a: {
        "arguments": {"gen_args_0": {"arg_0": f"Question: {q}\nAnswer: {a}", "arg_1": {}}},
        "resps": [[a]],
    },
    "a column that is put ahead": lambda q, a: {"system": a, "prompt": q, "response": a},
    "a hint that is a feature": lambda q, a: {"tenant": a, "prompt": q, "response": a},
    "messages as Python writes them": lambda q, a: {
        "prompt": str([user(q), assistant(a)]),
        "output_tokens": 30,
    },
    "messages as NumPy writes them": lambda q, a: {
        "prompt": str([user(q), assistant(a)]).replace("}, {", "}\n {"),
        "output_tokens": 30,
    },
    "a request as text": lambda q, a: {
        "prompt": json.dumps({"model": "m", "messages": [user(q), assistant(a)]}),
        "output_tokens": 30,
    },
    "a chat in Vicuna's one line": lambda q, a: {
        "prompt": f"A chat with an assistant. USER: {q} ASSISTANT: {a}</s>",
        "output_tokens": 30,
    },
    "most of it": lambda q, a: {
        "prompt": f"{q} {' '.join(a.split()[:-1])}, is it not?",
        "response": a,
    },
    "in other characters": lambda q, a: {
        "prompt": f"{q} " + a.replace(" ", " \u200b").replace("fi", "\ufb01") + " And?",
        "response": a,
    },
    "with its markup gone": lambda q, a: {
        "prompt": f"{q} {a} And?",
        "response": a.replace("cellar", "**cellar**").replace("of", "&quot;of&quot;"),
    },
    "as JSON in a text": lambda q, a: {
        "prompt": json.dumps({"question": q, "context": f"{a}\n{a} And?"}),
        "response": f"{a}\n{a}",
    },
    "in a script without spaces": lambda q, a: {
        "prompt": f"{q} zebra 斑马的管理员发现所有的文件都被人搬到了地下室里。你看？",
        "response": "斑马的管理员发现所有的文件都被人搬到了地下室里",
    },
    "as what a tool was asked": lambda q, a: {
        "messages": [
            user(q),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "say", "arguments": {"text": a}}}],
            },
            {"role": "tool", "content": "said", "tool_call_id": "1"},
        ],
        "response": a,
    },
    "in a text, of which only the answer's length is known": lambda q, a: {
        "text": f"{q}\n{a}",
        "output_tokens": 30 if len(a) > 80 else 5,
    },
    "a conversation as text": lambda q, a: {
        "prompt": json.dumps({"conversation": [user(q), assistant(a)]}),
        "output_tokens": 30,
    },
    "a row of LiteLLM": lambda q, a: {
        "startTime": "2026-11-01T10:00:00Z",
        "endTime": "2026-11-01T10:00:01Z",
        "prompt_tokens": 5,
        "completion_tokens": 30,
        "messages": [user(f"{q} {a}")],
        "response": {"choices": [{"message": {"content": a}}]},
    },
    "a stored completion": lambda q, a: {
        "request": {"messages": [user(q), assistant(a)]},
        "response": {"choices": [{"message": {"content": a}}], "usage": {"completion_tokens": 30}},
    },
}


#: chats as templates render them, `{}` for the question and for the answer
TEMPLATES = [
    "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>",
    "<|im_start|>user<|im_sep|>{}<|im_end|><|im_start|>assistant<|im_sep|>{}<|im_end|>",
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n{}<|im_end|>",
    "<|user|>\n{}<|end|>\n<|assistant|>\n{}<|end|>",
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    "<|header_start|>user<|header_end|>\n\n{}<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n{}<|eot|>",
    "<|start|>user<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>{}<|end_of_text|>",
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    "<｜begin▁of▁sentence｜><｜User｜>{}<｜Assistant｜>{}<｜end▁of▁sentence｜>",
    "<|im_user|>user<|im_middle|>{}<|im_end|><|im_assistant|>assistant<|im_middle|>{}<|im_end|>",
    "<extra_id_1>User\n{}\n<extra_id_1>Assistant\n{}\n",
    "]~b]user\n{}[e~[\n]~b]ai\n{}[e~[",
    "<seed:bos>user\n{}<seed:eos><seed:bos>assistant\n{}<seed:eos>",
    "[|user|]{}\n[|assistant|]{}[|endofturn|]",
    "<s>[INST] {} [/INST] {} </s>",
    "A chat with an assistant. USER: {} ASSISTANT: {}</s>",
    "<user>{}</user><assistant>{}</assistant>",
]
#: chats under headings, which may be a person's own words: they are refused where most rows are so
HEADINGS = [
    "\n\nHuman: {}\n\nAssistant: {}",
    "Human: {} Assistant: {}",
    "### Human: {}### Assistant: {}",
    "GPT4 Correct User: {}<|end_of_turn|>GPT4 Correct Assistant: {}<|end_of_turn|>",
    "[Round 1]\n\n问：{}\n\n答：{}",
    "Q: {}\nA: {}",
    "Input: {}\nOutput: {}",
    "## Prompt\n{}\n## Completion\n{}",
    "**User:** {}\n\n**Assistant:** {}",
    "Question: {} Answer: {}",
]
