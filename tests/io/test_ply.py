"""Files that viewers read: layouts, exact round trips, foreign and broken files, full disks."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement
from support.result_cases import splats as make

from splatexp.gaussians.splats import PARAMS, Splats
from splatexp.io import atomic
from splatexp.io.ply import SH_C0, load_ply, save_ply, save_splat


@pytest.mark.parametrize("degree", range(5))
@pytest.mark.parametrize("count", [0, 1, 63])
def test_ply_round_trip_is_exact(tmp_path: Path, degree: int, count: int) -> None:
    splats = make(count, degree)
    save_ply(tmp_path / "a.ply", splats)
    params = load_ply(tmp_path / "a.ply")
    for name in PARAMS:
        assert params[name].dtype == torch.float32
        assert torch.equal(params[name], getattr(splats, name).detach()), name
    assert Splats(params).sh_degree == degree


def test_ply_layout_is_the_one_viewers_read(tmp_path: Path) -> None:
    splats = make(5, degree=1)
    save_ply(tmp_path / "a.ply", splats)
    data = PlyData.read(tmp_path / "a.ply")
    assert (data.text, data.byte_order) == (False, "<")
    names = [prop.name for prop in data["vertex"].properties]
    expected = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2".split() + [f"f_rest_{i}" for i in range(9)]
    assert names == expected + "opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
    assert {prop.val_dtype for prop in data["vertex"].properties} == {"f4"}
    rest = np.stack([data["vertex"][f"f_rest_{i}"] for i in range(9)], 1)
    assert np.array_equal(rest[:, 4], splats.shN[:, 1, 1].detach())  # channel-major: green, second
    assert not np.any(data["vertex"]["nx"])


def test_isotropic_gaussians_get_three_equal_scales(tmp_path: Path) -> None:
    splats = make(4, isotropic=True)
    save_ply(tmp_path / "a.ply", splats)
    assert torch.equal(load_ply(tmp_path / "a.ply")["log_scales"], splats.log_scales.detach().expand(-1, 3))
    save_splat(tmp_path / "a.splat", splats)
    assert (tmp_path / "a.splat").stat().st_size == 4 * 32


@pytest.mark.parametrize("text, byte_order", [(True, "="), (False, ">"), (False, "<")])
def test_foreign_ply(tmp_path: Path, text: bool, byte_order: str) -> None:
    """Other order, other type, other properties, no f_rest and no normals."""
    names = "rot_3 rot_2 rot_1 rot_0 red opacity scale_2 scale_1 scale_0 f_dc_2 f_dc_1 f_dc_0 z y x".split()
    rows = np.arange(3 * len(names), dtype=np.float64).reshape(3, -1)
    table = np.array([tuple(row) for row in rows], [(name, "f8") for name in names])
    other = PlyElement.describe(np.zeros(2, [("a", "i4")]), "other")
    vertices = PlyElement.describe(table, "vertex")
    PlyData([other, vertices], text=text, byte_order=byte_order).write(tmp_path / "a.ply")
    params = load_ply(tmp_path / "a.ply")
    assert params["shN"].shape == (3, 0, 3)
    assert params["means"][0].tolist() == [14, 13, 12]
    assert params["quats"][0].tolist() == [3, 2, 1, 0]
    assert params["opacity_logits"].tolist() == [5, 20, 35]


def _rewritten(path: Path, change) -> None:
    save_ply(path, make(3, degree=1))
    table = PlyData.read(path, mmap=False)["vertex"].data
    PlyData([PlyElement.describe(change(table), "vertex")], byte_order="<").write(path)


def _without(*gone: str):
    def change(table):
        names = [name for name in table.dtype.names if name not in gone]
        rows = [tuple(row[name] for name in names) for row in table]
        return np.array(rows, [(name, "f4") for name in names])

    return change


def _with_nan(table):
    table = table.copy()
    table["y"][1] = np.nan
    return table


def test_broken_ply_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    with pytest.raises(FileNotFoundError, match="a.ply: no such file"):
        load_ply(path)
    version = b"ply\r\nformat ascii 2.0\nend_header\n"
    for content in (b"", b"\x89PNG\r\n", b"ply\nformat ascii 1.0\n", version):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.ply: not a readable .ply \(") as caught:
            load_ply(path)
        assert "\n" not in str(caught.value)
    save_ply(path, make(3))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="early end-of-file"):
        load_ply(path)
    _rewritten(path, _without("opacity", "scale_1"))
    with pytest.raises(
        ValueError, match="expected the properties of Gaussians, got none named opacity, scale_1"
    ):
        load_ply(path)
    _rewritten(path, _without("f_rest_3"))
    with pytest.raises(ValueError, match="expected 0, 9, 24, 45, 72 properties f_rest_., got 8"):
        load_ply(path)
    _rewritten(path, _with_nan)
    with pytest.raises(ValueError, match="1 of 3 values of y are not finite"):
        load_ply(path)


def test_splat_layout(tmp_path: Path) -> None:
    splats = make(9)
    save_splat(tmp_path / "a.splat", splats)
    raw = (tmp_path / "a.splat").read_bytes()
    assert len(raw) == 9 * 32
    weight = splats.scales.detach().double().prod(1) * splats.opacities.detach().double()
    order = weight.argsort(descending=True)
    floats = np.frombuffer(raw, "<f4").reshape(9, 8)
    small = np.frombuffer(raw, np.uint8).reshape(9, 32)
    assert np.array_equal(floats[:, :3], splats.means.detach()[order])
    np.testing.assert_allclose(floats[:, 3:6], splats.scales.detach()[order], rtol=1e-6)
    colors = (0.5 + SH_C0 * splats.sh0[:, 0]).clamp(0, 1).detach()[order] * 255
    assert np.abs(small[:, 24:27] - colors.numpy()).max() <= 0.5 + 1e-4  # rounded to the nearest byte
    assert np.abs(small[:, 27] - 255 * splats.opacities.detach()[order].numpy()).max() <= 0.5 + 1e-4
    quats = torch.nn.functional.normalize(splats.quats.detach(), dim=1)[order].numpy()
    assert np.abs((small[:, 28:].astype(float) - 128) / 128 - quats).max() <= 1 / 128


@pytest.mark.parametrize("save, name", [(save_ply, "a.ply"), (save_splat, "a.splat")])
def test_full_disk_keeps_the_previous_file(tmp_path: Path, monkeypatch, save, name: str) -> None:
    save(tmp_path / name, make(3))
    before = (tmp_path / name).read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="could not write .*: No space left on device .the previous file is k"):
        save(tmp_path / name, make(50))
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_replaced_leaves_nothing_behind_when_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic.atomic_write(tmp_path / "new" / "a.txt") as temp:
        temp.write_text("half")
        raise KeyboardInterrupt
    assert list((tmp_path / "new").iterdir()) == []
    atomic.write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()
