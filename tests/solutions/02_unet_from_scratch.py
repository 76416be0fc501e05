"""Solutions, hidden tests and typical wrong answers to the exercises of notebooks/02_unet_from_scratch.py, cell by cell."""

# %% Exercise 2.1: solution (2 points)
def decode(net, x, skips):
    """Logits (B, num_classes, H, W) of a UNet, from the lowest map and the skips."""
    ### BEGIN SOLUTION
    for up, merge, skip in zip(net.up, net.merge, reversed(skips)):
        x = merge(torch.cat([up(x), skip], dim=1))
    return net.head(x)
    ### END SOLUTION

# %% Exercise 2.1: hidden tests
torch.manual_seed(1)
deep, images, maps = UNet(num_classes=4, width=4, depth=3), torch.rand(2, 3, 16, 24), []
x = images
for block in deep.eval().down:
    maps.append(block(x))
    x = F.max_pool2d(maps[-1], 2)
x = deep.bottleneck(x)
common.check("two pictures, three levels", decode(deep, x, maps), deep(images))
common.check("the maps are still there", len(maps), 3)

# %% Exercise 2.1: a wrong answer
def decode(net, x, skips):
    """Joins the maps in the other order: the weights of `merge` then meet the wrong channels."""
    for up, merge, skip in zip(net.up, net.merge, reversed(skips)):
        x = merge(torch.cat([skip, up(x)], dim=1))
    return net.head(x)

# %% Exercise 2.2: solution (3 points)
def overfit(model, image, label, optimizer, steps):
    """Losses of so many steps on one batch, image (B, 3, H, W) and label (B, H, W)."""
    ### BEGIN SOLUTION
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
    ### END SOLUTION

# %% Exercise 2.2: hidden tests
torch.manual_seed(1)
net, other = (nn.Conv2d(3, 7, 1) for _ in range(2))
other.load_state_dict(net.state_dict())
image, label = torch.rand(2, 3, 6, 6), torch.randint(7, (2, 6, 6))
by_hand = []
for _ in range(5):
    loss = F.cross_entropy(other(image), label)
    by_hand.append(loss.item())
    slopes = torch.autograd.grad(loss, list(other.parameters()))
    with torch.no_grad():
        for weight, slope in zip(other.parameters(), slopes):
            weight -= 0.5 * slope
losses = overfit(net, image, label, torch.optim.SGD(net.parameters(), lr=0.5), 5)
common.check("five steps of gradient descent", losses, by_hand)

# %% Exercise 2.2: a wrong answer
def overfit(model, image, label, optimizer, steps):
    """Forgets to forget: the gradients of all steps add up."""
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses

# %% Exercise 2.3: solution (2 points)
def cross_entropy_by_hand(logits, label, weights):
    """Cross-entropy of logits (B, C, H, W) and label (B, H, W), with weights (C,)."""
    ### BEGIN SOLUTION
    counts = label != 255
    known = torch.where(counts, label, 0)
    log_p = logits.log_softmax(dim=1).gather(1, known[:, None])[:, 0]  # (B, H, W)
    w = weights[known] * counts
    return -(w * log_p).sum() / w.sum()
    ### END SOLUTION

# %% Exercise 2.3: hidden tests
torch.manual_seed(2)
logits, label = torch.randn(3, 5, 6, 4), torch.randint(5, (3, 6, 4))
weights = torch.tensor([0.5, 1.0, 4.0, 2.0, 3.0])
label[0, :2] = 255
common.check("weights, and void", cross_entropy_by_hand(logits, label, weights),
             F.cross_entropy(logits, label, weight=weights, ignore_index=255))

# %% Exercise 2.3: a wrong answer
def cross_entropy_by_hand(logits, label, weights):
    """Divides by the number of pixels instead of by their weights, and lets void count as class 0."""
    known = torch.where(label == 255, 0, label)
    log_p = logits.log_softmax(dim=1).gather(1, known[:, None])[:, 0]
    return -(weights[known] * log_p).mean()

# %% Exercise 2.4: solution (2 points)
def iou_from_matrix(confusion):
    """IoU per class (C,) of a confusion matrix (C, C), its rows the true classes."""
    ### BEGIN SOLUTION
    hits = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)
    ### END SOLUTION

# %% Exercise 2.4: hidden tests
rng = np.random.default_rng(3)
truth, answer = rng.integers(0, 4, 300), rng.integers(1, 5, 300)  # class 0 is never predicted, 4 only predicted, 5 nowhere
matrix = np.histogram2d(truth, answer, bins=np.arange(7))[0].astype(int)
sets = [(set(np.flatnonzero(truth == c)), set(np.flatnonzero(answer == c))) for c in range(6)]
wanted = [len(a & b) / len(a | b) if a | b else np.nan for a, b in sets]
common.check("IoU as of sets", iou_from_matrix(matrix), wanted)

# %% Exercise 2.4: a wrong answer
def iou_from_matrix(confusion):
    """Counts the hits twice in the union."""
    hits = confusion.diagonal()
    union = confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.where(union > 0, hits / np.maximum(union, 1), np.nan)

# %% Exercise 2.5: solution (3 points)
def dataset_miou(batches, num_classes):
    """Mean IoU over the classes that occur in the labels of all batches together."""
    ### BEGIN SOLUTION
    confusion = sum(common.confusion_matrix(prediction, label, num_classes) for prediction, label in batches)
    return common.miou(confusion)
    ### END SOLUTION

# %% Exercise 2.5: hidden tests
rng = np.random.default_rng(2)
truth, answer = rng.integers(0, 5, (7, 4, 4)), rng.integers(0, 6, (7, 4, 4))  # class 5 is only predicted, 6 nowhere
truth[:5][truth[:5] == 4] = 0
answer = np.where(rng.random(answer.shape) < 0.5, truth, answer)
for cuts in ([], [1, 2, 4], range(1, 7)):
    batches = list(zip(np.split(answer, cuts), np.split(truth, cuts)))
    whole = common.miou(common.confusion_matrix(answer, truth, 7))
    common.check(f"{len(batches)} batches with mistakes", dataset_miou(batches, 7), whole)

# %% Exercise 2.5: a wrong answer
def dataset_miou(batches, num_classes):
    """Absent classes are left out, but it is still a mean over batches."""
    return float(np.mean([common.miou(common.confusion_matrix(*batch, num_classes)) for batch in batches]))
