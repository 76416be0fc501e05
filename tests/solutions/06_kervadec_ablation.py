"""Solutions, hidden tests and typical wrong answers to the exercises of notebooks/06_kervadec_ablation.py, cell by cell."""

# %% Exercise 6.1: solution (2 points)
def who_pays_the_boundary_loss():
    """L_B of (the truth, one half everywhere, the classes exchanged): three numbers."""
    ### BEGIN SOLUTION
    earned, paid = 0 + 1 + 2 + 3 + 4 + 5, 1 + 2 + 3 + 4 + 5 + 6  # by one class in one row
    truth, exchanged = -2 * earned / (2 * 12), 2 * paid / (2 * 12)
    return truth, (truth + exchanged) / 2, exchanged
    ### END SOLUTION

# %% Exercise 6.1: hidden tests
halves = np.repeat([[0] * 6 + [1] * 6], 4, axis=0)
maps = torch.from_numpy(data_prep.signed_distance_maps(halves, 2, norm="none"))[None]
halves = torch.from_numpy(halves)[None]
certain = one_hot(halves, 2).float()
losses = [boundary_loss(p, maps, halves).item() for p in (certain, 0 * certain + 0.5, 1 - certain)]
common.check("the three losses", who_pays_the_boundary_loss(), losses)

# %% Exercise 6.1: a wrong answer
def who_pays_the_boundary_loss():
    """L_B of (the truth, one half everywhere, the classes exchanged): three numbers."""
    paid = 1 + 2 + 3 + 4 + 5 + 6
    return -paid / 12, 0.0, paid / 12

# %% Exercise 6.2: solution (3 points)
def boundary_gradient(logits, phi, label, lambda_b=0.2):
    """Gradient of lambda_b * L_B at the logits, (B, C, H, W), in closed form."""
    ### BEGIN SOLUTION
    probs, valid = logits.softmax(1), (label != 255)[:, None]
    mean = (phi * probs).sum(1, keepdim=True)
    return lambda_b / (logits.shape[1] * valid.sum()) * probs * (phi - mean) * valid
    ### END SOLUTION


def largest_share(lambda_b, num_classes, largest_phi=1.0):
    """Bound on |boundary gradient| / |cross-entropy's| if |phi| <= largest_phi."""
    ### BEGIN SOLUTION
    # k != y: |p_k (phi_k - mean)| <= 2 largest_phi p_k, and cross-entropy's is p_k. k = y: phi_y - mean is the sum over
    # the other classes of p_c (phi_y - phi_c), at most 2 largest_phi (1 - p_y), and cross-entropy's is 1 - p_y.
    return 2 * lambda_b * largest_phi / num_classes
    ### END SOLUTION

# %% Exercise 6.2: hidden tests
some_label[:, :, 3:] = 255
exact = term_gradients(some_logits, {"label": some_label, "phi": some_phi}, {"boundary": 5.0})["boundary"]
difference = (boundary_gradient(some_logits, some_phi, some_label, 5.0) - exact).abs().max()
common.check("the same with void", difference, 0, tolerance=1e-6)
common.check("bounds", [largest_share(0.5, 4), largest_share(0.2, 19, 100)], [0.25, 40 / 19])
extreme = torch.sign(some_phi - 0.3)
found = term_gradients(some_logits, {"label": some_label, "phi": extreme}, {"ce": 1.0, "boundary": 0.5})
seen = (found["boundary"].abs() / found["ce"].abs().clamp(min=1e-12))[:, :, :, :3].max()
common.check("the largest share seen, within the bound", seen, between=(0, largest_share(0.5, 3)))

# %% Exercise 6.2: a wrong answer
def boundary_gradient(logits, phi, label, lambda_b=0.2):
    """Counts void among the pixels and gives it a gradient."""
    probs = logits.softmax(1)
    mean = (phi * probs).sum(1, keepdim=True)
    return lambda_b / (logits.shape[1] * label.numel()) * probs * (phi - mean)


