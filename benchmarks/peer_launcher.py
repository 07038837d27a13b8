"""Runs one command, and writes what it took. Small, since a process begins with the memory peak of the one that forks it.

python -I peer_launcher.py REPORT SECONDS COMMAND...
"""

import json
import resource
import subprocess
import sys
import time

report, limit_s, *command = sys.argv[1:]
began, late = time.monotonic(), False
try:
    subprocess.run(command, timeout=float(limit_s), check=False)
except subprocess.TimeoutExpired:
    late = True
wall_s = time.monotonic() - began
used = resource.getrusage(resource.RUSAGE_CHILDREN)
took = {
    "late": late,
    "wall_s": wall_s,
    "cpu_s": used.ru_utime + used.ru_stime,
    "peak_rss_bytes": used.ru_maxrss * 1024,
}
with open(report, "w", encoding="utf-8") as file:
    json.dump(took, file)
