"""Records behave as frozen dataclasses with slots do."""

from dataclasses import FrozenInstanceError
from typing import ClassVar

import pytest

from gateway.records import Record, field, replace


class Point(Record):
    """Two fields, one of them with a default."""

    dimensions: ClassVar[int] = 2
    x: int
    y: int = 7


class Named(Point):
    """A derived record, with all kinds of field."""

    secret: str = field(default="", repr=False)
    note: str = field(default="", compare=False)
    tags: list[str] = field(default_factory=list)


class Checked(Record):
    """A record that looks at its values."""

    size: int

    def __post_init__(self):
        if self.size < 0:
            raise ValueError("negative")


def test_values_come_by_place_by_name_and_from_defaults():
    assert Point(1) == Point(1, 7) == Point(y=7, x=1) == Point(1, y=7)
    named = Named(1, tags=["a"])
    assert (named.x, named.y, named.secret, named.note, named.tags) == (1, 7, "", "", ["a"])
    assert Point.dimensions == 2


def test_a_default_factory_makes_a_new_value_each_time():
    assert Named(1).tags == []
    assert Named(1).tags is not Named(1).tags


@pytest.mark.parametrize(
    ("values", "named"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"x": 1}), ((1,), {"z": 1}), ((1, 2), {"z": 1})],
)
def test_wrong_values_are_refused(values, named):
    with pytest.raises(TypeError):
        Point(*values, **named)


def test_nothing_can_be_changed_or_added():
    point = Point(1)
    for name in ("x", "other"):
        with pytest.raises(FrozenInstanceError):
            setattr(point, name, 2)
        with pytest.raises(FrozenInstanceError):
            delattr(point, name)
    assert not hasattr(point, "__dict__")


def test_equal_are_records_of_one_class_with_equal_fields():
    assert Point(1) != Point(2)
    assert Point(1) != Checked(1)
    assert Named(1, note="a") == Named(1, note="b")
    assert Named(1, 7) != Point(1, 7)
    assert len({Point(1), Point(1, 7), Point(2)}) == 2


def test_what_is_shown():
    assert repr(Point(1)) == "Point(x=1, y=7)"
    assert "hush" not in repr(Named(1, secret="hush"))


def test_a_match_statement_sees_the_fields():
    match Named(1, 2, "s"):
        case Named(x, y, secret):
            assert (x, y, secret) == (1, 2, "s")


def test_replace_makes_a_changed_copy():
    named = Named(1, secret="s")
    assert replace(named, y=3) == Named(1, 3, "s")
    assert named.y == 7
    with pytest.raises(TypeError):
        replace(named, z=1)


def test_values_are_checked_in_every_copy():
    with pytest.raises(ValueError, match="negative"):
        Checked(-1)
    with pytest.raises(ValueError, match="negative"):
        replace(Checked(1), size=-1)
