"""What a stranger reads of a comparison: the page, the references, and the table for a paper."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
from click.testing import CliRunner
from rich.console import Console
from test_compare import CLEAR, UNCLEAR, Page, make_run, make_runs
from test_compare_scores import change, entry

from maskzoo.cli import main
from maskzoo.compare.cells import Comparison, gather
from maskzoo.compare.citations import bibtex, citations, foreign
from maskzoo.compare.facts import command, evaluators, shared
from maskzoo.compare.findings import findings
from maskzoo.compare.latex import _broken, latex
from maskzoo.compare.names import chosen_scores, headed, titles, unknown_scores
from maskzoo.compare.page import page
from maskzoo.compare.plan import Plan
from maskzoo.compare.readings import gone
from maskzoo.compare.report import report, report_on
from maskzoo.compare.strips import strips

MAE = "He et al., Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377, CVPR 2022"
FACTS: Mapping[str, Any] = {
    "date": "2026-01-02T03:04:05+00:00",
    "precision": "bf16",
    "images": {"train": 20, "test": 5},
    "classes": 2,
    "image_size": [32, 48],
    "parameters": 1_500_000,
    "processes": 2,
    "threads": 3,
    "device_name": "A GPU",
    "curriculum": False,
    "used": [
        {"kind": "strategy", "name": "random", "distribution": "maskzoo", "version": "0.1.0", "paper": MAE},
        {"kind": "objective", "name": "reconstruct", "distribution": "maskzoo", "version": "0.1.0", "paper": MAE},
        {"kind": "evaluator", "name": "dark", "distribution": "maskzoo-dark", "version": "0.2"},
    ],
}


def with_facts(path: Path, **more: Any) -> Path:
    """A run that has kept what runs keep today."""
    held = json.loads((path / "environment.json").read_text())
    (path / "environment.json").write_text(json.dumps({**held, **FACTS, **more}))
    return path


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, which take their time."""
    monkeypatch.setattr("maskzoo.compare.figures.draw_all", lambda comparison, folder: [])


def words_of(comparison: Comparison, **more: Any) -> str:
    made = Page()
    made.feed(page(comparison, [], **more))
    return re.sub(r"\s+", " ", made.words.partition("}\n}")[2] or made.words)


# ---------------------------------------------------------------------------------------------------------------- page
def test_the_first_line_of_a_page_is_what_was_found(tmp_path: Path):
    comparison = gather(make_runs(tmp_path, CLEAR))
    body = page(comparison, []).partition("<body>")[2].strip()
    assert body.startswith(f"<h1>{findings(comparison)[0]}</h1>")


def test_a_page_says_what_was_trained(tmp_path: Path):
    paths = [with_facts(path) for path in make_runs(tmp_path, CLEAR)]
    facts = dict(shared(gather(paths)))
    assert facts["images"] == "20 for training, 5 for testing, 2 classes"
    assert (facts["image size"], facts["precision"], facts["threads"], facts["date"]) == (
        "32 x 48 pixels",
        "bf16",
        "3",
        "2026-01-02",
    )
    assert facts["epochs"] == "2 (40 images seen)"
    assert facts["backbone"] == "vit_tiny_patch16_224; 1.5 M parameters"
    assert facts["device"] == "cpu (A GPU)"
    assert facts["seeds"] == "0, 1, 2"


def test_what_is_not_the_same_everywhere_is_said_to_differ(tmp_path: Path):
    paths = make_runs(tmp_path, CLEAR)
    with_facts(paths[0], threads=1)
    for path in paths[1:]:
        with_facts(path)
    assert dict(shared(gather(paths)))["threads"] == "differs: 1; 3"


def test_a_page_says_how_it_was_made_with_a_plan_and_without_one(tmp_path: Path):
    comparison = gather(make_runs(tmp_path, CLEAR))
    assert "maskzoo compare RUN ... --baseline random" in page(comparison, [])
    old = page(comparison, [], asked={})  # a plan of an older version
    assert "maskzoo compare --seeds 0,1,2 --baseline random --equal epochs" in old


