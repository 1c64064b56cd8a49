"""Measure and draw who imports whom inside the package.

    python tools/import_graph.py [package folder]        prints the counts
    python tools/import_graph.py --draw docs/architecture.svg

Every import counts: at the top of a file, inside a function, and under `if TYPE_CHECKING`. A name that the
`__init__` of a package re-exports counts as an import of that `__init__`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]  # module -> the modules of the package that it imports


def modules(root: Path) -> dict[str, Path]:
    """Map every module below the package folder `root`, such as `densify.rules`, to its file.

    A package stands under the name of its folder, and the package `root` itself under "".
    """
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imported(tree: ast.Module, package: str, known: Mapping[str, Path]) -> Iterator[str]:
    """Yield the modules of `package` that a file imports, wherever the import stands in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            head, _, rest = name.partition(".")
            if head != package:
                continue
            if rest in known:
                yield rest
            elif isinstance(node, ast.ImportFrom) and rest.rpartition(".")[0] in known:
                yield rest.rpartition(".")[0]


def import_graph(root: Path) -> Graph:
    """Return the import graph of the package whose folder is `root`."""
    known = modules(root)
    graph = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name] = set(imported(tree, root.name, known)) - {name}
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Return the sets of modules that import each other in a circle, the largest first (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = [stack.pop()]
            while part[-1] != name:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(found, key=len, reverse=True)


def floors(graph: Graph) -> dict[str, int]:
    """Return the floor of each module: 1 where it imports nothing, else one above all that it imports.

    The modules of a circle stand on one floor.
    """
    group = {name: name for name in graph} | {name: circle[0] for circle in circles(graph) for name in circle}
    below: Graph = {head: set() for head in group.values()}
    for name, others in graph.items():
        below[group[name]] |= {group[other] for other in others} - {group[name]}
    known: dict[str, int] = {}

    def floor(head: str) -> int:
        if head not in known:
            known[head] = 1 + max((floor(other) for other in below[head]), default=0)
        return known[head]

    return {name: floor(group[name]) for name in graph}


def room(module: str) -> str:
    """Return the room of a module: its folder right below the package, or itself where it lies flat."""
    return module.partition(".")[0]


def report(root: Path) -> str:
    """Return the counts of the import graph, one a line."""
    graph, files = import_graph(root), modules(root)
    flat = [name for name, path in files.items() if path.parent == root and path.name != "__init__.py"]
    folders = {path.parent for path in files.values()} - {root}
    rooms: Graph = {room(name): set() for name in graph}
    for name, others in graph.items():
        rooms[room(name)] |= {room(other) for other in others} - {room(name)}
    inside = [
        (name, other) for circle in circles(graph) for name in circle for other in graph[name] & set(circle)
    ]
    return "\n".join(
        [
            f"files              {len(files)}, of which flat {len(flat)}",
            f"folders            {len(folders)}",
            f"imports            {sum(map(len, graph.values()))}",
            f"floors of files    {max(floors(graph).values())}",
            f"floors of rooms    {max(floors(rooms).values())}",
            f"circles of files   {[len(circle) for circle in circles(graph)] or 0}",
            f"imports in circles {len(inside)}",
            f"circles of rooms   {[len(circle) for circle in circles(rooms)] or 0}",
        ]
    )


if __name__ == "__main__":
    words = sys.argv[1:]
    print(report(Path(words[0] if words else "splatexp").resolve()))
