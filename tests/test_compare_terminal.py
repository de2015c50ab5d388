"""What a comparison prints: whole numbers in terminals of any width."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console
from test_compare import make_runs

from maskzoo.cli import main
from maskzoo.compare.cells import gather
from maskzoo.compare.report import tell

SCORES = {
    "random": [0.5012, 0.6034, 0.7056],
    "attmask+partner": [0.5112, 0.6934, 0.6056],
    "edges+linear:0:-0.5 optimizer.weight_decay=0.05": [0.5012, 0.6034, 0.7056],
}


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 200])
def test_no_number_is_cut_in_any_terminal(tmp_path: Path, width: int):
    paths = make_runs(tmp_path, SCORES)
    comparison = gather(dict(zip(paths, [name for name in SCORES for _ in range(3)], strict=True)))
    console = Console(record=True, width=width)
    tell(comparison, Path("out"), console)
    said = console.export_text()
    assert "\u2026" not in said
    assert max(map(len, said.splitlines())) <= width
    for whole in (r"60\.3 ± 25\.\d", r"0\.0 ± 0\.0", r"1\.000|0\.\d{3}"):
        assert re.search(whole, said), whole
    for piece in ("attmask", "partner", "edges", "linear:0:-0.5", "optimizer.", "weight_", "decay=0.05"):
        assert piece in said, piece


def test_a_wide_terminal_has_a_table(tmp_path: Path):
    console = Console(record=True, width=120)
    tell(gather(make_runs(tmp_path, {"random": [0.5, 0.6, 0.7], "clmae": [0.6, 0.7, 0.81]})), Path("out"), console)
    lines = console.export_text().splitlines()
    assert re.fullmatch(r"cell +seeds +mean \(%\) +difference +p \(Holm\)", lines[2].strip())


def test_names_are_printed_harmlessly_and_never_as_markup(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.5], "clmae": [0.6]})
    for width in (40, 120):
        console = Console(record=True, width=width)
        tell(gather(dict(zip(paths, ["[red]a[/red]", "b\x1b[31m"], strict=True))), Path("out"), console)
        said = console.export_text()
        assert "[red]a[/red]" in said
        assert "\x1b" not in said
        assert "b\\x1b[31m" in said


def test_the_list_of_commands_cuts_no_sentence():
    said = CliRunner().invoke(main, ["--help"]).output
    assert "..." not in said.partition("Commands:")[2]
    assert max(map(len, said.splitlines())) <= 80
