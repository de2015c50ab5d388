"""What the runs of a comparison cite, as a list of references and as BibTeX; what they used, by distribution."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import attrs

from maskzoo.compare.cells import Comparison
from maskzoo.compare.latex import escaped
from maskzoo.compare.readings import Reading, distributions
from maskzoo.plain import printable

OURS = "maskzoo"


@attrs.frozen
class Citation:
    """A paper, and which plugins of the runs it is the source of."""

    text: str
    plugins: tuple[str, ...]  # e.g. "masker attmask"

    @property
    def arxiv(self) -> str:
        """Its number at arXiv, or nothing."""
        found = re.search(r"arXiv[:\s]*(\d{4}\.\d{4,5})", self.text)
        return found[1] if found else ""


def used(run: Reading) -> list[Mapping[str, Any]]:
    """The plugins that a run's recipe names, as the run has kept them; nothing of runs that kept nothing."""
    held = run.environment.get("used")
    entries = [entry for entry in held if isinstance(entry, dict)] if isinstance(held, list) else []
    return [entry for entry in entries if isinstance(entry.get("kind"), str) and isinstance(entry.get("name"), str)]


def foreign(run: Reading) -> list[str]:
    """The distributions of other people's plugins that a run has used; of an older run, all that were installed."""
    return [name for name in distributions(run.environment) if name.split(" ")[0] != OURS]


def citations(comparison: Comparison) -> list[Citation]:
    """The papers of all plugins that any run has used, each once, in the order of the cells."""
    found: dict[str, list[str]] = {}
    for cell in comparison.trained:
        for run in cell.runs.values():
            for entry in used(run):
                paper = entry.get("paper")
                if isinstance(paper, str) and paper.strip():
                    kind = "masker" if entry["kind"] == "strategy" else entry["kind"]
                    found.setdefault(" ".join(printable(paper).split()), []).append(f"{kind} {entry['name']}")
    return [Citation(text, tuple(dict.fromkeys(names))) for text, names in found.items()]


def bibtex(comparison: Comparison) -> str:
    """references.bib: an entry for each paper, and one for MaskZoo in the version that was used."""
    versions = {
        str(run.environment.get("versions", {}).get(OURS, ""))
        for cell in comparison.trained
        for run in cell.runs.values()
    }
    note = ", ".join(f"version {escaped(version)}" for version in sorted(versions - {"", "None"}))
    keys: list[str] = []
    entries = [_entry(citation, keys) for citation in citations(comparison)]
    ours = "@misc{maskzoo,\n  title = {{MaskZoo}: composable masking strategies and curricula},\n"
    return "\n".join([*entries, f"{ours}  note = {{{note}}},\n}}\n" if note else f"{ours}}}\n"])


def _entry(citation: Citation, keys: list[str]) -> str:
    """A BibTeX entry of "AUTHOR et al., TITLE, arXiv NUMBER, VENUE YEAR"; what has another form is a note as it is."""
    year = re.search(r"\b(?:19|20)\d\d\b(?!.*\b(?:19|20)\d\d\b)", re.sub(r"arXiv\S*\s*\S+", "", citation.text))
    parts = [
        part.strip()
        for part in re.split(r",\s+arXiv[:\s]*\d{4}\.\d{4,5}|,\s+(?=[A-Z][\w-]* (?:19|20)\d\d$)", citation.text)
    ]
    author, comma, title = parts[0].partition(", ")
    word = re.sub(r"[^a-z]", "", unicodedata.normalize("NFD", author.split(" ")[0].lower())) or "paper"
    key, number = f"{word}{year[0] if year else ''}", 2
    while key in keys:
        key, number = f"{word}{year[0] if year else ''}-{number}", number + 1
    keys.append(key)
    eprint = {"eprint": citation.arxiv, "archiveprefix": "arXiv"} if citation.arxiv else {}
    if not comma or len(parts) < 2:
        return _written("misc", key, {"note": escaped(citation.text), **eprint})
    venue = " ".join(part.strip(" ,") for part in parts[1:] if part.strip(" ,"))
    where = re.sub(r"\s*\b(?:19|20)\d\d$", "", venue)
    fields = {
        "author": escaped(re.sub(r"\s+et al\.?$", " and others", author)),
        "title": f"{{{escaped(title)}}}",
        "booktitle": escaped(where),
        "year": year[0] if year else "",
        "note": f"arXiv:{citation.arxiv}" if citation.arxiv else "",
        **eprint,
    }
    return _written("inproceedings" if where else "misc", key, fields)


def _written(kind: str, key: str, fields: Mapping[str, str]) -> str:
    lines = [f"  {name} = {{{value}}},\n" for name, value in fields.items() if value]
    return f"@{kind}{{{key},\n{''.join(lines)}}}\n"
