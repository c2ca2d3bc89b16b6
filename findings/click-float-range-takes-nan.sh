#!/bin/sh
# click.FloatRange(0, 1) accepts "nan", which lies in no range: it only asks whether a number is
# below the lower bound or above the upper one, and nan is neither. `clamp=True` keeps it, too.
# A number of seconds or a probability becomes nan, and fails far from where it was typed.
#
# click 8.5.1, Python 3.11.
#
# Seen:
#   FloatRange(0, 1) of 'nan': nan
#   FloatRange(0, 1, clamp=True) of 'nan': nan
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check click==8.5.1
"$folder/venv/bin/python" - <<'PYTHON'
import math
import sys

import click

seen = []
for name, kind in (
    ("FloatRange(0, 1)", click.FloatRange(0, 1)),
    ("FloatRange(0, 1, clamp=True)", click.FloatRange(0, 1, clamp=True)),
):
    try:
        seen.append(kind.convert("nan", None, None))
    except click.BadParameter as error:
        seen.append(error)
    print(f"{name} of 'nan': {seen[-1]}")
sys.exit(0 if all(isinstance(x, float) and math.isnan(x) for x in seen) else "click refuses nan by now")
PYTHON
