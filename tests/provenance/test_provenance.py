"""What a number's origin says: the checkout's difference, the id of an experiment, hashes of the data."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny

from splatexp.config.build import build, compose
from splatexp.provenance import environment, identity
from splatexp.provenance import git as git_module
from splatexp.provenance.git import dirty_diff, git_revision

CONFIG = {
    "steps": 9,
    "seed": 0,
    "data": {"_target_": "splatexp.data.colmap.Colmap", "path": "/here/fox", "downscale": 1},
    "raster": {"_target_": "splatexp.raster.CPU", "far": float("inf"), "near": 0.01},
    "regularizer": {},
    "threads": 0,
}


def git(folder: Path, *words: str, given: str | None = None) -> str:
    named = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *named, *words]
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def package(tmp_path: Path, monkeypatch) -> Path:
    """A file of a package in a checkout with one commit; nothing of the user's own git is heard."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for function in (dirty_diff, git_revision):
        function.cache_clear()
    folder = tmp_path / "checkout" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("one\ntwo\n")
    (folder / "other.py").write_text("other\n")
    (folder.parent / ".gitignore").write_text("ignored\n")
    git(folder.parent, "init")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-m", "first")
    yield folder / "__init__.py"
    for function in (dirty_diff, git_revision):
        function.cache_clear()


def told(here: Path) -> str:
    """The difference as it is now."""
    dirty_diff.cache_clear()
    return dirty_diff(here)


def test_a_clean_checkout_has_no_difference(package):
    (package.parent / "ignored").write_text("x")
    assert told(package) == "" and len(git_revision(package)) == 40


def test_the_difference_makes_the_same_files_elsewhere(package, tmp_path):
    root = package.parents[1]
    package.write_bytes(b"one\r\n2 \xc3\xa9\n")
    (package.parent / "other.py").unlink()
    (root / "new folder").mkdir()
    (root / "new folder" / "-name.txt").write_text("new\nno end")
    (root / "empty").write_text("")
    (root / "staged").write_text("staged\n")
    git(root, "add", "staged")
    (root / "staged").write_text("staged, then changed\n")
    git(root, "config", "diff.noprefix", "true")  # and other tastes of the user
    git(root, "config", "color.ui", "always")
    index = (root / ".git" / "index").read_bytes()
    objects = sorted((root / ".git" / "objects").rglob("*"))
    status = git(root, "status", "--porcelain")
    patch = told(package)
    assert git_revision(package).endswith("-dirty")
    assert (root / ".git" / "index").read_bytes() == index and git(root, "status", "--porcelain") == status
    assert sorted((root / ".git" / "objects").rglob("*")) == objects
    git(tmp_path, "clone", str(root), "copy")
    (tmp_path / "patch").write_bytes(patch.encode())
    git(tmp_path / "copy", "apply", str(tmp_path / "patch"))
    for folder in ("package", "new folder", "."):
        files = {path.name: path.read_bytes() for path in (root / folder).iterdir() if path.is_file()}
        copied = {p.name: p.read_bytes() for p in (tmp_path / "copy" / folder).iterdir() if p.is_file()}
        assert copied == files


def test_binary_and_large_files_are_only_named(package, monkeypatch):
    root = package.parents[1]
    (root / "blob").write_bytes(b"\0secret" * 100)
    (root / "large.txt").write_text("lots\n" * 300_000)
    (root / "nested").mkdir()
    git(root / "nested", "init")
    (root / "nested" / "file").write_text("of another checkout")
    patch = told(package)
    assert "Binary files /dev/null and b/blob differ" in patch and "secret" not in patch
    assert "# untracked, not shown: 'large.txt', 1500000 bytes\n" in patch and "lots" not in patch
    assert "'nested/'" in patch and "another checkout" not in patch
    monkeypatch.setattr(git_module, "MAX_TOTAL_BYTES", 10)
    for name in ("a", "b", "c"):
        (root / name).write_text("12345678")
    assert told(package).count("+12345678") == 1


def test_a_stranger_s_checkout_tells_nothing(package, tmp_path):
    stranger = package.parent / "installed.py"
    stranger.write_text("not of this checkout")
    assert told(stranger) == "" and git_revision(stranger) is None
    assert told(tmp_path / "nowhere.py") == "" and git_revision(tmp_path / "nowhere.py") is None


def test_a_hook_s_environment_does_not_lead_astray(package, monkeypatch, tmp_path):
    package.write_text("changed\n")
    patch = told(package)
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert told(package) == patch != ""


