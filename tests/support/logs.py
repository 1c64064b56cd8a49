"""What trackers wrote, read back: TensorBoard's event files, and what wandb keeps offline."""

import json
import struct
import warnings
import zlib


def events(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        return EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()


def records(path):
    """What an offline file of wandb holds: LevelDB's log format, blocks of 32 KiB after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at < len(data):
        if (room := -at % 32768) and room < 7:
            at += room
        check, size, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + 7 : at + 7 + size]
        assert len(part) == size and check == zlib.crc32(bytes([kind]) + part)
        at, whole = at + 7 + size, whole + part
        if kind in (1, 4):  # complete, or its last part
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def told(folder):
    """(the run, its rows, its summary, artifacts, exit codes) of each session's file, by time."""
    import wandb

    wandb.teardown()  # what comes at the end of the process: files are closed then
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        found = list(records(path))
        history = [r.history for r in found if r.HasField("history")]
        table = [{i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in h.item} for h in history]
        last = {".".join(i.nested_key): i.value_json for r in found for i in r.summary.update}
        artifacts = [r.artifact for r in found if r.HasField("artifact")]
        exits = [r.exit.exit_code for r in found if r.HasField("exit")]
        yield next(r.run for r in found if r.HasField("run")), table, last, artifacts, exits
