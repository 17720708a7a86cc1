from __future__ import annotations

import shutil

import numpy as np
import pytest
from chats import FOLDER, chat, special, template, tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers, processors

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.batch import collate
from jaxtune.data.examples import Examples
from jaxtune.data.special_tokens import SpecialTokens
from jaxtune.data.transforms.chat_template import ChatTemplate
from jaxtune.data.transforms.passages import Passage, Span, everything, of_chat, of_completion, of_text, passages
from jaxtune.data.transforms.pieces import pieces, stretches
from jaxtune.data.transforms.targets import TargetReport, begin, encode, last_answer
from jaxtune.data.transforms.tokenize import Tokenizer

BOS, STOP = 3, 2


def encoded(*given: Passage, max_tokens: int = 500, **options) -> Examples:
    return encode(tokenizer(), given, special(), max_tokens=max_tokens, **options)


def learned(examples: Examples, row: int = 0) -> list[str]:
    """The text of each stretch that is learned."""
    found = stretches(tokenizer(), pieces(tokenizer(), examples.row(row)))
    return [one.text for one in found if one.trained]


def report(examples: Examples, max_tokens: int = 500, over_length="cut") -> TargetReport:
    return TargetReport.of(examples, max_tokens, over_length, special().stops)


def changed(folder, change, **files) -> Tokenizer:
    """A tokenizer like the recorded one, changed."""
    shutil.copytree(FOLDER, folder, dirs_exist_ok=True)
    backend = Backend.from_file(str(FOLDER / "tokenizer.json"))
    change(backend)
    backend.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


def with_begin(backend: Backend) -> None:
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])


# -- conversations ----------------------------------------------------------------------------------------------------------

words = st.text(st.sampled_from("ab 1\n.é東"), min_size=1, max_size=12)


@given(st.lists(words, min_size=2, max_size=7), st.sampled_from(["marks", "dated", "strict", "parts"]))
def test_the_assistant_s_words_and_the_end_of_turn_are_learned_and_nothing_else(contents, name):
    """By the text alone: what is learned decodes to the answers, each with the token that ends it."""
    messages = chat(*contents)
    examples = encoded(of_chat(template(name), messages))
    answers = [one["content"] for one in messages if one["role"] == "assistant"]
    if name in ("dated", "strict"):
        answers = [answer.strip() for answer in answers]
    header = {"strict": " ", "parts": " "}.get(name, "")  # these templates ask with "model:" and "[ASSISTANT]", the model writes the space
    assert learned(examples) == [f"{header}{answer}<|im_end|>" for answer in answers]
    row = examples.row(0)
    text = template(name).render(messages[: 2 * len(answers)])
    assert row["tokens"].tolist() == tokenizer().backend.encode(text, add_special_tokens=False).ids
    assert set(row["token_weight"].tolist()) <= {0.0, 1.0} and row["token_weight"][0] == 0


def test_what_stands_before_an_answer_is_what_generation_starts_from():
    messages = chat("Who?", "Me.", "And?", "You.")
    examples = encoded(of_chat(template(), messages))
    prompt, answer = last_answer(examples.row(0)["tokens"], examples.row(0)["token_weight"])
    assert tokenizer().decode(prompt) == template().render(messages[:3], prompt=True)
    assert tokenizer().decode(answer) == "You.<|im_end|>"
    nothing = last_answer(np.array([5, 6]), np.zeros(2))
    assert nothing[0].tolist() == [5, 6] and nothing[1].tolist() == []


def test_turns_and_weights_choose_what_is_learned():
    messages = chat("a", "b", "c", "d", "e")
    assert learned(encoded(of_chat(template(), messages))) == ["b<|im_end|>", "d<|im_end|>"]
    assert learned(encoded(of_chat(template(), messages, turns="last"))) == ["d<|im_end|>"]
    messages[1]["weight"], messages[3]["weight"] = 0, 0.5
    examples = encoded(of_chat(template(), messages))
    assert learned(examples) == ["d<|im_end|>"] and examples.row(0)["token_weight"].max() == 0.5
    messages[1]["weight"] = "much"
    with pytest.raises(DataError, match="message 1: \"weight\" is 'much'"):
        of_chat(template(), messages)


def test_what_follows_the_last_answer_is_not_read():
    assert of_chat(template(), chat("a", "b", "c")) == of_chat(template(), chat("a", "b"))
    assert of_chat(template(), chat("a")).trained == ()