def test_the_command_takes_scores_and_publishes_the_command_only_when_asked(tmp_path: Path, undrawn: None):
    run = with_facts(make_run(tmp_path / "a", scores={"knn/top1": 0.1, "linear/top1": 0.2}), host="janes-laptop")
    for asked in (False, True):
        arguments = ["compare", str(run), "--out", str(tmp_path / "out"), "--scores", "linear"]
        done = CliRunner().invoke(main, [*arguments, *(["--with-command"] if asked else [])])
        assert done.exit_code == 0, done.output
        assert ("linear/top1" in done.output, "knn/top1" in done.output) == (True, False)
        kept = (tmp_path / "out" / "sources" / "random-s0" / "environment.json").read_text()
        assert ("janes-laptop" in kept) is asked


@pytest.mark.parametrize("images", [None, [], {"train": "x"}, {"train": 0, "test": 0}, {"test": 1}, "many"])
def test_facts_of_another_form_cost_nothing_but_themselves(tmp_path: Path, images: Any):
    path = with_facts(make_run(tmp_path / "a"), images=images, image_size="x", parameters="y", used={"no": "list"})
    comparison = gather([path])
    assert "data" in dict(shared(comparison))
    assert "<h1>" in page(comparison, [])


def test_runs_of_older_versions_are_shown_with_what_they_know(tmp_path: Path):
    comparison = gather(make_runs(tmp_path, CLEAR))
    facts = dict(shared(comparison))
    assert (facts["epochs"], facts["data"]) == ("2", "digits")
    assert "images" not in facts
    assert citations(comparison) == []
    assert "References" not in page(comparison, [])


def test_evaluators_are_shown_with_their_settings(tmp_path: Path):
    path = change(
        make_run(tmp_path / "a"),
        settings={"evaluators": [{"use": "knn", "k": 20, "metric": "cosine"}]},
        evaluations=[entry({"top1": 0.5}, {"use": "linear", "epochs": 9}, data={"use": "flowers"}, pooling="class")],
    )
    assert evaluators(gather([path])) == [
        ("knn", "k 20, metric cosine, pooling mean"),
        ("linear", "epochs 9, pooling class, on flowers"),
    ]


def test_every_recipe_is_there_folded_away(tmp_path: Path):
    text = page(gather(make_runs(tmp_path, CLEAR)), [])
    assert text.count("<details>") == 2
    assert "timm = &quot;vit_tiny_patch16_224&quot;" in text


def test_the_command_is_the_plans_and_never_what_was_typed(tmp_path: Path):
    asked = {"maskers": "random,edges+linear:0:-0.5", "seeds": "0,7", "vary": ["optimizer.lr=1,2"], "token": "s3cret"}
    line = command({**asked, "baseline": "random", "equal": "flops"})
    assert line == (
        "maskzoo compare --maskers random,edges+linear:0:-0.5 --seeds 0,7 --baseline random --equal flops "
        "--vary optimizer.lr=1,2"
    )
    path = with_facts(make_run(tmp_path / "a"), command=["maskzoo", "--set", "x=s3cret"])
    assert "s3cret" not in page(gather([path]), [], asked=asked)


def test_a_masker_without_a_curriculum_shows_none(tmp_path: Path):
    def masking(use: str, curriculum: Mapping[str, Any]) -> dict[str, Any]:
        return {"masking": {"strategy": {"use": use}, "curriculum": curriculum}}

    constant, neutral = {"use": "constant", "value": 0.0}, {"use": "neutral"}
    paths = [
        with_facts(make_run(tmp_path / "a", changes=masking("random", constant))),
        with_facts(make_run(tmp_path / "b", changes=masking("attmask", neutral)), curriculum=True),
    ]
    words = words_of(gather(paths))
    assert "masking.curriculum.usenoneneutral" in words.replace(" ", "")
    assert "masking.curriculum.value" not in words


def test_only_plugins_that_a_run_used_are_named(tmp_path: Path):
    installed = ("maskzoo 0.1.0", "maskzoo-dark 0.2", "maskzoo-other 3")
    old = make_run(tmp_path / "a", plugins=installed)
    new = with_facts(make_run(tmp_path / "b", "clmae", plugins=installed))
    runs = [cell.first for cell in gather([old, new]).cells]
    assert [foreign(run) for run in runs] == [["maskzoo-dark 0.2", "maskzoo-other 3"], ["maskzoo-dark 0.2"]]
    said = [" ".join(gone(run)) for run in runs]
    assert ["'maskzoo-other' 3 is not installed" in words for words in said] == [True, False]
    assert all("'maskzoo-dark' 0.2 is not installed" in words for words in said)


