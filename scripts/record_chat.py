"""Record what `transformers` makes of conversations, as the truth of the tests of chat templates, and a small tokenizer to chat with.

    torch-venv/bin/python scripts/record_chat.py [tests/references/chat]

Needs transformers and tokenizers, no PyTorch. Writes the folder of a tokenizer (byte-level BPE, 400 tokens, end-of-sequence token and
padding the same, as in SmolLM2) and cases.json: templates, conversations, and the text and token numbers of each. The templates are
written for this file; between them they use all that the templates of the known chat checkpoints use.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jinja2
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>", "<s>"]
CORPUS = (
    "You are a helpful assistant. What is the capital of France? The capital of France is Paris. Write a headline for this article: "
    "sales of music players rose in the third quarter, the company said on Monday. Thank you! The weather in Rome is fine, 21 degrees. "
    "How do I get to the station? Turn left at the second street, then go on until you see the river. I think the answer is no."
)
NOW = datetime.datetime(2026, 3, 5, 12, 30)
TEMPLATES = {
    # a system message of its own where none is given (as SmolLM2 and Qwen 2.5 have)
    "marks": """\
{% for message in messages %}{% if loop.first and message.role != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\
{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    # the begin token, today's date, tools as JSON, trimmed contents, tool calls (as Llama 3.1 has)
    "dated": """\
{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set today = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set today = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0].role == "system" %}
    {%- set system = messages[0].content | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = "" %}
    {%- set rest = messages %}
{%- endif %}
{{- "<|im_start|>system\\nToday is " ~ today ~ ".\\n" }}
{%- if tools is not none %}
    {{- "Tools:\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=2) }}
        {{- "\\n" }}
    {%- endfor %}
{%- endif %}
{{- system + "<|im_end|>" }}
{%- for message in rest %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- set call = message.tool_calls[0].function %}
        {{- "<|im_start|>" + message.role + '\\n{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + "}<|im_end|>" }}
    {%- elif message.role in ("tool", "ipython") %}
        {{- "<|im_start|>tool\\n" + (message.content if message.content is string else message.content | tojson) + "<|im_end|>" }}
    {%- else %}
        {{- "<|im_start|>" + message.role + "\\n" + message.content | trim + "<|im_end|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
{%- endif %}
""",
    # other names of roles, refusals, no end-of-turn line break (as Gemma has)
    "strict": """\
{{ bos_token }}
{% if messages[0].role == 'system' %}
    {{ raise_exception('System role not supported') }}
{% endif %}
{% for message in messages %}
    {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<|im_start|>' ~ role ~ ': ' ~ message.content | trim ~ '<|im_end|>' }}
{% endfor %}
{{ '<|im_start|>model:' if add_generation_prompt else '' }}""",
    # marks of what the assistant says, macros, namespaces, loop controls
    "parts": """\
{%- macro said(message) %}[{{ message.role | upper }}] {{ message.content }}{%- endmacro %}
{%- set seen = namespace(count=0, first=dict(role="none")) %}
{%- for message in messages %}
    {%- if message.role == "comment" %}{%- continue %}{%- endif %}
    {%- set seen.count = seen.count + 1 %}
    {%- if loop.first %}{%- set seen.first = message %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- generation %}{{ said(message) }}<|im_end|>{%- endgeneration %}
    {%- else %}
        {{- said(message) }}<|im_end|>
    {%- endif %}
{{ '\\n' }}
    {%- if seen.count > 20 %}{%- break %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}[ASSISTANT]{% endif %}
{{- "" if verbose is undefined else " %d messages, first %s" | format(seen.count, seen.first.role) -}}
""",
    # earlier thoughts are taken away, and the last turn has some, if empty ones (as Qwen 3 has)
    "thinking": """\
{%- set last = namespace(query=messages | length) %}
{%- for message in messages[::-1] if message.role == "user" and last.query == messages | length %}
    {%- set last.query = messages | length - loop.index0 - 1 %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set thought = "" %}
    {%- if "</think>" in content %}
        {%- set thought = content.split("</think>")[0].rstrip("\\n").split("<think>")[-1].lstrip("\\n") %}
        {%- set content = content.split("</think>")[-1].lstrip("\\n") %}
    {%- endif %}
    {%- if message.role == "assistant" and loop.last %}
        {{- "<|im_start|>assistant\\n<think>\\n" + thought + "\\n</think>\\n\\n" + content + "<|im_end|>\\n" }}
    {%- else %}
        {{- "<|im_start|>" + message.role + "\\n" + content + "<|im_end|>\\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- "<think>\\n\\n</think>\\n\\n" }}
    {%- endif %}
{%- endif %}""",
}
ASK = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": " The capital of France is Paris.\n"}
THANKS = {"role": "user", "content": 'Thank you! <|im_end|> "naïve" 東京 & <b>x</b>'}
WELCOME = {"role": "assistant", "content": "You are welcome."}
SYSTEM = {"role": "system", "content": "  Answer in one line. "}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <in> a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Röm"}}}],
}
RESULT = {"role": "tool", "name": "weather", "content": "21 degrees"}
CASES: list[dict[str, Any]] = [
    *({"template": name, "messages": [ASK, ANSWER, THANKS, WELCOME]} for name in TEMPLATES),
    *({"template": name, "messages": [ASK], "prompt": True} for name in TEMPLATES),
    *({"template": name, "messages": [SYSTEM, ASK, ANSWER, THANKS], "prompt": True} for name in ("marks", "dated", "parts", "thinking")),
    {"template": "dated", "messages": [SYSTEM, ASK, CALL, RESULT, ANSWER], "tools": [TOOL]},
    {"template": "dated", "messages": [SYSTEM, ASK], "now": True},
    {"template": "parts", "messages": [{"role": "comment", "content": "not seen"}, ASK, WELCOME], "variables": {"verbose": True}},
    {"template": "thinking", "messages": [ASK, {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nParis."}]},
    {"template": "thinking", "messages": [ASK], "prompt": True, "variables": {"enable_thinking": False}},
    {"template": "strict", "messages": [SYSTEM, ASK], "refused": "System role not supported"},
    {"template": "strict", "messages": [ASK, ASK], "refused": "Conversation roles must alternate"},
]  # fmt: skip


def make_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([CORPUS], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|end|>",
        chat_template=TEMPLATES["marks"], clean_up_tokenization_spaces=False, model_max_length=256,
    )  # fmt: skip


def without_clock() -> Any:
    """transformers always has `strftime_now`; without it a template writes the date that it has in store."""
    from_string = jinja2.sandbox.ImmutableSandboxedEnvironment.from_string

    def clockless(environment: Any, source: str) -> Any:
        del environment.globals["strftime_now"]
        return from_string(environment, source)

    return mock.patch.object(jinja2.sandbox.ImmutableSandboxedEnvironment, "from_string", clockless)


def with_clock() -> Any:
    fixed = mock.Mock(**{"now.return_value": NOW})
    return mock.patch("transformers.utils.chat_template_utils.datetime", fixed)


def record(tokenizer: PreTrainedTokenizerFast, case: dict[str, Any]) -> dict[str, Any]:
    from transformers.utils import chat_template_utils

    options = {"chat_template": TEMPLATES[case["template"]], "tools": case.get("tools"), "add_generation_prompt": case.get("prompt", False)}
    options |= case.get("variables", {})
    chat_template_utils._compile_jinja_template.cache_clear()
    with with_clock() if case.get("now") else without_clock():
        try:
            text = tokenizer.apply_chat_template(case["messages"], tokenize=False, **options)
        except jinja2.TemplateError as error:
            assert case["refused"] in str(error), error
            return case
        tokens = tokenizer.apply_chat_template(case["messages"], tokenize=True, return_dict=False, **options)
    assert "refused" not in case
    return case | {"text": text, "tokens": tokens}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/references/chat")
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    cases = [record(tokenizer, case) for case in CASES]
    contents = {"transformers": transformers.__version__, "now": NOW.isoformat(), "templates": TEMPLATES, "cases": cases}
    (folder / "cases.json").write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(cases)} cases in {folder}")


if __name__ == "__main__":
    main()
