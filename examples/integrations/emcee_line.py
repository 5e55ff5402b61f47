"""emcee with `pool=`: how uncertain is a fitted line, and how much do patients scatter around it?

Fits the progression of diabetes to the body mass index of 442 patients; the workers evaluate 16 walkers.

Run it::

    pip install ./shmarray emcee scikit-learn
    python shmarray/examples/integrations/emcee_line.py
"""

import emcee
import numpy as np
from sklearn.datasets import load_diabetes

import shmarray

WALKERS = 16


def log_probability(parameters: np.ndarray, bmi: np.ndarray, progress: np.ndarray) -> float:
    """Runs in a worker: returns the logarithm of the probability."""
    base, slope, log_scatter = parameters
    residuals = progress - base - slope * bmi
    return float(-0.5 * np.sum((residuals / np.exp(log_scatter)) ** 2) - len(bmi) * log_scatter)


def sample(bmi: np.ndarray, progress: np.ndarray, pool: shmarray.Pool | None) -> np.ndarray:
    sampler = emcee.EnsembleSampler(WALKERS, 3, log_probability, pool=pool, args=[bmi, progress])
    sampler.random_state = np.random.RandomState(1).get_state()
    start = [150, 900, 4] + np.random.default_rng(1).normal(size=(WALKERS, 3)) * [5, 50, 0.05]
    sampler.run_mcmc(start, 300)
    return sampler.get_chain(discard=100, flat=True)


def main() -> None:
    table, progress = load_diabetes(return_X_y=True)
    bmi = table[:, 2]
    with shmarray.Pool(2) as pool:
        chain = sample(bmi, progress, pool)

    for name, column in zip(("base", "slope", "log scatter"), chain.T, strict=True):
        print(f"{name:12}{column.mean():9.2f} +- {column.std():.2f}")
    if not np.array_equal(chain, sample(bmi, progress, None)):
        raise SystemExit("the chain differs from the serial one")


if __name__ == "__main__":
    main()
