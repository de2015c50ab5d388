"""Every JSON and TOML file comes through one reader, which answers whatever somebody has made of it in one message."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest

from maskzoo.errors import DataError, MaskZooError
from maskzoo.plain import (
    json_text,
    parse_json,
    parse_toml,
    read_json,
    read_lines,
    read_toml,
    replace,
    step_line,
    write_json,
)

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "maskzoo").rglob("*.py"), *(ROOT / "plugins").glob("*.py")])


def calls(path: Path) -> set[str]:
    """Every `module.function` that a file calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    named = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {ast.unparse(function) for function in named}


@pytest.mark.slow
def test_nobody_but_the_checked_reader_reads_json_or_toml():
    readers = {"json.load", "json.loads", "tomllib.load", "tomllib.loads", "json.JSONDecoder"}
    found = {path.relative_to(ROOT).as_posix() for path in SOURCES if readers & calls(path)}
    assert found == {"maskzoo/plain.py"}
    imported = {
        path.name
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in ("json", "tomllib")
    }
    assert not imported


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"\xff\xfe{}", "cannot be read"),
        (b'{"a": "\xff"}', "cannot be read"),
        (b'{"a": "\\ud800"}', "cannot be read"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", "nested too deeply"),
        (b'{"a": {"b": [0, 1e999]}}', r"a\.b\[1\] is inf"),
        (b'{"a": NaN}', "a is nan"),
        (b'{"a": -Infinity}', "a is -inf"),
        (b'{"a": 9223372036854775808}', "a is a number that needs more than 64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b"[]", "expected a table"),
        (b"null", "expected a table"),
        (b"3", "expected a table"),
    ],
)
def test_json_that_cannot_be_what_is_expected_is_said_with_its_file(content: bytes, said: str, tmp_path: Path):
    path = tmp_path / "held.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_json_that_is_right_is_read(tmp_path: Path):
    path = tmp_path / "held.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, -9223372036854775808, 0.5, true, null, "\\ud83d\\ude00"]}')
    assert read_json(path) == {"a": [1, -(2**63), 0.5, True, None, "\U0001f600"]}
    assert parse_json("[1]", "here", list) == [1]


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/full")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("pipe", "folder", "device", "circle", "x" * 5000, "zero\0byte"):
        for read in (read_json, read_toml, lambda path: list(read_lines(path))):
            with pytest.raises(DataError, match="cannot be read"):
                read(tmp_path / name)


def test_a_missing_file_is_said_or_stands_for_what_the_caller_says(tmp_path: Path):
    (tmp_path / "dangling.json").symlink_to("nowhere")
    for name in ("none.json", "dangling.json"):
        with pytest.raises(DataError, match="is missing"):
            read_json(tmp_path / name)
        assert read_json(tmp_path / name, missing={}) == {}
    assert list(read_lines(tmp_path / "none.jsonl")) == []


def test_what_a_shell_hands_over_may_be_a_pipe():
    reading, writing = os.pipe()
    os.write(writing, b"a = 1")
    os.close(writing)
    try:
        assert read_toml(Path(f"/dev/fd/{reading}")) == {"a": 1}
    finally:
        os.close(reading)


def test_toml_may_begin_with_a_byte_order_mark(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbfa = inf\r\nb = 1\r\n")
    assert read_toml(path) == {"a": float("inf"), "b": 1}


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 100_000, "a = " + "9" * 5000, "a = 9223372036854775808", "a = ", "a = 1\na = 2"]
)
def test_toml_that_cannot_be_is_said(text: str):
    with pytest.raises(DataError, match="here "):
        parse_toml(text, "here")


@pytest.mark.parametrize("line", ["", "3", "[]", '{"step": 1e999}', '{"step": true}', '{"step": -1}', '{"step": "1"}'])
def test_a_line_that_is_no_step_is_none(line: str):
    assert step_line(line) is None


def test_what_is_written_can_be_read_again_whatever_it_holds(tmp_path: Path):
    write_json(tmp_path / "held.json", {"a": float("inf"), "b": [float("nan"), Path("x\udcff")], "c": (1, None)})
    assert read_json(tmp_path / "held.json") == {"a": "inf", "b": ["nan", "x\\udcff"], "c": [1, None]}
    assert json.loads(json_text({"a": 1})) == {"a": 1}


def test_a_file_is_replaced_without_touching_what_lies_beside(tmp_path: Path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("a.txt.part", ".a.txt.part", ".a.txt.mine.part"):
        (tmp_path / name).symlink_to(victim)
    (tmp_path / ".a.txt.0123abcd.part").write_text("left by a kill")
    replace(tmp_path / "a.txt", "one")
    replace(tmp_path / "a.txt", b"two")
    assert victim.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["victim", "a.txt", "a.txt.part", ".a.txt.part", ".a.txt.mine.part"]
    )
    assert (tmp_path / "a.txt").read_text() == "two"


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError):
        replace(tmp_path / "a.txt", "one")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_what_is_refused_can_be_mended_by_the_user():
    assert issubclass(DataError, MaskZooError)
