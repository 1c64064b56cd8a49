"""Image metrics as the evaluation protocol defines them, and the id of that protocol.

`image` and `target` are [C, H, W, 3] float in [0, 1] (both are clamped here), `mask` is [C, H, W, 1] or None;
every metric returns the mean over the C views of the per-view values. A mask selects the pixels where it is
above 0.5. For the metrics that use a neighbourhood (SSIM, LPIPS) the pixels outside the mask are first copied
from the target into the image: nothing that is rendered outside the mask affects a metric.
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
MSE_MIN = 1e-10  # identical images score 100 dB, not infinity, which JSON lacks
BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}  # name-<start of SHA-256>
LPIPS = {"lpips_vgg": "vgg", "lpips_alex": "alex", "lpips_vgg01": "vgg"}
LPIPS_MIN_SIZE = 64  # px; AlexNet has five stages, which need this size

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


def protocol_id(split: str = "own", downscale: int = 1, masked: bool = False, background: str = "") -> str:
    """Return the id of an evaluation protocol. Only metrics with the same id are comparable.

    It holds the split, the downscale factor, masks, background, and a hash of `DEFINITIONS` and of the
    versions of the packages that compute metrics. E.g. `splatexp-1.every8.x1.2f0c4a9b`, or
    `splatexp-1.own.x2.masked.on-ffffff.2f0c4a9b` for a data set with its own split, masks, and alpha composed
    on white.
    """
    versions = {name: metadata.version(name) for name in ("torchmetrics", "lpips")}
    digest = hashlib.sha256(json.dumps([DEFINITIONS, versions], sort_keys=True).encode()).hexdigest()
    parts = ["splatexp-1", split, f"x{downscale}", *["masked"] * masked]
    return ".".join([*parts, *([f"on-{background}"] if background else []), digest[:8]])


def scene_protocol(scene: Scene, data: Any = None) -> str:
    """Return the id of the protocol by which a scene is measured; `data` is its loader (a dataclass)."""
    return protocol_id(**_conditions(scene, {} if data is None else asdict(data)))


def _conditions(scene: Scene, loader: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties of a scene that its protocol consists of: the actual split, masks, background."""
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
    """Return the peak signal-to-noise ratio in dB over the masked pixels; at most 100 dB."""
    squares = (image.clamp(0, 1).double() - target.clamp(0, 1).double()).square().mean(-1, keepdim=True)
    values = [-10.0 * math.log10(max(mse, MSE_MIN)) for mse in _masked_means(squares, mask)]
    return sum(values) / len(values)


