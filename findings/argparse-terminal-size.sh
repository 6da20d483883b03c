#!/usr/bin/env bash
# Python 3.11's argparse: each argument that is added to a parser asks for the size of the terminal.
#
# add_argument makes a help formatter to check the metavar, and the formatter asks for the terminal's width as soon as it is
# made, though no help is printed. So a parser of 50 arguments asks 50 times (an ioctl each), and every program that has an
# argument imports shutil, with bz2 and lzma behind it: a command that wants to start quickly pays for help that nobody reads.
# A formatter class with a width of its own, and the terminal's one set in format_help, avoids both.
#
# Seen with Debian 12's python3 3.11.2, in an isolated interpreter without site packages:
#
#   shutil before: False
#   sizes asked for: 50
#   shutil after: True
#   with a formatter that has a width: 0
set -euo pipefail

expected='shutil before: False
sizes asked for: 50
shutil after: True
with a formatter that has a width: 0'

python=$(command -v /usr/bin/python3 || true)
if [ -z "$python" ]; then
    printf 'cannot be shown here: no /usr/bin/python3\n' >&2
    exit 2
fi
printf '%s\n' "$("$python" --version), package $(dpkg-query --show --showformat '${Version}' python3 2>/dev/null || printf unknown)"

found=$("$python" -IS - <<'PYTHON'
import argparse
import functools
import os
import sys

print("shutil before:", "shutil" in sys.modules)
asked = []


def counted(*arguments):
    asked.append(arguments)
    return os.terminal_size((80, 24))


os.get_terminal_size = counted
os.environ.pop("COLUMNS", None)


def make(**keywords):
    parser = argparse.ArgumentParser(add_help=False, **keywords)
    for number in range(50):
        parser.add_argument(f"--option{number}", metavar="VALUE")
    return parser


make()
print("sizes asked for:", len(asked))
print("shutil after:", "shutil" in sys.modules)
asked.clear()
make(formatter_class=functools.partial(argparse.HelpFormatter, width=80))
print("with a formatter that has a width:", len(asked))
PYTHON
)
printf '%s\n' "$found"
if [ "$found" != "$expected" ]; then
    printf 'changed; expected was:\n%s\n' "$expected" >&2
    exit 1
fi
