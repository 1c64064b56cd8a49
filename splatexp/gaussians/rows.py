"""Trainable rows: parameters, Adam moments, identity and statistics, which move together, and only here.

Notation: N rows; row i of every tensor belongs to Gaussian i. Subclasses define the parameters of a row.
"""

from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from splatexp.gaussians.edit import Edit, Overwrite, gather_leaf

RowsT = TypeVar("RowsT", bound="Rows")


class Rows:
    """Gaussians of any kind, whose parameters are leaves of the autograd graph.

    Args:
        params: the parameters by name.
        extent: size of the scene or image, in the unit of `means`. Learning rates of the means and thresholds
            of density control are relative to it.
    """

    PARAM_NAMES: ClassVar[tuple[str, ...]] = ()
    ROW_NAMES: ClassVar[tuple[str, ...]] = (
        "uid",
        "born",
        "generation",
    )  # tensors of rows that are not trained

    means: Tensor  # [N,...]
    uid: Tensor  # [N] int64, unique over the whole run; breaks ties
    born: Tensor  # [N] int32, the step in which the row was made
    generation: Tensor  # [N] int32, number of edits between the initialisation and the row

    def __init__(self, params: dict[str, Tensor], extent: float = 1.0):
        if set(params) != set(self.PARAM_NAMES):
            raise ValueError(f"params: expected {', '.join(self.PARAM_NAMES)}, got {', '.join(params)}")
        self._check(params)
        count = len(params["means"])
        device = params["means"].device
        for name in self.PARAM_NAMES:
            leaf = params[name].detach().clone(memory_format=torch.contiguous_format)
            setattr(self, name, leaf.requires_grad_(self._is_trainable(name, params)))
        self.extra: dict[str, Tensor] = {}  # further parameters of rows, [N,...]; see `add_param`
        self.shared: dict[str, Tensor] = {}  # leaves that are not rows; see `add_shared`
        self.carried: dict[str, Tensor] = {}  # buffers [N,...] that new rows copy from their parents
        self.stats: dict[str, Tensor] = {}  # [N] float32, filled by density control
        self.exp_avg: dict[str, Tensor] = {}
        self.exp_avg_sq: dict[str, Tensor] = {}
        self._add_moments(self.params)
        self.uid = torch.arange(count, device=device)
        self.born = torch.zeros(count, dtype=torch.int32, device=device)
        self.generation = torch.zeros(count, dtype=torch.int32, device=device)
        self.next_uid = count
        self.initial_count = count  # number of rows at the start
        self.consistent = (
            True  # false during a step, while a part of the state has changed and a part has not
        )
        self.extent = extent

    def __len__(self) -> int:
        return len(self.means)

    @classmethod
    def _check(cls, params: dict[str, Tensor]) -> None:
        """Check the shapes of the parameters.  Raises: ValueError."""

    @classmethod
    def _is_trainable(cls, name: str, params: dict[str, Tensor]) -> bool:
        """Return whether a parameter is trained."""
        return True

    @property
    def params(self) -> dict[str, Tensor]:
        """Return the parameters by name, followed by the extra ones."""
        return {name: getattr(self, name) for name in self.PARAM_NAMES} | self.extra

    @property
    def has_gradients(self) -> bool:
        """Return whether any leaf has a gradient, which waits for its update."""
        return any(leaf.grad is not None for leaf in self.leaves().values())

    def drop_gradients(self) -> None:
        """Drop all gradients."""
        for leaf in self.leaves().values():
            leaf.grad = None

    @property
    def sh_degree(self) -> int:
        """Return the SH degree of the colours; 0 where they do not depend on the view."""
        return 0

    def contribution(self) -> Tensor:
        """Return how much each row contributes to the image [N]; a cap prunes the smallest first."""
        raise NotImplementedError

    def add_param(self, name: str, values: Tensor) -> Tensor:
        """Add a parameter of rows [N,...] with its moments, which move with the rows, and return its leaf."""
        if len(values) != len(self) or name in self.PARAM_NAMES:
            raise ValueError(f"{name}: expected a new name and {len(self)} rows, got {tuple(values.shape)}")
        self.extra[name] = values.detach().clone().requires_grad_()
        self._add_moments({name: values})
        return self.extra[name]

    def add_shared(self, name: str, values: Tensor) -> Tensor:
        """Add a leaf that does not belong to rows, with its moments, and return it."""
        self.shared[name] = values.detach().clone().requires_grad_()
        self._add_moments({name: values})
        return self.shared[name]

    def remove(self, name: str) -> None:
        """Remove an extra parameter, a shared leaf or a carried buffer."""
        for group in (self.extra, self.shared, self.carried, self.exp_avg, self.exp_avg_sq):
            group.pop(name, None)

    def row_stat(self, name: str) -> Tensor:
        """Return a statistic [N]; it is created with zeros at the first call."""
        if name not in self.stats:
            self.stats[name] = torch.zeros(len(self), dtype=torch.float32, device=self.means.device)
        return self.stats[name]

    @torch.no_grad()
    def apply(self, edit: Edit | Overwrite) -> int:
        """Apply an edit to parameters, gradients, moments, statistics and identity at once.

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
            group = self.extra if name in self.extra else vars(self)
            group[name] = gather_leaf(leaf, parents, fresh, edit.values.get(name))
        for group in (self.exp_avg, self.exp_avg_sq, self.stats):
            for name in set(group) - set(self.shared):
                group[name] = group[name].index_select(0, parents).index_fill_(0, fresh, 0.0)
        self.carried = {name: row.index_select(0, parents) for name, row in self.carried.items()}
        for name in self.ROW_NAMES:
            setattr(self, name, getattr(self, name).index_select(0, parents))
        self._move_rows(parents, fresh)
        self.uid[fresh] = torch.arange(self.next_uid, self.next_uid + len(fresh), device=self.uid.device)
        self.born[fresh] = edit.step
        self.generation[fresh] += 1
        self.next_uid += len(fresh)
        return len(self) - before

    def _move_rows(self, parents: Tensor, fresh: Tensor) -> None:
        """Move further tensors of a subclass: every row copies its parent; the rows `fresh` [F] are new."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the whole state as a flat dict of tensors.

        They are not copies: the next step writes into them, so save or clone them before.
        """
        leaves = self.leaves()
        state = {name: leaf.detach() for name, leaf in leaves.items()}
        state |= {f"grad.{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        state |= {name: getattr(self, name) for name in self.ROW_NAMES}
        for key in ("carried", "exp_avg", "exp_avg_sq", "stats"):
            state |= {f"{key}.{name}": tensor for name, tensor in getattr(self, key).items()}
        return state | {
            "next_uid": torch.tensor(self.next_uid),
            "initial": torch.tensor(self.initial_count),
            "extent": torch.tensor(self.extent, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the whole state by one of `state_dict`.  Raises: ValueError as `from_state_dict` does."""
        vars(self).update(vars(self.from_state_dict(state)))

    def to(self: RowsT, device: torch.device) -> RowsT:
        """Return these rows on a device: themselves where they are there already."""
        return self if self.means.device == device else self.from_state_dict(self.state_dict(), device)

    @classmethod
    def from_state_dict(
        cls: type[RowsT], state: dict[str, Tensor], device: torch.device | None = None
    ) -> RowsT:
        """Return rows with a state of `state_dict`.

        Args:
            device: of the rows; None for that of the state.

        Raises: ValueError for a missing or unknown name, and for shapes or types that do not fit each other.
        """
        try:
            return cls._from_state(state, device)
        except (RuntimeError, TypeError, IndexError) as error:
            raise ValueError(f"state: {' '.join(str(error).split())}") from error

    @classmethod
    def _construct(cls: type[RowsT], params: dict[str, Tensor], state: dict[str, Tensor]) -> RowsT:
        """Construct rows with these parameters and the other constructor arguments that the state holds."""
        return cls(params, float(state.get("extent", 1)))

    @classmethod
    def _from_state(cls: type[RowsT], state: dict[str, Tensor], device: torch.device | None) -> RowsT:
        params = {name: state[name].to(device) for name in cls.PARAM_NAMES if name in state}
        made = cls._construct(params, state)
        for key, tensor in state.items():
            made._allocate(key, tensor, device)
        for name, leaf in made.leaves().items():
            if f"grad.{name}" in state:
                leaf.grad = torch.zeros_like(leaf)
        blank = made.state_dict()
        if unknown := sorted(set(state) - set(blank)):
            raise ValueError(f"state: expected {', '.join(blank)}, got {unknown[0]!r} too")
        for name, tensor in blank.items():
            kind = f"{tensor.dtype} {tuple(tensor.shape)}"
            got = f"{state[name].dtype} {tuple(state[name].shape)}" if name in state else "nothing"
            if got != kind:
                raise ValueError(f"state[{name!r}]: expected {kind}, got {got}")
            tensor.copy_(state[name])
        for rows in made._unchecked_rows():
            if len(rows) != len(made):
                raise ValueError(f"state: expected {len(made)} rows in every tensor, got {len(rows)}")
        made.next_uid, made.initial_count = int(state["next_uid"]), int(state["initial"])
        return made

    def _allocate(self, key: str, tensor: Tensor, device: torch.device | None) -> None:
        """Allocate the tensor that a state has under a key, where the constructor has not made it."""
        group, _, name = key.partition(".")
        if group == "extra":
            self.add_param(name, tensor.to(device))
        elif group == "shared":
            self.add_shared(name, tensor.to(device))
        elif group == "carried":
            self.carried[name] = tensor.to(device, copy=True)
        elif group == "stats":
            self.row_stat(name)

    def _unchecked_rows(self) -> list[Tensor]:
        """Return the tensors from a state whose length has not been checked."""
        return list(self.carried.values())

    def leaves(self) -> dict[str, Tensor]:
        """Return all leaves by their names in the state."""
        leaves = {name: getattr(self, name) for name in self.PARAM_NAMES}
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
        if edit.reset_moments and edit.name in self.exp_avg:
            self.exp_avg[edit.name].zero_()
            self.exp_avg_sq[edit.name].zero_()