# --------------------------------------------------------------------------------------------------------------- masks
def keep_moment(path: Path, step: int, factor: float = numpy.nan, *, size: int = 8) -> None:
    images = numpy.zeros((8, 1, size, size), numpy.uint8)
    file = path / "masks" / f"step-{step:08d}.npz"
    numpy.savez_compressed(file, images=images, seen=images.repeat(3, axis=1), factor=factor, ratio=0.75)


def test_masks_are_a_row_for_each_cell_with_its_moments_across(tmp_path: Path):
    paths = make_runs(tmp_path, {"random": [0.1], "attmask": [0.2]})
    for path, factor in zip(paths, (numpy.nan, -1.0), strict=True):
        for step in (0, 1, 9):
            keep_moment(path, step, factor)
    first, second = strips(gather(paths))
    assert [words for words, _ in first.pictures] == ["images", *(f"step {n}, ratio 0.75" for n in (1, 2, 10))]
    assert second.pictures[-1][0] == "step 10, factor -1.00"
    assert len({data for _, data in first.pictures}) >= 1
    text = page(gather(paths), [], [first, second])
    assert text.count("data:image/png;base64,") == 8
    assert 'alt="masks of attmask, seed 0: step 10, factor -1.00"' in text


def test_runs_without_kept_moments_show_their_own_picture(tmp_path: Path):
    (strip,) = strips(gather([make_run(tmp_path / "a")]))
    assert strip.whole


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut", b"no zip"])
def test_a_picture_that_cannot_be_read_is_a_remark_wherever_remarks_are(tmp_path: Path, undrawn: None, damage: bytes):
    paths = make_runs(tmp_path, {"random": [0.1], "clmae": [0.2]})
    keep_moment(paths[0], 0)
    (paths[0] / "masks" / "step-00000003.npz").write_bytes(damage)
    (paths[1] / "masks" / "curriculum.png").write_bytes(b"no picture")
    console = Console(record=True, width=300)
    report_on(tmp_path / "out", paths, None, console)
    said = {
        "the page": (tmp_path / "out" / "report.html").read_text(),
        "table.md": (tmp_path / "out" / "table.md").read_text(),
        "the terminal": console.export_text(),
    }
    for where, text in said.items():
        assert "step-00000003.npz" in text, where
        assert re.search(r"curriculum\.png.*cannot be read", text), where


def test_large_images_come_small_and_bombs_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = make_run(tmp_path / "a")
    keep_moment(path, 0, size=300)
    (strip,) = strips(gather([path]))
    assert all(len(data) < 10_000 for _, data in strip.pictures)
    monkeypatch.setattr("maskzoo.compare.strips.MOST", 1000)
    comparison = gather([path])
    assert strips(comparison)[0].whole
    assert any("larger than any picture" in remark for remark in comparison.remarks)


# ---------------------------------------------------------------------------------------------------------- references
def test_papers_are_cited_once_with_what_they_are_for(tmp_path: Path):
    comparison = gather([with_facts(path) for path in make_runs(tmp_path, CLEAR)])
    (one,) = citations(comparison)
    assert (one.text, one.plugins, one.arxiv) == (MAE, ("masker random", "objective reconstruct"), "2111.06377")
    assert "Masked Autoencoders Are Scalable Vision Learners" in page(comparison, [])


@pytest.mark.parametrize(
    ("paper", "held"),
    [
        (MAE, ["@inproceedings{he2022,", "author = {He and others}", "booktitle = {CVPR}", "eprint = {2111.06377}"]),
        ("Doe, A & B, arXiv 2401.00001", ["@misc{doe,", "title = {{A \\& B}}", "eprint = {2401.00001}"]),
        ("see my thesis_2", ["@misc{see,", "note = {see my thesis\\_2}"]),
        ("\\input{x} %", ["note = {\\textbackslash{}input\\{x\\} \\%}"]),
    ],
)
def test_bibtex_is_made_of_a_paper_as_far_as_it_has_our_form(tmp_path: Path, paper: str, held: list[str]):
    used = [{"kind": "strategy", "name": "random", "paper": paper}]
    text = bibtex(gather([with_facts(make_run(tmp_path / "a"), used=used)]))
    assert all(part in text for part in held), text
    assert text.count("{") == text.count("}")
    assert "@misc{maskzoo," in text


