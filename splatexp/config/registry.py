"""All that can be chosen: a new plug-in is a dataclass, its line here and its file in conf/.

What is chosen by name are the files of conf/<group>/: several may have one dataclass, with other values.
A strategy made of rules is a file alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import get_origin, get_type_hints


@cache
def options() -> dict[str, dict[str, type]]:
    """Group -> schema -> dataclass; a schema is called like its class in lower case.

    The imports stand inside, so that `--help` does not pay for torch.
    """
    from splatexp import densify, importance, poses, raster, tracking
    from splatexp.data import colmap, photos, single_image, transforms
    from splatexp.data.builtin import dataset
    from splatexp.image.fit.baselines.sequential_layers import Sequential
    from splatexp.image.fit.baselines.vector_quantization import Vector
    from splatexp.image.fit.edge import Edge
    from splatexp.image.fit.model import PlaneModel
    from splatexp.image.fit.optimizer import PlaneAdam, PlanePace
    from splatexp.image.fit.rate import Scalar
    from splatexp.losses import regularizers
    from splatexp.schedules import schedule
    from splatexp.train import initialization, optimizer, rate

    table: dict[str, list[type]] = {
        "data": [dataset.Builtin, colmap.Colmap, transforms.Transforms, photos.Photos, single_image.Image],
        "model": [initialization.Model, PlaneModel],
        "raster": [
            raster.Auto,
            raster.Triton,
            raster.Gsplat,
            raster.CPU,
            raster.Additive,
            raster.Reference,
            raster.Plane,
        ],
        "camera": [poses.Fixed, poses.Orbit, poses.Rot6d, poses.SE3],
        "optimizer": [optimizer.Adam, PlaneAdam],
        "schedule": [schedule.Schedule, schedule.Dash, PlanePace],
        "densify": [densify.Ruled, densify.Fixed],
        "rate": [rate.NONE, Scalar, Sequential, Vector],
        "importance": [importance.NONE, importance.Logit, importance.MLP, importance.Mask],
        "regularizer": [
            regularizers.Opacity,
            regularizers.Scale,
            regularizers.ScaleBounds,
            regularizers.Spatial,
            regularizers.ScreenScale,
            regularizers.SH,
            regularizers.Erank,
            regularizers.Thin,
            regularizers.Transmittance,
            regularizers.Logit,
            Edge,
        ],
        "tracker": [tracking.Console, tracking.Csv, tracking.TensorBoard, tracking.WandB],
    }
    return {group: {cls.__name__.lower(): cls for cls in classes} for group, classes in table.items()}


def has_options(kind: object) -> bool:
    """Whether a field of this type holds an option: it is a protocol, or what some option is a kind of."""
    if not isinstance(kind, type):
        return False
    classes = [cls for group in options().values() for cls in group.values()]
    return getattr(kind, "_is_protocol", False) or any(issubclass(cls, kind) for cls in classes)


def takes_several(group: str) -> bool:
    """Whether any number of a group's options can be chosen; their settings stand under <group>.<option>."""
    from splatexp.run.run import Run

    return get_origin(get_type_hints(Run)[group]) is dict


def known_keys(chosen: Mapping[str, Mapping[str, type]]) -> dict[str, list[str]]:
    """Every dotted key that some choice of options has -> the choices that it takes, [] where none.

    chosen: group -> option -> the dataclass with all its settings.
    """
    from splatexp.run.run import Run

    keys: dict[str, list[str]] = {key: [] for key in ("preset", *keys_of(Run))}
    for group, classes in chosen.items():
        several = takes_several(group)
        for name, cls in classes.items():
            place = f"{group}.{name}" if several else group
            choice = f"{group}=[{name}]" if several else f"{group}={name}"
            for key in (*([place] if several else []), *keys_of(cls, f"{place}.")):
                keys.setdefault(key, []).append(choice)
    return keys


def switched(word: str) -> str:
    """`viewer=true` as `viewer.on=true`: a part of a run that has a switch takes true and false for it."""
    from splatexp.run.run import Run

    key, _, value = word.partition("=")
    if value.lower() not in ("true", "false") or f"{key.lstrip('+')}.on" not in keys_of(Run):
        return word
    return f"{key}.on={value}"


def keys_of(cls: type, at: str = "") -> Iterator[str]:
    """The dotted keys of a dataclass and of those nested in it, each after `at`."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield at + field.name
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and not has_options(hint):
            yield from keys_of(hint, f"{at}{field.name}.")  # type: ignore[arg-type]
