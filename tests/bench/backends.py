"""joblib's backend "farm" beside loky, in turns: ``python tests/bench/backends.py``, with scikit-learn installed.

For each backend the first and the best time of: a small grid search of scikit-learn, 8 sums of one array of 64 MiB,
10,000 short calls, and 1,000 calls of a millisecond.
"""

import argparse
import time

import joblib
import numpy as np
from joblib import Parallel, delayed
from sklearn.datasets import make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

import farm_executor.joblib  # noqa: F401

WORKERS = 2
BACKENDS = ("loky", "farm")
X, Y = make_classification(800, 20, random_state=0)
LARGE = np.ones(64 * 1024 * 1024 // 8)


def search():
    grid = {"C": [0.1, 1, 10, 100], "gamma": [0.01, 0.1]}
    GridSearchCV(SVC(), grid, cv=5, n_jobs=WORKERS).fit(X, Y)


def sums():
    assert Parallel(WORKERS)(delayed(np.sum)(LARGE) for _ in range(8)) == [LARGE.size] * 8


def short_calls():
    Parallel(WORKERS)(delayed(abs)(-i) for i in range(10_000))


def calls_of_a_millisecond():
    Parallel(WORKERS)(delayed(time.sleep)(0.001) for _ in range(1_000))


def in_turns(work, rounds):
    """The seconds of each round, by backend."""
    seconds = {name: [] for name in BACKENDS}
    for _ in range(rounds):
        for name in BACKENDS:
            began = time.perf_counter()
            with joblib.parallel_config(name):
                work()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed (default: %(default)s)")
    rounds = parser.parse_args().rounds
    print(f"{'':24}" + "".join(f"{name + ' first':>12}{name + ' best':>12}" for name in BACKENDS) + f"{'ratio':>8}")
    for work in (search, sums, short_calls, calls_of_a_millisecond):
        seconds = in_turns(work, rounds)
        best = {name: min(times) for name, times in seconds.items()}
        cells = "".join(f"{times[0]:>12.3f}{best[name]:>12.3f}" for name, times in seconds.items())
        print(f"{work.__name__:24}{cells}{best['farm'] / best['loky']:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
