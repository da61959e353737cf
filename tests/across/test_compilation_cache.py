"""JAX's cache of compiled programs: what one process compiled, another one reads. (As fastscan/README.md says.)"""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "fastscan" / "README.md"
PROGRAM = """
import jax
import numpy as np
from fastscan import make_lgssm_params, lgssm_smoother
{settings}
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
one = np.eye(2, dtype="float32")
params = make_lgssm_params(one[0], one, 0.5 * one, one, one, one)
jax.block_until_ready(lgssm_smoother(params, np.zeros((9, 2), "float32")))
print(sum(event.endswith("cache_hits") for event in events), sum(event.endswith("cache_misses") for event in events))
"""


def test_another_process_reads_what_one_has_compiled(tmp_path):
    settings = re.findall(r"^jax.config.update.*$", README.read_text(), re.MULTILINE)
    assert len(settings) == 2
    program = PROGRAM.format(settings="\n".join(settings).replace("/tmp/compiled-programs", str(tmp_path)))
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in range(2)]
    (_, misses), (hits, misses_again) = (map(int, run.stdout.split()) for run in runs)
    assert misses > 0
    assert hits == misses
    assert misses_again == 0
