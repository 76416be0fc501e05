"""What a notebook needs beside what Colab and Kaggle ship: `install` gets what is missing. Imports the standard library alone."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

MODULES = {"opencv-python-headless": "cv2"}  # of packages that are imported under another name


def install(*packages: str) -> None:
    """Install those of the packages that cannot be imported, all at once; what is there is never replaced.

    Raises a RuntimeError of one sentence where there is no pip, or where pip fails.
    """
    missing = [name for name in packages if importlib.util.find_spec(MODULES.get(name, name.replace("-", "_"))) is None]
    if not missing:
        return
    if importlib.util.find_spec("pip") is None:
        raise RuntimeError(f"There is no pip here: install {' '.join(missing)} with the tool that made this environment.")
    if subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing]).returncode:
        raise RuntimeError(f"pip cannot install {' '.join(missing)}: turn the internet on (Kaggle: in the settings).")
    importlib.invalidate_caches()
