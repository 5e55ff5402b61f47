"""asyncio with an executor: the event loop continues to run while workers compute.

Each request contains a handwritten digit, rotated by some angle, and asks which of all digits is most similar.  The
program counts the rounds of the event loop, to show that it is never blocked.

Run it::

    pip install ./shmarray scipy scikit-learn
    python shmarray/examples/integrations/asyncio_server.py
"""

import asyncio

import numpy as np
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

import shmarray


def nearest(pictures: np.ndarray, asked: np.ndarray, angle: float) -> int:
    """Runs in a worker: rotates the picture back, and returns the number of the most similar digit."""
    turned = rotate(asked, -angle, reshape=False)
    return int(np.argmin(((pictures - turned) ** 2).sum(axis=(1, 2))))


async def tick(rounds: list[int]) -> None:
    while True:
        rounds.append(len(rounds))
        await asyncio.sleep(0.001)


async def serve(pictures: np.ndarray, executor: shmarray.ProcessPoolExecutor) -> tuple[list[int], int]:
    loop = asyncio.get_running_loop()
    rounds: list[int] = []
    ticking = asyncio.create_task(tick(rounds))
    angles = range(0, 360, 18)
    requests = [rotate(pictures[number], angle, reshape=False) for number, angle in enumerate(angles)]
    calls = [
        loop.run_in_executor(executor, nearest, pictures, asked, angle)
        for asked, angle in zip(requests, angles, strict=True)
    ]
    answers = await asyncio.gather(*calls)
    ticking.cancel()
    return answers, len(rounds)


def main() -> None:
    pictures = load_digits().images
    with shmarray.scoped(data=pictures) as shared, shmarray.ProcessPoolExecutor(2) as executor:
        answers, rounds = asyncio.run(serve(shared, executor))

    right = sum(answer == number for number, answer in enumerate(answers))
    print(f"{right} of {len(answers)} found; meanwhile the event loop ran {rounds} rounds")
    if right < len(answers) // 2 or rounds < 2:
        raise SystemExit("too few were found, or the event loop was blocked")


if __name__ == "__main__":
    main()
