"""Editions of the notebooks: an assignment for nbgrader, and a release with its address and tag.

The commands `python data_prep.py assignment` and `python data_prep.py release` call this.
"""

from __future__ import annotations

import base64
import re
import textwrap
from pathlib import Path, PurePosixPath

import data_prep
from data_prep import StreetsError, git_output, read_file, told, user_path, write_atomic

EXERCISE = re.compile(r"# (Exercise \d\.\d)(: check)?\n")  # how the cells of an exercise begin


def read_solutions(path: Path) -> dict[str, dict]:
    """{"Exercise 1.1": {"solution", "hidden tests", "a wrong answer": source of the cell, "points": int}} of a file of
    tests/solutions."""
    found: dict[str, dict] = {}
    cells = re.split(r"(?m)^# %% (Exercise \d\.\d): ([a-z ]+?)(?: \((\d+) points?\))?\n", path.read_text(encoding="utf-8"))
    for exercise, kind, points, source in zip(*(cells[k::4] for k in (1, 2, 3, 4)), strict=True):
        found.setdefault(exercise, {})[kind] = source.strip("\n") + "\n"
        if points:
            found[exercise]["points"] = int(points)
    return found


def make_assignment(number: str, out: str | Path) -> Path:
    """Make an assignment for nbgrader of a notebook: its exercises solved, with hidden tests and points.

    `out` is the folder of the assignment in the course's source/, new or empty. The notebook's helpers go beside it,
    from where nbgrader hands them to every student. Returns the notebook's path.
    """
    import jupytext

    home, out = data_prep.HERE, user_path("--out", out)
    known = {path.stem[:2]: path for path in sorted((home / "notebooks").glob("[0-9][0-9]_*.py"))}
    if number not in known:
        raise StreetsError(f"There is no notebook {number!r}: use {' or '.join(known)}.")
    if not (solutions := home / "tests" / "solutions" / known[number].name).is_file():
        raise StreetsError(f"{solutions} is missing: an assignment is made from a whole copy of the repository.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StreetsError(f"{out} is not empty: name a new folder with --out.")
    notebook, answers = jupytext.read(known[number]), read_solutions(solutions)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            _attach_pictures(cell, known[number].parent)
        elif begins := EXERCISE.match(cell.source):
            _grade(cell, answers[begins[1]], begins[1].lower().translate({32: "_", 46: "_"}), check=bool(begins[2]))
    helpers = [home / "common.py", home / "data_prep.py", *home.glob("results/*.py"), *home.glob("results/*.csv")]
    with told("write", out):
        for helper in helpers:
            target = out / helper.relative_to(home)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(helper.read_bytes())
        jupytext.write(notebook, made := out / f"{known[number].stem}.ipynb")
    print(f"{made}: {len(answers)} exercises, {sum(answer['points'] for answer in answers.values())} points")
    return made


def _grade(cell, answer: dict, grade_id: str, check: bool) -> None:
    """Turn a stub into nbgrader's cell with the solution, or a visible check into the one with hidden tests."""
    title = cell.source.partition("\n")[0]
    cell.metadata["nbgrader"] = {"schema_version": 3, "task": False, "grade": check, "locked": check, "solution": not check,
                                 "grade_id": grade_id + ("_check" if check else "")}
    if check:  # a check ends with its `with` block
        hidden = f"### BEGIN HIDDEN TESTS\n{answer['hidden tests']}### END HIDDEN TESTS"
        cell.source = f"{cell.source.rstrip()}\n{textwrap.indent(hidden, '    ')}"
        cell.metadata["nbgrader"]["points"] = answer["points"]
    else:
        cell.source = f"{title}\n{answer['solution'].rstrip()}"


def _attach_pictures(cell, folder: Path) -> None:
    """Put the pictures that a cell of text links to into the cell: an assignment is a notebook without its repository."""
    for link in re.findall(r"\]\((\.\./results/pictures/[^)]+)\)", cell.source):
        name = PurePosixPath(link).name
        data = base64.b64encode((folder / link).read_bytes()).decode()
        cell.setdefault("attachments", {})[name] = {"image/jpeg": data}
        cell.source = cell.source.replace(link, f"attachment:{name}")


# in a notebook's script and in its JSON: where it gets the helpers if it is opened alone, and its badges
REPO_TAG = re.compile(r'(REPO, TAG = (\\?")https://github\.com/)([\w./-]+)(\2, \2)[^"\\]*(?=\2)')
BADGE_SITES = ("colab.research.google.com/github/", "kaggle.com/kernels/welcome?src=https://github.com/")
BADGE = re.compile(rf"({'|'.join(map(re.escape, BADGE_SITES))})[\w.-]+/[\w.-]+/blob/[\w.-]+(?=/notebooks/(\w+)\.ipynb)")


def make_release(repo: str, tag: str) -> list[Path]:
    """Set the address and the tag of a release in all notebooks and README.md.

    That is where a notebook that is opened alone gets its helpers, where the badges lead, and every other mention of the
    address: all of it, or nothing is changed. Prints the git commands that remain; returns the changed files.
    """
    home, repo = data_prep.HERE, repo.removesuffix("/").removesuffix(".git")
    if not re.fullmatch(r"https://github\.com/[a-z\d][a-z\d-]*/[\w.-]*\w[\w.-]*", repo, re.ASCII | re.IGNORECASE):
        raise StreetsError(f"--repo cannot be {repo!r}: use https://github.com/OWNER/NAME, as the badges open nothing else.")
    if not re.fullmatch(r"v\d+\.\d+(\.\d+)?", tag, re.ASCII):
        raise StreetsError(f"--tag cannot be {tag!r}: use a version such as v1.1 or v1.1.2.")
    if dirty := git_output(home, "status", "--porcelain"):
        raise StreetsError(f"{home} has changes ({dirty.splitlines()[0][3:]}): commit or remove them before a release.")
    if git_output(home, "tag", "--list", tag):
        raise StreetsError(f"The tag {tag} is taken, and others may have fetched it: choose the next one.")
    notebooks = sorted(home.glob("notebooks/[0-9][0-9]_*.py"))
    paths = [path.with_suffix(end) for path in notebooks for end in (".py", ".ipynb")] + [home / "README.md"]
    before = {path: read_file(path).decode() for path in paths}
    address, after = repo.removeprefix("https://github.com/"), {}
    old = {match[3] for text in before.values() for match in REPO_TAG.finditer(text)}
    mention = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, old)) or '(?!)'})(?![\w-])")
    folders = (re.escape(name.rpartition("/")[2]) for name in old)
    enter = re.compile(rf"(?m)(?<=^cd )({'|'.join(folders) or '(?!)'})(?=\r?$)")  # what git clone makes
    for path, text in before.items():
        places = [match.groups() for match in BADGE.finditer(text)]
        wanted = sorted((site, path.stem) for site in BADGE_SITES)
        if path.suffix != ".md" and (len(REPO_TAG.findall(text)), sorted(places)) != (1, wanted):
            raise StreetsError(f"{path} has not one line `REPO, TAG = ...` and one badge each for Colab and Kaggle: restore it.")
        text = REPO_TAG.sub(rf"\g<1>{address}\g<4>{tag}", BADGE.sub(rf"\g<1>{address}/blob/{tag}", text))
        after[path] = enter.sub(address.partition("/")[2], mention.sub(address, text))
    known = [f":(exclude,literal){path.relative_to(home).as_posix()}" for path in before]
    for name in old - {address}:
        if files := git_output(home, "grep", "-lF", "-e", name, "--", ".", *known, ends=(0, 1)).split("\n")[0]:
            raise StreetsError(f"{files} names {name}, too, which only you can change: edit and commit it first.")
    changed = [path for path in after if after[path] != before[path]]
    try:
        for path in changed:
            write_atomic(path, after[path].encode())
    except BaseException:
        for path in changed:
            if read_file(path) != before[path].encode():
                write_atomic(path, before[path].encode())
        raise
    print(f"{repo} and {tag} stand in {len(before)} files, {len(changed)} of them changed. What remains:")
    print(f'  git commit -am "Release {tag}"\n' * bool(changed) + f"  git tag {tag}\n  git push {repo} HEAD:main {tag}")
    return changed
