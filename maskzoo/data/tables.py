"""Labels in a table beside the images: its file, and which of its columns matter.

Shapes: R rows.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from maskzoo.data.library import library
from maskzoo.data.naming import counted, some
from maskzoo.errors import DataError, RecipeError
from maskzoo.plain import MOST_BYTES, printable, quoted, read_text

# Names of columns as `_plain_name` makes them, the first the surest.
FILE = (
    *("file", "filename", "filepath", "path", "image", "imagefile", "imagename", "imagepath", "img", "imgname"),
    *("imgpath", "imageid", "imgid", "id"),
)
LABEL = ("label", "labels", "class", "classname", "classid", "target", "category")
SPLIT = "split"
DELIMITERS = ",;\t|"
PARQUET = (".parquet", ".pq")
OTHERS = (".json", ".jsonl", ".xls", ".xlsx", ".ods", ".arrow", ".feather", ".npy", ".pkl", ".gz", ".zip")
LONGEST_HEADER = 2**16  # bytes of a table that are looked at to see whether it may hold labels


@attrs.frozen(eq=False)
class Table:
    """The columns of a table that matter, [R] texts each, as they stand."""

    path: str
    name: str  # for messages
    files: Mapping[str, Sequence[str]]  # columns that may name the images, the surest first
    labels: Sequence[str]
    label_column: str
    splits: Sequence[str] | None
    given: bool  # whether the columns were given by name


def refused(what: str) -> DataError:
    """The error for a table that cannot be used."""
    return DataError(f"recipe.data.labels: {what}")


# ------------------------------------------------------------------------------------------------------------- reading
def table_path(root: str | os.PathLike[str], labels: str) -> str:
    """The path of a table, from the folder of images where it is relative. Raises RecipeError where there is none."""
    path = os.path.normpath(os.path.join(root, labels))
    if os.path.isfile(path):
        return path
    hint = ""
    if not os.path.isabs(labels) and os.path.isfile(labels):
        hint = f'; it is read from data.root, so data.labels = "{printable(os.path.abspath(labels))}"'
    elif os.path.isdir(root) and (there := [one for one in sorted(os.listdir(root)) if one.lower().endswith(".csv")]):
        hint = f"; in the folder of images there is {some(there)}"
    what = "is a folder, not a table" if os.path.isdir(path) else "does not exist"
    raise RecipeError(f"'{printable(path)}' {what}{hint}", key="labels")


def read_table(path: str, columns: tuple[str, str] | None = None) -> Table:
    """The table in a CSV or Parquet file; `columns` are those of files and labels, found by their names unless given.

    Raises DataError, or RecipeError for `columns` that are not there, naming the file and what it has.
    """
    name, lower = printable(os.path.basename(path)), path.lower()
    if lower.endswith(OTHERS):
        raise refused(f"'{printable(path)}' is no table that can be read; save it as CSV (UTF-8) or Parquet")
    read = _parquet if lower.endswith(PARQUET) else _separated
    header, cells = read(path, columns)
    files, label = _columns(header, columns, name)
    splits = [number for number, one in enumerate(header) if _plain_name(one) == SPLIT]
    taken = {*files, label, *splits[:1]}
    values = {number: cells(number) for number in sorted(taken)}
    if not values[label]:
        raise refused(f"'{name}' has no rows below its header")
    return Table(
        path=path,
        name=name,
        files={header[number]: values[number] for number in files},
        labels=values[label],
        label_column=printable(header[label]),
        splits=values[splits[0]] if splits and splits[0] not in (*files, label) else None,
        given=columns is not None,
    )


def _separated(path: str, columns: tuple[str, str] | None) -> tuple[list[str], Any]:
    """The header of a CSV file, and a function that gives a column."""
    try:
        text = read_text(Path(path))
    except DataError as problem:
        advice = "; save it as UTF-8" if "codec" in str(problem) else ""
        raise refused(f"{problem}{advice}") from None
    if not text.strip():
        raise refused(f"'{printable(path)}' is empty")
    if found := re.match(r"\s*sep=(.)\r?\n", text):  # as spreadsheets write it
        text = text[found.end() :]
    header: list[str] = []
    rows: list[list[str]] = []
    try:
        delimiter = _delimiter(text, columns)
        for row in (reader := csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)):
            cells = [cell.strip() for cell in row]
            if not header:
                header = cells if any(cells) else header
            elif any(cells):
                if len(cells) < len(header) or any(cells[len(header) :]):
                    raise refused(
                        f"'{printable(path)}' has {counted(len(cells), 'value')} in line {reader.line_num}, and "
                        f"{counted(len(header), 'column')}; put values that hold '{delimiter}' in quotes"
                    )
                rows.append(cells)
    except csv.Error as problem:
        raise refused(f"'{printable(path)}' cannot be read as CSV: {problem}") from None
    return header, lambda number: [row[number] for row in rows]


def _delimiter(text: str, columns: tuple[str, str] | None) -> str:
    """What stands between the columns: that by which the header has the most names that are looked for."""

    def names(delimiter: str) -> tuple[int, int]:
        header = _header(text, delimiter)
        wanted = {*map(_plain_name, columns or ()), *(() if columns else (*FILE, *LABEL)), SPLIT}
        return len(wanted & set(map(_plain_name, header))), len(header)

    return max(DELIMITERS, key=names)


def _header(text: str, delimiter: str) -> list[str]:
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    return next((row for row in reader if any(cell.strip() for cell in row)), [])


def _parquet(path: str, columns: tuple[str, str] | None) -> tuple[list[str], Any]:
    """The names of the columns of a Parquet file, and a function that gives one as texts."""
    parquet = library("pyarrow.parquet", "maskzoo[data]", key="labels")
    try:
        if os.path.getsize(path) > MOST_BYTES:
            raise refused(f"'{printable(path)}' is larger than {MOST_BYTES // 2**20} MiB")
        header = [str(one) for one in parquet.read_schema(path).names]
    except DataError:
        raise
    except Exception as problem:
        raise refused(f"'{printable(path)}' cannot be read as Parquet: {_first_line(problem)}") from None

    def cells(number: int) -> list[str]:
        try:
            values = parquet.read_table(path, columns=[header[number]]).column(0).to_pylist()
        except Exception as problem:
            raise refused(f"'{printable(path)}' cannot be read as Parquet: {_first_line(problem)}") from None
        return [_text(value, header[number], path) for value in values]

    return header, cells


def _first_line(problem: Exception) -> str:
    return next(iter(str(problem).splitlines()), type(problem).__name__)


def _text(value: Any, column: str, path: str) -> str:
    """A value of a Parquet file as a text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and value.is_integer():  # whole numbers, where one of the column is missing
        value = int(value)
    if isinstance(value, str | bool | int | float):
        return str(value).strip()
    raise refused(
        f"the column '{printable(column)}' of '{printable(path)}' holds {type(value).__name__} values; names and "
        "labels are texts or numbers"
    )


