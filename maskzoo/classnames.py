"""What the numbers of a run's classes mean, for those who use its weights elsewhere."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from maskzoo.data.labels import older_classes
from maskzoo.errors import MaskZooError
from maskzoo.plain import is_utf8, quoted
from maskzoo.trained import Trained


def names_of(trained: Trained, outputs: int | None = None) -> tuple[list[str], list[str]]:
    """The classes of a run by number, and a message where those of a classifier's `outputs` are not known.

    From its checkpoint, or from its data where the checkpoint is older than the names in it. None of 0 outputs; as many
    as there are where `outputs` is None.
    """
    if outputs == 0:
        return [], []
    names = trained.classes
    if names is None:
        try:
            names = older_classes(trained.dataset())
        except MaskZooError:
            names = None
    if outputs is None or (names is not None and len(names) == outputs):
        return [str(name) for name in names or ()], []
    why = (
        "the checkpoint has none, and the data of the run cannot be opened"
        if names is None
        else f"the data have {len(names)} classes by now"
    )
    return [], [f"the names of the {outputs} classes are left out: {why}"]


def written(name: str) -> str:
    """A class name as a file of text can hold it: what is no text is escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_classes(folder: Path, name: Path, classes: Sequence[str]) -> list[str]:
    """Write the file by which timm numbers folders as the classifier does, where timm can read it; what to say of it.

    timm numbers by lines and strips them, and leaves out the images of folders that are not named there.
    """
    for odd, why in (
        ([one for one in classes if not is_utf8(one) or re.search(r"\\x[0-9a-f]{2}", one)], "is not UTF-8"),
        ([one for one in classes if re.search(r"[\n\r]", one)], "holds a line break"),
        ([one for one in classes if one != one.strip() or not one], "begins or ends with a space, or is empty"),
        ([one for one, count in Counter(classes).items() if count > 1], "stands there twice"),
    ):
        if odd:
            return [
                f"classes.txt, by which timm numbers folders, is left out: the class {quoted(written(odd[0]))} {why}; "
                "config.json has the names (label_names)"
            ]
    (folder / "classes.txt").write_text("".join(f"{one}\n" for one in classes), encoding="utf-8", newline="\n")
    call = f"timm.data.create_dataset('', root=..., class_map='{name}/classes.txt')"
    accents = any(unicodedata.normalize("NFD", one) != one for one in classes)
    with (folder / "README.md").open("a", encoding="utf-8") as file:
        file.write(
            f"Its outputs are the classes of classes.txt, line by line (label_names in config.json). timm numbers "
            f"folders in an order of its own; `{call}` numbers folders of these names as the classifier does, and "
            "leaves out all others.\n"
        )
        if accents:
            file.write("Accents are composed in these names (NFC), and have to be in those of folders.\n")
    return [f"its {len(classes)} outputs have names; to read folders with timm, give it class_map='{name}/classes.txt'"]
