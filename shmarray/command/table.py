"""Rows in columns, as wide as the terminal.  Pure, but for the question how wide that is."""

import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes
    ----------
    title : str
    align : {'<', '>'}
        To the left, to the right.
    worth : int
        Where there is no room for all, those of the least worth go first; 0 never goes.
    """

    title: str
    align: Literal["<", ">"] = "<"
    worth: int = 0


_GAP = "  "


def terminal_width() -> int:
    """Columns of the terminal (or of $COLUMNS); where the output goes elsewhere, as many as anything needs."""
    return shutil.get_terminal_size(fallback=(1 << 20, 24)).columns


def lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The table with its titles.  No cell is cut, so that a name can be copied; columns are left out instead."""
    cells = [[column.title for column in columns], *rows]
    widths = [max(_width(row[index]) for row in cells) for index in range(len(columns))]
    kept = _fitting(columns, widths, width)
    return [
        _GAP.join(_padded(row[index], widths[index], columns[index].align) for index in kept).rstrip() for row in cells
    ]


def _fitting(columns: Sequence[Column], widths: Sequence[int], width: int) -> list[int]:
    kept = list(range(len(columns)))
    for index in sorted((index for index in kept if columns[index].worth), key=lambda index: columns[index].worth):
        if sum(widths[index] + len(_GAP) for index in kept) - len(_GAP) <= width:
            break
        kept.remove(index)
    return kept


def _padded(text: str, width: int, align: str) -> str:
    blank = " " * (width - _width(text))
    return blank + text if align == ">" else text + blank


def _width(text: str) -> int:
    """Columns that a terminal needs: two for a wide character, none for an accent that combines."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