def test_two_papers_of_one_author_and_year_have_two_keys(tmp_path: Path):
    papers = [MAE, MAE.replace("Scalable", "Other")]
    used = [{"kind": "strategy", "name": f"n{n}", "paper": paper} for n, paper in enumerate(papers)]
    assert re.findall(r"{(he2022\S*),", bibtex(gather([with_facts(make_run(tmp_path / "a"), used=used)]))) == [
        "he2022",
        "he2022-2",
    ]


# --------------------------------------------------------------------------------------------------------------- names
def test_one_label_is_never_two_columns(tmp_path: Path):
    knn = {"use": "knn", "k": 20}
    paths = [
        change(make_run(tmp_path / "a"), settings={"evaluators": [knn]}),
        change(make_run(tmp_path / "b", "clmae"), settings={"evaluators": [{**knn, "k": 5}]}),
    ]
    made = titles(gather(paths))
    assert set(made.values()) == {"k-NN top-1 (k 20)", "k-NN top-1 (k 5)"}


@pytest.mark.parametrize(
    ("asked", "chosen", "unknown"),
    [
        ("", ["knn/top1", "linear/top1"], []),
        ("linear", ["linear/top1"], []),
        ("linear, knn", ["linear/top1", "knn/top1"], []),
        ("K-NN top-1", ["knn/top1"], []),
        ("knn/top1,knn", ["knn/top1"], []),
        ("knn,typo", ["knn/top1"], ["typo"]),
        ("typo", ["knn/top1", "linear/top1"], ["typo"]),
    ],
)
def test_scores_are_chosen_by_evaluator_name_or_label(
    tmp_path: Path, asked: str, chosen: list[str], unknown: list[str]
):
    comparison = gather([make_run(tmp_path / "a", scores={"knn/top1": 0.1, "linear/top1": 0.2})])
    assert (chosen_scores(comparison, asked), unknown_scores(comparison, asked)) == (chosen, unknown)


def test_a_score_that_was_not_measured_is_a_remark(tmp_path: Path, undrawn: None):
    comparison = report(tmp_path / "out", [make_run(tmp_path / "a")], scores="knn,typo")
    assert comparison.remarks == ["--scores: nothing was measured by 'typo'; there are knn/top1"]


def test_the_terminal_shows_the_chosen_scores_alone(tmp_path: Path, undrawn: None):
    path = make_run(tmp_path / "a", scores={"knn/top1": 0.1, "linear/top1": 0.2})
    console = Console(record=True, width=120)
    report_on(tmp_path / "out", [path], None, console, scores="linear")
    said = console.export_text()
    assert ("linear/top1" in said, "knn/top1" in said) == (True, False)
    assert "knn" in (tmp_path / "out" / "table.md").read_text()


# --------------------------------------------------------------------------------------------------------------- latex
DOWN = {"random": [0.601, 0.70, 0.802], "clmae": [0.50, 0.60, 0.70]}


def test_a_table_has_a_label_an_arrow_and_says_on_what_and_how_long(tmp_path: Path):
    text = latex(gather([with_facts(path) for path in make_runs(tmp_path, CLEAR)]))
    assert r"\label{tab:maskzoo-digits}" in text
    assert r"k-NN top-1 (\%) $\uparrow$" in text
    caption = re.search(r"\\caption{(.*)}", text)
    assert caption is not None
    for words in ("vit\\_tiny\\_patch16\\_224", "`digits'", "for 2 epochs", "3 seeds"):
        assert words in caption[1]
    assert text.index(r"\caption") < text.index(r"\label")


