"""Whether the statistics keep what they promise: synthetic experiments with a known truth.

    python -m benchmarks.statistics                     # the table of docs/protocol.md; 500 experiments a line
    python -m benchmarks.statistics --experiments 50

Each experiment draws a test set, methods and seeds from a model whose recalls are known exactly: a query of a method
and seed is answered within K if `image + caption + method x image + seed + noise`, all Gaussian, exceeds K's threshold.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from bench.evidence import statistics as evidence

THRESHOLDS = np.array([0.9, 0.0, -0.5])  # about R@1 28, R@5 50, R@10 63 without any effect
IMAGE, CAPTION, INTERACTION, NOISE = 1.0, 0.6, 0.4, 0.8  # standard deviations


@dataclass(frozen=True)
class World:
    """An experiment: its test set, the effects of its methods (0: all alike), and how much seeds change them.

    seed: standard deviation of a seed's effect. spread: methods differ in it by this factor, up and down.
    """

    effects: tuple[float, ...] = (0.0, 0.0)
    seeds: int = 3
    seed: float = 0.03
    spread: float = 2.0
    images: int = 452
    captions: int = 5


def truth(world: World) -> np.ndarray:
    """The mean recall of each method over all images, captions and seeds that there could be, in percent."""
    variance = IMAGE**2 + CAPTION**2 + INTERACTION**2 + NOISE**2 + seed_sds(world) ** 2
    effects = np.array(world.effects)
    return 100 * stats.norm.sf((THRESHOLDS - effects[:, None]) / np.sqrt(variance)[:, None]).mean(axis=1)


def seed_sds(world: World) -> np.ndarray:
    """The standard deviation of each method's seeds: from `seed / spread` to `seed * spread`."""
    return world.seed * world.spread ** np.linspace(-1, 1, len(world.effects))


def experiment(world: World, rng: np.random.Generator) -> list[np.ndarray]:
    """For each method, the tables of its seeds (seeds, images, 6)."""
    images, captions = world.images, world.captions
    image = rng.normal(0, IMAGE, images)
    words = rng.normal(0, CAPTION, (images, captions))
    whole = rng.normal(0, CAPTION, images)  # what a caption is to a caption, an image's best caption is to the image
    tables = []
    for effect, sd in zip(world.effects, seed_sds(world), strict=True):
        own = image + rng.normal(0, INTERACTION, images)
        runs = []
        for shift in effect + rng.normal(0, sd, world.seeds):
            i2t = own + whole + shift + rng.normal(0, NOISE, images)
            t2i = own[:, None] + words + shift + rng.normal(0, NOISE, (images, captions))
            found = [(i2t[:, None] > THRESHOLDS), (t2i[:, :, None] > THRESHOLDS).sum(axis=1)]
            runs.append(np.concatenate(found, axis=1))
        tables.append(np.array(runs, dtype=np.float64))
    return tables


@dataclass(frozen=True)
class Outcome:
    """Shares of experiments, or of intervals: false and true findings among pairs of methods, and coverage.

    any_false: experiments in which a pair of equal methods is called different. found: pairs of different methods that
    are told apart. covered: intervals of mean recall that hold the truth. width: their mean width, in points.
    """

    any_false: float
    found: float
    covered: float
    width: float


def outcome(world: World, experiments: int, *, draws: int = 2_000, seed: int = 0) -> Outcome:
    """What the statistics say of so many experiments, against the truth."""
    rng, real = np.random.default_rng(seed), truth(world)
    effects = np.array(world.effects)
    differs = effects[:, None] != effects[None, :]
    equal = ~differs & ~np.eye(len(effects), dtype=bool)
    captions = np.full(world.images, world.captions)
    false, found, covered, widths = [], [], [], []
    for _ in range(experiments):
        tables = experiment(world, rng)
        means = np.stack([each.mean(axis=0) for each in tables])
        errors = evidence.seed_error([evidence.recalls(each, captions) for each in tables])
        compared = evidence.compare(means, captions, errors, draws=draws)
        ends = evidence.intervals(means, captions, errors, draws=draws)[:, -1]
        apart = compared.p < 1 - evidence.LEVEL
        false.append(bool(apart[equal].any()))
        found += apart[differs].tolist()
        covered += ((ends[:, 0] <= real) & (real <= ends[:, 1])).tolist()
        widths.append(float(np.mean(ends[:, 1] - ends[:, 0])))
    return Outcome(*(float(np.mean(each)) if each else float("nan") for each in (false, found, covered, widths)))


WORLDS = {
    "2 equal methods, nothing random in training": World(seeds=1, seed=0.0),
    "2 equal methods, 2 seeds": World(seeds=2),
    "2 equal methods, 3 seeds": World(),
    "2 equal methods, 5 seeds": World(seeds=5),
    "8 equal methods, 3 seeds": World(effects=(0.0,) * 8),
    "8 equal methods, 3 seeds that vary twice as much": World(effects=(0.0,) * 8, seed=0.06),
    "2 equal methods, one seed (its spread unknown)": World(seeds=1),
    "2 methods, 3 seeds, a small difference": World(effects=(0.0, 0.1)),
    "2 methods, 3 seeds, a larger one": World(effects=(0.0, 0.15)),
    "8 methods in two tiers of 4, 3 seeds": World(effects=(0.0,) * 4 + (0.2,) * 4),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=500)
    experiments = parser.parse_args().experiments
    print("| experiments | difference | equal ones called different | different ones told apart | coverage | width |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, world in WORLDS.items():
        made = outcome(world, experiments)
        real = truth(replace(world, spread=1.0))  # seeds that vary more pull recalls a hundredth of a point
        power = "–" if np.isnan(made.found) else f"{made.found:.1%}"
        print(
            f"| {name} | {real.max() - real.min():.1f} | {made.any_false:.1%} | {power} "
            f"| {made.covered:.1%} | {made.width:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
