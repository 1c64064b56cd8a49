"""Image metrics as the protocol defines them, and the id of that protocol.

`image` and `target` are [C, H, W, 3] float in [0, 1] (both are clamped here), `mask` is [C, H, W, 1] or None;
every metric returns the mean over the C views of the per-view values. A mask selects the pixels where it is
above 0.5. For the metrics that look at a neighbourhood (SSIM, LPIPS) the pixels outside the mask are first
copied from the target into the image: nothing that is rendered outside the mask moves any number.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from splatexp.data.scene import Scene

Metric = Callable[..., float]

SSIM_WINDOW = 11
MSE_MIN = 1e-10  # identical images score 100 dB, not infinity: a result file holds only numbers
BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}  # name-<start of SHA-256>
LPIPS = {"lpips_vgg": "vgg", "lpips_alex": "alex", "lpips_vgg01": "vgg"}
LPIPS_MIN_SIZE = 64  # px; AlexNet's five stages need this much

DEFINITIONS = {
    "split": "images sorted by name, every n-th from the first one is held out; a data set's own files win",
    "resize": "area mean of 8-bit sRGB values; intrinsics scaled by the exact ratio of sizes per axis",
    "clamp": "renders are clamped to [0, 1] before every metric",
    "mask": "pixels where it is > 0.5; outside it the target replaces the render before ssim and lpips",
    "psnr": f"10 log10(1 / max(mse, {MSE_MIN:g})), mse over masked pixels and 3 channels; mean over views",
    "psnr_u8": "psnr after both sides are rounded to 8 bits",
    "ssim": "torchmetrics, Gaussian 11x11, sigma 1.5, data range 1; mean of the map over the masked pixels "
    "of the valid crop (5 px off each side)",
    "lpips_vgg": "lpips v0.1, VGG-16, inputs in [-1, 1]; each stage averaged under the area-averaged mask",
    "lpips_alex": "as lpips_vgg with AlexNet",
    "lpips_vgg01": "as lpips_vgg on inputs left in [0, 1]: the common mistake, under its own name",
}


def protocol(split: str = "own", downscale: int = 1, masked: bool = False, background: str = "") -> str:
    """The id under which numbers compare: split, resize, what counts, a hash of `DEFINITIONS` and packages.

    E.g. `splatexp-1.every8.x1.2f0c4a9b`, or `splatexp-1.own.x2.masked.on-ffffff.2f0c4a9b` for a data set with
    its own split, masks, and alpha composed on white.
    """
    versions = {name: metadata.version(name) for name in ("torchmetrics", "lpips")}
    digest = hashlib.sha256(json.dumps([DEFINITIONS, versions], sort_keys=True).encode()).hexdigest()
    parts = ["splatexp-1", split, f"x{downscale}", *["masked"] * masked]
    return ".".join([*parts, *([f"on-{background}"] if background else []), digest[:8]])


def protocol_of(scene: Scene, data: Any = None) -> str:
    """The id of the protocol by which a scene is measured; data: its loader (a dataclass)."""
    return protocol(**_conditions(scene, {} if data is None else asdict(data)))


def _conditions(scene: Scene, loader: Mapping[str, Any]) -> dict[str, Any]:
    """What of a scene decides whether its numbers compare: the split as it was taken, masks, background."""
    names, held = sorted(view.name for view in scene.train + scene.test), {view.name for view in scene.test}
    every = loader.get("test_every") or 0
    regular = every and held == set(names[::every])
    colours = {view.background for view in scene.test if view.alpha is not None}
    return {
        "split": f"every{every}" if regular else "own" if held else "none",
        "downscale": loader.get("downscale", 1),
        "masked": any(view.mask is not None for view in scene.test),
        "background": "+".join(sorted("".join(f"{round(255 * x):02x}" for x in c) for c in colours)),
    }


def psnr(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB over the masked pixels; at most 100 dB."""
    squares = (image.clamp(0, 1).double() - target.clamp(0, 1).double()).square().mean(-1, keepdim=True)
    values = [-10.0 * math.log10(max(mse, MSE_MIN)) for mse in _masked_means(squares, mask)]
    return sum(values) / len(values)


