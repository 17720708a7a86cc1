from __future__ import annotations

from pathlib import Path

import pytest
import tiny_run

from jaxtune.core.errors import ConfigError
from jaxtune.models.load import open_base
from jaxtune.models.settings import NewModel
from jaxtune.selection.candidates import Candidate, Filters, check_candidates, encoder_parameters, parse_count
from jaxtune.selection.catalogue import load_catalogue


def test_words_become_candidates():
    assert Candidate.parse("a/b") == Candidate("a/b") and Candidate.parse("random:a/b") == Candidate("a/b", fresh=True)
    assert [Candidate.parse(text).name for text in ("a/b", "random:a/b")] == ["a/b", "random:a/b"]
    assert Candidate(NewModel(family="vit", config={"hidden_size": 8})).name == "new vit (hidden_size 8)"
    assert [each.is_random for each in (Candidate("a"), Candidate("a", True), Candidate(NewModel(family="vit")))] == [False, True, True]
    with pytest.raises(ConfigError, match="random:bert-base-uncased"):
        Candidate.parse("random:")


def test_each_candidate_counts_once_and_none_is_an_error():
    assert check_candidates([Candidate("a"), Candidate("a", True), Candidate("a")]) == (Candidate("a"), Candidate("a", True))
    with pytest.raises(ConfigError, match=r"--base .* --from-catalogue"):
        check_candidates([])


@pytest.mark.parametrize(
    ("text", "count"), [("22000000", 22_000_000), ("22,000,000", 22_000_000), ("100M", 10**8), ("1.5b", 1_500_000_000), ("500k", 500_000)]
)
def test_counts(text: str, count: int):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "many", "-3", "5 MB"])
def test_counts_that_are_none(text: str):
    with pytest.raises(ConfigError, match="--max-parameters"):
        parse_count(text)


def test_filters_look_at_the_catalogue_before_anything_is_downloaded():
    known = load_catalogue().find("FacebookAI/roberta-base")
    candidate = Candidate("FacebookAI/roberta-base")
    assert Filters().known(candidate, known) is None and Filters(("MIT",), 10**9, 512).known(candidate, known) is None
    assert Filters(("apache-2.0",)).known(candidate, known) == "licence mit in the catalogue; wanted: apache-2.0"
    assert Filters(("apache-2.0",)).known(Candidate("FacebookAI/roberta-base", fresh=True), known) is None
    assert Filters(max_parameters=10**8).known(candidate, known) == "124,000,000 parameters; wanted: at most 100,000,000"
    assert Filters(min_tokens=1024).known(candidate, known) == "reads 512 tokens; wanted: at least 1024"
    assert Filters(("x",), 1, 10**6).known(candidate, None) is None
    assert known is not None
    unnamed = known.model_copy(update={"licence": None})
    assert Filters(("apache-2.0",)).known(candidate, unnamed) is None
    assert "parameters" in str(Filters(("apache-2.0",), 10**6).known(candidate, unnamed))


def test_filters_look_at_the_model_folder(tmp_path: Path):
    folder = tiny_run.write_model(tmp_path / "model")
    base, candidate = open_base(str(folder)), Candidate(str(folder))
    count = encoder_parameters(base)
    assert Filters(("mit",)).opened(candidate, base) == "licence not named in its model card; wanted: mit"
    (folder / "README.md").write_text("---\nlicense: MIT\n---\n")
    base = open_base(str(folder))
    assert Filters(("mit",), count, base.family.max_tokens).opened(candidate, base) is None
    assert f"{count:,} parameters" in str(Filters(max_parameters=count - 1).opened(candidate, base))
    assert "reads" in str(Filters(min_tokens=10**6).opened(candidate, base))