def test_tool_calls_are_learned_and_results_are_not():
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    messages = [*chat("a"), call, {"role": "tool", "content": "42"}, {"role": "assistant", "content": "It is 42."}]
    found = learned(encoded(of_chat(template("dated"), messages, tools=[{"name": "f"}])))
    assert found == ['{"name": "f", "parameters": {"x": 1}}<|im_end|>', "It is 42.<|im_end|>"]


def test_a_template_that_writes_turns_otherwise_later_is_refused_with_a_way_out():
    messages = chat("a", "b", "c", "d")
    with pytest.raises(DataError, match=r"message 1: once more messages follow.*<think>.*turns: last"):
        of_chat(template("thinking"), messages)
    late_system = ChatTemplate(
        "{% for m in messages %}{{ 'SYSTEM' if loop.last or loop.revindex == 2 and m.role == 'user' }}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(DataError, match=r"message 1: once more messages follow.*turns: last"):
        of_chat(late_system, messages)
    assert learned(encoded(of_chat(template("thinking"), messages, turns="last"))) == ["<think>\n\n</think>\n\nd<|im_end|>"]
    quiet = of_chat(template("thinking", enable_thinking=False), messages, turns="last")
    assert learned(encoded(quiet)) == ["d<|im_end|>"]
    thoughtful = chat("a", "<think>\nhm\n</think>\n\nb")
    with pytest.raises(DataError, match=r"message 1: the template asks for the answer with .* but writes the answered conversation as"):
        of_chat(template("thinking", enable_thinking=False), thoughtful)


def test_failing_rows_are_counted_and_named():
    rows = [chat("a", "b"), "no list", chat("a", "b"), [{"role": "user"}], *[None] * 5]
    with pytest.raises(DataError, match=r"(?s)7 of 9 rows cannot be trained on:\n  row 1: .*'no list'\n  row 3: message 0 .*and 2 more$"):
        passages(lambda row: of_chat(template(), rows[row]), len(rows))
    assert len(passages(lambda row: of_chat(template(), rows[0]), 3)) == 3


# -- documents --------------------------------------------------------------------------------------------------------------


def test_all_of_a_text_is_learned_but_its_first_token(tmp_path):
    examples = encoded(of_text("The capital"))
    row = examples.row(0)
    assert tokenizer().decode(row["tokens"]) == "The capital<|im_end|>" and row["tokens"][-1] == STOP
    assert row["token_weight"].tolist() == [0, *[1] * (len(row["tokens"]) - 1)]
    assert encoded(of_text("The capital"), append_eos=False).row(0)["tokens"].tolist() == row["tokens"][:-1].tolist()


def test_the_begin_token_stands_there_once_and_is_no_target(tmp_path):
    tokens = changed(tmp_path, with_begin)
    chats = of_chat(template("dated"), chat("a", "b"))
    rows = [of_text("a b"), of_text("<s>a b"), of_completion("a", " b"), of_completion("<s>a", " b"), chats]
    examples = encode(tokens, rows, special(), max_tokens=99)
    rows = [examples.row(number) for number in range(5)]
    assert [row["tokens"].tolist().count(BOS) for row in rows] == [1] * 5
    assert all(row["tokens"][0] == BOS and row["token_weight"][0] == 0 for row in rows)
    assert rows[0]["tokens"].tolist() == rows[1]["tokens"].tolist() and rows[2]["tokens"].tolist() == rows[3]["tokens"].tolist()
    assert rows[0]["token_weight"].tolist() == [0, 1, 1, 1, 1] == rows[1]["token_weight"].tolist()
    assert rows[2]["token_weight"].tolist() == [0, 0, 1, 1, 1] == rows[3]["token_weight"].tolist()


def test_generation_begins_as_the_trained_row_does(tmp_path):
    def both(backend: Backend) -> None:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A <|im_end|>", special_tokens=[("<s>", BOS), ("<|im_end|>", STOP)]
        )

    for tokens in (tokenizer(), changed(tmp_path, both)):
        prompt, answer = last_answer(
            *(encode(tokens, [of_completion("a", " b")], special(), max_tokens=99).row(0)[n] for n in ("tokens", "token_weight"))
        )
        assert begin(tokens, "a") == prompt.tolist() and answer[-1] == STOP
    assert begin(tokens, "<s>a") == begin(tokens, "a")