# ------------------------------------------------------------------------------------------------------------- columns
def _plain_name(name: str) -> str:
    return re.sub(r"[\s_\-.]+", "", name.casefold())


def _columns(header: Sequence[str], given: tuple[str, str] | None, name: str) -> tuple[list[int], int]:
    """The columns that may name the files, the surest first, and that of the labels."""
    there = ", ".join(quoted(printable(one)) for one in header[:12]) + (", ..." if header[12:] else "")
    if given is not None:
        file, label = (_given(one, header, name, there) for one in given)
        return [file], label
    plain = [_plain_name(one) for one in header]
    files = [number for wanted in FILE for number, one in enumerate(plain) if one == wanted]
    labels = [number for wanted in LABEL for number, one in enumerate(plain) if one == wanted]
    advice = f'it has {there}; say data.label_columns = ["FILE", "LABEL"]'
    if not files:
        raise refused(f"'{name}' has no column for the file ('file', 'filename', 'path', 'image', 'id'); {advice}")
    if not labels:
        raise refused(f"'{name}' has no column for the label ('label', 'class', 'target', 'category'); {advice}")
    if len(labels) > 1:
        raise refused(f"'{name}' has several columns for the label; {advice}")
    return files, labels[0]


def _given(column: str, header: Sequence[str], name: str, there: str) -> int:
    found = [number for number, one in enumerate(header) if one == column] or [
        number for number, one in enumerate(header) if _plain_name(one) == _plain_name(column)
    ]
    if len(found) != 1:
        what = "no column" if not found else "several columns"
        raise RecipeError(f"'{name}' (data.labels) has {what} {quoted(column)}; it has {there}", key="label_columns")
    return found[0]


def label_tables(*folders: str) -> Iterator[str]:
    """A message on each table in the folders that looks like labels of images."""
    for folder in dict.fromkeys(folders):
        with os.scandir(folder) as entries:
            names = sorted(one.name for one in entries if one.name.lower().endswith((".csv", ".tsv")) and one.is_file())
        for name in names[:20]:
            try:
                with open(os.path.join(folder, name), encoding="utf-8-sig") as file:
                    header = _header(start := file.read(LONGEST_HEADER), _delimiter(start, None))
                _, label = _columns(header, None, name)
            except (OSError, ValueError, csv.Error, DataError):
                continue
            path = os.path.relpath(os.path.join(folder, name), folders[0])
            yield f"{printable(path)} has a column {quoted(printable(header[label]))}: data.labels = {quoted(path)}"