def psnr_u8(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Return `psnr` after rounding both images to 8 bits, as files hold them."""
    return psnr(round_to_8bit(image), round_to_8bit(target), mask)


def ssim(image: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """Return the structural similarity: the mean of torchmetrics' SSIM map over the valid crop.

    The window is a Gaussian of 11x11 px and sigma 1.5, the data range 1. The crop is made here, because
    releases of torchmetrics differ in whether they make it. With a mask, the pixels outside it are copied
    from the target into the image, then the map is averaged over those masked pixels that lie in the crop.

    Source: Wang et al. 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity".

    Raises: ValueError for views smaller than the window, and for a mask without a pixel in the crop.
    """
    patch_torchvision_import()
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


def round_to_8bit(image: Tensor) -> Tensor:
    """Return the nearest 8-bit values, as float in [0, 1]."""
    return (image.clamp(0, 1) * 255).round() / 255


def available_metrics(lpips_weights: str = "") -> tuple[dict[str, Metric], dict[str, str]]:
    """Return every metric that can be computed here, by name, and the reason for each one that cannot.

    Args:
        lpips_weights: folder with torchvision's backbone files (`BACKBONES`); nothing is ever downloaded.
    """
    metrics: dict[str, Metric] = {"psnr": psnr, "psnr_u8": psnr_u8, "ssim": ssim}
    skipped: dict[str, str] = {}
    models: dict[str, Metric] = {}
    for name, backbone in LPIPS.items():
        try:
            if backbone not in models:
                models[backbone] = _lpips_model(backbone, lpips_weights)
        except (OSError, ValueError) as error:
            skipped[name] = str(error)
        else:
            metrics[name] = _lpips_metric(models[backbone], normalize=name != "lpips_vgg01")
    return metrics, skipped


def patch_torchvision_import() -> None:
    """Make `import torchvision` work where its compiled part cannot load (a wheel built for another torch).

    The import registers a kernel for `nms` and fails when that operator is unknown. Where, and only where,
    the compiled part does not load, the operator is declared first. Call this before importing torchvision,
    torchmetrics or lpips.
    """
    import torch

    spec = util.find_spec("torchvision")
    if _patched or spec is None or not spec.submodule_search_locations:
        return
    folder = Path(next(iter(spec.submodule_search_locations)))
    for extension in [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]:
        try:
            torch.ops.load_library(str(extension))
        except OSError:
            continue
        _patched.append(extension)
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _patched.append(library)  # the declaration lives as long as this object


_patched: list[object] = []


def _masked_means(values: Tensor, mask: Tensor | None) -> list[float]:
    """Return the mean of values [C, H, W, 1] over each view's masked pixels."""
    if mask is None:
        return values.mean((1, 2, 3)).tolist()
    chosen = (mask > 0.5).to(values)
    counts = chosen.sum((1, 2, 3))
    if not counts.all():
        raise ValueError("mask: expected at least one pixel above 0.5 in every view, got none")
    return ((values * chosen).sum((1, 2, 3)) / counts).tolist()


def _filled(image: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both images clamped, with the target's pixels in the image wherever the mask is off."""
    import torch

    image, target = image.clamp(0, 1), target.clamp(0, 1)
    return (image if mask is None else torch.where(mask > 0.5, image, target)), target


def _lpips_model(backbone: str, folder: str):
    """Return the LPIPS network with its linear heads (part of the package) and a backbone in `folder`."""
    import warnings

    name = BACKBONES[backbone]
    if not folder:
        wanted = ", ".join(BACKBONES.values())
        raise FileNotFoundError(f"no weights; evaluate.lpips_weights=<folder of {wanted}> sets them")
    path = Path(folder).expanduser() / name
    if not path.is_file():
        raise FileNotFoundError(f"no weights: {path} does not exist")
    digits = path.stem.rsplit("-", 1)[-1]
    if not (digest := hashlib.sha256(path.read_bytes()).hexdigest()).startswith(digits):
        raise ValueError(f"{path}: expected a SHA-256 that begins with {digits}, got {digest[:8]}")
    patch_torchvision_import()
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
        """Return the LPIPS distance; with a mask each stage is weighted by the area-averaged mask.

        Source: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric".

        Raises: ValueError for views too small for the network.
        """
        import torch
        from lpips import normalize_tensor

        size = tuple(image.shape[1:3])
        model.to(image.device)
        if min(size) < LPIPS_MIN_SIZE:
            raise ValueError(f"image: expected at least {LPIPS_MIN_SIZE} px a side, got {size}")
        images = [each.permute(0, 3, 1, 2).float() for each in _filled(image, target, mask)]
        images = [model.scaling_layer(2 * each - 1 if normalize else each) for each in images]
        weight = images[0].new_ones(len(image), 1, *size)
        if mask is not None:
            weight = (mask > 0.5).permute(0, 3, 1, 2).float()
        total = torch.zeros(len(image), device=image.device)
        with torch.no_grad():
            for head, a, b in zip(model.lins, model.net(images[0]), model.net(images[1]), strict=True):
                values = head((normalize_tensor(a) - normalize_tensor(b)).square())
                pooled = torch.nn.functional.adaptive_avg_pool2d(weight, values.shape[-2:])
                total += (values * pooled).sum((1, 2, 3)) / pooled.sum((1, 2, 3))
        return float(total.mean())

    return distance