def test_the_end_token_stands_there_once(tmp_path):
    def both(backend: Backend) -> None:
        around = [("<s>", BOS), ("<|im_end|>", STOP)]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A <|im_end|>", special_tokens=around)

    given = [of_text("ab"), of_text("ab<|im_end|>"), of_completion("a", "b")]
    for tokens in (tokenizer(), changed(tmp_path, both)):
        examples = encode(tokens, given, special(), max_tokens=99)
        for number in range(3):
            row = examples.row(number)
            assert row["tokens"].tolist().count(STOP) == 1 and row["tokens"][-1] == STOP and row["token_weight"][-1] == 1
    without_end = SpecialTokens({}, None, None, ())
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        encode(tokenizer(), given, without_end, max_tokens=99)
    assert encode(tokenizer(), [of_chat(template(), chat("a", "b"))], without_end, max_tokens=99).row(0)["token_weight"].any()


def test_completions_are_learned_and_prompts_where_everything_is():
    given = of_completion("The capital of France is", " Paris.")
    examples = encoded(given, everything(given), everything(of_chat(template(), chat("a", "b"))))
    assert learned(examples) == [" Paris.<|im_end|>"] and not examples.facts["blurred"].any()
    assert examples.row(1)["tokens"].tolist() == examples.row(0)["tokens"].tolist()
    assert examples.row(1)["token_weight"].tolist() == [0, *[1] * (examples.lengths[1] - 1)]
    assert learned(examples, 2)[0].startswith("system\n") and learned(examples, 2)[0].endswith("assistant\nb<|im_end|>")
    for prompt, completion, said in ((None, "a", "prompt is empty"), ("a", 3, "completion is a value of type int"), ("a", "", "completion is empty"),
                                     ("\ud800", "a", "surrogate")):  # fmt: skip
        with pytest.raises(DataError, match=said):
            of_completion(prompt, completion)


def test_a_token_across_the_edge_is_learned_and_counted():
    examples = encoded(of_completion("The capital of ", "France"), of_completion("The capital of", " France"))
    assert examples.facts["blurred"].tolist() == [True, False]
    assert examples.row(0)["tokens"].tolist() == examples.row(1)["tokens"].tolist()
    assert examples.row(0)["token_weight"].tolist() == examples.row(1)["token_weight"].tolist()
    assert "1 of 2 prompts end in other tokens" in "\n".join(report(examples).lines())


def test_offsets_that_do_not_run_through_the_text_are_an_error(tmp_path, monkeypatch):
    from jaxtune.data.transforms import targets

    assert targets._by_offsets([(0, 2), (2, 5), (5, 6)], 2) == 1
    assert targets._by_offsets([(0, 2), (2, 5), (5, 6)], 3) == 1  # the token across the edge
    assert targets._by_offsets([(0, 4), (0, 0), (5, 6)], 3) is None and targets._by_offsets([(0, 2)], 2) is None
    monkeypatch.setattr(targets, "_by_offsets", lambda offsets, edge: None)
    with pytest.raises(DataError, match=r"tokens of 1 rows have no clear place .*: row 1"):
        encoded(of_text("a"), of_completion("The capital of ", "France"))


def test_edges_hold_where_the_tokenizer_changes_the_text(tmp_path):
    def prepend(backend: Backend) -> None:  # as the tokenizers made from SentencePiece
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.NFKC(), normalizers.Lowercase()])
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    tokens = changed(tmp_path, prepend)
    passage = of_completion("ﬁne: Ａ", "Bcd é")
    row = encode(tokens, [passage], special(), max_tokens=99).row(0)
    found = stretches(tokens, pieces(tokens, row))
    assert [one.text for one in found] == ["_fine: a", "bcd é<|im_end|>"] and [one.trained for one in found] == [False, True]


# -- what is left -----------------------------------------------------------------------------------------------------------


def test_too_long_rows_are_cut_dropped_or_refused():
    given = [of_chat(template(), chat("a", "b")), of_chat(template(), chat("a" * 40, "b")), of_chat(template(), chat("a", "b" * 40))]
    full = encoded(*given).facts["full_length"]
    limit = int(full[0])
    cut = encoded(*given, max_tokens=limit)
    assert cut.facts["full_length"].tolist() == full.tolist() and cut.lengths.max() == limit
    assert cut.facts["kept"].tolist() == [True, False, True]  # the second row's answer lies behind the cut: nothing in it is learned
    assert cut.row(2)["tokens"].tolist() == encoded(*given).row(2)["tokens"][:limit].tolist()
    found = report(cut, limit)
    assert (found.rows, found.over, found.dropped, found.untrained, found.tokens) == (3, 2, 0, 1, 2 * limit)
    dropped = encoded(*given, max_tokens=limit, over_length="drop")
    assert dropped.facts["kept"].tolist() == [True, False, False] and dropped.lengths.tolist() == [limit, 0, 0]
    found = report(dropped, limit, "drop")
    assert (found.over, found.dropped, found.untrained, found.tokens) == (2, 2, 0, limit)
    with pytest.raises(DataError, match=rf"2 of 3 rows have more than {limit} tokens: second, third; raise"):
        encoded(*given, max_tokens=limit, over_length="error", names=["first", "second", "third"])


