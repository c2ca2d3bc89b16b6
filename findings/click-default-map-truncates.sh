#!/bin/sh
# Values of click's `default_map`, which is how a TOML or JSON file becomes settings, are not
# parsed as typed ones are: for an integer, 2.7 becomes 2 and True becomes 1 without a word, where
# the same text behind the flag is a usage error, and a list raises a bare TypeError.
#
# click 8.5.1, Python 3.11.
#
# Seen:
#   2.7: flag refused, default_map 2
#   True: flag refused, default_map 1
#   [1]: flag refused, default_map TypeError
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check click==8.5.1
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import click


@click.command()
@click.option("--slots", type=click.IntRange(min=1))
def command(slots):
    return slots


def outcome(arguments, default_map):
    try:
        return command.main(arguments, standalone_mode=False, default_map=default_map)
    except click.UsageError:
        return "refused"
    except Exception as error:
        return type(error).__name__


seen = []
for value in (2.7, True, [1]):
    seen.append((outcome(["--slots", str(value)], None), outcome([], {"slots": value})))
    print(f"{value}: flag {seen[-1][0]}, default_map {seen[-1][1]}")
expected = [("refused", 2), ("refused", 1), ("refused", "TypeError")]
sys.exit(0 if seen == expected else "click behaves otherwise by now")
PYTHON
