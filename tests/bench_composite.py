"""The composite loss of notebook 06 at 19x512x1024, forward and backward, one thread: three plain terms against ours.

pytest tests/bench_composite.py
"""
from itertools import accumulate
from timeit import repeat

import pytest
import torch
from conftest import notebook_definitions
from street_labels import drawn_label
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import common

nb = notebook_definitions("06_kervadec_ablation")
CLASSES, TERMS = 19, {"ce": 1.0, "dice": 1.0, "boundary": 0.2}
pytestmark = pytest.mark.usefixtures("one_thread")


def plain_composite(logits, batch, terms, smooth=1.0):
    """Three terms that share nothing: torch's cross-entropy, Dice of one-hot maps, distances times probabilities."""
    label, phi = batch["label"], batch["phi"]
    valid = (label != 255).unsqueeze(1).float()
    y = F.one_hot(torch.where(label == 255, 0, label), logits.shape[1]).movedim(-1, 1).float() * valid
    ce = F.cross_entropy(logits, label, ignore_index=255)
    p = logits.softmax(1) * valid
    hits, mass, counts = (values.sum((0, 2, 3)) for values in (p * y, p, y))
    dice = 1 - ((2 * hits + smooth) / (mass + counts + smooth)).mean()
    boundary = (phi.float() / 127 * logits.softmax(1) * valid).sum() / (logits.shape[1] * valid.sum())
    return terms["ce"] * ce + terms["dice"] * dice + terms["boundary"] * boundary


@pytest.fixture(scope="module")
def scene():
    """Logits (1, 19, H, W) that know a little, and a batch with void."""
    label = drawn_label(512, 1024, n=CLASSES)
    phi, truth = nb.distance_targets(label, CLASSES, "clip127")["phi"][None], torch.from_numpy(label).long()[None]
    noise = torch.randn(1, CLASSES, *label.shape, generator=torch.Generator().manual_seed(0))
    return noise + 2 * nb.one_hot(truth % 255), {"label": truth, "phi": phi}


def value_and_gradient(loss, logits, batch):
    value = loss(logits, batch, TERMS)
    return value.detach(), *torch.autograd.grad(value, logits)


def peak_memory(call):
    """The most that a call holds in addition to what was there, in MiB."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        call()
    events = [event for event in prof.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))) / 2**20


def test_composite(scene, capsys):
    logits, batch = scene
    logits = logits.clone().requires_grad_()
    ways = {"plain": plain_composite, "as written": nb.composite_as_written, "in strips": nb.composite_loss}
    compiled = common.compile_loss(nb.composite_as_written, nb.composite_loss, "yes", "cpu")
    if compiled is not nb.composite_loss:
        ways["as written, compiled"] = compiled
    expected, rows = value_and_gradient(plain_composite, logits, batch), []
    for name, loss in ways.items():
        value, gradient = value_and_gradient(loss, logits, batch)
        torch.testing.assert_close(value, expected[0], rtol=1e-4, atol=0)
        torch.testing.assert_close(gradient, expected[1], rtol=1e-4, atol=1e-4 * expected[1].abs().max().item())
        del value, gradient
        seconds = min(repeat(lambda loss=loss: value_and_gradient(loss, logits, batch), number=1))
        rows.append((name, seconds, peak_memory(lambda loss=loss: value_and_gradient(loss, logits, batch))))
    with capsys.disabled():
        print(f"\nCE, Dice and boundary at 1x19x512x1024 ({logits.nbytes / 2**20:.0f} MiB), forward and backward:")
        for name, seconds, memory in rows:
            print(f"{name:22s}{1000 * seconds:6.0f} ms, {rows[0][1] / seconds:4.1f} times faster than plain; "
                  f"{memory:5.0f} MiB, {memory / rows[0][2]:.2f} of plain")
