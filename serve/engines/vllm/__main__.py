"""`python -m serve.engines.vllm --bundle DIR --model NAME --version N --uds PATH`: one model, served by vLLM."""

import os
import sys

from everlearn.processes.program import python

# `server` must be the program itself: processes that it starts import the program first, but never a `__main__.py`.
command = python("serve.engines.vllm.server", *sys.argv[1:])
os.execv(command[0], command)
