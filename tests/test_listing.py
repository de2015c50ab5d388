"""Tables in terminals of any width."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.text import Text

from maskzoo.listing import Listing

ROWS = (
    ("random", "3", "12.782 ± 9.612", "baseline"),
    ("clmae+partner-neutral-adversary@0.75 depth=12", "10", "26.143 ± 14.217", "+0.213 ± 2.171"),
    ("knn (k 5,20, weight_decay 0.0005)", "1", "-1,437.5", "1.25e-05"),
)
NUMBERS = [entry for row in ROWS for entry in row[1:]] + ["0.75", "12", "0.0005", "5,20"]


def rendered(listing: Listing, width: int) -> str:
    console = Console(record=True, width=width)
    console.print(listing)
    return console.export_text()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 300])
@pytest.mark.parametrize("heads", [("cell", "seeds", "mean over the seeds", "difference"), ()], ids=["heads", "bare"])
def test_every_number_stays_whole_at_any_width(width: int, heads: tuple[str, ...]):
    listing = Listing(heads, {1, 2, 3})
    for row in ROWS:
        listing.add(*row)
    said = rendered(listing, width)
    assert "\u2026" not in said
    assert max(map(len, said.splitlines())) <= width
    for number in NUMBERS:
        assert number in said, number


def test_where_there_is_room_numbers_stand_under_each_other():
    listing = Listing(("a", "b"), {1})
    listing.add("x", "1.5")
    listing.add("yy", Text("100.25", style="bold"))
    assert rendered(listing, 80) == "a        b\nx      1.5\nyy  100.25\n"


def test_a_note_is_printed_once_and_marked_wherever_it_holds():
    listing = Listing(("a", "b"), {1})
    for name in ("x", "y"):
        listing.add(name, listing.noted("not enough seeds to tell"))
    listing.remarks.append("and more")
    assert rendered(listing, 80) == "a    b\nx  [1]\ny  [1]\n[1] not enough seeds to tell\nand more\n"


def test_what_is_printed_is_neither_markup_nor_control():
    listing = Listing()
    listing.add("[red]x[/red]", "a\x1b[2J")
    said = rendered(listing, 80)
    assert "[red]x[/red]" in said
    assert "\x1b" not in said


def test_an_empty_table_prints_nothing_but_its_heads():
    assert rendered(Listing(("a", "b")), 80) == "a  b\n"
    assert rendered(Listing(), 80) == ""