@pytest.mark.parametrize(
    ("scores", "star"),
    [(CLEAR, True), (DOWN, False), (UNCLEAR, False), ({"random": [0.5, 0.6], "clmae": [0.7, 0.800001]}, False)],
)
def test_a_star_is_for_what_is_better_by_three_pairs(tmp_path: Path, scores: dict[str, list[float]], star: bool):
    text = latex(gather(make_runs(tmp_path, scores)))
    assert ("$^{*}$" in text) is star
    assert (r"\textbf" in text) <= (len(scores["random"]) > 2)


def test_a_metric_without_a_direction_has_neither_arrow_nor_star(tmp_path: Path):
    paths = [
        make_run(tmp_path / f"{masker}{seed}", masker, seed, {"thing/distance": value})
        for masker, values in CLEAR.items()
        for seed, value in enumerate(values)
    ]
    text = latex(gather(paths))
    assert not re.search(r"\\uparrow|\\downarrow|\^{\*}|\\textbf", text)
    assert headed(gather(paths), "thing/distance") == "thing/distance"


def test_scores_choose_the_columns_of_a_table(tmp_path: Path):
    paths = [
        make_run(tmp_path / masker, masker, 0, {"knn/top1": 0.1, "linear/top1": 0.2, "a/b": 0.3})
        for masker in ("random", "x")
    ]
    comparison = gather(paths)
    text = latex(comparison, ["linear/top1"])
    assert ("linear probe" in text, "k-NN" in text, r"\begin{table}" in text) == (True, False, True)
    assert r"\begin{table*}" in latex(comparison, ["linear/top1", "knn/top1"])


@pytest.mark.parametrize(
    ("head", "lines"),
    [
        ("k-NN top-1 (%) \u2191", ["k-NN top-1 (%) \u2191"]),
        ("linear probe top-1 (%) \u2191", ["linear probe", "top-1 (%) \u2191"]),
        ("few-shot top-1 (shots 10) (%) \u2191", ["few-shot top-1", "(shots 10) (%) \u2191"]),
        ("thing/distanceoflongname", ["thing/distanceoflongname"]),
    ],
)
def test_a_wide_head_is_broken_between_words_and_never_inside_brackets(head: str, lines: list[str]):
    assert _broken(head) == lines


@pytest.mark.slow
def test_a_planned_comparison_chooses_its_scores_too(tmp_path: Path, undrawn: None, monkeypatch: pytest.MonkeyPatch):
    def trained(plan: Plan, *_: Any, **__: Any) -> list[str]:
        for job in plan.jobs:
            make_run(job.folder, job.cell, job.seed, {"knn/top1": 0.5, "linear/top1": 0.6})
        return []

    monkeypatch.setattr("maskzoo.compare.whole.train_missing", trained)
    arguments = ["compare", "--maskers", "random", "--seeds", "2", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*arguments, "--set", "train.steps=2", "--scores", "linear"])
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "table.tex").read_text()
    assert ("linear probe" in text, "k-NN" in text) == (True, False)
    assert (
        "maskzoo compare --maskers random --seeds 2 --baseline random" in (tmp_path / "out" / "report.html").read_text()
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("columns", ["onecolumn", "twocolumn"])
@pytest.mark.parametrize("number", [1, 3, 4])
@pytest.mark.parametrize(
    "maskers",
    [("random", "attmask+partner"), ("random", "edges+linear:0:-0.5 optimizer.weight_decay=0.05 train.clip=0.1")],
)
def test_a_table_compiles_in_one_column_and_in_two(tmp_path: Path, columns: str, number: int, maskers: tuple[str, str]):
    names = ["knn/top1", "linear/top1", "reconstruction/loss on fixed masks", "finetune/top1"][:number]
    paths = {
        make_run(tmp_path / f"{masker[:9]}{seed}", masker, seed, dict.fromkeys(names, 0.5123 + 0.017 * seed)): masker
        for masker in maskers
        for seed in range(3)
    }
    preamble = (
        rf"\documentclass[{columns}]{{article}}\usepackage{{booktabs}}\begin{{document}}\ref{{tab:maskzoo-digits}}"
    )
    (tmp_path / "paper.tex").write_text(preamble + latex(gather(paths)) + r"\end{document}")
    for _ in range(2):
        done = subprocess.run(
            ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper.tex"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, errors="replace",
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert not re.search(r"Overfull|undefined|multiply", done.stdout), done.stdout[-2000:]
