"""Studies whose truth is known, and how often the comparison is right about them.

    python tests/support/simulated_studies.py 2000        # every setting, and what simpler intervals would do

A value is the scene's level + what the view is like (both arms) + what the seed is like (both arms) + the
run's luck (all its views) + the view's own noise + for the variant the effect, which is larger in some scenes
and views than in others but in the mean over views, then scenes, just as told. Units: dB.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from splatexp.study.statistics import Key, compare

Noise = float | tuple[float, ...] | None  # of all scenes; of each; None: drawn for each scene from RANGE
RANGE = 0.05, 0.5
SCENE_EFFECTS, VIEW_EFFECTS = 0.2, 0.3


@dataclass(frozen=True)
class Rates:
    """Shares of the studies."""

    coverage: float  # the interval holds the truth
    settled: float  # the verdict is better or worse; where there is no effect, these are false
    wrong: float  # the verdict has the wrong sign; told where there is an effect
    width: float  # median half width of the interval, dB
    plain: dict[str, float]  # how often simpler intervals hold the truth


@dataclass(frozen=True)
class Setting:
    """A kind of study."""

    scenes: int = 1
    seeds: int = 3
    views: int = 10
    noise: Noise = 0.2
    effect: float = 0.0
    law: str = "normal"
    view_noise: float = 0.2


def study(setting: Setting, dice: np.random.Generator) -> tuple[dict[Key, float], dict[Key, float]]:
    """Baseline and variant of one study."""
    scenes, seeds, views = shape = setting.scenes, setting.seeds, setting.views
    low, high = np.log(RANGE)
    noise = np.exp(dice.uniform(low, high, scenes)) if setting.noise is None else setting.noise
    noise = np.broadcast_to(noise, scenes)[:, None]
    shared = 25 + dice.normal(0, 3, (scenes, 1, 1)) + dice.normal(0, 2, (scenes, 1, views))
    shared = shared + (noise * dice.normal(0, 0.5, (scenes, seeds)))[..., None]
    effect = dice.normal(0, SCENE_EFFECTS, (scenes, 1, 1)) + dice.normal(0, VIEW_EFFECTS, (scenes, 1, views))
    effect += setting.effect - effect.mean()
    arms = []
    for gain in (0.0, effect):
        luck = noise * _drawn(setting.law, dice, (scenes, seeds))
        values = shared + gain + luck[..., None] + dice.normal(0, setting.view_noise, shape)
        arms.append({(f"scene{s}", k, f"view{v}"): float(x) for (s, k, v), x in np.ndenumerate(values)})
    return arms[0], arms[1]


def _drawn(law: str, dice: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Of mean 0 and variance 1."""
    if law == "heavy":
        return dice.standard_t(4, shape) / np.sqrt(2)
    if law == "skewed":
        return 1 - dice.standard_exponential(shape)  # a run falls far below more often than far above
    return dice.standard_normal(shape)


def simulate(setting: Setting, studies: int, resamples: int = 999, seed: int = 0) -> Rates:
    """What the comparison says of so many studies of a kind."""
    dice = np.random.default_rng([seed, studies])
    held, settled, wrong, widths, plain = 0, 0, 0, [], Counter()
    for number in range(studies):
        baseline, variant = study(setting, dice)
        found = compare(baseline, variant, resamples=resamples, seed=number)
        held += found.low <= setting.effect <= found.high
        settled += found.verdict in ("better", "worse")
        wrong += found.verdict == ("worse" if setting.effect > 0 else "better")
        widths.append((found.high - found.low) / 2)
        for name, half in _simpler(baseline, variant, setting).items():
            plain[name] += abs(found.difference - setting.effect) <= half
    shares = {name: count / studies for name, count in plain.items()}
    return Rates(held / studies, settled / studies, wrong / studies, float(np.median(widths)), shares)


PLAIN = ("views", "runs, normal", "runs, Satterthwaite")


def _simpler(baseline: dict[Key, float], variant: dict[Key, float], setting: Setting) -> dict[str, float]:
    """Half widths of other intervals: views as if independent; runs as if many; Student's t for the runs."""
    from scipy.special import stdtrit

    values = np.array([variant[key] - baseline[key] for key in baseline])
    means = values.reshape(setting.scenes, setting.seeds, setting.views).mean(2)
    half = {"views": 1.96 * values.std(ddof=1) / np.sqrt(values.size)}
    if setting.seeds == 1:
        return half
    variances = means.var(1, ddof=1)
    error = np.sqrt(variances.sum() / setting.seeds) / setting.scenes
    freedom = (setting.seeds - 1) * variances.sum() ** 2 / (variances**2).sum()
    return half | {"runs, normal": 1.96 * error, "runs, Satterthwaite": stdtrit(freedom, 0.975) * error}


SETTINGS = [
    *(Setting(1, seeds, 10, noise) for seeds in (2, 3, 5, 10) for noise in (0.05, 0.5)),
    *(Setting(1, 3, views) for views in (5, 20)),
    *(Setting(2, seeds, 10, noise) for seeds in (2, 3, 5, 10) for noise in (0.2, (0.05, 0.5), None)),
    *(Setting(3, seeds, 10, noise) for seeds in (2, 3, 5, 10) for noise in (0.2, (0.05, 0.15, 0.5), None)),
    *(Setting(3, seeds, 10, (0.05, 0.05, 0.5)) for seeds in (3, 5)),
    *(Setting(13, seeds, 10, noise) for seeds in (2, 3, 5) for noise in (0.2, None)),
    *(Setting(scenes, 1, 10, None) for scenes in (6, 13)),
    *(Setting(2, seeds, 10, 0.2, law=law) for seeds in (3, 5) for law in ("heavy", "skewed")),
]


def table(settings: Sequence[Setting], studies: int) -> None:
    """Print a row for each setting; power is that for an effect of 0.5 dB."""
    head = ["scenes", "seeds", "views", "run noise", "coverage", "false", "power, 0.5 dB", "±", *PLAIN]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for it in settings:
        rates = simulate(it, studies)
        power = simulate(replace(it, effect=0.5), studies // 2)
        noise = f"{RANGE[0]}-{RANGE[1]}" if it.noise is None else str(it.noise).strip("()")
        cells = [it.scenes, it.seeds, it.views, noise + (f" {it.law}" if it.law != "normal" else "")]
        shares = [rates.coverage, rates.settled, power.settled - power.wrong]
        cells += [f"{100 * share:.1f}" for share in shares] + [f"{rates.width:.2f}"]
        cells += [f"{100 * rates.plain[name]:.1f}" if name in rates.plain else "" for name in PLAIN]
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


if __name__ == "__main__":
    table(SETTINGS, int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
