"""Where the minders of an earlier netlib, which still run, look for :mod:`netlib.verbs.reap`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("netlib.verbs.reap", run_name="__main__")
