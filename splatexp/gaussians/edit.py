"""Edits: plain descriptions of how density control changes the rows; `Rows.apply` carries them out."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Edit:
    """A gather that makes new rows out of old ones; clone, split, prune and relocate are one such edit each.

    A row that is not fresh survives: it keeps its values to the bit, its moments, identity and statistics.
    A fresh row copies its parent and then takes its `values`; its moments, gradients and statistics are 0,
    and its uid is new.
    """

    parents: Tensor  # [M] int64, the old row that each new row copies; a row survives at most once
    fresh: Tensor  # [M] bool, the rows that do not survive but are made
    values: dict[str, Tensor] = field(default_factory=dict)  # parameter -> [fresh.sum(), ...]
    step: int = 0  # in which the fresh rows are made
    rule: str = ""  # name of the rule that made the edit
    operator: str = ""  # name of the rule's operator

    def check(self, params: dict[str, Tensor]) -> None:
        """Check the edit against the parameters of the rows that it is for.  Raises: ValueError."""
        parents, fresh, count = self.parents, self.fresh, len(params["means"])
        if parents.shape != fresh.shape or parents.ndim != 1:
            raise ValueError(
                f"edit.parents, edit.fresh: expected [M], got {tuple(parents.shape)}, {tuple(fresh.shape)}"
            )
        if len(parents) and not 0 <= int(parents.min()) <= int(parents.max()) < count:
            raise ValueError(
                f"edit.parents: expected rows of {count}, got {int(parents.min())} to {int(parents.max())}"
            )
        survivors = parents[~fresh].bincount(minlength=1)
        if int(survivors.max()) > 1:
            raise ValueError(
                f"edit.parents: expected every row to survive once, got row {int(survivors.argmax())} twice"
            )
        born = int(fresh.sum())
        for name, values in self.values.items():
            shape = (born, *params[name].shape[1:]) if name in params else None
            if tuple(values.shape) != shape:
                raise ValueError(f"edit.values[{name!r}]: expected {shape}, got {tuple(values.shape)}")


@dataclass
class Overwrite:
    """New values of one parameter in every row; no row moves."""

    name: str
    values: Tensor
    reset_moments: bool = True  # zero the moments of the parameter
    rule: str = ""  # name of the rule or policy that made the edit


def gather_leaf(leaf: Tensor, parents: Tensor, fresh: Tensor, values: Tensor | None = None) -> Tensor:
    """Return a leaf that is gathered from another, with its gradient.

    Args:
        parents: [M] int64, the row that each row of the result copies.
        fresh: [F] int64, the rows of the result that get 0 as gradient and, where given, new values.
        values: [F,...] of the fresh rows.
    """
    new = leaf.detach().index_select(0, parents)
    if values is not None:
        new.index_copy_(0, fresh, values)
    new.requires_grad_(leaf.requires_grad)
    if leaf.grad is not None:
        new.grad = leaf.grad.index_select(0, parents).index_fill_(0, fresh, 0.0)
    return new
