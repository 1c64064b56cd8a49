"""Checkpoint files: what is written is read back, what is damaged is refused, nothing is executed."""

import json
import os
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file

from splatexp.run import checkpoint
from splatexp.run.checkpoint import (
    CheckpointError,
    CheckpointSettings,
    list_checkpoints,
    load_checkpoint,
    load_latest_checkpoint,
    save_checkpoint,
)

TENSORS = {"means": torch.arange(12.0).reshape(4, 3), "uid": torch.arange(4), "none": torch.zeros(0, 3)}
NOTES = {"record": {"seconds": 1.25}, "config": {"steps": 9}}


def saved(folder, step=7, keep=2, tensors=TENSORS, notes=NOTES):
    return save_checkpoint(folder, step, tensors, notes, keep)


def test_what_is_written_is_read_back(tmp_path):
    path = saved(tmp_path)
    assert path.name == "step_00000007.safetensors" and os.listdir(tmp_path) == [path.name]
    tensors, notes = load_checkpoint(path)
    assert notes == {**NOTES, "step": 7} and set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert all(tensors[name].dtype == TENSORS[name].dtype for name in TENSORS)


def test_the_last_few_are_kept(tmp_path):
    for step in (5, 10, 15, 20):
        saved(tmp_path, step)
    (tmp_path / "step_best.safetensors").write_text("somebody's own")
    assert [step for step, _ in list_checkpoints(tmp_path)] == [20, 15]
    saved(tmp_path, 100_000_000, keep=1)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [100_000_000]
    assert (tmp_path / "step_best.safetensors").exists()


def test_a_torn_one_is_set_aside_and_the_one_before_it_taken(tmp_path):
    good, torn = saved(tmp_path, 5), saved(tmp_path, 10)
    torn.write_bytes(torn.read_bytes()[:-3])
    (tmp_path / ".step_00000015.123-0.safetensors").write_bytes(b"half")  # of a process that was killed
    with pytest.warns(UserWarning, match=r"step_00000010.* skipped, and kept as step_00000010.broken"):
        found_one = load_latest_checkpoint(tmp_path)
        assert found_one is not None and found_one[0] == good
    assert sorted(os.listdir(tmp_path)) == [good.name, "step_00000010.broken"]
    assert load_latest_checkpoint(tmp_path / "nowhere") is None


def damaged(kind, path):
    """The bytes of a damaged checkpoint of that kind."""
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        return data[: len(data) // 2]
    if kind == "no header":
        return data[:5]
    if kind == "empty":
        return b""
    if kind == "a bit of a tensor":
        data[-5] ^= 4
    elif kind == "a bit of the notes":
        data[data.index(b"1.25")] ^= 1
    elif kind == "a bit of the digest":
        place = data.index(b"sha256") + 20
        data[place] = ord("0") if data[place] != ord("0") else ord("1")
    elif kind == "a bit of the header's length":
        data[3] ^= 1
    elif kind == "more behind it":
        data += b"more"
    return bytes(data)


KINDS = ["truncated", "no header", "empty", "a bit of a tensor", "a bit of the notes", "a bit of the digest"]
KINDS += ["a bit of the header's length", "more behind it"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_seen(kind, tmp_path):
    path = saved(tmp_path)
    path.write_bytes(damaged(kind, path))
    with pytest.raises(CheckpointError, match=path.name) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


class Mine:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_not_executed(tmp_path):
    trap, path = tmp_path / "sprung", tmp_path / "step_00000007.safetensors"
    for data in (pickle.dumps(Mine(trap)), None):
        if data is None:
            torch.save({"means": Mine(trap)}, path)
        else:
            path.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)
        assert not trap.exists()


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "step_00000007.safetensors"
    save_file(TENSORS, path)
    with pytest.raises(CheckpointError, match="expected the format 'splatexp checkpoint 1', got None"):
        load_checkpoint(path)
    path.write_bytes(b"ply\nformat ascii 1.0\n" * 9)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)
    with pytest.raises(OSError):
        load_checkpoint(tmp_path / "missing.safetensors")
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "notes", ["[]", "{}", '{"step": -1}', '{"step": 1.5}', '{"step": true}', "[" * 100_000]
)
def test_notes_that_make_no_sense_are_refused(notes, tmp_path):
    path = tmp_path / "step_00000007.safetensors"
    digest = checkpoint._digest(TENSORS, notes)
    save_file(TENSORS, path, {"format": checkpoint.FORMAT, "notes": notes, "sha256": digest})
    with pytest.raises(CheckpointError, match="notes"):
        load_checkpoint(path)


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    kept = saved(tmp_path)
    before = kept.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, keep=1)
    with pytest.raises(OSError, match="No space left"):
        saved(tmp_path, 8, keep=1)
    assert os.listdir(tmp_path) == [kept.name] and kept.read_bytes() == before


