"""Answers to the exercises as a typical student would get them wrong: {notebook: {grade_id: source of the cell}}."""

WRONG = {
    "01_class_remapping": {
        # the width of the shaft
        "width_of_street_lamp": '''# Exercise 1.1
def width_of_street_lamp():
    """Width of the lamp with its pole, in pixels."""
    return 3
''',
        # falling order mends the classes, but void, set to 0 first, becomes road, and the argument is overwritten
        "to_label_ids": '''# Exercise 1.2
def to_label_ids(prediction):
    """Label ids, uint8, of a prediction in train ids, an integer array of any shape; 255 becomes 0, unlabeled."""
    prediction[prediction == 255] = 0
    for c in sorted(Cityscapes.classes, key=lambda c: -c.train_id):
        if not c.ignore_in_eval:
            prediction[prediction == c.train_id] = c.id
    return prediction.astype(np.uint8)
''',
        # the most frequent class is charged for nothing, and absent classes count
        "scores_of_the_blind": '''# Exercise 1.3
def scores_of_the_blind(pixels_per_class, limit):
    """(accuracy, mean IoU) of a network that answers the most frequent class on all classes with a share below `limit`."""
    f = pixels_per_class / pixels_per_class.sum()
    return f[f >= limit].sum(), (f >= limit).mean()
''',
        # void votes with the last class's weight, and what does not fill a block is cut off
        "shrink_by_vote": '''# Exercise 1.4
def shrink_by_vote(label, factor, weights):
    """Label of 1 / factor of the size, uint8, in which the pixels of each block have voted, each with its class's weight."""
    rows, columns = label.shape[0] // factor, label.shape[1] // factor
    blocks = label[: rows * factor, : columns * factor].reshape(rows, factor, columns, factor)
    votes = [weight * (blocks == c).sum(axis=(1, 3)) for c, weight in enumerate(weights)]
    return np.argmax(votes, axis=0).astype(np.uint8)
''',
    },
    "02_unet_from_scratch": {
        # a quarter of all, though biases and batch norms are only halved
        "parameters_of_width_32": '''# Exercise 2.1
def parameters_of_width_32():
    """Number of parameters of UNet(width=32): an int."""
    return 7_703_367 // 4
''',
        # the square is forgotten
        "dice_slope_of_absent_class": '''# Exercise 2.2
def dice_slope_of_absent_class(total, epsilon):
    """Derivative of the Dice of a class that the label lacks by one of its probabilities, whose sum is `total`."""
    return -epsilon / (total + epsilon)
''',
        # absent classes are left out, but it is still a mean over batches
        "dataset_miou": '''# Exercise 2.3
def dataset_miou(batches, num_classes):
    """Mean IoU over the classes that occur in the labels of all batches together: a float."""
    return float(np.mean([common.miou(common.confusion_matrix(*batch, num_classes)) for batch in batches]))
''',
        # takes the counts in the order of the text
        "weights_from_json": '''# Exercise 2.4
def weights_from_json(text, num_classes):
    """1 / sqrt(share) per class, (C,) float32, from a JSON text of pixel counts per class."""
    counts = list(json.loads(text).values())
    return inverse_sqrt_weights([n / sum(counts) for n in counts])
''',
        # counts all person pixels in a bounding box, those of other people too
        "recall_by_height": '''# Exercise 2.5
def recall_by_height(predictions, labels, edges):
    """Share of the people of each group of heights that are found, (len(edges) + 1,); nan for a group without people."""
    found = [[] for _ in range(len(edges) + 1)]
    for prediction, label in zip(predictions, labels):
        for box in find_people(label):
            share = (prediction[box][label[box] == PERSON] == PERSON).mean()
            found[np.digitize(box[0].stop - box[0].start, edges)].append(share >= 0.5)
    return np.array([np.mean(group) if group else np.nan for group in found])
''',
    },
    "03_unet_resnet50_cv": {
        "share_learnt_twice": '''# Exercise 3.1
def share_learnt_twice(k):
    """The part that is missing, not the part that is shared; with three folds they are the same."""
    return 1 / (k - 1)
''',
        "scale_about_middle": '''# Exercise 3.2
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
''',
        "half_width_of_mean": '''# Exercise 3.3
def half_width_of_mean(scores):
    """The quantile for three scores, whatever their number."""
    return 4.303 * np.std(scores, ddof=1) / np.sqrt(len(scores))
''',
        "shares_of_drop": '''# Exercise 3.4
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
''',
    },
    "04_segformer_thin_structures": {
        "shift_to_half_iou": '''# Exercise 4.1
def shift_to_half_iou(width):
    """Half of it is still covered after a slide by half the width."""
    return width // 2
''',
        "doubt_at_similarity": '''# Exercise 4.2
def doubt_at_similarity(similarity, c1=0.01**2):
    """Solved for a similarity of one half only, and c1 forgotten."""
    return 0.01
''',
        "copy_paste_from_another": '''# Exercise 4.3
def copy_paste_from_another(index, rng, streets, classes=(1, 2, 3, 4, 5, 6)):
    """The neighbour stands in for the street itself, and so is drawn twice as often."""
    source = int(rng.integers(len(streets)))
    if source == index:
        source = (source + 1) % len(streets)
    return paste_whole_classes(*streets[index], *streets[source], rng, classes)
''',
        "nearness_loss": '''# Exercise 4.4
def nearness_loss(probs, label):
    """Void pixels and absent classes count."""
    from scipy import ndimage

    truth = truth_maps(label, probs.shape[1]).numpy()
    distance = np.stack([[ndimage.distance_transform_edt(mask == 0) for mask in masks] for masks in truth])
    return (probs * torch.from_numpy(distance).to(probs)).mean()
''',
    },
    "05_semeda": {
        # widens the seam on one side only
        "diagonal_seam_widths": '''# Exercise 5.1
def diagonal_seam_widths():
    """Edge pixels in one row of a diagonal seam: (with 8 neighbours, with 4 neighbours)."""
    return 3, 2
''',
        # mends the band and the classes, but still averages over images
        "trimap_miou_mended": '''# Exercise 5.2
def trimap_miou_mended(preds, labels, radius, num_classes):
    """mIoU within a radius of the seams, for predictions and labels (N, H, W) uint8, void 255; nan where there is no seam."""
    scores = []
    for pred, label in zip(preds, labels):
        band = common.trimap_band(label, num_classes, radius)
        scores.append(common.miou(common.confusion_matrix(pred[band], label[band], num_classes)))
    return float(np.mean(scores))
''',
        # changes the network that it was given
        "with_unit_embeddings": '''# Exercise 5.3
def with_unit_embeddings(proxy, label):
    """Copy of an EdgeNet that answers alike and whose first two embeddings of the one-hot label (B, H, W) have the mean 1."""
    first, second, third = proxy.layers
    with torch.no_grad():
        a, b = (e.mean() for e in proxy.embeddings(one_hot(label, first.in_channels), 2))
        first.weight.div_(a)
        first.bias.div_(a)
        second.weight.mul_(a / b)
        second.bias.div_(b)
        third.weight.mul_(b)
    return proxy
''',
        # a straight line between what is known
        "e_of_rare_class": '''# Exercise 5.4
def e_of_rare_class(r):
    """E-measure of a class with a vanishing share of the pixels, a fraction r (0 to 1) of which is found, no false alarms."""
    return 0.25 + 0.75 * r
''',
        # leaves out void, but not its neighbours
        "soft_edge_loss": '''# Exercise 5.5
def soft_edge_loss(probs, label):
    """(loss, share that flat pixels pay) of probabilities (B, C, H, W) and a label (B, H, W), void 255; two scalars."""
    edges, valid = semantic_edges(label)[0], label != 255
    highest = F.max_pool2d(probs, 3, stride=1, padding=1)
    lowest = -F.max_pool2d(-probs, 3, stride=1, padding=1)
    charge = ((highest - lowest).amax(1) - edges.float()).abs() * valid
    share = charge[~edges].sum() / charge.sum().clamp(min=1e-9)
    return charge.sum() / valid.sum().clamp(min=1), share.detach()
''',
    },
    "06_kervadec_ablation": {
        # takes the rim of a class to be at distance -1, so that inside and outside cancel
        "who_pays_the_boundary_loss": '''# Exercise 6.1
def who_pays_the_boundary_loss():
    """L_B of (the truth, one half everywhere, the classes exchanged): three numbers."""
    paid = 1 + 2 + 3 + 4 + 5 + 6
    return -paid / 12, 0.0, paid / 12
''',
        # forgets void
        "boundary_gradient": '''# Exercise 6.2
def boundary_gradient(logits, phi, label, lambda_b=0.2):
    """Gradient of lambda_b * L_B at the logits, (B, C, H, W), in closed form."""
    probs = logits.softmax(1)
    mean = (phi * probs).sum(1, keepdim=True)
    return lambda_b / (logits.shape[1] * label.numel()) * probs * (phi - mean)
''',
        # does not cut void out of the prediction
        "contour_f1_mended": '''# Exercise 6.3
def contour_f1_mended(pred, truth, num_classes, tolerance=3):
    """Boundary F1 of every class, (num_classes,), nan where the truth (H, W) does not hold it; void is 255 in the truth."""
    square, f1 = np.ones((2 * tolerance + 1, 2 * tolerance + 1), np.uint8), np.full(num_classes, np.nan)
    for c in np.unique(truth[truth != 255]):
        found, true = contour(pred == c), contour(truth == c)
        hits = (found & (cv2.dilate(true.astype(np.uint8), square) > 0)).sum()
        recalled = (true & (cv2.dilate(found.astype(np.uint8), square) > 0)).sum()
        precision, recall = hits / max(found.sum(), 1), recalled / true.sum()
        f1[c] = 2 * precision * recall / max(precision + recall, 1e-9)
    return f1
''',
        # doubles one tail, which is right for a lead and not for a lag
        "sign_flip_tests": '''# Exercise 6.4
from itertools import product


def sign_flip_tests(scores):
    """{"A-B": p after Holm's correction, ...} for scores {"A": S values, one per seed, "B": S values, ...}."""
    p = {}
    for a, b in combinations(scores, 2):
        differences = np.subtract(scores[a], scores[b])
        signs = np.array(list(product((1, -1), repeat=len(differences))))
        means = (signs * differences).mean(1)
        p[f"{a}-{b}"] = min(1, 2 * np.mean(means >= differences.mean() - 1e-9))
    return dict(zip(p, holm(list(p.values()))))
''',
    },
}
