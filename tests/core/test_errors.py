from __future__ import annotations

from jaxtune.core import errors


def test_every_error_has_an_explained_exit_code():
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.JaxtuneError)]
    assert len(classes) > 8
    assert {cls.exit_code for cls in classes} | {0} == set(errors.EXIT_CODES)


def test_config_error_keeps_its_problems():
    assert errors.ConfigError("one").problems == ("one",)
    assert str(errors.ConfigError(["one", "two"])) == "one\ntwo"
