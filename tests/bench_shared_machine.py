"""Two trainings of two threads each side by side against one alone, as when a class shares a machine.

pytest tests/bench_shared_machine.py -s, on a machine that has nothing else to do. torch's OpenMP threads wait for each
other by spinning; where two programs share the cores, one spins in the other's way. common.py lets them spin for a
moment only, which costs nothing where a program is alone; not to spin at all would.
"""
import os
import re
import statistics
import subprocess
import sys

import pytest
from conftest import ROOT

THREADS, STEPS = 2, 8
OURS = re.search(r'setdefault\("GOMP_SPINCOUNT", "(\d+)"\)', (ROOT / "common.py").read_text())[1]
WAYS = {"torch's default": {}, "ours, for a moment": {"GOMP_SPINCOUNT": OURS}, "never": {"GOMP_SPINCOUNT": "0"}}
TRAINING = f"""
import sys, time
import torch
sys.path[:0] = [{str(ROOT / "tests")!r}]
from conftest import notebook_definitions
torch.set_num_threads({THREADS})
torch.manual_seed(0)
model = notebook_definitions("02_unet_from_scratch").UNet(width=32)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
image, label = torch.rand(4, 3, 128, 128), torch.randint(7, (4, 128, 128))
for step in range(-2, {STEPS}):
    if step == 0:
        print("ready", flush=True)
        sys.stdin.readline()
        started = time.perf_counter()
    loss = torch.nn.functional.cross_entropy(model(image), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(time.perf_counter() - started, loss.item())
"""


def seconds(trainings, way):
    """Seconds of the slowest of so many trainings that begin together, and the loss that each ends with."""
    free = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    env = {key: value for key, value in os.environ.items() if key not in free} | WAYS[way]
    running = [subprocess.Popen([sys.executable, "-c", TRAINING], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
               for _ in range(trainings)]  # fmt: skip
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [tuple(map(float, process.communicate()[0].split())) for process in running]
    return max(time for time, _ in found), {loss for _, loss in found}


def test_two_trainings_side_by_side(capsys):
    if (os.cpu_count() or 1) < THREADS:
        pytest.skip(f"needs {THREADS} cores")
    rounds = {(way, n): [] for way in WAYS for n in (1, 2)}
    losses = set()
    for _ in range(3):
        for (way, n), times in rounds.items():
            time, loss = seconds(n, way)
            times.append(time)
            losses |= loss
    assert len(losses) == 1, "waiting otherwise changes no number"
    alone = statistics.median(rounds["torch's default", 1])
    with capsys.disabled():
        print(f"\n{STEPS} steps of a small U-Net with {THREADS} threads on {os.cpu_count()} cores, median of 3:")
        for way in WAYS:
            one, two = (statistics.median(rounds[way, n]) for n in (1, 2))
            print(f"{way:20s} alone {one:6.2f} s ({one / alone:.2f} of the default), "
                  f"two at once {two:6.2f} s: {two / one:.2f} times as long")
