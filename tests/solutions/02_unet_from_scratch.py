"""Solutions, hidden tests and typical wrong answers to the exercises of notebooks/02_unet_from_scratch.py, cell by cell."""

# %% Exercise 2.1: solution (2 points)
def parameters_of_width_32():
    """Number of parameters of UNet(width=32): an int."""
    ### BEGIN SOLUTION
    outputs = 2 * (64 + 128 + 256 + 512 + 256 + 128 + 64)  # of all 3x3 convolutions: each has a bias, a scale and a shift
    linear = 3 * outputs + (256 + 128 + 64) + 27 * 64 + 7 * 64  # biases of the way up, weights of the first layer and the head
    return (7_703_367 - linear - 7) // 4 + linear // 2 + 7
    ### END SOLUTION

# %% Exercise 2.1: hidden tests
counted = sum(p.numel() for p in UNet(width=32).parameters())
common.check("parameters of width 32, counted", parameters_of_width_32(), counted, tolerance=0.5)

# %% Exercise 2.1: a wrong answer
def parameters_of_width_32():
    """Number of parameters of UNet(width=32): an int."""
    return 7_703_367 // 4

# %% Exercise 2.2: solution (2 points)
def dice_slope_of_absent_class(total, epsilon):
    """Derivative of the Dice of a class that the label lacks by one of its probabilities, whose sum is `total`."""
    ### BEGIN SOLUTION
    # early, about -epsilon / total**2: hardly anything with either; at a total of 1 it is -1/4 with 1, and -1e-6 with 1e-6
    return -epsilon / (total + epsilon) ** 2
    ### END SOLUTION

# %% Exercise 2.2: hidden tests
for epsilon in (0.5, 1.0, 4.0):
    probs = torch.full((1, 7, 4, 3), 0.25, dtype=torch.float64, requires_grad=True)
    dice_per_class(probs, torch.zeros(1, 4, 3, dtype=torch.long), epsilon)[PERSON].backward()
    slope = dice_slope_of_absent_class(0.25 * 4 * 3, epsilon)
    common.check(f"the gradient with epsilon {epsilon}", slope, probs.grad[0, PERSON, 0, 0])

# %% Exercise 2.2: a wrong answer
def dice_slope_of_absent_class(total, epsilon):
    """Derivative of the Dice of a class that the label lacks by one of its probabilities, whose sum is `total`."""
    return -epsilon / (total + epsilon)

# %% Exercise 2.3: solution (3 points)
def dataset_miou(batches, num_classes):
    """Mean IoU over the classes that occur in the labels of all batches together: a float."""
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
    """Mean IoU over the classes that occur in the labels of all batches together: a float."""
    return float(np.mean([common.miou(common.confusion_matrix(*batch, num_classes)) for batch in batches]))

# %% Exercise 2.4: solution (2 points)
def weights_from_json(text, num_classes):
    """1 / sqrt(share) per class, (C,) float32, from a JSON text of pixel counts per class."""
    ### BEGIN SOLUTION
    counts = {int(c): n for c, n in json.loads(text).items()}
    total = sum(counts.values())
    return inverse_sqrt_weights([counts.get(c, 0) / total for c in range(num_classes)])
    ### END SOLUTION

# %% Exercise 2.4: hidden tests
shares = [0.0, 0.3, 0.1, 0.0, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.0]
text = json.dumps({c: round(1000 * shares[c]) for c in (10, 2, 4, 1, 9, 5, 6, 7, 8)})  # not in order, three are missing
common.check("another order, classes missing", weights_from_json(text, 12), inverse_sqrt_weights(shares), tolerance=1e-3)

# %% Exercise 2.4: a wrong answer
def weights_from_json(text, num_classes):
    """1 / sqrt(share) per class, (C,) float32, from a JSON text of pixel counts per class."""
    counts = list(json.loads(text).values())
    return inverse_sqrt_weights([n / sum(counts) for n in counts])

# %% Exercise 2.5: solution (4 points)
def recall_by_height(predictions, labels, edges):
    """Share of the people of each group of heights that are found, (len(edges) + 1,); nan for a group without people."""
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

# %% Exercise 2.5: hidden tests
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

# %% Exercise 2.5: a wrong answer
def recall_by_height(predictions, labels, edges):
    """Share of the people of each group of heights that are found, (len(edges) + 1,); nan for a group without people."""
    found = [[] for _ in range(len(edges) + 1)]
    for prediction, label in zip(predictions, labels):
        for box in find_people(label):
            share = (prediction[box][label[box] == PERSON] == PERSON).mean()
            found[np.digitize(box[0].stop - box[0].start, edges)].append(share >= 0.5)
    return np.array([np.mean(group) if group else np.nan for group in found])
