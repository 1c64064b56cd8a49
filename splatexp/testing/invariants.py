"""Checks of what holds for every edit, made from the rows before and after it, without the operators' code.

Notation: there are N rows before and M after, B of them fresh. Checks raise AssertionError with one line.
"""

import math

import torch
from torch import Tensor

from splatexp.densify.opacity_split import COPIES_MAX, RELOCATED_OPACITY_MIN
from splatexp.gaussians.geometry import quats_to_rotations
from splatexp.gaussians.splats import Edit, Overwrite, Splats

State = dict[str, Tensor]  # a copy of `Splats.state_dict()`
ZERO_WHEN_FRESH = ("exp_avg.", "exp_avg_sq.", "grad.", "stats.")  # tensors that start at 0 in fresh rows
CLIPPED_OPACITY = 0.9899  # rows from here on may have been cut to 0.99 by a merge


def require(holds: bool, line: str) -> None:
    """Check a condition.

    Raises: AssertionError with the line where it does not hold.
    """
    if not holds:
        raise AssertionError(line)


def copy_state(splats: Splats) -> State:
    """Return a copy of the whole state."""
    return {name: tensor.clone() for name, tensor in splats.state_dict().items()}


def check_equal(state: State, other: State, line: str) -> None:
    """Check that two states have the same bits, in the same order of rows."""
    if set(state) != set(other):
        raise AssertionError(f"{line}: {', '.join(sorted(set(state) ^ set(other)))} only in one of them")
    for name in other:
        require(_same(state[name], other[name]), f"{line}: {name}")


def check_unchanged(before: State, splats: Splats, line: str) -> None:
    """Check that nothing but statistics has changed without an edit."""
    names = {name for name in before if not name.startswith("stats.")}
    after = splats.state_dict()
    new = {name for name in after if not name.startswith("stats.")}
    check_equal({name: after[name] for name in new}, {name: before[name] for name in names}, line)
    for name, tensor in splats.stats.items():
        require(len(tensor) == len(splats), f"{line}: stats.{name} has {len(tensor)} rows of {len(splats)}")


def check_overwrite(before: State, edit: Overwrite, splats: Splats, line: str) -> None:
    """Check that an overwrite changed one parameter, reset its moments if asked to, and nothing else."""
    after = splats.state_dict()
    moments = [f"{kind}.{edit.name}" for kind in ("exp_avg", "exp_avg_sq")] if edit.reset_moments else []
    for name, old in before.items():
        if name in moments:
            require(not after[name].any(), f"{line}: expected {name} to be reset to 0")
        elif name != edit.name:
            require(_same(after[name], old), f"{line}: {name} changed, expected only {edit.name} to")


def check_edit(before: State, edit: Edit, step: int, splats: Splats, line: str) -> None:
    """Check that all values of a row move with it: survivors keep theirs, and fresh rows start anew."""
    after, kept = splats.state_dict(), ~edit.fresh
    require(
        set(after) == set(before),
        f"{line}: {', '.join(sorted(set(after) ^ set(before)))} appeared or vanished",
    )
    for name, old in before.items():
        new = after[name]
        if name in ("initial", "extent") or name.partition(".")[2] in splats.shared:
            require(_same(new, old), f"{line}: {name} changed, although it does not belong to rows")
            continue
        if name == "next_uid":
            continue
        require(len(new) == len(edit.parents), f"{line}: {name} has {len(new)} rows of {len(edit.parents)}")
        parents = old[edit.parents]
        require(_same(new[kept], parents[kept]), f"{line}: {name} of a survivor changed")
        born, copied = new[edit.fresh], parents[edit.fresh]
        if name == "generation":
            require(_same(born, copied + 1), f"{line}: generation of a fresh row is not its parent's + 1")
        elif name == "born":
            require(bool((born == step).all()), f"{line}: born of a fresh row is not {step}")
        elif name.startswith(ZERO_WHEN_FRESH):
            require(not born.any(), f"{line}: {name} of a fresh row is not 0")
        elif name != "uid":
            given = edit.values.get(name.removeprefix("extra."), copied)
            require(_same(born, given), f"{line}: {name} of a fresh row is neither given nor its parent's")
    _check_uids(before, after, edit.fresh, line)


def _check_uids(before: State, after: State, fresh: Tensor, line: str) -> None:
    """Check that no uid of a fresh row was ever used or will be used again."""
    born, last = after["uid"][fresh], int(before["next_uid"])
    used = bool((born < last).any()) or len(born.unique()) < len(born)
    require(not used, f"{line}: uid of a fresh row was used before")
    require(len(after["uid"].unique()) == len(after["uid"]), f"{line}: two rows have one uid")
    require(not (after["uid"] >= after["next_uid"]).any(), f"{line}: a uid in use is at least next_uid")


def check_finite(splats: Splats, line: str) -> None:
    """Check that all parameters are finite and that no quaternion is 0."""
    for name, values in splats.params.items():
        require(bool(values.isfinite().all()), f"{line}: {name} is not finite")
    require(bool((splats.quats.norm(dim=1) > 0).all()), f"{line}: a quaternion is 0")


def check_merge(before: State, edit: Edit, splats: Splats, line: str) -> None:
    """Check that each fresh row has the mass, the mean and the covariance of two rows that were removed.

    The mass is o s1 s2 s3. One row of the pair is the parent; the other one is taken to be the removed row
    that fits best. A row whose opacity was cut to what blending allows has less mass.
    """
    parents, removed = edit.parents[edit.fresh], torch.ones_like(before["uid"], dtype=torch.bool)
    removed = removed.index_fill_(0, edit.parents, False).nonzero().squeeze(1)
    require(
        len(removed) == len(parents), f"{line}: expected pairs, got {len(removed)} rows for {len(parents)}"
    )
    old, new = _moments(before), _moments(splats.state_dict())
    full = splats.opacities.detach()[edit.fresh] >= CLIPPED_OPACITY
    for row, parent in enumerate(parents.tolist()):
        mass, mean, covariance = (values[edit.fresh][row] for values in new)
        total, centre, spread = _mixture_moments(old, parent, removed)
        if splats.isotropic:
            spread = torch.eye(3).double() * spread.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        extent = spread.diagonal(dim1=1, dim2=2).sum(1).sqrt()
        apart = (centre - mean).norm(dim=1) / (extent + 1e-3 * mean.norm())  # as far as float32 tells
        other = (spread - covariance).norm(dim=(1, 2)) / spread.norm(dim=(1, 2))
        lost = 1 - mass / total
        lost = torch.where(full[row] & (lost > 0), 0, lost.abs())
        best = int((apart + other + lost).argmin())
        for name, error in (("mean", apart), ("covariance", other), ("mass", lost)):
            require(float(error[best]) <= 1e-3, f"{line}: merging changed the {name}")


def _mixture_moments(moments: tuple[Tensor, Tensor, Tensor], row: int, others: Tensor) -> tuple[Tensor, ...]:
    """Return the mass [G], mean [G,3] and covariance [G,3,3] of a row joined with each of G others."""
    mass, means, covariances = moments
    total = mass[row] + mass[others]
    fraction = (mass[others] / total)[:, None]
    offset = means[others] - means[row]
    outer = (fraction * (1 - fraction))[..., None] * offset[:, :, None] * offset[:, None, :]
    inner = fraction[..., None] * covariances[others] + (1 - fraction)[..., None] * covariances[row]
    return total, means[row] + fraction * offset, inner + outer


def _moments(state: State) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mass [N] up to a constant, mean [N,3] and covariance [N,3,3] of all rows, float64."""
    scales = state["log_scales"].double().exp().expand(-1, 3)
    roots = quats_to_rotations(state["quats"].double()) * scales[:, None, :]
    mass = state["opacity_logits"].double().sigmoid() * scales.prod(1)
    return mass, state["means"].double(), roots @ roots.mT


def check_relocation(before: State, edit: Edit, splats: Splats, line: str) -> None:
    """Check that n copies in one row's place look like it: at the centre, and along a line through it.

    The composited alpha of n copies is 1 - (1 - o' g')^n; its integral is compared with that of o g, both by
    the trapezoid rule. Rows that were raised to the minimum opacity and more than 51 copies are skipped.
    """
    parents, index, counts = edit.parents[edit.fresh].unique(return_inverse=True, return_counts=True)
    require(
        not bool(torch.isin(parents, edit.parents[~edit.fresh]).any()), f"{line}: a parent kept its opacity"
    )
    old = before["opacity_logits"].double()[parents].sigmoid()
    new = splats.opacity_logits.detach().double()[edit.fresh].sigmoid()
    ratios = (splats.log_scales.detach()[edit.fresh] - before["log_scales"][parents[index]]).double().exp()
    require(
        _same(splats.means.detach()[edit.fresh], before["means"][parents[index]]), f"{line}: a copy moved"
    )
    t = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    copies, alpha = counts[index], old[index]
    exact = (new > 1.001 * RELOCATED_OPACITY_MIN) & (copies <= COPIES_MAX)
    peak = 1 - (1 - new) ** copies
    falloff = (-0.5 * (t / ratios[:, :1]).square()).exp()
    integral = torch.trapezoid(1 - (1 - new[:, None] * falloff) ** copies[:, None], t, dim=1)
    wanted = alpha * math.sqrt(2 * math.pi)
    require(
        _close(peak[exact], alpha[exact]),
        f"{line}: the copies have another opacity than their parent at the centre",
    )
    require(_close(integral[exact], wanted[exact]), f"{line}: the integral along a line changed")
    require(_close(ratios, ratios[:, :1].expand_as(ratios)), f"{line}: the copies have another shape")


def _close(values: Tensor, wanted: Tensor) -> bool:
    """Return whether values agree to the precision of float32 logits."""
    return torch.allclose(values, wanted, rtol=1e-3, atol=1e-6)


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same bits, so that NaN equals itself and -0 differs from 0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(
        *(tensor.detach().reshape(-1).contiguous().view(torch.uint8) for tensor in (one, other))
    )
