"""scipy with `workers=pool.map`: a robust fit by differential evolution.

Predicts the progression of diabetes in a year from the body mass index and the blood pressure of 442 patients, with a
loss that is robust against outliers.  The workers evaluate the population of each generation.

Run it::

    pip install ./shmarray scipy scikit-learn
    python shmarray/examples/integrations/scipy_fit.py
"""

from functools import partial

import numpy as np
from scipy.optimize import differential_evolution
from sklearn.datasets import load_diabetes

import shmarray

BOUNDS = [(100, 200), (-2000, 2000), (-2000, 2000)]


def loss(parameters: np.ndarray, columns: np.ndarray, progress: np.ndarray) -> float:
    """Runs in a worker: returns the Cauchy loss of a plane."""
    residuals = progress - parameters[0] - columns @ parameters[1:]
    return float(np.log1p((residuals / 50) ** 2).sum())


def main() -> None:
    table, progress = load_diabetes(return_X_y=True)
    columns = table[:, [2, 3]]
    options = {"seed": 1, "maxiter": 30, "updating": "deferred"}
    serial = differential_evolution(partial(loss, columns=columns, progress=progress), BOUNDS, **options)
    with shmarray.scoped(data=columns) as shared, shmarray.Pool(2) as pool:  # shared, so no task gets a copy
        task = partial(loss, columns=shared, progress=progress)
        fit = differential_evolution(task, BOUNDS, workers=pool.map, **options)

    base, bmi, pressure = fit.x
    print(f"progress = {base:.0f} + {bmi:.0f} * bmi + {pressure:.0f} * pressure, after {fit.nfev} evaluations")
    if not np.allclose(fit.x, serial.x):
        raise SystemExit("the parallel fit differs from the serial one")


if __name__ == "__main__":
    main()
