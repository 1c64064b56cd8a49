"""What holds of every edit: told from the rows before and after it, without the code that made it.

Notation: N rows before, M after, B of them fresh. Everything raises AssertionError with one line.
"""

import math

import torch
from torch import Tensor

from splatexp.densify.opacity_split import COPIES_MAX, OPACITY_MIN
from splatexp.gaussians.geometry import rotations
from splatexp.gaussians.splats import Edit, Overwrite, Splats

State = dict[str, Tensor]  # a copy of `Splats.state_dict()`
STARTS_AT_0 = ("exp_avg.", "exp_avg_sq.", "grad.", "stats.")  # of fresh rows
FULL = 0.9899  # merging cuts opacities to 0.99


def expect(holds: bool, line: str) -> None:
    """Raises: AssertionError with a line where something does not hold."""
    if not holds:
        raise AssertionError(line)


def state_of(splats: Splats) -> State:
    """All there is, copied."""
    return {name: tensor.clone() for name, tensor in splats.state_dict().items()}


def alike(state: State, other: State, line: str) -> None:
    """Two states are the same to the bit, order of the rows included."""
    if set(state) != set(other):
        raise AssertionError(f"{line}: {', '.join(sorted(set(state) ^ set(other)))} in one of them alone")
    for name in other:
        expect(_same(state[name], other[name]), f"{line}: {name}")


def still(before: State, splats: Splats, line: str) -> None:
    """Nothing but statistics has changed, without an edit."""
    names = {name for name in before if not name.startswith("stats.")}
    after = splats.state_dict()
    new = {name for name in after if not name.startswith("stats.")}
    alike({name: after[name] for name in new}, {name: before[name] for name in names}, line)
    for name, tensor in splats.stats.items():
        expect(len(tensor) == len(splats), f"{line}: stats.{name} has {len(tensor)} rows of {len(splats)}")


def overwritten(before: State, edit: Overwrite, splats: Splats, line: str) -> None:
    """One parameter has its new values, and its moments are 0 or as they were; nothing else has changed."""
    after = splats.state_dict()
    moments = [f"{kind}.{edit.name}" for kind in ("exp_avg", "exp_avg_sq")] if edit.restart else []
    for name, old in before.items():
        if name in moments:
            expect(not after[name].any(), f"{line}: expected {name} to restart")
        elif name != edit.name:
            expect(_same(after[name], old), f"{line}: {name} changed, expected {edit.name} alone")


def moved(before: State, edit: Edit, step: int, splats: Splats, line: str) -> None:
    """Everything that belongs to a row goes with it: survivors to the bit, fresh rows as they begin."""
    after, kept = splats.state_dict(), ~edit.fresh
    expect(set(after) == set(before), f"{line}: {', '.join(sorted(set(after) ^ set(before)))} came or went")
    for name, old in before.items():
        new = after[name]
        if name in ("initial", "extent") or name.partition(".")[2] in splats.shared:
            expect(_same(new, old), f"{line}: {name} changed, it is no row")
            continue
        if name == "next_uid":
            continue
        expect(len(new) == len(edit.parents), f"{line}: {name} has {len(new)} rows of {len(edit.parents)}")
        parents = old[edit.parents]
        expect(_same(new[kept], parents[kept]), f"{line}: {name} of a survivor changed")
        born, copied = new[edit.fresh], parents[edit.fresh]
        if name == "generation":
            expect(_same(born, copied + 1), f"{line}: generation of a fresh row is not its parent's + 1")
        elif name == "born":
            expect(bool((born == step).all()), f"{line}: born of a fresh row is not {step}")
        elif name.startswith(STARTS_AT_0):
            expect(not born.any(), f"{line}: {name} of a fresh row is not 0")
        elif name != "uid":
            given = edit.values.get(name.removeprefix("extra."), copied)
            expect(_same(born, given), f"{line}: {name} of a fresh row is neither given nor its parent's")
    _named(before, after, edit.fresh, line)


def _named(before: State, after: State, fresh: Tensor, line: str) -> None:
    """Uids of fresh rows were never used, and will not be again."""
    born, last = after["uid"][fresh], int(before["next_uid"])
    used = bool((born < last).any()) or len(born.unique()) < len(born)
    expect(not used, f"{line}: uid of a fresh row was used before")
    expect(len(after["uid"].unique()) == len(after["uid"]), f"{line}: two rows have one uid")
    expect(not (after["uid"] >= after["next_uid"]).any(), f"{line}: a uid in use is still to be given")


def finite(splats: Splats, line: str) -> None:
    """All parameters are numbers, and no quaternion is 0."""
    for name, values in splats.params.items():
        expect(bool(values.isfinite().all()), f"{line}: {name} is not finite")
    expect(bool((splats.quats.norm(dim=1) > 0).all()), f"{line}: a quaternion is 0")


