"""Format tables to fit the terminal.  Pure, except for determining the terminal's width."""

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
        Left or right.
    worth : int
        If not all columns fit, those of least worth are left out first; 0 is always kept.
    """

    title: str
    align: Literal["<", ">"] = "<"
    worth: int = 0


_GAP = "  "


def terminal_width() -> int:
    """The terminal's width (or $COLUMNS); practically unlimited if the output does not go to a terminal."""
    return shutil.get_terminal_size(fallback=(1 << 20, 24)).columns


def lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The table with its titles.  Cells are never cut, so that names can be copied; columns are left out instead."""
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
    """Width on a terminal: two columns for a wide character, none for a combining accent."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )
