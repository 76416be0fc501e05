"""The course as a site: built by the command of .github/workflows/book.yml, and every page opened in a real browser.

Not part of the default run. It needs Chromium (`apt install chromium`) and `pip install "jupyter-book<2" playwright`; then
`pytest -m browser tests/test_book.py`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import nbformat
import pytest
from conftest import ROOT

pytestmark = pytest.mark.browser
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
SEEN = """() => {
    const all = selector => [...document.querySelectorAll(selector)];
    const cut = pre => pre.scrollWidth > pre.clientWidth || pre.getBoundingClientRect().right > innerWidth;
    const seen = {
        links: all('a[href]').map(a => a.href).filter(address => address.startsWith('file:')),
        sidebar: all('.bd-sidebar-primary nav a[href]').map(a => a.href),
        ids: all('[id]').map(element => element.id),
        figures: all('.cell_output img').length,
        broken: all('img').filter(i => i.src.startsWith('file:') && !(i.complete && i.naturalWidth > 16)).map(i => i.src),
        code: all('pre').length,
        cut: all('pre').filter(cut).map(pre => pre.innerText),
    };
    const code = document.querySelector('.cell_input pre'), ruler = document.createElement('span');
    if (code) {
        ruler.textContent = '0'.repeat(88);
        code.replaceChildren(ruler);
        seen.lines_of_88 = ruler.getClientRects().length;
    }
    return seen;
}"""


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Folder of the site's pages."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if not (program := shutil.which("jupyter-book", path=places)):
        pytest.skip('pip install "jupyter-book<2"')
    workflow = (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
    _, *arguments = shlex.split(re.search(r"jupyter-book build .*", workflow)[0])
    out = tmp_path_factory.mktemp("book")
    done = subprocess.run([program, *arguments, "--path-output", out], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, [line for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    return out / "_build" / "html"


@pytest.fixture(scope="module")
def pages(book, chromium):
    """{page: what a browser of 1366x768 pixels sees there}; nothing is fetched from elsewhere."""
    page = chromium.new_page(viewport={"width": 1366, "height": 768})
    page.route(re.compile("^https?:"), lambda route: route.abort())
    found = {}
    for path in sorted(path for path in book.rglob("*.html") if "_static" not in path.parts and path.name != "index.html"):
        page.goto(path.as_uri(), wait_until="load")
        found[path] = page.evaluate(SEEN)
    page.close()
    return found


def target(address):
    """(file, id) that a local address names."""
    address, fragment = urldefrag(address)
    return Path(unquote(urlparse(address).path)), unquote(fragment)


def test_every_page_leads_to_all_six_notebooks_the_results_and_the_sources(book, pages):
    chapters = [book / "README.html", *(book / "notebooks" / f"{name}.html" for name in NAMES),
                *(book / page for page in ("results/README.html", "results/sources.html", "notebooks/README.html",
                                          "tests/solutions/README.html", "tests/README.html"))]
    assert len(NAMES) == 6 and "url=README.html" in (book / "index.html").read_text().replace(" ", "")
    hidden = [path for path in pages if any(part.startswith(".") for part in path.relative_to(book).parts)]
    assert not hidden, "actions/upload-pages-artifact leaves these out"
    for chapter in chapters:
        sidebar = [target(address)[0] for address in pages[chapter]["sidebar"]]
        assert [path for path in sidebar if path in chapters] == chapters


def test_no_local_link_is_broken(pages):
    broken = []
    for page, seen in pages.items():
        for path, fragment in map(target, seen["links"]):
            if not path.is_file() or (fragment and fragment not in pages[path]["ids"]):
                broken.append(f"{page.name}: {path}#{fragment}")
    assert not broken
    assert sum(len(seen["links"]) for seen in pages.values()) > 100


def test_the_figures_of_the_executed_notebooks_are_there(book, pages):
    assert not [address for seen in pages.values() for address in seen["broken"]]
    for name in NAMES:
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
        figures = [data for data in outputs if "image/png" in data or "image/jpeg" in data]
        assert pages[book / "notebooks" / f"{name}.html"]["figures"] >= len(figures) > 0


def test_no_line_of_code_is_cut_off_and_88_characters_are_one_line(book, pages):
    assert not [f"{page.name}: {code}" for page, seen in pages.items() for code in seen["cut"]]
    for name in NAMES:
        seen = pages[book / "notebooks" / f"{name}.html"]
        assert seen["code"] > 50 and seen["lines_of_88"] == 1
