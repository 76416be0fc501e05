"""Solutions, hidden tests and typical wrong answers to the exercises of notebooks/02_unet_from_scratch.py, cell by cell."""

# %% Exercise 2.1: solution (3 points)
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

# %% Exercise 2.1: hidden tests
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

# %% Exercise 2.1: a wrong answer
def overfit(model, image, label, optimizer, steps):
    """Forgets to forget: the gradients of all steps add up."""
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(image), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses

# %% Exercise 2.2: solution (2 points)
def cross_entropy_by_hand(logits, label, weights):
    """Cross-entropy of logits (B, C, H, W) and label (B, H, W), with weights (C,)."""
    ### BEGIN SOLUTION
    counts = label != 255
    known = torch.where(counts, label, 0)
    log_p = logits.log_softmax(dim=1).gather(1, known[:, None])[:, 0]  # (B, H, W)
    w = weights[known] * counts
    return -(w * log_p).sum() / w.sum()
    ### END SOLUTION

# %% Exercise 2.2: hidden tests
weights = torch.tensor([0.5, 1.0, 4.0])
label[0, :2] = 255
common.check("weights, and void", cross_entropy_by_hand(logits, label, weights),
             F.cross_entropy(logits, label, weight=weights, ignore_index=255))

# %% Exercise 2.2: a wrong answer
def cross_entropy_by_hand(logits, label, weights):
    """Divides by the number of pixels instead of by their weights, and lets void count as class 0."""
    known = torch.where(label == 255, 0, label)
    log_p = logits.log_softmax(dim=1).gather(1, known[:, None])[:, 0]
    return -(weights[known] * log_p).mean()

# %% Exercise 2.3: solution (3 points)
def dataset_miou(batches, num_classes):
    """Mean IoU over the classes that occur in the labels of all batches together."""
    ### BEGIN SOLUTION
    confusion = sum(common.confusion_matrix(prediction, label, num_classes) for prediction, label in batches)
    return common.miou(confusion)
    ### END SOLUTION

# %% Exercise 2.3: hidden tests
rng = np.random.default_rng(2)
truth, answer = rng.integers(0, 5, (7, 4, 4)), rng.integers(0, 6, (7, 4, 4))  # class 5 is only predicted, 6 nowhere
truth[:5][truth[:5] == 4] = 0
answer = np.where(rng.random(answer.shape) < 0.5, truth, answer)
for cuts in ([], [1, 2, 4], range(1, 7)):
    batches = list(zip(np.split(answer, cuts), np.split(truth, cuts)))
    whole = common.miou(common.confusion_matrix(answer, truth, 7))
    common.check(f"{len(batches)} batches with mistakes", dataset_miou(batches, 7), whole)

# %% Exercise 2.3: a wrong answer
def dataset_miou(batches, num_classes):
    """Absent classes are left out, but it is still a mean over batches."""
    return float(np.mean([common.miou(common.confusion_matrix(*batch, num_classes)) for batch in batches]))

# %% Exercise 2.4: solution (4 points)
def recall_by_height(predictions, labels, edges):
    """Share of people found per group of heights, of lists of arrays (H, W)."""
    ### BEGIN SOLUTION
    found = [[] for _ in range(len(edges) + 1)]
    for prediction, label in zip(predictions, labels):
        groups, _ = ndimage.label(label == PERSON, structure=np.ones((3, 3)))
        for k, box in enumerate(ndimage.find_objects(groups), start=1):
            person = groups[box] == k  # a bounding box can hold parts of other people
            share = (prediction[box][person] == PERSON).mean()
            height = box[0].stop - box[0].start
            found[np.digitize(height, edges)].append(share >= 0.5)
    return np.array([np.mean(group) if group else np.nan for group in found])
    ### END SOLUTION

# %% Exercise 2.4: hidden tests
import cv2

rng, truths, answers, by_hand = np.random.default_rng(5), [], [], [[], [], []]
for shape in ((20, 30), (16, 50), (30, 12), (9, 9)):
    truths.append(np.where(rng.random(shape) < 0.3, PERSON, rng.integers(0, 3, shape)))
    answers.append(np.where(rng.random(shape) < 0.5, truths[-1], 1))
    n, groups, boxes, _ = cv2.connectedComponentsWithStats((truths[-1] == PERSON).astype(np.uint8), connectivity=8)
    for k in range(1, n):
        height, hits = boxes[k, cv2.CC_STAT_HEIGHT], (answers[-1][groups == k] == PERSON).sum()
        by_hand[int(height >= 2) + int(height >= 4)].append(2 * hits >= (groups == k).sum())
wanted = np.array([np.mean(group) for group in by_hand])
common.check("a crowd", recall_by_height(answers, truths, (2, 4)), wanted)
around = np.zeros((12, 12), int)
around[:, 0] = around[0] = around[4:10, 4:10] = PERSON  # the second stands within the bounding box of the first
seen = np.where(np.arange(12) < 4, 0, around)  # most of the first is missed
seen[0] = 0
common.check("one within the box of another", recall_by_height([seen], [around], (8,)), [1, 0])
common.check("nobody", recall_by_height([seen], [np.zeros((12, 12), int)], ()), [np.nan])

# %% Exercise 2.4: a wrong answer
def recall_by_height(predictions, labels, edges):
    """Share of people found per group of heights, of lists of arrays (H, W)."""
    found = [[] for _ in range(len(edges) + 1)]
    for prediction, label in zip(predictions, labels):
        for box in find_people(label):
            share = (prediction[box][label[box] == PERSON] == PERSON).mean()
            found[np.digitize(box[0].stop - box[0].start, edges)].append(share >= 0.5)
    return np.array([np.mean(group) if group else np.nan for group in found])
