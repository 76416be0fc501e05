"""A release: one command sets the address and the tag in the notebooks, their badges and README.md, or nothing at all."""

import os
import re
import subprocess

import jupytext
import nbformat
import pytest
from conftest import ROOT

import data_prep
from results import editions

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
NEW, TAG = "https://github.com/someone/street-course.v2", "v2.10"
WHO = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false"]
# this file, too, may not spell the address, or the command would refuse it
[OLD] = {re.search('REPO, TAG = "(.*?)"', (ROOT / "notebooks" / f"{name}.py").read_text())[1] for name in NAMES}


def git(folder, *arguments):
    return subprocess.run(["git", "-C", folder, *WHO, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A repository with what this working tree holds of README.md and the notebooks; README.md has badges and a clone."""
    folder = tmp_path_factory.mktemp("release") / "committed"
    (folder / "notebooks").mkdir(parents=True)
    for path in [ROOT / "README.md", *(ROOT / "notebooks" / f"{name}{end}" for name in NAMES for end in (".py", ".ipynb"))]:
        (folder / path.relative_to(ROOT)).write_bytes(path.read_bytes())
    address = OLD.removeprefix("https://github.com/")
    badge = f"[Colab](https://colab.research.google.com/github/{address}/blob/main/notebooks/{NAMES[0]}.ipynb)"
    with open(folder / "README.md", "a", encoding="utf-8") as readme:
        readme.write(f"\n{badge}\nSee {OLD}.\n\n    git clone {OLD}.git\ncd {address.split('/')[1]}\n")
    (folder / "tests.py").write_text("what names no address\n")
    git(folder, "init", "--quiet", "--initial-branch", "main")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "all")
    return folder


@pytest.fixture
def clone(committed, tmp_path, monkeypatch):
    git(committed, "clone", "--quiet", ".", tmp_path / "clone")
    monkeypatch.setattr(data_prep, "HERE", tmp_path / "clone")
    return tmp_path / "clone"


def refusal(capsys, repo=NEW, tag=TAG):
    """The one sentence with which the command refuses."""
    assert data_prep.main(["release", f"--repo={repo}", f"--tag={tag}"]) == 1
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1 and error.endswith(".\n")
    return error


def changed(clone):
    return git(clone, "status", "--porcelain").split()[1::2]


def test_a_release_sets_address_and_tag_in_all_places_and_changes_nothing_else(clone, capsys):
    assert data_prep.main(["release", "--repo", f"{NEW}.git", "--tag", TAG]) == 0
    assert changed(clone) == ["README.md", *sorted(f"notebooks/{name}{end}" for name in NAMES for end in (".py", ".ipynb"))]
    address, new_address = (url.removeprefix("https://github.com/") for url in (OLD, NEW))
    for path in changed(clone):
        text, before = (clone / path).read_text(), git(clone, "show", f"HEAD:{path}")
        badges = re.findall(r"(colab\.research\S*?/github/|kaggle\.com/kernels/welcome\?src=https://github.com/)(\S+?)/notebooks", text)
        assert (len(badges) == 2 or path == "README.md") and {place for _, place in badges} == {f"{new_address}/blob/{TAG}"}
        assert address not in text
        lines = list(zip(before.splitlines(), text.splitlines(), strict=True))
        assert len([1 for old, new in lines if old != new]) == 3 or path == "README.md"
        for old, new in lines:
            old = old.replace(address, new_address).replace(f"cd {address.split('/')[1]}", f"cd {new_address.split('/')[1]}")
            assert re.sub(r"blob/[^/]+|\bv\d+\.\d+\b", "", old) == re.sub(r"blob/[^/]+|\bv\d+\.\d+\b", "", new)
    assert (clone / "README.md").read_text().endswith(f"\nSee {NEW}.\n\n    git clone {NEW}.git\ncd street-course.v2\n")
    assert capsys.readouterr().out.splitlines() == [
        f"{NEW} and {TAG} stand in 13 files, 13 of them changed. What remains:", f'  git commit -am "Release {TAG}"', f"  git tag {TAG}",
        f"  git push {NEW} HEAD:main {TAG}"]


def test_after_a_release_scripts_and_notebooks_still_agree_and_outputs_are_kept(clone):
    editions.make_release(NEW, TAG)
    for name in NAMES:
        script = jupytext.read(clone / "notebooks" / f"{name}.py")
        notebook = nbformat.read(clone / "notebooks" / f"{name}.ipynb", as_version=4)
        assert [(cell.cell_type, cell.source) for cell in script.cells] == [(cell.cell_type, cell.source) for cell in notebook.cells]
        assert sum(f'REPO, TAG = "{NEW}", "{TAG}"' in cell.source.splitlines() for cell in notebook.cells) == 1
        before = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        assert [cell.get("outputs") for cell in notebook.cells] == [cell.get("outputs") for cell in before.cells]


def test_a_second_release_needs_a_new_tag_and_one_that_was_set_already_changes_nothing(clone, capsys):
    editions.make_release(NEW, TAG)
    git(clone, "commit", "--quiet", "-am", "Release")
    capsys.readouterr()
    assert editions.make_release(NEW, TAG) == [] and not changed(clone)
    assert capsys.readouterr().out.splitlines()[1:] == [f"  git tag {TAG}", f"  git push {NEW} HEAD:main {TAG}"]
    git(clone, "tag", TAG)
    assert f"The tag {TAG} is taken" in refusal(capsys)
    assert len(editions.make_release(NEW, "v2.11")) == 13


@pytest.mark.parametrize("repo", ["", "x", "--upload-pack=x", "-x", "git@github.com:a/b", "http://github.com/a/b", "https://github.com/a",
                                  "https://github.com/a/b/tree/main", "https://github.com/-a/b", "https://github.com/a/..", "https://gitlab.com/a/b",
                                  "https://github.com/a/b\n", "https://github.com/a/b;c", 'https://github.com/a/"b', "https://x@github.com/a/b"])
def test_an_address_that_the_badges_cannot_open_is_refused(clone, capsys, repo):
    assert "--repo cannot be" in refusal(capsys, repo=repo)
    assert not changed(clone)


@pytest.mark.parametrize("tag", ["", "-d", "--delete", "1.0", "v1", "main", "v1.0\n", "v1.0;ls", "v1.0 v2.0", "v١.٠"])
def test_a_tag_that_is_no_version_is_refused(clone, capsys, tag):
    assert "--tag cannot be" in refusal(capsys, tag=tag)
    assert not changed(clone)


@pytest.mark.parametrize("kind", ["changed", "staged", "new"])
def test_a_tree_with_changes_is_refused_and_they_are_kept(clone, capsys, kind):
    path = clone / ("new.txt" if kind == "new" else "tests.py")
    path.write_text("mine")
    if kind == "staged":
        git(clone, "add", ".")
    assert f"has changes ({path.name}): commit or remove them" in refusal(capsys)
    assert changed(clone) == [path.name] and path.read_text() == "mine"


@pytest.mark.parametrize(("file", "old", "new", "said"), [
    (f"notebooks/{NAMES[-1]}.ipynb", "REPO, TAG = ", "TAG, REPO = ", NAMES[-1]),
    (f"notebooks/{NAMES[-1]}.py", "kaggle.com/kernels", "kaggle.com/code", NAMES[-1]),
    (f"notebooks/{NAMES[2]}.ipynb", f"/notebooks/{NAMES[2]}", f"/notebooks/{NAMES[3]}", NAMES[2]),
    ("tests.py", "what names no address", f"see {OLD}/issues", f"tests.py names {OLD.removeprefix('https://github.com/')}, too"),
])
def test_where_one_place_cannot_be_changed_none_is(clone, capsys, file, old, new, said):
    text = (clone / file).read_text()
    assert old in text
    (clone / file).write_text(text.replace(old, new))
    git(clone, "commit", "--quiet", "-am", "a place that is not as the others")
    assert said in refusal(capsys)
    assert not changed(clone)


def test_no_file_but_those_that_a_release_changes_names_the_address():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    found = set(git(ROOT, "grep", "-lF", "-e", OLD.removeprefix("https://github.com/")).split())
    assert found - {"README.md"} == {f"notebooks/{name}{end}" for name in NAMES for end in (".py", ".ipynb")}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_release_that_cannot_be_written_to_its_end_leaves_every_file_as_it_was(clone, monkeypatch, capsys, error):
    replace, calls = os.replace, []

    def sixth(source, target):
        calls.append(target)
        if len(calls) == 6:
            raise error
        replace(source, target)

    monkeypatch.setattr(data_prep.os, "replace", sixth)
    assert data_prep.main(["release", "--repo", NEW, "--tag", TAG]) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert len(calls) > 6 and not changed(clone)
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_repository_or_git_a_sentence_says_so(clone, monkeypatch, capsys):
    (clone / ".git").rename(clone.parent / "kept")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(clone.parent))
    assert "use a clone of the repository" in refusal(capsys)
    monkeypatch.setenv("PATH", "")
    assert "use a clone of the repository" in refusal(capsys)
