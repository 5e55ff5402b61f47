"""Executes the cells in the JSON on standard input in a Jupyter kernel, and writes their outputs.

It is a separate program because Jupyter keeps threads and sockets until its process ends.
"""

import json
import sys

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def main() -> None:
    cells = [nbformat.v4.new_code_cell(code) for code in json.load(sys.stdin)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    error = ""
    try:
        NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
    except CellExecutionError as caught:
        error = str(caught)
    outputs = [output for cell in notebook.cells for output in cell.outputs if output.output_type == "stream"]
    streams = {name: "".join(o.text for o in outputs if o.name == name) for name in ("stdout", "stderr")}
    json.dump(streams | {"error": error}, sys.stdout)


if __name__ == "__main__":
    main()
