from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxtune.core.errors import ConfigError, DataError, ModelError, UnsafeInputError
from jaxtune.data.transforms import tokenize
from jaxtune.data.transforms.tokenize import LengthReport, Tokenizer, shared_room

REFERENCE = Path(__file__).parents[1] / "references" / "tokenizer"
TEXTS = [
    "The Ad sales BOOST: Time Warner's profit, 76% up to $1.13bn (£600m)!",
    "",
    "naïve café 東京 emoji 😀 and a [SEP] in the text",
    "  white \t\n space  \x00 and\u200b control ",
    "word " * 700,
]


@pytest.fixture(scope="module")
def auto(minilm_folder):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(minilm_folder))
    loaded.model_max_length = 10**9  # no warning about long texts
    return loaded


@pytest.mark.parametrize("limit", [8, 128, 512, 4096])
def test_token_numbers_equal_those_of_transformers(minilm, auto, limit):
    expected = auto(TEXTS, truncation=True, max_length=limit)["input_ids"]
    encoded = minilm.encode(TEXTS, max_tokens=limit)
    assert [encoded.tokens[i].tolist() for i in range(len(TEXTS))] == expected
    assert encoded.full_lengths.tolist() == [len(ids) for ids in auto(TEXTS)["input_ids"]]
    assert encoded.cut == (encoded.full_lengths > limit).sum() and encoded.kept.all() and encoded.token_types is None


@pytest.mark.parametrize("limit", [5, 12, 13, 128, 1000])
def test_pairs_equal_those_of_transformers(minilm, auto, limit):
    texts = [*TEXTS[:-1], "word " * 70]  # transformers builds every pair of leftovers: 20 s with 700 words
    first, second = [one for one in texts for _ in texts], texts * len(texts)
    expected = auto(first, second, truncation=True, max_length=limit)
    encoded = minilm.encode(first, second, max_tokens=limit)
    assert [encoded.tokens[i].tolist() for i in range(len(first))] == expected["input_ids"]
    assert [encoded.token_types[i].tolist() for i in range(len(first))] == expected["token_type_ids"]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_two_texts_share_the_room(first, second, room):
    kept = shared_room(first, second, room)
    assert sum(kept) == min(first + second, room) and kept[0] <= first and kept[1] <= second
    for mine, its, other in ((kept[0], first, kept[1]), (kept[1], second, kept[0])):
        assert mine == its or mine >= other - 1  # who lost something has no less than the other


def test_the_real_corpus_equals_transformers_and_is_quick(minilm, auto, bbc_texts, bbc_encoded):
    some = range(0, len(bbc_texts), 40)
    expected = auto([bbc_texts[i] for i in some], truncation=True, max_length=512)["input_ids"]
    assert [bbc_encoded.tokens[i].tolist() for i in some] == expected
    assert len(bbc_encoded.tokens) == 2225 and bbc_encoded.cut > 700


def test_recorded_references_are_met():
    tokenizer = Tokenizer.load(REFERENCE)
    examples = json.loads((REFERENCE / "examples.json").read_text())
    assert examples and tokenizer.max_tokens == 32
    for example in examples:
        pair = example.get("pair") or None  # transformers takes an empty second text, given alone, for none
        encoded = tokenizer.encode([example["text"]], [pair] if pair is not None else None, max_tokens=32)
        assert encoded.tokens[0].tolist() == example["input_ids"]
        if pair is not None:
            assert encoded.token_types[0].tolist() == example["token_type_ids"]


