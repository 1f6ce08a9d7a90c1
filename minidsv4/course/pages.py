"""Pages of the course that move without a kernel: plain files in a folder, which open from disk or from any host.

A page's data come as scripts that fill one global name, since a page opened from disk may not fetch files.
"""

import argparse
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARED = HERE / "page_theme"  # what all such pages have in common


def write_page(name, folder, made):
    """Copy a page's files, the shared ones and those just made into a folder.

    name     of the package in this one whose folder `page` holds the files
    folder   is made where it is not there
    made     {name of a file, in a folder of its own or not: its text}
    returns  the path of the page's index.html
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*sorted(SHARED.iterdir()), *sorted((HERE / name / "page").iterdir())]:
        (folder / path.name).write_bytes(path.read_bytes())
    for file, text in made.items():
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "index.html"


def script(variable, data):
    """A script that gives a global name its data; not a number and infinity, which JSON lacks, raise ValueError."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"window.{variable} = {text};\n"


def write_from_command_line(name, write_site, words=None):
    """Write a page into the folder that the command line names, and say where it begins.

    returns  exit status 0
    raises   SystemExit 2 with a sentence where the folder cannot be written
    """
    parser = argparse.ArgumentParser(prog=f"python -m minidsv4.course.{name}", description=f"Write the {name}.")
    parser.add_argument("folder", type=Path, help="is made where it is not there")
    folder = parser.parse_args(words).folder
    try:
        index = write_site(folder)
    except OSError as error:
        parser.exit(2, f"{name}: folder = {folder} cannot be written ({error.strerror}); name another folder\n")
    print(f"Open {index} in a browser.")
    return 0
