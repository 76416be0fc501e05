"""Solutions, hidden tests and typical wrong answers to the exercises of notebooks/03_unet_resnet50_cv.py, cell by cell."""

# %% Exercise 3.1: solution (1 point)
def share_learnt_twice(k):
    """Share (0 to 1) of a network's training pictures that another has, too; k >= 2."""
    ### BEGIN SOLUTION
    # each learns from k - 1 folds, and of these the one that the other network holds out is missing there
    return (k - 2) / (k - 1)
    ### END SOLUTION

# %% Exercise 3.1: hidden tests
for k in (2, 3, 5, 10):
    dealt = [set(part.tolist()) for part in folds_by_image(range(12 * k), 42, k)]
    first, other = (set(range(12 * k)) - held_out for held_out in dealt[:2])
    common.check(f"{k} folds", share_learnt_twice(k), len(first & other) / len(first))

# %% Exercise 3.1: a wrong answer
def share_learnt_twice(k):
    """The part that is missing, not the part that is shared; with three folds they are the same."""
    return 1 / (k - 1)

# %% Exercise 3.2: solution (3 points)
def scale_about_middle(image, label, factor, size):
    """Image (H, W, 3), label (H, W) scaled, padded (0, 255) or cropped, at `size`."""
    ### BEGIN SOLUTION
    h, w = label.shape
    image, label = common.resize_pair(image, label, (round(h * factor), round(w * factor)))
    down, right = (max(0, full - part) for full, part in zip((h, w), label.shape))
    margins = (down // 2, down - down // 2, right // 2, right - right // 2)
    image, label = (cv2.copyMakeBorder(a, *margins, cv2.BORDER_CONSTANT, value=v) for a, v in ((image, 0), (label, 255)))
    top, left = (label.shape[0] - h) // 2, (label.shape[1] - w) // 2
    return common.resize_pair(image[top : top + h, left : left + w], label[top : top + h, left : left + w], size)
    ### END SOLUTION

# %% Exercise 3.2: hidden tests
for factor, half in ((0.75, 3), (1.25, 5), (2.0, 8)):
    image_seen, label_seen = scaled_square(scale_about_middle, factor)
    common.check(f"box, scaled by {factor}", box_of(label_seen == 11), [32 - half, 16 - half, 32 + half, 16 + half])
    common.check("shapes are right", (image_seen.shape, label_seen.shape) == ((32, 64, 3), (32, 64)), True)
    common.check("share of void", (label_seen == 255).mean(), max(0, 1 - factor**2), tolerance=1e-3)
    common.check("pixels that are void but not black", ((image_seen[..., 0] < 40) != (label_seen == 255)).sum(), 0)
    common.check("pixels where image and label differ", ((image_seen[..., 0] > 160) != (label_seen == 11)).sum(), 0)
_, squeezed = scaled_square(scale_about_middle, 1.0, size=(64, 64))
common.check("box for a network that sees 64 x 64", box_of(squeezed == 11), [28, 24, 36, 40])

# %% Exercise 3.2: a wrong answer
def scale_about_middle(image, label, factor, size):
    """Pads what is smaller, but does not crop what is larger, so that the resize undoes it."""
    h, w = label.shape
    image, label = common.resize_pair(image, label, (round(h * factor), round(w * factor)))
    if factor < 1:
        down, right = h - label.shape[0], w - label.shape[1]
        margins = (down // 2, down - down // 2, right // 2, right - right // 2)
        image = cv2.copyMakeBorder(image, *margins, cv2.BORDER_CONSTANT, value=0)
        label = cv2.copyMakeBorder(label, *margins, cv2.BORDER_CONSTANT, value=255)
    return common.resize_pair(image, label, size)

# %% Exercise 3.3: solution (2 points)
def interval_of_blocks(a, b, blocks, repeats=200, seed=0):
    """Central 95 % of the mean of a - b, scores (N,) each, for drawn blocks (N,)."""
    ### BEGIN SOLUTION
    rng, differences = np.random.default_rng(seed), []
    members = [np.flatnonzero(blocks == name) for name in np.unique(blocks)]
    for _ in range(repeats):
        drawn = np.concatenate([members[k] for k in rng.integers(len(members), size=len(members))])
        differences.append(a[drawn].mean() - b[drawn].mean())
    return np.quantile(differences, [0.025, 0.975])
    ### END SOLUTION

# %% Exercise 3.3: hidden tests
sizes = np.array([1, 30, 4, 12, 2, 25, 9, 17])
ids = np.repeat([5, 2, 9, 11, 40, 1, 7, 3], sizes)
worth = np.repeat([0.5, 0.1, -0.3, 0.2, -0.6, 0.05, 0.4, -0.1], sizes)
order = np.random.default_rng(4).permutation(len(ids))  # blocks that do not stand side by side
times = np.random.default_rng(5).multinomial(8, np.full(8, 1 / 8), size=20000)
of_blocks = np.array([0.5, 0.1, -0.3, 0.2, -0.6, 0.05, 0.4, -0.1])
wanted = np.quantile((times @ (sizes * of_blocks)) / (times @ sizes), [0.025, 0.975])
found = np.array(interval_of_blocks((worth + 0.5)[order], np.full(len(ids), 0.5), ids[order], repeats=3000))
common.check("blocks of different lengths", found, wanted, tolerance=0.03)
everything = interval_of_blocks(worth, worth - 0.25, ids)
common.check("a difference that is everywhere the same", np.array(everything), [0.25, 0.25])

# %% Exercise 3.3: a wrong answer
def interval_of_blocks(a, b, blocks, repeats=200, seed=0):
    """Takes ten neighbours for a block, whatever the ids say."""
    rng, differences = np.random.default_rng(seed), []
    for _ in range(repeats):
        starts = 10 * rng.integers(len(a) // 10, size=len(a) // 10)
        drawn = (starts[:, None] + np.arange(10)).ravel()
        differences.append(a[drawn].mean() - b[drawn].mean())
    return np.quantile(differences, [0.025, 0.975])

# %% Exercise 3.4: solution (4 points)
def shares_of_drop(score, steps):
    """{step: mean over all orders of the change of score(taken) at that step}."""
    ### BEGIN SOLUTION
    from itertools import permutations

    orders = list(permutations(steps))
    shares = dict.fromkeys(steps, 0.0)
    for order in orders:
        taken = set()
        before = score(taken)
        for step in order:
            taken = taken | {step}
            after = score(taken)
            shares[step] += (after - before) / len(orders)
            before = after
    return shares
    ### END SOLUTION

# %% Exercise 3.4: hidden tests
import math
from itertools import combinations

def share_by_formula(score, steps, step):
    """Sum over all sets of other steps of what `step` changes after them, weighted by how often just they come before."""
    others, total = [name for name in steps if name != step], 0.0
    for count in range(len(steps)):
        chance = math.factorial(count) * math.factorial(len(others) - count) / math.factorial(len(steps))
        for earlier in combinations(others, count):
            total += chance * (score({*earlier, step}) - score(set(earlier)))
    return total

def uneven(taken):
    return sum(map(ord, taken)) ** 2 / 1e4 + ("a" in taken) * ("c" in taken) + np.sin(sum(map(ord, taken)))

on_grid = partial(score_after, TINY_GRID)
for score, steps in ((on_grid, list(END)), (uneven, ["a"]), (uneven, ["b", "a"]), (uneven, ["d", "b", "a", "c"])):
    shares = shares_of_drop(score, steps)
    formulas = [share_by_formula(score, steps, step) for step in steps]
    common.check(f"shares of {', '.join(steps)}", [shares[step] for step in steps], formulas)

# %% Exercise 3.4: a wrong answer
def shares_of_drop(score, steps):
    """Two orders, forwards and backwards, instead of all."""
    shares = dict.fromkeys(steps, 0.0)
    for order in (list(steps), list(steps)[::-1]):
        taken = set()
        for step in order:
            before = score(taken)
            taken = taken | {step}
            shares[step] += (score(taken) - before) / 2
    return shares