def test_the_share_of_trained_tokens_is_counted():
    examples = encoded(of_chat(template(), chat("a", "b", "c", "d")), of_text("ab"))
    found = report(examples)
    weights = np.concatenate([examples.row(number)["token_weight"] for number in range(2)])
    assert found.trained == (weights > 0).sum() and found.tokens == len(weights) and found.stops == 3
    assert found.trained_share == pytest.approx((weights > 0).mean())
    assert found.lines() == [f"trained tokens: {found.trained} of {found.tokens} ({found.trained_share:.1%})"]
    found.check(["<|im_end|>"], must_stop=True)


def test_nothing_to_learn_is_an_error():
    for rows, limit in (([of_chat(template(), chat("a"))] * 3, 500), ([of_chat(template(), chat("a", "b"))], 9)):
        examples = encoded(*rows, max_tokens=limit)
        with pytest.raises(DataError, match=rf"no token of all {len(rows)} rows is learned: .*{len(rows)} have no target"):
            report(examples, limit).check(["<|im_end|>"], must_stop=True)


def test_never_learning_the_end_is_an_error():
    """Cut before it, or a template that ends turns with another token than generation stops at."""
    examples = encoded(of_chat(template(), chat("a", "b" * 99)), max_tokens=60)
    with pytest.raises(DataError, match=r"the end of an answer is never learned, 1 of 1 rows are cut .* stop at none of <\|im_end\|>"):
        report(examples, 60).check(["<|im_end|>"], must_stop=True)
    examples = encoded(of_chat(template(), chat("a", "b")))
    other = TargetReport.of(examples, 500, "cut", (0,))
    with pytest.raises(DataError, match=r"never learned: generation would stop at none of <\|end\|>, .*generation_config.json"):
        other.check(["<|end|>"], must_stop=True)
    other.check(["<|end|>"], must_stop=False)  # plain text without an end


def test_an_end_token_that_doubles_as_padding_stays_a_target():
    """The fault of masking by number: here padding and end of sequence are token 2, as in SmolLM2."""
    assert special().texts["pad_token"] == special().texts["eos_token"]
    examples = encoded(of_chat(template(), chat("a", "b")), of_text("ab"))
    batch = collate([examples.row(0), examples.row(1)], 80)
    for number in range(2):
        length = int(examples.lengths[number])
        ends = batch["tokens"][number, :length] == STOP
        assert batch["segment_ids"][number].tolist() == [1] * length + [0] * (80 - length)
        assert batch["token_weight"][number, :length][ends][-1] == 1 and not batch["token_weight"][number, length:].any()


def test_pieces_show_every_token():
    examples = encoded(of_completion("a 東", " b"))
    found = pieces(tokenizer(), examples.row(0))
    assert [one.token for one in found] == examples.row(0)["tokens"].tolist() and {one.segment for one in found} == {1}
    parts = [(one.text, one.trained, one.tokens) for one in stretches(tokenizer(), found)]
    assert parts == [("a 東", False, len(found) - 3), (" b<|im_end|>", True, 3)]
    packed = {"tokens": np.array([5, 6, 5, 0]), "token_weight": np.array([0, 1, 0, 0]), "segment_ids": np.array([1, 1, 2, 0])}
    parts = [(one.trained, one.segment) for one in stretches(tokenizer(), pieces(tokenizer(), packed))]
    assert parts == [(False, 1), (True, 1), (False, 2)]


def test_examples_survive_the_cache(tmp_path):
    from jaxtune.data import cache

    made = encoded(of_chat(template(), chat("a", "b")), of_chat(template(), chat("a")))
    for hit in (False, True):
        stored, found = cache.load_or_build(tmp_path, "k" * 64, lambda: made)
        assert found is hit and report(stored) == report(made)
        np.testing.assert_array_equal(stored.row(0)["token_weight"], made.row(0)["token_weight"])


def test_a_span_of_no_weight_is_none():
    assert of_completion("", "a").trained == (Span(0, 1),)
