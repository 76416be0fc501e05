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
def share_that_leaks(parts, groups):
    """Share (0 to 1) of the pictures in parts whose group lies in another part, too."""
    ### BEGIN SOLUTION
    owners = [set(groups[part]) for part in parts]
    leaking = [sum(group in owner for owner in owners) > 1 for part in parts for group in groups[part]]
    return np.mean(leaking)
    ### END SOLUTION

# %% Exercise 3.2: hidden tests
streets = np.array(["a", "b", "a", "c", "c", "c", "c", "d"])
uneven = [np.array([0, 3, 7]), np.array([2, 1]), np.array([6, 4, 5])]
common.check("cities of different sizes", share_that_leaks(uneven, streets), 6 / 8)
common.check("all in two folds", share_that_leaks([np.arange(0, 8, 2), np.arange(1, 8, 2)], np.repeat([3, 5, 4, 9], 2)), 1)
common.check("two folds, nothing shared", share_that_leaks([np.array([5, 4]), np.array([0])], np.array([2, 1, 1, 1, 1, 0])), 0)

# %% Exercise 3.2: a wrong answer
def share_that_leaks(parts, groups):
    """Counts the cities that are shared, not their pictures."""
    owners = [set(groups[part]) for part in parts]
    names = set.union(*owners)
    return sum(sum(name in owner for owner in owners) > 1 for name in names) / len(names)

# %% Exercise 3.3: solution (3 points)
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

# %% Exercise 3.4: solution (3 points)
def gains_of_choice(held_out, test):
    """(gain, gain) over the last epoch, of scores (E,) each, at held_out's best."""
    ### BEGIN SOLUTION
    best = np.argmax(held_out)
    return held_out[best] - held_out[-1], test[best] - test[-1]
    ### END SOLUTION

# %% Exercise 3.4: hidden tests
chosen, judged = np.array([0.1, 0.5, 0.4, 0.5, 0.3]), np.array([0.7, 0.2, 0.9, 0.8, 0.4])
common.check("the first of two best", np.array(gains_of_choice(chosen, judged)), [0.2, -0.2])
common.check("the last is as good", np.array(gains_of_choice(np.sort(chosen)[1:], judged[1:])), [0, 0.4])
common.check("a single epoch", np.array(gains_of_choice(chosen[:1], judged[:1])), [0, 0])

# %% Exercise 3.4: a wrong answer
def gains_of_choice(held_out, test):
    """Lets the test split choose its own best epoch."""
    return held_out.max() - held_out[-1], test.max() - test[-1]
