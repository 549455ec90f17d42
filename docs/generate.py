"""Writes the parts of the documentation that come from the code; `make docs` runs it.

A test checks that what is committed equals what this would write.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from generator.figures import (
    blocks_figures,
    fault_figures,
    loop_figures,
    planted_bugs,
    recipe_figures,
    referee_figures,
    speed_figures,
)
from generator.files_page import files_page
from generator.http_page import http_page
from generator.places import ROOT
from generator.program_pages import command_line_page, exit_codes_page
from generator.record_page import record_page
from generator.settings_page import settings_page
from generator.watching_pages import alerts_page, log_page

LOOP_FIGURES = re.compile(r"(<!-- loop figures -->\n).*?(\n<!-- end of loop figures -->)", re.S)
RECIPE_FIGURES = re.compile(
    r"(<!-- recipe figures -->\n).*?(\n<!-- end of recipe figures -->)", re.S
)

SPEED_FIGURES = re.compile(r"(<!-- speed figures -->\n).*?(\n<!-- end of speed figures -->)", re.S)
FAULT_FIGURES = re.compile(r"(<!-- fault figures -->\n).*?(<!-- end of fault figures -->)", re.S)
REFEREE_FIGURES = re.compile(
    r"(<!-- referee figures -->\n).*?(\n<!-- end of referee figures -->)", re.S
)
BLOCKS_FIGURES = re.compile(
    r"(<!-- blocks figures -->\n).*?(\n<!-- end of blocks figures -->)", re.S
)
PLANTED_BUGS = re.compile(r"(<!-- planted bugs -->\n).*?(<!-- end of planted bugs -->)", re.S)


def documents() -> Mapping[Path, str]:
    """Every generated file, with the content it should have."""
    readme = ROOT / "README.md"
    recipes = ROOT / "docs" / "explanation" / "recipes.md"
    speed = ROOT / "docs" / "explanation" / "speed.md"
    faults = ROOT / "docs" / "explanation" / "faults.md"
    broken, planted = "\n".join(fault_figures()), "\n".join(planted_bugs())
    found_faults = FAULT_FIGURES.sub(
        lambda found: f"{found[1]}{broken}\n{found[2]}", faults.read_text()
    )
    measured, timed = "\n".join(recipe_figures()), "\n".join(speed_figures())
    figures, judged = "\n".join(loop_figures()), "\n".join(referee_figures())
    knows = ROOT / "docs" / "explanation" / "how-it-knows.md"
    blocks = "\n".join(blocks_figures())
    with_blocks = BLOCKS_FIGURES.sub(lambda found: found[1] + blocks + found[2], knows.read_text())
    return {
        ROOT / "docs" / "reference" / "settings.md": "\n".join(settings_page()) + "\n",
        ROOT / "docs" / "reference" / "command-line.md": "\n".join(command_line_page()) + "\n",
        ROOT / "docs" / "reference" / "exit-codes.md": "\n".join(exit_codes_page()) + "\n",
        ROOT / "docs" / "reference" / "alerts.md": "\n".join(alerts_page()) + "\n",
        ROOT / "docs" / "reference" / "log.md": "\n".join(log_page()) + "\n",
        ROOT / "docs" / "reference" / "http-api.md": "\n".join(http_page()) + "\n",
        ROOT / "docs" / "reference" / "files.md": "\n".join(files_page()) + "\n",
        ROOT / "docs" / "reference" / "record.md": "\n".join(record_page()) + "\n",
        recipes: RECIPE_FIGURES.sub(
            lambda found: found[1] + measured + found[2], recipes.read_text()
        ),
        faults: PLANTED_BUGS.sub(lambda found: f"{found[1]}{planted}\n{found[2]}", found_faults),
        speed: SPEED_FIGURES.sub(lambda found: found[1] + timed + found[2], speed.read_text()),
        knows: REFEREE_FIGURES.sub(lambda found: found[1] + judged + found[2], with_blocks),
        readme: LOOP_FIGURES.sub(lambda found: found[1] + figures + found[2], readme.read_text()),
    }


def main() -> None:
    for path, content in documents().items():
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
            print(f"{path.relative_to(ROOT)} was written")


if __name__ == "__main__":
    main()