def test_byte_level_tokenizers_equal_those_of_transformers(tmp_path):
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers, processors, trainers
    from transformers import AutoTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = Fast(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(["the film was good", "the actor was bad"] * 5, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False)
    made.save(str(tmp_path / "tokenizer.json"))
    names = dict(zip(["bos_token", "pad_token", "eos_token", "unk_token", "mask_token"], special, strict=True))
    config = {**names, "cls_token": "<s>", "sep_token": "</s>", "tokenizer_class": "RobertaTokenizer", "add_prefix_space": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    auto, tokenizer = AutoTokenizer.from_pretrained(str(tmp_path)), Tokenizer.load(tmp_path)
    texts = ["the film", "  two  spaces\nand é 東京", "", "x" * 50]
    for limit in (6, 9, 100):
        alone, pairs = tokenizer.encode(texts, max_tokens=limit), tokenizer.encode(texts, texts[::-1], max_tokens=limit)
        assert [alone.tokens[i].tolist() for i in range(4)] == auto(texts, truncation=True, max_length=limit)["input_ids"]
        assert [pairs.tokens[i].tolist() for i in range(4)] == auto(texts, texts[::-1], truncation=True, max_length=limit)["input_ids"]
        assert pairs.token_types is None
    assert tokenizer.max_tokens is None


def test_what_lies_in_the_folder_does_not_cut_or_pad(minilm, minilm_folder):
    baked = json.loads((minilm_folder / "tokenizer.json").read_text())
    assert baked["truncation"]["max_length"] == 128 and baked["padding"]  # the trap is there
    assert minilm.encode([TEXTS[-1], "a"], max_tokens=600).tokens.lengths.tolist() == [600, 3]


def test_facts_about_the_tokenizer(minilm, minilm_folder):
    assert minilm.vocabulary == 30522 and minilm.max_tokens == 512 and minilm.has_token_types
    assert set(minilm.special_ids) == {0, 100, 101, 102, 103}
    assert (minilm.special_tokens(False), minilm.special_tokens(True)) == (2, 3)
    assert {path.name for path in minilm.files} == {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"}
    ids = minilm.encode(["Hello World"], max_tokens=9).tokens[0]
    assert minilm.decode(ids) == "[CLS] hello world [SEP]" and minilm.pieces(ids) == ["[CLS]", "hello", "world", "[SEP]"]
    assert minilm.special_mask(ids).tolist() == [True, False, False, True]
    again = pickle.loads(pickle.dumps(minilm))
    assert again.fingerprint == minilm.fingerprint == Tokenizer.load(minilm_folder).fingerprint


def changed_copy(source: Path, target: Path, **config) -> Path:
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "config.json"):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return target


def test_over_length_drop_keeps_the_numbering(minilm):
    encoded = minilm.encode(["a b", "c " * 50, "d"], max_tokens=10, over_length="drop")
    assert encoded.kept.tolist() == [True, False, True] and encoded.cut == 0
    assert encoded.tokens.lengths.tolist() == [4, 0, 3] and encoded.full_lengths.tolist() == [4, 52, 3]


def test_over_length_error_names_rows(minilm):
    texts = ["a"] * 3 + ["c " * 50] * 12
    with pytest.raises(DataError) as error:
        minilm.encode(texts, max_tokens=10, over_length="error")
    assert str(error.value).startswith("12 of 15 texts have more than 10 tokens: row 3 (52), row 4 (52),")
    assert "row 12 (52) and 2 more; raise max_tokens" in str(error.value)
    with pytest.raises(DataError, match=r"file-3\.txt"):
        minilm.encode(texts, max_tokens=10, over_length="error", names=[f"file-{n}.txt" for n in range(15)])
    assert minilm.encode(["a"], max_tokens=10, over_length="error").kept.all()


def test_wrong_values_are_named(minilm):
    with pytest.raises(DataError, match=r"2 of 3 rows hold no proper text \(a value of type NoneType in the first\): row 1, row 2"):
        minilm.encode(["a", None, 3], max_tokens=10)
    with pytest.raises(DataError, match=r"surrogate.*row 0"):
        minilm.encode(["a"], ["b \ud800"], max_tokens=10)
    with pytest.raises(ConfigError, match=r"max_tokens 3: the tokenizer adds 3 special tokens; use at least 4"):
        minilm.encode(["a"], ["b"], max_tokens=3)
    assert len(minilm.encode([], max_tokens=10).tokens) == 0


def test_settings_beside_tokenizer_json_count(tmp_path, minilm_folder, minilm):
    cased = Tokenizer.load(changed_copy(minilm_folder, tmp_path / "cased", do_lower_case=False))
    from transformers import AutoTokenizer

    text = "Time Warner Café"
    expected = AutoTokenizer.from_pretrained(str(tmp_path / "cased"))(text)["input_ids"]
    found = cased.encode([text], max_tokens=64).tokens[0].tolist()
    assert found == expected != minilm.encode([text], max_tokens=64).tokens[0].tolist()
    assert cased.fingerprint != minilm.fingerprint


def test_without_tokenizer_json_transformers_builds_it(tmp_path, minilm_folder, minilm):
    folder = changed_copy(minilm_folder, tmp_path / "slow")
    (folder / "tokenizer.json").unlink()
    slow = Tokenizer.load(folder)
    expected = minilm.encode(TEXTS, max_tokens=600)
    found = slow.encode(TEXTS, max_tokens=600)
    np.testing.assert_array_equal(found.tokens.flat, expected.tokens.flat)
    np.testing.assert_array_equal(found.full_lengths, expected.full_lengths)
    assert slow.special_ids and slow.vocabulary == 30522


def test_code_in_the_folder_is_never_run(tmp_path):
    folder = changed_copy(REFERENCE, tmp_path / "code", tokenizer_class="Evil", auto_map={"AutoTokenizer": [None, "evil.Evil"]})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\nclass Evil: pass\n")
    with pytest.raises(UnsafeInputError, match="never run"):
        Tokenizer.load(folder)
    assert not (tmp_path / "marker").exists()


def test_a_folder_without_a_tokenizer_says_what_it_holds(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"expected one of tokenizer.json, vocab.txt.* holds config.json"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ModelError, match="holds nothing"):
        Tokenizer.load(tmp_path / "nowhere")
    for broken in ("{", "[]", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(ModelError, match="fetch the file again"):
            Tokenizer.load(tmp_path)


def test_loading_a_plain_tokenizer_does_not_import_transformers():
    code = f"""
import sys
from jaxtune.data.transforms.tokenize import Tokenizer
Tokenizer.load({str(REFERENCE)!r}).encode(["a text"], max_tokens=8)
print("transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_length_report():
    report = LengthReport.of(np.array([3] * 5 + [10] * 4 + [700]), 8, bars=4)
    assert (report.rows, report.over, report.tokens, report.tokens_over) == (10, 5, 755, 700)
    assert report.quantiles["50 %"] == 3 and report.quantiles["90 %"] == 10 and report.quantiles["100 %"] == 700
    assert sum(report.counts) == 10 and len(report.edges) == len(report.counts) + 1
    lines = report.lines()
    assert "longer than max_tokens 8: 5 of 10 rows (50.0%), 92.7% of all tokens" in lines
    assert lines[-1].split()[-2:] == [str(report.counts[-1]), "#" * round(40 * report.counts[-1] / max(report.counts))]
    ordinary = LengthReport.of(np.arange(1, 101), 64)
    assert sum(ordinary.counts) == 100 and ordinary.counts[0] == ordinary.edges[1]
    assert LengthReport.of(np.array([], int), 8).rows == 0


def test_long_lists_are_encoded_in_parts(minilm, monkeypatch):
    texts = [f"text number {n}" for n in range(10)]
    whole = minilm.encode(texts, texts, max_tokens=64)
    monkeypatch.setattr(tokenize, "TEXTS_AT_ONCE", 3)
    parts = minilm.encode(texts, texts, max_tokens=64)
    np.testing.assert_array_equal(parts.tokens.flat, whole.tokens.flat)
    np.testing.assert_array_equal(parts.token_types.flat, whole.token_types.flat)