def psnr_u8(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """`psnr` after rounding both sides to 8 bits, as files hold them."""
    return psnr(rounded(image), rounded(target), mask)


def ssim(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Structural similarity: torchmetrics' map (11x11 Gaussian, sigma 1.5, range 1) over the valid crop.

    The crop is made here, because releases of torchmetrics differ in whether they make it. With a mask: the
    pixels outside it are copied from the target into the image, then the map is averaged over those masked
    pixels that lie in the crop.

    Raises: ValueError for views smaller than the window, and for a mask without a pixel in the crop.
    """
    mend_torchvision()
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(image.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"image: expected at least {SSIM_WINDOW} px a side, got {tuple(image.shape[1:3])}")
    image, target = _filled(image, target, mask)
    _, similarity = structural_similarity_index_measure(
        image.permute(0, 3, 1, 2), target.permute(0, 3, 1, 2), data_range=1.0, return_full_image=True
    )
    edge = SSIM_WINDOW // 2
    crop = (slice(None), slice(edge, -edge), slice(edge, -edge))
    values = similarity.permute(0, 2, 3, 1)[crop].mean(-1, keepdim=True)
    means = _masked_means(values.double(), None if mask is None else mask[crop])
    return sum(means) / len(means)


def rounded(image: Tensor) -> Tensor:
    """The nearest 8-bit values, still as float in [0, 1]."""
    return (image.clamp(0, 1) * 255).round() / 255


def metric_set(lpips_weights: str = "") -> tuple[dict[str, Metric], dict[str, str]]:
    """Every metric that can be computed here, by name, and the reason for each one that cannot.

    lpips_weights: folder with torchvision's backbone files (`BACKBONES`); nothing is ever downloaded.
    """
    metrics: dict[str, Metric] = {"psnr": psnr, "psnr_u8": psnr_u8, "ssim": ssim}
    left_out: dict[str, str] = {}
    models: dict[str, Metric] = {}
    for name, backbone in LPIPS.items():
        try:
            if backbone not in models:
                models[backbone] = _lpips_model(backbone, lpips_weights)
        except (OSError, ValueError) as error:
            left_out[name] = str(error)
        else:
            metrics[name] = _lpips_metric(models[backbone], normalize=name != "lpips_vgg01")
    return metrics, left_out


def mend_torchvision() -> None:
    """Make `import torchvision` work where its compiled part cannot load (a wheel built for another torch).

    Its import tells torch about `nms` and fails when that operator is unknown; so there, and only there, the
    operator's signature is declared first. Call this before importing torchvision, torchmetrics or lpips.
    """
    import torch

    spec = util.find_spec("torchvision")
    if _mended or spec is None or not spec.submodule_search_locations:
        return
    folder = Path(next(iter(spec.submodule_search_locations)))
    for extension in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]:
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            continue
        _mended.append(extension)
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _mended.append(library)  # the declaration lives as long as this object


_mended: list[object] = []


def _masked_means(values: Tensor, mask: Tensor | None) -> list[float]:
    """The mean of values [C, H, W, 1] over each view's masked pixels."""
    if mask is None:
        return values.mean((1, 2, 3)).tolist()
    chosen = (mask > 0.5).to(values)
    counts = chosen.sum((1, 2, 3))
    if not counts.all():
        raise ValueError("mask: expected at least one pixel above 0.5 in every view, got none")
    return ((values * chosen).sum((1, 2, 3)) / counts).tolist()


def _filled(image: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both sides clamped; the target's pixels in the image wherever the mask is off."""
    import torch

    image, target = image.clamp(0, 1), target.clamp(0, 1)
    return (image if mask is None else torch.where(mask > 0.5, image, target)), target


def _lpips_model(backbone: str, folder: str):
    """The LPIPS network with its linear heads (shipped in the package) and a backbone from `folder`."""
    import warnings

    name = BACKBONES[backbone]
    if not folder:
        wanted = ", ".join(BACKBONES.values())
        raise FileNotFoundError(f"no weights: evaluate.lpips_weights=<folder of {wanted}>")
    path = Path(folder).expanduser() / name
    if not path.is_file():
        raise FileNotFoundError(f"no weights: {path} does not exist")
    digits = path.stem.rsplit("-", 1)[-1]
    if not (digest := hashlib.sha256(path.read_bytes()).hexdigest()).startswith(digits):
        raise ValueError(f"{path}: expected a SHA-256 that begins with {digits}, got {digest[:8]}")
    mend_torchvision()
    import torch
    from lpips import LPIPS as Network

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision by a name that torchvision has deprecated
        model = Network(net=backbone, pnet_rand=True, verbose=False)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for stage in model.net.children():
        for index, layer in stage.named_children():
            own = {key: state[f"features.{index}.{key}"] for key in layer.state_dict()}
            layer.load_state_dict(own)
    return model.requires_grad_(False).eval()


def _lpips_metric(model, normalize: bool) -> Metric:
    def distance(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
        """Learned perceptual distance; with a mask each stage is averaged under the area-averaged mask.

        Raises: ValueError for views too small for the network.
        """
        import torch
        from lpips import normalize_tensor

        size = tuple(image.shape[1:3])
        model.to(image.device)
        if min(size) < LPIPS_MIN_SIZE:
            raise ValueError(f"image: expected at least {LPIPS_MIN_SIZE} px a side, got {size}")
        sides = [side.permute(0, 3, 1, 2).float() for side in _filled(image, target, mask)]
        sides = [model.scaling_layer(2 * side - 1 if normalize else side) for side in sides]
        weight = sides[0].new_ones(len(image), 1, *size)
        if mask is not None:
            weight = (mask > 0.5).permute(0, 3, 1, 2).float()
        total = torch.zeros(len(image), device=image.device)
        with torch.no_grad():
            for head, a, b in zip(model.lins, model.net(sides[0]), model.net(sides[1]), strict=True):
                values = head((normalize_tensor(a) - normalize_tensor(b)).square())
                share = torch.nn.functional.adaptive_avg_pool2d(weight, values.shape[-2:])
                total += (values * share).sum((1, 2, 3)) / share.sum((1, 2, 3))
        return float(total.mean())

    return distance
