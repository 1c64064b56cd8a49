"""Rows that learn: parameters, Adam moments, identity and statistics, which move together and only here.

Notation: N rows; row i of every tensor belongs to Gaussian i. What a row is made of, a subclass says.
"""

from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from splatexp.gaussians.edit import Edit, Overwrite, moved

Kind = TypeVar("Kind", bound="Rows")


class Rows:
    """Gaussians of any kind. Parameters are leaves of the autograd graph; `grad` lives on them.

    Args:
        params: the parameters by name.
        extent: size of what they are in, in the unit of `means`; learning rates and density control measure
            in it.
    """

    NAMES: ClassVar[tuple[str, ...]] = ()  # of the parameters
    ROWS: ClassVar[tuple[str, ...]] = ("uid", "born", "generation")  # what else every row has

    means: Tensor  # [N,...]
    uid: Tensor  # [N] int64, never used twice; breaks ties
    born: Tensor  # [N] int32, step
    generation: Tensor  # [N] int32, edits between a row and the initialisation

    def __init__(self, params: dict[str, Tensor], extent: float = 1.0):
        if set(params) != set(self.NAMES):
            raise ValueError(f"params: expected {', '.join(self.NAMES)}, got {', '.join(params)}")
        self._check(params)
        count = len(params["means"])
        device = params["means"].device
        for name in self.NAMES:
            leaf = params[name].detach().clone(memory_format=torch.contiguous_format)
            setattr(self, name, leaf.requires_grad_(self._learns(name, params)))
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
        self.next_uid = count
        self.initial = count  # rows at the start
        self.between = True  # between two steps: False while one has changed some of this but not yet all
        self.extent = extent

    def __len__(self) -> int:
        return len(self.means)

    @classmethod
    def _check(cls, params: dict[str, Tensor]) -> None:
        """Hold the parameters against their shapes.  Raises: ValueError."""

    @classmethod
    def _learns(cls, name: str, params: dict[str, Tensor]) -> bool:
        """Whether a parameter has a gradient."""
        return True

    @property
    def params(self) -> dict[str, Tensor]:
        """The parameters by name, then the extra ones."""
        return {name: getattr(self, name) for name in self.NAMES} | self.extra

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
        """The degree of spherical harmonics that the colours have room for."""
        return 0

    def strength(self) -> Tensor:
        """How much of the picture each row makes [N]: where there are too many, those with least go."""
        raise NotImplementedError

    def add_param(self, name: str, values: Tensor) -> Tensor:
        """One more parameter of rows [N,...] with its moments, which every edit moves; returns the leaf."""
        if len(values) != len(self) or name in self.NAMES:
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
        for place in (self.exp_avg, self.exp_avg_sq, self.stats):
            for name in set(place) - set(self.shared):
                place[name] = place[name].index_select(0, parents).index_fill_(0, fresh, 0.0)
        self.carried = {name: row.index_select(0, parents) for name, row in self.carried.items()}
        for name in self.ROWS:
            setattr(self, name, getattr(self, name).index_select(0, parents))
        self._moved(parents, fresh)
        self.uid[fresh] = torch.arange(self.next_uid, self.next_uid + len(fresh), device=self.uid.device)
        self.born[fresh] = edit.step
        self.generation[fresh] += 1
        self.next_uid += len(fresh)
        return len(self) - before

    def _moved(self, parents: Tensor, fresh: Tensor) -> None:
        """Move what a subclass keeps besides: each row a copy of its parent, `fresh` [F] being new ones."""

    def state_dict(self) -> dict[str, Tensor]:
        """Everything, as a flat dict of tensors that the next step writes into: save or clone them."""
        leaves = self.leaves()
        state = {name: leaf.detach() for name, leaf in leaves.items()}
        state |= {f"grad.{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        state |= {name: getattr(self, name) for name in self.ROWS}
        for key in ("carried", "exp_avg", "exp_avg_sq", "stats"):
            state |= {f"{key}.{name}": tensor for name, tensor in getattr(self, key).items()}
        numbers = {name: torch.tensor(getattr(self, name)) for name in ("next_uid", "initial")}
        return state | numbers | {"extent": torch.tensor(self.extent, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave, whatever was here before.  Raises: as `of`."""
        vars(self).update(vars(self.of(state)))

    def to(self: Kind, device: torch.device) -> Kind:
        """These rows on a device: themselves where they are there."""
        return self if self.means.device == device else self.of(self.state_dict(), device)

    @classmethod
    def of(cls: type[Kind], state: dict[str, Tensor], device: torch.device | None = None) -> Kind:
        """Gaussians from what `state_dict` gave, on a device; None: where the state is.

        Raises: ValueError for a missing name, and for shapes or types that do not fit each other.
        """
        try:
            return cls._rebuilt(state, device)
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"state: {' '.join(str(error).split())}") from error

    @classmethod
    def _begun(cls: type[Kind], params: dict[str, Tensor], state: dict[str, Tensor]) -> Kind:
        """Rows with these parameters and what else of a state a constructor takes."""
        return cls(params, float(state.get("extent", 1)))

    @classmethod
    def _rebuilt(cls: type[Kind], state: dict[str, Tensor], device: torch.device | None) -> Kind:
        made = cls._begun({name: state[name].to(device) for name in cls.NAMES if name in state}, state)
        for key, tensor in state.items():
            made._make_room(key, tensor, device)
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
        if any(len(row) != len(made) for row in made._further_rows()):
            raise ValueError(f"state: expected {len(made)} rows throughout")
        made.next_uid, made.initial = int(state["next_uid"]), int(state["initial"])
        return made

    def _make_room(self, key: str, tensor: Tensor, device: torch.device | None) -> None:
        """Lay out what a state has under a key and the constructor does not make."""
        place, _, name = key.partition(".")
        if place == "extra":
            self.add_param(name, tensor.to(device))
        elif place == "shared":
            self.add_shared(name, tensor.to(device))
        elif place == "carried":
            self.carried[name] = tensor.to(device, copy=True)
        elif place == "stats":
            self.row_stat(name)

    def _further_rows(self) -> list[Tensor]:
        """Tensors taken from a state whose length nothing has been held against."""
        return list(self.carried.values())

    def leaves(self) -> dict[str, Tensor]:
        """All leaves by their names in the state."""
        leaves = {name: getattr(self, name) for name in self.NAMES}
        leaves |= {f"extra.{name}": leaf for name, leaf in self.extra.items()}
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
