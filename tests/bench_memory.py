"""Parameters, arithmetic and memory of one training step of notebooks 02 to 06, computed without a GPU and without data.

pytest tests/bench_memory.py

The peak is that of the tensors that live during a whole step: weights, gradients, optimizer state, a batch, everything that
the backward pass needs and passes through. Not in it are the CUDA context, the workspaces of cuDNN, what the allocator
cannot use between blocks, and batches that are loaded ahead. `quick` and `laptop` are computed in fp32, as on a CPU;
`course` and `paper` as on a GPU, in fp32 or with 16-bit autocast as the mode says. The loss of notebook 06 is the one that
is compiled there, uncompiled: compiled it takes less.
"""
import copy
import weakref

import pytest
import torch
from fake_steps import DATA, NOTEBOOKS, NumbersUnknown, handed_to_fit, trainings
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

import common

T4 = 14.6  # GiB that torch finds on a GPU of "16 GB"; a third of it is to stay free
# what autocast computes in float32 on a GPU, but not on a CPU; those of the second row return it, and do not convert what they get
CONVERTED = {"layer_norm", "group_norm", "interpolate", "pow", "__pow__", "exp", "log", "rsqrt", "reciprocal"}
RETURNED = {"softmax", "log_softmax", "sum", "cumsum", "norm"}


class AutocastOfGPU(TorchFunctionMode):
    """Makes a CPU's autocast keep as much in float32 as a GPU's."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if torch.is_autocast_enabled("cpu") and name in CONVERTED | RETURNED:
            low = [isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 for x in args]
            if name in CONVERTED:
                args = [x.float() if is_low else x for x, is_low in zip(args, low)]
            elif low[0]:
                kwargs = kwargs | {"dtype": torch.float32}
        return func(*args, **kwargs)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, those in `first` and all that come from calls; `peak` at most.

    torch.distributed._tools.mem_tracker.MemTracker finds the same and takes a hundred times as long.
    """

    def __init__(self, first):
        super().__init__()
        self.known, self.now, self.peak = WeakIdKeyDictionary(ref_type=weakref.ref), 0, 0
        self.add(first)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.add(found)
        return found

    def add(self, tensors):
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in self.known:
                size = -(-storage.nbytes() // 512) * 512  # as CUDA's allocator rounds
                self.known[storage], self.now = size, self.now + size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.forget, size)

    def forget(self, size):
        self.now -= size


def computed_step(given, precision: str) -> dict:
    """{"parameters", "gflop" of one batch, "gib" at most in a step} of what `handed_to_fit` returns."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        model, optimizer, batch = copy.deepcopy((given.model, given.optimizer, given.batch))
    for group in optimizer.param_groups:
        group["foreach"] = "fused" not in group or group["fused"] is None  # torch's choice on a GPU
    model = common.make_accelerator(precision).prepare_model(model, device_placement=False).train()
    live = LiveBytes([*model.parameters(), *model.buffers(), *batch.values()])
    with fake, live, NumbersUnknown(), AutocastOfGPU():
        with FlopCounterMode(display=False) as flops:
            given.loss_fn(model, batch).backward()
        optimizer.step()  # makes the optimizer's state
        optimizer.zero_grad(set_to_none=True)
        for _ in range(min(2, given.accumulation)):  # after the first batch there are gradients
            given.loss_fn(model, batch).backward()
        if given.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), given.clip_norm)
        optimizer.step()
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "gflop": flops.get_total_flops() / 1e9, "gib": live.peak / 2**30}


def step_of(name: str, mode: str, data: str, toy, folder, **changes) -> tuple[list[dict], dict]:
    """([what `computed_step` returns, and method, precision and shape, for each method], settings)."""
    methods, settings = trainings(name, common.list_frames(toy, "train") * 8, folder, mode, data, **changes)  # enough for large batches
    on_cpu = mode in ("quick", "laptop")
    precision = "fp32" if on_cpu or settings["precision"] == "fp32" else "bf16"  # as many bytes as fp16
    found = []
    for method, train in methods.items():
        given = handed_to_fit(train, folder)
        shape = "x".join(str(given.batch["image"].shape[k]) for k in (0, 2, 3))
        found.append({"method": method, "precision": precision, "shape": shape} | computed_step(given, precision))
    return found, settings


def fits(gib: float) -> str:
    """Whether a peak fits on a GPU of 16 GB."""
    return "no" if gib > T4 else "yes" if gib <= T4 * 2 / 3 else "barely"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_table(name, toy, tmp_path, capsys):
    """Prints the table; methods that are not in it need as much as one that is."""
    with capsys.disabled():
        print(f"\n\n{name}\n| mode | data | method | batch x height x width | arithmetic | parameters | GFLOP a batch | peak GiB | fits in 16 GB |\n"
              "|---|---|---|---|---|---|---|---|---|")  # fmt: skip
        for mode, places in DATA.items():
            seen = []
            for data in places:
                for one in step_of(name, mode, data, toy, tmp_path)[0]:
                    assert one["gib"] > 0
                    row = (f"{one['method']} | {one['shape']} | {one['precision'].replace('bf16', '16 bit')} | {one['parameters']:,} | "
                           f"{one['gflop']:,.0f} | {one['gib']:.1f} | {fits(one['gib'])}")  # fmt: skip
                    if row not in seen:  # crops and squares are the same in all data
                        print(f"| {mode} | {data} | {row} |", flush=True)
                    seen.append(row)


def test_peak_is_that_of_torchs_own_tracker(toy, tmp_path):
    from torch.distributed._tools.mem_tracker import MemTracker

    methods, _ = trainings("02_unet_from_scratch", common.list_frames(toy, "train"), tmp_path, "quick", "toy")
    given = handed_to_fit(methods["dice"], tmp_path)
    fake, theirs = FakeTensorMode(allow_non_fake_inputs=True), MemTracker()
    with FakeCopyMode(fake):
        model, optimizer, batch = copy.deepcopy((given.model, given.optimizer, given.batch))
    theirs.track_external(model, optimizer, *batch.values())
    with fake, theirs, LiveBytes([*model.parameters(), *model.buffers(), *batch.values()]) as ours, NumbersUnknown():
        given.loss_fn(model, batch).backward()
        optimizer.step()
    assert ours.peak == pytest.approx(theirs.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"], rel=0.01)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_autocast_keeps_what_a_gpus_keeps(name, toy, tmp_path, monkeypatch):
    """The forward pass leaves as many bytes on a fake GPU, whose backward pass torch refuses."""
    methods, _ = trainings(name, common.list_frames(toy, "train"), tmp_path, "course", "Cityscapes")
    given = handed_to_fit(next(iter(methods.values())), tmp_path)
    fake, kept = FakeTensorMode(allow_non_fake_inputs=True), {}
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    with FakeCopyMode(fake):
        on_cpu = copy.deepcopy(given.model)
    with fake:
        for model in (on_cpu, given.model.to("cuda")):
            device = next(model.parameters()).device.type
            image = given.batch["image"].to(device)
            with LiveBytes([*model.parameters(), image]) as live, AutocastOfGPU(), torch.autocast(device, torch.bfloat16):
                logits = model.train()(image)
                kept[device] = live.now
                del logits
    assert kept["cpu"] == pytest.approx(kept["cuda"], rel=0.02)
