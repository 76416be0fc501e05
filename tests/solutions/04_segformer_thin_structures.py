"""Solutions, hidden tests and typical wrong answers to the exercises of notebooks/04_segformer_thin_structures.py, cell by cell."""

# %% Exercise 4.1: solution (1 point)
def shift_to_half_iou(width):
    """The smallest shift, an int, that leaves an object of this width an IoU <= 1/2."""
    ### BEGIN SOLUTION
    # a shift by s leaves (width - s) of (width + s) columns, which is 1/2 at s = width / 3
    return -(-width // 3)
    ### END SOLUTION

# %% Exercise 4.1: hidden tests
for width in (3, 4, 7, 32, 40):
    pairs = [shifted(width, shift) for shift in range(width // 2 + 2)]
    iou = [((label * moved).sum() / (label + moved).clamp(max=1).sum()).item() for label, moved in pairs]
    halved = min(shift for shift, value in enumerate(iou) if value <= 0.5)
    common.check(f"shift of an object of {width} pixels", shift_to_half_iou(width), halved)

# %% Exercise 4.1: a wrong answer
def shift_to_half_iou(width):
    """Half of it is still covered after a slide by half the width."""
    return width // 2

# %% Exercise 4.2: solution (3 points)
def attend(x, w_q, w_k, w_v):
    """Attention of tokens x (n, d) among themselves, (n, d)."""
    ### BEGIN SOLUTION
    q, k, v = x @ w_q, x @ w_k, x @ w_v
    fit = q @ k.T / q.shape[1] ** 0.5  # (n, n): a row for each query
    return fit.softmax(dim=1) @ v
    ### END SOLUTION

# %% Exercise 4.2: hidden tests
generator = torch.Generator().manual_seed(1)
for n, d in ((5, 3), (2, 8), (7, 1)):
    tokens = torch.randn(n, d, generator=generator)
    weights = [torch.randn(d, d, generator=generator) for _ in range(3)]
    mixed = F.scaled_dot_product_attention(*((tokens @ w)[None] for w in weights))[0]
    common.check(f"{n} tokens of {d} channels", attend(tokens, *weights), mixed, tolerance=1e-4)

# %% Exercise 4.2: a wrong answer
def attend(x, w_q, w_k, w_v):
    """The softmax runs over the queries, so that a token's weights do not add up to 1."""
    q, k, v = x @ w_q, x @ w_k, x @ w_v
    return (q @ k.T / q.shape[1] ** 0.5).softmax(dim=0) @ v

# %% Exercise 4.3: solution (3 points)
def soft_dice(probs, label):
    """1 - mean soft Dice of images and classes; probs (B, C, H, W), label (B, H, W)."""
    ### BEGIN SOLUTION
    truth = truth_maps(label, probs.shape[1])
    probs = probs * (label != 255)[:, None]
    shared = (probs * truth).sum((2, 3))  # (B, C): a ratio of its own for each image and class
    areas = (probs + truth).sum((2, 3))
    return 1 - ((2 * shared + 1e-6) / (areas + 1e-6)).mean()
    ### END SOLUTION

# %% Exercise 4.3: hidden tests
def dice_by_hand(probs, label):
    """The same with one image and class at a time, void pixels left out."""
    ratios = []
    for p, truth in zip(probs, label):
        valid = truth != 255
        for c in range(p.shape[0]):
            inside, true = p[c][valid], (truth[valid] == c).to(p.dtype)
            ratios.append((2 * (inside * true).sum() + 1e-6) / (inside.sum() + true.sum() + 1e-6))
    return 1 - sum(ratios) / len(ratios)


generator = torch.Generator().manual_seed(2)
mixed = torch.randint(0, 3, (2, 9, 12), generator=generator)  # class 3 is absent
mixed[0, :, 6:], mixed[1, 2:4] = 0, 255
mixed[1][mixed[1] == 1] = 2
guess = torch.rand(2, 4, 9, 12, generator=generator).softmax(1)
common.check("two streets with void and absent classes", soft_dice(guess, mixed), dice_by_hand(guess, mixed))
common.check("nothing but void", soft_dice(guess, torch.full_like(mixed, 255)), 0)

# %% Exercise 4.3: a wrong answer
def soft_dice(probs, label):
    """One ratio for each class of the whole batch."""
    truth = truth_maps(label, probs.shape[1])
    probs = probs * (label != 255)[:, None]
    shared, areas = (probs * truth).sum((0, 2, 3)), (probs + truth).sum((0, 2, 3))
    return 1 - ((2 * shared + 1e-6) / (areas + 1e-6)).mean()

# %% Exercise 4.4: solution (4 points)
def nearness_loss(probs, label):
    """Mean of p_c(x) d_c(x) over valid pixels, then over the pairs present."""
    ### BEGIN SOLUTION
    losses = []
    for p, truth in zip(probs, label):  # (C, H, W), (H, W)
        valid = truth != 255
        for c in truth[valid].unique().tolist():
            distance = ndimage.distance_transform_edt((truth != c).cpu().numpy())
            losses.append((p[c] * torch.from_numpy(distance).to(p))[valid].mean())
    return torch.stack(losses).mean() if losses else probs.sum() * 0
    ### END SOLUTION

# %% Exercise 4.4: hidden tests
def nearness_by_brute_force(probs, label):
    """The same with a distance for every pair of pixels, for labels in which some pixel is not void."""
    pairs = []
    for p, truth in zip(probs, label):
        where = torch.nonzero(truth != 255).double()  # (N, 2)
        for c in range(p.shape[0]):
            if (truth == c).any():
                nearest = torch.cdist(where, torch.nonzero(truth == c).double()).amin(1)
                pairs.append((p[c][truth != 255] * nearest).mean().item())
    return sum(pairs) / len(pairs)


generator = torch.Generator().manual_seed(0)
mixed = torch.randint(0, 3, (2, 9, 12), generator=generator)  # classes 3 and 4 are absent
mixed[0, :, 6:], mixed[1, 2:4] = 0, 255
mixed[1][mixed[1] == 1] = 2
guess = torch.rand(2, 5, 9, 12, generator=generator, dtype=torch.float64).softmax(1).requires_grad_()
common.check("absent classes and void", nearness_loss(guess, mixed), nearness_by_brute_force(guess, mixed), tolerance=1e-6)
(pull_on_guess,) = torch.autograd.grad(nearness_loss(guess, mixed), guess)
common.check("pull on void pixels", pull_on_guess[1, :, 2:4].abs().sum(), 0)
common.check("pull on absent classes", pull_on_guess[:, 3:].abs().sum(), 0)
nothing = nearness_loss(guess, torch.full_like(mixed, 255))
common.check("nothing but void", nothing, 0)
common.check("its gradient", torch.autograd.grad(nothing, guess)[0].abs().sum(), 0)

# %% Exercise 4.4: a wrong answer
def nearness_loss(probs, label):
    """Void pixels and absent classes count."""
    truth = truth_maps(label, probs.shape[1]).numpy()
    distance = np.stack([[ndimage.distance_transform_edt(mask == 0) for mask in masks] for masks in truth])
    return (probs * torch.from_numpy(distance).to(probs)).mean()
