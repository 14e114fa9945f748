"""The rows of the table, in its order."""

from . import jobs, latency, guests, nbd, luks, qmp, crowd, process, disk  # noqa: F401  (imported for their registration)
