"""Solutions, hidden tests and typical wrong answers to the exercises of notebooks/05_semeda.py, cell by cell."""

# %% Exercise 5.1: solution (1 point)
def diagonal_edge_widths():
    """Edge pixels in one row of a diagonal edge: (8 neighbours, 4 neighbours)."""
    ### BEGIN SOLUTION
    return 4, 2
    ### END SOLUTION

# %% Exercise 5.1: hidden tests
corner = (torch.arange(12)[None] > torch.arange(12)[:, None]).long()
of_eight = semantic_edges(corner[None])[0][0, 6].sum()
of_four = torch.stack([corner != corner.roll(step, axis) for step in (1, -1) for axis in (0, 1)]).any(0)[6, 1:-1].sum()
common.check("both", diagonal_edge_widths(), [int(of_eight), int(of_four)])

# %% Exercise 5.1: a wrong answer
def diagonal_edge_widths():
    """Counts one side only."""
    return 3, 2

# %% Exercise 5.2: solution (3 points)
def semeda_mended(probs, label, proxy, lambdas):
    """SEMEDA's loss of probs (B, C, H, W) and label (B, H, W), void 255."""
    ### BEGIN SOLUTION
    valid = (label != 255)[:, None]
    with torch.no_grad():
        true = proxy.embeddings(one_hot(label, probs.shape[1]))
    seen = proxy.embeddings(probs * valid)
    total = sum(weight * ((a - b).abs() * valid).sum() for weight, a, b in zip(lambdas, seen, true))
    return total / valid.sum().clamp(min=1)
    ### END SOLUTION

# %% Exercise 5.2: hidden tests
torch.manual_seed(1)
g, streets = EdgeNet(4).requires_grad_(False), torch.randint(0, 4, (2, 5, 6))
streets[:, 1:3, 2:4] = 255
noise = torch.randn(2, 4, 5, 6).softmax(1).requires_grad_()
mine, ours = (loss(noise, streets, g, (4, 2, 1)) for loss in (semeda_mended, semeda_loss))
common.check("loss of noise, with void", mine, ours, tolerance=1e-4)
slopes = [torch.autograd.grad(loss, noise)[0] for loss in (mine, ours)]
common.check("largest difference of the gradients", (slopes[0] - slopes[1]).abs().max(), 0)

# %% Exercise 5.2: a wrong answer
def semeda_mended(probs, label, proxy, lambdas):
    """Lets void count."""
    with torch.no_grad():
        true = proxy.embeddings(one_hot(label, probs.shape[1]))
    seen = proxy.embeddings(probs)
    return sum(weight * (a - b).abs().sum(dim=1).mean() for weight, a, b in zip(lambdas, seen, true))

# %% Exercise 5.3: solution (3 points)
def with_unit_embeddings(proxy, label):
    """Copy of an EdgeNet with the same answers, whose embeddings have the mean 1."""
    ### BEGIN SOLUTION
    from copy import deepcopy

    scaled = deepcopy(proxy)
    first, second, third = scaled.layers
    with torch.no_grad():
        a, b = (e.mean() for e in scaled.embeddings(one_hot(label, first.in_channels))[:2])
        first.weight.div_(a)
        first.bias.div_(a)
        second.weight.mul_(a / b)
        second.bias.div_(b)
        third.weight.mul_(b)
    return scaled
    ### END SOLUTION

# %% Exercise 5.3: hidden tests
tiny = EdgeNet(4)
before = [e.detach() for e in tiny.embeddings(one_hot(streets, 4))]
after = with_unit_embeddings(tiny, streets).embeddings(one_hot(streets, 4))
common.check("means", [e.mean().item() for e in after[:2]], [1, 1])
common.check("largest difference to the answers before", (after[2] - before[2]).abs().max(), 0)
common.check("change of the given network", (tiny.embeddings(one_hot(streets, 4))[0] - before[0]).abs().max(), 0)

# %% Exercise 5.3: a wrong answer
def with_unit_embeddings(proxy, label):
    """Changes the network that it was given."""
    first, second, third = proxy.layers
    with torch.no_grad():
        a, b = (e.mean() for e in proxy.embeddings(one_hot(label, first.in_channels))[:2])
        first.weight.div_(a)
        first.bias.div_(a)
        second.weight.mul_(a / b)
        second.bias.div_(b)
        third.weight.mul_(b)
    return proxy

# %% Exercise 5.4: solution (4 points)
def soft_edge_loss(probs, label):
    """(loss, share that flat pixels pay), of probs (B, C, H, W) and label (B, H, W)."""
    ### BEGIN SOLUTION
    edges, valid = semantic_edges(label)
    highest = F.max_pool2d(probs, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-probs, 3, stride=1, padding=1)
    soft = (highest - lowest).amax(1)  # (B, H, W)
    charge = (soft - edges.float()).abs() * valid
    flat = charge[~edges].sum()  # where a pixel is not valid, its charge is 0
    share = flat / charge.sum().clamp(min=1e-9)
    return charge.sum() / valid.sum().clamp(min=1), share.detach()
    ### END SOLUTION

# %% Exercise 5.4: hidden tests
torch.manual_seed(0)
truth = torch.randint(0, 2, (2, 3, 4)).repeat_interleave(3, 1).repeat_interleave(3, 2)  # (2, 9, 12)
truth[:, 2:4, 5:7] = 255
probs, soft = torch.randn(2, 4, 9, 12).softmax(1).requires_grad_(), torch.zeros(2, 9, 12)
for i, j in np.ndindex(9, 12):
    window = probs.detach()[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].flatten(2)
    soft[:, i, j] = (window.amax(2) - window.amin(2)).amax(1)
edges, valid = semantic_edges(truth)
charge, (loss, share) = (soft - edges.float()).abs(), soft_edge_loss(probs, truth)
common.check("loss of noise, with void", loss, charge[valid].mean())
common.check("share that flat pixels pay", share, charge[valid & ~edges].sum() / charge[valid].sum())
gradient = torch.autograd.grad(loss, probs)[0].abs().sum(1)
common.check("gradient at void", gradient[truth == 255].max(), 0)
common.check("gradient, all in all", gradient.sum(), between=(0.1, 100))
common.check("nothing valid", [float(x) for x in soft_edge_loss(probs.detach(), torch.full_like(truth, 255))], [0, 0])

# %% Exercise 5.4: a wrong answer
def soft_edge_loss(probs, label):
    """Takes all labelled pixels, also those beside void."""
    edges, valid = semantic_edges(label)[0], label != 255
    highest = F.max_pool2d(probs, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-probs, 3, stride=1, padding=1)
    charge = ((highest - lowest).amax(1) - edges.float()).abs() * valid
    share = charge[~edges].sum() / charge.sum().clamp(min=1e-9)
    return charge.sum() / valid.sum().clamp(min=1), share.detach()
