"""Names lead to factories, and whatever is wrong with a name or an option is said in one line."""

from __future__ import annotations

import pytest

from fedadapt.errors import ConfigError, UnknownName
from fedadapt.registry import ROOMS, create, describe, find, names, register


@pytest.mark.parametrize("kind", ROOMS)
def test_every_room_is_found_and_described(kind):
    """Each kind has names, and each name a summary line and options."""
    assert names(kind) == sorted(names(kind)) != []
    for name in names(kind):
        summary, options = describe(kind, name)
        assert summary.endswith(".")
        assert all(options.values())


@pytest.mark.parametrize("kind", ROOMS)
def test_no_option_is_hidden_by_its_name(kind):
    """``name`` chooses the factory, so a run file could not set an option of that name."""
    assert not [name for name in names(kind) if "name" in describe(kind, name)[1]]


def test_an_unknown_name_lists_the_known_and_the_closest():
    """A typing error is answered with the name that was meant."""
    with pytest.raises(UnknownName) as caught:
        find("adapter", "paralel")
    assert "did you mean 'parallel'?" in str(caught.value)
    assert all(name in str(caught.value) for name in names("adapter"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "name", "options", "said"),
    [
        ("adapter", "parallel", {"innit": "zero"}, "did you mean 'init'?"),
        ("adapter", "parallel", {"init": "random"}, "'init' is 'random'"),
        ("adapter", "parallel", {"sites": {"kernel_sizes": (0,)}}, "greater than or equal to 1"),
        ("adapter", "parallel", {"sites": {"lasst": 3}}, "did you mean 'sites.last'?"),
        ("backbone", "resnet20", {"width": 0}, "greater than 0"),
        ("backbone", "timm", {}, "'model' is required"),
        ("codec", "float32", {"bits": 8}, "allowed: none"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(kind, name, options, said):
    """The line names the key, the value and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        create(kind, name, options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_is_registered_once():
    """A second factory under a taken name is a mistake of the programmer."""
    names("codec")
    with pytest.raises(ValueError, match="registered twice"):
        register("codec", "float32")(lambda: None)
