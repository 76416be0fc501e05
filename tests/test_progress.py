"""How a training shows that it goes on: a bar for who watches, a few lines for who does not."""

import os
import sys

import pytest
from conftest import ROOT

import common

TRAINING = """
bar = common.runs.progress_bar(1000, 0, "D_seed42", False)
with bar:
    for epoch in range(10):
        for step in range(25):
            bar.update(4)
            bar.set_postfix_str("loss 0.500", refresh=False)
        bar.set_postfix_str("loss 0.400, val mIoU 0.300", refresh=epoch == 9)
"""


@pytest.mark.parametrize(("seconds", "fewest", "most"), [(0, 10, 20), (10, 2, 2)])
def test_a_log_gets_a_line_now_and_then_and_the_last_one_says_how_it_ended(seconds, fewest, most, capsys, monkeypatch):
    monkeypatch.setattr(common.runs, "LOG_SECONDS", seconds)
    exec(TRAINING, {"common": common})
    lines = capsys.readouterr().out.splitlines()
    assert fewest <= len(lines) <= most
    assert all(line.startswith("D_seed42:") and "img/s" in line for line in lines)
    assert "100%" in lines[-1] and "1000/1000" in lines[-1] and "val mIoU 0.300" in lines[-1]


def test_a_terminal_gets_a_bar_that_moves(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert common.runs.is_watched()
    exec(TRAINING, {"common": common})
    assert "\r" in capsys.readouterr().out


def test_a_process_that_writes_nothing_says_nothing(capsys):
    with common.runs.progress_bar(10, 0, "D_seed42", True) as bar:
        bar.update(10)
    assert capsys.readouterr() == ("", "")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory):
    """The file that stands for the terminal in which a kernel is started."""
    return tmp_path_factory.mktemp("terminal") / "stderr"


@pytest.fixture(scope="module")
def kernel(terminal):
    from jupyter_client.manager import start_new_kernel

    # a kernel that sees this variable leaves its stderr alone, which nobody's does
    env = {key: value for key, value in os.environ.items() if key != "PYTEST_CURRENT_TEST"}
    with open(terminal, "wb") as stderr:
        manager, client = start_new_kernel(cwd=str(ROOT), stderr=stderr, env=env)
        client.execute_interactive("import common", allow_stdin=False)
        yield client
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def printed(kernel, code, watched):
    """What a notebook's cell prints: with a front end that can ask for input, or executed as papermill does."""
    texts = []

    def keep(message):
        if message["msg_type"] == "stream":
            texts.append(message["content"]["text"])

    reply = kernel.execute_interactive(code, allow_stdin=watched, output_hook=keep, stdin_hook=lambda _: None)
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(texts)


def test_papermill_leaves_at_most_twenty_lines_in_the_notebook_and_the_same_in_its_terminal(kernel, terminal):
    text = printed(kernel, f"common.runs.LOG_SECONDS = 0\n{TRAINING}", watched=False)
    lines = text.splitlines()
    assert 10 <= len(lines) <= 20 and "\r" not in text and "val mIoU 0.300" in lines[-1]
    assert [line.strip() for line in terminal.read_text().splitlines() if "img/s" in line] == lines


def test_an_open_notebook_gets_a_bar_that_moves_and_its_terminal_nothing(kernel, terminal):
    before = terminal.read_bytes()
    assert "\r" in printed(kernel, TRAINING, watched=True) and terminal.read_bytes() == before
