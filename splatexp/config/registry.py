"""The registry of all plug-ins: a new one is a dataclass, its line here and its file in conf/.

The options of a group are the files of conf/<group>/. Several may have the same dataclass, with other values;
so a strategy that is made of rules is a file alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import cache
from typing import get_origin, get_type_hints


@cache
def option_classes() -> dict[str, dict[str, type]]:
    """Return the dataclasses that can be chosen, by group and by the name of their schema.

    `conf/<group>/<option>.yaml` builds on `/schema/<group>/<name>`. The imports are inside the function, so
    that `--help` does not wait for torch.
    """
    from splatexp import densify, importance, poses, raster, tracking
    from splatexp.data import colmap, photos, single_image, transforms
    from splatexp.data.builtin import dataset
    from splatexp.image.fit.baselines.sequential_layers import SequentialLayers
    from splatexp.image.fit.baselines.vector_quantization import VectorQuantization
    from splatexp.image.fit.edge import Edge
    from splatexp.image.fit.model import ImageModel
    from splatexp.image.fit.optimizer import ImageAdam, ImageSchedule
    from splatexp.image.fit.rate import ScalarQuantization
    from splatexp.losses import regularizers
    from splatexp.schedules import schedule
    from splatexp.train import initialization, optimizer, rate

    return {
        "data": {
            "builtin": dataset.Builtin,
            "colmap": colmap.Colmap,
            "transforms": transforms.Transforms,
            "photos": photos.Photos,
            "image": single_image.SingleImage,
        },
        "model": {"scene": initialization.SceneModel, "image": ImageModel},
        "raster": {
            "auto": raster.Auto,
            "triton": raster.Triton,
            "gsplat": raster.Gsplat,
            "cpu": raster.CPU,
            "additive": raster.Additive,
            "reference": raster.Reference,
            "image": raster.ImageRaster,
        },
        "camera": {"fixed": poses.Fixed, "orbit": poses.Orbit, "rot6d": poses.Rot6d, "se3": poses.SE3},
        "optimizer": {"adam": optimizer.Adam, "image": ImageAdam},
        "schedule": {"full": schedule.Schedule, "dash": schedule.Dash, "image": ImageSchedule},
        "densify": {"rules": densify.RuleStrategy, "none": densify.NoDensification},
        "rate": {
            "none": rate.NONE,
            "scalar": ScalarQuantization,
            "sequential": SequentialLayers,
            "vector": VectorQuantization,
        },
        "importance": {
            "none": importance.NoImportance,
            "logit": importance.Logit,
            "mlp": importance.MLP,
            "mask": importance.Mask,
        },
        "regularizer": {
            "opacity": regularizers.Opacity,
            "scale": regularizers.Scale,
            "scale_bounds": regularizers.ScaleBounds,
            "bounding_box": regularizers.BoundingBox,
            "screen_size": regularizers.ScreenSize,
            "sh": regularizers.SH,
            "erank": regularizers.Erank,
            "flatness": regularizers.Flatness,
            "transmittance": regularizers.Transmittance,
            "opacity_logit": regularizers.OpacityLogit,
            "edge": Edge,
        },
        "tracker": {
            "console": tracking.Console,
            "csv": tracking.Csv,
            "tensorboard": tracking.TensorBoard,
            "wandb": tracking.WandB,
        },
    }


def has_options(kind: object) -> bool:
    """Return whether a field of this type holds an option: a protocol, or a base class of some option."""
    if not isinstance(kind, type):
        return False
    classes = [cls for group in option_classes().values() for cls in group.values()]
    return getattr(kind, "_is_protocol", False) or any(issubclass(cls, kind) for cls in classes)


def takes_several(group: str) -> bool:
    """Return whether several options of a group can be chosen, with settings <group>.<option>.<name>."""
    from splatexp.run.run import Run

    return get_origin(get_type_hints(Run)[group]) is dict


def known_keys(chosen: Mapping[str, Mapping[str, type]]) -> dict[str, list[str]]:
    """Return every dotted key that exists with some choice of options -> the choices it needs, or [].

    Args:
        chosen: group -> option -> the dataclass with all its settings.
    """
    from splatexp.run.run import Run

    keys: dict[str, list[str]] = {key: [] for key in ("preset", *keys_of(Run))}
    for group, classes in chosen.items():
        several = takes_several(group)
        for name, cls in classes.items():
            prefix = f"{group}.{name}" if several else group
            choice = f"{group}=[{name}]" if several else f"{group}={name}"
            for key in (*([prefix] if several else []), *keys_of(cls, f"{prefix}.")):
                keys.setdefault(key, []).append(choice)
    return keys


def expand_switch(override: str) -> str:
    """Return `viewer=true` as `viewer.enabled=true`, likewise for each part of a run with this setting."""
    from splatexp.run.run import Run

    key, _, value = override.partition("=")
    if value.lower() not in ("true", "false") or f"{key.lstrip('+')}.enabled" not in keys_of(Run):
        return override
    return f"{key}.enabled={value}"


def keys_of(cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a dataclass and of those nested in it, each with `prefix` before it."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield prefix + field.name
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and not has_options(hint):
            yield from keys_of(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