def test_settings_are_held_against_their_range():
    with pytest.raises(ValueError, match="checkpoint.keep"):
        CheckpointSettings(keep=0)
    with pytest.raises(ValueError, match="checkpoint.every"):
        CheckpointSettings(every=-1)


def mutated(data: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """A checkpoint's bytes with some damage: flipped, cut, grown, swapped, or a header that lies."""
    made, kind = bytearray(data), dice.randrange(8)
    head = int.from_bytes(data[:8], "little")
    if kind == 0:  # bits anywhere
        for _ in range(dice.choice((1, 1, 2, 8))):
            made[dice.randrange(len(made))] ^= 1 << dice.randrange(8)
    elif kind == 1:  # bytes of the header
        for _ in range(dice.choice((1, 2, 5))):
            made[8 + dice.randrange(head)] = dice.randrange(256)
    elif kind == 2:
        del made[dice.randrange(len(made)) :]
    elif kind == 3:
        made[dice.randrange(len(made)) : dice.randrange(len(made))] = dice.randbytes(dice.randrange(40))
    elif kind == 4:  # its length
        made[:8] = dice.choice((dice.randrange(2**63), dice.randrange(2 * head), 0, 2**64 - 1)).to_bytes(
            8, "little"
        )
    elif kind == 5:  # a header that is JSON, and lies
        header = json.loads(bytes(made[8 : 8 + head]))
        name = dice.choice(sorted(header))
        lies = [None, [], "F32", -1, 2**63, {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 8]}]
        entry = header[name]
        if isinstance(entry, dict) and dice.random() < 0.7:
            entry[dice.choice(sorted(entry))] = dice.choice([*lies, [0, 2**62], [-1, 4], ["a"], "BF16", "U8"])
        else:
            header[name] = dice.choice(lies)
        text = json.dumps(header).encode()
        made = bytearray(len(text).to_bytes(8, "little") + text + bytes(made[8 + head :]))
    elif kind == 6:
        other = dice.choice(others)
        place = dice.randrange(min(len(other), len(made)))
        made[place:] = other[place:]
    else:
        made = bytearray(dice.randbytes(dice.randrange(1, 400)))
    return bytes(made)


def test_no_mutation_is_taken_for_a_checkpoint(tmp_path):
    """A few thousand here; FUZZ=100000 for as many."""
    count = int(os.environ.get("FUZZ", 4000))
    whole = [saved(tmp_path / str(step), step).read_bytes() for step in (3, 7)]
    place = tmp_path / "step_00000007.safetensors"
    dice, refused, same = random.Random(0), 0, 0
    for _ in range(count):
        data = mutated(whole[1], whole, dice)
        place.write_bytes(data)
        try:
            tensors, notes = load_checkpoint(place)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # such as a header that says the same in other words
            assert notes in ({**NOTES, "step": 3}, {**NOTES, "step": 7}), "damage was not seen"
            assert set(tensors) == set(TENSORS)
            assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS), "damage was not seen"
            same += 1
    assert refused + same == count and refused > 0.8 * count
