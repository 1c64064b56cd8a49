"""The manners of the house: who imports whom, who prints, how files are called, what is imported late."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from support.command import python

import splatexp
import splatexp_kernels
from splatexp.config.build import conf_dir

PACKAGE, KERNELS = Path(splatexp.__file__).parent, Path(splatexp_kernels.__file__).parent
HYDRA = {
    "config",
    "loader",
    "schema",
    "__main__",
    "job",
    "launchers",
    "multirun",
    "search",
}  # who may know of Hydra and OmegaConf
KERNEL_DOORS = {"densify.noise", "raster", "losses", "optimizer", "importance.learned", "run", "provenance"}
KERNEL_DOORS |= {"image.solve", "image.lessons", "image.teach", "image.rate"}
KERNEL_DOORS |= {"image.covariance", "image.layer", "image.gsi", "image.decode", "image.fuzz"}
KERNEL_DOORS |= {"doctor.probes", "raster.kernels", "raster.rasterizer", "raster.gsplat", "raster.extension"}
KERNEL_DOORS |= {"poses.rig", "raster.additive", "raster.plane"}
ENTRY_POINTS = {"__main__", "doctor.__main__", "finished", "evaluate", "render", "resume"}
ENTRY_POINTS |= {"image.fuzz", "image.teach"}
ENTRY_POINTS |= {"view", "job", "multirun", "study.__main__", "study.conduct"}  # they print, open runs
ENTRY_POINTS |= {"image.__main__", "image.fresh", "image.encode"}
ONLY = {  # module -> what of the package it may import
    "train": {
        "data.resident",
        "data.scene",
        "densify.strategy",
        "devices",
        "dropout",
        "importance",
        "losses",
        "optimizer",
        "progress",
    }
    | {"poses", "raster", "rate", "record", "regularizers", "rows", "schedules", "seeds", "smoothing"},
    "explain": set(),
    "choices": set(),
    "atomic": set(),
    "schema": {"explain", "options"},
    "loader": {"data", "explain", "options", "schema"},
    "config": {"atomic", "explain", "loader", "options", "run", "schema"},
    "__main__": {"", "config", "distributed", "job", "launchers", "multirun", "schema", "search"},
}
NOT_BELOW = {
    "config",
    "run",
    "__main__",
    "finished",
    "train",
    "evaluate",
    "looks",
    "render",
    "resume",
}
NOT_BELOW |= {"image.fuzz", "image.teach"}
NOT_BELOW |= {"view", "job", "multirun", "study.__main__", "study.conduct", "image.__main__", "image.encode"}
NOT_BELOW |= {"image.tasks", "image.bench"}
HEAVY = ["torchmetrics", "torchvision", "lpips", "wandb", "tensorboard", "gsplat", "scipy", "imageio"]
HEAVY += ["plyfile", "matplotlib", "safetensors", "psutil", "viser", "sklearn"]
PURE = {"motion", "similarity", "turntable"}  # functions of cameras, which data may take too
PLAIN = {"torch", "math", "typing", "__future__", "collections", "dataclasses", "functools"}


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*.py") if "conf" not in path.relative_to(root).parts)


def name_of(path: Path) -> str:
    """`densify/rules.py` -> `densify.rules`; a package by its folder, the package itself by ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path, typing_too: bool = False) -> set[str]:
    """Full names of the modules that a file imports anywhere, but for those under `if TYPE_CHECKING`."""
    tree = tree_of(path)
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING" and not typing_too:
            skipped |= {id(part) for part in ast.walk(node)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            module = node.module or ""
            names |= {
                f"{module}.{alias.name}" if is_module(module, alias.name) else module for alias in node.names
            }
    return names


def is_module(package: str, name: str) -> bool:
    root = {"splatexp": PACKAGE, "splatexp_kernels": KERNELS}.get(package.partition(".")[0])
    if root is None:
        return False
    place = root.joinpath(*package.split(".")[1:], name)
    return place.is_dir() or place.with_suffix(".py").is_file()


def own(path: Path) -> set[str]:
    """What a file imports of the package, as `name_of` says it."""
    return {name.partition(".")[2] for name in imports(path) if name.partition(".")[0] == "splatexp"}


@pytest.mark.parametrize("path", files(PACKAGE), ids=name_of)
def test_who_imports_whom(path):
    name, roots = name_of(path), {module.partition(".")[0] for module in imports(path)}
    if name not in HYDRA:
        assert not roots & {"hydra", "omegaconf"}
    if "splatexp_kernels" in roots:
        assert name in KERNEL_DOORS
    if name in ONLY:
        assert own(path) <= ONLY[name]
    assert "__main__" not in own(path)
    if name not in NOT_BELOW | {"options", "densify.conformance"}:
        assert not own(path) & NOT_BELOW
    if name not in ENTRY_POINTS | {"config", "options", "tests"}:
        assert not own(path) & {"run", "config"}
    if name.partition(".")[0] == "data":
        assert own(path) <= {"atomic", "cameras", "choices", "devices", "image.pictures", *PURE} | {
            n for n in own(path) if n.startswith("data")
        }


def test_the_kernels_know_nothing_of_the_house():
    for path in files(KERNELS):
        roots = {module.partition(".")[0] for module in imports(path, typing_too=True)}
        assert not roots & {"splatexp", "hydra", "omegaconf"}, path


def test_references_import_torch_and_their_sisters_alone():
    for path in KERNELS.glob("*/reference.py"):
        for module in imports(path):
            root, *rest = module.split(".")
            plain = root in PLAIN
            sister = root == "splatexp_kernels" and (rest[-1] in ("reference", "constants") or rest == [])
            assert plain or sister, f"{path}: {module}"


@pytest.mark.parametrize("path", files(PACKAGE), ids=name_of)
def test_only_entry_points_print(path):
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    printed = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
    assert not printed or name_of(path) in ENTRY_POINTS


def test_names_say_what_is_inside():
    empty = {"utils", "util", "helpers", "common", "core", "base", "managers", "misc"}
    for root in (PACKAGE, KERNELS):
        for path in root.rglob("*"):
            assert path.stem not in empty, path


@pytest.mark.parametrize("path", files(PACKAGE), ids=name_of)
def test_public_things_have_docstrings(path):
    tree = tree_of(path)
    assert ast.get_docstring(tree) or path.stat().st_size == 0, "the module"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), node.name
            for part in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                    assert ast.get_docstring(part), f"{node.name}.{part.name}"


@pytest.mark.parametrize("path", files(PACKAGE), ids=name_of)
def test_files_and_functions_stay_short(path):
    assert len(path.read_text().splitlines()) <= 300
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 60, node.name


def test_nothing_is_left_to_do():
    for path in [*files(PACKAGE), *files(KERNELS), *conf_dir().rglob("*.yaml")]:
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", path.read_text(encoding="utf-8")), path


def test_heavy_packages_are_imported_where_they_are_used(tmp_path):
    code = "import sys; from splatexp.config.registry import options; "
    code += "from splatexp.run.run import Run; options(); "
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "[]"


def test_help_needs_no_torch(tmp_path):
    code = "import sys; sys.argv = ['splatexp', '--help']; from splatexp.__main__ import main; main(); "
    code += "assert 'torch' not in sys.modules"
    python("-c", code, cwd=tmp_path)