def test_where_git_fails_it_says_so_and_never_raises(package, monkeypatch):
    package.write_text("changed\n")
    real, errors = git_module._git, []

    def broken(folder, until, *words, **more):
        if "diff" in words:
            raise errors.pop()
        return real(folder, until, *words, **more)

    monkeypatch.setattr(git_module, "_git", broken)
    for error, line in (
        (subprocess.TimeoutExpired("git", 10), "it took more than 10 s"),
        (subprocess.CalledProcessError(128, "git", stderr=b"fatal: bad index\nhelp"), "fatal: bad index"),
        (subprocess.CalledProcessError(1, "git", stderr=b"one\ntwo"), "two"),
        (subprocess.CalledProcessError(9, "git", stderr=b""), "exit status 9"),
        (PermissionError("no"), "no"),
    ):
        errors.append(error)
        assert told(package) == f"# git failed: {line}\n"
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    git_revision.cache_clear()
    assert told(package) == "" and git_revision(package) is None


def test_slow_git_is_given_up(package, monkeypatch, tmp_path):
    (tmp_path / "git").write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(git_module, "TIMEOUT_SECONDS", 0.2)
    assert told(package) == "# git failed: it took more than 0.2 s\n"


def test_one_experiment_has_one_id():
    first = identity.run_id(CONFIG, "data", "protocol")
    assert len(first) == 16 and int(first, 16) >= 0
    assert identity.run_id(dict(reversed(CONFIG.items())), "data", "protocol") == first
    elsewhere = CONFIG["data"] | {"path": "/there/fox", "cache": False}
    assert identity.run_id(CONFIG | {"data": elsewhere}, "data", "protocol") == first


def test_settings_around_the_recipe_do_not_count():
    around = ["threads=3", "log_every=7", "checkpoint.every=9", "evaluate.turntable=false", "objective=ssim"]
    around += ["force=true", "memory.reserve_mb=0", "tracker=[]", "viewer.port=9000", "job_cache=''"]
    assert build(compose(around)).config() == build(compose([])).config()


def test_another_experiment_has_another_id(monkeypatch):
    raster = CONFIG["raster"]
    others = [
        CONFIG | {"seed": 1},
        CONFIG | {"data": CONFIG["data"] | {"downscale": 2}},
        CONFIG | {"raster": raster | {"far": float("nan")}},
        CONFIG | {"raster": raster | {"far": 1e10}},
        CONFIG | {"raster": raster | {"_target_": "splatexp.raster.Reference"}},
        CONFIG | {"regularizer": {"opacity": {"weight": 0.1}}},
    ]
    ids = [identity.run_id(config, "data", "protocol") for config in [CONFIG, *others]]
    ids += [identity.run_id(CONFIG, "other", "protocol"), identity.run_id(CONFIG, "data", "other")]
    monkeypatch.setattr(identity, "code_hash", lambda: "other code")
    ids.append(identity.run_id(CONFIG, "data", "protocol"))
    assert len(set(ids)) == len(ids)


def test_what_comes_from_files_outside_counts_by_its_bytes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    ids = set()
    for place, text in (("a", "1"), ("b", "1"), ("b", "2")):
        (tmp_path / place).write_text(text)
        config = CONFIG | {"model": {"init": "ply", "init_path": str(tmp_path / place)}}
        ids.add(identity.run_id(config, "data", "protocol"))
    assert len(ids) == 2
    (tmp_path / "outsider_of_mine.py").write_text("raise RuntimeError('only its bytes are read')")
    config = CONFIG | {"parts": [{"_target_": "outsider_of_mine.Patient"}]}
    one = identity.run_id(config, "data", "protocol")
    (tmp_path / "outsider_of_mine.py").write_text("class Patient: ...")
    assert one != identity.run_id(config, "data", "protocol")
    assert identity.run_id(CONFIG | {"part": {"_target_": "no.such.Thing"}}, "data", "protocol") != one


def test_data_are_hashed_whole_and_view_by_view():
    scene = tiny.scene()
    found = environment.data_hashes(scene)
    assert found["data_sha256"] == scene.fingerprint
    assert (found["train_views"], found["test_views"]) == (5, 1)
    assert list(found["views"]) == [f"{index}.png" for index in range(6)]
    for view in (*scene.train, *scene.test):
        assert found["views"][view.name] == hashlib.sha256(view.image.numpy().tobytes()).hexdigest()


def test_the_record_names_code_packages_and_machine(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "-m", "pytest"])  # not a worker's
    record = environment.provenance()
    assert set(record) == {"command", "code_sha256", "git", "packages", "hardware"}
    assert not Path(record["command"][0]).is_absolute() and "pytest" in " ".join(record["command"])
    assert {"torch", "scipy", "safetensors", "triton", "python"} <= set(record["packages"])
    assert {"gpu", "cuda", "driver", "cores", "threads", "isa"} <= set(record["hardware"])
    names = [name for name, _ in environment._files()]
    assert "splatexp/densify/rules.py" in names and "splatexp_kernels/blend/reference.py" in names
    assert len(names) == len(set(names)) and not any(name.endswith(".yaml") for name in names)


def test_the_compiled_file_is_part_of_the_code(monkeypatch, tmp_path):
    pytest.importorskip("splatexp_kernels._cpu", exc_type=ImportError, reason="the C++ kernels are not built")
    assert "splatexp_kernels/_cpu" in dict(environment._files())
