"""
Differential tests: random sequences of QMP and guest I/O go to blockd and to the rival, and what comes back
has to be the same.

A sequence is made from a seed alone, before any daemon runs: `generate.py` keeps a rough picture of what
should exist (`world.py`) and draws mostly sensible steps from it, and some that are wrong on purpose.
`execute.py` sends a sequence to one daemon and records replies, events, graphs and images; every step is
waited for until nothing moves any more, so that the record does not depend on timing: jobs either run to
where they stop, or are so slow that they stay where they are. `compare.py` compares two records, with the
differences that are wanted left out (`known.py`). `shrink.py` cuts a failing sequence down.

    /usr/bin/python3 -m iotests.differential --seeds 200            # seeds 0 to 199
    /usr/bin/python3 -m iotests.differential --seed 17 -v           # one, with its record
"""
