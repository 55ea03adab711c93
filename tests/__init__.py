"""Tests of gradcheck. One thread each, and in the processes that they start: two workers of pytest share two processors."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
