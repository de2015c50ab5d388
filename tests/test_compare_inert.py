"""What a comparison leaves for others to open: nothing in it is obeyed, and nothing says who made it where."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from test_compare import CLEAR, Page, make_run, make_runs

from maskzoo.compare.cells import gather
from maskzoo.compare.facts import without_home
from maskzoo.compare.figures import draw_all
from maskzoo.compare.report import PUBLISHED, report
from maskzoo.compare.tables import markdown, results_csv, statistics_csv

NASTY = [
    "<img src=x onerror=alert(1)>",
    "=1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "-2+3",
    "+1",
    "\tx",
    " =1",
    "'quoted",
    "\uff1d1",
    "\x1b[31mred\x07",
    "[a](https://evil.example)",
    "![a](http://evil.example/x.png)",
    "`code` $x^2$ **b** _i_ ~~s~~ www.evil.example",
    "a|b\nc",
    "-->]]></svg><script>alert(1)</script>",
    "$\\frac{1}{0}$ $",
    "\u202eright to left",
    "{x} \\input{secret} %",
]


class Attributes(Page):
    """A page whose attributes are looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        self.attributes += [name for name, _ in given]
        super().handle_starttag(tag, given)


CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report whose cells have names of that kind, and whose runs have foreign words in all other places."""
    folder = tmp_path_factory.mktemp("nasty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maskzoo.compare.figures.draw_all", lambda comparison, folder: [])
        report(folder / "out", nasty_runs(folder), remarks=[*NASTY])
    return folder / "out"


def nasty_runs(folder: Path) -> dict[Path, str]:
    names = {}
    for number, name in enumerate(NASTY):
        path = make_run(
            folder / f"run{number}", NASTY[number], 0, {f"knn/{NASTY[0]}": 0.5, "knn/top1": 0.5 + number / 99}
        )
        environment = {"device": NASTY[9], "versions": {"maskzoo": NASTY[0]}, "plugins": [NASTY[9]]}
        used = [{"kind": "strategy", "name": NASTY[0], "distribution": NASTY[9], "paper": f"{NASTY[0]} {NASTY[17]}"}]
        (path / "environment.json").write_text(json.dumps({**environment, "used": used, "date": NASTY[0]}))
        names[path] = name
    return names


def test_no_control_character_is_in_any_file(out: Path):
    files = [path for path in out.iterdir() if path.suffix in (".html", ".md", ".tex", ".csv", ".bib")]
    assert len(files) == 6
    for path in files:
        assert not CONTROL.search(path.read_text(encoding="utf-8")), path.name


def test_the_page_has_no_tag_but_its_own(out: Path):
    page = Attributes()
    page.feed((out / "report.html").read_text())
    assert page.open == []
    text = (out / "report.html").read_text()
    assert "<script" not in text
    assert not [name for name in page.attributes if name.startswith("on")]


@pytest.mark.slow
def test_no_figure_obeys_a_name(tmp_path: Path):
    drawn = draw_all(gather(nasty_runs(tmp_path)), tmp_path / "figures")
    for path in (tmp_path / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        ElementTree.fromstring(text)
        assert not CONTROL.search(text), path.name
        assert "<script" not in text
    assert len(drawn) >= 4
    for figure in drawn:
        page = Page()
        page.feed(figure.svg)
        assert page.open == []
        assert "<script" not in figure.svg


def test_markdown_has_no_html_no_link_and_no_code(out: Path):
    text = (out / "table.md").read_text()
    assert not re.search(r"[<>]", text)
    assert not re.search(r"(?<!\\)`|(?<!\\)\$|(?<!\\)\[|https?://|www\.", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert len(widths) <= 3  # a width for each table, not for each name


def test_no_cell_of_a_spreadsheet_begins_like_a_formula(out: Path):
    for name in ("results.csv", "statistics.csv"):
        for row in csv.reader(io.StringIO((out / name).read_text())):
            for value in row:
                try:
                    float(value)
                except ValueError:
                    assert value.lstrip()[:1] not in tuple("=+-@\t\uff1d\uff0b\uff0d\uff20"), value


def test_numbers_of_a_spreadsheet_stay_numbers_and_texts_come_back(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [-0.5, 0.25], "clmae": [1e-9, 2.0]})
    names = dict(zip(paths, ["=a", "=a", "'b", "'b"], strict=True))
    for text in (results_csv(gather(names)), statistics_csv(gather(names))):
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {row["cell"].removeprefix("'") for row in rows} == {"=a", "'b"}
    assert [row["knn/top1"] for row in csv.DictReader(io.StringIO(results_csv(gather(names))))] == [
        "-0.5",
        "0.25",
        "1e-09",
        "2.0",
    ]


def test_latex_obeys_no_name(out: Path):
    text = (out / "table.tex").read_text()
    assert r"\input" not in text.replace(r"\textbackslash{}input", "")
    assert "\n\n\n" not in text
    assert r"\input" not in (out / "references.bib").read_text().replace(r"\textbackslash{}input", "")


def test_harmless_names_read_as_before(tmp_path: Path):
    paths = make_runs(tmp_path, CLEAR)
    names = dict(
        zip(paths, ["random optimizer.weight_decay=0.05"] * 3 + ["attmask+linear:0:-0.5@0.6"] * 3, strict=True)
    )
    text = markdown(gather(names))
    assert "| random optimizer.weight_decay=0.05 |" in text
    assert "| attmask+linear:0:-0.5@0.6 |" in text


# ------------------------------------------------------------------------------------------------------- who and where
PRIVATE = {
    "command": ["maskzoo", "--set", "data.token=s3cret"],
    "host": "janes-laptop",
    "process": 4711,
    "user": "jane",
}


@pytest.mark.parametrize("asked", [False, True])
def test_sources_say_who_started_a_run_only_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
):
    monkeypatch.setattr("maskzoo.compare.figures.draw_all", lambda comparison, folder: [])
    path = make_run(tmp_path / "run")
    held = json.loads((path / "environment.json").read_text())
    (path / "environment.json").write_text(json.dumps({**held, **PRIVATE, "threads": 2}))
    report(tmp_path / "out", [path], with_command=asked)
    kept = json.loads((tmp_path / "out" / "sources" / "random-s0" / "environment.json").read_text())
    assert kept == ({**held, **PRIVATE, "threads": 2} if asked else {**held, "threads": 2})
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file() and file.suffix != ".json":
            assert not re.search("s3cret|janes-laptop|4711", file.read_text(encoding="utf-8"))


def test_whatever_a_run_keeps_of_its_environment_is_published_or_not_on_purpose():
    private = {"command", "process", "host"}
    source = (Path(__file__).parents[1] / "maskzoo" / "folder.py").read_text()
    written = set(
        re.findall(
            r'^ {12}"(\w+)": ', source[source.index("environment = {") :].partition("}\n")[0], flags=re.MULTILINE
        )
    )
    assert {"versions", "plugins", "host"} <= written
    assert written <= PUBLISHED | private


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/jane/runs/a", "~/runs/a"),
        ("'/Users/jane/x' is no run", "'~/x' is no run"),
        ("root = \"/home/jane/photos\"", "root = \"~/photos\""),
        ("/data/home/x", "/data/home/x"),
        ("C:\\Users\\jane\\runs", "~\\runs"),
        ("/root/runs", "~/runs"),
        ("homes/jane", "homes/jane"),
    ],
)  # fmt: skip
def test_a_page_names_no_home(text: str, shown: str):
    assert without_home(text) == shown


def test_paths_of_the_page_begin_at_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("maskzoo.compare.figures.draw_all", lambda comparison, folder: [])
    out = tmp_path / "there" / "out"
    paths = [
        make_run(out / "runs" / "a"),
        make_run(tmp_path / "there" / "b", "clmae"),
        make_run(tmp_path / "far" / "c", "x"),
    ]
    report(out, paths)
    text = (out / "report.html").read_text()
    for shown in ("<code>runs/a</code>", "<code>../b</code>", f"<code>{without_home(str(paths[2]))}</code>"):
        assert shown in text
    assert 'href="sources/random-s0/recipe.toml"' in text
    assert (out / "sources" / "random-s0" / "recipe.toml").is_file()