def largest_share(lambda_b, num_classes, largest_phi=1.0):
    """Forgets that phi may have both signs."""
    return lambda_b * largest_phi / num_classes

# %% Exercise 6.3: solution (3 points)
def contour_f1_mended(pred, truth, num_classes, tolerance=3):
    """Boundary F1 of each class, (num_classes,), of two maps (H, W)."""
    ### BEGIN SOLUTION
    square, f1 = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8), np.full(num_classes, np.nan)
    pred = np.where(truth == 255, 255, pred)
    for c in np.unique(truth[truth != 255]):
        found, true = contour(pred == c), contour(truth == c)
        if not true.any():  # the class fills the picture
            continue
        hits = (found & (cv2.dilate(true.astype(np.uint8), square) > 0)).sum()
        recalled = (true & (cv2.dilate(found.astype(np.uint8), square) > 0)).sum()
        precision, recall = hits / max(found.sum(), 1), recalled / true.sum()
        f1[c] = 2 * precision * recall / max(precision + recall, 1e-9)
    return f1
    ### END SOLUTION

# %% Exercise 6.3: hidden tests
draw = np.random.default_rng(1)
truth, guess = (cv2.resize(draw.integers(0, n, (6, 8), np.uint8), (40, 30), interpolation=0) for n in (5, 4))
truth[5:20, 10:25] = 255
exact = common.boundary_f1(guess, truth, 6, 2, count_frame=False)
common.check("blocks and void", contour_f1_mended(guess, truth, 6, 2), exact)

# %% Exercise 6.3: a wrong answer
def contour_f1_mended(pred, truth, num_classes, tolerance=3):
    """Leaves the prediction in void, where nothing can be wrong."""
    square, f1 = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8), np.full(num_classes, np.nan)
    for c in np.unique(truth[truth != 255]):
        found, true = contour(pred == c), contour(truth == c)
        hits = (found & (cv2.dilate(true.astype(np.uint8), square) > 0)).sum()
        recalled = (true & (cv2.dilate(found.astype(np.uint8), square) > 0)).sum()
        precision, recall = hits / max(found.sum(), 1), recalled / max(true.sum(), 1)
        f1[c] = 2 * precision * recall / max(precision + recall, 1e-9)
    return f1

# %% Exercise 6.4: solution (4 points)
def sign_flip_tests(scores):
    """{"A-B": p after Holm, ...} for {"A": S values, one per seed, "B": ...}."""
    ### BEGIN SOLUTION
    from itertools import product

    p = {}
    for a, b in combinations(scores, 2):
        differences = np.subtract(scores[a], scores[b])
        signs = np.array(list(product((1, -1), repeat=len(differences))))  # (2^S, S)
        means = (signs * differences).mean(1)
        p[f"{a}-{b}"] = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-9)
    return dict(zip(p, holm(list(p.values()))))
    ### END SOLUTION

# %% Exercise 6.4: hidden tests
rows = np.random.default_rng(2).normal([[0], [0.5], [2]], 1, (3, 6))
options = {"statistic": np.mean, "permutation_type": "samples", "n_resamples": np.inf}
plain = [stats.permutation_test((a - b,), **options).pvalue for a, b in combinations(rows, 2)]
of_three = sign_flip_tests(dict(zip("ABC", rows)))
common.check("p of A-B, A-C, B-C", np.array([of_three[name] for name in ("A-B", "A-C", "B-C")]), holm(plain))

# %% Exercise 6.4: a wrong answer
def sign_flip_tests(scores):
    """{"A-B": p after Holm, ...} for {"A": S values, one per seed, "B": ...}."""
    from itertools import product

    p = {}
    for a, b in combinations(scores, 2):
        differences = np.subtract(scores[a], scores[b])
        signs = np.array(list(product((1, -1), repeat=len(differences))))
        means = (signs * differences).mean(1)
        p[f"{a}-{b}"] = min(1, 2 * np.mean(means >= differences.mean() - 1e-9))
    return dict(zip(p, holm(list(p.values()))))
