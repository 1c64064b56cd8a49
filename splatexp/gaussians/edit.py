"""What density control asks of the rows: plain descriptions, which `Splats.apply` carries out."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Edit:
    """New rows out of old ones: clone, split, prune and relocate are each ONE gather.

    A row that is not fresh is a survivor: it keeps its bits, its moments, its identity, its statistics.
    A fresh row copies its parent, then takes `values`; moments, gradients and statistics are 0, its uid new.
    """

    parents: Tensor  # [M] int64, the old row that each new row copies; each survives at most once
    fresh: Tensor  # [M] bool
    values: dict[str, Tensor] = field(default_factory=dict)  # parameter -> [fresh.sum(), ...]
    step: int = 0  # when the fresh rows are born
    by: str = ""  # the rule that made it
    kind: str = ""  # its operator

    def check(self, params: dict[str, Tensor]) -> None:
        """Hold it against the rows that it is for.  Raises: ValueError."""
        parents, fresh, count = self.parents, self.fresh, len(params["means"])
        if parents.shape != fresh.shape or parents.ndim != 1:
            raise ValueError(
                f"edit: expected parents and fresh [M], got {tuple(parents.shape)}, {tuple(fresh.shape)}"
            )
        if len(parents) and not 0 <= int(parents.min()) <= int(parents.max()) < count:
            raise ValueError(
                f"edit.parents: expected rows of {count}, got {int(parents.min())}..{int(parents.max())}"
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
    """New values of one parameter in every row; nothing moves. `restart` zeroes its moments."""

    name: str
    values: Tensor
    restart: bool = True
    by: str = ""  # what made it


def moved(leaf: Tensor, parents: Tensor, fresh: Tensor, values: Tensor | None = None) -> Tensor:
    """A leaf of other rows, with its gradient; `values` are those of the fresh ones [F] int64."""
    new = leaf.detach().index_select(0, parents)
    if values is not None:
        new.index_copy_(0, fresh, values)
    new.requires_grad_(leaf.requires_grad)
    if leaf.grad is not None:
        new.grad = leaf.grad.index_select(0, parents).index_fill_(0, fresh, 0.0)
    return new
