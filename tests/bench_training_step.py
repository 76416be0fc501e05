"""One training step of notebook 06 on a GPU: a plain loop against channels_last, a compiled loss and a fused AdamW.

pytest tests/bench_training_step.py
"""
import gc
import time

import numpy as np
import pytest
import torch
from bench_composite import plain_composite
from conftest import notebook_definitions
from street_labels import drawn_label

import common

nb = notebook_definitions("06_kervadec_ablation")
TERMS = {"ce": 1.0, "dice": 1.0, "boundary": 0.2}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def compiled():
    """The composite loss as a GPU trains with it."""
    return common.compile_loss(nb.composite_as_written, nb.composite_loss, "yes", "cuda")


def scenes(size, batch):
    """Images (B, H, W, 3), labels (B, H, W) and distance maps (B, 19, H, W), in bytes."""
    label = drawn_label(*size, n=19)
    labels = np.stack([np.roll(label, 50 * k, axis=1) for k in range(batch)])
    images = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    return images, labels, torch.stack([nb.distance_targets(one, 19, "clip127")["phi"] for one in labels])


def tensors(images, labels, phi):
    """A batch as the loader makes it."""
    return {"image": torch.stack([common.to_tensor(one) for one in images]),
            "label": torch.from_numpy(labels.astype(np.int64)), "phi": phi}


def train(network, size, batch, device, steps, *, plain, composite, channels_last=False):
    """{"loss" of the first step, "rate" in images/s, "gib" at most on the GPU}; two more steps warm up.

    `plain`: the batch is made on the CPU in every step, AdamW is not fused, each loss is read, and there is no TF32.
    Else the batch lies ready in pinned memory, as worker processes leave it, and nothing waits for the GPU.
    """
    cuda, layout = device == "cuda", torch.channels_last if channels_last else torch.contiguous_format
    torch.set_float32_matmul_precision("high" if cuda and not plain else "highest")
    torch.manual_seed(0)
    model = nb.UPerNetWithAux(nb.NETWORKS[network]["encoder"], nb.NETWORKS[network]["decoder_width"])
    model = model.to(device, memory_format=layout).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-5, weight_decay=0.01, fused=cuda and not plain)
    bytes_ = scenes(size, batch)
    ready = {name: values.pin_memory() if cuda else values for name, values in tensors(*bytes_).items()}
    losses = []
    for step in range(-2, steps):
        if step == 0:
            if cuda:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            started = time.perf_counter()
        data = tensors(*bytes_) if plain else ready
        data = {name: values.to(device, non_blocking=not plain) for name, values in data.items()}
        data["image"] = data["image"].contiguous(memory_format=layout)
        with torch.autocast(device, torch.bfloat16):
            loss = nb.training_loss(model, data, composite, terms=TERMS)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item() if plain else loss.detach())
    if cuda:
        torch.cuda.synchronize()
    rate = steps * batch / (time.perf_counter() - started)
    return {"loss": float(losses[0]), "rate": rate, "gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0}


def compare(network, size, batch, device, steps, composite):
    """What `train` returns by way; their first losses agree."""
    ours = {"plain": False, "composite": composite}
    ways = {"plain": {"plain": True, "composite": plain_composite}, "ours": ours | {"channels_last": True},
            "ours, channels first": ours}
    found = {}
    for name, way in ways.items():
        found[name] = train(network, size, batch, device, steps, **way)
        torch.set_float32_matmul_precision("highest")
        gc.collect()
        torch.cuda.empty_cache()
    for one in found.values():
        assert one["loss"] == pytest.approx(found["plain"]["loss"], rel=2e-2)
    return found


def test_the_code_on_a_cpu(one_thread):
    found = compare("atto", (64, 128), 2, "cpu", 1, nb.composite_loss)
    assert all(one["rate"] > 0 for one in found.values())


@needs_gpu
def test_a_step_of_the_paper_recipe(capsys):
    mode = nb.MODES["paper"]
    size = (mode["height"], 2 * mode["height"])
    found = compare(mode["network"], size, mode["batch_size"], "cuda", 20, compiled())
    plain = found["plain"]
    with capsys.disabled():
        print(f"\npaper recipe, batch {mode['batch_size']} at {size[0]}x{size[1]}, {torch.cuda.get_device_name()}:")
        for name, one in found.items():
            print(f"{name:22s}{one['rate']:6.2f} images/s, {one['rate'] / plain['rate']:.2f} times plain; "
                  f"{one['gib']:.1f} GiB, {one['gib'] / plain['gib']:.2f} of plain")


@needs_gpu
def test_a_step_of_course_mode_fits_in_16_gib(capsys):
    mode, total = nb.MODES["course"], torch.cuda.get_device_properties(0).total_memory
    size, composite = (mode["height"], 2 * mode["height"]), compiled()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 16 * 2**30 / total))
    try:
        found = train(mode["network"], size, mode["batch_size"], "cuda", 10, plain=False, composite=composite)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.set_float32_matmul_precision("highest")
    with capsys.disabled():
        print(f"\ncourse mode within 16 GiB: {found['rate']:.1f} images/s, {found['gib']:.1f} GiB")
