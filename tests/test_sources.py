"""results/sources.md: what it names is there."""

import ast
import re

import pytest
from conftest import ROOT

TEXT = (ROOT / "results" / "sources.md").read_text()
HEADINGS = {re.sub(r"[^a-z0-9 -]", "", line[3:].lower()).replace(" ", "-") for line in TEXT.splitlines() if line.startswith("## ")}
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))


def test_every_test_that_the_page_names_is_one():
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    there = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"(?m)^def (test_\w+)", path.read_text())}
    assert len(named) > 30 and named <= there


def test_every_parameter_that_the_page_names_is_one_of_a_notebook_or_an_argument_of_a_helper():
    known = set()
    for path in (*(ROOT / "notebooks").glob("*.py"), *ROOT.glob("*.py"), *ROOT.glob("results/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            known |= {node.target.id} if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else set()
            known |= {arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)} if isinstance(node, ast.FunctionDef) else set()
    named = set(re.findall(r"`(\w+) = [^`]+`", TEXT)) | {
        name for call in re.findall(r"`boundary_f1\(([^)]*)\)`", TEXT) for name in re.findall(r"(\w+)=", call)}
    assert len(named) > 10 and named <= known, named - known


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_links_to_the_page_of_its_source(name):
    links = re.findall(r"\]\(\.\./results/sources\.md(#[\w-]+)?\)", (ROOT / "notebooks" / f"{name}.py").read_text())
    assert links and {link[1:] for link in links if link} <= HEADINGS


def test_links_within_the_page_lead_to_its_headings():
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= HEADINGS
