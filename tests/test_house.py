"""The layout: which room stands on which floor, who may know of Hydra, who prints, what loads late."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest
from support.command import python

import splatexp
import splatexp_kernels
from splatexp.config.build import conf_dir

PACKAGE, KERNELS = Path(splatexp.__file__).parent, Path(splatexp_kernels.__file__).parent
ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))
import import_graph  # noqa: E402

HYDRA_ROOMS = {"__main__", "config", "sweep"}  # the rooms that may know of Hydra and OmegaConf
PRINTING_ROOMS = {"__main__", "commands", "doctor", "image", "study", "sweep"}  # what a user starts
EMPTY_NAMES = {"utils", "util", "helpers", "common", "core", "base", "managers", "misc"}
HEAVY = [
    "torchmetrics",
    "torchvision",
    "lpips",
    "wandb",
    "tensorboard",
    "gsplat",
    "scipy",
    "imageio",
    "plyfile",
    "matplotlib",
    "safetensors",
    "psutil",
    "viser",
    "sklearn",
]
REFERENCE_IMPORTS = {"torch", "math", "typing", "__future__", "collections", "dataclasses", "functools"}


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.py") if "conf" not in path.relative_to(root).parts)


def name_of(path: Path) -> str:
    """`densify/rules.py` -> `densify.rules`; a package by its folder, the package itself by ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return names


def test_imports_run_down_the_floors():
    graph = import_graph.import_graph(PACKAGE)
    floors = import_graph.floor_of_rooms()
    up = [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in others
        if import_graph.room(name) != import_graph.room(other)
        and floors[import_graph.room(name)] <= floors[import_graph.room(other)]
    ]
    assert not up, "\n".join(up)


def test_no_circle_of_imports():
    graph = import_graph.import_graph(PACKAGE)
    assert import_graph.circles(graph) == []
    assert import_graph.circles(import_graph.room_graph(graph)) == []


def test_every_room_stands_on_a_floor():
    rooms = {import_graph.room(name) for name in import_graph.import_graph(PACKAGE)}
    assert rooms == set(import_graph.floor_of_rooms())


def test_circles_and_floors_are_found(tmp_path):
    package = tmp_path / "house"
    for name, code in {
        "__init__": "",
        "roof": "from house import stairs",
        "stairs": "def climb():\n    from house.attic import box",
        "attic/__init__": "",
        "attic/box": "if TYPE_CHECKING:\n    from house.stairs import climb",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    graph = import_graph.import_graph(package)
    assert import_graph.circles(graph) == [["attic.box", "stairs"]]
    assert import_graph.floors(graph)["roof"] == 2 and import_graph.floors(graph)["attic.box"] == 1
    assert "imports in circles 2" in import_graph.report(package)


def test_the_picture_of_the_rooms_is_that_of_the_code():
    picture = ROOT / "docs" / "architecture.svg"
    assert picture.read_text(encoding="utf-8") == import_graph.drawing(PACKAGE), (
        "python tools/import_graph.py --draw docs/architecture.svg"
    )


@pytest.mark.parametrize("path", files(PACKAGE), ids=name_of)
def test_hydra_ends_at_the_command_line(path):
    roots = {module.partition(".")[0] for module in imports(path)}
    if import_graph.room(name_of(path)) not in HYDRA_ROOMS:
        assert not roots & {"hydra", "omegaconf"}


def test_the_kernels_know_nothing_of_the_package():
    for path in files(KERNELS):
        roots = {module.partition(".")[0] for module in imports(path)}
        assert not roots & {"splatexp", "hydra", "omegaconf"}, path


def test_references_import_torch_and_other_references_alone():
    for path in KERNELS.glob("*/reference.py"):
        for module in imports(path):
            root, *rest = module.split(".")
            plain = root in REFERENCE_IMPORTS
            other = root == "splatexp_kernels" and (len(rest) < 2 or {"reference", "constants"} & set(rest))
            assert plain or other, f"{path}: {module}"


@pytest.mark.parametrize("path", files(PACKAGE), ids=name_of)
def test_only_what_a_user_starts_prints(path):
    tree = tree_of(path)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    prints = any(isinstance(node.func, ast.Name) and node.func.id == "print" for node in calls)
    starts = any(
        isinstance(node, ast.FunctionDef) and node.name in ("main", "run_command") for node in tree.body
    )
    assert not prints or starts or import_graph.room(name_of(path)) in PRINTING_ROOMS


def test_names_say_what_is_inside():
    for root in (PACKAGE, KERNELS):
        for path in root.rglob("*"):
            assert path.stem not in EMPTY_NAMES, path


@pytest.mark.parametrize("path", files(PACKAGE), ids=name_of)
def test_public_things_have_docstrings(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree), "the module"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    assert ast.get_docstring(part), f"{node.name}.{part.name}"


def test_long_files_and_functions_are_remarked_on():
    """Length is a question, not a fault: the report names what is long, and nothing fails by it."""
    assert "longest file" in import_graph.report(PACKAGE)


def test_nothing_is_left_to_do():
    for path in [*files(PACKAGE), *files(KERNELS), *conf_dir().rglob("*.yaml")]:
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text(encoding="utf-8")), path


def test_heavy_packages_are_imported_where_they_are_used(tmp_path):
    code = (
        "import sys; from splatexp.config.registry import option_classes; from splatexp.run.run import Run; "
    )
    code += f"option_classes(); print([name for name in {HEAVY} if name in sys.modules])"
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "[]"


def test_help_needs_no_torch(tmp_path):
    code = "import sys; sys.argv = ['splatexp', '--help']; from splatexp.__main__ import main; main(); "
    code += "assert 'torch' not in sys.modules"
    python("-c", code, cwd=tmp_path)


def test_the_decoder_needs_no_torch(tmp_path):
    code = "import sys; from splatexp.image.codec import decode, describe, fuzz; "
    code += "assert 'torch' not in sys.modules"
    python("-c", code, cwd=tmp_path)
