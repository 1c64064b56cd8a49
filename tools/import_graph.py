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

# The floors of the house, the top one first. A room imports rooms of lower floors alone, be it at the top of
# a file, inside a function, or for types. Flat modules are rooms of their own.
FLOORS = (
    "__main__ evaluate render resume view study",
    "commands sweep image",
    "config",
    "run doctor testing",
    "image.fit viewer",
    "train evaluation",
    "densify poses",
    "importance losses",
    "raster schedules provenance",
    "data gaussians",
    "image.codec system tracking",
    "cameras io settings",
)
SUBROOMS = ("image.codec", "image.fit")  # folders of `image` that stand on floors of their own
LONG_FILE, LONG_FUNCTION = 300, 60  # lines
WIDTH, MARGIN, GAP, SPACE, BOX = 900, 20, 40, 30, (118, 34)  # px, of the drawing


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
    """Return the room of a module: its folder, or itself where it lies flat; see FLOORS."""
    for name in SUBROOMS:
        if module == name or module.startswith(f"{name}."):
            return name
    return module.partition(".")[0]


def floor_of_rooms() -> dict[str, int]:
    """Return the floor of each room by FLOORS, counted from the ground."""
    return {name: len(FLOORS) - index for index, floor in enumerate(FLOORS) for name in floor.split()} | {
        "": 0
    }


def room_graph(graph: Graph) -> Graph:
    """Return which room imports which."""
    rooms: Graph = {room(name): set() for name in graph}
    for name, others in graph.items():
        rooms[room(name)] |= {room(other) for other in others} - {room(name)}
    return rooms


def report(root: Path) -> str:
    """Return the counts of the import graph, one a line, and what is long."""
    graph, files = import_graph(root), modules(root)
    flat = [name for name, path in files.items() if path.parent == root and path.name != "__init__.py"]
    inside = [
        (name, other) for circle in circles(graph) for name in circle for other in graph[name] & set(circle)
    ]
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files.items()}
    longest = max(lengths, key=lambda name: lengths[name])
    functions = list(long_functions(files))
    return "\n".join(
        [
            f"files              {len(files)}, of which flat {len(flat)}",
            f"folders            {len({path.parent for path in files.values()} - {root})}",
            f"imports            {sum(map(len, graph.values()))}",
            f"floors of files    {max(floors(graph).values())}",
            f"circles of files   {[len(circle) for circle in circles(graph)] or 0}",
            f"imports in circles {len(inside)}",
            f"circles of rooms   {[len(circle) for circle in circles(room_graph(graph))] or 0}",
            f"remark: {sum(length > LONG_FILE for length in lengths.values())} files have more than "
            f"{LONG_FILE} lines; the longest file is {longest} with {lengths[longest]}",
            f"remark: {len(functions)} functions have more than {LONG_FUNCTION} lines: "
            f"{', '.join(functions) or 'none'}",
        ]
    )


def long_functions(files: Mapping[str, Path]) -> Iterator[str]:
    """Yield the functions of more than LONG_FUNCTION lines, with their modules and lengths."""
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > LONG_FUNCTION:
                    yield f"{name}.{node.name} ({length})"


def drawing(root: Path) -> str:
    """Draw the rooms by their floors as an SVG: an arrow for each import that no longer way implies."""
    graph = room_graph(import_graph(root))
    places: dict[str, tuple[float, float]] = {}
    parts = []
    for index, floor in enumerate(FLOORS):
        names = floor.split()
        y = MARGIN + index * (BOX[1] + GAP)
        left = (WIDTH - len(names) * BOX[0] - (len(names) - 1) * SPACE) / 2
        for number, name in enumerate(names):
            places[name] = (left + number * (BOX[0] + SPACE), y)
    for name in sorted(places):
        for other in sorted(direct(graph, name)):
            if other in places:
                parts.append(arrow(places[name], places[other]))
    for name, (x, y) in places.items():
        parts.append(
            f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}" rx="6" fill="#f4f1ea" '
            f'stroke="#3d3a35"/>'
        )
        parts.append(
            f'<text x="{x + BOX[0] / 2:.0f}" y="{y + BOX[1] / 2 + 5:.0f}" text-anchor="middle">'
            f"{name.replace('.', '/')}</text>"
        )
    height = MARGIN * 2 + len(FLOORS) * (BOX[1] + GAP) - GAP
    style = "font: 14px sans-serif; fill: #1d1c1a"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" style="{style}">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#8a7f6d"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def direct(graph: Graph, name: str) -> set[str]:
    """Return what a room imports and reaches in no longer way: its arrows in the transitive reduction."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            for other in graph[waiting.pop()] - found:
                found.add(other)
                waiting.append(other)
        return found

    return graph[name] - {far for near in graph[name] for far in reached(near)}


def arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    """Return a curve from the bottom of one box to the top of another."""
    x0, y0 = start[0] + BOX[0] / 2, start[1] + BOX[1]
    x1, y1 = end[0] + BOX[0] / 2, end[1] - 2
    middle = (y0 + y1) / 2
    return (
        f'<path d="M{x0:.0f} {y0:.0f} C{x0:.0f} {middle:.0f} {x1:.0f} {middle:.0f} {x1:.0f} {y1:.0f}" '
        'fill="none" stroke="#8a7f6d" marker-end="url(#tip)"/>'
    )


if __name__ == "__main__":
    words = sys.argv[1:]
    folder = Path(__file__).parents[1] / "splatexp"
    if words[:1] == ["--draw"]:
        Path(words[1]).write_text(drawing(folder), encoding="utf-8")
    else:
        print(report(Path(words[0]).resolve() if words else folder))
