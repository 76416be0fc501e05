"""Solutions, hidden tests and typical wrong answers to the exercises of notebooks/01_class_remapping.py, cell by cell."""

# %% Exercise 1.1: solution (1 point)
def table_for_pedestrians():
    """(256,) uint8: road 0, sidewalk 1, other classes 2, void 255, unknown ids 254."""
    ### BEGIN SOLUTION
    table = np.full(256, 254, np.uint8)
    for c in Cityscapes.classes:
        table[c.id % 256] = 255 if c.ignore_in_eval else min(c.train_id, 2)
    return table
    ### END SOLUTION

# %% Exercise 1.1: hidden tests
guide = table_for_pedestrians()
official_table = common.SCHEMES["cityscapes19"].table
wanted = np.where(official_table < 254, np.minimum(official_table, 2), official_table)
common.check("all 256 entries", guide, wanted)
common.check("type", str(guide.dtype), "uint8")

# %% Exercise 1.1: a wrong answer
def table_for_pedestrians():
    """What is neither road nor sidewalk is sent to 2, and the void with it, but for ids 0 to 3."""
    table = table_from_names({0: ["road"], 1: ["sidewalk"]}, rest=2)
    table[:4] = 255
    return table

# %% Exercise 1.2: solution (2 points)
def to_label_ids(prediction):
    """Label ids, uint8, of train ids, integers of any shape; 0 for 255."""
    ### BEGIN SOLUTION
    way_back = np.zeros(256, np.uint8)
    for c in Cityscapes.classes:
        if not c.ignore_in_eval:
            way_back[c.train_id] = c.id
    return way_back[prediction]
    ### END SOLUTION

# %% Exercise 1.2: hidden tests
kept_ids = np.array([c.id if c.train_id in range(19) else 0 for c in Cityscapes.classes if c.id >= 0], np.uint8)
predicted = common.SCHEMES["cityscapes19"].table[:34].reshape(2, 17)  # all train ids and 255
for kind in (np.uint8, np.int64):
    given = predicted.astype(kind)
    answered = to_label_ids(given)
    common.check("there and back", answered, kept_ids.reshape(2, 17))
    common.check("the argument is as it was", given, predicted)
    common.check("type", str(answered.dtype), "uint8")

# %% Exercise 1.2: a wrong answer
def to_label_ids(prediction):
    """Label ids, uint8, of train ids, integers of any shape; 0 for 255."""
    prediction[prediction == 255] = 0
    for c in sorted(Cityscapes.classes, key=lambda c: -c.train_id):
        if not c.ignore_in_eval:
            prediction[prediction == c.train_id] = c.id
    return prediction.astype(np.uint8)

# %% Exercise 1.3: solution (2 points)
def scores_of_the_blind(pixels_per_class, limit):
    """(accuracy, mean IoU) of a network blind to classes with a share below `limit`."""
    ### BEGIN SOLUTION
    f = pixels_per_class[pixels_per_class > 0] / pixels_per_class.sum()
    unknown = f < limit
    perfect = len(f) - unknown.sum() - 1
    return 1 - f[unknown].sum(), (perfect + f.max() / (f.max() + f[unknown].sum())) / len(f)
    ### END SOLUTION

# %% Exercise 1.3: hidden tests
for n in ([700, 200, 60, 40], [5, 80, 0, 10, 0, 5], [30, 70], [1, 1, 998, 0]):
    n, confusion = np.array(n), np.diag(n)
    confusion[n < 0.1 * n.sum()] = 0
    confusion[:, n.argmax()] += n * (n < 0.1 * n.sum())
    wanted = common.accuracy(confusion), common.miou(confusion)
    common.check(f"accuracy and mean IoU of {n}", scores_of_the_blind(n, 0.1), wanted)

# %% Exercise 1.3: a wrong answer
def scores_of_the_blind(pixels_per_class, limit):
    """(accuracy, mean IoU) of a network blind to classes with a share below `limit`."""
    f = pixels_per_class / pixels_per_class.sum()
    return f[f >= limit].sum(), (f >= limit).mean()

# %% Exercise 1.4: solution (4 points)
def shrink_by_vote(label, factor, weights):
    """Label (H, W) at 1 / factor of its size, uint8: each block of pixels votes."""
    ### BEGIN SOLUTION
    h, w = label.shape
    blocks = label.reshape(h // factor, factor, w // factor, factor)
    votes = [weight * (blocks == c).sum(axis=(1, 3)) for c, weight in enumerate(weights)]
    winner = np.argmax(votes, axis=0)
    return np.where(np.max(votes, axis=0) > 0, winner, 255).astype(np.uint8)
    ### END SOLUTION

# %% Exercise 1.4: hidden tests
rng, voters = np.random.default_rng(4), np.array([0.5, 1, 1.5, 0, 4])
for h, w, factor in ((8, 12, 4), (9, 12, 3), (6, 4, 2)):
    label = rng.choice([0, 1, 2, 3, 4, 255, 255], (h, w)).astype(np.uint8)
    label[:2, :4] = 255
    wanted = np.full((h // factor, w // factor), 255)
    for r, c in np.ndindex(*wanted.shape):
        block = label[r * factor : (r + 1) * factor, c * factor : (c + 1) * factor]
        tally = voters * np.bincount(block[block < 255], minlength=5)
        wanted[r, c] = tally.argmax() if tally.any() else 255
    common.check(f"{h}x{w} at 1/{factor}", shrink_by_vote(label, factor, voters), wanted)
tie = np.array([[2, 1], [1, 2]], np.uint8)
common.check("a tie", shrink_by_vote(tie, 2, np.ones(3)), [[1]])
common.check("type", str(shrink_by_vote(tie, 2, np.ones(3)).dtype), "uint8")

# %% Exercise 1.4: a wrong answer
def shrink_by_vote(label, factor, weights):
    """Label (H, W) at 1 / factor of its size, uint8: each block of pixels votes."""
    h, w = label.shape
    blocks = label.reshape(h // factor, factor, w // factor, factor)
    votes = [weight * (blocks == c).sum(axis=(1, 3)) for c, weight in enumerate(weights)]
    return np.argmax(votes, axis=0).astype(np.uint8)
