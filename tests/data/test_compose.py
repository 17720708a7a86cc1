"""Fields made out of other fields."""

import pytest
from pydantic import ValidationError

from jaxtune.core.errors import ConfigError, DataError
from jaxtune.data.transforms.compose import Compose, CutText

CUT = CutText(field="text", into=("headline", "article"))


def test_a_text_is_cut_at_its_first_separator():
    record = {"text": " Rates rise \n\nBanks said.\nMore. ", "label": "business"}
    made = CUT(record)
    assert made == {**record, "headline": "Rates rise", "article": "Banks said.\nMore."}
    assert CUT.fields_after(("text", "label")) == ("text", "label", "headline", "article")


@pytest.mark.parametrize("text", ["one line", "", "head\n  \n", "\n body"])
def test_a_text_without_two_parts_is_left_out(text):
    assert CUT({"text": text}) is None


def test_a_template_takes_fields_and_their_beginnings():
    compose = Compose(into="prompt", template="{{{kind}}} {text:.4} of {year}")
    assert compose({"kind": "x", "text": "abcdefg", "year": 2005})["prompt"] == "{x} abcd of 2005"


@pytest.mark.parametrize("template", ["no field", "{}", "{0}", "{text.__class__}", "{text[0]}", "{text} {n:{text}}", "{text", "a } b"])
def test_a_template_names_plain_fields_only(template):
    with pytest.raises(ValidationError):
        Compose(into="prompt", template=template)


def test_fields_that_are_missing_or_taken_are_told():
    with pytest.raises(ConfigError, match='no field "txt"'):
        Compose(into="prompt", template="{txt}").fields_after(("text",))
    with pytest.raises(ConfigError, match="text already"):
        Compose(into="text", template="{text}").fields_after(("text",))
    with pytest.raises(ConfigError, match="article already"):
        CUT.fields_after(("text", "article"))
    with pytest.raises(DataError, match="found list"):
        Compose(into="prompt", template="{text}")({"text": ["a"]})
    with pytest.raises(ValidationError, match="both parts"):
        CutText(field="text", into=("a", "a"))
