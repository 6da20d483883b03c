"""Reading values into structs: the same types, new to msgspec, by many threads at once."""

import subprocess
import sys

ROUNDS = 50

PROGRAM = """
import sys, threading, types
import msgspec
from netlib.structs import convert

sys.setswitchinterval(1e-6)
FIELDS = "".join(f"    key{number}: 'list[int] | None' = None\\n" for number in range(30))
INNER = f"class Inner(msgspec.Struct):\\n{FIELDS}"
OUTER = "class Outer(msgspec.Struct):\\n    inner: 'Inner | None' = None\\n"
for _ in range(int(sys.argv[1])):
    module = sys.modules["fresh"] = types.ModuleType("fresh")
    exec(f"import msgspec\\n{INNER}{OUTER}", module.__dict__)
    together = threading.Barrier(8)
    def read(kind, value):
        together.wait()
        convert(value, kind)
    work = [(module.Outer, {"inner": {"key29": [1]}}), (module.Inner, {"key29": [1]})] * 4
    threads = [threading.Thread(target=read, args=item) for item in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_many_threads_read_a_type_for_the_first_time() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(ROUNDS)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
