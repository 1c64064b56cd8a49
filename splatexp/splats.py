"""Rows of Gaussians: parameters, Adam moments, identity and statistics, which move together and only here.

Notation: N Gaussians, K = (degree + 1)^2 SH coefficients; row i of every tensor belongs to Gaussian i.
"""

import torch
from torch import Tensor

from splatexp.edit import Edit, Overwrite, moved
from splatexp.geometry import FAINTEST as FAINTEST
from splatexp.geometry import dimmed

PARAMS = ("means", "quats", "log_scales", "opacity_logits", "sh0", "shN")
ROWS = ("uid", "born", "generation", "smoothing")


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
    smoothing: Tensor  # [N] float32, world units, at least so wide is it drawn; 0: as it is
    importance: Tensor | None  # [N] in [0,1], a leaf that opacities are multiplied by; None: not learned

    def __init__(self, params: dict[str, Tensor], extent: float = 1.0):
        _check(params)
        count = len(params["means"])
        device = params["means"].device
        for name in PARAMS:
            leaf = params[name].detach().clone(memory_format=torch.contiguous_format)
            setattr(self, name, leaf.requires_grad_(name != "quats" or params["log_scales"].shape[1] == 3))
        self.extra: dict[str, Tensor] = {}  # further parameters of rows, [N,...]; see `add_param`
        self.shared: dict[str, Tensor] = {}  # leaves that are not rows; see `add_shared`
        self.carried: dict[str, Tensor] = {}  # name -> [N,...] that fresh rows take from their parents
        self.stats: dict[str, Tensor] = {}  # name -> [N] float32; density control fills them
        self.exp_avg: dict[str, Tensor] = {}
        self.exp_avg_sq: dict[str, Tensor] = {}
        self._add_moments(self.params)
        self.uid = torch.arange(count, device=device)
        self.born = torch.zeros(count, dtype=torch.int32, device=device)
        self.generation = torch.zeros(count, dtype=torch.int32, device=device)
        self.smoothing = torch.zeros(count, device=device)
        self._smooths: tuple[Tensor, int, bool] = self.smoothing, self.smoothing._version, False
        self.importance = None
        self.next_uid = count
        self.initial = count  # rows at the start
        self.between = True  # between two steps: False while one has changed some of this but not yet all
        self.extent = extent

    def __len__(self) -> int:
        return len(self.means)

    @property
    def params(self) -> dict[str, Tensor]:
        """The six parameters by name, then the extra ones."""
        return {name: getattr(self, name) for name in PARAMS} | self.extra

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
    def waiting(self) -> bool:
        """Whether gradients wait for an update that is still to come."""
        return any(leaf.grad is not None for leaf in self.leaves().values())

    def drop_gradients(self) -> None:
        """Let go of all gradients."""
        for leaf in self.leaves().values():
            leaf.grad = None

    @property
    def sh_degree(self) -> int:
        """The degree that `shN` has room for."""
        return int((self.shN.shape[1] + 1) ** 0.5 + 0.5) - 1

    @property
    def smooths(self) -> bool:
        """Whether any row is smoothed; looked up where `smoothing` has changed, as a device is waited for."""
        of, version, found = self._smooths
        if of is not self.smoothing or version != of._version:
            found = bool(self.smoothing.any())
            self._smooths = self.smoothing, self.smoothing._version, found
        return found

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Scales [N,3] and opacities [N] as they are blended, in the graph: smoothed, by their importance.

        A smoothed Gaussian is the convolution with one of standard deviation f, its integral kept:
        s' = sqrt(s^2 + f^2), o' = o prod(s / s').  Source: Yu et al. 2024, "Mip-Splatting", eq. 9.
        """
        scales, opacities = self.scales, self.opacities
        if self.smooths:
            wide = torch.hypot(scales, self.smoothing[:, None])
            x, y, z = (scales / wide).unbind(1)
            scales, opacities = wide, opacities * (x * y * z)
        return scales, opacities if self.importance is None else opacities * self.importance

    @torch.no_grad()
    def baked(self) -> "Splats":
        """Plain Gaussians that are drawn as these are: smoothing and importance folded in, nothing extra.

        They keep their identity; moments and statistics start anew.
        """
        smooth = self.smoothing[:, None]
        wide = torch.where(smooth > 0, torch.hypot(self.log_scales.exp(), smooth).log(), self.log_scales)
        share = ((self.log_scales - wide).sum(1) * (3 / wide.shape[1])).exp()
        if self.importance is not None:
            share = share * self.importance
        logits = dimmed(self.opacity_logits, share)
        plain = {name: getattr(self, name) for name in PARAMS}
        other = Splats(plain | {"log_scales": wide, "opacity_logits": logits}, self.extent)
        other.uid, other.born, other.generation = self.uid.clone(), self.born.clone(), self.generation.clone()
        other.next_uid, other.initial = self.next_uid, self.initial
        return other

    def add_param(self, name: str, values: Tensor) -> Tensor:
        """One more parameter of rows [N,...] with its moments, which every edit moves; returns the leaf."""
        if len(values) != len(self) or name in PARAMS:
            raise ValueError(f"{name}: expected a new name and {len(self)} rows, got {tuple(values.shape)}")
        self.extra[name] = values.detach().clone().requires_grad_()
        self._add_moments({name: values})
        return self.extra[name]

    def add_shared(self, name: str, values: Tensor) -> Tensor:
        """A leaf that is no row, with its moments; returns it."""
        self.shared[name] = values.detach().clone().requires_grad_()
        self._add_moments({name: values})
        return self.shared[name]

    def remove(self, name: str) -> None:
        """Take out an extra parameter, a shared leaf or a carried row."""
        for place in (self.extra, self.shared, self.carried, self.exp_avg, self.exp_avg_sq):
            place.pop(name, None)

    def row_stat(self, name: str) -> Tensor:
        """A statistic [N], made of zeros the first time."""
        if name not in self.stats:
            self.stats[name] = torch.zeros(len(self), dtype=torch.float32, device=self.means.device)
        return self.stats[name]

    @torch.no_grad()
    def apply(self, edit: Edit | Overwrite) -> int:
        """Move rows: parameters, gradients that wait, moments, statistics and identity at once.

        Returns: by how much the number of rows has grown.
        Raises: ValueError for an edit that does not fit, before anything has changed.
        """
        if isinstance(edit, Overwrite):
            self._overwrite(edit)
            return 0
        before = len(self)
        edit.check(self.params)
        parents, fresh = edit.parents, edit.fresh.nonzero().squeeze(1)
        for name, leaf in self.params.items():
            place = self.extra if name in self.extra else vars(self)
            place[name] = moved(leaf, parents, fresh, edit.values.get(name))
        if self.importance is not None:
            self.importance = moved(self.importance, parents, fresh)
        for place in (self.exp_avg, self.exp_avg_sq, self.stats):
            for name in set(place) - set(self.shared):
                place[name] = place[name].index_select(0, parents).index_fill_(0, fresh, 0.0)
        self.carried = {name: row.index_select(0, parents) for name, row in self.carried.items()}
        smooths = self.smooths
        for name in ROWS:
            setattr(self, name, getattr(self, name).index_select(0, parents))
        self._smooths = self.smoothing, self.smoothing._version, smooths and bool(self.smoothing.any())
        self.uid[fresh] = torch.arange(self.next_uid, self.next_uid + len(fresh), device=self.uid.device)
        self.born[fresh] = edit.step
        self.generation[fresh] += 1
        self.next_uid += len(fresh)
        return len(self) - before

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as a flat dict of tensors that the next step writes into: save or clone them."""
        leaves = self.leaves()
        state = {name: leaf.detach() for name, leaf in leaves.items()}
        state |= {f"grad.{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        state |= {name: getattr(self, name) for name in ROWS}
        for key in ("carried", "exp_avg", "exp_avg_sq", "stats"):
            state |= {f"{key}.{name}": tensor for name, tensor in getattr(self, key).items()}
        numbers = {name: torch.tensor(getattr(self, name)) for name in ("next_uid", "initial")}
        return state | numbers | {"extent": torch.tensor(self.extent, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave, whatever was here before.  Raises: as `of`."""
        vars(self).update(vars(Splats.of(state)))

    def to(self, device: torch.device) -> "Splats":
        """These rows on a device: themselves where they are there."""
        return self if self.means.device == device else Splats.of(self.state_dict(), device)

    @classmethod
    def of(cls, state: dict[str, Tensor], device: torch.device | None = None) -> "Splats":
        """Gaussians from what `state_dict` gave, on a device; None: where the state is.

        Raises: ValueError for a missing name, and for shapes or types that do not fit each other.
        """
        try:
            return cls._rebuilt(state, device)
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"state: {' '.join(str(error).split())}") from error

    @classmethod
    def _rebuilt(cls, state: dict[str, Tensor], device: torch.device | None) -> "Splats":
        params = {name: state[name].to(device) for name in PARAMS if name in state}
        made = cls(params, float(state.get("extent", 1)))
        for key, tensor in state.items():
            place, _, name = key.partition(".")
            if place == "extra":
                made.add_param(name, tensor.to(device))
            elif place == "shared":
                made.add_shared(name, tensor.to(device))
            elif place == "carried":
                made.carried[name] = tensor.to(device, copy=True)
            elif place == "stats":
                made.row_stat(name)
            elif key == "importance":
                made.importance = tensor.to(device, copy=True).requires_grad_()
        for name, leaf in made.leaves().items():
            if f"grad.{name}" in state:
                leaf.grad = torch.zeros_like(leaf)
        blank = made.state_dict()
        if unknown := sorted(set(state) - set(blank)):
            raise ValueError(f"state: {unknown[0]!r} is no part of it")
        for name, tensor in blank.items():
            kind = f"{tensor.dtype} {tuple(tensor.shape)}"
            got = f"{state[name].dtype} {tuple(state[name].shape)}" if name in state else "nothing"
            if got != kind:
                raise ValueError(f"state[{name!r}]: expected {kind}, got {got}")
            tensor.copy_(state[name])
        if any(
            len(row) != len(made)
            for row in (*made.carried.values(), *([] if made.importance is None else [made.importance]))
        ):
            raise ValueError(f"state: expected {len(made)} rows throughout")
        made.next_uid, made.initial = int(state["next_uid"]), int(state["initial"])
        return made

    def leaves(self) -> dict[str, Tensor]:
        """All leaves by their names in the state."""
        leaves = {name: getattr(self, name) for name in PARAMS}
        leaves |= {f"extra.{name}": leaf for name, leaf in self.extra.items()}
        leaves |= {} if self.importance is None else {"importance": self.importance}
        return leaves | {f"shared.{name}": leaf for name, leaf in self.shared.items()}

    def _add_moments(self, leaves: dict[str, Tensor]) -> None:
        for moments in (self.exp_avg, self.exp_avg_sq):
            moments |= {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}

    def _overwrite(self, edit: Overwrite) -> None:
        param = self.params.get(edit.name)
        if param is None or param.shape != edit.values.shape:
            expected = "a parameter" if param is None else tuple(param.shape)
            raise ValueError(f"{edit.name}: expected {expected}, got {tuple(edit.values.shape)}")
        param.copy_(edit.values)
        if edit.restart and edit.name in self.exp_avg:
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
