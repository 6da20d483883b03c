"""The former name of :mod:`netlib.verbs.reap`, for running minders that an earlier netlib has started."""

import runpy

if __name__ == "__main__":
    runpy.run_module("netlib.verbs.reap", run_name="__main__")