def merged(before: State, edit: Edit, splats: Splats, line: str) -> None:
    """Each fresh row has the mass, the mean and the covariance of two that went.

    Mass is o s1 s2 s3. The second row of a pair is the one that fits best. A row whose opacity was cut to
    what blending allows has less mass.
    """
    parents, gone = edit.parents[edit.fresh], torch.ones_like(before["uid"], dtype=torch.bool)
    gone = gone.index_fill_(0, edit.parents, False).nonzero().squeeze(1)
    expect(len(gone) == len(parents), f"{line}: expected pairs, got {len(gone)} rows for {len(parents)}")
    old, new = _moments(before), _moments(splats.state_dict())
    full = splats.opacities.detach()[edit.fresh] >= FULL
    for row, parent in enumerate(parents.tolist()):
        mass, mean, covariance = (values[edit.fresh][row] for values in new)
        total, place, spread = _mixtures(old, parent, gone)
        if splats.isotropic:
            spread = torch.eye(3).double() * spread.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        extent = spread.diagonal(dim1=1, dim2=2).sum(1).sqrt()
        apart = (place - mean).norm(dim=1) / (extent + 1e-3 * mean.norm())  # as far as float32 tells
        other = (spread - covariance).norm(dim=(1, 2)) / spread.norm(dim=(1, 2))
        lost = 1 - mass / total
        lost = torch.where(full[row] & (lost > 0), 0, lost.abs())
        best = int((apart + other + lost).argmin())
        for name, error in (("mean", apart), ("covariance", other), ("mass", lost)):
            expect(float(error[best]) <= 1e-3, f"{line}: merging changed the {name}")


def _mixtures(moments: tuple[Tensor, Tensor, Tensor], row: int, others: Tensor) -> tuple[Tensor, ...]:
    """Mass [G], mean [G,3] and covariance [G,3,3] of a row together with each of G others."""
    mass, means, covariances = moments
    total = mass[row] + mass[others]
    share = (mass[others] / total)[:, None]
    offset = means[others] - means[row]
    outer = (share * (1 - share))[..., None] * offset[:, :, None] * offset[:, None, :]
    inner = share[..., None] * covariances[others] + (1 - share)[..., None] * covariances[row]
    return total, means[row] + share * offset, inner + outer


def _moments(state: State) -> tuple[Tensor, Tensor, Tensor]:
    """Mass [N] up to a constant, mean [N,3] and covariance [N,3,3], float64."""
    scales = state["log_scales"].double().exp().expand(-1, 3)
    turned = rotations(state["quats"].double()) * scales[:, None, :]
    mass = state["opacity_logits"].double().sigmoid() * scales.prod(1)
    return mass, state["means"].double(), turned @ turned.mT


def relocated(before: State, edit: Edit, splats: Splats, line: str) -> None:
    """n rows in one row's place let through what it did: at its centre, and along a line through it.

    The composited alpha of n copies is 1 - (1 - o' g')^n; its integral is held against that of o g, both by
    the trapezoid rule. Rows that were raised to the least opacity and more than 51 copies are left out.
    """
    parents, place, counts = edit.parents[edit.fresh].unique(return_inverse=True, return_counts=True)
    expect(not bool(torch.isin(parents, edit.parents[~edit.fresh]).any()), f"{line}: a parent did not share")
    old = before["opacity_logits"].double()[parents].sigmoid()
    new = splats.opacity_logits.detach().double()[edit.fresh].sigmoid()
    ratios = (splats.log_scales.detach()[edit.fresh] - before["log_scales"][parents[place]]).double().exp()
    expect(_same(splats.means.detach()[edit.fresh], before["means"][parents[place]]), f"{line}: a copy moved")
    t = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    copies, alpha = counts[place], old[place]
    exact = (new > 1.001 * OPACITY_MIN) & (copies <= COPIES_MAX)
    peak = 1 - (1 - new) ** copies
    falloff = (-0.5 * (t / ratios[:, :1]).square()).exp()
    integral = torch.trapezoid(1 - (1 - new[:, None] * falloff) ** copies[:, None], t, dim=1)
    wanted = alpha * math.sqrt(2 * math.pi)
    expect(_close(peak[exact], alpha[exact]), f"{line}: the copies let through another share of the light")
    expect(_close(integral[exact], wanted[exact]), f"{line}: the integral along a line changed")
    expect(_close(ratios, ratios[:, :1].expand_as(ratios)), f"{line}: the copies have another shape")


def _close(values: Tensor, wanted: Tensor) -> bool:
    """Within what float32 logits can hold."""
    return torch.allclose(values, wanted, rtol=1e-3, atol=1e-6)


def _same(one: Tensor, other: Tensor) -> bool:
    """To the bit, so that a NaN equals itself and -0 is not 0."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(
        *(tensor.detach().reshape(-1).contiguous().view(torch.uint8) for tensor in (one, other))
    )
