"""scikit-learn through joblib: search for the best classifier of handwritten digits in parallel.

Everything that scikit-learn runs with `n_jobs` uses shared memory, without changes to the estimators.  The table is
shared first, so that no task gets a copy of it.

Run it::

    pip install './shmarray[joblib]' scikit-learn
    python shmarray/examples/integrations/scikit_learn.py
"""

import joblib
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import shmarray
import shmarray.joblib  # registers the backend

GRID = {"C": [0.1, 1.0, 10.0], "gamma": [1e-4, 1e-3]}


def search(pictures: np.ndarray, digits: np.ndarray) -> GridSearchCV:
    return GridSearchCV(SVC(), GRID, cv=3).fit(pictures, digits)


def main() -> None:
    pictures, digits = load_digits(return_X_y=True)
    serial = search(pictures, digits)
    with shmarray.scoped(data=pictures) as shared, joblib.parallel_config(backend="shmarray", n_jobs=2):
        parallel = search(shared, digits)

    print(f"{len(pictures)} pictures, best: {parallel.best_params_}, {parallel.best_score_:.1%} correct")
    if not np.array_equal(parallel.cv_results_["mean_test_score"], serial.cv_results_["mean_test_score"]):
        raise SystemExit("the parallel search differs from the serial one")


if __name__ == "__main__":
    main()
