"""Rows of Gaussians: parameters, Adam moments, identity and statistics, which move together and only here.

Notation: N Gaussians, K = (degree + 1)^2 SH coefficients; row i of every tensor belongs to Gaussian i.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from splatexp.choices import check_choice, check_range
from splatexp.data.scene import Scene
from splatexp.export import SH_C0, load_ply
from splatexp.geometry import spacing
from splatexp.initial import frusta
from splatexp.seeds import generator

PARAMS = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
ROWS = ("uid", "born", "generation")


@dataclass
class Edit:
    """New rows out of old ones: clone, split, prune and relocate are each ONE gather.

    A row that is not fresh is a survivor: it keeps its bits, its moments, its identity, its statistics.
    A fresh row copies its parent, then takes `values`; its moments and statistics are 0, its uid is new.
    """

    parents: Tensor  # [M] int64, the old row that each new row copies; each survives at most once
    fresh: Tensor  # [M] bool
    values: dict[str, Tensor] = field(default_factory=dict)  # parameter -> [fresh.sum(), ...]
    step: int = 0  # when the fresh rows are born


@dataclass
class Overwrite:
    """New values of one parameter in every row; nothing moves. `restart` zeroes its moments."""

    name: str
    values: Tensor
    restart: bool = True


class Splats:
    """The Gaussians of a scene. Parameters are leaves of the autograd graph; `grad` lives on them.

    Args:
        params: the six parameters by name; `log_scales` [N,1] makes them isotropic.
        extent: size of the scene, world units; learning rates and density control measure in it.
    """

    means: Tensor  # [N,3] world units
    quats: Tensor  # [N,4] (w,x,y,z), any length but 0; no gradient where isotropic
    log_scales: Tensor  # [N,3] or [N,1]
    opacity_logits: Tensor  # [N]
    sh0: Tensor  # [N,1,3]
    shN: Tensor  # [N,K-1,3]
    uid: Tensor  # [N] int64, never used twice; breaks ties
    born: Tensor  # [N] int32, step
    generation: Tensor  # [N] int32, edits between a row and the initialisation

    def __init__(self, params: dict[str, Tensor], extent: float = 1.0):
        _check(params)
        count = len(params["means"])
        device = params["means"].device
        for name in PARAMS:
            leaf = params[name].detach().clone(memory_format=torch.contiguous_format)
            setattr(self, name, leaf.requires_grad_(name != "quats" or params["log_scales"].shape[1] == 3))
        self.exp_avg = {name: torch.zeros_like(leaf) for name, leaf in self.params.items()}
        self.exp_avg_sq = {name: torch.zeros_like(leaf) for name, leaf in self.params.items()}
        self.uid = torch.arange(count, device=device)
        self.born = torch.zeros(count, dtype=torch.int32, device=device)
        self.generation = torch.zeros(count, dtype=torch.int32, device=device)
        self.stats: dict[str, Tensor] = {}  # name -> [N] float32; density control fills them
        self.next_uid = count
        self.extent = extent

    def __len__(self) -> int:
        return len(self.means)

    @property
    def params(self) -> dict[str, Tensor]:
        """The six parameters by name."""
        return {name: getattr(self, name) for name in PARAMS}

    @property
    def isotropic(self) -> bool:
        """Whether one scale serves all three axes."""
        return self.log_scales.shape[1] == 1

    @property
    def scales(self) -> Tensor:
        """Activated standard deviations [N,3], world units."""
        scales = self.log_scales.exp()
        return scales.expand(-1, 3).contiguous() if self.isotropic else scales

    @property
    def opacities(self) -> Tensor:
        """Activated opacities [N] in (0,1)."""
        return self.opacity_logits.sigmoid()

    @property
    def sh_degree(self) -> int:
        """The degree that `shN` has room for."""
        return int((self.shN.shape[1] + 1) ** 0.5 + 0.5) - 1

    def row_stat(self, name: str) -> Tensor:
        """A statistic [N], made of zeros the first time."""
        if name not in self.stats:
            self.stats[name] = torch.zeros(len(self), dtype=torch.float32, device=self.means.device)
        return self.stats[name]

    @torch.no_grad()
    def apply(self, edit: Edit | Overwrite) -> None:
        """Move rows: parameters, moments, statistics and identity at once.

        Raises: ValueError for an edit that does not fit, before anything has changed.
        """
        if isinstance(edit, Overwrite):
            return self._overwrite(edit)
        self._check_edit(edit)
        parents, fresh = edit.parents, edit.fresh.nonzero().squeeze(1)
        for name in PARAMS:
            old = getattr(self, name)
            new = old.detach().index_select(0, parents)
            if name in edit.values:
                new.index_copy_(0, fresh, edit.values[name])
            setattr(self, name, new.requires_grad_(old.requires_grad))
            for moments in (self.exp_avg, self.exp_avg_sq):
                moments[name] = moments[name].index_select(0, parents).index_fill_(0, fresh, 0.0)
        for name, stat in self.stats.items():
            self.stats[name] = stat.index_select(0, parents).index_fill_(0, fresh, 0.0)
        for name in ROWS:
            setattr(self, name, getattr(self, name).index_select(0, parents))
        self.uid[fresh] = torch.arange(self.next_uid, self.next_uid + len(fresh), device=self.uid.device)
        self.born[fresh] = edit.step
        self.generation[fresh] += 1
        self.next_uid += len(fresh)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as a flat dict of tensors that the next step writes into: save or clone them."""
        state = {name: getattr(self, name).detach() for name in PARAMS + ROWS}
        for key in ("exp_avg", "exp_avg_sq", "stats"):
            state |= {f"{key}.{name}": tensor for name, tensor in getattr(self, key).items()}
        extent = torch.tensor(self.extent, dtype=torch.float64)
        return state | {"next_uid": torch.tensor(self.next_uid), "extent": extent}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave, whatever was here before.

        Raises: ValueError for a missing name or shapes that do not fit each other.
        """
        other = Splats({name: state[name] for name in PARAMS if name in state}, float(state.get("extent", 1)))
        for name in state:
            if name.startswith("stats."):
                other.row_stat(name.removeprefix("stats."))
        for name, tensor in other.state_dict().items():
            if name not in state or state[name].shape != tensor.shape:
                got = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"state[{name!r}]: expected {tuple(tensor.shape)}, got {got}")
            tensor.copy_(state[name])
        other.next_uid = int(state["next_uid"])
        vars(self).update(vars(other))

    def _check_edit(self, edit: Edit) -> None:
        parents, fresh = edit.parents, edit.fresh
        if parents.shape != fresh.shape or parents.ndim != 1:
            raise ValueError(
                f"edit: expected parents and fresh [M], got {tuple(parents.shape)}, {tuple(fresh.shape)}"
            )
        if len(parents) and not 0 <= int(parents.min()) <= int(parents.max()) < len(self):
            raise ValueError(
                f"edit.parents: expected rows of {len(self)}, got {int(parents.min())}..{int(parents.max())}"
            )
        survivors = parents[~fresh].bincount(minlength=1)
        if len(survivors) and int(survivors.max()) > 1:
            raise ValueError(
                f"edit.parents: expected every row to survive once, got row {int(survivors.argmax())} twice"
            )
        born = int(fresh.sum())
        for name, values in edit.values.items():
            shape = (born, *self.params[name].shape[1:]) if name in PARAMS else None
            if tuple(values.shape) != shape:
                raise ValueError(f"edit.values[{name!r}]: expected {shape}, got {tuple(values.shape)}")

    def _overwrite(self, edit: Overwrite) -> None:
        param = getattr(self, edit.name)
        if param.shape != edit.values.shape:
            raise ValueError(f"{edit.name}: expected {tuple(param.shape)}, got {tuple(edit.values.shape)}")
        param.copy_(edit.values)
        if edit.restart:
            self.exp_avg[edit.name].zero_()
            self.exp_avg_sq[edit.name].zero_()


def _check(params: dict[str, Tensor]) -> None:
    """Hold the six parameters against their shapes."""
    if set(params) != set(PARAMS):
        raise ValueError(f"params: expected {', '.join(PARAMS)}, got {', '.join(params)}")
    count, scales, bands = len(params["means"]), params["log_scales"].shape[-1], params["shN"].shape[1]
    if scales not in (1, 3):
        raise ValueError(f"log_scales: expected [N, 3] or [N, 1], got {tuple(params['log_scales'].shape)}")
    if bands not in (0, 3, 8, 15, 24):
        raise ValueError(f"shN: expected 0, 3, 8, 15 or 24 coefficients, got {bands}")
    tails = ((3,), (4,), (scales,), (), (1, 3), (bands, 3))
    for name, shape in zip(PARAMS, tails, strict=True):
        if tuple(params[name].shape) != (count, *shape):
            raise ValueError(f"{name}: expected {[count, *shape]}, got {tuple(params[name].shape)}")


@dataclass
class Model:
    """What training starts from; called with a scene, it makes the rows.

    init: sfm (the scene's points), random (in the cameras' frusta), ply (a file), auto (sfm where the scene
    has points, else random). A .ply keeps its own opacities and scales.
    """

    init: str = "auto"
    init_points: int = 0  # at most so many rows; 0: all points of the scene or file, 100,000 random ones
    init_path: str = field(default="", metadata={"unit": "path"})  # the .ply
    sh_degree: int = 3  # 0 to 4; a file's further bands are dropped, missing ones start at 0
    isotropic: bool = False  # one scale for all three axes
    init_opacity: float = 0.1
    init_scale: float = 1.0  # times the spacing of the points

    def __post_init__(self) -> None:
        check_choice("model.init", self.init, ("auto", "sfm", "random", "ply"))
        check_range("model.sh_degree", self.sh_degree, 0, 4)
        check_range("model.init_points", self.init_points, 0)
        check_range("model.init_opacity", self.init_opacity, 1e-6, 1 - 1e-6)
        check_range("model.init_scale", self.init_scale, 1e-6)
        if (self.init == "ply") != bool(self.init_path):
            raise ValueError(
                f"model.init_path: expected with init=ply alone, got {self.init_path!r} with init={self.init}"
            )

    def __call__(self, scene: Scene, seed: int = 0) -> Splats:
        """The first rows, from (scene, seed) alone.

        Raises: ValueError for a scene without points or a file without Gaussians.
        """
        random = generator("model", seed)
        if self.init == "ply":
            params = load_ply(self.init_path)
            keep = self._pick(len(params["means"]), random)
            params = {name: values[keep] for name, values in params.items()}
            params["shN"] = _with_bands(params["shN"], self.sh_degree)
            if self.isotropic:
                params["log_scales"] = params["log_scales"].mean(1, keepdim=True)
            return Splats(params, scene.extent)
        points, colors = scene.points, scene.colors
        if points is None or colors is None or not len(points):
            if self.init == "sfm":
                raise ValueError(f"model.init=sfm: {scene.name} has no points; use model.init=random")
            points = None
        if self.init == "random" or points is None or colors is None:
            points, colors = frusta(scene, self.init_points or 100_000, random)
        else:
            keep = self._pick(len(points), random)
            points, colors = points[keep], colors[keep] / 255
        return self.at(points, colors, scene.extent)

    def at(self, points: Tensor, colors: Tensor, extent: float) -> Splats:
        """Round rows at points [P,3] with colours [P,3] in [0,1], as wide as the points are apart.

        Source: Kerbl et al. 2023, section 5.1.
        """
        count = len(points)
        scales = (self.init_scale * spacing(points)).log()[:, None]
        params = {
            "means": points.float(),
            "quats": torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1),
            "log_scales": scales if self.isotropic else scales.repeat(1, 3),
            "opacity_logits": torch.full((count,), self.init_opacity).logit(),
            "sh0": ((colors.float() - 0.5) / SH_C0)[:, None],
            "shN": torch.zeros(count, (self.sh_degree + 1) ** 2 - 1, 3),
        }
        return Splats(params, extent)

    def _pick(self, count: int, random: torch.Generator) -> Tensor:
        """Rows to keep, in order: all, or `init_points` drawn without replacement."""
        if not 0 < self.init_points < count:
            return torch.arange(count)
        return torch.randperm(count, generator=random)[: self.init_points].sort().values


def _with_bands(shN: Tensor, degree: int) -> Tensor:
    """Higher coefficients [N,K-1,3] cut or filled with zeros to a degree."""
    bands = (degree + 1) ** 2 - 1
    return torch.nn.functional.pad(shN[:, :bands], (0, 0, 0, max(0, bands - shN.shape[1])))
