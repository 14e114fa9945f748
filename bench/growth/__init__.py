"""How cost grows with a number: nodes, jobs, connections, links of a chain, bytes of an image."""

from . import connections, graph, jobs, sizes  # noqa: F401  (series register themselves)
