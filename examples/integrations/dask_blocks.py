"""dask with `pool=`: the covariance of the pixels of handwritten digits, block by block.

Run it::

    pip install ./shmarray 'dask[array]' scikit-learn
    python shmarray/examples/integrations/dask_blocks.py
"""

import dask
import dask.array
import numpy as np
from sklearn.datasets import load_digits

import shmarray


def main() -> None:
    pictures = load_digits().data
    lazy = dask.array.from_array(pictures, chunks=(450, -1))
    centred = lazy - lazy.mean(axis=0)
    covariance = centred.T @ centred / (len(pictures) - 1)
    with shmarray.ProcessPoolExecutor(2) as executor, dask.config.set(scheduler="processes", pool=executor):
        found = covariance.compute()

    strongest = np.unravel_index(np.argmax(np.triu(found, 1)), found.shape)
    print(f"{lazy.npartitions} blocks; pixels {strongest[0]} and {strongest[1]} have the largest covariance")
    if not np.allclose(found, np.cov(pictures.T)):
        raise SystemExit("dask's answer differs from numpy's")


if __name__ == "__main__":
    main()
